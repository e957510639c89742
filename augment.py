"""The report's augmentations as batched torch ops on the device, every sample with its own draws.

    python augment.py IMAGE... --out grid.png       one column per op, then whole draws

Flip, scale, crop, pad, rotate (one affine sampling) -> one of gamma | hue, saturation, value |
brightness, contrast -> one of Gaussian | motion | median blur -> coarse dropout -> normalise.
All draws are made on the host, so that the size of every op's subset is known there and nothing
waits for the device. Ops hand each other 8-bit levels and truncate where the library did; without
those floors the images would be 0.2 to 0.5 level brighter.

sources  albumentations 0.4.5 on OpenCV 4.2 (April 2020) for the photometric ops and their units;
         loader/transforms.py of github.com/rochesterxugroup/csc_249_final_proj_a2d_cls (geometry)
differs  - A rotated sample is interpolated once, not twice, hence sharper.
         - The field of view is that of a 320-pixel frame seen at 224 whatever the sizes are:
           the effective scale is s * size/224 * 320/min(H, W) with s ~ U(0.5, 2).
         - Colours are RGB throughout; the loader fed BGR frames through RGB statistics.
         - One to five holes ("up to five"); the library made that call's holes always five.
         - An op switched off leaves its samples as they are, and every other draw unchanged.
"""

import argparse
import hashlib
import os
import struct
import sys
from functools import cache, reduce
from itertools import combinations, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import data
import pictures
from schema import described

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FILL = (124, 117, 104)  # RGB levels outside the frame: the loader's (103.939, 116.779, 123.68) BGR
TRIES = 8  # geometries drawn per sample; all but the first serve empty="redraw"
HOLES = 5  # most holes in a sample
HOLE = 8  # side of a hole in pixels
CHUNK_BYTES = 2**30  # of temporaries at once on an accelerator

GAMMA, HSV, BRIGHTNESS = 1, 2, 3  # values of Draws.tone
GAUSSIAN, MOTION, MEDIAN = 1, 2, 3  # values of Draws.blur

RANGES = {  # uniform in [low, high); where an integer is meant, its floor counts
    "tone": (1, 7),  # one of the three, else none
    "gamma_percent": (60, 121),
    "hue": (-10, 10),  # in units of 2 degrees
    "saturation": (-20, 20),  # levels
    "value": (-20, 20),  # levels
    "alpha": (0.8, 1.2),
    "beta": (-0.2, 0.2),  # of 255 levels
    "blur": (1, 7),  # one of the three, else none
    "motion": (0, 1),  # which of motion_kernels()
    "dropout": (0, 1),  # below 1/2 it happens, as do the other ops of this name
    "holes": (1, 6),  # up to HOLES
    "vflip": (0, 1),
    "transpose": (0, 1),
    "sharpen": (0, 1),
    "sharpen_alpha": (0.2, 0.5),
    "sharpen_lightness": (0.5, 1.0),
}
FORCE = {  # each op's name, and the fields of Draws that make it happen in a preview
    "flip": {"flip": True},
    "scale": {},
    "crop": {},
    "rotate": {"degrees": 10.0},
    "gamma": {"tone": GAMMA},
    "hsv": {"tone": HSV},
    "brightness": {"tone": BRIGHTNESS},
    "gaussian": {"blur": GAUSSIAN},
    "motion": {"blur": MOTION},
    "median": {"blur": MEDIAN},
    "dropout": {"holes": HOLES},
    "vflip": {"vflip": True},
    "transpose": {"transpose": True},
    "sharpen": {"sharpen": True},
}
EXTRA = ("vflip", "transpose", "sharpen")  # tried by the report and rejected: off by default
OPS = tuple(name for name in FORCE if name not in EXTRA)


def generator(seed, epoch, step, rank=0):
    """CPU torch.Generator, a pure function of four integers, each in [-2^63, 2^63).

    BLAKE2b of their 32 bytes is the seed, so that neighbours are unrelated. torch's generator keeps
    32 bits of it: among 10^4 steps some two share their draws with probability 1 %.
    """
    numbers = struct.pack("<4q", seed, epoch, step, rank)
    digest = hashlib.blake2b(numbers, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def ship(tensor, device):
    """A tensor of the host's on `device`, by way of pinned memory, so that the host never waits."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def channels(values):
    """Three numbers for red, green, blue -> (3, 1, 1) float32 on the host."""
    return torch.as_tensor(values, dtype=torch.float32)[:, None, None]


# ---------------------------------------------------------------------------- drawn on the host


class Draws(NamedTuple):
    """CPU tensors, row i for sample i. Of the T = TRIES geometries the first is used."""

    flip: Tensor  # (B, T) bool, left-right
    scale: Tensor  # (B, T) float64, effective: output pixels per frame pixel
    crop: Tensor  # (B, T, 2) int64 (top, left) of the window in the scaled frame
    pad: Tensor  # (B, T, 2) int64 (top, left) of the scaled frame in the output
    degrees: Tensor  # (B, T) float64, counter-clockwise
    tone: Tensor  # (B,) int64: 0 none, 1 gamma, 2 hsv, 3 brightness
    gamma: Tensor  # (B,) float64
    shift: Tensor  # (B, 3) float64: hue in units of 2 degrees, saturation, value in levels
    contrast: Tensor  # (B, 2) float64: alpha, beta
    blur: Tensor  # (B,) int64: 0 none, 1 gaussian, 2 motion, 3 median
    motion: Tensor  # (B, 3, 3) float32 kernels
    holes: Tensor  # (B,) int64 in 0..5
    corners: Tensor  # (B, 5, 2) int64 (top, left) of the holes
    vflip: Tensor  # (B,) bool, and the next two
    transpose: Tensor
    sharpen: Tensor
    edge: Tensor  # (B, 3, 3) float32 sharpening kernels


@cache
def motion_kernels():
    """(36, 3, 3) float32 kernels of a 3x3 motion blur, (36,) float64 probabilities.

    A line between two of the nine cells, divided by its length; where it has a middle cell, that
    one rounds towards the left end. Probability 3/81 for a pair in one column, else 2/81.
    """
    kernels = torch.zeros(36, 3, 3)
    probability = torch.full((36,), 2 / 81, dtype=torch.float64)

    cells = product(range(3), repeat=2)  # x, y
    for i, ((x0, y0), (x1, y1)) in enumerate(combinations(cells, 2)):  # x0 <= x1
        kernels[i, y0, x0] = 1
        kernels[i, y1, x1] = 1
        if max(x1 - x0, abs(y1 - y0)) == 2:
            kernels[i, y0 + int((y1 - y0) / 2), x0 + (x1 - x0) // 2] = 1
        if x0 == x1:
            probability[i] = 3 / 81

    return kernels / kernels.sum((1, 2), keepdim=True), probability


def sharpening_kernels(alpha, lightness):
    """imgaug's Sharpen, (1 - alpha) identity + alpha edges: (B,), (B,) -> (B, 3, 3) float32."""
    kernels = -alpha[:, None, None].expand(-1, 3, 3).clone()
    kernels[:, 1, 1] = 1 - alpha + alpha * (8 + lightness)
    return kernels.float()


def one_of(choice, names, happens):
    """(B,) in [1, 7) -> 1, 2, 3 for three ops with probability 1/6 each, if they happen; else 0."""
    kind = choice.long()
    for number, name in enumerate(names, 1):
        if not happens[name]:
            kind[kind == number] = 0
    return torch.where(kind > 3, 0, kind)


def scaled_size(sizes, scale):
    """(B, 2) int64 sizes, (B, T) float64 scales -> (B, T, 2) float64: round(H s), at least 1."""
    return (sizes[:, None] * scale[..., None]).round_().clamp_(min=1)


def draw_geometry(uniform, sizes, size, happens):
    """Flip, scale, crop, pad and degrees of Draws by name, of (B, T, 8) uniform numbers."""
    flip = uniform[..., 0] < 0.5
    zoom = 0.5 + 1.5 * uniform[..., 1]
    crop = uniform[..., 2:4]
    pad = uniform[..., 4:6]
    turn = uniform[..., 6] < 0.5
    degrees = 20 * uniform[..., 7] - 10

    if not happens["scale"]:
        zoom = torch.ones_like(zoom)
    if not happens["crop"]:
        crop = pad = 0.5

    scale = size / 224 * 320 / sizes.amin(1, keepdim=True) * zoom
    spare = scaled_size(sizes, scale) - size  # (B, T, 2): positive to crop, negative to pad
    return {
        "flip": flip & happens["flip"],
        "scale": scale,
        "crop": (crop * (spare.clamp(min=0) + 1)).long(),
        "pad": (pad * (1 - spare.clamp(max=0))).long(),
        "degrees": degrees * (turn & happens["rotate"]),
    }


def draw(batch, generator, sizes, size=224, without=(), extra=()):
    """All random parameters of `batch` samples: Draws.

    Row i is a function of the generator's state, of i and of sizes[i] alone.
    generator  torch.Generator on the CPU, else a TypeError
    sizes      (B, 2) int64 true (height, width) of the frames
    size       side of the output in pixels
    without    names in OPS that never happen; extra: names in EXTRA that do, with p = 1/2
    """
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        raise TypeError(
            f"generator is a torch.Generator on the CPU, got {described(generator)}; "
            "augment.generator(seed, epoch, step) makes one"
        )
    happens = {name: name not in without for name in OPS}
    happens |= {name: name in extra for name in EXTRA}

    widths = (len(RANGES), 2 * HOLES, 8 * TRIES)
    uniform = torch.rand(batch, sum(widths), generator=generator, dtype=torch.float64)
    uniform, corners, geometry = uniform.split(widths, 1)

    low, high = torch.tensor(list(RANGES.values()), dtype=torch.float64).unbind(1)
    columns = (low + (high - low) * uniform).unbind(1)
    drawn = dict(zip(RANGES, columns, strict=True))  # (B,) each

    def coin(name):
        return (drawn[name] < 0.5) & happens[name]

    kernels, probability = motion_kernels()
    kind = (drawn["motion"][:, None] >= probability.cumsum(0)[:-1]).sum(1)

    return Draws(
        **draw_geometry(geometry.view(batch, TRIES, 8), sizes, size, happens),
        tone=one_of(drawn["tone"], ("gamma", "hsv", "brightness"), happens),
        gamma=drawn["gamma_percent"].floor() / 100,
        shift=torch.stack((drawn["hue"], drawn["saturation"], drawn["value"]), 1),
        contrast=torch.stack((drawn["alpha"], drawn["beta"]), 1),
        blur=one_of(drawn["blur"], ("gaussian", "motion", "median"), happens),
        motion=kernels[kind],
        holes=drawn["holes"].long() * coin("dropout"),
        corners=(corners * (size - HOLE + 1)).long().view(batch, HOLES, 2),
        vflip=coin("vflip"),
        transpose=coin("transpose"),
        sharpen=coin("sharpen"),
        edge=sharpening_kernels(drawn["sharpen_alpha"], drawn["sharpen_lightness"]),
    )


# ----------------------------------------------------------------------------------- geometry


class Plan(NamedTuple):
    """Where output pixels come from. Fields are (B, T, 2) float64 on the CPU, (x, y) pairs.

    Output pixel (x, y) lies at u = x along + y across + origin in the rectangle that the scaled
    frame fills, and in the frame at q = mirror + sign ((u + crop + 1/2) / scale - 1/2). In all of
    these, pixel centres are integers.
    """

    rectangle: Tensor  # its width and height, at most the output's
    along: Tensor  # (cos, sin) of the rotation
    across: Tensor  # (-sin, cos)
    origin: Tensor  # where output pixel (0, 0) lies in the rectangle
    low: Tensor  # the least u and
    high: Tensor  # the greatest u that are read
    gain: Tensor  # gain u + bias is q in [-1, 1] of the frame's array, as grid_sample reads it
    bias: Tensor
    crop: Tensor  # the window's corner in the scaled frame
    scale: Tensor  # output pixels per frame pixel
    sign: Tensor  # -1 where the axis is flipped, else 1
    mirror: Tensor  # the last pixel's index where the axis is flipped, else 0
    last: Tensor  # the last pixel's index


def make_plan(draws, sizes, cuts, size, tries=1):
    """Plan of the first `tries` geometries of draws.

    sizes      (B, 2) int64, the true (height, width) of the frames; cuts: of the arrays they are in
    """
    flip, scale, crop, pad, degrees = (field[:, :tries] for field in draws[:5])
    scaled = scaled_size(sizes, scale)  # (B, T, 2)

    # OpenCV copies a frame whose rounded size stays, and else maps by 1 / scale exactly.
    stays = (scaled == sizes[:, None]).all(2)
    scale = torch.where(stays, 1.0, scale)[..., None]  # (B, T, 1)

    # From here on x comes before y.
    frame, array, scaled, crop, pad = (
        pair.flip(-1).double() for pair in (sizes[:, None], cuts[:, None], scaled, crop, pad)
    )

    # 1. The rectangle of the output that the scaled frame fills.
    rectangle = scaled.clamp(max=size)

    # 2. Rotation about the loader's centre, which is half a pixel off the true one.
    centre = size / 2
    cos = torch.deg2rad(degrees).cos()
    sin = torch.deg2rad(degrees).sin()
    along = torch.stack((cos, sin), 2)
    across = torch.stack((-sin, cos), 2)
    origin = centre - centre * along - centre * across - pad

    # 3. The sampling grid. Where a frame is padded, it keeps 2^-10 pixel inside, so that no
    # rounding reaches the padding. Should the scale leave no room, the frame's end wins.
    margin = torch.where(frame < array, 2**-10, 0.0)
    high = torch.minimum((frame - 0.5 - margin) * scale - 0.5 - crop, rectangle - 1)
    low = ((margin + 0.5) * scale - 0.5 - crop).clamp(min=0).minimum(high)

    flipped = flip[..., None] * torch.tensor([1.0, 0.0])  # along x alone
    sign = 1 - 2 * flipped
    mirror = flipped * (frame - 1)
    start = mirror + sign * ((crop + 0.5) / scale - 0.5)  # q where u is 0
    gain = sign / scale * 2 / array
    bias = (start + 0.5) * 2 / array - 1

    return Plan(
        *torch.broadcast_tensors(
            rectangle,
            along,
            across,
            origin,
            low,
            high,
            gain,
            bias,
            crop,
            scale,
            sign,
            mirror,
            frame - 1,
        )
    )


def warp(frames, plan, size, tries=None):
    """Flip, scale, crop, pad, rotate, in one bilinear sampling.

    frames     (B, 3, H, W) uint8
    tries      (B,) int64 on their device: which of each sample's geometries; None: the first
    returns    (B, 3, size, size) uint8: FILL + w (bilinear(frame) - FILL), rounded, where w falls
               from 1 to 0 over the rim of the rectangle
    """
    device = frames.device
    fields = ship(torch.stack(plan).float(), device)  # (13, B, T, 2)
    if tries is not None:
        fields = fields.take_along_dim(tries[None, :, None, None], 2)
    plan = Plan(*fields[:, :, 0, :, None, None])  # (B, 2, 1, 1) each

    # In float32, since 16 bits would move a pixel by 0.07.
    x = torch.arange(size, dtype=torch.float32, device=device)
    u = (plan.along * x + plan.origin) + plan.across * x[:, None]  # (B, 2, S, S)
    grid = u.clamp(plan.low, plan.high).mul_(plan.gain).add_(plan.bias)
    sampled = F.grid_sample(
        frames.float(),
        grid.permute(0, 2, 3, 1),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )  # (B, 3, S, S)

    covered = torch.minimum(u + 1, plan.rectangle - u).clamp_(0, 1)
    covered = covered[:, :1] * covered[:, 1:]  # (B, 1, S, S)
    fill = ship(channels(FILL), device)
    return torch.lerp(fill, sampled, covered).add_(0.5).to(torch.uint8)


def warp_labels(label_maps, plan, size):
    """The loader's two nearest steps: the frame's pixel floor((u + crop) / scale) at rounded u.

    label_maps (B, H, W) uint8
    returns    (B, T, size, size) uint8, data.NONE outside the frame. In float64, so that CPU and
               CUDA are equal
    """
    fields = ship(torch.stack(plan), label_maps.device)  # (13, B, T, 2)
    plan = Plan(*fields[..., None, None])  # (B, T, 2, 1, 1) each

    x = torch.arange(size, dtype=torch.float64, device=fields.device)
    u = (plan.along * x + (plan.origin + 0.5)) + plan.across * x[:, None]
    u = u.floor_()  # (B, T, 2, S, S)
    inside = ((u >= 0) & (u < plan.rectangle)).all(2)  # (B, T, S, S)

    q = u.add_(plan.crop).div_(plan.scale).floor_()
    q = q.clamp_(min=0).minimum(plan.last)
    column, row = q.mul_(plan.sign).add_(plan.mirror).long().unbind(2)
    index = row * label_maps.shape[2] + column
    found = label_maps.flatten(1).gather(1, index.flatten(1))
    return found.view(index.shape).masked_fill_(~inside, data.NONE)


def visible_labels(label_maps, num_classes):
    """(B, S, S) uint8 maps -> (B, num_classes) float32 multi-hot: classes with at least a pixel."""
    found = torch.zeros(len(label_maps), 256, device=label_maps.device)
    found.scatter_(1, label_maps.flatten(1).long(), 1.0)
    return found[:, :num_classes].contiguous()


# ---------- photometric: (n, 3, H, W) uint8 -> the same; an image's own parameters on the host


def on_rows(images, chosen, op, *parameters):
    """op(images, *parameters) of the rows that `chosen`, (B,) bool on the host, marks."""
    rows = chosen.nonzero()[:, 0]
    if len(rows) == 0:
        return images

    parameters = [parameter[rows] for parameter in parameters]
    if len(rows) == len(images):
        return op(images, *parameters)
    rows = ship(rows, images.device)
    return images.index_copy(0, rows, op(images[rows], *parameters))


def look_up(images, tables):
    """Level k of image i becomes tables[i, k]; tables (n, 256) uint8."""
    tables = ship(tables, images.device)
    return tables.gather(1, images.flatten(1).long()).view(images.shape)


def gamma(images, gamma):
    """y = floor(255 (x/255)^gamma), gamma (n,). The report draws 0.60, 0.61 .. 1.20.

    float64, with x times 1/255, as in the library: gamma = 1 lowers 24 of the 256 levels by one.
    """
    x = torch.arange(256, dtype=torch.float64) * (1 / 255)
    y = x ** gamma[:, None] * 255
    return look_up(images, y.to(torch.uint8))


def brightness_contrast(images, contrast):
    """y = floor(clip(alpha x + 255 beta, 0, 255)) in float32, contrast (n, 2) alpha, beta.

    The report draws beta ~ U(-0.2, 0.2); alpha ~ U(0.8, 1.2) is the library's unnamed default.
    """
    alpha, beta = contrast.float()[:, :, None].unbind(1)  # (n, 1)
    y = torch.arange(256.0) * alpha + beta * 255
    return look_up(images, y.clamp_(0, 255).to(torch.uint8))


def hue_saturation_value(images, shift):
    """H' = floor((H + dh) mod 180), S' = floor(clip(S + ds)), V' = floor(clip(V + dv)).

    shift      (n, 3): dh in units of 2 degrees, ds, dv in levels. The report draws U(-10, 10) and
               U(-20, 20); dv ~ U(-20, 20) is the library's unnamed default
    source     OpenCV's 8-bit HSV: 12-bit fixed point, and back in float32, truncated. A grey has
               S = H = 0 and turns reddish with ds >= 1, as in 0.4.5; later versions keep it grey
    """
    shift = ship(shift.floor().float(), images.device)
    dh, ds, dv = shift[:, :, None, None].unbind(1)  # (n, 1, 1)
    rgb = images.float()
    r, g, b = rgb.unbind(1)  # (n, H, W), all integers

    value = rgb.amax(1)
    chroma = value - rgb.amin(1)
    per_value = (1044480 / value.clamp(min=1)).round_().int()  # 255 * 4096 / V
    saturation = per_value.mul_(chroma.int()).add_(2048) >> 12

    # Where channels are equally large, red counts before green, and green before blue.
    sixth = torch.where(g == value, b - r + 2 * chroma, r - g + 4 * chroma)
    sixth = torch.where(r == value, g - b, sixth)
    per_chroma = (122880 / chroma.clamp(min=1)).round_()  # 180 * 4096 / 6C
    hue = sixth.mul_(per_chroma).mul_(1 / 4096)  # -30 .. 150, exact
    hue = hue.add_(dh.remainder(180) + 180.5).int() % 180

    h = hue.float().mul_(1 / 30)  # sixths of a turn, in [0, 6)
    s = (saturation + ds).clamp_(0, 255).mul_(1 / 255)
    v = (value + dv).clamp_(0, 255).mul_(1 / 255)

    # A channel is v (1 - s w), where w is 0 if it is the largest and 1 if it is the smallest. In
    # float32 these differences are exact.
    red = torch.minimum(h - 1, 5 - h)
    green = torch.maximum(1 - h, h - 3)
    blue = torch.maximum(3 - h, h - 5)
    w = torch.stack((red, green, blue), 1).clamp_(0, 1)  # (n, 3, H, W)
    return (1 - w.mul_(s[:, None])).mul_(v[:, None]).mul_(255).to(torch.uint8)


def pad(images, edge):
    """A pixel more on each side: edge=1 REFLECT_101, 0 replicated. F.pad refuses uint8 on CUDA."""
    for axis in (2, 3):
        before = images.narrow(axis, edge, 1)
        after = images.narrow(axis, -1 - edge, 1)
        images = torch.cat((before, images, after), axis)
    return images


def neighbours(x, axis):
    """Three views, a pixel apart along an axis, that are two pixels shorter."""
    return x.unfold(axis, 3, 1).unbind(-1)


def gaussian_blur(images):
    """[1 2 1] x [1 2 1] / 16, ties up, REFLECT_101: OpenCV's 3x3 table (not sigma = 0.8)."""
    x = pad(images, 1).short()
    for axis in (2, 3):
        before, here, after = neighbours(x, axis)
        x = before + 2 * here + after
    return (x.add_(8) >> 4).to(torch.uint8)


def filter3x3(images, kernels):
    """Correlation with each image's own (n, 3, 3) float32 kernel, ties to even, REFLECT_101."""
    kernels = ship(kernels, images.device)
    out = torch.zeros_like(images, dtype=torch.float32)
    for y, rows in enumerate(neighbours(pad(images, 1).float(), 2)):
        for x, pixels in enumerate(neighbours(rows, 3)):
            out.addcmul_(pixels, kernels[:, y, x, None, None, None])
    return out.round_().clamp_(0, 255).to(torch.uint8)


motion_blur = filter3x3  # with motion_kernels()
sharpen = filter3x3  # with sharpening_kernels()


def median(a, b, c):
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))


def median_blur(images):
    """3x3 median, replicated borders, in 18 whole-image min and max.

    Each column of three is sorted once. The median of nine is that of the greatest of the columns'
    minima, the median of their medians and the least of their maxima.
    """
    top, centre, bottom = neighbours(pad(images, 0), 2)  # (n, 3, H, W+2)
    low = torch.minimum(top, centre)
    high = torch.maximum(top, centre)
    rest = torch.minimum(high, bottom)

    highest = torch.maximum(high, bottom)
    middle = torch.maximum(low, rest)
    lowest = torch.minimum(low, rest)
    return median(
        reduce(torch.maximum, neighbours(lowest, 3)),
        median(*neighbours(middle, 3)),
        reduce(torch.minimum, neighbours(highest, 3)),
    )


def coarse_dropout(images, corners, holes):
    """The first holes[i] of image i's 8x8 squares, (top, left) at corners (n, K, 2), turn black."""
    unused = torch.arange(corners.shape[1]) >= holes[:, None]  # (n, K)
    corners = torch.where(unused[..., None], corners[:, :1], corners)  # on the first one

    rows, columns = (corners[..., None] + torch.arange(HOLE)).unbind(2)  # (n, K, 8) each
    index = rows[..., None] * images.shape[3] + columns[:, :, None]  # (n, K, 8, 8)
    index = ship(index, images.device).flatten(1)  # (n, 64 K)
    index = index[:, None].expand(-1, 3, -1)
    return images.flatten(2).scatter(2, index, 0).view(images.shape)


def flip_vertically(images):
    return images.flip(2)


def transpose(images):
    return images.mT.contiguous()


def mirror(images, generator):
    """(B, C, H, W) with half of the images, drawn from the CPU generator, left to right."""
    drawn = torch.rand(len(images), generator=generator) < 0.5  # (B,)
    drawn = ship(drawn, images.device)
    return torch.where(drawn[:, None, None, None], images.flip(3), images)


def normalize(images, mean, std, out=None):
    """(x - 255 mean) / (255 std): (B, 3, H, W) levels -> float32; mean, std (3,)."""
    scale = ship(1 / (255 * channels(std)), images.device)
    shift = ship(channels(mean) / channels(std), images.device)
    return torch.mul(images, scale, out=out).sub_(shift)


# ----------------------------------------------------------------------------- the whole thing


def how_to_make(frames) -> str:
    """Ends a message: the code that makes frames of what was passed for them, if there is any."""
    if isinstance(frames, Image.Image):
        return "; torch.from_numpy(decoding.rgb(frames)).permute(2, 0, 1)[None] makes them"
    shape = tuple(getattr(frames, "shape", ()))
    if len(shape) not in (3, 4) or 0 in shape or 3 not in (shape[-3], shape[-1]):
        return ""

    code = "torch.as_tensor(frames)"
    if shape[-3] != 3:
        code += ".movedim(-1, -3)"
    if len(shape) == 3:
        code += "[None]"
    if "float" in str(frames.dtype):
        return f"; of floats in 0..1 (255 * {code}).round().byte() makes them"
    return f"; {code}.byte() makes them"


def true_sizes(frames, sizes):
    """Checks a batch of frames; returns its true sizes, (B, 2) int64 on the CPU."""
    levels = isinstance(frames, Tensor) and frames.dtype == torch.uint8
    if not levels or frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        wanted = "frames are a tensor (B, 3, H, W) of uint8 levels and not empty"
        wrong = f"{wanted}, got {described(frames)}{how_to_make(frames)}"
        raise ValueError(wrong) if levels else TypeError(wrong)

    shape = torch.tensor(frames.shape[2:])
    if sizes is None:
        return shape.expand(len(frames), 2)
    if sizes.shape != (len(frames), 2) or sizes.dtype != torch.int64 or not sizes.is_cpu:
        raise ValueError(
            f"sizes are ({len(frames)}, 2) int64 on the CPU, got "
            f"{tuple(sizes.shape)} {sizes.dtype} on {sizes.device}"
        )
    if (sizes < 1).any() or (sizes > shape).any():
        raise ValueError(f"sizes lie in 1..{tuple(frames.shape[2:])}, got {sizes.tolist()}")
    return sizes


def check_labels(frames, labels, label_maps):
    """raises  ValueError where they do not belong to the frames"""
    maps = frames[:, 0].shape
    if label_maps is not None and (label_maps.dtype != torch.uint8 or label_maps.shape != maps):
        raise ValueError(
            f"label_maps are uint8 {tuple(maps)}, got {label_maps.dtype} {tuple(label_maps.shape)}"
        )
    if labels is not None and (
        labels.dtype != torch.float32 or labels.ndim != 2 or len(labels) != len(frames)
    ):
        raise ValueError(
            f"labels are float32 ({len(frames)}, classes), a row per frame, got "
            f"{labels.dtype} {tuple(labels.shape)}"
        )


def check_names(option, names, choices):
    if isinstance(names, str):
        raise ValueError(f"{option}={names!r}: a list of names is meant, as [{names!r}]")
    unknown = [name for name in names if name not in choices]
    if unknown:
        raise ValueError(f"{option}={' '.join(unknown)}: choose from {' '.join(choices)}")


def at_once(frames, sizes, size, tries):
    """How many samples are worked on together, and (B, 2) sizes that the frames are cut to.

    A CPU works on one sample at a time, which stays in its cache, cut to its true size. An
    accelerator works on as many as CHUNK_BYTES hold, uncut.
    """
    if frames.is_cpu:
        return 1, sizes
    height, width = frames.shape[2:]
    samples = CHUNK_BYTES // (12 * height * width + 80 * tries * size * size)
    return max(1, samples), torch.tensor([height, width]).expand_as(sizes)


class ReportAugment:
    """The report's training transform: `draw`, then `apply`.

    size       side of the output in pixels
    mean, std  (3,) of RGB in [0, 1], those of the network's weights
    without    names in OPS to switch off; extra: names in EXTRA to turn on
    labels     "visible": the classes that the warped label map still shows, where there are maps;
               "frame": the frame's own
    empty      "keep" a crop that shows no actor, or "redraw" its geometry up to 7 times; all eight
               label maps are warped
    raises     ValueError on unknown names
    """

    def __init__(
        self,
        size=224,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        without=(),
        extra=(),
        labels="visible",
        empty="keep",
    ):
        check_names("without", without, OPS)
        check_names("extra", extra, EXTRA)
        check_names("labels", [labels], ("visible", "frame"))
        check_names("empty", [empty], ("keep", "redraw"))
        if size < HOLE:
            raise ValueError(f"size={size} is smaller than a hole of {HOLE} pixels")

        self.size = size
        self.mean = mean
        self.std = std
        self.without = without
        self.extra = extra
        self.labels = labels
        self.tries = TRIES if empty == "redraw" else 1

    def __call__(self, frames, generator, labels=None, label_maps=None, sizes=None):
        """Augment a batch on its device.

        frames     (B, 3, H, W) uint8
        generator  torch.Generator on the CPU, see `generator`
        labels     (B, C) float32 or None; label_maps (B, H, W) uint8 or None
        sizes      (B, 2) int64 on the CPU, the true (height, width) where frames are padded at
                   right and bottom, else None
        returns    (B, 3, size, size) float32 normalised, (B, C) float32 labels or None
        raises     TypeError, ValueError on wrong types, shapes or sizes
        """
        true = true_sizes(frames, sizes)
        draws = draw(len(frames), generator, true, self.size, self.without, self.extra)
        return self.apply(frames, draws, labels, label_maps, sizes)

    def apply(self, frames, draws, labels=None, label_maps=None, sizes=None):
        """The same by given draws; row i of the output depends on row i of the arguments alone."""
        sizes = true_sizes(frames, sizes)
        check_labels(frames, labels, label_maps)
        if label_maps is None and self.tries > 1:
            raise ValueError("empty='redraw' needs label maps, and this batch has none")
        recount = self.labels == "visible" and labels is not None and label_maps is not None
        read = recount or self.tries > 1

        samples, cuts = at_once(frames, sizes, self.size, self.tries)
        plan = make_plan(draws, sizes, cuts, self.size, self.tries)
        images = torch.empty(len(frames), 3, self.size, self.size, device=frames.device)
        maps = []
        for i in range(0, len(frames), samples):
            rows = slice(i, i + samples)
            height, width = cuts[i].tolist()
            transformed, shown = self.transform(
                frames[rows, :, :height, :width],
                label_maps[rows, :height, :width] if read else None,
                Plan(*(field[rows] for field in plan)),
                Draws(*(field[rows] for field in draws)),
            )
            normalize(transformed, self.mean, self.std, out=images[rows])
            maps.append(shown)

        if recount:
            labels = visible_labels(torch.cat(maps), labels.shape[1])
        return images, labels

    def transform(self, frames, label_maps, plan, draws):
        """(n, 3, S, S) levels and (n, S, S) maps, where given, of samples worked on together."""
        tries = None
        if label_maps is not None:
            maps = warp_labels(label_maps, plan, self.size)  # (n, T, S, S)
            label_maps = maps[:, 0]
            if self.tries > 1:
                # The first of the geometries that shows an actor counts, else the first of all.
                tries = (maps.amin((2, 3)) < data.NONE).byte().argmax(1)  # (n,)
                label_maps = maps[torch.arange(len(maps), device=maps.device), tries]

        images = warp(frames, plan, self.size, tries)  # flip, scale, crop, pad, rotate

        images = on_rows(images, draws.vflip, flip_vertically)
        images = on_rows(images, draws.transpose, transpose)

        images = on_rows(images, draws.tone == GAMMA, gamma, draws.gamma)
        images = on_rows(images, draws.tone == HSV, hue_saturation_value, draws.shift)
        images = on_rows(images, draws.tone == BRIGHTNESS, brightness_contrast, draws.contrast)

        images = on_rows(images, draws.blur == GAUSSIAN, gaussian_blur)
        images = on_rows(images, draws.blur == MOTION, motion_blur, draws.motion)
        images = on_rows(images, draws.blur == MEDIAN, median_blur)

        images = on_rows(images, draws.sharpen, sharpen, draws.edge)
        images = on_rows(images, draws.holes > 0, coarse_dropout, draws.corners, draws.holes)
        return images, label_maps


class EvalTransform:
    """What evaluation sees of a frame, and training under `--augment none`: nothing is drawn.

    fit            "squash": the course's anisotropic resize; "letterbox": isotropic, rest is FILL
    interpolation  "bilinear": half-pixel centres, no antialiasing, as cv2.resize in the course;
                   "bicubic": a = -1/2, antialiased, as in Pillow, which published weights expect
    """

    def __init__(
        self,
        size=224,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        fit="squash",
        interpolation="bilinear",
    ):
        check_names("fit", [fit], ("squash", "letterbox"))
        check_names("interpolation", [interpolation], ("bilinear", "bicubic"))
        self.size = size
        self.mean = mean
        self.std = std
        self.fit = fit
        self.interpolation = interpolation

    def __call__(self, frames, sizes=None):
        """(B, 3, H, W) uint8, sizes as in ReportAugment -> (B, 3, size, size) float32 normalised.

        Frame by frame, so that no bit depends on what else is in the batch.
        """
        sizes = true_sizes(frames, sizes)
        fill = ship(channels(FILL), frames.device)
        images = fill.repeat(len(frames), 1, self.size, self.size)

        for i, (height, width) in enumerate(sizes.tolist()):
            top, left, h, w = self.frame_box(height, width)
            frame = frames[i : i + 1, :, :height, :width]
            resized = F.interpolate(
                frame.float().contiguous(),
                (h, w),
                mode=self.interpolation,
                align_corners=False,
                antialias=self.interpolation == "bicubic",
            )
            images[i, :, top : top + h, left : left + w] = resized[0].clamp_(0, 255)
        return normalize(images, self.mean, self.std, out=images)

    def frame_box(self, height, width):
        """Where a frame of that size is in its view: top, left, height, width."""
        h = w = self.size
        if self.fit == "letterbox":
            longer = max(height, width)
            h = max(1, round(height * self.size / longer))
            w = max(1, round(width * self.size / longer))
        return (self.size - h) // 2, (self.size - w) // 2, h, w


# ------------------------------------------------------------------------------------- preview


def preview(path, frames, sizes, transform, seed=0):
    """Writes a page: every op of `transform` alone, in a column of its own, then whole draws.

    Each frame has a row of ops and a row of draws. Ops other than scale and crop are shown on the
    whole frame, of which training sees a window.

    frames, sizes as in ReportAugment, on the CPU
    """
    size = transform.size

    # The geometry that scales a frame until it fits, and puts it in the middle.
    scale = size / sizes.amax(1, keepdim=True).double()  # (B, 1)
    spare = size - scaled_size(sizes, scale).long()  # (B, 1, 2)
    fitting = {"scale": scale, "crop": torch.zeros_like(spare), "pad": spare // 2}

    alone = {}
    names = [name for name in OPS if name not in transform.without]
    for name in ("frame", *names, *transform.extra):
        others = [op for op in OPS if op != name]
        draws = draw(len(frames), generator(seed, 0, 0), sizes, size, without=others)
        if name not in ("scale", "crop"):
            draws = draws._replace(**fitting)
        for field, value in FORCE.get(name, {}).items():
            draws = draws._replace(**{field: torch.full_like(getattr(draws, field), value)})
        alone[name], _ = transform.apply(frames, draws, sizes=sizes)

    images = list(alone.values())
    for step in range(len(alone)):
        drawn, _ = transform(frames, generator(seed, 0, step), sizes=sizes)
        images.append(drawn)

    shown = torch.stack(images, 1)  # (B, 2 columns, 3, size, size)
    shown = shown * channels(transform.std) + channels(transform.mean)
    levels = (shown * 255).round().clamp(0, 255).to(torch.uint8)
    tiles = [[(tile, []) for tile in row] for row in levels.permute(0, 1, 3, 4, 2).numpy()]

    first = [("", row[: len(alone)]) for row in tiles]
    second = [("", row[len(alone) :]) for row in tiles]
    second[0] = ("All of them together, as training draws them", second[0][1])
    cell = (max(size + 8, 88), size + 4)  # a column has room for its title
    pictures.write_page(path, first + second, heads=list(alone), cell=cell)


def main(argv=None):
    """Returns what is wrong with the arguments, else None."""
    parser = argparse.ArgumentParser(description="Show what the report's augmentations do.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument("--out", default="grid.png", help="picture to write (default grid.png)")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side (default 224)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default 0)")
    parser.add_argument("--without", nargs="+", default=(), choices=OPS, help="ops to switch off")
    parser.add_argument(
        "--with", nargs="+", default=(), choices=EXTRA, dest="extra", help="ops to turn on"
    )
    args = parser.parse_args(argv)

    if os.path.realpath(args.out) in map(os.path.realpath, args.images):
        return f"--out {args.out}: is one of the pictures – name another file"
    try:
        images = [data.decode(path) for path in args.images]
    except data.DataError as problem:
        return str(problem)
    samples = [(0, torch.from_numpy(image).permute(2, 0, 1), None, None) for image in images]
    batch = data.collate(samples)
    try:
        transform = ReportAugment(args.size, without=args.without, extra=args.extra)
        preview(args.out, batch.frames, batch.sizes, transform, args.seed)
    except (OSError, ValueError, struct.error) as problem:
        return f"--out {args.out} --size {args.size} --seed {args.seed}: {problem}"
    print(f"written: {args.out}")
    return None


if __name__ == "__main__":
    problem = main()
    if problem:
        print(f"augment.py: {problem}", file=sys.stderr)
        sys.exit(3)
