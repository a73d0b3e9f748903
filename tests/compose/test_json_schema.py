"""The JSON Schema takes what mmkit takes, and refuses typing mistakes that an editor should show."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmkit import registry as registries
from mmkit.compose import load, schema
from mmkit.compose.extract import options_class
from mmkit.compose.json_schema import option_words
from mmkit.compose.recipe import Stream, Train
from mmkit.compose.typed import keyed_fields

jsonschema = pytest.importorskip("jsonschema")
GOOD = Path(__file__).parent / "mistakes" / "good.yaml"


@pytest.fixture(scope="module")
def validator() -> Any:
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(json.loads(json.dumps(made)))


def tree(text: str) -> Any:
    """As an editor reads it."""
    return yaml.safe_load(text.replace("1e-3", "1.0e-3"))


def test_a_good_recipe_is_valid(validator: Any) -> None:
    assert list(validator.iter_errors(tree(GOOD.read_text()))) == []


@pytest.mark.parametrize("name", sorted(registries.load().recipes))
def test_resolved_recipes_are_valid(name: str, validator: Any) -> None:
    assert [e.message for e in validator.iter_errors(tree(load(name).text))] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["trian"], {}), (["model", "head"], {}), (["model", "heads", "say", "type"], "arr"),
        (["model", "heads", "say", "deph"], 1),
        (["model", "backbone", "depth"], "x"), (["model", "backbone", "depth"], 0), (["train", "steps"], 1.5), (["train", "lr"], 0),
        (["train", "schedule"], "cosin"), (["train", "betas"], [0.9]), (["model", "streams", "text", "attend"], "sideways"),
        (["model", "streams", "text", "form"], "text"), (["data"], {}), (["data", 0, "type"], "shape"),
        (["data", 0, "weights"], "a"),
        (["model", "encoders", "eye", "connector", "type"], "mpl"), (["model", "encoders", "eye", "connector"], "mpl"),
        (["model", "heads", "paint", "guidance", "drop"], 2), (["model", "tokenizers", "text", "frozen"], 3),
    ],
)  # fmt: skip
def test_a_mistake_is_invalid(path: list[Any], value: Any, validator: Any) -> None:
    document = copy.deepcopy(tree(GOOD.read_text()))
    node = document
    for key in path[:-1]:
        node = node.setdefault(key, {}) if isinstance(node, dict) else node[key]
    node[path[-1]] = value
    assert list(validator.iter_errors(document))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["extends"], "transfusion-tiny"), (["train", "warmup"], "${train.steps}"), (["model", "heads", "say"], "ar"),
        (["model", "backbone"], {"type": "dense", "weights": "runs/a"}), (["model", "heads", "extra"], None),
        (["model", "backbone", "positions"], {"type": "mrope"}), (["model", "backbone", "positions"], "rope"),
        (["data", 0, "weight"], 2.5),
    ],
)  # fmt: skip
def test_what_a_recipe_may_say_is_valid(path: list[Any], value: Any, validator: Any) -> None:
    document = tree(GOOD.read_text())
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert [e.message for e in validator.iter_errors(document)] == []


def test_every_option_of_every_part_is_described() -> None:
    bare = []
    for entry in registries.load().entries.values():
        if entry.owner != "mmkit" or entry.kind == "modality":
            continue
        cls = options_class(entry)
        words = option_words(cls)
        bare += [
            f"{entry.kind} {entry.name}.{key}"
            for key, f in keyed_fields(cls).items()
            if key not in words and f.name not in words
        ]
    assert bare == []


def test_descriptions_come_from_the_docstrings() -> None:
    assert option_words(Stream)["attend"].startswith("``causal``, ``block``")
    assert option_words(Train)["log_every"] == option_words(Train)["save_every"]
    assert schema()["properties"]["train"]["properties"]["steps"]["description"] == "optimizer steps."
    assert schema()["properties"]["train"]["properties"]["steps"]["default"] == 1000
