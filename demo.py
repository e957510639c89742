"""Drawn actor-action scenes in A2D's own layout: a data set that needs no download.

    python demo.py OUT                 # 1024 training and 256 validation frames, about 100 MB
    python demo.py OUT --train 64 --val 16

A limb, a head, a wheel, a trunk: everything is a stroke, the hull of two circles. Figures are bones
posed by a table of angles per action; cues are what goes along with an action in life, and stand in
some frames without it. A frame is a pure function of (seed, split, number, hint).

Follows A2D (Xu et al., CVPR 2015) in tree, ids, colours, pairs and labels per frame. Differs:
frames are half as high, a video has one, first labels are dealt evenly over the 43 classes, and a
csv row names a `none` label where its frame has no other.
"""

import argparse
import base64
import colorsys
import contextlib
import hashlib
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data import ACTORS, COLOURS, PALETTE, DataError, cache_home

try:
    import fcntl
except ImportError:  # Windows: two runs into one folder at once are not kept apart
    fcntl = None

VERSION = 3  # of the drawing; part of the cache folder's name
ADULT_NONE = 19
LABELS_A_FRAME = (0.691, 0.26, 0.045, 0.004)  # 1 to 4 labels: A2D's validation list
EXTRA_ADULT_NONE = 0.44  # drawn without repeats, adult-none becomes 40 % of the extra labels
HEIGHT, WIDTHS = 160, {284: 0.55, 213: 0.35, 240: 0.10}  # A2D: 320 and 568, 426, 480 pixels
ZOOM = 2  # drawn at twice the size, then averaged
BYTES_A_FRAME = 80_000  # about, on disk
SIZE = {"adult": 0.56, "baby": 0.48, "ball": 0.24, "bird": 0.40, "car": 0.36, "cat": 0.42,
        "dog": 0.44}  # of the frame's height

# Angles of the joints in BONES' order: degrees from straight down, forward positive.
HUMAN = {  # torso, head, far arm (upper, lower), near arm, far leg, near leg
    "climbing": (172, 184, 150, 165, 110, 150, 85, -15, 45, -35),
    "crawling": (98, 125, 8, 4, -8, 0, 12, -82, -12, -88),
    "eating": (174, 166, 45, 95, 25, 150, 86, 2, 80, 6),
    "jumping": (184, 190, 155, 170, 200, 185, 70, -40, 50, -65),
    "rolling": (135, 60, 75, 20, 60, 30, 125, -15, 115, -5),
    "running": (158, 148, 55, 150, -75, 15, -35, -105, 80, -5),
    "walking": (175, 175, 38, 60, -38, -12, -24, -42, 30, 14),
    "none": (180, 180, 4, 8, -6, -2, 2, 0, -3, -2)}
BEAST = {  # torso (hips to chest), head, tail (2), front legs (2 far, 2 near), hind legs
    "climbing": (168, 150, -20, -50, 120, 140, 85, 125, 75, 10, 50, 0),
    "crawling": (86, 110, -85, -95, 40, 95, 25, 88, 80, -78, 70, -84),
    "eating": (80, 48, -130, -160, 12, -8, -8, -2, -4, 8, 8, -4),
    "jumping": (125, 135, -60, -80, 80, 15, 62, 5, -48, -25, -30, -40),
    "rolling": (90, 125, -80, -50, 45, -10, 20, -30, 30, -25, 5, -45),
    "running": (94, 115, -95, -80, 75, 62, 50, 80, -62, -48, -40, -75),
    "walking": (90, 130, -120, -150, 30, 12, -22, -45, 24, -10, -30, -18),
    "none": (142, 140, -75, -110, 6, 0, -4, 2, 95, -70, 85, -60)}  # sits
BIRD = {  # torso (belly to chest), head, tail, legs (2 far, 2 near), far wing, near wing
    "climbing": (162, 165, -20, 70, 35, 55, 20, -25, -25),
    "eating": (65, 60, -115, 0, 10, 10, 12, -105, -105),
    "flying": (95, 110, -85, -75, -85, -80, -90, 165, -160),
    "jumping": (120, 150, -60, 45, -35, 20, -50, 170, -140),
    "rolling": (90, 130, -90, 30, -20, -10, -40, 160, -140),
    "walking": (105, 145, -80, 35, 5, -30, -15, -78, -78),
    "none": (115, 160, -70, -5, 8, 0, 10, -70, -70)}
POSES = {"adult": HUMAN, "baby": HUMAN, "bird": BIRD, "cat": BEAST, "dog": BEAST}

INK, WHITE, GLASS = (34, 32, 38), (242, 242, 242), (195, 220, 235)
WOOD, BARK, GOLD = (140, 100, 65), (85, 62, 45), (240, 170, 30)
FUR = ((92, 60, 38), (150, 110, 70), (60, 58, 60), (120, 118, 116), (205, 190, 165), WHITE)
DRAWN = {"skin": ((244, 205, 172), (224, 172, 134), (176, 120, 84), (110, 72, 50)), "hair": FUR[:4],
         "cloth": ((60, 45, 35), (105, 80, 55), (45, 50, 80), (80, 78, 82)), "ink": (INK, WHITE)}
# Lengths are fractions of SIZE. A colour is a shade of the actor's own (a number), drawn for each
# actor (a key of DRAWN), or fixed. Low layers come first; below 0 is the far side, darker.
BONES = {  # name: (from the end of, limbs, joints, length of each, two radii, colour, layer)
    "adult": {"torso": ("", 1, 1, 0.31, 0.08, 0.09, 1, 0),
              "head": ("torso", 1, 1, 0.17, 0.04, 0.085, "skin", 2),
              "arm": ("torso", 2, 2, 0.175, 0.045, 0.03, 0.85, 3),
              "leg": ("", 2, 2, 0.235, 0.062, 0.035, "cloth", 1)},
    "baby": {"torso": ("", 1, 1, 0.27, 0.13, 0.12, 1, 0),
             "head": ("torso", 1, 1, 0.25, 0.06, 0.165, "skin", 2),
             "arm": ("torso", 2, 2, 0.13, 0.055, 0.04, 0.85, 3),
             "leg": ("", 2, 2, 0.15, 0.075, 0.05, "skin", 1)},
    "bird": {"torso": ("", 1, 1, 0.3, 0.2, 0.15, 1, 0),
             "head": ("torso", 1, 1, 0.16, 0.1, 0.12, 1.15, 1),
             "tail": ("", 1, 1, 0.45, 0.12, 0.05, 0.6, -1),
             "leg": ("", 2, 2, 0.19, 0.03, 0.02, GOLD, -1),
             "wing": ("torso", 2, 1, 0.5, 0.14, 0.03, 0.75, 2)},
    "cat": {"torso": ("", 1, 1, 0.6, 0.13, 0.15, 1, 0),
            "head": ("torso", 1, 1, 0.27, 0.11, 0.14, 1, 2),
            "tail": ("", 1, 2, 0.26, 0.045, 0.03, 1, -1),
            "front": ("torso", 2, 2, 0.2, 0.07, 0.045, 1, 1),
            "hind": ("", 2, 2, 0.2, 0.08, 0.045, 1, 1)},
    "dog": {"torso": ("", 1, 1, 0.6, 0.16, 0.19, 1, 0),
            "head": ("torso", 1, 1, 0.29, 0.13, 0.14, 1, 2),
            "tail": ("", 1, 2, 0.12, 0.06, 0.04, 1, -1),
            "front": ("torso", 2, 2, 0.23, 0.09, 0.06, 1, 1),
            "hind": ("", 2, 2, 0.23, 0.1, 0.06, 1, 1)}}
TRIM = {  # (at the end of; two x, y, x along that bone, y to its left; two radii; colour; layer)
    "adult": [("head", 0.01, 0.03, 0.02, 0.01, 0.085, 0.085, "hair", 1),
              ("leg", 0, 0, 0, 0.07, 0.04, 0.03, INK, 1)],
    "baby": [("", 0, 0, 0, 0, 0.14, 0.14, WHITE, 0),  # nappy
             ("head", 0.02, 0.05, 0.05, 0.02, 0.15, 0.15, "hair", 1)],
    "ball": [("", 0, 0, 0, 0, 0.5, 0.5, 1, 0)] + [("", -x, -y, x, y, 0.035, 0.035, "ink", 0)
             for x, y in ((0.46, 0), (0.23, 0.4), (-0.23, 0.4))],
    "bird": [("head", 0, -0.08, 0.12, -0.24, 0.06, 0.01, GOLD, 0)],
    "car": [("", -0.34, 0.36, 0.08, 0.36, 0.18, 0.18, 0.85, 0),
            ("", -0.34, 0.38, -0.22, 0.38, 0.1, 0.1, GLASS, 0),
            ("", 0.02, 0.38, 0.1, 0.38, 0.1, 0.1, GLASS, 0),
            ("", -0.64, 0.14, 0.66, 0.12, 0.16, 0.13, 1, 0)] + [("", x, 0, x, 0, r, r, c, 0)
            for x in (-0.45, 0.45) for r, c in ((0.18, INK), (0.08, WHITE))],
    "cat": [("head", 0, 0, 0.07, -0.08, 0.1, 0.06, 1.15, 3),
            ("head", 0.08, 0, 0.25, 0.05, 0.06, 0, 0.8, 2),
            ("head", 0.02, 0.1, 0.17, 0.18, 0.06, 0, 0.8, 3)] + [
            ("torso", -x, 0.12, -x, -0.08, 0.025, 0.01, 0.6, 0) for x in (0.05, 0.2, 0.35, 0.5)],
    "dog": [("head", 0, 0, 0.11, -0.15, 0.1, 0.07, 1.15, 3),
            ("head", 0.1, -0.18, 0.12, -0.2, 0.04, 0.04, INK, 3),
            ("head", 0.06, 0.08, -0.08, 0.2, 0.05, 0.08, 0.6, 3)]}
CUES = {  # (anchor; two x, y in the longer side of the actor's box; two radii; colour, opacity)
    "climbing": [("front", 0.05, 0, 0.05, 2.5, 0.1, 0.1, *WOOD, 255)] + [
        ("front", -0.03, y, 0.13, y + 0.04, 0.01, 0.01, *BARK, 255) for y in (0.2, 0.6, 1, 1.4)],
    "eating": [("front", -0.1, 0.09, 0.08, 0.09, 0.05, 0.05, *BARK, 255),
               ("front", -0.14, 0.06, 0.12, 0.06, 0.04, 0.04, *WHITE, 255)],
    "adult-eating": [("rear", 0.2, 0.02, 0.2, 0.24, 0.09, 0.09, *BARK, 255),
                     ("front", 0.2, 0, 0.2, 0.45, 0.03, 0.03, *WOOD, 255),
                     ("front", -0.1, 0.46, 0.4, 0.46, 0.025, 0.025, *WOOD, 255),
                     ("front", 0.02, 0.53, 0.2, 0.53, 0.04, 0.04, *WHITE, 255)],
    "flying": [("tail", -0.06, y, -0.45, y, 0.012, 0.012, *WHITE, 180) for y in (-0.25, 0, 0.25)],
    "jumping": [("under", x, -0.06, x, -0.22, 0.012, 0.012, *WHITE, 170) for x in (-0.2, 0.2)],
    "rolling": [("middle", *(0.6 * f(np.radians(a)) for a in (b, b + 25) for f in (np.cos, np.sin)),
                 0.012, 0.012, *WHITE, 190) for b in (20, 45, 70, 95, 200, 225, 250, 275)],
    "running": [("rear", -x, 0.07, -x, 0.08, 0.05 + 0.1 * x, 0.06 + 0.1 * x, 225, 215, 200,
                 int(150 - 130 * x)) for x in (0.06, 0.23, 0.4, 0.57)]}
SCENES = {"meadow": ((120, 175, 225), (62, 112, 42)), "street": ((135, 155, 195), (84, 84, 90)),
          "beach": ((140, 200, 230), (196, 168, 120)), "snow": ((175, 185, 210), (205, 208, 216)),
          "room": ((190, 175, 155), (110, 72, 56))}  # the far half, the ground


class Canvas:
    """An image and its map of ids (0 = nothing), drawn together; zoomed pixels, y down."""

    def __init__(self, image):
        self.image, self.ids = image, Image.new("L", image.size)
        self.pen, self.pen_ids = ImageDraw.Draw(image, "RGBA"), ImageDraw.Draw(self.ids)

    def stroke(self, p, q, r0, r1, rgba, label=0):
        """The hull of a circle at p and one at q; a see-through colour leaves the ids alone."""
        a = np.arctan2(q[1] - p[1], q[0] - p[0]) + np.linspace(np.pi / 2, 3 * np.pi / 2, 9)
        arc = np.stack([np.cos(a), np.sin(a)], 1)  # (9, 2)
        points = [tuple(xy) for xy in np.concatenate([p + r0 * arc, q - r1 * arc]).tolist()]
        self.pen.polygon(points, fill=tuple(rgba))
        if len(rgba) == 3 or rgba[3] == 255:
            self.pen_ids.polygon(points, fill=label)

    def cue(self, name, box, ground, face):
        """What goes along with an action, about an actor's box (left, top, right, bottom)."""
        # A cue's places are told from the actor's sides, which change with where it faces.
        left, top, right, bottom = box
        x, y = (left + right) / 2, (top + bottom) / 2
        front, rear = (right, left) if face > 0 else (left, right)
        anchors = {"front": (front, ground), "rear": (rear, ground), "tail": (rear, y),
                   "middle": (x, y), "under": (x, bottom)}
        unit = max(right - left, bottom - top)
        for anchor, x0, y0, x1, y1, r0, r1, *rgba in CUES.get(name, ()):
            p, q = anchors[anchor] + np.array([(x0, y0), (x1, y1)]) * (face * unit, -unit)
            self.stroke(p, q, r0 * unit, r1 * unit, rgba)


def figure(actor, action, rgb, rng):
    """Strokes (p, q, r0, r1, colour) of one actor in drawing order; x forward, y up."""
    drawn = {word: choices[rng.randint(len(choices))] for word, choices in DRAWN.items()}
    pose = iter(rng.normal(POSES[actor][action], 5) if actor in POSES else ())
    strokes = []
    ends = {"": (np.zeros(2), np.array([1.0, 0.0]))}  # of each bone: where it ends, its direction

    def add(layer, p, q, r0, r1, colour):
        base, factor = (rgb, colour) if isinstance(colour, (int, float)) else (
            drawn.get(colour, colour), 1)
        factor *= 0.7 if layer < 0 else 1
        colour = tuple(int(min(255, c * factor)) for c in base)
        strokes.append((layer, p, q, r0, r1, colour))

    for name, (start, limbs, joints, length, r0, r1, colour, layer) in BONES.get(actor, {}).items():
        radii = np.linspace(r0, r1, joints + 1)
        for far in reversed(range(limbs)):  # so that `ends` keeps the near limb's
            at = ends[start][0]
            for k in range(joints):
                angle = np.radians(next(pose))
                along = np.array([np.sin(angle), -np.cos(angle)])
                add(-2 if far else layer, at, at + length * along, radii[k], radii[k + 1], colour)
                at = at + length * along
            ends[name] = at, along

    # What has no joint of its own hangs at the end of a bone, and turns with it.
    for start, x0, y0, x1, y1, r0, r1, colour, layer in TRIM[actor]:
        at, (u, v) = ends[start]
        p, q = at + np.array([(x0, y0), (x1, y1)]) @ [(u, v), (-v, u)]
        add(layer, p, q, r0, r1, colour)
    return [stroke[1:] for stroke in sorted(strokes, key=lambda stroke: stroke[0])]


def background(rng, width):
    """A Canvas with the far half, the ground and clutter between them; and the horizon's y."""
    kind = list(SCENES)[rng.randint(len(SCENES))]
    far, near = (np.array(c) * rng.uniform(0.8, 1.15) + rng.normal(0, 8, 3) for c in SCENES[kind])
    horizon, rows, texture = int(HEIGHT * rng.uniform(0.42, 0.62)), np.arange(HEIGHT)[:, None], 1.0

    # Two octaves of smooth noise, over a sky that is brighter towards the horizon.
    for cells, strength in ((8, 0.2), (40, 0.1)):
        noise = Image.fromarray(rng.randint(0, 256, (cells // 2, cells)).astype(np.uint8))
        noise = np.asarray(noise.resize((width, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        texture = texture + strength * (noise / 127.5 - 1)  # (H, W)
    sky = (rows < horizon)[..., None]  # (H, 1, 1)
    light = np.where(sky[..., 0], (0.85 + 0.3 * rows / horizon) * (2 + texture) / 3, texture)
    image = np.clip(np.where(sky, far, near) * light[..., None], 0, 255)  # (H, W, 3)
    image = Image.fromarray(image.astype(np.uint8))

    # Clutter that belongs to no class: trees, houses, pictures on a wall.
    canvas = Canvas(image.resize((width * ZOOM, HEIGHT * ZOOM), Image.Resampling.NEAREST))
    w, h, y = canvas.image.width, canvas.image.height, horizon * ZOOM
    for _ in range(rng.randint(1, 7)):
        x, s, rgb = rng.rand() * w, rng.uniform(12, 38), tuple(rng.randint(40, 190, 3).tolist())
        if kind != "room" and rng.rand() < 0.5:  # a tree
            canvas.stroke((x, y), (x, y - s), 2, 2, BARK)
            canvas.stroke((x, y - s), (x, y - 1.3 * s), 0.4 * s, 0.3 * s, (40, 90 + int(s), 45))
        else:  # a picture on the wall, a house
            top = y * rng.uniform(0.1, 0.7) if kind == "room" else y - s
            canvas.pen.rectangle((x, top, x + 1.4 * s, top + s), rgb, INK, 2)
    for x in range(-rng.randint(60), w, 60) if kind == "street" else ():
        canvas.stroke((x, (y + 2 * h) / 3), (x + 30, (y + 2 * h) / 3), 3, 3, (225, 215, 175))
    return canvas, y


def put(canvas, label, x, ground, size, hint, rng):
    """Draw the actor of `label` about x, with its shadow and its cue; zoomed pixels."""
    name = PALETTE[label][0]
    actor, action = name.split("-")

    if rng.rand() < hint:  # A2D's hues are 54 degrees apart
        hue = (54 * ACTORS.index(actor) + rng.normal(0, 8)) / 360 % 1
        rgb = colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 0.95), 255 * rng.uniform(0.5, 0.9))
    elif actor in ("bird", "cat", "dog"):
        rgb = FUR[rng.randint(len(FUR))]
    else:
        rgb = rng.randint(30, 240, 3).tolist()

    # The figure is drawn upright and facing right; here it turns, tilts and gets its size.
    spins = {"rolling": rng.uniform(80, 280), "flying": rng.uniform(0, 20)}
    spin, face = np.radians(rng.normal(0, 4) + spins.get(action, 0)), (-1, 1)[rng.randint(2)]
    turn = np.array([(np.cos(spin) * face, -np.sin(spin)), (-np.sin(spin) * face, -np.cos(spin))])
    turn *= size * rng.uniform(0.9, 1.1, 2)
    strokes = [(p @ turn, q @ turn, r0 * size, r1 * size, colour)
               for p, q, r0, r1, colour in figure(actor, action, rgb, rng)]

    # Its box, which is kept inside the frame, on the ground or as far above it as its action is.
    low = np.min([np.minimum(p - r0, q - r1) for p, q, r0, r1, _ in strokes], 0)
    high = np.max([np.maximum(p + r0, q + r1) for p, q, r0, r1, _ in strokes], 0)
    width, height = high - low
    lifts = {"jumping": size * rng.uniform(0.3, 0.6), "climbing": size * rng.uniform(0.15, 0.7),
             "flying": ground - canvas.image.height * rng.uniform(0.2, 0.42)}
    top = max(4, ground - lifts.get(action, 0) - height)  # inside the frame
    left = min(max(x - width / 2, 4), canvas.image.width - width - 4)

    # From back to front: shadow, cue, figure.
    if action != "flying":
        canvas.stroke((left + 0.1 * width, ground), (left + 0.9 * width, ground), 0.05 * size,
                      0.05 * size, (20, 20, 25, 110))
    box = (left, top, left + width, top + height)
    canvas.cue(name if name in CUES else action, box, ground, face)
    for p, q, r0, r1, colour in strokes:
        canvas.stroke(p + (left, top) - low, q + (left, top) - low, r0, r1, colour, label)


def scene(labels, rng, width, hint=0.7):
    """Draw a frame -> (RGB image (H, W), ids uint8 (H, W), 0 = nothing)."""
    canvas, horizon = background(rng, width)
    w, h = canvas.image.size

    if rng.rand() < 0.25:  # a cue without its action
        x, y, s = rng.rand() * w, rng.uniform(horizon + 20, h), h * rng.uniform(0.25, 0.5)
        name, face = list(CUES)[rng.randint(len(CUES))], (-1, 1)[rng.randint(2)]
        canvas.cue(name, (x, y - s, x + s, y), y, face)

    # Each actor has a slot of its own from left to right, so that none hides another.
    order, slots = (rng.permutation(len(labels)) for _ in range(2))
    depths = np.sort(rng.uniform(0.15, 0.95, len(labels)))  # far ones first
    for label, slot, depth in zip([labels[k] for k in order], slots, depths, strict=True):
        size = SIZE[PALETTE[label][0].split("-")[0]] * h * rng.uniform(0.8, 1.15)
        size *= (0.8 + 0.35 * depth) * 0.88 ** (len(labels) - 1)
        put(canvas, label, w * (slot + rng.uniform(0.25, 0.75)) / len(labels),
            horizon + depth * (h - 6 - horizon), size, hint, rng)

    # A camera: averaging, a blur that differs, exposure, noise of the sensor.
    ids = np.asarray(canvas.ids)[::ZOOM, ::ZOOM]
    image = canvas.image.reduce(ZOOM).filter(ImageFilter.BoxBlur(rng.uniform(0, 0.8)))
    noise = rng.normal(0, rng.uniform(2, 7), (HEIGHT, width, 1)).astype(np.float32)
    pixels = np.asarray(image, np.float32) * rng.uniform(0.75, 1.15) + noise  # exposure, sensor
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), ids


def frame_labels(seed, split, number):
    """The ids of frame `number`; the first ones are dealt evenly, 43 frames at a time."""
    deck = np.random.RandomState([seed, split, number // 43, 43]).permutation(list(PALETTE))
    # The first label is dealt, the others are drawn; two fifths of those are adult-none.
    labels = [int(deck[number % 43])]
    rng = np.random.RandomState([seed, split, number, 0])
    for _ in range(rng.choice(4, p=LABELS_A_FRAME)):
        others = [i for i in PALETTE if i not in labels and i != ADULT_NONE]
        if ADULT_NONE not in labels and rng.rand() < EXTRA_ADULT_NONE:
            others = [ADULT_NONE]
        labels.append(int(others[rng.randint(len(others))]))
    return labels


def write_frame(root, seed, split, number, hint):
    """Write one video of one frame; returns its line in the csv and in the list."""
    labels = frame_labels(seed, split, number)
    rng = np.random.RandomState([seed, split, number, 1])
    digest = hashlib.sha256(f"{seed} {split} {number}".encode()).digest()
    video = base64.urlsafe_b64encode(digest)[:11].decode()  # looks like YouTube's
    if number % 16 == 3:
        video = "-" + video[1:]  # a trap of A2D's, in small sets too

    width, frames = int(rng.choice(list(WIDTHS), p=list(WIDTHS.values()))), rng.randint(24, 333)
    line = f"{video}/{rng.randint(1, frames + 1):05d}"
    image, ids = scene(labels, rng, width, hint)

    # The frame, and its map in A2D's colours.
    colours = np.zeros((256, 3), np.uint8)
    colours[list(COLOURS)] = list(COLOURS.values())
    for folder, picture in ("pngs320H", image), ("Annotations/col", Image.fromarray(colours[ids])):
        (root / folder / video).mkdir(parents=True)
        picture.save(root / folder / f"{line}.png", compress_level=1)

    main = next((i for i in labels if i % 10 != 9), labels[0])
    end = f"00:00:{frames // 30:02d}"
    return f"{video},{main},00:00:00,{end},{HEIGHT},{width},{frames},1,{split}\n", line


def generate(root, train=1024, val=256, seed=0, hint=0.7, progress=print):
    """Write the whole tree; `root` appears at the end, complete, or not at all.

    hint       probability in [0, 1] that an actor wears its hue of A2D's palette
    progress   called with a line of text, five times at most; None for silence
    raises     FileExistsError where `root` exists, OSError where it cannot be written
    """
    if min(train, val, seed) < 0 or not 0 <= hint <= 1:
        raise ValueError(f"train {train}, val {val}, seed {seed} must be >= 0, hint {hint} in 0..1")

    root, total = Path(root), train + val
    root.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(root.parent).free) < total * BYTES_A_FRAME:
        raise OSError(f"{total} frames take about {total * BYTES_A_FRAME / 1e9:.0f} GB, "
                      f"and {root.parent} has {free / 1e9:.0f} GB left")

    # Everything is made under another name, which is given up by whoever finds it stale.
    part, guard = (root.parent / f".{root.name}.{end}" for end in ("part", "lock"))
    with open(guard, "w") as lock, contextlib.ExitStack() as cleanup:
        if fcntl:  # one writer at a time; its lock dies with it, so what is found is stale
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
        cleanup.callback(lambda: root.exists() and guard.unlink(missing_ok=True))
        if root.exists():
            raise FileExistsError(f"{root} exists - choose another folder, or remove it")

        cleanup.callback(shutil.rmtree, part, ignore_errors=True)
        shutil.rmtree(part, ignore_errors=True)
        for folder in ("pngs320H", "Annotations/col", "list"):
            (part / folder).mkdir(parents=True)

        rows, start = [], time.monotonic()
        for split, (name, count) in enumerate((("train", train), ("val", val))):
            lines = []
            for number in range(count):
                row, line = write_frame(part, seed, split, number, hint)
                rows.append(row)
                lines.append(line)
                if progress and (len(rows) == total or len(rows) % -(-total // 4) == 0):
                    seconds = time.monotonic() - start
                    progress(f"demo scenes: {len(rows)} of {total} frames, {seconds:.0f} s, "
                             f"{seconds * (total / len(rows) - 1):.0f} s left, into {root}")

            (part / f"list/{name}.txt").write_text("\n".join(lines))  # no last newline
        (part / "videoset.csv").write_text("".join(rows))
        os.rename(part, root)


def cached(train=1024, val=256, seed=0, progress=print):
    """The scenes' folder in the user's cache, drawn on the first call; OSError where that fails."""
    name, named = f"a2d-demo/v{VERSION}-seed{seed}-{train}-{val}", os.environ.get("A2D_DEMO_CACHE")
    # A name for each drawing, so that what an older version drew is not taken for this one's.
    root = Path(name)
    try:
        root = (Path(named).expanduser() if named else cache_home()) / name
        if not root.is_dir():
            generate(root, train, val, seed, progress=progress)
    except (OSError, RuntimeError) as error:
        if not os.path.isdir(root):  # else another process has just finished it
            raise OSError(f"cannot draw the demo scenes - {root}: {error} - "
                          "set A2D_DEMO_CACHE to a folder with room for them") from error
    return root


def is_drawn(spec) -> bool:
    """Whether `--data` names the drawn scenes. A file called demo.csv is not them."""
    return spec.partition(":")[0] == "demo"


def resolve(spec):
    """What `--data` names, as a path: the folder of the drawn scenes for "demo" and
    "demo:TRAIN/VAL" (numbers of frames), which are drawn if need be; else spec as it is.

    raises  DataError: other words after "demo:"; OSError: they cannot be drawn
    """
    if not is_drawn(spec):
        return spec
    match = re.fullmatch(r"demo(?::([1-9][0-9]{,7})/([1-9][0-9]{,7}))?", spec)
    if not match:
        raise DataError(f"--data {spec}: must be demo or demo:TRAIN/VAL, two numbers of frames")
    return cached(*(int(n) for n in match.groups() if n))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the demo scenes in A2D's layout.")
    parser.add_argument("out", metavar="OUT", help="folder to make; must not exist")
    parser.add_argument("--train", type=int, default=1024, help="training frames (%(default)s)")
    parser.add_argument("--val", type=int, default=256, help="validation frames (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--hint", type=float, default=0.7,
                        help="probability that an actor wears its official hue (%(default)s)")
    args = parser.parse_args()
    try:
        generate(args.out, args.train, args.val, args.seed, args.hint)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:  # what was drawn is removed
        raise SystemExit(130) from None
    print(f"written: {args.out}, {args.train} training and {args.val} validation frames")
