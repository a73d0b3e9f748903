"""`likelihood`: how well held-out samples are predicted, teacher-forced.

Shape suffixes: S target tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmkit.contracts.evaluation import Curve, Figure, Outcome, Record, Subject, Task, Tick
from mmkit.contracts.options import Count
from mmkit.contracts.segment import Sample
from mmkit.evaluate.student import CONFIDENCE, mean_interval, t_quantile


class Likelihood(Task):
    """The losses of held-out samples, as in training, but with every context whole (none dropped for guidance).

    Noise and masks are keyed by (draw, sample) alone, so that models with the same head are asked the same. Per modality:

    - every head: ``loss``, the mean over samples of each one's mean over target tokens, by the head's own weights. Heads over
      codes: cross-entropy in nats, without smoothing or z-loss; others: in the head's own unit.
    - heads that give likelihoods (ar): ``perplexity``, ``exp`` of the mean cross-entropy of all tokens; the end mark is one
      of them, marks that say what comes next are not.
    - heads that bound them (masked): ``loss bound``, nats per token, and ``perplexity bound``: not below what the likelihood
      of the model that writes in random order would give (`TokenLoss.bound_S`).

    Losses of different kinds of heads are on different scales: only a perplexity and a perplexity bound over the same codes
    may be held against each other. Perplexities per token depend on the tokenizer.

    Intervals: Student's t over samples; of perplexities, by the delta method for a ratio of sums over samples. They are those
    of other samples; what other draws would change is in them too.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `likelihood`.

        Options:
            draws: of noise or masks, for each sample that a head noises or masks.
            bins: points of a curve over noise levels or mask ratios.
            positions: most points of a curve over places in a span.
        """

        draws: Count = 4
        bins: Count = 10
        positions: Count = 32

    def __init__(self, config: Config) -> None:
        self.config = config

    def why_not(self, subject: Subject) -> str:
        """Tokenizers alone predict nothing."""
        if subject.model is None:
            return "tokenizers alone predict nothing"
        targets = any(s.role == "target" for sample in subject.samples for s in sample.segments)
        return "" if targets else "no sample has a target"

    def run(self, subject: Subject, tick: Tick) -> Outcome:
        """One record per sample under ``likelihood``, with its losses; figures, and curves by level or by place."""
        tokens = self._measure(subject, tick)
        figures: dict[str, Figure] = {}
        values: dict[str, dict[str, float]] = {sample.id: {} for sample in subject.samples}
        curves = []
        for stream, mine in tokens.items():
            of = subject.model.recipe.model.streams[stream]
            for name, (figure, each) in _figures(mine).items():
                figures[f"{of.modality} {name}"] = figure
                for sample, value in each.items():
                    values[sample][f"{of.modality} {name}"] = value
            codes = subject.model.heads[of.head].vocabulary is not None
            curves.append(self._curve(mine, of.modality, of.head, codes))
        records = tuple(Record("likelihood", sample, values=values[sample.id]) for sample in subject.samples)
        return Outcome(records, {"likelihood": figures}, tuple(curves))

    def _measure(self, subject: Subject, tick: Tick) -> dict[str, Tokens]:
        """The target tokens of all draws, by stream. One draw is all there is where nothing is noised or masked."""
        samples: list[Sample] = list({sample.id: sample for sample in subject.samples}.values())
        found: dict[str, list[Tokens]] = {}
        total, done = len(samples) * self.config.draws, 0
        for draw in range(self.config.draws):
            random: set[str] = set()
            for batch in subject.model.batches(
                samples, step=draw, seed=0, budget=subject.recipe.train.batch_tokens, drop=False
            ):
                for stream, tokens in _batch(subject.model, batch, draw).items():
                    found.setdefault(stream, []).append(tokens)
                    random |= set(tokens.sample) if tokens.level is not None else set()
                done += len(batch.samples)
                tick(done, total)
            samples = [sample for sample in samples if sample.id in random]
            if not samples:
                break
        tick(total, total)
        order = [name for name in subject.model.recipe.model.streams if name in found]
        return {name: Tokens.joined(found[name]) for name in order}

    def _curve(self, tokens: Tokens, modality: str, head: str, codes: bool) -> Curve:
        """The loss by noise level, mask ratio, or place."""
        if tokens.level is None:
            width = math.ceil((tokens.place.max() + 1) / self.config.positions)
            bins, middle = tokens.place // width, lambda i: (i + 0.5) * width - 0.5
            by, axis = "position", "tokens of the span before it"
        else:
            count = self.config.bins
            bins, middle = np.minimum((tokens.level * count).astype(int), count - 1), lambda i: (i + 0.5) / count
            by = axis = "mask ratio" if codes else "noise level"
        weight = np.bincount(bins, tokens.weight)
        loss = np.bincount(bins, tokens.weight * tokens.loss)
        points = tuple((float(middle(i)), float(loss[i] / weight[i])) for i in np.flatnonzero(weight))
        unit = "loss, nats per token" if tokens.nats is not None else "loss"
        return Curve(f"{modality} loss by {by} ({head})", axis, unit, points)


@dataclass(frozen=True)
class Tokens:
    """Target tokens of one stream, each array ``[S]``: whose they are, where in their span, and what `TokenLoss` says of them."""

    sample: np.ndarray
    draw: np.ndarray
    place: np.ndarray
    loss: np.ndarray
    weight: np.ndarray
    level: np.ndarray | None
    nats: np.ndarray | None
    bound: np.ndarray | None

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """All of them."""
        columns = [[getattr(part, f.name) for part in parts] for f in fields(cls)]
        return cls(*(None if any(c is None for c in column) else np.concatenate(column) for column in columns))


@torch.no_grad()
def _batch(model: Any, batch: Any, draw: int) -> dict[str, Tokens]:
    """The target tokens of one batch, by stream; marks that say what comes next belong to none."""
    found = {}
    learned = model.router.learned_tokens(batch)
    for head, loss in model(batch).heads.items():
        whose = learned[head]
        columns = [_array(x) for x in (loss.value_S, loss.weight_S, loss.level_S, loss.nats_S, loss.bound_S)]
        if columns[3] is not None:
            columns[0] = columns[3]
        names = np.array(batch.samples, dtype=object)[whose.doc]
        for stream in np.unique(whose.stream[whose.stream >= 0]):
            mine = whose.stream == stream
            picked = (None if column is None else column[mine] for column in columns)
            drawn = np.full(int(mine.sum()), draw)
            found[model.router.names[stream]] = Tokens(names[mine], drawn, whose.place[mine], *picked)
    return found


def _array(x_S: Tensor | None) -> np.ndarray | None:
    return None if x_S is None else x_S.double().cpu().numpy()


def _figures(tokens: Tokens) -> Mapping[str, tuple[Figure, dict[str, float]]]:
    """Figures by name, each with the values of the samples it is a mean of, where it is one."""
    ids, owner = np.unique(tokens.sample, return_inverse=True)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, values, len(ids))

    unit = "nats" if tokens.nats is not None else ""
    losses = sums(tokens.weight * tokens.loss) / sums(tokens.weight)
    found = {"loss": (_mean(losses, unit), _by_sample(ids, losses))}
    if tokens.nats is None or (tokens.level is not None and tokens.bound is None):
        return found
    # A sample counts once, however often it was drawn.
    draws = np.bincount(np.unique(np.stack([owner, tokens.draw]), axis=1)[0])
    counts = sums(np.ones(len(owner))) / draws
    if tokens.bound is None:
        return found | {"perplexity": (_perplexity(sums(tokens.nats) / draws, counts), {})}
    nats = sums(tokens.nats * tokens.bound) / draws
    found["loss bound"] = (_mean(nats / counts, unit), _by_sample(ids, nats / counts))
    return found | {"perplexity bound": (_perplexity(nats, counts), {})}


def _by_sample(ids: np.ndarray, values: np.ndarray) -> dict[str, float]:
    return dict(zip(ids, values.tolist(), strict=True))


def _mean(values: np.ndarray, unit: str) -> Figure:
    value, low, high = mean_interval(values.tolist()) if len(values) > 1 else (float(values[0]), None, None)
    return Figure(value, len(values), low, high, unit, "less")


def _perplexity(nats: np.ndarray, counts: np.ndarray) -> Figure:
    """``exp(sum(nats) / sum(counts))`` over samples, with the delta method's interval (Cochran 1977, section 6.3)."""
    n, ratio = len(nats), float(nats.sum() / counts.sum())
    if n == 1:
        return Figure(math.exp(ratio), n, better="less")
    error = math.sqrt(n / (n - 1) * float(((nats - ratio * counts) ** 2).sum())) / float(counts.sum())
    half = t_quantile((1 + CONFIDENCE) / 2, n - 1) * error
    return Figure(math.exp(ratio), n, math.exp(ratio - half), math.exp(ratio + half), better="less")
