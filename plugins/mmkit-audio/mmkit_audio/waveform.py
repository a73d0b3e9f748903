"""The modality: one channel of sound at a fixed rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mmkit.contracts.modality import Modality
from mmkit.errors import DataError
from mmkit_audio import wav
from mmkit_audio.rates import RATES
from mmkit_audio.resampling import resample

OVERSHOOT = 1.01
"""How loud a sample may be before the waveform counts as scaled wrongly: interpolation and lossy decoders overshoot by a little."""


class Audio(Modality):
    """One channel of sound, canonically a float32 tensor ``[samples]`` in [-1, 1] at 8 kHz.

    The rate belongs to the modality, not to a content: all that a part must know of time follows from its port. Another
    rate is another modality (`audio-16k`, `audio-24k`). An array is taken to be at that rate already, since it cannot say;
    a file says its rate, and is resampled.
    """

    name: ClassVar[str] = "audio"
    suffix = ".wav"

    @property
    def rate(self) -> int:
        """Samples per second."""
        return RATES[self.name]

    def accepts(self, value: Any) -> bool:
        """Arrays and tensors of one axis, and paths that end in ``.wav``."""
        if isinstance(value, Path):
            return value.suffix.lower() == ".wav"
        return isinstance(value, np.ndarray | Tensor) and value.ndim == 1

    def coerce(self, value: Any) -> Tensor:
        """From an array or tensor ``[samples]``, int16 or floats in [-1, 1], or the `Path` of a PCM ``.wav``.

        A file's channels are averaged, and it is resampled. Raises `DataError` on everything else.
        """
        if isinstance(value, Path):
            mono, rate = wav.read(value)
            return _checked(resample(mono, rate, self.rate).clamp(-1, 1), str(value))
        if isinstance(value, np.ndarray | Tensor):
            return _from_array(value, self.name)
        remedy = "wrap a file name in pathlib.Path" if isinstance(value, str) else "give an array [samples] or a Path"
        raise DataError(self.name, f"a {type(value).__name__} is not a waveform", remedy)

    def size(self, content: Tensor) -> tuple[int, ...]:
        """``(samples,)``."""
        return tuple(content.shape)

    def empty(self, content: Tensor) -> None:
        """Nothing: a dropped sound is left out."""
        return None

    def save(self, content: Tensor, path: Path) -> None:
        """A ``.wav`` file of 16 bits."""
        wav.write(content, self.rate, Path(path))

    @staticmethod
    def examples(seed: int) -> list[Tensor]:
        """Three short sounds: a few partials of some low note each, for checks of parts."""
        draw = torch.Generator(device="cpu").manual_seed(seed)
        return [_example(length, draw) for length in (1920, 2880, 3840)]


class Audio16k(Audio):
    """One channel of sound at 16 kHz; all else as in `Audio`."""

    name = "audio-16k"


class Audio24k(Audio):
    """One channel of sound at 24 kHz; all else as in `Audio`."""

    name = "audio-24k"


def _example(length: int, draw: torch.Generator) -> Tensor:
    # On the CPU whatever the default device, as contents are.
    turns, start = torch.rand(2, 4, generator=draw, device="cpu")
    angle = torch.arange(length, device="cpu")[:, None] * (0.05 + 0.4 * turns) + 6 * start
    return (angle.sin() / torch.arange(1, 5, device="cpu")).sum(-1) * 0.3


def _from_array(value: np.ndarray | Tensor, place: str) -> Tensor:
    if value.ndim != 1:
        raise DataError(
            place, f"an array of shape {list(value.shape)} is not one channel of sound",
            "give [samples]; the mean over channels makes one of several",
        )  # fmt: skip
    x = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    if x.dtype == torch.int16:
        return _checked(x.float() / 2**15, place)
    if not x.is_floating_point():
        raise DataError(place, f"samples are {value.dtype}", "give int16, or floats in [-1, 1]")
    return _checked(x.float(), place)


def _checked(x: Tensor, place: str) -> Tensor:
    if not len(x):
        raise DataError(place, "it has no samples", "leave the segment out")
    loudest = x.abs().max().item()
    # Written so that NaN fails, too.
    if not loudest <= OVERSHOOT:
        raise DataError(place, f"samples reach {loudest:.3g}", "scale them to [-1, 1]")
    return x.clamp(-1, 1).contiguous()
