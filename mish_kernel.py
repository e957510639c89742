"""Mish (Misra 2019, arXiv:1908.08681), Mish + dropout and the whole Mish head as Triton kernels.

    python mish_kernel.py     checks and, on a GPU, the benchmark; --help lists options

With e = exp(x) and d = e^2 + 2e + 2, since tanh(log(1 + e)) = e(e + 2) / d:

    mish(x)   = x tanh(softplus(x)) = x e(e + 2) / d
    mish'(x)  = e(e + 2) / d  +  4x e(e + 1) / d^2
    mish''(x) = 4e [2(e + 1) d + x(2 + 2e - 3e^2 - 2e^3)] / d^3

One exponential, one reciprocal, no cancellation. Above 20, e(e + 2) / d rounds to 1 and x is
clamped; below -87, where e^x is subnormal but x e^x is not, the exponential stays a product.
mish(-inf) = -0, mish'(-inf) = 0, mish'(inf) = 1 and NaN stays (F.mish has NaN in all three places).

Dropout stores no mask. Element i, counted in memory order, takes lane i % 8 of the eight 16-bit
lanes of Philox4x32-7(key = seed, counter = (offset / 4, i // 8)). It is kept where the lane is at
least k = round(65536 p), times 65536 / (65536 - k); a dropped element is +0 whatever the input. One
(seed, offset) gives one mask, on CPU and GPU and for every tiling. They come from torch's default
generators: on CUDA its (seed, offset), which moves on by 4; on a CPU, which has no offset, in CUDA
graphs and under torch.compile two draws of torch.randint. p = 0, p = 1 and evaluation draw nothing.

The head, Linear(F, H) - Mish - Dropout - Linear(H, C) (- mean BCE with logits), is one launch
forward and one backward, bit-repeatable (no float atomics), in fp16 or bf16 (autocast's or the
input's); fp32 master weights are read, and their gradients written, in fp32:

    z = x w1' + b1      h = keep mish(z)      g = keep mish'(z)      logits = h w2' + b2
    dz = (dlogits w2) g      dw2 = dlogits' h      dw1 = dz' x      dx = dz w1

Small launches come on top of these in a CUDA graph, where one draws seed and offset at each replay,
under torch.compile, where another zeroes the head's counter, and where a gradient of the logits
comes in place of a loss's and is padded.

Elsewhere (CPU, fp32, B > 1024, C > 128, F % 16 not 0, H not 64, 128 or 256) torch multiplies the
matrices, around the elementwise kernel or, on a CPU, its formulas in torch's operators. The
elementwise ops differentiate twice, the head once, and torch.func's transforms are refused by
torch, which does not offer them for custom operators.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import math
import os
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    import triton
    import triton.language as tl
    from triton.language import constexpr
except ImportError:  # everything runs in torch operations
    triton = None

INTERPRET = triton is not None and triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: CPU kernels
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}  # of the kernels
BLOCK = 1024  # elements a program: 8 for each of 128 threads, so that accesses are 16 bytes wide
DROPOUT_BYTES = 8192  # of x in a program with dropout: calls of Philox in a thread share its keys
MAX_BATCH = 1024  # of the fused head, as are the next two
MAX_CLASSES = 128
HIDDEN_SIZES = (64, 128, 256)

# Tiles of the fused head, chosen from compiled code and on an H200. gpu_visit.py times others.
FORWARD = {  # 128 programs at B = 64, each with 64 KB of loads in flight
    "BM": 16,  # rows of x in a program; 32 if there are more than 64
    "BN": 8,  # columns of the hidden layer in a program
    "BK": 512,  # columns of x in a step of its sum over F
    "SPLIT": 8,  # sums a step is split into: in one, each matrix product waits for the one before
    "num_warps": 8,
    "num_stages": 3,
    "enable_fp_fusion": True,
}
BACKWARD = {  # 132 programs at B = 64, which are an H100's multiprocessors
    "BB": 64,  # rows of the batch in a step of dw1 and dw2, and in a program of dx
    "BH": 64,  # columns of the hidden layer in a program of dw1 or dw2
    "BFW": 128,  # columns of dw1 in a program
    "BFX": 32,  # columns of dx in a program
    "BHX": 256,  # columns of the hidden layer in a step of dx
    "PDL": False,  # programmatic dependent launch; goes with launch_pdl=True
    "num_warps": 8,
    "num_stages": 3,
    "enable_fp_fusion": True,
}
# Other GPUs and more than 64 classes: smaller tiles in a loop, with fewer registers.
NARROW = BACKWARD | {"BH": 32, "BFW": 64, "BHX": 32}

# --------------------------------------------------- closed forms and Philox, in torch operations


def wide(x):
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def exp_half(x):
    """Clamped x and exp(x / 2): e^x = h h in two factors, neither of which is ever subnormal."""
    x = x.clamp(-1000.0, 40.0)
    return x, torch.exp(0.5 * x)


def value(x):
    """mish(x) for fp32 and float64, as are the next two."""
    _, h = exp_half(x)
    e = h * h
    r = 1 / (e * (e + 2) + 2)
    positive = x * (1 - 2 * r)
    x = x.clamp(min=-1000.0)
    negative = (x * h) * (h * ((e + 2) * r))
    return torch.where(x > 0, positive, negative)


def slope(x):
    """mish'(x)."""
    x, h = exp_half(x)
    e = h * h
    d = e * (e + 2) + 2
    k = 4 * x * (e + 1) / d
    return (h * ((e + 2 + k) / d)) * h


def curvature(x):
    """mish''(x)."""
    x, h = exp_half(x)
    e = h * h
    r = 1 / (e * (e + 2) + 2)
    q = e * r
    a = 2 * (e + 1) * r
    b = a * r - q * q * (3 + 2 * e)
    return 4 * q * (a + x * b)


def philox(seed, offset, group):
    """Philox4x32-7 (Salmon et al. 2011): (G,) int64 -> four 32-bit words of each, (G, 4) int64.

    seed and offset are ints or int64 (), read as unsigned 64-bit numbers. Seven rounds are the
    fewest that pass the tests of BigCrush there; torch's own dropout takes ten, with a margin.
    """
    low = 0xFFFFFFFF
    k0 = seed & low
    k1 = (seed >> 32) & low
    c0 = (offset >> 2) & low
    c1 = (offset >> 34) & 0x3FFFFFFF
    c2 = group & low
    c3 = group >> 32
    for _ in range(7):
        a = 0xD2511F53 * c0
        b = 0xCD9E8D57 * c2
        c0 = (b >> 32) & low ^ c1 ^ k0
        c2 = (a >> 32) & low ^ c3 ^ k1
        c1 = b & low
        c3 = a & low
        k0 = (k0 + 0x9E3779B9) & low
        k1 = (k1 + 0xBB67AE85) & low
    return torch.stack((c0, c1, c2, c3), -1)


def keep_mask(x, rng, drop):
    """The dropout mask of dense x, in its own memory order; rng is int64 (2,): seed, offset."""
    seed, offset = rng if rng.is_cuda else rng.tolist()
    groups = math.ceil(x.numel() / 8)
    group = torch.arange(groups, device=x.device)
    words = philox(seed, offset, group)
    lanes = torch.stack((words & 0xFFFF, words >> 16), -1)
    keep = lanes.flatten()[: x.numel()] >= drop
    return keep.as_strided(x.shape, x.stride())


# -------------------------------------------------------------------------- the elementwise kernel


def jit(function):
    """triton.jit, if there is Triton. One compiled kernel serves each seed, each batch and each
    counter, wherever it lies: another one could not be loaded while a stream is being captured."""
    plain = ["rng_ptr", "seed", "offset", "B", "ticket_ptr"]
    return triton.jit(function, do_not_specialize=plain) if triton else function


@jit
def mish16(x, dtype: constexpr):
    """mish and mish' in fp32 for results of a 16-bit dtype, <= 1 ULP; what is not used is not
    computed."""
    lo = tl.maximum(x, -200.0, propagate_nan=tl.PropagateNan.ALL)  # -inf * 0 would be NaN
    xc = tl.minimum(lo, 20.0, propagate_nan=tl.PropagateNan.ALL)
    # exp2 flushes subnormals, products do not: e^x is the product of two. It is 0 in fp16 anyway.
    if dtype == tl.float16:
        h = tl.exp2(xc * 1.4426950408889634)
        rest = 1.0
    else:
        h = tl.exp2(xc * 0.7213475204444817)
        rest = h
    e = h * rest
    a = e + 2.0
    r = tl.rsqrt(tl.fma(e, a, 2.0))
    r *= r  # 1/d; a division costs 6 instructions more in range checks
    k = tl.fma(4.0 * xc, e, 4.0 * xc) * r  # 4x(e + 1) / d
    value = lo * (h * (rest * (a * r)))
    slope = h * (rest * ((a + k) * r))
    return value, slope


@jit
def mish32(x):
    """mish and mish' for fp32 results; the product x log2(e) is carried with its rounding error."""
    lo = tl.maximum(x, -200.0, propagate_nan=tl.PropagateNan.ALL)
    xc = tl.minimum(lo, 20.0, propagate_nan=tl.PropagateNan.ALL)
    # fp32(log2 e), whose rest is 1.925963e-8. An fma, since the compiler would contract a mere
    # product with the 64 below, and error has to be the rounding error of exactly this t.
    t = tl.fma(xc, 1.4426950216293335, 1e-30)
    error = tl.fma(xc, 1.4426950216293335, -t)
    error = tl.fma(xc, 1.925963033500116e-08, error)
    tail = t < -100.0  # 2^(t + 64) is not subnormal; s undoes it exactly, at the end
    s = tl.where(tail, 5.421010862427522e-20, 1.0)
    e1 = tl.exp2(tl.where(tail, t + 64.0, t))
    e1 = tl.fma(e1 * 0.6931471805599453, error, e1)
    e = e1 * s
    a = e + 2.0
    d = tl.fma(e, a, 2.0)
    c = tl.where(x > 0, 2.0, tl.fma(e, e, e)) / d
    value = tl.where(x > 0, lo, lo * e1)  # mish = x(1 - 2/d) = x e(1 - e(e + 1)/d)
    value = value * (1.0 - c) * s
    r = 1.0 / d
    k = tl.fma(4.0 * xc, e, 4.0 * xc) * r
    positive = tl.fma(tl.fma(k, e, -2.0), r, 1.0)
    negative = ((a + k) * r) * e1 * s
    return value, tl.where(x > 0, positive, negative)


@jit
def philox_key(rng_ptr, seed, offset):
    """Seed and counter: those at rng_ptr or, where it is null, the two numbers."""
    given = rng_ptr.to(tl.int64) != 0
    seed += tl.load(rng_ptr, mask=given, other=0)
    offset += tl.load(rng_ptr + 1, mask=given, other=0)
    return seed, offset.to(tl.uint64, bitcast=True) // 4


@jit
def philox_lanes(seed, counter, group):
    """Eight 16-bit lanes a group, in memory order: (..., G) int64 -> (..., G, 2, 2, 2)."""
    c0 = counter.to(tl.uint32)
    c1 = (counter >> 32).to(tl.uint32)
    c2 = group.to(tl.uint32)
    c3 = (group >> 32).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, c2, c3, n_rounds=7)
    even = tl.join(w0, w2)
    odd = tl.join(w1, w3)
    words = tl.join(even, odd)
    return tl.join(words & 0xFFFF, words >> 16)


@jit
def elementwise_kernel(dy_ptr, x_ptr, out_ptr, n, rng_ptr, seed: tl.int64, offset: tl.int64,
                       DROP: constexpr, BLOCK: constexpr):
    """keep mish(x) of n elements or, with dy, keep dy mish'(x). Bytes an element in fp16: 4 (x is
    read, out written), with dy 6."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    index = tl.arange(0, BLOCK)
    mask = index < n - start
    x = tl.load(x_ptr + start + index, mask=mask)
    x = x.to(tl.float32)

    # One call of Philox serves eight elements. It depends on their index alone, so that forward
    # and backward, and any other tiling, have the same mask.
    if DROP > 0:
        seed, counter = philox_key(rng_ptr, seed, offset)
        group = start // 8 + tl.arange(0, BLOCK // 8)
        lanes = philox_lanes(seed, counter, group)
        keep = lanes.reshape(BLOCK) >= DROP

    if out_ptr.dtype.element_ty == tl.float32:
        out, slope = mish32(x)
    else:
        out, slope = mish16(x, out_ptr.dtype.element_ty)
    if dy_ptr is not None:
        dy = tl.load(dy_ptr + start + index, mask=mask)
        out = dy.to(tl.float32) * slope
    if DROP > 0:
        SCALE: constexpr = 65536 / (65536 - DROP)
        out = tl.where(keep, out * SCALE, 0.0)
    tl.store(out_ptr + start + index, out, mask=mask)


# ------------------------------------------------------------------------------- the head, forward


@jit
def load2d(ptr, row, col, rows, cols):
    """(len(row), len(col)) of a (rows, cols) matrix, 0 outside it."""
    mask = (row < rows)[:, None] & (col < cols)[None, :]
    return tl.load(ptr + row[:, None] * cols + col[None, :], mask=mask, other=0.0)


@jit
def store2d(ptr, x, row, col, rows, cols):
    mask = (row < rows)[:, None] & (col < cols)[None, :]
    tl.store(ptr + row[:, None] * cols + col[None, :], x, mask=mask)


@jit
def log1p(u):
    """log(1 + u) for u in [0, 1]: 2 atanh(s), s = u / (2 + u) <= 1/3, to the term of s^13."""
    s = u / (2.0 + u)
    q = s * s
    series = tl.fma(q, 1 / 13, 1 / 11)
    for n in tl.static_range(9, 0, -2):
        series = tl.fma(q, series, 1 / n)
    return 2.0 * s * series


@jit
def head_kernel(x_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, target_ptr,
                logits_ptr, h_ptr, g_ptr, loss_ptr, d_ptr, ticket_ptr,
                B, rng_ptr, seed: tl.int64, offset: tl.int64,
                F: constexpr, H: constexpr, C: constexpr, CP: constexpr,
                ROWS: constexpr, STEPS: constexpr, DROP: constexpr,
                BM: constexpr, BN: constexpr, BK: constexpr, SPLIT: constexpr):
    """Each program computes BM x BN of h (B, H) and g (B, H). The last to finish computes the
    logits (B, C) and, with target (B, C), the loss () and d = sigmoid(logits) - target (B, CP).

    CP is C padded to a power of two; STEPS times ROWS are B or more. Every sum has one order.
    Bytes at B = 64, F = 2048, fp16: 2.4 MB from memory; each program reads its rows of x and w1.
    """
    dtype = h_ptr.dtype.element_ty
    first_col = tl.program_id(0) * BN
    first_row = tl.program_id(1) * BM
    row = first_row + tl.arange(0, BM)
    col = first_col + tl.arange(0, BN)

    # What the end of the sum needs is asked for now and awaited there.
    b1 = tl.load(b1_ptr + col)
    if DROP > 0:
        seed, counter = philox_key(rng_ptr, seed, offset)

    # z = x w1'. A block of BK columns is cut into SPLIT parts, each of them one warp's own sum.
    PART: constexpr = BK // SPLIT
    part = tl.arange(0, SPLIT)[:, None, None] * PART
    part += tl.arange(0, PART)[None, None, :]
    x_row = row[None, :, None]
    w1_row = col[None, :, None]
    z = tl.zeros([SPLIT, BM, BN], tl.float32)
    for k in range(0, F, BK):
        f = k + part
        x_mask = (x_row < B) & (f < F)
        x = tl.load(x_ptr + x_row * F + f, mask=x_mask, other=0.0)
        w1 = tl.load(w1_ptr + w1_row * F + f, mask=f < F, other=0.0)
        w1 = w1.to(dtype).permute(0, 2, 1)
        z = tl.dot(x.to(dtype), w1, z)

    # What the last program needs besides h is asked for by all, as none knows yet that it is last.
    # A class that only pads has the logit -1e4, and so neither a loss nor a gradient.
    c = tl.arange(0, CP)
    j = tl.arange(0, H)
    rows = tl.arange(0, ROWS)
    w2 = load2d(w2_ptr, c, j, C, H)
    b2 = tl.load(b2_ptr + c, mask=c < C, other=-1e4).to(tl.float32)
    if target_ptr is not None:
        target = load2d(target_ptr, rows, c, B, C)

    # h = keep mish(z), and g = keep mish'(z) for the backward pass, which need not draw again.
    z = tl.sum(z, 0) + b1.to(tl.float32)[None, :]
    h, g = mish16(z, dtype)
    if DROP > 0:
        SCALE: constexpr = 65536 / (65536 - DROP)
        group = (row[:, None] * H + first_col) // 8
        group += tl.arange(0, BN // 8)[None, :]
        lanes = philox_lanes(seed, counter, group.to(tl.int64))
        keep = lanes.reshape(BM, BN) >= DROP
        h = tl.where(keep, h * SCALE, 0.0)
        g = tl.where(keep, g * SCALE, 0.0)
    store2d(h_ptr, h, row, col, B, H)
    w2 = w2.to(dtype)

    # Each program takes a ticket when its part of h is written. Three things make the last one see
    # all of h: the barrier, after which all warps of a program have stored theirs; the ticket's
    # release, which makes these stores visible to the GPU before the ticket counts, and its
    # acquire, which orders the loads below after all tickets; and .cg, which loads from the L2
    # cache that all programs share. The ticket goes back to 0 for the next launch.
    tl.debug_barrier()
    programs = tl.num_programs(0) * tl.num_programs(1)
    ticket = tl.atomic_add(ticket_ptr, 1, sem="acq_rel")
    store2d(g_ptr, g, row, col, B, H)  # here, since the release would wait for it
    if ticket == programs - 1:
        tl.store(ticket_ptr, 0)
        loss = 0.0
        for _ in tl.range(STEPS, num_stages=1):
            # logits = h w2' + b2, of ROWS rows.
            valid = (rows < B)[:, None]
            hidden_ptr = h_ptr + rows[:, None] * H + j[None, :]
            hidden = tl.load(hidden_ptr, mask=valid, other=0.0, cache_modifier=".cg")
            logits = tl.dot(hidden, w2.T) + b2[None, :]
            store2d(logits_ptr, logits, rows, c, B, C)

            # loss = max(l, 0) - l t + log(1 + e^-|l|), d = sigmoid(l) - t.
            if target_ptr is not None:
                u = tl.exp2(tl.abs(logits) * -1.4426950408889634)
                losses = tl.maximum(logits, 0.0) - logits * target + log1p(u)
                loss += tl.sum(tl.where(valid, losses, 0.0))
                sigmoid = tl.where(logits > 0, 1.0, u) / (1.0 + u)
                store2d(d_ptr, sigmoid - target, rows, c, B, CP)
                target = load2d(target_ptr, rows + ROWS, c, B, C)
            rows += ROWS
        if target_ptr is not None:
            tl.store(loss_ptr, loss / (B * C))


# ------------------------------------------------------------------------------ the head, backward


@jit
def head_backward_kernel(d_ptr, dloss_ptr, x_ptr, w1_ptr, w2_ptr, h_ptr, g_ptr,
                         dx_ptr, dw1_ptr, db1_ptr, dw2_ptr, db2_ptr, B,
                         F: constexpr, H: constexpr, C: constexpr, CP: constexpr,
                         STEPS: constexpr, BB: constexpr, BH: constexpr,
                         BFW: constexpr, BFX: constexpr, BHX: constexpr, PDL: constexpr):
    """Three kinds of program, each of which forms the part of dz = (d w2) g that it needs: BH
    columns of dw2 and db1, BH x BFW of dw1, BB x BFX of dx. d is (B, CP).

    The factor dloss / (B C) comes last: sigmoid - target suits 16 bits whatever the loss scale.
    Bytes at B = 64, F = 2048, fp16: 2.4 MB read, 2.4 MB written.
    """
    if PDL:  # launched before the kernel ahead of it has ended: wait for that one's results
        tl.extra.cuda.gdc_wait()
    dtype = h_ptr.dtype.element_ty
    HIDDEN: constexpr = H // BH
    DW1: constexpr = HIDDEN * ((F + BFW - 1) // BFW)
    DX: constexpr = (F + BFX - 1) // BFX
    job = tl.program_id(0)
    c = tl.arange(0, CP)
    dloss = 1.0
    size = 1.0
    if dloss_ptr is not None:  # loaded here, awaited where it is used
        dloss = tl.load(dloss_ptr)
        size = 1.0 / (B * C)

    # dw2[:, col] = d' h, db1[col] and db2: sums over the batch.
    if job < HIDDEN:
        col = job * BH + tl.arange(0, BH)
        w2 = load2d(w2_ptr, c, col, C, H).to(dtype)
        dw2 = tl.zeros([CP, BH], tl.float32)
        db1 = tl.zeros([BB, BH], tl.float32)
        db2 = tl.zeros([BB, CP], tl.float32)
        for i in range(STEPS):
            row = i * BB + tl.arange(0, BB)
            d = load2d(d_ptr, row, c, B, CP)
            g = load2d(g_ptr, row, col, B, H)
            h = load2d(h_ptr, row, col, B, H)
            db2 += d.to(tl.float32)
            # This order: Triton waits for the second product before it loads the next d over this
            # one, but not for a product of d.T that comes last.
            dw2 = tl.dot(d.T, h, dw2)
            db1 += tl.dot(d, w2) * g.to(tl.float32)
        scale = dloss * size
        store2d(dw2_ptr, dw2 * scale, c, col, C, H)
        tl.store(db1_ptr + col, tl.sum(db1, 0) * scale)
        if job == 0:
            total = tl.sum(db2, 0) * scale
            tl.store(db2_ptr + c, total, mask=c < C)

    # dw1[col, f] = dz' x: a sum over the batch.
    elif job < HIDDEN + DW1:
        job -= HIDDEN
        col = job % HIDDEN * BH + tl.arange(0, BH)
        fw = job // HIDDEN * BFW + tl.arange(0, BFW)
        w2 = load2d(w2_ptr, c, col, C, H).to(dtype)
        dw1 = tl.zeros([BH, BFW], tl.float32)
        for i in range(STEPS):
            row = i * BB + tl.arange(0, BB)
            x = load2d(x_ptr, row, fw, B, F).to(dtype)
            d = load2d(d_ptr, row, c, B, CP)
            g = load2d(g_ptr, row, col, B, H)
            dz = tl.dot(d, w2) * g.to(tl.float32)
            dw1 = tl.dot(dz.to(dtype).T, x, dw1)
        store2d(dw1_ptr, dw1 * (dloss * size), col, fw, H, F)

    # dx[row, f] = dz w1: a sum over the hidden layer.
    else:
        job -= HIDDEN + DW1
        row = job // DX * BB + tl.arange(0, BB)
        fx = job % DX * BFX + tl.arange(0, BFX)
        d = load2d(d_ptr, row, c, B, CP)
        dx = tl.zeros([BB, BFX], tl.float32)
        for j in range(0, H, BHX):
            col = j + tl.arange(0, BHX)
            w1 = load2d(w1_ptr, col, fx, H, F).to(dtype)
            w2 = load2d(w2_ptr, c, col, C, H).to(dtype)
            g = load2d(g_ptr, row, col, B, H)
            dz = tl.dot(d, w2) * g.to(tl.float32)
            dx = tl.dot(dz.to(dtype), w1, dx)
        store2d(dx_ptr, dx * (dloss * size), row, fx, B, F)


# -------------------------------------------------------------------------------------- operators

# There are two: run_mish and run_head compute, and each has a setup, which keeps what the gradient
# needs, and a gradient. Of these three both forms of an operator are made: a custom operator, which
# torch.compile looks up and traces (mish_op, head_op), and an autograd.Function, which eager calls
# take (direct_mish, direct_head), since torch's dispatcher takes longer than a launch.


@functools.cache
def capability(device):
    return torch.cuda.get_device_capability(device)


@torch.compiler.assume_constant_result
def has_kernels(device):
    """Triton and an NVIDIA GPU of compute capability 8.0 or more, or TRITON_INTERPRET=1; never in
    torch.export, so that MishHead is exported as torch's own operators, which ONNX knows."""
    # Asked here, which torch.compile calls and does not trace: traced, torch 2.11 says true to it.
    if torch.compiler.is_exporting():
        return False
    if device.type != "cuda" or triton is None or torch.version.hip:
        return INTERPRET
    return capability(device) >= (8, 0)


def capturing(x):
    """Whether what is called now runs later, maybe often: in torch.compile or in a CUDA graph."""
    traced = torch.compiler.is_compiling()
    return traced or x.is_cuda and torch.cuda.is_current_stream_capturing()


def draw(x, drop):
    """Reserve one Philox counter of x's default generator: seed and offset, int64 (2,). They lie on
    the host, or on x's device where a graph draws anew at each replay (one small launch more)."""
    if drop == 0:
        return None
    if capturing(x) or not x.is_cuda:
        return torch.randint(2**63 - 1, (2,), device=x.device)
    generator = torch.cuda.default_generators[x.device.index]
    seed = generator.initial_seed()
    offset = generator.get_offset()
    generator.set_offset(offset + 4)
    return torch.tensor([seed - (seed >> 63 << 64), offset])


def philox_arguments(rng, x):
    """A kernel's rng_ptr, seed and offset. A tensor without elements is a null pointer."""
    if rng is None or rng.device == x.device:
        return rng, 0, 0
    return x.new_empty(0, dtype=torch.int64), *rng.tolist()


def dense(x, like):
    """x in the strides of torch.empty_like(like), which are like's own if it has no gaps."""
    strides = torch.empty_like(like, device="meta").stride()
    if x.stride() == strides:
        return x
    return torch.empty_like(like).copy_(x)


def masked(out, x, rng, drop):
    """keep out, with the dropout mask of x."""
    if drop == 0:
        return out
    scale = 65536 / (65536 - drop)
    return torch.where(keep_mask(x, rng, drop), out * scale, 0.0)


def run_mish(dy: Tensor | None, x: Tensor, rng: Tensor | None, drop: int) -> Tensor:
    """keep mish(x), or with dy: keep dy mish'(x). One launch, or torch operations."""
    x = dense(x, x)
    dy = dy if dy is None else dense(dy, x)
    if x.dtype not in DTYPES.values() or not has_kernels(x.device):
        if dy is None:
            out = value(wide(x))
        else:
            out = slope(wide(x)) * wide(dy)
        return masked(out, x, rng, drop).to(x.dtype)

    n = x.numel()
    out = torch.empty_like(x)
    if n == 0:
        return out
    block = DROPOUT_BYTES // x.element_size() if drop else BLOCK
    grid = (math.ceil(n / block),)
    with torch.cuda.device_of(x):
        elementwise_kernel[grid](
            dy, x, out, n, *philox_arguments(rng, x),
            DROP=drop, BLOCK=block, num_warps=4, enable_fp_fusion=True)  # fmt: skip
    return out


def mish_setup(ctx, inputs, output):
    dy, x, rng, ctx.drop = inputs
    ctx.save_for_backward(dy, x, rng)


def mish_gradient(op, ctx, grad):
    """Of keep mish(x): keep grad mish'(x). Of keep dy mish'(x): the same for dy, and for x
    keep grad dy mish''(x), in torch operations."""
    dy, x, rng = ctx.saved_tensors
    first = op(grad, x, rng, ctx.drop)
    if dy is None:
        return None, first, None, None
    second = curvature(wide(x)) * wide(dy) * wide(grad)
    second = masked(second, dense(x, x), rng, ctx.drop)
    return first, second.to(x.dtype), None, None


def direct(run, setup, gradient):
    """The form of an operator for eager calls."""

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = run(*inputs)
            setup(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx, *gradients):
            return gradient(ctx, *gradients)

    return Direct.apply


mish_op = torch.library.custom_op("mish::mish", run_mish, mutates_args=())
mish_op.register_fake(lambda dy, x, rng, drop: torch.empty_like(x))
mish_op.register_autograd(functools.partial(mish_gradient, mish_op), setup_context=mish_setup)
direct_mish = direct(
    run_mish, mish_setup, lambda ctx, grad: mish_gradient(direct_mish, ctx, grad)
)


def differentiable_mish(*inputs):
    op = mish_op if torch.compiler.is_compiling() else direct_mish
    return op(*inputs)


TICKETS = {}  # (device, stream) -> counter of its eager calls
COUNTERS = {}  # device -> counters for calls in CUDA graphs, which no call has yet
BLOCKS = []  # what COUNTERS are cut from: a graph knows their addresses, and keeps no tensor alive


def ticket(x):
    """The head's counter of programs that have ended, int32 (1,): 0 before and after each launch.

    Launches that may overlap have different ones: each stream its own, which is zeroed on it, and
    each call in a CUDA graph its own, of those that were zeroed before the capture. torch.compile
    owns the memory of its graphs, and makes and zeroes its own (one small launch more), as does a
    capture without any.
    """
    if capturing(x):
        spare = None if torch.compiler.is_compiling() else COUNTERS.get(x.device)
        return spare.pop() if spare else x.new_zeros(1, dtype=torch.int32)

    spare = COUNTERS.setdefault(x.device, [])
    if len(spare) < 200:  # more calls than a graph is likely to have
        block = x.new_zeros(200, dtype=torch.int32)
        BLOCKS.append(block)
        spare.extend(block.split(1))

    stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
    key = x.device, stream
    if key not in TICKETS:
        TICKETS[key] = x.new_zeros(1, dtype=torch.int32)
    return TICKETS[key]


def padded(C):
    """C as a power of two that is wide enough for a matrix product."""
    return max(16, 2 ** math.ceil(math.log2(C)))


def sizes(x, w2, rows):
    """What a kernel of the head is compiled for, if it takes so many rows at a time."""
    B, F = x.shape
    C, H = w2.shape
    steps = math.ceil(B / rows)
    return {"F": F, "H": H, "C": C, "CP": padded(C), "STEPS": steps}


def forward_tiles(B, C, itemsize):
    """A tile of fp32 is as many bytes. Logits of more than 64 classes fill the registers."""
    BM = FORWARD["BM"] if B <= 64 else 32
    BK = FORWARD["BK"] * 2 // itemsize
    return FORWARD | {"BM": BM, "BK": BK, "ROWS": 64 if C <= 64 else 32}


def backward_tiles(B, C, H, hopper):
    """Buffers have to stay below 99 KB, all there is on compute capability 8.6 and 8.9."""
    tiles = BACKWARD if hopper and C <= 64 and H == 256 else NARROW
    stages = tiles["num_stages"] - (C > 64) - (B > 64)
    return tiles | {"num_stages": stages}


def run_head(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    target: Tensor | None,
    rng: Tensor | None,
    ticket: Tensor,
    drop: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """logits (B, C), h and g (B, H), and with target the loss () and d (B, CP), else empty.

    The 16-bit dtype is that of h, g, d and, without target, of the logits."""
    outputs = head_outputs(x, w1, b1, w2, b2, target, rng, ticket, drop, dtype)
    B = len(x)
    C, H = w2.shape
    tiles = forward_tiles(B, C, x.element_size())
    grid = H // tiles["BN"], math.ceil(B / tiles["BM"])
    with torch.cuda.device_of(x):
        head_kernel[grid](
            x, w1, b1, w2, b2, target, *outputs, ticket,
            B, *philox_arguments(rng, x), DROP=drop,
            **sizes(x, w2, tiles["ROWS"]), **tiles)  # fmt: skip
    return outputs


def head_outputs(x, w1, b1, w2, b2, target, rng, ticket, drop, dtype):
    B = len(x)
    C, H = w2.shape
    h = x.new_empty((B, H), dtype=dtype)
    g = torch.empty_like(h)
    if target is None:
        logits = x.new_empty((B, C), dtype=dtype)
        loss = x.new_empty(0, dtype=torch.float32)
        d = x.new_empty(0, dtype=dtype)
    else:
        logits = x.new_empty((B, C), dtype=torch.float32)
        loss = x.new_empty((), dtype=torch.float32)
        d = x.new_empty((B, padded(C)), dtype=dtype)
    return logits, h, g, loss, d


def run_head_backward(
    d: Tensor,
    dloss: Tensor | None,
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    h: Tensor,
    g: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dw1, db1, dw2, db2 from dloss and head_op's d, or from d, the gradient of the logits."""
    grads = head_gradients(d, dloss, x, w1, b1, w2, b2, h, g)
    B, F = x.shape
    C, H = w2.shape
    hopper = INTERPRET or capability(x.device)[0] == 9
    tiles = backward_tiles(B, C, H, hopper)
    jobs_dw2 = H // tiles["BH"]
    jobs_dw1 = jobs_dw2 * math.ceil(F / tiles["BFW"])
    jobs_dx = math.ceil(B / tiles["BB"]) * math.ceil(F / tiles["BFX"])
    grid = (jobs_dw2 + jobs_dw1 + jobs_dx,)
    with torch.cuda.device_of(x):
        head_backward_kernel[grid](
            d, dloss, x, w1, w2, h, g, *grads, B,
            **sizes(x, w2, tiles["BB"]), **tiles)  # fmt: skip
    return grads


def head_gradients(d, dloss, x, w1, b1, w2, b2, h, g):
    return tuple(torch.empty_like(t) for t in (x, w1, b1, w2, b2))


def head_setup(ctx, inputs, output):
    _, h, g, _, d = output
    ctx.fused = inputs[5] is not None
    ctx.save_for_backward(d, *inputs[:5], h, g)
    ctx.set_materialize_grads(False)  # zeros for h, g and d would be three launches


def head_gradient(op, ctx, dlogits, dh, dg, dloss, dd):
    d, *tensors = ctx.saved_tensors
    if (dloss if ctx.fused else dlogits) is None:
        return (None,) * 10
    if not ctx.fused:
        dloss = None
        C = dlogits.shape[1]
        d = F.pad(dlogits, (0, padded(C) - C))
        d = d.contiguous()
    return *op(d, dloss, *tensors), *(None,) * 5


head_backward_op = torch.library.custom_op(
    "mish::head_backward", run_head_backward, mutates_args=()
)
head_backward_op.register_fake(head_gradients)

head_op = torch.library.custom_op("mish::head", run_head, mutates_args=())
head_op.register_fake(head_outputs)
head_op.register_autograd(
    functools.partial(head_gradient, head_backward_op), setup_context=head_setup
)


def direct_head_gradient(ctx, *gradients):
    """Under create_graph by the operator, which has no gradient of its own, and says so."""
    op = head_backward_op if torch.is_grad_enabled() else run_head_backward
    return head_gradient(op, ctx, *gradients)


direct_head = direct(run_head, head_setup, direct_head_gradient)


# ----------------------------------------------------------------------- functions and modules


def threshold(p, training):
    """How many of 65536 lanes are dropped."""
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, got {p}")
    return round(65536 * p) if training else 0


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)): any floating type and layout, twice differentiable."""
    return differentiable_mish(None, x, None, 0)


def mish_dropout(x: Tensor, p=0.5, training=True) -> Tensor:
    """dropout(mish(x), p), twice differentiable; p is rounded to 1 / 65536."""
    drop = threshold(p, training)
    if drop == 65536:  # 0 even where x is infinite
        everywhere = x.new_ones((), dtype=torch.bool)
        return x.masked_fill(everywhere, 0.0)
    return differentiable_mish(None, x, draw(x, drop), drop)


def fits(x, w1, b1, w2, b2, dtype):
    """Whether the fused head applies. Where the sizes are wrong torch says so, in F.linear."""
    if dtype not in (torch.float16, torch.bfloat16):
        return False
    if x.dtype not in DTYPES.values() or not has_kernels(x.device):
        return False
    if x.dim() != 2 or w2.dim() != 2:
        return False

    B, F = x.shape
    C, H = w2.shape
    weights = w1, b1, w2, b2
    shapes = (H, F), (H,), (C, H), (C,)
    if tuple(t.shape for t in weights) != shapes:
        return False
    if not all(t.is_contiguous() for t in weights):
        return False
    counts = 1 <= B <= MAX_BATCH and 1 <= C <= MAX_CLASSES
    return counts and H in HIDDEN_SIZES and F % 16 == 0


def bce(logits, target):
    logits = wide(logits)
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))


def head(x, w1, b1, w2, b2, target, p, training):
    """Loss, None without target, and logits, which have a gradient only without target."""
    shape = *x.shape[:-1], len(w2)
    if target is not None and target.shape != shape:
        raise ValueError(f"target {tuple(target.shape)} for logits {shape}")

    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    drop = threshold(p, training)
    if drop < 65536 and fits(x, w1, b1, w2, b2, dtype):
        x = x.contiguous()
        if target is not None:
            target = target.detach().float().contiguous()
        state = draw(x, drop), ticket(x)
        op = head_op if torch.compiler.is_compiling() else direct_head
        outputs = op(x, w1, b1, w2, b2, target, *state, drop, dtype)
        logits, _, _, loss, _ = outputs
    else:
        hidden = F.linear(x, w1, b1)
        hidden = mish_dropout(hidden, p, training)
        logits = F.linear(hidden, w2, b2)
        loss = None if target is None else bce(logits, target)
    if target is not None:
        logits = logits.detach()
    return loss, logits


def mish_head(x, w1, b1, w2, b2, p=0.5, training=True) -> Tensor:
    """Logits (B, C) of x (B, F) through w1 (H, F), b1 (H,), w2 (C, H), b2 (C,), in autocast's type
    or x's; under autocast the weights stay fp32."""
    return head(x, w1, b1, w2, b2, None, p, training)[1]


def mish_head_bce(x, w1, b1, w2, b2, target, p=0.5, training=True) -> tuple[Tensor, Tensor]:
    """Mean over B C of BCE with logits against target (B, C) in [0, 1], in fp32 (float64 of
    float64), and the logits, which carry no gradient. A target of another shape is a ValueError."""
    return head(x, w1, b1, w2, b2, target, p, training)


class Mish(nn.Module):
    def forward(self, x):
        return mish(x)


class MishDropout(nn.Dropout):
    def forward(self, x):
        return mish_dropout(x, self.p, self.training)


class MishHead(nn.Sequential):
    """Linear -> Mish -> Dropout -> Linear: (B, in_features) -> logits (B, num_classes).

    state_dict keys 0.weight 0.bias 3.weight 3.bias. On a GPU the kernels run, past the children's
    hooks. On a CPU the children run: torch's Mish and Dropout are vectorised, and faster there.
    """

    def __init__(self, in_features, num_classes=43, hidden=256, p=0.5):
        super().__init__(
            nn.Linear(in_features, hidden),
            nn.Mish(),
            nn.Dropout(p),
            nn.Linear(hidden, num_classes),
        )

    def arguments(self, target=None):
        first, _, dropout, last = self
        weights = first.weight, first.bias, last.weight, last.bias
        return *weights, target, dropout.p, self.training

    def forward(self, x):
        if has_kernels(x.device):
            return head(x, *self.arguments())[1]
        return super().forward(x)

    def bce(self, x, target):
        """Loss and logits as mish_head_bce gives them."""
        if has_kernels(x.device):
            return head(x, *self.arguments(target))
        logits = super().forward(x)
        return bce(logits, target), logits.detach()


# ------------------------------------------------------------------------- checks and benchmark


def head_inputs(B, width, dtype, device):
    """Random x, w1, b1, w2, b2 (leaves) and target of the report's head."""
    x = torch.randn(B, width, device=device).to(dtype)
    shapes = (256, width), (256,), (43, 256), (43,)
    weights = [torch.randn(shape, device=device) / 16 for shape in shapes]
    target = torch.rand(B, 43, device=device) < 0.1
    leaves = [t.requires_grad_() for t in (x, *weights)]
    return [*leaves, target.float()]


def relative(got, want):
    """Frobenius error, relative to want."""
    want = want.detach()
    error = got.detach().double() - want
    return (error.norm() / want.norm()).item()


def checks(device):
    """Rows (what, relative error, limit) of every operator and gradient against float64 torch."""
    rows = []
    rng = torch.tensor([2**40 + 3, 8])
    for kind, limit in (("fp32", 1e-6), ("fp16", 5e-4), ("bf16", 4e-3)):  # about a rounding
        x = torch.randn(100_003, device=device).to(DTYPES[kind])
        dy = torch.randn_like(x)
        x64 = x.double().requires_grad_()
        for op, drop in (("mish", 0), ("mish_dropout", 32768)):
            y64 = masked(F.mish(x64), x, rng, drop)
            (dx64,) = torch.autograd.grad(y64, x64, dy.double())
            error = relative(mish_op(None, x, rng, drop), y64)
            rows.append((f"{op} {kind} y", error, limit))
            error = relative(mish_op(dy, x, rng, drop), dx64)
            rows.append((f"{op} {kind} dx", error, limit))

    for kind, limit in (("fp16", 2e-3), ("bf16", 1.5e-2)):  # four roundings
        if INTERPRET and kind == "bf16":  # Triton's interpreter multiplies its bits as integers
            continue
        *leaves, target = head_inputs(64, 2048, DTYPES[kind], device)
        with torch.autocast(device, DTYPES[kind]):
            loss, logits = mish_head_bce(*leaves, target, p=0.0)
        got = logits, loss, *torch.autograd.grad(loss, leaves)

        exact = [t.detach().double().requires_grad_() for t in leaves]
        x, w1, b1, w2, b2 = exact
        hidden64 = F.mish(F.linear(x, w1, b1))
        logits64 = F.linear(hidden64, w2, b2)
        loss64 = F.binary_cross_entropy_with_logits(logits64, target.double())
        want = logits64, loss64, *torch.autograd.grad(loss64, exact)
        names = "logits", "loss", "dx", "dw1", "db1", "dw2", "db2"
        for name, a, b in zip(names, got, want, strict=True):
            rows.append((f"head {kind} {name}", relative(a, b), limit))
    return rows


def eager_head(x, w1, b1, w2, b2, target):
    hidden = F.dropout(F.mish(F.linear(x, w1, b1)))
    logits = F.linear(hidden, w2, b2)
    return F.binary_cross_entropy_with_logits(logits, target)


FUNCTIONS = {  # op -> eager, fused; p = 0.5
    "mish": (lambda x: F.mish(x), mish),
    "mish_dropout": (lambda x: F.dropout(F.mish(x)), mish_dropout),
    "head": (eager_head, lambda *inputs: mish_head_bce(*inputs)[0]),
}
MODES = {"compile": "default", "max-autotune": "max-autotune-no-cudagraphs"}
MAIN_SHAPES = {"elementwise": [(2**26,)], "head": [(64, 2048)]}  # (B, F) of the head
SHAPES = {
    "elementwise": [(2**16,), (2**20,), (2**26,)],
    "head": [(64, 512), (24, 4320), (24, 2560), (64, 2048), (80, 2048)],  # the networks'; B > 64
}
COLUMNS = ["op", "dtype", "shape", "direction", "clock", "provider"]
COLUMNS += ["us", "p20", "p80", "x eager", "GB/s", "of copy"]


def timed(step, inputs, clock):
    """Microseconds a step: median, p20, p80 over passes through all inputs. graph: on the device,
    replayed from one CUDA graph; wall: called from Python, until the device has done it."""

    def run():
        for arguments in inputs:
            step(*arguments)

    run()
    run()
    if clock == "graph":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        run = graph.replay
        run()

    times = []
    deadline = time.perf_counter() + 0.15
    while len(times) < 5 or (len(times) < 50 and time.perf_counter() < deadline):
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / len(inputs))
    shares = torch.tensor([0.5, 0.2, 0.8])
    return torch.tensor(times).quantile(shares).tolist()


def copy_rate():
    """GB/s of a copy of 128 MB on the device, read and written."""
    a, b = torch.empty(2, 2**27, dtype=torch.uint8, device="cuda")
    us, _, _ = timed(lambda: a.copy_(b), [()] * 8, "graph")
    return 2 * len(a) / us / 1e3


def step_inputs(op, shape, dtype):
    """Inputs of many steps, together 1.5 times the L2 cache, so that each reads from memory."""

    def inputs():
        if op == "head":
            return head_inputs(*shape, dtype, "cuda")
        x = torch.randn(shape, dtype=dtype, device="cuda")
        return [x.requires_grad_()]

    first = inputs()
    size = sum(t.nbytes for t in first[:2])  # x and, in the head, w1
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return [first] + [inputs() for _ in range(1 + 3 * cache // (2 * size))]


def measure(op, kind, shape, providers, copy):
    """Rows of one operator: each provider, both directions and clocks. copy is in GB/s."""
    dtype = DTYPES[kind]
    inputs = step_inputs(op, shape, dtype)
    size = sum(t.nbytes for t in inputs[0][:2])  # x and, in the head, w1
    if op == "head":
        moved = {"fwd": size, "fwd+bwd": 3 * size}  # x w1, x w1 dx dw1
        dout = torch.ones((), device="cuda")
    else:
        moved = {"fwd": 2 * size, "fwd+bwd": 5 * size}  # x y, x dy dx
        dout = torch.randn_like(inputs[0][0])

    def step(*arguments):
        with torch.autocast("cuda", dtype, enabled=op == "head"):
            out = function(*arguments)
        if direction == "fwd+bwd":
            leaves = [t for t in arguments if t.requires_grad]
            torch.autograd.grad(out, leaves, dout)

    eager = {}
    for provider, direction, clock in itertools.product(providers, moved, ("graph", "wall")):
        eager_function, fused_function = FUNCTIONS[op]
        function = fused_function if provider == "fused" else eager_function
        if provider in MODES:
            function = torch.compile(function, dynamic=False, mode=MODES[provider])
        try:
            with torch.set_grad_enabled(direction == "fwd+bwd"):
                us, p20, p80 = timed(step, inputs, clock)
        except Exception as error:  # it loses its own row, not the others'
            print(op, kind, shape, direction, clock, provider, "failed:", repr(error)[:200])
            continue
        ratio = eager.setdefault((direction, clock), us) / us
        rate = moved[direction] / us / 1e3
        numbers = us, p20, p80, ratio, rate, rate / copy
        numbers = [round(number, 2) for number in numbers]
        name = "x".join(map(str, shape))
        row = [op, kind, name, direction, clock, provider, *numbers]
        yield dict(zip(COLUMNS, row, strict=True))


def benchmark(providers, shapes, ops=tuple(FUNCTIONS), kinds=tuple(DTYPES), path=os.devnull):
    """Print the rows, each as soon as it is measured, and add them to a CSV file."""
    gpu = torch.cuda.get_device_properties(0)
    copy = copy_rate()
    print(f"{gpu.name}, {gpu.multi_processor_count} SMs, L2 {gpu.L2_cache_size >> 20} MB")
    kernels = f"triton {triton.__version__}" if triton else "no Triton, fused is torch's operators"
    print(f"torch {torch.__version__}, {kernels}, CUDA {torch.version.cuda}")
    print(f"{time.strftime('%Y-%m-%d')}, a copy of 128 MB: {copy:.0f} GB/s")
    with open(path, "a", newline="", buffering=1) as file:
        if file.tell() == 0:
            csv.writer(file).writerow(COLUMNS)
        for op, kind in itertools.product(ops, kinds):
            if (op, kind) == ("head", "fp32"):  # it is fused in 16 bits only
                continue
            for shape in shapes["head" if op == "head" else "elementwise"]:
                torch.compiler.reset()
                for row in measure(op, kind, shape, providers, copy):
                    print(*(f"{cell!s:>12}" for cell in row.values()), flush=True)
                    csv.writer(file).writerow(row.values())


def main(argv=None):
    parser = argparse.ArgumentParser(description="Check and, on a GPU, time the Mish kernels.")
    parser.add_argument("--csv", default=os.devnull, help="add the rows to this file")
    parser.add_argument("--quick", action="store_true", help="eager and fused, main shapes only")
    args = parser.parse_args(argv)
    if not args.csv:
        parser.error("--csv names no file")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        if args.quick or args.csv != os.devnull:
            parser.error("--csv and --quick are of the benchmark, which needs a CUDA device")
        checked = "the kernels do not run, what is checked is their fallback in torch"
        if INTERPRET:
            checked = "the kernels run in Triton's interpreter"
        print(f"No CUDA device: {checked}; nothing is timed.")

    torch.manual_seed(0)
    results = checks(device)
    for name, error, limit in results:
        verdict = "ok" if error <= limit else "FAILED"
        print(f"{name:24}  relative error {error:.1e}  limit {limit:.1e}  {verdict}")

    if device == "cuda":
        shapes = MAIN_SHAPES if args.quick else SHAPES
        benchmark(("eager", "fused"), shapes, path=args.csv)
        if not args.quick:
            benchmark(("eager", *MODES), MAIN_SHAPES, path=args.csv)
        if args.csv != os.devnull:
            print(f"written: {args.csv}")
    return int(not all(error <= limit for _, error, limit in results))


if __name__ == "__main__":
    raise SystemExit(main())
