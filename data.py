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
import csv
import ctypes
import hashlib
import io
import itertools
import json
import os
import re
import signal
import stat
import sys
import time
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

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
MAX_PIXELS = 50_000_000  # an image is refused from its header above this: 150 MB as uint8 RGB
WORKER_SECONDS = 300  # a worker that brings no batch for so long has failed
MAX_LISTED = 50  # problems printed one by one; the rest are counted
EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class DataError(ValueError):
    """Input that cannot be used. `problems`: one line each, "where: what – what to do"."""

    exit_code = 3

    def __init__(self, *problems: str):
        self.problems = list(problems)
        lines = self.problems[:MAX_LISTED]
        if len(problems) > MAX_LISTED:
            lines.append(f"... and {len(problems) - MAX_LISTED} more")
        super().__init__(
            lines[0] if len(lines) == 1 else f"{len(problems)} problems:\n  " + "\n  ".join(lines)
        )


class Batch(NamedTuple):
    """B frames of different size, padded at the right and at the bottom, never squashed."""

    index: torch.Tensor  # (B,) int64: positions in the data set
    frames: torch.Tensor  # (B, 3, H, W) uint8 RGB, padded with 0
    sizes: torch.Tensor  # (B, 2) int64: true (height, width), stays on the CPU
    labels: torch.Tensor | None  # (B, C) float32, 0 or 1
    label_maps: torch.Tensor | None  # (B, H, W) uint8 class index, 255 = none


# ------------------------------------------------------------------------------------ decoding


def decode(path) -> np.ndarray:
    """Image file -> (H, W, 3) uint8 RGB, as `rgb` makes it.

    raises  DataError naming the file: unreadable, truncated, or refused by `rgb`
    """
    try:
        with Image.open(path) as image:
            return rgb(image, path)
    except (DataError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: {error} – scale it down") from None
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged bytes
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise DataError(f"{path}: cannot be read ({reason}) – replace or remove it") from None


def rgb(image, name="image") -> np.ndarray:
    """PIL image -> (H, W, 3) uint8 RGB.

    EXIF rotation is applied; palettes and CMYK are converted; alpha is composited over white (a
    transparent pixel's hidden colour is not image content); 16-bit grey keeps its upper 8 bits;
    of an animation the first picture is taken. Float images are refused: they have no agreed range.
    raises  DataError that begins with `name`: float pixels, or over MAX_PIXELS by its header
    """
    # The header says how large it is, before a pixel is decoded.
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name}: {width} x {height} pixels – scale it down to at most {MAX_PIXELS:,}"
        )

    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise DataError(f"{name}: float pixels have no agreed range – save as 8-bit")
    if image.mode.startswith("I"):
        grey = (np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)

    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


@cache
def _classes() -> tuple[np.ndarray, np.ndarray]:
    """Class index, 255 = none: of ids (256,), and of colours r << 16 | g << 8 | b (2^24,)."""
    of_id, of_colour = np.full(256, NONE, np.uint8), np.full(1 << 24, NONE, np.uint8)
    for index, (i, (_, (r, g, b))) in enumerate(sorted(PALETTE.items())):
        of_id[i] = of_colour[r << 16 | g << 8 | b] = index
    return of_id, of_colour


def read_label_map(path) -> tuple[np.ndarray, int]:
    """A2D annotation (`col` PNG or `mat` HDF5) -> (H, W) uint8 class index, 255 = none.

    Also returns how many pixels carry an id or a colour that is neither background nor one of the
    43: they become 255. MATLAB stores `reS_id` column first, so h5py shows it transposed.
    """
    if str(path).endswith(".mat"):
        try:
            import h5py
        except ImportError:
            raise DataError(f"{path}: .mat label maps need h5py – pip install h5py") from None
        try:
            with h5py.File(path) as file:
                ids = np.asarray(file["reS_id"][()]).T  # (H, W) float64
            whole = np.nan_to_num(ids, nan=NONE).clip(0, NONE).astype(np.uint8)
        except Exception as error:  # h5py and numpy raise nearly every type on what is no matrix
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


class Frames(Dataset):
    """A checked list of frames; what A2D, CSVDataset and ImageFolder are.

    class_names  C names in index order
    names        N ids for people: "<video>/<frame>", the CSV's path, the path below the folder
    labels       (N, C) float32 0/1 of the whole frame, or None where images are unlabelled
    [i]          (i, frame (3, H, W) uint8, labels (C,) or None, label map (H, W) uint8 or None)

    keep="cpu" or a GPU holds every decoded frame there (uint8: A2D's training list is 2.6 GB, its
    label maps 0.9 GB), so that later epochs decode nothing.
    """

    def __init__(self, class_names, names, paths, where, labels=None, map_paths=None, keep=None,
                 problems=()):
        self.class_names, self.names, self.labels = list(class_names), names, labels
        self.paths, self.map_paths, self.where = paths, map_paths, where  # where: "file:line"
        self.kept, self.keep = [None] * len(paths) if keep else None, keep
        self._check(list(problems))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        frame, label_map = self._read(i)[:2] if self.kept is None else self.kept[i]
        return i, frame, None if self.labels is None else self.labels[i], label_map

    def _read(self, i):
        frame = torch.from_numpy(decode(self.paths[i])).permute(2, 0, 1).contiguous()  # (3, H, W)
        if self.map_paths is None:
            return frame, None, 0
        label_map, unknown = read_label_map(self.map_paths[i])
        if label_map.shape != frame.shape[1:]:
            raise DataError(
                f"{self.map_paths[i]}: label map {label_map.shape} for a frame of "
                f"{tuple(frame.shape[1:])} (height, width) – extract the frames at their own size"
            )
        return frame, torch.from_numpy(label_map), unknown

    def _check(self, problems):
        """Decode everything once: find every unreadable file, fill `labels` from the label maps.

        What was found is remembered per list of (path, bytes, time) in the user's cache folder, so
        that the next start only looks at the files' sizes and times.
        """
        # Files that cannot be there, found without reading any; and a stamp of those that are.
        stamp, missing = hashlib.sha256(b"index 2"), set()
        for i, path in enumerate(self.paths):
            for file in [path] if self.map_paths is None else [path, self.map_paths[i]]:
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
                    problems.append(f"{self.where[i]}: {file}: {wrong}")

        # What was found in these very files before, or else what is found now.
        index = f"{stamp.hexdigest()[:32]}.json"
        recalled = None if self.kept is not None or missing else _recall(index)
        found = recalled or self._decode_all(problems, missing)
        if problems:
            raise DataError(*problems)
        if found is not recalled:
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

    def _decode_all(self, problems, missing):
        """{"present": class indices of each label map, "unknown": paths of maps with other ids}."""

        def look(i):
            if i in missing:
                return (), [], 0
            try:
                frame, label_map, unknown = self._read(i)
            except DataError as error:
                return error.problems, [], 0
            # With --cache what is decoded here is decoded for good.
            if self.kept is not None:
                self.kept[i] = [t if t is None else t.to(self.keep) for t in (frame, label_map)]
            present = [] if label_map is None else np.unique(label_map.numpy()).tolist()
            return (), [c for c in present if c != NONE], unknown

        result = {"present": [], "unknown": []}
        began = said = time.monotonic()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow releases the GIL
            for i, (errors, present, unknown) in enumerate(pool.map(look, range(len(self)))):
                problems += [f"{self.where[i]}: {error}" for error in errors]
                result["present"] += [present] if self.map_paths else []
                result["unknown"] += [self.map_paths[i]] if unknown else []
                # Tens of thousands of files take minutes, which would look like a hang.
                if time.monotonic() - said > 5:
                    said = time.monotonic()
                    left = (said - began) / (i + 1) * (len(self) - i - 1)
                    print(f"checking images: {i + 1} of {len(self)}, {left:.0f} s left", flush=True)
        return result


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


def _leaves_root(path: str) -> bool:
    """True for absolute paths, `..`, `~`, drive letters, backslashes, ""; links may leave."""
    return bool(re.match(r"[A-Za-z]:|/|~|$", path)) or "\\" in path or ".." in path.split("/")


class A2D(Frames):
    """A2D in its own layout; `root` is `Release/`, its parent, or the course's `A2D/`.

    split   "train", "val" or "test": the course's `list/<split>.txt` (4,750 / 1,309 / 1,044 frames,
            lines "<video>/<frame>"); without lists the official split of `videoset.csv`, where val
            is its test half (2,365 frames) and there is no third part
    source  frames `pngs320H/<video>/<frame>.png`; label maps `Annotations/col/….png`, or
            `Annotations/mat/….mat` where there is no `col` file
    """

    def __init__(self, root, split="train", keep=None):
        found = find_a2d(root)
        if found is None:
            raise DataError(f"{root}: no A2D tree – it must hold pngs320H/ and Annotations/")
        listed, problems = _a2d_list(found, split)
        # A name stands once, below the folders of A2D.
        seen = {}
        for where, name in listed:
            if _leaves_root(name) or name.count("/") != 1:
                problems.append(f"{where}: {name!r} is not <video>/<frame> – correct it")
            elif seen.setdefault(name, where) != where:
                problems.append(f"{where}: {name} stands already at {seen[name]} – drop one")

        # Label maps as colours, or as matrices where there are none.
        paths = [f"{found}/pngs320H/{name}.png" for name in seen]
        maps = [f"{found}/Annotations/col/{name}.png" for name in seen]
        for i, name in enumerate(seen):
            mat = f"{found}/Annotations/mat/{name}.mat"
            if not os.path.exists(maps[i]) and os.path.exists(mat):
                maps[i] = mat

        if not listed and not problems:
            problems.append(f"{found}: its {split} list is empty – restore it")
        names, where = list(seen), list(seen.values())
        super().__init__(CLASSES, names, paths, where, None, maps, keep, problems)


def find_a2d(root) -> Path | None:
    """The folder of an A2D tree at or below `root`, or None."""
    for folder in (Path(root), Path(root) / "Release", Path(root) / "A2D"):
        if os.path.isdir(folder / "pngs320H") and os.path.isdir(folder / "Annotations"):
            return folder
    return None


def _a2d_list(root, split):
    """[(where, "<video>/<frame>")] of one split, and the problems of the list itself."""
    # The course's lists, where there are any.
    file = root / "list" / f"{split}.txt"
    if os.path.exists(file):
        return _lines(file), []
    if os.path.exists(root / "list"):  # the official split would be another set of frames
        raise DataError(f"{file}: cannot be found – restore it or drop list/ to split officially")

    # Else the official split: all annotated frames of the videos that the last column names.
    file = root / "videoset.csv"
    if split not in ("train", "val") or not os.path.exists(file):
        raise DataError(f"{root}: has neither list/{split}.txt nor an official {split} split")

    listed, problems = [], []
    for where, line in _lines(file):
        row = [cell.strip() for cell in line.split(",")]
        if len(row) != 9 or row[8] not in ("0", "1") or _leaves_root(row[0]):
            problems.append(f"{where}: {line[:99]!r} – must be 9 columns, an id first, 0 or 1 last")
        elif row[8] == ("0" if split == "train" else "1"):
            maps = root / "Annotations"
            frames = {f.stem for f in (maps / "col" / row[0]).glob("[!.]*.png")}
            frames |= {f.stem for f in (maps / "mat" / row[0]).glob("[!.]*.mat")}
            listed += [(where, f"{row[0]}/{frame}") for frame in sorted(frames)]
            if not frames:
                problems.append(f"{where}: {row[0]} has no label map – restore it or drop the line")
    return listed, problems


def _lines(file) -> list[tuple[str, str]]:
    """[("file:line", text)] of the lines that are not blank."""
    lines = enumerate(_read_text(file).split("\n"), 1)
    return [(f"{file}:{n}", line.strip()) for n, line in lines if line.strip()]


def _read_text(file) -> str:
    try:
        text = Path(file).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{line}: not UTF-8 – save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror} – restore it, or make it readable") from None
    if wrong := re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", text):  # all but tab and \n
        line = text[: wrong.start()].count("\n") + 1
        raise DataError(f"{file}:{line}: holds the control character {wrong[0]!r} – remove it")
    return text


class CSVDataset(Frames):
    """Your own images: a UTF-8 CSV `path,labels[,split]` or, of 0/1, `path,CLASS,CLASS…[,split]`.

    path     relative to the CSV's folder, staying below it (links are followed)
    labels   names separated by `|`, empty for none; classes are the names in `classes.txt` beside
             the CSV (one a line) or else every name in the file, sorted
    split    train, val or test; without it a fifth of the rows, by a hash of the path, is val
    classes  names a checkpoint knows, in its order: other labels are then problems

    split=None takes every row.
    """

    def __init__(self, path, split=None, classes=None, keep=None):
        path, problems = Path(path), []
        rows, named = _csv_rows(path, problems)
        if classes is None:
            classes = _csv_classes(path, named, problems)
            if not problems and not any(row.labels for row in rows):
                problems.append(f"{path}: names no label in any row – fill the column labels")

        # Classes that a checkpoint or classes.txt names are all that there are.
        column = {name: i for i, name in enumerate(classes)}
        known = ", ".join(classes[:8]) + (" …" if len(classes) > 8 else "")
        for row in rows:
            for name in row.labels:
                if name not in column:
                    problems.append(f"{row.where}: unknown label {name!r} – classes are {known}")

        rows = [row for row in rows if split in (None, row.split)]
        if not rows and not problems:
            problems.append(f"{path}: no row is of split {split} – name some in a column split")

        labels = np.zeros((len(rows), len(classes)), np.float32)
        for row, vector in zip(rows, labels, strict=True):
            vector[[column[name] for name in row.labels if name in column]] = 1
        names, where = [row.path for row in rows], [row.where for row in rows]
        paths = [os.path.join(path.parent, name) for name in names]
        labels = torch.from_numpy(labels)
        super().__init__(classes, names, paths, where, labels, None, keep, problems)


def _csv_classes(path, named, problems):
    """The names in `classes.txt` beside the CSV or, sorted, those that it names itself."""
    file, first = path.parent / "classes.txt", {}
    if os.path.exists(file):
        for where, name in _lines(file):
            if first.setdefault(name, where) != where:
                problems.append(f"{where}: {name} stands already at {first[name]} – drop one")
        if not first:
            problems.append(f"{file}: names no class – write one a line, or remove the file")
        return list(first)

    # Two names that look alike are most likely one that was mistyped, and would be two classes.
    for name in sorted(named):
        shape = unicodedata.normalize("NFKC", name).casefold()
        other = first.setdefault("".join(filter(str.isprintable, shape)), name)
        if other != name:
            problems.append(
                f"{named[name]}: label {name!r} looks like {other!r} ({named[other]}) – write both "
                "alike, or list both in classes.txt"
            )
    return sorted(named)


class _Row(NamedTuple):
    where: str  # "file:line"
    path: str
    labels: list[str]
    split: str


def _csv_rows(path, problems):
    """([_Row] in file order, {label: where it stands first}); problems by line, column, value."""
    reader = csv.reader(io.StringIO(_read_text(path)), strict=True)
    rows, named, first, line = [], {}, {}, 1  # the line that a row begins at
    try:
        # The header: either one column of names, or a column for each class.
        header = [name.strip() for name in next(reader, [])]
        if "path" not in header or "" in header or not 2 <= len(set(header)) == len(header):
            raise DataError(
                f"{path}:1: the header must name path and labels, or a column a class, each once, "
                f"commas between them – it is {header[:8]}"
            )
        classes = [name for name in header if name not in ("path", "labels", "split")]
        if "labels" in header and classes:
            raise DataError(f"{path}:1: both `labels` and columns {classes[:5]} – keep one kind")
        named |= dict.fromkeys(classes, f"{path}:1")
        line += reader.line_num

        for cells in reader:
            where, lines = f"{path}:{line}", reader.line_num + 1 - line
            line += lines
            # A quotation mark that is never closed swallows the lines after it.
            if lines > 1:
                problems.append(f"{where}: a quoted cell goes on for {lines} lines – end it in one")
                continue
            if len(cells) != len(header):
                problems.append(f"{where}: {len(cells)} cells, {len(header)} columns – correct it")
                continue

            cell = dict(zip(header, (c.strip() for c in cells), strict=True))
            name, split = cell["path"], cell.get("split")
            if "labels" in header:
                labels = [label.strip() for label in cell["labels"].split("|") if label.strip()]
            else:
                labels = [c for c in classes if cell[c] == "1"]
                wrong = [c for c in classes if cell[c] not in ("0", "1")]
                problems += [f"{where}: column {c} is {cell[c]!r} – must be 0, 1" for c in wrong]
            for label in labels:
                named.setdefault(label, where)

            # One image in two rows would be in two splits, or have two sets of labels.
            file = os.path.normpath(name)  # ./a.png and b//../a.png are a.png too
            if _leaves_root(name):
                problems.append(f"{where}: path {name!r} – must name a file below the CSV's folder")
            elif file in first:
                problems.append(f"{where}: {name} stands already at {first[file]} – drop one")
            else:
                # Without a column, the split is the path's own: no new row changes that of another.
                first[file] = where
                if split is None:
                    split = "val" if hashlib.sha256(name.encode()).digest()[0] % 5 == 0 else "train"
                rows.append(_Row(where, name, labels, split))

            if split not in ("train", "val", "test", None):
                problems.append(f"{where}: column split is {split!r} – must be train, val, test")
    except csv.Error as error:
        problems.append(f"{path}:{line}: {error} – look for an odd quotation mark from here on")
    return rows, named


class ImageFolder(Frames):
    """Images without labels: every picture below a folder, by extension, sorted; or one file."""

    def __init__(self, path, class_names=(), keep=None):
        path, errors = Path(path), []
        single = path.is_file()
        top = path.parent if single else path
        walk = [(top, (), [path.name])] if single else os.walk(top, onerror=errors.append)
        files = [Path(folder, name) for folder, _, names in walk for name in names]
        files = sorted(file for file in files if file.suffix.lower() in EXTENSIONS)
        names, paths = [file.relative_to(top).as_posix() for file in files], list(map(str, files))
        problems = [f"{e.filename}: {e.strerror} – name a folder that can be read" for e in errors]
        if not files and not problems:
            problems = [f"{path}: no picture, of {', '.join(sorted(EXTENSIONS))}"]
        super().__init__(class_names, names, paths, names, keep=keep, problems=problems)


def load(path, splits=("train", "val"), classes=None, keep=None) -> dict[str, Frames]:
    """Open an A2D tree, a `.csv`, or a folder of images (split "all").

    classes  a checkpoint's class names: A2D's must equal them, a CSV is read with them
    raises   DataError with the problems of all splits together, frames in two splits among them
    """
    if not path or not os.path.exists(path):
        raise DataError(
            f"--data {path}: does not exist, or may not be read – name an A2D tree, a .csv or a "
            "folder of images"
        )

    # A CSV is known by its name, an A2D tree by its folders; all else is images without labels.
    path = Path(path)
    if path.suffix.lower() == ".csv" and path.is_file():
        opened = partial(CSVDataset, path, classes=classes, keep=keep)
    elif find_a2d(path):
        opened = partial(A2D, path, keep=keep)
    else:
        return {"all": ImageFolder(path, classes or (), keep)}

    sets, problems = {}, []
    for split in splits:
        try:
            sets[split] = opened(split=split)
        except DataError as error:
            problems += error.problems

    # A frame that is trained on must not be scored.
    for (a, left), (b, right) in itertools.combinations(sets.items(), 2):
        place = dict(zip(left.names, left.where, strict=True))
        problems += [
            f"{right.where[i]}: {name} is also in {a} ({place[name]}) – keep it out of {b}"
            for i, name in enumerate(right.names)
            if name in place
        ]

    if problems:
        raise DataError(*dict.fromkeys(problems))
    for split, dataset in sets.items():
        if classes is not None and dataset.class_names != list(classes):
            raise DataError(f"{path} ({split}): its classes differ from the checkpoint's")
    return sets


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
    return Batch(torch.tensor(index), padded(frames, 0), sizes, labels, maps)


def _worker(_):
    """Stopping is the parent's: a signal to the process group must not end its workers first, and
    a kill of the parent must not leave them (they would look after it every five seconds)."""
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
        timeout=WORKER_SECONDS if workers else 0,
        worker_init_fn=_worker,
    )


def to_device(batch: Batch, device, stream=None) -> Batch:
    """Frames, labels, label maps on `device`, without waiting; sizes and index stay on the CPU.

    stream  of the GPU, for the copies: they pass while the GPU is still at the steps before
    """
    parts = {name: getattr(batch, name) for name in ("frames", "labels", "label_maps")}
    with torch.cuda.stream(stream):
        parts = {k: t if t is None else t.to(device, non_blocking=True) for k, t in parts.items()}

    # What comes after on the current stream waits for the copies, and the host for nothing.
    if stream is not None:
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for tensor in parts.values():
            if tensor is not None:
                tensor.record_stream(current)  # so that its memory is not given away before its use
    return batch._replace(**parts)


def describe(sets: dict[str, Frames]) -> str:
    """One line a split: frames, labels a frame, positives a class (fewest, median, most)."""
    # Rare classes are what a data set fails by, so the fewest positives are said.
    lines = []
    for split, dataset in sets.items():
        line = f"{split} {len(dataset):,} frames"
        if dataset.labels is not None:
            positives = dataset.labels.sum(0).sort().values
            line += (
                f", {dataset.labels.sum(1).mean():.2f} labels a frame, positives a class "
                f"{positives[0]:.0f} / {positives[len(positives) // 2]:.0f} / {positives[-1]:.0f}"
                f" (fewest / median / most of {len(positives)})"
            )
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Check a data set and print what is in it.")
    parser.add_argument("data", help="A2D folder, .csv or folder of images, as for train.py --data")
    try:
        print(describe(load(parser.parse_args().data)))
    except (DataError, MemoryError) as failure:
        print(f"data.py: {failure}", file=sys.stderr)
        sys.exit(3 if isinstance(failure, DataError) else 5)
