"""Another sample rate, by interpolation with a windowed sinc (Smith, Digital Audio Resampling, 1984)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

CROSSINGS = 16
"""Zero crossings of the sinc on each side: more make the edge of the band steeper."""
ROLLOFF = 0.95
"""Where the band ends, as a share of the lower of the two Nyquist frequencies."""


def resample(x: Tensor, old: int, new: int) -> Tensor:
    """``[samples]`` at `old` samples per second to ``[ceil(samples * new / old)]`` at `new`, in float32.

    What lies above either Nyquist frequency is left out rather than folded back. Sound is taken to be silent beyond its ends.
    """
    if old == new or not len(x):
        return x
    shared = math.gcd(old, new)
    old, new = old // shared, new // shared
    cutoff = ROLLOFF * min(1.0, new / old)
    reach = math.ceil(CROSSINGS / cutoff)
    # Output `new * n + phase` lies at input `old * n + old * phase / new`: one kernel for each phase, read every `old` inputs.
    phase = torch.arange(new, dtype=torch.float64, device=x.device)[:, None] * old / new
    tap = torch.arange(-reach, reach + old, dtype=torch.float64, device=x.device)[None]
    distance = (tap - phase) * cutoff
    window = torch.cos((distance / CROSSINGS).clamp(-1, 1) * math.pi / 2).square()
    kernel = (cutoff * torch.sinc(distance) * window).to(x)
    steps = math.ceil(len(x) / old)
    padded = F.pad(x, (reach, steps * old - len(x) + reach))
    y = F.conv1d(padded[None, None], kernel[:, None], stride=old)[0]
    return y.mT.flatten()[: math.ceil(len(x) * new / old)]
