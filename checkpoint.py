"""Our own files: checkpoints and run folders, which survive a kill at any moment.

A checkpoint is torch's own zip file of plain types and tensors (torch.load reads it), with a sha256
of all bytes before it as the archive's comment. It is written to a temporary name, synced, and
renamed; the folder is synced after. torch.load alone notices 2 of 200 flipped bits, the hash all.

    runs/<name>/last.pt       everything a resume needs, as of the end of an epoch
    runs/<name>/last.prev.pt  the one before it
    runs/<name>/best.pt       best validation F1 so far: weights, classes, threshold; no optimizer
"""

import hashlib
import io
import json
import os
import platform
import shutil
import socket
import struct
import subprocess
from pathlib import Path

import torch

try:
    import fcntl
except ImportError:  # not a POSIX system: run folders are not locked
    fcntl = None

COMMENT = b"sha256:"  # then 64 hex digits: the zip comment, and the last bytes of the file
TAIL = len(COMMENT) + 64


class CheckpointError(ValueError):
    """A checkpoint or run folder that cannot be used; the message is one line."""

    exit_code = 3


def save(path, state: dict):
    """Write `state` to `path` so that a kill or a full disk leaves the old file or the new one.

    raises  OSError (disk full, folder gone): the file that was there before is untouched
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    # torch's zip file ends in the length of its comment, 0; ours has the hash as its comment.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content, comment = buffer.getbuffer()[:-2], struct.pack("<H", TAIL) + COMMENT
    assert buffer.getbuffer()[-2:] == b"\0\0", "a zip without comment ends in a comment length of 0"
    digest = hashlib.sha256(content)
    digest.update(comment)

    # The bytes are on the disk before the name points to them, and the name before we return.
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

    # The file before is offered and never taken: whoever asked for this one is to know.
    previous = path.with_name("last.prev.pt")
    advice = "use another checkpoint"
    if path.name == "last.pt" and previous.exists():
        advice = f"copy {previous.name} over it"

    # A right hash says that a file is whole, and not that it means well: torch reads no code.
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

        # A POSIX lock ends with this process, not with the workers that may outlive a kill of it.
        if fcntl:
            try:
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
        # A run that has not finished an epoch is no loss, and is begun anew.
        if not resume:
            self.saved = None

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

    def write_args(self, flags: dict):
        """args.json: flags, versions and machine."""
        (self.folder / "args.json").write_text(json.dumps(flags, indent=1) + "\n", encoding="utf-8")

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


def refuse_other_frames(folder, saved, frames, classes, resume):
    """Raises CheckpointError: of other classes than the saved run's or, but for the resume
    "override", of other frames. frames is {split: data.Frames.fingerprint()}."""
    if saved["class_names"] != classes:
        raise CheckpointError(f"{folder}: of other classes than the data – choose another --out")
    old = saved.get("frames", {})
    differing = [f"{s} {old.get(s)} -> {new}" for s, new in frames.items() if old.get(s) != new]
    if differing and resume != "override":
        raise CheckpointError(
            f"{folder}: other frames than the run's: {'; '.join(differing)} – give those, or "
            "another --out; --resume override takes others of the same classes"
        )


def read_log(file) -> list[dict]:
    """The rows of a log.jsonl; a last line that a kill cut short is left out."""
    file, rows = Path(file), []
    if not file.exists():
        return rows
    for line in file.read_text("utf-8").splitlines():
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


def _sync_folder(folder):
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
