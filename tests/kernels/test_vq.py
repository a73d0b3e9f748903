"""The nearest code of each vector."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkit.kernels.dispatch import using
from mmkit.kernels.vq import _nearest_code, chunked, nearest_code
from mmkit.kernels.vq.reference import reference


def distances(x_NC: torch.Tensor, codes_KC: torch.Tensor) -> torch.Tensor:
    return (x_NC.double()[:, None] - codes_KC.double()[None]).square().sum(-1)


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 9), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_no_code_is_nearer(n: int, k: int, c: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, codes = torch.randn(n, c, generator=generator), torch.randn(k, c, generator=generator)
    found = nearest_code(x, codes)
    wanted = distances(x, codes)
    assert found.dtype == torch.int64 and found.shape == (n,)
    # Two codes may be as near as float32 can tell: what is found is at most its rounding farther than the nearest.
    torch.testing.assert_close(wanted[torch.arange(n), found], wanted.amin(1), rtol=1e-5, atol=1e-5)


def test_agrees_with_cdist_in_double() -> None:
    x, codes = torch.randn(500, 16, dtype=torch.float64), torch.randn(64, 16, dtype=torch.float64)
    assert torch.equal(nearest_code(x, codes), torch.cdist(x, codes).argmin(1))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codes = torch.randn(101, 6, dtype=torch.float64), torch.randn(37, 6, dtype=torch.float64)
    whole = reference(x, codes)
    for scores in (1, 37, 100, 37 * 50):
        monkeypatch.setattr(chunked, "CPU_SCORES", scores)
        assert torch.equal(nearest_code(x, codes), whole)


def test_ties_go_to_the_lowest_index() -> None:
    torch.manual_seed(0)
    codes = torch.randn(300, 8)
    order = torch.randperm(600)
    doubled = torch.cat([codes, codes])[order]
    first = torch.tensor([(order % 300 == code).nonzero()[0].item() for code in range(300)])
    x = torch.randn(700, 8)
    found = nearest_code(x, doubled)
    assert torch.equal(found, first[order[found] % 300])


def test_an_exact_match_is_found_by_low_precision_vectors_under_autocast() -> None:
    codes = torch.eye(16)
    with torch.autocast("cpu", torch.bfloat16):
        assert nearest_code(codes.bfloat16(), codes).tolist() == list(range(16))


def test_no_vectors_no_codes_found() -> None:
    assert nearest_code(torch.zeros(0, 4), torch.randn(5, 4)).shape == (0,)


@pytest.mark.parametrize("name", ["chunked", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_a_sound_op(name: str, dtype: torch.dtype) -> None:
    """Torch's own check: schema, shapes without data, autograd, and tracing with dynamic shapes."""
    with using({"nearest_code": name}):
        for count, wants in ((9, False), (0, False), (5, True)):
            inputs = (torch.randn(count, 4, dtype=dtype, requires_grad=wants), torch.randn(6, 4, dtype=dtype))
            torch.library.opcheck(_nearest_code, inputs)


@pytest.mark.slow
def test_it_is_compiled_around() -> None:
    """One graph for any number of vectors, with the result of the uncompiled call."""

    def nearest(x_NC: torch.Tensor, codes_KC: torch.Tensor) -> torch.Tensor:
        return codes_KC[nearest_code(x_NC * 2, codes_KC)] - x_NC

    compiled = torch.compile(nearest, fullgraph=True, dynamic=True)
    codes = torch.randn(20, 4)
    for count in (3, 50):
        x = torch.randn(count, 4)
        torch.testing.assert_close(compiled(x, codes), nearest(x, codes))


def test_nothing_is_differentiated() -> None:
    x, codes = (torch.randn(n, 4, requires_grad=True) for n in (9, 5))
    assert not nearest_code(x, codes).requires_grad
