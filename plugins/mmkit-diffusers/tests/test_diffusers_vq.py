"""`diffusers_vq` against diffusers itself."""

from __future__ import annotations

from typing import Any

import diffusers
import families
import pytest
import torch
from mmkit_diffusers.vq import DiffusersVQ

from mmkit.checkpoint import load_part
from mmkit.errors import ContractError

SPATIAL = {"norm_type": "spatial", "block_out_channels": [32, 32], "norm_num_groups": 32}


def built(**options: Any) -> DiffusersVQ:
    torch.manual_seed(0)
    part = DiffusersVQ(DiffusersVQ.Config(config={**families.VQ, **options})).eval()
    # As it is initialised, all vectors are nearest to one or two codes.
    torch.nn.init.normal_(part.model.quantize.embedding.weight, std=0.2)
    return part


@pytest.mark.parametrize("options", [{}, {"lookup_from_codebook": True, "vq_embed_dim": 5}, SPATIAL])
@torch.no_grad()
def test_encodes_and_decodes_to_the_bits_of_diffusers(options: dict[str, Any]) -> None:
    part = built(**options)
    theirs = diffusers.VQModel(**{k: v for k, v in {**families.VQ, **options}.items() if k != "_class_name"}).eval()
    theirs.load_state_dict(part.model.state_dict())
    images = [families.content("kl", seed) for seed in range(2)]
    h = theirs.encode(torch.stack(images) * 2 - 1).latents
    ids = theirs.quantize(h)[2][2].view(2, 8, 12)
    codes = part.encode(images)
    assert all(map(torch.equal, codes, ids))
    assert len(ids.unique()) > 1
    shape = (2, 8, 12, part.port.width)
    quantized = theirs.quantize.get_codebook_entry(ids.flatten(), shape)
    looked_up = options.get("lookup_from_codebook")
    given = (ids.flatten(), True, True, shape) if looked_up else (quantized, True)
    wanted = ((theirs.decode(*given).sample + 1) / 2).clamp(0, 1)
    assert all(map(torch.equal, part.decode(codes), wanted))
    assert torch.equal(part.embed(ids), quantized.movedim(1, -1))


def test_reconstruction_is_what_diffusers_trains() -> None:
    part = built().train()
    images = [families.content("kl", seed) for seed in range(2)]
    found = part.reconstruct(images)
    whole = part.model(torch.stack(images) * 2 - 1)
    torch.testing.assert_close(torch.stack(found.contents), (whole.sample + 1) / 2, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.losses["codebook"], whole.commit_loss, atol=1e-7, rtol=1e-5)


def test_a_published_folder_is_loaded(tmp_path) -> None:
    part = built()
    part.model.save_pretrained(tmp_path)
    other = DiffusersVQ(DiffusersVQ.Config(config=str(tmp_path)))
    load_part(other, str(tmp_path), "tokenizers.pixels")
    assert all(map(torch.equal, other.state_dict().values(), part.state_dict().values()))


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ContractError, match="stride 2"):
        built().encode([torch.zeros(3, 15, 16)])
