"""Frames with several labels: A2D, a CSV of your own images, an unlabelled folder.

    python data.py A2D/              # check a data set as train.py would, and print what is in it

A2D: Xu, Hsieh, Xiong, Corso, "Can humans fly? Action understanding with multiple classes of
actors", CVPR 2015. 43 labels: the valid pairs of 7 actors and 8 actions or none; those of a frame
are the ids in its label map. A reader checks all files before it returns: every problem is in one
DataError. Only `order` draws, as a function of (seed, epoch): what a batch holds does not depend
on the number of workers, on a resume or on what was read before.

Differs from the course's loader: RGB in place of BGR, levels stay uint8 until the device, and 255
(not class 0, adult-climbing) stands where a label map says nothing.
"""

import argparse
import ctypes
import filecmp
import hashlib
import itertools
import json
import math
import os
import re
import signal
import stat
import sys
import time
import unicodedata
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

import layouts
from decoding import decode, opened, reduced_size, upright_size
from layouts import DataError, did_you_mean, some
from schema import in_a_line, is_name, visible

ACTORS = ("adult", "baby", "ball", "bird", "car", "cat", "dog")  # tens of an id, from 1
ACTIONS = ("climbing", "crawling", "eating", "flying", "jumping", "rolling", "running", "walking",
           "none")  # units of an id, from 1
COLOURS = {  # id: RGB in Annotations/col, from the colour map distributed with A2D
    11: (52, 1, 1), 12: (103, 1, 1), 13: (154, 1, 1), 15: (255, 1, 1), 16: (255, 51, 51),
    17: (255, 103, 103), 18: (255, 154, 154), 19: (255, 205, 205), 21: (52, 46, 1),
    22: (103, 92, 1), 26: (255, 235, 51), 28: (255, 245, 154), 29: (255, 250, 205),
    34: (41, 205, 1), 35: (52, 255, 1), 36: (92, 255, 51), 39: (215, 255, 205), 41: (1, 52, 36),
    43: (1, 154, 108), 44: (1, 205, 143), 45: (1, 255, 179), 46: (51, 255, 194),
    48: (154, 255, 225), 49: (205, 255, 240), 54: (1, 82, 205), 55: (1, 103, 255),
    56: (51, 133, 255), 57: (103, 164, 255), 59: (205, 225, 255), 61: (26, 1, 52),
    63: (77, 1, 154), 65: (128, 1, 255), 66: (154, 51, 255), 67: (179, 103, 255),
    68: (205, 154, 255), 69: (230, 205, 255), 72: (103, 1, 62), 73: (154, 1, 92),
    75: (255, 1, 153), 76: (255, 51, 174), 77: (255, 103, 194), 78: (255, 154, 215),
    79: (255, 205, 235)}
PALETTE = {i: (f"{ACTORS[i // 10 - 1]}-{ACTIONS[i % 10 - 1]}", c) for i, c in COLOURS.items()}
CLASSES = [name for _, (name, _) in sorted(PALETTE.items())]  # 43, in index order
NONE = 255  # in label maps: background, padding, ids outside the 43
# The report's greatest zoom shows a frame of 640 pixels, its shorter side, to an input of 224 pixel
# for pixel: what is larger is reduced as it is decoded. A2D's frames, of 320, never are.
SHOWN, SIZE = 640, 224
LONGEST_CHECK = 120  # seconds that decoding every image at the start may take
CHECK_INTERVAL = 5  # seconds between the lines of a check
PREFETCHED = 2  # batches that each worker is ahead
WORKER_SECONDS = 300  # a worker that brings no batch for so long has failed


class Batch(NamedTuple):
    """B frames of different size, padded at the right and at the bottom, never squashed."""

    index: torch.Tensor  # (B,) int64: positions in the data set
    frames: torch.Tensor  # (B, 3, H, W) uint8 RGB, padded with 0
    sizes: torch.Tensor  # (B, 2) int64: true (height, width), stays on the CPU
    labels: torch.Tensor | None  # (B, C) float32, 0 or 1
    label_maps: torch.Tensor | None  # (B, H, W) uint8 class index, 255 = none


# ------------------------------------------------------------------------------------ label maps


@cache
def _classes() -> tuple[np.ndarray, np.ndarray]:
    """Class index, 255 = none: of ids (256,), and of colours r << 16 | g << 8 | b (2^24,)."""
    of_id, of_colour = np.full(256, NONE, np.uint8), np.full(1 << 24, NONE, np.uint8)
    for index, (i, (_, (r, g, b))) in enumerate(sorted(PALETTE.items())):
        of_id[i] = of_colour[r << 16 | g << 8 | b] = index
    return of_id, of_colour


@contextmanager
def _matrix(path):
    """reS_id of a `mat` annotation, of which nothing is read yet: h5py shows it as (W, H), since
    MATLAB stores columns first."""
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path}: .mat label maps need h5py – pip install h5py") from None
    with h5py.File(path) as file:
        # It could lie in any other file, and one that is made of itself ends the process.
        is_link = not isinstance(file.get("reS_id", getlink=True), h5py.HardLink)
        matrix = None if is_link else file["reS_id"]
        if not isinstance(matrix, h5py.Dataset) or matrix.is_virtual or matrix.external:
            raise ValueError("it is no matrix of this file")
        yield matrix


def matrix_size(path) -> tuple[int, int]:
    """(height, width) of a `mat` annotation, by its header: few bytes can be unpacked to any size.
    """
    try:
        with _matrix(path) as matrix:
            width, height = matrix.shape
            # A part is unpacked as a whole, even if the matrix is smaller.
            largest = max(width * height, 1_000_000)
            if matrix.dtype.kind not in "iuf" or math.prod(matrix.chunks or ()) > largest:
                raise ValueError(f"{matrix.dtype} in parts of {matrix.chunks}")
            return height, width
    except DataError:
        raise
    except Exception as error:  # h5py raises nearly every type on what is no matrix
        raise DataError(f"{path}: no reS_id can be read ({error}) – replace it") from None


def read_label_map(path) -> tuple[np.ndarray, int]:
    """A2D annotation (`col` PNG or `mat` HDF5) -> (H, W) uint8 class index, 255 = none.

    Also returns how many pixels carry an id or a colour that is neither background nor one of the
    43: they become 255.
    """
    if str(path).endswith(".mat"):
        try:
            with _matrix(path) as matrix:
                ids = np.asarray(matrix[()]).T  # (H, W) float64
            whole = np.nan_to_num(ids, nan=NONE).clip(0, NONE).astype(np.uint8)
        except DataError:
            raise
        except Exception as error:  # likewise, and numpy
            raise DataError(f"{path}: no reS_id can be read ({error}) – replace it") from None

        # An id that is no whole number is as unknown as one outside the 43.
        label_map = np.where(whole == ids, _classes()[0][whole], NONE)
        background = ids == 0
    else:
        # A colour is one number of 24 bits, by which a table has its class.
        colour = decode(path).astype(np.int32)  # (H, W, 3)
        code = colour[:, :, 0] << 16 | colour[:, :, 1] << 8 | colour[:, :, 2]
        label_map = _classes()[1][code]
        background = code == 0
    return label_map, int(((label_map == NONE) & ~background).sum())


# ------------------------------------------------------------------------------------ data sets


def longest_shown(size) -> int | None:
    """Pixels of a frame's shorter side, beyond which an input of `size` pixels shows no more."""
    return None if size is None else max(SHOWN, SHOWN * size // SIZE)


class Frames(Dataset):
    """A checked list of frames; what A2D, CSVDataset and ImageFolder are.

    class_names  C names in index order
    rows         layouts.Row of each frame; its `name` is for people: "<video>/<frame>", a path
    labels       (N, C) float32 0/1 of the whole frame, or None where images are unlabelled
    size         pixels, of the network's input: frames that show no more than it can see are
                 reduced, as `decode` does; None: none is
    [i]          (i, frame (3, H, W) uint8, labels (C,) or None, label map (H, W) uint8 or None)

    keep="cpu" or a GPU holds every decoded frame there (uint8: A2D's training list is 2.6 GB, its
    label maps 0.9 GB), so that later epochs decode nothing.
    """

    def __init__(self, class_names, rows, labels=None, map_paths=None, keep=None, size=None,
                 problems=()):
        self.class_names, self.labels, self.map_paths = list(class_names), labels, map_paths
        self.names = [row.name for row in rows]
        self.paths = [row.path for row in rows]
        self.where = [row.where for row in rows]
        self.shorter = longest_shown(size)
        self.kept, self.keep = [None] * len(rows) if keep else None, keep
        self._check(list(problems))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        frame, label_map = self._read(i)[:2] if self.kept is None else self.kept[i]
        return i, frame, None if self.labels is None else self.labels[i], label_map

    def fingerprint(self, rows=None) -> str:
        """How many frames these, or those at `rows`, are, and a hash of their names and labels."""
        rows = range(len(self)) if rows is None else rows
        names = [self.names[i] for i in rows]
        digest = hashlib.sha256(json.dumps([names, self.class_names]).encode())
        if self.labels is not None:
            digest.update(self.labels[list(rows)].to(torch.uint8).numpy().tobytes())
        return f"{len(names)} frames, {digest.hexdigest()[:16]}"

    def identities(self) -> torch.Tensor:
        """(M,) int64 by which frames are known in any list; M = 0 where lists are fixed, as A2D's.
        """
        return torch.empty(0, dtype=torch.int64)

    def _read(self, i):
        """Frame, label map of its size, label map of the file, its number of pixels of other ids.
        """
        frame = torch.from_numpy(decode(self.paths[i], self.shorter))
        frame = frame.permute(2, 0, 1).contiguous()  # (3, H, W)
        if self.map_paths is None:
            return frame, None, None, 0
        path = self.map_paths[i]
        if path.endswith(".mat"):
            self._refuse_other_size(path, matrix_size(path), frame)
        full_map, unknown = read_label_map(path)
        self._refuse_other_size(path, full_map.shape, frame)
        label_map = torch.from_numpy(nearest(full_map, frame.shape[1:]))
        return frame, label_map, full_map, unknown

    def _refuse_other_size(self, path, size, frame):
        if reduced_size(size, self.shorter) != frame.shape[1:]:
            raise DataError(
                f"{path}: label map {size} for a frame of {tuple(frame.shape[1:])} (height, width) "
                "– extract the frames at their own size"
            )

    def _check(self, problems):
        """Decode everything once: find every unreadable file, fill `labels` from the label maps.

        What was found is remembered per list of (path, bytes, time) in the user's cache folder, so
        that the next start only looks at the files' sizes and times.
        """
        # Files that cannot be there, found without reading any; and a stamp of those that are.
        stamp, missing, faults = hashlib.sha256(b"index 2"), set(), []
        for i in range(len(self)):
            for file in self._files(i):
                try:
                    seen = os.stat(file)
                    stamp.update(f"{file}\0{seen.st_size}\0{seen.st_mtime_ns}\0".encode())
                    regular = stat.S_ISREG(seen.st_mode)  # opening a pipe would wait for ever
                    wrong = not regular and "is a folder or a device – name an image"
                except OSError as error:
                    wrong = f"{error.strerror} – restore it or drop the line"
                    if not file.isascii():  # an accent can be written in two ways that look alike
                        wrong += f"; the name is {ascii(os.path.basename(file))}"
                except UnicodeEncodeError:
                    wrong = "its name is not UTF-8 – rename it"
                if wrong:
                    missing.add(i)
                    faults.append((self.where[i], file, wrong))

        # What was found in these very files before, or else what is found now.
        index = f"{stamp.hexdigest()[:32]}.json"
        recalled = None if self.kept is not None or missing else _recall(index)
        found = recalled or self._decode_all(faults, missing)
        problems += merged(faults)
        if problems:
            raise DataError(*problems)
        if found is not recalled and found["decoded"]:
            _remember(index, found)

        # A frame's labels are the classes that its label map shows.
        if self.map_paths is not None:
            self.labels = torch.zeros(len(self), len(self.class_names))
            for row, present in zip(self.labels, found["present"], strict=True):
                row[present] = 1
            if not self.labels.any():
                raise DataError(
                    f"{self.map_paths[0]}: neither this label map nor another of its list shows one"
                    f" of the {len(self.class_names)} classes – restore A2D's Annotations/"
                )

        if found["unknown"]:
            warnings.warn(
                f"{len(found['unknown'])} label map(s) hold ids outside the "
                f"{len(self.class_names)} classes (first: {found['unknown'][0]}): ignored",
                stacklevel=4,
            )

    def _files(self, i):
        return [self.paths[i]] if self.map_paths is None else [self.paths[i], self.map_paths[i]]

    def _decode_all(self, faults, missing):
        """{"present": class indices of each label map, "unknown": paths of maps with other ids,
        "decoded": whether all files were, and not the headers of some alone}.
        """
        result = {"present": [], "unknown": [], "decoded": True}

        def look(i):
            if i in missing:
                return None, [], 0
            try:
                if not result["decoded"]:
                    with opened(self.paths[i], self.shorter):
                        return None, [], 0
                frame, label_map, full_map, unknown = self._read(i)
            except DataError as error:
                return error.problems[0], [], 0
            # With --cache what is decoded here is decoded for good.
            if self.kept is not None:
                self.kept[i] = [t if t is None else t.to(self.keep) for t in (frame, label_map)]
            present = [] if full_map is None else np.unique(full_map).tolist()
            return None, [c for c in present if c != NONE], unknown

        began = said = time.monotonic()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow releases the GIL
            for i, (error, present, unknown) in enumerate(pool.map(look, range(len(self)))):
                if error:
                    # It begins with the file's name, escaped as DataError does it.
                    start = in_a_line(f"{self.paths[i]}: ", layouts.LONGEST_PROBLEM)
                    file = self.paths[i]
                    if self.map_paths is not None and not error.startswith(start):
                        file = self.map_paths[i]
                        start = in_a_line(f"{file}: ", layouts.LONGEST_PROBLEM)
                    faults.append((self.where[i], file, error.removeprefix(start)))
                result["present"] += [present] if self.map_paths else []
                result["unknown"] += [self.map_paths[i]] if unknown else []

                # Tens of thousands of files take minutes, which would look like a hang.
                if time.monotonic() - said > CHECK_INTERVAL:
                    said = time.monotonic()
                    left = (said - began) / (i + 1) * (len(self) - i - 1)
                    print(f"checking images: {i + 1} of {len(self)}, {left:.0f} s left", flush=True)
                    needed = self.map_paths or self.kept is not None
                    if left > LONGEST_CHECK and result["decoded"] and not needed:
                        result["decoded"] = False
                        print("note: of the others only the headers are read now, so a damaged "
                              "image ends the run when it is met")  # fmt: skip
        return result


def merged(faults) -> list[str]:
    """A problem for each (where, file, what), or one for more than three files with one fault."""
    files = {}
    for _, file, what in faults:
        files.setdefault(what, []).append(file)

    problems = []
    for where, file, what in faults:
        alike = files[what]
        if len(alike) <= 3:
            problems.append(f"{where}: {file}: {what}")
        elif file == alike[0]:
            problems.append(f"{where}: {len(alike)} files: {what}: {some(alike, 3)}")
    return problems


def nearest(label_map, size):
    """(H, W) -> (h, w): of each cell of the smaller one, the label at its middle."""
    if tuple(size) == label_map.shape:
        return label_map
    rows, columns = (
        ((np.arange(n) + 0.5) * of / n).astype(int)
        for n, of in zip(size, label_map.shape, strict=True)
    )
    return label_map[rows][:, columns]


def cache_home():
    """$XDG_CACHE_HOME where it is absolute, as its specification asks, or else ~/.cache.

    raises     RuntimeError where the user has no home
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named) if os.path.isabs(named) else Path.home() / ".cache"


def cache_folder() -> Path:
    return cache_home() / "a2d-index"


def _recall(name):
    """What _remember has kept, or None: also where its bytes are no longer those."""
    try:
        digest, _, text = (cache_folder() / name).read_text().partition("\n")
    except (OSError, RuntimeError, ValueError):
        return None
    return json.loads(text) if hashlib.sha256(text.encode()).hexdigest() == digest else None


def _remember(name, found):
    """Atomic, and only a shortcut: one that cannot be written costs time, not results."""
    text = json.dumps(found)
    try:
        file = cache_folder() / name
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        os.replace(temporary, file)
    except (OSError, RuntimeError) as error:
        print(f"note: images are checked anew, since no index can be kept ({error}) – set "
              "XDG_CACHE_HOME to a folder that can be written")  # fmt: skip


class A2D(Frames):
    """A2D in its own layout; `root` is `Release/`, its parent, or the course's `A2D/`.

    split   "train", "val" or "test": the course's `list/<split>.txt` (4,750 / 1,309 / 1,044 frames,
            lines "<video>/<frame>"); without lists the official split of `videoset.csv`, where val
            is its test half (2,365 frames) and there is no third part
    source  frames `pngs320H/<video>/<frame>.png`; label maps `Annotations/col/….png`, or
            `Annotations/mat/….mat` where there is no `col` file
    """

    def __init__(self, root, split="train", keep=None, size=None):
        found = layouts.find_a2d(root)
        if found is None:
            raise DataError(f"{root}: no A2D tree – it must hold pngs320H/ and Annotations/")
        rows, maps, problems = layouts.read_a2d(found, split)
        super().__init__(CLASSES, rows, None, maps, keep, size, problems)


class Listed(Frames):
    """The frames of a layouts.Listing, with the labels that it gives them.

    split    train, val or test, of a listing that names none by its rows' names; None: all rows
    classes  names a checkpoint knows, in its order: other labels are then problems
    """

    def __init__(self, listing, split=None, classes=None, keep=None, size=None):
        problems = list(listing.problems)
        names = listing.classes if classes is None else classes
        if names is None:
            names = _sorted_classes(listing, problems)
        unnamed = listing.labelled() and not any(row.labels for row in listing.rows)
        if unnamed and classes is None and not problems:
            problems.append(f"{listing.source}: names no label in any row – fill the column labels")

        # Classes that a checkpoint or classes.txt names are all that there are.
        column = {name: i for i, name in enumerate(names)}
        unknown = {}  # label: the rows that have it
        for row in listing.rows:
            for name in row.labels:
                if name not in column:
                    unknown.setdefault(name, []).append(row.where)
        for name, places in unknown.items():
            more = f" (and {len(places) - 1} more rows)" if len(places) > 1 else ""
            hint = did_you_mean(name, names) if len(problems) < layouts.MAX_LISTED else ""
            problems.append(
                f"{places[0]}{more}: unknown label {name!r} – classes are {some(names)}{hint}"
            )

        rows = [row for row in listing.rows if split in (None, row.split_or_default())]
        if not rows and not problems:
            there = sorted({row.split_or_default() for row in listing.rows})
            wrong = f"no row is of split {split}, but of {some(there)} – add some, or take another"
            problems.append(f"{listing.source}: {wrong if there else 'has no row – add some'}")

        labels = None
        if listing.labelled():
            labels = torch.zeros(len(rows), len(names))
            for row, vector in zip(rows, labels, strict=True):
                vector[[column[name] for name in row.labels if name in column]] = 1
        self.hashes = None
        super().__init__(names, rows, labels, None, keep, size, problems)

    def identities(self):
        """(N,) int64, a hash of each file's name, size and end, which a copy of it has too."""
        if self.hashes is not None:  # they are asked for three times, and each reads all files
            return self.hashes
        hashes = []
        for path in self.paths:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 4096))
                digest = hashlib.blake2b(file.read(), digest_size=8)
            digest.update(os.fsencode(f"{os.path.basename(path)} {size}"))
            hashes.append(int.from_bytes(digest.digest(), "big", signed=True))
        self.hashes = torch.tensor(hashes)
        return self.hashes


class CSVDataset(Listed):
    """Your own images: a table `path,labels[,split]` or, of 0/1, `path,CLASS,CLASS…[,split]`.

    path     relative to the table's folder, or to `images`, staying below it (links are followed)
    labels   names separated by `|`, empty for none; classes are the names in `classes.txt` beside
             the table (one a line) or else every name in the file, sorted
    split    train, val or test; without it a fifth of the rows, by a hash of the path, is val

    layouts.py says what else is read. split=None takes every row.
    """

    def __init__(self, path, split=None, classes=None, keep=None, size=None, images=None):
        super().__init__(layouts.read_table(path, images, classes), split, classes, keep, size)


class ImageFolder(Listed):
    """Images without labels: every picture below a folder, by extension, sorted; or one file."""

    def __init__(self, path, class_names=(), keep=None, size=None):
        super().__init__(layouts.read_folder(path, ()), None, class_names, keep, size)


def _sorted_classes(listing, problems) -> list[str]:
    """The names that a listing itself has, sorted.

    Two that look alike are most likely one that was mistyped, and would be two classes.
    """
    seen = {}
    for name in sorted(listing.named):
        if not is_name(name):
            problems.append(f"{listing.named[name]}: no class can be called {name!r} – rename it")
        shape = unicodedata.normalize("NFKC", name).casefold().strip("\"'")
        shape = " ".join("".join(filter(str.isprintable, shape)).split())
        if number := re.fullmatch(r"0*(\d+)(\.0*)?", shape):
            shape = number[1]  # as pandas writes 1 as 1.0, beside a missing value
        other = seen.setdefault(shape, name)
        if other != name:
            problems.append(
                f"{listing.named[name]}: label {name!r} looks like {other!r} "
                f"({listing.named[other]}) – write both alike, or list both in classes.txt"
            )
    return sorted(listing.named)


def load(path, splits=("train", "val"), classes=None, keep=None, size=None, images=None, val=None):
    """Open an A2D tree, a table, or a folder of images, and say what is assumed of it.

    splits   train, val, test; None: val or, where the list names no splits, all rows
    classes  a checkpoint's class names: A2D's must equal them, other lists are read with them
    images   folder of a table's paths; None: the table's own
    val      table or folder with the validation frames: those at `path` are all trained on then
    returns  {split: Frames}; the split is "all" where it is of all rows, or has no labels
    raises   DataError with the problems of all splits together, frames in two splits among them
    """
    for flag, named in ("--data", path), ("--images", images), ("--val", val):
        if named is not None and not (named and os.path.exists(named)):
            raise DataError(
                f"{flag} {named}: does not exist, or may not be read – name an A2D tree, a .csv or "
                "a folder of images"
            )

    sets, problems = {}, []
    for split, open_split in _openings(path, splits, classes, images, val).items():
        try:
            sets[split] = open_split(keep=keep, size=size)
        except DataError as error:
            problems += error.problems

    # A frame that is trained on must not be scored.
    for (a, left), (b, right) in itertools.combinations(sets.items(), 2):
        place = dict(zip(map(os.path.realpath, left.paths), left.where, strict=True))
        problems += [
            f"{right.where[i]}: {right.names[i]} is also in {a} ({place[file]}) – keep it out of "
            f"{b}"
            for i, file in enumerate(map(os.path.realpath, right.paths))
            if file in place
        ]

    if problems:
        raise DataError(*dict.fromkeys(problems))
    for (a, left), (b, right) in itertools.combinations(sets.items(), 2):
        if line := _copies(a, left, b, right):
            print(line)
    for split, dataset in sets.items():
        if classes is not None and dataset.class_names != list(classes):
            raise DataError(f"{path} ({split}): its classes differ from the checkpoint's")
    return sets


def _copies(a, left, b, right) -> str:
    """A line on the frames of b that are copies, by name and bytes, of frames of a, or ""."""
    if not (isinstance(left, Listed) and isinstance(right, Listed)):
        return ""
    originals = {}
    for path, identity in zip(left.paths, left.identities().tolist(), strict=True):
        originals.setdefault(identity, []).append(path)

    copies = []
    rows = zip(right.names, right.paths, right.identities().tolist(), strict=True)
    for name, path, identity in rows:
        alike = originals.get(identity, [])  # they have one name, size and end
        if any(filecmp.cmp(path, other, shallow=False) for other in alike):
            copies.append(name)
    if not copies:
        return ""
    line = f"warning: copies of frames of {a} are in {b}, {len(copies)} of {len(right)}: "
    return visible(line + some(copies, 3))


def _openings(path, splits, classes, images, val):
    """{split: what opens it, if called with keep and size}, for `load`."""
    if layouts.find_a2d(path):
        if images or val:
            raise DataError("--images, --val: A2D has lists of its own – leave them out")
        return {split or "val": partial(A2D, path, split or "val") for split in splits}

    layouts.refuse_part_of_a2d(path)
    listing = layouts.read(path, images, classes)
    if val is None:
        chosen = choose_rows(listing, splits)
        say(listing)
        return {name: partial(Listed, listing, rows, classes) for name, rows in chosen.items()}

    # The classes are those of the training frames.
    names = listing.classes or sorted(listing.named)
    checked = layouts.read(val, images, names)
    if listing.has_splits() or checked.has_splits():
        listing.note("splits that a table names are not heeded, since --val names one")
    say(listing)
    say(checked)
    return {"train": partial(Listed, listing, None), "val": partial(Listed, checked, None, names)}


def say(listing):
    for note in listing.notes:
        print(visible(f"note: {note}"))


def choose_rows(listing, splits) -> dict[str, str | None]:
    """{name of a set: the split of its rows, or None for all of them}."""
    asked_for_one = len(splits) == 1 and splits[0] is not None
    is_whole = not (listing.labelled() or listing.has_splits())
    if is_whole and asked_for_one and not listing.problems:
        raise DataError(
            f"{listing.source}: has neither labels nor splits, so that --split {splits[0]} is no "
            "part of it – leave it out"
        )
    if not listing.labelled() and not (asked_for_one and listing.has_splits()):
        return {"all": None}
    if not listing.has_splits():
        if "val" in splits:
            listing.note("names no splits: a fifth of its rows, by a hash of the path, is val")
        return {split or "all": None if split in (None, "test") else split for split in splits}

    unsaid = sum(row.split is None for row in listing.rows)
    if unsaid:
        listing.note(f"{unsaid} rows name no split: by a hash of the path, a fifth of them is val")
    return {split or "val": split or "val" for split in splits}


# ------------------------------------------------------------------------------------ batches


def order(n: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch: a permutation of range(n) that depends on (n, seed, epoch) alone."""
    # Philox is a function of its key: no state is carried from one epoch to the next.
    key = np.array([seed, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(n).tolist()


def collate(samples) -> Batch:
    # Frames keep their size; what is padded here is left out again, by `sizes`.
    index, frames, labels, maps = zip(*samples, strict=True)
    sizes = torch.tensor([frame.shape[1:] for frame in frames])  # (B, 2)
    height, width = sizes.amax(0).tolist()

    def padded(tensors, fill):
        whole = tensors[0].new_full((len(tensors), *tensors[0].shape[:-2], height, width), fill)
        for part, tensor, (h, w) in zip(whole, tensors, sizes.tolist(), strict=True):
            if whole.is_cpu:  # torch would wake its threads for each frame: 2 to 4 ms a batch of 32
                part.numpy()[..., :h, :w] = tensor.numpy()
            else:
                part[..., :h, :w] = tensor
        return whole

    # A data set has labels and label maps for all of its frames, or for none.
    labels = None if labels[0] is None else torch.stack(labels)
    maps = None if maps[0] is None else padded(maps, NONE)
    batch = Batch(torch.tensor(index), padded(frames, 0), sizes, labels, maps)
    # What a worker sends is moved to shared memory here, where a lack of it is an error at once.
    if get_worker_info():
        for tensor in batch:
            if tensor is not None:
                tensor.share_memory_()
    return batch


def _worker(_):
    """Stopping is the parent's: a signal to the process group must not end its workers first, and
    a kill of the parent must not leave them: torch lets them look for it every five seconds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def chunks(items, size):
    """Lists of `size` items each, in order; the last one as short as it comes."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def shares(indices, batch_size, rank=0, ranks=1):
    """A rank's batches: of each batch_size x ranks indices every ranks-th, from the rank-th on.

    So all ranks have equally many batches, whose sizes differ by one at most, in the last one. A
    rank for which that has none gets the first index of it, which is another rank's.
    """
    groups = chunks(indices, batch_size * ranks)
    return [list(group[rank::ranks] or group[:1]) for group in groups]


def batches(dataset, indices, batch_size, workers=0, pin=False, rank=0, ranks=1) -> DataLoader:
    """Batches of `indices` in their order, the last one as short as it comes."""
    return DataLoader(
        dataset,
        batch_sampler=shares(indices, batch_size, rank, ranks),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        prefetch_factor=PREFETCHED if workers else None,
        timeout=WORKER_SECONDS if workers else 0,
        worker_init_fn=_worker,
    )


def to_device(batch: Batch, device) -> Batch:
    """Frames, labels, label maps on `device`, without waiting; sizes and index stay on the CPU."""
    parts = {name: getattr(batch, name) for name in ("frames", "labels", "label_maps")}
    parts = {k: t if t is None else t.to(device, non_blocking=True) for k, t in parts.items()}
    return batch._replace(**parts)


def take_over(tensors, stream):
    """The current stream of the GPU may read what another has made, or is going to make; the host
    waits for nothing. stream None: there is no GPU."""
    if stream is None:
        return
    current = torch.cuda.current_stream(stream.device)
    current.wait_stream(stream)
    for tensor in tensors:
        tensor.record_stream(current)  # so that its memory is not given away before its use


def describe(sets: dict[str, Frames]) -> str:
    """A line a split: frames, labels a frame, positives a class (fewest, median, most); then the
    classes, those that a split lacks, and a warning if most occur once."""
    lines, seen = [], Counter()
    for split, dataset in sets.items():
        line = f"{split} {len(dataset):,} frames"
        if dataset.labels is not None:
            # Rare classes are what a data set fails by, so the fewest positives are said.
            counts = dataset.labels.sum(0)
            positives = counts.sort().values
            line += (
                f", {dataset.labels.sum(1).mean():.2f} labels a frame, positives a class "
                f"{positives[0]:.0f} / {positives[len(positives) // 2]:.0f} / {positives[-1]:.0f}"
                f" (fewest / median / most of {len(positives)})"
            )
            seen.update(dict(zip(dataset.class_names, counts.int().tolist(), strict=True)))
        lines.append(line)

    if seen:
        lines.append("classes: " + some((f"{name} {count}" for name, count in seen.items()), 10))
    for split, dataset in sets.items():
        if dataset.labels is not None and not dataset.labels.any(0).all():
            absent = ~dataset.labels.any(0)
            names = [name for name, none in zip(dataset.class_names, absent, strict=True) if none]
            lines.append(f"{split} has no frame of {some(names, 10)}")
    several = "separate those of a frame by |, if they are several"
    if sum(count == 1 for count in seen.values()) > len(seen) / 2:
        lines.append(f"warning: most classes occur once – {several}")
    if sum(" " in name for name in seen) > len(seen) / 2:
        lines.append(f"warning: most class names hold a blank – {several}")
    return "\n".join(lines)


def describe_batches(dataset, batch_size, workers) -> str:
    """A line on the memory that decoded batches take, where it passes 1 GB, or ""."""
    sizes = []
    for path in dataset.paths[:: max(1, len(dataset) // 100)]:
        with opened(path, dataset.shorter) as image:
            sizes.append(reduced_size(upright_size(image), dataset.shorter))

    width, height = (max(sides) for sides in zip(*sizes, strict=True))
    channels = 3 if dataset.map_paths is None else 4
    frames = min(batch_size, len(dataset))
    batch = frames * width * height * channels
    waiting = PREFETCHED * workers + 1
    if batch * waiting < 1e9:
        return ""
    return (
        f"decoded frames take {batch * waiting / 1e9:.1f} GB of memory: {waiting} batches of "
        f"{frames} frames up to {width} x {height} – fewer --workers or a smaller --batch-size "
        "take less"
    )


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description="Check a data set and print what is in it.")
    parser.add_argument("data", help="A2D folder, .csv or folder of images, as for train.py --data")
    parser.add_argument("--images", help="as for train.py")
    parser.add_argument("--val", help="as for train.py")
    args = parser.parse_args(argv)
    try:
        print(visible(describe(load(args.data, size=SIZE, images=args.images, val=args.val))))
    except (DataError, MemoryError) as failure:
        print(f"data.py: {visible(str(failure))}", file=sys.stderr)
        return 3 if isinstance(failure, DataError) else 5
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    if sys.stdout:
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack a name's letters
    sys.exit(main())
