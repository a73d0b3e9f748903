"""Heads whose spans have another grid than their content: learned queries in the sequence, in training and in generation."""

from __future__ import annotations

import copy
from typing import Any

import asking
import pytest
import tiny
import torch
from test_generate import CLOSE, hidden_at, recorded
from torch import Tensor

import mmkit
from mmkit import registry
from mmkit.contracts.options import Sampling
from mmkit.contracts.segment import Sample, Segment

TOLD = Segment("text", "a red circle")
DRAWN = Segment("image", torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0)), "target")
STREAMS = {"visible": "", "hidden": ", noised: hidden", "block": ", attend: block", "full": ", attend: full"}


@pytest.fixture
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> mmkit.UnifiedModel:
    """A model that draws by asking, its stream with the options that a test names."""
    known = copy.deepcopy(registry.load())
    known.add(asking, "mmkit-asking", "1.0")
    monkeypatch.setattr(registry, "load", lambda: known)
    options = STREAMS[getattr(request, "param", "visible")]
    kind = {
        "pixels": tiny.PIXEL,
        "heads": "{say: {type: ar}, paint: {type: ask, guidance: {scale: 3.0, drop: 0.5}}}",
        "streams": f"    image: {{modality: image, from: pixels, head: paint{options}}}",
    }
    monkeypatch.setitem(tiny.KINDS, "asking", kind)
    built = tiny.model("asking")
    with torch.no_grad():
        # As it is initialised, what is said moves queries by a thousandth only.
        for parameter in built.backbone.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return built


def every_way(test: Any) -> Any:
    """Once for each kind of stream."""
    return pytest.mark.parametrize("model", STREAMS, indirect=True)(test)


@pytest.mark.parametrize("model", ["visible", "hidden"], indirect=True)
def test_queries_stand_where_the_image_would(model: mmkit.UnifiedModel) -> None:
    (batch,) = model.batches([Sample("s", (TOLD, DRAWN))], step=0, budget=4096, drop=False)
    span, *clean = [s for s in batch.layout.spans if model.router.names[s.stream] == "image"]
    assert (span.grid, span.content_grid, span.target) == ((5,), (3, 3), True)
    assert [(c.grid, c.target) for c in clean] == ([((3, 3), False)] if span.noised else [])
    assert model.router.read(span) == 5 and model.router.learned(span) == 9
    losses = model(batch).heads["paint"]
    assert len(losses.value_S) == len(model.router.learned_tokens(batch)["paint"]) == 9
    losses.value_S.sum().backward()
    assert model.heads["paint"].queries_QD.grad.any()


@every_way
def test_what_becomes_of_queries_is_the_same_in_training(
    model: mmkit.UnifiedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = model.heads["paint"]
    hidden = hidden_at(model, "paint", Sample("s", (TOLD, DRAWN)), monkeypatch)
    with monkeypatch.context() as patch:
        read = recorded(model.backbone, "forward", patch, lambda args, _: len(args[0].x_TD))
        found = recorded(head, "predict", patch, lambda _, result: result)
        model.generate(["a red circle", mmkit.Image()], Sampling(guidance_scale=1.0, steps=4))
    torch.testing.assert_close(found[0], head.predict(hidden), **CLOSE)
    # The prefix and the queries: four steps of the head ask nothing more of the backbone.
    assert len(found) == 1 and len(read) <= 2


@every_way
def test_what_follows_sees_what_it_saw_in_training(model: mmkit.UnifiedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        logits = recorded(model.heads["say"], "predict", patch, lambda _, result: result)
        prompt = ["a red circle", mmkit.Image(), "and?", mmkit.Text(max_tokens=1)]
        image, _ = model.generate(prompt, Sampling(temperature=0.0, guidance_scale=1.0))
    # The pixel tokenizer gives back what it decoded, as long as that is a picture.
    assert image.min() > 0 and image.max() < 1
    sample = Sample(
        "s", (TOLD, Segment("image", image, "target"), Segment("text", "and?"), Segment("text", "x", "target"))
    )
    hidden = hidden_at(model, "say", sample, monkeypatch)
    torch.testing.assert_close(logits[0], model.heads["say"].predict(hidden)[:1], **CLOSE)


def test_guidance_combines_what_the_head_draws(model: mmkit.UnifiedModel) -> None:
    def drawn(prompt: list[Any], scale: float) -> Tensor:
        (image,) = model.generate([*prompt, mmkit.Image()], Sampling(guidance_scale=scale))
        return image

    model.heads["paint"].guidance = None
    full, dropped = drawn(["a red circle"], 1.0), drawn([""], 1.0)
    model.heads["paint"].guidance = model.heads["paint"].config.guidance
    guided = drawn(["a red circle"], 3.0)
    inside = (guided > 0) & (guided < 1)
    assert (full - dropped).abs().max() > 0.01 and inside.float().mean() > 0.5
    torch.testing.assert_close(guided[inside], (dropped + 3 * (full - dropped))[inside], atol=1e-5, rtol=1e-4)


def test_batched_is_single(model: mmkit.UnifiedModel) -> None:
    prompts = [["a", mmkit.Image()], ["a longer one", mmkit.Image(), "b", mmkit.Image()]]
    together = model.generate_batch(prompts, Sampling(temperature=0.0), seeds=[1, 2])
    for prompt, seed, found in zip(prompts, (1, 2), together, strict=True):
        alone = model.generate(prompt, Sampling(temperature=0.0), seed=seed)
        for a, b in zip(alone, found, strict=True):
            torch.testing.assert_close(a, b, **CLOSE)
