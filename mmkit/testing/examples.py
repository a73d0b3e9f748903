"""Tiny options to try components with. A component says its own in a class attribute `examples`; mmkit's are here.

Each is what a recipe would write beside ``type:``. Several are several dresses of one part, all of which are tried. Where they
need files, `examples` is a static function of an empty folder that writes them and gives the options. A component without
examples is tried with its defaults. A modality has contents instead: a static function ``examples(seed)``.
"""

from __future__ import annotations

import atexit
import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmkit.registry import OWN, Entry

Options = dict[str, Any]
Examples = Sequence[Options] | Callable[[Path], Sequence[Options]]


def _pictures(folder: Path) -> list[str]:
    """Four small pictures."""
    from PIL import Image

    names = [f"{i}.png" for i in range(4)]
    for i, name in enumerate(names):
        Image.new("RGB", (24, 20), (60 * i, 200 - 50 * i, 90)).save(folder / name)
    return names


def _captions(folder: Path) -> list[Options]:
    lines = [json.dumps({"image": name, "caption": f"picture {name}"}) for name in _pictures(folder)]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return [{"images": str(folder), "file": str(folder / "captions.jsonl"), "size": 16, "held_out": 0.5}]


def _conversations(folder: Path) -> list[Options]:
    said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A picture."}]
    records = [{"id": name, "image": name, "conversations": said} for name in _pictures(folder)]
    (folder / "talk.json").write_text(json.dumps(records))
    return [{"images": str(folder), "file": str(folder / "talk.json"), "size": 16}]


def _lpips(folder: Path) -> list[Options]:
    """AlexNet's features without its weights."""
    import torch
    from safetensors.torch import save_file

    layers = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    kernels = {f"features.{i}.weight": torch.full((n, c, k, k), 1 / (c * k * k)) for i, (n, c, k) in layers.items()}
    biases = {f"features.{i}.bias": torch.zeros(n) for i, (n, _, _) in layers.items()}
    save_file(kernels | biases, folder / "alex.safetensors")
    return [{"weights": str(folder), "net": "alex"}]


def _text(folder: Path) -> list[Options]:
    (folder / "some.txt").write_text("".join(f"line {i}\n" for i in range(8)))
    return [{"file": str(folder / "some.txt"), "held_out": 0.3}]


_NET = {"stride": 4, "base_dim": 8, "num_res_blocks": 1, "multipliers": [1, 1, 1]}
_BODY = {"depth": 2, "dim": 32, "num_heads": 4, "num_kv_heads": 2}

EXAMPLES: dict[tuple[str, str], Examples] = {
    ("encoder", "patch"): (
        {"patch": 8},
        {"patch": 8, "dim": 16, "norm": "layer", "position": "learned", "max_grid": 8},
    ),
    ("encoder", "timm"): ({"name": "test_vit", "image_size": 32},),
    ("connector", "mlp"): ({"merge": 2, "norm": "rms"}, {"position": "learned", "max_grid": 8}),
    ("connector", "patchify"): ({"size": 2, "position": "learned", "max_grid": 8}, {"position": "sincos"}),
    ("tokenizer", "fsq"): ({"levels": [5, 4, 3], **_NET},),
    ("tokenizer", "kl_vae"): ({"channels": 4, **_NET},),
    ("tokenizer", "sentencepiece"): ({"vocab_size": 300},),
    ("tokenizer", "vq"): ({"codebook_size": 32, **_NET}, {"codebook_size": 32, "update": "gradient", **_NET}),
    ("backbone", "dense"): (_BODY, {**_BODY, "modulation": "adaln", "cross_attention": {"every": 2}}),
    ("backbone", "moe"): (
        {**_BODY, "experts": 4, "shared_experts": 1},
        {**_BODY, "experts": 4, "router": {"type": "expert_choice"}},
    ),
    ("backbone", "mot"): ({**_BODY, "qk_norm": True},),
    ("head", "ar"): ({"temperature": 0.0}, {"depth": 2, "dim": 16, "label_smoothing": 0.1}),
    ("head", "masked"): ({"steps": 3, "length": 12}, {"schedule": "linear", "weighting": "inverse", "length": 12}),
    ("head", "flow"): ({"steps": 4}, {"steps": 3, "time": "token", "predict": "clean", "sampler": "heun"}),
    ("head", "diffusion"): ({"steps": 4}, {"steps": 4, "time": "adaln", "predict": "velocity", "depth": 2}),
    ("launcher", "slurm"): ({"minutes": 5},),
    ("source", "captions"): _captions,
    ("source", "conversations"): _conversations,
    ("source", "shapes"): ({"size": 24, "samples": 8},),
    ("source", "text"): _text,
    ("metric", "frechet"): ({"features": {"type": "patch", "patch": 8}},),
    ("metric", "lpips"): _lpips,
    ("metric", "perceptual"): ({"features": {"type": "patch", "patch": 8}},),
    ("metric", "precision_recall"): ({"features": {"type": "patch", "patch": 8}},),
}


def examples_of(entry: Entry, extra: dict[tuple[str, str], Examples] | None = None) -> tuple[Options, ...]:
    """The options a component is tried with: those given here, its own, mmkit's, or none beside its defaults."""
    given = (extra or {}).get((entry.kind, entry.name))
    if given is None:
        given = getattr(entry.load(), "examples", None) if entry.kind != "modality" else None
    if given is None and entry.owner == OWN:
        given = EXAMPLES.get((entry.kind, entry.name))
    return tuple(_written(given) if callable(given) else given or ()) or ({},)


@functools.cache
def _written(make: Callable[[Path], Sequence[Options]]) -> Sequence[Options]:
    """What a function gives for a folder that is kept as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="mmkit-examples-")
    atexit.register(folder.cleanup)
    return make(Path(folder.name))
