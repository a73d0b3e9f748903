"""The audio modalities and their sample rates. Torch-free, so that options can name them."""

from typing import Literal

AudioName = Literal["audio", "audio-16k", "audio-24k"]
RATES: dict[str, int] = {"audio": 8_000, "audio-16k": 16_000, "audio-24k": 24_000}
"""Samples per second: telephone, wideband speech, and what neural codecs of music use."""
