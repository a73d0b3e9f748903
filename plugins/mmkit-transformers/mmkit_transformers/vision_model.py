"""`vision_model`: the features of any image model of transformers, one per cell of its grid.

Legend: B images of one batch, N tokens, C channels, h and w cells.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from mmkit.contracts.encoder import Encoder
from mmkit.contracts.options import Count
from mmkit.contracts.port import Port
from mmkit.errors import ContractError
from mmkit.nn.grid import fit, resize, whole
from mmkit_transformers.published import REFUSED, Restored, changed, config_of, load, make

Pair = tuple[int, int]
POOLED = frozenset(("classifier", "cls_classifier", "distillation_classifier", "head", "pooler"))
"""What a checkpoint holds behind its features: none of it is used."""
AHEAD = {"class_embedding": 1, "cls_token": 1, "distillation_token": 1}
"""Parameters that become tokens before those of the grid, and how many; register tokens count themselves."""


class VisionModel(Restored, Encoder):
    """A vision tower of transformers (ViT, CLIP, SigLIP, DINOv2 and 3, ConvNeXt, Swin, ...) from its config.

    Images ``[3, H, W]`` in [0, 1] of any mix of sizes to ``[h, w, C]`` each; class, register and distillation tokens are
    dropped. Models of one size (ViT, CLIP, SigLIP) get every image at `image_size`; at another than their own, their
    positions are interpolated as the library does it. Models of any size (DINOv2, ConvNeXt, Swin) take images as
    they come, stretched up to whole cells, unless there is an `image_size`.

    Features are the library's ``last_hidden_state``, or ``hidden_states[layer]``. Poolers and classifiers are left out;
    what else features do not depend on (layers after `layer`, mask tokens) is kept, and frozen. Models that take packed patches
    (SigLIP 2 NaFlex, Qwen-VL's towers) are refused.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `vision_model`.

        Options:
            config: the model's config as in a ``config.json``: ``model_type`` and its sizes. Left out where `weights` names a
                checkpoint, which has one. Of a model of several modalities (CLIP), the vision model's part is used.
            override: values that replace some of the config's.
            layer: which of the library's ``hidden_states`` are the features: 0 is before the first layer, -2 after the
                last but one (LLaVA); left out, ``last_hidden_state``.
            image_size: size every image is brought to; left out, the model's own, or, where it takes any, the image's.
            fit: how an image of another shape is brought to `image_size`: ``stretch``, ``pad`` or ``crop``.
            mean, std: pixels enter as ``(pixel - mean) / std``; left out where `weights` names a checkpoint, whose
                ``preprocessor_config.json`` says it.
            interpolation: how images are resampled.
        """

        config: dict[str, Any]
        override: dict[str, Any] = field(default_factory=dict)
        layer: int | None = None
        image_size: Count | tuple[Count, Count] | None = None
        fit: Literal["stretch", "pad", "crop"] = "stretch"
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
        std: tuple[float, float, float] = (0.5, 0.5, 0.5)
        interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    examples = (
        {
            "config": {
                "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3,
                "num_attention_heads": 2, "image_size": 16, "patch_size": 4, "hidden_act": "gelu",
            },
            "layer": -2,
        },
        {
            "config": {
                "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
                "patch_size": 4,
            }
        },
    )  # fmt: skip

    def __init__(self, config: Config) -> None:
        """Raises `ContractError` where the model gives no map of features for such images."""
        super().__init__()
        if min(config.std) <= 0:
            raise ContractError("std", f"{list(config.std)} is not positive", "give the standard deviations of pixels")
        size = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
        self.config = config
        self.anatomy = _anatomy(json.dumps(config.config), json.dumps(config.override), config.layer, size)
        if self.anatomy.size is None and config.fit != "stretch":
            raise ContractError(
                "fit", "this model takes images of any size as they are", "give an image_size, or no fit"
            )
        self.model = make(self.anatomy.config, **self.anatomy.options)
        self.keep_derived(self.model)
        for name in self.anatomy.unused:
            self.model.get_parameter(name).requires_grad_(False)
        self.port = Port("image", "features", self.anatomy.width)

    @staticmethod
    def checkpoint_options(folder: Any) -> dict[str, Any]:
        """The config of a published checkpoint, and what its preprocessor says of pixels."""
        found = {"config": json.loads((folder / "config.json").read_text())}
        if not (folder / "preprocessor_config.json").is_file():
            return found
        said = json.loads((folder / "preprocessor_config.json").read_text())
        if not said.get("do_normalize", True):
            return {**found, "mean": [0.0] * 3, "std": [1.0] * 3}
        found |= {
            ours: said[theirs] for ours, theirs in (("mean", "image_mean"), ("std", "image_std")) if theirs in said
        }
        return found | {"interpolation": "bilinear"} if said.get("resample") == 2 else found

    def grid(self, size: Pair) -> Pair:
        """Cells of an image of ``(height, width)`` pixels."""
        return tuple(n // self.anatomy.step for n in self._target(size))

    def forward(self, contents: Sequence[Tensor]) -> list[Tensor]:
        """Images ``[3, H, W]`` in [0, 1] to features ``[h, w, C]``; images that end up of one size run as one batch."""
        ready = [self._prepared(image) for image in contents]
        batches: dict[Pair, list[int]] = defaultdict(list)
        for i, image in enumerate(ready):
            batches[tuple(image.shape[-2:])].append(i)
        out: dict[int, Tensor] = {}
        for size, places in batches.items():
            features = self.anatomy.reading(self.model, torch.stack([ready[i] for i in places]))
            wanted = (*(n // self.anatomy.step for n in size), self.port.width)
            if features is None or tuple(features.shape[1:]) != wanted:
                raise ContractError(
                    "image_size", f"images of {_said(size)} did not give the {_said(wanted[:2])} features they should",
                    f"give image_size: {_said(self.anatomy.native)}, the size the model was made for",
                )  # fmt: skip
            out.update(zip(places, features, strict=True))
        return [out[i] for i in range(len(contents))]

    def from_published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tower's tensors of a published checkpoint; poolers and classifiers are left out.

        Raises `CheckpointError` that names what is missing, of another shape, or not used.
        """
        found = load(self.model, tensors, POOLED, **self.anatomy.options)
        return {f"model.{name}": tensor for name, tensor in found.items()}

    def _target(self, size: Pair) -> Pair:
        """The pixels an image of this size is brought to."""
        return whole(size, (self.anatomy.step,) * 2) if self.anatomy.size is None else self.anatomy.size

    def _prepared(self, image: Tensor) -> Tensor:
        """An image at its target size, normalised, on the model's device and in its dtype."""
        like = next(self.model.parameters())
        mean, std = (torch.tensor(v, device=like.device) for v in (self.config.mean, self.config.std))
        images, size = image[None].to(like.device), self._target(tuple(image.shape[-2:]))
        if self.anatomy.size is None:
            images = resize(images, size, self.config.interpolation)
        else:
            images = fit(images, size, self.config.fit, mean, self.config.interpolation)
        return ((images[0] - mean[:, None, None]) / std[:, None, None]).to(like.dtype)


@dataclass(frozen=True)
class Reading:
    """Where in a model its features are read: `ahead` tokens stand before the grid's."""

    layer: int | None
    ahead: int
    interpolates: bool

    def __call__(self, model: PreTrainedModel, x: Tensor) -> Tensor | None:
        """Images ``[B, 3, H, W]`` to features ``[B, h, w, C]``; None where what comes out is no map of them."""
        options = {"interpolate_pos_encoding": True} if self.interpolates else {}
        if self.layer is None:
            return self._arranged(model(pixel_values=x, **options).last_hidden_state, x)
        out = model(pixel_values=x, output_hidden_states=True, **options)
        states = getattr(out, "reshaped_hidden_states", None) or out.hidden_states
        if not -len(states) <= self.layer < len(states):
            raise ContractError(
                "layer", f"there are {len(states)} hidden states, and none of number {self.layer}",
                f"give one from {-len(states)} to {len(states) - 1}",
            )  # fmt: skip
        return self._arranged(states[self.layer], x)

    def _arranged(self, y: Tensor, x: Tensor) -> Tensor | None:
        """Tokens ``[B, N, C]`` behind those ahead, or a map ``[B, C, h, w]``, as ``[B, h, w, C]``."""
        if y.ndim == 4:
            return y.permute(0, 2, 3, 1)
        count = y.shape[1] - self.ahead
        if y.ndim != 3 or count < 1:
            return None
        height, width = x.shape[-2:]
        step = max(1, round(math.sqrt(height * width / count)))
        grid = (height // step, width // step)
        return y[:, self.ahead :].unflatten(1, grid) if math.prod(grid) == count else None


@dataclass(frozen=True)
class _Anatomy:
    """What must be known of a model before it has weights.

    `options` are those of its constructor; `size` is what every image is brought to (None: as it comes); `native` the
    size it was made for; `step` the pixels of a cell; `unused` the parameters that features do not depend on.
    """

    config: PretrainedConfig
    options: dict[str, Any]
    reading: Reading
    size: Pair | None
    native: Pair
    step: int
    width: int
    unused: tuple[str, ...]


@functools.lru_cache(maxsize=64)
def _anatomy(config: str, override: str, layer: int | None, size: Pair | None) -> _Anatomy:
    """Measured on a copy without memory (the meta device), because configs say little of what models do."""
    whole_config = config_of(json.loads(config))
    stated = changed(getattr(whole_config, "vision_config", whole_config), json.loads(override))
    if hasattr(stated, "vision_use_head"):
        stated.vision_use_head = False
    with torch.device("meta"), torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        model = make(stated)
        takes = inspect.signature(type(model).__init__).parameters
        options = {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}
        model = make(stated, **options).train()
    if (
        getattr(model, "main_input_name", "") != "pixel_values"
        or "pixel_values" not in inspect.signature(model.forward).parameters
    ):
        raise ContractError("config.model_type", f"{stated.model_type} takes no images", "name a vision model")
    own = getattr(stated, "image_size", None) or 224
    native = (own, own) if isinstance(own, int) else tuple(own)
    resized = (
        size is not None
        and size != native
        and "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    )
    reading = Reading(layer, _ahead(model), resized)
    shape, unused = _measured(model, reading, size or native)
    step = shape and (size or native)[0] // shape[0]
    if not shape or tuple(n // step for n in size or native) != shape[:2]:
        raise ContractError(
            "image_size" if size else "config.model_type",
            f"{stated.model_type} gives no map of features of images of {_said(size or native)}",
            f"give image_size: {_said(native)}, the size it was made for" if size else "name another model, or another layer",
        )  # fmt: skip
    odd, _ = _measured(model, reading, (3 * step, 5 * step))
    free = size is None and odd is not None and odd[:2] == (3, 5)
    return _Anatomy(stated, options, reading, None if free else size or native, native, step, shape[2], unused)


def _ahead(model: PreTrainedModel) -> int:
    """How many tokens stand before those of the grid."""
    leaves = {name.rpartition(".")[2]: p for name, p in model.named_parameters()}
    registers = leaves["register_tokens"].shape[1] if "register_tokens" in leaves else 0
    return registers + sum(count for name, count in AHEAD.items() if name in leaves)


def _measured(
    model: PreTrainedModel, reading: Reading, size: Pair
) -> tuple[tuple[int, int, int] | None, tuple[str, ...]]:
    """``(h, w, C)`` of an image of this size (None: no map of features), and the parameters that no gradient reaches."""
    model.zero_grad()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            y = reading(model, torch.zeros(2, 3, *size, device="meta"))
            if y is None:
                return None, ()
            y.float().sum().backward()
    except ContractError:
        raise
    except REFUSED:
        return None, ()
    return tuple(y.shape[1:]), tuple(n for n, p in model.named_parameters() if p.grad is None)


def _said(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
