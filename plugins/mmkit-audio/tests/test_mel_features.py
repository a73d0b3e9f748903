"""The mel encoder against transformers' feature extractors."""

import numpy as np
import pytest
import torch
from mmkit_audio.mel import Mel
from mmkit_audio.spectra import log_mel, magnitudes, mel_filters, spectral_loss
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from mmkit.connectors.mlp import MLP
from mmkit.connectors.patchify import Patchify
from mmkit.errors import ContractError


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)).mul(0.1).clamp(-1, 1)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize("norm", ["area", "none"])
def test_filters_are_those_of_transformers(scale, norm):
    wanted = mel_filter_bank(129, 30, 60.0, 3800.0, 8000, norm="slaney" if norm == "area" else None, mel_scale=scale)
    found = mel_filters(256, 30, 8000, 60.0, 3800.0, scale, norm)
    assert np.abs(found.T.numpy() - wanted).max() < 1e-6 * wanted.max()


def test_log_mels_are_those_of_transformers():
    x = noise(4000)
    wanted = spectrogram(
        x.numpy(), window_function(256, "hann"), 256, 80, power=2.0, pad_mode="constant", log_mel="log10",
        mel_filters=mel_filter_bank(129, 40, 0.0, 4000.0, 8000, norm="slaney", mel_scale="slaney"),
    )  # fmt: skip
    found = log_mel(x[None], n_fft=256, hop=80, n_mels=40, rate=8000)[0]
    assert found.shape == wanted.shape == (40, 51)
    # Logarithms of float32 powers.
    assert np.abs(found.numpy() - wanted).max() < 1e-4


def test_features_are_those_of_whisper():
    x = noise(16_000)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=1)
    wanted = extractor(x.numpy(), sampling_rate=16_000, return_tensors="pt")["input_features"][0].T
    part = Mel(Mel.Config(modality="audio-16k", n_fft=400, hop=160, n_mels=80, patch=1))
    (found,) = part([x])
    # Whisper mirrors the sound at its ends; white noise has no band 8 below its loudest, where it would clip.
    inside = slice(2, -2)
    assert found.shape == wanted.shape == (100, 80)
    assert (found - wanted)[inside].abs().max() < 1e-3


def test_channels_run_as_frame_then_band():
    x = noise(3200)
    (patches,) = Mel(Mel.Config(patch=4))([x])
    (frames,) = Mel(Mel.Config(patch=1))([x])
    assert torch.equal(patches, frames.reshape(10, 160))


def test_a_ragged_end_is_followed_by_silence():
    part, x = Mel(Mel.Config()), noise(1000)
    padded = torch.cat([x, torch.zeros(280)])
    assert part.grid((1000,)) == part.grid((1280,)) == (4,)
    assert torch.equal(part([x])[0], part([padded])[0])


@pytest.mark.parametrize("connector", [MLP, Patchify])
def test_connectors_merge_neighbours_in_time(connector):
    """One number, which folds height and width of pictures, folds the one axis there is here."""
    part = Mel(Mel.Config())
    merged = connector(
        connector.Config(position="learned", max_grid=4, **{"merge" if connector is MLP else "size": 2}), part.port, 16
    )
    (features,) = part([noise(2560)])
    folded = merged.fold(features)
    assert merged.grid((8,)) == (4,) and torch.equal(folded, features.reshape(4, 320)) and merged.port.width == 320
    assert torch.equal(merged.unfold(folded), features)
    assert merged(folded, [(4,)]).shape == (4, 16)


def test_one_sample_and_silence_are_finite():
    for x in (torch.zeros(1), torch.zeros(640)):
        assert Mel(Mel.Config())([x])[0].isfinite().all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_fft": 64, "hop": 32, "n_mels": 60}, "mel bands lie between"),
        ({"low": 3000, "high": 2000.0}, "no band"),
        ({"high": 4001.0}, "no band"),
        ({"hop": 300}, "unheard"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ContractError, match=said):
        Mel(Mel.Config(**options))


def test_magnitudes_are_those_of_numpy():
    x = noise(512).double()
    padded = np.pad(x.numpy(), 64)
    window = np.hanning(129)[:-1]
    frames = np.stack([padded[start : start + 128] * window for start in range(0, 513, 32)])
    wanted = np.abs(np.fft.rfft(frames)).T
    assert np.abs(magnitudes(x[None], 128, 32)[0].numpy() - wanted).max() < 1e-5


def test_the_spectral_loss_by_hand():
    """One window; loud enough that no magnitude is at the floor; twice as loud everywhere."""
    x = noise(2048)[None] * 3
    # |S - 2 S| / |S| = 1, and log 2.
    assert spectral_loss(x, 2 * x, (128,), floor=1e-9).item() == pytest.approx(1 + np.log(2), rel=1e-4)
    assert spectral_loss(x, x, (64, 128)).item() == 0


def test_the_spectral_loss_hears_no_faint_noise_in_silence():
    silence = torch.zeros(1, 1024)
    assert spectral_loss(silence, silence + 1e-5, (64,)).item() == 0
