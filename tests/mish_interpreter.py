"""The Triton kernels on the CPU: run by test_mish_kernel.py in a process with TRITON_INTERPRET=1,
which has to be set before triton is imported and would change every other test.

    TRITON_INTERPRET=1 python -m pytest tests/mish_interpreter.py

The interpreter computes in IEEE arithmetic: it says nothing of the GPU's exp2 and rsqrt, of its
tensor cores and of the memory order of the tickets, which the CUDA tests look at.
"""

import importlib.metadata
import itertools

import mish_oracle as oracle
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import mish_kernel as mk

TRITON = tuple(map(int, importlib.metadata.version("triton").split(".")[:2]))
pytestmark = pytest.mark.skipif(not mk.INTERPRET, reason="needs TRITON_INTERPRET=1")


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    """Every torch.empty starts as NaN, so that what a kernel does not write is seen."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def both(x, dy=None):
    """mish and its gradient through autograd."""
    x = x.detach().requires_grad_()
    y = mk.mish(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(x) if dy is None else dy)
    return y.detach(), dx


def rng(seed, offset):
    return torch.tensor([seed, offset])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_input(dtype):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    x = x[~x.isnan()]
    y, dx = both(x)
    want, slope, size = oracle.mish64(x.double())
    some = np.isfinite(want) & np.isfinite(size)
    if dtype == torch.bfloat16:  # the interpreter converts subnormal bfloat16 wrongly
        some &= (np.abs(want) >= 2.0**-126) & (np.abs(slope) >= 2.0**-126)
    # Rounding to nearest errs by half a ULP; the interpreter truncates to bfloat16, by up to one.
    limit = 0.51 if dtype == torch.float16 else 1.01
    assert oracle.ulps(y[some], want[some], want[some], dtype) <= limit
    assert oracle.ulps(dx[some], slope[some], size[some], dtype) <= limit


def test_float32_error_over_the_whole_range():
    x = torch.cat([
        torch.linspace(-110, 30, 100_000),
        torch.randn(20_000) * torch.logspace(-30, 30, 20_000),
        -(2.0 ** torch.linspace(-140, 6, 20_000)),
    ])  # fmt: skip
    y, dx = both(x)
    want, slope, size = oracle.mish64(x.double())
    # Before 3.9 the interpreter's tl.fma rounds twice and loses the correction of exp, whose error
    # is then |x log2(e)| 2^-24: 88 ULP with triton 3.8.
    fused = TRITON >= (3, 9)
    assert oracle.ulps(y, want, want, torch.float32) <= (7 if fused else 100)
    assert oracle.ulps(dx, slope, size, torch.float32) <= (10 if fused else 100)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_special_values(dtype):
    inf = float("inf")
    y, dx = both(torch.tensor([inf, -inf, 0.0, -0.0, float("nan")], dtype=dtype))
    assert torch.equal(y[:4], torch.tensor([inf, -0.0, 0.0, -0.0], dtype=dtype))
    assert torch.equal(torch.signbit(y[:4]), torch.tensor([False, True, False, True]))
    assert torch.equal(dx[:2], torch.tensor([1.0, 0.0], dtype=dtype))
    np.testing.assert_allclose(dx[2:4].float(), 0.6, 2 * torch.finfo(dtype).eps)
    assert y[4].isnan() and dx[4].isnan()


@pytest.mark.parametrize("n", [0, 1, 7, 8, 1000, 1024, 4099])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_any_length(n, dtype):
    x, dy = torch.randn(n).to(dtype), torch.randn(n).to(dtype)
    y, dx = both(x, dy)
    want, slope, _ = oracle.mish64(x.double())
    tolerance = {torch.float16: 1e-3, torch.float32: 1e-6}[dtype]  # 2 ULP of 1
    np.testing.assert_allclose(y.double(), want, tolerance, tolerance)
    np.testing.assert_allclose(dx.double(), slope * dy.double().numpy(), tolerance, tolerance)


def strided():
    x = torch.randn(2, 5, 3, 7)
    yield "channels last", x.contiguous(memory_format=torch.channels_last)
    yield "transposed", x.permute(3, 0, 2, 1)
    yield "every second", x[..., ::2]
    yield "expanded", x[:, :1].expand(2, 5, 3, 7)
    yield "scalar", torch.tensor(0.3)
    yield "size 1", torch.randn(1, 1, 4).transpose(0, 2)


@pytest.mark.parametrize("name, x", list(strided()), ids=lambda v: v if isinstance(v, str) else "")
def test_layouts(name, x):
    dy = torch.randn(x.shape)
    y, dx = both(x, dy)
    want, slope, _ = oracle.mish64(x.double())
    np.testing.assert_allclose(y, want, 1e-6, 1e-6)
    np.testing.assert_allclose(dx, slope * dy.numpy(), 1e-6, 1e-6)
    assert y.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("seed, offset", [(0, 0), (2**40 + 5, 2**34 + 8), (-3, -4)])
@pytest.mark.parametrize("p", [0.5, 0.1])
def test_dropout_mask_is_the_oracles(seed, offset, p):
    drop, n = round(65536 * p), 3001
    x = torch.full((n,), 2.0)
    y = mk.mish_op(None, x, rng(seed, offset), drop)
    keep = oracle.keep_mask(n, seed, offset, drop)
    value = oracle.mish64(2.0)[0] * 65536 / (65536 - drop)
    np.testing.assert_allclose(y, np.where(keep, value, 0), 1e-6)
    # both numbers may also be given as such, as on a GPU outside graphs
    again, null = torch.empty(n), torch.empty(0, dtype=torch.int64)
    mk.elementwise_kernel[(3,)](None, x, again, n, null, seed, offset, drop, 1024)
    assert torch.equal(again, y)
    dx = mk.mish_op(torch.ones(n), x, rng(seed, offset), drop)
    assert np.array_equal(dx != 0, keep)
    infinite = mk.mish_op(None, x / 0, rng(seed, offset), drop)
    assert np.array_equal(infinite, np.where(keep, np.inf, 0))


def test_a_lane_at_the_threshold_is_kept():
    """By the elementwise kernel, forward and backward, and by the head's."""
    lanes = oracle.lanes(64, 5, 8)
    for lane in sorted(lanes)[20:24]:
        drop = int(lane)
        y = mk.mish_op(None, torch.full((64,), 2.0), rng(5, 8), drop)
        assert np.array_equal(y != 0, lanes >= drop)
        dx = mk.mish_op(torch.ones(64), torch.full((64,), 2.0), rng(5, 8), drop)
        assert np.array_equal(dx != 0, lanes >= drop)

    inputs, target = head_inputs(1, 64, 7, H=64)
    torch.manual_seed(5)
    seed, offset = torch.randint(2**63 - 1, (2,)).tolist()
    p = int(sorted(oracle.lanes(64, seed, offset))[20]) / 65536
    out, grads, keep = run(inputs, target, p=p)
    want, want_grads = reference(inputs, target, keep)
    assert relative(out, want) < 1e-3
    assert all(relative(g, w) < 2e-3 for g, w in zip(grads, want_grads, strict=True))


def test_masks_are_random():
    rows, cols, drop = 64, 1024, round(65536 * 0.3)
    first, second = (
        mk.mish_op(None, torch.ones(rows, cols), rng(11, offset), drop) != 0
        for offset in (0, 4)
    )
    n, keep = rows * cols, 0.7
    sigma = (keep * (1 - keep) / n) ** 0.5
    assert abs(first.double().mean() - keep) < 5 * sigma
    z = (first.double() - keep) / (keep * (1 - keep)) ** 0.5
    # Correlations of independent entries are N(0, 1 / samples): 5 sigma for a handful of shifts, 6
    # for the largest of 2016 pairs of rows, 7.5 for half a million pairs of (short) columns.
    for shift in (1, 2, 7, 8, 16, 1024):
        assert abs((z.flatten()[shift:] * z.flatten()[:-shift]).mean()) < 5 / n**0.5
    rows_corr = (z @ z.T / cols).fill_diagonal_(0).abs().max()
    cols_corr = (z.T @ z / rows).fill_diagonal_(0).abs().max()
    assert rows_corr < 6 / cols**0.5 and cols_corr < 7.5 / rows**0.5
    assert abs((first == second).double().mean() - (keep**2 + (1 - keep) ** 2)) < 0.01


def test_kernels_and_torch_forms_agree():
    """With kernels and without: float64 takes the torch forms, with the same mask."""
    x, dy = torch.randn(9, 32), torch.randn(9, 32)
    for d in (None, dy):
        out = mk.mish_op(d, x, rng(7, 20), 20000)
        wide = (None if t is None else t.double() for t in (d, x))
        np.testing.assert_allclose(out, mk.mish_op(*wide, rng(7, 20), 20000), 1e-5, 1e-6)


# -------------------------------------------------------------------------------------------- head

NAMES = ("x", "w1", "b1", "w2", "b2")
SCALE = 1024  # of the loss, without which the gradient of x is subnormal in fp16


def head_inputs(B, width, C, H=256, dtype=torch.float16):
    w1, w2 = torch.randn(H, width) / width**0.5, torch.randn(C, H) / H**0.5
    x, b1, b2 = torch.randn(B, width).to(dtype), torch.randn(H) * 0.5, torch.randn(C) * 0.5
    return [t.requires_grad_() for t in (x, w1, b1, w2, b2)], (torch.rand(B, C) < 0.1).float()


def ramp(logits):
    """The gradient of the logits where there is no loss."""
    return torch.linspace(-1, 2, logits.numel()).view_as(logits).to(logits)


def run(inputs, target, dtype=torch.float16, p=0.5, training=True):
    """Output and gradients of the fused head, and the dropout factors it has to have used."""
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype):
        if target is None:
            out = mk.mish_head(*inputs, p, training)
            grads = torch.autograd.grad(out, inputs, ramp(out))
        else:
            out, _ = mk.mish_head_bce(*inputs, target, p, training)
            grads = torch.autograd.grad(out * SCALE, inputs)
    torch.manual_seed(5)
    seed, offset = torch.randint(2**63 - 1, (2,)).tolist()
    B, H, drop = len(inputs[0]), len(inputs[1]), round(65536 * p) if training else 0
    keep = torch.from_numpy(oracle.keep_mask(B * H, seed, offset, drop)).view(B, H)
    return out, grads, keep * (65536 / (65536 - drop))


def reference(inputs, target, keep):
    exact = [t.detach().double().requires_grad_() for t in inputs]
    logits = oracle.head64(*exact, keep.double())
    if target is None:
        return logits, torch.autograd.grad(logits, exact, ramp(logits))
    loss = F.binary_cross_entropy_with_logits(logits, target.double())
    return loss, torch.autograd.grad(loss * SCALE, exact)


def amp(inputs, target, keep, dtype):
    """What eager autocast computes: every tensor of the 16-bit type, sums in fp32."""
    half = [t.detach().to(dtype).requires_grad_() for t in inputs]
    x, w1, b1, w2, b2 = half
    logits = F.linear(F.mish(F.linear(x, w1, b1)) * keep.to(dtype), w2, b2)
    if target is None:
        return logits, torch.autograd.grad(logits, half, ramp(logits))
    loss = F.binary_cross_entropy_with_logits(logits.float(), target)
    return loss, torch.autograd.grad(loss * SCALE, half)


def relative(got, want, size=0.0):
    """Frobenius error relative to want, or to entries of the given size if those are larger."""
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).norm() / max(want.norm(), size * want.numel() ** 0.5))


SHAPES = [(1, 64, 1, 64), (3, 336, 43, 128), (70, 64, 128, 64)]
SWEEP = list(itertools.product((1, 3, 24, 64, 80, 100), (512, 2048, 2560), (43, 1), (256,)))
SWEEP += [(1, 64, 1, 256), (3, 336, 43, 256), (24, 128, 43, 256), (70, 64, 128, 256)]
SWEEP += [(64, 1280, 43, 256), (24, 4320, 43, 256), (1024, 512, 43, 256)]


@pytest.mark.parametrize("loss", [False, True], ids=["logits", "loss"])
@pytest.mark.parametrize(
    "B, width, C, H", SHAPES + [pytest.param(*s, marks=pytest.mark.slow) for s in SWEEP]
)
def test_head_is_closer_to_float64_than_eager_autocast(B, width, C, H, loss):
    inputs, target = head_inputs(B, width, C, H)
    target = target if loss else None
    out, grads, keep = run(inputs, target)
    want, want_grads = reference(inputs, target, keep)
    eager, eager_grads = amp(inputs, target, keep, torch.float16)
    # Rounding to fp16 errs by 2^-11 / sqrt(3) = 2.8e-4 (rms); dx sees five of them: 6.3e-4. Where
    # there are enough terms to tell, the fused head may not be worse than eager. Logits are of size
    # 1: one alone can be small by cancellation.
    assert out.dtype == (torch.float32 if loss else torch.float16)
    assert relative(out, want, 1.0) < max(1.1 * relative(eager, want, 1.0), 7.5e-4)
    for name, got, exact, other in zip(NAMES, grads, want_grads, eager_grads, strict=True):
        assert got.dtype == inputs[NAMES.index(name)].dtype and got.shape == exact.shape
        assert relative(got, exact) < max(1.1 * relative(other, exact), 7e-4), name


def test_head_variants():
    """Evaluation, another p, row-strided x, frozen x, 16-bit weights, an integer target."""
    inputs, target = head_inputs(5, 64, 7, H=64)
    for p, training in ((0.3, True), (0.5, False), (0.0, True)):
        out, grads, keep = run(inputs, target, p=p, training=training)
        want, want_grads = reference(inputs, target, keep)
        assert relative(out, want) < 1e-3
        assert all(relative(g, w) < 2e-3 for g, w in zip(grads, want_grads, strict=True))
    want, want_grads, _ = run(inputs, target)
    x, *weights = (t.detach() for t in inputs)
    apart = torch.randn(5, 200).half()
    apart[:, 8:72] = x
    weights = [w.requires_grad_() for w in weights]
    for changed in ([apart[:, 8:72], *weights], [x, *weights]):
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.float16):
            loss, logits = mk.mish_head_bce(*changed, target.long())
        assert torch.equal(loss, want) and not logits.requires_grad
        for got, other in zip(torch.autograd.grad(loss, weights), want_grads[1:], strict=True):
            assert torch.equal(got * SCALE, other)
    half, before = [w.detach().half() for w in weights], torch.get_rng_state()
    for p, training in ((0.0, True), (0.5, False)):
        out = mk.mish_head(x, *half, p, training)
        assert out.dtype == torch.float16
        assert relative(out, oracle.head64(x, *half, 1.0)) < 1e-3
    assert not mk.mish_head(x, *half[:3], half[3] * 0, 1.0).any()  # all is dropped but the bias
    assert torch.equal(torch.get_rng_state(), before)


def test_head_repeats_to_the_bit_and_returns_its_tickets():
    inputs, target = head_inputs(70, 64, 43, H=64)
    first, grads, _ = run(inputs, target)
    again, grads_again, _ = run(inputs, target)
    assert torch.equal(first, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))
    (counter,) = mk.TICKETS.values()
    assert counter.tolist() == [0] and mk.ticket(inputs[0]) is counter


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**14])
def test_loss_scale_changes_only_the_scale(scale):
    """sigmoid - target is rounded before the scale is applied: a power of two changes no bit."""
    inputs, target = head_inputs(6, 64, 43, H=64, dtype=torch.float32)
    with torch.autocast("cpu", torch.float16):
        loss, _ = mk.mish_head_bce(*inputs, target, 0.0)
    plain = torch.autograd.grad(loss, inputs, retain_graph=True)
    scaled = torch.autograd.grad(loss * scale, inputs)
    assert all(torch.equal(a * scale, b) for a, b in zip(plain, scaled, strict=True))


@pytest.mark.parametrize("logit", [
    -0.0, 0.3, -12.0, -6e4,
    *(pytest.param(logit, marks=pytest.mark.slow) for logit in (0.0, -1.0, 3.0, 12.0, 40.0)),
])  # fmt: skip
def test_loss_of_any_logit(logit):
    """log(1 + exp(-|l|)) neither overflows nor loses its tail. exp2 takes |l| log2(e) rounded to
    2^-24 of it; the other roundings come to 4e-7."""
    x, w = torch.zeros(1, 64).half(), (torch.zeros(64, 64), torch.zeros(64), torch.zeros(1, 64))
    b2 = torch.tensor([logit])
    with torch.autocast("cpu", torch.float16):
        for target in (torch.zeros(1, 1), torch.ones(1, 1)):
            loss, _ = mk.mish_head_bce(x, *w, b2, target)
            want = F.binary_cross_entropy_with_logits(b2.double()[None], target.double())
            np.testing.assert_allclose(loss, want, 4e-7 + abs(logit) * 2.0**-24 * 1.5, 1e-38)


def test_outside_its_limits_the_head_is_unfused():
    half = torch.float16
    for shape, dtype in (((2, 20, 7, 64), half), ((2, 64, 7, 40), half), ((2, 64, 7, 320), half),
                         ((2, 64, 7, 64), None)):  # fmt: skip
        inputs, _ = head_inputs(*shape, dtype=torch.float32)
        torch.manual_seed(2)
        with torch.autocast("cpu", dtype or half, enabled=dtype is not None):
            out = mk.mish_head(*inputs, 0.5)
        torch.manual_seed(2)
        seed, offset = torch.randint(2**63 - 1, (2,)).tolist()
        keep = oracle.keep_mask(2 * shape[3], seed, offset, 32768).reshape(2, -1) * 2.0
        want = oracle.head64(*inputs, torch.from_numpy(keep))
        assert relative(out, want) < (2e-3 if dtype else 1e-6)
    for B, C, fits in ((4, 7, True), (1024, 128, True), (1025, 7, False), (4, 129, False)):
        shapes = (B, 64), (64, 64), (64,), (C, 64), (C,)
        assert mk.fits(*(torch.empty(s, device="meta") for s in shapes), half) == fits


def test_bad_arguments():
    inputs, target = head_inputs(2, 64, 7, H=64)
    with pytest.raises(ValueError, match="target"):
        mk.mish_head_bce(*inputs, target[:1])
    for i, wrong in ((0, (2, 48)), (1, (64, 80)), (2, (128,)), (3, (7, 128)), (4, (16,))):
        changed = [torch.zeros(wrong) if j == i else t for j, t in enumerate(inputs)]
        with pytest.raises(RuntimeError), torch.autocast("cpu", torch.float16):
            mk.mish_head(*changed)
    for p in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="probability"):
            mk.mish_dropout(torch.ones(3), p)


# ------------------------------------------------------------------------------------- integration


@pytest.mark.slow
def test_opcheck():
    x = torch.randn(4, 3, 5, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    flat = torch.randn(6, 32, requires_grad=True)
    cases = [
        (None, x, None, 0),
        (None, x.detach().half(), rng(3, 4), 30000),
        (None, flat, rng(3, 4), 30000),
        (torch.randn(6, 32, requires_grad=True), flat, rng(3, 4), 30000),
        (None, torch.randn(0, 5, requires_grad=True), None, 0),
        (None, flat[:, ::2], None, 0),
    ]
    for case in cases:
        torch.library.opcheck(mk.mish_op, case)
    inputs, target = head_inputs(3, 64, 7, H=64)
    for t in (None, target):
        args = (*inputs, t, rng(3, 4), mk.ticket(inputs[0]), 32768, torch.float16)
        torch.library.opcheck(mk.head_op, args)
        _, h, g, loss, d = mk.head_op(*args)
        d, dloss = (torch.randn(3, 16).half(), None) if t is None else (d, torch.ones_like(loss))
        arguments = [a if a is None else a.detach() for a in (d, dloss, *inputs, h, g)]
        torch.library.opcheck(mk.head_backward_op, arguments)


def test_no_mask_is_kept_for_the_backward_pass():
    """Dropout keeps its input and two numbers; the head h, g, sigmoid - target and its inputs."""

    def kept_bytes(function, *arguments):
        sizes, given = {}, {t.untyped_storage().data_ptr() for t in arguments}

        def pack(t):
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            result = function(*arguments)
        del result
        return sum(size for pointer, size in sizes.items() if pointer not in given)

    x = torch.randn(5000).half().requires_grad_()
    assert kept_bytes(lambda x: mk.mish_dropout(x), x) == 2 * 8
    inputs, target = head_inputs(24, 128, 43, H=64)
    with torch.autocast("cpu", torch.float16):  # h, g, and the classes filled up to 64
        assert kept_bytes(mk.mish_head_bce, *inputs, target) == 24 * (64 + 64 + 64) * 2


@pytest.mark.slow
def test_compiles_without_a_break():
    inputs, target = head_inputs(3, 64, 7, H=64)

    def step(x, w1, b1, w2, b2, target):
        x = mk.mish_dropout(mk.mish(x * 2), 0.5)
        with torch.autocast("cpu", torch.float16):
            return mk.mish_head_bce(x, w1, b1, w2, b2, target, 0.5)[0]

    results = []
    for function in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(3)
        loss = function(*inputs, target)
        results.append((loss, *torch.autograd.grad(loss, inputs)))
    # mish itself compiles to torch operations, which differ from the kernel by a rounding
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-3)


def test_second_derivative_of_the_head_is_refused():
    inputs, target = head_inputs(2, 64, 7, H=64)
    with torch.autocast("cpu", torch.float16):
        loss, _ = mk.mish_head_bce(*inputs, target)
    grads = torch.autograd.grad(loss, inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        grads[1].sum().backward()


def test_second_derivative_of_mish():
    x = torch.linspace(-8, 8, 999, requires_grad=True)
    (dx,) = torch.autograd.grad(mk.mish(x).sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.sum(), x)
    exact = x.detach().double().requires_grad_()
    (first,) = torch.autograd.grad(F.mish(exact).sum(), exact, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), exact)
    np.testing.assert_allclose(ddx, second, 1e-5, 1e-6)


def test_module_uses_the_kernels_and_checkpoints():
    head = mk.MishHead(64, 7, hidden=64)
    x = torch.randn(5, 64).half().requires_grad_()
    target = torch.zeros(5, 7)
    grads = []
    for checkpoint in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.float16):
            if checkpoint:
                out = torch.utils.checkpoint.checkpoint(head, x, use_reentrant=False)
            else:
                out = head(x)
        assert out.dtype == torch.float16
        grads.append(torch.autograd.grad(out.float().square().sum(), [x, *head.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.float16):
        loss, logits = head.bce(x, target)
    assert torch.equal(logits.half(), out) and loss.dtype == torch.float32
