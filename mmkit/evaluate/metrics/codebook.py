"""`codebook`: how much of its book a tokenizer uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmkit.contracts.evaluation import Figure, Metric, Record, Subject
from mmkit.contracts.options import Count
from mmkit.contracts.tokenizer import Tokenizer
from mmkit.evaluate.contents import closed_tokenizers, device_of, in_batches, is_open, placed, targets
from mmkit.nn.codebook import usage


class Codebook(Metric):
    """Which codes the held-out contents have: ``codebook_use``, the share that occurs, and ``codebook_perplexity``.

    The perplexity is the exponential of the entropy of their distribution: as many equally frequent codes would say as much. Both
    are of the codes seen: contents with fewer codes than the book cannot use it all.

    Targets are encoded anew. In a group ``.../NAME`` by that tokenizer, elsewhere by each tokenizer of codes; where there are
    several, figures are ``NAME.codebook_use`` and so on. A tokenizer of latents has no book and no figures.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `codebook`.

        Options:
            batch: contents that are encoded at once.
        """

        batch: Count = 64

    def __init__(self, config: Config) -> None:
        self.config = config

    def why_not(self, records: Sequence[Record]) -> str:
        """Texts only."""
        closed = any(not is_open(s.modality) for r in records for s in targets(r))
        return "" if closed else "only texts among the targets"

    def whole(self, records: Sequence[Record], subject: Subject) -> dict[str, Figure]:
        """The two figures of each tokenizer of codes."""
        tokenizers = closed_tokenizers(subject)
        name = records[0].group.rpartition("/")[2]
        chosen = {name: tokenizers[name]} if name in tokenizers else tokenizers
        books = {n: t for n, t in chosen.items() if t.port.space == "codes"}
        found: dict[str, Figure] = {}
        for title, tokenizer in books.items():
            contents = [s.content for r in records for s in targets(r) if s.modality == tokenizer.port.modality]
            if contents:
                start = f"{title}." if len(books) > 1 else ""
                figures = usage(self._counts(tokenizer, contents, device_of(subject)))
                found[f"{start}codebook_use"] = Figure(figures["codebook_use"], len(contents), unit="share")
                found[f"{start}codebook_perplexity"] = Figure(figures["perplexity"], len(contents), unit="codes")
        return found

    @torch.no_grad()
    def _counts(self, tokenizer: Tokenizer, contents: Sequence[Any], device: torch.device) -> Tensor:
        """How often each code occurs."""
        total = torch.zeros(tokenizer.port.codebook_size, dtype=torch.int64)
        for batch in in_batches(contents, self.config.batch):
            for codes in tokenizer.encode(placed(batch, device)):
                total += torch.bincount(codes.flatten().cpu(), minlength=len(total))
        return total
