"""Short-time spectra: their magnitudes, mel filters, and how far apart two sounds are by them.

Shape suffixes: B sounds of one length, L samples, F frequencies, M mel bands, T frames.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
from torch import Tensor

from mmkit.errors import ContractError

Scale = Literal["slaney", "htk"]


def magnitudes(x_BL: Tensor, n_fft: int, hop: int) -> Tensor:
    """Magnitudes ``[B, F, T]`` in float32 under a periodic Hann window; frame t is centred on sample ``t * hop``.

    There are ``1 + L // hop`` frames; beyond the ends there is silence.
    """
    x_BL = x_BL.float()
    window = torch.hann_window(n_fft, device=x_BL.device)
    return torch.stft(x_BL, n_fft, hop, window=window, pad_mode="constant", return_complex=True).abs()


def to_mel(hertz: Tensor, scale: Scale) -> Tensor:
    """Frequencies on the mel scale: of O'Shaughnessy (``htk``), or straight below 1 kHz and logarithmic above (``slaney``)."""
    if scale == "htk":
        return 2595 * (1 + hertz / 700).log10()
    return torch.where(hertz < 1000, hertz * 3 / 200, 15 + (hertz.clamp_min(1) / 1000).log() * 27 / math.log(6.4))


def to_hertz(mel: Tensor, scale: Scale) -> Tensor:
    """The inverse of `to_mel`."""
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    return torch.where(mel < 15, mel * 200 / 3, 1000 * ((mel - 15) * math.log(6.4) / 27).exp())


@functools.cache
def mel_filters(n_fft: int, n_mels: int, rate: int, low: float, high: float, scale: Scale, norm: str) -> Tensor:
    """Triangles over the frequencies of a spectrum, ``[M, F]`` (float32, CPU), evenly spread on a mel scale from `low` to `high`.

    With ``norm: area`` each has the same area (Slaney's Auditory Toolbox); else each has a peak of 1.
    Raises `ContractError` where the band is none, or a triangle falls between two frequencies of the spectrum.
    """
    if not 0 <= low < high <= rate / 2:
        raise ContractError(
            "high", f"{low:g} to {high:g} Hz is no band below {rate / 2:g} Hz, half the sample rate",
            "give low < high within it",
        )  # fmt: skip
    with torch.device("cpu"):
        ends = to_mel(torch.tensor([low, high], dtype=torch.float64), scale)
        corner = to_hertz(torch.linspace(float(ends[0]), float(ends[1]), n_mels + 2, dtype=torch.float64), scale)
        frequency_F = torch.linspace(0, rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    left, peak, right = corner[:-2, None], corner[1:-1, None], corner[2:, None]
    rise, fall = (frequency_F - left) / (peak - left), (right - frequency_F) / (right - peak)
    filters_MF = torch.minimum(rise, fall).clamp_min(0)
    blind = int((filters_MF.sum(1) == 0).sum())
    if blind:
        raise ContractError(
            "n_mels", f"{blind} of {n_mels} mel bands lie between two frequencies of a spectrum of {n_fft} samples",
            "lower n_mels, or raise n_fft",
        )  # fmt: skip
    return (filters_MF * (2 / (right - left) if norm == "area" else 1)).float()


def log_mel(
    x_BL: Tensor, *, n_fft: int, hop: int, n_mels: int, rate: int,
    low: float = 0.0, high: float | None = None, scale: Scale = "slaney", norm: str = "area", floor: float = 1e-10,
) -> Tensor:  # fmt: skip
    """The common logarithm of the power in each mel band, at least of `floor`: ``[B, M, T]``."""
    filters_MF = mel_filters(n_fft, n_mels, rate, low, rate / 2 if high is None else high, scale, norm)
    power_BFT = magnitudes(x_BL, n_fft, hop).square()
    return (filters_MF.to(power_BFT.device) @ power_BFT).clamp_min(floor).log10()


def spectral_loss(x_BL: Tensor, y_BL: Tensor, windows: tuple[int, ...], floor: float = 1e-3) -> Tensor:
    """How far `y_BL` is from `x_BL` by their spectra at several resolutions (Yamamoto et al. 2020, arXiv 1910.11480, eq. 4-6).

    For each window, with hops of a quarter: the norm of the magnitudes' difference over the norm of the magnitudes, plus the
    mean difference of their logarithms; then the mean over windows. Magnitudes are in units of the window's sum, so that a
    sine's is half its amplitude; those below `floor` count as that: they are hardly heard, and would rule the logarithms in
    silent passages.
    """
    terms = []
    for window in windows:
        a_BFT, b_BFT = ((magnitudes(z, window, window // 4) * 2 / window).clamp_min(floor) for z in (x_BL, y_BL))
        converged = (a_BFT - b_BFT).norm(dim=(1, 2)) / a_BFT.norm(dim=(1, 2))
        terms.append(converged.mean() + (a_BFT.log() - b_BFT.log()).abs().mean())
    return torch.stack(terms).mean()
