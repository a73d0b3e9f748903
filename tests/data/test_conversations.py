"""LLaVA's format: placeholders become images where they stand, and a mistake is named by its record."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
from PIL import Image

from mmkit.data.conversations import Conversations
from mmkit.errors import ContractError, DataError


def turn(who: str, value) -> dict:
    return {"from": who, "value": value}


ASK = [turn("human", "<image>\nWhat is it?"), turn("gpt", "A dot.")]


def make(folder, records, lines=False, **options) -> Conversations:
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        file = io.BytesIO()
        Image.new("RGB", (8, 4), color).save(file, "PNG")
        (folder / f"{name}.png").write_bytes(file.getvalue())
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records)
    (folder / "chat.json").write_text(text)
    return Conversations(Conversations.Config(root=str(folder), file="chat.json", **{"images": "."} | options))


def told(sample) -> list[tuple[str, object]]:
    """(role, text, or the colour of an image)."""
    return [(s.role, s.content if s.modality == "text" else s.content[:, 2, 4].tolist()) for s in sample.segments]


@pytest.mark.parametrize("lines", [False, True])
def test_turns_and_images_become_segments(tmp_path, lines):
    source = make(
        tmp_path,
        [
            {"id": "a", "image": "red.png", "conversations": [*ASK, turn("human", "Sure?"), turn("gpt", "Yes.")]},
            {"id": 7, "conversations": [turn("system", "Be brief."), turn("human", "Hi"), turn("gpt", "Hello")]},
            {
                "image": ["red.png", "blue.png", "red.png"],
                "conversations": [
                    turn("human", "Mix <image> and <image>."), turn("gpt", "Here:\n<image>"),
                    turn("human", "Thanks\n"), turn("gpt", "Welcome"),
                ],
            },
        ],
        lines,
    )  # fmt: skip
    assert len(source) == 3 and source.sizes() == {}
    assert told(source.sample(0, 0)) == [
        ("input", [1, 0, 0]), ("input", "What is it?"), ("target", "A dot."), ("input", "Sure?"), ("target", "Yes."),
    ]  # fmt: skip
    assert told(source.sample(1, 0)) == [("input", "Be brief."), ("input", "Hi"), ("target", "Hello")]
    assert told(source.sample(2, 0)) == [
        ("input", "Mix "), ("input", [1, 0, 0]), ("input", " and "), ("input", [0, 0, 1]), ("input", "."),
        ("target", "Here:"), ("target", [1, 0, 0]), ("input", "Thanks"), ("target", "Welcome"),
    ]  # fmt: skip
    assert len({source.sample(i, 0).id for i in range(3)}) == 3
    assert source.sample(0, 0).task == "converse"


def test_size_and_fit(tmp_path):
    records = [{"id": "a", "image": "red.png", "conversations": ASK}]
    assert make(tmp_path, records, size=16).sizes() == {"image": (16, 16)}
    padded = make(tmp_path, records, size=16, background="black").sample(0, 0).segments[0].content
    assert padded.shape == (3, 16, 16) and padded[0, 0].max() == 0 and padded[0, 8].min() == 1


def test_another_placeholder(tmp_path):
    records = [{"image": "red.png", "conversations": [turn("human", "<img>What?"), turn("gpt", "<image>!")]}]
    source = make(tmp_path, records, image_token="<img>")
    assert told(source.sample(0, 0)) == [("input", [1, 0, 0]), ("input", "What?"), ("target", "<image>!")]
    with pytest.raises(ContractError, match="image_token"):
        make(tmp_path, records, image_token="")


@pytest.mark.parametrize(
    ("record", "fact"),
    [
        ({"conversations": ASK}, r"its texts have 1 <image> and `image` names 0"),
        ({"image": ["red.png", "blue.png"], "conversations": ASK}, r"have 1 <image> and `image` names 2"),
        ({"image": "red.png", "conversations": [turn("human", "Hi"), turn("gpt", "Ho")]}, "have 0 <image> and"),
        ({"image": "green.png", "conversations": ASK}, "image 'green.png'"),
        ({"image": "../chat.json", "conversations": ASK}, "no name inside"),
        ({"image": 5, "conversations": ASK}, "neither a name nor a list"),
        ({"image": "red.png", "conversation": ASK}, "no field 'conversations'. did you mean 'conversation'"),
        ({"conversations": []}, "no list of turns"),
        ({"conversations": "Hi"}, "no list of turns"),
        (
            {"conversations": [turn("user", "Hi"), turn("gpt", "Ho")]},
            "turn 0: `from` is 'user'. it must be one of system, human",
        ),
        ({"conversations": [turn("gpt", "Ho")]}, "turn 0: gpt speaks where it is human's turn"),
        ({"conversations": [turn("human", "Hi"), turn("human", "Ho")]}, "turn 1: human speaks where"),
        ({"conversations": [turn("human", "Hi"), turn("system", "Ho")]}, "turn 1: system speaks where"),
        ({"conversations": [turn("human", "Hi")]}, "nothing to learn"),
        ({"conversations": [turn("human", "Hi"), turn("gpt", " ")]}, "turn 1: `value` is empty"),
        ({"conversations": [turn("human", "Hi"), turn("gpt", None)]}, "turn 1: `value` is empty or no text"),
        ({"conversations": [turn("human", "Hi"), {"from": "gpt"}]}, "turn 1: it has no field 'value'"),
        ({"conversations": ["Hi"]}, "turn 0: a str is no record"),
    ],
)
def test_a_mistake_is_named_by_its_record(tmp_path, record, fact):
    good = {"id": "first", "conversations": [turn("human", "Hi"), turn("gpt", "Ho")]}
    for lines, place in ((False, "chat.json, record 1 (id 'second')"), (True, "chat.json:2 (id 'second')")):
        source = make(tmp_path, [good, {"id": "second", **record}], lines)
        source.sample(0, 0)
        with pytest.raises(DataError, match=fact) as caught:
            source.sample(1, 0)
        assert place in caught.value.problem.place and caught.value.problem.remedy


def test_images_are_needed_where_records_have_some(tmp_path):
    source = make(tmp_path, [{"image": "red.png", "conversations": ASK}], images=None)
    with pytest.raises(DataError, match="set `images`"):
        source.sample(0, 0)


def test_bad_files(tmp_path):
    for content, fact in (
        (b"", "holds no record"),
        (b"[]", "holds no record"),
        (b"[{", "not JSON"),
        (b"[\xff]", "not UTF-8"),
    ):
        (tmp_path / "chat.json").write_bytes(content)
        with pytest.raises(DataError, match=fact):
            Conversations(Conversations.Config(root=str(tmp_path), file="chat.json"))
    with pytest.raises(DataError, match="there is no"):
        Conversations(Conversations.Config(root=str(tmp_path), file="missing.json"))


def test_held_out_by_image(tmp_path):
    records = [
        {"id": i, "image": f"{i // 3}.png", "conversations": [turn("human", f"<image>{i}"), turn("gpt", "x")]}
        for i in range(90)
    ]
    source = make(tmp_path, records, held_out=0.3)
    held = source.held_out()
    names = []
    for side in (source, held):
        side.images.load = lambda name, place: name
        names.append({n for i in range(len(side)) for n in side.sample(i, 0).facts["images"]})
    assert names[0].isdisjoint(names[1]) and len(names[0] | names[1]) == 30 and len(held) == 3 * len(names[1])
    with pytest.raises(DataError, match="held_out"):
        make(tmp_path, records).held_out()


def test_questions_about_real_pictures(tmp_path, shared_data):
    archive = shared_data / "easy_vqa" / "easy_vqa_data.zip"
    with zipfile.ZipFile(archive) as opened:
        questions = json.loads(opened.read("test/questions.json"))
    records = [
        {
            "id": i,
            "image": f"{image}.png",
            "conversations": [turn("human", f"<image>\n{question}"), turn("gpt", answer)],
        }
        for i, (question, answer, image) in enumerate(questions)
    ]
    (tmp_path / "chat.json").write_text(json.dumps(records))
    source = Conversations(
        Conversations.Config(
            file=str(tmp_path / "chat.json"), images=str(archive), prefix="test/images", size=32, held_out=0.1
        )
    )  # fmt: skip
    assert len(source) + len(source.held_out()) == len(questions) > 9000
    for index in range(0, len(source), 500):
        image, asked, answer = source.sample(index, 0).segments
        assert image.content.shape == (3, 32, 32) and image.content.std() > 0.01
        assert [asked.content, answer.content] in [q[:2] for q in questions]
