"""Models of transformers by their config, what they derive from it, and published weights for them, strictly."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from mmkit.errors import CheckpointError, ContractError

WRITTEN = "transformers_version"
"""The key by which a config that the library wrote is told from one that a person wrote."""
LEGACY = frozenset(("head_dim", "model_type", "partial_rotary_factor", "rope_scaling", "rope_theta", "torch_dtype"))
"""Keys that configs read though they are no fields of theirs."""
REFUSED = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ImportError,
    RuntimeError,
    NotImplementedError,
    StrictDataclassError,
)
"""What transformers raises where a config makes no sense to it."""


def config_of(given: Mapping[str, Any]) -> PretrainedConfig:
    """The config that a mapping such as a ``config.json`` states.

    Raises `ContractError` on an unknown ``model_type``, on values the config refuses, and, where a person wrote it, on keys
    that it does not have. Code that a checkpoint brings along (``auto_map``) is never run, nor looked for.
    """
    rest = {key: value for key, value in given.items() if key != "auto_map"}
    name = rest.pop("model_type", None)
    if name not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(name), list(CONFIG_MAPPING), 3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ContractError(
            "config.model_type", f"transformers knows no model {name!r}, and code from elsewhere is not run",
            f"{hint}The names are those of the folders of transformers.models",
        )  # fmt: skip
    if rest.get("quantization_config"):
        raise ContractError(
            "config.quantization_config", "its weights are quantized", "name weights in bf16 or float32"
        )
    if WRITTEN not in given:
        known_only(CONFIG_MAPPING[name], rest, "config")
    with refused("config"):
        return AutoConfig.for_model(name, **copy.deepcopy(rest))


def changed(config: PretrainedConfig, override: Mapping[str, Any]) -> PretrainedConfig:
    """The same config with other values for some keys, all of which it must have."""
    if not override:
        return config
    known_only(type(config), override, "override")
    with refused("override"):
        return type(config)(**{**config.to_dict(), **copy.deepcopy(dict(override))})


def known_only(cls: type[PretrainedConfig], keys: Mapping[str, Any], place: str) -> None:
    """Raises `ContractError` on a key that a config of this class does not have."""
    known = {f.name for f in dataclasses.fields(cls)} | set(cls.attribute_map) | LEGACY
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"its keys are those of transformers.{cls.__name__}"
            raise ContractError(f"{place}.{key}", f"{cls.__name__} has no such key", hint)


@contextmanager
def refused(place: str) -> Iterator[None]:
    """Turns what transformers raises about a config into a `ContractError` at `place`."""
    try:
        yield
    except ContractError:
        raise
    except REFUSED as error:
        said = " ".join(str(error).split())
        raise ContractError(place, f"transformers refuses it ({said[:300]})", "change the config") from error


def make(config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """The model of a config without any head, in float32, its weights drawn from torch's default generator."""
    with refused("config"):
        return AutoModel.from_config(copy.deepcopy(config), dtype=torch.float32, **options)


# Buffers


class Restored(nn.Module):
    """A part around a model of transformers, whose derived buffers survive whatever is done to the part.

    Frequencies of rotary positions and the like are buffers that no checkpoint holds: `to_empty` loses them, and a cast to
    bf16 rounds them. They are computed once on the CPU, and put back each time the tensors were replaced.
    """

    model: nn.Module

    def keep_derived(self, source: PreTrainedModel) -> None:
        """Remembers the derived buffers of the model, which `source` knows how to compute."""
        self._derived = Derived({f"model.{name}": value for name, value in derived(source).items()})
        self._derived.put_back(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        self._derived.put_back(self)
        return self


@dataclasses.dataclass(frozen=True)
class Derived:
    """Values of buffers by their names, on the CPU."""

    values: dict[str, Tensor]

    def put_back(self, part: nn.Module) -> None:
        """Gives each buffer its value, on the device where it is."""
        for name, value in self.values.items():
            path, _, leaf = name.rpartition(".")
            owner = part.get_submodule(path)
            owner._buffers[leaf] = value.to(owner._buffers[leaf].device, copy=True)


@torch.no_grad()
def derived(model: PreTrainedModel) -> dict[str, Tensor]:
    """The values of the buffers that no checkpoint holds, by name; right even where the model has no memory."""
    found = {}
    for path, module in model.named_modules():
        names = [n for n in module._non_persistent_buffers_set if module._buffers.get(n) is not None]
        if any(module._buffers[name].is_meta for name in names):
            module = _computed(model, module, names)
        found |= {f"{path}.{name}".lstrip("."): module._buffers[name].detach().cpu().clone() for name in names}
    return found


def _computed(model: PreTrainedModel, module: nn.Module, names: Sequence[str]) -> nn.Module:
    """A copy of a module, its derived buffers computed by what transformers itself computes them with after loading."""
    twin = copy.deepcopy(module).to_empty(device="cpu")
    for name in names:
        twin._buffers[name].fill_(float("nan") if twin._buffers[name].is_floating_point() else -1)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        model._init_weights(twin)
    for name in names:
        value = twin._buffers[name]
        if not (value.isfinite().all() if value.is_floating_point() else (value >= 0).all()):
            raise ContractError(
                "config.model_type", f"{type(module).__name__}.{name} cannot be computed from its config",
                "name another model",
            )  # fmt: skip
    return twin


# Weights


def load(
    model: PreTrainedModel, tensors: Mapping[str, Tensor], left_out: Set[str], **options: Any
) -> dict[str, Tensor]:
    """A published checkpoint's tensors under the names of `model`, as transformers itself reads them: with prefixes
    added or taken away, older names translated, experts stacked.

    Tensors of a layer called one of `left_out` are none of the model's. Raises one `CheckpointError` that names every
    tensor that is missing, of another shape, or not used.
    """
    wanted = model.state_dict()
    place = f"transformers {type(model).__name__}"
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), _quiet():
            loaded, info = type(model).from_pretrained(
                None, config=copy.deepcopy(model.config), state_dict=dict(tensors), dtype=torch.float32,
                output_loading_info=True, ignore_mismatched_sizes=True, **options,
            )  # fmt: skip
    except REFUSED as error:
        raise CheckpointError(place, f"the weights are not this model's ({error})", "name its own weights") from error
    lists = {
        "missing": sorted(name for name in info["missing_keys"] if name in wanted),
        "not used": sorted(name for name in info["unexpected_keys"] if not left_out & set(name.split("."))),
        "of another shape": sorted(
            f"{name} ({list(found)} in the checkpoint, {list(need)} in the model)"
            for name, found, need in info["mismatched_keys"] if name in wanted
        ),
    }  # fmt: skip
    facts = [f"{len(names)} {what}: {', '.join(names[:12])}" for what, names in lists.items() if names]
    if facts:
        raise CheckpointError(
            place, "\n  ".join(["the weights do not fit, and nothing was loaded:", *facts]),
            "name the model's own weights; where it is one of several in a checkpoint, its prefix after `#`",
        )  # fmt: skip
    return {name: tensor for name, tensor in loaded.state_dict().items() if name in wanted}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and its report of names, both of which are ours to tell."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
