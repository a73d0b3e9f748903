"""What became of the combinations that were tried, kept for the end of a run."""

from __future__ import annotations

from collections import Counter

import pytest

SAMPLED = pytest.StashKey[dict[str, str]]()
"""How many of which table, by its name."""
OUTCOMES = pytest.StashKey[Counter[str]]()
"""How many ended how: ``composed``, or the ids of the rules that refused them."""
