"""Features of vision towers: those of the library's own models, with class and register tokens dropped, for each family.

Tolerance 1e-5 at values of about 1: the same code on both sides, in batches of other sizes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmkit_transformers.vision_model import VisionModel
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel

from mmkit.errors import CheckpointError, ContractError

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
VIT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "image_size": 16, "patch_size": 2}
TOWERS: dict[str, tuple[dict[str, Any], int, tuple[int, int]]] = {
    "vit": (VIT, 1, (4, 4)),
    "deit": (VIT, 2, (4, 4)),
    "clip_vision_model": (VIT, 1, (4, 4)),
    "siglip_vision_model": (VIT, 0, (4, 4)),
    "dinov2": (VIT, 1, (4, 4)),
    "dinov2_with_registers": ({**VIT, "num_register_tokens": 3}, 4, (4, 4)),
    "dinov3_vit": ({**VIT, "num_register_tokens": 4}, 5, (4, 4)),
    "beit": (VIT, 1, (4, 4)),
    "convnext": (
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2, "image_size": 16},
        0,
        (4, 4),
    ),
    "resnet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}, 0, (2, 2)),
    "swin": (SWIN, 0, (4, 4)),
    "swinv2": (SWIN, 0, (4, 4)),
}
"""The config of each, how many tokens stand before its grid, and the grid of 16 x 16 pixels."""

NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] * (name in ("deit", "beit", "dinov2", "resnet", "swinv2")))
    for name in TOWERS
]
"""All of them; slow are those that differ least from another."""


def config_of(name: str) -> dict[str, Any]:
    config = {"model_type": name, **TOWERS[name][0]}
    if name.startswith("dinov2"):
        config.pop("intermediate_size")
    return config


def theirs(name: str) -> nn.Module:
    config = config_of(name)
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(config.pop("model_type"), **config), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def ours(name: str, model: nn.Module | None = None, **options: Any) -> VisionModel:
    part = VisionModel(VisionModel.Config(config=config_of(name), **options)).eval()
    if model is not None:
        part.load_state_dict(part.from_published(model.state_dict()))
    return part


def mapped(y: Tensor, ahead: int, grid: tuple[int, int]) -> Tensor:
    """Their tokens or map of one image as ``[h, w, C]``."""
    return y[0].permute(1, 2, 0) if y.ndim == 4 else y[0, ahead:].unflatten(0, grid)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_features_of_a_batch(name: str) -> None:
    """Three images, which run as one batch, against one at a time there."""
    model = theirs(name)
    part = ours(name, model)
    images = [torch.rand(3, 16, 16) for _ in range(3)]
    _, ahead, grid = TOWERS[name]
    assert part.grid((16, 16)) == grid
    for image, x in zip(images, part(images), strict=True):
        assert x.shape == (*grid, part.port.width)
        assert_close(x, mapped(model(pixel_values=(image[None] - 0.5) / 0.5).last_hidden_state, ahead, grid), **CLOSE)


@pytest.mark.parametrize("name", ["clip_vision_model", "siglip_vision_model", "dinov2_with_registers", "vit"])
@pytest.mark.parametrize("layer", [-2, 0])
@torch.no_grad()
def test_an_earlier_layer(name: str, layer: int) -> None:
    model = theirs(name)
    part = ours(name, model, layer=layer)
    image = torch.rand(3, 16, 16)
    states = model(pixel_values=(image[None] - 0.5) / 0.5, output_hidden_states=True).hidden_states
    _, ahead, grid = TOWERS[name]
    assert_close(part([image])[0], mapped(states[layer], ahead, grid), **CLOSE)


@torch.no_grad()
def test_a_stage_of_a_pyramid() -> None:
    """A stage of Swin is a map of its own, finer than the last one."""
    model = theirs("swin")
    image = torch.rand(3, 16, 16)
    states = model(pixel_values=(image[None] - 0.5) / 0.5, output_hidden_states=True).reshaped_hidden_states
    for layer in (0, -1):
        part = ours("swin", model, layer=layer)
        assert part.grid((16, 16)) == tuple(states[layer].shape[-2:])
        assert_close(part([image])[0], states[layer][0].permute(1, 2, 0), **CLOSE)


def test_what_features_do_not_depend_on_is_frozen() -> None:
    part = ours("clip_vision_model", layer=-2)
    frozen = {n for n, p in part.named_parameters() if not p.requires_grad}
    assert {n for n in frozen if "layers.2." in n} == {n for n, _ in part.named_parameters() if "layers.2." in n}
    assert not [n for n in frozen if "layers.0." in n or "layers.1." in n]
    assert not [n for n in ours("vit").state_dict() if "pooler" in n]


@torch.no_grad()
def test_sizes() -> None:
    """One size for all, their own size interpolated, and images as they come."""
    model = theirs("clip_vision_model")
    part = ours("clip_vision_model", model)
    assert part.grid((40, 24)) == (4, 4)
    larger = ours("clip_vision_model", model, image_size=(24, 16))
    assert larger.grid((40, 24)) == (6, 4)
    image = torch.rand(3, 24, 16)
    wanted = model(pixel_values=(image[None] - 0.5) / 0.5, interpolate_pos_encoding=True).last_hidden_state
    assert_close(larger([image])[0], mapped(wanted, 1, (6, 4)), **CLOSE)
    free = ours("convnext")
    assert free.grid((15, 25)) == (4, 7)
    assert free([torch.rand(3, 15, 25)])[0].shape == (4, 7, 16)


@torch.no_grad()
def test_pixels_enter_by_mean_and_deviation() -> None:
    model = theirs("vit")
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    image = torch.rand(3, 16, 16)
    x = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    wanted = mapped(model(pixel_values=x[None]).last_hidden_state, 1, (4, 4))
    assert_close(ours("vit", model, mean=mean, std=std)([image])[0], wanted, **CLOSE)


def test_what_a_checkpoint_says(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of("vit")))
    assert VisionModel.checkpoint_options(tmp_path) == {"config": config_of("vit")}
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    found = VisionModel.checkpoint_options(tmp_path)
    assert (found["mean"], found["std"], found["interpolation"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], "bilinear")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**said, "do_normalize": False}))
    assert VisionModel.checkpoint_options(tmp_path)["std"] == [1.0] * 3


def test_the_tower_of_a_model_of_two() -> None:
    """Of CLIP the vision model's part of the config is taken, and of its checkpoint the tensors under a prefix."""
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    both = {"model_type": "clip", "vision_config": VIT, "text_config": text, "projection_dim": 8}
    part = VisionModel(VisionModel.Config(config=both))
    model = AutoModel.from_config(AutoConfig.for_model("clip", **{k: v for k, v in both.items() if k != "model_type"}))
    tensors = model.state_dict()
    with pytest.raises(CheckpointError, match="not used: logit_scale"):
        part.from_published(tensors)
    start = "vision_model."
    tower = {name.removeprefix(start): x for name, x in tensors.items() if name.startswith(start)}
    assert part.from_published(tower).keys() == part.state_dict().keys()


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        ({"model_type": "llama"}, {}, "takes no images"),
        ({"model_type": "siglip2_vision_model", "hidden_size": 24, "num_hidden_layers": 1}, {}, "no map|takes no"),
        ({"model_type": "vit", **VIT}, {"layer": 9}, "none of number 9"),
        ({"model_type": "siglip_vision_model", **VIT}, {"image_size": 2}, "gives no map"),
        ({"model_type": "convnext"}, {"fit": "pad"}, "give an image_size"),
        ({"model_type": "vit", **VIT}, {"std": (0.5, 0.0, 0.5)}, "not positive"),
    ],
)  # fmt: skip
def test_refused(config: dict[str, Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ContractError, match=said), torch.device("meta"):
        VisionModel(VisionModel.Config(config=config, **options))
