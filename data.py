"""Frames with several labels: A2D, a CSV of your own images, an unlabelled folder, drawn scenes.

    python data.py A2D/              # check a data set as train.py would, and print what is in it

A2D: Xu, Hsieh, Xiong, Corso, "Can humans fly? Action understanding with multiple classes of
actors", CVPR 2015. 43 labels: the valid pairs of 7 actors and 8 actions or none; those of a frame
are the ids in its label map. A reader checks all files before it returns: every problem is in one
DataError. Only `order` draws, as a function of (seed, epoch): what a batch holds does not depend
on the number of workers, on a resume or on what was read before.

Differs from the course's loader: RGB in place of BGR, levels stay uint8 until the device, and 255
(not class 0, adult-climbing) stands where a label map says nothing.
"""

import csv
import ctypes
import hashlib
import itertools
import json
import os
import re
import signal
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch.utils.data import DataLoader, Dataset

import demo

CLASSES = [name for _, (name, _) in sorted(demo.PALETTE.items())]  # 43, in index order
NONE = 255  # in label maps: background, padding, ids outside the 43
MAX_PIXELS = 50_000_000  # an image is refused from its header above this: 150 MB as uint8 RGB
WORKER_SECONDS = 300  # a worker that brings no batch for so long has failed
MAX_LISTED = 50  # problems printed one by one; the rest are counted
EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class DataError(ValueError):
    """Input that cannot be used. `problems`: one line each, "where: what – what to do"."""

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
    """Image file -> (H, W, 3) uint8 RGB.

    EXIF rotation is applied; palettes and CMYK are converted; alpha is composited over white (a
    transparent pixel's hidden colour is not image content); 16-bit grey keeps its upper 8 bits;
    of an animation the first picture is taken. Float images are refused: they have no agreed range.
    raises  DataError naming the file: unreadable, truncated, over MAX_PIXELS by its header
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(
                    f"{path}: {width} x {height} pixels – scale it down to at most {MAX_PIXELS:,}"
                )
            image = ImageOps.exif_transpose(image)
            if image.mode == "F":
                raise DataError(f"{path}: float pixels have no agreed range – save as 8-bit")
            if image.mode.startswith("I"):
                grey = (np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except (DataError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: {error} – scale it down") from None
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged bytes
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise DataError(f"{path}: cannot be read ({reason}) – replace or remove it") from None


@cache
def _class_of_colour() -> np.ndarray:
    table = np.full(1 << 24, NONE, np.uint8)
    for index, (_, (_, (r, g, b))) in enumerate(sorted(demo.PALETTE.items())):
        table[r << 16 | g << 8 | b] = index
    return table


@cache
def _class_of_id() -> np.ndarray:
    table = np.full(256, NONE, np.uint8)
    table[sorted(demo.PALETTE)] = np.arange(len(CLASSES))
    return table


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
                ids = np.asarray(file["reS_id"][()]).T.astype(np.int64)
        except (OSError, KeyError) as error:
            raise DataError(f"{path}: no reS_id can be read ({error}) – replace it") from None
        known = (ids >= 0) & (ids < 256)
        label_map = np.where(known, _class_of_id()[np.where(known, ids, 0)], NONE).astype(np.uint8)
        background = ids == 0
    else:
        colour = decode(path).astype(np.int32)  # (H, W, 3)
        code = colour[:, :, 0] << 16 | colour[:, :, 1] << 8 | colour[:, :, 2]
        label_map = _class_of_colour()[code]
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
        stamp, missing = hashlib.sha256(b"index 1"), set()
        for i, path in enumerate(self.paths):
            for file in [path] if self.map_paths is None else [path, self.map_paths[i]]:
                try:
                    stat = os.stat(file)
                    stamp.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
                    wrong = os.path.isdir(file) and "is a folder – name an image"
                except OSError as error:
                    wrong = f"{error.strerror} – restore it or drop the line"
                if wrong:
                    missing.add(i)
                    problems.append(f"{self.where[i]}: {file}: {wrong}")
        index = cache_folder() / f"{stamp.hexdigest()[:32]}.json"
        recalled = None if self.kept is not None or missing else _recall(index)
        found = recalled or self._decode_all(problems, missing)
        if problems:
            raise DataError(*problems)
        if found is not recalled:
            _remember(index, found)
        if self.map_paths is not None:
            self.labels = torch.zeros(len(self), len(self.class_names))
            for row, present in zip(self.labels, found["present"], strict=True):
                row[present] = 1
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
            if self.kept is not None:
                self.kept[i] = [t if t is None else t.to(self.keep) for t in (frame, label_map)]
            present = [] if label_map is None else np.unique(label_map.numpy()).tolist()
            return (), [c for c in present if c != NONE], unknown

        result = {"present": [], "unknown": []}
        began = said = time.monotonic()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow releases the GIL
            for i, (errors, present, unknown) in enumerate(pool.map(look, range(len(self)))):
                problems += [f"{self.where[i]}: {error}" for error in errors]
                result["present"].append(present)
                result["unknown"] += [self.map_paths[i]] if unknown else []
                if time.monotonic() - said > 5:
                    said = time.monotonic()
                    left = (said - began) / (i + 1) * (len(self) - i - 1)
                    print(f"checking images: {i + 1} of {len(self)}, {left:.0f} s left", flush=True)
        return result


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "a2d-index"


def _recall(file: Path):
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def _remember(file: Path, found):
    """Atomic, and only a shortcut: one that cannot be written costs time, not results."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(found))
        os.replace(temporary, file)
    except OSError as error:
        print(f"note: {file.parent} cannot be written ({error.strerror}); images are checked anew")


def _leaves_root(path: str) -> bool:
    """True for absolute paths, `..`, `~`, drive letters, backslashes, NUL; links may leave."""
    return bool(re.match(r"[A-Za-z]:|/|~|$", path)) or "\0" in path or "\\" in path or (
        ".." in path.split("/")
    )


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
        names, where, paths, maps, seen = [], [], [], [], {}
        for place, name in listed:
            if _leaves_root(name) or name.count("/") != 1:
                problems.append(f"{place}: {name!r} is not <video>/<frame>")
            elif name in seen:
                problems.append(f"{place}: {name} stands already at {seen[name]} – drop one")
            else:
                seen[name] = place
                names.append(name)
                where.append(place)
                paths.append(str(found / "pngs320H" / f"{name}.png"))
                col = found / f"Annotations/col/{name}.png"
                mat = found / f"Annotations/mat/{name}.mat"
                maps.append(str(mat if mat.exists() and not col.exists() else col))
        if not listed:
            problems.append(f"{found}: its {split} list is empty")
        super().__init__(CLASSES, names, paths, where, None, maps, keep, problems)


def find_a2d(root) -> Path | None:
    """The folder of an A2D tree at or below `root`, or None."""
    for folder in (Path(root), Path(root) / "Release", Path(root) / "A2D"):
        if (folder / "pngs320H").is_dir() and (folder / "Annotations").is_dir():
            return folder
    return None


def _a2d_list(root, split):
    """[(where, "<video>/<frame>")] of one split, and the problems of the list itself."""
    file = root / "list" / f"{split}.txt"
    if file.exists():
        lines = enumerate(_read_text(file).splitlines(), 1)
        return [(f"{file}:{n}", line.strip()) for n, line in lines if line.strip()], []
    file = root / "videoset.csv"
    if split not in ("train", "val") or not file.exists():
        raise DataError(f"{root}: has neither list/{split}.txt nor an official {split} split")
    listed, problems = [], []
    for n, row in enumerate(csv.reader(_read_text(file).splitlines()), 1):
        if len(row) != 9 or row[8] not in ("0", "1") or _leaves_root(row[0]):
            problems.append(f"{file}:{n}: {row} – must be 9 columns, an id first, 0 or 1 last")
        elif row[8] == ("0" if split == "train" else "1"):
            folders = (root / "Annotations" / kind / row[0] for kind in ("col", "mat"))
            frames = {f.stem for d in folders if d.is_dir() for f in d.iterdir()}
            listed += [(f"{file}:{n}", f"{row[0]}/{frame}") for frame in sorted(frames)]
            if not frames:
                problems.append(f"{file}:{n}: {row[0]} has no label map below Annotations/")
    return listed, problems


def _read_text(file) -> str:
    try:
        text = Path(file).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{line}: not UTF-8 – save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"{file}:{line}: holds a NUL byte – it is no text file")
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
        rows = _csv_rows(path, problems)
        names_file = path.parent / "classes.txt"
        if classes is None and names_file.exists():
            classes = [line.strip() for line in _read_text(names_file).splitlines() if line.strip()]
        if classes is None:
            classes = sorted({name for row in rows for name in row.labels})
        column = {name: i for i, name in enumerate(classes)}
        for row in rows:
            problems += [
                f"{row.where}: unknown label {name!r} – the classes are {', '.join(classes[:8])}"
                + (" …" if len(classes) > 8 else "")
                for name in row.labels
                if name not in column
            ]
        if not classes and not problems:
            problems.append(f"{path}: names no label in any row")
        rows = [row for row in rows if split is None or row.split == split]
        if not rows and not problems:
            problems.append(f"{path}: no row is of split {split}")
        labels = torch.zeros(len(rows), len(classes))
        for vector, row in zip(labels, rows, strict=True):
            vector[[column[name] for name in row.labels if name in column]] = 1
        names = [row.path for row in rows]
        paths = [str(path.parent / name) for name in names]
        where = [row.where for row in rows]
        super().__init__(classes, names, paths, where, labels, None, keep, problems)


class _Row(NamedTuple):
    where: str
    path: str
    labels: list[str]
    split: str


def _csv_rows(path, problems) -> list[_Row]:
    """Rows in file order; adds to `problems` what is wrong with them: line, column, value."""
    reader = csv.reader(_read_text(path).splitlines(keepends=True), strict=True)
    rows, first = [], {}
    try:
        header = [name.strip() for name in next(reader, [])]
        if "path" not in header or "" in header or not 2 <= len(set(header)) == len(header):
            raise DataError(f"{path}:1: the header must name path and labels, or a column a class")
        classes = [name for name in header if name not in ("path", "labels", "split")]
        if "labels" in header and classes:
            raise DataError(f"{path}:1: both `labels` and columns {classes[:5]} – keep one kind")
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if len(cells) != len(header):
                problems.append(f"{where}: {len(cells)} cells for {len(header)} columns")
                continue
            cell = dict(zip(header, (c.strip() for c in cells), strict=True))
            name, split = cell["path"], cell.get("split")
            if "labels" in header:
                labels = [label.strip() for label in cell["labels"].split("|") if label.strip()]
            else:
                labels = [c for c in classes if cell[c] == "1"]
                wrong = [c for c in classes if cell[c] not in ("0", "1")]
                problems += [f"{where}: column {c} is {cell[c]!r} – must be 0, 1" for c in wrong]
            if _leaves_root(name):
                problems.append(f"{where}: path {name!r} leaves the folder of the CSV")
            elif name in first:
                problems.append(f"{where}: {name} stands at line {first[name]} too – drop one")
            else:
                first[name] = reader.line_num
                if split is None:
                    split = "val" if hashlib.sha256(name.encode()).digest()[0] % 5 == 0 else "train"
                rows.append(_Row(where, name, labels, split))
            if split not in ("train", "val", "test", None):
                problems.append(f"{where}: column split is {split!r} – must be train, val, test")
    except csv.Error as error:
        problems.append(f"{path}:{reader.line_num}: {error}")
    return rows


class ImageFolder(Frames):
    """Images without labels: every picture below a folder, by extension, sorted; or one file."""

    def __init__(self, path, class_names=(), keep=None):
        path = Path(path)
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        files = [file for file in files if file.suffix.lower() in EXTENSIONS and not file.is_dir()]
        names = [file.relative_to(path).as_posix() if file != path else file.name for file in files]
        paths = [str(file) for file in files]
        problems = [] if files else [f"{path}: no picture, of {', '.join(sorted(EXTENSIONS))}"]
        super().__init__(class_names, names, paths, names, keep=keep, problems=problems)


def _demo(spec):
    """"demo", or "demo:TRAIN/VAL" for other numbers of frames."""
    match = re.fullmatch(r"demo(?::(\d+)/(\d+))?", spec)
    if not match:
        raise DataError(f"--data {spec}: must be demo or demo:TRAIN/VAL, two numbers of frames")
    return demo.cached(*(int(n) for n in match.groups() if n))


def load(spec, splits=("train", "val"), classes=None, keep=None) -> dict[str, Frames]:
    """Open what `--data` names: "demo", an A2D tree, a `.csv`, or a folder of images (split "all").

    classes  a checkpoint's class names: A2D's must equal them, a CSV is read with them
    raises   DataError with the problems of all splits together, frames in two splits among them
    """
    path = _demo(spec) if spec.split(":")[0] == "demo" else Path(spec)
    if not path.exists():
        raise DataError(f"{path}: does not exist – name an A2D tree, a .csv or a folder of images")
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
    key = np.array([seed, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(n).tolist()


def collate(samples) -> Batch:
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


def shares(indices, batch_size, rank=0, ranks=1):
    """A rank's batches: of each batch_size x ranks indices every ranks-th, from the rank-th on.

    So all ranks have equally many batches, whose sizes differ by one at most, in the last one. A
    rank for which that has none gets the first index of it, which is another rank's.
    """
    span = batch_size * ranks
    groups = [indices[i : i + span] for i in range(0, len(indices), span)]
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
    if stream is not None:
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for tensor in parts.values():
            if tensor is not None:
                tensor.record_stream(current)  # so that its memory is not given away before its use
    return batch._replace(**parts)


def describe(sets: dict[str, Frames]) -> str:
    """One line a split: frames, labels a frame, positives a class (fewest, median, most)."""
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


def write_page(path, pictures, captions, columns=6):
    """An image file of (H, W, 3) uint8 pictures, each above its lines of (text, colour)."""
    width, height, line = 288, 164, 12  # pixels of a cell's picture, of a line of text
    lines = max(len(caption) for caption in captions)
    cell = height + line * lines + 8
    sheet = Image.new("RGB", (width * columns, cell * -(-len(pictures) // columns)), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = k % columns * width, k // columns * cell
        picture = ImageOps.contain(Image.fromarray(picture), (width - 8, height - 4))
        sheet.paste(picture, (x + 4, y + 4))
        for n, (text, colour) in enumerate(caption):
            pen.text((x + 4, y + height + n * line), text, colour, font=ImageFont.load_default())
    sheet.save(path)


if __name__ == "__main__":
    try:
        print(describe(load(sys.argv[1] if len(sys.argv) == 2 else "demo")))
    except DataError as failure:
        sys.exit(f"data: {failure}")
