"""What a long pass over frames says of itself: lines, rates, an estimate, peak memory; and, before
it begins, that it may not fit."""

import math
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

import model
from flags import smaller

PARTS = ("data", "augment", "gradient", "optimizer")  # of a step, as they are timed


def clock(seconds) -> str:
    """12 s as 0:12, 2 h as 2:00:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def show_line(line, last):
    """On a terminal a line takes the place of the one before, until it is the last; elsewhere each
    has a row of its own. A wrapped line could not be replaced, so it is cut."""
    if not sys.stdout.isatty():
        print(line, flush=True)
    elif last:
        print(f"\r\x1b[K{line}", flush=True)
    else:
        print("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1], end="", flush=True)


def show_interval() -> int:
    """Seconds between lines: few where they replace each other, more in a log file."""
    return 1 if sys.stdout.isatty() else 10


def about(seconds) -> str:
    """A time in one unit, as an estimate is told."""
    if seconds < 90:
        return f"about {math.ceil(seconds / 10) * 10} s"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"


def peak_memory(device) -> int:
    """Bytes: of the GPU's allocator, or of this process where there is no GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not a POSIX system
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def reset_peak_memory(device):
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux alone can
            Path("/proc/self/clear_refs").write_text("5")


def free_memory(group="/sys/fs/cgroup") -> int | None:
    """Bytes that processes can still get, of this container where it has a limit; None: unknown.

    group  folder in which Linux tells a container's limit and use
    """
    free = []
    with suppress(OSError, ValueError):
        fields = Path("/proc/meminfo").read_text().split()
        free.append(1024 * int(fields[fields.index("MemAvailable:") + 1]))
    with suppress(OSError, ValueError):  # "max" is no limit
        limit = int(Path(group, "memory.max").read_text())
        free.append(limit)
        used = int(Path(group, "memory.current").read_text())
        fields = Path(group, "memory.stat").read_text().split()
        # What is kept of files can be read again.
        for name in "active_file", "inactive_file":
            used -= int(fields[fields.index(name) + 1])
        free.append(limit - used)
    return min(free, default=None)


def memory_warning(config, frames, args) -> str:
    """A line, where a step of the network on a CPU takes more memory than is free, or "": the
    system ends such a process without a word. A GPU's lack of it is an error, which is told.

    frames  all there are, which a batch may be larger than
    """
    free = free_memory()
    if free is None or args.device != "cpu" or args.checkpoint_activations:
        return ""
    batch = min(args.batch_size, math.ceil(frames / args.ranks))
    needed = batch * model.activation_bytes(config, args.image_size)
    if needed < free:
        return ""
    return (
        f"warning: a step takes about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are "
        f"free: the system may end the process without a word – try {smaller(args)}"
    )


class Progress:
    """What a pass over the training frames says of itself, in lines as show_line shows them.

    name     what a line begins with
    after    the work that follows this pass until the run ends, in such passes
    total    what the run is, said with its expected time in the first line; "": not said
    seconds  of each part of the step, since the last restart
    slow     seconds of a GPU's first step, which rates and estimates leave out
    """

    def __init__(self, name, steps, device, after=0.0, total=""):
        self.name, self.steps, self.device = name, steps, device
        self.after, self.total = after, total

    def restart(self, warm=0):
        """The clock starts, after `warm` frames."""
        self.began = self.shown = self.marked = time.monotonic()
        self.warm, self.seconds = warm, dict.fromkeys(PARTS, 0.0)
        self.slow = 0.0
        if not warm:
            reset_peak_memory(self.device)

    def mark(self, part):
        """Here ends a part of the step; on a GPU, that of the host, which runs ahead of it."""
        now = time.monotonic()
        self.seconds[part] += now - self.marked
        self.marked = now

    def due(self, step):
        if step + 1 == self.steps or (step == 0 and (self.total or self.device.type == "cuda")):
            return True
        return time.monotonic() - self.shown > show_interval()

    def summary(self, seen) -> dict:
        seconds = time.monotonic() - self.began
        self.seen = seen
        return {
            "seconds": seconds,
            "images_per_second": (seen - self.warm) / (seconds - self.slow),
            "data_wait": self.seconds["data"] / seconds,
            "memory_gb": peak_memory(self.device) / 1e9,
        }

    def show(self, step, row):
        self.shown = self.marked = time.monotonic()  # what the sums waited for was no data

        # A GPU's first step also loads libraries, chooses algorithms and records the launches: it
        # is no measure of the others.
        if step == 0 and self.device.type == "cuda" and self.steps > 1:
            self.slow, self.warm = row["seconds"], self.seen
            return

        steps_timed = step if self.slow else step + 1
        seconds = row["seconds"] - self.slow
        left = seconds * (self.steps - step - 1) / steps_timed
        whole = seconds + left  # seconds of a pass, as it seems
        if self.total:
            show_line(f"{self.total}, {about(whole * (1 + self.after))}", last=True)
            self.total = ""

        # What matters most comes first, as a terminal may cut the line.
        line = (
            f"{self.name} step {step + 1}/{self.steps}  loss {row['loss']:.4f}  "
            f"left {clock(left)}, of the run {clock(left + self.after * whole)}  "
            f"{row['images_per_second']:.0f} images/s  lr {row['lr']:.1e}  "
            f"|g| {row['gradient_norm']:.2f}  data wait {row['data_wait']:.0%}  "
            f"memory {row['memory_gb']:.1f} GB"
        )
        show_line(line, last=step + 1 == self.steps)
