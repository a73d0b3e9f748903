"""A share with its uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmkit.contracts.evaluation import Figure

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Rate:
    """`right` of `count`. `low` and `high` bound the true share with 95 % confidence (Wilson 1927)."""

    right: int
    count: int

    @property
    def share(self) -> float:
        """``right / count``; 0 of 0 is 0."""
        return self.right / self.count if self.count else 0.0

    @property
    def low(self) -> float:
        """The lower bound."""
        return self._bound(-1)

    @property
    def high(self) -> float:
        """The upper bound."""
        return self._bound(1)

    def _bound(self, sign: int) -> float:
        if not self.count:
            return 0.0 if sign < 0 else 1.0
        n, p, z2 = self.count, self.share, Z95**2
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return min(1.0, max(0.0, middle + sign * half))

    @property
    def figure(self) -> Figure:
        """The same as a figure among others."""
        return Figure(self.share, self.count, self.low, self.high, "share")

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} % ({self.right}/{self.count}, 95 % between {100 * self.low:.1f} and {100 * self.high:.1f})"
