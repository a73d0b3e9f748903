"""A step of mmkit's Muon against torch's own, in turn, on the matrices of a recipe's backbone.

python benchmarks/muon.py --recipe transfusion-tiny --rounds 9 --threads 2

Torch's orthogonalises in bfloat16 wherever it runs and one matrix after another; here that is float32 on a CPU, and all
matrices of one shape at a time.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch
from torch import nn

from mmkit.compose import load
from mmkit.model import UnifiedModel
from mmkit.train.optimizers import Muon, matrices_of


def matrices(recipe: str, device: str) -> list[nn.Parameter]:
    """Parameters of the shapes that Muon moves in a recipe, with gradients; stacks of experts are taken apart for torch."""
    backbone = UnifiedModel(load(recipe)).backbone
    found = []
    for name in sorted(matrices_of(backbone)):
        value = backbone.get_parameter(name)
        for matrix in value if value.ndim == 3 else [value]:
            parameter = nn.Parameter(torch.randn(matrix.shape, device=device))
            parameter.grad = torch.randn_like(parameter)
            found.append(parameter)
    return found


def seconds(optimizer: torch.optim.Optimizer, device: str) -> float:
    """The wall time of one step."""
    start = time.perf_counter()
    optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Prints both medians and the ratio of each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="transfusion-tiny")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    ours = Muon(matrices(chosen.recipe, chosen.device), 0.02)
    theirs = torch.optim.Muon(matrices(chosen.recipe, chosen.device), 0.02)
    for optimizer in (ours, theirs):
        seconds(optimizer, chosen.device)
    pairs = [(seconds(ours, chosen.device), seconds(theirs, chosen.device)) for _ in range(chosen.rounds)]
    ratios = [other / own for own, other in pairs]
    own, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {chosen.device}, {chosen.threads} threads"
    )
    print(f"mmkit {1e3 * own:.1f} ms, torch {1e3 * other:.1f} ms a step; torch's takes "
          f"{statistics.median(ratios):.1f} times as long ({min(ratios):.1f} to {max(ratios):.1f})")  # fmt: skip


if __name__ == "__main__":
    main()
