"""A stand-in for backbone, connectors and sequence, just enough to train and sample one head by itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmkit.contracts.head import Head
from mmkit.contracts.options import Sampling
from mmkit.contracts.values import Feed, Request, Targets
from mmkit.nn.guidance import FULL


class StandIn(nn.Module):
    """One transformer layer over ``[start, span]``; spans of a batch have one length, and see themselves only."""

    def __init__(self, head: Head, length: int, dim: int, channels: int) -> None:
        super().__init__()
        self.head = head
        self.dim = dim
        self.start = nn.Parameter(torch.randn(dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(length + 1, dim) * 0.5)
        self.enter = (
            nn.Embedding(head.vocabulary.size, dim) if head.vocabulary is not None else nn.Linear(channels, dim)
        )
        self.layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, feed: Feed | None, spans: int) -> Tensor:
        """Hidden states ``[spans, 1 + n, D]`` of the start token and the n tokens of each span."""
        x = self.start.expand(spans, 1, self.dim)
        if feed is not None:
            if feed.lead_ND is not None:
                x = feed.lead_ND[:, None]
            x = torch.cat([x, self._embed(feed).reshape(spans, -1, self.dim)], dim=1)
        count = x.shape[1]
        x = x + self.positions[:count]
        if feed is not None and feed.condition_SD is not None:
            x = torch.cat([x[:, :1], x[:, 1:] + feed.condition_SD.reshape(spans, -1, self.dim)], dim=1)
        causal = nn.Transformer.generate_square_subsequent_mask(count) if self.head.shift == -1 else None
        return self.norm(self.layer(x, src_mask=causal))

    def _embed(self, feed: Feed) -> Tensor:
        if feed.x_SD is not None:
            return feed.x_SD
        x = self.enter(feed.tokens)
        if feed.blank_S is not None:
            x = torch.where(feed.blank_S[:, None], feed.blank_D, x)
        return x if feed.add_SD is None else x + feed.add_SD

    def read(self, hidden: Tensor) -> Tensor:
        """The states ``[S, D]`` that the head predicts from."""
        return (hidden[:, :-1] if self.head.shift == -1 else hidden[:, 1:]).reshape(-1, self.dim)


def fit(
    head: Head,
    span: Tensor,
    stream: str,
    *,
    steps: int,
    spans: int = 16,
    lr: float = 5e-3,
    dim: int = 32,
    seed: int = 0,
) -> tuple[StandIn, float]:
    """Trains head and stand-in to know one span ``[n, ...]``; gives the mean loss of the last ten steps too."""
    torch.manual_seed(seed)
    count = len(span)
    model = StandIn(head, max(count, math.prod(head.grid((count,)))), dim, span.shape[-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generators = tuple(torch.Generator().manual_seed(i) for i in range(spans))
    targets = Targets(
        span.repeat(spans, *[1] * (span.ndim - 1)), (count,) * spans, ((count,),) * spans, (stream,) * spans, generators
    )
    losses = []
    for _ in range(steps):
        prepared = head.prepare(targets)
        loss = head.loss(model.read(model(prepared.feed, spans)), prepared)
        total = (loss.value_S * loss.weight_S).sum() / loss.weight_S.sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        scheduler.step()
        losses.append(total.item())
    return model, sum(losses[-10:]) / len(losses[-10:])


@torch.no_grad()
def write(model: StandIn, request: Request) -> Tensor:
    """Generates one span as the generator would, without a cache."""
    head = model.head
    state, known, hidden = head.begin(request), torch.zeros(0, dtype=torch.long), torch.zeros(0)
    while not state.done:
        feed = head.feed(state)
        if head.shift == -1:
            known = known if feed is None else torch.cat([known, feed.tokens])
            hidden = model(Feed(known) if len(known) else None, 1)[0, -1:]
        elif feed is not None:
            hidden = model.read(model(feed, 1))
        state = head.step(state, given(head, head.predict(hidden)))
    return head.finish(state)


def given(head: Head, prediction: Tensor) -> Tensor | dict[str, Tensor]:
    """An unguided prediction as the head's `step` takes it."""
    return {FULL: prediction} if head.combines else prediction


def ask(
    stream: str, grid: tuple[int, ...], *, seed: int = 0, end: int | None = None, sampling: Sampling | None = None
) -> Request:
    """A request on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return Request(stream, grid, generator, sampling or Sampling(), torch.device("cpu"), torch.float32, end)
