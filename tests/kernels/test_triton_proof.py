"""The real proofs of the real Triton kernels: they pass in the interpreter; and where mmkit asks for them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from interpreting import interpret
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mmkit.kernels import cross_entropy, decode, experts, norm, rope, route, vq
from mmkit.kernels.dispatch import load
from mmkit.kernels.route import Scheme
from mmkit.registry import OPS
from mmkit.sequence import lowering
from mmkit.sequence.visibility import Visibility

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

PROVED = tuple(op for op in OPS if op != "linear")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What the interpreter made of every proof."""
    return interpret("interpreted_proof")


@pytest.mark.parametrize("op", PROVED)
def test_the_kernel_passes(interpreted: dict[str, Any], op: str) -> None:
    assert interpreted[op]["passed"], interpreted[op]["facts"]


def test_no_other_kernel_of_mmkit_has_a_proof(interpreted: dict[str, Any]) -> None:
    assert set(interpreted) == set(PROVED)
    assert all(load(op, "triton").function.proof[0] for op in PROVED)
    assert not load("decode", "triton_unsplit").function.proof[0]


def test_what_is_asked_for_is_as_wide_as_the_kernels_take() -> None:
    from mmkit.kernels.attention import triton as attention_kernels
    from mmkit.kernels.cross_entropy import triton as loss_kernels
    from mmkit.kernels.decode import triton as decode_kernels
    from mmkit.kernels.norm import triton as norm_kernels
    from mmkit.kernels.rope import triton as rope_kernels
    from mmkit.kernels.route import triton as route_kernels

    assert attention_kernels.WIDTHS[-1] == lowering.WIDEST and decode_kernels.WIDTHS[-1] == decode.WIDEST
    assert norm_kernels.WIDTHS[-1] == norm.WIDEST and rope_kernels.WIDTHS[-1] == rope.WIDEST
    assert route_kernels.WIDTHS[-1] == route.MOST and cross_entropy.HALF == loss_kernels.DTYPES
    for count, groups in ((12, 3), (40, 1), (256, 8), (300, 1), (6, 6)):
        many, size = route_kernels.padded(count, groups)
        assert max(route._up(groups) * route._up(count // groups), route_kernels.WIDTHS[0]) == many * size


class Asked(Exception):
    """Carries what an op would choose among."""


def asked(module: ModuleType, run: Callable[[Callable[..., Tensor]], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What an op chooses among on a GPU; `run` makes its tensors there, without memory."""

    def choose_for(op: str, own: Any, reason: str, x: Tensor, *others: Tensor) -> None:
        raise Asked(own, x.dtype)

    monkeypatch.setattr(module, "choose_for", choose_for)
    with FakeTensorMode(), pytest.raises(Asked) as caught:
        run(lambda *shape, dtype=torch.bfloat16: torch.empty(shape, device="cuda", dtype=dtype))
    return caught.value.args[0]


def decoded(new: Any, width: int, cached: torch.dtype) -> None:
    keys = new(2, 2, 9, width, dtype=cached)
    decode.decode(new(2, 1, 4, width), keys, keys, None, new(2, dtype=torch.int32), None)


def mixed(new: Any, dim: int) -> None:
    load = new(2, dtype=torch.int64)
    token = new(3, dtype=torch.int64)
    experts.experts(new(5, dim), new(2, 48, dim), new(2, dim, 24), token, new(3), load, "swiglu")


def lost(new: Any, dtype: torch.dtype, codes: int = 20) -> None:
    ids = new(1 << 16, dtype=torch.int64)
    cross_entropy.linear_cross_entropy(new(1 << 16, 8, dtype=dtype), [new(codes, 8, dtype=dtype)], [], ids)


@pytest.mark.parametrize(
    ("module", "run", "own"),
    [
        (norm, lambda new: norm.norm(new(3, 8192), "rms"), ("triton", "eager")),
        (norm, lambda new: norm.norm(new(3, 8193), "rms"), "eager"),
        (rope, lambda new: rope.rope(new(3, 2, 256), new(3, 2, 256)), ("triton", "eager")),
        (rope, lambda new: rope.rope(new(3, 2, 258), new(3, 2, 258)), "eager"),
        (decode, lambda new: decoded(new, 128, torch.bfloat16), ("triton", "sdpa")),
        (decode, lambda new: decoded(new, 136, torch.bfloat16), "sdpa"),
        (decode, lambda new: decoded(new, 64, torch.float32), "sdpa"),
        (route, lambda new: route.route(new(3, 512), None, Scheme(2)), ("triton", "reference")),
        (route, lambda new: route.route(new(3, 384), None, Scheme(2, groups=3)), ("triton", "reference")),
        (route, lambda new: route.route(new(3, 520), None, Scheme(2)), "reference"),
        (route, lambda new: route.route(new(3, 390), None, Scheme(2, groups=3)), "reference"),
        (vq, lambda new: vq._nearest_code._init_fn(new(3, 2), new(4, 2)), ("triton", "chunked")),
        (cross_entropy, lambda new: lost(new, torch.bfloat16), ("triton", "plain")),
        (cross_entropy, lambda new: lost(new, torch.float16, 1 << 20), ("triton", "chunked")),
        (cross_entropy, lambda new: lost(new, torch.float32), "plain"),
        (experts, lambda new: experts.grouped_linear(new(3, 12), new(2, 8, 12), new(2)), "reference"),
    ],
)
def test_where_it_is_asked_for(module: ModuleType, run: Any, own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(module, run, monkeypatch) == own


@pytest.mark.parametrize("capability", [(8, 0), (7, 5)])
def test_mixtures_ask_where_widths_are_whole(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "capability", lambda device: capability)
    plain = "grouped" if capability >= (8, 0) else "reference"
    assert asked(experts, lambda new: mixed(new, 16), monkeypatch) == ("triton", plain)
    assert asked(experts, lambda new: mixed(new, 12), monkeypatch) == "reference"
    linear = asked(experts, lambda new: experts.grouped_linear(new(3, 16), new(2, 8, 16), new(2)), monkeypatch)
    assert linear == ("triton", plain)


def test_attention_asks_where_dtype_and_width_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def owned(count: int, **known: Any) -> Any:
        seen = Visibility(*np.zeros((3, count), np.int32))
        with pytest.raises(Asked) as caught:
            lowering.lower(seen, device="cuda", **known)
        return caught.value.args

    def choose(op: str, site: Any, own: Any, reason: str, *, named: str) -> None:
        raise Asked(own, site.dtype)

    monkeypatch.setattr(lowering, "choose", choose)
    monkeypatch.setattr(lowering, "capability", lambda device: (9, 0))
    assert owned(8) == ("dense", None) and owned(2000) == ("flex", None)
    assert owned(8, dtype=torch.bfloat16) == ("dense", None)
    assert owned(8, dtype=torch.bfloat16, head_dim=128) == (("triton", "dense"), torch.bfloat16)
    assert owned(2000, dtype=torch.float16, head_dim=64) == (("triton", "flex"), torch.float16)
    assert owned(2000, dtype=torch.float16, head_dim=136) == ("flex", None)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    assert owned(8, dtype=torch.float32, head_dim=64) == (("triton", "dense"), torch.bfloat16)
