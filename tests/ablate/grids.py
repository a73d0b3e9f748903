"""A small base recipe, and ablations of it."""

from __future__ import annotations

from pathlib import Path

from mmkit.ablate.grid import Grid, grid_of
from mmkit.ablate.reading import read_ablation

BASE = """model:
  tokenizers:
    text:   {type: bytes}
    pixels: {type: pixel, connector: {type: patchify, size: 8}}
  backbone: {type: dense, depth: 1, dim: 32, num_heads: 4, hidden_dim: 88}
  heads:
    say:   {type: ar}
    paint: {type: flow, steps: 2}
  streams:
    text:  {modality: text,  from: text,   head: say}
    image: {modality: image, from: pixels, head: paint}
data: [{type: shapes, size: 24, tasks: [generate]}]
train: {steps: 2, batch_samples: 2, warmup: 1, log_every: 1, save_every: 1, reconstruction: {steps: 1}}
"""
GRID = """base: base.yaml
axes:
  head:
    flow: []
    masked:
      - "model.tokenizers.pixels={type: fsq, codebook_size: 256, stride: 8, base_dim: 8, num_res_blocks: 1}"
      - "model.heads.paint={type: masked, steps: 2}"
  backbone:
    dense: []
    moe: [model.backbone.type=moe, model.backbone.experts=4]
    mot: [model.backbone.type=mot]
"""
PAIR = """base: base.yaml
axes:
  backbone:
    dense: []
    moe: [model.backbone.type=moe]
seeds: [0, 1]
"""


def written(folder: Path, text: str, base: str = BASE) -> Path:
    """The file of an ablation, its base beside it."""
    (folder / "base.yaml").write_text(base)
    path = folder / "grid.yaml"
    path.write_text(text)
    return path


def grid(folder: Path, text: str, *overrides: str) -> Grid:
    """The checked grid of an ablation."""
    return grid_of(read_ablation(written(folder, text)), overrides)


CODES = """base: base.yaml
set: ["model.tokenizers.pixels={type: fsq, codebook_size: 256, stride: 8, base_dim: 8, num_res_blocks: 1}"]
axes:
  head:
    masked: ["model.heads.paint={type: masked, steps: 2}"]
    ar:
      - "model.heads.paint={type: ar}"
      - "model.tokenizers.pixels.connector={type: linear}"
"""
