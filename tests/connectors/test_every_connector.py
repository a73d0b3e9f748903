"""What every connector must do, whichever it is."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import pytest
import torch

from mmkit.connectors.embed import Embed
from mmkit.connectors.linear import Linear
from mmkit.connectors.mlp import MLP
from mmkit.connectors.patchify import Patchify
from mmkit.contracts.connector import Connector
from mmkit.contracts.port import Port

D = 16
CASES = {
    "embed": (Embed, {}, Port("text", "codes", codebook_size=11)),
    "embed of 2 books": (Embed, {}, Port("image", "codes", codebook_size=11, codebooks=2)),
    "linear": (Linear, {}, Port("image", "features", 8)),
    "mlp": (MLP, {"merge": 2, "norm": "rms"}, Port("image", "features", 8)),
    "mlp with positions": (MLP, {"position": "learned"}, Port("image", "features", 8)),
    "patchify": (Patchify, {"position": "learned"}, Port("image", "latents", 8)),
    "patchify sincos": (Patchify, {"position": "sincos"}, Port("image", "latents", 8)),
}


@dataclass
class Case:
    """One connector, and how to build it again."""

    part: type[Connector]
    options: dict
    source: Port

    def build(self, seed: int = 1) -> Connector:
        torch.manual_seed(seed)
        return self.part(self.part.Config(**self.options), self.source, D)


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return Case(*CASES[request.param])


def content(source: Port, grid: tuple[int, ...] = (4, 6)) -> torch.Tensor:
    if source.space == "codes":
        return torch.randint(0, source.codebook_size, (*grid, *(source.codebooks,) * (source.codebooks > 1)))
    return torch.randn(*grid, source.width)


def run(connector: Connector, source: Port, x: torch.Tensor) -> torch.Tensor:
    folded = connector.fold(x)
    grid = connector.grid((4, 6))
    tail = folded.shape[len(grid) :]
    return connector(folded.reshape(-1, *tail), [grid])


def test_takes_what_it_was_given_and_gives_backbone_width(case) -> None:
    connector, source = case.build(), case.source
    assert source.space in connector.takes
    out = run(connector, source, content(source))
    assert out.shape == (math.prod(connector.grid((4, 6))), D) and connector.port.space == source.space


def test_every_parameter_gets_a_gradient(case) -> None:
    connector, source = case.build(), case.source
    run(connector, source, content(source)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in connector.parameters())


def test_frozen_it_still_passes_gradients_on(case) -> None:
    connector, source = case.build(), case.source
    connector.requires_grad_(False)
    x = content(source)
    if source.space == "codes":
        assert not run(connector, source, x).requires_grad
        return
    x.requires_grad_(True)
    run(connector, source, x).square().sum().backward()
    assert x.grad.abs().sum() > 0


def test_builds_on_the_meta_device(case) -> None:
    connector = case.build()
    with torch.device("meta"):
        empty = case.build()
    assert {k: v.shape for k, v in empty.state_dict().items()} == {
        k: v.shape for k, v in connector.state_dict().items()
    }
    assert all(p.is_meta for p in empty.parameters())


def test_bf16_stays_bf16_and_near(case) -> None:
    connector, source = case.build(), case.source
    x = content(source)
    want = run(connector, source, x)
    connector.to(torch.bfloat16)
    got = run(connector, source, x if source.space == "codes" else x.to(torch.bfloat16))
    assert got.dtype == torch.bfloat16
    # bf16 keeps 8 bits: sums of a few dozen products of size one are off by a few hundredths.
    torch.testing.assert_close(got.float(), want, atol=5e-2, rtol=5e-2)


def test_state_dict_round_trip(case) -> None:
    connector, source = case.build(), case.source
    file = io.BytesIO()
    torch.save(connector.state_dict(), file)
    file.seek(0)
    again = case.build(seed=2)
    x = content(source)
    assert not torch.equal(run(again, source, x), run(connector, source, x))
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(run(again, source, x), run(connector, source, x))


def test_same_seed_same_weights(case) -> None:
    assert all(torch.equal(a, b) for a, b in zip(case.build().parameters(), case.build().parameters(), strict=True))
