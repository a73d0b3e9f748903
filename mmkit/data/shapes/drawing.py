"""Draws scenes with smooth edges, in numpy: a pixel takes as much of a colour as the shape covers of it."""

from __future__ import annotations

import functools
import math

import numpy as np

from mmkit.data.shapes.world import COLORS, Scene

_FINE = 512
"""Points per axis at which an outline is tested once; pixels then read their share from sums over those points."""

_STAR_NOTCH = 0.45


def inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which points lie in a shape of radius 1 about the origin, v pointing down; `u` and `v` broadcast."""
    across, down = np.abs(u), np.abs(v)
    match shape:
        case "circle":
            return u * u + v * v <= 0.95**2
        case "square":
            return (across <= 0.85) & (down <= 0.85)
        case "triangle":
            return (v <= 0.85) & (across <= (v + 0.95) * 0.55)
        case "diamond":
            return across / 0.8 + down <= 1.0
        case "cross":
            return (np.minimum(across, down) <= 0.32) & (np.maximum(across, down) <= 0.95)
        case "star":
            return _star(u, v)
    raise AssertionError(shape)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    tip, half = 2 * math.pi / 5, math.pi / 5
    angle = np.abs((np.arctan2(u, -v) + half) % tip - half)
    distance = np.hypot(u, v)
    along, aside = distance * np.cos(angle), distance * np.sin(angle)
    # The edge runs from the tip (1, 0) to the notch, half a sector on.
    notch_along, notch_aside = _STAR_NOTCH * math.cos(half), _STAR_NOTCH * math.sin(half)
    return (1 - along) * notch_aside >= aside * (1 - notch_along)


@functools.cache
def _sums(shape: str) -> np.ndarray:
    """``[_FINE + 1, _FINE + 1]``: how many points of a fine grid above and left of a place the shape of radius 1 covers."""
    axis = (np.arange(_FINE, dtype=np.float32) + 0.5) * (2 / _FINE) - 1
    sums = np.zeros((_FINE + 1, _FINE + 1), np.int32)
    sums[1:, 1:] = inside(shape, axis[None, :], axis[:, None]).cumsum(0, np.int32).cumsum(1, np.int32)
    return sums


def _edges(span: slice, center: float, radius: float) -> np.ndarray:
    """Where the pixel edges of a range of pixels lie on the fine grid, to the nearest point; may lie off it."""
    return np.rint((np.arange(span.start, span.stop + 1) - center) * (_FINE / 2 / radius) + _FINE / 2).astype(np.int64)


def cover(shape: str, center: tuple[float, float], radius: float, patch: tuple[slice, slice]) -> np.ndarray:
    """The share in [0, 1] of each pixel of a patch (rows, columns) that a shape centred at ``(x, y)`` covers."""
    down, across = _edges(patch[0], center[1], radius), _edges(patch[1], center[0], radius)
    within = [np.minimum(np.maximum(edges, 0), _FINE) for edges in (down, across)]
    sums = _sums(shape)[within[0][:, None], within[1]]
    covered = sums[1:, 1:] - sums[:-1, 1:] - sums[1:, :-1] + sums[:-1, :-1]
    return covered / np.maximum((down[1:] - down[:-1])[:, None] * (across[1:] - across[:-1]), 1)


@functools.cache
def moments(shape: str) -> tuple[float, float]:
    """Area of a shape of radius 1, and how far below its origin its centre of mass lies."""
    sums = _sums(shape)
    rows = np.diff(sums[:, -1])
    drop = rows @ ((np.arange(_FINE) + 0.5) * (2 / _FINE) - 1) / rows.sum()
    return float(sums[-1, -1]) * (2 / _FINE) ** 2, float(drop)


def _patch(x: float, y: float, radius: float, size: int) -> tuple[slice, slice]:
    def reach(at: float) -> slice:
        return slice(max(0, math.floor(at - radius)), min(size, math.ceil(at + radius)))

    return reach(y), reach(x)


def draw(scene: Scene) -> np.ndarray:
    """The picture of a scene: float32 ``[3, size, size]`` in [0, 1]."""
    image = np.empty((3, scene.size, scene.size), np.float32)
    image[:] = np.asarray(scene.background, np.float32)[:, None, None]
    for thing in scene.things:
        patch = _patch(thing.x, thing.y, thing.radius, scene.size)
        share = cover(thing.shape, (thing.x, thing.y), thing.radius, patch)
        color = np.array(COLORS[thing.color])[:, None, None]
        region = image[:, patch[0], patch[1]]
        # Mixed in float64: rounded to float32 afterwards, no value can leave [0, 1].
        region[:] = region * (1 - share) + color * share
    return image
