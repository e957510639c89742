import gc
import http.server
import os
import signal
import sys
import threading

import pytest

# Small tensors: more threads only wait for each other. Programs that tests start do the same.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_configure(config):
    """Tests run as on a machine without a GPU, but for `-k cuda`, which selects those of CUDA: a
    process cannot both have used a GPU and be forked, or have been without and then use it."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        return  # it hands out tests and runs none: torch, which takes 2 s, is not for it

    import torch

    torch.set_num_threads(1)
    if not config.option.keyword.startswith("cuda"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # With the first gradient torch decides whether gradients need threads, which no fork would
        # survive: here, before an export pretends that there is a GPU.
        torch.ones((), requires_grad=True).backward()


def pytest_collection_finish():
    """What is loaded by now stays: the garbage collector looks at a million objects less, here and
    in every fork, which would have to copy each that is looked at."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """A process a core, each with one thread; each may hold 2 GB, so no more than eight."""
    return min(8, os.cpu_count() or 1)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A small A2D tree of drawn scenes: 22 training and 9 validation frames."""
    import demo

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


@pytest.fixture(scope="session", autouse=True)
def no_charts(tmp_path_factory):
    """Charts take 2 s of each run: matplotlib.figure can only be imported by tests that ask for
    `charts`, and not at all by what tests start."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "matplotlib.py").write_text("raise ImportError")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        patch.setitem(sys.modules, "matplotlib.figure", None)
        yield


@pytest.fixture(scope="session")
def chart_library(no_charts):
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "matplotlib.figure")
        return pytest.importorskip("matplotlib.figure")


@pytest.fixture
def charts(chart_library, monkeypatch):
    """For the tests that look at charts."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", chart_library)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty torch hub cache, and no proxy."""
    import torch

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "home" / "hub" / "checkpoints"


@pytest.fixture
def server():
    """Serves `pages`: path -> (status, body or None: hangs, bytes that it says it will send)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, body, length = pages.get(self.path, (404, b"", 0))
            self.send_response(status)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            if body is None:
                done.wait(20)  # the server hangs
            self.wfile.write(body or b"")

        def log_message(self, *arguments):
            pass

    pages, asked, done = {}, [], threading.Event()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=[0.01])
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", pages, asked
    done.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()
