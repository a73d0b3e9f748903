"""Checks of encoders: ports measured, any mix of sizes, refusals."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkit.errors import ContractError
from mmkit.testing.cases import EncoderCase
from mmkit.testing.catalogue import Inapplicable, check, demand
from mmkit.testing.contents import SIZES, draw
from mmkit.testing.surroundings import same


@check("encoder")
def the_features_port_is_declared(case: EncoderCase) -> None:
    """`port` names a registered modality, the space ``features`` and a width."""
    port = case.part.port
    demand(port.space == "features", "port", f"its space is {port.space}, and an encoder gives features")
    demand(port.width > 0, "port", f"its width is {port.width}")
    demand(port.modality in (*case.registry.names("modality"), "*"), "port", f"no modality is named {port.modality!r}")


@check("encoder")
@torch.no_grad()
def the_features_width_is_measured(case: EncoderCase) -> None:
    """Features are as wide as `port` says."""
    for name, x in case.outputs().items():
        demand(
            x.shape[-1] == case.part.port.width, "port", f"{name} are {x.shape[-1]} wide, not {case.part.port.width}"
        )


@check("encoder")
@torch.no_grad()
def the_features_grid_is_measured(case: EncoderCase) -> None:
    """`grid` says beforehand how many features a content of each size gives."""
    modality = case.registry.find("modality", case.part.port.modality).load()()
    for content, x in zip(case.inputs(case.part), case.outputs().values(), strict=True):
        size = modality.size(content)
        grid = tuple(case.part.grid(size))
        demand(tuple(x.shape[:-1]) == grid, "grid", f"{size} gives {tuple(x.shape[:-1])}, and `grid` says {grid}")
        axes = case.part.port.axes
        demand(len(grid) == axes, "port", f"{size} gives a grid of {len(grid)} axes, and the port says {axes}")


@check("encoder")
@torch.no_grad()
def features_are_floating_point(case: EncoderCase) -> None:
    """Features are float32 where the weights are, and finite."""
    for name, x in case.outputs().items():
        demand(x.dtype == torch.float32, name, f"it is {x.dtype}")
        demand(x.isfinite().all(), name, "it is not finite")


@check("encoder")
@torch.no_grad()
def a_mixed_batch_gives_what_each_gives_alone(case: EncoderCase) -> None:
    """A content's features do not depend on what stands beside it, in evaluation mode."""
    together = case.part(case.inputs(case.part))
    for i, (content, x) in enumerate(zip(case.inputs(case.part), together, strict=True)):
        (alone,) = case.part([content])
        demand(_near(alone, x), f"features of content {i}", "they depend on the other contents of the batch")


def _near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4, rtol=1e-4)


@check("encoder")
@torch.no_grad()
def features_come_in_the_order_of_contents(case: EncoderCase) -> None:
    """Contents in another order give the same features in that order."""
    inputs = case.inputs(case.part)
    forth, back = case.part(inputs), case.part(inputs[::-1])[::-1]
    ordered = all(_near(a, b) for a, b in zip(forth, back, strict=True))
    demand(ordered, "forward", "features do not come in the order of contents")


@check("encoder")
@torch.no_grad()
def no_content_gives_no_features(case: EncoderCase) -> None:
    """An empty batch gives an empty list."""
    demand(list(case.part([])) == [], "forward", "nothing in gives something out")


@check("encoder")
@torch.no_grad()
def it_looks_at_the_content(case: EncoderCase) -> None:
    """Other contents of the same sizes give other features."""
    first, second = (case.outputs(inputs=case.inputs(case.part, seed)) for seed in (0, 1))
    demand(same(first, second), "forward", "its features do not depend on the content")


@check("encoder")
@torch.no_grad()
def any_size_is_taken_or_refused(case: EncoderCase) -> None:
    """`grid` and `forward` agree on which sizes can be taken, and refuse the others with `ContractError`."""
    modality = case.part.port.modality
    if modality not in SIZES:
        raise Inapplicable(f"the kit draws no {modality} of odd sizes")
    frames = (3,) if modality == "video" else ()
    for size in ((*frames, 1, 1), (*frames, 7, 13), (*frames, 40, 24), (*frames, 17, 16)):
        try:
            grid = tuple(case.part.grid(size))
        except ContractError:
            grid = None
        try:
            (x,) = case.part([draw(modality, size, 0)])
        except ContractError:
            demand(grid is None, "forward", f"it refuses {size}, which `grid` takes")
            continue
        demand(grid is not None, "grid", f"it refuses {size}, which `forward` takes")
        demand(tuple(x.shape[:-1]) == grid, "grid", f"{size} gives {tuple(x.shape[:-1])}, and `grid` says {grid}")


@check("encoder")
@torch.no_grad()
def extreme_contents_give_finite_features(case: EncoderCase) -> None:
    """All-black and all-white contents, which have no variance, give finite features."""
    inputs = case.inputs(case.part)
    if not all(isinstance(x, Tensor) for x in inputs):
        raise Inapplicable("its contents are no tensors")
    for name, value in (("black", 0.0), ("white", 1.0)):
        finite = all(x.isfinite().all() for x in case.part([torch.full_like(x, value) for x in inputs]))
        demand(finite, "forward", f"{name} contents give features that are not finite")
