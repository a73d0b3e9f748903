"""`agreement`: how well generated images agree with their prompts, by another model that captions.

Shape suffixes: S tokens of the scorer's text head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from mmkit.checkpoint import open_run
from mmkit.contracts.evaluation import Metric, Record, Subject, Value
from mmkit.contracts.head import Head
from mmkit.contracts.options import Count
from mmkit.contracts.segment import Sample, Segment
from mmkit.errors import ContractError
from mmkit.evaluate.contents import averaged, device_of, in_batches
from mmkit.evaluate.prompts import UNPROMPTED, prompted
from mmkit.model import UnifiedModel, load

PLACE = "agreement.scorer"
BUDGET = 8192
"""Tokens of one forward pass."""


class Agreement(Metric):
    """The mean log-likelihood per token, in nats, of the prompt given the generated image, under a frozen model that captions.

    After VQAScore (Lin et al. 2024, arXiv 2404.01291), which asks a model whether the image shows the text; here the text itself is
    scored, the mark that ends it included. A prompt is the texts before its image. The scorer should have learned to say such
    texts of such images: of words it was never taught it says little, whatever the image.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `agreement`.

        Options:
            scorer: the run of a model that reads images and writes text by an `ar` head (runs/llava-tiny).
            batch: images that are laid out at once.
        """

        scorer: str
        batch: Count = 64

    unit = "nats"

    def __init__(self, config: Config) -> None:
        self.config = config

    def load(self) -> None:
        """The scorer."""
        _ = self.scorer

    def why_not(self, records: Sequence[Record]) -> str:
        """No image after a text."""
        return "" if prompted(records) else UNPROMPTED

    def each(self, records: Sequence[Record], subject: Subject) -> list[dict[str, Value]]:
        """``agreement`` of each record; where it has several prompted images, their mean."""
        scorer = self.scorer.to(device_of(subject))
        values: list[tuple[int, float]] = []
        for batch in in_batches(prompted(records), self.config.batch):
            found = log_likelihoods(scorer, [(image, text) for _, text, image in batch])
            values += zip((place for place, _, _ in batch), found, strict=True)
        return averaged("agreement", len(records), values)

    @cached_property
    def scorer(self) -> UnifiedModel:
        """The run's model, frozen. Raises `CheckpointError` where there is none, `ContractError` where it does not caption."""
        path = Path(self.config.scorer)
        model = open_run(path).compose().model
        if model.backbone is None:
            raise ContractError(PLACE, f"{path} is of tokenizers alone", "name the run of a model that captions")
        with torch.random.fork_rng(devices=[]):
            scorer = load(path)
        _check(scorer, path)
        return scorer.requires_grad_(False)


def _check(scorer: UnifiedModel, path: Path) -> None:
    """Raises `ContractError` where a model cannot tell how likely a text is of an image."""
    if not scorer.recipe.model.readers("image"):
        raise ContractError(PLACE, f"{path} has no stream that reads images", "name the run of a model that captions")
    if scorer.recipe.model.writer("text") is None:
        raise ContractError(PLACE, f"{path} has no head that writes text", "name the run of a model that captions")
    if _head(scorer).shift != -1:
        raise ContractError(
            PLACE, f"the text head of {path} does not predict one token after the other, and gives no likelihood",
            "name a run whose text head is `ar`",
        )  # fmt: skip


def _head(scorer: UnifiedModel) -> Head:
    return scorer.heads[_name(scorer)]


def _name(scorer: UnifiedModel) -> str:
    return scorer.recipe.model.streams[scorer.recipe.model.writer("text")].head


@torch.no_grad()
def log_likelihoods(scorer: UnifiedModel, pairs: Sequence[tuple[Tensor, str]]) -> list[float]:
    """Mean log-likelihood per token of each text after its image ``[3, H, W]``, the end mark included."""
    samples = [Sample(str(i), (Segment("image", a), Segment("text", b, "target"))) for i, (a, b) in enumerate(pairs)]
    found: dict[int, float] = {}
    for batch in scorer.batches(samples, step=0, budget=BUDGET, seed=0, drop=False):
        spans = [span for span, _ in batch.targets[_name(scorer)]]
        lengths = [scorer.router.learned(span) for span in spans]
        # Behind the spans' own tokens stand the marks the head also chooses, which are no words of the text.
        nats_S = scorer(batch).heads[_name(scorer)].nats_S[: sum(lengths)]
        for span, own_S in zip(spans, nats_S.split(lengths), strict=True):
            found[int(batch.samples[span.doc])] = -float(own_S.double().mean())
    return [found[i] for i in range(len(pairs))]
