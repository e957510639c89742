"""Whole runs that are killed, stopped, starved and spread: rows F1 to F34 of tests/README.md.

Runs are forked from this process, which has torch loaded already, and faults are planted in the
child: the program has no hooks for tests.
"""

import contextlib
import ctypes
import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_train import ROOT, SMALL, same, schedule, trainer_of, weights

import augment
import checkpoint
import data
import distributed
import evaluate
import metrics
import model
import pictures
import progress
import train
from tests import bench_step, plain
from tests.processes import ended, fork, wait_until

pytestmark = pytest.mark.usefixtures("own_cache", "signals")

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000  # of Linux: a process's own mounts, and users
FLAGS = [*SMALL, "--deterministic", "--epochs", "3", "--t-max", "0"]


def trained(scenes, out, *flags, plant=None):
    """(exit code, what was printed) of a training, forked if a fault is planted in it."""
    log, command = Path(f"{out}.log"), [*FLAGS, "--data", str(scenes), "--out", str(out), *flags]

    def child():
        plant()
        return train.main(command)

    if plant:
        code = ended(fork(child, log))
    else:
        with open(log, "w") as file, redirect_stdout(file), redirect_stderr(file):
            code = train.main(command)
    text = log.read_text()
    assert "Traceback" not in text, text
    return code, text


def before(owner, name, action, call=1):
    """Have `action` done right before the given call of owner.name, counted from 1."""
    real, calls = getattr(owner, name), itertools.count(1)

    def planted(*args, **kwargs):
        if next(calls) == call:
            action()
        return real(*args, **kwargs)

    setattr(owner, name, planted)


def kill_self(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def whole(scenes, tmp_path_factory):
    """The run that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    code, text = trained(scenes, out)
    assert code == 0, text
    return out


# ------------------------------------------------------------------- F1, F2: killed and restarted


@pytest.mark.parametrize("is_best", [False, True])
def test_f1_a_kill_before_any_system_call_of_a_save(tmp_path, is_best):
    """os.link, fsync, replace, unlink and the write itself, one after the other. Whatever is left,
    best.pt is the one that last.pt names once the run is opened."""
    calls = [(os, "fsync"), (os, "replace"), (os, "link"), (Path, "unlink"), (os, "open")]

    def save(run, step):
        best = step if is_best else 1
        run.save(plain.a_checkpoint(step, step, best), best == step)

    for kill_at in range(1, 40):
        folder = tmp_path / str(kill_at)
        run = checkpoint.Run(folder, False)
        save(run, 1)
        save(run, 2)
        run.lock.close()

        def child(folder=folder, kill_at=kill_at):
            count, run = itertools.count(1), checkpoint.Run(folder, True)

            def counted(real):
                def call(*args, **kwargs):
                    if next(count) == kill_at:
                        kill_self(signal.SIGKILL)
                    return real(*args, **kwargs)

                return call

            for owner, name in calls:
                setattr(owner, name, counted(getattr(owner, name)))
            save(run, 3)

        code = ended(fork(child, tmp_path / "log"))
        last, previous = (checkpoint.load(folder / name) for name in ("last.pt", "last.prev.pt"))
        for loaded in (last, previous, checkpoint.load(folder / "best.pt")):
            assert (loaded["model"]["weights"] == loaded["epoch"]).all()
        assert previous["epoch"] <= last["epoch"] <= 3 and last["epoch"] >= 2
        saved = checkpoint.Run(folder, "same").saved
        best = checkpoint.load(folder / "best.pt")
        assert best["epoch"] == saved["best"]["epoch"] == (last["epoch"] if is_best else 1)
        if code == 0:
            assert last["epoch"] == 3
            break
        assert code == -signal.SIGKILL
    assert code == 0 and kill_at > (12 if is_best else 6)  # there were as many moments


@pytest.mark.parametrize("kills, flags", [
    (10, ["--epochs", "9"]),
    pytest.param(40, ["--epochs", "40"], marks=pytest.mark.slow),
    pytest.param(8, ["--epochs", "10", "--workers", "2", "--cache", "off"], marks=pytest.mark.slow),
])  # fmt: skip
def test_f2_random_kills_end_with_the_same_bits(scenes, tmp_path, kills, flags):
    """A short training that saves after every epoch, killed often, then left to finish."""
    flags = [*flags, "--t-max", "9"]
    code, _ = trained(scenes, tmp_path / "whole", *flags)
    assert code == 0
    out, rng, killed, begun = tmp_path / "run", random.Random(0), 0, 0

    def child():
        command = [*FLAGS, *flags, "--data", str(scenes), "--out", str(out), "--resume"]
        return train.main(command)

    while killed < kills:
        process = fork(child, tmp_path / "log")
        begun += 1
        time.sleep(rng.uniform(0.05, 0.4))
        if os.waitpid(process, os.WNOHANG)[0]:
            shutil.rmtree(out)  # it got to the end: once more from the start
            continue
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        killed += 1
        for name in ("last.pt", "last.prev.pt", "best.pt"):
            if (out / name).exists():
                checkpoint.load(out / name)
    assert ended(fork(child, tmp_path / "log")) == 0
    assert same(weights(tmp_path / "whole/last.pt"), weights(out / "last.pt"))
    assert same(weights(tmp_path / "whole/best.pt"), weights(out / "best.pt"))
    rows = [[row["epoch"] for row in checkpoint.read_log(tmp_path / name / "log.jsonl")]
            for name in ("whole", "run")]  # fmt: skip
    assert rows[0] == rows[1] == list(range(1, len(rows[0]) + 1))


# ------------------------------------------------------------ F10 to F16: network, disks, signals


@pytest.mark.parametrize(
    "flags", ["--arch tiny --dry-run", "--arch resnet34 --weights none --dry-run",
              "--arch resnet34 --steps 1"],
)  # fmt: skip
def test_f10_a_run_without_published_weights_connects_to_nothing(tmp_path, monkeypatch, flags):
    monkeypatch.setenv("A2D_DEMO_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(bench_step, "ROUNDS", 1)
    monkeypatch.setattr(bench_step, "TIMM_NAMES", {})

    def connected():
        raise AssertionError("a connection")

    def child():
        for name in ("connect", "connect_ex"):
            before(socket.socket, name, connected)
        program = bench_step if "--steps" in flags else train
        return program.main(f"{flags} --data demo:8/4 --image-size 32 --batch-size 4".split())

    code = ended(fork(child, tmp_path / "log"))
    assert code == 0, (tmp_path / "log").read_text()


def limited_disk(size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_f11_a_full_disk_costs_warnings_and_code_5_but_no_checkpoint(scenes, whole, tmp_path):
    """The disk is full from the second epoch on."""
    out = tmp_path / "run"
    code, text = trained(
        scenes, out,
        plant=lambda: before(checkpoint.Run, "save", lambda: limited_disk(30_000), call=3),
    )  # fmt: skip
    assert code == 5 and text.count("warning") >= 2 and "make room" in text
    assert checkpoint.load(out / "last.pt")["epoch"] == 1
    assert checkpoint.load(out / "best.pt")["epoch"] >= 1 and not list(out.glob(".*.tmp"))
    assert trained(scenes, out, "--resume")[0] == 0
    assert same(weights(whole / "last.pt"), weights(out / "last.pt"))


def scored(*f1):
    """The epochs of a training have these F1, whatever the network says."""
    real, left = evaluate.score, list(f1)

    def score(*args, **options):
        report = real(*args, **options)
        if left and len(args) == 4:  # those of train.py, after an epoch
            report["samples"]["f1"] = left.pop(0)
        return report

    evaluate.score = score


def no_room_for(name, calls):
    """The disk is full for this file in these writes, counted from 1, and has room for others."""
    real, count = checkpoint.write, itertools.count(1)

    def write(path, parts):
        if Path(path).name == name and next(count) in calls:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, parts)

    checkpoint.write = write


def history(out):
    """The epoch of last.pt, its best one, that of best.pt, and whether they are of one history."""
    last, best = (checkpoint.load(out / name) for name in ("last.pt", "best.pt"))
    belong = last["best_sha256"] == checkpoint.sha256_in(out / "best.pt")
    return last["epoch"], last["best"]["epoch"], best["epoch"], belong


def test_f11_a_best_epoch_without_room_is_written_as_soon_as_there_is_some(scenes, tmp_path):
    """best.pt of epoch 2 finds no room, and last.pt would: neither is written, both after epoch 3.
    """
    def plant():
        scored(0.1, 0.9, 0.2)
        no_room_for("best.pt", {2})

    out = tmp_path / "run"
    code, text = trained(scenes, out, plant=plant)
    assert code == 0 and text.count("warning: ") == 1 and "No space left" in text
    assert history(out) == (3, 2, 2, True)
    assert "epoch 2, the best, on 9" in text


def test_f11_a_best_epoch_that_never_finds_room_is_redone(scenes, tmp_path):
    """Then the run ends with code 5, and a resume does what it has not kept."""
    out = tmp_path / "run"
    plants = [lambda: no_room_for("best.pt", {2, 3}), lambda: no_room_for("last.pt", {3, 4})]
    for name, plant in zip(("best", "last"), plants, strict=True):
        out = tmp_path / name
        code, text = trained(scenes, out, plant=lambda p=plant: (scored(0.1, 0.9, 0.2), p()))
        assert code == 5 and "make room" in text
        assert checkpoint.load(out / "last.pt")["epoch"] == 1
        code, text = trained(scenes, out, "--resume", plant=lambda: scored(0.9, 0.2))
        assert code == 0 and "epoch 2, the best, on 9" in text
        assert ("restored" in text) == (name == "last")
        assert history(out) == (3, 2, 2, True)
    best = [weights(tmp_path / name / "best.pt") for name in ("best", "last")]
    assert same(*best)


def test_f2_an_override_reports_no_epoch_of_an_abandoned_history(scenes, tmp_path):
    """Killed after best.pt of epoch 2 and before last.pt; epoch 2 is another one then, and worse.
    """
    out = tmp_path / "run"

    def plant():
        scored(0.1, 0.9)
        before(checkpoint, "save", lambda: kill_self(signal.SIGKILL), call=3)

    assert trained(scenes, out, plant=plant)[0] == -signal.SIGKILL
    assert checkpoint.load(out / "best.pt")["epoch"] == 2
    flags = ["--resume", "override", "--lr", "0.01"]
    code, text = trained(scenes, out, *flags, plant=lambda: scored(0.05, 0.02))
    assert code == 0 and "restored, as last.pt names it" in text
    assert history(out) == (3, 1, 1, True)
    assert "epoch 1, the best, on 9" in text


def test_f6_the_last_pt_before_has_its_best_too(scenes, tmp_path):
    """What a message on a damaged last.pt offers, after a best epoch."""
    out = tmp_path / "run"
    trained(scenes, out, plant=lambda: scored(0.1, 0.2, 0.9))
    shutil.copy(out / "last.prev.pt", out / "last.pt")
    code, text = trained(scenes, out, "--resume", plant=lambda: scored(0.05))
    assert code == 0 and "epoch 2, the best, on 9" in text
    assert history(out) == (3, 2, 2, True)


def test_f2_other_threads_are_said_or_refused(scenes, tmp_path):
    """A sum over two threads is rounded otherwise, so a resume would have other bits."""
    assert trained(scenes, tmp_path / "run")[0] == 0
    assert checkpoint.load(tmp_path / "run/last.pt")["args"]["threads"] == 1

    def two():
        torch.set_num_threads(2)

    code, text = trained(scenes, tmp_path / "run", "--resume", plant=two)
    assert code == 3 and "threads 1 -> 2" in text and "set OMP_NUM_THREADS=1" in text
    code, text = trained(scenes, tmp_path / "run", "--resume", "override", plant=two)
    assert code == 0 and "note: " in text and "threads 1 -> 2" in text

    # Where bits are not asked for, it is a word.
    def child(plant):
        plant()
        command = [*SMALL, "--data", str(scenes), "--out", str(tmp_path / "free"), "--resume"]
        return train.main(command)

    for plant, said in ((lambda: None, False), (lambda: None, False), (two, True)):
        log = tmp_path / "log"
        assert ended(fork(lambda p=plant: child(p), log)) == 0
        assert ("note: " in log.read_text() and "threads 1 -> 2" in log.read_text()) == said


def test_f2_where_no_epoch_is_left_no_best_is_looked_for(scenes, tmp_path):
    """A finished run has nothing to put in the place of its best.pt, lost or another's."""
    out = tmp_path / "run"
    trained(scenes, out, "--epochs", "1")
    trained(scenes, tmp_path / "other", "--epochs", "1", "--seed", "7")
    for lost in (True, False):
        (out / "best.pt").unlink()
        if not lost:
            shutil.copy(tmp_path / "other/best.pt", out / "best.pt")
        code, text = trained(scenes, out, "--epochs", "1", "--resume", "override")
        assert code == 3 and "no epoch is left – raise --epochs" in text
        (out / "best.pt").touch()


def test_f3_a_folder_that_cannot_be_synced_or_locked_is_trained_in(scenes, tmp_path):
    """As some network file systems are."""
    def plant():
        real = os.fsync

        def fsync(descriptor):
            if os.path.isdir(f"/proc/self/fd/{descriptor}"):
                raise OSError(errno.EINVAL, "Invalid argument")
            real(descriptor)

        def lockf(*args):
            raise OSError(errno.ENOLCK, "No locks available")

        os.fsync, checkpoint.fcntl.lockf = fsync, lockf

    code, text = trained(scenes, tmp_path / "run", "--epochs", "1", plant=plant)
    assert code == 0 and "No locks available: two runs in it are not kept apart" in text
    assert history(tmp_path / "run") == (1, 1, 1, True)


def test_f9_args_json_is_of_the_flags_that_go_on(scenes, tmp_path):
    out = tmp_path / "run"
    trained(scenes, out, plant=lambda: before(checkpoint, "save", kill_self, call=3))
    code, _ = trained(scenes, out, "--resume", "override", "--lr", "0.5",
                      plant=lambda: before(train.Loss, "forward", kill_self))  # fmt: skip
    assert code == 143 and json.loads((out / "args.json").read_text())["lr"] == 0.5
    assert trained(scenes, out, "--resume")[0] == 0
    assert json.loads((out / "args.json").read_text())["lr"] == 0.02


def test_f2_a_lost_best_is_said_before_an_epoch_is_made(scenes, tmp_path):
    out = tmp_path / "run"
    trained(scenes, out, "--epochs", "1", plant=lambda: scored(0.9))
    (out / "best.pt").unlink()
    code, text = trained(scenes, out, "--resume")
    assert code == 3 and "best.pt: is not the one of epoch 1" in text and text.count("\n") == 1
    flags = ["--resume", "override", "--epochs", "2"]
    code, text = trained(scenes, out, *flags, plant=lambda: scored(0.1))
    assert code == 0 and "best epoch is looked for anew" in text
    assert history(out) == (2, 2, 2, True)


def test_f12_a_log_that_cannot_be_written_changes_nothing_else(scenes, whole, tmp_path):
    out = tmp_path / "run"
    (out / "log.jsonl").mkdir(parents=True)
    code, text = trained(scenes, out)
    assert code == 0 and text.count("warning: ") >= 3 and "Is a directory" in text
    assert same(weights(whole / "last.pt"), weights(out / "last.pt"))


STREAMS = {"full": ("full", "log"), "closed": ("closed", "log"), "both": ("full", "closed")}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", STREAMS)
def test_f12_lines_that_cannot_be_written_are_told_at_the_end(scenes, whole, tmp_path, name):
    """Standard output and standard error on a full disk, or a pipe that nobody reads."""
    def stream(kind, log):
        if kind == "full":
            return open("/dev/full", "w", buffering=1)
        if kind == "log":
            return log
        read, write = os.pipe()
        os.close(read)
        return open(write, "w", buffering=1)

    def plant():
        sys.stdout, sys.stderr = (stream(kind, sys.stdout) for kind in STREAMS[name])

    out = tmp_path / "run"
    code, text = trained(scenes, out, plant=plant)
    assert code == 5
    assert same(weights(whole / "last.pt"), weights(out / "last.pt"))
    assert same(weights(whole / "best.pt"), weights(out / "best.pt"))
    assert (out / "report.csv").read_text() == (whole / "report.csv").read_text()
    said = {
        "full": "train.py: standard output: No space left on device – ",
        "closed": "train.py: standard output: Broken pipe – ", "both": "",
    }  # fmt: skip
    assert text.startswith(said[name]) and text.count("\n") == (name != "both"), text


def test_f12_a_reader_that_leaves_does_not_end_the_run(scenes, whole, tmp_path):
    """train.py | head -1. What Python flushes as it ends goes to the pipe too."""
    read, write = os.pipe()

    def child():
        os.close(read)
        os.dup2(write, 1)
        sys.stdout = open(1, "w")  # noqa: SIM115
        return train.main([*FLAGS, "--data", str(scenes), "--out", str(tmp_path / "r")])

    process = fork(child, tmp_path / "errors")
    os.close(write)
    with open(read) as lines:
        assert lines.readline()
    assert ended(process) == 5
    errors = (tmp_path / "errors").read_text()
    assert errors.startswith("train.py: standard output: Broken pipe") and errors.count("\n") == 1
    assert same(weights(whole / "last.pt"), weights(tmp_path / "r/last.pt"))


MOMENTS = {
    "checking the data": (data, "describe", 1),
    "building the net": (model, "create_model", 1),
    "first step": (train.Loss, "forward", 1),
    "evaluation": (evaluate, "predict", 1),
    "saving": (checkpoint, "save", 3),
    "last evaluation": (evaluate, "predict", 4),
    "the report": (metrics, "write_report_csv", 1),
    "charts": (pictures, "draw_classes", 1),
}
SOME = {"checking the data", "first step", "saving", "last evaluation", "charts"}


@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=() if m in SOME else pytest.mark.slow) for m in MOMENTS]
)
def test_f15_a_signal_at_any_moment_ends_with_its_code(scenes, whole, tmp_path, moment):
    out = tmp_path / "run"
    owner, name, call = MOMENTS[moment]
    code, text = trained(scenes, out, plant=lambda: before(owner, name, kill_self, call))
    assert code == 143 and text.strip().splitlines()[-1].startswith("train.py: SIGTERM")
    if (out / "last.pt").exists():
        assert "--resume continues" in text
    assert trained(scenes, out, "--resume")[0] == 0
    assert same(weights(whole / "last.pt"), weights(out / "last.pt"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", [
    (evaluate, "open_members"), (evaluate, "predict"), (metrics, "write_predictions"),
    (pictures, "write_page"), (pictures, "draw_classes"),
], ids=lambda moment: moment[1])  # fmt: skip
def test_f15_a_signal_at_any_moment_ends_an_evaluation(scenes, whole, tmp_path, moment, number):
    def child():
        before(*moment, lambda: kill_self(number))
        return evaluate.main([str(whole / "best.pt"), "--data", str(scenes), "--workers", "0",
                              "--out", str(tmp_path / "out")])  # fmt: skip

    assert ended(fork(child, tmp_path / "log")) == 128 + number
    text = (tmp_path / "log").read_text()
    last = f"evaluate.py: {number.name}"
    assert text.splitlines()[-1] == last and "Traceback" not in text, text
    # It ends there, and not once all is done.
    assert (tmp_path / "out/report.csv").exists() == (moment[1] == "draw_classes")


WINDOWS = {  # where the first signal comes, and where another one after it
    "handlers": ((distributed.World, "listen"), None),
    "line of the first": ((evaluate, "open_members"), (distributed, "fail")),
    "line of an error": ((distributed, "fail"), None),
    "diagnosis": ((distributed, "diagnose"), None),
    "leaving": ((distributed.World, "leave"), None),
}


@pytest.mark.parametrize("window", WINDOWS)
def test_f15_a_signal_in_a_small_window_is_no_traceback(scenes, tmp_path, window):
    """While handlers are set, while an error or another signal is told, while the process ends."""
    first, second = WINDOWS[window]
    (tmp_path / "page.pt").write_text("<html>")

    def child():
        if window == "handlers":
            real = distributed.World.listen
            setattr(*first, lambda world: (real(world), kill_self()))
        else:
            before(*first, kill_self)
        if second:
            before(*second, lambda: kill_self(signal.SIGINT))
        return evaluate.main([str(tmp_path / "page.pt"), "--data", str(scenes)])

    code = ended(fork(child, tmp_path / "log"))
    text = (tmp_path / "log").read_text()
    assert "Traceback" not in text and text.strip().count("\n") == 0, text
    assert code == (143 if window in ("handlers", "line of the first") else 3), text


@pytest.mark.parametrize("program", ["train.py", "evaluate.py"])
def test_f15_ctrl_c_while_torch_is_loaded_is_no_traceback(program):
    process = subprocess.Popen([sys.executable, ROOT / program, "x.pt"], stderr=subprocess.PIPE)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert b"Traceback" not in process.stderr.read()
    assert process.wait(60) in (-signal.SIGINT, 2)  # 2: it was there already, and x.pt is no flag


def test_f15_a_signal_while_an_image_is_decoded_is_not_taken_for_a_bad_image(scenes, tmp_path):
    def plant():  # in the main process, before training, when a signal acts at once
        before(augment.EvalTransform, "__init__", lambda: before(Image, "open", kill_self))
        distributed.World.poll = lambda self, due=False: due

    flags = ["--cache", "off", "--workers", "0", "--epochs", "1"]
    out = tmp_path / "run"
    code, text = trained(scenes, out, *flags, plant=lambda: (plant(), setattr(
        distributed.World, "polled", property(lambda self: False, lambda self, value: None))))
    assert code == 143 and "cannot be read" not in text


def decoding(parent):
    """Processes whose parent is `parent`, and that run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("how", ["SIGINT, then SIGINT", "SIGKILL"])
def test_f16_no_worker_outlives_the_run(scenes, tmp_path, how):
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    out, asleep = tmp_path / "run", tmp_path / "asleep"

    def child():
        if "SIGINT" in how:  # the first one never gets to a poll
            distributed.World.poll = lambda self, due=False: due
        else:  # idle workers, which look after their parent every 5 s only
            before(train.Loss, "forward", lambda: (asleep.touch(), time.sleep(60)), call=5)
        flags = ["--workers", "2", "--cache", "off", "--epochs", "100000", "--t-max", "9"]
        return train.main([*FLAGS, "--data", str(scenes), "--out", str(out), *flags])

    process = fork(child, tmp_path / "log")
    wait_until((asleep if how == "SIGKILL" else out / "best.pt").exists)
    wait_until(lambda: len(decoding(process)) == 2)
    workers = decoding(process)
    if how == "SIGKILL":
        os.kill(process, signal.SIGKILL)
    else:
        os.kill(process, signal.SIGINT)
        time.sleep(0.3)
        os.kill(process, signal.SIGINT)
    assert ended(process, 5) == (-signal.SIGKILL if how == "SIGKILL" else 130)

    def running():
        there = [Path(f"/proc/{worker}/stat") for worker in workers]
        return [path for path in there if path.exists() and ") Z" not in path.read_text()]

    wait_until(lambda: not running(), 1)
    checkpoint.load(out / "last.pt")


# ---------------------------------------------------------------- F18: fp16 gradients that overflow


def overflowing(steps, by=torch.inf):
    """The head's gradient overflows in the given steps, counted from 1; the loss stays finite."""
    real, count = model.create_model, itertools.count(1)

    def create(*args, **kwargs):
        net = real(*args, **kwargs)
        last = [p for p in net.head.parameters() if p.requires_grad][-1]
        last.register_hook(lambda g: g * by if next(count) in steps else g)
        return net

    model.create_model = create


@pytest.mark.parametrize("by", [torch.inf, torch.nan])
def test_f18_an_overflowing_step_is_left_out_and_counted(scenes, tmp_path, by):
    """22 frames, one batch an epoch: left out, epoch 3 must change neither weights nor average."""
    flags = ["--amp", "fp16", "--ema", "0.5", "--batch-size", "22", "--freeze-bn"]
    out = tmp_path / "run"
    code, _ = trained(scenes, out, *flags, plant=lambda: overflowing({3}, by))
    assert code == 0
    log = checkpoint.read_log(out / "log.jsonl")
    assert [row["skipped"] for row in log] == [0, 0, 1]
    assert log[1]["gradient_norm"] > log[2]["gradient_norm"] == 0  # what overflowed has no norm
    rates = [train.lr_factor(schedule(t_max=0, lr=0.02, epochs=3), step, 1) for step in range(3)]
    assert [row["lr"] for row in log] == pytest.approx([0.02 * rate for rate in rates])
    before, after = (checkpoint.load(out / f"last{p}.pt") for p in (".prev", ""))
    assert same(before["model"], after["model"]) and same(before["average"], after["average"])
    assert not same(before["model"], before["average"])  # a step more would move the average
    assert after["scaler"]["scale"] == before["scaler"]["scale"] / 2


@pytest.mark.parametrize("steps, code", [(10, 0), (11, 4), (22, 4)])
def test_f18_overflow_in_more_than_ten_steps_stops_the_run(scenes, tmp_path, steps, code):
    flags = "--amp fp16 --batch-size 1 --epochs 1 --lr 1e-6".split()
    planted = range(1, 1 + steps)
    ended, text = trained(scenes, tmp_path / "run", *flags, plant=lambda: overflowing(planted))
    assert ended == code and (f"overflowed in {steps} of 22 steps of epoch 1" in text) == (code > 0)


# ---------------------------------------------------------------- F27 to F30: shapes and resources


def own_images(folder, train_labels, val_labels):
    """A CSV of grey pictures with the given labels."""
    rows = [((20 + i, 30), (9 * i, 90, 50), labels, split)
            for split, some in (("train", train_labels), ("val", val_labels))
            for i, labels in enumerate(some)]  # fmt: skip
    return plain.own_csv(folder, ["a", "b", "never"], rows)


@pytest.mark.parametrize(
    "labels, flags",
    [
        (["a"], ["--batch-size", "8", "--accumulate", "5"]),  # N = 1 < B, K beyond the batches
        (["a", "", "a|b"], ["--batch-size", "2"]),  # an image without labels, a class never seen
        (["", "", "", ""], ["--batch-size", "2", "--pos-weight", "10"]),  # batches of negatives
    ],
)
def test_f27_small_and_empty_sets_have_defined_results(tmp_path, labels, flags):
    table = own_images(tmp_path / "own", labels, ["a", ""])
    # one frame of 32 px leaves batch norm 4 values a channel
    code, text = trained(table, tmp_path / "run", *flags, "--augment", "none")
    assert code == 0, text
    log = checkpoint.read_log(tmp_path / "run/log.jsonl")
    assert len(log) == 3 and "NaN" not in json.dumps(log)
    # a step was made in the last epoch: what has a gradient moved, and not the statistics alone
    first, last = (weights(tmp_path / f"run/last{p}.pt") for p in (".prev", ""))
    assert not torch.equal(first["head.3.bias"], last["head.3.bias"])
    moved = {k for k in last if k.endswith("weight") and not torch.equal(first[k], last[k])}
    assert {"blocks.0.conv.weight", "head.0.weight", "head.3.weight"} <= moved


def test_f28_out_of_memory_says_what_to_try(scenes, whole, tmp_path):
    def no_memory():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    out = tmp_path / "run"
    code, text = trained(
        scenes, out, plant=lambda: before(train.Loss, "forward", no_memory, call=5)
    )
    assert code == 5 and "2.00 GiB" in text and "--batch-size 4 --accumulate 2" in text
    assert "--checkpoint-activations" in text
    assert checkpoint.load(out / "last.pt")["epoch"] == 1
    assert trained(scenes, out, "--resume")[0] == 0
    assert same(weights(whole / "last.pt"), weights(out / "last.pt"))


def test_f29_too_many_open_files_say_what_to_try():
    """As torch tells it where a worker's batch cannot be received."""
    words = "Too many open files. Communication with the workers is no longer possible."
    code, line = distributed.diagnose(RuntimeError(words), "")
    assert code == 5 and "fewer --workers" in line and "ulimit -n" in line


@pytest.mark.parametrize("words", [
    "CUDA error: out of memory\nCUDA kernel errors might be reported later",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
])  # fmt: skip
@pytest.mark.parametrize("kind", [RuntimeError, torch.AcceleratorError])
def test_f28_what_takes_memory_beside_torch_says_what_to_try(kind, words):
    """A context, a library's workspace, pinned memory: torch has no type for their errors."""
    code, line = distributed.diagnose(kind(words), "--batch-size 4")
    assert code == 5 and "out of memory" in line and "try --batch-size 4" in line


def test_f28_a_step_that_does_not_fit_is_told_before_it(scenes, tmp_path):
    """What ends a process for its memory leaves no word."""
    needed = 8 * model.activation_bytes({"arch": "tiny"}, 32)
    for free, told in ((needed * 0.99, True), (needed * 1.01, False), (None, False)):
        out = tmp_path / f"run {free}"

        def plant(free=free):
            progress.free_memory = lambda: free

        flags = ["--epochs", "1", "--batch-size", "8"]
        code, text = trained(scenes, out, *flags, plant=plant)
        warned = [line for line in text.splitlines() if line.startswith("warning: a step takes")]
        assert code == 0 and bool(warned) == told
        if told:
            assert "try --batch-size 4 --accumulate 2 or --checkpoint-activations" in warned[0]
            assert text.index(warned[0]) < text.index("epoch 1")
    # A batch is never larger than all there is.
    code, text = trained(scenes, tmp_path / "all", "--epochs", "1", "--batch-size", "1000",
                         plant=lambda: setattr(progress, "free_memory", lambda: 23 * needed / 8))
    assert code == 0 and "a step takes" not in text
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < progress.free_memory() < memory
    # Of a container what it does not use is free, and so is what it has of files.
    (tmp_path / "memory.max").write_text("9000\n")
    (tmp_path / "memory.current").write_text("7000\n")
    (tmp_path / "memory.stat").write_text("anon 4000\nactive_file 500\ninactive_file 2000\n")
    assert progress.free_memory(tmp_path) == 4500
    (tmp_path / "memory.stat").write_text("")
    assert progress.free_memory(tmp_path) == 9000
    (tmp_path / "memory.max").write_text("max\n")
    assert 4500 < progress.free_memory(tmp_path) < memory


def test_f29_a_worker_that_hangs_ends_the_run(scenes, tmp_path):
    def plant():
        data.WORKER_SECONDS = 0.5
        torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5  # that its exit waits, twice
        before(data, "decode", lambda: torch.utils.data.get_worker_info() and time.sleep(60), 1)

    flags = ["--cache", "off", "--workers", "1"]
    trained(scenes, tmp_path / "index")  # so that the check of the images does not decode them
    code, text = trained(scenes, tmp_path / "run", *flags, plant=plant)
    assert code == 5 and "timed out" in text and "--workers 0" in text


def test_f29_short_shared_memory_ends_the_run_at_once(tmp_path):
    """Batches of 2 MB, and 1 MB for all of them: what a container has by default is 64 MB."""
    rows = [((600, 600), (9, 90, 50), "a", split) for split in ("train", "train", "val")]
    table = plain.own_csv(tmp_path / "own", ["a"], rows)
    user, group = os.getuid(), os.getgid()

    def plant():
        """As `unshare -rm` and `mount` do it, in this process."""
        try:
            if ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNS):
                raise OSError
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
            mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm".split()
            subprocess.run(mount, stderr=subprocess.DEVNULL, check=True)
        except Exception:  # another system, or one that does not let users do this
            os._exit(77)

    flags = ["--workers", "1", "--batch-size", "2"]
    code, text = trained(table, tmp_path / "run", *flags, plant=plant)
    if code == 77:
        pytest.skip("needs a file system of its own")
    errors = text[text.index("train.py: "):]
    assert code == 5 and errors.startswith("train.py: unable to allocate shared")
    assert "try --workers 0" in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    "workers", ["0", "2", *(pytest.param(n, marks=pytest.mark.slow) for n in "14")]
)
def test_f30_workers_do_not_matter(scenes, whole, tmp_path, workers):
    code, _ = trained(scenes, tmp_path / "run", "--workers", workers, "--cache", "off")
    assert code == 0
    assert same(weights(whole / "last.pt"), weights(tmp_path / "run/last.pt"))


# --------------------------------------------------------------------- F31, F32: several processes


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def ranks(size, child, log):
    """`child` in `size` processes that find each other as torchrun's do: the list of their pids."""
    port, processes = free_port(), []
    for rank in range(size):

        def one(rank=rank):
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
            return child()

        processes.append(fork(one, f"{log}{rank}"))
    return processes


def logs(log, size):
    return "".join(Path(f"{log}{rank}").read_text() for rank in range(size))


class Noise(torch.utils.data.Dataset):
    """n frames of noise with random labels."""

    def __init__(self, n):
        g = torch.Generator().manual_seed(n)
        self.frames = torch.randint(0, 256, (n, 3, 32, 32), generator=g, dtype=torch.uint8)
        self.labels = (torch.rand(n, 5, generator=g) < 0.3).float()
        self.names = [f"noise {i}" for i in range(n)]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        return i, self.frames[i], self.labels[i], None


def epoch_of_noise(world, n, batch, accumulate):
    """(weights after one epoch, its loss, scores of all frames)."""
    flags = ["--augment", "none", "--freeze-bn", "--dropout", "0", "--clip-grad", "0"]
    args = train.parse_args([*SMALL, *flags, "--batch-size", str(batch), "--accumulate",
                             str(accumulate)])  # fmt: skip
    torch.manual_seed(0)
    net, dataset = model.create_model("tiny", 5, dropout=0), Noise(n)
    trainer = trainer_of(net, dataset, args, world)
    row = trainer.epoch(progress.Progress("", trainer.steps, trainer.device))
    scores = evaluate.predict(net, dataset, trainer.view, args, world)
    return net.state_dict(), row["loss"], scores


CASES = [(n, b, k) for n in range(1, 41) for b, k in ((1 + n % 5, 1 + n % 3), (4, 2))]
FEW = CASES[:24:4] + CASES[3:24:4] + CASES[24::11]  # every N up to 12, and some beyond


@pytest.mark.parametrize(
    "size, trains",
    [(2, FEW), (3, FEW[::3])] + [pytest.param(n, CASES, marks=pytest.mark.slow) for n in (2, 3)],
)
def test_f31_ranks_give_the_weights_and_scores_of_one_process(tmp_path, size, trains):
    """N = 1 to 40 frames on 2 and 3 ranks of B against one process of 2 B and 3 B."""

    def child():
        world = distributed.World()
        results = [epoch_of_noise(world, *case) for case in trains]
        torch.save(results, tmp_path / f"{world.rank}.pt")

    processes = ranks(size, child, tmp_path / "log")
    codes = [ended(process, 120) for process in processes]
    assert codes == [0] * size, logs(tmp_path / "log", size)
    alone = distributed.World()
    together = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    for case, *results in zip(trains, *together, strict=True):
        n, b, k = case
        expected = epoch_of_noise(alone, n, b * size, k)
        for state, loss, scores in results:
            assert same(state, results[0][0])  # the ranks agree to the bit
            # float32 sums in another order, for at most 20 steps of lr 0.02
            for key, value in expected[0].items():
                assert torch.allclose(state[key].float(), value.float(), atol=1e-5), (case, key)
            assert loss == pytest.approx(expected[1], rel=1e-5), case
            assert torch.allclose(scores, expected[2], atol=1e-5), case
        labels = Noise(n).labels
        f1 = [metrics.precision_recall_f1(metrics.decide(s, 0.5), labels)[2] for _, _, s in results]
        assert len(set(f1)) == 1


def test_shares_are_a_partition_with_equally_many_batches():
    """Every N, B and number of ranks up to 40, 5 and 4."""
    for n, batch, size in itertools.product(range(1, 41), range(1, 6), range(1, 5)):
        order = data.order(n, 0, 0)
        parts = [data.shares(order, batch, rank, size) for rank in range(size)]
        assert {len(part) for part in parts} == {-(-n // (batch * size))}
        seen = []
        for number, together in enumerate(zip(*parts, strict=True)):
            group = order[number * batch * size :][: batch * size]
            assert {len(share) for share in together} <= set(range(1, batch + 1))
            for rank, share in enumerate(together):
                own = share[: len(group[rank::size])]
                seen += own
                assert share[len(own) :] in ([], group[:1])
        assert sorted(seen) == list(range(n))


def spread(scenes, out, *flags, size=2, plant=lambda: None, seconds=60):
    def child():
        plant()
        return train.main([*FLAGS, "--data", str(scenes), "--out", str(out), *flags])

    processes = ranks(size, child, f"{out}.log")
    return processes, lambda: [ended(process, seconds) for process in processes]


def test_f31_a_run_on_two_ranks_is_one_run(scenes, whole, tmp_path):
    """Published weights are on rank 0 alone; one rank prints; the folder is one process's."""
    flags = ["--weights", str(whole / "best.pt"), "--freeze-bn", "--augment", "none"]
    flags += ["--dropout", "0"]
    assert trained(scenes, tmp_path / "one", *flags, "--batch-size", "8")[0] == 0
    _, codes = spread(scenes, tmp_path / "two", *flags, "--batch-size", "4")
    assert codes() == [0, 0]
    one, two = (checkpoint.load(tmp_path / name / "last.pt") for name in ("one", "two"))
    for key, value in one["model"].items():
        assert torch.allclose(two["model"][key].float(), value.float(), atol=1e-5), key
    assert one["best"]["f1"] == pytest.approx(two["best"]["f1"], abs=1e-12)
    assert (tmp_path / "one/report.csv").read_text() == (tmp_path / "two/report.csv").read_text()
    assert Path(f"{tmp_path}/two.log1").read_text() == ""
    assert "2 processes" in Path(f"{tmp_path}/two.log0").read_text()


def test_f31_ranks_draw_differently_and_resume_to_the_bit(scenes, tmp_path):
    flags = ["--augment", "report", "--ema", "0.9", "--amp", "fp16", "--batch-size", "4"]
    draws = tmp_path / "draws"

    def plant():
        real = augment.generator

        def generator(*args):
            with open(draws, "a") as file:
                file.write(f"{args}\n")
            return real(*args)

        augment.generator = generator

    _, codes = spread(scenes, tmp_path / "whole", *flags, plant=plant)
    assert codes() == [0, 0]
    drawn = draws.read_text().splitlines()
    assert len(drawn) == len(set(drawn)) == 2 * 9  # 3 epochs of 3 steps on 2 ranks
    _, codes = spread(
        scenes, tmp_path / "run", *flags,
        plant=lambda: before(distributed.World, "average_buffers", kill_self, call=4),
    )  # fmt: skip
    assert codes() == [143, 143]
    assert checkpoint.load(tmp_path / "run/last.pt")["epoch"] == 1
    _, codes = spread(scenes, tmp_path / "run", *flags, "--resume")
    assert codes() == [0, 0]
    for name in ("last.pt", "best.pt"):
        one, two = (checkpoint.load(tmp_path / run / name) for run in ("whole", "run"))
        assert same(one["model"], two["model"]) and same(one["average"], two["average"])
    code, text = trained(scenes, tmp_path / "run", *flags, "--resume")
    assert code == 3 and "processes 2 -> 1" in text


def test_f32_one_signal_stops_all_ranks(scenes, tmp_path):
    out = tmp_path / "run"
    flags = ["--epochs", "100000", "--t-max", "9"]
    processes, codes = spread(scenes, out, *flags, seconds=30)
    wait_until((out / "best.pt").exists)
    os.kill(processes[1], signal.SIGTERM)
    assert codes() == [143, 143]
    checkpoint.load(out / "last.pt")
    text = logs(f"{out}.log", 2)
    assert text.count("train.py: SIGTERM") == 2 and "another process" not in text  # the same step
    assert "Traceback" not in text


@pytest.mark.parametrize("guilty", [0, 1])
def test_f32_one_failing_rank_ends_all(scenes, tmp_path, guilty):
    def vanish():
        raise data.DataError("video/1.png: cannot be read – replace or remove it")

    def plant():
        if os.environ["RANK"] == str(guilty):
            before(augment.EvalTransform, "__call__", vanish, call=2)

    out = tmp_path / "run"
    _, codes = spread(scenes, out, "--augment", "none", plant=plant, seconds=30)
    ended = codes()
    assert ended.pop(guilty) == 3 and ended == [5]
    text = logs(f"{out}.log", 2)
    assert text.count("cannot be read") == 1 and text.count("another process") == 1, text
    assert "Traceback" not in text


def test_f32_half_of_torchruns_variables_are_a_usage_error(tmp_path):
    def child():
        os.environ |= {"RANK": "0", "WORLD_SIZE": "2"}
        return train.main(FLAGS)

    assert ended(fork(child, tmp_path / "log")) == 2
    text = (tmp_path / "log").read_text()
    assert "MASTER_ADDR" in text and text.count("\n") == 1


ODD_RANKS = {  # RANK, WORLD_SIZE, LOCAL_RANK: what is said
    ("0", None, None): "WORLD_SIZE is not set, and RANK is",
    (None, "2", None): "RANK is not set, and WORLD_SIZE is",
    ("0", "0", "0"): "RANK 0, WORLD_SIZE 0, LOCAL_RANK 0: must be LOCAL_RANK <= RANK < WORLD_SIZE",
    ("2", "2", "0"): "RANK 2, WORLD_SIZE 2", ("0", "2", "1"): "LOCAL_RANK 1: must be",
    ("-1", "2", "0"): "RANK -1: must be a number", ("0", "two", "0"): "WORLD_SIZE two: must be",
    ("0", "9" * 40, "0"): "WORLD_SIZE 9999999999999999999999999999999999999999: must be",
    ("0", "", "0"): "WORLD_SIZE : must be a number",
}  # fmt: skip


@pytest.mark.parametrize("named", ODD_RANKS)
def test_f32_variables_that_torchrun_does_not_set_are_a_usage_error(tmp_path, named):
    def child():
        for name, value in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), named, strict=True):
            if value is not None:
                os.environ[name] = value
        return train.main(FLAGS)

    assert ended(fork(child, tmp_path / "log")) == 2
    text = (tmp_path / "log").read_text()
    assert text.startswith("train.py: ") and ODD_RANKS[named] in text, text
    assert text.endswith("start with torchrun, or without these variables\n")
    assert text.count("\n") == 1


def test_f32_ctrl_c_ends_the_wait_for_the_others(tmp_path):
    def child():
        os.environ |= {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": free_port()}  # fmt: skip
        (tmp_path / "started").touch()
        return train.main(FLAGS)

    process = fork(child, tmp_path / "log")
    wait_until((tmp_path / "started").exists)
    time.sleep(1)
    os.kill(process, signal.SIGINT)
    assert ended(process, 10) == -signal.SIGINT


@pytest.mark.slow
def test_f31_torchrun(scenes, tmp_path):
    """The README's command, on CPUs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               str(ROOT / "train.py"), *FLAGS, "--data", str(scenes), "--out",
               str(tmp_path / "run")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(tmp_path / "run/last.pt")["epoch"] == 3
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0 and "holds a run already" in done.stderr


@pytest.mark.slow
def test_f32_torchrun_restarts_after_a_kill(scenes, tmp_path):
    """One rank is killed twice; --max-restarts with --resume ends with the same bits."""
    flags = [*FLAGS, "--data", str(scenes), "--epochs", "30"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
              "--max-restarts", "3", str(ROOT / "train.py")]  # fmt: skip
    for name in ("whole", "run"):
        out, killed = tmp_path / name, set()
        with open(tmp_path / "log", "w") as file:
            process = subprocess.Popen([*launch, *flags, "--out", str(out), "--resume"],
                                       stdout=file, stderr=file)  # fmt: skip
            while process.poll() is None:
                log = checkpoint.read_log(out / "log.jsonl")
                found = sorted(decoding(process.pid))
                if name == "run" and len(killed) < 2 and len(log) > 9 * (1 + len(killed)):
                    victim = found[len(killed)]
                    os.kill(victim, signal.SIGKILL)
                    killed.add(victim)
                    time.sleep(3)
                time.sleep(0.01)
        assert process.returncode == 0, (tmp_path / "log").read_text()
        assert len(killed) == (2 if name == "run" else 0)
    assert same(weights(tmp_path / "whole/last.pt"), weights(tmp_path / "run/last.pt"))


# ------------------------------------------------------------------------ F33: other surroundings


@pytest.mark.parametrize("options", [["-X", "dev"], pytest.param(["-O"], marks=pytest.mark.slow)])
def test_f33_surroundings_do_not_matter(scenes, whole, tmp_path, options):
    """A locale of ASCII, sources that cannot be written, a folder whose name has a space and
    letters that ASCII lacks. For -O the whole of torch is compiled anew."""
    folder, source = tmp_path / "a folder – ünïcode", tmp_path / "source"
    shutil.copytree(scenes, folder / "A2D")
    source.mkdir()
    for file in ROOT.glob("*.py"):
        shutil.copy(file, source)
        (source / file.name).chmod(0o444)
    source.chmod(0o555)
    ascii_only = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, *options, source / "train.py", *FLAGS, "--data", "A2D", "--out", "run"],
        cwd=folder, env=os.environ | ascii_only, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    source.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert same(weights(whole / "last.pt"), weights(folder / "run/last.pt"))
