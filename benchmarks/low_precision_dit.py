"""A small DiT kept in bf16 and in float32 on the CPU, by mmkit and by `diffusers`, timed in turn.

    python benchmarks/low_precision_dit.py [--rounds 9] [--steps 4] [--images 1] [--threads 2] [--json FILE]

Both have the same random weights in their blocks: hidden 512, 8 layers, 8 heads, 2048 inside the MLP, pictures of 256 patches.
Before anything is timed, their hidden states are held against those of `diffusers` in float32.

`diffusers` is called as fast as it can be: its model alone, patches and output layer with it. mmkit is timed through `generate`,
with all that stands around its backbone: one step of the sampler, from one prediction to the next, the median of its round.
Every round runs all contestants once, in turn, and a ratio is taken within the round. Printed as Markdown are the medians of
these ratios and their quartiles; above 1 is in mmkit's favour.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from low_precision import DTYPES, NEAR, Row, report
from torch import Tensor

import mmkit
from mmkit.compose import loads
from mmkit.contracts.options import Sampling
from mmkit.contracts.values import Condition, Packed
from mmkit.kernels.linear import forget
from mmkit.model import UnifiedModel
from mmkit.sequence.lowering import lower
from mmkit.sequence.visibility import Visibility

SIDE, PATCH, DIM, DEPTH, HEADS, CLASSES = 32, 2, 512, 8, 8, 10
PATCHES = (SIDE // PATCH) ** 2
RECIPE = f"""
model:
  tokenizers: {{pixels: {{type: pixel, connector: {{type: patchify, size: {PATCH}}}}}}}
  backbone:
    type: dense
    depth: {DEPTH}
    dim: {DIM}
    num_heads: {HEADS}
    mlp_ratio: 4.0
    norm: layer
    bias: all
    activation: gelu_tanh
    modulation: adaln
    positions: {{type: rope, fraction: 0.0}}
  heads: {{paint: {{type: flow, time: adaln}}}}
  streams: {{image: {{modality: image, from: pixels, attend: block, head: paint}}}}
data: [{{type: shapes}}]
train: {{steps: 1}}
"""


def theirs() -> Any:
    """The model of `diffusers`, in float32; its modulation, which would start at zero, is drawn."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=HEADS, attention_head_dim=DIM // HEADS, in_channels=3, num_layers=DEPTH, sample_size=SIDE,
        patch_size=PATCH, num_embeds_ada_norm=CLASSES, norm_eps=1e-6, activation_fn="gelu-approximate",
    )  # fmt: skip
    return model.eval().requires_grad_(False)


def ours(model: Any) -> UnifiedModel:
    """mmkit's, its backbone with the weights of that one."""
    own = {f"last.modulation.linear.{leaf}": value for leaf, value in model.proj_out_1.named_parameters()}
    for index, block in enumerate(model.transformer_blocks):
        attention, name = block.attn1, f"blocks.{index}"
        pairs = {
            "modulation.linear": block.norm1.linear, "attention.out": attention.to_out[0],
            "mlp.up": block.ff.net[0].proj, "mlp.down": block.ff.net[2],
        }  # fmt: skip
        for leaf in ("weight", "bias"):
            qkv = (getattr(layer, leaf) for layer in (attention.to_q, attention.to_k, attention.to_v))
            own[f"{name}.attention.qkv.{leaf}"] = torch.cat(list(qkv))
            own |= {f"{name}.{path}.{leaf}": getattr(layer, leaf) for path, layer in pairs.items()}
    built = UnifiedModel(loads(RECIPE)).eval().requires_grad_(False)
    built.backbone.load_state_dict(own)
    return built


def check(model: Any, ours_by: dict[str, UnifiedModel]) -> dict[str, float]:
    """How far the states of mmkit's backbone are from those in float32. Raises `SystemExit` where that is too far."""
    image, time_N, label_N = torch.randn(2, 3, SIDE, SIDE), torch.tensor([7, 640]), torch.tensor([1, 3])
    seen: list[Tensor] = []
    # Each of their blocks has an embedding of times and classes of its own; here all have the first one's.
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    handle = model.proj_out_2.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        model(image, timestep=time_N, class_labels=label_N)
        handle.remove()
        x_TD = model.pos_embed(image).flatten(0, 1)
        rows_KD = model.transformer_blocks[0].norm1.emb(time_N, label_N, hidden_dtype=torch.float32)
        doc_T = torch.arange(2).repeat_interleave(PATCHES)
        seen_by = Visibility(doc_T.int().numpy(), *(torch.zeros_like(doc_T).int().numpy(),) * 2)
        wanted, off = seen[0].flatten(0, 1).double(), {}
        for name, dtype in DTYPES.items():
            given = Packed(
                x_TD.to(dtype), torch.zeros(len(doc_T), ours_by[name].backbone.positions.axes).long(),
                torch.zeros(len(doc_T)).long(), lower(seen_by, device="cpu"), Condition(rows_KD.to(dtype), doc_T),
            )  # fmt: skip
            off[name] = float((ours_by[name].backbone(given).x_TD.double() - wanted).norm() / wanted.norm())
    for name, error in off.items():
        if error > NEAR[name]:
            raise SystemExit(f"in {name} the states are off by {error:.2g}, and {NEAR[name]} is allowed")
    return off


def their_step(model: Any, images: int, steps: int) -> float:
    """Seconds of one step: its model alone."""
    image = torch.randn(images, 3, SIDE, SIDE).to(model.dtype)
    time_N, label_N = torch.full((images,), 500), torch.ones(images, dtype=torch.long)
    marks = [time.perf_counter()]
    with torch.no_grad():
        for _ in range(steps):
            model(image, timestep=time_N, class_labels=label_N)
            marks.append(time.perf_counter())
    return statistics.median(b - a for a, b in pairwise(marks))


def our_step(model: UnifiedModel, images: int, steps: int) -> float:
    """Seconds from one prediction to the next, by `generate`."""
    marks: list[float] = []
    handle = model.heads["paint"].output.register_forward_hook(lambda *_: marks.append(time.perf_counter()))
    model.generate_batch([[mmkit.Image(height=SIDE, width=SIDE)]] * images, Sampling(steps=steps + 1))
    handle.remove()
    return statistics.median(b - a for a, b in pairwise(marks))


def rows(runs: dict[str, Callable[[], float]], rounds: int, images: int) -> list[Row]:
    """All contestants in turn; `runs` are named ``bf16 theirs`` and so on."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            seconds = run()
            if number:
                found[name].append(seconds)
    table = []
    for dtype in DTYPES:
        peer, own = found[f"{dtype} theirs"], found[f"{dtype} ours"]
        table.append(Row.of(f"one step of {images} x {PATCHES} patches, {dtype}", peer, own))
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="timed in every round")
    parser.add_argument("--images", type=int, default=1, help="denoised together")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = theirs()
    ours_by = {name: ours(model).keep(dtype) for name, dtype in DTYPES.items()}
    off = check(model, ours_by)
    theirs_by = {"fp32": model, "bf16": theirs().to(torch.bfloat16)}
    about = f"{options.threads} threads, torch {torch.__version__}, {options.rounds} rounds"
    print(f"{about}; the states of bf16 are off by {off['bf16']:.1e}\n")
    forget()
    runs: dict[str, Callable[[], float]] = {}
    for name in DTYPES:
        runs[f"{name} theirs"] = lambda name=name: their_step(theirs_by[name], options.images, options.steps)
        runs[f"{name} ours"] = lambda name=name: our_step(ours_by[name], options.images, options.steps)
    report(rows(runs, options.rounds, options.images), "diffusers", off, options.rounds, options.json)


if __name__ == "__main__":
    main()
