"""Our own files: checkpoints and run folders, which survive a kill at any moment.

A checkpoint is torch's own zip file of plain types and tensors (torch.load reads it), with a sha256
of all bytes before it as the archive's comment. It is written to a temporary name, synced, and
renamed; the folder is synced after. torch.load alone notices 2 of 200 flipped bits, the hash all.

    runs/<name>/last.pt       everything a resume needs, as of the end of an epoch
    runs/<name>/last.prev.pt  the one before it
    runs/<name>/best.pt       best validation F1 so far: weights, classes, threshold; no optimizer
    runs/<name>/best.prev.pt  the one before it, which last.pt may still name: its best_sha256 says
                              which of the two files belongs to it
"""

import hashlib
import io
import json
import os
import platform
import re
import shutil
import socket
import struct
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

import schema
from schema import FRACTION, TEXT, Rule, in_a_line, number, one_of, open_file, shown, whole

try:
    import fcntl
except ImportError:  # not a POSIX system: run folders are not locked
    fcntl = None

COMMENT = b"sha256:"  # then 64 hex digits: the zip comment, and the last bytes of the file
TAIL = len(COMMENT) + 64


class CheckpointError(ValueError):
    """A checkpoint or run folder that cannot be used; the message is one line."""

    exit_code = 3


# ------------------------------------------------------------------------- what a checkpoint holds


def _are_shares(value):
    is_vector = schema.tensor_fault(value) is None and value.ndim == 1
    return is_vector and value.dtype == torch.float32 and bool((value == value.clamp(0, 1)).all())


def _are_hashes(value):
    is_vector = schema.tensor_fault(value) is None and value.ndim == 1
    return is_vector and value.dtype == torch.int64


def _is_sha256(value):
    return type(value) is str and re.fullmatch("[0-9a-f]{64}", value) is not None


INPUT_CONFIG = {
    "size": whole(32, 4096),  # pixels
    "mean": schema.several(3, FRACTION),
    "std": schema.several(3, number(1e-3, 10)),
    "interpolation": one_of("bilinear", "bicubic"),
}
DICT = Rule("a dict", lambda value: isinstance(value, dict))
DICT_OR_NONE = Rule("a dict or None", lambda value: value is None or isinstance(value, dict))
MANY = 10**9  # epochs and steps are fewer
RULES = {
    "config": {  # model.create_model's
        "arch": TEXT, "num_classes": whole(1, 100_000), "head": one_of("mish", "linear"),
        "dropout": FRACTION, "flavour": TEXT._replace(optional=True),
        "se_pool": TEXT._replace(optional=True),
        "drop_connect": number(0, 0.99)._replace(optional=True),
    },
    "input_config": INPUT_CONFIG,
    "class_names": schema.NAMES,
    "frequency": Rule("a tensor of shares", _are_shares),
    "frames": {"train": TEXT, "val": TEXT},
    "trained_on": Rule("a tensor of int64", _are_hashes),
    "args": schema.ARGS,
    "epoch": whole(0, MANY),
    "best": {"f1": number(-1, 1), "epoch": whole(0, MANY)},
    "best_sha256": Rule("None or a sha256", lambda value: value is None or _is_sha256(value)),
    "threshold": FRACTION,
    "model": DICT,
    "average": DICT_OR_NONE,
    "averaged": whole(0, MANY),
    "optimizer": DICT_OR_NONE,
    "scaler": DICT_OR_NONE,
}  # fmt: skip


def _disagreement(state) -> str | None:
    """What two parts of a checkpoint say differently, each of which could be true."""
    config, args, best = state["config"], state["args"], state["best"]
    said = config | {"image_size": state["input_config"]["size"]}
    for name in ("arch", "head", "dropout", "image_size"):
        if args.get(name) != said[name]:
            return f"args.{name}: {shown(args.get(name))}, but the network has {shown(said[name])}"
    if args.get("fit") not in ("squash", "letterbox"):
        return f"args.fit: {shown(args.get('fit'))}, must be squash or letterbox"

    if best["epoch"] > state["epoch"]:
        return f"best.epoch: {best['epoch']}, but epoch is {state['epoch']}"
    names_a_best = best["epoch"] > 0 and state["optimizer"] is not None
    if names_a_best != (state["best_sha256"] is not None):
        return f"best_sha256: {state['best_sha256']}, but best.epoch is {best['epoch']}"
    if bool(args.get("ema")) != (state["average"] is not None):
        return f"average: {'is missing' if args.get('ema') else 'is unexpected'}, by args.ema"

    classes = len(state["class_names"])
    if config["num_classes"] != classes:
        return f"config.num_classes: {config['num_classes']}, but class_names has {classes}"
    if state["frequency"].shape != (classes,):
        return f"frequency: {tuple(state['frequency'].shape)}, but class_names has {classes}"
    return _weights_fault(state["model"], state["average"], config["head"], classes)


def _weights_fault(weights, average, head, classes) -> str | None:
    """What is wrong with weights of a network that nobody has made yet, nor will, if its head is of
    another width than there are classes."""
    for name, tensor in weights.items():
        key = f"model.{name}"
        if wrong := schema.tensor_fault(tensor, key) or schema.range_fault(tensor, key):
            return wrong

    shapes = {key: tuple(t.shape) for key, t in weights.items() if str(key).startswith("head.")}
    outputs = {"head.": classes}
    if head == "mish":
        hidden = shapes.get("head.0.bias", ())
        outputs = {"head.0.": hidden[0] if hidden else 0, "head.3.": classes}
    if shapes.keys() != {layer + name for layer in outputs for name in ("weight", "bias")}:
        return f"model: {in_a_line(', '.join(shapes) or 'nothing')} is no {head} head"
    for layer, out in outputs.items():
        weight, bias = shapes[f"{layer}weight"], shapes[f"{layer}bias"]
        if len(weight) != 2 or weight[0] != out or bias != (out,):
            return f"model.{layer}bias: {bias}, weight {weight}, but it has {out} outputs"

    return None if average is None else schema.tree_fault(average, weights, "average")


def pack(state: dict) -> tuple[memoryview, bytes]:
    """A checkpoint's bytes in two parts, of which the last 64 are their hash."""
    # torch's zip file ends in the length of its comment, 0; ours has the hash as its comment.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content, comment = buffer.getbuffer()[:-2], struct.pack("<H", TAIL) + COMMENT
    assert buffer.getbuffer()[-2:] == b"\0\0", "a zip without comment ends in a comment length of 0"
    digest = hashlib.sha256(content)
    digest.update(comment)
    return content, comment + digest.hexdigest().encode()


@contextmanager
def replacing(path):
    """A temporary name in the folder of `path`, which becomes it where the block ends well.

    raises  OSError naming path (disk full, folder gone): the file that was there is untouched
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def write(path, parts):
    """Write bytes to `path` so that a kill or a full disk leaves the old file or the new one.

    raises  OSError, as `replacing`
    """
    path = Path(path)
    # The bytes are on the disk before the name points to them, and the name before we return.
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def save(path, state: dict):
    """Write a checkpoint. raises  OSError, as `replacing`"""
    write(path, pack(state))


def _end_of(path, count) -> bytes:
    """The last bytes of a file; none where it has not as many, or cannot be read."""
    try:
        with open_file(path) as file:
            file.seek(-count, os.SEEK_END)
            return file.read()
    except OSError:
        return b""


def sha256_in(path) -> str | None:
    """The hash that a checkpoint carries, unverified; None: there is no such file, or hash."""
    digest = _end_of(path, 64).decode("ascii", "replace")
    return digest if _is_sha256(digest) else None


def is_ours(path) -> bool:
    """Whether a file ends as a checkpoint does."""
    return _end_of(path, TAIL).startswith(COMMENT)


def load(path) -> dict:
    """Read and verify a checkpoint; runs no code from it, tensors arrive on the CPU.

    A right hash says that the file is whole, and not that it means well: so every key is looked at
    too, and its tensors where the network and the optimizer are made (`restore`).

    raises  CheckpointError: missing, truncated, a bit changed, or not a checkpoint of this program
    """
    path = Path(path)
    try:
        with open_file(path) as file:
            content = file.read()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror} – check the path") from None

    # The file before is offered and never taken: whoever asked for this one is to know.
    previous = path.with_name("last.prev.pt")
    advice = "use another checkpoint"
    if path.name == "last.pt" and previous.exists():
        advice = f"copy {previous.name} over it"

    if content[:4] != b"PK\3\4" or content[-TAIL:-64] != COMMENT:
        raise CheckpointError(f"{path}: truncated, or no checkpoint of train.py – {advice}")
    if hashlib.sha256(memoryview(content)[:-64]).hexdigest().encode() != content[-64:]:
        raise CheckpointError(f"{path}: damaged, its sha256 does not match – {advice}")

    try:
        state = schema.read_tensors(io.BytesIO(content), len(content))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error} – {advice}") from None
    if wrong := schema.fault(state, RULES) or _disagreement(state):
        raise CheckpointError(f"{path}: no checkpoint of this version: {wrong} – {advice}")
    return state


def refuse_misfit(path, key, given, own):
    """Raises CheckpointError where given, state[key] of the checkpoint at path, is not as own."""
    if wrong := schema.tree_fault(given, own, key):
        raise CheckpointError(f"{path}: {wrong} – use another checkpoint")


def restore(path, key, given, own):
    """Copies the tensors of a tree into those of own, of which a misfit changes none."""
    refuse_misfit(path, key, given, own)
    schema.copy_into(own, given)


# ------------------------------------------------------------------------------------ run folders

RUN_FILES = ("log.jsonl", "report.csv", "curves.png", "classes.png")  # beside the checkpoints


def refuse_foreign(folder, names, *signs):
    """Raises CheckpointError where a folder has files of these names, which would be replaced, and
    none of the files `signs`, which are written before them."""
    there = [name for name in names if os.path.isfile(Path(folder, name))]
    if there and not any(os.path.lexists(Path(folder, sign)) for sign in signs):
        advice = "move them away, or choose another --out"
        if "last.prev.pt" in there:
            advice = "rename last.prev.pt to last.pt, or choose another --out"
        raise CheckpointError(
            f"{folder}: {', '.join(there)} would be replaced, as {' or '.join(signs)} is missing – "
            f"{advice}"
        )


class Run:
    """A run folder: locked while the object lives, left whole by a kill at any moment.

    resume  None: the run begins; "same"; "override", which may lose the best of before
    saved   the state in last.pt, or None where a run begins
    raises  CheckpointError: in use, holds epochs of a run though not `resume`, or files of no run,
            cannot be written, damaged, without the best.pt that last.pt names
    """

    def __init__(self, folder, resume=None):
        self.folder = Path(folder)
        self.last, self.best = self.folder / "last.pt", self.folder / "best.pt"
        refuse_foreign(folder, RUN_FILES, "last.pt", "args.json")
        refuse_foreign(folder, ["best.pt", "last.prev.pt"], "last.pt")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = open(self.folder / "lock", "a+", errors="replace")  # noqa: SIM115
        except OSError as error:
            raise CheckpointError(f"{folder}: {error.strerror} – choose another --out") from None

        # A POSIX lock ends with this process, not with the workers that may outlive a kill of it.
        if fcntl:
            try:
                fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                self.lock.seek(0)
                raise CheckpointError(
                    f"{folder}: in use by {self.lock.read()} – wait, or choose another --out"
                ) from None
            except OSError as error:
                print(f"note: {folder}: {error.strerror}: two runs in it are not kept apart")

        with suppress(OSError):  # a full disk; who has the lock is only for the message
            self.lock.truncate(0)
            self.lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            self.lock.flush()

        for stale in self.folder.glob(".*.tmp"):
            stale.unlink()
            print(f"removed {stale}: a save that was cut short")

        self.saved = load(self.last) if os.path.lexists(self.last) else None
        if resume and not self.saved:
            print(f"{folder}: holds no run that could go on, so --resume starts one")
        if self.saved and not resume and self.saved["epoch"]:
            raise CheckpointError(
                f"{folder}: holds a run already – --resume continues it, another --out starts one"
            )
        # A run that has not finished an epoch is no loss, and is begun anew.
        if not resume:
            self.saved = None

        # The best that last.pt names; and the bytes of a better one for which the disk had no room,
        # which the next save tries to write.
        self.named = self.saved["best_sha256"] if self.saved else None
        self.unwritten = None
        if self.named:
            self._find_best(resume)

    def _find_best(self, resume):
        """best.pt is to be the one that last.pt names. A kill between the saves of both leaves that
        of an epoch which is made again, perhaps by other flags, and the named one as best.prev.pt.
        """
        previous = self.best.with_name("best.prev.pt")
        if sha256_in(self.best) == self.named:
            return
        if sha256_in(previous) == self.named:
            os.replace(previous, self.best)
            print(f"{self.best}: restored, as last.pt names it; a save was cut short")
            return

        epoch = self.saved["best"]["epoch"]
        wrong = f"{self.best}: is not the one of epoch {epoch} that last.pt names"
        if resume != "override":
            raise CheckpointError(
                f"{wrong} – put that back; --resume override looks for a best epoch anew"
            )
        print(f"{wrong}, so the best epoch is looked for anew")
        self.saved["best"] = {"f1": -1.0, "epoch": 0}

    def refuse_other_flags(self, flags: dict, free_to_change):
        """raises CheckpointError listing the flags that differ from the saved run's, old -> new."""
        old = self.saved["args"]
        differing = [
            f"{'processes' if name == 'ranks' else '--' + name.replace('_', '-')} "
            f"{in_a_line(old.get(name))} -> {value}"
            for name, value in flags.items()
            if name not in free_to_change and old.get(name) != value
        ]
        if differing:
            raise CheckpointError(
                f"{self.folder}: other flags than the run's: {', '.join(differing)} – give those, "
                "or another --out; --resume override takes others of the same network and optimizer"
            )

    def write_args(self, flags: dict):
        """args.json: flags, versions and machine."""
        write(self.folder / "args.json", [json.dumps(flags, indent=1).encode() + b"\n"])

    def save(self, state: dict, is_best=False):
        """An epoch becomes last.pt and, if it is the best one, best.pt; the last.pt before becomes
        last.prev.pt. At no moment is there a last.pt without the best.pt that it names.

        raises  OSError (disk full): all files are whole, and `_find_best` finds those that belong
                together; the next save writes a best epoch that has found no room
        """
        if is_best:  # what evaluation needs, without the optimizer
            self.unwritten = pack(state | {"optimizer": None, "scaler": None, "best_sha256": None})
        named = self.named
        if self.unwritten:
            # The best that last.pt names is kept until it names the new one. A best.pt that it does
            # not name is of an epoch whose last.pt has found no room.
            if self.named and sha256_in(self.best) == self.named:
                _keep_as_previous(self.best)
            write(self.best, self.unwritten)
            named = self.unwritten[1][-64:].decode()

        if self.last.exists():
            _keep_as_previous(self.last)
        save(self.last, state | {"best_sha256": named})
        self.named, self.unwritten = named, None

    def log(self, row: dict):
        """An epoch's line of log.jsonl, in place of those of this epoch or later ones: they are
        redone. What is no line of an epoch stays as it is. raises  OSError
        """
        file = self.folder / "log.jsonl"
        lines = [line for line, old in _log_lines(file) if not old or old["epoch"] < row["epoch"]]
        write(file, [line + b"\n" for line in [*lines, json.dumps(row).encode()]])


def _keep_as_previous(file):
    """x.pt gets the name x.prev.pt too, and keeps its own."""
    # After a kill or a failed save both names may be one file: then a rename of a third name of it
    # onto the second does nothing, and leaves the third, and a copy into the second damages both.
    with replacing(file.with_name(f"{file.stem}.prev.pt")) as spare:
        try:
            os.link(file, spare)
        except OSError:  # a file system without hard links
            shutil.copyfile(file, spare)


def refuse_other_frames(folder, saved, frames, classes, resume):
    """Raises CheckpointError: of other classes than the saved run's or, but for the resume
    "override", of other frames. frames is {split: data.Frames.fingerprint()}."""
    if saved["class_names"] != classes:
        raise CheckpointError(f"{folder}: of other classes than the data – choose another --out")
    old = saved["frames"]
    differing = [f"{s} {in_a_line(old[s])} -> {new}" for s, new in frames.items() if old[s] != new]
    if differing and resume != "override":
        raise CheckpointError(
            f"{folder}: other frames than the run's: {'; '.join(differing)} – give those, or "
            "another --out; --resume override takes others of the same classes"
        )


def refuse_other_threads(args, saved):
    """Says where a CPU computes with other threads than before, whose sums are rounded otherwise;
    raises CheckpointError where bits are to be the same."""
    before = saved["args"].get("threads")
    if args.device != "cpu" or args.threads == before:
        return
    before = in_a_line(before)
    line = f"{args.out}: threads {before} -> {args.threads}, which round sums otherwise"
    if args.deterministic and args.resume != "override":
        raise CheckpointError(f"{line} – set OMP_NUM_THREADS={before}, or --resume override")
    print(f"note: {line}")


def read_log(file) -> list[dict]:
    """The rows of a log.jsonl, one an epoch; what else stands in it is left out. raises  OSError"""
    return [row for _, row in _log_lines(file) if row]


def _log_lines(file):
    """[(line, its row, or None where it is none)], but for a last line that a kill cut short."""
    try:
        with open_file(file) as opened:
            lines = opened.read().split(b"\n")
    except FileNotFoundError:
        return []
    rows = list(map(_log_row, lines))
    if rows[-1] is None:
        del lines[-1], rows[-1]
    return list(zip(lines, rows, strict=True))


def _log_row(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and whole(1, MANY).holds(row.get("epoch")) and all(
        value is None or value != value or number(-schema.HUGE, schema.HUGE).holds(value)
        for value in row.values()
    )  # fmt: skip
    return row if is_row else None


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


def _sync_folder(folder):
    """As far as the file system can: the file is whole either way."""
    if os.name == "posix":
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
