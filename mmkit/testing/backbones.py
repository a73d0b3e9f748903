"""Checks of backbones: the mask is kept, packed ≡ unpacked, cached ≡ uncached, what is declared is used.

Tolerances of 1e-4: float32, where other shapes mean another order of sums.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mmkit.contracts.positions import Positions
from mmkit.contracts.values import Condition, Packed
from mmkit.sequence.layout import join
from mmkit.sequence.lowering import lower
from mmkit.sequence.tracker import Tracker
from mmkit.sequence.visibility import Visibility
from mmkit.testing.cases import BackboneCase, duplicate
from mmkit.testing.catalogue import Inapplicable, check, demand
from mmkit.testing.sequences import MIXED, documents, draw, mixed, place


def _near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def _nudged(x_TD: torch.Tensor, where: int | torch.Tensor) -> torch.Tensor:
    """The same embeddings, moved where said; by another amount in each channel, since a layer norm takes a common one away."""
    moved = x_TD.clone()
    moved[where] += torch.linspace(-1.0, 2.0, x_TD.shape[-1])
    return moved


def _inline(case: BackboneCase) -> tuple[Any, Packed]:
    """The three documents without memory."""
    layout, packed = mixed(case.part)
    return layout, replace(packed, memory=None, memory_plan=None)


@check("backbone", each=False)
def what_it_declares_is_there(case: BackboneCase) -> None:
    """The constructor sets `dim` and `positions`, and says by truth values whether it modulates, crosses and routes."""
    part = case.part
    demand(isinstance(part.dim, int) and part.dim > 0, "dim", f"it is {part.dim!r}")
    demand(isinstance(part.positions, Positions), "positions", f"they are {type(part.positions).__name__}")
    for flag in ("modulates", "crosses", "routes"):
        demand(isinstance(getattr(part, flag), bool), flag, f"it is {getattr(part, flag)!r}, not true or false")
    window = part.window
    demand(
        window is None or (isinstance(window, int) and window > 0),
        "window",
        f"it is {window!r}, no number of positions",
    )


@check("backbone")
@torch.no_grad()
def hidden_states_have_the_width(case: BackboneCase) -> None:
    """Hidden states are ``[T, D]`` of the declared width, float32 and finite."""
    packed = case.inputs(case.part)
    x = case.outputs()["hidden states"]
    demand(tuple(x.shape) == (len(packed.x_TD), case.part.dim), "forward", f"it gives {tuple(x.shape)}")
    demand(x.dtype == torch.float32 and x.isfinite().all(), "forward", f"they are {x.dtype}, or not finite")


@check("backbone")
@torch.no_grad()
def packed_equals_one_by_one(case: BackboneCase) -> None:
    """Documents laid end to end give what each gives alone."""
    layout, packed = _inline(case)
    together = case.part(packed).x_TD
    for number, document in enumerate(documents(MIXED, case.part)):
        where = torch.from_numpy(np.flatnonzero(layout.doc == number))
        condition = None if packed.condition is None else packed.condition.take(where)
        own = join([document], case.part.positions.axes)
        alone = case.part(place(own, packed.x_TD[where], condition, case.part.window)).x_TD
        demand(_near(together[where], alone), "forward", f"document {number} is another one packed than alone")


@check("backbone")
@torch.no_grad()
def nothing_is_seen_that_the_mask_hides(case: BackboneCase) -> None:
    """Changing one token changes no token that cannot see it, by the one visibility rule, directly or through others."""
    layout, packed = _inline(case)
    see = torch.from_numpy(Visibility.of(layout).matrix())
    reach = see | torch.eye(len(see), dtype=torch.bool)
    for _ in range(4):
        reach = (reach.float() @ reach.float()) > 0
    before = case.part(packed).x_TD
    for token in range(0, len(see), 3):
        x_TD = _nudged(packed.x_TD, token)
        moved = ((case.part(replace(packed, x_TD=x_TD)).x_TD - before).abs().amax(-1) > 1e-4) & ~reach[:, token]
        demand(not moved.any(), "forward", f"token {int(moved.nonzero()[0]) if moved.any() else 0} changes with token {token}, "
               "which it may not see: attend through `mmkit.kernels.attention.attend` with `packed.plan`")  # fmt: skip


@check("backbone")
@torch.no_grad()
def tokens_see_what_they_may(case: BackboneCase) -> None:
    """Changing the first token that the last one of a document sees, through the window if there is one, changes that one."""
    layout, packed = _inline(case)
    last = int(np.flatnonzero(layout.doc == 2)[-1])
    first = int(Visibility.of(layout).windowed(case.part.window).matrix()[last].argmax())
    x_TD = _nudged(packed.x_TD, first)
    change = (case.part(replace(packed, x_TD=x_TD)).x_TD - case.part(packed).x_TD).abs().amax(-1)
    demand(first < last and change[last] > 1e-6, "forward", "a token does not depend on the ones before it")


@check("backbone")
@torch.no_grad()
def the_order_of_documents_does_not_matter(case: BackboneCase) -> None:
    """Documents packed in another order give the same hidden states."""
    layout, packed = _inline(case)
    order = torch.from_numpy(np.concatenate([np.flatnonzero(layout.doc == d) for d in (2, 0, 1)]))
    other = join([documents(MIXED, case.part)[d] for d in (2, 0, 1)], case.part.positions.axes)
    condition = None if packed.condition is None else packed.condition.take(order)
    found = case.part(place(other, packed.x_TD[order], condition, case.part.window)).x_TD
    demand(_near(found, case.part(packed).x_TD[order]), "forward", "what it gives depends on the order of documents")


@check("backbone")
@torch.no_grad()
def cached_equals_uncached(case: BackboneCase) -> None:
    """Two documents read side by side in pieces of changing length, with a cache, give what one pass gives."""
    part = case.part
    layout, packed = _inline(case)
    whole = part(packed).x_TD
    starts = {row: int(np.flatnonzero(layout.doc == row)[0]) for row in (0, 1)}
    cuts = {0: [(0, 3), (3, 9), (9, 10), (10, 11)], 1: [(0, 4), (4, 9), (9, 13), (13, 17), (17, 18)]}
    blocks = [d.tokens for d in documents(MIXED, part)]
    cache, tracker = part.new_cache(2, 4), Tracker(2)
    for step in range(5):
        new, index = [], []
        for row in (0, 1):
            if step >= len(cuts[row]):
                continue
            start, stop = cuts[row][step]
            block = blocks[row]
            piece = replace(
                block, **{f: getattr(block, f)[start:stop] for f in ("rank", "hidden", "stream", "positions")}
            )
            new.append((row, piece, not layout.tokens.hidden[starts[row] + start]))
            index += range(starts[row] + start, starts[row] + stop)
        cache.reserve(tracker.needed(new))
        plan, window_plan = tracker.plans(new, "cpu", part.window)
        at = torch.tensor(index)
        condition = None if packed.condition is None else packed.condition.take(at)
        given = Packed(
            packed.x_TD[at], packed.positions_TA[at], packed.stream_T[at], plan, condition, window_plan=window_plan
        )
        near = _near(part(given, cache).x_TD, whole[at])
        demand(near, "forward", f"piece {step} read with a cache is another one than in one pass")


@check("backbone")
@torch.no_grad()
def a_cache_is_where_the_weights_are(case: BackboneCase) -> None:
    """A cache is made on the weights' device and in their dtype."""
    from mmkit.testing.state import _held

    part = duplicate(case.part).to(torch.bfloat16)
    found = [t for _, t in _held(vars(part.new_cache(1, 4)), "cache")]
    demand(
        all(t.dtype == torch.bfloat16 for t in found if t.is_floating_point()),
        "new_cache",
        "it is not in the weights' dtype",
    )
    found = [t for _, t in _held(vars(part.to("meta").new_cache(1, 4)), "cache")]
    demand(all(t.is_meta for t in found), "new_cache", "it is not on the weights' device")


@check("backbone")
@torch.no_grad()
def no_token_gives_no_state(case: BackboneCase) -> None:
    """An empty sequence gives ``[0, D]``."""
    none = Visibility(*(np.zeros(0, np.int32),) * 3)
    axes = case.part.positions.axes
    condition = Condition(torch.zeros(0, case.part.dim)) if case.part.modulates else None
    nothing = torch.zeros(0, case.part.dim), torch.zeros(0, axes, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    plan = lower(none, device="cpu")
    window_plan = None if case.part.window is None else plan
    found = case.part(Packed(*nothing, plan, condition, window_plan=window_plan)).x_TD
    demand(tuple(found.shape) == (0, case.part.dim), "forward", f"no token gives {tuple(found.shape)}")


@check("backbone")
@torch.no_grad()
def one_token_is_enough(case: BackboneCase) -> None:
    """A sequence of one token, which sees itself only, gives a finite state."""
    layout = join(documents(((("text", (1,)),),), case.part), case.part.positions.axes)
    found = case.part(replace(draw(layout, case.part), memory=None, memory_plan=None)).x_TD
    demand(
        tuple(found.shape) == (1, case.part.dim) and found.isfinite().all(),
        "forward",
        "one token gives no finite state",
    )


@check("backbone")
@torch.no_grad()
def a_condition_is_read_where_it_is_declared(case: BackboneCase) -> None:
    """With `modulates`, other conditions give other states; none counts as zero."""
    if not case.part.modulates:
        raise Inapplicable("it does not modulate")
    packed = case.inputs(case.part)
    condition = packed.condition
    other = case.part(replace(packed, condition=replace(condition, rows_KD=condition.rows_KD + 1))).x_TD
    demand(not _near(other, case.part(packed).x_TD), "modulates", "its states do not depend on the condition")
    zero = case.part(replace(packed, condition=Condition(torch.zeros_like(condition.x_TD)))).x_TD
    demand(
        _near(zero, case.part(replace(packed, condition=None)).x_TD),
        "modulates",
        "no condition is not the same as zero",
    )


@check("backbone")
def conditions_are_those_of_their_tokens(case: BackboneCase) -> None:
    """Conditions that tokens share give the states, and get the gradients, of the same ones said of each token."""
    if not case.part.modulates:
        raise Inapplicable("it does not modulate")
    part = case.lively()
    _, packed = _inline(case)
    index_T = torch.arange(len(packed.x_TD)) % 3
    shared_KD = packed.condition.rows_KD[:3].clone().requires_grad_()
    each_TD = shared_KD.detach()[index_T].requires_grad_()
    alone_KD = shared_KD.detach()[:1].clone().requires_grad_()
    alike_TD = alone_KD.detach().expand_as(each_TD).clone().requires_grad_()
    for few, every, index in ((shared_KD, each_TD, index_T), (alone_KD, alike_TD, index_T * 0)):
        found = [part(replace(packed, condition=c)).x_TD for c in (Condition(few, index), Condition(every))]
        demand(_near(*found), "condition", "states depend on whether tokens share it")
        for x_TD in found:
            (x_TD * torch.linspace(-1, 1, x_TD.numel()).view_as(x_TD)).mean().backward()
        summed_KD = torch.zeros_like(few).index_add(0, index, every.grad)
        demand(_near(few.grad, summed_KD), "condition", "gradients depend on whether tokens share it")


@check("backbone")
@torch.no_grad()
def memory_is_read_where_it_is_declared(case: BackboneCase) -> None:
    """With `crosses`, a document's memory changes its states and no other's."""
    if not case.part.crosses:
        raise Inapplicable("it does not read memory")
    plans = ((("memory", (2, 2)), ("text", (3,))), (("memory", (3,)), ("text", (4,))))
    layout, packed = mixed(case.part, plans)
    first = torch.from_numpy(layout.memory_doc == 0)
    x_SD = _nudged(packed.memory.x_TD, first)
    change = (
        (case.part(replace(packed, memory=replace(packed.memory, x_TD=x_SD))).x_TD - case.part(packed).x_TD)
        .abs()
        .amax(-1)
    )
    mine = torch.from_numpy(layout.doc == 0)
    demand(change[mine].max() > 1e-5, "crosses", "its states do not depend on the memory")
    demand(change[~mine].max() < 1e-5, "crosses", "memory of one document is seen by another")


@check("backbone")
@torch.no_grad()
def routes_are_told_where_they_are_declared(case: BackboneCase) -> None:
    """With `routes`, it tells for each layer which expert read which token; without, nothing."""
    packed = case.inputs(case.part)
    routes = case.part(packed).routes
    if not case.part.routes:
        demand(not routes, "routes", "it gives routes that it does not declare")
        raise Inapplicable("it does not route")
    demand(routes, "routes", "it declares routes and gives none")
    for route in (r for several in routes.values() for r in several):
        demand((route.token_A < len(packed.x_TD)).all(), "routes", "a route names a token that is not there")
        demand((route.expert_A < route.experts).all(), "routes", "a route names an expert that is not there")


@check("backbone")
def auxiliary_losses_are_scalars(case: BackboneCase) -> None:
    """Auxiliary losses are finite scalars with gradients, named by identifiers."""
    losses = case.lively().train()(case.inputs(case.part)).losses
    for name, loss in losses.items():
        demand(loss.ndim == 0 and loss.isfinite(), name, "it is no finite scalar")
        demand(loss.requires_grad and name.isidentifier(), name, "it has no gradient, or no name")


@check("backbone")
@torch.no_grad()
def positions_are_read(case: BackboneCase) -> None:
    """The same tokens further apart give other states, and moved as a whole finite ones."""
    _, packed = _inline(case)
    apart = case.part(replace(packed, positions_TA=packed.positions_TA * 3)).x_TD
    demand(not _near(apart, case.part(packed).x_TD), "positions", "its states do not depend on where tokens stand")


@check("backbone")
def recomputing_changes_nothing(case: BackboneCase) -> None:
    """With `recompute`, which trades time for memory, states and gradients are the same bits."""
    part = case.lively()
    if not hasattr(part, "recompute"):
        raise Inapplicable("it has no `recompute`")
    found = []
    for recompute in (False, True):
        part.recompute = recompute
        part.zero_grad()
        hidden = part(case.inputs(part))
        (hidden.x_TD.square().mean() + sum(hidden.losses.values())).backward()
        found.append([hidden.x_TD.detach(), *(p.grad.clone() for p in part.parameters() if p.grad is not None)])
    demand(all(map(torch.equal, *found)), "recompute", "it changes states or gradients")


@check("backbone")
def every_input_token_gets_a_gradient(case: BackboneCase) -> None:
    """A loss on all hidden states reaches every embedding, and every condition where it modulates."""
    part = case.lively()
    _, packed = _inline(case)
    leaves = [packed.x_TD.requires_grad_()] + ([packed.condition.rows_KD.requires_grad_()] if part.modulates else [])
    x_TD = part(packed).x_TD
    (x_TD * torch.linspace(-1, 1, x_TD.numel()).view_as(x_TD)).sum().backward()
    reached = all(leaf.grad is not None and leaf.grad.abs().sum(-1).min() > 0 for leaf in leaves)
    demand(reached, "forward", "no gradient reaches some of its inputs")
