"""`mel`: no network at all. Patches of a log-mel spectrogram are the features.

Shape suffixes: B sounds of one length, L samples, M mel bands, T frames, P frames in a patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from mmkit.contracts.encoder import Encoder
from mmkit.contracts.options import Count, NonNegative, Positive
from mmkit.contracts.port import Port
from mmkit.errors import ContractError
from mmkit.nn.grouping import map_by_shape
from mmkit_audio.rates import RATES, AudioName
from mmkit_audio.spectra import log_mel, mel_filters


class Mel(Encoder):
    """Sounds ``[samples]`` of any lengths to ``[n, patch * n_mels]``, channels running as (frame in the patch, band).

    Frames, and their logarithm of power in base 10, are as in Whisper's feature extractor (Radford et al. 2022), but that
    sound is silent beyond its ends instead of mirrored, and that nothing depends on a sound's loudest frame. A sound that is
    no whole number of patches is followed by silence up to one.
    """

    examples = ({"n_mels": 20, "patch": 4}, {"n_mels": 16, "patch": 1, "hop": 120, "scale": "htk", "norm": "none"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `mel`.

        Options:
            modality: which audio modality it hears; this says the sample rate.
            n_fft: samples of a frame, under a Hann window.
            hop: samples from one frame to the next.
            n_mels: mel bands.
            low, high: ends of the lowest and of the highest band, in hertz; `high` left out is half the sample rate.
            scale: ``slaney`` (Whisper, librosa) is straight below 1 kHz, ``htk`` logarithmic throughout.
            norm: ``area``: bands are equally sensitive to noise (Slaney, Whisper); ``none``: each peaks at 1.
            patch: frames that stand in one feature.
            mean, std: features are ``(log10(power) - mean) / std``, by default as in Whisper.
        """

        modality: AudioName = "audio"
        n_fft: Count = 256
        hop: Count = 80
        n_mels: Count = 40
        low: NonNegative = 0.0
        high: Positive | None = None
        scale: Literal["slaney", "htk"] = "slaney"
        norm: Literal["area", "none"] = "area"
        patch: Count = 4
        mean: float = -4.0
        std: Positive = 4.0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.rate = RATES[config.modality]
        if config.hop > config.n_fft:
            raise ContractError(
                "hop", f"frames of {config.n_fft} samples every {config.hop} leave samples unheard", "lower hop"
            )
        self._bands()
        self.port = Port(config.modality, "features", config.patch * config.n_mels, axes=1)

    def _bands(self) -> None:
        """Raises `ContractError` on bands there are none of."""
        c = self.config
        mel_filters(c.n_fft, c.n_mels, self.rate, c.low, c.high or self.rate / 2, c.scale, c.norm)

    @property
    def span(self) -> int:
        """Samples in one feature."""
        return self.config.hop * self.config.patch

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """``(patches,)`` of a sound of ``(samples,)``."""
        (samples,) = size
        return (math.ceil(samples / self.span),)

    def forward(self, contents: Sequence[Tensor]) -> list[Tensor]:
        """Sounds to patches, each length among them at once."""
        return map_by_shape(contents, self._patches)

    def _patches(self, x_BL: Tensor) -> Tensor:
        c = self.config
        (count,) = self.grid((x_BL.shape[1],))
        x_BL = F.pad(x_BL, (0, count * self.span - x_BL.shape[1]))
        found_BMT = log_mel(
            x_BL, n_fft=c.n_fft, hop=c.hop, n_mels=c.n_mels, rate=self.rate,
            low=c.low, high=c.high, scale=c.scale, norm=c.norm,
        )  # fmt: skip
        # The last frame is centred on the end: half of it is beyond the sound, and it would be one too many for whole patches.
        found_BTM = ((found_BMT[..., :-1] - c.mean) / c.std).mT
        return found_BTM.unflatten(1, (count, c.patch)).flatten(2)
