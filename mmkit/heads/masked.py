"""Masked prediction of codes, and parallel decoding by confidence (MaskGIT, Chang et al. 2022).

Shape suffixes: S tokens of one call, D backbone width, V vocabulary, W choices, B tokens of one block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from mmkit.contracts.head import Head
from mmkit.contracts.options import Count, Fraction, Guidance, NonNegative, Size
from mmkit.contracts.port import Needs, TargetPort
from mmkit.contracts.values import Feed, Prepared, Request, Targets, TokenLoss
from mmkit.nn.codes import CodeOutput, Wanted, joint_vocabulary
from mmkit.nn.sampling import Warp, draw, gumbel

Schedule = Literal["cosine", "linear", "square", "cubic", "root"]

SCHEDULES = {
    "cosine": lambda r: math.cos(r * math.pi / 2),
    "linear": lambda r: 1 - r,
    "square": lambda r: 1 - r**2,
    "cubic": lambda r: 1 - r**3,
    "root": lambda r: 1 - math.sqrt(r),
}
"""The share of tokens that is masked, from 1 at ``r = 0`` to 0 at ``r = 1`` (MaskGIT, section 3.3)."""

INVERSES = {
    "cosine": lambda share: math.acos(share) * 2 / math.pi,
    "linear": lambda share: 1 - share,
    "square": lambda share: math.sqrt(1 - share),
    "cubic": lambda share: math.cbrt(1 - share),
    "root": lambda share: (1 - share) ** 2,
}
"""Where a schedule reaches a share."""


def chance(schedule: Schedule, masked: int, count: int) -> float:
    """The probability that training masks so many of a span's tokens."""
    inverse = INVERSES[schedule]
    return inverse((masked - 1) / count) - inverse(masked / count)


@dataclass(frozen=True)
class Iteration:
    """One iteration: the block ``start .. stop`` it works on, and how far through that block's iterations it is, in (0, 1]."""

    start: int
    stop: int
    ratio: float


def plan(count: int, blocks: int, steps: int) -> tuple[Iteration, ...]:
    """`steps` iterations shared out over the blocks of a span, at least one for each."""
    blocks = max(1, min(blocks, count))
    iterations = []
    for block in range(blocks):
        share = max(1, steps * (block + 1) // blocks - steps * block // blocks)
        edges = (count * block // blocks, count * (block + 1) // blocks)
        iterations += [Iteration(*edges, (i + 1) / share) for i in range(share)]
    return tuple(iterations)


def still_masked(schedule: Schedule, ratio: float, size: int, unknown: int) -> int:
    """How many of a block's `size` tokens stay masked after an iteration that began with `unknown` of them masked.

    At least one becomes known, and at least one stays masked until the block's last iteration.
    """
    if ratio >= 1:
        return 0
    # Floating point must not turn an exact count into the one below it.
    planned = math.floor(size * SCHEDULES[schedule](ratio) + 1e-6)
    return max(1, min(unknown - 1, planned))


@dataclass(frozen=True, eq=False)
class MaskedState:
    """One span being filled in: ids ``[S]`` (int64, on the CPU), which of them are known, and the iterations ahead."""

    request: Request
    ids_S: Tensor
    known_S: Tensor
    plan: tuple[Iteration, ...]
    index: int = 0

    @property
    def done(self) -> bool:
        """True after the last iteration."""
        return self.index >= len(self.plan)

    @property
    def progress(self) -> float:
        """The share of the iterations that are behind."""
        return self.index / max(1, len(self.plan))


class Masked(Head[MaskedState]):
    """Codes are predicted where they are masked; generation starts from masks only and keeps what it is surest of.

    Training masks ``ceil(schedule(r) * n)`` of a span's n tokens, r uniform and the places uniform without replacement
    (MaskGIT). With the linear schedule and ``weighting: inverse`` that is the likelihood bound of LLaDA (Nie et al. 2025),
    whose expectation over the number of masked tokens it draws directly. Under any schedule and weighting, `TokenLoss.bound_S`
    gives that bound: ``n / l`` times the cross-entropy of the l masked tokens, every l counting alike. It holds for the
    model that writes one token at a time in random order.

    A span of an open stream has `length` tokens, of which those after the text are end marks, learned like all others; the
    generated text stops at the first (LLaDA).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Options:
            schedule: share of masked tokens over r in [0, 1], in training and in sampling: ``cosine``, ``linear``,
                ``square`` (1 - r^2), ``cubic`` (1 - r^3), ``root`` (1 - sqrt r).
            weighting: of the loss at masked tokens: ``none``, or ``inverse``: one over the share that is masked (LLaDA, MMaDA).
            label_smoothing: share of the target spread evenly over the vocabulary.
            steps: iterations for a span.
            blocks: parts a span is decoded in, one after the other; each takes its share of the steps, at least one.
            temperature: of the draw of codes; 0 takes the likeliest.
            choice_temperature: of the Gumbel noise on confidences, falling linearly to 0 over a block's iterations; 0 keeps
                the surest tokens.
            length: tokens of a span of running text; a longer text is refused.
            top_k: draw among the k likeliest codes only; 0 for all.
            top_p: draw among the fewest codes whose probabilities sum to this.
            guidance: classifier-free guidance on logits.
        """

        schedule: Schedule = "cosine"
        weighting: Literal["none", "inverse"] = "none"
        label_smoothing: Fraction = 0.0
        steps: Count = 12
        blocks: Count = 1
        temperature: NonNegative = 1.0
        choice_temperature: NonNegative = 4.5
        length: Count = 64
        top_k: Size = 0
        top_p: Fraction = 1.0
        guidance: Guidance | None = None

    needs = Needs(spaces=frozenset({"codes"}), attends=("block", "full"))

    def __init__(self, config: Config, targets: Sequence[TargetPort], marks: int, dim: int) -> None:
        """Raises `ContractError` where a stream has no codes, or several per position."""
        super().__init__(config, targets, marks, dim)
        self.config = config
        self.guidance = config.guidance
        self.length = config.length
        self.vocabulary = joint_vocabulary(targets, marks)
        self.output = CodeOutput(self.vocabulary, dim)
        self.mask_D = nn.Parameter(nn.init.normal_(torch.empty(dim), std=0.02))

    def prepare(self, targets: Targets) -> Prepared:
        """Masks some tokens of every span, at least one; only they are learned. Level: the share that is masked."""
        device = targets.tokens.device
        masks = [self._mask(n, g) for n, g in zip(targets.lengths, targets.generators, strict=True)]
        blank_S = torch.cat([torch.zeros(0, dtype=torch.bool), *masks]).to(device)
        shares = [mask.float().mean().expand(len(mask)) for mask in masks]
        level_S = torch.cat([torch.zeros(0), *shares]).to(device)
        fill = [
            torch.full((n,), self.vocabulary.of(s).offset)
            for n, s in zip(targets.lengths, targets.streams, strict=True)
        ]
        fill_S = torch.cat([torch.zeros(0, dtype=torch.long), *fill]).to(device)
        weight_S = blank_S.float()
        if self.config.weighting == "inverse":
            weight_S = weight_S / level_S
        # LLaDA's n / m, times 1 / n over the chance of m, so that every m counts alike.
        counts = [(int(mask.sum()), len(mask)) for mask in masks]
        each = torch.tensor([1 / (m * chance(self.config.schedule, m, n)) if m else 0.0 for m, n in counts])
        bound_S = blank_S * targets.per_token(each.to(device))
        # The answer must not reach the backbone even through a connector that mixes neighbours, so it is not fed at all.
        feed = Feed(torch.where(blank_S, fill_S, targets.tokens), blank_S, self.mask_D)
        return Prepared(feed, targets.tokens, weight_S, level_S, bound_S)

    def _mask(self, count: int, generator: Generator) -> Tensor:
        share = SCHEDULES[self.config.schedule](torch.rand((), generator=generator).item())
        masked = min(count, max(1, math.ceil(share * count)))
        mask = torch.zeros(count, dtype=torch.bool)
        mask[torch.randperm(count, generator=generator)[:masked]] = True
        return mask

    def predict(self, hidden_SD: Tensor) -> Tensor:
        """Hidden states to logits ``[S, V]``."""
        return self.output(hidden_SD)

    def loss(self, hidden_SD: Tensor, prepared: Prepared) -> TokenLoss:
        """Cross-entropy of each token, in nats, over the whole vocabulary; unmasked tokens have weight 0."""
        return self.output.loss(hidden_SD, prepared, smoothing=self.config.label_smoothing)

    def begin(self, request: Request) -> MaskedState:
        """A span of masks."""
        steps = request.sampling.steps or self.config.steps
        ids_S = torch.full((request.count,), self.vocabulary.of(request.stream).offset)
        known_S = torch.zeros(request.count, dtype=torch.bool)
        return MaskedState(request, ids_S, known_S, plan(request.count, self.config.blocks, steps))

    def feed(self, state: MaskedState) -> Feed:
        """The whole span: what is known, and masks."""
        device = state.request.device
        return Feed(state.ids_S.to(device), ~state.known_S.to(device), self.mask_D)

    def step(self, state: MaskedState, prediction: Tensor) -> MaskedState:
        """Draws every masked token of the current block from logits ``[S, V]``, and keeps the surest."""
        now, request = state.plan[state.index], state.request
        block = slice(now.start, now.stop)
        wanted = Wanted.by(request, self.vocabulary)
        logits_BW = wanted.logits(prediction[block])
        choice_B = draw(logits_BW, Warp.of(self.config, request.sampling), request.generator)
        ids_S, known_S = state.ids_S.clone(), state.known_S.clone()
        ids_S[block] = torch.where(known_S[block], ids_S[block], wanted.ids(choice_B))
        probability_B = logits_BW.softmax(dim=-1).gather(1, choice_B[:, None])[:, 0]
        known_S[block] = self._keep(probability_B, known_S[block], now.ratio, request.generator)
        ids_S = torch.where(known_S, ids_S, state.ids_S)
        ended = request.end is not None and now.ratio >= 1 and bool((ids_S[: now.stop] == request.end).any())
        return replace(state, ids_S=ids_S, known_S=known_S, index=len(state.plan) if ended else state.index + 1)

    def _keep(self, probability_B: Tensor, known_B: Tensor, ratio: float, generator: Generator) -> Tensor:
        """Which tokens of a block are known from now on: the surest, as many as the schedule says."""
        masked = still_masked(self.config.schedule, ratio, len(known_B), int((~known_B).sum()))
        if not masked:
            return torch.ones_like(known_B)
        confidence_B = probability_B.clamp_min(1e-20).log()
        noise = self.config.choice_temperature * (1 - ratio)
        if noise:
            confidence_B = confidence_B + noise * gumbel(len(known_B), generator)
        order_B = confidence_B.masked_fill(known_B, float("inf")).argsort(stable=True)
        keep_B = torch.ones_like(known_B)
        keep_B[order_B[:masked]] = False
        return keep_B

    def finish(self, state: MaskedState) -> Tensor:
        """Ids ``[*grid]`` in the head's vocabulary; open spans ``[n]`` up to the first end mark."""
        request = state.request
        if request.end is None:
            return state.ids_S.reshape(request.grid).to(request.device)
        ends = (state.ids_S == request.end).nonzero()
        return state.ids_S[: int(ends[0, 0]) if len(ends) else None].to(request.device)
