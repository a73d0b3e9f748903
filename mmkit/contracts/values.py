"""The tensors that cross a seam, each in one frozen type.

Shape suffixes: T packed tokens, S tokens of one call, K distinct conditions, D backbone width, C channels, A position axes,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from mmkit.contracts.options import Sampling


@dataclass(frozen=True)
class Condition:
    """What tokens are conditioned on (noise level, class), each distinct condition once.

    Token t has row ``index_T[t]`` of `rows_KD`; without an index, token t has row t. Where all tokens of a picture share a
    condition, what is computed of it is computed once.
    """

    rows_KD: Tensor
    index_T: Tensor | None = None

    @property
    def count(self) -> int:
        """How many tokens it is for."""
        return len(self.rows_KD if self.index_T is None else self.index_T)

    @property
    def x_TD(self) -> Tensor:
        """The condition of every token."""
        return self.rows_KD if self.index_T is None else self.rows_KD.index_select(0, self.index_T)

    def take(self, places_S: Tensor) -> Condition:
        """That of some of its tokens."""
        if self.index_T is None:
            return Condition(self.rows_KD.index_select(0, places_S))
        return Condition(self.rows_KD, self.index_T.index_select(0, places_S))

    @classmethod
    def placed(cls, count: int, parts: Sequence[tuple[Tensor | slice, Condition]], dtype: torch.dtype) -> Condition:
        """That of `count` tokens, of which some have the given ones, each at its places; the others have the condition zero.

        Conditions of the very same rows share them.
        """
        like_KD = parts[0][1].rows_KD
        index_T = torch.zeros(count, dtype=torch.long, device=like_KD.device)
        rows: list[Tensor] = []
        if sum(condition.count for _, condition in parts) < count:
            rows.append(like_KD.new_zeros(1, like_KD.shape[1], dtype=dtype))
        firsts: dict[int, int] = {}
        for places, condition in parts:
            own = condition.rows_KD
            if id(own) not in firsts:
                firsts[id(own)] = sum(map(len, rows))
                rows.append(own.to(dtype))
            own_T = condition.index_T
            own_T = torch.arange(len(own), device=own.device) if own_T is None else own_T
            index_T[places] = own_T + firsts[id(own)]
        return cls(torch.cat(rows), index_T)


@dataclass(frozen=True)
class Packed:
    """Many samples laid end to end, no padding: what a backbone reads.

    `x_TD` embeddings; `positions_TA` integer coordinates; `stream_T` the index of the stream that owns each token;
    `plan` the lowered visibility rule, executed by `mmkit.kernels.attention.attend`; `window_plan` the same through the
    backbone's `window`, where it has one; `condition` is that of all tokens, zero where there is none, or None where nothing is
    conditioned. `memory` holds tokens that enter by cross-attention only, `memory_plan` who sees them.
    """

    x_TD: Tensor
    positions_TA: Tensor
    stream_T: Tensor
    plan: Any
    condition: Condition | None = None
    memory: Packed | None = None
    memory_plan: Any = None
    window_plan: Any = None

    @property
    def condition_TD(self) -> Tensor | None:
        """The condition of every token, for what computes it token by token."""
        return None if self.condition is None else self.condition.x_TD


@dataclass(frozen=True)
class Route:
    """What a router did in one pass: of its `experts`, number ``expert_A`` reads token ``token_A`` of the packed sequence."""

    token_A: Tensor
    expert_A: Tensor
    experts: int


@dataclass(frozen=True)
class Hidden:
    """What a backbone gives: states ``[T, D]`` after its last norm, and auxiliary losses (already weighted scalars).

    `routes`, for diagnosis: by layer, what each of its routers did; several where pools of experts have tokens of their own.
    """

    x_TD: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    routes: dict[int, tuple[Route, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Targets:
    """The target spans of one head in one batch, end to end.

    `tokens` is codes ``[S]`` in the head's vocabulary (int64), or latents ``[S, C]``. `lengths` counts the tokens of each
    span, `grids` their shapes, `streams` the stream each belongs to. `generators` holds one CPU random stream per span,
    keyed by (seed, step, sample): a head draws noise and masks from nothing else.
    """

    tokens: Tensor
    lengths: tuple[int, ...]
    grids: tuple[tuple[int, ...], ...]
    streams: tuple[str, ...]
    generators: tuple[torch.Generator, ...]

    def draw_uniform(self) -> Tensor:
        """One uniform number in [0, 1) per span, on the CPU."""
        return torch.stack([torch.rand((), generator=g) for g in self.generators])

    def per_token(self, per_span: Tensor) -> Tensor:
        """Repeats a value of each span over its tokens: ``[spans, ...]`` to ``[S, ...]``."""
        return per_span.repeat_interleave(torch.tensor(self.lengths, dtype=torch.long, device=per_span.device), dim=0)


@dataclass(frozen=True)
class Feed:
    """What the backbone sees at the tokens of spans that a head learns or generates.

    `tokens`: codes ``[S]`` or latents ``[S, C]``, embedded by the stream's connector. Where `blank_S` is true the
    embedding is replaced by `blank_D` (a mask token). `add_SD` is added (time: add); `lead_ND` is one extra token before
    each of the N spans (time: token); the `condition` of these tokens reaches modulating backbones (time: adaln). A head that
    reads learned queries gives their embeddings as `x_SD` instead of tokens, and nothing else.
    """

    tokens: Tensor | None
    blank_S: Tensor | None = None
    blank_D: Tensor | None = None
    add_SD: Tensor | None = None
    lead_ND: Tensor | None = None
    condition: Condition | None = None
    x_SD: Tensor | None = None

    @property
    def condition_SD(self) -> Tensor | None:
        """The condition of every token."""
        return None if self.condition is None else self.condition.x_TD

    @property
    def count(self) -> int:
        """How many tokens it is for, its leads not counted."""
        return len(self.tokens if self.x_SD is None else self.x_SD)

    @classmethod
    def joined(cls, feeds: Sequence[Feed]) -> Feed:
        """Feeds of tokens of one head, span after span, as one; for embedding, so without what stands beside the tokens."""
        if len(feeds) == 1:
            return feeds[0]
        tokens = torch.cat([feed.tokens for feed in feeds])
        blank_S = add_SD = None
        if any(feed.blank_S is not None for feed in feeds):
            none = tokens.new_zeros(len(tokens), dtype=torch.bool).split([len(feed.tokens) for feed in feeds])
            blank_S = torch.cat([n if f.blank_S is None else f.blank_S for f, n in zip(feeds, none, strict=True)])
        if any(feed.add_SD is not None for feed in feeds):
            add_SD = torch.cat([feed.add_SD for feed in feeds])
        return cls(tokens, blank_S, next((f.blank_D for f in feeds if f.blank_D is not None), None), add_SD)


@dataclass(frozen=True)
class Prepared:
    """A head's plan for its targets: what the backbone sees, and what must be predicted.

    `target` is in the head's own form, one row per target token; `weight_S` is 0 where nothing is learned; `level_S` is the
    noise level or mask ratio in [0, 1] of each token, and `bound_S` that of `TokenLoss`, for diagnosis. A head whose loss
    needs more of `prepare` gives a subclass.
    """

    feed: Feed
    target: Tensor
    weight_S: Tensor
    level_S: Tensor | None = None
    bound_S: Tensor | None = None


@dataclass(frozen=True)
class TokenLoss:
    """A loss per token, not yet summed: `value_S` times `weight_S`, to be divided by the global sum of weights.

    For diagnosis, `level_S` is the noise level or mask ratio in [0, 1]; `nats_S` minus the logarithm of the probability of
    the token's code, without smoothing and the like and without gradient, where the head gives probabilities. Their sum over
    a span is minus its log-likelihood; with `bound_S`, the expectation of ``nats_S * bound_S``, summed over a span, is an
    upper bound of that.
    """

    value_S: Tensor
    weight_S: Tensor
    level_S: Tensor | None = None
    nats_S: Tensor | None = None
    bound_S: Tensor | None = None

    @classmethod
    def joined(cls, losses: Sequence[TokenLoss]) -> TokenLoss:
        """Losses of one head end to end; without what one of them lacks."""
        columns = [[getattr(loss, f.name) for loss in losses] for f in fields(cls)]
        return cls(*(None if any(c is None for c in column) else torch.cat(column) for column in columns))


@dataclass(frozen=True)
class Request:
    """One span a head is asked to generate.

    `grid` is its shape; for an open stream ``(max_tokens,)``. `stream` says whose codes are wanted, `end` the id of the
    mark that ends an open span (None: the grid ends it). `generator` is a CPU stream of this sample alone.
    """

    stream: str
    grid: tuple[int, ...]
    generator: torch.Generator
    sampling: Sampling
    device: torch.device
    dtype: torch.dtype
    end: int | None = None

    @property
    def count(self) -> int:
        """Tokens of the span."""
        count = 1
        for n in self.grid:
            count *= n
        return count


@dataclass(frozen=True)
class Reconstruction:
    """What a tokenizer gives in training: the reconstructed contents, its own weighted scalar losses, and figures to log."""

    contents: list[Any]
    losses: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
