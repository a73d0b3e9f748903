"""Triton kernels on a GPU, each beside its peers in one process: first whether they are right, then how fast they are.

    python benchmarks/kernels_gpu.py [--tokens 8192 16384 32768] [--rounds 20] [--json results.json]

The gate compares outputs and gradients with the plain statement in float64; where it fails nothing is timed and the exit
status is 1. Then every round times each contestant once, in turn, on fresh inputs; figures are medians with their
quartiles. TFLOP/s count the visible pairs only, a backward pass as 2.5 forward ones. Making masks and plans is not timed.
`causal` is torch's own kernel on a whole causal mask of that length, which is another task: it says what the GPU can do.
Prints Markdown; ``--json`` keeps the figures with the device, driver and versions. Without a GPU it says so and ends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mmkit.kernels.attention import attend, reference
from mmkit.kernels.attention.triton import interval_attention
from mmkit.sequence.intervals import interval_plan
from mmkit.sequence.layout import Piece, StreamRule, join, lay_out
from mmkit.sequence.lowering import lower
from mmkit.sequence.positions import Rope
from mmkit.sequence.visibility import Visibility

DEVICE = torch.device("cuda")
SHAPES = {64: (32, 8), 128: (64, 8)}
"""Query and key heads, by head width."""
TOLERANCE = {torch.float32: (1e-5, 5e-5), torch.float16: (5e-4, 2e-3), torch.bfloat16: (3e-3, 5e-3)}
"""Relative errors (L2 norm) of outputs and of gradients: tf32x3 keeps float32's own, and half types round to 11 or 8 bits."""
DENSE_AT_MOST = 16384
"""Tokens up to which a dense mask is timed: its time grows with their square."""

TEXT, IMAGE = StreamRule(0, "text"), StreamRule(1, "image", "block", begin=1, end=2)
NOISED = StreamRule(2, "noised", "block", hidden=True, begin=1, end=2)


def packed(tokens: int, image: StreamRule | None, seed: int = 0) -> Visibility:
    """Documents of 200 to 4,000 tokens of text, half of them images of 16 x 16 to 32 x 32 where there are any."""
    chance, rope = np.random.default_rng(seed), Rope(Rope.Config())
    documents, count = [], 0
    while count < tokens:
        pieces, length = [], int(np.exp(chance.uniform(np.log(200), np.log(4000))))
        while length > 0:
            pieces.append(Piece(TEXT, 0, (int(min(length, chance.integers(20, 400))),)))
            length -= pieces[-1].grid[0]
            if image is not None:
                side = int(chance.integers(16, 33))
                pieces.append(Piece(image, image.index, (side, side), target=image.hidden))
                length -= side * side
        documents.append(lay_out(pieces, rope))
        count += len(documents[-1])
    return Visibility.of(join(documents, 1)).take(slice(0, tokens))


MASKS = {"causal documents": None, "documents with images": IMAGE, "with noised copies": NOISED}


def inputs(tokens: int, width: int, dtype: torch.dtype, heads: tuple[int, int] | None = None) -> list[Tensor]:
    """Fresh queries, keys, values that want gradients, and a gradient of the output."""
    count, key_heads = heads or SHAPES[width]
    shapes = [(tokens, n, width) for n in (count, key_heads, key_heads)]
    made = [torch.randn(s, device=DEVICE, dtype=dtype, requires_grad=True) for s in shapes]
    return [*made, torch.randn(shapes[0], device=DEVICE, dtype=dtype)]


def gate(tokens: int = 3000) -> list[dict[str, Any]]:
    """Errors of every dtype, width and mask, and whether two runs gave the same bits."""
    found = []
    for title, image in MASKS.items():
        seen = packed(tokens, image)
        mask = torch.from_numpy(seen.matrix()).to(DEVICE)
        plan = interval_plan(seen, seen, DEVICE)
        for width in (*SHAPES, 80):
            for dtype, allowed in TOLERANCE.items():
                *ours, grad = inputs(tokens, width, dtype, (2, 1))
                results = []
                for _ in range(2):
                    out = interval_attention(*ours, plan, None)
                    results.append([out, *torch.autograd.grad(out, ours, grad)])
                wide = [x.detach().double().requires_grad_() for x in ours]
                exact = reference(*wide, mask)
                wanted = [exact, *torch.autograd.grad(exact, wide, grad.double())]
                errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(results[0], wanted, strict=True)]
                same = all(torch.equal(a, b) for a, b in zip(*results, strict=True))
                right = errors[0] <= allowed[0] and max(errors[1:]) <= allowed[1] and same
                name = str(dtype).removeprefix("torch.")
                found.append(
                    {"mask": title, "width": width, "dtype": name, "errors": errors, "same": same, "right": right}
                )
    return found


def contestants(seen: Visibility, width: int) -> dict[str, Callable[..., Tensor]]:
    """Each implementation as a function of queries, keys and values."""
    plan, tokens = interval_plan(seen, seen, DEVICE), len(seen)
    flex = lower(seen, device=DEVICE, implementation="flex")
    found: dict[str, Callable[..., Tensor]] = {
        "triton": lambda q, k, v: interval_attention(q, k, v, plan, None),
        "flex": lambda q, k, v: attend(q, k, v, flex),
    }
    if tokens <= DENSE_AT_MOST:
        dense = lower(seen, device=DEVICE, implementation="dense")
        found["dense"] = lambda q, k, v: attend(q, k, v, dense)

    def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = (x.transpose(0, 1)[None] for x in (q, k, v))
        return scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)[0].transpose(0, 1)

    found["causal"] = causal
    return found


def seconds(run: Callable[[], Any]) -> float:
    """Of one run, by the GPU's own clock, with its cache emptied before."""
    torch.empty(128 << 20, dtype=torch.int8, device=DEVICE).zero_()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1e3


def passes(run: Callable[..., Tensor], tensors: list[Tensor], grad: Tensor) -> tuple[float, float]:
    """Seconds forward and backward."""
    out: list[Tensor] = []
    forward = seconds(lambda: out.append(run(*tensors)))
    return forward, seconds(lambda: torch.autograd.grad(out[0], tensors, grad))


def race(seen: Visibility, width: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round, forward and backward, for every contestant; the first three rounds are left out."""
    runs = contestants(seen, width)
    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "backward": []} for name in runs}
    for number in range(rounds + 3):
        *tensors, grad = inputs(len(seen), width, torch.bfloat16)
        for name, run in runs.items():
            both = passes(run, tensors, grad)
            if number >= 3:
                times[name]["forward"].append(both[0])
                times[name]["backward"].append(both[1])
    return times


def ceilings() -> dict[str, float]:
    """What this GPU reaches: TFLOP/s of one large bfloat16 product, TB/s of a copy (read and write)."""
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    x = torch.empty(1 << 30, dtype=torch.int8, device=DEVICE)
    product = statistics.median(seconds(lambda: a @ b) for _ in range(20))
    copy = statistics.median(seconds(lambda: x.clone()) for _ in range(20))
    return {"TFLOP/s": 2 * 8192**3 / product / 1e12, "TB/s": 2 * x.numel() / copy / 1e12}


def facts() -> dict[str, str]:
    """The machine and the versions."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0]
    return {
        "device": torch.cuda.get_device_name(),
        "driver": driver,
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def measured(tokens: list[int], rounds: int, most: float) -> list[dict[str, Any]]:
    """All races, printed as they end."""
    print(
        "| mask | tokens | width | pass | "
        + " | ".join(f"{n}, TFLOP/s" for n in ("triton", "flex", "dense", "causal")),
        end="",
    )
    print(" | flex / triton | dense / triton | triton, share of a product |\n|" + "---|" * 11)
    found = []
    for count in tokens:
        for title, image in MASKS.items():
            seen = packed(count, image)
            pairs = int(seen.matrix().sum())
            for width, (heads, _) in SHAPES.items():
                times = race(seen, width, rounds)
                for which, factor in (("forward", 1.0), ("backward", 2.5)):
                    line = {"mask": title, "tokens": count, "width": width, "pass": which, "times": {}, "TFLOP/s": {}}
                    for name, own in times.items():
                        area = count * (count + 1) // 2 if name == "causal" else pairs
                        quartiles = statistics.quantiles(own[which], n=4)
                        line["times"][name] = quartiles
                        line["TFLOP/s"][name] = factor * 4 * width * heads * area / quartiles[1] / 1e12
                    found.append(line)
                    print(_row(line, times, which, most), flush=True)
    return found


def _row(line: dict[str, Any], times: dict[str, dict[str, list[float]]], which: str, most: float) -> str:
    rates = [f"{line['TFLOP/s'][n]:.0f}" if n in times else "-" for n in ("triton", "flex", "dense", "causal")]

    def ratio(name: str) -> str:
        if name not in times:
            return "-"
        pairs = zip(times[name][which], times["triton"][which], strict=True)
        return f"{statistics.median(a / b for a, b in pairs):.2f}x"

    cells = [line["mask"], f"{line['tokens']:,}", line["width"], which, *rates, ratio("flex"), ratio("dense")]
    return "| " + " | ".join(map(str, [*cells, f"{100 * line['TFLOP/s']['triton'] / most:.0f} %"])) + " |"


def main() -> None:
    """Gate, then figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no GPU that torch can use: nothing was measured")
    torch.manual_seed(0)
    about, limits, checks = facts(), ceilings(), gate()
    print(", ".join(f"{k} {v}" for k, v in about.items()), *(f"{v:.2f} {k}" for k, v in limits.items()), sep="; ")
    for check in checks:
        errors = ", ".join(f"{e:.1e}" for e in check["errors"])
        print(
            f"{'right' if check['right'] else 'WRONG'}: {check['mask']}, {check['width']} wide, {check['dtype']}: {errors}"
        )
    wrong = [check for check in checks if not check["right"]]
    found = [] if wrong else measured(options.tokens, options.rounds, limits["TFLOP/s"])
    if options.json:
        options.json.write_text(json.dumps({**about, "ceilings": limits, "gate": checks, "attention": found}, indent=2))
    if wrong:
        sys.exit(f"{len(wrong)} of {len(checks)} checks failed, so nothing was timed")


if __name__ == "__main__":
    main()
