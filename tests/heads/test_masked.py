import math

import pytest
import torch
from diffusers import AmusedScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkit.contracts.options import Sampling
from mmkit.contracts.port import Port, TargetPort
from mmkit.contracts.values import Request
from mmkit.errors import ContractError
from mmkit.heads.masked import SCHEDULES, Masked, plan, still_masked

DIM = 32
TEXT = TargetPort("text", Port("text", "codes", codebook_size=13), open=True)
IMAGE = TargetPort("image", Port("image", "codes", codebook_size=20))
ONE = (IMAGE,)
CPU = torch.device("cpu")


def build(targets=(TEXT, IMAGE), marks=4, **options):
    return Masked(Masked.Config(**options), targets, marks, DIM)


# Sampling


def amused(count, codes, steps, schedule, choice_temperature, logits_of, seed):
    """The masks after each step, and the result, of diffusers' scheduler."""
    scheduler = AmusedScheduler(mask_token_id=codes, masking_schedule=schedule)
    scheduler.set_timesteps(steps)
    # diffusers anneals to 0.01 or over steps - 1 intervals; MaskGIT's own annealing, which mmkit follows, is this.
    scheduler.temperatures = torch.tensor([choice_temperature * (1 - (i + 1) / steps) for i in range(steps)])
    generator = torch.Generator().manual_seed(seed)
    sample, masks = torch.full((1, count), codes), []
    for t in scheduler.timesteps:
        sample = scheduler.step(logits_of(sample[0])[None], t, sample, generator=generator).prev_sample
        masks.append(sample[0] == codes)
    return masks, sample[0]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize(("count", "steps"), [(16, 8), (64, 11), (60, 7), (5, 9)])
def test_decoding_is_that_of_diffusers_bit_for_bit(schedule, count, steps):
    codes, seed = 20, count + steps
    torch.manual_seed(0)
    weight = torch.randn(codes + 1, codes)
    place = torch.randn(count, codes)

    def logits_of(ids):
        return place + weight[ids] + weight[ids].mean(0)

    masks, expected = amused(count, codes, steps, schedule, 4.5, logits_of, seed)
    head = build(ONE, 0, schedule=schedule, steps=steps)
    state = head.begin(Request("image", (count,), torch.Generator().manual_seed(seed), Sampling(), CPU, torch.float32))
    for mask in masks:
        feed = head.feed(state)
        state = head.step(state, logits_of(torch.where(feed.blank_S, codes, feed.tokens)))
        assert torch.equal(~state.known_S, mask)
    assert state.done
    assert torch.equal(head.finish(state), expected)


@pytest.mark.parametrize(
    ("schedule", "ratio", "left"), [("cosine", 8 / 12, 32), ("linear", 1 / 10, 90), ("linear", 7 / 10, 30)]
)
def test_exact_counts_survive_floating_point(schedule, ratio, left):
    """64 cos(60 degrees) is 32 and 100 * (1 - 0.7) is 30, whatever the last bit says; diffusers gives one less for the first."""
    size = 64 if schedule == "cosine" else 100
    assert still_masked(schedule, ratio, size, size) == left


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(SCHEDULES)), st.integers(1, 70), st.integers(1, 20), st.integers(1, 6))
def test_every_token_becomes_known_once_and_in_block_order(schedule, count, steps, blocks):
    head = build(ONE, 0, schedule=schedule, steps=steps, blocks=blocks)
    state = head.begin(Request("image", (count,), torch.Generator().manual_seed(0), Sampling(), CPU, torch.float32))
    assert max(steps, min(blocks, count)) == len(state.plan)
    while not state.done:
        before, now = state, state.plan[state.index]
        state = head.step(state, torch.randn(count, 20, generator=state.request.generator))
        assert torch.equal(state.known_S & before.known_S, before.known_S)
        assert torch.equal(state.ids_S[before.known_S], before.ids_S[before.known_S])
        changed = (state.known_S & ~before.known_S).nonzero()
        assert ((changed >= now.start) & (changed < now.stop)).all()
        assert state.known_S[: now.start].all() and not state.known_S[now.stop :].any()
        left = int((~state.known_S[now.start : now.stop]).sum())
        assert left == still_masked(
            schedule, now.ratio, now.stop - now.start, int((~before.known_S[now.start : now.stop]).sum())
        )
    assert state.known_S.all() and state.progress == 1


def test_equal_steps_of_the_linear_schedule_with_blocks():
    """LLaDA's semi-autoregressive decoding: 64 tokens, 4 blocks, 16 steps: four tokens of the current block at a time."""
    head = build(ONE, 0, schedule="linear", steps=16, blocks=4)
    state = head.begin(
        Request("image", (64,), torch.Generator().manual_seed(0), Sampling(temperature=0), CPU, torch.float32)
    )
    known = []
    while not state.done:
        state = head.step(state, torch.randn(64, 20, generator=state.request.generator))
        known.append(int(state.known_S.sum()))
    assert known == list(range(4, 65, 4))


def test_greedy_decoding_keeps_the_surest():
    head = build(ONE, 0, schedule="linear", steps=4, choice_temperature=0.0, temperature=0.0)
    state = head.begin(Request("image", (4,), torch.Generator(), Sampling(), CPU, torch.float32))
    sure = torch.tensor([1.0, 4.0, 2.0, 3.0])
    logits = torch.zeros(4, 20)
    logits[torch.arange(4), torch.tensor([7, 8, 9, 10])] = sure
    order = []
    while not state.done:
        before = state.known_S
        state = head.step(state, logits)
        order += (state.known_S & ~before).nonzero()[:, 0].tolist()
    assert order == [1, 3, 2, 0]
    assert head.finish(state).tolist() == [7, 8, 9, 10]


def test_steps_can_be_asked_for(ask):
    head = build(ONE, 0, steps=12)
    assert len(head.begin(ask("image", (4, 4), sampling=Sampling(steps=3))).plan) == 3


def test_plan_shares_out_steps():
    assert [(i.start, i.stop) for i in plan(10, 3, 5)] == [(0, 3), (3, 6), (3, 6), (6, 10), (6, 10)]
    assert [i.ratio for i in plan(10, 3, 5)] == [1.0, 0.5, 1.0, 0.5, 1.0]
    assert len(plan(4, 32, 12)) == 12 and len(plan(40, 32, 12)) == 32


def test_an_open_span_stops_at_the_first_end(ask):
    head = build(temperature=0.0, choice_temperature=0.0, steps=4, blocks=2)
    likely = torch.nn.functional.one_hot(torch.tensor([3, 5, 36, 2, 36, 7]), 37).float() * 9
    state = head.begin(ask("text", (6,), end=36))
    while not state.done:
        state = head.step(state, likely)
    assert head.finish(state).tolist() == [3, 5]
    # The end stood in the first block, so the second was never worked on.
    assert state.progress == 1 and not state.known_S[3:].any()


def test_an_open_span_never_gives_other_marks_or_codes(ask):
    head = build(steps=3)
    logits = torch.full((8, 37), 9.0)
    state = head.begin(ask("text", (8,), end=35))
    while not state.done:
        state = head.step(state, logits)
    found = head.finish(state)
    assert found.numel() <= 8 and (found < 13).all()


def test_the_mask_token_stands_where_nothing_is_known(ask):
    head = build()
    state = head.begin(ask("image", (2, 3)))
    feed = head.feed(state)
    assert feed.blank_S.all() and feed.blank_D is head.mask_D
    assert ((feed.tokens >= 13) & (feed.tokens < 33)).all()


# Training


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_mask_shares_follow_the_schedule(schedule, spans_of, kolmogorov):
    """A share is k / n where r lies between r((k - 1) / n) and r(k / n); drawn uniformly in there, r is uniform again."""
    count, n = 50, 1000
    head = build(ONE, 0, schedule=schedule)
    targets = spans_of(torch.zeros(count * n, dtype=torch.long), (count,) * n, ("image",) * n, tuple(range(n)))
    masked = head.prepare(targets).weight_S.reshape(n, count).sum(1).double()
    inverse = {
        "cosine": lambda y: y.arccos() * 2 / math.pi,
        "linear": lambda y: 1 - y,
        "square": lambda y: (1 - y).sqrt(),
        "cubic": lambda y: (1 - y) ** (1 / 3),
        "root": lambda y: (1 - y) ** 2,
    }[schedule]
    low, high = inverse(masked / count), inverse((masked - 1) / count)
    inside = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert kolmogorov(low + (high - low) * inside) < 1.63


def test_masked_places_are_uniform(spans_of):
    n = 3000
    head = build(ONE, 0, schedule="linear")
    weight = head.prepare(
        spans_of(torch.zeros(8 * n, dtype=torch.long), (8,) * n, ("image",) * n, tuple(range(n)))
    ).weight_S.reshape(n, 8)
    # With the linear schedule 1 to 8 tokens of 8 are masked equally often: each place in 9/16 of the spans.
    assert (weight.mean(0) - 9 / 16).abs().max() < 4 * math.sqrt(9 / 16 * 7 / 16 / n)
    assert torch.equal(weight.sum(1).unique(), torch.arange(1.0, 9.0))


@pytest.mark.parametrize("weighting", ["none", "inverse"])
def test_loss_and_weights_are_the_formula(weighting, spans_of):
    torch.manual_seed(0)
    head = build(weighting=weighting, label_smoothing=0.1)
    ids = torch.cat([torch.randint(0, 13, (5,)), torch.tensor([36]), torch.randint(13, 33, (9,))])
    targets = spans_of(ids, (6, 9), ("text", "image"), (1, 2))
    prepared = head.prepare(targets)
    hidden = torch.randn(15, DIM)
    loss = head.loss(hidden, prepared)
    logits = torch.cat([hidden @ head.output.weight[o].T for o in ("text", "image", "marks")], -1).double()
    log_probability = logits - logits.exp().sum(-1, keepdim=True).log()
    expected = -0.9 * log_probability[torch.arange(15), ids] - 0.1 * log_probability.mean(-1)
    torch.testing.assert_close(loss.value_S.double(), expected, rtol=1e-5, atol=1e-6)
    blank = prepared.feed.blank_S
    for part in (slice(0, 6), slice(6, 15)):
        share = blank[part].float().mean()
        assert share > 0
        assert torch.equal(prepared.level_S[part], share.expand(len(blank[part])))
        weight = blank[part] / share if weighting == "inverse" else blank[part].float()
        torch.testing.assert_close(loss.weight_S[part], weight)
        if weighting == "inverse":  # weights of a span sum to its length: LLaDA's 1 / L
            torch.testing.assert_close(loss.weight_S[part].sum(), torch.tensor(float(len(blank[part]))))


def test_the_answer_is_not_fed(spans_of):
    head = build()
    ids = torch.cat([torch.randint(0, 13, (5,)), torch.tensor([36]), torch.randint(13, 33, (9,))])
    prepared = head.prepare(spans_of(ids, (6, 9), ("text", "image"), (1, 2)))
    blank = prepared.feed.blank_S
    assert torch.equal(prepared.feed.tokens[~blank], ids[~blank])
    assert set(prepared.feed.tokens[:6][blank[:6]].tolist()) == {0}
    assert set(prepared.feed.tokens[6:][blank[6:]].tolist()) == {13}
    assert torch.equal(prepared.target, ids)


def test_one_token_is_always_masked(spans_of):
    n = 500
    head = build(ONE, 0, schedule="root")
    prepared = head.prepare(spans_of(torch.zeros(n, dtype=torch.long), (1,) * n, ("image",) * n, tuple(range(n))))
    assert prepared.feed.blank_S.all()


def test_several_codebooks_are_refused():
    with pytest.raises(ContractError, match="4 codes stand at each position"):
        build((TargetPort("image", Port("image", "codes", codebook_size=9, codebooks=4)),))


@pytest.mark.parametrize("options", [{}, {"schedule": "linear", "weighting": "inverse", "blocks": 3}])
def test_a_span_is_learned_and_drawn_back(options, fit, write, ask):
    head = build(**options)
    span = torch.tensor([13, 32, 14, 14, 30, 13, 20, 21])
    model, loss = fit(head, span, "image", steps=120)
    assert loss < 0.05
    assert torch.equal(write(model, ask("image", (2, 4))), span.reshape(2, 4))


def test_a_text_is_learned_and_written_back(fit, write, ask):
    head = build(schedule="linear")
    span = torch.tensor([3, 1, 4, 1, 5, 9, 36])
    model, loss = fit(head, span, "text", steps=120)
    assert loss < 0.05
    assert torch.equal(write(model, ask("text", (7,), end=36)), span[:-1])
