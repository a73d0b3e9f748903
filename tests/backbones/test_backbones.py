"""What every backbone must do, in all its dresses: the conformance kit, with more options than it tries by itself, and more.

Tolerances of 1e-5 (1e-4 for gradients, which add up over tokens): float32, where other shapes mean another order of sums.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sequences import CLASSES, MIXED, SETS, STREAMS, TINY, build, build_set, documents, mixed, part_spec, place
from torch.testing import assert_close

from mmkit.contracts.values import Condition, Packed
from mmkit.errors import ContractError
from mmkit.sequence.layout import join
from mmkit.sequence.tracker import Tracker
from mmkit.sequence.visibility import Visibility
from mmkit.testing import conformance

everywhere = pytest.mark.parametrize("name", SETS)
DRESSES = {
    ("backbone", kind): tuple({**TINY, **own} for other, own in SETS.values() if other == kind and own)
    for kind in CLASSES
}

test_conformance_of_dresses = conformance(*(f"backbone/{kind}" for kind in CLASSES), examples=DRESSES, slow=False)


def part(packed: Packed, index: slice) -> tuple[torch.Tensor, Condition | None]:
    condition = packed.condition
    return packed.x_TD[index], condition and condition.take(torch.arange(condition.count)[index])


@everywhere
def test_packed_equals_one_by_one(name: str) -> None:
    backbone = build_set(name)
    layout, packed = mixed(backbone)
    together = backbone(packed).x_TD
    for number, document in enumerate(documents(MIXED, backbone)):
        where = np.flatnonzero(layout.doc == number)
        index = slice(where[0], where[-1] + 1)
        alone = backbone(place(join([document], 1), *part(packed, index), backbone.window)).x_TD
        assert_close(together[index], alone, atol=1e-5, rtol=1e-5)


@everywhere
@torch.no_grad()
def test_cached_equals_uncached(name: str) -> None:
    """Two documents are read side by side in pieces of changing length; a noised copy is read once and forgotten."""
    backbone = build_set(name).eval()
    layout, packed = mixed(backbone)
    whole = backbone(packed).x_TD
    starts = {row: int(np.flatnonzero(layout.doc == row)[0]) for row in (0, 1)}
    cuts = {0: [(0, 3), (3, 9), (9, 10), (10, 11)], 1: [(0, 4), (4, 9), (9, 13), (13, 17), (17, 18)]}
    hidden = layout.tokens.hidden
    cache, tracker = backbone.new_cache(2, 4), Tracker(2)
    for step in range(5):
        new, index = [], []
        for row in (0, 1):
            if step >= len(cuts[row]):
                continue
            start, stop = (starts[row] + n for n in cuts[row][step])
            block = documents(MIXED, backbone)[row].tokens
            piece = replace(
                block,
                **{f: getattr(block, f)[slice(*cuts[row][step])] for f in ("rank", "hidden", "stream", "positions")},
            )
            new.append((row, piece, not hidden[start]))
            index += range(start, stop)
        cache.reserve(tracker.needed(new))
        plan, window_plan = tracker.plans(new, "cpu", backbone.window)
        index = torch.tensor(index)
        given = Packed(
            packed.x_TD[index], packed.positions_TA[index], packed.stream_T[index], plan,
            packed.condition and packed.condition.take(index), window_plan=window_plan,
        )  # fmt: skip
        assert_close(backbone(given, cache).x_TD, whole[index], atol=1e-5, rtol=1e-5)


@everywhere
def test_bf16_weights_and_bf16_autocast_run_close_to_float32(name: str) -> None:
    """Two blocks in bf16 (8 bits of mantissa) stay within a few percent; experts may change, so those only have to run."""
    backbone = build_set(name)
    packed = mixed(backbone)[1]
    exact = backbone(packed).x_TD.detach()
    with torch.autocast("cpu", torch.bfloat16):
        cast = backbone(packed).x_TD
    cast.sum().backward()
    narrow = backbone.bfloat16()(replace(packed, x_TD=packed.x_TD.bfloat16(), condition=_bf16(packed.condition))).x_TD
    assert narrow.dtype == torch.bfloat16
    assert backbone.new_cache(1, 4).keys[0].dtype == torch.bfloat16
    for result in (cast.detach().float(), narrow.detach().float()):
        assert result.isfinite().all()
        if SETS[name][0] != "moe":
            assert (result - exact).norm() / exact.norm() < 0.05


def _bf16(x: Condition | None) -> Condition | None:
    return None if x is None else replace(x, rows_KD=x.rows_KD.bfloat16())


@everywhere
def test_no_tokens_at_all_use_every_weight(name: str) -> None:
    """A rank of a sharded run may get an empty batch; it must still take part in every gradient."""
    backbone = build_set(name)
    empty = replace(
        mixed(backbone)[1], x_TD=torch.zeros(0, 32), positions_TA=torch.zeros(0, 1, dtype=torch.long),
        stream_T=torch.zeros(0, dtype=torch.long), plan=mixed(backbone, ((),))[1].plan,
        condition=Condition(torch.zeros(0, 32)) if backbone.modulates else None,
        window_plan=mixed(backbone, ((),))[1].window_plan,
    )  # fmt: skip
    hidden = backbone(empty)
    (hidden.x_TD.sum() + sum(hidden.losses.values())).backward()
    assert hidden.x_TD.shape == (0, 32)
    assert [n for n, p in backbone.named_parameters() if p.grad is None or p.grad.any()] == []


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("kind", CLASSES)
def test_the_memory_is_read_by_cross_attention(kind: str, gated: bool) -> None:
    from mmkit.nn.sizes import CrossAttention

    plans = ((("memory", (2, 2)), ("text", (3,)), ("memory", (3,)), ("text", (2,))), (("text", (4,)),))
    backbone = build(kind, **{**TINY, "depth": 3}, cross_attention=CrossAttention(every=2, gated=gated))
    assert backbone.crosses and list(backbone.cross_blocks) == ["0", "2"]
    _, packed = mixed(backbone, plans)
    with_memory = backbone(packed).x_TD
    without = backbone(replace(packed, memory=None, memory_plan=None)).x_TD
    changed = (with_memory - without).abs().amax(-1) > 1e-6
    assert changed[:5].all()
    assert not changed[5:].any(), "the second document has no memory"
    later = packed.memory.x_TD.clone()
    later[4:] += 1
    seen = (backbone(replace(packed, memory=replace(packed.memory, x_TD=later))).x_TD - with_memory).abs().amax(
        -1
    ) > 1e-6
    assert seen.tolist() == [False] * 3 + [True] * 2 + [False] * 4, "an image is seen from where it stands on"
    backbone.zero_grad()
    backbone(replace(packed, memory=None, memory_plan=None)).x_TD.square().sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == [], "every rank uses every weight"


def test_gated_layers_start_as_if_they_were_not_there() -> None:
    from mmkit.nn.sizes import CrossAttention

    bare = build("dense", **TINY, lively=False)
    gated = build("dense", **TINY, lively=False, cross_attention=CrossAttention(every=1))
    gated.load_state_dict(bare.state_dict(), strict=False)
    _, packed = mixed(gated, ((("memory", (2,)), ("text", (3,))),))
    assert torch.equal(gated(packed).x_TD, bare(replace(packed, memory=None, memory_plan=None)).x_TD)


@pytest.mark.parametrize("modulation", ["adaln", "adaln_single"])
def test_modulated_blocks_start_as_identity(modulation: str) -> None:
    backbone = build("dense", **TINY, modulation=modulation, lively=False)
    _, packed = mixed(backbone)
    x = packed.x_TD
    if modulation == "adaln_single":
        packed = replace(packed, condition=None)
    assert_close(backbone(packed).x_TD, torch.nn.functional.rms_norm(x, (32,), eps=1e-6))


@pytest.mark.parametrize("modulation", ["adaln", "adaln_single"])
def test_no_condition_is_condition_zero(modulation: str) -> None:
    backbone = build("dense", **TINY, modulation=modulation)
    _, packed = mixed(backbone)
    none = backbone(replace(packed, condition=None)).x_TD
    assert torch.equal(none, backbone(replace(packed, condition=Condition(torch.zeros_like(packed.x_TD)))).x_TD)
    assert not torch.allclose(none, backbone(packed).x_TD)


@pytest.mark.parametrize(
    "scheme", [("rope", {"fraction": 0.5}), ("rope", {"fraction": 0.0}), ("mrope", {}), ("axial", {})]
)
def test_every_position_scheme_turns_heads(scheme: tuple[str, dict[str, float]]) -> None:
    name, options = scheme
    backbone = build("dense", **TINY, positions=part_spec("positions", name, **options))
    layout = join(documents(MIXED, backbone), backbone.positions.axes)
    x = torch.randn(len(layout), 32)
    packed = place(layout, x, None)
    moved = replace(packed, positions_TA=packed.positions_TA + 7)
    # Turns depend on differences alone; a shift changes what float32 rounds away.
    assert_close(backbone(packed).x_TD, backbone(moved).x_TD, atol=1e-4, rtol=1e-4)
    still = replace(packed, positions_TA=torch.zeros_like(packed.positions_TA))
    assert torch.allclose(backbone(packed).x_TD, backbone(still).x_TD) == (options.get("fraction") == 0.0)


@pytest.mark.parametrize(
    ("window", "reach"),
    [
        ({"size": 3}, (4, 5)),
        ({"size": 3, "full_every": 2}, (9, 8)),
        ({"size": 3, "full_every": 5}, (4, 5)),
        ({"size": 3, "first_full": 1}, (9, 8)),
        ({"size": 9}, (9, 8)),
    ],
)
@pytest.mark.parametrize("kind", CLASSES)
def test_how_far_a_token_is_felt(kind: str, window: dict[str, int], reach: tuple[int, int]) -> None:
    """Two layers of a window of 3 carry a token 4 positions on, and through all of an image that the first of them reaches."""
    backbone = build(kind, **TINY, window=window)
    plans = ((("text", (10,)),), (("text", (2,)), ("image", (2, 2)), ("text", (3,))))
    for plan, far in zip(plans, reach, strict=True):
        _, packed = mixed(backbone, (plan,))
        x_TD = packed.x_TD.clone()
        x_TD[0] += torch.linspace(-1.0, 2.0, 32)
        moved = (backbone(replace(packed, x_TD=x_TD)).x_TD - backbone(packed).x_TD).abs().amax(-1) > 1e-6
        assert moved.nonzero()[-1] == far


def test_windowed_layers_may_turn_by_other_frequencies() -> None:
    other = part_spec("positions", "rope", theta=7.0)
    for kind in CLASSES:
        plain, own = (build(kind, **TINY, window={"size": 3, **more}) for more in ({}, {"positions": other}))
        everywhere = build(kind, **TINY, window={"size": 3}, positions=other)
        packed = mixed(plain)[1]
        assert torch.equal(own(packed).x_TD, everywhere(packed).x_TD)
        assert not torch.allclose(own(packed).x_TD, plain(packed).x_TD, atol=1e-3)
        some = build(kind, **TINY, window={"size": 3, "full_every": 2, "positions": other})(packed).x_TD
        assert not torch.allclose(some, own(packed).x_TD, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "place_"),
    [
        ({"num_heads": 5}, "num_heads"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads"),
        ({"hidden_dim": 64, "mlp_ratio": 4.0}, "mlp_ratio"),
        ({"dim": 36, "num_heads": 4, "num_kv_heads": 4}, "positions"),
        ({"window": {"size": 3, "full_every": 1}}, "window"),
        ({"window": {"size": 3, "first_full": 2}}, "window"),
        ({"window": {"size": 3, "positions": part_spec("positions", "mrope")}}, "window.positions"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, float], place_: str) -> None:
    with pytest.raises(ContractError) as caught:
        build("dense", **{**TINY, **options})
    assert caught.value.problem.place == place_
    assert caught.value.problem.remedy


@pytest.mark.parametrize("kind", CLASSES)
def test_dense_options_are_understood_by_all(kind: str) -> None:
    build(kind, **TINY, head_dim=16, mlp_ratio=2.0, activation="geglu", bias="qkv", norm="layer", norm_eps=1e-5)


def test_widths_that_follow() -> None:
    config = CLASSES["dense"].Config
    assert config(depth=1, dim=4096, num_heads=32, positions=None).mlp_width == 10928  # 8/3 of 4096, up to 8
    assert config(depth=1, dim=256, num_heads=4, activation="gelu", positions=None).mlp_width == 1024
    assert config(depth=1, dim=256, num_heads=4, mlp_ratio=2.5, positions=None).mlp_width == 640
    assert config(depth=1, dim=256, num_heads=4, positions=None).head_width == 64


def test_a_batch_with_all_streams_of_one_tower_gone() -> None:
    backbone = build("mot", **TINY)
    layout, packed = mixed(backbone, ((("text", (4,)),),))
    backbone(packed).x_TD.square().sum().backward()
    touched = {n: bool(p.grad.any()) for n, p in backbone.named_parameters()}
    assert all(any_ == (".text." in n) for n, any_ in touched.items())
    assert len(Visibility.of(layout)) == 4
    assert set(STREAMS) == set(backbone.last.towers)
