"""PCM ``.wav`` files, through the standard library's `wave`."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmkit.errors import DataError

MAX_SAMPLES = 64 * 2**20
"""The longest file that is read, all channels together: 46 minutes of a mono file at 24 kHz."""


def read(path: Path) -> tuple[Tensor, int]:
    """The mean of a file's channels, float32 ``[samples]`` in [-1, 1], and its rate.

    Takes 8, 16, 24 and 32 bits. Raises `DataError` on what is no such file, is cut short, or is too long.
    """
    try:
        with wave.open(str(path), "rb") as file:
            facts = file.getparams()
            _bounded(facts, path)
            raw = file.readframes(facts.nframes)
    except wave.Error as error:
        raise DataError(str(path), f"not a PCM .wav file ({error})", "convert it: 16-bit PCM is always read") from error
    except EOFError as error:
        raise DataError(str(path), "it ends within its header", "the file is damaged; leave it out") from error
    except OSError as error:
        raise DataError(str(path), f"cannot be opened ({error})", "check the path and the file") from error
    wanted = facts.nframes * facts.nchannels * facts.sampwidth
    if len(raw) != wanted:
        raise DataError(
            str(path), f"it holds {len(raw):,} bytes of sound, and its header says {wanted:,}",
            "the file is damaged; leave it out",
        )  # fmt: skip
    frames = _numbers(raw, facts.sampwidth).reshape(-1, facts.nchannels)
    return torch.from_numpy(frames.mean(1, dtype=np.float64).astype(np.float32)), facts.framerate


def write(content: Tensor, rate: int, path: Path) -> None:
    """One channel ``[samples]`` in [-1, 1], in 16 bits; louder samples are clipped, as a loudspeaker would."""
    scaled = (content.detach().cpu().double().nan_to_num().clamp(-1, 1) * (2**15 - 1)).round()
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, len(scaled), "NONE", "not compressed"))
        file.writeframes(scaled.numpy().astype("<i2").tobytes())


def _bounded(facts: wave._wave_params, path: Path) -> None:
    samples = facts.nframes * facts.nchannels
    if samples > MAX_SAMPLES:
        raise DataError(
            str(path), f"{samples:,} samples exceed the limit of {MAX_SAMPLES:,}", "cut it into pieces first"
        )
    if not 1 <= facts.sampwidth <= 4:
        raise DataError(str(path), f"its samples have {8 * facts.sampwidth} bits", "convert it to 16 bits")


def _numbers(raw: bytes, width: int) -> np.ndarray:
    """Little-endian samples as float64 in [-1, 1); those of one byte are unsigned, as the format has it."""
    if width == 1:
        return np.frombuffer(raw, "u1") / 2.0**7 - 1
    if width == 3:
        # As the upper three bytes of four, which keeps the sign.
        padded = np.zeros((len(raw) // 3, 4), "u1")
        padded[:, 1:] = np.frombuffer(raw, "u1").reshape(-1, 3)
        return padded.view("<i4")[:, 0] / 2.0**31
    return np.frombuffer(raw, f"<i{width}") / 2.0 ** (8 * width - 1)
