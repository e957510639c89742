"""Mish (Misra 2019, arXiv:1908.08681), Mish + dropout and the whole Mish head as Triton kernels.

    python mish_kernel.py --quick     checks, then (on a GPU) the benchmark; --help lists options

With e = exp(x) and d = e^2 + 2e + 2, since tanh(log(1 + e)) = e(e + 2) / d:

    mish(x)   = x tanh(softplus(x)) = x e(e + 2) / d
    mish'(x)  = e(e + 2) / d  +  4x e(e + 1) / d^2
    mish''(x) = 4e [2(e + 1) d + x(2 + 2e - 3e^2 - 2e^3)] / d^3

One exponential, one reciprocal, no cancellation. Above 20, e(e + 2) / d rounds to 1 and x is
clamped; below -87, where e^x is subnormal but x e^x is not, the exponential stays a product.
mish(-inf) = -0, mish'(-inf) = 0, mish'(inf) = 1 and NaN stays (F.mish has NaN in all three places).

Dropout stores no mask. Element i, counted in memory order, takes lane i % 8 of the eight 16-bit
lanes of Philox4x32-10(key = seed, counter = (offset / 4, i // 8)). It is kept where the lane is at
least k = round(65536 p), times 65536 / (65536 - k); a dropped element is +0 whatever the input. One
(seed, offset) gives one mask, on CPU and GPU and for every tiling. They come from torch's default
generators: on CUDA its (seed, offset), which moves on by 4 (torch.randint under torch.compile); on
CPU, which has no offset, two draws of torch.randint. p = 0, p = 1 and evaluation draw nothing.

The head, Linear(F, H) - Mish - Dropout - Linear(H, C) (- mean BCE with logits), is one launch
forward and one backward, bit-repeatable (no float atomics), in fp16 or bf16 (autocast's or the
input's); fp32 master weights are read, and their gradients written, in fp32:

    z = x w1' + b1      h = keep mish(z)      g = keep mish'(z)      logits = h w2' + b2
    dz = (dlogits w2) g      dw2 = dlogits' h      dw1 = dz' x      dx = dz w1

Elsewhere (CPU, fp32, B > 1024, C > 128, F % 16 or H % 64 not 0) torch multiplies the matrices
around the elementwise kernel. The elementwise ops differentiate twice, the head once.
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
except ImportError:  # everything runs in torch operations
    triton = None

INTERPRET = triton is not None and triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: CPU kernels
BLOCK = 1024  # elements a program: 8 for each of 128 threads, so that accesses are 16 bytes wide
MAX_BATCH, MAX_CLASSES = 1024, 128  # of the fused head
# Its tiles, chosen from compiled code; tests/gpu_visit.py times others on a GPU. Forward: 64
# programs at B = 64 with 96 KB of loads in flight, and a warp for each 1 / SPLIT of BK (in one
# warp the 128 matrix products of a sum over F = 2048 are 128 latencies). Backward: 132 programs,
# an H100's SMs, that load at once what they need; NARROW: in a loop, with fewer registers.
FORWARD = {"BM": 32, "BN": 8, "BK": 512, "SPLIT": 8, "num_warps": 8, "num_stages": 3}
BACKWARD = {"BB": 64, "BH": 64, "BFW": 128, "BFX": 32, "BHX": 256, "num_warps": 8, "num_stages": 3}
NARROW = {"BH": 32, "BFW": 64, "BHX": 32}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}  # of the kernels

# -------------------------------------------------------- closed forms in torch (fp32 or float64)


def wide(x):
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def exp_half(x):
    """Clamped x and exp(x / 2): e^x = h h in two factors, neither of which is ever subnormal."""
    x = x.clamp(-1000.0, 40.0)
    return x, torch.exp(0.5 * x)


def value(x):
    _, h = exp_half(x)
    e = h * h
    r = 1 / (e * (e + 2) + 2)
    return torch.where(x > 0, x * (1 - 2 * r), (x.clamp(min=-1000.0) * h) * (h * ((e + 2) * r)))


def slope(x):
    x, h = exp_half(x)
    e = h * h
    d = e * (e + 2) + 2
    return (h * ((e + 2 + 4 * x * (e + 1) / d) / d)) * h


def curvature(x):
    x, h = exp_half(x)
    e = h * h
    r = 1 / (e * (e + 2) + 2)
    q, a = e * r, 2 * (e + 1) * r
    return 4 * q * (a + x * (a * r - q * q * (3 + 2 * e)))


def philox(seed, offset, group):
    """Philox4x32-10 (Salmon et al. 2011): (G,) int64 -> four 32-bit words of each, (G, 4) int64.

    seed and offset are ints or int64 (1,), read as unsigned 64-bit numbers.
    """
    low = 0xFFFFFFFF
    k0, k1 = seed & low, (seed >> 32) & low
    c0, c1, c2, c3 = (offset >> 2) & low, (offset >> 34) & 0x3FFFFFFF, group & low, group >> 32
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) & low ^ c1 ^ k0, b & low, (a >> 32) & low ^ c3 ^ k1, a & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return torch.stack((c0, c1, c2, c3), -1)


def kept_torch(x, seed, offset, shift, drop):
    """The dropout mask of dense x, in its own memory order."""
    if not seed.is_cuda:
        seed, offset = seed.item(), offset.item()
    words = philox(seed, offset + shift, torch.arange(-(-x.numel() // 8), device=x.device))
    lanes = torch.stack((words & 0xFFFF, words >> 16), -1).flatten()[: x.numel()]
    return (lanes >= drop).as_strided(x.shape, x.stride())


# ----------------------------------------------------------------------------- elementwise kernels


def jit(function):
    """triton.jit, if there is Triton; no new compilation for another seed or batch."""
    plain = ["seed", "offset", "seed_at", "offset_at", "B"]
    return triton.jit(function, do_not_specialize=plain) if triton else function


@jit
def mish16(x):
    """mish and mish' in fp32 for 16-bit results, <= 1 ULP; what is not used is not computed."""
    lo = tl.maximum(x, -200.0, propagate_nan=tl.PropagateNan.ALL)  # -inf * 0 would be NaN
    xc = tl.minimum(lo, 20.0, propagate_nan=tl.PropagateNan.ALL)
    h = tl.exp2(xc * 0.7213475204444817)  # e^(x/2): exp2 flushes subnormals, products do not
    e = h * h
    a = e + 2.0
    r = tl.rsqrt(tl.fma(e, a, 2.0))
    r *= r  # 1/d; a division costs 6 instructions more in range checks
    k = tl.fma(4.0 * xc, e, 4.0 * xc) * r  # 4x(e + 1) / d
    return lo * (h * (h * (a * r))), h * (h * ((a + k) * r))


@jit
def mish32(x):
    """mish and mish' for fp32 results; the product x log2(e) is carried with its rounding error."""
    lo = tl.maximum(x, -200.0, propagate_nan=tl.PropagateNan.ALL)
    xc = tl.minimum(lo, 20.0, propagate_nan=tl.PropagateNan.ALL)
    t = xc * 1.4426950216293335  # fp32(log2 e); the rest of log2 e is 1.925963e-8
    error = tl.fma(xc, 1.925963033500116e-08, tl.fma(xc, 1.4426950216293335, -t))
    tail = t < -100.0  # 2^(t + 64) is not subnormal; s undoes it exactly, at the end
    s = tl.where(tail, 5.421010862427522e-20, 1.0)
    e1 = tl.exp2(tl.where(tail, t + 64.0, t))
    e1 = tl.fma(e1 * 0.6931471805599453, error, e1)
    e = e1 * s
    a = e + 2.0
    d = tl.fma(e, a, 2.0)
    c = tl.where(x > 0, 2.0, tl.fma(e, e, e)) / d  # mish = x(1 - 2/d) = x e(1 - e(e + 1)/d)
    r = 1.0 / d
    k = tl.fma(4.0 * xc, e, 4.0 * xc) * r
    slope = tl.where(x > 0, tl.fma(tl.fma(k, e, -2.0), r, 1.0), ((a + k) * r) * e1 * s)
    return tl.where(x > 0, lo, lo * e1) * (1.0 - c) * s, slope


@jit
def number(value, address):
    """value, plus the int64 at address, if that is not 0. Eager and captured launches are one
    compiled kernel: another one could not be loaded while a stream is being captured."""
    zero = tl.zeros([1, 1], tl.int64)
    pointer = (zero + address).to(tl.pointer_type(tl.int64))
    return zero + value + tl.load(pointer, mask=zero + address != 0, other=0)


@jit
def kept(base, cols, key, offset, R: tl.constexpr, C: tl.constexpr, DROP: tl.constexpr):
    """(R, C) mask of rows of C elements, cols apart, from element base on."""
    counter = offset.to(tl.uint64, bitcast=True)
    group = base // 8 + tl.arange(0, C // 8)[None, :]
    if R > 1:
        group += tl.arange(0, R)[:, None] * (cols // 8)
    w0, w1, w2, w3 = tl.philox(key, (counter >> 2).to(tl.uint32), (counter >> 34).to(tl.uint32),
                               group.to(tl.uint32), (group >> 32).to(tl.uint32))
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # (R, C / 8, 2, 2), in memory w0 w1 w2 w3
    return tl.join(words & 0xFFFF, words >> 16).reshape(R, C) >= DROP


@jit
def act_tile(dy_ptr, x_ptr, bias_ptr, out_ptr, index, col, mask, keep, SCALE: tl.constexpr):
    x = tl.load(x_ptr + index, mask=mask).to(tl.float32)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + col, mask=mask).to(tl.float32)
    if out_ptr.dtype.element_ty == tl.float32:
        out, slope = mish32(x)
    else:
        out, slope = mish16(x)
    if dy_ptr is not None:
        out = tl.load(dy_ptr + index, mask=mask).to(tl.float32) * slope
    if keep is not None:
        out = tl.where(keep, out * SCALE, 0.0)
    tl.store(out_ptr + index, out.to(out_ptr.dtype.element_ty), mask=mask)
    return out


@jit
def act_kernel(dy_ptr, x_ptr, bias_ptr, out_ptr, db_ptr, rows, cols,
               seed: tl.int64, offset: tl.int64, seed_at: tl.int64, offset_at: tl.int64,
               R: tl.constexpr, C: tl.constexpr, DROP: tl.constexpr):
    """keep mish(x + bias): one read, one write (fp16: 4 bytes an element). With dy: keep dy
    mish'(x + bias), two reads, one write (6 bytes), and in db its sums over each R rows.

    x is (rows, cols), or any flat array of cols elements with rows = R = 1.
    """
    row, first = 0, tl.program_id(0).to(tl.int64) * C
    base, index, col = first, tl.arange(0, C)[None, :], first + tl.arange(0, C)[None, :]
    if R > 1:  # on one grid axis, since the others end at 65,535
        row = (tl.program_id(0) // tl.cdiv(cols, C)).to(tl.int64) * R
        first = (tl.program_id(0) % tl.cdiv(cols, C)).to(tl.int64) * C
        base, index = row * cols + first, tl.arange(0, R)[:, None] * cols + index
        col = first + tl.arange(0, C)[None, :] + tl.zeros([R, C], tl.int64)
    keep = None
    if DROP > 0:
        key, counter = number(seed, seed_at), number(offset, offset_at)
        keep = kept(base, cols, key, counter, R, C, DROP)
    SCALE: tl.constexpr = 65536 / (65536 - DROP)
    x_ptr += base
    out_ptr += base
    if dy_ptr is not None:
        dy_ptr += base
    if (R == 1 or row + R <= rows) and first + C <= cols:  # unmasked: 16-byte accesses
        out = act_tile(dy_ptr, x_ptr, bias_ptr, out_ptr, index, col, None, keep, SCALE)
    else:
        mask = (tl.arange(0, R)[:, None] < rows - row) & (tl.arange(0, C)[None, :] < cols - first)
        out = act_tile(dy_ptr, x_ptr, bias_ptr, out_ptr, index, col, mask, keep, SCALE)
        out = tl.where(mask, out, 0.0)
    if db_ptr is not None:
        col = first + tl.arange(0, C)
        tl.store(db_ptr + row // R * cols + col, tl.sum(out, axis=0), mask=col < cols)


# ------------------------------------------------------------------------------------ head kernels


@jit
def load2d(ptr, row, stride, col, rows, cols):
    """(len(row), len(col)) of a matrix, 0 outside rows x cols."""
    mask = (row < rows)[:, None] & (col < cols)[None, :]
    return tl.load(ptr + row[:, None] * stride + col[None, :], mask=mask, other=0.0)


@jit
def store2d(ptr, x, row, stride, col, rows, cols):
    mask = (row < rows)[:, None] & (col < cols)[None, :]
    tl.store(ptr + row[:, None] * stride + col[None, :], x.to(ptr.dtype.element_ty), mask=mask)


@jit
def head_kernel(x_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, target_ptr, loss_ptr, logits_ptr, saved_ptr,
                ticket_ptr, part_ptr, B, x_stride,
                seed: tl.int64, offset: tl.int64, seed_at: tl.int64, offset_at: tl.int64,
                F: tl.constexpr, H: tl.constexpr, C: tl.constexpr, CP: tl.constexpr,
                DROP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
                SPLIT: tl.constexpr):
    """Forward. Each program owns BM x BN of the hidden layer and the whole sum over F, of which
    each warp adds up 1 / SPLIT. Of the programs of 64 rows the last to finish (integer tickets)
    computes their logits, and the last of those the loss; the order of every sum is fixed.

    saved is (B, 2H), or with target (B, 2H + CP): h, g, sigmoid(logits) - target. CP is C padded to
    a power of two."""
    dtype = saved_ptr.dtype.element_ty
    S: tl.constexpr = 2 * H if target_ptr is None else 2 * H + CP
    tile, tiles = tl.program_id(0) // (H // BN), tl.num_programs(0) // (H // BN)
    first = tl.program_id(0) % (H // BN) * BN
    row, col = tile * BM + tl.arange(0, BM), first + tl.arange(0, BN)
    bias = tl.load(b1_ptr + col).to(tl.float32)[None, :]  # loaded here, awaited after the sum
    key, counter = number(seed, seed_at), number(offset, offset_at)
    x_row, w_row = row[None, :, None], col[None, :, None]
    part = tl.arange(0, SPLIT)[:, None, None] * (BK // SPLIT)
    part += tl.arange(0, BK // SPLIT)[None, None, :]
    z = tl.zeros([SPLIT, BM, BN], tl.float32)
    for k in range(0, F, BK):
        f = k + part
        x = tl.load(x_ptr + x_row * x_stride + f, mask=(x_row < B) & (f < F), other=0.0)
        w1 = tl.load(w1_ptr + w_row * F + f, mask=f < F, other=0.0)
        z = tl.dot(x.to(dtype), w1.to(dtype).permute(0, 2, 1), z)
    h, g = mish16(tl.sum(z, 0) + bias)
    if DROP > 0:
        SCALE: tl.constexpr = 65536 / (65536 - DROP)
        keep = kept((tile * BM * H + first).to(tl.int64), H, key, counter, BM, BN, DROP)
        h, g = tl.where(keep, h * SCALE, 0.0), tl.where(keep, g * SCALE, 0.0)
    store2d(saved_ptr, h, row, S, col, B, H)
    store2d(saved_ptr + H, g, row, S, col, B, H)

    group = tile // (64 // BM)
    tl.debug_barrier()  # all of this program's h is written before it takes its ticket
    last = tl.minimum(64 // BM, tiles - group * (64 // BM)) * (H // BN) - 1
    if tl.atomic_add(ticket_ptr + group, 1, sem="acq_rel") == last:
        tl.store(ticket_ptr + group, 0)
        rows, c = group * 64 + tl.arange(0, 64), tl.arange(0, CP)
        b2 = tl.load(b2_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
        if target_ptr is not None:
            target = load2d(target_ptr, rows, C, c, B, C)
        logits = tl.zeros([64, CP], tl.float32)
        for k in range(0, H, 64):
            j = k + tl.arange(0, 64)
            a = tl.load(saved_ptr + rows[:, None] * S + j[None, :], mask=(rows < B)[:, None],
                        other=0.0, cache_modifier=".cg")  # from L2, where the others' h is
            logits = tl.dot(a, load2d(w2_ptr, c, H, j, C, H).to(dtype).T, logits)
        logits += b2
        store2d(logits_ptr, logits, rows, C, c, B, C)
        if target_ptr is not None:
            u = tl.exp2(tl.abs(logits) * -1.4426950408889634)
            v, w = 1.0 + u, 2.0 + u
            r = tl.rsqrt(v * w)
            r *= r  # log(1 + u) = 2 atanh(s)
            s = u * v * r
            q = s * s
            series = tl.fma(q, 1 / 13, 1 / 11)
            for n in tl.static_range(9, 0, -2):
                series = tl.fma(q, series, 1 / n)
            valid = (rows < B)[:, None] & (c < C)[None, :]
            d = tl.where(valid, tl.where(logits > 0, 1.0, u) * (w * r) - target, 0.0)
            store2d(saved_ptr + 2 * H, d, rows, S, c, B, CP)
            loss = tl.maximum(logits, 0.0) - logits * target + 2.0 * s * series
            loss = tl.sum(tl.where(valid, loss, 0.0))
            if part_ptr is None:  # these 64 rows are all
                tl.store(loss_ptr, loss / (B * C))
            else:
                groups = tl.cdiv(B, 64)
                tl.store(part_ptr + group, loss)
                tl.debug_barrier()
                if tl.atomic_add(ticket_ptr + groups, 1, sem="acq_rel") == groups - 1:
                    tl.store(ticket_ptr + groups, 0)
                    i = tl.arange(0, 16)
                    parts = tl.load(part_ptr + i, mask=i < groups, other=0.0, cache_modifier=".cg")
                    tl.store(loss_ptr, tl.sum(parts) / (B * C))


@jit
def head_backward_kernel(d_ptr, dloss_ptr, x_ptr, w1_ptr, w2_ptr, saved_ptr,
                         dx_ptr, dw1_ptr, db1_ptr, dw2_ptr, db2_ptr, B, x_stride,
                         F: tl.constexpr, H: tl.constexpr, C: tl.constexpr, CP: tl.constexpr,
                         STEPS: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
                         BFW: tl.constexpr, BFX: tl.constexpr, BHX: tl.constexpr):
    """Backward. Three kinds of program, each of which forms the part of dz that it needs. The
    factor dloss / (B C) comes last: sigmoid - target suits 16 bits whatever the loss scale."""
    dtype = saved_ptr.dtype.element_ty
    OUTER: tl.constexpr = H // BH
    DW1: tl.constexpr = OUTER * ((F + BFW - 1) // BFW)
    S: tl.constexpr = 2 * H if dloss_ptr is None else 2 * H + CP
    D: tl.constexpr = C if dloss_ptr is None else S  # distance of two rows of dlogits
    W: tl.constexpr = C if dloss_ptr is None else CP
    g_ptr, c = saved_ptr + H, tl.arange(0, CP)
    dloss, size = 1.0, 1.0
    if dloss_ptr is not None:  # loaded here, awaited where it is used
        dloss, size = tl.load(dloss_ptr).to(tl.float32), 1.0 / (B * C)
        d_ptr = saved_ptr + 2 * H
    job = tl.program_id(0)
    if job < OUTER:  # dw2[:, col], db1[col], db2: sums over the batch
        col = job * BH + tl.arange(0, BH)
        w2 = load2d(w2_ptr, c, H, col, C, H).to(dtype)
        dw2 = tl.zeros([CP, BH], tl.float32)
        db1, db2 = tl.zeros([BH], tl.float32), tl.zeros([CP], tl.float32)
        for i in range(STEPS):
            row = i * BB + tl.arange(0, BB)
            d = load2d(d_ptr, row, D, c, B, W)
            g, h = load2d(g_ptr, row, S, col, B, H), load2d(saved_ptr, row, S, col, B, H)
            db2 += tl.sum(d.to(tl.float32), 0)
            # This order: Triton waits for the second product before it loads the next d over this
            # one, but not for a product of d.T that comes last.
            dw2 = tl.dot(d.T, h, dw2)
            db1 += tl.sum(tl.dot(d, w2) * g.to(tl.float32), 0)
        scale = dloss * size
        store2d(dw2_ptr, dw2 * scale, c, H, col, C, H)
        tl.store(db1_ptr + col, (db1 * scale).to(db1_ptr.dtype.element_ty))
        if job == 0:
            tl.store(db2_ptr + c, (db2 * scale).to(db2_ptr.dtype.element_ty), mask=c < C)
    elif job < OUTER + DW1:  # dw1[col, f]: a sum over the batch
        col = (job - OUTER) % OUTER * BH + tl.arange(0, BH)
        fw = (job - OUTER) // OUTER * BFW + tl.arange(0, BFW)
        w2 = load2d(w2_ptr, c, H, col, C, H).to(dtype)
        dw1 = tl.zeros([BH, BFW], tl.float32)
        for i in range(STEPS):
            row = i * BB + tl.arange(0, BB)
            x = load2d(x_ptr, row, x_stride, fw, B, F).to(dtype)
            d = load2d(d_ptr, row, D, c, B, W)
            g = load2d(g_ptr, row, S, col, B, H)
            dz = tl.dot(d, w2) * g.to(tl.float32)
            dw1 = tl.dot(dz.to(dtype).T, x, dw1)
        store2d(dw1_ptr, dw1 * (dloss * size), col, F, fw, H, F)
    else:  # dx[row, f]: a sum over the hidden layer
        row = (job - OUTER - DW1) // tl.cdiv(F, BFX) * BB + tl.arange(0, BB)
        fx = (job - OUTER - DW1) % tl.cdiv(F, BFX) * BFX + tl.arange(0, BFX)
        d = load2d(d_ptr, row, D, c, B, W)
        dx = tl.zeros([BB, BFX], tl.float32)
        for j in range(0, H, BHX):
            col = j + tl.arange(0, BHX)
            w1 = load2d(w1_ptr, col, F, fx, H, F).to(dtype)
            w2 = load2d(w2_ptr, c, H, col, C, H).to(dtype)
            g = load2d(g_ptr, row, S, col, B, H)
            dz = tl.dot(d, w2) * g.to(tl.float32)
            dx = tl.dot(dz.to(dtype), w1, dx)
        store2d(dx_ptr, dx * (dloss * size), row, F, fx, B, F)


# --------------------------------------------------------------------------------------- launching


# Integer tickets of the head, zero before and after each launch: one set for each stream, and one
# for each captured call, since two graphs may be replayed at once.
TICKETS, SPARE = {}, {}  # (device, stream) -> set; device -> sets that nothing uses yet


@functools.cache
def capability(device):
    return torch.cuda.get_device_capability(device)


@torch.compiler.assume_constant_result
def has_kernels(device):
    """Triton and NVIDIA compute capability >= 8.0, or any device under TRITON_INTERPRET=1.

    Makes the head's tickets, as torch.compile calls it when it traces: memory taken later may be
    that of its CUDA graphs, which nothing may keep.
    """
    if device in SPARE:
        return True
    if device.type != "cuda" or triton is None or torch.version.hip is not None:
        return INTERPRET
    if capability(device) < (8, 0):
        return False
    if not torch.cuda.is_current_stream_capturing():
        SPARE[device] = [*torch.zeros((1024, 32), dtype=torch.int32, device=device)]
        torch.cuda.synchronize(device)  # other streams use them
    return True


def on_kernels(x):
    return x.dtype in DTYPES.values() and has_kernels(x.device)


def draw(x, reread):
    """Reserve one Philox counter: seed and offset, int64 (1,) on host or device, and a shift of it.

    reread: the backward pass needs them again. In a graph the generator's own tensors may have
    moved on by then, so a drawn pair is kept (one more launch).
    """
    if x.is_cuda and not torch.compiler.is_compiling():
        generator = torch.cuda.default_generators[x.device.index]
        capturing = torch.cuda.is_current_stream_capturing()
        if hasattr(generator, "philox_state") and not (capturing and reread):  # newer torch
            seed, offset, shift = generator.philox_state(4)
            return seed, offset, shift.item()
        if not capturing:
            seed, offset = generator.initial_seed(), generator.get_offset()
            generator.set_offset(offset + 4)
            return torch.tensor([seed - (seed >> 63 << 64)]), torch.tensor([offset]), 0
    pair = torch.randint(2**63 - 1, (2,), device=x.device)
    return pair[:1], pair[1:], 0


def seed_arguments(seed, offset, shift):
    """A kernel's seed, offset, and the addresses of what it adds to them, 0 for nothing."""
    if seed is None:
        return 0, 0, 0, 0
    if seed.is_cuda:
        return 0, shift, seed.data_ptr(), offset.data_ptr()
    return seed.item(), offset.item() + shift, 0, 0


def traits(argument):
    """All of a runtime argument that Triton compiles for."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16
    return argument and (argument == 1, argument % 16 == 0, argument < 2**31)


COMPILED = {}  # what a launch is compiled for -> its kernel, the tl.constexpr arguments


def launch(kernel, programs, x, arguments, rng, constants):
    """kernel[(programs,)](*arguments, *rng, **constants) on x's device. That itself takes 33 to 43
    us of the host for the head's kernels, to look up what is compiled, and this 12 to 14."""
    key = kernel, x.device, *map(traits, arguments), *constants.values()
    with torch.cuda.device_of(x):
        if key in COMPILED:
            compiled, fixed = COMPILED[key]
            compiled[programs, 1, 1](*arguments, *rng, *fixed)
        else:
            compiled = kernel[(programs,)](*arguments, *rng, **constants, enable_fp_fusion=True)
            if not INTERPRET:
                COMPILED[key] = compiled, [constants[n] for n in kernel.arg_names if n in constants]


def forward_options(x):
    """A tile of x is twice as wide in fp32."""
    return FORWARD | {"BK": FORWARD["BK"] * 2 // x.element_size()}


def backward_options(B, H, C, hopper):
    """What buffers take has to stay below 99 KB, all there is on compute capability 8.6 and 8.9."""
    wide = hopper and C <= 64 and H % BACKWARD["BHX"] == 0
    stages = BACKWARD["num_stages"] - (C > 64) - (BACKWARD["BB"] < B)
    return BACKWARD | {"num_stages": stages} | ({} if wide else NARROW)


def blocks(n, size):
    """As triton.cdiv, which takes 2 us."""
    return -(-n // size)


def dense(x, like):
    """x in the strides of empty_like(like), which are like's own for any dense layout."""
    if x.is_contiguous() and like.is_contiguous():
        return x
    out = torch.empty_like(like)
    return x if x.stride() == out.stride() else out.copy_(x)


def act(dy: Tensor | None, x: Tensor, bias: Tensor | None, seed: Tensor | None,
        offset: Tensor | None, shift: int, drop: int) -> tuple[Tensor, Tensor]:
    """keep mish(x + bias), and nothing; or with dy: dx, db (empty without bias)."""
    x, out, db = dense(x, x), *act_outputs(dy, x, bias)
    dy = dy if dy is None else dense(dy, x)
    if not on_kernels(x):
        form = value if dy is None else slope
        dx = act_torch(form, dy, None, x, bias, seed, offset, shift, drop)
        db = db if db.numel() == 0 else dx.reshape(-1, x.shape[-1]).sum(0).to(bias.dtype)
        return dx.to(x.dtype), db
    rows, cols, R, C, part = 1, x.numel(), 1, BLOCK, None
    if bias is not None:
        rows, cols, R, C = x.numel() // x.shape[-1], x.shape[-1], 16, 128
        if dy is not None:
            part = x.new_empty((blocks(rows, R), cols), dtype=torch.float32)
    if x.numel():
        programs = blocks(cols, C) * blocks(rows, R)
        launch(act_kernel, programs, x, (dy, x, bias, out, part, rows, cols),
               seed_arguments(seed, offset, shift), {"R": R, "C": C, "DROP": drop, "num_warps": 4})
    return out, db if part is None else part.sum(0).to(bias.dtype)


def act_outputs(dy, x, bias, *_):
    db = x.new_empty(0) if dy is None or bias is None else torch.empty_like(bias)
    return torch.empty_like(x), db


def act_torch(form, dy, weight, x, bias, seed, offset, shift, drop):
    """keep form(x + bias) dy weight in torch operations, in x's wide type."""
    out = form(wide(x) if bias is None else wide(x) + wide(bias))
    for factor in (dy, weight):
        out = out if factor is None else out * wide(factor)
    if drop:
        keep = kept_torch(x, seed, offset, shift, drop)
        out = torch.where(keep, out * (65536 / (65536 - drop)), 0.0)
    return out


def tickets(x):
    capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
    key = x.device, x.is_cuda and torch.cuda.current_stream(x.device).cuda_stream
    if key in TICKETS and not capturing:
        return TICKETS[key]
    if not SPARE.get(x.device):  # one more launch
        return x.new_zeros(32, dtype=torch.int32)
    found = SPARE[x.device].pop()
    if not capturing:
        TICKETS[key] = found
    return found


def padded(C):
    return max(16, 1 << (C - 1).bit_length())


def head(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, target: Tensor | None,
         seed: Tensor | None, offset: Tensor | None, shift: int, drop: int, dtype: torch.dtype,
         ) -> tuple[Tensor, Tensor, Tensor]:
    """loss (empty without target), logits (fp32 with target), what the backward pass needs."""
    outputs = head_outputs(x, w1, b1, w2, b2, target, seed, offset, shift, drop, dtype)
    (B, width), (C, H), groups = x.shape, w2.shape, blocks(x.shape[0], 64)
    part = None if target is None or groups == 1 else x.new_empty(groups, dtype=torch.float32)
    programs = blocks(B, FORWARD["BM"]) * (H // FORWARD["BN"])
    sizes = {"F": width, "H": H, "C": C, "CP": padded(C), "DROP": drop}
    launch(head_kernel, programs, x,
           (x, w1, b1, w2, b2, target, *outputs, tickets(x), part, B, x.stride(0)),
           seed_arguments(seed, offset, shift), sizes | forward_options(x))
    return outputs


def head_outputs(x, w1, b1, w2, b2, target, seed, offset, shift, drop, dtype):
    B, (C, H), loss = x.shape[0], w2.shape, target is not None
    saved = x.new_empty((B, 2 * H + padded(C) if loss else 2 * H), dtype=dtype)
    logits = x.new_empty((B, C), dtype=torch.float32 if loss else dtype)
    return x.new_empty(() if loss else 0, dtype=torch.float32), logits, saved


def head_backward(dout: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
                  saved: Tensor, loss: bool, need_dx: bool,
                  ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx (empty unless needed), dw1, db1, dw2, db2 from dlogits, or with loss from dloss."""
    grads = head_backward_outputs(dout, x, w1, b1, w2, b2, saved, loss, need_dx)
    (B, width), (C, H) = x.shape, w2.shape
    tiles = backward_options(B, H, C, not x.is_cuda or capability(x.device)[0] == 9)
    steps = blocks(B, tiles["BB"])
    jobs = H // tiles["BH"] * (1 + blocks(width, tiles["BFW"]))
    jobs += steps * blocks(width, tiles["BFX"]) if need_dx else 0
    dout = (None, dout) if loss else (dout.contiguous(), None)
    sizes = {"F": width, "H": H, "C": C, "CP": padded(C), "STEPS": steps}
    launch(head_backward_kernel, jobs, x, (*dout, x, w1, w2, saved, *grads, B, x.stride(0)), (),
           sizes | tiles)
    return grads


def head_backward_outputs(dout, x, w1, b1, w2, b2, saved, loss, need_dx):
    dx = x.new_empty(x.shape if need_dx else 0)
    return dx, *(torch.empty_like(t) for t in (w1, b1, w2, b2))


# ------------------------------------------------------------------------ torch.library, autograd

EAGER = {}  # op -> two autograd.Functions of the same three functions, the second for torch.func


def call(op, *args):
    """op(*args). Plain tensors outside tracing go past the dispatcher, which costs more than a
    launch; a second derivative of the head goes through it, and is refused there."""
    if torch.compiler.is_compiling() or type(args[1]) not in (Tensor, nn.Parameter):
        return op(*args)
    if not torch.is_grad_enabled():
        return op._init_fn(*args)
    if op not in EAGER:
        return op(*args)
    return EAGER[op][torch._C._are_functorch_transforms_active()].apply(*args)


def register(function, outputs, setup=None, gradient=None):
    op = torch.library.custom_op(f"mish::{function.__name__}", function, mutates_args=())
    op.register_fake(outputs)
    if gradient is not None:
        op.register_autograd(gradient, setup_context=setup)

        class Functional(torch.autograd.Function):
            forward, setup_context, backward = map(staticmethod, (function, setup, gradient))

        class Eager(torch.autograd.Function):  # apply takes 20 us less without a setup_context
            backward = staticmethod(gradient)

            @staticmethod
            def forward(ctx, *args):
                output = function(*args)
                setup(ctx, args, output)
                return output

        EAGER[op] = Eager, Functional
    return op


def act_setup(ctx, inputs, output):
    *tensors, ctx.shift, ctx.drop = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def act_gradient(ctx, dout, ddb):
    dy, x, bias, *rng = *ctx.saved_tensors, ctx.shift, ctx.drop
    if dy is not None and bias is not None and ddb is not None:  # db is the sum of dx over rows
        dout = ddb if dout is None else dout + ddb.to(dout.dtype)
    if dout is None:
        return (None,) * 7
    weight = dout.to(x.dtype).expand_as(x)
    first, db = call(act_op, weight, x, bias, *rng)
    if dy is None:
        return None, first, None if bias is None else db, *(None,) * 4
    dx = act_torch(curvature, dy, weight, dense(x, x), bias, *rng)
    db = None if bias is None else dx.reshape(-1, x.shape[-1]).sum(0).to(bias.dtype)
    return first, dx.to(x.dtype), db, *(None,) * 4


def head_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:5], output[2])
    ctx.loss = inputs[5] is not None
    ctx.set_materialize_grads(False)


def head_gradient(ctx, dloss, dlogits, dsaved):
    dout, need_dx = dloss if ctx.loss else dlogits, ctx.needs_input_grad[0]
    if dout is None:
        return (None,) * 11
    dx, *grads = call(head_backward_op, dout, *ctx.saved_tensors, ctx.loss, need_dx)
    return dx if need_dx else None, *grads, *(None,) * 6


act_op = register(act, act_outputs, act_setup, act_gradient)
head_op = register(head, head_outputs, head_setup, head_gradient)
head_backward_op = register(head_backward, head_backward_outputs)


class Traced(torch.autograd.Function):
    """mish under torch.compile: torch operations, which Inductor fuses with their neighbours."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        y = value(wide(x))  # a .to that does nothing is an alias, whose gradient torch 2.11 loses
        return y if y.dtype == x.dtype else y.to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        return (wide(dy) * slope(wide(ctx.saved_tensors[0]))).to(dy.dtype)


# ------------------------------------------------------------------------------------------ public


def threshold(p):
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, got {p}")
    return round(65536 * p)


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)): any floating type and layout, twice differentiable."""
    if torch.compiler.is_compiling():
        return Traced.apply(x)
    return call(act_op, None, x, None, None, None, 0, 0)[0]


def mish_dropout(x: Tensor, p=0.5, training=True, bias: Tensor | None = None) -> Tensor:
    """dropout(mish(x + bias), p), bias (x.shape[-1],) or None; p is rounded to 1 / 65536.

    The bias is fused where both are contiguous and the last size is a multiple of 16.
    """
    drop = threshold(p) if training else 0
    if bias is not None:
        fused = bias.dim() == 1 and bias.shape == x.shape[-1:] and len(bias) and drop < 65536
        if not fused or len(bias) % 16 or not (x.is_contiguous() and bias.is_contiguous()):
            x, bias = x + bias.to(x.dtype), None
    if drop == 65536:
        return x.masked_fill(torch.ones((), dtype=torch.bool, device=x.device), 0.0)
    if drop == 0 and bias is None:
        return mish(x)
    rng = draw(x, reread=True) if drop else (None, None, 0)
    return call(act_op, None, x, bias, *rng, drop)[0]


def fits(x, weights, dtype):
    """Whether the fused head applies. Where the sizes are wrong torch says so, in F.linear."""
    if not (on_kernels(x) and dtype in (torch.float16, torch.bfloat16) and x.dim() == 2
            and x.stride(1) == 1 and all(t is not None and t.is_contiguous() for t in weights)):
        return False
    (B, width), (C, H) = x.shape, weights[2].shape
    return ([t.shape for t in weights] == [(H, width), (H,), (C, H), (C,)]
            and 1 <= B <= MAX_BATCH and 1 <= C <= MAX_CLASSES and H % 64 == 0 and width % 16 == 0
            and B * x.stride(0) < 2**31)


def bce(logits, target):
    return F.binary_cross_entropy_with_logits(wide(logits), target.to(wide(logits).dtype))


def run_head(x, weights, target, p, training):
    """Loss, None without target, and logits, which carry a gradient only without target."""
    device, drop = x.device.type, threshold(p) if training else 0
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    w1, b1, w2, b2 = weights
    shape = *x.shape[:-1], w2.shape[0]
    if target is not None and target.shape != shape:
        raise ValueError(f"target {tuple(target.shape)} for logits {shape}")
    if drop < 65536 and fits(x, weights, dtype):
        rng = draw(x, reread=False) if drop else (None, None, 0)
        target = target if target is None else target.detach().float().contiguous()
        loss, logits, *_ = call(head_op, x, *weights, target, *rng, drop, dtype)
    else:
        logits = F.linear(mish_dropout(F.linear(x, w1), p, training, b1), w2, b2)
        loss = None if target is None else bce(logits, target)
    return loss, logits if target is None else logits.detach()


def mish_head(x, w1, b1, w2, b2, p=0.5, training=True) -> Tensor:
    """Logits (B, C) of x (B, F) through w1 (H, F), b1 (H,), w2 (C, H), b2 (C,), in autocast's type
    or x's; under autocast the weights stay fp32."""
    return run_head(x, (w1, b1, w2, b2), None, p, training)[1]


def mish_head_bce(x, w1, b1, w2, b2, target, p=0.5, training=True) -> tuple[Tensor, Tensor]:
    """Mean over B C of BCE with logits against target (B, C) in [0, 1], in fp32 (float64 of
    float64), and the logits, which carry no gradient."""
    return run_head(x, (w1, b1, w2, b2), target, p, training)


class Mish(nn.Module):
    def forward(self, x):
        return mish(x)


class MishDropout(nn.Dropout):
    def forward(self, x):
        return mish_dropout(x, self.p, self.training)


class MishHead(nn.Sequential):
    """Linear -> Mish -> Dropout -> Linear: (B, in_features) -> logits (B, num_classes).

    state_dict keys 0.weight 0.bias 3.weight 3.bias. On a GPU mish_head runs, past the children's
    hooks. On a CPU the children run: torch's Mish and Dropout are vectorised, and faster there.
    """

    def __init__(self, in_features, num_classes=43, hidden=256, p=0.5):
        super().__init__(
            nn.Linear(in_features, hidden), nn.Mish(), nn.Dropout(p), nn.Linear(hidden, num_classes)
        )

    def arguments(self):
        return self[0].weight, self[0].bias, self[3].weight, self[3].bias

    def forward(self, x):
        if has_kernels(x.device):
            return run_head(x, self.arguments(), None, self[2].p, self.training)[1]
        return super().forward(x)

    def bce(self, x, target):
        """Loss and logits as mish_head_bce gives them."""
        if has_kernels(x.device):
            return run_head(x, self.arguments(), target, self[2].p, self.training)
        logits = super().forward(x)
        return bce(logits, target), logits.detach()


# --------------------------------------------------------------------------------------- benchmark


def head_inputs(B, width, dtype, device):
    """Random x, w1, b1, w2, b2 (leaves) and target of the report's head."""
    shapes = (B, width), (256, width), (256,), (43, 256), (43,)
    x, *weights = (torch.randn(s, device=device) for s in shapes)
    leaves = [x.to(dtype).requires_grad_(), *((w / 16).requires_grad_() for w in weights)]
    return [*leaves, (torch.rand(B, 43, device=device) < 0.1).float()]


def checks(device):
    """Rows (what, relative error, limit) of every operator and gradient against float64 torch."""
    rows, rng = [], (torch.tensor([2**40 + 3]), torch.tensor([8]), 0)

    def compare(names, got, want, limit):
        for name, a, b in zip(names, got, want, strict=True):
            error = (a.detach().double() - b.detach()).norm() / b.detach().norm()
            rows.append((name, error.item(), limit))

    for kind, limit in (("fp32", 1e-6), ("fp16", 5e-4), ("bf16", 4e-3)):  # 2^-20, 2^-11, 2^-8
        x, dy = (torch.randn(100_003, device=device).to(DTYPES[kind]) for _ in "xy")
        x64 = x.double().requires_grad_()
        for op, drop in (("mish", 0), ("mish_dropout", 32768)):
            y64 = F.mish(x64) * (2.0 * kept_torch(x, *rng, drop) if drop else 1.0)
            got = [act_op(d, x, None, *rng, drop)[0] for d in (None, dy)]
            want = y64, *torch.autograd.grad(y64, x64, dy.double())
            compare([f"{op} {kind} {d}" for d in ("y", "dx")], got, want, limit)
    heads = {"fp16": 2e-3} | ({} if INTERPRET else {"bf16": 1.5e-2})  # four roundings; Triton's
    for kind, limit in heads.items():  # interpreter multiplies the bits of bf16 as integers
        *leaves, target = head_inputs(64, 2048, DTYPES[kind], device)
        with torch.autocast(device, DTYPES[kind]):
            loss, logits = mish_head_bce(*leaves, target, p=0.0)
        x, w1, b1, w2, b2 = exact = [t.detach().double().requires_grad_() for t in leaves]
        logits64 = F.linear(F.mish(F.linear(x, w1, b1)), w2, b2)
        loss64 = F.binary_cross_entropy_with_logits(logits64, target.double())
        names = [f"head {kind} {n}" for n in ("logits", "loss", "dx", "dw1", "db1", "dw2", "db2")]
        got, want = torch.autograd.grad(loss, leaves), torch.autograd.grad(loss64, exact)
        compare(names, (logits, loss, *got), (logits64, loss64, *want), limit)
    return rows


def providers(op, dtype):
    """name -> function of the inputs, all with p = 0.5; eager is first."""

    def eager(x, *rest):
        if op != "head":
            return F.mish(x) if op == "mish" else F.dropout(F.mish(x))
        w1, b1, w2, b2, target = rest
        with torch.autocast("cuda", dtype):
            logits = F.linear(F.dropout(F.mish(F.linear(x, w1, b1))), w2, b2)
            return F.binary_cross_entropy_with_logits(logits, target)

    def naive(x):
        y = x * torch.tanh(F.softplus(x))
        return y if op == "mish" else F.dropout(y)

    def fused(x, *rest):
        if op != "head":
            return mish(x) if op == "mish" else mish_dropout(x)
        with torch.autocast("cuda", dtype):
            return mish_head_bce(x, *rest)[0]

    compiled = functools.partial(torch.compile, dynamic=False)
    table = {"eager": eager, "fused": fused} | ({} if op == "head" else {"naive": naive})
    table |= {"compile": compiled(eager), "fused+compile": compiled(fused)}
    return table | {"max-autotune": compiled(eager, mode="max-autotune-no-cudagraphs")}


def timed(step, inputs, repeats, clock):
    """Microseconds of a step: median, p20, p80 over repeats of all inputs in turn. graph: on the
    device, replayed from one CUDA graph; wall: called from Python until the device is idle."""
    def every():
        for arguments in inputs:
            step(*arguments)

    for _ in range(3):
        every()
    torch.cuda.synchronize()
    if clock == "graph":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            every()
        every = graph.replay
        every()
    seconds = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin = time.perf_counter()
        start.record()
        every()
        end.record()
        torch.cuda.synchronize()
        wall = time.perf_counter() - begin
        seconds.append((wall if clock == "wall" else start.elapsed_time(end) / 1e3) / len(inputs))
    return [1e6 * torch.tensor(seconds).quantile(q).item() for q in (0.5, 0.2, 0.8)]


def resources(step, arguments):
    """Of a step: kernels launched, bytes kept for the backward, peak bytes above the inputs."""
    ours, storages = {t.untyped_storage().data_ptr() for t in arguments}, {}

    def pack(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() * t.is_cuda
        return t

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        step(*arguments)
    peak = torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step(*arguments)
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    names = [e.name for e in profile.events() if e.device_type == cuda]
    saved = sum(size for pointer, size in storages.items() if pointer not in ours)
    return sum(not n.startswith("Mem") for n in names), saved, peak


def rows_of(op, kind, shape, args, copy, about):
    """The rows of one operator, type and shape: both directions and clocks, every provider."""
    torch.compiler.reset()
    dtype = DTYPES[kind]
    size, weights = math.prod(shape) * dtype.itemsize, 1024 * shape[-1] if op == "head" else 0
    # each step on other inputs, together three times the L2 cache: every step reads from memory
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    count = max(4, min(64, 3 * l2 // (size + weights) + 1))
    if op == "head":
        inputs = [head_inputs(*shape, dtype, "cuda") for _ in range(count)]
        traffic, dy = {"fwd": size + weights, "fwd+bwd": 3 * (size + weights)}, None  # x w1, dx dw1
    else:
        x, dy = (torch.randn(shape, device="cuda", dtype=dtype) for _ in "xy")
        inputs = [[x.clone().requires_grad_()] for _ in range(count)]
        traffic = {"fwd": 2 * size, "fwd+bwd": 5 * size}  # x y, x dy dx
    for direction in traffic:
        eager = {}
        for provider, function in providers(op, dtype).items():

            def step(*arguments, function=function, direction=direction):
                if direction == "fwd":
                    with torch.no_grad():
                        return function(*arguments)
                leaves = [t for t in arguments if t.requires_grad]
                return torch.autograd.grad(function(*arguments), leaves, dy)

            step(*inputs[0])  # compiles
            launches, saved, peak = resources(step, inputs[0])
            for clock in ("graph", "wall"):
                median, p20, p80 = timed(step, inputs, 20 if args.quick else 50, clock)
                rate = traffic[direction] / median / 1e3
                yield {"op": op, "dtype": kind, "shape": "x".join(map(str, shape)),
                       "direction": direction, "clock": clock, "provider": provider,
                       "us": round(median, 2), "p20": round(p20, 2), "p80": round(p80, 2),
                       "GB/s": round(rate), "of copy": round(rate / copy, 3),
                       "x eager": round(eager.setdefault(clock, median) / median, 2),
                       "launches": launches, "saved MB": round(saved / 1e6, 3),
                       "peak MB": round(peak / 1e6, 3), "about": about}


def benchmark(args):
    gpu = torch.cuda.get_device_properties(0)
    x, y = (torch.empty(2**27, dtype=torch.uint8, device="cuda") for _ in "xy")
    copy = 2 * x.numel() / timed(lambda: y.copy_(x), [()] * 8, 20, "graph")[0] / 1e3
    about = (f"{gpu.name}, {gpu.multi_processor_count} SMs, L2 {gpu.L2_cache_size >> 20} MB, "
             f"torch {torch.__version__}, triton {triton.__version__}, CUDA {torch.version.cuda}, "
             f"{time.strftime('%Y-%m-%d')}, copy of 128 MB {copy:.0f} GB/s")
    half = [d for d in args.dtype if d != "fp32"]
    cases = [*itertools.product(("mish", "mish_dropout"), args.dtype, [(n,) for n in args.sizes])]
    cases += itertools.product(["head"], half, itertools.product(args.batch, args.features))
    cases.sort(key=lambda case: case[2] not in ((2**26,), (64, 2048)))  # the main sizes first
    for case in cases:
        if args.op in (case[0], "all"):
            yield from rows_of(*case, args, copy, about)


def report(results, args):
    """Print each row as soon as it is measured, and write it to the CSV file."""
    rows = []
    with open(args.csv or os.devnull, "w", newline="", buffering=1) as file:
        for row in results:
            if not rows:
                print(row["about"])
            for line in ([] if rows else [row.keys()]) + [row.values()]:
                print(*(f"{cell!s:>13}" for cell in [*line][:-1]), flush=True)
                csv.writer(file).writerow(line)
            rows.append(row)
    if args.png:
        plot(rows, args.png)


def plot(rows, path):
    try:
        from matplotlib import pyplot
    except ImportError:
        raise SystemExit("--png needs matplotlib:  pip install matplotlib") from None
    rows = [r for r in rows if r["clock"] == "graph" and r["provider"] != "eager"]
    keys = "op", "dtype", "shape", "direction", "provider"
    names = [" ".join(r[key] for key in keys) for r in rows]
    figure, axes = pyplot.subplots(figsize=(8, 0.2 * len(rows) + 1), layout="constrained")
    axes.barh(names, [r["x eager"] for r in rows])
    axes.axvline(1, color="black")
    axes.set(xlabel="speed-up over eager, graph replay")
    figure.savefig(path, dpi=150)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Check and, on a GPU, time the Mish kernels.")
    parser.add_argument("--op", choices=["mish", "mish_dropout", "head", "all"], default="all")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--sizes", nargs="+", type=int, help="elements [65536 1048576 67108864]")
    parser.add_argument("--batch", nargs="+", type=int, help="of the head [24 64 80]")
    parser.add_argument("--features", nargs="+", type=int, help="of the head [512 2048 2560 4320]")
    parser.add_argument("--csv", help="write the rows here")
    parser.add_argument("--png", help="draw them here; needs matplotlib")
    parser.add_argument("--quick", action="store_true", help="67108864 elements, B = 64, F = 2048")
    args = parser.parse_args(argv)
    args.sizes = args.sizes or ([2**26] if args.quick else [2**16, 2**20, 2**26])
    args.batch = args.batch or ([64] if args.quick else [24, 64, 80])
    args.features = args.features or ([2048] if args.quick else [512, 2048, 2560, 4320])
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = checks(device)
    for name, error, limit in results:
        verdict = "ok" if error <= limit else "FAILED"
        print(f"{name:24}  relative error {error:.1e}  limit {limit:.1e}  {verdict}")
    if device == "cpu":
        print("No CUDA device: no timing was made.")
    else:
        with torch.cuda.stream(torch.cuda.Stream()):
            report(benchmark(args), args)
    return int(not all(error <= limit for _, error, limit in results))


if __name__ == "__main__":
    raise SystemExit(main())
