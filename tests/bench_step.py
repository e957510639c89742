"""Times the steps of train.py and, where timm is installed, those of a plain program, in turn.

    python -m tests.bench_step --arch resnet34           # with any flags of train.py
    python -m tests.bench_step --steps 20 --arch resnet34 --image-size 224 --augment report

The plain one is written as one would with timm and torchvision: timm's network and head, Pillow and
torchvision's transforms in a DataLoader, torch's optimizer and AMP with their defaults, the loss
read at every step. It has a process of its own, which waits while train.py is timed, and not what
train.py has set for its own process. The memory of decoding processes is not counted.
"""

import argparse
import ctypes
import gc
import importlib.metadata
import importlib.util
import itertools
import json
import os
import pickle
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import distributed
from data import DataError
from evaluate import autocast
from progress import PARTS, Progress
from train import OPTIMIZERS, make_trainer, open_data, parse_args

ROUNDS = 5
SERVE = "plain"  # the argument of the plain program's process
TIMM_NAMES = {
    "resnet34": "resnet34", "seresnext101": "legacy_seresnext101_32x4d",
    "pnasnet5large": "pnasnet5large",
    **{f"efficientnet_b{n}": f"tf_efficientnet_b{n}" for n in range(8)},
    "efficientnet_lite0": "tf_efficientnet_lite0",
}  # fmt: skip


class Timed(Progress):
    """A pass whose first step does not count. On a GPU, parts are what passes there from mark to
    mark; the host runs ahead of it as ever.

    warm_frames  of the first step
    """

    def __init__(self, name, steps, device, warm_frames):
        super().__init__(name, steps, device)
        self.warm_frames, self.on_gpu = warm_frames, device.type == "cuda"

    def restart(self, warm=0):
        super().restart(warm)
        self.events = []
        self.record("")

    def mark(self, part):
        super().mark(part)
        self.record(part)
        if part == "optimizer" and not self.warm:
            self.restart(self.warm_frames)

    def record(self, part):
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.default_stream())  # which computes the gradients
            self.events.append((part, event))

    def summary(self, seen):
        row = super().summary(seen)
        if self.on_gpu:
            torch.cuda.synchronize()
            self.seconds = dict.fromkeys(PARTS, 0.0)
            for (_, begin), (part, end) in itertools.pairwise(self.events):
                self.seconds[part] += begin.elapsed_time(end) / 1e3
            seconds = sum(self.seconds.values())
            row |= {"seconds": seconds, "images_per_second": (seen - self.warm) / seconds}
        return row

    def due(self, step):
        # To look at the first step would be to wait for a GPU: the next one would begin late.
        return step + 1 == self.steps


class Files(Dataset):
    def __init__(self, paths, labels, transform):
        self.paths, self.labels, self.transform = paths, labels, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        with Image.open(self.paths[i]) as image:
            return self.transform(image.convert("RGB")), self.labels[i]


def transforms(args, inputs):
    """torchvision's nearest to the report's augmentation, or the squash, mirrored or not."""
    size = inputs["size"]
    ops, erase = [v2.Resize((size, size))], []
    if args.augment == "flip":
        ops.append(v2.RandomHorizontalFlip())
    if args.augment == "report":
        ops, erase = [
            v2.RandomResizedCrop(size, (0.25, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.RandomRotation(10)]),
            v2.RandomApply([v2.ColorJitter(0.2, 0.2, 0.2, 0.05)]),
            v2.RandomApply([v2.GaussianBlur(3)]),
        ], [v2.RandomErasing()]
    scale = v2.ToDtype(torch.float32, scale=True), v2.Normalize(inputs["mean"], inputs["std"])
    return v2.Compose([v2.ToImage(), *ops, *scale, *erase])


def plain_program(args, files):
    """Timed -> its summary, after as many steps as it has."""
    import timm

    device, B, K = torch.device(args.device), args.batch_size, args.accumulate
    net = timm.create_model(TIMM_NAMES[args.arch], num_classes=files.labels.shape[1])
    net = net.to(device).train()
    options = {"momentum": 0.9} if args.optimizer == "sgd" else {}
    make = OPTIMIZERS[args.optimizer]
    optimizer = make(net.parameters(), args.lr, weight_decay=args.weight_decay, **options)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
    workers = args.workers or min(8, os.cpu_count() or 1)

    def run(progress):
        loader = iter(DataLoader(files, B, shuffle=True, num_workers=workers,
                                 pin_memory=device.type == "cuda"))  # fmt: skip
        progress.restart()
        for _ in range(progress.steps):
            for _ in range(K):
                images, labels = (tensor.to(device) for tensor in next(loader))
                progress.mark("data")
                with autocast(args):
                    logits = net(images)
                loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
                scaler.scale(loss / K).backward()
                progress.mark("gradient")
            scaler.unscale_(optimizer)
            if args.clip_grad:
                nn.utils.clip_grad_norm_(net.parameters(), args.clip_grad)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            loss.item()
            progress.mark("optimizer")
        return progress.summary(progress.steps * B * K)

    return run


def held_memory(device) -> int:
    """Bytes that networks, optimizers and data occupy between rounds."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if sys.platform != "linux":
        return 0
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, and counts when it is taken again
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measured(program, progress):
    """images/s, peak memory in GB above what is held, and the parts of a step, of one round."""
    held = held_memory(progress.device) / 1e9
    row = program(progress)
    parts = {part: seconds / row["seconds"] for part, seconds in progress.seconds.items()}
    return {"rate": row["images_per_second"], "memory": row["memory_gb"] - held, "parts": parts}


def compare(args, world):
    """Prints the medians of ROUNDS rounds of train.py and, where timm is installed, of plain timm.
    """
    torch.use_deterministic_algorithms(args.deterministic)
    torch.backends.cudnn.benchmark = not args.deterministic
    training, validation = open_data(args, world)
    trainer = make_trainer(args, None, training, validation, world)
    inputs, window = trainer.about["input_config"], args.batch_size * args.accumulate
    steps = min(args.steps + 1, len(training) // window)
    if steps < 2:
        raise DataError(f"{len(training)} training frames: less than two steps – take more")

    def ours(progress):
        trainer.epochs = 0
        return trainer.epoch(progress)

    plain, rounds = None, {"train.py": []}
    print(f"{ROUNDS} rounds of {steps} steps are timed, of which each round's first does not count")
    if args.arch in TIMM_NAMES and importlib.util.find_spec("timm"):
        environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
        plain = subprocess.Popen(
            [sys.executable, "-m", "tests.bench_step", SERVE], cwd=Path(__file__).parents[1],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        paths = [os.path.abspath(path) for path in training.paths]
        pickle.dump((args, steps, paths, training.labels, inputs), plain.stdin)
        plain.stdin.flush()
        timm = importlib.metadata.version("timm")
        print(f"waiting for the plain program, of timm {timm}, which has its turn in each round")
        plain.stdout.readline()  # until it is ready
        rounds["plain timm"] = []
    elif args.arch in TIMM_NAMES:
        print("nothing to compare with – pip install timm")
    else:
        print(f"nothing to compare with: timm has no {args.arch}")
    try:
        for number in range(1, ROUNDS + 1):
            progress = Timed(f"round {number}/{ROUNDS}", steps, trainer.device, window)
            rounds["train.py"].append(measured(ours, progress))
            if plain:
                plain.stdin.write(b"go\n")
                plain.stdin.flush()
                rounds["plain timm"].append(json.loads(plain.stdout.readline()))
    finally:
        if plain:
            plain.kill()
            plain.wait()
    for name, rows in rounds.items():
        rate, memory = (statistics.median(r[key] for r in rows) for key in ("rate", "memory"))
        parts = rows[0]["parts"]  # medians would not add up
        shares = {part: statistics.mean(r["parts"][part] for r in rows) for part in parts}
        print(f"{name:<10}{rate:>9.2f} images/s{memory:>7.2f} GB  of a step:",
              ", ".join(f"{part} {share:.1%}" for part, share in shares.items()))  # fmt: skip
    if plain:
        ratios = [a["rate"] / b["rate"] for a, b in zip(*rounds.values(), strict=True)]
        print(f"train.py is {statistics.median(ratios):.2f} times as fast, in {ROUNDS} rounds "
              f"{min(ratios):.2f} to {max(ratios):.2f}")  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=5, help="timed in a round [5]")
    own, flags = parser.parse_known_args(argv)
    args = parse_args(flags)
    args.steps = own.steps
    args.weights = "none"  # on which times do not depend
    smaller = f"--batch-size {max(1, args.batch_size // 2)}"
    return distributed.launch("bench_step.py", compare, args, smaller)


def serve():
    """The plain program's process: a round for each line of the standard input."""
    args, steps, paths, labels, inputs = pickle.load(sys.stdin.buffer)
    program = plain_program(args, Files(paths, labels, transforms(args, inputs)))
    print("ready", flush=True)
    for _ in sys.stdin.buffer:
        window = args.batch_size * args.accumulate
        progress = Timed("", steps, torch.device(args.device), window)
        print(json.dumps(measured(program, progress)), flush=True)


if __name__ == "__main__":
    sys.exit(serve() if sys.argv[1:] == [SERVE] else main())
