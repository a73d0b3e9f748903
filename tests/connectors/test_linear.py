"""`linear`: one projection of whatever vectors come."""

from __future__ import annotations

import pytest
import torch

from mmkit.connectors.linear import Linear
from mmkit.contracts.port import Port
from mmkit.errors import ContractError


@pytest.mark.parametrize("space", ["latents", "features", "codes"])
def test_projects_each_vector_and_leaves_the_grid_alone(space: str) -> None:
    source = Port("image", space, 6, codebook_size=32 if space == "codes" else None)
    connector = Linear(Linear.Config(), source, 10)
    assert connector.port == source and connector.grid((3, 4)) == (3, 4)
    x = torch.randn(3, 4, 6)
    assert connector.fold(x) is x and connector.unfold(x) is x
    out = connector(x.reshape(-1, 6), [(3, 4)])
    layer = torch.nn.Linear(6, 10)
    layer.load_state_dict({k.removeprefix("projection."): v for k, v in connector.state_dict().items()})
    assert torch.equal(out, layer(x.reshape(-1, 6)))


def test_bias_can_be_left_out() -> None:
    assert set(Linear(Linear.Config(bias=False), Port("image", "latents", 6), 10).state_dict()) == {"projection.weight"}


def test_codes_without_vectors_are_refused() -> None:
    with pytest.raises(ContractError, match=r"no vectors to project.*`embed`"):
        Linear(Linear.Config(), Port("text", "codes", codebook_size=256), 8)
