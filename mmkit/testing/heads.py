"""Checks of heads: what is prepared, the loss of each token, steps as functions of their inputs."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmkit.contracts.options import Sampling
from mmkit.contracts.port import Needs
from mmkit.contracts.values import Prepared, Request
from mmkit.contracts.vocabulary import MARKS
from mmkit.testing.cases import DIM, FED, HeadCase
from mmkit.testing.catalogue import Inapplicable, check, demand
from mmkit.testing.standin import ask, given
from mmkit.testing.surroundings import watched


def _near(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    if not a.is_floating_point():
        return torch.equal(a, b)
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-5, rtol=1e-4)


def _prepared(case: HeadCase, part: Any = None, seed: int = 0) -> Prepared:
    part = case.part if part is None else part
    return part.prepare(case.inputs(part, seed)[0])


@check("head", each=False)
def what_it_needs_is_declared(case: HeadCase) -> None:
    """`needs` names the spaces a head learns and how their spans may attend; `shift` is 0 or -1."""
    needs = case.cls.needs
    demand(isinstance(needs, Needs) and needs.spaces and needs.attends, "needs", f"it is {needs}")
    demand(case.part.shift in (0, -1), "shift", f"it is {case.part.shift}")
    causal = case.part.shift == -1 and set(needs.attends) - {"causal", "level"}
    demand(not causal, "needs", "a head that predicts at the token before needs `causal`")


@check("head")
def vocabularies_cover_streams_and_marks(case: HeadCase) -> None:
    """A head over codes has a `vocabulary` with a slice for every stream it learns, and the marks where it was given some."""
    if case.space != "codes":
        demand(case.part.vocabulary is None, "vocabulary", "it learns vectors and has a vocabulary")
        raise Inapplicable("it learns vectors")
    vocabulary = case.part.vocabulary
    demand(vocabulary is not None, "vocabulary", "it learns codes and has none")
    for target in case.targets:
        demand(target.stream in vocabulary, "vocabulary", f"stream {target.stream!r} has no slice")
        wide = vocabulary.of(target.stream).size == target.port.codebook_size
        demand(wide, "vocabulary", f"the slice of {target.stream!r} is not the size of its codebook")
    if any(t.open for t in case.targets):
        demand(MARKS in vocabulary, "vocabulary", "it was given marks and has no slice for them")


@check("head")
def what_is_prepared_has_its_shapes(case: HeadCase) -> None:
    """One row of target and weight for each target token; the feed's tokens have the targets' shape and dtype, or its
    queries one row for each token of `grid`."""
    targets, _ = case.inputs(case.part)
    found, count = _prepared(case), len(targets.tokens)
    fed = found.feed.tokens
    if found.feed.x_SD is not None:
        wanted = (sum(case.read(case.part, case.LENGTHS)), DIM)
        demand(fed is None, "feed.tokens", "it feeds queries and tokens at once")
        demand(
            tuple(found.feed.x_SD.shape) == wanted, "feed.x_SD", f"it is {tuple(found.feed.x_SD.shape)}, not {wanted}"
        )
    else:
        demand(fed.shape == targets.tokens.shape, "prepare", f"it feeds {tuple(fed.shape)}")
        demand(fed.dtype == targets.tokens.dtype, "prepare", f"it feeds {fed.dtype}")
        same = case.read(case.part, case.LENGTHS) == list(case.LENGTHS)
        demand(same, "grid", "it is another than its targets', and it feeds tokens")
    demand(len(found.target) == count, "prepare", f"its target has {len(found.target)} rows for {count} tokens")
    demand(tuple(found.weight_S.shape) == (count,), "prepare", f"its weights are {tuple(found.weight_S.shape)}")
    demand(found.weight_S.dtype == torch.float32, "prepare", f"its weights are {found.weight_S.dtype}, not float32")
    demand((found.weight_S >= 0).all(), "prepare", "it has negative weights")


@check("head")
def the_feed_is_as_declared(case: HeadCase) -> None:
    """Lead tokens are fed where `leads` says so, conditions where `conditions` does; blanks have a vector to stand for them."""
    feed = _prepared(case).feed
    demand(
        (feed.lead_ND is not None) == bool(case.part.leads), "leads", f"it is {case.part.leads}, and the feed disagrees"
    )
    demand((feed.condition_SD is not None) == case.part.conditions, "conditions", "it and the feed do not agree")
    demand(feed.blank_S is None or feed.blank_D is not None, "prepare", "blank tokens have no `blank_D`")
    for name, wide in (
        ("add_SD", feed.count),
        ("condition_SD", feed.count),
        ("lead_ND", len(case.LENGTHS)),
    ):
        x = getattr(feed, name)
        demand(
            x is None or tuple(x.shape) == (wide, DIM), f"feed.{name}", f"it is {None if x is None else tuple(x.shape)}"
        )


@check("head")
def levels_lie_between_0_and_1(case: HeadCase) -> None:
    """Noise levels and mask ratios, where it tells them, are one for each token, in [0, 1]."""
    level = _prepared(case).level_S
    if level is None:
        raise Inapplicable("it tells no level")
    demand(tuple(level.shape) == (sum(case.LENGTHS),), "prepare", f"levels are {tuple(level.shape)}")
    demand(level.min() >= 0 and level.max() <= 1, "prepare", f"levels run from {level.min():.3f} to {level.max():.3f}")


@check("head")
@torch.no_grad()
def losses_are_float32_and_finite(case: HeadCase) -> None:
    """The loss is one float32 number for each token, finite, with its weight."""
    _, hidden = case.inputs(case.part)
    loss = case.part.loss(hidden, _prepared(case))
    shape = (sum(case.LENGTHS),)
    demand(
        tuple(loss.value_S.shape) == tuple(loss.weight_S.shape) == shape, "loss", f"it is {tuple(loss.value_S.shape)}"
    )
    demand(loss.value_S.dtype == torch.float32, "loss", f"it is {loss.value_S.dtype}")
    demand(loss.value_S.isfinite().all(), "loss", "it is not finite")


@check("head")
@torch.no_grad()
def packed_spans_are_what_each_is_alone(case: HeadCase) -> None:
    """What is prepared and lost for a span does not depend on the spans beside it."""
    part = case.part
    targets, hidden = case.inputs(part)
    whole = part.prepare(targets)
    loss = part.loss(hidden, whole)
    start = first = 0
    for i, (n, asked) in enumerate(zip(case.LENGTHS, case.read(part, case.LENGTHS), strict=True)):
        at, read = slice(start, start + n), slice(first, first + asked)
        alone = part.prepare(case.spans(part, (n,), first=i))
        for name in ("target", "weight_S", "level_S"):
            mine, all_ = getattr(alone, name), getattr(whole, name)
            demand(
                _near(mine, None if all_ is None else all_[at]), f"prepare().{name}", f"span {i} is another one alone"
            )
        for name in FED:
            if name == "blank_D":
                continue
            mine, all_ = getattr(alone.feed, name), getattr(whole.feed, name)
            where = slice(i, i + 1) if name == "lead_ND" else read
            demand(
                _near(mine, None if all_ is None else all_[where]),
                f"feed.{name}",
                f"span {i} is another one alone",
            )
        demand(
            _near(part.loss(hidden[read], alone).value_S, loss.value_S[at]), "loss", f"span {i} is another one alone"
        )
        start, first = start + n, first + asked


@check("head")
def no_span_costs_nothing(case: HeadCase) -> None:
    """A rank without this modality still runs the head: no span, no loss, gradients of zero."""
    part = case.lively()
    loss = part.loss(torch.zeros(0, DIM, requires_grad=True), part.prepare(case.spans(part, ())))
    demand(tuple(loss.value_S.shape) == (0,), "loss", f"no span gives {tuple(loss.value_S.shape)}")
    loss.value_S.sum().backward()
    moved = [n for n, p in part.named_parameters() if p.grad is not None and p.grad.any()]
    demand(not moved, moved[0] if moved else "", "no span gives it a gradient")


@check("head")
def what_is_not_learned_gives_no_gradient(case: HeadCase) -> None:
    """Hidden states get a gradient where the weight is above 0, and none elsewhere; of queries, all of a learned span's."""
    part = case.lively()
    targets, hidden = case.inputs(part)
    loss = part.loss(hidden.requires_grad_(), part.prepare(targets))
    (loss.value_S * loss.weight_S).sum().backward()
    learned = loss.weight_S > 0
    if len(hidden) != len(learned):
        spans = learned.split(list(case.LENGTHS))
        read = case.read(part, case.LENGTHS)
        learned = torch.cat([s.any().expand(n) for s, n in zip(spans, read, strict=True)])
    demand((hidden.grad[learned].abs().sum(-1) > 0).all(), "loss", "a learned token's hidden state gets no gradient")
    demand(not hidden.grad[~learned].any(), "loss", "a token of weight 0 gets a gradient")


@check("head")
def randomness_comes_from_the_targets_generators(case: HeadCase) -> None:
    """Noise and masks are drawn from the spans' own generators alone: the same ones give the same bits, in training, too."""
    part = case.lively().train()
    first = [_prepared(case, part) for _ in range(2)]
    fed = [p.feed.tokens if p.feed.x_SD is None else p.feed.x_SD for p in first]
    demand(torch.equal(*fed), "prepare", "the same generators give another feed")
    demand(torch.equal(first[0].target, first[1].target), "prepare", "the same generators give another target")
    demand(_near(first[0].level_S, first[1].level_S), "prepare", "the same generators give other levels")
    targets = case.inputs(part)[0]
    with watched("prepare", drawing=True):
        part.prepare(targets)


@check("head")
@torch.no_grad()
def predictions_are_token_by_token(case: HeadCase) -> None:
    """`predict` of several tokens is `predict` of each, one row a token."""
    hidden = case.hidden(5)
    found = case.part.predict(hidden)
    demand(len(found) == 5, "predict", f"5 tokens give {len(found)} predictions")
    alone = torch.cat([case.part.predict(h[None]) for h in hidden])
    demand(_near(found, alone), "predict", "a token's prediction depends on the others")


# Generation

WEIGHT = torch.linspace(0.1, 2, DIM, device="cpu")


@torch.no_grad()
def advance(head: Any, state: Any) -> Any:
    """One iteration with hidden states that depend on what is fed."""
    feed = head.feed(state)
    count = 1 if head.shift == -1 else math.prod(head.grid(state.request.grid))
    hidden = torch.zeros(count, DIM)
    if feed is not None:
        fed = feed.tokens if feed.x_SD is None else feed.x_SD
        seen = fed.float().reshape(len(fed), -1).mean(-1)
        if feed.blank_S is not None:
            seen = seen.masked_fill(feed.blank_S, -1.0)
        hidden = torch.sin(seen[-count:, None] * WEIGHT)
    return head.step(state, given(head, head.predict(hidden)))


def closed(case: HeadCase) -> str:
    """A stream whose spans end with their grid."""
    return next((t.stream for t in case.targets if not t.open), "") or _raise("it learns open streams only")


def _raise(reason: str) -> str:
    raise Inapplicable(reason)


def generated(case: HeadCase, request: Request) -> tuple[Tensor, list[float]]:
    """A span, and the progress before each step."""
    state, progress = case.part.begin(request), []
    while not state.done:
        progress.append(float(state.progress))
        state = advance(case.part, state)
        demand(len(progress) < 10_000, "done", "a span of 6 tokens is not done after 10,000 steps")
    return case.part.finish(state), [*progress, float(state.progress)]


@check("head")
def a_generated_span_has_its_grid(case: HeadCase) -> None:
    """`finish` gives codes ``[*grid]`` of the stream that was asked for, or latents ``[*grid, C]``, finite."""
    stream = closed(case)
    found, _ = generated(case, ask(stream, (2, 3)))
    if case.part.vocabulary is None:
        demand(tuple(found.shape[:2]) == (2, 3) and found.ndim == 3, "finish", f"it gives {tuple(found.shape)}")
        demand(found.isfinite().all(), "finish", "it gives latents that are not finite")
        return
    piece = case.part.vocabulary.of(stream)
    demand(tuple(found.shape) == (2, 3), "finish", f"it gives {tuple(found.shape)} for the grid (2, 3)")
    demand(
        found.min() >= piece.offset and found.max() < piece.stop,
        "finish",
        f"it gives codes outside those of {stream!r}",
    )


@check("head")
def an_open_span_ends(case: HeadCase) -> None:
    """An open span gives at most as many codes as were asked for, of its stream, without the end mark."""
    stream = next((t.stream for t in case.targets if t.open), "") or _raise("it learns no open stream")
    vocabulary = case.part.vocabulary
    count = case.part.length or 5
    end = vocabulary.of(MARKS).offset + 1
    for seed in range(4):
        found, _ = generated(case, ask(stream, (count,), end=end, seed=seed))
        piece = vocabulary.of(stream)
        demand(found.ndim == 1 and len(found) <= count, "finish", f"it gives {tuple(found.shape)} for at most {count}")
        inside = not len(found) or (found.min() >= piece.offset and found.max() < piece.stop)
        demand(inside, "finish", "it gives something else than codes of the stream, such as the end mark")


@check("head")
def progress_runs_from_0_to_1(case: HeadCase) -> None:
    """`progress` starts at 0, never falls, and is 1 when the span is done."""
    _, progress = generated(case, ask(closed(case), (2, 3)))
    demand(progress[0] == 0, "progress", f"it starts at {progress[0]}")
    demand(all(a <= b for a, b in itertools.pairwise(progress)), "progress", "it falls")
    demand(progress[-1] == 1, "progress", f"it is {progress[-1]} when the span is done")


@check("head")
def steps_are_functions_of_their_inputs(case: HeadCase) -> None:
    """From a copied state the same follows, whatever the head did meanwhile."""
    stream = closed(case)
    state = case.part.begin(ask(stream, (2, 3)))
    while not state.done:
        fork = copy.deepcopy(state)
        advance(case.part, case.part.begin(ask(stream, (2, 3), seed=9)))
        state, fork = advance(case.part, state), advance(case.part, fork)
        demand(fork.done == state.done and fork.progress == state.progress, "step", "a copied state goes on otherwise")
    same = torch.equal(case.part.finish(fork), case.part.finish(state))
    demand(same, "step", "a copied state ends otherwise: the head keeps something between calls")


@check("head")
def spans_side_by_side_are_what_each_is_alone(case: HeadCase) -> None:
    """Spans generated in turn are those that each seed gives alone."""
    stream = closed(case)
    states = [case.part.begin(ask(stream, (2, 3), seed=seed)) for seed in (1, 2, 3)]
    while not all(s.done for s in states):
        states = [s if s.done else advance(case.part, s) for s in states]
    for seed, state in zip((1, 2, 3), states, strict=True):
        alone, _ = generated(case, ask(stream, (2, 3), seed=seed))
        demand(torch.equal(case.part.finish(state), alone), "step", "a span depends on what is generated beside it")


@check("head")
def generating_draws_from_the_request_alone(case: HeadCase) -> None:
    """Generation draws from the request's generator and from nothing the process shares."""
    request = ask(closed(case), (2, 3))
    case.part  # noqa: B018 (built before it is watched)
    with watched("generation", drawing=True):
        generated(case, request)


@check("head")
def sampling_is_respected(case: HeadCase) -> None:
    """At ``temperature: 0`` codes do not depend on the seed; ``steps`` is how many iterations a diffusion head takes."""
    stream, sampling = closed(case), Sampling(temperature=0.0, steps=2)
    first, progress = generated(case, ask(stream, (2, 3), sampling=sampling))
    if case.part.vocabulary is None:
        demand(2 <= len(progress) - 1 <= 4, "begin", f"asked for 2 steps it takes {len(progress) - 1}")
    elif case.part.shift == -1:
        second, _ = generated(case, ask(stream, (2, 3), seed=5, sampling=sampling))
        demand(torch.equal(first, second), "step", "at temperature 0 what it writes depends on the seed")


@check("head")
def a_span_of_one_token_is_learned_and_generated(case: HeadCase) -> None:
    """The smallest span there is has a finite loss, and can be generated."""
    hidden = case.hidden(sum(case.read(case.part, (1,))))
    loss = case.part.loss(hidden, case.part.prepare(case.spans(case.part, (1,))))
    demand(loss.value_S.isfinite().all(), "loss", "that of one token is not finite")
    found, _ = generated(case, replace(ask(closed(case), (1, 1))))
    demand(tuple(found.shape[:2]) == (1, 1), "finish", f"the grid (1, 1) gives {tuple(found.shape)}")
