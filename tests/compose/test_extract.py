"""Options are read off a part's source; the part is imported only where the source does not say."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from mmkit import registry as registries
from mmkit.compose.docstrings import summary
from mmkit.compose.extract import class_constant, class_function, options_class, realize
from mmkit.compose.loading import compose
from mmkit.contracts.options import Spec
from mmkit.errors import PluginError
from mmkit.registry import Entry

WHOLE = Entry("head", "whole", "standins:Whole", "tests", "1")
LATE = Entry("head", "late", "standins:Late", "tests", "1")


def test_extracted_options_behave_like_the_real_ones() -> None:
    import standins

    cls = options_class(WHOLE)
    assert cls is not standins.Whole.Config and cls is options_class(WHOLE)
    router = Spec(WHOLE, None)
    ours, real = cls(size=3, router=router), standins.Whole.Config(size=3, router=router)
    assert [f.name for f in dataclasses.fields(cls)] == [f.name for f in dataclasses.fields(standins.Whole.Config)]
    assert dataclasses.asdict(ours) == dataclasses.asdict(real) and repr(ours) == repr(real)
    with pytest.raises(ValueError, match="17 is more than 16"):
        cls(size=17)


def test_options_become_the_parts_own_class_once_it_is_built() -> None:
    import standins

    inner = type(compose_inner())
    options = options_class(WHOLE)(size=2, inner=inner(rate=1.0), many={"a": inner()}, router=Spec(WHOLE, None))
    real = realize(options)
    assert type(real) is standins.Whole.Config
    assert type(real.inner) is type(real.many["a"]) is standins.Inner and real.inner.rate == 1.0


def compose_inner() -> object:
    import typing

    hint = typing.get_type_hints(options_class(WHOLE))["inner"]
    return typing.get_args(hint)[0]()


def test_extracted_options_survive_pickling_and_copying() -> None:
    options = options_class(WHOLE)(size=2, inner=compose_inner(), router=Spec(WHOLE, None))
    assert pickle.loads(pickle.dumps(options)) == options == copy.deepcopy(options)


def test_what_the_source_does_not_say_is_imported() -> None:
    import standins

    assert options_class(LATE) is standins.Late.Config


@pytest.mark.parametrize(
    "target", ["standins:Bare", "standins:Nothing", "no.such.module:Part", "mmkit.no_such:Part", "math:Part"]
)
def test_a_part_without_options_is_an_error_that_names_it(target: str) -> None:
    with pytest.raises(PluginError, match="head 'x'"):
        options_class(Entry("head", "x", target, "tests", "1"))


def test_static_functions_and_constants_are_read_too() -> None:
    weights = class_function(WHOLE, "default_weights")
    assert weights(options_class(WHOLE)(size=4)) == "hf://stand/in-4"
    assert class_function(LATE, "default_weights") is None
    assert class_constant(WHOLE, "modalities") == ("text", "sound")
    assert class_constant(WHOLE, "nothing") is None and class_constant(WHOLE, "Config") is None


def test_summaries_are_first_paragraphs() -> None:
    assert summary(WHOLE) == "A part with options of every shape."
    assert summary(Entry("head", "x", "no.such:Part", "", "")) == ""


def test_every_builtin_part_is_read_without_importing_torch() -> None:
    """All options and summaries of everything mmkit registers, in a process of its own."""
    code = """
import sys
from mmkit import registry
from mmkit.compose.docstrings import summary
from mmkit.compose.extract import options_class
from mmkit.errors import PluginError
bare = []
for (kind, name), entry in registry.load().entries.items():
    if entry.owner != "mmkit":
        continue
    if kind != "modality":
        options_class(entry)
    if not summary(entry):
        bare.append(name)
heavy = sorted({"torch", "timm", "sentencepiece", "numpy"} & sys.modules.keys())
assert not heavy, heavy
assert not bare, bare
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_part_in_a_folder_is_found_behind_its_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "folder_part_for_tests"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import no_such_module_at_all\nfrom .part import Part\nfrom .sizes import SIZE\n"
    )
    (package / "sizes.py").write_text("import torch.nn\nSIZE = 3\nBIG = torch.nn.Linear(1, 1)\n")
    (package / "part.py").write_text(
        '"""One file."""\nfrom dataclasses import dataclass\nimport torch\nfrom .sizes import SIZE as LARGE\n\n\n'
        'class Part(torch.nn.Module):\n    """Lives in a folder."""\n\n    @dataclass(frozen=True, kw_only=True)\n'
        "    class Config:\n        size: int = LARGE\n"
    )
    (tmp_path / "nested_part_for_tests").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    entry = Entry("head", "x", "folder_part_for_tests:Part", "tests", "1")
    assert options_class(entry)().size == 3
    assert summary(entry) == "Lives in a folder."


def test_the_registry_itself_is_whole() -> None:
    assert registries.load().broken == {}


def test_composing_a_part_that_cannot_be_imported_is_a_located_mistake(tmp_path: Path) -> None:
    registry = registries.Registry({("tokenizer", "gone"): Entry("tokenizer", "gone", "no.such:Part", "tests", "1")})
    (tmp_path / "a.yaml").write_text("model:\n  tokenizers:\n    t: {type: gone}\n")
    found = compose(tmp_path / "a.yaml", registry=registry).problems
    assert [(p.line, p.rule) for p in found] == [(3, "part.broken")]
