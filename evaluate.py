"""Score trained checkpoints, blend several, predict for unlabelled images, explain classes.

    python evaluate.py runs/seresnext101/best.pt --data A2D/ --split test
    python evaluate.py runs/seresnext101/best.pt runs/b7/best.pt --data A2D/ --blend fit
    python evaluate.py runs/seresnext101/best.pt --data holiday-photos/     # predictions alone

    predictor = evaluate.Predictor("runs/seresnext101/best.pt")
    predictor("park/7.png")                   # [("dog-running", 0.91), ("adult-none", 0.62)]

What is scored is the average of the weights where the run kept one (--ema), at the threshold that
was chosen on the validation frames in training. The command runs under torchrun too.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    # Until torch is loaded nothing can be lost: Ctrl-C needs no words.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.functional import crop

import augment
import checkpoint
import data
import decoding
import demo
import distributed
import metrics
import model
import pictures
import schema
from flags import Parser, add_flags, given_flags, out_of_range, refuse_broken
from layouts import default_split, did_you_mean, read_text
from progress import clock, show_interval, show_line

BATCH_SIZE = 64  # frames in a forward pass without gradients; of scores it changes the rounding
EVALUATION_FILES = ("predictions.png", "report.csv", "classes.png", "explain.png")
FEW = 10  # frames whose predictions are printed
PAGE, ROW = 24, 6  # frames on a page of predictions, in a row of any page
LEGEND = [  # of predictions, lines of pictures.write_page
    ("right", "right"),
    ("wrong: predicted, not true", "wrong"),
    ("missed: true, not predicted", "missed"),
]
HAS_LABEL = [("the frame has the label", "right"), ("the frame does not have it", "wrong")]
WARM = ("below each frame, from red to yellow: what in it speaks for the class", "")


# ----------------------------------------------------------------------------------- what is scored


class Predictor:
    """A trained network, for use from Python.

    path    a checkpoint of train.py, of which no code runs, or what checkpoint.load has read of
            one; a run's folder means its best.pt
    device  as torch names it; None: a GPU where there is one
    raises  checkpoint.CheckpointError

    .net, .classes (C names), .threshold, .transform (augment.EvalTransform), .device; .state is the
    whole checkpoint.
    """

    def __init__(self, path, device=None):
        self.state = path if isinstance(path, dict) else checkpoint.load(best_of(path))
        self.device = distributed.choose_device(device)
        self.classes = self.state["class_names"]
        self.threshold = self.state["threshold"]
        fit = self.state["args"]["fit"]
        self.transform = augment.EvalTransform(**self.state["input_config"], fit=fit)

        # Where a run kept an average of the weights, that is what it scored.
        file = "checkpoint" if isinstance(path, dict) else best_of(path)
        self.net = restored(self.state, "average" if self.state["average"] else "model", file)
        self.net.to(self.device, memory_format=torch.channels_last).eval()

    def __call__(self, images):
        """The labels whose probability reaches the threshold, the likeliest first.

        images   a path, a PIL image, or a list of them
        returns  [(class, probability), …], possibly empty; of a list, a list of these
        raises   data.DataError: an image that cannot be read; TypeError: no image
        """
        if not isinstance(images, (list, tuple)):
            return self([images])[0]
        answers = []
        for row in self.probabilities(images).tolist():
            ranked = sorted(zip(self.classes, row, strict=True), key=lambda pair: -pair[1])
            answers.append([pair for pair in ranked if pair[1] >= self.threshold])
        return answers

    @torch.no_grad()
    def probabilities(self, images):
        """(N, C) float32, on the CPU, of paths and PIL images."""
        rows = [torch.empty(0, len(self.classes))]
        shorter = data.longest_shown(self.transform.size)
        for start in range(0, len(images), BATCH_SIZE):
            # One by one, as they differ in size; the transform makes them alike.
            views = []
            for image in images[start : start + BATCH_SIZE]:
                if isinstance(image, (str, Path)):
                    levels = decoding.decode(image, shorter)
                elif isinstance(image, Image.Image):
                    levels = decoding.rgb(image, shorter=shorter)
                else:
                    raise TypeError(
                        "images are a path, a PIL image, or a list of them, got "
                        f"{schema.described(image)}; PIL.Image.fromarray makes one of an (H, W, 3) "
                        "uint8 array, torchvision's to_pil_image of a (3, H, W) tensor"
                    )
                frame = torch.from_numpy(levels).permute(2, 0, 1)[None]  # (1, 3, H, W) uint8
                views.append(self.transform(frame.to(self.device)))
            rows.append(self.net(torch.cat(views)).float().cpu().sigmoid())
        return torch.cat(rows)


def restored(state, key, path, **options):
    """The network that the checkpoint at path describes, with its "model" or "average" as weights.

    options  of model.create_model, beside those in state
    raises   checkpoint.CheckpointError
    """
    try:
        net = model.create_model(**state["config"], **options)
    except ValueError as error:
        raise checkpoint.CheckpointError(f"{path}: config: {error}") from None
    checkpoint.restore(path, key, state[key], net.state_dict())
    return net


def best_of(path) -> Path:
    """A checkpoint's path: a folder means the best.pt in it."""
    return Path(path, "best.pt") if os.path.isdir(path) else Path(path)


def open_sets(spec, splits=("train", "val"), classes=None, **options):
    """data.load of what --data names, for which scenes are drawn if need be."""
    path = demo.resolve(spec)
    try:
        return data.load(path, splits, classes, **options)
    except data.DataError as error:
        if not demo.is_drawn(spec):
            raise
        advice = f"{path}: holds drawn scenes – remove it, and they are drawn anew"
        raise data.DataError(*error.problems, advice) from None


def autocast(args):
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "off": None}[args.amp]
    return torch.autocast(torch.device(args.device).type, dtype, enabled=args.amp != "off")


def make_loader(dataset, indices, args, world):
    """This rank's, in pinned memory where they are still to go to a GPU."""
    pin = args.device != "cpu" and dataset.keep in (None, "cpu")
    return data.batches(
        dataset, indices, args.batch_size, args.workers, pin, world.rank, world.size
    )


@torch.no_grad()
def predict(net, dataset, view, args, world, most=None) -> torch.Tensor:
    """Probabilities (N, C) float32 on the CPU, in the data set's order, the same on every rank.

    Puts net in evaluation mode. Each rank scores every R-th frame, none of them twice.

    view  (frames uint8, sizes) -> images, normalised
    most  score the first frames alone, as many
    """
    indices = range(len(dataset))[:most]
    together = args.batch_size * world.size  # frames of all ranks in one forward pass
    probabilities = torch.zeros(len(indices), net.config["num_classes"])
    net.eval()

    began = shown = time.monotonic()
    loader = make_loader(dataset, indices, args, world)
    for start, batch in zip(indices[::together], loader, strict=True):
        images = view(batch.frames.to(args.device, non_blocking=True), batch.sizes)
        with autocast(args):
            scores = net(images).float().cpu().sigmoid()  # (B, C)

        # A rank that has no frame left scored another's, which is not copied.
        own = probabilities[start : start + together][world.rank :: world.size]
        own.copy_(scores[: len(own)])
        world.poll()

        # What takes less than five seconds says nothing.
        now, done = time.monotonic(), min(start + together, len(indices))
        if now - began > 5 and (now - shown > show_interval() or done == len(indices)):
            shown = now
            left = (now - began) * (len(indices) / done - 1)
            show_line(f"scored {done}/{len(indices)} frames  left {clock(left)}", last=left == 0)
    # Each row is 0 on all ranks but one: x + 0 is exact.
    return world.reduce(probabilities)


def score(
    probabilities, labels, names, frequency, threshold=None, chosen_on="these frames"
) -> dict:
    """metrics.report and the loss, at `threshold`, or at the best one on these very frames."""
    labels = labels[: len(probabilities)]
    if threshold is None:
        threshold, _ = metrics.best_threshold(probabilities, labels)
    report = metrics.report(probabilities, labels, threshold, names, chosen_on, frequency)
    loss = F.binary_cross_entropy(probabilities.double(), labels.double()).item()
    return report | {"loss": loss}


# --------------------------------------------------------------------------------- what is printed


def print_scores(rows, labels):
    """(what, weight, threshold, probabilities) of checkpoints and their blend, with scores in %."""
    width = max(len(what) for what, *_ in rows)
    scored = "" if labels is None else f"{'P':>8}{'R':>8}{'F1':>8}"
    print(f"{'':<{width}}  weight  threshold{scored}")
    for what, weight, threshold, probabilities in rows:
        line = f"{what:<{width}}{weight:>8.2f}{threshold:>11.2f}"
        if labels is not None:
            scores = metrics.precision_recall_f1(metrics.decide(probabilities, threshold), labels)
            line += "".join(f"{100 * score:>8.1f}" for score in scores)
        print(line)


def print_with_min_labels(probabilities, labels, threshold, min_labels):
    """A line on the decisions in predictions.csv, which the report's are not under --min-labels."""
    decided = metrics.decide(probabilities, threshold, min_labels)
    p, r, f1 = (100 * score for score in metrics.precision_recall_f1(decided, labels))
    print(
        f"\nwith --min-labels {min_labels}, as in predictions.csv: precision {p:.1f}, recall "
        f"{r:.1f}, F1 {f1:.1f} %; below and in report.csv, without"
    )


def print_predictions(names, classes, probabilities, decided):
    """A line for each of a few frames: its labels with their probabilities, or the likeliest."""
    for name, row, labels in zip(names, probabilities.tolist(), decided, strict=True):
        ranked = sorted(zip(row, classes, labels, strict=True), reverse=True)
        told = ", ".join(f"{label} {p:.0%}" for p, label, decision in ranked if decision)
        print(f"{name}: {told or f'no label; the likeliest is {ranked[0][1]} {ranked[0][0]:.0%}'}")


def write_report(folder, report, log=None) -> str:
    """Writes report.csv, prints the table and, where matplotlib is installed, draws the charts.

    log      path of a log.jsonl, for curves.png
    returns  what else was written than the report, to be printed
    """
    with checkpoint.replacing(folder / "report.csv") as file:
        metrics.write_report_csv(file, report)
    print(metrics.format_report(report))

    # Charts are worth no evaluation: what is in their way is said, and nothing more.
    try:
        pictures.draw_classes(report, folder / "classes.png")
        rows = checkpoint.read_log(log) if log else []
        if not rows:
            return ", classes.png"
        pictures.draw_curves(rows, folder / "curves.png")
        return ", classes.png, curves.png"
    except ImportError:
        return "; pip install matplotlib for charts"
    except OSError as error:
        return f"; no charts: {error}"


# ------------------------------------------------------------------------------------- command line


FLAGS = [
    ("--data", str, "A2D folder, .csv of your images, folder of images without labels or of class "
     "folders, demo, or demo:TRAIN/VAL [demo]"),
    ("--images", str, "folder that the paths in a .csv are below [that of the .csv]"),
    ("--split", ["train", "val", "test"], "part of the data [val; all rows of a .csv without "
     "splits]"),
    ("--blend", str, "of several: mean, fit (weights for the best F1 on these frames, kept in "
     "blend.json), or such a file [mean]"),
    ("--explain", (str,), "what in a frame speaks for these classes, in explain.png"),
    ("--threshold", float, "least probability of a predicted label [what validation in training "
     "chose, or the blend's]"),
    ("--min-labels", int, "labels that a frame has at least: the likeliest, where too few reach "
     "the threshold [0]"),
    ("--out", str, "folder to write [evaluate-SPLIT beside the first checkpoint]"),
    ("--batch-size", int, "frames in a forward pass, of each process under torchrun [64]"),
    ("--workers", int, "decoding processes [up to 8]"),
    ("--amp", ["fp16", "bf16", "off"], "autocast type [fp16; off on a CPU]"),
    ("--device", str, "cpu, cuda, cuda:1 [cuda where there is one]"),
]  # fmt: skip
BLEND = {  # what --blend fit writes
    "weights": schema.Rule("numbers from 0 to 1 by path", lambda value: isinstance(value, dict)
                           and all(map(schema.FRACTION.holds, value.values()))),
    "threshold": schema.FRACTION,
}  # fmt: skip
DEFAULTS = {
    "data": "demo", "images": None, "split": None, "blend": "mean", "explain": [],
    "threshold": None, "min_labels": 0, "out": None, "batch_size": BATCH_SIZE,
    "workers": min(8, os.cpu_count() or 1),
}  # fmt: skip


def parse_args(argv=None):
    """The flags; all that is wrong with them is refused in one message."""
    parser = Parser(
        description=__doc__.split("\n\n")[0],
        usage="python evaluate.py CHECKPOINT [CHECKPOINT ...] [flags]; --help lists them",
        epilog="The values in [] are the defaults.",
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="best.pt of a run, or "
                        "of several, which are blended")  # fmt: skip
    add_flags(parser, FLAGS)

    given = given_flags(parser, argv)
    device = distributed.choose_device(given.get("device"))
    # A CPU computes in fp16 slowly, where it can at all.
    amp = "fp16" if device.startswith("cuda") else "off"
    args = argparse.Namespace(**{**DEFAULTS, "amp": amp, **given, "device": device})
    args.checkpoints = [str(best_of(path)) if path else path for path in args.checkpoints]

    rules = out_of_range(args) + distributed.device_rules(device) + [
        ("threshold" in given and args.blend == "fit", "--threshold: --blend fit finds one"),
        (demo.is_drawn(args.data) and args.images is not None, "--images: of a table of your own"),
        (args.out == "", "--out: names no folder"),
        (demo.is_drawn(args.data) and args.split == "test",
         "--split test: the drawn scenes have train and val"),
        (args.blend != "mean" and len(args.checkpoints) < 2, "--blend: of several checkpoints"),
    ]
    refuse_broken(parser, rules)
    return args


# -------------------------------------------------------------------------------------- evaluation


def open_members(args):
    """A Predictor of each checkpoint, all of the same classes, which the flags fit."""
    members = [Predictor(path, args.device) for path in args.checkpoints]
    classes = members[0].classes
    for path, member in zip(args.checkpoints, members, strict=True):
        if member.classes != classes:
            raise checkpoint.CheckpointError(f"{path}: other classes than {args.checkpoints[0]}")

    unknown = [name for name in args.explain if name not in classes]
    if unknown:
        known = ", ".join(classes) + did_you_mean(unknown[0], classes)
        raise data.DataError(f"--explain {' '.join(unknown)}: the classes are {known}")
    if args.min_labels > len(classes):
        raise data.DataError(f"--min-labels {args.min_labels}: there are {len(classes)} classes")
    return members


def open_frames(args, members):
    """(split, frames to be scored): the val of data that have splits, or else all; images without
    labels are the split "all"."""
    classes = members[0].classes
    if demo.is_drawn(args.data) and classes != data.CLASSES:
        raise data.DataError(
            f"--data {args.data}: {args.checkpoints[0]} has other classes than the drawn scenes – "
            "name frames of its own"
        )
    options = {"size": members[0].transform.size, "images": args.images}
    split, dataset = open_sets(args.data, (args.split,), classes, **options).popitem()

    # The rows of the very table that was trained on would score what the networks have seen.
    if split == "all" and dataset.labels is not None:
        rows = [i for i, name in enumerate(dataset.names) if default_split(name) == "train"]
        trained_on = {member.state["frames"]["train"] for member in members}
        if trained_on == {dataset.fingerprint(rows)}:
            print("note: the network was trained on this list, so what it held out is scored; "
                  "--split train scores the rest")  # fmt: skip
            split, dataset = open_sets(args.data, ("val",), classes, **options).popitem()

    # Of another list, frames that a network has seen are scored too well.
    if split != "train" and dataset.labels is not None:
        for path, member in zip(args.checkpoints, members, strict=True):
            warn_of_seen(path, member.state["trained_on"], dataset)
    return split, dataset


def warn_of_seen(path, trained_on, dataset):
    """A line on the frames that a network has seen, which are scored too well."""
    count = torch.isin(dataset.identities(), trained_on).sum()
    if count:
        print(f"warning: {path} was trained on {count} of these {len(dataset)} frames")


def evaluate(args, world):
    """What the command does: all members' scores, their blend, and the files of the run."""
    torch.backends.cudnn.benchmark = True
    members = open_members(args)
    if args.out:
        refuse_out(args.out)
    with world.in_turn():
        split, dataset = open_frames(args, members)
    print(data.describe({split: dataset}))
    if line := data.describe_batches(dataset, args.batch_size, args.workers):
        print(line)

    if args.blend == "fit" and dataset.labels is None:
        raise data.DataError(f"--blend fit: {args.data} has no labels – fit on validation frames")
    weights, threshold, chosen_on = read_blend(args, [member.threshold for member in members])

    folder = Path(args.out or Path(args.checkpoints[0]).parent / f"evaluate-{split}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise data.DataError(f"{folder}: {error.strerror} – choose another --out") from None

    # From here on a signal stops all ranks after the same batch.
    world.polled = True
    if (folder / "predictions.csv").exists():
        print(f"{folder}: the evaluation in it is replaced")
    before = changed(folder)

    scores = []  # of each member, (N, C)
    for path, member in zip(args.checkpoints, members, strict=True):
        dataset.shorter = data.longest_shown(member.transform.size)
        scores.append(predict(member.net, dataset, member.transform, args, world))
        if not scores[-1].isfinite().all():
            raise checkpoint.CheckpointError(f"{path}: its scores are not finite – use another")
    world.act_at_once()
    if world.rank:
        return

    # The scores are complete, and rank 0 alone goes on.
    if args.blend == "fit":
        weights = metrics.fit_blend(scores, dataset.labels).tolist()
        threshold, _ = metrics.best_threshold(metrics.blend(scores, weights), dataset.labels)
        chosen_on = "these frames"
    probabilities = torch.as_tensor(metrics.blend(scores, weights))  # (N, C)

    rows = []
    for path, member, weight, own in zip(args.checkpoints, members, weights, scores, strict=True):
        what = f"{path} ({member.net.arch}, epoch {member.state['epoch']})"
        rows.append((what, weight, member.threshold, own))
    if len(members) > 1:
        rows.append(("blend", 1, threshold, probabilities))
    print_scores(rows, dataset.labels)

    written = write_files(folder, args, members[0], dataset, probabilities, threshold)
    if args.blend == "fit":
        shares = dict(zip(args.checkpoints, weights, strict=True))
        blend = json.dumps({"weights": shares, "threshold": threshold}, indent=1)
        (folder / "blend.json").write_text(blend + "\n", encoding="utf-8")
        written += ", blend.json"

    if dataset.labels is not None:
        names, frequency = members[0].classes, members[0].state["frequency"]
        report = score(probabilities, dataset.labels, names, frequency, threshold, chosen_on)
        if args.min_labels:
            print_with_min_labels(probabilities, dataset.labels, threshold, args.min_labels)
        written += ", report.csv" + write_report(folder, report)
    print(f"written: {folder}/{written}")
    older = [name for name, when in changed(folder).items() if before.get(name) == when]
    if older:
        print(f"note: {', '.join(older)} in {folder} is of an earlier evaluation")


def refuse_out(folder):
    """Raises CheckpointError where something else than an evaluation would be replaced."""
    for sign in ("last.pt", "args.json"):
        if Path(folder, sign).exists():
            raise checkpoint.CheckpointError(f"{folder}: is a training's – choose another --out")
    checkpoint.refuse_foreign(folder, EVALUATION_FILES, "predictions.csv")


def changed(folder) -> dict:
    """When the files that an evaluation may write were changed last, in ns, as far as there are."""
    paths = [folder / name for name in EVALUATION_FILES]
    return {path.name: path.stat().st_mtime_ns for path in paths if path.exists()}


def write_files(folder, args, member, dataset, probabilities, threshold) -> str:
    """predictions.csv, predictions.png and, with --explain, explain.png: the names, to be printed.
    """
    decided = metrics.decide(probabilities, threshold, args.min_labels)
    with checkpoint.replacing(folder / "predictions.csv") as file:
        metrics.write_predictions(
            file, dataset.names, member.classes, probabilities.tolist(), decided, dataset.labels
        )
    if len(dataset) <= FEW:
        print_predictions(dataset.names, member.classes, probabilities, decided)
    write_page(folder / "predictions.png", dataset, member.classes, probabilities, decided)
    if not args.explain:
        return "predictions.csv, predictions.png"
    explain(folder / "explain.png", member, dataset, args.explain, probabilities)
    return "predictions.csv, predictions.png, explain.png"


def read_blend(args, thresholds):
    """Weights (M,) of the checkpoints, a threshold, and what it was chosen on.

    raises  DataError: a file that cannot be read, is of other checkpoints, has no such weights
    """
    M = len(thresholds)
    weights, threshold = [1 / M] * M, sum(thresholds) / M
    chosen_on = "validation in training" if M == 1 else "validation in training, their mean"
    if args.blend not in ("mean", "fit"):
        # Paths are compared as the files that they are, however they were written.
        try:
            blend = json.loads(read_text(args.blend))
            if wrong := schema.fault(blend, BLEND):
                raise ValueError(wrong)
            rows = blend["weights"].items()
            given = {os.path.realpath(best_of(path)): weight for path, weight in rows}
            paths = [os.path.realpath(path) for path in args.checkpoints]
            if wrong := schema.keys_fault(given, paths, paths, "weights"):
                raise ValueError(wrong)
            weights = metrics.blend_weights([given[path] for path in paths])
            threshold, chosen_on = blend["threshold"], Path(args.blend).name
        except (ValueError, RecursionError) as error:
            raise data.DataError(
                f"{args.blend}: no blend of these checkpoints ({error}) – make one with --blend fit"
            ) from None

    if args.threshold is not None:
        return weights, args.threshold, "given"
    return weights, threshold, chosen_on


def write_page(path, dataset, classes, probabilities, decided):
    """Frames spread over the data set, and which of their labels are right, wrong and missed."""
    shown = range(0, len(dataset), max(1, len(dataset) // PAGE))[:PAGE]
    tiles = []
    for i in shown:
        predicted, missed = [], []
        for c in sorted(range(len(classes)), key=lambda c: -probabilities[i, c]):
            kind = kind_of(dataset.labels, i, c)
            if decided[i][c]:
                predicted.append((f"{classes[c]} {probabilities[i, c]:.0%}", kind))
            elif kind == "right":
                missed.append((classes[c], "missed"))
        caption = (predicted + missed)[:4]
        tiles.append((as_picture(dataset[i][1]), caption))

    rows = [("", tiles[start : start + ROW]) for start in range(0, len(tiles), ROW)]
    legend = [] if dataset.labels is None else LEGEND
    pictures.write_page(path, rows, legend=legend)


def kind_of(labels, i, c):
    """What predicting class c for frame i is: "right", "wrong", or "" where labels are None."""
    if labels is None:
        return ""
    return "right" if labels[i, c] else "wrong"


def explain(path, predictor, dataset, classes, probabilities):
    """A page with a row a class: its most probable frames, and where in them the network saw it."""
    transform, rows = predictor.transform, []
    for name in classes:
        c = predictor.classes.index(name)
        tiles = []
        for i in probabilities[:, c].argsort(descending=True)[:ROW].tolist():
            frame = dataset[i][1]
            size = frame.shape[1:]

            # The map is stretched to the view, cut to where the frame is in it, and stretched to
            # the frame.
            view = transform(frame[None].to(predictor.device))
            heat = model.class_activation(predictor.net, view, c)  # (1, 1, h, w)
            heat = F.interpolate(heat, [transform.size] * 2, mode="bilinear")
            heat = crop(heat, *transform.frame_box(*size))
            heat = F.interpolate(heat, size, mode="bilinear")[0, 0, :, :, None].cpu().numpy()

            caption = [(f"{probabilities[i, c]:.0%}", kind_of(dataset.labels, i, c))]
            tiles.append((pictures.heated(as_picture(frame), heat), caption))
        rows.append((name, tiles))

    width, height = pictures.CELL
    legend = [] if dataset.labels is None else HAS_LABEL
    pictures.write_page(path, rows, legend=[*legend, WARM], cell=(width, 2 * height))


def as_picture(frame):
    return frame.permute(1, 2, 0).cpu().numpy()  # (3, H, W) uint8 -> (H, W, 3)


def main(argv=None) -> int:
    args = parse_args(argv)
    smaller = f"--batch-size {max(1, args.batch_size // 2)}"
    return distributed.launch("evaluate.py", evaluate, args, smaller)


if __name__ == "__main__":
    sys.exit(main())
