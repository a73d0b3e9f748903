"""`verdicts`: what the samples' own source says is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmkit.contracts.evaluation import Metric, Record, Subject, Value


class Verdicts(Metric):
    """Shares of what is right, as the source of the samples judges: ``right`` is the whole, the others its sub-skills."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """It has no options."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def each(self, records: Sequence[Record], subject: Subject) -> list[dict[str, Value]]:
        """The source's verdict on every record; none where only a judge of its own could tell."""
        return [dict(subject.source.judge(record.sample, list(record.contents))) for record in records]
