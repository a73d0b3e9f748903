"""`reconstruction`: held-out contents into a tokenizer's codes or latents, and out again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from mmkit.contracts.evaluation import Outcome, Record, Subject, Task, Tick
from mmkit.contracts.options import Count
from mmkit.contracts.segment import Sample
from mmkit.contracts.tokenizer import Tokenizer
from mmkit.evaluate.contents import closed_tokenizers, device_of, in_batches, placed


class Reconstruction(Task):
    """Every tokenizer but those of text encodes and decodes the held-out contents of its modality.

    A sample whose targets are all of that modality gives one record of itself, which its source judges: the share that is
    right is the tokenizer's ceiling, what a head would reach that found all codes or latents perfectly. Every other content
    gives a record of a sample that has nothing else in it, as its target; no source judges that. Groups are
    ``reconstruction``, or ``reconstruction/NAME`` where there are several such tokenizers.

    A tokenizer that loses nothing (`pixel`) is put through it as well: its ceiling is then that of the judge.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `reconstruction`.

        Options:
            most: contents of each tokenizer, the first ones; left out, all that are held out.
            batch: contents that are encoded at once.
        """

        most: Count | None = None
        batch: Count = 64

    metrics = ("verdicts", "psnr", "ssim", "codebook")

    def __init__(self, config: Config) -> None:
        self.config = config

    def why_not(self, subject: Subject) -> str:
        """Text tokenizers alone, or no contents of the others' modalities."""
        tokenizers = closed_tokenizers(subject)
        if not tokenizers:
            return "no tokenizer but of text"
        if any(self._asked(subject, tokenizer) for tokenizer in tokenizers.values()):
            return ""
        return f"no held-out {' or '.join(sorted({t.port.modality for t in tokenizers.values()}))}"

    def run(self, subject: Subject, tick: Tick) -> Outcome:
        """One record per asked sample, in their order, tokenizer after tokenizer."""
        tokenizers = closed_tokenizers(subject)
        device = device_of(subject)
        asked = {name: self._asked(subject, tokenizer) for name, tokenizer in tokenizers.items()}
        total = sum(len(_wanted(sample)) for samples in asked.values() for sample in samples)
        records: list[Record] = []
        done = 0
        for name, samples in asked.items():
            group = "reconstruction" if len(tokenizers) == 1 else f"reconstruction/{name}"
            contents = [content for sample in samples for content in _wanted(sample)]
            outputs: list[Any] = []
            for batch in in_batches(contents, self.config.batch):
                outputs += _in_and_out(tokenizers[name], batch, device)
                tick(done + len(outputs), total)
            done += len(outputs)
            rest = iter(outputs)
            records += [Record(group, s, tuple(next(rest) for _ in _wanted(s))) for s in samples]
        return Outcome(tuple(records))

    def _asked(self, subject: Subject, tokenizer: Tokenizer) -> list[Sample]:
        """Samples whose targets are what this tokenizer reconstructs."""
        found: list[Sample] = []
        count = 0
        for sample in subject.samples:
            for one in _posed(sample, tokenizer.port.modality):
                count += len(_wanted(one))
                if self.config.most is not None and count > self.config.most:
                    return found
                found.append(one)
        return found


def _posed(sample: Sample, modality: str) -> Iterator[Sample]:
    """The sample as it is where its targets are all of a modality, and each of its other contents of that modality alone.

    Where it gives several, all but the first are told apart by the place of their content: ``ID/2``.
    """
    written = {s.modality for s in sample.segments if s.role == "target"}
    whole = written == {modality}
    found = [sample] if whole else []
    for place, segment in enumerate(sample.segments):
        if segment.modality != modality or segment.content is None or (whole and segment.role == "target"):
            continue
        alone = (replace(segment, role="target"),)
        name = f"{sample.id}/{place}" if found else sample.id
        found.append(Sample(name, alone, "reconstruction", sample.facts))
    yield from found


def _wanted(sample: Sample) -> list[Any]:
    return [segment.content for segment in sample.segments if segment.role == "target"]


@torch.no_grad()
def _in_and_out(tokenizer: Tokenizer, contents: list[Any], device: torch.device) -> list[Any]:
    decoded = tokenizer.decode(tokenizer.encode(placed(contents, device)))
    return placed(decoded, torch.device("cpu"))
