import os
import signal
import sys

import pytest
import torch

import demo

# Small tensors: more threads only wait for each other. Programs that tests start do the same.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A small A2D tree of drawn scenes: 22 training and 9 validation frames."""
    root = tmp_path_factory.mktemp("scenes") / "A2D"
    demo.generate(root, train=22, val=9, progress=None)
    return root


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Nothing is read from or written to the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def signals():
    """train.main installs handlers: give pytest its own back."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def charts():
    """For the runs that are to draw charts, which takes 2 s of each."""
    pytest.importorskip("matplotlib")


@pytest.fixture
def few_charts(request, tmp_path_factory, monkeypatch):
    """Only tests that ask for `charts` can import matplotlib, and what they start."""
    if "charts" not in request.fixturenames:
        folder = tmp_path_factory.mktemp("without")
        (folder / "matplotlib.py").write_text("raise ImportError")
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
