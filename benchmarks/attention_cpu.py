"""Attention under a mixed mask on the CPU: one dense call, FlexAttention, and mmkit's batches, timed in turn.

    python benchmarks/attention_cpu.py [--tokens 2048] [--dtype fp32] [--rounds 15] [--threads 2]

Two packed documents of text and images. Every round times each implementation once, in turn, and a ratio is taken within
the round, so that a busy machine slows both sides; the medians of these ratios are printed as Markdown. Making masks and
plans is not timed, except in the last column.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch.nn.attention.flex_attention import flex_attention

from mmkit.kernels.attention import attend
from mmkit.sequence.layout import Piece, StreamRule, join, lay_out
from mmkit.sequence.lowering import lower
from mmkit.sequence.positions import Rope
from mmkit.sequence.visibility import Visibility

HEADS, KEY_HEADS, WIDTH = 8, 4, 64
TEXT = StreamRule(0, "text")
IMAGE = StreamRule(1, "image", "block", begin=1, end=2)
NOISED = StreamRule(2, "noised", "block", hidden=True, begin=1, end=2)


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


def inputs(tokens: int, dtype: torch.dtype, grad: bool) -> list[torch.Tensor]:
    """Fresh queries, keys, values, and a gradient of the output."""
    shapes = [(tokens, heads, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [torch.randn(shape, dtype=dtype, requires_grad=grad) for shape in shapes]


def contestants(seen: Visibility, flex: bool) -> dict[str, Callable[..., torch.Tensor]]:
    """Each implementation as a function of queries, keys and values."""
    found: dict[str, Callable[..., torch.Tensor]] = {}
    for name in ("dense", "batches"):
        plan = lower(seen, device="cpu", implementation=name)
        found[name] = lambda q, k, v, plan=plan: attend(q, k, v, plan)
    if flex:
        mask = lower(seen, device="cpu", implementation="flex").block_mask
        compiled = torch.compile(flex_attention, dynamic=False)

        def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out = compiled(*(x.transpose(0, 1)[None] for x in (q, k, v)), block_mask=mask, enable_gqa=True)
            return out[0].transpose(0, 1)

        found["flex"] = run
    return found


def time_once(run: Callable[..., torch.Tensor], tensors: list[torch.Tensor], grad: bool) -> float:
    """Seconds of one forward, or forward and backward, pass."""
    start = time.perf_counter()
    out = run(*tensors)
    if grad:
        torch.autograd.grad(out, tensors, torch.ones_like(out))
    return time.perf_counter() - start


def race(seen: Visibility, dtype: torch.dtype, grad: bool, rounds: int, flex: bool) -> dict[str, list[float]]:
    """Seconds of every round for every implementation; the first two rounds are left out."""
    runs = contestants(seen, flex and not grad)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):
        for name, run in runs.items():
            seconds = time_once(run, inputs(len(seen), dtype, grad), grad)
            if number >= 2:
                times[name].append(seconds)
    return times


def row(title: str, seen: Visibility, dtype: torch.dtype, grad: bool, rounds: int, flex: bool) -> str:
    """One line of the table."""
    times = race(seen, dtype, grad, rounds, flex)
    start = time.perf_counter()
    lower(seen, device="cpu", implementation="batches")
    planning = (time.perf_counter() - start) * 1e3

    def ratio(name: str) -> str:
        if name not in times:
            return "-"
        pairs = zip(times[name], times["batches"], strict=True)
        return f"{statistics.median(a / b for a, b in pairs):.2f}x"

    density = seen.matrix().mean()
    dense, ours = (f"{statistics.median(times[name]) * 1e3:.1f}" for name in ("dense", "batches"))
    passes = "forward + backward" if grad else "forward"
    return f"| {title} | {density:.2f} | {passes} | {dense} | {ours} | {ratio('dense')} | {ratio('flex')} | {planning:.1f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-flex", action="store_true", help="leave FlexAttention out (it takes 10 s to compile)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    cases = {
        "two documents with images": mixed(options.tokens, IMAGE),
        "two with noised copies": mixed(options.tokens, NOISED),
        "many short documents": short(options.tokens),
    }
    print(f"{options.tokens} tokens, {options.dtype}, {HEADS} query and {KEY_HEADS} key heads of {WIDTH}, ", end="")
    print(f"{options.threads} threads, torch {torch.__version__}\n")
    sys.stdout.flush()
    print("| mask | density | passes | dense, ms | batches, ms | dense / batches | flex / batches | planning, ms |")
    print("|---|---|---|---|---|---|---|---|")
    for title, seen in cases.items():
        for grad in (False, True):
            flex = not options.no_flex and title == "two documents with images"
            print(row(title, seen, dtype, grad, options.rounds, flex), flush=True)


if __name__ == "__main__":
    main()
