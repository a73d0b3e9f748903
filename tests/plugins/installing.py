"""A plugin's folder as `pip install` leaves it behind, without a network or a build: its package, and its list."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

from distributions import Site


def install(site: Site, folder: Path) -> str:
    """Puts the package of a folder on the path by what its ``pyproject.toml`` says; gives the distribution's name."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    (package,) = {target.partition(":")[0] for target in project["entry-points"]["mmkit"].values()}
    shutil.copytree(folder / package, site.root / package)
    (needs,) = project["dependencies"]
    site.add(project["name"], project["entry-points"]["mmkit"], version=project["version"], needs=needs)
    site.read()
    return project["name"]
