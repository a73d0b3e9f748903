"""What kernels prove themselves on before mmkit chooses them: a few small cases for each op, which take the paths of real ones.

A kernel is compiled anew for every path, so there are few. The conformance kit tries many more (`mmkit.testing.trials`).

Shape suffixes: T tokens, A assignments or rows, E experts, D width, H head dim, V vectors or codes; n tensors side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mmkit.kernels.route.scheme import Scheme
from mmkit.kernels.trial import Trial, drawer

NORM = ("x", "y", "gate", "weight", "bias", "scale", "shift")
"""The tensors of the op `norm`, in its order."""


def norm() -> Iterator[Trial]:
    """A residual and a norm; all there is, in views of wider rows, of a width that no tile has."""
    draw = drawer()
    for there, kind, tokens, dim in (("x y weight", "rms", 37, 512), (" ".join(NORM), "layer", 70, 96)):
        names = there.split()

        def run(f: Any, wide_TnD: Tensor, rows_nD: Tensor, names: Any = names, kind: str = kind) -> Any:
            wide, rows = iter(wide_TnD.unbind(1)), iter(rows_nD.unbind())
            given = {n: next(rows if n in ("weight", "bias") else wide) for n in names}
            return f(*map(given.get, NORM), kind, 1e-5)

        vectors = sum(n in ("weight", "bias") for n in names)
        yield Trial(f"{there} by {kind}", (draw(tokens, len(names) - vectors, dim), draw(vectors, dim)), run)


def rope() -> Iterator[Trial]:
    """Heads as parts of one projection: normed and turned whole; turned in part."""
    draw = drawer()
    for heads, dim, pairs, normed in (((4, 2), 128, 64, True), ((3, 1), 80, 20, False)):
        tokens = 41
        position_T = torch.arange(tokens) * 7 % 50
        weights = [1 + draw(dim) / 4 for _ in range(2 * normed)]

        def run(f: Any, qkv: Tensor, at_T: Tensor, *weights: Tensor, heads: Any = heads, pairs: int = pairs) -> Any:
            q, k, _ = qkv.split((*heads, heads[1]), 1)
            angle = at_T[:, None, None] * 0.7 ** torch.arange(pairs, device=qkv.device)
            return f(q, k, angle.cos(), angle.sin(), *(weights or (None, None)), 1e-5)

        inputs = (draw(tokens, heads[0] + 2 * heads[1], dim), position_T, *weights)
        yield Trial(f"heads of {dim}, {pairs} pairs turned{', normed' if normed else ''}", inputs, run)


def decode() -> Iterator[Trial]:
    """One new token of rows alike; several of some rows of a cache, each to its own end, with a mask."""
    draw = drawer()

    def alike(f: Any, q: Tensor, k: Tensor, v: Tensor, end: Tensor) -> Any:
        return f(q, k, v, None, end, None, None)

    def masked(f: Any, q: Tensor, k: Tensor, v: Tensor, end: Tensor, rows: Tensor, mask: Tensor) -> Any:
        return f(q, k, v, rows, end, mask, None)

    end = torch.full((2,), 400, dtype=torch.int32)
    yield Trial("rows alike", (draw(2, 1, 8, 128), draw(2, 2, 400, 128), draw(2, 2, 400, 128), end), alike)
    end, rows = torch.tensor([150, 31, 90], dtype=torch.int32), torch.tensor([3, 0, 1])
    mask = (draw(3, 5, 150) < 0.8) & (torch.arange(150) < end[:, None, None])
    yield Trial("some rows", (draw(3, 5, 4, 64), draw(4, 2, 150, 64), draw(4, 2, 150, 64), end, rows, mask), masked)


def route() -> Iterator[Trial]:
    """Scores far enough from each other that rounding makes no difference, and whole numbers, which have ties."""
    chance = torch.Generator().manual_seed(0)
    grouped = Scheme(4, "sigmoid", scale=2.5, groups=4, groups_kept=2)
    for title, experts, scheme in (
        ("softmax", 16, Scheme(4, shares=True, squares=True)),
        ("sigmoid in groups", 32, grouped),
    ):
        bias = None if scheme.groups == 1 else torch.arange(experts).double().sin() / 100

        def run(f: Any, logits: Tensor, bias: Tensor | None = bias, scheme: Scheme = scheme) -> Any:
            found = f(logits, None if bias is None else bias.to(logits), scheme)
            return tuple(x for x in found if x is not None)

        apart = torch.rand(150, experts, generator=chance).argsort(1) / 8 - experts / 16
        yield Trial(f"{title}, {experts} experts", (apart.double(),), run)
        if bias is None:
            tied = torch.randint(-1, 2, (90, experts), generator=chance)
            yield Trial(f"{title}, whole numbers", (tied.double(),), run)


LOADS = ((11, 0, 30, 5), (130, 0, 170))
"""Assignments of every expert, for few and for many of which there are kernels."""


def experts() -> Iterator[Trial]:
    """Few and many assignments, an expert without any, widths that no tile divides."""
    draw = drawer()
    for load, activation, (dim, hidden) in zip(LOADS, ("swiglu", "gelu"), ((64, 48), (72, 136)), strict=True):
        tokens, rows = sum(load) // 2 + 3, hidden * (2 if activation == "swiglu" else 1)
        token_A = torch.arange(sum(load)) * 5 % (tokens - 1)  # the last token is read by none

        def run(
            f: Any, x: Tensor, up: Tensor, down: Tensor, weight: Tensor, token: Tensor, load: Tensor, name: str = activation
        ) -> Any:  # fmt: skip
            # Routers give weights in float32 whatever the rest is in.
            return f(x, up, down, token, weight.to(torch.promote_types(weight.dtype, torch.float32)), load, name)

        factors = draw(tokens, dim), draw(len(load), rows, dim) / 8, draw(len(load), dim, hidden) / 8
        inputs = (*factors, draw(sum(load)).sigmoid(), token_A, torch.tensor(load))
        yield Trial(f"{sum(load)} assignments, {activation}", inputs, run)


def grouped_linear() -> Iterator[Trial]:
    """The same loads."""
    draw = drawer()
    for load in LOADS:
        inputs = draw(sum(load), 64), draw(len(load), 48, 64) / 8, torch.tensor(load)
        yield Trial(f"{sum(load)} rows", inputs, lambda f, x, weight, load: f(x, weight, load, None))


def nearest_code() -> Iterator[Trial]:
    """Distances to the codes that are found; whole numbers, whose products are exact, so that the first of equals is known."""
    draw = drawer()

    def distance(f: Any, x: Tensor, codes: Tensor) -> Tensor:
        return (x.double() - codes.double()[f(x, codes)]).square().sum(1)

    yield Trial("few channels", (draw(300, 8), draw(1000, 8)), distance)
    yield Trial("many channels", (draw(130, 48), draw(500, 48)), distance)
    yield Trial("ties", (draw(300, 4).round(), draw(200, 4).round()), lambda f, x, codes: f(x, codes))


def cross_entropy() -> Iterator[Trial]:
    """One slice of a vocabulary; several, with biases, smoothing and z loss; rows that no tile divides."""
    draw = drawer()
    for count, dim, sizes, more in ((150, 72, (300,), (0.0, 0.0)), (70, 64, (40, 130, 3), (0.1, 1e-3))):
        blocks = [draw(size, dim) for size in sizes] + [draw(size) for size in sizes if len(sizes) > 1]
        ids_T = torch.arange(count) * 11 % sum(sizes)

        def run(
            f: Any, x: Tensor, ids: Tensor, *blocks: Tensor, slices: int = len(sizes), more: Sequence[float] = more
        ) -> Any:
            return f(x, blocks[:slices], blocks[slices:], ids, *more)

        # Logits of about 1, as those of models are at first.
        inputs = (draw(count, dim) / dim**0.5, ids_T, *blocks)
        yield Trial(f"a vocabulary of {' + '.join(map(str, sizes))}", inputs, run)
