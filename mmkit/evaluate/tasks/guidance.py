"""`guidance`: what the strength of guidance makes of drawings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmkit.contracts.evaluation import Curve, Figure, Outcome, Record, Subject, Task, Tick
from mmkit.contracts.options import Count, NonNegative, Sampling
from mmkit.contracts.segment import Sample
from mmkit.errors import ContractError
from mmkit.evaluate.rate import Rate
from mmkit.samples import blank


class GuidanceSweep(Task):
    """Draws the same held-out samples at several scales of classifier-free guidance (Ho & Salimans 2022), the source judging.

    Only samples with a target that a guided head writes. Each keeps its seed, its place among all that are judged, so that a
    drawing at one scale differs from that at another by the scale alone, and is the one `held_out` makes at that scale.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `guidance`.

        Options:
            scales: to draw at; 1 is no guidance.
            count: samples of each scale, the first ones.
            temperature: of codes; 0 is greedy.
            steps: iterations of masked and diffusion heads, instead of what their own options say.
            batch: samples that are generated at once.
        """

        scales: tuple[NonNegative, ...] = (1.0, 1.5, 2.0, 3.0, 5.0)
        count: Count = 64
        temperature: NonNegative = 0.0
        steps: Count | None = None
        batch: Count = 64

        def __post_init__(self) -> None:
            if not self.scales or len(set(self.scales)) < len(self.scales):
                raise ContractError("scales", "it is empty or names one scale twice", "list each once")

    def __init__(self, config: Config) -> None:
        self.config = config

    def why_not(self, subject: Subject) -> str:
        """Needs a guided head, and samples it draws."""
        if subject.model is None:
            return "tokenizers alone generate nothing"
        router = subject.model.router
        if not any(router.guided(stream) for stream in router.names):
            return "no head with guidance"
        return "" if self._chosen(subject) else "no sample asks for what a head with guidance writes"

    def run(self, subject: Subject, tick: Tick) -> Outcome:
        """Records under ``guidance SCALE``, the rate of what is right at each scale, and all verdicts as curves."""
        chosen = self._chosen(subject)
        total = len(chosen) * len(self.config.scales)
        records: list[Record] = []
        rates: dict[str, dict[float, Rate]] = {}
        for scale in sorted(self.config.scales):
            drawn: list[Record] = []
            for start in range(0, len(chosen), self.config.batch):
                drawn += self._draw(subject, chosen[start : start + self.config.batch], scale)
                tick(len(records) + len(drawn), total)
            for name, rate in _rates(subject, drawn).items():
                rates.setdefault(name, {})[scale] = rate
            records += drawn
        right = rates.get("right", {})
        figures = {
            f"right at {scale:g}": Figure(r.share, r.count, r.low, r.high, "share") for scale, r in right.items()
        }
        curves = [
            Curve(f"{name} by guidance", "guidance scale", "share", tuple((scale, r.share) for scale, r in by.items()))
            for name, by in rates.items()
        ]
        return Outcome(tuple(records), {"guidance": figures} if figures else {}, tuple(curves))

    def _chosen(self, subject: Subject) -> list[tuple[int, Sample]]:
        """The first samples that a guided head draws, with their places."""
        router = subject.model.router
        drawn = (
            (place, sample)
            for place, sample in enumerate(subject.samples)
            if any(router.guided(n) for s in sample.segments if s.role == "target" for n in router.streams(s))
        )
        return [one for one, _ in zip(drawn, range(self.config.count), strict=False)]

    def _draw(self, subject: Subject, chosen: Sequence[tuple[int, Sample]], scale: float) -> list[Record]:
        sampling = Sampling(temperature=self.config.temperature, guidance_scale=scale, steps=self.config.steps)
        prompts = [blank(sample, subject.model) for _, sample in chosen]
        replies: list[list[Any]] = subject.model.generate_batch(prompts, sampling, seeds=[place for place, _ in chosen])
        pairs = zip(chosen, replies, strict=True)
        return [Record(f"guidance {scale:g}", sample, tuple(contents)) for (_, sample), contents in pairs]


def _rates(subject: Subject, records: Sequence[Record]) -> dict[str, Rate]:
    """The rates of the source's verdicts, the whole first."""
    verdicts = [subject.source.judge(record.sample, list(record.contents)) for record in records]
    names = sorted(dict.fromkeys(name for verdict in verdicts for name in verdict), key=lambda name: name != "right")
    told = {name: [verdict[name] for verdict in verdicts if name in verdict] for name in names}
    return {name: Rate(sum(own), len(own)) for name, own in told.items()}
