"""Tells at the end what became of the combinations that were tried."""

from __future__ import annotations

from collections import Counter

import pytest
from tally import OUTCOMES, SAMPLED


def pytest_configure(config: pytest.Config) -> None:
    """Nothing has been tried yet."""
    config.stash[OUTCOMES], config.stash[SAMPLED] = Counter(), {}


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> Counter[str]:
    """To be counted in."""
    return request.config.stash[OUTCOMES]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The size of each table, the seed of its sample, and the outcomes."""
    outcomes = config.stash[OUTCOMES]
    if not outcomes:
        return
    terminalreporter.section("combinations")
    for table, sampled in config.stash[SAMPLED].items():
        terminalreporter.write_line(f"{table}: {sampled}")
    refused = outcomes.total() - outcomes["composed"]
    terminalreporter.write_line(f"composed {outcomes['composed']}, refused {refused}:")
    for rules, count in outcomes.most_common():
        if rules != "composed":
            terminalreporter.write_line(f"{count:6} {rules}")
