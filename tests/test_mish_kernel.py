"""mish_kernel: closed forms, masks and autograd on the CPU; the kernels in Triton's interpreter (a
process of its own) and compiled for five GPUs; on a CUDA machine, what only a GPU can show."""

import functools
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import mish_oracle as oracle
import numpy as np
import pytest
import torch
from compiled import SharedMemory, build, shortest_path
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import mish_kernel as mk
from tests.processes import ended, fork

ROOT = Path(__file__).parent.parent
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_triton = pytest.mark.skipif(mk.triton is None, reason="needs Triton")


def python(*arguments, **environment):
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | environment
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


# ----------------------------------------------------------------------------- kernels, interpreted


@needs_triton
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_in_the_interpreter(which):
    options = ["-q", "-x", "-n", "0", "-m", which]
    run = python("-m", "pytest", *options, "tests/mish_interpreter.py", TRITON_INTERPRET="1")
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-5000:] + run.stderr[-2000:]


# -------------------------------------------------------------------------------- kernels, compiled

ARCHITECTURES = [80, 86, 89, 90, 100]
# Instructions an element (forward, backward without and with dropout). The most over the five
# architectures and triton 3.6 and 3.8: fp16 15.5 20.2 23.8 28.3, bf16 18.0 23.2 26.3 31.5, fp32
# 34.1 40.8 45.1 51.7. nvcc's code for F.mish has 57.5 and 95.
BUDGET = {"fp16": (16, 21, 24, 29), "bf16": (19, 24, 27, 32), "fp32": (35, 42, 46, 53)}
CASES = [
    pytest.param(k, a, marks=() if a == 90 and k != "bf16" else pytest.mark.slow)
    for k, a in itertools.product(BUDGET, ARCHITECTURES)
]


@needs_triton
@pytest.mark.parametrize("kind, architecture", CASES)
def test_elementwise_kernel_compiles_within_its_budget(kind, architecture, tmp_path):
    for i, (drop, backward) in enumerate(itertools.product((0, 32768), (False, True))):
        size = mk.DTYPES[kind].itemsize
        block = mk.DROPOUT_BYTES // size if drop else mk.BLOCK
        constants = {"DROP": drop, "BLOCK": block, "num_warps": 4}
        constants |= {} if backward else {"dy_ptr": None}
        constants |= {} if drop else {"rng_ptr": None}
        types = dict.fromkeys(("dy_ptr", "x_ptr", "out_ptr"), f"*{kind}")
        code = build(tmp_path, mk.elementwise_kernel, architecture, types, constants)
        assert (code.stack, code.local) == (0, 0)
        each = shortest_path(code.sass) / (block / 128)
        assert each <= BUDGET[kind][i], each
        wide = len(re.findall(r"(?:LDG|STG)\.E(?:\.\w+)*\.128", code.sass))
        accesses = block * size // (128 * 16)  # of 16 bytes, a thread
        assert wide == (2 + backward) * accesses  # and nothing narrower
        # t + 64 of mish32 is a sum of its own, not one with the product in t.
        assert not re.search(r"FFMA.*, 64 ;", code.sass)
        assert ("FADD" in code.sass and ", 64 ;" in code.sass) == (kind == "fp32")


class Driver:
    """Triton's view of an H100 that keeps the launches and makes none.

    device  a number of its own for each test: what is compiled for it is no other's
    """

    def __init__(self, device):
        self.device = device
        self.utils, self.handles, self.launches = self, itertools.count(), []
        self.launcher_cls = lambda source, metadata: self.keep

    def keep(self, x, y, z, stream, function, packed, metadata, enter, leave, *arguments):
        self.launches.append((function, x, y, z, stream, len(arguments)))

    def get_current_device(self):
        return self.device

    def get_current_stream(self, device):
        return 7

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_device_properties(self, device):
        return {"max_shared_mem": 232448}

    def load_binary(self, *_):
        return self, next(self.handles), 32, 0, 1024  # module, function, registers, spills, threads


@needs_triton
def test_a_counter_has_no_kernel_of_its_own(monkeypatch):
    """They lie 4 bytes apart, and Triton compiles one kernel for addresses of 16 bytes and another
    for the rest, unless told not to."""
    driver = Driver(98)
    monkeypatch.setattr(mk.triton.runtime.driver, "_active", driver)
    monkeypatch.setattr(mk, "has_kernels", lambda device: True)
    *leaves, target = mk.head_inputs(64, 2048, torch.float16, "cpu")
    for counter in torch.zeros(4, dtype=torch.int32).split(1):
        monkeypatch.setattr(mk, "ticket", lambda x, counter=counter: counter)
        with torch.autocast("cpu", torch.float16):
            mk.mish_head_bce(*leaves, target)
    assert len(driver.launches) == 4 and next(driver.handles) == 1


@needs_triton
def test_a_captured_launch_takes_the_kernel_of_an_eager_one(monkeypatch):
    """Another could not be loaded during a capture. Eager launches get two numbers, captured ones
    the address of two; two launches a step, of 132 programs backward at B = 64."""
    driver = Driver(99)
    monkeypatch.setattr(mk.triton.runtime.driver, "_active", driver)
    monkeypatch.setattr(mk, "has_kernels", lambda device: True)
    monkeypatch.setattr(mk, "capability", lambda device: (9, 0))

    def numbers(rng, x):
        return x.new_empty(0, dtype=torch.int64), *rng.tolist()

    by_address = mk.philox_arguments
    *leaves, target = mk.head_inputs(64, 2048, torch.float16, "cpu")
    x = torch.randn(4096).half().requires_grad_()
    launches = []
    for arguments in (numbers, by_address):
        monkeypatch.setattr(mk, "philox_arguments", arguments)
        with torch.autocast("cpu", torch.float16):
            loss, _ = mk.mish_head_bce(*leaves, target)
        torch.autograd.grad(loss, leaves)
        torch.autograd.grad(mk.mish_dropout(x), x, torch.ones_like(x))
        launches.append(driver.launches)
        driver.launches = []
    assert launches[0] == launches[1] and next(driver.handles) == 4
    grids = [launch[1:4] for launch in launches[0]]
    assert grids == [(32, 4, 1), (132, 1, 1), (1, 1, 1), (1, 1, 1)]


SIZES = ("fp16", 43, 64), ("fp32", 43, 65), ("fp32", 128, 64), ("fp32", 128, 65)  # x, C, B
SIZES += ("fp16", 43, 80), ("bf16", 43, 64), ("bf16", 43, 1024)
HEADS = [(True, SIZES[0], 80), (True, SIZES[0], 90), (True, SIZES[3], 86), (True, SIZES[4], 90)]
HEADS += [
    pytest.param(*case, marks=pytest.mark.slow)
    for case in itertools.product((True, False), SIZES, ARCHITECTURES)
    if case not in HEADS
]
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227}  # KB that a block may have


def head_constants(kind, C, B, loss, hopper):
    """Of head_kernel and head_backward_kernel, with the tiles of a launch, and their types."""
    half = "bf16" if kind == "bf16" else "fp16"
    types = dict.fromkeys(("h_ptr", "g_ptr", "d_ptr"), f"*{half}")
    types |= dict.fromkeys(("x_ptr", "dx_ptr"), f"*{kind}")
    types |= {} if loss else {"logits_ptr": f"*{half}"}
    x, w2 = torch.empty(B, 2048, dtype=mk.DTYPES[kind]), torch.empty(C, 256)
    forward = mk.forward_tiles(B, C, x.element_size())
    forward |= mk.sizes(x, w2, forward["ROWS"]) | {"DROP": 32768}
    backward = mk.backward_tiles(B, C, 256, hopper)
    backward |= mk.sizes(x, w2, backward["BB"])
    if not loss:
        forward["target_ptr"] = backward["dloss_ptr"] = None
    return forward, backward, types


@needs_triton
@pytest.mark.parametrize("loss, size, architecture", HEADS)
def test_head_kernels_compile_without_spills(loss, size, architecture, tmp_path):
    """Shared memory is the fuller the wider x and C are, and beyond 64 rows, where a loop refills
    it: on an H100 not while an asynchronous product reads it."""
    kind, C, B = size
    forward, backward, types = head_constants(kind, C, B, loss, architecture == 90)
    for kernel, constants, budget in (
        (mk.head_kernel, forward, 2500),  # at most 2352 with triton 3.6
        (mk.head_backward_kernel, backward, 2250),  # 2136 with triton 3.9
    ):
        code = build(tmp_path, kernel, architecture, types, constants)
        assert (code.stack, code.local) == (0, 0)
        assert code.shared <= SHARED[architecture] * 1024
        assert code.instructions() <= budget
        assert re.search(r"HMMA|HGMMA|UTC\w*MMA", code.sass)  # the sums run on tensor cores
        assert not re.search(r"(RED|ATOM)\w*\.[\w.]*F(16|32|64)", code.sass)  # no float atomics
        assert not SharedMemory(code.ttgir).refilled


@needs_triton
def test_head_kernels_wait_for_memory_no_more_than_they_have_to(tmp_path):
    """On an H100 at B = 64. And a ticket is taken after all of a program's stores, and what other
    programs stored is read after it: barrier, fence, atomic, L1 invalidated, barrier."""
    *heads, types = head_constants("fp16", 43, 64, True, True)
    code = []
    for kernel, constants in zip((mk.head_kernel, mk.head_backward_kernel), heads, strict=True):
        sass = build(tmp_path, kernel, 90, types, constants).sass
        code.append(re.findall(r"/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\w+ +)?([A-Z][\w.]+)", sass))
    forward, backward = code
    atomic = next(i for i, op in enumerate(forward) if op.startswith("ATOM"))
    first = next(i for i, op in enumerate(forward) if op.startswith("HMMA"))
    copies = [i for i, op in enumerate(forward[:atomic]) if op.startswith("LDGSTS")]
    assert all(forward[i].endswith(".128") for i in copies)  # asynchronous, 16 bytes each
    loads = [i for i, op in enumerate(forward[:atomic]) if re.match(r"LDG\b", op) and i > first]
    assert loads and loads[0] > copies[-1]  # w2, b2 and target, when no product waits for a copy
    before, after = " ".join(forward[:atomic]), " ".join(forward[atomic:])
    assert re.search(r"BAR(?:(?!STG|STS).)*MEMBAR\S*GPU(?:(?!STG|STS).)*$", before)
    assert re.match(r"ATOM\S*STRONG\.GPU CCTL\.IVALL(?:(?!LDG).)*BAR", after)
    jobs = re.findall(r"LDG\.E\.128.*?STG", " ".join(backward))
    assert len(jobs) == 3  # and each asks for all it needs before it computes
    assert not any(re.search(r"GMMA.*LDG", job) for job in jobs)


# ---------------------------------------------------------------------------------------------- CPU


def test_oracle_passes_random123():
    """kat_vectors of Random123: philox4x32 7."""
    ones = 0xFFFFFFFF
    for key, counter, want in (
        ((0, 0), (0, 0, 0, 0), "5f6fb709 0d893f64 4f121f81 4f730a48"),
        ((ones, ones), (ones,) * 4, "5207ddc2 45165e59 4d8ee751 8c52f662"),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            "4dfccaba 190a87f0 c47362ba b6b5242a",
        ),
    ):
        assert " ".join(f"{int(w):08x}" for w in oracle.philox(key, counter)) == want


@pytest.mark.parametrize("seed, offset", [(0, 0), (2**40 + 5, 2**34 + 8), (-3, -4), (2**63 - 1, 4)])
def test_philox_is_the_oracles(seed, offset):
    group = torch.tensor([0, 1, 77, 2**32 - 1, 2**32, 2**40 + 3])
    low = 2**32 - 1
    g, c = group.numpy().astype(np.uint64), offset % 2**64 // 4
    counter = (np.full(6, c & low), np.full(6, c >> 32), g & np.uint64(low), g >> np.uint64(32))
    want = np.stack(oracle.philox((seed & low, seed % 2**64 >> 32), counter), -1)
    assert np.array_equal(mk.philox(seed, offset, group).numpy().astype(np.uint64), want)
    tensors = torch.tensor([seed]), torch.tensor([offset])
    assert np.array_equal(mk.philox(*tensors, group).numpy().astype(np.uint64), want)


def test_closed_forms_over_the_whole_range():
    x = torch.cat([
        torch.linspace(-110, 30, 200_000),
        torch.randn(20_000) * torch.logspace(-30, 30, 20_000),
        -(2.0 ** torch.linspace(-140, 6, 20_000)),
    ])  # fmt: skip
    want, slope, size = oracle.mish64(x.double())
    assert oracle.ulps(mk.value(x), want, want, torch.float32) <= 7
    assert oracle.ulps(mk.slope(x), slope, size, torch.float32) <= 10
    wide = x.double()[x.abs() < 700]  # 16 ULP of float64, as tanh(log1p) itself loses some
    want, slope, size = oracle.mish64(wide)
    assert oracle.ulps(mk.value(wide), want, want, torch.float64) <= 16
    assert oracle.ulps(mk.slope(wide), slope, size, torch.float64) <= 16


def test_second_derivative_against_differences():
    x = torch.linspace(-30, 30, 4001, dtype=torch.float64)
    step = 1e-5  # truncation step^2 and rounding 1e-16 / step, both 1e-10 and below
    want = (oracle.mish64(x + step)[1] - oracle.mish64(x - step)[1]) / (2 * step)
    np.testing.assert_allclose(mk.curvature(x), want, atol=1e-9)


def test_limits():
    inf = float("inf")
    x = torch.tensor([inf, -inf, 0.0, -0.0, float("nan"), 3e38], requires_grad=True)
    y = mk.mish(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y[:4], torch.tensor([inf, -0.0, 0.0, -0.0]))
    assert torch.signbit(y[:4]).tolist() == [False, True, False, True]
    np.testing.assert_allclose(dx[:4], [1, 0, 0.6, 0.6], 1e-6)
    assert y[4].isnan() and dx[4].isnan() and y[5] == x[5]


def test_gradients_of_both_orders():
    torch.manual_seed(0)
    x = (torch.randn(2, 16, dtype=torch.float64) * 3).requires_grad_()
    odd = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def dropped(x):
        torch.manual_seed(1)
        return mk.mish_dropout(x, 0.3)

    for function, arguments in ((mk.mish, x), (dropped, x), (dropped, odd.T)):
        assert torch.autograd.gradcheck(function, arguments)
        assert torch.autograd.gradgradcheck(function, arguments)


def test_transforms_of_torch_func_are_refused():
    """torch does not offer them for custom operators: an error, not a wrong gradient."""
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: mk.mish(x).sum())(torch.ones(3))


def test_dropout_mask_on_the_cpu_is_the_oracles():
    torch.manual_seed(9)
    seed, offset = torch.randint(2**63 - 1, (2,)).tolist()
    x = torch.full((3, 4, 5, 2), 2.0).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(9)
    y = mk.mish_dropout(x, 0.3)
    drop = round(65536 * 0.3)
    keep = oracle.keep_mask(x.numel(), seed, offset, drop)
    memory = y.permute(0, 2, 3, 1).flatten()  # the order in memory
    np.testing.assert_allclose(memory, keep * oracle.mish64(2.0)[0] * 65536 / (65536 - drop), 1e-6)
    torch.manual_seed(9)
    infinite = mk.mish_dropout(x / 0, 0.3).permute(0, 2, 3, 1).flatten()
    assert np.array_equal(infinite, np.where(keep, np.inf, 0))


def test_a_lane_at_the_threshold_is_kept_on_the_cpu():
    torch.manual_seed(9)
    seed, offset = torch.randint(2**63 - 1, (2,)).tolist()
    x = torch.full((40,), 2.0)
    lanes = oracle.lanes(40, seed, offset)
    for lane in sorted(lanes)[10:20]:
        torch.manual_seed(9)
        y = mk.mish_dropout(x, int(lane) / 65536)
        assert np.array_equal(y != 0, lanes >= lane) and (lanes == lane).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_layouts_lengths_and_types_on_the_cpu(dtype):
    torch.manual_seed(0)
    for x in (
        torch.randn(2, 5, 3, 7).contiguous(memory_format=torch.channels_last),
        torch.randn(4, 6).T[::2],
        torch.randn(1).expand(3, 2),
        torch.tensor(-0.7),
        torch.empty(0, 3),
    ):
        x = x.to(dtype).requires_grad_()
        y = mk.mish(x)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        want, slope, _ = oracle.mish64(x.detach().double())
        tolerance = 4 * torch.finfo(dtype).eps
        np.testing.assert_allclose(y.detach().double(), want, tolerance, tolerance)
        np.testing.assert_allclose(dx.double(), slope, tolerance, tolerance)
        assert y.dtype == dtype and y.stride() == torch.empty_like(x).stride()


def test_only_dropout_touches_the_generator():
    x, parameters = torch.randn(4, 32), list(mk.MishHead(32, 7, hidden=16).parameters())
    before = torch.get_rng_state()
    assert not mk.mish_dropout(torch.tensor([1.0, float("inf"), float("nan")]), 1.0).any()
    torch.testing.assert_close(mk.mish_dropout(x, 0.0), F.mish(x))
    torch.testing.assert_close(mk.mish_dropout(x, 0.5, training=False), F.mish(x))
    mk.mish_head(x, *parameters, 0.5, False)
    mk.mish_head_bce(x, *parameters, torch.zeros(4, 7), 1.0)
    mk.mish(x)
    assert torch.equal(torch.get_rng_state(), before)
    mk.mish_dropout(x, 0.5)
    assert not torch.equal(torch.get_rng_state(), before)


def test_masks_survive_checkpointing():
    x = torch.randn(6, 32, requires_grad=True)

    def function(x):
        return mk.mish_dropout(x * 2, 0.5).square().sum()

    grads = []
    for wrap in (lambda f, x: f(x), functools.partial(checkpoint, use_reentrant=False)):
        torch.manual_seed(4)
        grads.append(torch.autograd.grad(wrap(function, x), x)[0])
    assert torch.equal(*grads) and (grads[0] == 0).any()


def test_module_on_the_cpu_is_its_sequential():
    """Same keys, same bits, same draws: a run on the CPU does not depend on this file."""
    torch.manual_seed(0)
    head = mk.MishHead(20, 7, hidden=12, p=0.4)
    plain = nn.Sequential(nn.Linear(20, 12), nn.Mish(), nn.Dropout(0.4), nn.Linear(12, 7))
    assert list(head.state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    plain.load_state_dict(head.state_dict())
    x, target = torch.randn(5, 20), (torch.rand(5, 7) < 0.3).float()
    results = []
    for net in (head, plain, head):
        torch.manual_seed(1)
        loss = F.binary_cross_entropy_with_logits(net(x), target)
        results.append((loss, *torch.autograd.grad(loss, list(net.parameters()))))
    torch.manual_seed(1)
    loss, logits = head.bce(x, target)
    results.append((loss, *torch.autograd.grad(loss, list(head.parameters()))))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))
    assert not logits.requires_grad
    head.eval()
    torch.testing.assert_close(head(x), mk.mish_head(x, *head.parameters(), 0.4, False))
    first, _, dropout, last = mk.MishHead(20)  # the report's
    assert (first.out_features, dropout.p, last.out_features) == (256, 0.5, 43)


def test_more_dimensions_are_more_rows():
    torch.manual_seed(0)
    head = mk.MishHead(20, 7, hidden=12, p=0.0)
    x, target = torch.randn(2, 3, 20), (torch.rand(2, 3, 7) < 0.3).float()
    loss, logits = mk.mish_head_bce(x, *head.parameters(), target, 0.0)
    flat, rows = mk.mish_head_bce(x.view(6, 20), *head.parameters(), target.view(6, 7), 0.0)
    torch.testing.assert_close(loss, flat)
    torch.testing.assert_close(logits, rows.view(2, 3, 7))
    with pytest.raises(ValueError, match="target"):
        mk.mish_head_bce(x, *head.parameters(), target[:1], 0.0)


def test_head_on_the_cpu_against_float64():
    torch.manual_seed(0)
    head = mk.MishHead(24, 5, hidden=16)
    x, target = torch.randn(6, 24, requires_grad=True), (torch.rand(6, 5) < 0.3).float()
    leaves = [x, *head.parameters()]
    torch.manual_seed(3)
    seed, offset = torch.randint(2**63 - 1, (2,)).tolist()
    torch.manual_seed(3)
    loss, logits = mk.mish_head_bce(*leaves, target)
    keep = torch.from_numpy(oracle.keep_mask(6 * 16, seed, offset, 32768)).view(6, 16) * 2.0
    exact = [t.detach().double().requires_grad_() for t in leaves]
    logits64 = oracle.head64(*exact, keep)
    loss64 = F.binary_cross_entropy_with_logits(logits64, target.double())
    torch.testing.assert_close(logits.double(), logits64.detach(), rtol=1e-5, atol=1e-6)
    got, want = torch.autograd.grad(loss, leaves), torch.autograd.grad(loss64, exact)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_on_the_cpu_without_a_break(backend):
    x = torch.randn(1000, requires_grad=True)
    compiled = torch.compile(lambda x: mk.mish(x * 2) + 1, fullgraph=True, backend=backend)
    y = compiled(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    want, slope, _ = oracle.mish64(2 * x.detach().double())
    np.testing.assert_allclose(y.detach(), want + 1, 1e-5, 1e-6)
    np.testing.assert_allclose(dx, 2 * slope, 1e-5, 1e-6)
    dropped = torch.compile(lambda x: mk.mish_dropout(x, 0.5), fullgraph=True, backend=backend)
    first, second = dropped(x), dropped(x)
    assert not torch.equal(first == 0, second == 0)


def test_opcheck_on_the_cpu():
    x, dy = (torch.randn(6, 32, requires_grad=True) for _ in range(2))
    rng = torch.tensor([3, 4])
    for arguments in ((None, x, None, 0), (None, x, rng, 30000), (dy, x, rng, 30000)):
        torch.library.opcheck(mk.mish_op, arguments)


def test_imports_and_works_without_triton(tmp_path):
    def child():
        sys.modules["triton"] = None
        del sys.modules["mish_kernel"]
        import mish_kernel as mk

        assert mk.triton is None and not mk.has_kernels(torch.device("cpu"))
        x = torch.randn(4, 32, requires_grad=True)
        head = mk.MishHead(32, 7)
        target = torch.zeros(4, 7)
        loss = mk.mish_head_bce(x, *head.parameters(), target)[0] + head.bce(x, target)[0]
        (loss + mk.mish_dropout(x).sum()).backward()
        assert x.grad.isfinite().all()

    log = tmp_path / "log"
    assert ended(fork(child, log)) == 0, log.read_text()


def test_counters_of_graphs_stay_and_those_of_streams_are_zeroed_there(tmp_path):
    """As on a GPU, whose calls are in turn captured, on one stream and on another."""

    def child():
        from torch.multiprocessing.reductions import StorageWeakRef

        from tests import pretended_cuda

        pretended_cuda.pretend()
        with pretended_cuda.PretendedCuda():
            x = torch.zeros(4, 32, device="cuda")
            one, captured = mk.ticket(x), []
            for calls in (150, 150, 150, 300):  # 200 counters are made at once
                torch.cuda.is_current_stream_capturing = lambda: True
                for _ in range(calls):
                    counter = mk.ticket(x)
                    storage = StorageWeakRef(counter.untyped_storage())
                    captured.append((storage, counter.storage_offset()))
                torch.cuda.is_current_stream_capturing = lambda: False
                assert mk.ticket(x) is one
            del counter

            other_stream = pretended_cuda.Stream()
            other_stream.cuda_stream = 1
            torch.cuda.current_stream = lambda *_: other_stream
            other = mk.ticket(x)

        assert not any(storage.expired() for storage, _ in captured)
        places = {(storage.cdata, offset) for storage, offset in captured}
        assert len(places) == len(captured) == 750
        # Neither stream's is cut from what another stream may have zeroed.
        own = {StorageWeakRef(t.untyped_storage()).cdata for t in (one, other)}
        assert len(own) == 2 and not own & {storage.cdata for storage, _ in captured}

    log = tmp_path / "log"
    assert ended(fork(child, log)) == 0, log.read_text()


def test_script_checks_and_says_that_nothing_was_timed(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert mk.main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("No CUDA device: the kernels do not run, what is checked is their fall")
    assert "nothing is timed" in out and "FAILED" not in out and out.count(" ok\n") == 26
    for flags in (["--quick"], ["--csv", "rows.csv"]):
        with pytest.raises(SystemExit, match="2"):
            mk.main(flags)
        assert "needs a CUDA device" in capsys.readouterr().err
    monkeypatch.setattr(mk, "slope", mk.value)  # a fault, which has to be found
    assert mk.main([]) == 1
    assert "FAILED" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------- CUDA


def cuda_head(B=64, width=2048, C=43, dtype=torch.float16):
    torch.manual_seed(0)
    head = mk.MishHead(width, C).cuda()
    x = torch.randn(B, width, device="cuda").to(dtype).requires_grad_()
    return head, x, (torch.rand(B, C, device="cuda") < 0.1).float()


def head_step(head, x, target, dtype=torch.float16):
    """Loss and gradients, through the fused head."""
    with torch.autocast("cuda", dtype):
        loss, _ = head.bce(x, target)
    return loss, *torch.autograd.grad(loss, [x, *head.parameters()])


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_every_16_bit_input(dtype):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    x = x[~x.isnan()].cuda().requires_grad_()
    y = mk.mish(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(x))
    want, slope, size = oracle.mish64(x.detach().double().cpu())
    some = np.isfinite(want) & np.isfinite(size)
    assert oracle.ulps(y.detach().cpu()[some], want[some], want[some], dtype) <= 1
    assert oracle.ulps(dx.cpu()[some], slope[some], size[some], dtype) <= 1


@needs_cuda
def test_cuda_float32_over_the_whole_range():
    """Every 64th bit pattern: ex2.approx and rcp.approx are what the interpreter cannot show."""
    for start in range(-(2**31), 2**31, 2**28):
        bits = torch.arange(start, start + 2**28, 64, dtype=torch.int64).to(torch.int32)
        x = bits.view(torch.float32)
        x = x[(x.abs() >= 1e-30) & (x.abs() <= 1e30)]
        device = x.cuda().requires_grad_()
        y = mk.mish(device)
        (dx,) = torch.autograd.grad(y, device, torch.ones_like(y))
        want, slope, size = oracle.mish64(x.double())
        if x.numel():
            assert oracle.ulps(y.detach().cpu(), want, want, torch.float32) <= 7
            assert oracle.ulps(dx.cpu(), slope, size, torch.float32) <= 10


@needs_cuda
@pytest.mark.parametrize("n", [1, 1000, 4099, 2**20 + 3])
def test_cuda_and_cpu_draw_one_mask(n):
    drop, pair = 20000, torch.tensor([2**40 + 5, 2**34 + 8])
    x = torch.full((n,), 2.0)
    cpu = mk.mish_op(None, x, pair, drop)
    for rng in (pair, pair.cuda()):
        gpu = mk.mish_op(None, x.cuda(), rng, drop)
        assert torch.equal(gpu.cpu() != 0, cpu != 0)


@needs_cuda
def test_cuda_more_elements_than_32_bits_count():
    n, drop, tail = 2**31 + 1003, 20000, slice(2**31 - 1000, None)
    x = torch.randn(n, device="cuda", dtype=torch.float16)
    y = mk.mish_op(None, x, torch.tensor([5, 8]), drop)
    keep = oracle.keep_mask(2003, 5, 8, drop, 2**31 - 1000)
    want = oracle.mish64(x[tail].double().cpu())[0] * keep * 65536 / (65536 - drop)
    np.testing.assert_allclose(y[tail].double().cpu(), want, 1e-3, 1e-3)  # 2 ULP of 1


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "B, width, C",
    [
        (1, 512, 1),
        (24, 4320, 43),
        (64, 2048, 43),
        (80, 2048, 43),
        (1024, 512, 43),
        (1024, 1280, 128),
    ],
)
def test_cuda_head_is_closer_to_float64_than_eager_autocast(B, width, C, dtype):
    head, x, target = cuda_head(B, width, C, dtype)
    head[2].p = 0.0
    leaves = [x, *head.parameters()]
    got = head_step(head, x, target, dtype)
    with torch.autocast("cuda", dtype):
        logits = nn.Sequential.forward(head, x)
        loss = F.binary_cross_entropy_with_logits(logits, target)
    eager = [loss, *(g / 1024 for g in torch.autograd.grad(loss * 1024, leaves))]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    loss = F.binary_cross_entropy_with_logits(oracle.head64(*exact, 1.0), target.double())
    for a, b, c in zip(got, eager, [loss, *torch.autograd.grad(loss, exact)], strict=True):
        ours, other = ((t.detach().double() - c).norm() / c.norm() for t in (a, b))
        assert ours <= max(1.1 * other, torch.finfo(dtype).eps / 2)


@needs_cuda
def test_cuda_head_and_loss_are_two_launches_and_repeat_to_the_bit():
    head, x, target = cuda_head()
    torch.manual_seed(1)
    first = head_step(head, x, target)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        torch.manual_seed(1)
        again = head_step(head, x, target)
        torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    cuda = torch.autograd.DeviceType.CUDA
    names = [e.name for e in profile.events() if e.device_type == cuda]
    ours = [n for n in names if n.startswith("head_")]
    # besides ours: the fill of the loss's own gradient with 1
    assert sorted(ours) == ["head_backward_kernel", "head_kernel"] and len(names) <= 3, names


@needs_cuda
def test_cuda_tickets_survive_ten_thousand_launches_on_two_streams():
    head, x, target = cuda_head()
    head[2].p = 0.0
    want = head_step(head, x, target)[0]
    streams = [torch.cuda.Stream() for _ in range(2)]
    losses = torch.zeros(2, 5000, device="cuda")
    torch.cuda.synchronize()
    with torch.no_grad(), torch.autocast("cuda", torch.float16):
        for i in range(5000):
            for row, stream in zip(losses, streams, strict=True):
                with torch.cuda.stream(stream):
                    row[i] = head.bce(x, target)[0]
    torch.cuda.synchronize()
    assert (losses == want).all()


@needs_cuda
@pytest.mark.parametrize("what", ["head", "dropout"])
def test_cuda_graph_draws_fresh_masks_at_each_replay(what):
    head, x, target = cuda_head(width=512)

    def step():
        if what == "head":
            return head_step(head, x, target)
        y = mk.mish_dropout(x)
        return y, torch.autograd.grad(y, x, torch.ones_like(y))[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
        step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            outputs = step()
        seen = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            for _ in range(2):
                graph.replay()
                seen.append([t.clone() for t in outputs])
    torch.cuda.synchronize()
    for i, j in itertools.combinations(range(6), 2):
        same = all(torch.equal(a, b) for a, b in zip(seen[i], seen[j], strict=True))
        assert same == ((i, j) in ((0, 2), (1, 3))), (i, j)
    if what == "dropout":  # forward and backward of one replay agree on the mask
        assert all(torch.equal(y == 0, dx == 0) for y, dx in seen)


@needs_cuda
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_cuda_compiles_without_a_break(mode):
    head, x, target = cuda_head(width=512)
    head[2].p = 0.0

    def step(x, target):
        with torch.autocast("cuda", torch.float16):
            return head.bce(mk.mish(x) + mk.mish_dropout(x, 0.0), target)[0]

    compiled = torch.compile(step, fullgraph=True, mode=mode)
    want = torch.autograd.grad(step(x, target), [x, *head.parameters()])
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        got = torch.autograd.grad(compiled(x, target), [x, *head.parameters()])
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-5)
    dropped = torch.compile(lambda x: mk.mish_dropout(x), fullgraph=True, mode=mode)
    masks = []
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        masks.append(dropped(x.detach()).clone() == 0)
    assert not torch.equal(masks[2], masks[3])


@needs_cuda
def test_cuda_graph_trees_may_be_the_first_to_use_the_head():
    """What the first call keeps for the later ones may not lie in the graphs' own memory."""
    code = """
import torch, mish_kernel as mk
head = mk.MishHead(512).cuda()
x, target = torch.randn(64, 512, device="cuda"), torch.zeros(64, 43, device="cuda")

def step(x, target):
    with torch.autocast("cuda", torch.float16):
        return head.bce(x, target)[0]

compiled = torch.compile(step, fullgraph=True, mode="reduce-overhead")
weights = list(head.parameters())
for _ in range(5):
    torch.compiler.cudagraph_mark_step_begin()
    gradients = torch.autograd.grad(compiled(x, target), weights)
print(all(g.isfinite().all().item() for g in gradients))
"""
    run = python("-c", code)
    assert run.stdout.strip() == "True", run.stderr


@needs_cuda
def test_cuda_generator_reproduces_and_is_left_alone():
    x = torch.randn(1000, device="cuda")
    masks = []
    for _ in range(2):
        torch.manual_seed(7)
        masks.append([mk.mish_dropout(x) for _ in range(2)])
    assert torch.equal(masks[0][0], masks[1][0]) and torch.equal(masks[0][1], masks[1][1])
    assert not torch.equal(*masks[0])
    before = torch.cuda.get_rng_state()
    for p, training in ((0.0, True), (1.0, True), (0.5, False)):
        mk.mish_dropout(x, p, training)
    assert torch.equal(torch.cuda.get_rng_state(), before)
