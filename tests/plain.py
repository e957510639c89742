"""A plain training of the tiny network, written with torch alone in float64: what train.py, by
another road, has to arrive at. And small files and networks that several test files share. Nothing
here calls the program."""

import math
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = (124, 117, 104)  # levels around a letterbox
STRIDES, POOLED = (2, 1, 1, 1, 1), (True, True, False, True, False)  # tiny's five blocks


def tiny(weights, images, batch_statistics=False, moving=None, kept=1.0):
    """Logits (B, C) of images (B, 3, H, W): five convolutions, a global maximum, the head.

    weights           the published state dict, by name
    batch_statistics  normalise by those of the batch, else by the running ones
    moving            a dict that takes the running statistics after this batch
    kept              (B, 256) by which dropout multiplies
    """
    weights = {name: tensor.double() for name, tensor in weights.items()}
    x = images
    for i, (stride, pooled) in enumerate(zip(STRIDES, POOLED, strict=True)):
        w = {name: weights[f"blocks.{i}.bn.{name}"]
             for name in ("running_mean", "running_var", "weight", "bias")}  # fmt: skip
        x = F.conv2d(x, weights[f"blocks.{i}.conv.weight"], stride=stride, padding=1)
        mean, variance = w["running_mean"], w["running_var"]
        if batch_statistics:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        if batch_statistics and moving is not None:
            n = x.numel() / x.shape[1]
            seen = {"running_mean": mean, "running_var": variance * n / (n - 1)}
            for name, value in seen.items():
                key = f"blocks.{i}.bn.{name}"
                moving[key] = 0.9 * moving[key] + 0.1 * value.detach()
            moving[f"blocks.{i}.bn.num_batches_tracked"] += 1
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        x = x * w["weight"][:, None, None] + w["bias"][:, None, None]
        x = x.clamp(min=0)
        if pooled:
            x = F.max_pool2d(x, 2)
    x = x.amax((2, 3))
    if "head.weight" in weights:
        return x @ weights["head.weight"].T + weights["head.bias"]
    x = x @ weights["head.0.weight"].T + weights["head.0.bias"]
    x = x * torch.tanh(F.softplus(x)) * kept
    return x @ weights["head.3.weight"].T + weights["head.3.bias"]


def read(path):
    """(3, H, W) float64 levels of a picture."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).double()


def own_csv(folder, classes, rows):
    """A CSV of one's own: pictures 0.png, 1.png … of one colour, classes.txt beside it.

    rows  [(size (width, height), colour, labels, split), …]
    """
    folder.mkdir(exist_ok=True)
    lines = ["path,labels,split"]
    for i, (size, colour, labels, split) in enumerate(rows):
        Image.new("RGB", size, colour).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{labels},{split}")
    (folder / "classes.txt").write_text("\n".join(classes))
    (folder / "own.csv").write_text("\n".join(lines))
    return folder / "own.csv"


def view(levels, size, fit="squash", mean=IMAGENET[0], std=IMAGENET[1]):
    """(3, size, size) normalised: squashed into the square, or padded to it."""
    height, width = levels.shape[1:]
    to = [size, size]
    if fit == "letterbox":
        to = [max(1, round(n * size / max(height, width))) for n in (height, width)]
    resized = F.interpolate(levels[None], to, mode="bilinear", align_corners=False)[0]
    square = torch.tensor(FILL, dtype=torch.float64)[:, None, None].repeat(1, size, size)
    top, left = (size - to[0]) // 2, (size - to[1]) // 2
    square[:, top : top + to[0], left : left + to[1]] = resized
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (mean, std))
    return (square / 255 - mean) / std


def cross_entropy(logits, labels, pos_weight=1.0):
    """(B, C) of -w y log p - (1 - y) log(1 - p)."""
    return pos_weight * labels * F.softplus(-logits) + (1 - labels) * F.softplus(logits)


def best_f1(probabilities, labels):
    """(threshold, F1): the lowest of 0.01, 0.02 … 0.99 with the best mean of the frames' F1."""
    found = (0.0, -1.0)
    for hundredths in range(1, 100):
        predicted = probabilities >= hundredths / 100
        hits = (predicted & labels.bool()).sum(1)
        f1 = (2 * hits / (predicted.sum(1) + labels.sum(1)).clamp(min=1)).double().mean().item()
        if f1 > found[1] + 1e-9:
            found = (hundredths / 100, f1)
    return found


def windows(order, batch, accumulate):
    """[[micro-batch, …], …]: the positions of the frames of each optimizer step."""
    micro = [order[i : i + batch] for i in range(0, len(order), batch)]
    return [micro[i : i + accumulate] for i in range(0, len(micro), accumulate)]


def sgd(groups):
    return torch.optim.SGD(groups, momentum=0.9)


class Training:
    """The state of a run, which `epoch` takes a step further at a time.

    make        what makes an optimizer of torch's of parameter groups
    decay       L2 or decoupled, as that optimizer has it
    clip        greatest norm of the gradient; 0: no limit
    ema         decay of the average; None: none is kept
    freeze_bn   batch norm is applied as it stands, and not trained
    """

    def __init__(self, start, make=sgd, decay=0.0, clip=0.0, pos_weight=1.0, ema=None,
                 freeze_bn=False):
        self.weights = {k: v.double() if v.is_floating_point() else v.clone()
                        for k, v in start.items()}  # fmt: skip
        self.trained = [k for k in start if "running" not in k and "num_batches" not in k]
        for name in self.trained:
            self.weights[name].requires_grad_()
        head = [self.weights[k] for k in self.trained if k.startswith("head.")]
        backbone = [self.weights[k] for k in self.trained if not k.startswith("head.")]
        groups = [{"params": p, "lr": 1.0, "weight_decay": decay} for p in (backbone, head)]
        self.optimizer = make(groups)
        self.clip, self.pos_weight, self.ema = clip, pos_weight, ema
        self.freeze_bn = freeze_bn
        self.average, self.steps = None, 0

    def epoch(self, batches, rates, freeze_backbone=False):
        """One pass. batches: [[(images, labels, kept), …], …], those of each step; rates: the
        learning rate of backbone and head in each. Returns what the log says of the pass."""
        frozen = [k for k in self.trained
                  if (freeze_backbone and not k.startswith("head."))
                  or (self.freeze_bn and ".bn." in k)]  # fmt: skip
        losses, norms, scores = [], [], []
        for window, rate in zip(batches, rates, strict=True):
            n = sum(labels.numel() for _, labels, _ in window)
            self.optimizer.zero_grad()
            for images, labels, kept in window:
                moving = {k: v for k, v in self.weights.items() if k not in self.trained}
                batch_statistics = not (self.freeze_bn or freeze_backbone)
                logits = tiny(self.weights, images.double(), batch_statistics, moving, kept)
                loss = cross_entropy(logits, labels.double(), self.pos_weight)
                (loss.sum() / n).backward()
                losses.append(loss.detach())
                scores.append(logits.detach().sigmoid())
                self.weights |= moving
            for name in frozen:
                self.weights[name].grad = None
            self.step(norms, rate)
        self.probabilities = torch.cat(scores)  # (N, C), as they came
        return {"loss": torch.cat(losses).mean().item(), "lr": rates[-1][0],
                "gradient_norm": sum(norms) / len(norms)}  # fmt: skip

    def step(self, norms, rate):
        gradients = [p.grad for p in map(self.weights.get, self.trained) if p.grad is not None]
        norm = math.sqrt(sum((g**2).sum().item() for g in gradients))
        norms.append(norm)
        for gradient in gradients:
            if self.clip and norm > self.clip:
                gradient *= self.clip / norm
        for group, lr in zip(self.optimizer.param_groups, rate, strict=True):
            group["lr"] = lr
        self.optimizer.step()
        if self.ema is None:
            return
        now = {k: v.detach().clone() for k, v in self.weights.items()}
        if self.average is None:
            self.average = now
        else:
            d = min(self.ema, (1 + self.steps) / (10 + self.steps))
            self.average = {
                k: d * self.average[k] + (1 - d) * v if v.is_floating_point() else v
                for k, v in now.items()
            }
        self.steps += 1

    def scored(self):
        """The weights that an evaluation has to take."""
        return self.average or {k: v.detach() for k, v in self.weights.items()}


def packed(source, target):
    """A zip file of torch.save, with its parts deflated, which torch itself never does."""
    with (
        zipfile.ZipFile(source) as plain,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for name in plain.namelist():
            out.writestr(name, plain.read(name))


def a_checkpoint(value=1.0, epoch=1, best=0, **args) -> dict:
    """A small state that checkpoint.Run.save takes, with a tensor full of `value` in its weights;
    best is the best epoch so far."""
    model = {"head.weight": torch.zeros(2, 3), "head.bias": torch.zeros(2)}
    model["weights"] = torch.full((50, 50), float(value))
    config = {"arch": "tiny", "num_classes": 2, "head": "linear", "dropout": 0.5}
    inputs = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    args = {"arch": "tiny", "head": "linear", "dropout": 0.5, "image_size": 32, "fit": "squash",
            "ema": 0.0} | args  # fmt: skip
    return {
        "config": config, "input_config": inputs, "class_names": ["cat", "dog"], "args": args,
        "frequency": torch.tensor([0.5, 0.5]), "frames": {"train": "", "val": ""},
        "trained_on": torch.zeros(0, dtype=torch.int64), "epoch": epoch, "threshold": 0.5,
        "best": {"f1": 0.0, "epoch": best}, "best_sha256": None, "model": model, "average": None,
        "averaged": 0, "optimizer": {}, "scaler": {},
    }  # fmt: skip


@contextmanager
def shapes_alone():
    """Networks made here are on the meta device, without the time that initialisation takes."""
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        for name in vars(nn.init):
            if name.endswith("_") and not name.startswith("_"):
                patch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
        yield
