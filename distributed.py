"""The processes of a run, one alone or torchrun's, which stop together at a signal."""

import multiprocessing
import os
import signal
import warnings
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn


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
