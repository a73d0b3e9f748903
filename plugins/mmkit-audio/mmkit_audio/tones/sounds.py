"""What a clip is: tones of a pitch, a timbre and a pattern, one after the other; and how it sounds. Torch-free."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PITCHES = {"low": 220.0, "middle": 440.0, "high": 880.0}
"""Fundamental frequencies in hertz, an octave apart."""
TIMBRES = ("beep", "horn", "buzz")
"""A sine; a square wave, which has the odd harmonics only; a sawtooth, which has them all."""
PATTERNS = ("steady", "pulsing")
"""Held, or three short pulses."""
PULSES = 3

HELD = 0.8
"""Share of its slot that a tone lasts."""
MARGIN = 0.05
"""Share of its slot that is silent at either end at least, so that two tones never touch."""
RAMP = 0.005
"""Seconds in which a tone swells and fades, so that it does not click."""
BAND = 0.95
"""Share of half the sample rate up to which there are harmonics: a wave with corners would fold back beyond it."""


@dataclass(frozen=True)
class Tone:
    """One tone."""

    pitch: str
    timbre: str
    pattern: str


def harmonics(timbre: str, pitch: float, rate: int) -> np.ndarray:
    """The amplitudes of the harmonics 1, 2, 3, ... of a timbre, as far as the sample rate can carry them."""
    number = np.arange(1, max(1, int(BAND * rate / 2 / pitch)) + 1)
    if timbre == "beep":
        return (number == 1).astype(float)
    return np.where((timbre == "buzz") | (number % 2 == 1), 1 / number, 0.0)


@dataclass(frozen=True)
class World:
    """The clips that can sound: 1 to `slots` tones, each in a slot of its own, the rest silent.

    `detune` is by how much, in octaves, a pitch may be off either way.
    """

    samples: int
    rate: int
    slots: int
    detune: float

    def compose(self, rng: random.Random) -> tuple[Tone, ...]:
        """What sounds, in order. Larger numbers of tones are more frequent: there are more such clips."""
        count = pick(rng, [n for n in range(1, self.slots + 1) for _ in range(n)])
        return tuple(Tone(pick(rng, [*PITCHES]), pick(rng, TIMBRES), pick(rng, PATTERNS)) for _ in range(count))

    def play(self, rng: random.Random, tones: Sequence[Tone]) -> np.ndarray:
        """A clip of these tones, float32 ``[samples]`` in [-1, 1], with starts, phases, loudness and exact pitches drawn."""
        clip = np.zeros(self.samples)
        slot = self.samples / self.slots
        for place, tone in enumerate(tones):
            first = round(slot * (place + MARGIN + rng.random() * (1 - HELD - 2 * MARGIN)))
            sound = self._tone(rng, tone, int(HELD * slot))
            clip[first : first + len(sound)] = sound
        return clip.astype(np.float32)

    def _tone(self, rng: random.Random, tone: Tone, count: int) -> np.ndarray:
        pitch = PITCHES[tone.pitch] * 2 ** (self.detune * (2 * rng.random() - 1))
        amplitude = harmonics(tone.timbre, pitch, self.rate)
        turns = rng.random() + pitch * np.arange(count) / self.rate
        heard = np.flatnonzero(amplitude)
        wave = np.sin(2 * math.pi * turns[:, None] * (heard + 1)) @ amplitude[heard]
        loudness = 0.4 + 0.4 * rng.random()
        return loudness * wave / np.abs(wave).max() * self._envelope(tone.pattern, count)

    def _envelope(self, pattern: str, count: int) -> np.ndarray:
        pulses = PULSES if pattern == "pulsing" else 1
        length = count // (2 * pulses - 1)
        ramp = np.minimum(1, (np.arange(length) + 0.5) / (RAMP * self.rate))
        pulse = ramp * ramp[::-1]
        envelope = np.zeros(count)
        for number in range(pulses):
            envelope[2 * number * length : (2 * number + 1) * length] = pulse
        return envelope


def pick(rng: random.Random, choices: Sequence[Any]) -> Any:
    """One of the choices."""
    # random() is the one method whose sequence Python promises never to change.
    return choices[int(rng.random() * len(choices))]
