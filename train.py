"""Train the networks of a 2020 report on actor-action recognition (A2D, 43 labels).

    python train.py --arch seresnext101                    # fine-tuned on drawn scenes, on a CPU
    python train.py --arch seresnext101 --data A2D/        # the report's best row
    python evaluate.py runs/seresnext101/best.pt --data A2D/ --split test

The flags and their defaults are in flags.py. `train` reads one way: run folder, seed, data, model,
optimizer, resume, epochs, report. Order and draws are functions of (seed, epoch, step): a run that
was killed and continued with --resume ends with the weights of one that was not.
"""

import functools
import math
import os
import random
import signal
import sys
from pathlib import Path

# Threads that spin for long while they wait take the cores from those they wait for, and threads
# that do not spin wake up late. A step of `--arch resnet34` at batch 32 on two cores, undisturbed
# and beside another busy process: 0.40 and 0.75 s with a count of 1000, 0.38 and 0.94 s with 5000,
# 0.38 and 2.9 s with 100000; libgomp's default is higher still. It is read as torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

if __name__ == "__main__":
    # Until torch is loaded nothing can be lost: Ctrl-C needs no words.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

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
from flags import command_line, parse_args, smaller
from progress import Progress, memory_warning

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
MOMENTUM, ETA_MIN, GAMMA = 0.9, 5e-6, 0.25  # the report's
SECOND_STAGE = 0.1  # the step phase starts at a tenth of --lr: .005, as the report's team ran it
# Between a run and its resume; argv and may_go_without are parse_args's own, and the frames are
# compared themselves. With --resume override all may differ but what the saved network and
# optimizer were made with.
FREE_TO_CHANGE = {"resume", "out", "workers", "cache", "device", "argv", "may_go_without",
                  "data", "val", "images", "threads"}  # fmt: skip
BUILT_IN = {"arch", "head", "dropout", "weights", "image_size", "optimizer"}


class Diverged(RuntimeError):
    """Loss or scores are not finite; the message names step, learning rate and frames."""

    exit_code = 4

    def __init__(self, what, args):
        good = f"; {args.out}/last.pt is of the last good epoch: --resume override continues it"
        super().__init__(f"{what} – lower --lr{'' if args.dry_run else good}")


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

    # The cosine ends at eta_min, which is no multiple of --lr.
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
        self.scores += frames * torch.cat([loss.view(1), scores]).double()
        self.first_bad = self.first_bad.minimum(torch.where(loss.isfinite(), self.steps, step))

    def add_step(self, norm):
        self.norm += norm.nan_to_num(0, 0)
        self.skipped += ~norm.isfinite()


class Replay:
    """add_gradient of batches of one shape, whose launches are one CUDA graph.

    SE-ResNeXt101 launches more than 2,200 kernels in a step: the host of an H200 took 72 ms for
    those of 64 frames, the GPU 35 ms for their work. The first batch runs as ever, which loads
    libraries and chooses algorithms, and so do batches of another shape: the short last one of an
    epoch. Memory for the graph's tensors comes on top of theirs, hence no graph where half of the
    GPU's is needed.

    images, labels, share are what the graph reads, loss and logits what it writes, at each replay.
    """

    def __init__(self, add_gradient, device):
        self.add_gradient, self.device = add_gradient, device
        self.graph = self.images = None

    def __call__(self, images, labels, share):
        if self.images is None:
            outputs = self.add_gradient(images, labels, share)
            self.record(images, labels)
            return outputs
        if self.graph is None or images.shape != self.images.shape:
            return self.add_gradient(images, labels, share)

        self.images.copy_(images)
        self.labels.copy_(labels)
        self.share.fill_(share)
        self.graph.replay()
        return self.loss, self.logits

    def record(self, images, labels):
        """Nothing is computed here. thread_local: the loader's thread may go on pinning memory."""
        self.images, self.labels = images.clone(), labels.clone()
        self.share = torch.ones((), device=self.device)
        memory = torch.cuda.get_device_properties(self.device).total_memory
        if 2 * torch.cuda.max_memory_allocated(self.device) > memory:
            return
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.loss, self.logits = self.add_gradient(self.images, self.labels, self.share)


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

        # What a step changes, but for the weights.
        self.loss = Loss(net, pos_weight(about["frequency"], args))
        self.optimizer = make_optimizer(net, args)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=args.amp == "fp16")
        self.ema = AveragedModel(net, use_buffers=True) if args.ema else None
        if args.compile:
            # Dynamic sizes depend on the order in which they were met: a resume would differ.
            self.loss.compile(dynamic=False)

        window = args.batch_size * args.accumulate * world.size
        self.steps = math.ceil(len(training) / window)  # in an epoch
        # A GPU copies and augments a batch on a stream of its own, beside the step before.
        on_gpu = self.device.type == "cuda"
        self.ahead = torch.cuda.Stream(self.device) if on_gpu else None
        # Activations are recomputed with the state of a generator, which no graph can save. A graph
        # draws other dropout masks than the first batch does, which a resume meets elsewhere.
        eager = args.checkpoint_activations or args.deterministic or args.compile or world.size > 1
        self.as_graph, self.replay = on_gpu and not eager, None

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

    def load(self, state, path):
        """Go on from the checkpoint at path, whose weights net has; rates are of these flags."""
        restore = functools.partial(checkpoint.restore, path)
        given = state["optimizer"] or {}  # a best.pt has none, and is refused in the next line
        restore("optimizer.state", given.get("state"), self.optimizer.state_dict()["state"])
        if self.ema is not None and state["average"]:  # else it starts from these weights
            restore("average", state["average"], self.scored.state_dict())
            self.ema.n_averaged.fill_(state["averaged"])
        if self.scaler.is_enabled() and state["scaler"]:  # else the scale starts anew
            checkpoint.refuse_misfit(path, "scaler", state["scaler"], self.scaler.state_dict())
            self.scaler.load_state_dict(state["scaler"])
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
        # Which frames each step sees: a function of the seed and the epoch alone.
        order = data.order(len(self.training), args.seed, self.epochs)
        together = args.batch_size * world.size  # frames of all ranks in one forward pass
        windows = data.chunks(order, together * args.accumulate)[: progress.steps]
        loader = iter(evaluate.make_loader(self.training, order, args, world))

        loss_of, add_gradient = self.begin()
        sums = Sums(len(windows), self.device)
        cut = torch.tensor(self.threshold, dtype=torch.float64).logit().item()
        micro = 0
        progress.restart()

        # ---------------------------------------------------------- the optimizer step
        for step, window in enumerate(windows):
            lr = self.set_learning_rate(step)

            # window: frames of this step; group: those of one micro-batch of all ranks.
            for group in data.chunks(window, together):
                draws = augment.generator(args.seed, self.epochs, micro, world.rank)
                images, labels = self.next_images(loader, draws, progress)

                # Ranks' gradients are averaged, hence the factor. A rank that has no frame left
                # computes another's with weight 0, so that all make the same calls.
                frames = len(group[world.rank :: world.size])
                share = frames * world.size / len(window)
                with world.accumulating(loss_of, last=group[-1] == window[-1]):
                    loss, logits = add_gradient(images, labels, share)
                progress.mark("gradient")

                sums.add_batch(step, loss, example_scores(logits, labels, cut), frames)
                micro += 1

            # The norm is that of the gradients themselves, hence the unscaling before it.
            self.scaler.unscale_(self.optimizer)
            norm = self.clip_gradients()
            # Where fp16 gradients have overflowed, norm is not finite and the step left out.
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=not self.as_graph)  # a graph adds to these tensors

            if self.ema is not None and norm.isfinite():  # under --ema, the host waits here
                self.update_average()
            sums.add_step(norm)
            progress.mark("optimizer")
            # ------------------------------------------------------ end of the step

            if world.poll(progress.due(step)):
                row = self.read_sums(step, windows, sums, lr, progress)
                progress.show(step, row)

        self.epochs += 1
        return row

    def begin(self):
        """Freeze, seed; returns what computes the loss on these ranks and what adds the gradient
        of a batch. DDP, made anew, waits for the gradients of what is trained in this epoch."""
        args = self.args
        backbone = self.epochs < args.freeze_backbone
        model.set_frozen(self.net, backbone=backbone, bn=args.freeze_bn)
        self.net.train()
        loss_of = self.world.parallel(self.loss)
        add_gradient = functools.partial(self.add_gradient, loss_of)
        if self.as_graph and (self.replay is None or self.epochs == args.freeze_backbone):
            self.replay = Replay(add_gradient, self.device)
        seed_everything(args.seed + self.epochs + 10_000 * self.world.rank)
        return loss_of, self.replay or add_gradient

    def set_learning_rate(self, step):
        """That of a step of this epoch, in both groups; returns the backbone's."""
        factor = lr_factor(self.args, self.epochs * self.steps + step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return self.args.lr * factor

    def next_images(self, loader, draws, progress):
        """(B, 3, S, S) images and (B, C) labels of the next batch, augmented on the device."""
        with torch.cuda.stream(self.ahead):
            batch = next(loader)
            progress.mark("data")
            images, labels = self.augmentation(data.to_device(batch, self.device), draws)
        data.take_over([images, labels], self.ahead)
        progress.mark("augment")
        return images, labels

    def add_gradient(self, loss_of, images, labels, share):
        """Adds the gradient of share times the batch's loss to .grad; returns loss and logits."""
        with evaluate.autocast(self.args):
            loss, logits = loss_of(images, labels)
        self.scaler.scale(loss * share).backward()
        return loss.detach(), logits

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

    def read_sums(self, step, windows, sums, lr, progress):
        """The figures so far. Here the host waits for the device; raises Diverged."""
        seen = sum(len(window) for window in windows[: step + 1])
        epoch = self.epochs + 1
        skipped = sums.skipped.item()

        # Each rank knows of its own frames alone: the earliest bad step of all ranks counts.
        bad = sums.steps - int(self.world.reduce(sums.steps - sums.first_bad, "max"))
        if bad < sums.steps:
            names = [self.training.names[i] for i in windows[bad][:4]]
            more = " …" if len(windows[bad]) > 4 else ""
            rate = self.args.lr * lr_factor(self.args, self.epochs * self.steps + bad, self.steps)
            raise Diverged(
                f"loss is not finite at epoch {epoch} step {bad + 1}, lr {rate:.2g}, on "
                f"{', '.join(names)}{more}", self.args)  # fmt: skip

        # A scale that is still too high overflows in some steps; one in ten is not that any more.
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
        # Each rank's batch norm has seen its own frames; all ranks are to score with the same.
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

    # Torch makes these in a parameter's first step, all 0. Here they are in every checkpoint, where
    # their lack is noticed; and torch's fused SGD leaves its own unwritten if that step overflows
    # in fp16: the next one would take what memory held for momentum.
    for parameter in net.parameters():
        state = optimizer.state[parameter]
        if args.optimizer == "sgd":
            state["momentum_buffer"] = torch.zeros_like(parameter)
        else:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
    return optimizer


def seed_everything(seed: int):
    """The report's, but for PYTHONHASHSEED, which no running process can change."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# ------------------------------------------------------------------------------------ the training


def settle_weights(args, saved, world):
    """The args of the run; saved is its state, if it is resumed.

    Drawn scenes are learned from random weights, by another recipe, where the published ones cannot
    be had and no flag asks for them. A resume goes on with what the run began with.
    """
    if not args.may_go_without:
        return args
    if saved:
        scratch = saved["args"].get("weights") == "none"
        return parse_args(args.argv, scratch=True) if scratch else args

    # Rank 0 alone asks, and the others do as it does.
    missing = None
    if world.rank == 0:
        try:
            weights.locate(args.arch, "imagenet")
        except weights.Unreachable as error:
            missing = str(error)
    missing = world.first(missing)
    if not missing:
        return args

    print(f"\n!! RANDOM WEIGHTS, since {missing}\n!! The drawn scenes are learned without, "
          "which shows that everything works, and not what the network can do.\n")
    return parse_args(args.argv, scratch=True)


def open_data(args, world):
    """(training, validation), checked."""
    spec = "demo:64/16" if args.dry_run and args.data == "demo" else args.data
    keep = {"off": None, "ram": "cpu", "device": args.device}[args.cache]
    lists = {"images": args.images, "val": args.val}
    with world.in_turn():
        sets = evaluate.open_sets(spec, keep=keep, size=args.image_size, **lists)
    for flag, split, spec in ("--data", "train", args.data), ("--val", "val", args.val):
        if split not in sets or sets[split].labels is None:
            raise data.DataError(
                f"{flag} {spec}: images without labels – evaluate.py can predict them; to train "
                "takes a column labels, a column of 0 and 1 for each class, or class folders"
            )
    print(data.describe(sets))
    if line := data.describe_batches(sets["train"], args.batch_size, args.workers):
        print(line)
    return sets["train"], sets["val"]


def open_model(args, saved, class_names, frequency, world):
    """(net on the device, what its inputs are): new, with published weights, or as `saved`.

    Rank 0 alone needs the file of the weights: the others get what it has loaded.
    """
    options = {"checkpoint_activations": args.checkpoint_activations, "class_names": class_names}
    if saved:
        net = evaluate.restored(saved, "model", Path(args.out, "last.pt"), **options)
        inputs = saved["input_config"]
    else:
        config = {"arch": args.arch, "num_classes": len(frequency), "head": args.head,
                  "dropout": args.dropout, "weights": args.weights}  # fmt: skip
        net = model.create_model(**config, **options) if world.rank == 0 else None
        config, inputs = world.first(net and (net.config, net.input_config))
        if net is None:
            net = model.create_model(**config, **options)
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


def make_trainer(args, saved, training, validation, world):
    """The Trainer of a new run, or of the one that was `saved`; says what it begins with."""
    frames = {"train": training.fingerprint(), "val": validation.fingerprint()}
    if saved:
        checkpoint.refuse_other_frames(args.out, saved, frames, training.class_names, args.resume)
    frequency = training.labels.mean(0)  # (C,) share of the training frames that have the label
    net, inputs = open_model(args, saved, training.class_names, frequency, world)
    seen = saved["trained_on"] if saved else net.trained_on  # frames
    about = {
        "config": net.config, "input_config": inputs, "class_names": training.class_names,
        "frequency": frequency, "frames": frames,
        "trained_on": torch.cat([training.identities(), seen]).unique(),
    }  # fmt: skip
    trainer = Trainer(net, about, training, args, world)
    processes = f" x {world.size} processes" if world.size > 1 else ""
    print(
        f"{args.optimizer}, lr {args.lr:g}, {args.schedule}, batch {args.batch_size} x "
        f"{args.accumulate}{processes}, {epochs(args.epochs)} of {trainer.steps} steps"
    )

    evaluate.warn_of_seen(args.out if saved else args.weights, seen, validation)
    if saved:
        checkpoint.refuse_other_threads(args, saved)
        trainer.load(saved, Path(args.out, "last.pt"))
        best = f", best F1 {trainer.best['f1']:.3f} of epoch {trainer.best['epoch']}"
        print(f"resumed after epoch {trainer.epochs}{best}" if trainer.epochs
              else "resumed before the first epoch")  # fmt: skip
        if trainer.best["epoch"] and saved["frames"]["val"] != frames["val"]:
            print("the validation frames are others, so the best epoch is looked for anew")
            trainer.best = {"f1": -1.0, "epoch": 0}
        if trainer.epochs >= args.epochs and not trainer.best["epoch"]:
            raise checkpoint.CheckpointError(f"{args.out}: no epoch is left – raise --epochs")
    return trainer


def refuse_lone_frame(trainer):
    """Raises data.DataError where an epoch ends in one frame that is too small for batch norm."""
    args, ranks, frames = trainer.args, trainer.world.size, len(trainer.training)
    # The last rank's last batch is the smallest.
    smallest = data.shares(range(frames), args.batch_size, ranks - 1, ranks)[-1]
    if len(smallest) > 1 or args.sync_bn:
        return

    # Of another such network, on a device that computes shapes alone.
    with torch.device("meta"):
        net = model.create_model(**trainer.net.config)
        images = torch.empty(1, 3, args.image_size, args.image_size)
    model.set_frozen(net, bn=args.freeze_bn)
    try:
        net.train().forward_features(images)
    except ValueError:
        raise data.DataError(
            f"{args.data}: {frames} training frames in batches of {args.batch_size} end in one of "
            f"a single frame, which at {args.image_size} px leaves batch norm one value a channel "
            "– another --batch-size, a larger --image-size, or --freeze-bn"
        ) from None


def epochs(number) -> str:
    return f"{number} epoch" if number == 1 else f"{number} epochs"


def progress_of(trainer, validation, first):
    """The Progress of the next epoch, in a run that begins with epoch `first`."""
    args = trainer.args
    epochs_after = args.epochs - trainer.epochs - 1
    # A validation frame takes a forward pass, a third of a step; the best is scored once more.
    validating = len(validation) / len(trainer.training) / 3
    after = epochs_after * (1 + validating) + 2 * validating
    begins = trainer.epochs == first and not args.dry_run
    total = epochs(epochs_after + 1) if begins else ""
    steps = 1 if args.dry_run else trainer.steps
    name = f"epoch {trainer.epochs + 1}/{args.epochs}"
    return Progress(name, steps, trainer.device, after, total)


def train(args, world):
    """A whole training, in the order in which it happens."""
    torch.use_deterministic_algorithms(args.deterministic)
    # To choose algorithms by their time took an H200 7 s for SE-ResNeXt101 and 41 s for B7: too
    # much of a training on drawn scenes.
    torch.backends.cudnn.benchmark = not (args.deterministic or demo.is_drawn(args.data))

    # Rank 0 has the run folder, and what was saved in it goes to all.
    run = None
    if world.rank == 0 and not args.dry_run:
        run = checkpoint.Run(args.out, args.resume)
    saved = world.first(run and run.saved)
    machine = checkpoint.environment()
    print(*(f"{name} {value} ·" for name, value in machine.items()), f"processes {world.size}")

    args = settle_weights(args, saved, world)
    print(command_line(args))
    if run and saved:
        free = vars(args).keys() - BUILT_IN if args.resume == "override" else FREE_TO_CHANGE
        run.refuse_other_flags(vars(args), free)
    seed_everything(args.seed)

    training, validation = open_data(args, world)
    trainer = make_trainer(args, saved, training, validation, world)
    refuse_lone_frame(trainer)
    if line := memory_warning(trainer.net.config, len(training), args):
        print(line)

    # A run has a checkpoint before its first step: whatever happens, --resume has a beginning.
    if run:
        run.write_args(machine | vars(args))
    if run and not saved:
        run.save(trainer.state())

    # From here on a signal stops all ranks after the same step.
    world.polled, saved_now = True, True
    first = trainer.epochs
    while trainer.epochs < args.epochs:
        row = trainer.epoch(progress_of(trainer, validation, first))
        report = trainer.validate(validation, row)
        if args.dry_run:
            print("dry run OK: one step and one validation batch; nothing was written")
            return

        line = log_row(trainer.epochs, row, report)
        is_best = line["val_f1"] > trainer.best["f1"]
        if is_best:
            trainer.best = {"f1": line["val_f1"], "epoch": trainer.epochs}
        if run:
            kept(run.log, line)
            saved_now = kept(run.save, trainer.state(), is_best)
        mark = " *" if is_best else ""
        print("epoch {epoch}: loss {loss:.4f}, validation {val_loss:.4f}; F1 {val_f1:.3f} at "
              "{threshold:.2f} (chosen on validation), {val_f1_at_half:.3f} at 0.5, "
              "{val_f1_top1:.3f} with top-1; {seconds:.0f} s".format(**line) + mark)

    if not saved_now:
        raise OSError(f"{args.out}/last.pt: lacks the last epoch – see above, make room, --resume")
    report_best(run, trainer, validation)


def kept(write, *what) -> bool:
    """write(*what); a full disk costs a warning, not the training."""
    try:
        write(*what)
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
    """Score best.pt, print the table, write report.csv and charts, say what the figure means."""
    args, world = trainer.args, trainer.world
    state = world.first(run and checkpoint.load(run.folder / "best.pt"))
    best = evaluate.Predictor(state, args.device)
    probabilities = evaluate.predict(best.net, validation, best.transform, args, world)
    world.act_at_once()
    if not run:
        return

    names, frequency = best.classes, state["frequency"]
    report = evaluate.score(probabilities, validation.labels, names, frequency, best.threshold)
    print(f"\nepoch {state['epoch']}, the best, on {len(validation)} validation frames:")
    drawn = evaluate.write_report(run.folder, report, run.folder / "log.jsonl")

    print(f"written: {run.folder}/best.pt, last.pt, report.csv, log.jsonl, args.json{drawn}")
    if demo.is_drawn(args.data) and args.weights == "none" and args.arch != "tiny":
        zero = metrics.format_zero(report)
        print(f"\n!! This began from RANDOM WEIGHTS: {zero}.\n{weights.LEARNING}")


def main(argv=None) -> int:
    args = parse_args(argv)
    last = None if args.dry_run else Path(args.out) / "last.pt"
    return distributed.launch("train.py", train, args, smaller(args), last)


if __name__ == "__main__":
    sys.exit(main())
