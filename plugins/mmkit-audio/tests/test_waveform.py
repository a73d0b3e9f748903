"""The modality: what it takes, what it refuses, and files in both directions."""

import struct
import wave
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
import scipy.signal
import torch
from mmkit_audio.rates import RATES
from mmkit_audio.resampling import resample
from mmkit_audio.waveform import Audio, Audio16k, Audio24k

from mmkit.errors import DataError


def wav_file(path: Path, samples: np.ndarray, rate: int, width: int = 2, channels: int = 1) -> Path:
    """A file of integer samples, by hand."""
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(b"".join(int(s).to_bytes(width, "little", signed=width > 1) for s in samples.flatten()))
    return path


def test_floats_and_int16_are_brought_to_one_form():
    floats = np.array([0.0, 0.5, -1.0])
    integers = np.array([0, 2**14, -(2**15)], np.int16)
    for value in (floats, torch.tensor(floats), integers, torch.tensor(integers)):
        content = Audio().coerce(value)
        assert content.dtype == torch.float32 and content.tolist() == [0.0, 0.5, -1.0]
    assert Audio().size(content) == (3,)


def test_a_read_only_array_is_not_shared():
    array = np.zeros(4, np.float32)
    array.flags.writeable = False
    Audio().coerce(array)[0] = 1
    assert array[0] == 0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros((2, 100)), "not one channel"),
        (np.array([0.0, 2.0]), "reach 2"),
        (np.array([0.0, np.nan]), "reach"),
        (np.array([0.0, np.inf]), "reach inf"),
        (np.zeros(0), "no samples"),
        (np.zeros(3, np.int64), "int64"),
        ("sound.wav", "pathlib.Path"),
        (Path("nowhere.wav"), "cannot be opened"),
        (object(), "not a waveform"),
    ],
)
def test_what_cannot_be_used_is_refused(value, said):
    with pytest.raises(DataError, match=said):
        Audio().coerce(value)


def test_it_accepts_one_axis_and_wav_files_alone():
    accepted = [np.zeros(3), torch.zeros(3), Path("a.WAV")]
    refused = [np.zeros((3, 3)), Path("a.png"), "a.wav", [0.0], None]
    assert all(map(Audio().accepts, accepted)) and not any(map(Audio().accepts, refused))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_files_of_every_width_are_read_as_scipy_reads_them(tmp_path, width):
    low, high = (0, 255) if width == 1 else (-(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1)
    samples = np.random.default_rng(0).integers(low, high, 500, endpoint=True)
    path = wav_file(tmp_path / "a.wav", samples, 8000, width)
    rate, raw = scipy.io.wavfile.read(path)
    # scipy gives 24 bits in the upper bytes of 32.
    scale = {1: 2**7, 2: 2**15, 3: 2**31, 4: 2**31}[width]
    wanted = raw.astype(float) / scale - (width == 1)
    assert rate == 8000
    # float32 keeps 24 bits.
    assert np.abs(Audio().coerce(path).numpy() - wanted).max() <= 2**-24


def test_channels_are_averaged(tmp_path):
    samples = np.array([[1000, 3000], [-2000, 0]])
    content = Audio().coerce(wav_file(tmp_path / "a.wav", samples, 8000, channels=2))
    assert torch.equal(content, torch.tensor([2000.0, -1000.0]) / 2**15)


@pytest.mark.parametrize("modality", [Audio, Audio16k, Audio24k])
def test_a_saved_sound_is_read_by_others_and_comes_back(tmp_path, modality):
    content = torch.rand(1000) * 2 - 1
    modality().save(content, tmp_path / "a.wav")
    rate, samples = scipy.io.wavfile.read(tmp_path / "a.wav")
    assert (rate, samples.dtype) == (RATES[modality.name], np.int16)
    back = modality().coerce(tmp_path / "a.wav")
    # Half a step of rounding, and full scale is written as 32767 and read as 32768.
    assert (back - content).abs().max() <= 1.5 / 2**15


def test_a_damaged_file_is_refused(tmp_path):
    good = wav_file(tmp_path / "good.wav", np.zeros(100, int), 8000).read_bytes()
    floats = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 44, b"WAVE", b"fmt ", 16, 3, 1, 8000, 32000, 4, 32, b"data", 8)
    files = {
        "cut.wav": good[:150],
        "header.wav": good[:20],
        "text.wav": b"not sound at all",
        "float.wav": floats + bytes(8),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            Audio().coerce(tmp_path / name)


def test_a_file_that_is_too_long_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("mmkit_audio.wav.MAX_SAMPLES", 99)
    with pytest.raises(DataError, match="100 samples exceed the limit of 99"):
        Audio().coerce(wav_file(tmp_path / "a.wav", np.zeros(100, int), 8000))


@pytest.mark.parametrize(("old", "new"), [(44_100, 8_000), (16_000, 8_000), (8_000, 24_000), (22_050, 16_000)])
def test_resampling_moves_a_tone_to_the_other_rate(old, new):
    def tone(rate, count):
        return torch.sin(2 * torch.pi * 1000 * torch.arange(count, dtype=torch.float64) / rate).float()

    found = resample(tone(old, old // 4), old, new)
    assert len(found) == ceil(old // 4 * new / old)
    inside = slice(200, -200)
    # Sinc kernels of 16 crossings: the ripple of the passband.
    assert (found - tone(new, len(found)))[inside].abs().max() < 2e-3


def test_resampling_agrees_with_scipy():
    generator = np.random.default_rng(0)
    # Noise of the lowest 2.5 kHz, which both filters pass.
    band = scipy.signal.firwin(301, 2500, fs=16_000)
    noise = scipy.signal.lfilter(band, 1, generator.standard_normal(8000))
    wanted = scipy.signal.resample_poly(noise, 1, 2)
    found = resample(torch.from_numpy(noise).float(), 16_000, 8_000).numpy()
    error = (found - wanted)[200:-200]
    assert found.shape == wanted.shape and np.sqrt((error**2).mean()) < 5e-3 * wanted.std()


def test_what_the_lower_rate_cannot_carry_is_left_out():
    tone = torch.sin(2 * torch.pi * 5500 * torch.arange(16_000, dtype=torch.float64) / 16_000).float()
    assert resample(tone, 16_000, 8_000)[200:-200].abs().max() < 1e-3


def test_a_file_of_another_rate_is_resampled(tmp_path):
    path = wav_file(tmp_path / "a.wav", np.zeros(4410, int), 44_100)
    assert Audio().coerce(path).shape == (800,) and Audio24k().coerce(path).shape == (2400,)
