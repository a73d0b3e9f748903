"""Reads a drawing of coloured shapes back into objects, colours and relations, and judges it against what was asked.

Nothing is learned here. An image is split from its background into connected components; each is compared with every
shape drawn at the component's own centre and area, and its colour is the least-squares one under the best shape. What fits
no shape, is of no colour of the palette, or disturbs the background, counts against the drawing. Shape suffixes: H, W
pixels, C colour channels.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from mmkit.data.shapes import drawing
from mmkit.data.shapes.language import Claim, read_caption, say
from mmkit.data.shapes.world import COLORS, SHAPES, Relation

UNCLEAR = "unclear"
"""What a shape or colour is called that is none of those known."""

_SPECK = 1 / 64
"""Share of a cell's area below which a component is dust rather than an object (4 pixels of a 16 x 16 cell)."""
_LEAST_OVERLAP = 0.78
"""Intersection over union a component must reach with its shape."""
_LEAST_LEAD = 0.01
"""By how much it must fit its shape better than any other."""
_STRETCHES = np.array([0.85, 0.92, 1.0, 1.06])
"""Sizes tried about the one whose area a component has; colour that bled out makes the area too large."""
_BLURS = 4
"""Blurs tried: 1 to this many binomial ones, each adding half a pixel squared of variance."""
_FARTHEST_COLOR = 0.25
"""Distance in RGB beyond which a colour is none of the palette."""
_STRAIGHT = 1.4
"""How much farther two objects must be apart along a relation's axis than across it."""
_MOST_THINGS = 16
"""Components beyond which an image is no drawing: the largest grid has as many cells."""
_DIRT = 0.3
"""Distance in RGB from the background, smoothed, at which a pixel that belongs to no object counts as dirt."""
_MOST_DIRT = 0.015
"""Share of the pixels that may be dirt."""


@dataclass(frozen=True)
class Found:
    """One object read from an image: centre and radius in pixels, `area` in pixels, `overlap` its fit to the shape."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    area: float
    overlap: float

    @property
    def kind(self) -> tuple[str, str]:
        """Its colour and shape."""
        return (self.color, self.shape)


@dataclass(frozen=True)
class Reading:
    """What was read: objects in reading order, and whether nothing else is on the background."""

    things: tuple[Found, ...]
    clean: bool

    @property
    def claim(self) -> Claim:
        """What is true of it, as a caption says it."""
        kinds = tuple(t.kind for t in self.things)
        return Claim(kinds, _relation(*self.things) if len(kinds) == 2 else None)

    def __str__(self) -> str:
        return say(self.claim) + ("" if self.clean else " on a dirty background")


@dataclass(frozen=True)
class Verdict:
    """Whether a drawing shows what was asked; `right` only where all else is.

    `objects`: the shapes are those asked for; `colors`: and each has its colour; `relations`: they stand as asked (never,
    where a shape or colour they are named by is wrong); `count`: there are as many, and nothing else is in the picture.
    `binding`: every colour asked for is on its own shape, whatever else there is; None unless two things are asked for that
    differ in both, since only then can colours be swapped. `read` says what was seen.

    A small GenEval (Ghosh et al. 2023), but that its `position` is no figure of its own: what a caption says of places is how two
    things stand to each other, and of more their reading order, and both is `relations`.
    """

    objects: bool
    colors: bool
    relations: bool
    count: bool
    read: str
    binding: bool | None = None

    @property
    def right(self) -> bool:
        """True where every object, colour, relation and the count are right."""
        return self.objects and self.colors and self.relations and self.count

    @property
    def figures(self) -> dict[str, bool]:
        """All of it that is judged, by name."""
        found = {
            "right": self.right, "objects": self.objects, "colors": self.colors,
            "relations": self.relations, "count": self.count,
        }  # fmt: skip
        return found if self.binding is None else {**found, "binding": self.binding}


def compare(said: Claim, wanted: Claim) -> Verdict:
    """Whether what is said is what is wanted."""
    shapes = Counter(s for _, s in said.kinds) == Counter(s for _, s in wanted.kinds)
    colors = Counter(c for c, _ in said.kinds) == Counter(c for c, _ in wanted.kinds)
    bound = Counter(said.kinds) == Counter(wanted.kinds)
    swappable = any(a[0] != b[0] and a[1] != b[1] for a in wanted.kinds for b in wanted.kinds)
    return Verdict(
        objects=shapes,
        # The right colours on the wrong shapes are a mistake of colour.
        colors=colors and (bound or not shapes),
        relations=len(wanted.kinds) < 2 or wanted in (said, said.turned),
        count=len(said.kinds) == len(wanted.kinds),
        read=say(said),
        binding=Counter(wanted.kinds) <= Counter(said.kinds) if swappable else None,
    )


@dataclass(frozen=True)
class Reader:
    """Reads the drawings of one world: its shapes, its colours and its grid."""

    shapes: tuple[str, ...] = SHAPES[:3]
    colors: tuple[str, ...] = tuple(COLORS)[:6]
    grid: int = 2

    def read(self, image: Tensor) -> Reading:
        """What an image ``[3, H, W]`` in [0, 1] shows. Values outside the range are clipped, NaN counts as black."""
        image_CHW = np.nan_to_num(image.detach().cpu().double().numpy()).clip(0, 1)
        cell = image_CHW.shape[-1] / self.grid
        background = _border(image_CHW)
        smooth_HW = _distance(_smooth(image_CHW), background)
        label_HW = _label(self._foreground(smooth_HW, background))
        numbers, sizes = np.unique(label_HW[label_HW > 0], return_counts=True)
        large = numbers[sizes >= _SPECK * cell * cell].tolist()
        label_HW *= np.isin(label_HW, large)
        things = [self._identify(image_CHW, background, label_HW, n) for n in large[:_MOST_THINGS]]
        dirt_HW = (smooth_HW > _DIRT) & ~_grow(_grow(label_HW > 0))
        things.sort(key=lambda t: (int(t.y / cell), t.x))
        return Reading(tuple(things), len(large) <= _MOST_THINGS and bool(dirt_HW.mean() <= _MOST_DIRT))

    def judge(self, image: Tensor, wanted: Claim) -> Verdict:
        """Whether an image shows what a claim says."""
        reading = self.read(image)
        verdict = compare(reading.claim, wanted)
        return replace(verdict, count=verdict.count and reading.clean, read=str(reading))

    def _foreground(self, smooth_HW: np.ndarray, background: np.ndarray) -> np.ndarray:
        """Pixels more than half covered: nearer to the strongest colour around them than to the background."""
        weakest = min(float(np.linalg.norm(np.array(COLORS[c]) - background)) for c in self.colors)
        # Never below what noise of a tenth of the range can reach once smoothed.
        return (smooth_HW > max(0.2, 0.4 * weakest)) & (smooth_HW > 0.5 * _strongest(_strongest(smooth_HW)))

    def _identify(self, image_CHW: np.ndarray, background: np.ndarray, label_HW: np.ndarray, number: int) -> Found:
        patch = _around(label_HW == number, 3)
        own_HW = label_HW[patch] == number
        free_HW = own_HW | ~_grow((label_HW[patch] > 0) & ~own_HW)
        offset_CHW = (image_CHW[:, patch[0], patch[1]] - background[:, None, None]) * free_HW
        core_C = _core(offset_CHW, own_HW)
        cover_HW = np.tensordot(core_C, offset_CHW, 1) / max(core_C @ core_C, 1e-6)
        place = _Place.of(cover_HW, own_HW, patch)
        smooth_HW = _smooth(cover_HW)
        fits = [f for s in self.shapes if (f := _fit(s, place, smooth_HW, free_HW, patch))]
        if not fits:
            return Found(UNCLEAR, self._name(background + core_C), place.x, place.y, 0.0, place.area, 0.0)
        best, *others = sorted(fits, key=lambda f: -f.overlap)
        doubtful = best.overlap < _LEAST_OVERLAP or any(best.overlap - f.overlap < _LEAST_LEAD for f in others)
        color_C = (_smooth(offset_CHW) * best.drawn_HW).sum((1, 2)) / (best.drawn_HW**2).sum()
        return Found(
            UNCLEAR if doubtful else best.shape, self._name(background + color_C),
            best.x, best.y, best.radius, place.area, best.overlap,
        )  # fmt: skip

    def _name(self, color_C: np.ndarray) -> str:
        distance, name = min((float(np.linalg.norm(np.array(COLORS[c]) - color_C)), c) for c in self.colors)
        return name if distance <= _FARTHEST_COLOR else UNCLEAR


def read(image: Tensor) -> Reading:
    """What a drawing of the default world shows; see `Reader` for others."""
    return Reader().read(image)


def judge(image: Tensor, wanted: Mapping[str, Any] | str) -> Verdict:
    """Whether a drawing ``[3, H, W]`` in [0, 1] shows what was asked.

    `wanted` is `Sample.facts` of the `shapes` source, which tells the world too, or a caption in its language, which
    stands for the default world and the shapes and colours it names. Raises `DataError` on a caption it cannot read.
    """
    if isinstance(wanted, str):
        claim = read_caption(wanted)
        shapes = dict.fromkeys((*Reader().shapes, *(s for _, s in claim.kinds)))
        colors = dict.fromkeys((*Reader().colors, *(c for c, _ in claim.kinds)))
        return Reader(tuple(shapes), tuple(colors)).judge(image, claim)
    reader = Reader(tuple(wanted["shapes"]), tuple(wanted["colors"]), wanted["grid"])
    return reader.judge(image, read_caption(wanted["caption"]))


def _relation(a: Found, b: Found) -> Relation | None:
    across, down = b.x - a.x, b.y - a.y
    if abs(across) >= _STRAIGHT * abs(down):
        return "left of" if across > 0 else "right of"
    if abs(down) >= _STRAIGHT * abs(across):
        return "above" if down > 0 else "below"
    return None


@dataclass(frozen=True)
class _Place:
    """A component's centre of mass, and its area in pixels."""

    x: float
    y: float
    area: float

    @classmethod
    def of(cls, cover_HW: np.ndarray, own_HW: np.ndarray, patch: tuple[slice, slice]) -> _Place:
        mass_HW = cover_HW
        if mass_HW.sum() < 0.5 * own_HW.sum():
            # Noise: what surrounds the component outweighs it, and only its own pixels say where it is.
            mass_HW = own_HW.astype(np.float64)
        area = float(mass_HW.sum())
        rows, columns = (np.arange(s.start, s.stop) + 0.5 for s in patch)
        return cls(float(mass_HW.sum(0) @ columns) / area, float(mass_HW.sum(1) @ rows) / area, area)


@dataclass(frozen=True)
class _Fit:
    shape: str
    x: float
    y: float
    radius: float
    drawn_HW: np.ndarray
    overlap: float


def _fit(
    shape: str, place: _Place, cover_HW: np.ndarray, free_HW: np.ndarray, patch: tuple[slice, slice]
) -> _Fit | None:
    """The shape about a centre of mass that agrees best with a smoothed component, over sizes near its own and blurs.

    A drawing may be softer than ours, and its colour, which scales `cover_HW`, is not known yet; so both are free. None
    where the shape would lie outside the free pixels.
    """
    unit_area, unit_drop = drawing.moments(shape)
    radii = _STRETCHES * (place.area / unit_area) ** 0.5
    drawn_NHW = np.stack([drawing.cover(shape, (place.x, place.y - unit_drop * r), r, patch) for r in radii])
    blurs = []
    for _ in range(_BLURS):
        drawn_NHW = _smooth(drawn_NHW)
        blurs.append(drawn_NHW * free_HW)
    # One row per trial: every size at the first blur, then at the next.
    trial_NP, cover_P = np.stack(blurs).reshape(_BLURS * len(radii), -1), cover_HW.ravel()
    energy_N = np.einsum("np,np->n", trial_NP, trial_NP)
    if energy_N.min() < 1:
        return None
    match_N = trial_NP @ cover_P
    best = int(np.argmax(match_N**2 / energy_N))
    seen_P = trial_NP[best] * (match_N[best] / energy_N[best])
    overlap = float(np.minimum(cover_P, seen_P).sum() / np.maximum(cover_P, seen_P).sum())
    radius = float(radii[best % len(radii)])
    return _Fit(shape, place.x, place.y - unit_drop * radius, radius, trial_NP[best].reshape(cover_HW.shape), overlap)


def _core(offset_CHW: np.ndarray, own_HW: np.ndarray) -> np.ndarray:
    """A first guess of a component's colour, as an offset: the median of its inside, or of all where it has none."""
    inner_HW = own_HW & ~_grow(~own_HW)
    return np.median(offset_CHW[:, inner_HW if inner_HW.any() else own_HW], axis=1)


def _border(image_CHW: np.ndarray) -> np.ndarray:
    """The background's colour: the median along the border, where the source draws nothing."""
    edge = (image_CHW[:, 0], image_CHW[:, -1], image_CHW[:, :, 0], image_CHW[:, :, -1])
    return np.median(np.concatenate(edge, axis=1), axis=1)


def _distance(image_CHW: np.ndarray, color_C: np.ndarray) -> np.ndarray:
    return np.sqrt(((image_CHW - color_C[:, None, None]) ** 2).sum(0))


def _shifted(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """`x` moved by one along an axis, both ways, its edge repeated."""
    first, last = np.take(x, [0], axis), np.take(x, [-1], axis)
    head, tail = [slice(None)] * x.ndim, [slice(None)] * x.ndim
    head[axis], tail[axis] = slice(None, -1), slice(1, None)
    return np.concatenate([first, x[tuple(head)]], axis), np.concatenate([x[tuple(tail)], last], axis)


@functools.cache
def _binomial(n: int) -> np.ndarray:
    """``[n, n]``: the blur (1 2 1)/4 along one axis, its ends repeated."""
    padded = np.pad(np.eye(n), ((1, 1), (0, 0)), mode="edge")
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4


def _smooth(x: np.ndarray) -> np.ndarray:
    """A binomial blur over the last two axes."""
    return _binomial(x.shape[-2]) @ x @ _binomial(x.shape[-1]).T


def _strongest(x_HW: np.ndarray) -> np.ndarray:
    """The largest value among each pixel and its eight neighbours."""
    for axis in (0, 1):
        x_HW = np.maximum(x_HW, np.maximum(*_shifted(x_HW, axis)))
    return x_HW


def _grow(mask_HW: np.ndarray) -> np.ndarray:
    """The mask and its four-neighbours."""
    grown_HW = mask_HW.copy()
    for axis in (0, 1):
        before, after = _shifted(mask_HW, axis)
        grown_HW |= before | after
    return grown_HW


def _label(mask_HW: np.ndarray) -> np.ndarray:
    """Four-connected components, numbered from 1; 0 outside the mask."""
    label_HW = np.where(mask_HW, np.arange(1, mask_HW.size + 1).reshape(mask_HW.shape), 0)
    while True:
        spread_HW = label_HW
        for axis in (0, 1):
            spread_HW = np.maximum(spread_HW, np.maximum(*_shifted(spread_HW, axis))) * mask_HW
        if (spread_HW == label_HW).all():
            return np.searchsorted(np.unique(label_HW[mask_HW]), label_HW, side="right")
        label_HW = spread_HW


def _around(mask_HW: np.ndarray, margin: int) -> tuple[slice, slice]:
    """The rows and columns of a mask, with a margin where the image has room."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    height, width = mask_HW.shape
    return (
        slice(max(0, int(rows[0]) - margin), min(height, int(rows[-1]) + 1 + margin)),
        slice(max(0, int(columns[0]) - margin), min(width, int(columns[-1]) + 1 + margin)),
    )
