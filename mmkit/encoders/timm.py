"""`timm`: any vision model of the timm library (github.com/huggingface/pytorch-image-models), by its features.

Legend: B images of one batch, N tokens, C channels, p patch size.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import timm
import torch
from timm.data.naflex_transforms import get_image_size_for_seq
from timm.models.naflexvit import NaFlexVit
from torch import Tensor, nn

from mmkit.contracts.encoder import Encoder
from mmkit.contracts.options import Count, Fraction, Positive
from mmkit.contracts.port import Port
from mmkit.errors import CheckpointError, ContractError
from mmkit.nn.grid import fit, fold_grid, resize, whole

MAX_TOKENS = 1024
Pair = tuple[int, int]


class Timm(Encoder):
    """Features of a timm model, one per cell of its grid: class, register and distillation tokens are dropped.

    Images ``[3, H, W]`` in [0, 1] of any mix of sizes to ``[h, w, C]`` each. What a model does with sizes is its own:

    - models of one size (ViT, Swin, EVA, SigLIP, DINOv2) get every image at `image_size`, theirs by default;
    - models of any size (ConvNeXt, ResNet) take images as they come, stretched up to whole cells where they are not;
    - NaFlexViT keeps the aspect ratio and fills `max_tokens`, in one padded batch, by timm's own rule.

    The model's own mean and standard deviation are applied here. Where its last layer is taken, features are what timm's
    ``forward_features`` gives; earlier layers are those of ``forward_intermediates``, not normed, and what comes after them
    is not built. A few models (CrossViT, PiT, EfficientViM) give no map of features in the end; of those
    the last intermediate is taken. In training mode batch norm mixes the images of a batch, as it always does.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `timm`.

        Options:
            name: a name of ``timm.list_models()``, or one of ``timm.list_pretrained()`` with its tag, which weights need.
            layer: which block (of convolutional networks: stage) gives the features; counted from 0, or from the end.
            norm: whether the model's final norm is applied to its last layer.
            image_size: size every image is brought to; left out, the model's own, or, where it has none, the image's.
            fit: how an image of another shape is brought to `image_size`: ``stretch``, ``pad`` or ``crop``.
            max_tokens: for NaFlexViT, the most tokens of an image (1024 where left out).
            max_ratio: for NaFlexViT, how much smaller images are enlarged at most; left out, until they fill `max_tokens`.
            drop_path: stochastic depth in training.
        """

        name: str
        layer: int = -1
        norm: bool = True
        image_size: Count | tuple[Count, Count] | None = None
        fit: Literal["stretch", "pad", "crop"] = "stretch"
        max_tokens: Count | None = None
        max_ratio: Positive | None = None
        drop_path: Fraction = 0.0

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
        self.config = config
        self.anatomy = anatomy = _anatomy(config.name, config.layer, config.norm, size)
        _check_options(config, anatomy)
        self.port = Port("image", "features", anatomy.width)
        self.model = anatomy.reading.prune(_create(config.name, size, config.drop_path))
        for name in anatomy.unused:
            self.model.get_parameter(name).requires_grad_(False)

    @staticmethod
    def default_weights(config: Any) -> str:  # read from the source without importing timm, where Config is unknown
        """Where timm publishes the weights of a tagged name."""
        return f"hf://timm/{config.name}"

    def grid(self, size: Pair) -> Pair:
        """Cells of an image of ``(height, width)`` pixels. Raises `ContractError` where NaFlexViT cannot scale it."""
        if self.anatomy.grid is not None:
            return self.anatomy.grid
        return tuple(n // self.anatomy.step for n in self._target(size))

    def forward(self, contents: Sequence[Tensor]) -> list[Tensor]:
        """Images ``[3, H, W]`` in [0, 1] to features ``[h, w, C]``; images that end up of one size run as one batch."""
        ready = self._prepared(contents)
        if self.anatomy.naflex:
            return self._pack(ready)
        batches: dict[Pair, list[int]] = defaultdict(list)
        for i, image in enumerate(ready):
            batches[tuple(image.shape[-2:])].append(i)
        out: dict[int, Tensor] = {}
        for places in batches.values():
            features = self.anatomy.reading(self.model, torch.stack([ready[i] for i in places]))
            grid = self.grid(tuple(contents[places[0]].shape[-2:]))
            if features is None or tuple(features.shape[1:]) != (*grid, self.port.width):
                raise ContractError(
                    "name", f"{self.config.name} did not give the grid of {grid[0]} x {grid[1]} features it declares",
                    f"give image_size: {_said(self.anatomy.native)}, the size it was made for",
                )  # fmt: skip
            out.update(zip(places, features, strict=True))
        return [out[i] for i in range(len(contents))]

    def from_published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a timm checkpoint under the names, and in the sizes, of this encoder.

        timm itself reads them, strictly, with all it knows of older layouts, and interpolates positions to `image_size`.
        Raises `CheckpointError` where they are another model's.
        """
        size = self.anatomy.size if self.config.image_size else None
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                model = _create(self.config.name, size, 0.0, pretrained=tensors)
        except (RuntimeError, KeyError, ValueError) as error:
            place = f"timm {self.config.name}"
            raise CheckpointError(
                place, f"the weights are not this model's ({error})", "name its own weights"
            ) from error
        model = self.anatomy.reading.prune(model)
        return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}

    def _target(self, size: Pair) -> Pair:
        """The pixels an image of this size is brought to."""
        if self.anatomy.size is not None:
            return self.anatomy.size
        step = self.anatomy.step
        if not self.anatomy.naflex:
            return whole(size, (step, step))
        cells = self.config.max_tokens or MAX_TOKENS
        try:
            return get_image_size_for_seq(size, step, cells, max_ratio=self.config.max_ratio)[1]
        except ValueError as error:
            raise ContractError(
                "max_tokens", f"an image of {_said(size)} cannot be scaled to {cells} tokens ({error})",
                "set max_ratio: 1, or leave images of such sizes out",
            ) from error  # fmt: skip

    def _prepared(self, contents: Sequence[Tensor]) -> list[Tensor]:
        """Each image at its target size, normalised, on the model's device and in its dtype."""
        like = next(self.model.parameters())
        mean, std = (torch.tensor(v, device=like.device)[:, None, None] for v in (self.anatomy.mean, self.anatomy.std))
        alike: dict[Pair, list[int]] = defaultdict(list)
        for i, image in enumerate(contents):
            alike[tuple(image.shape[-2:])].append(i)
        out: dict[int, Tensor] = {}
        for size, places in alike.items():
            images = torch.stack([contents[i].to(like.device) for i in places])
            target, mode = self._target(size), self.anatomy.mode
            if self.anatomy.size is None:
                images = resize(images, target, mode)
            else:
                images = fit(images, target, self.config.fit, mean.flatten(), mode)
            out.update(zip(places, ((images - mean) / std).to(like.dtype), strict=True))
        return [out[i] for i in range(len(contents))]

    def _pack(self, images: Sequence[Tensor]) -> list[Tensor]:
        """NaFlexViT over images of any sizes: their patches end in one batch, padded to the longest."""
        if not images:
            return []
        step = self.anatomy.step
        patches = [fold_grid(image.permute(1, 2, 0), step) for image in images]
        grids = [tuple(p.shape[:2]) for p in patches]
        counts = [math.prod(grid) for grid in grids]
        device = images[0].device
        coordinates = [torch.cartesian_prod(*(torch.arange(n, device=device) for n in grid)) for grid in grids]
        valid = torch.arange(max(counts), device=device) < torch.tensor(counts, device=device)[:, None]
        batch = {
            "patches": nn.utils.rnn.pad_sequence([p.flatten(0, 1) for p in patches], batch_first=True),
            "patch_coord": nn.utils.rnn.pad_sequence(coordinates, batch_first=True),
            "patch_valid": valid if len(set(counts)) > 1 else None,
        }
        features = self.anatomy.reading.packed(self.model, batch)
        return [y[:n].unflatten(0, grid) for y, n, grid in zip(features, counts, grids, strict=True)]


@dataclass(frozen=True)
class Reading:
    """Where in a model its features are read. `index` counts blocks or stages; None reads what comes out at the end."""

    index: int | None
    norm: bool
    step: int
    width: int

    def prune(self, model: nn.Module) -> nn.Module:
        """The model without its classifier and without what comes after the layer that is read."""
        if self.index is not None:
            # A few models of older timm cannot be cut; what is not read of them is then frozen instead.
            if hasattr(model, "prune_intermediate_layers"):
                model.prune_intermediate_layers([self.index], prune_norm=not self.norm, prune_head=True)
        elif hasattr(model, "reset_classifier"):
            # Some heads cannot do without pooling and say so by an assertion; theirs are left, and never run.
            try:
                model.reset_classifier(0, "")
            except AssertionError:
                model.reset_classifier(0)
            if hasattr(model, "fc_norm"):
                model.fc_norm = nn.Identity()
        return model

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor | None:
        """Images ``[B, 3, H, W]`` to features ``[B, h, w, C]``; None where what comes out is no map of them."""
        if self.index is None:
            return self._arranged(model, model.forward_features(x), tuple(x.shape[-2:]))
        (y,) = model.forward_intermediates(x, indices=[self.index], norm=self.norm, intermediates_only=True)
        return y.permute(0, 2, 3, 1)

    def packed(self, model: nn.Module, batch: dict[str, Tensor | None]) -> Tensor:
        """A NaFlex batch to features ``[B, N, C]``."""
        if self.index is None:
            patches, coord, valid = batch["patches"], batch["patch_coord"], batch["patch_valid"]
            return model.forward_features(patches, patch_coord=coord, patch_valid=valid)["patches"][
                :, model.num_prefix_tokens :
            ]
        (y,) = model.forward_intermediates(
            batch, indices=[self.index], norm=self.norm, output_fmt="NLC", intermediates_only=True
        )
        return y

    def _arranged(self, model: nn.Module, y: object, size: Pair) -> Tensor | None:
        if not isinstance(y, Tensor):
            return None
        if y.ndim == 4:
            last = str(getattr(model, "output_fmt", "")) == "NHWC" or y.shape[1] != self.width == y.shape[-1]
            return y if last else y.permute(0, 2, 3, 1)
        extra = getattr(model, "num_prefix_tokens", None)
        for rounding in (math.ceil, math.floor):
            grid = tuple(rounding(n / self.step) for n in size)
            ahead = y.shape[1] - math.prod(grid)
            # Where timm does not count them (CoaT, VOLO), what is more than the grid stands in front of it.
            if ahead == extra or (extra is None and 0 <= ahead <= 2):
                return y[:, ahead:].unflatten(1, grid)
        return None


@dataclass(frozen=True)
class Anatomy:
    """What must be known of a model before it has weights.

    `size` is what every image is brought to (None: as it comes), `grid` its cells then; `native` the size it was made for;
    `step` the pixels of a cell; `unused` the parameters that features do not depend on.
    """

    reading: Reading
    size: Pair | None
    grid: Pair | None
    native: Pair
    step: int
    width: int
    naflex: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: str
    unused: tuple[str, ...]


@functools.lru_cache(maxsize=64)
def _anatomy(name: str, layer: int, norm: bool, size: Pair | None) -> Anatomy:
    """Measured on a copy without memory (the meta device), because what timm says of a few models is not what they do."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        model = _create(name, size, 0.0).train()
    about, infos = model.pretrained_cfg, _feature_info(name, model)
    index = _index(name, layer, len(infos))
    final = index == len(infos) - 1
    inside = Reading(index, norm and final, infos[index]["reduction"], infos[index]["num_chs"])
    end = Reading(None, True, infos[-1]["reduction"], model.num_features)
    native = size or tuple(about["input_size"][1:])
    if not hasattr(model, "forward_intermediates"):
        if not (final and norm):
            raise ContractError(
                "layer", f"this timm reads {name} at its end only", "upgrade timm, or leave layer and norm out"
            )
        inside = end
    for reading in (end, inside) if final and norm else (inside,):
        shape, unused = _measured(reading, model, native)
        if shape:
            break
    else:
        if size:
            remedy = f"give image_size: {_said(model.pretrained_cfg['input_size'][1:])}, the size it was made for"
            raise ContractError("image_size", f"{name} gives no features of images of {_said(size)}", remedy)
        raise ContractError("name", f"{name} gives no map of features", "name another model, or another layer")
    free = size is None and not about.get("fixed_input_size") and _follows_step(reading, model, native, shape)
    return Anatomy(
        reading, None if free else native, None if free else shape[:2], native, reading.step, shape[2],
        free and isinstance(model, NaFlexVit), tuple(about["mean"]), tuple(about["std"]),
        "bilinear" if about.get("interpolation") == "bilinear" else "bicubic", unused,
    )  # fmt: skip


def _measured(reading: Reading, model: nn.Module, size: Pair) -> tuple[tuple[int, int, int] | None, tuple[str, ...]]:
    """``(h, w, C)`` of an image of this size (None: no map of features), and the parameters that no gradient reaches."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            model = reading.prune(model)
            y = reading(model, torch.zeros(2, 3, *size, device="meta"))
            if y is None:
                return None, ()
            y.float().sum().backward()
    except (RuntimeError, ValueError) as error:
        # A model that looks at values cannot run on the copy, which has none; then timm's word must do, and `forward`
        # checks it.
        said = (*(math.ceil(n / reading.step) for n in size), reading.width)
        return said if "meta" in str(error).lower() else None, ()
    except AssertionError:
        return None, ()
    return tuple(y.shape[1:]), tuple(n for n, p in model.named_parameters() if p.requires_grad and p.grad is None)


def _follows_step(reading: Reading, model: nn.Module, native: Pair, shape: tuple[int, ...]) -> bool:
    """Whether any size in whole steps gives one cell per step, as seen at two sizes."""
    step = reading.step
    odd, _ = _measured(reading, model, (3 * step, 5 * step))
    return shape[:2] == tuple(math.ceil(n / step) for n in native) and odd is not None and odd[:2] == (3, 5)


def _create(name: str, size: Pair | None, drop_path: float, pretrained: dict[str, Tensor] | None = None) -> nn.Module:
    """A timm model. Raises `ContractError` at the option that it refuses."""
    _check_name(name)
    about = timm.get_pretrained_cfg(name)
    fixed = about is not None and about.fixed_input_size
    options = {"img_size": size if fixed else None, "drop_path_rate": drop_path or None}
    if pretrained is not None:
        return timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(pretrained)}, **options
        )
    if size is None and not drop_path:
        return timm.create_model(name, num_classes=0)
    try:
        return timm.create_model(name, num_classes=0, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        option = "drop_path" if "drop_path" in str(error) else "image_size" if size else "drop_path"
        raise ContractError(option, f"{name} cannot be built with it ({error})", f"leave {option} out") from error


def _check_name(name: str) -> None:
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models(), 3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "names are those of timm.list_models()"
        raise ContractError("name", f"timm {timm.__version__} knows no model {name!r}", hint)
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:
        known = timm.list_models(f"{arch}.*", pretrained=True)
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ContractError(
            "name", f"timm {timm.__version__} knows no weights {tag!r} of {arch!r}",
            f"{hint}known: {', '.join(known) or 'none'}",
        ) from None  # fmt: skip


def _feature_info(name: str, model: nn.Module) -> list[dict]:
    infos = getattr(model, "feature_info", None)
    if not infos:
        raise ContractError("name", f"{name} gives no features by layer", "name another model of timm.list_models()")
    return list(infos)


def _index(name: str, layer: int, count: int) -> int:
    if not -count <= layer < count:
        raise ContractError(
            "layer", f"{name} has {count} layers to read, and none of number {layer}",
            f"give one from {-count} to {count - 1}",
        )  # fmt: skip
    return layer % count


def _check_options(config: Timm.Config, anatomy: Anatomy) -> None:
    if anatomy.size is None and config.fit != "stretch":
        raise ContractError(
            "fit", f"{config.name} takes images of any size as they are", "give an image_size, or no fit"
        )
    for option in ("max_tokens", "max_ratio"):
        if getattr(config, option) is not None and not anatomy.naflex:
            raise ContractError(option, "only NaFlexViT without image_size reads it", f"leave {option} out")


def _said(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
