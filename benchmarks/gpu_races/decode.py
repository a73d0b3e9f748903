"""Attention of new tokens to a cache on a GPU, bfloat16, 32 heads of 128 on 8 key heads.

Beside the Triton kernels: SDPA with the mask of the padded batch, which is mmkit's own choice, and compiled FlexAttention, which
has a kernel of its own for few queries. Rows are a quarter of the longest or more; counted are the bytes of keys and values
up to the rows' ends. Every race is run again as CUDA graphs: called one by one, short kernels wait for Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from races import COPY, FORWARD, TIMES, Check, Goal, Race, Run, Under
from scale import Scale
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from mmkit.kernels.decode.reference import reference
from mmkit.kernels.decode.triton import split_decode
from mmkit.kernels.dispatch import load
from mmkit.kernels.triton_launch import instead

HEADS, TOY_HEADS = (32, 8, 128), (4, 2, 64)
"""Query and key heads, and their width."""
SIZES = ((8, 8192), (64, 32768), (1, 32768), (64, 1024), (64, 8192), (8, 32768), (8, 1024), (1, 8192), (1, 1024))
"""Rows and columns."""
TOY_SIZES = ((1, 100), (3, 100))
HELD = 64 << 20
"""Bytes of keys and values from which on the goals are held."""
GOALS = Goal(FORWARD, COPY, 0.80, 0.90), Goal(FORWARD, TIMES, 1.0, None, ("sdpa", "flex"))
CHECKED = ((32, 8, 128), (6, 2, 64), (7, 1, 80))
"""The same, of the gate."""
TOLERANCE = {torch.bfloat16: 2e-3, torch.float16: 3e-4, torch.float32: 1e-6}
"""Relative errors (L2 norm): one rounding of the output to 8 or 11 bits. float32 is for the interpreter."""


def gate(scale: Scale) -> Iterator[Check]:
    """Ragged rows, picked rows, one new token and several, split and unsplit; twice, for the same bits; and a row alone."""
    device, columns = scale.device, scale.of(3000, 100)
    for count, key_heads, width in scale.of(CHECKED, CHECKED[1:]):
        for dtype in scale.dtypes((torch.bfloat16, torch.float16)):
            for tokens in scale.of((1, 5, 40), (1, 7)):
                k, v = (torch.randn(6, key_heads, columns + 9, width, device=device, dtype=dtype) for _ in "kv")
                q = torch.randn(4, tokens, count, width, device=device, dtype=dtype)
                k, v, rows = k[:, :, :columns], v[:, :, :columns], torch.tensor([5, 0, 1, 3], device=device)
                end, mask = _ends(4, columns, device)
                mask = mask & (torch.rand(4, tokens, columns, device=device) < 0.8)
                mask[2, -1] = False
                given = (q, k, v, rows, end, mask, None)
                wanted = reference(q.double(), k.double(), v.double(), *given[3:])
                results = [[split_decode(*given, parts) for parts in (0, 1, 4)] for _ in range(2)]
                one = slice(1, 2)
                last = int(end[1])
                alone = split_decode(
                    q[one], k[:1, :, :last], v[:1, :, :last], None, end[one], mask[one, :, :last], None, 1
                )
                same = all(map(torch.equal, *results)) and torch.equal(alone, results[0][1][one])
                errors = [float((x.double() - wanted).norm() / wanted.norm()) for x in results[0]]
                sizes = f"{tokens} tokens a row, {count} heads of {width} and {key_heads} key heads"
                title = f"{sizes}, {str(dtype).removeprefix('torch.')}"
                yield Check("decode", title, tuple(errors), (TOLERANCE[dtype],) * len(errors), same)


def races(scale: Scale) -> Iterator[Race]:
    """By rows and their length: one new token a row."""
    sizes = scale.of(SIZES, TOY_SIZES)
    for place, (rows, columns) in enumerate(sizes):
        for graph in (False, True):
            race = _race(scale, rows, columns, graph)
            yield replace(race, goals=GOALS if place < 3 and (scale.toy or race.bytes >= HELD) else ())


def configurations(scale: Scale) -> Iterator[Race]:
    """Tiles of as many columns as they are, and of others."""
    rows, columns = scale.of((64, 8192), TOY_SIZES[0])

    def runs() -> dict[str, Run]:
        from mmkit.kernels.decode.triton import TABLE, Tile

        ours = contestants(scale, rows, columns)["triton"]
        found: dict[str, Run] = {"triton": scale.graphed(ours)}
        for tile in (Tile(128, 4, 2, 1), Tile(64, 4, 4, 2), Tile(64, 8, 3, 1), Tile(128, 8, 3, 1)):
            name = f"{tile.n} columns, {tile.warps} warps, {tile.stages} stages, {tile.resident} a processor"
            # A graph keeps what it was captured with; each is captured inside of its own context.
            found[name] = Under(partial(instead, TABLE, tile), scale.graphed(ours))
        return found

    yield replace(_race(scale, rows, columns, True), runs=runs)


def _race(scale: Scale, rows: int, columns: int, graph: bool) -> Race:
    seen, (heads, key_heads, width) = int(_ends(rows, columns, "cpu")[0].sum()), scale.of(HEADS, TOY_HEADS)

    def inputs() -> list[Tensor]:
        return [torch.randn(rows, 1, heads, width, device=scale.device, dtype=scale.dtype)]

    def runs() -> dict[str, Run]:
        own = contestants(scale, rows, columns)
        return {name: scale.graphed(run) for name, run in own.items()} if graph else own

    title = f"{rows} row{'s' * (rows > 1)} of at most {columns:,} columns" + (", CUDA graph" if graph else "")
    least = 2.0 * 2 * seen * key_heads * width
    return Race("decode", title, inputs, runs, "triton", flops=4.0 * seen * heads * width, bytes=least)


def contestants(scale: Scale, rows: int, columns: int) -> dict[str, Run]:
    """Each implementation as a function of the queries."""
    _, key_heads, width = scale.of(HEADS, TOY_HEADS)
    shape = (rows, key_heads, columns, width)
    k, v = (torch.randn(shape, device=scale.device, dtype=scale.dtype) for _ in "kv")
    end, mask = _ends(rows, columns, scale.device)
    mask = mask if rows > 1 else None

    def seen(row: Tensor, head: Tensor, query: Tensor, column: Tensor) -> Tensor:
        return column < end[row]

    blocks = create_block_mask(seen, len(k), None, 1, k.shape[2], device=k.device)
    flex = scale.compiled(flex_attention)

    def named(name: str) -> Run:
        implementation = load("decode", name)
        return lambda q: implementation(q, k, v, None, end, mask, None)

    def flexible(q: Tensor) -> Tensor:
        return flex(q.transpose(1, 2), k, v, block_mask=blocks, enable_gqa=True).transpose(1, 2)

    return {"triton": named("triton"), "unsplit": named("triton_unsplit"), "sdpa": named("sdpa"), "flex": flexible}


def _ends(rows: int, columns: int, device: str) -> tuple[Tensor, Tensor]:
    """Where rows end, spread evenly from a quarter of the columns to all of them, and the mask that says so."""
    end = torch.linspace(columns, columns / 4, rows).int().to(device)
    return end, torch.arange(columns, device=device) < end[:, None, None]
