"""`log_mel_distance`: how far a sound is from the one it should be, by its log-mel spectrogram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mmkit.contracts.evaluation import Metric, Record, Subject, Value
from mmkit.contracts.options import Count
from mmkit.contracts.segment import Segment
from mmkit_audio.pairs import NO_SOUND, averaged, sound_pairs
from mmkit_audio.rates import RATES
from mmkit_audio.spectra import log_mel


class LogMelDistance(Metric):
    """The mean over bands and frames of how many dB the powers of two sounds differ by; the mean over sounds.

    Powers below -80 dB of a full-scale sine count as that, so that silence equals silence. It hears no phase.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `log_mel_distance`.

        Options:
            n_fft: samples of a frame.
            hop: samples from one frame to the next.
            n_mels: mel bands, from 0 Hz to half the sample rate.
        """

        n_fft: Count = 256
        hop: Count = 64
        n_mels: Count = 40

    unit = "dB"
    better = "less"

    def __init__(self, config: Config) -> None:
        self.config = config

    def why_not(self, records: Sequence[Record]) -> str:
        """No sound, or none of the length it should have."""
        return "" if any(map(sound_pairs, records)) else NO_SOUND

    def each(self, records: Sequence[Record], subject: Subject) -> list[dict[str, Value]]:
        """``log_mel_distance`` of each record."""
        return averaged("log_mel_distance", records, self._distance)

    def _distance(self, sound: Tensor, segment: Segment) -> float:
        options, rate = self.config, RATES[segment.modality]
        # A full-scale sine has a quarter of the window's length as magnitude; bands that peak at 1 keep its power.
        floor = (options.n_fft / 4) ** 2 * 1e-8
        levels = [
            log_mel(
                x[None],
                n_fft=options.n_fft,
                hop=options.hop,
                n_mels=options.n_mels,
                rate=rate,
                norm="none",
                floor=floor,
            )
            for x in (sound, segment.content.cpu())
        ]
        return 10 * float((levels[0] - levels[1]).abs().mean())
