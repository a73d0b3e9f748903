"""Synthetic tones with captions: small enough to learn in minutes.

`mmkit_audio.tones.hearing` hears such clips, which makes this source the judge of what a model plays.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

import torch

from mmkit.contracts.options import Count, Fraction, Positive, Size
from mmkit.contracts.seeds import derive
from mmkit.contracts.segment import Sample, Segment
from mmkit.contracts.source import Source
from mmkit.errors import ContractError, DataError
from mmkit_audio.rates import RATES, AudioName
from mmkit_audio.tones import hearing, language
from mmkit_audio.tones.sounds import Tone, World

_TRIES = 20_000
SHORTEST_SLOT = 0.2
"""Seconds below which a pulse of the lowest tone has too few periods to be heard for certain."""


class Tones(Source):
    """Clips of one to three tones; endless, and every sample is a pure function of (options, index, seed).

    A *composition* is what the caption says: the pitch, timbre and pattern of each tone, in order. A fixed share of those of
    the most tones, chosen by a hash of the caption, never appears in training; `held_out` yields those alone.
    """

    examples = (
        {"samples": 8},
        {"samples": 8, "modality": "audio-16k", "max_tones": 1, "seconds": 0.3, "held_out": 0.3},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """How hard it is.

        Options:
            modality: which audio modality the clips are; this says the sample rate.
            seconds: length of a clip.
            max_tones: a clip has 1 to this many, each in a slot of its own.
            detune: by how many octaves a pitch may be off, either way.
            tasks: what is learned: ``caption`` (clip to text), ``generate`` (text to clip), taken in turn; one that is listed
                twice has twice the share.
            held_out: share of the compositions of `max_tones` tones that training never sees.
            samples: length of an epoch.
            seed: gives other samples for the same indices; held-out compositions do not depend on it.
        """

        modality: AudioName = "audio"
        seconds: Positive = 0.64
        max_tones: Literal[1, 2, 3] = 2
        detune: Fraction = 0.03
        tasks: tuple[Literal["caption", "generate"], ...] = ("caption", "generate")
        held_out: Fraction = 0.1
        samples: Count = 100_000
        seed: Size = 0

    def __init__(self, config: Config) -> None:
        _check(config)
        self.config = config
        rate = RATES[config.modality]
        self.world = World(round(config.seconds * rate), rate, config.max_tones, config.detune)
        self._apart = False

    def __len__(self) -> int:
        return self.config.samples

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The clips' length in samples."""
        return {self.config.modality: (self.world.samples,)}

    def held_out(self) -> Tones:
        """The same kind of samples, of held-out compositions only. Raises `DataError` where there are none."""
        if not self.config.held_out:
            raise DataError("tones", "no composition is kept apart", "set `held_out` to a share above 0")
        other = type(self)(self.config)
        other._apart = True
        other._composition(random.Random(0))
        return other

    def keeps_apart(self, tones: tuple[Tone, ...]) -> bool:
        """True where a composition is held out."""
        return len(tones) == self.world.slots and derive("tones", language.say(tones)) < self.config.held_out * 2**63

    def sample(self, index: int, seed: int) -> Sample:
        """Sample `index`; its task is its index's turn, all else is drawn from the index and the seeds."""
        side = "held_out" if self._apart else "train"
        rng = random.Random(f"{self.config.seed} {side} {index} {seed}")
        tones = self._composition(rng)
        clip = torch.from_numpy(self.world.play(rng, tones))
        said, task = language.say(tones), self.config.tasks[index % len(self.config.tasks)]
        heard, words = Segment(self.config.modality, clip), Segment("text", said)
        inward, outward = (heard, words) if task == "caption" else (words, heard)
        target = Segment(outward.modality, outward.content, "target")
        return Sample(
            f"tones/{side}/{self.config.seed}-{index}-{seed}",
            (inward, target),
            task,
            {"caption": said, "slots": self.world.slots},
        )

    def judge(self, sample: Sample, contents: list[Any]) -> dict[str, bool]:
        """``right``, and of what it is made: see `hearing.compare`.

        A clip is right where what is heard in it is what the caption says; a caption is right where it is the clip's, letter by
        letter. Samples of no task of its own are judged by their texts alone.
        """
        if sample.task == "generate":
            wanted = language.read(sample.facts["caption"])
            return hearing.judge(contents[0].cpu().numpy(), self.world.rate, sample.facts["slots"], wanted)
        right = super().judge(sample, contents)
        if sample.task != "caption":
            return right
        try:
            said = language.read(contents[0])
        except DataError:
            said = ()
        return hearing.compare(said, language.read(sample.facts["caption"])) | right

    def _composition(self, rng: random.Random) -> tuple[Tone, ...]:
        """A random composition of this source's side: training, or held out."""
        for _ in range(_TRIES):
            tones = self.world.compose(rng)
            if self.keeps_apart(tones) == self._apart:
                return tones
        side = "held-out" if self._apart else "training"
        raise DataError(
            "tones", f"`held_out: {self.config.held_out}` leaves no {side} composition of {self.world.slots} tones",
            "change `held_out`",
        )  # fmt: skip


def _check(config: Tones.Config) -> None:
    """Raises `ContractError` on options that do not go together."""
    if not config.tasks:
        raise ContractError("tasks", "it is empty", "list one or more")
    if config.seconds < SHORTEST_SLOT * config.max_tones:
        raise ContractError(
            "seconds", f"{config.seconds:g} s are too few for {config.max_tones} tones",
            f"give at least {SHORTEST_SLOT * config.max_tones:g}, or fewer `max_tones`",
        )  # fmt: skip
    if config.detune > 0.2:
        raise ContractError(
            "detune", f"pitches are an octave apart, and {config.detune:g} octaves off one cannot be named for certain",
            "give at most 0.2",
        )  # fmt: skip
