"""The metrics, against torchmetrics and by hand."""

import math

import pytest
import torch
from mmkit_audio.log_mel_distance import LogMelDistance
from mmkit_audio.si_sdr import SISDR, si_sdr
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from mmkit.contracts.evaluation import Record
from mmkit.contracts.segment import Sample, Segment


def record(target: torch.Tensor, content: torch.Tensor, modality: str = "audio") -> Record:
    sample = Sample("s", (Segment("text", "a"), Segment(modality, target, "target")), "generate")
    return Record("generate", sample, (content,))


def noise(seed: int) -> torch.Tensor:
    return torch.randn(4000, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_si_sdr_is_that_of_torchmetrics():
    for level in (0.01, 0.5, 3.0):
        target = noise(0)
        found = 0.3 * target + level * noise(1)
        wanted = scale_invariant_signal_distortion_ratio(found.double(), target.double()).item()
        assert si_sdr(found, target) == pytest.approx(wanted, abs=1e-6)


def test_si_sdr_of_copies_and_silence_is_finite():
    x = noise(0)
    assert si_sdr(x, x) == 100 and si_sdr(torch.zeros(4000), x) == -100 and si_sdr(x, torch.zeros(4000)) == -100


def test_twice_as_loud_is_six_decibels_off():
    (found,) = LogMelDistance(LogMelDistance.Config()).each([record(noise(0), 2 * noise(0))], None)
    assert found["log_mel_distance"] == pytest.approx(20 * math.log10(2), abs=1e-3)


def test_a_silent_copy_of_silence_and_faint_noise_are_no_distance():
    metric, silence = LogMelDistance(LogMelDistance.Config()), torch.zeros(2000)
    for content in (silence, silence + 1e-6 * torch.randn(2000)):
        assert metric.each([record(silence, content)], None) == [{"log_mel_distance": 0.0}]


@pytest.mark.parametrize("metric", [SISDR(SISDR.Config()), LogMelDistance(LogMelDistance.Config())])
def test_metrics_apply_to_sounds_of_equal_length_alone(metric):
    picture = Record("g", Sample("s", (Segment("image", torch.zeros(3, 8, 8), "target"),)), (torch.zeros(3, 8, 8),))
    short, fine = record(noise(0), noise(0)[:100]), record(noise(0), noise(1))
    assert "length" in metric.why_not([picture, short]) and not metric.why_not([picture, fine])
    assert [bool(found) for found in metric.each([picture, short, fine], None)] == [False, False, True]


def test_what_is_no_number_is_heard_as_silence():
    broken = noise(0)
    broken[10] = float("nan")
    (found,) = SISDR(SISDR.Config()).each([record(noise(0), broken)], None)
    assert found["si_sdr"] > 10
