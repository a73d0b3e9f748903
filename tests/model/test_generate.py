"""The sampling loop: cached equals uncached, batched equals single, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import mmkit
from mmkit.contracts.options import Sampling
from mmkit.contracts.segment import Sample, Segment
from mmkit.contracts.values import Prepared
from mmkit.errors import DataError, MmkitError

# Sums over keys are taken in another order with a cache; in fp32 over two layers that moves the last bits only.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def recorded(module: nn.Module, name: str, monkeypatch: pytest.MonkeyPatch, of: Callable[..., Any]) -> list[Any]:
    """Whatever `of(arguments, result)` gives at each call of a method."""
    seen: list[Any] = []
    original = getattr(module, name)

    def call(*args: Any) -> Any:
        result = original(*args)
        seen.append(of(args, result))
        return result

    monkeypatch.setattr(module, name, call)
    return seen


def hidden_at(model: mmkit.UnifiedModel, head: str, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What training's forward pass gives a head at one sample's targets."""
    (batch,) = model.batches([sample], step=0, budget=4096)
    with monkeypatch.context() as patch, torch.no_grad():
        seen = recorded(model.heads[head], "loss", patch, lambda args, _: args[0])
        model(batch)
    return seen[0]


def awake(model: mmkit.UnifiedModel) -> mmkit.UnifiedModel:
    """With every parameter that starts at zero drawn at random: what is zero hides whatever goes wrong before it."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return model


@pytest.mark.parametrize("kind", ["transfusion", "hidden", "janus", "moe", "adaln", "chameleon", "windowed"])
def test_text_cached_is_uncached(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = awake(tiny.model(kind))
    image = torch.rand(3, 24, 24)
    with monkeypatch.context() as patch:
        logits = recorded(model.heads["say"], "predict", patch, lambda _, result: result)
        (text,) = model.generate([image, "why?", mmkit.Text(max_tokens=12)], Sampling(temperature=0))
    codes = _codes(logits, model)
    segments = (Segment("image", image), Segment("text", "why?"), Segment("text", text, "target"))
    # What the bytes spell need not be UTF-8: teach the very codes.
    monkeypatch.setattr(model.tokenizers["text"], "encode", _encoding(model.tokenizers["text"].encode, text, codes))
    hidden = hidden_at(model, "say", Sample("s", segments), monkeypatch)
    assert len(logits) >= 5
    torch.testing.assert_close(model.heads["say"].predict(hidden)[: len(logits)], torch.cat(logits), **CLOSE)


def _codes(logits: list[Tensor], model: mmkit.UnifiedModel) -> Tensor:
    piece = model.heads["say"].vocabulary.of("text")
    end = model.heads["say"].vocabulary.of("marks").offset + model.router.rules["text"].end
    best = [int(torch.cat([row[0, piece.offset : piece.stop], row[0, end : end + 1]]).argmax()) for row in logits]
    return torch.tensor([b for b in best if b < piece.size])


def _encoding(encode: Callable[..., list[Tensor]], text: str, codes: Tensor) -> Callable[..., list[Tensor]]:
    return lambda contents: [codes if c == text else encode([c])[0] for c in contents]


@pytest.mark.parametrize("kind", ["transfusion", "hidden", "adaln", "moe", "show-o", "full", "mmada", "windowed"])
def test_image_cached_is_uncached(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first evaluation of a span over the cache equals training's forward pass with the same feed."""
    sample = Sample("s", (Segment("text", "a red circle"), Segment("image", torch.zeros(3, 24, 24), "target")))
    check_span(awake(tiny.model(kind)), ["a red circle", mmkit.Image()], sample, monkeypatch)


def test_masked_text_cached_is_uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that is filled in has the same length in training, whatever it says, as in generation."""
    image = torch.rand(3, 24, 24)
    sample = Sample("s", (Segment("image", image), Segment("text", "why"), Segment("text", "so it is", "target")))
    check_span(awake(tiny.model("mmada")), [image, "why", mmkit.Text()], sample, monkeypatch)


def test_what_was_filled_in_is_read_as_training_lays_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = awake(tiny.model("mmada"))
    with monkeypatch.context() as patch:
        plans = recorded(model.backbone, "forward", patch, lambda args, _: len(args[0].x_TD))
        model.generate(["why", mmkit.Text(), "and", mmkit.Text()], seed=1)
    (batch,) = model.batches(
        [
            Sample("s", tuple(Segment("text", t, r) for t, r in zip(["why", "", "and", ""], ["input", "target"] * 2, strict=True)))
        ],
        step=0, budget=4096,
    )  # fmt: skip
    assert plans[-1] == len(batch.layout)


def test_a_text_too_long_to_fill_in() -> None:
    model = tiny.model("mmada")
    with pytest.raises(DataError, match=r"a text of 61 tokens, and its head learns 60\W.*heads\.mind\.length"):
        model.batches([Sample("s", (Segment("text", "x" * 61, "target"),))], step=0, budget=4096)


def check_span(model: mmkit.UnifiedModel, prompt: list[Any], sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a head predicts first when it fills a prompt's blank, against training's forward pass with the same feed."""
    (name,) = {model.recipe.model.streams[s].head for s in model.router.streams(sample.segments[-1])}
    head = model.heads[name]
    with monkeypatch.context() as patch:
        feeds = recorded(head, "feed", patch, lambda _, result: result)
        predictions = recorded(head, "predict", patch, lambda _, result: result)
        model.generate(prompt, Sampling(guidance_scale=1.0))
    head.guidance = None

    def prepare(targets: Any) -> Prepared:
        return Prepared(feeds[0], torch.zeros_like(feeds[0].tokens), torch.ones(len(feeds[0].tokens)))

    seen: list[Tensor] = []
    monkeypatch.setattr(head, "prepare", prepare)
    monkeypatch.setattr(head, "loss", lambda hidden, prepared: seen.append(hidden) or _nothing(hidden))
    (batch,) = model.batches([sample], step=0, budget=4096)
    with torch.no_grad():
        model(batch)
    monkeypatch.undo()
    assert predictions[0].std() > 0.01
    torch.testing.assert_close(head.predict(seen[0]), predictions[0], **CLOSE)


def _nothing(hidden: Tensor) -> Any:
    from mmkit.contracts.values import TokenLoss

    return TokenLoss(hidden.sum(1), torch.ones(len(hidden)))


PROMPTS = [
    ["a red circle", mmkit.Image()],
    [torch.linspace(0, 1, 3 * 24 * 24).reshape(3, 24, 24), "what is that", mmkit.Text(max_tokens=7)],
    ["x", mmkit.Image(), "and a longer piece of text", mmkit.Text(max_tokens=4), mmkit.Image()],
    ["", mmkit.Text(max_tokens=9)],
]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_batched_is_single(kind: str) -> None:
    """Samples of any shape share a batch, with guidance and temperature; none depends on its neighbours."""
    model = awake(tiny.model(kind))
    seeds = [3, 1, 4, 1]
    together = model.generate_batch(PROMPTS, seeds=seeds)
    alone = [model.generate(prompt, seed=seed) for prompt, seed in zip(PROMPTS, seeds, strict=True)]
    for some, one in zip(together, alone, strict=True):
        for a, b in zip(some, one, strict=True):
            assert type(a) is type(b)
            if isinstance(a, str):
                assert a == b
            else:
                torch.testing.assert_close(a, b, **CLOSE)


def test_seeds_matter_and_repeat() -> None:
    model = tiny.model("transfusion")
    first, again, other = (model.generate(PROMPTS[0], seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("kind", ["transfusion", "show-o"])
def test_what_was_generated_can_be_learned_from(kind: str) -> None:
    """It is no tensor of torch's inference mode, and neither is anything the model keeps."""
    model = tiny.model(kind)
    (drawn,) = model.generate(["a circle", mmkit.Image(height=24, width=24)])
    assert not drawn.is_inference() and not any(x.is_inference() for x in model.state_dict().values())
    scale = torch.ones(1, requires_grad=True)
    (drawn * scale).square().sum().backward()
    assert torch.isfinite(scale.grad).all()
    (batch,) = model.train().batches(
        [Sample("s", (Segment("text", "a circle"), Segment("image", drawn, "target")))], step=0, budget=4096
    )
    sum(x.value_S.sum() for x in model(batch).heads.values()).backward()


def test_guidance_of_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """At scale 1 the second branch is not even run, and the result is that of a head without guidance."""
    model = tiny.model("transfusion")
    plain = model.generate(PROMPTS[0], Sampling(guidance_scale=1.0))[0]
    model.heads["paint"].guidance = None
    torch.testing.assert_close(model.generate(PROMPTS[0])[0], plain)


def test_guidance_is_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step with scale s gives u + s (c - u), c and u taken from runs of their own."""
    model = tiny.model("transfusion", "model.heads.paint.steps=1")
    seen = recorded(model.heads["paint"], "predict", monkeypatch, lambda _, result: result)
    model.generate(["a red circle", mmkit.Image()], Sampling(guidance_scale=1.0))
    model.generate(["", mmkit.Image()], Sampling(guidance_scale=1.0))
    model.generate(["a red circle", mmkit.Image()], Sampling(guidance_scale=3.5))
    c, u, both = seen
    torch.testing.assert_close(both, torch.cat([c, u]), **CLOSE)


def test_the_model_chooses_what_comes_next() -> None:
    model = tiny.model("transfusion")
    contents = model.generate(["tell me", Segment("*", max_tokens=3)], Sampling(temperature=1.0), seed=5)
    assert len(contents) <= 3
    assert all(isinstance(c, (str, Tensor)) for c in contents)


def test_a_prefix_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a flow head iterates, the backbone reads the span only."""
    model = tiny.model("transfusion", "model.heads.paint.steps=5")
    reads: list[int] = []
    forward = model.backbone.forward
    monkeypatch.setattr(
        model.backbone, "forward", lambda packed, cache: reads.append(len(packed.x_TD)) or forward(packed, cache)
    )
    model.generate(["a prompt of some length", mmkit.Image()], Sampling(guidance_scale=1.0))
    assert reads[1:] == [9] * 5
    assert reads[0] > 20


@pytest.mark.parametrize(
    ("segments", "word"),
    [
        ([object()], "accepts"),
        (["x", mmkit.Video()], "video"),
        (["x", mmkit.Image(height=25, width=24)], "25"),
        ([Segment("sound", "x"), mmkit.Text()], "sound"),
    ],
)
def test_bad_prompts(segments: list[Any], word: str) -> None:
    with pytest.raises(MmkitError, match=word):
        tiny.model("transfusion").generate(segments)


def test_a_size_must_be_known() -> None:
    model = tiny.model("transfusion")
    model.sizes = {}
    with pytest.raises(DataError, match=r"a blank image: no size was given.*size="):
        model.generate(["x", mmkit.Image()])
