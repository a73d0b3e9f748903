"""The nearest code of each vector."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkit.kernels.vq import nearest_code, reference


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


def test_chunks_change_nothing() -> None:
    x, codes = torch.randn(101, 6, dtype=torch.float64), torch.randn(37, 6, dtype=torch.float64)
    whole = reference.nearest_code(x, codes)
    for scores in (1, 37, 100, 37 * 50):
        assert torch.equal(reference.nearest_code(x, codes, scores), whole)


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
