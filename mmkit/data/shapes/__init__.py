"""Procedural pictures of coloured shapes, with captions, questions and answers: small enough to learn in minutes.

`mmkit.data.shapes.verify` reads such pictures back, which makes this source the judge of what a model draws.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from mmkit.contracts.options import Count, Fraction, Size
from mmkit.contracts.segment import Sample, Segment
from mmkit.contracts.source import Source
from mmkit.data.records import apart
from mmkit.data.shapes import language, verify
from mmkit.data.shapes.drawing import draw
from mmkit.data.shapes.world import Scene, Standing, World
from mmkit.errors import ContractError, DataError

_TRIES = 20_000
SMALLEST_CELL = 12
"""Pixels below which a circle and a square cannot be told apart for certain."""


class Shapes(Source):
    """Scenes of one to four coloured shapes; endless, and every sample is a pure function of (options, index, seed).

    A *composition* is what the canonical caption says: colours, shapes and their relation. A fixed share of the
    compositions, chosen by a hash of the caption, never appears in training; `held_out` yields those alone. Scenes of
    a single shape are too few to keep some apart, so they are held out only where ``max_objects`` is 1.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """How hard it is.

        Options:
            size: height and width of the pictures, in pixels.
            max_objects: a scene has 1 to this many.
            shapes: the shapes that occur.
            colors: the colours that occur.
            tasks: what is learned: ``caption`` (picture to text), ``generate`` (text to picture), ``answer`` (picture and
                question to answer), taken in turn; one that is listed twice has twice the share.
            questions: how many different ones an ``answer`` sample asks, each followed by its answer; a held-out one asks one.
            grid: rows and columns of the coarse grid that shapes stand on.
            scale: smallest and largest size of a shape, as a share of the largest its cell can hold.
            jitter: share of the room in its cell that a shape's place varies over.
            background: ``random`` draws a light colour for each picture.
            phrasing: ``canonical`` prompts are captions; ``varied`` prompts for ``generate`` come in several wordings.
            held_out: share of the compositions that training never sees.
            samples: length of an epoch.
            seed: gives other samples for the same indices; held-out compositions do not depend on it.
        """

        size: Count = 32
        max_objects: Literal[1, 2, 3, 4] = 2
        shapes: tuple[Literal["circle", "square", "triangle", "star", "cross", "diamond"], ...] = (
            "circle", "square", "triangle",
        )  # fmt: skip
        colors: tuple[
            Literal[
                "red", "green", "blue", "yellow", "purple", "orange",
                "cyan", "pink", "brown", "gray", "black", "white",
            ],
            ...,
        ] = ("red", "green", "blue", "yellow", "purple", "orange")  # fmt: skip
        tasks: tuple[Literal["caption", "generate", "answer"], ...] = ("caption", "generate", "answer")
        questions: Count = 1
        grid: Literal[2, 3, 4] = 2
        scale: tuple[Fraction, Fraction] = (0.85, 1.0)
        jitter: Fraction = 1.0
        background: Literal["white", "black", "gray", "random"] = "white"
        phrasing: Literal["canonical", "varied"] = "canonical"
        held_out: Fraction = 0.1
        samples: Count = 100_000
        seed: Size = 0

    def __init__(self, config: Config) -> None:
        _check(config)
        self.config = config
        self.world = World(
            size=config.size, grid=config.grid, max_objects=config.max_objects, shapes=config.shapes,
            colors=config.colors, scale=config.scale, jitter=config.jitter, background=config.background,
        )  # fmt: skip
        self._apart = False

    def __len__(self) -> int:
        return self.config.samples

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The pictures' height and width."""
        return {"image": (self.config.size, self.config.size)}

    def held_out(self) -> Shapes:
        """The same kind of samples, of held-out compositions only. Raises `DataError` where there are none."""
        if not self.config.held_out:
            raise DataError("shapes", "no composition is kept apart", "set `held_out` to a share above 0")
        other = type(self)(self.config)
        other._apart = True
        other.scene(random.Random(0))
        return other

    def keeps_apart(self, composition: Sequence[Standing]) -> bool:
        """True where a composition, in reading order, is held out."""
        if len(composition) < min(2, self.config.max_objects):
            return False
        return apart(language.caption(composition), self.config.held_out)

    def scene(self, rng: random.Random) -> Scene:
        """A random scene of this source's side: training, or held out."""
        for _ in range(_TRIES):
            composition = self.world.compose(rng)
            if self.keeps_apart(composition) == self._apart:
                return self.world.place(rng, composition)
        side = "held-out" if self._apart else "training"
        raise DataError(
            "shapes", f"`held_out: {self.config.held_out}` leaves no {side} composition of these shapes and colors",
            "change `held_out`, or give more `shapes` and `colors`",
        )  # fmt: skip

    def sample(self, index: int, seed: int) -> Sample:
        """Sample `index`; its task is its index's turn, all else is drawn from the index and the seeds."""
        side = "held_out" if self._apart else "train"
        rng = random.Random(f"{self.config.seed} {side} {index} {seed}")
        scene = self.scene(rng)
        image = torch.from_numpy(draw(scene))
        said = language.caption(scene.things)
        facts = self._facts(scene, said)
        task = self.config.tasks[index % len(self.config.tasks)]
        segments: tuple[Segment, ...]
        if task == "caption":
            segments = (Segment("image", image), Segment("text", said, "target"))
        elif task == "generate":
            words = said if self.config.phrasing == "canonical" else language.prompt(scene, rng)
            segments = (Segment("text", words), Segment("image", image, "target"))
        else:
            asked = self._asked(scene, rng)
            facts |= {"question": asked[0].kind, "asked": asked[0].text, "answer": asked[0].answer}
            talk = (s for q in asked for s in (Segment("text", q.text), Segment("text", q.answer, "target")))
            segments = (Segment("image", image), *talk)
        return Sample(f"shapes/{side}/{self.config.seed}-{index}-{seed}", segments, task, facts)

    def _asked(self, scene: Scene, rng: random.Random) -> list[language.Question]:
        """Different questions about a scene, as many as this side asks; fewer where chance finds no more."""
        count = 1 if self._apart else self.config.questions
        asked: dict[str, language.Question] = {}
        for _ in range(4 * count):
            found = language.question(scene, self.world, rng)
            asked.setdefault(found.text, found)
            if len(asked) == count:
                break
        return list(asked.values())

    def judge(self, sample: Sample, contents: list[Any]) -> dict[str, bool]:
        """``right``, and of what it is made.

        Drawings and captions: ``objects``, ``colors``, ``relations``, ``count`` and, where it can go wrong, ``binding``
        (see `verify.Verdict`); a caption is right where it is the canonical one, letter by letter. Answers: right under the
        name of the kind of question too. Samples of no task of its own are judged by their texts alone.
        """
        if sample.task == "generate":
            return verify.judge(contents[0], sample.facts).figures
        right = super().judge(sample, contents)
        if sample.task == "answer":
            return right | {sample.facts["question"]: right["right"]}
        if sample.task != "caption":
            return right
        try:
            said = language.read_caption(contents[0])
        except DataError:
            said = language.Claim(())
        return verify.compare(said, language.read_caption(sample.facts["caption"])).figures | right

    def _facts(self, scene: Scene, said: str) -> dict[str, Any]:
        return {
            "caption": said,
            "relation": language.claim(scene.things).relation,
            "objects": [
                {"shape": t.shape, "color": t.color, "cell": list(t.cell), "x": t.x, "y": t.y, "radius": t.radius}
                for t in scene.things
            ],
            "grid": scene.grid,
            "size": scene.size,
            "shapes": list(self.config.shapes),
            "colors": list(self.config.colors),
        }


def _check(config: Shapes.Config) -> None:
    """Raises `ContractError` on options that do not go together."""
    for option in ("shapes", "colors"):
        values = getattr(config, option)
        if not values or len(set(values)) < len(values):
            raise ContractError(option, "it is empty or names one thing twice", "list each once")
    if not config.tasks:
        raise ContractError("tasks", "it is empty", "list one or more")
    if config.size < SMALLEST_CELL * config.grid:
        raise ContractError(
            "size", f"{config.size} pixels are too few for a grid of {config.grid}",
            f"give at least {SMALLEST_CELL * config.grid}, or a smaller `grid`",
        )  # fmt: skip
    if config.max_objects > len(config.shapes) * len(config.colors):
        raise ContractError(
            "max_objects", f"{config.max_objects} objects cannot all differ with these shapes and colors",
            "list more of them",
        )  # fmt: skip
    if not 0.6 <= config.scale[0] <= config.scale[1]:
        raise ContractError("scale", f"{list(config.scale)} is no range within 0.6 to 1", "give [smallest, largest]")
    lost = [c for c in config.colors if c == config.background or (config.background == "random" and c == "white")]
    if lost:
        raise ContractError("background", f"{lost[0]} shapes cannot be seen on it", f"drop {lost[0]} from `colors`")
