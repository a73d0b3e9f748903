"""Checks of connectors: ports and counts measured, fold and unfold, any mix of grids, refusals."""

from __future__ import annotations

import math
from typing import get_args

import torch

from mmkit.contracts.port import Space
from mmkit.errors import ContractError
from mmkit.testing.cases import CODES, DIM, ConnectorCase
from mmkit.testing.catalogue import Inapplicable, check, demand


@check("connector", each=False)
def what_it_takes_is_declared(case: ConnectorCase) -> None:
    """`takes` is a frozen set of the spaces that sources give."""
    known = set(get_args(Space))
    demand(isinstance(case.cls.takes, frozenset), "takes", f"it is a {type(case.cls.takes).__name__}, not a frozenset")
    demand(
        case.cls.takes and case.cls.takes <= known, "takes", f"it is {set(case.cls.takes)}; spaces are {sorted(known)}"
    )


@check("connector")
def the_folded_port_is_measured(case: ConnectorCase) -> None:
    """`port` says what stands at one token after `fold`: the space, and how many channels."""
    port = case.part.port
    demand(port.space == case.source.space, "port", f"its space is {port.space}, and {case.source.space} enter")
    for x in case.inputs(case.part):
        folded = case.part.fold(x)
        if port.space == "codes":
            demand(not folded.is_floating_point(), "fold", f"codes become {folded.dtype}")
        else:
            demand(
                folded.shape[-1] == port.width, "port", f"folded tokens are {folded.shape[-1]} wide, not {port.width}"
            )


@check("connector")
def the_folded_grid_is_measured(case: ConnectorCase) -> None:
    """`fold` gives the grid that it should, and `count` of it agrees with `grid`, which says the count beforehand."""
    for x, source in zip(case.inputs(case.part), case.GRIDS, strict=True):
        grid = tuple(case.part.grid(source))
        folded = case.folded(case.part, x)[1]
        counted = case.part.count(folded)
        demand(math.prod(grid) == counted, "grid", f"{source} gives {counted} tokens, and `grid` says {grid}")


@check("connector")
@torch.no_grad()
def the_backbone_width_and_count_are_measured(case: ConnectorCase) -> None:
    """`forward` gives as many tokens as `count` says, each of the backbone's width."""
    counts = [case.part.count(case.folded(case.part, x)[1]) for x in case.inputs(case.part)]
    found = tuple(case.outputs()["embeddings"].shape)
    demand(found == (sum(counts), DIM), "forward", f"it gives {found}, and {(sum(counts), DIM)} is wanted")


@check("connector")
def unfold_is_the_inverse_of_fold(case: ConnectorCase) -> None:
    """What was folded unfolds to the same bits, so that a head's predictions go back into the grid."""
    for x in case.inputs(case.part):
        back = case.part.unfold(case.part.fold(x))
        demand(back.shape == x.shape and torch.equal(back, x), "unfold", "it does not give back what was folded")


@check("connector")
@torch.no_grad()
def embeddings_are_float32_and_finite(case: ConnectorCase) -> None:
    """Embeddings are float32 where the weights are, and finite."""
    x = case.outputs()["embeddings"]
    demand(x.dtype == torch.float32 and x.isfinite().all(), "forward", f"they are {x.dtype}, or not finite")


@check("connector")
@torch.no_grad()
def contents_end_to_end_are_what_each_is_alone(case: ConnectorCase) -> None:
    """Grids of several sizes end to end give what each gives alone."""
    inputs = case.inputs(case.part)
    together = case.outputs()["embeddings"]
    alone = torch.cat([case.drive(case.part, [x])["embeddings"] for x in inputs])
    demand(
        torch.allclose(together, alone, atol=1e-5, rtol=1e-4),
        "forward",
        "a content's embeddings depend on its neighbours",
    )


@check("connector")
@torch.no_grad()
def single_tokens_are_what_they_are_together(case: ConnectorCase) -> None:
    """Unless it declares that it reads `whole` contents, a token gives alone what it gives in its content."""
    if case.part.whole:
        raise Inapplicable("it reads whole contents")
    tokens, grid = case.folded(case.part, case.inputs(case.part)[0])
    alone = torch.cat([case.part(token[None], [(1,)]) for token in tokens])
    together = case.part(tokens, [grid])
    near = alone.shape == together.shape and torch.allclose(alone, together, atol=1e-5, rtol=1e-4)
    demand(near, "whole", "it is false, and a token alone gives something else than among the others")


@check("connector")
@torch.no_grad()
def no_token_gives_no_embedding(case: ConnectorCase) -> None:
    """An empty batch gives ``[0, D]``: a rank without this source still runs its connector."""
    tokens = case.folded(case.part, case.inputs(case.part)[0])[0][:0]
    x = case.part(tokens, [])
    demand(tuple(x.shape) == (0, DIM), "forward", f"no token gives {tuple(x.shape)}, not {(0, DIM)}")


@check("connector")
@torch.no_grad()
def it_reads_its_tokens(case: ConnectorCase) -> None:
    """Other tokens give other embeddings."""
    first, second = (case.outputs(inputs=case.inputs(case.part, seed))["embeddings"] for seed in (0, 1))
    demand(not torch.allclose(first, second), "forward", "its embeddings do not depend on the tokens")


@check("connector")
def a_grid_that_does_not_divide_is_refused(case: ConnectorCase) -> None:
    """Where `grid` cannot take a source's grid it raises `ContractError`, and never gives an empty one."""
    for source in ((5, 7), (1, 1), (4, 5)):
        try:
            grid = case.part.grid(source)
        except ContractError:
            continue
        demand(math.prod(grid) > 0, "grid", f"{source} gives the grid {tuple(grid)}, which has no token")


@check("connector")
def a_table_has_one_row_for_each_code(case: ConnectorCase) -> None:
    """`table`, where it has one, is a parameter ``[codes, D]``, which a head may tie its output to."""
    table = case.part.table
    if table is None:
        raise Inapplicable("it has no table")
    demand(tuple(table.shape) == (CODES, DIM), "table", f"it is {tuple(table.shape)}, not {(CODES, DIM)}")
    demand(any(p is table for p in case.part.parameters()), "table", "it is none of its parameters")
