"""Text: nothing is lost, nothing is too long, and cuts fall where a reader would put them."""

from __future__ import annotations

import json
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkit.compose import spec
from mmkit.data.mixture import Mixture
from mmkit.data.text import TextFile, pieces
from mmkit.errors import ContractError, DataError


def make(folder, content: str | bytes, name="a.txt", **options) -> TextFile:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return TextFile(TextFile.Config(root=str(folder), **{"file": name} | options))


def texts(source: TextFile) -> list[str]:
    return [source.sample(i, 0).segments[0].content for i in range(len(source))]


def test_lines(tmp_path):
    source = make(tmp_path, "one\n\n  \ntwo\r\nthrée\n四")
    assert texts(source) == ["one", "two", "thrée", "四"]
    sample = source.sample(1, 0)
    assert [(s.modality, s.role) for s in sample.segments] == [("text", "target")] and sample.task == "text"
    assert len({source.sample(i, 0).id for i in range(4)}) == 4
    assert texts(pickle.loads(pickle.dumps(source))) == texts(source)


def test_documents(tmp_path):
    assert texts(make(tmp_path, "\ufeffone\r\n\r\ntwo\n", per="document")) == ["one\n\ntwo"]
    first = make(tmp_path, "b\n", "b.txt")
    both = make(tmp_path, "a\nc\n", file=("a.txt", "b.txt"))
    assert texts(first) == ["b"] and texts(both) == ["a", "c", "b"]


def test_json_lines(tmp_path):
    content = "".join(json.dumps(r) + "\n" for r in ({"body": "one\ntwo"}, {"body": "three"}))
    assert texts(make(tmp_path, content, "a.jsonl", field="body")) == ["one\ntwo", "three"]


def test_long_texts_are_cut_at_the_best_place(tmp_path):
    text = "First par. It has two.\n\nSecond one is longer. Indeed it is.\nA line\n\nLast"
    assert texts(make(tmp_path, text, per="document", max_chars=40)) == [
        "First par. It has two.", "Second one is longer. Indeed it is.", "A line\n\nLast",
    ]  # fmt: skip
    assert texts(make(tmp_path, text, per="document", max_chars=22))[:3] == [
        "First par. It has two.", "Second one is longer.", "Indeed it is.\nA line",
    ]  # fmt: skip
    assert texts(make(tmp_path, "abcdefgh ij", max_chars=3)) == ["abc", "def", "gh", "ij"]


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab. \n\t!é"), max_size=120), st.integers(1, 30))
def test_no_letter_is_lost_and_no_piece_too_long(text, limit):
    cut = [text[a:b] for a, b in pieces(text, limit)]
    assert re.sub(r"\s", "", "".join(cut)) == re.sub(r"\s", "", text)
    for piece in cut:
        assert 0 < len(piece) <= limit and piece[0].strip() == piece[0]
    assert [text[a:b] for a, b in pieces(text, None)] == ([text.strip()] if text.strip() else [])


def test_held_out_text_is_not_trained_on(tmp_path):
    source = make(tmp_path, "\n".join(f"line {i % 150}" for i in range(300)), held_out=0.2)
    held = source.held_out()
    assert set(texts(source)).isdisjoint(texts(held)) and len(source) + len(held) == 300 and len(held) > 20
    with pytest.raises(DataError, match="held_out"):
        make(tmp_path, "one").held_out()


def test_bad_text(tmp_path):
    with pytest.raises(DataError, match="there is no text"):
        make(tmp_path, "\n \n")
    with pytest.raises(DataError, match=r"file: b.txt: there is no .*b.txt"):
        make(tmp_path, "x", file="b.txt")
    with pytest.raises(ContractError, match="no file is named"):
        make(tmp_path, "x", file=())
    with pytest.raises(DataError, match=r"a.txt: byte 1 is not UTF-8"):
        make(tmp_path, b"x\xff", per="document")
    source = make(tmp_path, b"good\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"a.txt:2: byte 0 is not UTF-8"):
        source.sample(1, 0)
    lines = make(tmp_path, '{"text": "x"}\n{"txt": "x"}\n{"text": 3}\n{"text"\n', "a.jsonl")
    facts = ("no field 'text'. did you mean 'txt'", "'text' is a int", "not JSON")
    for index, fact in enumerate(facts, 1):
        with pytest.raises(DataError, match=rf"a.jsonl:{index + 1}: .*{fact}"):
            lines.sample(index, 0)
    mixture = Mixture([(lines, 1.0)], 0)
    assert {s.segments[0].content for s in mixture.draw(0, 8)} == {"x"} and len(mixture.bad) == 3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("text", {"file": "a.txt", "max_chars": 100, "held_out": 0.1}),
        ("text", {"file": ["a.txt"]}),
        ("captions", {"images": ".", "caption_from": "folder", "size": 32, "template": "{}"}),
        ("conversations", {"file": "a.txt", "images": "."}),
        (
            "shapes",
            {
                "tasks": ["caption"],
                "colors": ["red", "blue"],
                "scale": [0.7, 1.0],
                "max_objects": 3,
                "grid": 3,
                "size": 48,
            },
        ),
    ],
)
def test_a_recipe_can_say_it(tmp_path, monkeypatch, name, options):
    """Options as YAML gives them are typed into each source's own ``Config``; paths are relative to where mmkit runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text('{"conversations": []}\n')
    if name == "captions":
        with pytest.raises(DataError, match="no images with captions"):
            spec("source", name, **options).build()
    else:
        assert len(spec("source", name, **options).build()) >= 1
