"""Run folders and checkpoints that survive a kill at any moment.

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
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import warnings
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path

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
    content = buffer.getvalue()
    assert content[-2:] == b"\0\0", "a zip without comment ends in a comment length of 0"
    content = content[:-2] + struct.pack("<H", TAIL) + COMMENT
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.write(hashlib.sha256(content).hexdigest().encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
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
    if hashlib.sha256(content[:-64]).hexdigest().encode() != content[-64:]:
        raise CheckpointError(f"{path}: damaged, its sha256 does not match – {advice}")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler's refusals have no common type
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: holds more than tensors ({reason}) – {advice}") from None
    if not isinstance(state, dict) or "config" not in state:
        raise CheckpointError(f"{path}: no checkpoint of train.py – {advice}")
    return state


class Run:
    """A run folder: locked while the object lives, left whole by a kill at any moment.

    saved   the state in last.pt, or None in a new folder
    raises  CheckpointError: in use, holds a run though not `resume`, cannot be written, damaged
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
        if last.exists() and not resume:
            raise CheckpointError(
                f"{folder}: holds a run already – --resume continues it, another --out starts one"
            )
        self.saved = load(last) if last.exists() else None

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
                "or --override to go on with these"
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
        if self.size == 1 or not code:
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
