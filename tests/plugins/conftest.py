"""A folder that distributions are put into, seen by this process and by those it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributions import Site

from mmkit import registry

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
    registry.load.cache_clear()
