"""Hears which tones sound in a clip, and judges it against what was asked. Nothing is learned here.

Each slot of the clip is looked at by itself. Where its envelope is loud gives the pattern; the autocorrelation of the longest
loud stretch its period, and so the pitch; the strength of the second and third harmonic the timbre. Shape suffixes: L samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import numpy as np

from mmkit_audio.tones.sounds import HELD, PITCHES, PULSES, Tone

UNCLEAR = "unclear"
"""What a pitch, timbre or pattern is called that is none of those known."""

_SMOOTH = 0.010
"""Seconds that the envelope averages over."""
_LOUD = 0.25
"""Share of the loudest envelope from which a sample is part of a tone."""
_SILENT = 0.02
"""Level (root mean square) below which a whole clip is silence."""
_SHORTEST = 0.015
"""Seconds that a stretch of sound lasts at least, and a pause between two."""
_LOWEST, _HIGHEST = 120.0, 1500.0
"""Pitches looked for, in hertz."""
_NEAR = 0.9
"""Share of the best autocorrelation that the first peak must have: later ones stand at multiples of the period."""
_FARTHEST = 0.25
"""Octaves from a pitch beyond which it is none of those known."""
_EVEN, _ODD = 0.25, 0.17
"""Amplitudes of the second and third harmonic, in units of the first: half of what a sawtooth and a square wave have."""
_LEAST_TONAL = 0.7
"""Share of the power near multiples of the pitch below which a sound is noise."""


@dataclass(frozen=True)
class Stretch:
    """Samples ``start`` to ``stop`` in which a clip is loud."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def hear(wave_L: np.ndarray, rate: int, slots: int) -> tuple[Tone | None, ...]:
    """The tone in each slot of a clip, with `UNCLEAR` for what cannot be told; None where the slot is silent."""
    wave_L = np.nan_to_num(np.asarray(wave_L, np.float64))
    level_L = _envelope(wave_L, rate)
    if level_L.max(initial=0.0) < _SILENT:
        return (None,) * slots
    loud_L = level_L > _LOUD * level_L.max()
    edges = [round(len(wave_L) * place / slots) for place in range(slots + 1)]
    return tuple(
        _tone(wave_L[first:last], _stretches(loud_L[first:last], rate), rate) for first, last in pairwise(edges)
    )


def judge(wave_L: np.ndarray, rate: int, slots: int, wanted: Sequence[Tone]) -> dict[str, bool]:
    """``right``, and of what it is made: see `compare`."""
    heard = hear(wave_L, rate, slots)
    there = [tone for tone in heard if tone is not None]
    return compare(there, wanted, in_place=heard[: len(wanted)] == tuple(there))


def compare(found: Sequence[Tone], wanted: Sequence[Tone], *, in_place: bool = True) -> dict[str, bool]:
    """Whether the tones found are those wanted: their ``count`` and places, and in order their ``pitches``, ``timbres`` and
    ``patterns``; ``right`` is all of it."""
    pairs = list(zip_longest(found, wanted, fillvalue=None))
    figures = {"count": len(found) == len(wanted) and in_place}
    for name, field in (("pitches", "pitch"), ("timbres", "timbre"), ("patterns", "pattern")):
        figures[name] = all(
            a is not None and b is not None and getattr(a, field) == getattr(b, field) for a, b in pairs
        )
    return {"right": all(figures.values()), **figures}


def _envelope(wave_L: np.ndarray, rate: int) -> np.ndarray:
    width = max(1, round(_SMOOTH * rate))
    power_L = np.convolve(wave_L**2, np.full(width, 1 / width), mode="same")[: len(wave_L)]
    return np.sqrt(power_L)


def _stretches(loud_L: np.ndarray, rate: int) -> list[Stretch]:
    """The loud stretches, across pauses that are too short to be any, and without those that are too short themselves."""
    change = np.flatnonzero(np.diff(np.concatenate([[False], loud_L, [False]]).astype(int)))
    shortest, joined = _SHORTEST * rate, []
    for start, stop in zip(change[::2], change[1::2], strict=True):
        if joined and start - joined[-1].stop < shortest:
            start = joined.pop().start
        joined.append(Stretch(int(start), int(stop)))
    return [stretch for stretch in joined if len(stretch) >= shortest]


def _tone(slot_L: np.ndarray, stretches: Sequence[Stretch], rate: int) -> Tone | None:
    if not stretches:
        return None
    longest = max(stretches, key=len)
    sound_L = slot_L[longest.start : longest.stop]
    pitch = pitch_of(sound_L, rate)
    if pitch is None:
        return Tone(UNCLEAR, UNCLEAR, _pattern(stretches, len(slot_L)))
    return Tone(_named(pitch), timbre_of(sound_L, pitch, rate), _pattern(stretches, len(slot_L)))


def _pattern(stretches: Sequence[Stretch], slot: int) -> str:
    held = HELD * slot
    lasts = stretches[-1].stop - stretches[0].start
    if not 0.75 * held < lasts < 1.25 * held:
        return UNCLEAR
    return {1: "steady", PULSES: "pulsing"}.get(len(stretches), UNCLEAR)


def _named(pitch: float) -> str:
    name = min(PITCHES, key=lambda known: abs(np.log2(pitch / PITCHES[known])))
    return name if abs(np.log2(pitch / PITCHES[name])) <= _FARTHEST else UNCLEAR


def pitch_of(sound_L: np.ndarray, rate: int) -> float | None:
    """The fundamental frequency in hertz by autocorrelation, that of the window divided out (Boersma 1993); None without one."""
    window_L = np.hanning(len(sound_L))
    first, last = int(rate / _HIGHEST), min(int(rate / _LOWEST), len(sound_L) // 2) + 1
    if last - first < 3:
        return None
    ratio = _autocorrelation(sound_L * window_L)[: last + 1] / _autocorrelation(window_L)[: last + 1]
    inner = ratio[first : last + 1]
    peaks = [i for i in range(1, len(inner) - 1) if inner[i - 1] < inner[i] >= inner[i + 1]]
    if not peaks:
        return None
    best = max(inner[i] for i in peaks)
    place = next(i for i in peaks if inner[i] >= _NEAR * best)
    before, here, after = inner[place - 1 : place + 2]
    # The top of the parabola through the three values at the peak.
    return rate / (first + place + (before - after) / (2 * (before - 2 * here + after)))


def _autocorrelation(x_L: np.ndarray) -> np.ndarray:
    spectrum = np.fft.rfft(x_L, 2 * len(x_L))
    product = np.fft.irfft(np.abs(spectrum) ** 2)
    return product / product[0]


def timbre_of(sound_L: np.ndarray, pitch: float, rate: int) -> str:
    """The timbre by the second and third harmonic; `UNCLEAR` where most of the power is near no harmonic."""
    spectrum = np.abs(np.fft.rfft(sound_L * np.hanning(len(sound_L)), 4 * len(sound_L)))
    hertz = np.fft.rfftfreq(4 * len(sound_L), 1 / rate)
    # The main lobe of the window on either side; or as far as a pitch that is a little off carries the third harmonic.
    reach = max(2 * rate / len(sound_L), 0.03 * pitch)
    number = np.round(hertz / pitch)
    near = (np.abs(hertz - number * pitch) <= reach) & (number >= 1)
    if (spectrum[near] ** 2).sum() < _LEAST_TONAL * (spectrum**2).sum():
        return UNCLEAR
    one, two, three = (spectrum[near & (number == n)].max(initial=0.0) for n in (1, 2, 3))
    if two >= _EVEN * one:
        return "buzz"
    return "horn" if three >= _ODD * one else "beep"
