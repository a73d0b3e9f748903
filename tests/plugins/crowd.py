"""Two hundred installed plugins, a few of them broken, each in a way of its own."""

from __future__ import annotations

from dataclasses import dataclass

from distributions import PART, Site


@dataclass(frozen=True)
class Broken:
    """How one plugin is broken: its part, the code of its hooks, what it needs of mmkit; and what the reason must say."""

    reason: str
    part: str = PART
    hooks: str = ""
    needs: str = "mmkit>=0.1,<2"
    kind: str = "connector"


HOOKS = "from mmkit.hooks import hookimpl\n\n\n@hookimpl\n"
BROKEN = {
    "lacking": Broken("ModuleNotFoundError: No module named 'no_such_library'", "import no_such_library\n" + PART),
    "unparsed": Broken("SyntaxError", PART + "\ndef (:\n"),
    "exiting": Broken("SystemExit: 3", PART + "\nraise SystemExit(3)\n"),
    "raising": Broken("ZeroDivisionError", hooks=HOOKS + "def mmkit_components(register): 1 / 0"),
    "odd": Broken("more", hooks=HOOKS + "def mmkit_components(register, more): ..."),
    "newer": Broken("is made for mmkit>=99, and this is mmkit", needs="mmkit>=99"),
    "silent": Broken("connector 'silent' is listed and not registered", hooks=HOOKS + "def mmkit_components(register): ..."),
    "misplaced": Broken("is of kind connector, not of kind head", kind="head"),
    "absent": Broken("has no attribute 'Glue'", PART.replace("class Glue", "class Paste")),
}  # fmt: skip
"""By the name of the part; the distribution is ``NAME-kit``."""
OF_LIST = {"newer"}
"""Those whose list alone says so; of the others it is found where they are used."""


RECIPE = "# Recipe {name} of a stranger.\nmodel: {{}}\n"
COMMAND = '\n\n@click.command()\ndef command():\n    """Does nothing."""\n'
COMMANDS = 5


def crowd(site: Site, count: int = 200) -> list[str]:
    """Fills a site; gives the names of the sound plugins' parts. Each has a recipe too, and some a command."""
    sound = [f"glue{number}" for number in range(count - len(BROKEN))]
    for number, name in enumerate(sound):
        module = f"crowd_{name}"
        entries = {f"connector.{name}": f"{module}:Glue", f"recipe.{name}-tiny": module}
        entries |= {f"command.do-{name}": f"{module}:command"} if number < COMMANDS else {}
        files = {f"{module}/__init__.py": f"import click\n{PART}{COMMAND}"}
        files[f"{module}/{name}-tiny.yaml"] = RECIPE.format(name=name)
        site.add(f"crowd-{name}", entries, files, version=f"1.{number}")
    for name, how in BROKEN.items():
        module = f"crowd_{name}"
        entries, files = {f"{how.kind}.{name}": f"{module}:Glue"}, {f"{module}.py": how.part}
        if how.hooks:
            files[f"{module}_plugin.py"], entries["plugin"] = how.hooks, f"{module}_plugin"
        site.add(f"{name}-kit", entries, files, needs=how.needs)
    return sound
