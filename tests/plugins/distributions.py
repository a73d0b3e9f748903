"""Distributions as pip leaves them behind: a folder of metadata, with packages beside it."""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Mapping
from pathlib import Path

from mmkit import registry

PART = '''
from dataclasses import dataclass

from torch import nn

from mmkit.contracts.connector import Connector


class Glue(Connector):
    """A projection from outside."""

    takes = frozenset({"latents", "features"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        bias: bool = True

    def __init__(self, config, source, dim):
        super().__init__()
        self.port = source
        self.projection = nn.Linear(source.width, dim, bias=config.bias)

    def forward(self, x, grids):
        return self.projection(x)
'''


class Site:
    """A folder on the path that distributions are put into by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(
        self, name: str, entries: Mapping[str, str], files: Mapping[str, str] | None = None, *,
        version: str = "1.0", needs: str = "mmkit>=0.1,<2",
    ) -> Path:  # fmt: skip
        """One distribution: its list, and its files by path. Gives the file of the list."""
        for path, text in (files or {}).items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(textwrap.dedent(text))
        info = self.root / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        requires = f"Requires-Dist: {needs}\n" if needs else ""
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}\nA readme\n"
        )
        listed = [f"{key} = {target}" for key, target in entries.items()]
        (info / "entry_points.txt").write_text(
            "\n".join(["[console_scripts]", "other = a:b", "", "[mmkit]", *listed, ""])
        )
        return info / "entry_points.txt"

    def read(self) -> registry.Registry:
        """The registry as a fresh process would have it."""
        importlib.invalidate_caches()
        registry.load.cache_clear()
        return registry.load()
