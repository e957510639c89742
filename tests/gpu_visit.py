"""One short visit to a CUDA machine: every GPU check and every benchmark, one folder of results.

    python tests/gpu_visit.py results                 all parts, at most 9.5 minutes
    python tests/gpu_visit.py results head --minutes 30     some parts, with more time

A part that fails, or is stopped at its share of the minutes, does not stop the others. Writes
log.txt (the output of every part), mish.csv, mish_dropout.csv and head.csv (a row as soon as it is
measured, the main sizes first) and tables.md (the same rows, and how each part ended). Without CUDA
the tests that need it are skipped and nothing is timed.
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = """
import torch
from tests.bench_model import on_cuda
if torch.cuda.is_available():
    on_cuda("seresnext101", 64, 20)
    on_cuda("efficientnet_b7", 24, 20)
"""
STEP = """
import torch, train
flags = "--benchmark 10 --data demo:768/64 --image-size 224 --augment report --batch-size 64"
if torch.cuda.is_available():
    for cache in ("device", "off"):
        train.main([*flags.split(), "--optimizer", "sgd", "--cache", cache])
"""
TESTS = "-m pytest -v -rs --durations=10 --continue-on-collection-errors -k cuda tests".split()
PARTS = {  # name -> share of the time, arguments of Python; {} is the folder
    "tests": (14, TESTS),
    "head": (11, ["mish_kernel.py", "--op", "head", "--csv", "{}/head.csv"]),
    "mish": (5, ["mish_kernel.py", "--op", "mish", "--csv", "{}/mish.csv"]),
    "mish_dropout": (5, ["mish_kernel.py", "--op", "mish_dropout", "--csv", "{}/mish_dropout.csv"]),
    "tiles": (6, ["-c", "from tests.gpu_visit import tiles; tiles()"]),
    "model": (8, ["-c", MODEL]),
    "step": (8, ["-c", STEP]),
    "augment": (8, "-m tests.bench_augment --seconds 0.5".split()),
}


def tiles():
    """The head at B = 64, F = 2048 with other tiles: microseconds of one replay, p20, p80."""
    import torch

    import mish_kernel as mk

    def step(*arguments):
        with torch.autocast("cuda", torch.float16):
            loss, _ = mk.mish_head_bce(*arguments)
        return torch.autograd.grad(loss, arguments[:5]) if torch.is_grad_enabled() else loss

    if not torch.cuda.is_available():
        return
    inputs = [mk.head_inputs(64, 2048, torch.float16, "cuda") for _ in range(64)]
    for options, backward, changes in (
        (mk.FORWARD, False, ({}, {"BK": 256}, {"BK": 256, "num_stages": 4}, {"BN": 16},
                             {"BM": 16, "BN": 16}, {"BM": 64}, {"SPLIT": 16},
                             {"SPLIT": 4, "num_warps": 4})),
        (mk.BACKWARD, True, ({}, mk.NARROW, {"BHX": 128}, {"BFW": 64}, {"BFW": 256}, {"BFX": 64},
                             {"BH": 32})),
    ):  # fmt: skip
        chosen = options.copy()
        for change in changes:
            options.update(chosen | change)
            with torch.cuda.stream(torch.cuda.Stream()), torch.set_grad_enabled(backward):
                try:
                    times = [round(t, 2) for t in mk.timed(step, inputs, 30, "graph")]
                except mk.triton.runtime.errors.OutOfResources as error:
                    times = error
            print("fwd+bwd" if backward else "fwd", change or "as chosen", times, flush=True)
        options.update(chosen)


def run(log, seconds, command):
    """How a Python command ended. It and the processes that it started end at the limit."""
    process = subprocess.Popen([sys.executable, "-u", *command], cwd=ROOT, stdout=log, stderr=log,
                               start_new_session=True)  # fmt: skip
    try:
        return f"exit {process.wait(seconds)}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "stopped at its limit"


def markdown(path):
    """The CSV as a table; rows in which we lose to eager are marked."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return ""
    keys = [key for key in rows[0] if key != "about"]
    lines = ["", rows[0]["about"], "", f"| {' | '.join(keys)} |", "|" + " --- |" * len(keys)]
    for row in rows:
        slower = row["provider"].startswith("fused") and float(row["x eager"]) < 1
        cells = [row[key] + " (slower)" * (slower and key == "x eager") for key in keys]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the results; made if missing")
    parser.add_argument("parts", nargs="*", help=f"of {' '.join(PARTS)} [all]")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all of them [9.5]")
    args = parser.parse_args()
    names = args.parts or list(PARTS)
    if wrong := set(names) - set(PARTS):
        parser.error(f"no part is named {' '.join(wrong)}: {' '.join(PARTS)}")
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    ends = []
    with open(folder / "log.txt", "a", buffering=1) as log:
        for i, name in enumerate(names):
            share, command = PARTS[name]
            left = 60 * args.minutes - sum(seconds for _, _, seconds in ends)
            limit = left * share / sum(PARTS[other][0] for other in names[i:])
            log.write(f"\n==== {name}\n")
            (folder / f"{name}.csv").unlink(missing_ok=True)
            start = time.monotonic()
            end = run(log, limit, [part.replace("{}", str(folder)) for part in command])
            ends.append((name, end, time.monotonic() - start))
            print(f"{name}: {end} after {ends[-1][2]:.0f} s of {limit:.0f} s", flush=True)
    tables = [markdown(path) for path in sorted(folder.glob("*.csv"))]
    lines = [f"{name}: {end} after {seconds:.0f} s" for name, end, seconds in ends]
    (folder / "tables.md").write_text("\n\n".join(lines) + "\n" + "".join(tables))
    print(f"results in {folder}")
    return int(any(end != "exit 0" for _, end, _ in ends))


if __name__ == "__main__":
    raise SystemExit(main())
