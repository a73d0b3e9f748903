"""What is said of a clip: one caption, and its inverse. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmkit.errors import DataError
from mmkit_audio.tones.sounds import PITCHES, TIMBRES, Tone

_TONE = re.compile(rf"\ba (pulsing )?({'|'.join(PITCHES)}) ({'|'.join(TIMBRES)})\b")


def say(tones: Sequence[Tone]) -> str:
    """``a pulsing high beep, then a low buzz``."""
    return ", then ".join(
        f"a {'pulsing ' if tone.pattern == 'pulsing' else ''}{tone.pitch} {tone.timbre}" for tone in tones
    )


def read(text: str) -> tuple[Tone, ...]:
    """The tones that a text names, in its order. Raises `DataError` where it names none."""
    tones = tuple(Tone(m[2], m[3], "pulsing" if m[1] else "steady") for m in _TONE.finditer(text))
    if not tones:
        raise DataError(
            f"caption {text!r}", "it names no tone", 'write captions like "a pulsing high beep, then a low buzz"'
        )
    return tones
