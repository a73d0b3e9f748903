"""mmkit's kernels for the CPU beside what torch offers for the same, timed in turn.

    python benchmarks/kernels_cpu.py [--tokens 2048] [--dtype fp32] [--rounds 15] [--threads 2] [--json FILE]

Attention under a mixed mask: one call of SDPA with the dense mask, compiled FlexAttention (whose CPU version has no backward
pass), and `batches`. Nearest code: `torch.cdist` and its argmin, the same by one product, and `chunked`.

Every round times each contestant once, in turn, on fresh inputs, and a ratio is taken within the round, so that a busy machine
slows both sides. Printed as Markdown are the median of these ratios and their quartiles; above 1 is in mmkit's favour. Making
masks and plans is not timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from mmkit.kernels.attention import attend
from mmkit.kernels.vq import nearest_code
from mmkit.sequence.layout import Piece, StreamRule, join, lay_out
from mmkit.sequence.lowering import lower
from mmkit.sequence.positions import Rope
from mmkit.sequence.visibility import Visibility

HEADS, KEY_HEADS, WIDTH = 8, 4, 64
TEXT = StreamRule(0, "text")
IMAGE = StreamRule(1, "image", "block", begin=1, end=2)
NOISED = StreamRule(2, "noised", "block", hidden=True, begin=1, end=2)
OURS = {"attention": "batches", "nearest_code": "chunked"}
"""mmkit's own choice on the CPU."""
WARM = 2
"""Rounds that are left out, in which things are compiled and allocated."""

Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Race:
    """One op on inputs of one shape, by several implementations."""

    op: str
    title: str
    inputs: Callable[[], list[Tensor]]
    runs: dict[str, Run]
    grad: bool = False


@dataclass(frozen=True)
class Row:
    """mmkit's kernel against one peer: medians in milliseconds, and how many times as long the peer takes."""

    op: str
    case: str
    passes: str
    peer: str
    peer_ms: float
    ours_ms: float
    ratio: float
    quartiles: tuple[float, float]


def mixed(tokens: int, image: StreamRule) -> Visibility:
    """Two documents, a quarter of each half an image, with text around them."""
    length, side = tokens // 2, int((tokens // 8) ** 0.5)
    pieces, used = [], 0
    while True:
        need = (2 if image.hidden else 1) * side * side + 2
        if used + length // 8 + need > length:
            break
        pieces += [Piece(TEXT, 0, (length // 8,)), Piece(image, 0, (side, side), target=image.hidden)]
        used += length // 8 + need
    pieces.append(Piece(TEXT, 0, (length - used,)))
    rope = Rope(Rope.Config())
    return Visibility.of(join([lay_out(pieces, rope)] * 2, 1))


def short(tokens: int) -> Visibility:
    """Documents of 25 to 100 tokens: a caption and a small image, as a small model is trained on."""
    rope, documents, used, number = Rope(Rope.Config()), [], 0, 0
    while used < tokens:
        text = min(9 + 31 * number % 76, tokens - used)
        size = [Piece(TEXT, 0, (text,))] + ([Piece(IMAGE, 0, (4, 4))] if used + text + 18 <= tokens else [])
        documents.append(lay_out(size, rope))
        used, number = used + len(documents[-1]), number + 1
    return Visibility.of(join(documents, 1))


def compiled_flex(seen: Visibility) -> Run:
    """FlexAttention as torch recommends it, on the CPU too."""
    with torch.no_grad():
        mask = lower(seen, device="cpu", implementation="flex").block_mask
    compiled = torch.compile(flex_attention, dynamic=False)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = compiled(*(x.transpose(0, 1)[None] for x in (q, k, v)), block_mask=mask, enable_gqa=True)
        return out[0].transpose(0, 1)

    return run


def attention(tokens: int, dtype: torch.dtype, flex: bool) -> Iterator[Race]:
    """Three masks, forward, and forward and backward."""
    masks = {
        "two documents with images": mixed(tokens, IMAGE),
        "two with noised copies": mixed(tokens, NOISED),
        "many short documents": short(tokens),
    }
    for title, seen in masks.items():
        runs: dict[str, Run] = {}
        for name in ("dense", "batches"):
            plan = lower(seen, device="cpu", implementation=name)
            runs[name] = lambda q, k, v, plan=plan: attend(q, k, v, plan)
        shapes = [(len(seen), heads, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
        about = f"{title}, {len(seen)} tokens, density {seen.matrix().mean():.2f}, {str(dtype).removeprefix('torch.')}"
        for grad in (False, True):
            more = {"flex": compiled_flex(seen)} if flex and not grad else {}

            def inputs(shapes: Sequence[tuple[int, ...]] = shapes, grad: bool = grad) -> list[Tensor]:
                return [torch.randn(shape, dtype=dtype, requires_grad=grad) for shape in shapes]

            yield Race("attention", about, inputs, {**runs, **more}, grad)


def codes() -> Iterator[Race]:
    """Books from small to large, of few and many channels."""
    runs: dict[str, Run] = {
        "cdist": lambda x, c: torch.cdist(x, c).argmin(1),
        "one product": lambda x, c: (c.square().sum(1) - 2 * x @ c.T).argmin(1),
        "chunked": nearest_code,
    }
    for vectors, size, channels in ((4096, 512, 64), (4096, 1024, 256), (4096, 8192, 32), (4096, 16384, 8)):

        def inputs(shapes: Sequence[tuple[int, int]] = ((vectors, channels), (size, channels))) -> list[Tensor]:
            return [torch.randn(shape) for shape in shapes]

        yield Race("nearest_code", f"{vectors} vectors, {size} codes of {channels}", inputs, runs)


def seconds(run: Run, tensors: list[Tensor], grad: bool) -> float:
    """How long one forward, or forward and backward, pass takes."""
    start = time.perf_counter()
    out = run(*tensors)
    if grad:
        torch.autograd.grad(out, tensors, torch.ones_like(out))
    return time.perf_counter() - start


def rows(race: Race, rounds: int) -> Iterator[Row]:
    """mmkit's kernel against each of its peers."""
    times: dict[str, list[float]] = {name: [] for name in race.runs}
    for number in range(rounds + WARM):
        tensors = race.inputs()
        for name, run in race.runs.items():
            taken = seconds(run, tensors, race.grad)
            if number >= WARM:
                times[name].append(taken)
    ours = times.pop(OURS[race.op])
    for peer, theirs in times.items():
        ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        medians = (statistics.median(x) * 1e3 for x in (theirs, ours))
        passes = "forward + backward" if race.grad else "forward"
        yield Row(race.op, race.title, passes, peer, *medians, middle, (low, high))


def line(row: Row) -> str:
    """One line of the table."""
    low, high = row.quartiles
    figures = f"{row.peer_ms:.1f} | {row.ours_ms:.1f} | {row.ratio:.2f}x ({low:.2f} to {high:.2f})"
    return f"| {row.op} | {row.case} | {row.passes} | {row.peer} | {OURS[row.op]} | {figures} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of attention")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--op", choices=[*OURS], help="one op only")
    parser.add_argument(
        "--no-flex", action="store_true", help="leave FlexAttention out (it takes 10 s a mask to compile)"
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    races = {"attention": lambda: attention(options.tokens, dtype, not options.no_flex), "nearest_code": codes}
    print(f"{options.threads} threads, torch {torch.__version__}, {options.rounds} rounds\n")
    print("| op | case | passes | peer | mmkit | peer, ms | mmkit, ms | peer / mmkit (quartiles) |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    found = []
    for op in [options.op] if options.op else OURS:
        for race in races[op]():
            for row in rows(race, options.rounds):
                found.append(asdict(row))
                print(line(row), flush=True)
    if options.json:
        about = {"threads": options.threads, "torch": torch.__version__, "rounds": options.rounds}
        options.json.write_text(json.dumps({**about, "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
