import torch
from diffusers.models.embeddings import TimestepEmbedding as Reference
from diffusers.models.embeddings import Timesteps

from mmkit.nn.timestep import TimestepEmbedding, sinusoids


def test_sinusoids_are_those_of_diffusers():
    t = torch.tensor([0.0, 0.37, 12.5, 999.0])
    expected = Timesteps(64, flip_sin_to_cos=True, downscale_freq_shift=0)(t)
    assert torch.equal(sinusoids(t, 64), expected)


def test_embedding_is_that_of_diffusers():
    torch.manual_seed(0)
    reference = Reference(256, 48)
    mine = TimestepEmbedding(48)
    mine.inner.load_state_dict(reference.linear_1.state_dict())
    mine.outer.load_state_dict(reference.linear_2.state_dict())
    t = torch.rand(7)
    expected = reference(Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(t * 1000))
    assert torch.equal(mine(t), expected)


def test_angles_keep_float32_in_half_precision():
    """In bf16 the times 0.5 and 0.501 would be one; their angles must differ."""
    torch.manual_seed(0)
    embedding = TimestepEmbedding(16).bfloat16()
    out = embedding(torch.tensor([0.5, 0.501]))
    assert out.dtype == torch.bfloat16
    assert not torch.equal(out[0], out[1])


def test_scale_is_what_the_times_are_multiplied_by():
    torch.manual_seed(0)
    small, large = TimestepEmbedding(8, scale=1.0), TimestepEmbedding(8, scale=500.0)
    large.load_state_dict(small.state_dict())
    assert torch.equal(small(torch.tensor([250.0])), large(torch.tensor([0.5])))
