"""Positions: coordinates and frequencies against transformers and diffusers, and what all schemes share."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkit.contracts.positions import Positions
from mmkit.errors import ContractError
from mmkit.kernels.rope import rope
from mmkit.nn.rotary import Rotary
from mmkit.sequence.positions import Axial, MRope, Rope

ROPE = Rope(Rope.Config())
MROPE = MRope(MRope.Config())
AXIAL = Axial(Axial.Config())
SCHEMES = [ROPE, MROPE, AXIAL]


def angles(positions: Positions, place_TA: np.ndarray, head_dim: int) -> torch.Tensor:
    """``[T, P]``, float64: what a rotary layer turns by."""
    frequency_P, axis_P = positions.frequencies(head_dim)
    return torch.from_numpy(place_TA)[:, axis_P].double() * frequency_P


def walk(positions: Positions, grids: list[tuple[int, ...]]) -> np.ndarray:
    """The coordinates of spans one after the other."""
    places, cursor = [], 0
    for grid in grids:
        place, cursor = positions.place(cursor, grid, False)
        places.append(place)
    return np.concatenate(places)


grids = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
# A video longer than wide is left out: the paper and the first implementation go on after its last frame, while
# transformers 5 goes on after its width, which puts later text on positions that frames have taken.
seen_grids = st.one_of(
    st.tuples(st.integers(1, 6)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 4), st.integers(4, 5), st.integers(1, 5)),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(seen_grids, min_size=1, max_size=5))
def test_mrope_places_what_qwen2_vl_places(spans: list[tuple[int, ...]]) -> None:
    modeling = pytest.importorskip("transformers.models.qwen2_vl.modeling_qwen2_vl")
    merge = 2
    # Text between any two pictures, as Qwen's own start and end tokens ensure.
    spans = [s for span in spans for s in (span, (1,))]
    kinds = [kind for span in spans for kind in [min(len(span), 3) - 1] * math.prod(span)]

    def whole(axes: int) -> torch.Tensor:
        return torch.tensor([(1,) * (3 - axes) + tuple(s) for s in spans if len(s) == axes]) * torch.tensor(
            [1, merge, merge]
        )

    owner = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=merge)))
    owner.get_vision_position_ids = modeling.Qwen2VLModel.get_vision_position_ids.__get__(owner)
    want, _ = modeling.Qwen2VLModel.get_rope_index(
        owner,
        torch.zeros(1, len(kinds), dtype=torch.int64),
        torch.tensor([kinds]),
        whole(2) if any(len(s) == 2 for s in spans) else None,
        whole(3) if any(len(s) == 3 for s in spans) else None,
    )
    np.testing.assert_array_equal(walk(MROPE, spans), want[:, 0].T.numpy())


def test_what_follows_a_long_video_stands_after_its_last_frame() -> None:
    place, cursor = MROPE.place(7, (9, 2, 3), False)
    assert place.max() + 1 == cursor == 16


def turn(positions: Positions, place_TA: np.ndarray, q_TNH: torch.Tensor) -> torch.Tensor:
    """What the rotary layer makes of heads at these places."""
    made = Rotary(positions, q_TNH.shape[-1])(torch.from_numpy(place_TA))
    assert made is not None
    return rope(q_TNH, q_TNH, made.cos_T1F, made.sin_T1F)[0]


def test_rope_turns_as_llama_does() -> None:
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=128, num_attention_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )
    q_TNH = torch.randn(50, 2, 64, generator=torch.Generator().manual_seed(0))
    cos, sin = modeling.LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(50)[None])
    want, _ = modeling.apply_rotary_pos_emb(q_TNH[None], q_TNH[None], cos, sin, unsqueeze_dim=2)
    got = turn(Rope(Rope.Config(theta=5e5)), np.arange(50)[:, None], q_TNH)
    torch.testing.assert_close(got, want[0], atol=1e-5, rtol=0)  # both angles are rounded to float32


def test_partial_rope_turns_as_phi_does() -> None:
    modeling = pytest.importorskip("transformers.models.phi.modeling_phi")
    from transformers import PhiConfig

    config = PhiConfig(
        hidden_size=128, num_attention_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
    )  # fmt: skip
    cos, sin = modeling.PhiRotaryEmbedding(config)(torch.zeros(1), torch.arange(50)[None])
    got = angles(Rope(Rope.Config(fraction=0.25)), np.arange(50)[:, None], 64)
    assert got.shape == (50, 8) and cos.shape[-1] == 16  # theirs says each angle twice
    torch.testing.assert_close(got.cos().float(), cos[0, :, :8], atol=1e-5, rtol=0)
    torch.testing.assert_close(got.sin().float(), sin[0, :, :8], atol=1e-5, rtol=0)


def test_rope_scales_linearly_as_transformers_does() -> None:
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=64, num_attention_heads=1,
        rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    )  # fmt: skip
    want, _ = ROPE_INIT_FUNCTIONS["linear"](config, "cpu")
    frequency, _ = Rope(Rope.Config(scaling_factor=4.0)).frequencies(64)
    torch.testing.assert_close(frequency.float(), want)


def test_chunked_mrope_turns_as_qwen2_vl_does() -> None:
    modeling = pytest.importorskip("transformers.models.qwen2_vl.modeling_qwen2_vl")
    from transformers import Qwen2VLTextConfig

    sections = (4, 6, 6)
    config = Qwen2VLTextConfig(
        hidden_size=64, num_attention_heads=2, num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections)},
    )  # fmt: skip
    rotary = modeling.Qwen2VLRotaryEmbedding(config)
    place = walk(MROPE, [(3,), (4, 5), (2,), (2, 3, 3)])
    cos, sin = rotary(torch.zeros(1), torch.from_numpy(place.T)[:, None])
    q_TNH = torch.randn(len(place), 2, 32, generator=torch.Generator().manual_seed(0))
    want, _ = modeling.apply_rotary_pos_emb(q_TNH[None], q_TNH[None], cos, sin, unsqueeze_dim=2)
    got = turn(MRope(MRope.Config(theta=1e6, sections=sections)), place, q_TNH)
    torch.testing.assert_close(got, want[0], atol=1e-5, rtol=0)  # both angles are rounded to float32


def test_interleaved_mrope_turns_as_qwen3_vl_does() -> None:
    modeling = pytest.importorskip("transformers.models.qwen3_vl.modeling_qwen3_vl")
    from transformers import Qwen3VLTextConfig

    config = Qwen3VLTextConfig(
        hidden_size=64, num_attention_heads=2, head_dim=32,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5]},
    )  # fmt: skip
    rotary = modeling.Qwen3VLTextRotaryEmbedding(config)
    place = walk(MROPE, [(3,), (4, 5), (2,), (2, 3, 3)])
    cos, _ = rotary(torch.zeros(1), torch.from_numpy(place.T)[:, None])
    derived = MRope(MRope.Config(theta=5e6, arrangement="interleaved"))
    named = MRope(MRope.Config(theta=5e6, arrangement="interleaved", sections=(6, 5, 5)))
    for scheme in (derived, named):
        torch.testing.assert_close(angles(scheme, place, 32).cos().float(), cos[0, :, :16], atol=1e-5, rtol=0)


def test_axial_turns_as_flux_does() -> None:
    transformer_flux = pytest.importorskip("diffusers.models.transformers.transformer_flux")
    place, _ = AXIAL.place(0, (5, 7), False)
    # FLUX repeats each angle for the two neighbours of a pair
    cos, sin = transformer_flux.FluxPosEmbed(10000, [16, 56, 56])(torch.from_numpy(place).float())
    got = angles(Axial(Axial.Config(axes_dim=(16, 56, 56))), place, 128)
    torch.testing.assert_close(got.cos().float(), cos[:, ::2], atol=1e-6, rtol=0)
    torch.testing.assert_close(got.sin().float(), sin[:, ::2], atol=1e-6, rtol=0)


@pytest.mark.parametrize("scheme", SCHEMES)
@given(grid=grids, cursor=st.integers(0, 50), shared=st.booleans())
def test_places_are_new_and_the_cursor_is_past_them(
    scheme: Positions, grid: tuple[int, ...], cursor: int, shared: bool
) -> None:
    place, after = scheme.place(cursor, grid, shared)
    assert place.shape == (math.prod(grid), scheme.axes) and place.dtype == np.int64
    assert cursor <= place[:, 0].min() and place[:, 0].max() < after
    assert len(np.unique(place, axis=0)) == (1 if shared else len(place))
    if shared:
        assert after == cursor + 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_is_placed_alike_whole_or_token_by_token(scheme: Positions) -> None:
    np.testing.assert_array_equal(walk(scheme, [(6,)]), walk(scheme, [(1,)] * 6))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shared", [True, False])
def test_an_empty_span_takes_no_place(scheme: Positions, shared: bool) -> None:
    place, after = scheme.place(5, (0,), shared)
    assert place.shape == (0, scheme.axes) and after == 5


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("head_dim", [8, 32, 64, 80, 96, 128])
def test_derived_sections_use_every_pair(scheme: Positions, head_dim: int) -> None:
    with torch.device("meta"):
        frequency, axis = scheme.frequencies(head_dim)
    assert frequency.device.type == axis.device.type == "cpu"
    assert frequency.shape == axis.shape == (head_dim // 2,)
    assert frequency.dtype == torch.float64 and axis.dtype == torch.int64
    assert set(axis.tolist()) == set(range(scheme.axes))


def test_axial_puts_video_frames_along_the_sequence_where_there_is_no_axis_for_them() -> None:
    place, after = AXIAL.place(3, (2, 1, 2), False)
    assert place.tolist() == [[3, 0, 0], [3, 0, 1], [4, 0, 0], [4, 0, 1]] and after == 5
    four = Axial(Axial.Config(axes_dim=(8, 8, 8, 8)))
    place, after = four.place(3, (2, 1, 2), False)
    assert place.tolist() == [[3, 0, 0, 0], [3, 0, 0, 1], [3, 1, 0, 0], [3, 1, 0, 1]] and after == 4


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: ROPE.frequencies(33), "33 channels|33 of 33"),
        (lambda: MROPE.frequencies(33), "33 channels"),
        (lambda: MRope(MRope.Config(sections=(16, 24, 24))).frequencies(64), "64 pairs.*has 32"),
        (
            lambda: MRope(MRope.Config(sections=(2, 6, 6), arrangement="interleaved")).frequencies(64),
            "cannot alternate",
        ),
        (lambda: MROPE.place(0, (1, 2, 3, 4), False), "4 axes"),
        (lambda: AXIAL.place(0, (1, 2, 3, 4), False), "4 axes"),
        (lambda: Axial.Config(axes_dim=(15, 17)), "even"),
        (lambda: Axial.Config(axes_dim=(16,)), "two axes"),
        (lambda: Axial(Axial.Config(axes_dim=(16, 56, 56))).frequencies(64), "64 channels"),
    ],
)
def test_what_does_not_fit_is_refused(act: object, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        act()  # type: ignore[operator]
