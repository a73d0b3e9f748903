"""Models kept in bf16: what is kept so, that all of them generate, and that many rows and few agree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from click.testing import CliRunner
from torch import Tensor

import mmkit
from mmkit.cli.generate import command
from mmkit.contracts.options import Sampling
from mmkit.errors import ContractError
from mmkit.kernels import linear
from mmkit.train import train

# bf16 rounds at 2**-9 of a value, here a few dozen times in two layers and in another order or number of rows.
NEAR = 0.05


@pytest.fixture(autouse=True)
def without_native_bf16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CPU that keeps float32 weights beside those in bf16."""
    monkeypatch.setattr(linear, "emulated", lambda dtype: True)
    linear.forget()
    yield
    linear.forget()


def dtypes(module: torch.nn.Module) -> set[torch.dtype]:
    return {x.dtype for x in (*module.parameters(), *module.buffers()) if x.is_floating_point()}


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_pattern_generates_in_bf16(kind: str) -> None:
    model = tiny.model(kind).keep("bfloat16")
    names = set(model.state_dict())
    drawn = model.generate(["a red circle", mmkit.Image()], Sampling(temperature=0))[0]
    assert drawn.dtype == torch.float32 and drawn.shape == (3, 24, 24) and drawn.isfinite().all()
    assert isinstance(model.generate([drawn, "why?", mmkit.Text(max_tokens=4)])[0], str)
    assert linear.held() and set(model.state_dict()) == names
    for part in (model.connectors, model.backbone, model.heads, model.marks):
        assert dtypes(part) <= {torch.bfloat16}
    assert dtypes(model.tokenizers) | dtypes(model.encoders) <= {torch.float32}


def predicted(model: mmkit.UnifiedModel, prompts: list[list], monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The logits of every prompt's first token."""
    seen: list[Tensor] = []
    head = model.heads["say"]
    with monkeypatch.context() as patch:
        original = head.predict
        patch.setattr(head, "predict", lambda hidden: seen.append(original(hidden)) or seen[-1])
        model.generate_batch([[*prompt, mmkit.Text(max_tokens=1)] for prompt in prompts], Sampling(temperature=0))
    return list(torch.cat(seen).float())


def away(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", ["transfusion", "janus", "moe"])
def test_batched_is_single_is_float32(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model(kind)
    prompts = [
        ["why?"],
        [torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0)), "what is it?"],
        ["a"],
        ["b"],
    ]
    exact = predicted(model, prompts, monkeypatch)
    model.keep(torch.bfloat16)
    batched = predicted(model, prompts, monkeypatch)
    single = [predicted(model, [prompt], monkeypatch)[0] for prompt in prompts]
    for one, many, wanted in zip(single, batched, exact, strict=True):
        assert away(many, one) < NEAR and away(many, wanted) < NEAR


def test_kept_in_float32_nothing_changes() -> None:
    model = tiny.model("transfusion")
    prompt, greedy = ["a red circle", mmkit.Image()], Sampling(temperature=0)
    before = model.generate(prompt, greedy)[0]
    assert torch.equal(model.keep("float32").generate(prompt, greedy)[0], before)


@pytest.mark.parametrize("dtype", ["int8", torch.float64, "bf16"])
def test_a_dtype_it_cannot_be_kept_in(dtype: torch.dtype | str) -> None:
    with pytest.raises(ContractError, match=r"dtype: .* take float32, bfloat16, float16"):
        tiny.model("transfusion").keep(dtype)


def test_a_run_is_loaded_in_bf16(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny.recipe("transfusion", "train.steps=1"), run, quiet=True)
    low, high = mmkit.load(run, dtype="bfloat16"), mmkit.load(run)
    assert dtypes(low.backbone) == {torch.bfloat16} and dtypes(high.backbone) == {torch.float32}
    for name, tensor in high.backbone.state_dict().items():
        assert torch.equal(low.backbone.state_dict()[name], tensor.bfloat16())
    found = CliRunner().invoke(command, [str(run), "a", "--text", "--temperature", "0", "--dtype", "bfloat16"])
    assert found.exit_code == 0, found.output
