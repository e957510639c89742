"""Independent references for the Mish tests: float64, NumPy, and nothing of mish_kernel."""

import numpy as np
import torch


def mish64(x):
    """mish, mish' in float64 from tanh(softplus) itself; with u = exp(-|x|) nothing overflows.

    Also the size of mish's two terms: it has a root at -1.19, so its error is relative to them.
    """
    x = np.asarray(x, np.float64)
    with np.errstate(all="ignore"):
        u = np.exp(-np.abs(x))
        softplus = np.maximum(x, 0) + np.log1p(u)
        t = np.tanh(softplus)
        sech2 = 4 * np.exp(-2 * softplus) / (1 + np.exp(-2 * softplus)) ** 2
        sigmoid = np.where(x > 0, 1, u) / (1 + u)
        y, dy = x * t, t + x * sech2 * sigmoid
        size = t + np.abs(x * sech2 * sigmoid)
    y = np.where(x == -np.inf, -0.0, y)
    dy = np.where(x == np.inf, 1.0, np.where(x == -np.inf, 0.0, dy))
    return y, dy, size


def ulps(got, want, size, dtype):
    """Largest |got - want| in units of the last place of size, in dtype."""
    info = torch.finfo(dtype)
    _, exponent = np.frexp(np.maximum(np.abs(size), info.tiny))
    ulp = np.ldexp(info.eps, exponent - 1)
    return float(np.max(np.abs(got.double().numpy() - want) / ulp))


def philox(key, counter):
    """Philox4x32-7 after Salmon et al. 2011: key 2 and counter 4 words, ints or uint64 arrays."""
    low, (k0, k1) = np.uint64(0xFFFFFFFF), key
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    for _ in range(7):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def lanes(n, seed, offset, first=0):
    """(n,) numbers below 65536: lane i % 8 of group i // 8, i from first, a multiple of 8, on."""
    seed, counter = seed % 2**64, offset % 2**64 // 4
    group = np.arange(first // 8, first // 8 + -(-n // 8), dtype=np.uint64)
    zero = np.zeros_like(group)
    words = philox(
        (seed % 2**32, seed >> 32),
        (zero + np.uint64(counter % 2**32), zero + np.uint64(counter >> 32),
         group & np.uint64(0xFFFFFFFF), group >> np.uint64(32)),
    )  # fmt: skip
    halves = [half for w in words for half in (w & np.uint64(0xFFFF), w >> np.uint64(16))]
    return np.stack(halves, -1).reshape(-1)[:n]


def keep_mask(n, seed, offset, drop, first=0):
    """(n,) bool: the lane is >= drop."""
    return lanes(n, seed, offset, first) >= drop


def head64(x, w1, b1, w2, b2, keep):
    """Differentiable float64 logits; keep (B, H) is 0 or the dropout's factor."""
    x, w1, b1, w2, b2 = (t.double() for t in (x, w1, b1, w2, b2))
    z = x @ w1.T + b1
    return (z * torch.tanh(torch.nn.functional.softplus(z, threshold=100)) * keep) @ w2.T + b2
