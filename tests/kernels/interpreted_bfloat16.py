"""Casts, arithmetic and products of bfloat16 in Triton's interpreter, run by `interpreting`.

Each case says whether the bits are torch's; products give their error.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from interpreting import relative


@triton.jit
def casts(wide, half, whole, out, from_half, from_whole, back, N: tl.constexpr):
    place = tl.arange(0, N)
    tl.store(out + place, tl.load(wide + place).to(tl.bfloat16))
    tl.store(from_half + place, tl.load(half + place).to(tl.bfloat16))
    tl.store(from_whole + place, tl.load(whole + place).to(tl.bfloat16))
    tl.store(back + place, tl.load(out + place).to(tl.float32))


@triton.jit
def arithmetic(x, y, added, product, negative, larger, chosen, less, filled, N: tl.constexpr):
    place = tl.arange(0, N)
    a, b = tl.load(x + place), tl.load(y + place)
    tl.store(added + place, a + b)
    tl.store(product + place, a * b)
    tl.store(negative + place, -a)
    tl.store(larger + place, tl.maximum(a, b))
    tl.store(chosen + place, tl.where(a < b, a, b))
    tl.store(less + place, a < b)
    tl.store(filled + place, tl.load(x + place, mask=place < N // 2, other=1.5))


@triton.jit
def total(x, out, N: tl.constexpr):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, N)), 0))


@triton.jit
def product(a, b, out, M: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    rows, inner, cols = tl.arange(0, M), tl.arange(0, K), tl.arange(0, N)
    a_MK = tl.load(a + rows[:, None] * K + inner[None, :])
    b_KN = tl.load(b + inner[:, None] * N + cols[None, :])
    tl.store(out + rows[:, None] * N + cols[None, :], tl.dot(a_MK, b_KN))


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """The same bits, or both NaN."""
    bits = {torch.bfloat16: torch.int16, torch.float32: torch.int32}.get(wanted.dtype, wanted.dtype)
    return bool(((found.view(bits) == wanted.view(bits)) | (found.isnan() & wanted.isnan())).all())


def cases() -> dict[str, Any]:
    chance = torch.Generator().manual_seed(0)
    count = 1 << 15
    # Any bits of 32, so every exponent, subnormal numbers, infinities and NaN; and numbers half way between two.
    wide = (
        torch.randint(-(2**31), 2**31, (count,), generator=chance, dtype=torch.int64)
        .to(torch.int32)
        .view(torch.float32)
    )
    ties = torch.randint(-(2**15), 2**15, (count // 2,), generator=chance).to(torch.int32) * 2**16 + 2**15
    wide[::2] = ties.view(torch.float32)
    half = torch.randn(count, generator=chance).half()
    whole = torch.randint(-(2**20), 2**20, (count,), generator=chance, dtype=torch.int32)
    into = [torch.empty(count, dtype=t) for t in (*[torch.bfloat16] * 3, torch.float32)]
    casts[(1,)](wide, half, whole, *into, N=count)
    wanted = [wide.bfloat16(), half.bfloat16(), whole.bfloat16(), wide.bfloat16().float()]
    found: dict[str, Any] = {
        f"cast {name}": same(a, b)
        for name, a, b in zip(("float32", "float16", "int32", "back"), into, wanted, strict=True)
    }
    x, y = (torch.randn(count, generator=chance).bfloat16() for _ in range(2))
    results = [torch.empty(count, dtype=torch.bfloat16) for _ in range(5)]
    less, filled = torch.empty(count, dtype=torch.bool), torch.empty_like(x)
    arithmetic[(1,)](x, y, *results, less, filled, N=count)
    exact = [x + y, x * y, -x, torch.maximum(x, y), torch.minimum(x, y)]
    found |= {
        name: same(a, b)
        for name, a, b in zip(("sum", "product", "negative", "larger", "chosen"), results, exact, strict=True)
    }
    found["less"] = bool((less == (x < y)).all())
    found["filled"] = same(filled, torch.where(torch.arange(count) < count // 2, x, 1.5))
    try:
        total[(1,)](x, torch.empty(1), N=count)
        found["a sum is refused"] = False
    except Exception as error:  # the interpreter's own, which tells of another
        found["a sum is refused"] = "make them float32 first" in str(error)
    a, b = torch.randn(64, 128, generator=chance).bfloat16(), torch.randn(128, 32, generator=chance).bfloat16()
    out = torch.empty(64, 32)
    product[(1,)](a, b, out, M=64, K=128, N=32)
    found["dot"] = relative(out, a.double() @ b.double())
    return found
