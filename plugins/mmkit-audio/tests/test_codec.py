"""The codec: lengths, what any codes decode to, and that it learns sound."""

import pytest
import torch
from mmkit_audio.rvq_codec import RVQCodec
from mmkit_audio.tones import Tones

from mmkit.errors import ContractError

SMALL = {
    "codebook_size": 32,
    "codebooks": 2,
    "dim": 8,
    "patch": 10,
    "strides": (4, 4),
    "base_dim": 16,
    "num_res_blocks": 1,
}


def codec(**options) -> RVQCodec:
    torch.manual_seed(0)
    return RVQCodec(RVQCodec.Config(**SMALL | options)).eval()


def test_the_grid_is_frames_by_books():
    part = codec()
    assert part.grid((3200,)) == (20, 2)
    (codes,) = part.encode([torch.zeros(3200)])
    assert codes.shape == (20, 2) and (codes // 32 == torch.arange(2)).all()
    assert part.port.codebook_size == 64 and part.decode([codes])[0].shape == (3200,)


@pytest.mark.parametrize(("samples", "nearest"), [(3201, "3200 or 3360"), (100, "nearest: 160"), (0, "nearest: 160")])
def test_a_length_that_does_not_divide_is_refused_both_ways(samples, nearest):
    part = codec()
    for ask in (lambda: part.grid((samples,)), lambda: part.encode([torch.zeros(samples)])):
        with pytest.raises(ContractError, match=nearest):
            ask()


@pytest.mark.parametrize("strides", [(2, 3), (5,), (1,), ()])
def test_every_stride_gives_its_own_length_back(strides):
    part = codec(strides=strides, patch=4)
    samples = 6 * part.plan.stride
    assert part.decode(part.encode([torch.rand(samples) - 0.5]))[0].shape == (samples,)


def test_a_frame_is_the_sum_of_its_codes_whichever_books_they_are_of():
    part = codec()
    codes = torch.tensor([[3, 40], [9, 33], [12, 63]])
    assert torch.equal(*part.decode([codes, codes.flip(1)]))
    assert part.embed(codes).shape == (3, 2, 8)


def test_no_windows_are_refused_where_they_are_needed():
    with pytest.raises(ContractError, match="windows"):
        codec(windows=())
    assert "spectral" not in codec(windows=(), spectral=0.0).reconstruct([torch.rand(320)]).losses


def test_the_spectral_loss_of_mixed_lengths_is_the_mean_over_sounds():
    part = codec()
    sounds = [torch.rand(n) - 0.5 for n in (640, 320, 640)]
    together = part.reconstruct(sounds).losses["spectral"]
    alone = [part.reconstruct([sound]).losses["spectral"] for sound in sounds]
    assert torch.allclose(together, torch.stack(alone).mean(), rtol=1e-5)


def test_it_learns_tones():
    source = Tones(Tones.Config(max_tones=1, seconds=0.3, detune=0.0))
    part = codec(codebook_size=64).train()
    optimizer = torch.optim.AdamW(part.parameters(), 3e-3)
    losses = []
    for step in range(40):
        samples = [source.sample(8 * step + i, 0) for i in range(8)]
        sounds = [s.content for sample in samples for s in sample.segments if s.modality == "audio"]
        found = part.reconstruct(sounds)
        distance = torch.stack([(a - b).abs().mean() for a, b in zip(found.contents, sounds, strict=True)]).mean()
        loss = distance + sum(found.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(found.losses["spectral"].detach()))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
