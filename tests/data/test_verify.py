"""The verifier reads every clean drawing, most damaged ones, and calls no wrong drawing right."""

from __future__ import annotations

import dataclasses
import io
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from mmkit.data.shapes import Shapes, language
from mmkit.data.shapes.drawing import cover, draw, inside, moments
from mmkit.data.shapes.verify import Reader, _label, compare, judge, read
from mmkit.data.shapes.world import COLORS, SHAPES, Scene, Standing, Thing, pick
from mmkit.errors import DataError

DEFAULT = Shapes.Config()
WORLDS = {
    "default": DEFAULT,
    "small": Shapes.Config(scale=(0.6, 1.0)),
    "four": Shapes.Config(max_objects=4, shapes=SHAPES),
    "hard": Shapes.Config(
        size=64, grid=3, max_objects=4, shapes=SHAPES, background="random", colors=tuple(c for c in COLORS if c != "white")
    ),
    "dark": Shapes.Config(background="black", colors=("red", "green", "yellow", "purple", "white"), max_objects=3),
}  # fmt: skip


def scenes(config: Shapes.Config, count: int, seed: int = 0) -> list[Scene]:
    source, rng = Shapes(config), random.Random(seed)
    return [source.scene(rng) for _ in range(count)]


def reader(config: Shapes.Config) -> Reader:
    return Reader(config.shapes, config.colors, config.grid)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image, np.float32).clip(0, 1))


def right(config: Shapes.Config, drawn: Scene, asked: Scene, damage=lambda image, rng: image) -> bool:
    rng = np.random.default_rng(len(drawn.things))
    return reader(config).judge(tensor(damage(draw(drawn), rng)), language.claim(asked.things)).right


def _pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))


def _array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 255


def jpeg(image: np.ndarray, rng) -> np.ndarray:
    file = io.BytesIO()
    _pil(image).save(file, "JPEG", quality=50)
    return _array(Image.open(file))


DAMAGES = {
    "noise": lambda image, rng: image + rng.normal(0, 0.08, image.shape),
    "blur": lambda image, rng: _array(_pil(image).filter(ImageFilter.GaussianBlur(1.0))),
    "jpeg": jpeg,
    "tint": lambda image, rng: image + rng.uniform(-0.08, 0.08, (3, 1, 1)),
}


@pytest.mark.parametrize("world", WORLDS)
def test_clean_drawings_are_read_without_exception(world):
    for scene in scenes(WORLDS[world], 40):
        reading = reader(WORLDS[world]).read(tensor(draw(scene)))
        assert reading.clean
        assert str(reading) == language.caption(scene.things)
        for found, thing in zip(reading.things, scene.things, strict=True):
            # A fifth of a pixel: the fit tries sizes in steps of some per cent.
            assert abs(found.x - thing.x) < 0.2 and abs(found.y - thing.y) < 0.2 + 0.05 * thing.radius
            assert abs(found.radius - thing.radius) < 0.1 * thing.radius


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_drawings_of_the_default_world(damage):
    drawn = scenes(DEFAULT, 100, seed=1)
    passed = sum(right(DEFAULT, s, s, DAMAGES[damage]) for s in drawn)
    # At least 99.7 % measured on 800 of each; 97 % is what is promised.
    assert passed >= 97


def recolored(scene, config, rng):
    return _replaced(scene, rng, lambda t: {"color": pick(rng, [c for c in config.colors if c != t.color])})


def reshaped(scene, config, rng):
    return _replaced(scene, rng, lambda t: {"shape": pick(rng, [s for s in config.shapes if s != t.shape])})


def swapped(scene, config, rng):
    if len(scene.things) < 2:
        return None
    a, b, *rest = scene.things
    a, b = dataclasses.replace(a, shape=b.shape, color=b.color), dataclasses.replace(b, shape=a.shape, color=a.color)
    return dataclasses.replace(scene, things=(a, b, *rest))


def crossed(scene, config, rng):
    """Two colours on each other's shapes."""
    if len(scene.things) != 2 or len({t.shape for t in scene.things}) + len({t.color for t in scene.things}) < 4:
        return None
    a, b = scene.things
    return dataclasses.replace(
        scene, things=(dataclasses.replace(a, color=b.color), dataclasses.replace(b, color=a.color))
    )


def turned(scene, config, rng):
    if len(scene.things) != 2:
        return None
    return dataclasses.replace(scene, things=tuple(dataclasses.replace(t, x=t.y, y=t.x) for t in scene.things))


def diagonal(scene, config, rng):
    if len(scene.things) != 2:
        return None
    a, b = scene.things
    far = {"x": scene.size - b.x} if a.cell[1] == b.cell[1] else {"y": scene.size - b.y}
    return dataclasses.replace(scene, things=(a, dataclasses.replace(b, **far)))


def dropped(scene, config, rng):
    keep = int(rng.random() * len(scene.things))
    return dataclasses.replace(scene, things=scene.things[:keep] + scene.things[keep + 1 :])


def added(scene, config, rng):
    return _extra(scene, config, rng, lambda source, what: source.world._place(rng, what))


def blotted(scene, config, rng):
    """A blob a fifth of a shape's area, in a free cell."""
    cell = config.size / config.grid

    def blob(source, what):
        return Thing(
            "square", what.color, what.cell, (what.cell[1] + 0.5) * cell, (what.cell[0] + 0.5) * cell, cell / 6
        )

    return _extra(scene, config, rng, blob)


def _replaced(scene, rng, changes):
    at = int(rng.random() * len(scene.things))
    things = list(scene.things)
    things[at] = dataclasses.replace(things[at], **changes(things[at]))
    return dataclasses.replace(scene, things=tuple(things))


def _extra(scene, config, rng, make):
    taken = {t.cell for t in scene.things}
    free = [(r, c) for r in range(config.grid) for c in range(config.grid) if (r, c) not in taken]
    if not free:
        return None
    what = Standing(pick(rng, config.shapes), pick(rng, config.colors), pick(rng, free))
    return dataclasses.replace(scene, things=(*scene.things, make(Shapes(config), what)))


CHANGES = (recolored, reshaped, swapped, crossed, turned, diagonal, dropped, added, blotted)


@pytest.mark.parametrize(
    ("change", "world"),
    [(c, w) for c in CHANGES for w in ("default", "hard") if (c, w) != (diagonal, "hard")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_drawing_of_something_else_is_never_right(change, world):
    config, rng, tried = WORLDS[world], random.Random(2), 0
    for number, scene in enumerate(scenes(config, 40, seed=2)):
        if wrong := change(scene, config, rng):
            tried += 1
            damage = list(DAMAGES.values())[number % 4] if number % 2 else (lambda image, rng: image)
            assert not right(config, wrong, scene, damage), language.caption(scene.things)
    assert tried >= 4


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, float("nan")])
def test_blank_images_show_nothing(value):
    reading = read(torch.full((3, 32, 32), value))
    assert reading.things == () and str(reading) == "nothing"
    assert not judge(torch.full((3, 32, 32), value), "a red circle").right


def test_noise_is_never_right():
    rng = np.random.default_rng(0)
    for scene in scenes(DEFAULT, 10):
        for noise in (
            rng.random((3, 32, 32)),
            0.5 + 0.3 * rng.normal(size=(3, 32, 32)),
            1 - 0.4 * abs(rng.normal(size=(3, 32, 32))),
        ):
            assert not judge(tensor(noise), language.caption(scene.things)).right
        drowned = draw(scene) + rng.normal(0, 0.5, (3, 32, 32))
        assert not judge(tensor(drowned), language.caption(scene.things)).right


def test_stripes_on_the_background_are_dirt():
    for scene in scenes(DEFAULT, 20):
        image = draw(scene)
        image[:, 15:17] -= 0.4
        assert not judge(tensor(image), language.caption(scene.things)).right


def test_binding_is_judged_where_colors_could_be_swapped():
    def bound(said: str, wanted: str) -> bool | None:
        return compare(language.read_caption(said), language.read_caption(wanted)).binding

    two = "a red circle above a blue square"
    assert bound(two, two) is True
    # Each colour on its own shape, and where they stand is another matter; nor is it one of what else there is.
    assert bound("a red circle left of a blue square", two) is True
    assert bound("a red circle, a green star and a blue square", two) is True
    assert bound("a blue circle above a red square", two) is False
    assert bound("a red circle", two) is False
    for wanted in ("a red circle", "a red circle above a red square", "a red circle above a blue circle"):
        assert bound(wanted, wanted) is None and "binding" not in compare(*[language.read_caption(wanted)] * 2).figures
    three = "a red circle, a red square and a blue circle"
    assert bound(three, three) is True and bound("a red circle, a blue square and a red circle", three) is False


def test_the_verdict_says_which_part_is_wrong():
    def drawing(*things: tuple[str, str, tuple[int, int]]) -> torch.Tensor:
        placed = tuple(Thing(s, c, at, 8 + 16 * at[1], 8 + 16 * at[0], 6.0) for c, s, at in things)
        return tensor(draw(Scene(placed, 32, 2)))

    def verdict(*things: tuple[str, str, tuple[int, int]]) -> tuple[bool, bool, bool, bool]:
        v = judge(drawing(*things), "a red circle above a blue square")
        return v.objects, v.colors, v.relations, v.count

    up, down, side = (0, 0), (1, 0), (0, 1)
    assert verdict(("red", "circle", up), ("blue", "square", down)) == (True, True, True, True)
    assert verdict(("red", "circle", down), ("blue", "square", up)) == (True, True, False, True)
    assert verdict(("red", "circle", up), ("blue", "square", side)) == (True, True, False, True)
    assert verdict(("red", "circle", up), ("green", "square", down)) == (True, False, False, True)
    assert verdict(("blue", "circle", up), ("red", "square", down)) == (True, False, False, True)
    assert verdict(("red", "circle", up), ("blue", "triangle", down)) == (False, True, False, True)
    assert verdict(("red", "circle", up)) == (False, False, False, False)
    said = judge(drawing(("red", "circle", up), ("blue", "square", (1, 1))), "a red circle above a blue square").read
    assert said == "a red circle diagonal to a blue square"
    below = judge(drawing(("red", "circle", up), ("blue", "square", down)), "a blue square below a red circle")
    assert below.right


def test_facts_and_caption_are_judged_alike():
    source = Shapes(dataclasses.replace(DEFAULT, tasks=("generate",)))
    for index in range(20):
        sample = source.sample(index, 0)
        image = sample.segments[1].content
        assert judge(image, sample.facts) == judge(image, sample.facts["caption"])
        assert judge(image, sample.facts).right
    assert judge(tensor(draw(Scene((Thing("star", "pink", (0, 0), 8, 8, 6.0),), 32, 2))), "a pink star").right


def test_a_caption_it_cannot_read():
    with pytest.raises(DataError, match="a cat"):
        judge(torch.ones(3, 32, 32), "a cat")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_components_agree_with_a_flood_fill(height, width, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.55
    expected, number = np.zeros(mask.shape, int), 0
    for start in zip(*np.nonzero(mask), strict=True):
        if expected[start]:
            continue
        number, todo = number + 1, [start]
        while todo:
            row, column = todo.pop()
            if 0 <= row < height and 0 <= column < width and mask[row, column] and not expected[row, column]:
                expected[row, column] = number
                todo += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    label = _label(mask)
    pairs = set(zip(expected.ravel().tolist(), label.ravel().tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert set(np.unique(label)) - {0} == set(range(1, number + 1))
    assert ((label == 0) == ~mask).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_take_the_share_a_shape_covers(shape):
    center, radius, side = (7.3, 8.1), 5.7, 64
    got = cover(shape, center, radius, (slice(0, 16), slice(0, 16)))
    points = (np.arange(16 * side) + 0.5) / side
    hit = inside(shape, (points[None] - center[0]) / radius, (points[:, None] - center[1]) / radius)
    expected = hit.reshape(16, side, 16, side).mean((1, 3))
    # Half a step of the fine grid, 1 / 512 of a radius, along at most 1.5 pixels of outline: 0.017; both are sampled.
    assert abs(got - expected).max() < 0.02
    area, drop = moments(shape)
    assert abs(area * radius**2 - expected.sum()) < 0.01 * expected.sum()
    rows = np.arange(16) + 0.5
    # The row of points at an outline's foot counts or not, in either grid: half a step of 1 / 64 pixel and of 1 / 256.
    assert abs((expected.sum(1) @ rows) / expected.sum() - center[1] - drop * radius) < 0.03
