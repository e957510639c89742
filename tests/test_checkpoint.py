"""checkpoint.py: no half-written file, every damage noticed, nothing executed, one run a folder."""

import errno
import os
import pickle
import random
import resource
import signal
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch

import checkpoint
from tests.plain import a_checkpoint as state
from tests.plain import packed
from tests.processes import ended, fork, wait_until


def test_round_trip_and_torch_reads_it(tmp_path):
    checkpoint.save(tmp_path / "a.pt", state(2.0))
    for read in (checkpoint.load, torch.load):
        loaded = read(tmp_path / "a.pt")
        assert loaded["args"] == state()["args"]
        assert torch.equal(loaded["model"]["weights"], state(2.0)["model"]["weights"])
    assert zipfile.ZipFile(tmp_path / "a.pt").testzip() is None
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_checkpoint_of_another_device_arrives_on_the_cpu(tmp_path, monkeypatch):
    """Its tensors are marked as a GPU's, which this machine need not have."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
    checkpoint.save(tmp_path / "last.pt", state(3.0))
    monkeypatch.undo()
    assert b"cuda:7" in (tmp_path / "last.pt").read_bytes()
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert torch.equal(loaded["model"]["weights"], state(3.0)["model"]["weights"])
    assert loaded["model"]["weights"].device.type == "cpu"


def test_every_flipped_bit_is_noticed(tmp_path):
    file = tmp_path / "best.pt"
    checkpoint.save(file, state())
    whole = file.read_bytes()
    rng = random.Random(0)
    places = [rng.randrange(8 * len(whole)) for _ in range(50)]
    places += [0, 8 * len(whole) - 1, 8 * (len(whole) - checkpoint.TAIL)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(checkpoint.CheckpointError, match="best.pt: (damaged|truncated)"):
            checkpoint.load(file)


def test_every_truncation_is_noticed_and_the_previous_file_is_named(tmp_path):
    file = tmp_path / "last.pt"
    checkpoint.save(file, state())
    whole = file.read_bytes()
    checkpoint.save(tmp_path / "last.prev.pt", state())
    for cut in [0, 1, 4, 100, *range(500, len(whole), len(whole) // 8), len(whole) - 1]:
        file.write_bytes(whole[:cut])
        with pytest.raises(checkpoint.CheckpointError, match="last.prev.pt"):
            checkpoint.load(file)


class Payload:
    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


def hashed(file):
    """Give a foreign zip the right hash, as an attacker would."""
    content = file.read_bytes()
    content = content[:-2] + checkpoint.TAIL.to_bytes(2, "little") + checkpoint.COMMENT
    file.write_bytes(content + checkpoint.hashlib.sha256(content).hexdigest().encode())


@pytest.mark.parametrize(
    "kind", ["zip", "hashed zip", "hashed zip, in args", "legacy", "raw pickle", "tar"]
)
def test_a_pickle_that_runs_code_is_refused(tmp_path, kind):
    file, sentinel = tmp_path / "a.pt", tmp_path / "sentinel"
    hostile = state() | {"optimizer": {"state": [Payload(sentinel)]}}
    if kind == "hashed zip, in args":
        hostile = state(lr=Payload(sentinel))
    if kind in ("raw pickle", "tar"):
        file.write_bytes(pickle.dumps(hostile))
    else:
        torch.save(hostile, file, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "tar":  # torch's first format
        with tarfile.open(tmp_path / "b", "w") as archive:
            archive.add(file, "pickle")
        os.replace(tmp_path / "b", file)
    if kind.startswith("hashed"):
        hashed(file)
    with pytest.raises(checkpoint.CheckpointError) as caught:
        checkpoint.load(file)
    assert "\n" not in str(caught.value) and not sentinel.exists()
    # the payload is live: what torch.load does without weights_only
    if kind == "zip":
        torch.load(file, weights_only=False)
        assert sentinel.exists()


def test_what_is_no_checkpoint_is_refused(tmp_path):
    for name, content in {"a": b"", "b": b"<html>404</html>", "c": b"PK\3\4" + bytes(200)}.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"weights": torch.zeros(3)}, tmp_path / "d")
    hashed(tmp_path / "d")
    for name in ("a", "b", "c", "d", "missing"):
        with pytest.raises(checkpoint.CheckpointError, match=name):
            checkpoint.load(tmp_path / name)


def test_packed_parts_are_refused_before_they_are_unpacked(tmp_path):
    """torch never packs; 3 MB of zeros would be 3 GB."""
    checkpoint.save(tmp_path / "plain.pt", state() | {"more": torch.zeros(10**7)})
    packed(tmp_path / "plain.pt", tmp_path / "a.pt")
    assert os.path.getsize(tmp_path / "a.pt") < 10**6
    hashed(tmp_path / "a.pt")
    with pytest.raises(checkpoint.CheckpointError, match="a.pt: ValueError .* unpack to 40,"):
        checkpoint.load(tmp_path / "a.pt")


def test_a_message_has_none_of_torchs_advice(tmp_path):
    """To run the code of the file is no way out."""
    torch.save(state() | {"more": Payload(tmp_path / "sentinel")}, tmp_path / "a.pt")
    torch.save(state() | {"more": Path("a")}, tmp_path / "b.pt")
    torch.save(state() | {"more": ["odd"]}, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "c.pt", "w") as odd,
    ):
        for name in whole.namelist():
            content = whole.read(name)  # 0xff is no instruction of pickle
            odd.writestr(name, content[:-1] + b"\xff." if "data.pkl" in name else content)
    calls = "it would call "
    says = {"a.pt": calls + "posix.system", "b.pt": calls + "pathlib",
            "c.pt": "UnpicklingError holds more than tensors"}  # fmt: skip
    for name, words in says.items():
        hashed(tmp_path / name)
        with pytest.raises(checkpoint.CheckpointError, match=f"{name}: {words}") as caught:
            checkpoint.load(tmp_path / name)
        assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_or_a_circle_of_links_is_no_run(tmp_path):
    """Neither waited for, nor overwritten as if nothing were there."""
    for name in ("last.pt", "log.jsonl", "best.pt"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(checkpoint.CheckpointError, match="last.pt: is a pipe"):
        checkpoint.Run(tmp_path, True)
    with pytest.raises(checkpoint.CheckpointError, match="best.pt: is a pipe"):
        checkpoint.load(tmp_path / "best.pt")
    with pytest.raises(OSError, match="is a pipe"):
        checkpoint.read_log(tmp_path / "log.jsonl")
    (tmp_path / "last.pt").unlink()
    (tmp_path / "last.pt").symlink_to("last.pt")
    with pytest.raises(checkpoint.CheckpointError, match="last.pt: Too many levels"):
        checkpoint.Run(tmp_path, False)


def test_disk_full_leaves_the_old_file_and_no_other(tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()

    def child():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            checkpoint.save(folder / "a.pt", state(2.0) | {"more": torch.zeros(100_000)})
        except OSError as error:
            return 0 if error.errno == errno.EFBIG else 2
        return 1

    checkpoint.save(folder / "a.pt", state(1.0))
    assert ended(fork(child, tmp_path / "log")) == 0
    assert checkpoint.load(folder / "a.pt")["model"]["weights"][0, 0] == 1
    assert [p.name for p in folder.iterdir()] == ["a.pt"]


def test_kills_during_continuous_saving_leave_loadable_files(tmp_path):
    def child():
        run = checkpoint.Run(tmp_path, True)
        start = run.saved["epoch"] if run.saved else 0
        for step in range(start + 1, 10**9):
            run.save(state(step, step))
            if step > start + 1:  # last.prev.pt is this process's own too
                (tmp_path / "moved").touch()

    rng, before = random.Random(1), 0
    for _ in range(12):
        (tmp_path / "moved").unlink(missing_ok=True)
        process = fork(child, tmp_path / "log")
        wait_until((tmp_path / "moved").exists)
        time.sleep(0.1 * rng.random())
        os.kill(process, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL
        for name in ("last.pt", "last.prev.pt"):
            loaded = checkpoint.load(tmp_path / name)
            assert (loaded["model"]["weights"] == loaded["epoch"]).all()
        step = checkpoint.load(tmp_path / "last.pt")["epoch"]
        assert step > before
        before = step


def test_data_are_on_the_disk_before_the_name_points_to_them(tmp_path, monkeypatch):
    """Power may fail between any two system calls: sync the file, rename, sync the folder."""
    calls = []

    def spy(name):
        real = getattr(os, name)

        def called(*args):
            target = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else args[0]
            calls.append((name, Path(target).name))
            return real(*args)

        monkeypatch.setattr(os, name, called)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    spy("fsync")
    spy("replace")
    checkpoint.save(tmp_path / "a.pt", state())
    temporary = f".a.pt.{os.getpid()}.tmp"
    assert calls == [("fsync", temporary), ("replace", temporary), ("fsync", tmp_path.name)]


def test_last_and_the_one_before(tmp_path):
    run = checkpoint.Run(tmp_path / "run", False)
    assert run.saved is None
    for value in (1.0, 2.0, 3.0):
        run.save(state(value))
    assert checkpoint.load(tmp_path / "run/last.pt")["model"]["weights"][0, 0] == 3
    assert checkpoint.load(tmp_path / "run/last.prev.pt")["model"]["weights"][0, 0] == 2


def test_a_kill_between_the_two_renames_harms_neither_file(tmp_path):
    """Then both names are one file, and a rename between names of one file does nothing."""
    run = checkpoint.Run(tmp_path, False)
    run.save(state(1.0))
    os.link(tmp_path / "last.pt", tmp_path / "last.prev.pt")
    first = os.stat(tmp_path / "last.prev.pt")
    for value in (2.0, 3.0):
        run.save(state(value))
        loaded = [checkpoint.load(tmp_path / f"last{p}.pt")["model"] for p in (".prev", "")]
        assert [weights["weights"][0, 0] for weights in loaded] == [value - 1, value]
    assert os.stat(tmp_path / "last.prev.pt").st_ino != first.st_ino


def test_a_run_in_use_or_finished_is_not_taken(tmp_path):
    def child():
        run = checkpoint.Run(tmp_path, True)
        run.save(state())
        time.sleep(20)

    process = fork(child, tmp_path / "log")
    wait_until((tmp_path / "last.pt").exists)
    with pytest.raises(checkpoint.CheckpointError, match=f"in use by process {process} on"):
        checkpoint.Run(tmp_path, True)
    os.kill(process, signal.SIGKILL)
    ended(process)
    assert checkpoint.Run(tmp_path, True).saved  # the lock died with its process
    with pytest.raises(checkpoint.CheckpointError, match="holds a run already"):
        checkpoint.Run(tmp_path, False)


def test_a_run_without_a_finished_epoch_is_begun_anew(tmp_path, capsys):
    run = checkpoint.Run(tmp_path, True)
    assert "--resume starts one" in capsys.readouterr().out
    run.save(state(epoch=0))
    run.lock.close()
    run = checkpoint.Run(tmp_path, False)
    assert run.saved is None
    run.save(state())
    run.lock.close()
    assert checkpoint.Run(tmp_path, True).saved["epoch"] == 1
    assert "starts one" not in capsys.readouterr().out


@pytest.mark.parametrize("resume", [None, "same", "override"])
@pytest.mark.parametrize("name", ["best.pt", "report.csv", "log.jsonl", "last.prev.pt"])
def test_files_that_are_of_no_run_are_not_replaced(tmp_path, name, resume):
    """A best.pt whose last.pt was removed for its size; the table that is to be trained on."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(checkpoint.CheckpointError, match=f": {name} would be replaced, as last.pt"):
        checkpoint.Run(tmp_path, resume)
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == "mine"


def test_a_best_without_its_last_is_gone_on_from_as_the_error_says(tmp_path):
    run = checkpoint.Run(tmp_path)
    for epoch in (1, 2):
        run.save(state(epoch=epoch) | {"best": {"f1": 0.5, "epoch": 1}}, is_best=epoch == 1)
    run.lock.close()
    (tmp_path / "last.pt").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="– rename last.prev.pt to last.pt, or"):
        checkpoint.Run(tmp_path, "same")
    (tmp_path / "last.prev.pt").rename(tmp_path / "last.pt")
    assert checkpoint.Run(tmp_path, "same").saved["epoch"] == 1


def test_a_run_killed_before_its_first_checkpoint_is_begun_anew(tmp_path):
    run = checkpoint.Run(tmp_path)
    run.write_args({})
    run.lock.close()
    assert checkpoint.Run(tmp_path, "same").saved is None


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(checkpoint.CheckpointError, match="file/run"):
        checkpoint.Run(tmp_path / "file/run", False)


def test_leftovers_are_removed_and_named(tmp_path, capsys):
    (tmp_path / ".last.pt.99.tmp").write_bytes(b"half")
    checkpoint.Run(tmp_path, False)
    assert not list(tmp_path.glob(".*.tmp")) and ".last.pt.99.tmp" in capsys.readouterr().out


def test_log_has_each_epoch_once(tmp_path):
    run = checkpoint.Run(tmp_path, False)
    for epoch in (1, 2, 3):
        run.log({"epoch": epoch, "leg": 1})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"epoch": 4, "le')  # a kill cut it short
    assert [row["epoch"] for row in checkpoint.read_log(tmp_path / "log.jsonl")] == [1, 2, 3]
    for epoch in (3, 4):
        run.log({"epoch": epoch, "leg": 2})
    rows = checkpoint.read_log(tmp_path / "log.jsonl")
    assert [(row["epoch"], row["leg"]) for row in rows] == [(1, 1), (2, 1), (3, 2), (4, 2)]


SECOND = {"optimizer": None, "best": {"f1": 0.5, "epoch": 1}}
HEAD = {"head.weight": torch.zeros(2, 3), "head.bias": torch.zeros(2)}
DISAGREEING = {  # what is other than in plain.a_checkpoint: what is said of it
    "args.arch: resnet34, but the network has tiny": {"args": {"arch": "resnet34"}},
    "args.head: mish, but the network has linear": {"args": {"head": "mish"}},
    "args.dropout: 0.3, but the network has 0.5": {"args": {"dropout": 0.3}},
    "args.image_size: None, but the network has 32": {"args": {"image_size": None}},
    "args.fit: crop, must be squash or letterbox": {"args": {"fit": "crop"}},
    "average: is missing, by args.ema": {"args": {"ema": 0.9}},
    "average: is unexpected, by args.ema": {"average": HEAD},
    "best.epoch: 2, but epoch is 1": {"best": {"epoch": 2}},
    "best_sha256: None, but best.epoch is 1": {"best": {"epoch": 1}},
    f"best_sha256: {'0' * 64}, but best.epoch is 0": {"best_sha256": "0" * 64},
    f"best_sha256: {'1' * 64}, but best.epoch is 1": SECOND | {"best_sha256": "1" * 64},
    "config.num_classes: 3, but class_names has 2": {"config": {"num_classes": 3}},
    "frequency: .3,., but class_names has 2": {"frequency": torch.zeros(3)},
    "args.fit: a.nb.x1b.2J, must be squash or letterbox": {"args": {"fit": "a\nb\x1b[2J"}},
    "model: head.bias is no linear head": {"model": {"head.bias": torch.zeros(2)}},
    "model: nothing is no linear head": {"model": {}},
    "model.head.bias: .2,., weight .3, 2., but it has 2 outputs": {
        "model": HEAD | {"head.weight": torch.zeros(3, 2)}},
    "model.head.bias: .1,., weight .2, 3., but it has 2 outputs": {
        "model": HEAD | {"head.bias": torch.zeros(1)}},
    "model.head.bias: .2,., weight .2,., but it has 2 outputs": {
        "model": HEAD | {"head.weight": torch.zeros(2)}},
    "model.w: 3, must be a tensor": {"model": HEAD | {"w": 3}},
}  # fmt: skip


@pytest.mark.parametrize("says", DISAGREEING)
def test_parts_of_a_checkpoint_that_disagree_are_named(tmp_path, says):
    whole = state() | {"model": HEAD}
    checkpoint.save(tmp_path / "a.pt", whole)
    checkpoint.load(tmp_path / "a.pt")
    for key, value in DISAGREEING[says].items():
        merge = key in ("args", "best", "config")
        whole[key] = whole[key] | value if merge else value
    checkpoint.save(tmp_path / "a.pt", whole)
    with pytest.raises(checkpoint.CheckpointError, match=f"a.pt: no .* version: {says} – "):
        checkpoint.load(tmp_path / "a.pt")


FOREIGN = [
    b"\xff\xfe\x00", b"caf\xe9", b"not json", b"[1, 2]", b"3", b'"text"', b"null", b"{}",
    b'{"epoch": "1"}', b'{"epoch": true}', b'{"epoch": -1}', b'{"epoch": 1e99}',
    b'{"epoch": 1, "loss": "low"}', b'{"epoch": 1, "loss": [1]}', b"[" * 100_000, b"9" * 5000,
    b'{"epoch": 2, "loss": ' + b"9" * 400 + b"}", b"\0\0\0", b'{"epoch": 1, "loss": 1e308}',
]  # fmt: skip


@pytest.mark.parametrize("line", FOREIGN, ids=range(len(FOREIGN)))
def test_what_is_no_line_of_an_epoch_stays_in_the_log(tmp_path, line):
    """It is in no save's way, and is read over."""
    run = checkpoint.Run(tmp_path, False)
    run.log({"epoch": 1, "loss": 0.5})
    file = tmp_path / "log.jsonl"
    file.write_bytes(line + b"\n" + file.read_bytes() + b'{"epoch": 2, "lo')  # a kill cut it short
    run.log({"epoch": 2, "loss": 0.25})
    run.log({"epoch": 2, "loss": None})
    rows = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": None}]
    assert checkpoint.read_log(file) == rows
    assert file.read_bytes().split(b"\n")[0] == line


def test_other_flags_are_listed(tmp_path):
    run = checkpoint.Run(tmp_path, False)
    run.save(state(lr=0.1, batch_size=4, workers=0))
    run.lock.close()
    run = checkpoint.Run(tmp_path, True)
    run.refuse_other_flags({"lr": 0.1, "batch_size": 4, "workers": 2}, {"workers"})
    with pytest.raises(checkpoint.CheckpointError) as caught:
        run.refuse_other_flags({"lr": 0.2, "batch_size": 8, "workers": 0}, {"workers"})
    assert "--lr 0.1 -> 0.2, --batch-size 4 -> 8" in str(caught.value)
