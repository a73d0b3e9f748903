"""A broken plugin is reported by name with its reason, refused where it is used, and stops nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from distributions import PART, Site

from mmkit import cli
from mmkit.compose import check, loads
from mmkit.errors import PluginError, RecipeError

HOOK = """
    from mmkit.hooks import hookimpl

    @hookimpl
    def mmkit_components(register):
        register("connector", "{name}", "{target}")
"""
RECIPE = """
model:
  tokenizers: {text: {type: bytes}, pixels: {type: pixel, connector: {type: %s}}}
  backbone: {type: dense, depth: 1, dim: 32, num_heads: 2}
  heads: {say: {type: ar}, paint: {type: flow}}
  streams:
    text: {modality: text, from: text, head: say}
    image: {modality: image, from: pixels, head: paint}
data: [{type: shapes, size: 24, tasks: [caption]}]
"""

# By what their code does when it is imported: the module's text, and what the reason must say.
AT_IMPORT = {
    "lacking": ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
    "unparsed": ("def (:", "SyntaxError"),
    "exiting": ("raise SystemExit(3)", "SystemExit: 3"),
    "dividing": ("1 / 0", "ZeroDivisionError"),
    "empty": ("", "AttributeError"),
}
# By what their hooks do: the text of the module, and what the reason must say.
AT_HOOKS = {
    "raising": ("from mmkit.hooks import hookimpl\n@hookimpl\ndef mmkit_components(register): 1 / 0", "ZeroDivisionError"),
    "odd": ("from mmkit.hooks import hookimpl\n@hookimpl\ndef mmkit_components(register, more): ...", "more"),
    "unheard": ("from mmkit.hooks import hookimpl\n@hookimpl\ndef mmkit_parts(register): ...", "mmkit_parts"),
    "typed": ("from mmkit.hooks import hookimpl\n@hookimpl\ndef mmkit_components(register): register('connector', 'typed', int)",
              "is not `module:attribute`"),
    "kinded": (HOOK.replace('"connector"', '"gadget"').format(name="kinded", target="a:B"), "unknown kind 'gadget'"),
    "silent": ("", "connector 'silent' is listed and not registered"),
    "talkative": (HOOK.format(name="other", target="a:B"), "connector 'other' is registered and not listed"),
    "differing": (HOOK.format(name="differing", target="a:B"), "is listed as differing_kit:Glue and registered as a:B"),
    "gone": ("raise SystemExit", "SystemExit"),
}  # fmt: skip
# By what stands where the target says: the module's text, the kind it is listed as, and what the reason must say.
OF_THEIR_KIND = {
    "headed": (PART, "head", "is of kind connector, not of kind head. list it as `connector.NAME`"),
    "classless": (PART.replace("(Connector)", ""), "connector", "is a class of its own, not of kind connector. derive it from "),
    "function": ("def Glue(): ...", "source", "is a function, not a class. name the class of the source"),
    "unfinished": (PART.replace("def forward", "def backward"), "connector", "leaves out forward. write what mmkit.contracts."),
    "bare": ("def Glue(): ...", "command", "is a function, not a click command"),
}  # fmt: skip
# By their list alone: the entries, what they need of mmkit, and what the reason must say.
BY_LIST = {
    "newer": ({"connector.newer": "newer_kit:Glue"}, "mmkit>=99", "is made for mmkit>=99, and this is mmkit"),
    "garbled": ({"connector.garbled": "garbled_kit:Glue"}, "mmkit>=x", "is no range of versions"),
    "gadgets": ({"gadget.gadgets": "gadgets_kit:Glue"}, "mmkit", "unknown kind 'gadget' of 'gadgets'"),
    "kindless": ({"kindless": "kindless_kit:Glue"}, "mmkit", "unknown kind 'kindless'"),
    "moduled": (
        {"connector.moduled": "moduled_kit"},
        "mmkit",
        "'moduled_kit', the target of connector 'moduled', is not",
    ),
    "spaced": ({"connector.a b": "spaced_kit:Glue"}, "mmkit", "'a b' is no name"),
}


def mmkit(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments, catch_exceptions=False)


def sound(site: Site, name: str) -> None:
    """One plugin that is as it should be, beside the broken one."""
    site.add(f"sound-{name}", {f"connector.sound-{name}": f"sound_{name}:Glue"}, {f"sound_{name}/__init__.py": PART})


def refused(name: str) -> str:
    with pytest.raises(RecipeError) as caught:
        loads(RECIPE % name)
    (problem,) = caught.value.problems
    assert problem.rule == "part.broken" and problem.place.endswith("connector.type")
    return str(problem)


@pytest.mark.parametrize("name", AT_IMPORT)
def test_code_that_cannot_be_imported(name: str, site: Site) -> None:
    text, reason = AT_IMPORT[name]
    site.add(f"{name}-kit", {f"connector.{name}": f"{name}_kit:Glue"}, {f"{name}_kit/__init__.py": text})
    sound(site, name)
    known = site.read()
    said = refused(name)
    assert f"{name}_kit:Glue of {name}-kit 1.0 cannot be loaded" in said and reason in said
    assert loads(RECIPE % f"sound-{name}")
    assert not known.broken
    loose, strict = mmkit("list"), mmkit("list", "--strict")
    assert loose.exit_code == 0 and strict.exit_code == 1
    assert f"broken: {name}-kit: " in strict.output and reason in strict.output
    assert list(known.broken) == [f"{name}-kit"]


@pytest.mark.parametrize("name", OF_THEIR_KIND)
def test_targets_that_are_not_of_the_kind_they_are_listed_as(name: str, site: Site) -> None:
    text, kind, reason = OF_THEIR_KIND[name]
    site.add(f"{name}-kit", {f"{kind}.{name}": f"{name}_kit:Glue"}, {f"{name}_kit/__init__.py": text})
    sound(site, name)
    known = site.read()
    with pytest.raises(PluginError) as caught:
        known.find(kind, name).load()
    assert f"{name}_kit:Glue of {name}-kit 1.0 {reason}" in str(caught.value)
    strict = mmkit("list", "--strict")
    assert strict.exit_code == 1 and f"broken: {name}-kit: " in strict.output and reason in strict.output
    assert f"sound-{name}" in mmkit("list").output


def test_what_is_not_of_its_kind_is_said_by_the_check_once(site: Site) -> None:
    entries = {f"{kind}.{name}": f"many_{name}:Glue" for name, (_, kind, _) in OF_THEIR_KIND.items()}
    site.add("many-kit", entries, {f"many_{name}.py": text for name, (text, *_) in OF_THEIR_KIND.items()})
    site.read()
    told = mmkit("plugin", "check", "many-kit")
    assert told.exit_code == 1
    failed = [line for line in told.output.splitlines() if "failed: it is imported, and is of its kind: " in line]
    assert len(failed) == len(entries)
    assert all(any(reason in line for line in failed) for _, _, reason in OF_THEIR_KIND.values())
    assert "it builds" not in told.output


def test_a_recipe_that_names_a_part_of_another_kind(site: Site) -> None:
    site.add(
        "classless-kit",
        {"connector.classless": "classless_kit:Glue"},
        {"classless_kit.py": OF_THEIR_KIND["classless"][0]},
    )
    site.read()
    with pytest.raises(RecipeError) as caught:
        check(loads(RECIPE % "classless"))
    (problem,) = caught.value.problems
    assert (problem.rule, problem.place, problem.line) == ("part.broken", "model.tokenizers.pixels.connector.type", 3)


@pytest.mark.parametrize("name", AT_HOOKS)
def test_hooks_that_fail_or_do_not_match_the_list(name: str, site: Site) -> None:
    text, reason = AT_HOOKS[name]
    files = {f"{name}_kit/__init__.py": PART, f"{name}_kit/plugin.py": text}
    site.add(f"{name}-kit", {f"connector.{name}": f"{name}_kit:Glue", "plugin": f"{name}_kit.plugin"}, files)
    sound(site, name)
    known = site.read()
    assert not known.broken and ("connector", name) in known.entries
    said = refused(name)
    assert f"{name}-kit 1.0 lists it, and is broken: {name}_kit.plugin: " in said and reason in said
    assert said.split("broken: ")[1] == refused(name).split("broken: ")[1], "another look finds the same"
    assert loads(RECIPE % f"sound-{name}")
    listed = mmkit("list")
    assert listed.exit_code == 0 and f"broken: {name}-kit: " in listed.output
    assert f"refused: {name}_kit.plugin" in mmkit("list", "--why", name).output


@pytest.mark.parametrize("name", BY_LIST)
def test_lists_that_are_wrong_by_themselves(name: str, site: Site) -> None:
    entries, needs, reason = BY_LIST[name]
    site.add(f"{name}-kit", entries, {f"{name}_kit/__init__.py": PART}, needs=needs)
    sound(site, name)
    known = site.read()
    assert list(known.broken) == [f"{name}-kit"] and reason in known.broken[f"{name}-kit"]
    listed = mmkit("list", "connector")
    assert listed.exit_code == 0 and f"broken: {name}-kit: " in listed.output and f"sound-{name}" in listed.output
    assert mmkit("list", "--strict").exit_code == 1
    if f"connector.{name}" in entries:
        assert reason in refused(name)


def test_a_list_that_names_one_thing_twice(site: Site) -> None:
    file = site.add("double-kit", {"connector.double": "double_kit:One"})
    file.write_text("[mmkit]\nconnector.double = double_kit:One\nconnector.double = double_kit:Two\n")
    assert "registers it twice, as double_kit:One and as double_kit:Two" in site.read().broken["double-kit"]


def test_a_recipe_that_is_not_there(site: Site) -> None:
    site.add("bare-kit", {"recipe.bare-tiny": "bare_kit"}, {"bare_kit/__init__.py": ""})
    site.read()
    assert mmkit("check", "bare-tiny").exit_code == 1
    assert "there is no file bare_kit:bare-tiny.yaml" in mmkit("list", "--strict").output
    assert "bare-kit 1.0 lists it, and is broken" in mmkit("check", "bare-tiny").output


def test_a_hook_module_that_agrees_with_its_list(site: Site) -> None:
    files = {"fine_kit/__init__.py": PART, "fine_kit/plugin.py": HOOK.format(name="fine", target="fine_kit:Glue")}
    site.add("fine-kit", {"connector.fine": "fine_kit:Glue", "plugin": "fine_kit.plugin"}, files)
    site.read()
    assert loads(RECIPE % "fine")
    assert mmkit("list", "--strict").exit_code == 0


def test_check_can_be_strict(site: Site, tmp_path: Path) -> None:
    site.add("late-kit", {"connector.late": "late_kit:Glue"}, needs="mmkit>=99")
    site.read()
    (tmp_path / "r.yaml").write_text(RECIPE % "linear")
    assert mmkit("check", str(tmp_path / "r.yaml")).exit_code == 0
    result = mmkit("check", "--strict", str(tmp_path / "r.yaml"))
    assert result.exit_code == 1 and "broken: late-kit" in result.output and "OK" not in result.output
    runner = CliRunner(env={"MMKIT_STRICT": "1"})
    assert runner.invoke(cli.main, ["list"]).exit_code == 1


def test_a_command_of_a_broken_plugin(site: Site) -> None:
    site.add("sour-kit", {"command.sour": "sour_kit:sour", "command.stale": "sour_kit:stale"})
    site.read()
    assert "sour      From sour-kit." in mmkit("--help").output
    result = mmkit("sour")
    assert result.exit_code == 2 and "sour_kit:sour of sour-kit 1.0 cannot be loaded" in result.output
    assert mmkit("list").exit_code == 0


def test_two_owners_of_one_name(site: Site) -> None:
    for name in ("left", "right", "third"):
        site.add(f"{name}-kit", {"connector.both": f"{name}_kit:Glue"}, {f"{name}_kit/__init__.py": PART})
    known = site.read()
    listed = mmkit("list", "connector")
    assert listed.exit_code == 0 and "left-kit/both" in listed.output and "right-kit/both" in listed.output
    assert "contested: connector 'both': left-kit 1.0 (" in listed.output
    assert mmkit("list", "--strict").exit_code == 1
    with pytest.raises(RecipeError) as caught:
        loads(RECIPE % "both")
    (problem,) = caught.value.problems
    assert problem.rule == "part.contested" and "`right-kit/both`" in problem.remedy
    assert "left-kit 1.0 (left_kit:Glue) and right-kit 1.0 (right_kit:Glue)" in problem.fact
    spec = loads(RECIPE % "right-kit/both").model.tokenizers["pixels"].connector
    assert spec.entry.target == "right_kit:Glue" and not known.broken
    assert len(mmkit("list", "--why", "both").output.splitlines()) == 3


def test_built_ins_cannot_be_shadowed(site: Site) -> None:
    entries = {
        "connector.linear": "shade_kit:Glue",
        "command.list": "shade_kit:cli",
        "recipe.transfusion-tiny": "shade_kit",
    }
    site.add("shade-kit", entries, {"shade_kit/__init__.py": PART})
    known = site.read()
    assert known.find("connector", "linear").owner == "mmkit"
    assert known.find("connector", "shade-kit/linear").owner == "shade-kit"
    assert known.find("command", "list").owner == known.find("recipe", "transfusion-tiny").owner == "mmkit"
    assert "'linear' alone is mmkit's own" in mmkit("list").output
    with pytest.raises(PluginError, match=r"part\.unknown"):
        known.find("connector", "other-kit/linear")


def test_a_broken_claimant_does_not_hide_a_sound_one(site: Site) -> None:
    site.add("aged-kit", {"connector.shared": "aged_kit:Glue"}, needs="mmkit>=99")
    site.add("young-kit", {"connector.shared": "young_kit:Glue"}, {"young_kit/__init__.py": PART})
    assert site.read().find("connector", "shared").owner == "young-kit"
