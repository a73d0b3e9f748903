"""What a model says and draws while it trains: pictures and texts for a few fixed held-out samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmkit.contracts.options import Sampling
from mmkit.contracts.segment import Sample, Segment
from mmkit.data.mixture import Mixture
from mmkit.errors import DataError
from mmkit.model import UnifiedModel

COUNT = 12
SLACK = 8
"""Tokens a generated text may be longer than the one it is compared with: what runs on past that is wrong anyway."""


def blank(sample: Sample, model: UnifiedModel) -> tuple[Segment, ...]:
    """A sample with its targets emptied, to be generated at the size they had."""
    return tuple(_emptied(s, model) if s.role == "target" else s for s in sample.segments)


def _emptied(segment: Segment, model: UnifiedModel) -> Segment:
    (stream,) = model.router.streams(segment)
    if not model.router.tokenized(stream):
        return replace(segment, content=None, size=model.router.modalities[segment.modality].size(segment.content))
    tokenizer = model.tokenizers[model.recipe.model.streams[stream].source]
    return replace(segment, content=None, max_tokens=len(tokenizer.encode([segment.content])[0]) + SLACK)


def draw_samples(model: UnifiedModel, mixture: Mixture, folder: Path, count: int = COUNT) -> list[dict[str, Any]]:
    """Generates the targets of a few fixed samples into a folder: one file per content, and `samples.jsonl`."""
    samples = _held_out(mixture).draw(0, count)
    was_training = model.training
    model.eval()
    replies = model.generate_batch([blank(s, model) for s in samples], Sampling(temperature=0.0), seeds=range(count))
    model.train(was_training)
    folder.mkdir(parents=True, exist_ok=True)
    pairs = enumerate(zip(samples, replies, strict=True))
    records = [_record(model, sample, reply, folder, number) for number, (sample, reply) in pairs]
    (folder / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return records


def _held_out(mixture: Mixture) -> Mixture:
    """What training does not see, where any of the sources keeps something apart."""
    try:
        return mixture.held_out()
    except DataError:
        return mixture


def _record(model: UnifiedModel, sample: Sample, reply: Sequence[Any], folder: Path, number: int) -> dict[str, Any]:
    filled = iter(reply)
    segments = []
    for place, segment in enumerate(sample.segments):
        content = next(filled) if segment.role == "target" else segment.content
        entry = {"modality": segment.modality, "role": segment.role}
        if isinstance(content, str):
            entry["text"] = content
        else:
            modality = model.router.modalities[segment.modality]
            path = folder / f"{number:02d}-{place}{modality.suffix}"
            modality.save(content, path)
            entry["file"] = path.name
        segments.append(entry)
    return {"id": sample.id, "task": sample.task, "segments": segments}
