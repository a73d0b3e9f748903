"""Texts as codes: the ids that transformers gives, nothing added to them, and back again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import tokenizers
import torch
from mmkit_transformers.auto import Auto
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mmkit.errors import ContractError, DataError

FOLDERS = [parent.parent / "shared/data/tokenizers" for parent in Path(__file__).resolve().parents]
REAL = next((folder for folder in FOLDERS if folder.is_dir()), None)
needs_real = pytest.mark.skipif(REAL is None, reason="the real tokenizers, in ../shared/data/tokenizers, are not there")
TEXTS = (
    "a red circle", "  two  spaces ", "", "Ünïcödé ✓ 日本語 🙂", "tabs\tand\nlines\r\n", "it's 12,345.67 %",
    "def f(x):\n    return x",
)  # fmt: skip


@pytest.fixture(scope="module")
def deepseek() -> Auto:
    return Auto(Auto.Config(path=str(REAL / "deepseek_tokenizer.json")))


def same_ids(part: Auto, path: Path) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(path))
    assert part.port.codebook_size == max(theirs.get_vocab().values()) + 1
    for text, codes in zip(TEXTS, part.encode(TEXTS), strict=True):
        assert codes.dtype == torch.int64
        assert codes.tolist() == theirs.encode(text, add_special_tokens=False)


@needs_real
def test_ids_of_wordpiece() -> None:
    path = REAL / "bert_uncased_tokenizer.json"
    same_ids(Auto(Auto.Config(path=str(path))), path)


@needs_real
def test_ids_of_a_large_byte_level_one(deepseek: Auto) -> None:
    same_ids(deepseek, REAL / "deepseek_tokenizer.json")


@needs_real
def test_ids_of_a_folder(tmp_path: Path) -> None:
    """GPT-2's own files, of which AutoTokenizer makes a tokenizer."""
    (tmp_path / "vocab.json").write_bytes((REAL / "gpt2_encoder.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((REAL / "gpt2_vocab.bpe").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    part = Auto(Auto.Config(path=str(tmp_path)))
    assert part.port.codebook_size == 50257
    assert [c.tolist() for c in part.encode(TEXTS)] == [theirs.encode(t, add_special_tokens=False) for t in TEXTS]
    assert part.encode(["Hello world"])[0].tolist() == [15496, 995]  # as OpenAI's own encoder has it
    assert part.decode(part.encode(TEXTS)) == list(TEXTS)


@needs_real
def test_a_byte_level_one_writes_every_text_back(deepseek: Auto) -> None:
    assert deepseek.decode(deepseek.encode(TEXTS)) == list(TEXTS)


@needs_real
def test_wordpiece_loses_what_it_says_it_loses() -> None:
    part = Auto(Auto.Config(path=str(REAL / "bert_uncased_tokenizer.json")))
    assert part.decode(part.encode(["A  Red Círcle"])) == ["a red circle"]


@needs_real
def test_control_tokens_are_spelled_out(deepseek: Auto) -> None:
    """Text that somebody typed cannot end a sequence."""
    end = deepseek.reader.token_to_id("<｜end▁of▁sentence｜>")
    assert end is not None
    text = "no <｜end▁of▁sentence｜> here"
    (codes,) = deepseek.encode([text])
    assert end not in codes.tolist()
    assert deepseek.decode([codes]) == [text]
    assert deepseek.decode([torch.tensor([*deepseek.encode(["no"])[0].tolist(), end])]) == ["no"]


def stated(folder: Path, *, cut: bool = False) -> Path:
    """A small word-level tokenizer.json that begins every text with ``<s>``, and, with `cut`, cuts off and fills up."""
    words = {"<s>": 0, "</s>": 1, "a": 2, "red": 3, "circle": 4, "<unk>": 7}
    small = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    small.pre_tokenizer = pre_tokenizers.Whitespace()
    small.add_special_tokens(["<s>", "</s>"])
    small.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    if cut:
        small.enable_truncation(2)
        small.enable_padding(length=9)
    path = folder / "tokenizer.json"
    small.save(str(path))
    return path


def test_nothing_is_added_cut_off_or_filled_up(tmp_path: Path) -> None:
    part = Auto(Auto.Config(path=str(stated(tmp_path, cut=True))))
    assert [c.tolist() for c in part.encode(["a red circle", "red"])] == [[2, 3, 4], [3]]
    assert part.port.codebook_size == 8
    assert part.decode([torch.tensor([2, 5, 3])]) == ["a red"]


def test_control_tokens_on_demand(tmp_path: Path) -> None:
    path = str(stated(tmp_path))
    assert 1 not in Auto(Auto.Config(path=path)).encode(["a </s>"])[0].tolist()
    special = Auto(Auto.Config(path=path, special=True))
    assert special.encode(["a </s>"])[0].tolist() == [2, 1]
    assert special.decode([torch.tensor([2, 1])]) == ["a </s>"]


def test_a_book_as_large_as_a_published_table(tmp_path: Path) -> None:
    path = str(stated(tmp_path))
    assert Auto(Auto.Config(path=path, vocab_size=16)).port.codebook_size == 16
    assert Auto(Auto.Config(path=path, vocab_size=16)).decode([torch.tensor([2, 15])]) == ["a"]
    with pytest.raises(ContractError, match="has 8 codes, more than 5"):
        Auto(Auto.Config(path=path, vocab_size=5))


def test_a_run_outlives_its_file(tmp_path: Path) -> None:
    """What a checkpoint holds is the whole tokenizer, without pickle; the file may be gone."""
    path = stated(tmp_path)
    config = Auto.Config(path=str(path), vocab_size=8)
    kept = safetensors.torch.save(Auto(config).state_dict())
    path.unlink()
    part = Auto(config)
    assert not part.fitted
    with pytest.raises(ContractError, match="it has no codes yet"):
        part.encode(["a"])
    with pytest.raises(ContractError, match="there is no"):
        part.fit(["a red circle"])
    part.load_state_dict(safetensors.torch.load(kept))
    assert part.encode(["a red"])[0].tolist() == [2, 3]


def test_one_trained_here_writes_every_text_back() -> None:
    part, again = Auto(Auto.Config(vocab_size=300)), Auto(Auto.Config(vocab_size=300))
    for each in (part, again):
        each.fit(["a red circle left of a blue square"] * 3)
    assert torch.equal(part.definition, again.definition)
    assert part.decode(part.encode(TEXTS)) == list(TEXTS)
    assert len(part.encode(["a red circle"])[0]) < len("a red circle")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "leaves no room"),
        ({"vocab_size": 100}, "leaves no room"),
        ({"path": "/nowhere/tokenizer.json"}, "there is no /nowhere"),
    ],
)
def test_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ContractError, match=said):
        Auto(Auto.Config(**options))


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ContractError, match=r"is no tokenizer\.json"):
        Auto(Auto.Config(path=str(tmp_path / "tokenizer.json")))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ContractError, match="finds no tokenizer in"):
        Auto(Auto.Config(path=str(tmp_path)))


def test_half_a_surrogate_pair_is_refused() -> None:
    part = Auto(Auto.Config(vocab_size=300))
    part.fit(["a red circle"])
    with pytest.raises(DataError, match="half a surrogate pair"):
        part.encode(["a \ud800"])
