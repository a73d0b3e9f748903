"""What may stand after `weights:`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkit.checkpoint import Reference, parse
from mmkit.errors import CheckpointError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("weights/vae", Reference("folder", "weights/vae")),
        ("weights/vae#decoder", Reference("folder", "weights/vae", "decoder")),
        ("a.safetensors", Reference("folder", "a.safetensors")),
        ("hf://org/name", Reference("hub", "org/name")),
        ("hf://Qwen/Qwen2.5-7B-Instruct", Reference("hub", "Qwen/Qwen2.5-7B-Instruct")),
        ("hf://org/name@refs.pr#vision", Reference("hub", "org/name", "vision", "refs.pr")),
        ("hf://org/name@abc/vae/deep", Reference("hub", "org/name", "", "abc", "vae/deep")),
        ("runs/a/checkpoints/step-00000600#encoders.eye", Reference("run", "runs/a/checkpoints/step-00000600", "encoders.eye")),
    ],
)  # fmt: skip
def test_parsing(text: str, expected: Reference) -> None:
    assert parse(text) == expected


def test_a_run_is_known_by_what_is_in_it(make_run: Callable[..., Path]) -> None:
    run = make_run(1)
    assert parse(f"{run}#heads.say") == Reference("run", str(run), "heads.say")
    best = (run / "checkpoints/step-00000001").rename(run.parent / "best")
    assert parse(str(best)).kind == "run"
    assert parse(str(run.parent)).kind == "folder"


@pytest.mark.parametrize(
    "text",
    [
        "", "#encoders.eye", "http://169.254.169.254/x", "https://huggingface.co/org/name", "file:///etc/passwd", "pipe:cat x",
        "hf-hub:org/name", "local-dir:/x", "s3://bucket/key", "a\0b", "a\nb", "hf://org",
        "hf://", "hf://org/name/../../x", "hf://../name", "hf:org/name", "hf://org/name@", "hf://org/.name", "C:\\x", "data:,x",
        "hf://org/name?x=1", "HTTP://x", "hf://user:pass@host/x",
    ],
)  # fmt: skip
def test_other_kinds_are_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"name a folder, `hf://|write `runs/name#encoders"):
        parse(text)


def test_paths_no_system_can_have() -> None:
    with pytest.raises(CheckpointError, match="cannot be looked at"):
        parse("a" * 5000)
    with pytest.raises(CheckpointError, match="unknown user"):
        parse("~nobody-of-this-name/weights")


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=30) | st.from_regex(r"(hf://|runs/|/)?[a-z@#/.:~\\]{0,20}", fullmatch=True))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        reference = parse(text)
    except CheckpointError:
        return
    assert reference.where and ".." not in (reference.folder or "").split("/")
