"""What must hold of every head, whatever it predicts."""

from __future__ import annotations

import copy

import pytest
import torch

from mmkit.contracts.options import Guidance
from mmkit.contracts.port import Port, TargetPort
from mmkit.heads.ar import AR
from mmkit.heads.diffusion import Diffusion
from mmkit.heads.flow import Flow
from mmkit.heads.masked import Masked

DIM = 32
CODES = (
    TargetPort("text", Port("text", "codes", codebook_size=11), open=True),
    TargetPort("image", Port("image", "codes", codebook_size=23)),
)
LATENTS = (
    TargetPort("image", Port("image", "latents", width=6)),
    TargetPort("clip", Port("video", "latents", width=6)),
)

HEADS = {
    "ar": lambda: AR(AR.Config(), CODES, 5, DIM),
    "ar-deep": lambda: AR(AR.Config(depth=2, dim=16, label_smoothing=0.1, z_loss=1e-4, top_k=4), CODES, 5, DIM),
    "masked": lambda: Masked(Masked.Config(steps=4), CODES, 5, DIM),
    "masked-inverse": lambda: Masked(
        Masked.Config(schedule="linear", weighting="inverse", blocks=3, steps=6, top_p=0.9), CODES, 5, DIM
    ),
    "diffusion-add": lambda: Diffusion(Diffusion.Config(schedule="cosine", min_snr=5.0, steps=4), LATENTS, 0, DIM),
    "diffusion-token": lambda: Diffusion(
        Diffusion.Config(time="token", predict="velocity", terminal_snr="zero", sampler="ddim", steps=4), LATENTS, 0, DIM
    ),
    "diffusion-adaln": lambda: Diffusion(
        Diffusion.Config(time="adaln", predict="clean", train_steps=50, depth=2, steps=4), LATENTS, 0, DIM
    ),
    "flow-add": lambda: Flow(Flow.Config(steps=4), LATENTS, 0, DIM),
    "flow-token": lambda: Flow(
        Flow.Config(time="token", predict="clean", weighting="logit_normal", sampler="heun", steps=4), LATENTS, 0, DIM
    ),
    "flow-adaln": lambda: Flow(Flow.Config(time="adaln", depth=2, shift=3.0, steps=4), LATENTS, 0, DIM),
    "flow-none": lambda: Flow(Flow.Config(time="none", depth=3, dim=16, guidance=Guidance(scale=2.0), steps=4), LATENTS, 0, DIM),
}  # fmt: skip


@pytest.fixture(params=HEADS)
def head(request):
    torch.manual_seed(1)
    head = HEADS[request.param]()
    # Outputs that start at zero would make every comparison below hold by itself.
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


@pytest.fixture
def some(head, spans_of):
    """Three spans of two streams, and hidden states for them."""
    lengths = (4, 7, 6)
    torch.manual_seed(2)
    if head.vocabulary is None:
        streams, tokens = ("image", "clip", "image"), torch.randn(17, 6)
    else:
        streams = ("text", "image", "image")
        tokens = torch.cat([torch.tensor([3, 10, 0, 34]), torch.randint(11, 34, (13,))])
    return spans_of(tokens, lengths, streams, (5, 6, 7)), torch.randn(17, DIM)


def same(a, b):
    if a is None or b is None:
        return a is b
    return torch.equal(a, b)


def feeds_equal(a, b):
    return all(
        same(getattr(a, f), getattr(b, f))
        for f in ("tokens", "blank_S", "blank_D", "add_SD", "lead_ND", "condition_SD")
    )


def test_packed_equals_single(head, some, spans_of):
    targets, hidden = some
    packed = head.prepare(targets)
    loss = head.loss(hidden, packed)
    start = 0
    for i, n in enumerate(targets.lengths):
        part = slice(start, start + n)
        single = head.prepare(spans_of(targets.tokens[part], (n,), (targets.streams[i],), (5 + i,)))
        assert same(single.target, packed.target[part])
        assert same(single.weight_S, packed.weight_S[part])
        assert same(single.feed.tokens, packed.feed.tokens[part])
        for name in ("blank_S", "add_SD", "condition_SD"):
            whole, alone = getattr(packed.feed, name), getattr(single.feed, name)
            assert (whole is None) == (alone is None)
            if whole is not None and whole.dtype != torch.bool:
                # One matrix product over three rows may sum in another order than over one.
                torch.testing.assert_close(alone, whole[part], rtol=1e-5, atol=1e-6)
            elif whole is not None:
                assert torch.equal(alone, whole[part])
        if packed.feed.lead_ND is not None:
            torch.testing.assert_close(single.feed.lead_ND[0], packed.feed.lead_ND[i], rtol=1e-5, atol=1e-6)
        alone = head.loss(hidden[part], single)
        torch.testing.assert_close(alone.value_S, loss.value_S[part], rtol=1e-5, atol=1e-6)
        start += n


def test_shapes_and_dtypes(head, some):
    targets, hidden = some
    prepared = head.prepare(targets)
    loss = head.loss(hidden, prepared)
    assert loss.value_S.shape == loss.weight_S.shape == (17,)
    assert loss.value_S.dtype == loss.weight_S.dtype == torch.float32
    assert prepared.feed.tokens.shape == targets.tokens.shape
    assert prepared.feed.tokens.dtype == targets.tokens.dtype
    assert len(prepared.target) == 17
    if prepared.level_S is not None:
        assert prepared.level_S.shape == (17,) and 0 <= prepared.level_S.min() <= prepared.level_S.max() <= 1
    assert (prepared.feed.lead_ND is not None) == bool(head.leads)
    assert (prepared.feed.condition_SD is not None) == head.conditions
    assert (loss.weight_S >= 0).all() and (loss.value_S >= 0).all()


def test_the_inputs_are_not_written_to(head, some):
    targets, _ = some
    before = targets.tokens.clone()
    head.prepare(targets)
    assert torch.equal(targets.tokens, before)


def test_no_spans_at_all(head, spans_of):
    """A rank without this modality still runs the head, so that all ranks do the same."""
    tokens = torch.zeros(0, 6) if head.vocabulary is None else torch.zeros(0, dtype=torch.long)
    prepared = head.prepare(spans_of(tokens, (), (), ()))
    loss = head.loss(torch.zeros(0, DIM, requires_grad=True), prepared)
    assert loss.value_S.shape == loss.weight_S.shape == (0,)
    loss.value_S.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in head.parameters())


def test_gradients_reach_every_parameter(head, some):
    targets, hidden = some
    hidden = hidden.requires_grad_()
    prepared = head.prepare(targets)
    loss = head.loss(hidden, prepared)
    fed = sum(
        x.square().sum()
        for x in (prepared.feed.blank_D, prepared.feed.add_SD, prepared.feed.lead_ND, prepared.feed.condition_SD)
        if x is not None
    )
    ((loss.value_S * loss.weight_S).sum() + fed).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    learned = loss.weight_S > 0
    assert (hidden.grad[learned].abs().sum(-1) > 0).all()
    assert not hidden.grad[~learned].any()


def test_bf16(head, some):
    targets, hidden = some
    expected = head.loss(hidden, head.prepare(targets)).value_S
    half = copy.deepcopy(head).bfloat16()
    for g, seed in zip(targets.generators, (5, 6, 7), strict=True):
        g.manual_seed(seed)
    loss = half.loss(hidden.bfloat16(), half.prepare(targets))
    assert loss.value_S.dtype == torch.float32
    # bf16 keeps 8 bits: weights, hidden states and products each lose about 0.4 %.
    torch.testing.assert_close(loss.value_S, expected, rtol=0.1, atol=0.1)


def test_meta_build_and_its_state(head, request):
    with torch.device("meta"):
        bare = HEADS[request.node.callspec.params["head"]]()
    assert all(p.is_meta for p in bare.parameters())
    assert {k: v.shape for k, v in bare.state_dict().items()} == {k: v.shape for k, v in head.state_dict().items()}
    loaded = bare.to_empty(device="cpu")
    loaded.load_state_dict(head.state_dict())
    hidden = torch.randn(3, DIM)
    assert torch.equal(loaded.predict(hidden), head.predict(hidden))


def test_initial_weights_come_from_the_default_generator():
    for build in HEADS.values():
        torch.manual_seed(3)
        first = build().state_dict()
        torch.manual_seed(3)
        again = build().state_dict()
        assert all(torch.equal(first[k], again[k]) for k in first)


@torch.no_grad()
def advance(head, state, weight):
    """One iteration with a prediction that depends on what is fed."""
    feed = head.feed(state)
    count = 1 if head.shift == -1 else state.request.count
    hidden = torch.zeros(count, DIM)
    if feed is not None:
        seen = feed.tokens.float().reshape(len(feed.tokens), -1).mean(-1)
        if feed.blank_S is not None:
            seen = seen.masked_fill(feed.blank_S, -1.0)
        hidden = torch.sin(seen[-count:, None] * weight)
    return head.step(state, head.predict(hidden))


def test_steps_are_functions_of_their_inputs(head, ask):
    """From a copied state the same follows, whatever the head did meanwhile."""
    weight = torch.linspace(0.1, 2, DIM)
    state = head.begin(ask("image", (2, 3)))
    assert not state.done and state.progress == 0
    while not state.done:
        fork = copy.deepcopy(state)
        other = advance(head, head.begin(ask("image", (2, 3), seed=9)), weight)
        state = advance(head, state, weight)
        assert other.progress > 0
        assert feeds_equal(head.feed(fork), head.feed(copy.deepcopy(fork))) if head.feed(fork) else True
        fork = advance(head, fork, weight)
        assert fork.done == state.done and fork.progress == state.progress
        if head.feed(state) is not None:
            assert feeds_equal(head.feed(fork), head.feed(state))
    assert state.progress == 1
    assert torch.equal(head.finish(fork), head.finish(state))


def test_a_span_does_not_depend_on_what_is_generated_beside_it(head, ask):
    weight = torch.linspace(0.1, 2, DIM)

    def alone(seed):
        state = head.begin(ask("image", (2, 3), seed=seed))
        while not state.done:
            state = advance(head, state, weight)
        return head.finish(state)

    states = [head.begin(ask("image", (2, 3), seed=seed)) for seed in (1, 2, 3)]
    while not all(s.done for s in states):
        states = [s if s.done else advance(head, s, weight) for s in states]
    results = [head.finish(s) for s in states]
    assert all(torch.equal(r, alone(seed)) for r, seed in zip(results, (1, 2, 3), strict=True))
    assert not torch.equal(results[0], results[1])


def test_finished_spans_have_the_grid(head, ask):
    weight = torch.linspace(0.1, 2, DIM)
    state = head.begin(ask("image", (2, 3)))
    while not state.done:
        state = advance(head, state, weight)
    found = head.finish(state)
    if head.vocabulary is None:
        assert found.shape == (2, 3, 6)
    else:
        assert found.shape == (2, 3) and found.min() >= 11 and found.max() < 34
