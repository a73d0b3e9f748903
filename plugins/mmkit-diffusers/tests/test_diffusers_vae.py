"""`diffusers_vae` against diffusers itself: the same bits in and out, the pipelines' scale, checkpoints, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import families
import pytest
import torch
from mmkit_diffusers.vae import DiffusersVAE
from torch import Tensor

from mmkit.checkpoint import load_part
from mmkit.compose import loads, render
from mmkit.errors import CheckpointError, ContractError
from mmkit.model import UnifiedModel, load_weights

EVERY = {**families.IMAGES, **families.VIDEOS}


def built(config: Any, **options: Any) -> DiffusersVAE:
    torch.manual_seed(0)
    return DiffusersVAE(DiffusersVAE.Config(config=config, **options)).eval()


def original(config: dict[str, Any], like: DiffusersVAE) -> Any:
    """diffusers' own model, built without mmkit, with the same weights."""
    options = {key: value for key, value in config.items() if not key.startswith("_")}
    model = getattr(diffusers, config["_class_name"])(**options).eval()
    model.load_state_dict(like.model.state_dict())
    return model


def batch_of(content: Tensor) -> Tensor:
    """What diffusers reads: ``[1, 3, (F,) H, W]`` in [-1, 1]."""
    x = content[None] * 2 - 1
    return x.transpose(1, 2) if content.ndim == 4 else x


def mode_of(model: Any, x: Tensor) -> Tensor:
    """What diffusers encodes it to, channels last."""
    out = model.encode(x)
    z = out.latent_dist.mode() if hasattr(out, "latent_dist") else out[0]
    return z[0].movedim(0, -1)


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_encodes_and_decodes_to_the_bits_of_diffusers(name: str) -> None:
    part = built(EVERY[name], statistics="measured")
    model, content = original(EVERY[name], part), families.content(name)
    (latents,) = part.encode([content])
    assert torch.equal(latents, mode_of(model, batch_of(content)))
    assert tuple(latents.shape[:-1]) == part.grid(families.SIZES[name]) and latents.shape[-1] == part.port.width
    sample = model.decode(latents.movedim(-1, 0)[None]).sample
    wanted = ((sample + 1) / 2).clamp(0, 1)[0]
    assert torch.equal(part.decode([latents])[0], wanted.transpose(0, 1) if content.ndim == 4 else wanted)


PIPELINES = {
    "sd3": lambda z, c: (z - c["shift_factor"]) * c["scaling_factor"],
    "dc": lambda z, c: z * c["scaling_factor"],
    "tiny": lambda z, c: z,
    "wan": lambda z, c: (z - torch.tensor(c["latents_mean"])) * (1.0 / torch.tensor(c["latents_std"])),
    "cogvideox": lambda z, c: z * c["scaling_factor"],
    "mochi": lambda z, c: (z - torch.tensor(c["latents_mean"])) * c["scaling_factor"] / torch.tensor(c["latents_std"]),
}
"""How diffusers' pipelines bring latents to the scale of noise."""


@pytest.mark.parametrize("name", PIPELINES)
@torch.no_grad()
def test_latents_are_in_the_scale_of_the_pipelines(name: str) -> None:
    part = built(EVERY[name])
    content = families.content(name)
    raw = mode_of(original(EVERY[name], part), batch_of(content))
    # One multiplication instead of two moves the last bit.
    torch.testing.assert_close(part.encode([content])[0], PIPELINES[name](raw, EVERY[name]), atol=1e-6, rtol=1e-6)
    assert part.fitted


@torch.no_grad()
def test_scales_go_there_and_back() -> None:
    part = built(families.IMAGES["sd3"])
    z = torch.randn(3, 5, 16)
    raw = z / 1.5305 + 0.0609
    wanted = ((original(families.IMAGES["sd3"], part).decode(raw.movedim(-1, 0)[None]).sample + 1) / 2).clamp(0, 1)[0]
    torch.testing.assert_close(part.decode([z])[0], wanted, atol=1e-6, rtol=1e-6)


def test_what_no_config_says_is_measured() -> None:
    part = built(families.KL)
    assert not part.fitted
    part.fit([families.content("kl", seed) for seed in range(8)])
    z = torch.cat([z.flatten(0, 1) for z in part.encode([families.content("kl", seed) for seed in range(8)])])
    assert part.fitted
    torch.testing.assert_close(z.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)


@torch.no_grad()
def test_an_image_is_a_video_of_one_frame() -> None:
    part = built(families.VIDEOS["wan"], modality="image", statistics="measured")
    image = families.content("kl")
    (latents,) = part.encode([image])
    (of_video,) = built(families.VIDEOS["wan"], statistics="measured").encode([image[None]])
    assert part.port.modality == "image" and tuple(latents.shape) == (*part.grid((16, 24)), 4)
    assert torch.equal(latents, of_video[0]) and part.decode([latents])[0].shape == image.shape


def test_a_sample_is_drawn_from_the_posterior() -> None:
    part = built(families.KL, posterior="sample", statistics="measured")
    content = families.content("kl")
    with torch.no_grad():
        (mean, log_variance) = part.moments([content])[0]
        drawn = torch.stack([part.encode([content])[0] for _ in range(64)])
    standard = (drawn - mean) / torch.exp(0.5 * log_variance)
    # 64 x 384 draws: the deviation of their mean is 0.006, that of their deviation 0.005.
    assert abs(standard.mean()) < 0.03 and abs(standard.std() - 1) < 0.03
    assert not part.keepable and built(families.KL).keepable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint as diffusers writes it."""
    original(families.IMAGES["sd3"], built(families.IMAGES["sd3"])).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


RECIPE = """
model:
  tokenizers:
    text: {{type: bytes}}
    pixels: {{type: diffusers_vae, config: {folder}, weights: {folder}, connector: {{type: patchify, size: 2}}}}
  backbone: {{type: dense, depth: 1, dim: 32, num_heads: 2}}
  heads: {{say: {{type: ar}}, paint: {{type: flow, steps: 2}}}}
  streams:
    text: {{modality: text, from: text, head: say}}
    image: {{modality: image, from: pixels, head: paint}}
data: [{{type: shapes, size: 24}}]
train: {{steps: 2, batch_samples: 2}}
"""


@torch.no_grad()
def test_a_recipe_names_a_published_folder(folder: Path) -> None:
    model = UnifiedModel(loads(RECIPE.format(folder=folder)))
    load_weights(model)
    part, content = model.tokenizers["pixels"], families.content("kl")
    theirs = diffusers.AutoencoderKL.from_pretrained(folder).eval()
    raw = mode_of(theirs, batch_of(content))
    torch.testing.assert_close(part.encode([content])[0], (raw - 0.0609) * 1.5305, atol=1e-6, rtol=1e-6)
    assert part.fitted and DiffusersVAE.default_weights(part.config) == str(folder)


def test_a_checkpoint_that_lacks_something_is_refused_by_name(folder: Path) -> None:
    part = built(str(folder))
    tensors = dict(part.model.state_dict())
    tensors["decoder.extra"] = tensors.pop("decoder.conv_out.bias")
    with pytest.raises(CheckpointError, match=r"1 missing: decoder\.conv_out\.bias; 1 unexpected: decoder\.extra"):
        part.from_published(tensors)
    other = built(families.KL)
    with pytest.raises(CheckpointError, match="4 missing: post_quant_conv"):
        load_part(other, str(folder), "tokenizers.pixels")


def test_names_of_older_checkpoints_are_known() -> None:
    part = built(families.KL)
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in part.model.state_dict().items():
        for now, before in older.items():
            if f".{now}." in name:
                name, tensor = name.replace(now, before), tensor[..., None, None] if tensor.ndim == 2 else tensor
        tensors[name] = tensor
    assert tensors.keys() != part.model.state_dict().keys()
    found = part.from_published(tensors)
    assert found.keys() == part.state_dict().keys()
    assert all(torch.equal(found[f"model.{n}"], x) for n, x in part.model.state_dict().items())


def test_a_mapping_survives_yaml() -> None:
    config = {**families.IMAGES["dc"], "scaling_factor": "1e-1"}
    text = (
        RECIPE.format(folder="F")
        .replace("config: F, weights: F", f"config: {json.dumps(config)}")
        .replace('"1e-1"', "1e-1")
    )
    recipe = loads(text)
    read = recipe.model.tokenizers["pixels"].options.config
    assert read["scaling_factor"] == 0.1 and read["encoder_qkv_multiscales"] == ((), (5,))
    assert loads(render(recipe)).model.tokenizers["pixels"].options.config == read
    assert built(read).model.config.latent_channels == 4


WRONG = [
    ({"config": {"block_out_channels": [8]}}, r"config\._class_name: it does not say which class"),
    ({"config": {"_class_name": "UNet2DModel"}}, r"config\._class_name: UNet2DModel is not wrapped here.*AutoencoderKL"),
    ({"config": {**families.KL, "chanels": 3}}, r"config\.chanels: diffusers .* knows no chanels of AutoencoderKL"),
    ({"config": {**families.KL, "norm_num_groups": 3}}, "config: diffusers cannot build AutoencoderKL"),
    ({"config": "no/such/folder"}, r"config: no/such/folder/config\.json cannot be read"),
    ({"config": families.KL, "modality": "video"}, "modality: AutoencoderKL reads images.*AutoencoderKLWan"),
    ({"config": families.IMAGES["dc"], "posterior": "sample"}, "posterior: AutoencoderDC has no posterior"),
    ({"config": {**families.VIDEOS["ltx"], "timestep_conditioning": True}}, "timestep_conditioning: a decoder that denoises"),
    ({"config": {**families.KL, "latents_mean": [0.0], "latents_std": [1.0]}}, "1 values for 4 channels"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[m[:24] for _, m in WRONG])
def test_what_does_not_go_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        built(options.pop("config") if "config" in options else None, **options)


def test_a_broken_config_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ContractError, match=r"config\.json is not JSON"):
        built(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("kl", (17, 16), r"17 x 16 pixels .* stride 2.*nearest: 16 x 16 or 18 x 16"),
        ("wan", (4, 16, 16), "a video of 4 frames is not 1 \\+ 2 n frames long. nearest: 3 or 5"),
        ("cogvideox", (8, 16, 16), "8 frames is not 1 \\+ 4 n frames long. nearest: 5 or 9"),
        ("ltx", (9, 32, 48), "stride 32"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(name: str, size: tuple[int, ...], message: str) -> None:
    part = built(EVERY[name])
    *frames, height, width = size
    with pytest.raises(ContractError, match=message):
        part.grid(size)
    with pytest.raises(ContractError, match=message):
        part.encode([torch.zeros(*frames, 3, height, width)])
