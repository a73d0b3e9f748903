"""`mmkit plugin check`: what is wrong with a plugin is found, whatever it does to the process that looks.

A made-up kit stands in for the conformance kit here, so that what is tested is the command alone.
"""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from distributions import Site
from installing import install

from mmkit import cli
from mmkit.plugin import checking
from mmkit.plugin.findings import Finding, lines, markdown

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
KIT = """
    import os, signal, time
    from dataclasses import dataclass
    from types import SimpleNamespace

    @dataclass
    class Result:
        check: object
        entry: object
        ok: bool
        reason: str
        seconds: float
        case: str = ""

    def run(entries, tell):
        for entry in entries:
            tell(Result(SimpleNamespace(name="it_stays_the_same"), entry, True, "", 0.25, "small"))
            if hasattr(entry.load(), "misbehave"):
                entry.load().misbehave()
            ok = "bad" not in entry.name
            tell(Result(SimpleNamespace(name="widths_are_true"), entry, ok, "" if ok else "it is 3 | and\\nnot 4", 0.5))
"""
SOURCE = '''
    from dataclasses import dataclass

    from mmkit.contracts.segment import Sample
    from mmkit.contracts.source import Source


    class Nothing(Source):
        """Nothing at all, at length."""

        @dataclass(frozen=True, kw_only=True)
        class Config:
            """It has no options."""

        def __init__(self, config):
            self.config = config

        def __len__(self):
            return 1

        def sample(self, index, seed):
            return Sample("nothing", ())
'''
MISBEHAVING = {
    "exits": ("os._exit(3)", "its process ended with exit status 3"),
    "crashes": ("os.kill(os.getpid(), signal.SIGSEGV)", "its process ended by SIGSEGV"),
    "leaves": ("raise SystemExit(4)", "SystemExit: 4"),
    "raises": ("1 / 0", "ZeroDivisionError: division by zero"),
    "forks": (
        "subprocess.Popen(['sleep', '600'], close_fds=False); os._exit(5)",
        "its process ended with exit status 5",
    ),
    "chatters": ("print('{' * 200_000); sys.stdout.flush(); os.write(1, b'x\\n' * 9999)", ""),
}
"""By what a part does while the kit looks at it, and what is found; nothing where it is no fault."""


@pytest.fixture(autouse=True)
def made_up_kit(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site.add("a-kit", {}, {"made_up_kit.py": KIT})
    monkeypatch.setattr(checking, "KIT", "made_up_kit")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


def check(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["plugin", "check", *arguments])


def findings(*arguments: str) -> list[dict[str, object]]:
    result = check("--json", *arguments)
    told = json.loads(result.stdout)
    assert result.exit_code == int(not told["ok"]) == int(any(not f["ok"] for f in told["findings"])), result.output
    return told["findings"]


def failed(*arguments: str) -> dict[str, str]:
    return {str(f["check"]): str(f["reason"]) for f in findings(*arguments) if not f["ok"]}


def add(site: Site, name: str, text: str = SOURCE, **entries: str) -> None:
    """A distribution NAME-kit with a source NAME, and what more is given."""
    more = {kind.replace("_", "."): target for kind, target in entries.items()}
    site.add(f"{name}-kit", {f"source.{name}": f"{name}_kit:Nothing", **more}, {f"{name}_kit/__init__.py": text})
    site.read()


def test_a_sound_plugin(site: Site) -> None:
    add(site, "calm")
    result = check("calm-kit")
    assert result.exit_code == 0, result.output
    package, part = result.stdout.splitlines()
    assert re.fullmatch(r"calm-kit: 2 of 2 checks hold \(\d+\.\d s\)", package)
    assert re.fullmatch(r"calm-kit source/calm: 4 of 4 checks hold \(\d+\.\d s\)", part)
    assert result.stderr.splitlines() == ["checking calm-kit list", "checking calm-kit source/calm"]
    assert [f["check"] for f in findings("source/calm")] == [
        "options are read from the source, the part not imported", "it is imported, and is of its kind",
        "it stays the same", "widths are true",
    ]  # fmt: skip


def test_what_the_kit_finds(site: Site, tmp_path: Path) -> None:
    add(site, "bad")
    report = tmp_path / "CHECKS.md"
    result = check("bad_kit", "--report", str(report))
    assert result.exit_code == 1 and "  failed: widths are true: it is 3 | and not 4\n" in result.stdout
    page = report.read_text()
    assert page.startswith(
        "## Checks of bad-kit 1.0\n\n`mmkit plugin check`: 5 of 6 checks hold, with mmkit 0.1.0, torch "
    )
    assert "| source/bad | it stays the same (small) | ok |  |" in page
    assert r"| source/bad | widths are true | **failed** | it is 3 \| and not 4 |" in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert len(tables) == 8 and all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in tables)
    check("bad_kit", "--report", str(report))
    assert report.read_text() == page, "what time it took is not in it"


@pytest.mark.parametrize("how", MISBEHAVING)
def test_a_part_that_misbehaves_while_it_is_looked_at(how: str, site: Site) -> None:
    what, reason = MISBEHAVING[how]
    extra = f"""
        @staticmethod
        def misbehave():
            import os, signal, subprocess, sys
            {what}
    """
    add(site, how, SOURCE + extra, source_tame=f"{how}_tame:Nothing")
    site.add("tame", {}, {f"{how}_tame.py": SOURCE})
    told = findings(f"{how}-kit")
    wrong = [f for f in told if not f["ok"]]
    assert [str(f["reason"]).partition(": print")[0] for f in wrong] == ([reason] if reason else [])
    assert all(f["entry"] == f"source/{how}" for f in wrong)
    assert "it stays the same" in {f["check"] for f in told if f["entry"] == f"source/{how}"}, (
        "what was found before stays"
    )
    assert len([f for f in told if f["entry"] == "source/tame"]) == 4, "the others are looked at all the same"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("def (:", "SyntaxError"),
        ("", "AttributeError"),
    ],
)
def test_code_that_cannot_be_imported(text: str, reason: str, site: Site) -> None:
    add(site, "sour", text)
    wrong = failed("sour-kit")
    assert reason in wrong["it is imported, and is of its kind"], wrong


def test_plugins_that_hang(site: Site) -> None:
    """At import, and while one is looked at: at the same time, since each takes all that it is given."""
    late = SOURCE + "\n        @staticmethod\n        def misbehave():\n            import time; time.sleep(600)\n"
    hanging = {"stuck": "import time\ntime.sleep(600)\n", "late": late}
    for name, text in hanging.items():
        site.add(f"{name}-kit", {f"source.{name}": f"{name}_kit:Nothing"}, {f"{name}_kit/__init__.py": text})
    add(site, "calm")
    targets = checking.targets(("stuck-kit", "calm-kit"), Path())
    start = time.monotonic()
    with ThreadPoolExecutor() as pool:
        other = pool.submit(lambda: [vars(f) for t in targets for f in checking.check(t, Path(), 10, str)])
        told = [*findings("late-kit", "calm-kit", "--timeout", "10"), *other.result()]
    wrong = [f for f in told if not f["ok"]]
    assert [(f["entry"], f["check"]) for f in wrong] == [
        (f"source/{n}", "it comes to an end") for n in ("late", "stuck")
    ]
    assert {f["reason"] for f in wrong} == {"still running after 10 s; `--timeout` gives it longer"}
    assert [f["entry"] for f in told if f["check"] == "it stays the same"] == [
        "source/late",
        "source/calm",
        "source/calm",
    ]
    assert time.monotonic() - start < 60


def test_a_list_that_is_wrong_by_itself(site: Site) -> None:
    site.add("aged-kit", {"source.aged": "aged_kit:Nothing"}, {"aged_kit/__init__.py": SOURCE}, needs="mmkit>=99")
    site.read()
    wrong = failed("aged-kit")
    assert list(wrong) == ["the list is sound, and made for this mmkit"]
    assert "is made for mmkit>=99, and this is mmkit" in next(iter(wrong.values()))


def test_hooks_that_do_not_match_the_list(site: Site) -> None:
    site.add(
        "silent-kit", {"source.silent": "silent_kit:Nothing", "plugin": "silent_kit.plugin"},
        {"silent_kit/__init__.py": SOURCE, "silent_kit/plugin.py": ""},
    )  # fmt: skip
    site.read()
    assert "is listed and not registered" in failed("silent-kit")["its hooks register what is listed"]


def test_names_that_two_packages_claim(site: Site) -> None:
    for owner in ("left", "right"):
        site.add(f"{owner}-kit", {"source.both": f"{owner}_kit:Nothing"}, {f"{owner}_kit/__init__.py": SOURCE})
    site.read()
    told = findings("left-kit")
    assert [f["reason"] for f in told if not f["ok"]] == [
        "others provide source 'both' of right-kit, too: recipes can name them as `left-kit/NAME` only"
    ]
    assert {f["entry"] for f in told} == {"", "source/left-kit/both"}
    assert {f["entry"] for f in findings("source/right-kit/both")} == {"source/right-kit/both"}


def test_recipes_and_commands(site: Site) -> None:
    entries = {"recipe.wry-tiny": "wry_kit", "command.wave": "wry_kit:wave"}
    site.add(
        "wry-kit", entries, {"wry_kit/__init__.py": "def wave(): ...", "wry_kit/wry-tiny.yaml": "model: {haeds: 1}\n"}
    )
    site.read()
    wrong = failed("wry-kit")
    assert "wry-tiny.yaml:1:9: model.haeds" in wrong["the recipe has no mistake"]
    assert "is a function, not a click command" in wrong["it is imported, and is of its kind"]


def test_weights_that_are_not_on_this_machine_are_no_mistake_of_a_recipe(site: Site) -> None:
    part = "{type: kl_vae, channels: 4, stride: 4, frozen: true, weights: nowhere/file.safetensors"
    files = {"far_kit/__init__.py": ""}
    for name, rest in (("right", "}"), ("wrong", ", strides: 4}")):
        recipe = f"model: {{tokenizers: {{pixels: {part}{rest}}}}}\ndata: [{{type: shapes}}]\ntrain: {{steps: 1}}\n"
        files[f"far_kit/{name}-tiny.yaml"] = recipe
    site.add("far-kit", {"recipe.right-tiny": "far_kit", "recipe.wrong-tiny": "far_kit"}, files)
    site.read()
    told = {str(f["entry"]): f for f in findings("far-kit") if f["check"] == "the recipe has no mistake"}
    right, wrong = told["recipe/right-tiny"], told["recipe/wrong-tiny"]
    assert right["ok"] and not wrong["ok"] and "strides" in str(wrong["reason"])


def test_options_that_only_an_import_tells(site: Site) -> None:
    text = SOURCE.replace(
        "@dataclass(frozen=True, kw_only=True)\n        class Config:", "Config = make_dataclass('C', []) #"
    )
    text = text.replace('#\n            """It has no options."""', "").replace(
        "import dataclass", "import make_dataclass"
    )
    add(site, "sly", text)
    assert "sly_kit must be imported" in failed("sly-kit")["options are read from the source, the part not imported"]


# What is meant


def test_by_default_the_package_of_this_folder(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(site, "calm")
    project = '[project]\nname = "Calm_Kit"\nversion = "1.0"\n[project.entry-points.mmkit]\n"source.calm" = "%s"\n'
    (tmp_path / "pyproject.toml").write_text(project % "calm_kit:Nothing")
    monkeypatch.chdir(tmp_path)
    add(site, "other")
    told = findings()
    assert {f["distribution"] for f in told} == {"calm-kit"} and all(f["ok"] for f in told)
    (tmp_path / "pyproject.toml").write_text(project % "calm_kit:Something")
    assert failed() == {
        "the installed list is that of pyproject.toml": (
            "pyproject.toml and what is installed differ in source.calm. Run `pip install -e .` again."
        )
    }
    (tmp_path / "pyproject.toml").write_text(project.replace("Calm_Kit", "gone-kit") % "a:B")
    result = check()
    assert (
        result.exit_code == 2 and "gone-kit: it is not installed. run `pip install -e .` in its folder" in result.stderr
    )
    (tmp_path / "pyproject.toml").write_text("[project")
    assert check().exit_code == 2


def test_else_all_there_are(site: Site) -> None:
    add(site, "calm")
    add(site, "still")
    assert {f["distribution"] for f in findings()} == {"calm-kit", "still-kit"}


def test_a_folder_with_another_project(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\nversion = "1"\n')
    monkeypatch.chdir(tmp_path)
    add(site, "calm")
    assert {f["distribution"] for f in findings()} == {"calm-kit"}


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("no-such-kit", "it is not installed"),
        ("click", "it lists nothing for mmkit"),
        ("gadget/calm", "'gadget' is no kind"),
        ("source/clam", "did you mean 'calm'?"),
    ],
)
def test_what_is_not_there(word: str, why: str, site: Site) -> None:
    add(site, "calm")
    result = check(word)
    assert result.exit_code == 2 and why in result.stderr and not result.stdout


def test_where_no_plugin_is(site: Site) -> None:
    site.read()
    result = check()
    assert result.exit_code == 2 and "no plugin is installed. `mmkit plugin new` begins one." in result.stderr


def test_parts_of_mmkit_itself() -> None:
    told = findings("source/shapes")
    assert all(f["ok"] for f in told) and {f["distribution"] for f in told} == {"mmkit"}


def test_a_report_that_cannot_be_written(site: Site) -> None:
    add(site, "calm")
    result = check("calm-kit", "--report", "/proc/calm.md")
    assert result.exit_code == 1 and "/proc/calm.md" in result.stderr and not isinstance(result.exception, OSError)


def test_the_kit_is_mmkits_own_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert checking.KIT == "mmkit.testing"


def test_cases_in_which_a_check_holds_are_one_row() -> None:
    same = [Finding("a", "head/b", "it holds", True, "", 1.0, case) for case in ("one", "two")]
    wrong = [Finding("a", "head/b", "it holds", False, "no", 1.0, case) for case in ("three", "four")]
    rows = [line for line in markdown([*same, *wrong]).splitlines() if "it holds" in line]
    assert rows == [
        "| head/b | it holds (2 cases) | ok |  |",
        "| head/b | it holds (three) | **failed** | no |",
        "| head/b | it holds (four) | **failed** | no |",
    ]


def test_findings_without_any() -> None:
    assert lines([]) == [] and markdown([]) == ""
    assert lines([Finding("a", "", "b", False, "c", 1.0, "d")]) == [
        "a: 0 of 1 checks hold (1.0 s)",
        "  failed: b (d): c",
    ]


# The page


def test_the_three_commands_of_the_page(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"^## Three commands$.*?^```sh\n(.*?)^```$", PAGE, re.M | re.S)
    commands = [line.partition("#")[0].split() for line in block.splitlines()]
    assert [command[:3] for command in commands] == [
        ["mmkit", "plugin", "new"], ["pip", "install", "-e"], ["mmkit", "plugin", "check"],
    ]  # fmt: skip
    begun = CliRunner().invoke(cli.main, commands[0][1:])
    assert begun.exit_code == 0, begun.output
    name = install(site, Path(commands[1][3]))
    assert commands[2][3] == name
    checked = CliRunner().invoke(cli.main, commands[2][1:])
    assert checked.exit_code == 0, checked.output
    named = re.search(r"`mmkit train (\S+)` trains", PAGE.partition("## Three commands")[2])
    assert named and CliRunner().invoke(cli.main, ["check", named[1]]).exit_code == 0
