"""Processes that tests start, forked from this one, which has torch loaded; waits with an end."""

import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch


def wait_until(happened, seconds=60):
    """Returns when happened() is true, and fails if it never is."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def fork(child, log) -> int:
    """`child` in a process of its own, whose exit code is what it returns; it writes to `log`."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        code = 99
        try:
            with open(log, "w", buffering=1) as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                sys.stdout = sys.stderr = file
                torch.set_num_threads(1)  # makes its pool anew, which threads must not do at once
                try:
                    code = child() or 0
                    sys.stdout.flush()  # as Python does when it ends
                except BaseException:
                    traceback.print_exc()
        finally:
            os._exit(code)
    return process


def script(name, log, *arguments) -> int:
    """The process of one of the programs, as `python NAME ARGUMENTS`, which writes to `log`."""
    path = str(Path(__file__).parents[1] / name)

    def child():
        sys.argv = [path, *map(str, arguments)]
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Python's, before a test's own
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            return end.code

    return fork(child, log)


def ended(process, seconds=60) -> int:
    """The exit code of a forked process."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pid, status = os.waitpid(process, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return pytest.fail(f"process {process} still ran after {seconds} s")
