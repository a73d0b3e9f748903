"""A built-in, packaged anew by a stranger under another name, trains to the same bits."""

from __future__ import annotations

import json
from pathlib import Path

from distributions import Site

import mmkit
from mmkit.compose import loads
from mmkit.train import train

RECIPE = """
model:
  tokenizers: {text: {type: bytes}, pixels: {type: pixel, connector: {type: patchify, size: 8}}}
  backbone: {type: dense, depth: 1, dim: 32, num_heads: 2}
  heads: {say: {type: ar}, paint: {type: %s, steps: 2}}
  streams:
    text: {modality: text, from: text, head: say}
    image: {modality: image, from: pixels, attend: block, head: paint}
data: [{type: shapes, size: 24, tasks: [generate]}]
train: {steps: 2, batch_samples: 2, warmup: 1, log_every: 1, sample_every: 0}
"""
HOOKS = '''
"""Heads of a stranger."""

from mmkit.hooks import Register, hookimpl

CATALOGUE = {"current": "again_kit.heads.flow:Flow"}


@hookimpl
def mmkit_components(register: Register) -> None:
    """Registers this folder's parts."""
    for name, target in CATALOGUE.items():
        register("head", name, target)
'''


MEASURED = ("seconds", "elapsed", "peak_memory")


def trained(head: str, run: Path) -> tuple[dict[str, str], list[dict[str, float]]]:
    """The hash of every file of tensors, and the log without what the machine decides."""
    last = train(loads(RECIPE % head), run, quiet=True)
    files = json.loads((last / "manifest.json").read_text())["files"]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    log = [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]
    return {name: file["sha256"] for name, file in files.items() if name.endswith(".safetensors")}, log


def test_a_built_in_from_outside_trains_to_the_same_bits(site: Site, tmp_path: Path) -> None:
    source = (Path(mmkit.__file__).parent / "heads" / "flow.py").read_text()
    files = {"again_kit/heads/__init__.py": HOOKS, "again_kit/heads/flow.py": source}
    site.add("again-kit", {"head.current": "again_kit.heads.flow:Flow", "plugin": "again_kit.heads"}, files)
    known = site.read()
    ours, theirs = trained("flow", tmp_path / "ours"), trained("current", tmp_path / "theirs")
    assert ours[0] and len(ours[1]) >= 2
    assert ours == theirs
    assert known.find("head", "current").load().__module__ == "again_kit.heads.flow"
