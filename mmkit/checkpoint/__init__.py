"""Crash-safe checkpoints that can be taken apart by part. The public names, loaded on first use.

A run is a folder::

    runs/a/
        recipe.yaml                     the resolved recipe
        log.jsonl  samples/             what the trainer writes as it goes
        lock                            held by the process that trains (`lock`)
        checkpoints/step-00000600/
            model.safetensors           names start with the part's path: ``encoders.eye.``, ``heads.paint.``
            ema.safetensors             averaged weights, where the recipe keeps them
            optimizer.safetensors       ``state.<parameter>.exp_avg``
            trainer.json  recipe.yaml
            manifest.json               size and sha256 of each file; written last

A checkpoint is written aside, synced to disk and renamed, so that it is there whole or not at all. Nothing is pickled,
and nothing that is read is ever unpickled.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmkit.checkpoint.directory import latest, lock
    from mmkit.checkpoint.disk import write_text
    from mmkit.checkpoint.manifest import verify
    from mmkit.checkpoint.needs import require_newest, used
    from mmkit.checkpoint.reference import Reference, parse
    from mmkit.checkpoint.resume import capture_random, flatten_optimizers, restore_optimizers, restore_random
    from mmkit.checkpoint.state import Checkpoint, open_run, read, write
    from mmkit.checkpoint.weights import load_part

_WHERE = {
    "Checkpoint": "mmkit.checkpoint.state",
    "Reference": "mmkit.checkpoint.reference",
    "capture_random": "mmkit.checkpoint.resume",
    "flatten_optimizers": "mmkit.checkpoint.resume",
    "latest": "mmkit.checkpoint.directory",
    "load_part": "mmkit.checkpoint.weights",
    "lock": "mmkit.checkpoint.directory",
    "open_run": "mmkit.checkpoint.state",
    "parse": "mmkit.checkpoint.reference",
    "read": "mmkit.checkpoint.state",
    "require_newest": "mmkit.checkpoint.needs",
    "restore_optimizers": "mmkit.checkpoint.resume",
    "restore_random": "mmkit.checkpoint.resume",
    "used": "mmkit.checkpoint.needs",
    "verify": "mmkit.checkpoint.manifest",
    "write": "mmkit.checkpoint.state",
    "write_text": "mmkit.checkpoint.disk",
}
__all__ = [
    "Checkpoint", "Reference", "capture_random", "flatten_optimizers", "latest", "load_part", "lock", "open_run", "parse",
    "read", "require_newest", "restore_optimizers", "restore_random", "used", "verify", "write", "write_text",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'mmkit.checkpoint' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*__all__]
