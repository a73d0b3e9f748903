"""SentencePiece: training, exact round trips, real models."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import sentencepiece
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmkit.errors import ContractError, DataError
from mmkit.tokenizers.sentencepiece import SentencePiece

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "a red circle above a blue square",
    "What is left of the circle? 12 345 678",
    "  indented   text\twith tabs\nand lines \u2581 and more",
    "Größe, naïve, 数学, Привет",
] * 20  # fmt: skip

MODELS = [
    "mistral_v1_sentencepiece.model",
    "mistral_v3_sentencepiece.model",
    "t5_like_sentencepiece_791k.model",
    "torchtune_m.model",
]


def trained(kind: str, vocab_size: int = 420) -> SentencePiece:
    tokenizer = SentencePiece(SentencePiece.Config(vocab_size=vocab_size, kind=kind))
    tokenizer.fit(iter(TEXTS))
    return tokenizer


TRAINED = {kind: trained(kind) for kind in ("unigram", "bpe")}


@given(text=st.text() | st.text(alphabet=" \u2581\n\t\x00ab<>\u2047\u2585"), kind=st.sampled_from(["unigram", "bpe"]))
@settings(max_examples=300, deadline=None)
@example(text="\u2581\u2581 \u2581", kind="bpe")
@example(text="<s> </s> <unk> <0x41> \u2047", kind="unigram")
@example(text="  two  spaces  ", kind="unigram")
@example(text="\r\n\t\x00\ufffd\ufeff", kind="bpe")
@example(text="e\u0301 \uff11 \ufb01", kind="bpe")
def test_every_text_comes_back_from_a_model_trained_here(text: str, kind: str) -> None:
    tokenizer = TRAINED[kind]
    (codes,) = tokenizer.encode([text])
    assert codes.dtype == torch.int64 and codes.ndim == 1
    assert tokenizer.decode([codes]) == [text]
    assert 0 not in codes, "nothing is unknown to byte pieces"
    assert not len(codes) or codes.max() < tokenizer.processor.vocab_size()


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_word_is_the_same_piece_at_the_start_as_inside(kind: str) -> None:
    first, inside = TRAINED[kind].encode(["circle", "a red circle"])
    assert len(first) and torch.equal(first, inside[-len(first) :])


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_is_deterministic_and_bounded(kind: str) -> None:
    first, second = TRAINED[kind], trained(kind)
    assert torch.equal(first.proto, second.proto)
    assert first.processor.vocab_size() <= 420 == first.port.codebook_size
    words = first.encode(["the quick brown fox jumps over the lazy dog"])[0]
    assert len(words) < 40, "43 characters: some became pieces together"


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_the_model_travels_in_the_state(kind: str) -> None:
    fresh = SentencePiece(SentencePiece.Config(vocab_size=420, kind=kind))
    assert not fresh.fitted
    fresh.load_state_dict(TRAINED[kind].state_dict())
    assert fresh.fitted and torch.equal(fresh.proto, TRAINED[kind].proto)
    for tokenizer in (fresh, copy.deepcopy(TRAINED[kind])):
        assert torch.equal(tokenizer.encode(TEXTS[:1])[0], TRAINED[kind].encode(TEXTS[:1])[0])
    fresh.load_state_dict(TRAINED["bpe"].state_dict())
    assert torch.equal(fresh.encode(TEXTS[:1])[0], TRAINED["bpe"].encode(TEXTS[:1])[0]), "the last loaded model counts"


def test_builds_on_the_meta_device() -> None:
    with torch.device("meta"):
        hollow = SentencePiece(SentencePiece.Config(vocab_size=420))
    assert hollow.port == TRAINED["unigram"].port
    hollow.load_state_dict(TRAINED["unigram"].state_dict(), assign=True)
    assert hollow.decode(hollow.encode(["a red"])) == ["a red"]


def test_codes_without_a_piece_decode_to_nothing() -> None:
    tokenizer = TRAINED["unigram"]
    (codes,) = tokenizer.encode(["red"])
    beyond = torch.tensor([tokenizer.processor.vocab_size(), 419])
    assert tokenizer.decode([torch.cat([codes, beyond])]) == ["red"]


def test_little_text_makes_a_small_model() -> None:
    tokenizer = SentencePiece(SentencePiece.Config(vocab_size=32_000, character_coverage=1.0))
    tokenizer.fit(["hello"])
    assert tokenizer.processor.vocab_size() < 300 and tokenizer.port.codebook_size == 32_000
    assert tokenizer.decode(tokenizer.encode(["hello, world"])) == ["hello, world"]


def test_long_lines_are_learned_too() -> None:
    tokenizer = SentencePiece(SentencePiece.Config(vocab_size=300))
    tokenizer.fit(["xyzzy " * 5000])
    assert len(tokenizer.encode(["xyzzy " * 10])[0]) < 30, "60 characters"


@pytest.mark.parametrize("name", MODELS)
def test_a_real_model_gives_the_librarys_ids(shared_data: Path, name: str) -> None:
    path = shared_data / "tokenizers" / name
    ours = SentencePiece(SentencePiece.Config(model=str(path)))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    texts = ["Hello world", " two  spaces ", "Größe é 😀\n x", "<s> [INST] hi </s>", "", "\u2581"]
    tokens = ours.encode(texts)
    assert ours.fitted and ours.port.codebook_size == theirs.vocab_size()
    control = [piece for piece in range(theirs.vocab_size()) if theirs.is_control(piece)]
    for text, codes in zip(texts, tokens, strict=True):
        assert codes.tolist() == theirs.encode(text) and not set(codes.tolist()) & set(control)
    assert ours.decode(tokens) == [theirs.decode(codes.tolist()) for codes in tokens]
    with torch.device("meta"):
        assert SentencePiece(SentencePiece.Config(model=str(path))).port == ours.port


def test_mistral_knows_its_greeting(shared_data: Path) -> None:
    path = shared_data / "tokenizers" / MODELS[0]
    tokenizer = SentencePiece(SentencePiece.Config(model=str(path)))
    assert tokenizer.encode(["Hello world"])[0].tolist() == [22557, 1526]
    assert tokenizer.decode(tokenizer.encode(["two  spaces, é 😀\n"])) == ["two  spaces, é 😀\n"]


def test_mistakes(tmp_path: Path) -> None:
    config = SentencePiece.Config
    with pytest.raises(ContractError, match="at least 258"):
        SentencePiece(config())
    with pytest.raises(ContractError, match="at least 258"):
        SentencePiece(config(vocab_size=200))
    with pytest.raises(ContractError, match="no file"):
        SentencePiece(config(model=str(tmp_path / "absent.model")))
    (tmp_path / "bad.model").write_bytes(b"no model")
    with pytest.raises(ContractError, match="not a SentencePiece model"):
        SentencePiece(config(model=str(tmp_path / "bad.model")))
    with pytest.raises(ContractError, match="leave `vocab_size` out"):
        SentencePiece(config(model="x.model", vocab_size=300))
    with pytest.raises(ContractError, match="no pieces yet"):
        SentencePiece(config(vocab_size=300)).encode(["a"])
    with pytest.raises(DataError, match="at most 300 pieces"):
        SentencePiece(config(vocab_size=300)).fit([])
    with pytest.raises(DataError, match="lower `character_coverage`"):
        SentencePiece(config(vocab_size=300, character_coverage=1.0)).fit([chr(0x4E00 + n) for n in range(500)])
    with pytest.raises(DataError, match="character 1"):
        TRAINED["bpe"].encode(["a\udc80"])
    small = SentencePiece(config(vocab_size=270))
    small.load_state_dict(TRAINED["bpe"].state_dict())
    with pytest.raises(ContractError, match="at least the pieces"):
        small.encode(["a"])
