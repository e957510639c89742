"""The processes of a run, one alone or torchrun's: how they start, agree, and stop together.

    torchrun --nproc-per-node 4 train.py …      # sets RANK, LOCAL_RANK, WORLD_SIZE and the address

`launch` turns an error that has its cause outside the program into one line and an exit code:
0 done, 1 bug, 2 usage, 3 bad input, 4 diverged, 5 memory or disk, 130 interrupted, 143 terminated.
Errors of ours name their own, as `exit_code`.
"""

import multiprocessing
import os
import re
import signal
import sys
import warnings
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress

import torch
import torch.distributed as dist
from torch import nn

from schema import shown, visible


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM; args[0] is its number. No `except Exception` takes it for something else.
    """


class World:
    """The processes of a run: this one, or all that torchrun started. They stop together.

    A signal ends the program at once until `polled` is True, then on all ranks where the next
    `poll` is; once it is None, as the process ends, one more changes nothing. A second SIGINT ends
    the process without a word; what is on disk is whole at any moment. What ranks tell each other
    of signals, errors and scores goes over gloo on the CPU, so that no GPU has to wait; what lies
    on a GPU (gradients, buffers, a step's sums) goes over nccl.

    rank, size  0 of 1 without torchrun; rank 0 alone prints, and has the run folder
    raises      ValueError: torchrun's variables are not all there, or not what it sets;
                RuntimeError: no answer
    """

    def __init__(self, cuda=False):
        self.rank, self.local_rank, self.size = place()
        self.signal, self.polled = None, False

        if self.size > 1:
            # Torch waits for the others without Python, which would keep our handler waiting too.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            store, *_ = next(dist.rendezvous("env://"))
            # torch 2.14 would find the addresses of before a restart in it, and wait for ever.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(f"attempt {attempt}", store)
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)

    def listen(self):
        """From here on a signal raises Interrupted: until here it has nothing to save."""
        signal.signal(signal.SIGINT, self._arrived)
        signal.signal(signal.SIGTERM, self._arrived)

    def _arrived(self, number, frame):
        # torchrun passes on a Ctrl-C that its children got from the terminal already.
        if self.signal == number == signal.SIGINT and self.size == 1:
            end_workers()
            os._exit(130)

        # Before the first step nothing has to be waited for; after it, all ranks stop together. One
        # that comes while another, or the run, ends is heeded by nobody.
        is_first, self.signal = self.signal is None, number
        if self.polled is None:
            return
        if not self.polled and is_first:
            raise Interrupted(number)
        if self.polled and self.rank == 0:  # past Python's buffers, which it may have interrupted
            with suppress(OSError):
                os.write(2, b"\nstopping after this step\n")

    def poll(self, due=False) -> bool:
        """Whether something is due on any rank; raises Interrupted if any rank got a signal."""
        # The largest number wins: SIGTERM where ranks got different signals.
        number, due = self.reduce(torch.tensor([self.signal or 0, int(due)]), "max").tolist()
        if number:
            raise Interrupted(number)
        return bool(due)

    def act_at_once(self):
        """Nothing is left that all ranks do together: from here on a signal ends rank 0 where it
        is, and the others, which wait for it, as soon as they leave."""
        self.poll()
        self.polled = self.rank > 0
        self.heed()

    def heed(self):
        """Raises Interrupted, if a signal came to this rank."""
        if self.signal:
            raise Interrupted(self.signal)

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
        if self.size > 1:
            for tensor in module.state_dict().values():
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
        """Leave no process behind. After an error the others get one too, as they wait for this."""
        end_workers()
        if self.size > 1:
            with suppress(RuntimeError):  # another one has failed meanwhile
                if code == 0:
                    self.reduce(torch.zeros(1))  # until all are here: nobody waits for this one
                dist.destroy_process_group()  # or its threads abort the exit: 1 of 24 processes


def end_workers():
    """Kill the decoding processes that an exception left: Python's exit would wait for them, since
    they do not listen to SIGTERM."""
    if hasattr(signal, "SIGCHLD"):  # Windows has none
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


def place() -> tuple[int, int, int]:
    """(rank, its number on this machine, number of ranks), by torchrun's variables or, without
    them, 0, 0 of 1. raises  ValueError: they are not what torchrun sets"""
    named = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    missing = [name for name, value in named.items() if value is None]
    if len(missing) == 2:
        return 0, 0, 1
    if missing:
        raise ValueError(f"{missing[0]} is not set, and {(named.keys() - missing).pop()} is")

    named["LOCAL_RANK"] = os.environ.get("LOCAL_RANK", "0")
    for name, value in named.items():
        if not re.fullmatch("[0-9]{1,6}", value):
            raise ValueError(f"{name} {shown(value)}: must be a number")
    rank, size, local_rank = map(int, named.values())
    if not local_rank <= rank < size:
        said = ", ".join(f"{name} {value}" for name, value in named.items())
        raise ValueError(f"{said}: must be LOCAL_RANK <= RANK < WORLD_SIZE")
    return rank, local_rank, size


def choose_device(named=None) -> str:
    """`named`, or a GPU where there is one. Under torchrun each rank has the GPU of its number."""
    device = named
    if named is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and ranks() > 1:
        return f"cuda:{place()[1]}"
    return device


def ranks() -> int:
    """The number of torchrun's processes; 1 where it makes no sense: World says what is wrong."""
    try:
        return place()[2]
    except ValueError:
        return 1


def device_rules(device):
    """[(whether it is broken, sentence)] for a --device."""
    named = re.fullmatch(r"cpu|cuda(:(0|[1-9][0-9]{0,2}))?", device)
    on_cuda = device.startswith("cuda")
    is_missing = on_cuda and not torch.cuda.is_available()
    gpus = torch.cuda.device_count() if on_cuda else 0
    beyond = named and int(named[2] or 0) >= gpus > 0
    each = ", and torchrun's processes take one each" if ranks() > 1 else ""
    return [
        (not named, "--device: is cpu, cuda or cuda:N"),
        (is_missing, f"--device {device}: no CUDA here"),
        (beyond, f"--device {device}: the last GPU here is cuda:{gpus - 1}{each}"),
    ]


# -------------------------------------------------------------------------------------- exit codes


def launch(program, work, args, smaller, last=None) -> int:
    """Run work(args, world) on this rank, whose errors become one line each; the exit code.

    program  what the line begins with
    args     of which .device is heeded here
    smaller  flags that need less memory, for the line on a lack of it
    last     Path of the checkpoint that a stopped run continues from; None: nothing is kept
    """
    # A stream is None where it was closed, as by >&-.
    out, err = (Outlet(s or open(os.devnull, "w")) for s in (sys.stdout, sys.stderr))  # noqa: SIM115
    if hasattr(out, "reconfigure"):  # the stream of a notebook has no such method
        out.reconfigure(line_buffering=True, errors="replace")
    with redirect_stdout(out), redirect_stderr(err):
        code = start(program, work, args, smaller, last)

        # What was lost is said where it still can be, once all else is done.
        for outlet, name in (out, "standard output"), (err, "standard error"):
            if outlet.error:
                code = code or 5
                line = f"{name}: {outlet.error.strerror} – lines of it are lost, all else is whole"
                print(f"{program}: {line}", file=err if outlet is out else out)
                # What is left of them would fail once more as Python ends, with code 120.
                with suppress(AttributeError, OSError, ValueError), open(os.devnull, "w") as none:
                    os.dup2(none.fileno(), outlet.fileno())
    return code


# What could move the cursor, but for what show_line writes.
CONTROL = r"(?!\x1b\[K)[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"


class Outlet:
    """A text stream, but that what cannot be written, to a full disk or a closed pipe, is lost: a
    training is worth more than a line on it. error is the last OSError, or None."""

    def __init__(self, stream):
        self.stream, self.error = stream, None

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        try:
            return self.stream.write(re.sub(CONTROL, lambda found: visible(found[0]), text))
        except OSError as error:
            self.error = error
            return len(text)

    def flush(self):
        try:
            self.stream.flush()
        except OSError as error:
            self.error = error


def start(program, work, args, smaller, last) -> int:
    """As `launch`, whatever becomes of the lines that are printed."""
    if ":" in args.device:
        torch.cuda.set_device(args.device)

    try:
        world = World(args.device.startswith("cuda"))
    except ValueError as error:
        return fail(program, 2, f"{error} – start with torchrun, or without these variables")
    except RuntimeError as error:
        reason = str(error).partition(". ")[0]
        return fail(program, 5, f"the other processes cannot be reached: {reason}")

    if world.rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
        warnings.simplefilter("ignore")

    # Whatever happens, the other ranks are told, and no process stays behind.
    code = 1
    try:
        world.listen()
        work(args, world)
        world.heed()
        code = 0
    except Interrupted as error:
        world.polled = None
        code = 128 + error.args[0]
        kept = f"; {last} is whole, and --resume continues from it"
        text = kept if last and last.exists() else ""
        fail(f"\n{program}", code, f"{signal.Signals(error.args[0]).name}{text}")
    except Exception as error:
        world.polled = None
        code, line = diagnose(error, smaller)
        if code == 1:
            raise
        fail(program, code, line)
    finally:
        world.polled = None
        world.leave(code)
    return code


def fail(program, code, line) -> int:
    """Prints the line, or lines, without what else a file or a server may have put into them."""
    print(f"{program}: {visible(line)}", file=sys.stderr)
    return code


def diagnose(error, smaller):
    """The exit code of an error, and a line on what happened and what to do; code 1: a bug.

    Torch has no types for the last ones, which are known by their words, as of 2.11 and 2.14.
    """
    text = str(error)
    if "Original Traceback" in text:  # raised in a worker, which sends all of it as the message
        text = text.rpartition(f"{type(error).__name__}: ")[2]
        text = text.removesuffix("\\n").strip()  # a DataError has escaped it

    # Ours, and those that have a type.
    if hasattr(error, "exit_code"):
        return error.exit_code, text
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return 5, f"out of memory: {text.partition(chr(10))[0]} – try {smaller}"
    if isinstance(error, OSError):
        return 5, text

    # Those that torch tells by their words alone.
    if not isinstance(error, RuntimeError):
        return 1, text

    if "shared memory" in text:  # a worker has no room for its batch
        return 5, (
            f"{text.partition(chr(10))[0]} – try --workers 0, fewer --workers, a smaller "
            "--batch-size, or more shared memory"
        )
    if "Too many open files" in text:
        return 5, "too many open files – try fewer --workers, or raise ulimit -n"
    if "DataLoader" in text:  # a worker was killed, or brought nothing in time
        return 5, f"{text} – try --workers 0, or more shared memory"
    if "No working C++ compiler" in text:
        return 5, "--compile: no working C++ compiler – install one, or leave it out"
    if re.search("DefaultCPUAllocator|CUDA error: out of memory|STATUS_ALLOC_FAILED", text):
        return 5, f"out of memory – try {smaller}"
    if isinstance(error, dist.DistError) or "gloo" in text:
        return 5, "another process of the run has ended, or cannot be reached"
    return 1, text
