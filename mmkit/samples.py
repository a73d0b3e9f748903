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
from mmkit.model import UnifiedModel

COUNT = 12


def blank(sample: Sample, sizes: dict[str, tuple[int, ...]]) -> tuple[Segment, ...]:
    """A sample with its targets emptied, to be generated."""
    return tuple(
        replace(s, content=None, size=sizes.get(s.modality), max_tokens=None) if s.role == "target" else s
        for s in sample.segments
    )


def draw_samples(model: UnifiedModel, mixture: Mixture, folder: Path, count: int = COUNT) -> list[dict[str, Any]]:
    """Generates the targets of a few fixed samples into a folder: one file per content, and `samples.jsonl`."""
    samples = mixture.draw(0, count)
    was_training = model.training
    model.eval()
    replies = model.generate_batch(
        [blank(s, model.sizes) for s in samples], Sampling(temperature=0.0), seeds=range(count)
    )
    model.train(was_training)
    folder.mkdir(parents=True, exist_ok=True)
    pairs = enumerate(zip(samples, replies, strict=True))
    records = [_record(model, sample, reply, folder, number) for number, (sample, reply) in pairs]
    (folder / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return records


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
