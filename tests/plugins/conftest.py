"""A folder that distributions are put into, seen by this process and by those it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributions import Site

from mmkit import discovery, registry
from mmkit.compose import docstrings

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    root = tmp_path / "site"
    root.mkdir()
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(root), str(REPOSITORY))))
    monkeypatch.setenv("MMKIT_STRICT", "")
    registry.load.cache_clear()
    yield Site(root)
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(root)):
            del sys.modules[name]
    for cached in (registry.load, discovery.folders_of, discovery.file_of, docstrings.source_of):
        cached.cache_clear()
