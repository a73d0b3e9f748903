"""The mixture-of-transformers backbone: one tower is dense; more share nothing but attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sequences import MIXED, STREAMS, TINY, build, build_set, documents, mixed
from torch.testing import assert_close

from mmkit.errors import ContractError
from mmkit.nn.sizes import CrossAttention
from mmkit.nn.split import Split
from mmkit.testing.sequences import CROSSED


def towers_of(dense: torch.nn.Module, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Dense weights, the same in every tower."""
    own = {}
    for name, value in dense.state_dict().items():
        head, _, tail = name.partition(".")
        if head == "blocks":
            layer, _, tail = tail.partition(".")
            own |= {f"blocks.{layer}.towers.{tower}.{tail}": value for tower in names}
        elif head == "last":
            own |= {f"last.towers.{tower}.{tail}": value for tower in names}
        else:
            own[name] = value
    return own


DRESSES: list[dict[str, Any]] = [
    {},
    {"qk_norm": True, "bias": "qkv", "norm": "layer"},
    {"modulation": "adaln", "bias": "all"},
    {"modulation": "adaln_single"},
]


@pytest.mark.parametrize("options", DRESSES)
def test_one_tower_is_dense_bit_for_bit(options: dict[str, Any]) -> None:
    dense = build("dense", **TINY, **options)
    mot = build("mot", **TINY, **options, towers={"all": STREAMS})
    mot.load_state_dict(towers_of(dense, ("all",)))
    packed = mixed(dense)[1]
    ours, theirs = mot(packed).x_TD, dense(packed).x_TD
    assert torch.equal(ours, theirs)
    ours.sum().backward()
    theirs.sum().backward()
    grads = towers_of(_gradients(dense), ("all",))
    # Gradients too, but for the order in which q, k and v add up in the gradient of their common input.
    for name, parameter in mot.named_parameters():
        assert_close(parameter.grad, grads[name], atol=1e-5, rtol=1e-5)


class _gradients:
    """A stand-in whose state is another module's gradients."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.state_dict = lambda: {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("options", DRESSES)
def test_equal_towers_are_dense(options: dict[str, Any]) -> None:
    """To float32 rounding: a product of fewer rows may be computed in another order."""
    dense = build("dense", **TINY, **options)
    mot = build("mot", **TINY, **options)
    mot.load_state_dict(towers_of(dense, STREAMS))
    packed = mixed(dense)[1]
    assert_close(mot(packed).x_TD, dense(packed).x_TD, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gated", [None, True])
def test_hidden_states_move_at_the_ends_only(gated: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between layers only queries, keys, values and what is read do; around cross-attention, which all towers share, too."""
    cross = None if gated is None else CrossAttention(every=1, gated=gated)
    mot = build("mot", **TINY, cross_attention=cross)
    packed = mixed(mot, MIXED if cross is None else CROSSED)[1]
    moved: dict[str, list[int]] = {"apart": [], "together": []}
    for name, shapes in moved.items():
        move = getattr(Split, name)

        def listened(self: Split, x: Any, move: Any = move, shapes: list[int] = shapes) -> Any:
            shapes.append((x if isinstance(x, torch.Tensor) else x[0]).ndim)
            return move(self, x)

        monkeypatch.setattr(Split, name, listened)
    mot(packed)
    crossings = 0 if cross is None else 2
    assert moved["apart"].count(2) == moved["together"].count(2) == 1 + crossings
    assert (moved["apart"].count(3), moved["together"].count(3)) == (2, 6)


def test_a_tower_is_felt_elsewhere_only_through_attention() -> None:
    """A change of the image tower reaches text that sees an image, and no other token."""
    mot = build("mot", **TINY)
    layout, packed = mixed(mot)
    before = mot(packed).x_TD
    with torch.no_grad():
        for name, parameter in mot.named_parameters():
            if ".towers.image." in name:
                parameter.add_(torch.randn_like(parameter))
    changed = (mot(packed).x_TD - before).abs().amax(-1) > 1e-6
    first, second, third = documents_of(layout)
    assert changed[first].tolist() == [False] * 3 + [True] * 8
    assert changed[second].all()
    assert not changed[third].any()


def documents_of(layout: Any) -> list[torch.Tensor]:
    return [torch.from_numpy(layout.doc == number) for number in range(3)]


def test_streams_share_a_tower_where_told() -> None:
    mot = build("mot", **TINY, towers={"understand": ("text", "memory"), "draw": ("image",)})
    assert list(mot.blocks[0].towers) == ["understand", "draw"]
    assert mot.groups == (0, 1, 0)
    assert len(documents((), mot)) == 0


def test_without_towers_every_stream_has_its_own() -> None:
    assert list(build_set("mot").blocks[1].towers) == list(STREAMS)


def test_a_stream_without_a_tower() -> None:
    with pytest.raises(ContractError, match="'memory' is in no group") as caught:
        build("mot", **TINY, towers={"understand": ("text",), "draw": ("image",)})
    assert caught.value.problem.place == "towers"
