"""What can be said about a scene: one canonical caption, prompts, and questions with one answer each. Torch-free."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmkit.data.shapes.world import (
    COLORS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    Relation,
    Scene,
    Standing,
    Thing,
    World,
    pick,
    relation,
)
from mmkit.errors import DataError

Kind = tuple[str, str]
"""A colour and a shape."""


@dataclass(frozen=True)
class Claim:
    """What a caption says: kinds in its order, and for two of them how the first stands to the second.

    With three and more the order is the claim: it is the reading order of the picture.
    """

    kinds: tuple[Kind, ...]
    relation: Relation | None = None

    @property
    def turned(self) -> Claim:
        """The same said the other way round, where two things stand in a relation."""
        return Claim(self.kinds[::-1], OPPOSITE[self.relation]) if self.relation else self


def name(kind: Kind) -> str:
    """``red circle``."""
    return " ".join(kind)


def noun(kind: Kind) -> str:
    """``a red circle``, ``an orange star``."""
    return ("an " if kind[0][0] in "aeiou" else "a ") + name(kind)


def claim(things: Sequence[Standing]) -> Claim:
    """What the canonical caption says of things in reading order."""
    return Claim(tuple(t.kind for t in things), relation(*things) if len(things) == 2 else None)


def say(said: Claim) -> str:
    """The words of a claim; `read_caption` is its inverse."""
    nouns = [noun(k) for k in said.kinds]
    if len(nouns) == 2:
        return f"{nouns[0]} {said.relation or 'diagonal to'} {nouns[1]}"
    if len(nouns) < 2:
        return nouns[0] if nouns else "nothing"
    return f"{', '.join(nouns[:-1])} and {nouns[-1]}"


def caption(things: Sequence[Standing]) -> str:
    """The one caption of things in reading order, and so a function of their picture."""
    return say(claim(things))


_NOUN = re.compile(rf"\ban? ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})\b")
_RELATION = re.compile(rf"\b({'|'.join(RELATIONS)})\b")


def read_caption(text: str) -> Claim:
    """What a caption or prompt says. Raises `DataError` where it names nothing, or two things and not one relation."""
    kinds = tuple((m[1], m[2]) for m in _NOUN.finditer(text))
    relations: list[Relation] = _RELATION.findall(text)
    if not kinds:
        raise DataError(
            f"caption {text!r}", "it names no shape", 'write captions like "a red circle above a blue square"'
        )
    if len(kinds) == 2 and len(relations) != 1:
        raise DataError(
            f"caption {text!r}", "it does not say how its two shapes stand to each other", "name one relation"
        )
    return Claim(kinds, relations[0] if len(kinds) == 2 else None)


_FRAMES = ("{}", "draw {}", "an image of {}", "a picture with {}", "show {}")


def prompt(scene: Scene, rng: random.Random) -> str:
    """One of several ways to ask for a scene, some of them naming the second of two things first."""
    said = claim(scene.things)
    if said.relation and rng.random() < 0.5:
        said = said.turned
    return pick(rng, _FRAMES).format(say(said))


@dataclass(frozen=True)
class Question:
    """A question about a picture that has exactly one answer. `kind` names what it asks for."""

    kind: str
    text: str
    answer: str


def question(scene: Scene, world: World, rng: random.Random) -> Question:
    """A question of a random kind, among those the scene allows without doubt; yes and no are equally likely."""
    kinds = list(_QUESTIONS)
    while True:
        ask = _QUESTIONS[kinds.pop(int(rng.random() * len(kinds)))]
        if found := ask(scene, world, rng):
            return found


def _alone(things: Sequence[Thing], attribute: str) -> list[Thing]:
    values = [getattr(t, attribute) for t in things]
    return [t for t in things if values.count(getattr(t, attribute)) == 1]


def _the(scene: Scene, thing: Thing) -> str:
    unique = thing in _alone(scene.things, "shape")
    return f"the {thing.shape}" if unique else f"the {name(thing.kind)}"


def _ask_color(scene: Scene, world: World, rng: random.Random) -> Question | None:
    if not (things := _alone(scene.things, "shape")):
        return None
    thing = pick(rng, things)
    return Question("color", f"What color is the {thing.shape}?", thing.color)


def _ask_shape(scene: Scene, world: World, rng: random.Random) -> Question | None:
    if not (things := _alone(scene.things, "color")):
        return None
    thing = pick(rng, things)
    return Question("shape", f"What shape is the {thing.color} object?", thing.shape)


def _ask_count(scene: Scene, world: World, rng: random.Random) -> Question | None:
    if rng.random() < 0.5:
        return Question("count", "How many objects are there?", str(len(scene.things)))
    shape = pick(rng, world.shapes)
    plural = f"{shape}es" if shape.endswith("s") else f"{shape}s"
    return Question("count", f"How many {plural} are there?", str(sum(t.shape == shape for t in scene.things)))


def _ask_exists(scene: Scene, world: World, rng: random.Random) -> Question | None:
    present = [t.kind for t in scene.things]
    if rng.random() < 0.5:
        return Question("exists", f"Is there {noun(pick(rng, present))}?", "yes")
    absent = [(c, s) for c in world.colors for s in world.shapes if (c, s) not in present]
    # Half the refusals share a colour or a shape with what is there, so that neither alone gives the answer away.
    near = [k for k in absent if any(k[0] == p[0] or k[1] == p[1] for p in present)]
    if not absent:
        return None
    return Question("exists", f"Is there {noun(pick(rng, near if near and rng.random() < 0.5 else absent))}?", "no")


def _ask_relation(scene: Scene, world: World, rng: random.Random) -> Question | None:
    asked: list[tuple[Thing, Relation, Thing]] = []
    for thing in scene.things:
        for wanted in RELATIONS:
            there = [o for o in scene.things if o is not thing and relation(o, thing) == wanted]
            if len(there) == 1:
                asked.append((there[0], wanted, thing))
    if not asked:
        return None
    answer, wanted, thing = pick(rng, asked)
    return Question("relation", f"What is {wanted} {_the(scene, thing)}?", name(answer.kind))


def _ask_compare(scene: Scene, world: World, rng: random.Random) -> Question | None:
    pairs = [(a, b) for a in scene.things for b in scene.things if a is not b and relation(a, b)]
    if not pairs:
        return None
    a, b = pick(rng, pairs)
    truth = relation(a, b)
    yes = rng.random() < 0.5
    said = truth if yes else pick(rng, [r for r in RELATIONS if r != truth])
    return Question("compare", f"Is {_the(scene, a)} {said} {_the(scene, b)}?", "yes" if yes else "no")


_QUESTIONS = {
    "color": _ask_color,
    "shape": _ask_shape,
    "count": _ask_count,
    "exists": _ask_exists,
    "relation": _ask_relation,
    "compare": _ask_compare,
}
QUESTIONS = tuple(_QUESTIONS)
"""The kinds of questions."""
