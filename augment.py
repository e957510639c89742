"""The report's augmentations as batched torch ops on the device, every sample with its own draws.

    python augment.py IMAGE... --out grid.png       one row per op, then whole draws

Flip, scale, crop, pad, rotate (one affine sampling) -> one of gamma | hue, saturation, value |
brightness, contrast -> one of Gaussian | motion | median blur -> coarse dropout -> normalise.
All draws are made on the host and cross to the device in one copy: the size of every op's subset is
known there, and nothing synchronises. Ops hand each other 8-bit levels and truncate where the
library did; without those floors the images would be 0.2 to 0.5 level brighter.

sources  albumentations 0.4.5 on OpenCV 4.2 (April 2020) for the photometric ops and their units;
         loader/transforms.py of github.com/rochesterxugroup/csc_249_final_proj_a2d_cls (geometry)
differs  - A rotated sample is interpolated once, not twice, hence sharper (`exact=True`: twice).
         - The field of view is that of a 320-pixel frame seen at 224 whatever the sizes are:
           the effective scale is s * size/224 * 320/min(H, W) with s ~ U(0.5, 2).
         - Colours are RGB throughout; the loader fed BGR frames through RGB statistics.
         - One to five holes ("up to five"); the library made that call's holes always five.
         - An op switched off leaves its samples as they are, and every other draw unchanged.
"""

import argparse
import hashlib
import struct
import sys
from collections import namedtuple
from functools import cache
from itertools import chain, combinations
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

import pictures

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = (124, 117, 104)  # RGB levels outside the frame: the loader's (103.939, 116.779, 123.68) BGR
TRIES = 8  # geometries drawn per sample; all but the first serve empty="redraw"
HOLES, HOLE = 5, 8  # most holes in a sample; side of a hole in pixels
RANGES = {  # uniform in [low, high); where an integer is meant, its floor counts
    "tone": (1, 7), "gamma_percent": (60, 121), "hue": (-10, 10), "saturation": (-20, 20),
    "value": (-20, 20), "alpha": (0.8, 1.2), "beta": (-0.2, 0.2), "blur": (1, 7), "motion": (0, 1),
    "dropout": (0, 1), "holes": (1, 1 + HOLES), "vflip": (0, 1), "transpose": (0, 1),
    "sharpen": (0, 1), "sharpen_alpha": (0.2, 0.5), "sharpen_lightness": (0.5, 1.0),
}
LOW, HIGH = torch.tensor(list(RANGES.values()), dtype=torch.float64).unbind(1)
FORCE = {  # each op's name, and the fields of Draws that make it happen in a preview
    "flip": {"flip": True}, "scale": {}, "crop": {}, "rotate": {"degrees": 10.0},
    "gamma": {"tone": 1}, "hsv": {"tone": 2}, "brightness": {"tone": 3},
    "gaussian": {"blur": 1}, "motion": {"blur": 2}, "median": {"blur": 3},
    "dropout": {"holes": HOLES},
    "vflip": {"vflip": True}, "transpose": {"transpose": True}, "sharpen": {"sharpen": True},
}
EXTRA = ("vflip", "transpose", "sharpen")  # tried by the report and rejected: off by default
OPS = tuple(name for name in FORCE if name not in EXTRA)
CHUNK_BYTES = 2**30  # of temporaries at once on an accelerator


def generator(seed, epoch, step, rank=0):
    """CPU torch.Generator, a pure function of four integers, each in [-2^63, 2^63).

    BLAKE2b of their 32 bytes is the seed, so that neighbours are unrelated. torch's generator keeps
    32 bits of it: among 10^4 steps some two share their draws with probability 1 %.
    """
    digest = hashlib.blake2b(struct.pack("<4q", seed, epoch, step, rank), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


# ---------------------------------------------------------------------------- drawn on the host


class Draws(NamedTuple):
    """CPU tensors, row i for sample i. Of the T = TRIES geometries the first is used."""

    flip: torch.Tensor  # (B, T) bool, left-right
    scale: torch.Tensor  # (B, T) float64, effective: output pixels per frame pixel
    crop: torch.Tensor  # (B, T, 2) int64 (top, left) of the window in the scaled frame
    pad: torch.Tensor  # (B, T, 2) int64 (top, left) of the scaled frame in the output
    degrees: torch.Tensor  # (B, T) float64, counter-clockwise
    tone: torch.Tensor  # (B,) int64: 0 none, 1 gamma, 2 hsv, 3 brightness
    gamma: torch.Tensor  # (B,) float64
    shift: torch.Tensor  # (B, 3) float64: hue in units of 2 degrees, saturation, value in levels
    contrast: torch.Tensor  # (B, 2) float64: alpha, beta
    blur: torch.Tensor  # (B,) int64: 0 none, 1 gaussian, 2 motion, 3 median
    motion: torch.Tensor  # (B, 3, 3) float32 kernels
    holes: torch.Tensor  # (B,) int64 in 0..5
    corners: torch.Tensor  # (B, 5, 2) int64 (top, left) of the holes
    vflip: torch.Tensor  # (B,) bool, and the next two
    transpose: torch.Tensor
    sharpen: torch.Tensor
    edge: torch.Tensor  # (B, 3, 3) float32 sharpening kernels


@cache
def motion_kernels():
    """(36, 3, 3) float32 kernels of a 3x3 motion blur, (36,) float64 probabilities.

    A line between two of the nine cells, divided by its length; where it has a middle cell, that
    one rounds towards the left end. Probability 3/81 for a pair in one column, else 2/81.
    """
    kernels, weight = torch.zeros(36, 3, 3), torch.full((36,), 2 / 81, dtype=torch.float64)
    cells = [(x, y) for x in range(3) for y in range(3)]
    for i, ((x0, y0), (x1, y1)) in enumerate(combinations(cells, 2)):  # x0 <= x1
        kernels[i, y0, x0] = kernels[i, y1, x1] = 1
        if max(x1 - x0, abs(y1 - y0)) == 2:
            kernels[i, y0 + int((y1 - y0) / 2), x0 + (x1 - x0) // 2] = 1
        if x0 == x1:
            weight[i] = 3 / 81
    return kernels / kernels.sum((1, 2), keepdim=True), weight


def scaled_size(sizes, scale):
    """(B, 2) int64 sizes, (B, T) float64 scales -> (B, T, 2) float64: round(H s), at least 1."""
    return (sizes[:, None] * scale[..., None]).round_().clamp_(min=1)


def draw(batch, generator, sizes, size=224, without=(), extra=()):
    """All random parameters of `batch` samples: Draws.

    Row i is a function of the generator's state, of i and of sizes[i] alone.
    sizes      (B, 2) int64 true (height, width) of the frames
    size       side of the output in pixels
    without    names in OPS that never happen; extra: names in EXTRA that do, with p = 1/2
    """
    on = {name: name in extra if name in EXTRA else name not in without for name in FORCE}
    u = torch.rand(batch, len(RANGES) + 2 * HOLES + 8 * TRIES, generator=generator,
                   dtype=torch.float64)
    u, corners, geometry = u.split((len(RANGES), 2 * HOLES, 8 * TRIES), 1)
    v = dict(zip(RANGES, (LOW + (HIGH - LOW) * u).T.contiguous(), strict=True))  # each (B,)

    def one_of(choice, *names):  # 1, 2, 3 with 1/6 each, else 0
        table = [0, *(i * on[name] for i, name in enumerate(names, 1)), 0, 0, 0]
        return torch.tensor(table)[choice.long()]

    flip, s, crop, pad, turn, angle = geometry.view(-1, TRIES, 8).split((1, 1, 2, 2, 1, 1), 2)
    flip, s, turn, angle = (w[..., 0] for w in (flip, s, turn, angle))  # (B, T); else (B, T, 2)
    view = size / 224 * 320 / sizes.amin(1, keepdim=True)
    scale = view * (0.5 + 1.5 * s if on["scale"] else torch.ones_like(s))
    if not on["crop"]:
        crop = pad = torch.full_like(crop, 0.5)
    spare = scaled_size(sizes, scale) - size  # (B, T, 2): positive to crop, negative to pad
    kernels, weight = motion_kernels()
    a = v["sharpen_alpha"][:, None]  # imgaug's Sharpen: identity blended with an edge kernel
    centre, rest = 1 - a + a * (8 + v["sharpen_lightness"][:, None]), -a.expand(-1, 4)
    return Draws(
        flip=(flip < 0.5) & on["flip"],
        scale=scale,
        crop=(crop * (spare.clamp(min=0) + 1)).long(),
        pad=(pad * (1 - spare.clamp(max=0))).long(),
        degrees=(20 * angle - 10) * ((turn < 0.5) & on["rotate"]),
        tone=one_of(v["tone"], "gamma", "hsv", "brightness"),
        gamma=v["gamma_percent"].floor() / 100,
        shift=torch.stack((v["hue"], v["saturation"], v["value"]), 1),
        contrast=torch.stack((v["alpha"], v["beta"]), 1),
        blur=one_of(v["blur"], "gaussian", "motion", "median"),
        motion=kernels[torch.searchsorted(weight.cumsum(0)[:-1], v["motion"], right=True)],
        holes=v["holes"].long() * ((v["dropout"] < 0.5) & on["dropout"]),
        corners=(corners * (size - HOLE + 1)).long().view(-1, HOLES, 2),
        vflip=(v["vflip"] < 0.5) & on["vflip"],
        transpose=(v["transpose"] < 0.5) & on["transpose"],
        sharpen=(v["sharpen"] < 0.5) & on["sharpen"],
        edge=torch.cat((rest, centre, rest), 1).float().view(-1, 3, 3),
    )


# ----------------------------------------------------------------------------------- geometry

# Output pixel (x, y) -> p = along x + across y + origin, turned back -> u = p - pad, in the
# rectangle `rect` that the scaled frame fills -> frame pixel q = slope clamp(u, low, high) + start
# -> gain clamp(u, low, high) + bias in [-1, 1] of the frame's part from `first` to `end`.
# Each field is an (x, y) pair; shift = origin - pad; scale, crop, mirror, last: of the label map.
Map = namedtuple("Map", "along across origin pad shift rect low high gain bias first end "
                        "scale crop mirror last")


def plan(sizes, scale, crop, pad, degrees, flip, size, shape):
    """Map's fields as (B, T, 16, 2) float64 on the CPU; sizes to flip as in Draws.

    rect = min(size, round(W s)). OpenCV maps by 1/s exactly, not by the ratio of the rounded sizes,
    and copies where those are equal.
    shape      (H, W) of frames that stay whole, on an accelerator: where one is padded, sampling
               keeps 2^-10 pixel inside the true frame, so that rounding cannot reach the padding.
               None: the CPU cuts each to its true size
    """
    whole = scaled_size(sizes, scale)
    s = torch.where((whole == sizes[:, None]).all(2), 1.0, scale)[..., None]  # (B, T, 1)
    n, whole, crop, pad = (v.flip(-1).double() for v in (sizes[:, None], whole, crop, pad))
    end = n if shape is None else torch.tensor(shape[::-1])
    rect, inset = whole.clamp(max=size), torch.where(n < end, 2**-10, 0.0)
    high = torch.minimum((n - 0.5 - inset) * s - 0.5 - crop, rect - 1)  # the frame's end wins,
    low = ((inset + 0.5) * s - 0.5 - crop).clamp(min=0).minimum(high)  # should s leave no room
    radians, c = torch.deg2rad(degrees), size / 2  # the loader's centre, half a pixel off the true
    cos, sin = radians.cos(), radians.sin()
    along, across = torch.stack((cos, sin), 2), torch.stack((-sin, cos), 2)
    origin = c - c * along - c * across
    mirror = torch.stack((flip, torch.zeros_like(flip)), 2).double()
    start = (crop + 0.5) / s - 0.5
    slope, start = (1 - 2 * mirror) / s, start + mirror * (n - 1 - 2 * start)
    first = torch.zeros(2)
    return torch.stack(torch.broadcast_tensors(*Map(
        along=along, across=across, origin=origin, pad=pad, shift=origin - pad, rect=rect,
        low=low, high=high, gain=slope * 2 / (end - first),
        bias=(start - first + 0.5) * 2 / (end - first) - 1, first=first, end=end,
        scale=s, crop=crop, mirror=mirror * (n - 1), last=n - 1,
    )), 2)


def _whole(device):
    """Work on whole batches? On the CPU one sample at a time is faster: it stays in cache."""
    return device.type != "cpu" or torch.compiler.is_compiling()


def _chunks(table, bytes_each):
    """(n, 16, 2) plans -> [(slice, its Map of (m, 2, 1, 1))]: samples one by one, or many."""
    step = max(1, CHUNK_BYTES // bytes_each) if _whole(table.device) else 1
    return [(slice(i, i + step), Map(*table[i : i + step, ..., None, None].unbind(1)))
            for i in range(0, len(table), step)]


def _levels(x):
    """float32 in [0, 256), as what uint8 is cut from fastest: on a CPU int16, by four times."""
    return x if _whole(x.device) else x.to(torch.int16)


def _warp(frames, table, size, fill):
    """fill + w (bilinear(frame, q) - fill), rounded; w falls from 1 to 0 over the rectangle's rim.

    table (B, 16, 2), fill (3,) float32 on the frames' device
    returns    (B, 3, size, size) uint8
    """
    out = frames.new_empty(len(frames), 3, size, size)
    x = torch.arange(size, dtype=torch.float32, device=frames.device)
    for part, m in _chunks(table.float(), 12 * frames[0, 0].numel()):
        seen, turned, covered = frames[part], True, False
        if not _whole(frames.device):  # cut to its true size, spares what changes nothing
            row = Map(*table[part.start].tolist())
            (left, top), (right, bottom) = (map(int, pair) for pair in (row.first, row.end))
            seen, turned = seen[..., top:bottom, left:right], row.along[1] != 0
            covered = not turned and row.rect == [size, size]
        if turned:
            u = (m.along * x + m.shift) + m.across * x[:, None]  # (n, 2, S, S)
        else:
            u = x + m.shift  # (1, 2, 1, S), the second along y
        # in float32: half would move by 0.07 pixel
        grid = u.maximum(m.low).minimum(m.high).mul_(m.gain).add_(m.bias)
        if not turned:
            across, down = grid.split(1, 1)
            grid = torch.cat((across.expand(-1, 1, size, -1), down.mT.expand(-1, 1, -1, size)), 1)
        warped = F.grid_sample(seen.float(), grid.permute(0, 2, 3, 1), "bilinear", "border",
                               align_corners=False)  # (n, 3, S, S)
        if not covered:
            wx, wy = torch.minimum(u + 1, m.rect - u).clamp_(0, 1).split(1, 1)
            warped = torch.lerp(fill.view(3, 1, 1), warped, wx * (wy if turned else wy.mT))
        out[part] = _levels(warped.add_(0.5))
    return out


def _sample_labels(label_maps, rows, m, size, turned):
    """The loader's two nearest steps: floor((r - pad + crop) / s) at r = floor(p + 1/2).

    label_maps (B, H, W) uint8, of which `rows` ((n, 1, 1, 1) int64 or one number) are sampled
    returns    (n, S, S) uint8, 255 outside the rectangle; in float64, equal on CPU and CUDA
    """
    height, width = label_maps.shape[1:]
    r = torch.arange(-1, size + 1, dtype=torch.float64, device=label_maps.device)  # with a rim
    u = r - m.pad  # (n, 2, 1, S+2), the second along y
    q = ((u + m.crop) / m.scale).floor_().clamp_(min=0).minimum(m.last)
    qx, qy = (m.mirror - q).abs_().long().split(1, 1)
    index = (qy.mT + rows * height) * width + qx
    out = label_maps.reshape(-1).index_select(0, index.view(-1)).view(-1, size + 2, size + 2)
    outside = ((u < 0) | (u >= m.rect)).to(torch.uint8) * 255
    out |= outside[:, 0]
    out |= outside[:, 1].mT
    if not turned:
        return out[:, 1:-1, 1:-1]
    r, rim = r[1:-1], size + 1  # the rim is 255
    p = ((m.along * r + (m.origin + 1.5)) + m.across * r[:, None]).clamp_(0, rim).long()
    index = torch.add(p[:, 0], p[:, 1], alpha=size + 2).flatten(1)
    return out.flatten(1).gather(1, index).view(-1, size, size)


def _warp_labels(label_maps, table, size):
    """Each sample's first of T geometries that shows an actor, else its first: map and plan.

    The CPU stops at that one; elsewhere all are made, so that nothing synchronises.
    table      (B, T, fields, 2) on the maps' device
    returns    (B, size, size) uint8, (B, fields, 2)
    """
    tries, plans, width = table.shape[1], table.flatten(0, 1), len(Map._fields)
    if not _whole(table.device):
        maps, chosen = [], []
        for i in range(len(table)):
            for t in (*range(tries), 0):
                [(_, m)] = _chunks(table[i, t : t + 1, :width], 1)
                found = _sample_labels(label_maps, i, m, size, m.along[0, 1] != 0)
                if tries == 1 or found.amin() < 255:
                    break
            maps.append(found)
            chosen.append(i * tries + t)
        return torch.cat(maps), plans[chosen]
    rows = torch.arange(len(plans), device=table.device).view(-1, 1, 1, 1) // tries
    maps = torch.cat([_sample_labels(label_maps, rows[part], m, size, True)
                      for part, m in _chunks(plans[:, :width], 40 * size * size)])
    if tries == 1:
        return maps, plans
    shown = maps.flatten(1).amin(1).view(-1, tries) < 255
    chosen = shown.to(torch.uint8).argmax(1)  # the first of equals
    chosen += torch.arange(0, len(plans), tries, device=table.device)
    return maps.index_select(0, chosen), plans.index_select(0, chosen)


def warp(frames, scale, crop, pad, degrees, flip, size=224, fill=FILL, label_maps=None, sizes=None):
    """Flip, scale, crop, pad, rotate: one bilinear sampling of the frames, nearest of label maps.

    frames     (B, 3, H, W) uint8; sizes (B, 2) int64 on the CPU, the true (height, width) where
               frames are padded at right and bottom, else None
    scale ..   as in Draws with T left out, on the CPU; rotation is about pixel (size/2, size/2)
    label_maps (B, H, W) uint8 or None
    returns    (B, 3, size, size) uint8, (B, size, size) uint8 (255 = none) or None
    """
    parameters = (v[:, None] for v in (scale.double(), crop, pad, degrees, flip))
    shape = frames.shape[2:] if _whole(frames.device) else None
    table = plan(_sizes(frames, sizes), *parameters, size, shape)
    table, fill = _ship([table, torch.tensor(fill, dtype=torch.float32)], frames.device)
    maps = None if label_maps is None else _warp_labels(label_maps, table, size)[0]
    return _warp(frames, table[:, 0], size, fill), maps


def visible(label_maps, num_classes):
    """(B, S, S) uint8 maps -> (B, num_classes) float32 multi-hot: classes with at least a pixel."""
    maps = label_maps.flatten(1)
    if not _whole(maps.device):  # the faster one here; elsewhere it would synchronise
        found = torch.stack([torch.bincount(row, minlength=256) for row in maps]).clamp_(max=1)
    else:
        found = torch.zeros(len(maps), 256, device=maps.device).scatter_(1, maps.long(), 1.0)
    return found[:, :num_classes].float().contiguous()


# -------------------------------------------------- photometric: uint8 (n, 3, S, S) -> the same


def tone(x, table):
    """y = table[x], each sample by its own row of the (n, 256) uint8 table on x's device."""
    first = torch.arange(0, 256 * len(x), 256, dtype=torch.int32, device=x.device)
    return table.flatten().index_select(0, (x + first.view(-1, 1, 1, 1)).view(-1)).view(x.shape)


def gamma_table(gamma):
    """(n,) -> (n, 256) uint8: floor(255 (k/255)^gamma).

    float64, with k times 1/255, as in the library: gamma = 1 lowers 24 of the 256 levels by one.
    """
    k = torch.arange(256, dtype=torch.float64) * (1 / 255)
    return (k ** gamma.double()[:, None] * 255).clamp_(0, 255).to(torch.uint8)


def contrast_table(contrast):
    """(n, 2) alpha, beta -> (n, 256) uint8: floor(clip(alpha k + 255 beta, 0, 255)) in float32."""
    alpha, beta = contrast.float()[:, :, None].unbind(1)
    return (torch.arange(256.0) * alpha + beta * 255).clamp_(0, 255).to(torch.uint8)


def gamma(x, gamma):
    """y = floor(255 (x/255)^gamma), gamma (n,) on the CPU. The report draws 0.60, 0.61 .. 1.20."""
    return tone(x, gamma_table(gamma).to(x.device))


def brightness_contrast(x, contrast):
    """y = floor(clip(alpha x + 255 beta)), contrast (n, 2) alpha, beta on the CPU.

    The report draws beta ~ U(-0.2, 0.2); alpha ~ U(0.8, 1.2) is the library's unnamed default.
    """
    return tone(x, contrast_table(contrast).to(x.device))


@cache
def _hue_weights(device):
    """(3 * 360,) float32: -w in red, green, blue = v (1 - s w), by hue + 30 in 2-degree units.

    In the sixths of a turn red's w is f 1 1 1-f 0 0, f the way through one, rounded as in OpenCV.
    """
    sixths = ((torch.arange(360, device=device) + 150) % 180).float().mul_(1 / 30).double()
    k = (sixths + torch.arange(5, 0, -2, device=device)[:, None]) % 6  # (3, 360)
    return -torch.minimum(k, 4 - k).clamp_(0, 1).float().flatten()


def hue_saturation_value(x, shift):
    """H' = floor((H + dh) mod 180), S' = floor(clip(S + ds)), V' = floor(clip(V + dv)).

    shift      (n, 3) on x's device: dh in units of 2 degrees, ds, dv in levels. The report draws
               U(-10, 10) and U(-20, 20); dv ~ U(-20, 20) is the library's unnamed default
    source     OpenCV's 8-bit HSV: 12-bit fixed point, and back in float32, truncated. A grey has
               S = H = 0 and turns reddish with ds >= 1, as in 0.4.5; later versions keep it grey
    """
    dh, ds, dv = shift.floor().float()[:, :, None, None].unbind(1)
    rgb = x.float()
    value = rgb.amax(1)  # (n, S, S), all integers
    chroma = value - rgb.amin(1)
    per_value = (1044480 / value.clamp(min=1)).round_().int()  # 255 * 4096 / V
    saturation = per_value.mul_(chroma.int()).add_(2048) >> 12
    red, green = (rgb[:, :2] - value[:, None]).add_(1).clamp_(0, 1).unbind(1)  # 1 at the maximum
    r, g, b = rgb.unbind(1)
    sixth = torch.lerp(torch.add(r - g, chroma, alpha=4), torch.add(b - r, chroma, alpha=2), green)
    per_chroma = (122880 / chroma.clamp(min=1)).round_()  # 180 * 4096 / 6C
    hue = torch.lerp(sixth, g - b, red).mul_(per_chroma).mul_(1 / 4096)  # -30 .. 150, exact
    hue = hue.add_(dh.remainder(180) + 30.5).int()  # 0 .. 359, of which 30 is red

    s = (saturation + ds).clamp_(0, 255).mul_(1 / 255)
    v = (value + dv).clamp_(0, 255).mul_(1 / 255)
    channel = torch.arange(0, 1080, 360, dtype=torch.int32, device=x.device).view(3, 1, 1)
    table = _hue_weights.__wrapped__ if torch.compiler.is_compiling() else _hue_weights
    w = table(x.device).index_select(0, (hue[:, None] + channel).view(-1)).view(x.shape)
    return _levels(w.mul_(s[:, None]).add_(1).mul_(v[:, None]).mul_(255)).to(torch.uint8)


def _pad(x, edge):
    """A pixel more on each side: edge=1 REFLECT_101, 0 replicated. F.pad refuses uint8 on CUDA."""
    for axis in (2, 3):
        last = x.shape[axis] - 1 - edge
        x = torch.cat((x.narrow(axis, edge, 1), x, x.narrow(axis, last, 1)), axis)
    return x


def gaussian_blur(x):
    """[1 2 1] x [1 2 1] / 16, ties up, REFLECT_101: OpenCV's 3x3 table (not sigma = 0.8)."""
    x = _pad(x, 1).short()
    for _ in range(2):
        x = x[:, :, :-1] + x[:, :, 1:]
        x = x[..., :-1] + x[..., 1:]
    return (x.add_(8) >> 4).to(torch.uint8)


def filter3x3(x, kernels):
    """Correlation with each sample's own (n, 3, 3) float32 kernel, ties to even, REFLECT_101."""
    padded = _pad(x, 1).float()
    out = torch.zeros(x.shape, device=x.device)
    for dy in range(3):
        for dx in range(3):
            tap = kernels[:, dy, dx].view(-1, 1, 1, 1)
            if _whole(x.device) or tap.any():
                out.addcmul_(padded[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]], tap)
    return _levels(out.round_().clamp_(0, 255)).to(torch.uint8)


motion_blur = sharpen = filter3x3  # with motion_kernels(); with Draws.edge


def median_blur(x):
    """3x3 median, replicated borders, in 18 whole-image min and max: columns are sorted once."""
    x = _pad(x, 0)
    low, high = torch.minimum, torch.maximum

    def median(a, b, c):
        return high(low(a, b), low(high(a, b), c))

    a, b, c = x[:, :, :-2], x[:, :, 1:-1], x[:, :, 2:]
    a, b = low(a, b), high(a, b)
    b, c = low(b, c), high(b, c)
    a, b = low(a, b), high(a, b)  # a <= b <= c, (n, 3, S, S+2)
    a = high(high(a[..., :-2], a[..., 1:-1]), a[..., 2:])
    c = low(low(c[..., :-2], c[..., 1:-1]), c[..., 2:])
    return median(a, median(b[..., :-2], b[..., 1:-1], b[..., 2:]), c)


def coarse_dropout(x, corners):
    """Black 8x8 squares with their (top, left) at corners (n, K, 2) int64 on x's device."""
    n, channels, _, width = x.shape
    step = torch.arange(HOLE, device=x.device)
    row, column = (corners[..., None] + step).unbind(2)  # (n, K, 8) each
    index = (row[..., None] * width + column[:, :, None]).view(n, 1, -1).expand(-1, channels, -1)
    return x.flatten(2).scatter(2, index, 0).view(x.shape)


def mirror(images, generator):
    """(B, C, H, W) with half of the images, drawn from the CPU generator, left to right."""
    drawn = torch.rand(len(images), generator=generator) < 0.5  # (B,)
    (drawn,) = _ship([drawn], images.device)
    return torch.where(drawn[:, None, None, None], images.flip(3), images)


def normalize(x, mean, std):
    """(x - 255 mean) / (255 std): (B, 3, H, W) levels -> float32; mean, std (3,) on x's device."""
    scale, shift = (255 * std).reciprocal().view(3, 1, 1), (mean / std).view(3, 1, 1)
    if _whole(x.device):
        return torch.addcmul(-shift, x, scale)  # in one pass
    out = torch.empty(x.shape)
    for levels, result in zip(x, out, strict=True):
        torch.mul(levels, scale, out=result).sub_(shift)
    return out


# ----------------------------------------------------------------------------- the whole thing

STAGES = {  # between geometry and normalise
    "vflip": lambda x: x.flip(2), "transpose": lambda x: x.mT.clone(), "tone": tone,
    "hsv": hue_saturation_value, "gaussian": gaussian_blur, "motion": motion_blur,
    "median": median_blur, "sharpen": sharpen, "dropout": coarse_dropout,
}


def _ship(tensors, device):
    """CPU tensors -> the same on `device`, through pinned memory in one asynchronous copy."""
    order = sorted(tensors, key=torch.Tensor.element_size, reverse=True)  # keeps them aligned
    packed = torch.cat([t.contiguous().view(-1).view(torch.uint8) for t in order])
    if device.type != "cpu":
        packed = packed.pin_memory().to(device, non_blocking=True)
    parts = zip(order, packed.split([t.nbytes for t in order]), strict=True)
    shipped = {id(t): part.view(t.dtype).view(t.shape) for t, part in parts}
    return [shipped[id(t)] for t in tensors]


def _sizes(frames, sizes):
    """Check a batch of frames; returns its true sizes, (B, 2) int64 on the CPU."""
    if not isinstance(frames, torch.Tensor) or frames.dtype != torch.uint8:
        raise TypeError(f"frames are uint8 levels 0..255, got {getattr(frames, 'dtype', frames)}")
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames are (B, 3, H, W) and not empty, got {tuple(frames.shape)}")
    whole = torch.tensor(frames.shape[2:])
    if sizes is None:
        return whole.expand(len(frames), 2)
    if sizes.shape != (len(frames), 2) or sizes.dtype != torch.int64 or sizes.device.type != "cpu":
        raise ValueError(f"sizes are ({len(frames)}, 2) int64 on the CPU, got "
                         f"{tuple(sizes.shape)} {sizes.dtype} on {sizes.device}")
    if (sizes < 1).any() or (sizes > whole).any():
        raise ValueError(f"sizes lie in 1..{tuple(frames.shape[2:])}, got {sizes.tolist()}")
    return sizes


def _known(**given):
    """Refuse a name that is not among its choices: option=(names, choices)."""
    for option, (names, choices) in given.items():
        if unknown := [name for name in names if name not in choices]:
            raise ValueError(f"{option}={' '.join(unknown)}: choose from {' '.join(choices)}")


def _pixels(frames, label_maps, table, mean, std, fill, stages, size, classes):
    """The device's part. table (B, T, 16, 2) plans; stages {name in STAGES: [rows, parameters...]}.

    table      (B, T, 3 * 16, 2) for two interpolations: the whole plan, then that of each
    classes    width of the labels to recount, 0 for none
    returns    (B, 3, size, size) float32, (B, classes) float32 or None
    """
    read = classes or table.shape[1] > 1
    maps, table = _warp_labels(label_maps, table, size) if read else (None, table[:, 0])
    x = frames
    for plans in table.split(len(Map._fields), 1)[-2:]:
        x = _warp(x, plans, size, fill)
    for name, (rows, *parameters) in stages.items():
        if _whole(x.device):
            x.index_copy_(0, rows, STAGES[name](x.index_select(0, rows), *parameters))
            continue
        for j, i in enumerate(rows.tolist()):
            x[i] = STAGES[name](x[i : i + 1], *(p[j : j + 1] for p in parameters))[0]
    return normalize(x, mean, std), visible(maps, classes) if classes else None


class ReportAugment:
    """The report's training transform: `draw`, then `apply`.

    size       side of the output in pixels
    mean, std  (3,) of RGB in [0, 1], those of the network's weights
    without    names in OPS to switch off; extra: names in EXTRA to turn on
    labels     "visible": the classes that the warped label map still shows, where there are maps;
               "frame": the frame's own
    empty      "keep" a crop that shows no actor, or "redraw" its geometry up to 7 times, drawn up
               front. Costs the CPU one label warp per try; CUDA always warps all 8 label maps
    exact      rotate in a second interpolation, as the loader did
    compile    fuse the device's part with torch.compile (meant for CUDA)
    raises     ValueError on unknown names
    """

    def __init__(self, size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, without=(), extra=(),
                 labels="visible", empty="keep", exact=False, compile=False):
        _known(without=(without, OPS), extra=(extra, EXTRA),
               labels=([labels], ("visible", "frame")), empty=([empty], ("keep", "redraw")))
        if size < HOLE:
            raise ValueError(f"size={size} is smaller than a hole of {HOLE} pixels")
        self.size, self.without, self.extra = size, tuple(without), tuple(extra)
        self.labels, self.empty, self.exact, self.compile = labels, empty, exact, compile
        self.constants = [torch.as_tensor(v, dtype=torch.float32) for v in (mean, std, FILL)]
        self.pixels = torch.compile(_pixels, dynamic=True) if compile else _pixels

    def __call__(self, frames, generator, labels=None, label_maps=None, sizes=None):
        """Augment a batch on its device.

        frames     (B, 3, H, W) uint8; sizes as in `warp`
        generator  torch.Generator on the CPU, see `generator`
        labels     (B, C) float32 or None; label_maps (B, H, W) uint8 or None
        returns    (B, 3, size, size) float32 normalised, (B, C) float32 labels or None
        raises     TypeError, ValueError on wrong types, shapes or sizes
        """
        draws = draw(len(frames), generator, _sizes(frames, sizes), self.size, self.without,
                     self.extra)
        return self.apply(frames, draws, labels, label_maps, sizes)

    def apply(self, frames, draws, labels=None, label_maps=None, sizes=None):
        """The same by given draws; row i of the output depends on row i of the arguments alone."""
        sizes, d = _sizes(frames, sizes), draws
        size, tries = self.size, TRIES if self.empty == "redraw" else 1
        if label_maps is None and tries > 1:
            raise ValueError("empty='redraw' needs label maps, and this batch has none")
        if label_maps is not None and (
                label_maps.dtype != torch.uint8 or label_maps.shape != frames[:, 0].shape):
            raise ValueError(f"label_maps are uint8 {tuple(frames[:, 0].shape)}, got "
                             f"{label_maps.dtype} {tuple(label_maps.shape)}")
        if labels is not None and (
                labels.dtype != torch.float32 or labels.ndim != 2 or len(labels) != len(frames)):
            raise ValueError(f"labels are float32 ({len(frames)}, classes), a row per frame, got "
                             f"{labels.dtype} {tuple(labels.shape)}")
        shape = frames.shape[2:] if self.compile or _whole(frames.device) else None
        flip, scale, crop, pad, degrees = (v[:, :tries] for v in d[:5])
        plans = [plan(sizes, scale, crop, pad, degrees, flip, size, shape)]
        if self.exact:
            square, one, none = torch.full_like(sizes, size), torch.ones_like(scale), 0 * crop
            plans += [plan(sizes, scale, crop, pad, 0 * degrees, flip, size, shape),
                      plan(square, one, none, none, degrees, 0 * one, size, shape and (size, size))]

        def those(mask):  # compiled: a lone row twice, no graph of its own for that length
            rows = torch.nonzero(mask)[:, 0]
            return rows.repeat(2) if self.compile and len(rows) == 1 else rows

        gamma, hsv, brightness = (those(d.tone == i) for i in (1, 2, 3))
        gaussian, motion, median = (those(d.blur == i) for i in (1, 2, 3))
        sharpen, dropout = those(d.sharpen), those(d.holes > 0)
        tables = gamma_table(d.gamma[gamma]), contrast_table(d.contrast[brightness])
        used = torch.arange(HOLES)[:, None] < d.holes[dropout, None, None]  # else the first again
        corners = d.corners[dropout]
        stages = {
            "vflip": [those(d.vflip)], "transpose": [those(d.transpose)],
            "tone": [torch.cat((gamma, brightness)), torch.cat(tables)],
            "hsv": [hsv, d.shift[hsv]],
            "gaussian": [gaussian], "motion": [motion, d.motion[motion]], "median": [median],
            "sharpen": [sharpen, d.edge[sharpen]],
            "dropout": [dropout, torch.where(used, corners, corners[:, :1])],
        }
        stages = {name: part for name, part in stages.items() if len(part[0])}
        shipped = iter(_ship([torch.cat(plans, 2), *self.constants, *chain(*stages.values())],
                             frames.device))
        table, mean, std, fill = (next(shipped) for _ in range(4))
        stages = {name: [next(shipped) for _ in part] for name, part in stages.items()}
        recount = self.labels == "visible" and labels is not None and label_maps is not None
        images, recounted = self.pixels(frames, label_maps, table, mean, std, fill, stages, size,
                                        labels.shape[1] if recount else 0)
        return images, recounted if recount else labels


class EvalTransform:
    """What evaluation sees of a frame, and training under `--augment none`: nothing is drawn.

    fit            "squash": the course's anisotropic resize; "letterbox": isotropic, rest is FILL
    interpolation  "bilinear": half-pixel centres, no antialiasing, as cv2.resize in the course;
                   "bicubic": a = -1/2, antialiased, as in Pillow, which published weights expect
    """

    def __init__(self, size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, fit="squash",
                 interpolation="bilinear"):
        _known(fit=([fit], ("squash", "letterbox")),
               interpolation=([interpolation], ("bilinear", "bicubic")))
        self.size, self.fit, self.interpolation = size, fit, interpolation
        self.constants = [torch.as_tensor(v, dtype=torch.float32) for v in (mean, std, FILL)]

    def __call__(self, frames, sizes=None):
        """(B, 3, H, W) uint8, sizes as in `warp` -> (B, 3, size, size) float32 normalised.

        Frame by frame, so that no bit depends on what else is in the batch.
        """
        sizes, side = _sizes(frames, sizes), self.size
        mean, std, fill = _ship(self.constants, frames.device)
        out = fill.view(1, 3, 1, 1).repeat(len(frames), 1, side, side)
        for i, (height, width) in enumerate(sizes.tolist()):
            to = (side, side)
            if self.fit == "letterbox":
                to = [max(1, round(n * side / max(height, width))) for n in (height, width)]
            top, left = (side - to[0]) // 2, (side - to[1]) // 2
            frame = frames[i : i + 1, :, :height, :width]
            frame = frame.to(torch.float32, memory_format=torch.contiguous_format)
            out[i, :, top : top + to[0], left : left + to[1]] = F.interpolate(
                frame, to, mode=self.interpolation, align_corners=False,
                antialias=self.interpolation == "bicubic")[0].clamp_(0, 255)
        return normalize(out, mean, std)


# ------------------------------------------------------------------------------------- preview


def preview(path, frames, transform, labels=None, label_maps=None, sizes=None, class_names=None,
            seed=0, draws=4):
    """Write a page: a column per frame, a row per op of `transform` and per whole draw.

    frames, labels, label_maps, sizes as in ReportAugment, on the CPU; class_names (C,) str
    """
    sizes, side = _sizes(frames, sizes), transform.size
    mean, std, _ = (v.view(3, 1, 1) for v in transform.constants)
    rows = [("frame", EvalTransform(side, mean.flatten(), std.flatten())(frames, sizes), labels)]
    for name in (*(n for n in OPS if n not in transform.without), *transform.extra):
        alone = draw(len(frames), generator(seed, 0, 0), sizes, side,
                     [n for n in OPS if n != name], [n for n in EXTRA if n == name])
        alone = alone._replace(**{field: torch.full_like(getattr(alone, field), value)
                                  for field, value in FORCE[name].items()})
        rows.append((name, *transform.apply(frames, alone, labels, label_maps, sizes)))
    for step in range(draws):
        drawn = transform(frames, generator(seed, 0, step), labels, label_maps, sizes)
        rows.append((f"draw {step + 1}", *drawn))

    tiles, captions = [], []
    for name, images, shown in rows:
        levels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        for j, image in enumerate(levels.permute(0, 2, 3, 1).numpy()):
            caption = [name]
            if labels is not None:
                present = torch.nonzero(shown[j])[:, 0].tolist()
                present = [class_names[c] if class_names else str(c) for c in present]
                caption += present or ["no label left"]
            tiles.append(image)
            captions.append([(text, "black") for text in caption])
    pictures.write_page(path, tiles, captions, columns=len(frames), cell=(side + 8, side + 4))


def main(argv=None):
    """Returns what is wrong with the arguments, else None."""
    parser = argparse.ArgumentParser(description="Show what the report's augmentations do.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument("--out", default="grid.png", help="picture to write (default grid.png)")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side (default 224)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default 0)")
    parser.add_argument("--without", nargs="*", default=(), choices=OPS, help="ops to switch off")
    parser.add_argument("--extra", nargs="*", default=(), choices=EXTRA, help="ops to turn on")
    args, images = parser.parse_args(argv), []
    try:
        for path in args.images:
            images.append(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as problem:
        return f"{path}: {problem} – give PNG or JPEG files"
    sizes = torch.tensor([(image.height, image.width) for image in images])
    frames = torch.zeros(len(images), 3, *sizes.amax(0), dtype=torch.uint8)
    for frame, image in zip(frames, images, strict=True):
        frame[:, : image.height, : image.width] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    try:
        preview(args.out, frames, ReportAugment(args.size, without=args.without, extra=args.extra),
                sizes=sizes, seed=args.seed)
    except (OSError, ValueError, struct.error) as problem:
        return f"--out {args.out} --size {args.size} --seed {args.seed}: {problem}"
    return None


if __name__ == "__main__":
    if problem := main():
        print(f"augment.py: {problem}", file=sys.stderr)
        sys.exit(3)
