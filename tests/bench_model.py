"""Times the networks beside their peers, all in one run: python -m tests.bench_model [arch ...]

On a CPU at batch 2, 224 px, float32: forward in evaluation mode, forward and backward in training
mode, and the peak of resident memory above that after building, in a process of its own. With a GPU
also forward and backward at the report's batch size (AMP fp16), ours and timm's, in both memory
formats, as one CUDA graph: the launches of a host, which may be slower, are not timed.
A figure is the fastest of --rounds calls; on a CPU these alternate between the networks, and it is
one thread's processor time, in which other work on the machine hardly shows. Dropout and stochastic
depth are off, and every head is one linear layer.
"""

import argparse
import itertools
import subprocess
import sys
import time
from functools import partial

import timm
import torch
import torchvision
from torch import nn

from model import COEFFICIENTS, create_model


def networks(arch):
    """name -> constructor of the same function with 1000 classes."""
    ours = partial(create_model, arch, 1000, "linear")
    if arch in COEFFICIENTS:
        nets = {
            f"{flavour}, {name}": build
            for flavour, peer in (("tf", f"tf_{arch}"), ("torchvision", arch))
            for name, build in (
                ("ours", partial(ours, flavour=flavour, drop_connect=0.0)),
                ("timm", partial(timm.create_model, peer)),
            )
        }
        theirs = getattr(torchvision.models, arch, None)  # it has no Lite0
        if theirs is None:
            return nets
        return nets | {"torchvision, torchvision": partial(theirs, stochastic_depth_prob=0.0)}
    if arch == "seresnext101":
        return {
            "cadene, ours": ours,
            "cadene, timm": partial(timm.create_model, "legacy_seresnext101_32x4d"),
            "gluon, ours": partial(ours, flavour="gluon"),
            "gluon, timm": partial(timm.create_model, "seresnext101_32x4d"),
        }
    nets = {", ours": ours, ", timm": partial(timm.create_model, arch)}
    if arch == "resnet34":
        nets[", torchvision"] = torchvision.models.resnet34
    return nets


def forward(net, x):
    with torch.no_grad():
        net.eval()(x)


def forward_backward(net, x):
    net.train().zero_grad(set_to_none=True)
    net(x).square().mean().backward()


def without_dropout(net):
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net


def fastest(nets, call, rounds):
    """name -> seconds."""
    on_gpu = torch.cuda.is_available() and torch.cuda.memory_allocated() > 0
    clock = time.perf_counter if on_gpu else time.process_time
    seconds = dict.fromkeys(nets, float("inf"))
    for _ in range(rounds):
        for name, net in nets.items():
            start = clock()
            call(net)
            if on_gpu:
                torch.cuda.synchronize()
            seconds[name] = min(seconds[name], clock() - start)
    return seconds


def peak_mib(arch, name):
    """Of one forward and one training step, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench_model", "--peak", arch, name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak(arch, name):
    def resident(field):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024

    torch.set_num_threads(1)
    net, x = without_dropout(networks(arch)[name]()), torch.randn(2, 3, 224, 224)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark falls to what is resident
    before = resident("VmRSS")
    forward(net, x)
    forward_backward(net, x)
    print(resident("VmHWM") - before)


def on_cpu(arch, rounds):
    nets = {name: without_dropout(build()) for name, build in networks(arch).items()}
    x = torch.randn(2, 3, 224, 224)
    ahead = fastest(nets, lambda net: forward(net, x), rounds)
    back = fastest(nets, lambda net: forward_backward(net, x), rounds)
    for name in nets:
        peers = [n for n in nets if n.split(",")[0] == name.split(",")[0] and "ours" not in n]
        ratios = [t[name] / min(t[p] for p in peers) for t in (ahead, back)]
        print(
            f"{arch:<16}{name:<26}{ahead[name]:>8.3f} s {ratios[0]:>5.2f}{back[name]:>9.3f} s "
            f"{ratios[1]:>5.2f}{peak_mib(arch, name):>8.0f} MiB",
            flush=True,
        )


def recorded(net, images):
    """A CUDA graph of forward and backward, and the bytes that these take at most."""
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()

    def step():
        with torch.autocast("cuda", torch.float16):
            loss = net(images).float().square().mean()
        loss.backward()

    step()  # algorithms are chosen, and gradients allocated
    step()
    peak = torch.cuda.max_memory_allocated() - held
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph, peak


def on_cuda(arch, batch, rounds, benchmark):
    """The report's flavour of a network; benchmark is cuDNN's, which chooses algorithms by time."""
    torch.backends.cudnn.benchmark = benchmark
    chosen = "by time" if benchmark else "by rule"
    formats = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    nets = list(networks(arch).items())[:2]
    for (name, build), (order, memory) in itertools.product(nets, formats.items()):
        net = without_dropout(build()).cuda().to(memory_format=memory).train()
        images = torch.randn(batch, 3, 224, 224, device="cuda").to(memory_format=memory)
        start = time.perf_counter()
        graph, peak = recorded(net, images)
        first = time.perf_counter() - start
        seconds = fastest({name: graph}, torch.cuda.CUDAGraph.replay, rounds)[name]
        print(
            f"{arch:<16}{name:<13}{order:<14} {chosen} {seconds * 1e3:>8.1f} ms a step of {batch}"
            f"{peak / 2**20:>9.0f} MiB{first:>6.1f} s before it",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    archs = ["resnet34", "seresnext101", "pnasnet5large", "efficientnet_b0", "efficientnet_b7"]
    parser.add_argument("arch", nargs="*", default=archs)
    parser.add_argument("--rounds", type=int, default=10, help="calls of each network")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        return peak(*args.peak)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, batch 2, 224 px, float32")
    print(
        f"{'':<42}{'forward':>10}{'':>6}{'+ backward':>11}{'':>6}{'peak':>12}  (ratio to best peer)"
    )
    for arch in args.arch:
        on_cpu(arch, args.rounds)
    if torch.cuda.is_available():
        for arch, batch in (("seresnext101", 64), ("efficientnet_b7", 24)):
            on_cuda(arch, batch, 20, benchmark=True)
    return None


if __name__ == "__main__":
    main()
