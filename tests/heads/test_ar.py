import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import JanusVQVAEConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.janus.modeling_janus import JanusVQVAEHead

from mmkit.contracts.options import Sampling
from mmkit.contracts.port import Port, TargetPort
from mmkit.contracts.values import Request, Targets
from mmkit.errors import CheckpointError, ContractError
from mmkit.heads.ar import AR

DIM = 32
TEXT = TargetPort("text", Port("text", "codes", codebook_size=13), open=True)
IMAGE = TargetPort("image", Port("image", "codes", codebook_size=7))


def build(targets=(TEXT, IMAGE), marks=4, **options):
    return AR(AR.Config(**options), targets, marks, DIM)


def targets_of(ids, stream="text"):
    return Targets(ids, (len(ids),), ((len(ids),),), (stream,), (torch.Generator(),))


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=DIM, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_loss_of_a_language_model(llama):
    """The mean over tokens, each predicted from the state before it, is what transformers computes for the same weights."""
    head = build((TargetPort("text", Port("text", "codes", codebook_size=40), open=True),), 0)
    head.load_state_dict({"output.weight.text": llama.lm_head.weight})
    ids = torch.randint(3, 40, (12,))
    with torch.no_grad():
        out = llama(ids[None], labels=ids[None], output_hidden_states=True)
        hidden = out.hidden_states[-1][0]
        loss = head.loss(hidden[:-1], head.prepare(targets_of(ids[1:])))
    torch.testing.assert_close(loss.value_S.mean(), out.loss)
    torch.testing.assert_close(head.predict(hidden), out.logits[0])


def test_greedy_generation_of_a_language_model(llama, ask):
    head = build((TargetPort("text", Port("text", "codes", codebook_size=40), open=True),), 0)
    head.load_state_dict({"output.weight.text": llama.lm_head.weight})
    prompt = torch.tensor([1, 9, 4, 30])
    expected = llama.generate(prompt[None], max_new_tokens=15, do_sample=False, eos_token_id=None)[0, 4:]
    state = head.begin(ask("text", (15,), sampling=Sampling(temperature=0)))
    read = prompt
    with torch.no_grad():
        while not state.done:
            feed = head.feed(state)
            read = read if feed is None else torch.cat([read, feed.tokens])
            hidden = llama.model(read[None]).last_hidden_state[0, -1:]
            state = head.step(state, head.predict(hidden))
    assert torch.equal(head.finish(state), expected)
    assert len(expected.unique()) > 3


def test_two_layers_are_the_image_head_of_janus():
    torch.manual_seed(0)
    config = JanusVQVAEConfig(image_token_embed_dim=DIM, projection_dim=48, num_embeddings=17)
    reference = JanusVQVAEHead(config)
    head = build((TargetPort("image", Port("image", "codes", codebook_size=17)),), 0, depth=2, dim=48)
    names = {
        "proj_out.weight": "output.hidden.0.weight",
        "proj_out.bias": "output.hidden.0.bias",
        "vision_head.weight": "output.weight.image",
        "vision_head.bias": "output.bias.image",
    }
    head.load_state_dict({names[k]: v for k, v in reference.state_dict().items()})
    hidden = torch.randn(6, DIM)
    assert torch.equal(head.predict(hidden), reference(hidden))


def test_loss_is_the_formula():
    torch.manual_seed(0)
    head = build(label_smoothing=0.1, z_loss=0.01)
    hidden, ids = torch.randn(5, DIM), torch.tensor([0, 12, 13, 19, 23])
    logits = torch.cat([hidden @ head.output.weight[o].T for o in ("text", "image", "marks")], -1).double()
    normaliser = logits.exp().sum(-1).log()
    log_probability = logits - normaliser[:, None]
    truth = log_probability[torch.arange(5), ids]
    expected = -0.9 * truth - 0.1 * log_probability.mean(-1) + 0.01 * normaliser**2
    loss = head.loss(hidden, head.prepare(targets_of(ids)))
    torch.testing.assert_close(loss.value_S.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(loss.weight_S, torch.ones(5))


def test_gradient_is_softmax_minus_the_truth():
    torch.manual_seed(0)
    head = build()
    hidden, ids = torch.randn(3, DIM, requires_grad=True), torch.tensor([0, 14, 22])
    head.loss(hidden, head.prepare(targets_of(ids))).value_S.sum().backward()
    logits = head.predict(hidden.detach())
    error = logits.softmax(-1) - torch.nn.functional.one_hot(ids, 24)
    torch.testing.assert_close(head.output.weight["image"].grad, error[:, 13:20].T @ hidden.detach())


def test_slices_stand_in_the_recipes_order_and_text_keeps_its_weights():
    torch.manual_seed(0)
    alone = build((TEXT,))
    torch.manual_seed(0)
    both = build()
    assert [(s.owner, s.offset, s.size) for s in both.vocabulary.slices] == [
        ("text", 0, 13),
        ("image", 13, 7),
        ("marks", 20, 4),
    ]
    assert torch.equal(alone.output.weight["text"], both.output.weight["text"])
    assert both.predict(torch.randn(2, DIM)).shape == (2, 24)


def test_a_published_output_matrix_is_split_among_the_streams():
    targets = [
        TargetPort(n, Port(n, "codes", codebook_size=s), open=n == "text") for n, s in (("text", 5), ("image", 3))
    ]
    head = AR(AR.Config(), targets, 2, 4)
    matrix = torch.randn(8, 4)
    found = head.from_published({"weight": matrix})
    assert found.keys() == head.state_dict().keys()
    head.load_state_dict(found)
    x_SD = torch.randn(6, 4)
    marks = head.output.weight["marks"]
    torch.testing.assert_close(head.predict(x_SD), x_SD @ torch.cat([matrix, marks]).T)
    with pytest.raises(CheckpointError, match="has 9 rows, and the streams have 8 codes"):
        head.from_published({"weight": torch.randn(9, 4)})
    other = {"weight": matrix, "bias": torch.zeros(8)}
    assert head.from_published(other) is other


def test_tied_weights_are_the_tables():
    tables = {o: torch.nn.Parameter(torch.randn(n, DIM)) for o, n in (("text", 13), ("image", 7), ("marks", 4))}
    head = build(tied=True)
    assert head.tied and not list(head.parameters())
    head.tie(tables)
    assert not list(head.parameters()) and not head.state_dict()
    hidden = torch.randn(4, DIM)
    assert torch.equal(head.predict(hidden), torch.cat([hidden @ t.T for t in tables.values()], -1))
    head.loss(hidden, head.prepare(targets_of(torch.tensor([0, 1, 15, 23])))).value_S.sum().backward()
    assert all(t.grad is not None for t in tables.values())
    with torch.no_grad():
        tables["text"].zero_()
    assert not head.predict(hidden)[:, :13].any()


@pytest.mark.parametrize("tables", [{}, {"text": torch.zeros(13, DIM)}, {"text": torch.zeros(14, DIM)}])
def test_tables_that_are_missing_or_do_not_fit_are_refused(tables):
    with pytest.raises(
        ContractError, match=r"tied: the output weights of '(text|image)' need an embedding table \(\d+, 32\)"
    ):
        build(tied=True).tie(tables)


@pytest.mark.parametrize(
    ("options", "targets", "fact"),
    [
        ({"tied": True, "depth": 2}, (TEXT,), "depth is 2"),
        ({"dim": 64}, (TEXT,), "depth is 1"),
        (
            {},
            (TargetPort("image", Port("image", "codes", codebook_size=9, codebooks=8)),),
            "8 codes stand at each position",
        ),
        ({}, (TargetPort("image", Port("image", "latents", width=4)),), "carries image latents"),
    ],
)
def test_what_does_not_go_together_is_refused(options, targets, fact):
    with pytest.raises(ContractError, match=fact):
        build(targets, **options)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from(["text", "image"]), st.integers(1, 9), st.floats(0, 2), st.integers(0, 9),
    st.sampled_from([1.0, 0.7]),
)  # fmt: skip
def test_only_the_wanted_streams_codes_appear(seed, stream, count, temperature, top_k, top_p):
    head = build(temperature=temperature, top_k=top_k, top_p=top_p)
    g = torch.Generator().manual_seed(seed)
    end = 22 if stream == "text" else None
    state = head.begin(Request(stream, (count,), g, Sampling(), torch.device("cpu"), torch.float32, end))
    steps = 0
    while not state.done:
        logits = torch.randn(1, 24, generator=g)
        logits[:, 20:22] += 50  # marks that are not this span's end, however likely
        state = head.step(state, logits)
        steps += 1
    found, piece = head.finish(state), head.vocabulary.of(stream)
    assert ((found >= piece.offset) & (found < piece.stop)).all()
    assert len(found) <= count
    assert steps == len(found) + state.ended
    assert state.ended or len(found) == count
    assert end is not None or len(found) == count


def test_an_open_span_ends_with_its_mark_or_at_its_bound(ask):
    head = build(temperature=0.0)
    likely = {i: torch.nn.functional.one_hot(torch.tensor([i]), 24).float() for i in (3, 5, 22)}
    state = head.begin(ask("text", (4,), end=22))
    assert head.feed(state) is None
    for i, known in ((3, 0), (5, 1), (22, 2)):
        assert state.progress == known / 4
        state = head.step(state, likely[i])
        feed = head.feed(state)
        # The end mark is written by the sequence, so it is not fed.
        assert feed is None if i == 22 else feed.tokens.tolist() == [i]
    assert state.done and state.progress == 1 and head.finish(state).tolist() == [3, 5]
    state = head.begin(ask("text", (2,), end=22))
    state = head.step(head.step(state, likely[3]), likely[3])
    assert state.done and head.finish(state).tolist() == [3, 3]
    assert head.feed(state).tokens.tolist() == [3]
    empty = head.step(head.begin(ask("text", (2,), end=22)), likely[22])
    assert empty.done and head.finish(empty).shape == (0,)


def test_a_span_is_learned_and_written_back(fit, write, ask):
    head = build()
    span = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 22])
    model, loss = fit(head, span, "text", steps=80)
    assert loss < 0.05
    assert torch.equal(write(model, ask("text", (20,), end=22)), span[:-1])


def test_an_image_is_learned_and_drawn_back(fit, write, ask):
    head = build(depth=2, dim=64)
    span = torch.tensor([13, 19, 14, 14, 18, 13])
    model, loss = fit(head, span, "image", steps=80)
    assert loss < 0.05
    assert torch.equal(write(model, ask("image", (2, 3))), span.reshape(2, 3))
