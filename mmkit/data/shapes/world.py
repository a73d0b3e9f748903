"""What a scene is: coloured shapes on a coarse grid, and which relations hold between them. Torch-free.

Coordinates are pixels from the top left corner, x to the right and y down; a cell is ``(row, column)``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Relation = Literal["above", "below", "left of", "right of"]
RELATIONS: tuple[Relation, ...] = ("above", "below", "left of", "right of")
OPPOSITE: dict[Relation, Relation] = {
    "above": "below", "below": "above", "left of": "right of", "right of": "left of",
}  # fmt: skip

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.05, 0.10),
    "green": (0.05, 0.65, 0.20),
    "blue": (0.05, 0.25, 0.95),
    "yellow": (1.00, 0.92, 0.05),
    "purple": (0.60, 0.10, 0.75),
    "orange": (1.00, 0.50, 0.00),
    "cyan": (0.10, 0.85, 0.90),
    "pink": (1.00, 0.55, 0.78),
    "brown": (0.48, 0.28, 0.10),
    "gray": (0.50, 0.50, 0.50),
    "black": (0.00, 0.00, 0.00),
    "white": (1.00, 1.00, 1.00),
}
"""RGB in [0, 1]. Any two of the first six are at least 0.42 apart."""


@dataclass(frozen=True)
class Standing:
    """What stands in which cell of the grid."""

    shape: str
    color: str
    cell: tuple[int, int]

    @property
    def kind(self) -> tuple[str, str]:
        """Its colour and shape."""
        return (self.color, self.shape)


@dataclass(frozen=True)
class Thing(Standing):
    """One object as drawn: its outline lies within `radius` pixels of ``(x, y)`` along both axes."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """Things in reading order (rows from the top, each from the left), on a background of one colour."""

    things: tuple[Thing, ...]
    size: int
    grid: int
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)


def relation(a: Standing, b: Standing) -> Relation | None:
    """How `a` stands to `b`: None unless they share a row or a column, since a diagonal is two relations at once."""
    if a.cell[0] == b.cell[0]:
        return "left of" if a.cell[1] < b.cell[1] else "right of"
    if a.cell[1] == b.cell[1]:
        return "above" if a.cell[0] < b.cell[0] else "below"
    return None


@dataclass(frozen=True)
class World:
    """The scenes that can be drawn.

    `scale` is the range of a thing's radius, as a share of the largest that fits its cell; `jitter` the share of the
    room left in the cell that its place may use, so no jitter can make a relation doubtful.
    """

    size: int
    grid: int
    max_objects: int
    shapes: tuple[str, ...]
    colors: tuple[str, ...]
    scale: tuple[float, float]
    jitter: float
    background: str

    @property
    def cell(self) -> float:
        """The side of a cell, in pixels."""
        return self.size / self.grid

    @property
    def margin(self) -> float:
        """Pixels between a thing and the border of its cell, kept free always: 1 at cells of 16."""
        return self.cell / 16

    def compose(self, rng: random.Random) -> tuple[Standing, ...]:
        """What stands where, in reading order. Larger numbers of objects are more frequent: there are more such scenes."""
        count = pick(rng, [n for n in range(1, self.max_objects + 1) for _ in range(n)])
        kinds: list[tuple[str, str]] = []
        while len(kinds) < count:
            kind = (pick(rng, self.shapes), pick(rng, self.colors))
            if kind not in kinds:
                kinds.append(kind)
        cells = sorted(self._cells(rng, count))
        return tuple(Standing(*kind, cell) for kind, cell in zip(kinds, cells, strict=True))

    def place(self, rng: random.Random, composition: Sequence[Standing]) -> Scene:
        """A scene of this composition, with sizes, places and background drawn."""
        return Scene(tuple(self._place(rng, s) for s in composition), self.size, self.grid, self._backdrop(rng))

    def _cells(self, rng: random.Random, count: int) -> list[tuple[int, int]]:
        if count == 2:
            line = pick(rng, range(self.grid))
            first = pick(rng, range(self.grid))
            second = (first + 1 + pick(rng, range(self.grid - 1))) % self.grid
            pair = [(line, first), (line, second)]
            return pair if rng.random() < 0.5 else [(column, row) for row, column in pair]
        cells: list[tuple[int, int]] = []
        while len(cells) < count:
            cell = (pick(rng, range(self.grid)), pick(rng, range(self.grid)))
            if cell not in cells:
                cells.append(cell)
        return cells

    def _place(self, rng: random.Random, what: Standing) -> Thing:
        largest = 0.8 * self.cell / 2
        low, high = self.scale
        radius = largest * (low + (high - low) * rng.random())
        room = self.jitter * (self.cell / 2 - self.margin - radius)
        x = (what.cell[1] + 0.5) * self.cell + room * (2 * rng.random() - 1)
        y = (what.cell[0] + 0.5) * self.cell + room * (2 * rng.random() - 1)
        return Thing(what.shape, what.color, what.cell, x, y, radius)

    def _backdrop(self, rng: random.Random) -> tuple[float, float, float]:
        if self.background == "random":
            r, g, b = (0.85 + 0.15 * rng.random() for _ in range(3))
            return (r, g, b)
        return COLORS[self.background]


def pick(rng: random.Random, choices: Sequence[Any]) -> Any:
    """One of the choices."""
    # random() is the one method whose sequence Python promises never to change.
    return choices[int(rng.random() * len(choices))]
