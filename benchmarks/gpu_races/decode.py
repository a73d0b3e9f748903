"""Attention of new tokens to a cache on a GPU, bfloat16, 32 heads of 128 on 8 key heads.

Beside the Triton kernels: SDPA with the mask of the padded batch, which is mmkit's own choice, and compiled FlexAttention, which
has a kernel of its own for few queries. Rows are a quarter of the longest or more; counted are the bytes of keys and values
up to the rows' ends. Every race is run again as CUDA graphs: called one by one, short kernels wait for Python.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from races import Check, Race, Run
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from mmkit.kernels.decode import decode
from mmkit.kernels.decode.reference import reference
from mmkit.kernels.decode.triton import split_decode
from mmkit.kernels.dispatch import using

HEADS, KEY_HEADS, WIDTH = 32, 8, 128
ROWS, COLUMNS = (1, 8, 64), (1024, 8192, 32768)
TOLERANCE = {torch.bfloat16: 2e-3, torch.float16: 3e-4, torch.float32: 1e-6}
"""Relative errors (L2 norm): one rounding of the output to 8 or 11 bits. float32 is for the interpreter."""


def gate(
    device: str = "cuda",
    columns: int = 3000,
    heads: tuple[tuple[int, int, int], ...] = ((32, 8, 128), (6, 2, 64), (7, 1, 80)),
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16),
) -> Iterator[Check]:
    """Ragged rows, picked rows, one new token and several, split and unsplit; twice, for the same bits; and a row alone."""
    for count, key_heads, width in heads:
        for dtype in dtypes:
            for tokens in (1, 5, 40):
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
                title = f"{tokens} tokens a row, {count} heads of {width} and {key_heads} key heads, {dtype}"
                yield Check("decode", title, tuple(errors), (TOLERANCE[dtype],) * len(errors), same)


def races(device: str = "cuda") -> Iterator[Race]:
    """By rows and their length: one new token a row."""
    for rows in ROWS:
        for columns in COLUMNS:
            k, v = (torch.randn(rows, KEY_HEADS, columns, WIDTH, device=device, dtype=torch.bfloat16) for _ in "kv")
            end, mask = _ends(rows, columns, device)
            own = contestants(k, v, end, mask if rows > 1 else None)

            def inputs(rows: int = rows) -> list[Tensor]:
                return [torch.randn(rows, 1, HEADS, WIDTH, device=device, dtype=torch.bfloat16)]

            seen = int(end.sum())
            for graph in (False, True):
                runs = {name: Graphed(run) for name, run in own.items()} if graph else own
                title = f"{rows} rows of at most {columns:,} columns" + (", CUDA graph" if graph else "")
                least = 2.0 * 2 * seen * KEY_HEADS * WIDTH
                yield Race("decode", title, inputs, runs, "triton", flops=4.0 * seen * HEADS * WIDTH, bytes=least)


def contestants(k: Tensor, v: Tensor, end: Tensor, mask: Tensor | None) -> dict[str, Run]:
    """Each implementation as a function of the queries."""

    def seen(row: Tensor, head: Tensor, query: Tensor, column: Tensor) -> Tensor:
        return column < end[row]

    blocks = create_block_mask(seen, len(k), None, 1, k.shape[2], device=k.device)
    flex = torch.compile(flex_attention, dynamic=False)

    def named(name: str) -> Run:
        def run(q: Tensor) -> Tensor:
            with using({"decode": name}):
                return decode(q, k, v, None, end, mask)

        return run

    def flexible(q: Tensor) -> Tensor:
        return flex(q.transpose(1, 2), k, v, block_mask=blocks, enable_gqa=True).transpose(1, 2)

    return {"sdpa": named("sdpa"), "flex": flexible, "triton": named("triton"), "unsplit": named("triton_unsplit")}


class Graphed:
    """A contestant as a CUDA graph, captured when it is first called; copying the queries in is timed with it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, q: Tensor) -> Tensor:
        """The output, which the next call overwrites."""
        if self.graph is None:
            self.q, self.graph = q.clone(), torch.cuda.CUDAGraph()
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(3):
                    self.run(self.q)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(self.graph):
                self.out = self.run(self.q)
        self.q.copy_(q)
        self.graph.replay()
        return self.out


def _ends(rows: int, columns: int, device: str) -> tuple[Tensor, Tensor]:
    """Where rows end, spread evenly from a quarter of the columns to all of them, and the mask that says so."""
    end = torch.linspace(columns, columns / 4, rows).int().to(device)
    return end, torch.arange(columns, device=device) < end[:, None, None]
