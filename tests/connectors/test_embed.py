"""`embed`: a table, and several of them."""

from __future__ import annotations

import pytest
import torch

from mmkit.connectors.embed import Embed
from mmkit.contracts.port import Port
from mmkit.errors import ContractError

TEXT = Port("text", "codes", codebook_size=50)


def test_equals_an_embedding_layer() -> None:
    connector = Embed(Embed.Config(), TEXT, 16)
    theirs = torch.nn.Embedding(50, 16)
    theirs.load_state_dict({"weight": connector.state_dict()["weight"]})
    codes = torch.randint(0, 50, (23,))
    assert torch.equal(connector(codes, [(11,), (3, 4)]), theirs(codes))
    assert connector.table is connector.weight


def test_several_codebooks_are_summed_from_tables_of_their_own() -> None:
    connector = Embed(Embed.Config(), Port("image", "codes", codebook_size=7, codebooks=3), 8)
    codes = torch.randint(0, 7, (5, 3))
    want = sum(connector.weight[book, codes[:, book]] for book in range(3))
    # Summed in another order: fp32 rounding of three numbers of size 0.02.
    torch.testing.assert_close(connector(codes, [(5,)]), want, atol=1e-8, rtol=0)
    assert connector.table is None and connector.fold(codes) is codes


def test_initial_weights_come_from_the_default_generator_at_a_fiftieth() -> None:
    torch.manual_seed(3)
    one = Embed(Embed.Config(), Port("text", "codes", codebook_size=2000), 32)
    torch.manual_seed(3)
    two = Embed(Embed.Config(), Port("text", "codes", codebook_size=2000), 32)
    assert torch.equal(one.table, two.table)
    # 64,000 draws: the standard error of their deviation is 0.02 / sqrt(128,000).
    assert abs(one.table.std().item() - 0.02) < 5 * 0.02 / 128_000**0.5


def test_grid_and_codes_pass_unchanged() -> None:
    connector = Embed(Embed.Config(), Port("image", "codes", 4, codebook_size=9), 8)
    codes = torch.randint(0, 9, (3, 5))
    assert connector.grid((3, 5)) == (3, 5)
    assert connector.fold(codes) is codes and connector.unfold(codes) is codes
    assert connector.port == Port("image", "codes", 4, codebook_size=9)


def test_refuses_what_is_not_codes() -> None:
    with pytest.raises(ContractError, match="reads codes, not image latents"):
        Embed(Embed.Config(), Port("image", "latents", 4), 8)
