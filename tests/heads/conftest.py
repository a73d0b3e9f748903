"""A stand-in for backbone, connectors and sequence, just enough to train and sample one head by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from mmkit.contracts.head import Head
from mmkit.contracts.options import Sampling
from mmkit.contracts.values import Feed, Request, Targets

DIM = 32


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These tensors are so small that a second thread costs ten times what it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class StandIn(nn.Module):
    """One transformer layer over ``[start, span]``; spans of a batch have one length, and see themselves only."""

    def __init__(self, head: Head, length: int) -> None:
        super().__init__()
        self.head = head
        self.start = nn.Parameter(torch.randn(DIM) * 0.02)
        self.positions = nn.Parameter(torch.randn(length + 1, DIM) * 0.5)
        self.enter = (
            nn.Embedding(head.vocabulary.size, DIM) if head.vocabulary is not None else nn.Linear(head.channels, DIM)
        )
        self.layer = nn.TransformerEncoderLayer(DIM, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(DIM)

    def forward(self, feed: Feed | None, spans: int) -> Tensor:
        """Hidden states ``[spans, 1 + n, D]`` of the start token and the n tokens of each span."""
        x = self.start.expand(spans, 1, DIM)
        if feed is not None:
            if feed.lead_ND is not None:
                x = feed.lead_ND[:, None]
            x = torch.cat([x, self._embed(feed).reshape(spans, -1, DIM)], dim=1)
        count = x.shape[1]
        x = x + self.positions[:count]
        if feed is not None and feed.condition_SD is not None:
            x = torch.cat([x[:, :1], x[:, 1:] + feed.condition_SD.reshape(spans, -1, DIM)], dim=1)
        causal = nn.Transformer.generate_square_subsequent_mask(count) if self.head.shift == -1 else None
        return self.norm(self.layer(x, src_mask=causal))

    def _embed(self, feed: Feed) -> Tensor:
        x = self.enter(feed.tokens)
        if feed.blank_S is not None:
            x = torch.where(feed.blank_S[:, None], feed.blank_D, x)
        return x if feed.add_SD is None else x + feed.add_SD

    def read(self, hidden: Tensor) -> Tensor:
        """The states ``[S, D]`` that the head predicts from."""
        return (hidden[:, :-1] if self.head.shift == -1 else hidden[:, 1:]).reshape(-1, DIM)


def fit(
    head: Head, span: Tensor, stream: str, *, steps: int, spans: int = 16, lr: float = 5e-3
) -> tuple[StandIn, float]:
    """Trains head and stand-in to know one span ``[n, ...]``; gives the mean loss of the last ten steps too."""
    torch.manual_seed(0)
    count = len(span)
    model = StandIn(head, count)
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
    return model, sum(losses[-10:]) / 10


@torch.no_grad()
def write(model: StandIn, request: Request) -> Tensor:
    """Generates one span as the generator would, without a cache."""
    head = model.head
    state, known = head.begin(request), torch.zeros(0, dtype=torch.long)
    while not state.done:
        feed = head.feed(state)
        if head.shift == -1:
            known = known if feed is None else torch.cat([known, feed.tokens])
            hidden = model(Feed(known) if len(known) else None, 1)[0, -1:]
        else:
            hidden = model.read(model(feed, 1))
        state = head.step(state, head.predict(hidden))
    return head.finish(state)


def ask(
    stream: str, grid: tuple[int, ...], *, seed: int = 0, end: int | None = None, sampling: Sampling | None = None
) -> Request:
    """A request on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return Request(stream, grid, generator, sampling or Sampling(), torch.device("cpu"), torch.float32, end)


def spans_of(tokens: Tensor, lengths: tuple[int, ...], streams: tuple[str, ...], seeds: tuple[int, ...]) -> Targets:
    """Targets whose spans draw from the given seeds."""
    generators = tuple(torch.Generator().manual_seed(s) for s in seeds)
    return Targets(tokens, lengths, tuple((n,) for n in lengths), streams, generators)


def kolmogorov(probabilities: Tensor) -> float:
    """The Kolmogorov-Smirnov statistic times the root of the count, of draws mapped through their supposed distribution.

    Above 1.63 in one of a hundred samples where the supposition is right.
    """
    ordered, n = probabilities.double().sort().values, len(probabilities)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return max((steps[1:] - ordered).max().item(), (ordered - steps[:-1]).max().item()) * n**0.5


@pytest.fixture(name="kolmogorov")
def _kolmogorov() -> Callable[[Tensor], float]:
    return kolmogorov


@pytest.fixture(name="fit")
def _fit() -> Callable[..., tuple[StandIn, float]]:
    return fit


@pytest.fixture(name="write")
def _write() -> Callable[..., Tensor]:
    return write


@pytest.fixture(name="ask")
def _ask() -> Callable[..., Request]:
    return ask


@pytest.fixture(name="spans_of")
def _spans_of() -> Callable[..., Targets]:
    return spans_of
