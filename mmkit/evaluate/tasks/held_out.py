"""`held_out`: the model generates what held-out samples ask for."""

from __future__ import annotations

from dataclasses import dataclass

from mmkit.contracts.evaluation import Outcome, Record, Subject, Task, Tick
from mmkit.contracts.options import Count, NonNegative, Sampling
from mmkit.samples import blank


class HeldOut(Task):
    """Generates the targets of held-out samples, each from the rest of its sample.

    Drawings take each sample's own seed, its place among those that are judged, whatever the batch.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `held_out`.

        Options:
            temperature: of texts and codes; 0 is greedy.
            guidance_scale: instead of what the heads' own options say.
            steps: iterations of masked and diffusion heads, instead of what their own options say.
            batch: samples that are generated at once.
        """

        temperature: NonNegative = 0.0
        guidance_scale: NonNegative | None = None
        steps: Count | None = None
        batch: Count = 64

    metrics = ("verdicts",)

    def __init__(self, config: Config) -> None:
        self.config = config

    def why_not(self, subject: Subject) -> str:
        """Tokenizers alone generate nothing."""
        return "" if subject.model is not None else "tokenizers alone generate nothing"

    def run(self, subject: Subject, tick: Tick) -> Outcome:
        """One record per sample, in their order, under the sample's own task."""
        options = self.config
        sampling = Sampling(temperature=options.temperature, guidance_scale=options.guidance_scale, steps=options.steps)
        records: list[Record] = []
        for start in range(0, len(subject.samples), options.batch):
            chosen = subject.samples[start : start + options.batch]
            prompts = [blank(sample, subject.model) for sample in chosen]
            seeds = range(start, start + len(chosen))
            replies = subject.model.generate_batch(prompts, sampling, seeds=seeds)
            records += [Record(s.task, s, tuple(contents)) for s, contents in zip(chosen, replies, strict=True)]
            tick(len(records), len(subject.samples))
        return Outcome(tuple(records))
