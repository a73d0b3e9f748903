"""Tiny recipes that tests compose models from."""

from __future__ import annotations

from mmkit.compose import loads
from mmkit.compose.recipe import Recipe
from mmkit.model import UnifiedModel

BASE = """
model:
  tokenizers:
    text:   {{type: bytes}}
    pixels: {pixels}
  encoders: {encoders}
  backbone: {backbone}
  heads: {heads}
  streams:
    text:  {text}
{streams}
data: [{{type: shapes, size: 24}}]
train: {{steps: 4, batch_samples: 4, batch_tokens: 2048, warmup: 1, loss_weights: {{}}}}
"""
DENSE = "{type: dense, depth: 2, dim: 32, num_heads: 4, num_kv_heads: 2, positions: {type: mrope}, qk_norm: true}"
PIXEL = "{type: pixel, connector: {type: patchify, size: 8}}"
FSQ = "{type: fsq, codebook_size: 256, stride: 8, base_dim: 8, multipliers: [1, 1, 1, 1], num_res_blocks: 1}"

KINDS = {
    "transfusion": {
        "pixels": PIXEL,
        "heads": "{say: {type: ar}, paint: {type: flow, steps: 3, guidance: {scale: 2.0, drop: 0.5}}}",
        "streams": "    image: {modality: image, from: pixels, attend: block, head: paint}",
    },
    "hidden": {
        "pixels": PIXEL,
        "encoders": "{eye: {type: patch, patch: 8}}",
        "heads": "{say: {type: ar}, paint: {type: flow, steps: 3, time: token}}",
        "streams": "    seen: {modality: image, from: eye, attend: block, position: shared}\n"
        "    drawn: {modality: image, from: pixels, attend: block, head: paint, noised: hidden}\n"
        "  reads: {image: [drawn, seen]}",
    },
    "adaln": {
        "pixels": PIXEL,
        "backbone": "{type: dense, depth: 2, dim: 32, num_heads: 4, modulation: adaln}",
        "heads": "{say: {type: ar}, paint: {type: flow, steps: 3, time: adaln, sampler: heun}}",
        "streams": "    image: {modality: image, from: pixels, attend: block, head: paint}",
    },
    "chameleon": {
        "pixels": FSQ,
        "heads": "{say: {type: ar, guidance: {scale: 3.0}}}",
        "streams": "    image: {modality: image, from: pixels, head: say}",
    },
    "show-o": {
        "pixels": FSQ,
        "heads": "{say: {type: ar}, paint: {type: masked, steps: 3}}",
        "streams": "    image: {modality: image, from: pixels, attend: block, head: paint}",
    },
    "full": {
        "pixels": PIXEL,
        "heads": "{say: {type: ar}, paint: {type: flow, steps: 3, time: token, guidance: {scale: 2.0, drop: 0.5}}}",
        "streams": "    told: {modality: text, from: text, attend: full}\n"
        "    image: {modality: image, from: pixels, attend: full, head: paint}\n"
        "  reads: {text: [told]}",
    },
    "mmada": {
        "pixels": FSQ,
        "text": "{modality: text, from: text, attend: full, head: mind}",
        "heads": "{mind: {type: masked, steps: 3, length: 60, weighting: inverse, schedule: linear}}",
        "streams": "    image: {modality: image, from: pixels, attend: full, head: mind}",
    },
    "janus": {
        "pixels": FSQ.replace("{type", "{connector: {type: mlp}, type"),
        "encoders": "{eye: {type: patch, patch: 8, connector: {type: mlp, merge: 1}}}",
        "backbone": "{type: mot, depth: 2, dim: 32, num_heads: 4, towers: {understand: [text, seen], draw: [drawn]}}",
        "heads": "{say: {type: ar, tied: true}, paint: {type: ar, depth: 2}}",
        "streams": "    seen: {modality: image, from: eye}\n    drawn: {modality: image, from: pixels, head: paint}",
    },
    "windowed": {
        "pixels": PIXEL,
        "encoders": "{eye: {type: patch, patch: 8}}",
        "backbone": "{type: dense, depth: 3, dim: 32, num_heads: 4, window: {size: 5, full_every: 3}}",
        "heads": "{say: {type: ar}, paint: {type: flow, steps: 3, time: token}}",
        "streams": "    seen: {modality: image, from: eye, attend: block}\n"
        "    drawn: {modality: image, from: pixels, attend: block, head: paint, noised: hidden}\n"
        "  reads: {image: [drawn, seen]}",
    },
    "moe": {
        "pixels": PIXEL,
        "backbone": "{type: moe, depth: 2, dim: 32, num_heads: 4, experts: 4}",
        "heads": "{say: {type: ar}, paint: {type: flow, steps: 3}}",
        "streams": "    image: {modality: image, from: pixels, attend: block, head: paint}",
    },
}


def recipe(kind: str, *overrides: str) -> Recipe:
    """The tiny recipe of a kind."""
    options = {"encoders": "{}", "backbone": DENSE, "text": "{modality: text, from: text, head: say}", **KINDS[kind]}
    return loads(BASE.format(**options), overrides)


def model(kind: str, *overrides: str) -> UnifiedModel:
    """Its model, with 24 x 24 pictures, ready to generate."""
    built = UnifiedModel(recipe(kind, *overrides)).eval()
    built.sizes = {"image": (24, 24)}
    return built
