"""What train.py can be asked for: recipes, flags, and which of them cannot go together.

    python train.py --help

A flag that is not given has the value of a recipe: that of the report, with changes for a network
(RECIPES) and for the drawn scenes (DEMO).
"""

import argparse
import os
import re
import shlex
import sys
from pathlib import Path

import torch

import augment
import demo
import distributed
import layouts
import model
from schema import FRACTION, number, shown, whole

# What the report trained with; flags override. It does not say for how many epochs: here 20 in the
# cosine phase "to get near", a fifth, and 80 in the step phase, whose last milestone is 75.
REPORT = {
    "arch": "seresnext101", "head": "mish", "weights": "imagenet", "dropout": 0.5,
    "freeze_backbone": 0, "data": "demo", "val": None, "images": None, "image_size": 224,
    "fit": "squash", "labels": "visible", "cache": "off", "resume": None,
    "augment": "report", "without": [], "extra": [],
    "batch_size": 64, "accumulate": 1, "optimizer": "sgd", "lr": 0.05, "weight_decay": 5e-5,
    "clip_grad": 5.0, "pos_weight": 0.0, "ema": 0.0,
    "schedule": "two-stage", "t_max": 150, "milestones": [5, 10, 20, 40, 75], "warmup": 0,
    "epochs": 100, "seed": 0,
}  # fmt: skip
RECIPES = {
    "efficientnet_b7": {"batch_size": 24, "accumulate": 3},
    "pnasnet5large": {"batch_size": 24, "accumulate": 3},
    "tiny": {"weights": "none", "image_size": 64},
}
# On the drawn scenes a CPU has to do: few epochs, one descent of the learning rate, and frames of
# 128 pixels, in which a crop or a blur would leave too little of an actor.
DEMO = {
    "image_size": 128, "augment": "flip", "cache": "ram", "batch_size": 16, "accumulate": 1,
    "optimizer": "adamw", "lr": 1e-3, "warmup": 1, "schedule": "cosine", "t_max": 0, "epochs": 3,
}  # fmt: skip
# From random weights a deep network learns next to nothing in minutes, so they are kept short.
DEMO_SCRATCH = {
    "weights": "none", "image_size": 64, "augment": "none", "batch_size": 32, "lr": 1e-3,
    "warmup": 0, "epochs": 2,
}  # fmt: skip
DEMO_RECIPES = {
    "tiny": DEMO_SCRATCH | {"lr": 4e-3, "epochs": 30},
    "efficientnet_lite0": {"epochs": 5},
}
# A GPU has time for more and larger frames. To bring them there took an H200 44 % of each epoch.
DEMO_ON_A_GPU = {"image_size": 224, "epochs": 20, "cache": "device"}

# What a number may be: above, it takes time or memory without end, or is no finite float32.
RANGES = {
    "lr": number(1e-12, 1e30), "head_lr": number(1e-12, 1e30), "weight_decay": number(0, 1e3),
    "warmup": number(0, 1e6), "clip_grad": number(0, 1e9), "pos_weight": number(0, 1e6),
    "dropout": FRACTION, "threshold": FRACTION, "ema": number(0, 0.9999999),
    "image_size": whole(32, 4096), "seed": whole(0, 2**62 - 1), "workers": whole(0, 512),
    "epochs": whole(1, 10**6), "freeze_backbone": whole(0, 10**6), "milestones": whole(1, 10**6),
    "batch_size": whole(1, 10**5), "accumulate": whole(1, 10**5), "t_max": whole(0, 10**9),
    "min_labels": whole(0, 10**5),
}  # fmt: skip

# Flag, kind and help, by group. Help ends with the default, where the recipes have it.
FLAGS = {
    "model": [
        ("--arch", [*model.ARCHITECTURES], "network"),
        ("--head", ["mish", "linear"], "Linear-Mish-Dropout-Linear, or a Linear"),
        ("--weights", str, "none, imagenet (downloaded once, hash checked), a name from python "
         "model.py, or a file"),
        ("--dropout", float, "probability, in the mish head"),
        ("--checkpoint-activations", bool, "recompute activations in the backward pass: less "
         "memory, about a third slower"),
        ("--freeze-backbone", int, "first epochs: head only"),
        ("--sync-bn", bool, "under torchrun on GPUs: batch-norm statistics of all processes' "
         "batches"),
        ("--freeze-bn", bool, "keep batch-norm statistics and scales as loaded: for small batches, "
         "which accumulation does not help"),
    ],
    "data": [
        ("--data", str, "A2D folder, .csv of your images, folder of class folders, demo, or "
         "demo:TRAIN/VAL for other numbers of drawn frames than 1024 and 256"),
        ("--val", str, ".csv or folder of the validation frames: all of --data is trained on then "
         "[those of --data that its splits, or a hash of the name, hold out]"),
        ("--images", str, "folder that the paths in a .csv are below [that of the .csv]"),
        ("--image-size", int, "side of the network's input in pixels"),
        ("--fit", ["squash", "letterbox"], "evaluation: squash frames into the square, as the "
         "course did, or pad them"),
        ("--labels", ["visible", "frame"], "of a crop: the actors still in it, where label maps "
         "exist, or the whole frame's"),
        ("--workers", int, "decoding processes [up to 8; 0 with --cache]"),
        ("--cache", ["off", "ram", "device"], "keep decoded frames, A2D's take 4.4 GB, in the "
         "computer's memory or the GPU's"),
    ],
    "augmentation": [
        ("--augment", ["report", "flip", "none"], "the report's; evaluation's view, half of it "
         "mirrored; or evaluation's view"),
        ("--without", ([*augment.OPS],), "switch off any of " + ", ".join(augment.OPS)),
    ],
    "optimisation": [
        ("--optimizer", ["sgd", "adam", "adamw"], "sgd: with momentum 0.9"),
        ("--lr", float, "learning rate of an optimizer step, at the start"),
        ("--head-lr", float, "learning rate of the head [--lr]"),
        ("--weight-decay", float, "L2, decoupled with adamw"),
        ("--schedule", ["cosine", "multistep", "two-stage"], "two-stage: cosine, for a fifth of "
         "the epochs, then multistep from a tenth of --lr"),
        ("--t-max", int, "half the cosine's period in optimizer steps; 0: as long as the cosine "
         "phase"),
        ("--milestones", (int,), "of multistep, epochs where the learning rate falls to a quarter"),
        ("--warmup", float, "first epochs, or a part of one, in which the learning rate rises to "
         "--lr, linearly"),
        ("--epochs", int, "passes over the training frames"),
        ("--batch-size", int, "frames in a forward pass, of each process under torchrun"),
        ("--accumulate", int, "forward passes in an optimizer step"),
        ("--clip-grad", float, "greatest norm of the gradient; 0: no limit"),
        ("--pos-weight", float, "weigh a class's positives by negatives / positives, at most by "
         "this; 0: off"),
        ("--ema", float, "score and keep the exponential average of the weights, with this factor "
         "a step, or (1 + n) / (10 + n) in step n where that is less; 0: off"),
    ],
    "precision": [
        ("--amp", ["fp16", "bf16", "off"], "autocast type [fp16; off on a CPU]"),
        ("--compile", bool, "torch.compile network and loss"),
        ("--deterministic", bool, "bit-identical repetition, slower on CUDA"),
    ],
    "run": [
        ("--device", str, "cpu, cuda, cuda:1 [cuda where there is one]"),
        ("--out", str, "run folder [runs/ARCH-DATA]"),
        ("--seed", int, "of order, draws and dropout, which differ from epoch to epoch; draws and "
         "dropout also between torchrun's processes"),
        ("--dry-run", bool, "one step, one validation batch, nothing is written"),
    ],
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Says what a mistyped flag or value may have been meant for."""

    def error(self, message):
        known = re.findall(r"--[a-z][a-z-]+", self.format_help())
        if message.startswith("unrecognized"):
            words = re.findall(r"--[^\s=]+", message)
            message += "".join(layouts.did_you_mean(word, known) for word in words)
        elif wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += layouts.did_you_mean(wrong[1], re.findall(r"[^', ]+", wrong[2]))
        super().error(message)


def add_flags(parser, flags):
    """Adds rows of (flag, kind, help).

    The kind is a list of choices, a type, either of them in a tuple for one value or more, or bool
    for a switch. What is not given is None, and a switch False.
    """
    for flag, kind, text in flags:
        if kind is bool:
            parser.add_argument(flag, action="store_true", help=text)
            continue

        nargs = None
        if isinstance(kind, tuple):
            kind, nargs = kind[0], "+"

        if isinstance(kind, list):
            parser.add_argument(flag, nargs=nargs, choices=kind, help=text)
        else:
            metavar = {int: "N", float: "X"}.get(kind)
            parser.add_argument(flag, nargs=nargs, type=kind, metavar=metavar, help=text)


def with_default(flag, text) -> str:
    """The help of a flag and, in brackets, the value that filled_in gives it, of every recipe."""
    name = name_of(flag)
    if REPORT.get(name) in (None, []):
        return text

    def values(default, recipes):
        """The default, and the networks whose recipes have another value."""
        networks = {}
        for arch, recipe in recipes.items():
            if name in recipe:
                networks.setdefault(words(recipe[name]), []).append(arch)
        return ", ".join([default, *(f"{' '.join(a)} {value}" for value, a in networks.items())])

    defaults = values(words(REPORT[name]), RECIPES)
    if name in DEMO:
        defaults += "; drawn scenes " + values(words(DEMO[name]), DEMO_RECIPES)
        for case, recipe in ("on a GPU", DEMO_ON_A_GPU), ("from random weights", DEMO_SCRATCH):
            if name in recipe:
                defaults += f", {case} {words(recipe[name])}"
    return f"{text} [{defaults}]"


def name_of(flag) -> str:
    """What args call it: image_size of --image-size."""
    return flag.removeprefix("--").replace("-", "_")


def words(value) -> str:
    """A flag's value as it is typed."""
    if isinstance(value, list):
        return " ".join(map(words, value))
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def command_line(args) -> str:
    """Flags with which train.py makes the same training, whatever the recipes say by then."""
    unused = {"cosine": "milestones", "multistep": "t_max"}.get(args.schedule)
    names = [flag for group in FLAGS.values() for flag, _, _ in group]
    typed = []
    for flag in [*names, "--with"]:
        name = name_of(flag)
        value = args.extra if flag == "--with" else vars(args)[name]
        if value is None or value is False or value == [] or name == unused:
            continue
        typed.append(flag)
        if value is not True:
            typed += map(words, value if isinstance(value, list) else [value])
    return shlex.join(typed)


def given_flags(parser, argv) -> dict:
    """What argv says, and all switches."""
    parsed = vars(parser.parse_args(argv))
    return {name: value for name, value in parsed.items() if value is not None}


def out_of_range(args):
    """[(whether it is broken, sentence)] for the numbers among the flags."""
    found = []
    for name, rule in RANGES.items():
        value = vars(args).get(name)
        for each in value if isinstance(value, list) else [value]:
            sentence = f"--{name.replace('_', '-')} {shown(each)}: must be {rule.words}"
            found.append((each is not None and not rule.holds(each), sentence))
    return found


def refuse_broken(parser, rules):
    """Ends with usage code 2 and all sentences of the (whether it is broken, sentence) in rules."""
    wrong = [sentence for broken, sentence in rules if broken]
    if wrong:
        parser.error("; ".join(wrong))


def parse_args(argv=None, scratch=False):
    """The flags, and what the recipes decide. All that cannot work is refused in one message.

    scratch  decide as if the flags said --weights none
    returns  a namespace of them and of argv, ranks: the number of torchrun's processes, threads:
             torch's in each, and may_go_without: whether random weights will do where the published
             ones cannot be had
    """
    parser = Parser(
        description="Train the networks of a 2020 report on actor-action recognition (A2D).",
        usage="python train.py [flags]; --help lists them",
        epilog="In [] is the value of a flag that is not given: the report's, and those of "
        "networks and drawn scenes that have another. tiny has one, on every device. A run begins "
        "by printing all of them.",
    )

    groups = {title: parser.add_argument_group(title) for title in FLAGS}
    for title, flags in FLAGS.items():
        told = [(flag, kind, with_default(flag, text)) for flag, kind, text in flags]
        add_flags(groups[title], told)
    groups["augmentation"].add_argument(
        "--with", nargs="+", choices=augment.EXTRA, dest="extra",
        help="switch on what the report tried and dropped: " + ", ".join(augment.EXTRA),
    )  # fmt: skip
    # Without a value --resume is "same"; it is None where the flag is not there.
    groups["run"].add_argument(
        "--resume", nargs="?", const="same", choices=["same", "override"], help="continue the run "
        "in the folder, if there is one; override: with other flags than it had",
    )  # fmt: skip

    argv = sys.argv[1:] if argv is None else list(argv)
    given = given_flags(parser, argv)
    args = argparse.Namespace(**filled_in(given, scratch), argv=argv)
    refuse_broken(parser, rules(args, given))
    return args


def smaller(args) -> str:
    """Flags of the same training that need less memory."""
    flags = f"--batch-size {max(1, args.batch_size // 2)} --accumulate {2 * args.accumulate}"
    return flags if args.checkpoint_activations else f"{flags} or --checkpoint-activations"


def filled_in(given, scratch) -> dict:
    """Every flag's value: the one given, or that of the recipe of the report or the drawn scenes.
    """
    flags = REPORT | given
    arch, drawn = flags["arch"], demo.is_drawn(flags["data"])
    device = distributed.choose_device(given.get("device"))
    on_cuda = device.startswith("cuda")

    recipe = REPORT | RECIPES.get(arch, {})
    if drawn:
        recipe |= DEMO | DEMO_RECIPES.get(arch, {})

    # A published network gets what a GPU has time for; random weights need another recipe.
    if drawn and arch != "tiny":
        if on_cuda:
            recipe |= DEMO_ON_A_GPU
        if scratch or flags["weights"] == "none":
            recipe |= DEMO_SCRATCH

    # What depends on the recipe's own values comes last, and yields to what was given.
    flags = recipe | given
    cores = min(8, os.cpu_count() or 1)
    derived = {
        "amp": "fp16" if on_cuda else "off",
        "head_lr": flags["lr"],
        "workers": cores if flags["cache"] == "off" else 0,
        "out": f"runs/{arch}-{data_name(flags['data'])}",
        "may_go_without": drawn and flags["weights"] == "imagenet" and "weights" not in given,
    }
    return recipe | derived | given | {
        "device": device, "ranks": distributed.ranks(), "threads": torch.get_num_threads(),
    }  # fmt: skip


def data_name(spec) -> str:
    """demo, A2D, or the name of a table or folder, as run folders are called after it."""
    if demo.is_drawn(spec):
        return "demo"
    if Path(spec).suffix.lower() in layouts.TABLES:
        return Path(spec).stem
    is_own = os.path.isdir(spec) and not layouts.find_a2d(spec)
    return Path(os.path.abspath(spec)).name if is_own else "A2D"


def rules(args, given):
    """[(whether it is broken, sentence)] for the flags, some of which were given."""
    # What belongs together, and what excludes each other.
    report_ops = args.without or args.extra or args.labels != "visible"
    on_gpus = args.device.startswith("cuda") and args.ranks > 1
    return out_of_range(args) + distributed.device_rules(args.device) + [
        (args.head == "linear" and args.dropout != 0.5, "--dropout belongs to --head mish"),
        (args.augment != "report" and report_ops,
         "--without, --with, --labels need --augment report"),
        (args.schedule == "cosine" and "milestones" in given, "--milestones: cosine has none"),
        (args.schedule == "multistep" and "t_max" in given, "--t-max: of the cosine"),
        (0 < args.epochs <= args.freeze_backbone, "--freeze-backbone: leaves no epoch for it"),
        (args.sync_bn and not on_gpus, "--sync-bn: for torchrun on GPUs"),
        (args.cache == "device" and args.workers, "--workers: --cache device decodes in no other"),
        (args.dry_run and args.resume, "--dry-run and --resume: choose one"),
        (demo.is_drawn(args.data) and (args.val is not None or args.images is not None),
         "--val, --images: of frames of your own, which --data names"),
        (not args.out, "--out: names no folder"),
    ]  # fmt: skip
