"""A corpus of planted mistakes: each is found at its line, under its rule; and what a good file says."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from grids import GRID, PAIR, written

from mmkit.ablate.grid import grid_of
from mmkit.ablate.reading import Axis, Match, parted, read_ablation, shipped
from mmkit.errors import RecipeError

DENSE = "    dense: []\n"
MISTAKES = {
    # name: (what is written, what instead, line, rule, what the message says)
    "unknown key": ("seeds:", "sedes:", 6, "key.unknown", "did you mean 'seeds'?"),
    "no base": ("base: base.yaml\n", "illegal: skip\n", 1, "key.missing", "'base' is missing"),
    "no axes": ("axes:\n", "match: none\nbananas:\n", 1, "key.missing", "'axes' is missing"),
    "base of another kind": ("base.yaml", "[a, b]", 1, "type.wrong", "names one recipe"),
    "base that is no file": ("base.yaml", "bass.yaml", 1, "file.unreadable", "cannot be read"),
    "base that nobody ships": ("base.yaml", "transfusion-tinny", 1, "file.missing", "did you mean 'transfusion-tiny'?"),
    "axes as a list": ("axes:\n  backbone:\n", "axes: [a]\nset:\n  -\n", 2, "type.wrong", "a mapping of axes"),
    "no axis": (
        "axes:\n  backbone:\n    dense: []\n    moe: [model.backbone.type=moe]",
        "axes: {}", 2, "ablation.axis", "there is no axis",
    ),
    "empty axis": (DENSE + "    moe: [model.backbone.type=moe]\n", "", 3, "ablation.axis", "no levels"),
    "axis of one word": ("seeds", "  dim: 3\nseeds", 6, "ablation.axis", "no levels"),
    "level that is no folder": ("    moe:", "    ../moe:", 5, "ablation.level", "cannot name a folder"),
    "level as a text": ("[model.backbone.type=moe]", "model.backbone.type=moe", 5, "type.wrong", "list of overrides"),
    "override read as a mapping": ("[model.backbone.type=moe]", "[{a=b: c}]", 5, "override.form", "in quotes"),
    "override without a value": ("type=moe", "type", 5, "override.form", "not `key.path=value`"),
    "override of an unknown path": ("type=moe", "dimm=64", 5, "key.unknown", "did you mean 'dim'?"),
    "override of an unknown part": ("type=moe", "type=mow", 5, "part.unknown", "did you mean 'moe'?"),
    "override of another type": ("type=moe", "dim=wide", 5, "type.wrong", "wide"),
    "override that breaks a rule": ("type=moe", "num_heads=5", 5, "part.options", "in arm 'moe'"),
    "unknown path for all": ("seeds", "set: [train.stpes=1]\nseeds", 6, "key.unknown", "did you mean 'steps'?"),
    "levels of one name": ("  backbone:", "  train.lr: [1e-3, 1e-3]\n  backbone:", 3, "ablation.axis", "'lr=1e-3'"),
    "nested value of a short axis": ("  backbone:", "  train.lr: [[1]]\n  backbone:", 3, "type.wrong", "one value"),
    "short axis of an unknown path": ("  backbone:", "  lr: [1e-3, 2e-3]\n  backbone:", 3, "key.unknown", "'lr'"),
    "same recipes": (DENSE, DENSE + "    thin: [model.backbone.dim=32]\n", 5, "ablation.same", "'dense' and 'thin'"),
    "too many arms": (
        "  backbone:", f"  train.steps: {list(range(1, 300))}\n  backbone:", 2, "ablation.size", "598 arms",
    ),
    "long level": ("    moe:", f"    {'m' * 65}:", 5, "ablation.level", "at most 64"),
    "long value": ("  backbone:", f"  data.0.root: [{'m' * 65}]\n  backbone:", 3, "ablation.level", "too long"),
    "long arms": (
        "  backbone:", "".join(f"  {a}: {{{a * 60}: []}}\n" for a in "xyzw") + "  backbone:", 2, "ablation.size", "250 characters",
    ),
    "same seed": ("[0, 1]", "[0, 1, 1]", 6, "ablation.seeds", "seed 1 is there twice"),
    "negative seed": ("[0, 1]", "[0, -1]", 6, "type.wrong", "at least 0"),
    "seeds as a number": ("[0, 1]", "3", 6, "type.wrong", "list of seeds"),
    "match of one word": ("seeds", "match: flops\nseeds", 6, "type.wrong", "neither what is matched"),
    "match of something else": (
        "seeds", "match: {what: time, free: train.steps}\nseeds", 6, "value.choice", "parameters, flops, tokens",
    ),
    "match of nothing free": ("seeds", "match: {what: flops}\nseeds", 6, "key.missing", "`free` names no option"),
    "illegal what": ("seeds", "illegal: shrug\nseeds", 6, "value.choice", "'shrug'"),
    "launcher of no such name": ("seeds", "launcher: slrum\nseeds", 6, "part.unknown", "did you mean 'slurm'?"),
    "launcher of another kind": ("seeds", "launcher: shapes\nseeds", 6, "part.unknown", "'shapes' is a source"),
    "launcher as a list": ("seeds", "launcher: [local]\nseeds", 6, "type.wrong", "a launcher is needed"),
    "launcher of nothing": ("seeds", "launcher:\nseeds", 6, "type.wrong", "a launcher is needed"),
    "option of a launcher": ("seeds", "launcher:\n  gpu: 1\nseeds", 7, "key.unknown", "did you mean 'gpus'?"),
    "key that parts have": ("seeds", "launcher:\n  frozen: true\nseeds", 7, "key.unknown", "launcher 'local'"),
    "option of another type": ("seeds", "launcher:\n  gpus: many\nseeds", 7, "value.choice", "'many' is not"),
    "option out of range": ("seeds", "launcher:\n  gpus: -1\nseeds", 7, "value.range", "at least 0"),
    "option that is missing": ("seeds", "launcher: slurm\nseeds", 6, "key.missing", "'minutes' is missing"),
    "option of sbatch": (
        "seeds", "launcher:\n  type: slurm\n  minutes: 5\n  sbatch:\n    time: 1\nseeds", 10, "part.options",
        "write `minutes:` instead",
    ),
    "key twice": ("seeds: [0, 1]", "seeds: [0]\nseeds: [1]", 7, "yaml.duplicate", "written twice"),
    "no YAML": ("seeds: [0, 1]", "seeds: [0, 1", 7, "yaml.syntax", ""),
}  # fmt: skip


def problems_of(path):
    with pytest.raises(RecipeError) as raised:
        grid_of(read_ablation(path))
    return raised.value.problems


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_found_at_its_line(name, tmp_path):
    was, now, line, rule, says = MISTAKES[name]
    assert was in PAIR
    path = written(tmp_path, PAIR.replace(was, now, 1))
    found = problems_of(path)
    shown = "\n".join(map(str, found))
    assert (line, rule) in {(p.line, p.rule) for p in found}, shown
    assert says in shown
    assert all(p.file == str(path) and p.column for p in found), shown


@pytest.mark.parametrize(("text", "says"), [("", "the ablation is empty"), ("- a", "a mapping with `base` and `axes`")])
def test_a_file_that_is_no_ablation(text, says, tmp_path):
    assert says in str(problems_of(written(tmp_path, text))[0])


def test_many_mistakes_are_found_in_one_go(tmp_path):
    text = PAIR.replace("[0, 1]", "[0, 0, x]").replace("    moe:", "    m/e:") + "illegal: no\nmatch: {free: a}\nx: 1\n"
    rules = [p.rule for p in problems_of(written(tmp_path, text))]
    assert sorted(rules) == [
        "ablation.level", "ablation.seeds", "key.unknown", "type.wrong", "value.choice", "value.choice"
    ]  # fmt: skip


def test_mistakes_of_the_base_are_told_at_the_base(tmp_path):
    path = written(tmp_path, PAIR, "model:\n  backbone: {type: dense, depth: 1, dim: 32, nun_heads: 4}\n")
    found = problems_of(path)
    assert {p.file for p in found} == {str(tmp_path / "base.yaml")} and "in arm" not in str(found)
    assert any("'nun_heads'" in p.fact for p in found)


def test_a_base_needs_a_backbone(tmp_path):
    (found,) = problems_of(written(tmp_path, "base: fsq-tiny\naxes: {train.lr: [1e-3, 2e-3]}\n"))
    assert (found.line, found.rule) == (1, "ablation.base")


def test_what_a_file_says(tmp_path):
    text = GRID + "  train.lr: [1e-3, 0.0003]\nseeds: [3, 5]\nmatch: {what: tokens, free: train.steps}\n"
    found = read_ablation(written(tmp_path, text))
    assert found.base == tmp_path / "base.yaml" and found.seeds == (3, 5) and found.illegal == "refuse"
    assert isinstance(found.match, Match) and (found.match.what, found.match.free) == ("tokens", "train.steps")
    head, backbone, rate = found.axes
    assert isinstance(head, Axis) and [level.name for level in backbone.levels] == ["dense", "moe", "mot"]
    assert [o.text for level in rate.levels for o in level.overrides] == ["train.lr=1e-3", "train.lr=0.0003"]
    assert [level.name for level in rate.levels] == ["lr=1e-3", "lr=0.0003"]
    assert (head.levels[1].overrides[1].place.line, head.levels[0].overrides) == (7, ())


def test_mistakes_of_a_launcher_and_of_the_file_are_found_in_one_go(tmp_path):
    text = PAIR.replace("[0, 1]", "[0, 0]") + "launcher: {type: slurm, gpu: 1, minutes: soon, memory: 0}\n"
    rules = [p.rule for p in problems_of(written(tmp_path, text))]
    assert sorted(rules) == ["ablation.seeds", "key.unknown", "type.wrong", "value.range"]


LAUNCHERS = {
    "": ("local", {"gpus": "auto"}),
    "launcher: local": ("local", {"gpus": "auto"}),
    "launcher: {gpus: 2}": ("local", {"gpus": 2}),
    "launcher: {type: slurm, minutes: 240, partition: gpu, memory: 1.5, setup: [module load cuda]}": (
        "slurm", {"minutes": 240, "partition": "gpu", "memory": 1.5, "setup": ("module load cuda",), "gpus": 0},
    ),
    "launcher: {type: slurm, minutes: 5, sbatch: {qos: 010, exclusive: true}}": (
        "slurm", {"sbatch": {"qos": "010", "exclusive": True}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", LAUNCHERS)
def test_a_launcher_is_typed_by_its_config(text, tmp_path):
    name, options = LAUNCHERS[text]
    found = read_ablation(written(tmp_path, f"{PAIR}{text}\n")).launcher
    assert found.name == name and options.items() <= vars(found.options).items()


def test_overrides_of_the_launcher_are_told_from_those_of_arms(tmp_path):
    own, arms = parted(["launcher=slurm", "train.steps=3", "launcher.minutes=5", "launchers.x=1"])
    assert (own, arms) == (["launcher=slurm", "launcher.minutes=5"], ["train.steps=3", "launchers.x=1"])
    path = written(tmp_path, f"{PAIR}launcher: {{gpus: 2}}\n")
    found = read_ablation(path, own).launcher
    assert (found.name, found.options.minutes, found.options.gpus) == ("slurm", 5, 0)
    assert read_ablation(path, ["launcher.gpus=1"]).launcher.options.gpus == 1
    with pytest.raises(RecipeError) as raised:
        read_ablation(path, ["launcher.gpu=1", "launcher=", "launcher.gpus"])
    said = [str(problem) for problem in raised.value.problems]
    assert len(said) == 2 and all(line.startswith("override `launcher") for line in said), said


def test_shipped_files_are_found_by_name():
    assert {"head", "backbone"} <= shipped().keys()
    assert read_ablation("head").base == "transfusion-tiny"
    with pytest.raises(RecipeError, match="neither a file nor a shipped ablation"):
        read_ablation("haed")


def test_reading_needs_no_torch():
    code = (
        "import sys, mmkit.ablate.diff\nfrom mmkit.ablate.reading import read_ablation\n"
        "read_ablation('head', ['launcher={type: slurm, minutes: 1}'])\nprint({'torch', 'submitit'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_mutilated_files_are_refused_or_run_and_never_end_in_a_traceback(tmp_path):
    draw = random.Random(0)
    words = [
        "null",
        "[]",
        "{}",
        ":",
        "- ",
        "x",
        "0",
        "${a}",
        "'",
        "&a ",
        "*a",
        "model.backbone.dim=8",
        "\n",
        "  ",
        "!!int ",
        "\\",
    ]
    text = GRID + "seeds: [0]\nset: [train.steps=1]\nmatch: {what: tokens, free: train.steps}\nillegal: skip\n"
    text += "launcher: {type: slurm, minutes: 9, sbatch: {qos: long}}\n"
    refused = 0
    for _ in range(400):
        at, wide = draw.randrange(len(text)), draw.choice((0, 0, 1, 4, 20))
        path = written(tmp_path, text[:at] + draw.choice(words) + text[at + wide :])
        try:
            read_ablation(path)
        except RecipeError as error:
            refused += 1
            assert all(p.file == str(path) and p.line and p.rule and p.fact for p in error.problems), str(error)
    assert refused > 100
