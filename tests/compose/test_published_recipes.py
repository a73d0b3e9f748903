"""Twenty published systems, written as recipes: each is refused for what is not installed or not downloaded, and nothing else.

The list shrinks as parts arrive. It names, for each recipe, the parts that are missing as ``kind name``, and ``weights`` once for
each checkpoint that must be downloaded first.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmkit.compose import examine

MISSING = {
    "bagel": ["tokenizer hf", "weights", "weights"],
    "blip-2": ["tokenizer hf", "weights", "connector qformer", "weights"],
    "chameleon": ["tokenizer hf", "weights", "weights"],
    "emu3": ["tokenizer hf", "tokenizer movq", "weights"],
    "flamingo": ["tokenizer hf", "weights", "connector perceiver", "weights"],
    "janus-pro": ["tokenizer hf", "weights", "encoder siglip", "weights"],
    "janusflow": ["tokenizer hf", "weights", "connector convnext", "weights"],
    "llava-1.5": ["tokenizer hf", "weights", "weights"],
    "mar": ["tokenizer label", "backbone mae", "head mar"],
    "metaquery": ["tokenizer hf", "tokenizer dc_ae", "encoder navit", "weights", "head query"],
    "mmada": ["tokenizer hf", "tokenizer lfq", "weights"],
    "moma": [],
    "qwen2-vl": ["tokenizer hf", "encoder navit", "weights"],
    "show-o": ["tokenizer hf", "tokenizer lfq", "weights"],
    "stable-diffusion-3": ["encoder hf_text", "weights", "backbone mmdit"],
    "transfusion": [],
    "unidiffuser": ["tokenizer text_vae", "backbone uvit"],
    "unitok": ["tokenizer hf", "tokenizer multicode", "weights", "head depth_ar"],
    "var": ["tokenizer label", "tokenizer msvq", "head next_scale"],
    "wan-2.1": ["encoder hf_text", "tokenizer vae3d", "backbone dit"],
}
LINES = {"llava-1.5": 12, "transfusion": 16, "show-o": 18, "janus-pro": 22, "bagel": 28}
"""How many lines a model may take."""


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    recipes = shared_data.parent / "recipes"
    if not recipes.is_dir():
        pytest.skip(f"no recipes of published systems at {recipes}")
    return recipes


def test_the_list_names_every_recipe(folder: Path) -> None:
    assert sorted(MISSING) == sorted(p.stem for p in folder.glob("*.yaml"))


@pytest.mark.parametrize("name", sorted(MISSING))
def test_a_published_recipe_is_refused_for_what_is_missing_only(name: str, folder: Path, no_hub: None) -> None:
    problems = examine(folder / f"{name}.yaml")[1]
    missing = []
    for problem in problems:
        part = re.fullmatch(r"no installed package provides an? (\w+) named '(\w+)'", problem.fact)
        assert part or problem.rule == "weights.unreachable", str(problem)
        missing.append(f"{part[1]} {part[2]}" if part else "weights")
    assert missing == MISSING[name]


@pytest.mark.parametrize("name", sorted(LINES))
def test_a_published_model_is_short(name: str, folder: Path) -> None:
    lines = (folder / f"{name}.yaml").read_text().splitlines()
    begin = lines.index("model:")
    model = [line for line in lines[begin + 1 :] if line.startswith(" ")]
    assert len(model) <= LINES[name]
