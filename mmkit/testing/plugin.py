"""The pytest plugin: ``pytest --mmkit-check mmkit-sparkle`` runs the conformance kit, without a test file.

Loaded by every pytest where mmkit is installed, so it imports nothing before the option is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--mmkit-check``, as often as wanted."""
    parser.getgroup("mmkit").addoption(
        "--mmkit-check",
        action="append",
        default=[],
        metavar="NAME",
        help="run mmkit's conformance kit on a package, a kind, or KIND/NAME, instead of the folder's own tests",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The mark of checks that train or compile."""
    config.addinivalue_line("markers", "slow: takes more than about ten seconds on two cores")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With the option and no files named, no file is collected."""
    if config.getoption("mmkit_check") and config.args_source is not pytest.Config.ArgsSource.ARGS:
        return collection_path.is_file() or None
    return None


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Adds a test for each check."""
    if names := config.getoption("mmkit_check"):
        items += _items(session, names)


def _items(session: pytest.Session, names: list[str]) -> Iterator[pytest.Item]:
    from mmkit import registry
    from mmkit.errors import MmkitError
    from mmkit.testing.running import entries, planned

    known = registry.load()
    try:
        found = entries(*names, registry=known)
    except MmkitError as error:
        raise pytest.UsageError(str(error)) from error
    for entry in found:
        for check, case in planned(entry, known):
            yield CheckItem.from_parent(session, name=f"{entry.kind}-{entry.name}-{check.name}", check=check, case=case)


class CheckItem(pytest.Item):
    """One check of one component."""

    def __init__(self, *, check: Any, case: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check, self.case = check, case
        if check.slow:
            self.add_marker(pytest.mark.slow)

    def runtest(self) -> None:
        """Fails with what the check found."""
        from mmkit.testing.running import settle

        settle(self.check, self.case)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Where it stands: it has no file of its own."""
        return self.path, None, self.name
