"""What must be known of a decoder before it has weights: whether it can keep to mmkit's mask, and the sizes of its cache.

It is measured on a copy without memory (the meta device), whose layers' attention is a probe, because configs say little of
what models do.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from mmkit.contracts.positions import Positions
from mmkit.errors import ContractError
from mmkit.sequence.positions import MRope, Rope
from mmkit_transformers.attention import NAME, Call, Probe
from mmkit_transformers.published import REFUSED, changed, config_of, make

TOKENS = 3
"""Length of the probed sequence: more than one, so that a layer that pools shows."""
FULL, SLIDING = "full_attention", "sliding_attention"
UNSTEADY = frozenset(("dynamic", "longrope"))
"""Rotary positions whose angles depend on the longest sequence of a batch."""


@dataclass(frozen=True)
class Anatomy:
    """A decoder's measurements.

    `tables` are the paths of its tables of tokens; `limit` is how far positions may go and `reason` why (None: any);
    `axes` are those of its positions, `balances` whether it gives an auxiliary loss. Layers in `windowed` see through a `window`.
    """

    config: PretrainedConfig
    dim: int
    layers: int
    kv_heads: int
    head_dim: int
    tables: tuple[str, ...]
    limit: int | None
    reason: str
    axes: int
    balances: bool
    window: int | None
    windowed: frozenset[int]


class Line(Positions):
    """One position after the other, or three axes for models with M-RoPE, as far as the model can see.

    The model turns queries and keys by itself, so no frequency is stated here.
    """

    def __init__(self, facts: Anatomy) -> None:
        self.axes, self.limit, self.reason = facts.axes, facts.limit, facts.reason
        self.scheme = Rope(Rope.Config()) if self.axes == 1 else MRope(MRope.Config())

    def place(self, cursor: int, grid: tuple[int, ...], shared: bool) -> tuple[np.ndarray, int]:
        """As `Rope` or `MRope` place them. Raises `ContractError` past the model's limit."""
        places, after = self.scheme.place(cursor, grid, shared)
        if self.limit is not None and after > self.limit:
            raise ContractError(
                "backbone", f"a sample reaches position {after}, and {self.reason} {self.limit}", "give shorter samples"
            )
        return places, after

    def frequencies(self, head_dim: int) -> tuple[Tensor, Tensor]:
        """None, since the model's own layers turn."""
        return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)


@functools.lru_cache(maxsize=64)
def anatomy(config: str, override: str) -> Anatomy:
    """Measures the decoder of a config, both given as JSON. Raises `ContractError` where it cannot be a backbone."""
    whole = config_of(json.loads(config))
    if whole.is_encoder_decoder:
        raise ContractError(
            "config.model_type", f"{whole.model_type} is an encoder and a decoder", "name a decoder alone"
        )
    stated = changed(whole.get_text_config(decoder=True), json.loads(override))
    axes = _check_config(stated)
    with torch.device("meta"), torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        # Of the library's ways to run experts, one looks at no values, which a copy without memory does not have.
        try:
            model = make(stated, attn_implementation=NAME, experts_implementation="batched_mm").train()
        except ContractError as error:
            if isinstance(error.__cause__, KeyError) and error.__cause__.args == (NAME,):
                raise _unfit(stated, "does not attend through transformers' AttentionInterface") from error
            raise
    _check_model(model)
    tables, placed = _tables(model)
    calls = _probed(model, axes)
    layers, kv_heads, head_dim = _cache_sizes(calls, model)
    windows = _windows(calls, stated)
    window = next(iter(windows.values()), None)
    limits: list[tuple[int, str]] = []
    if len(set(windows.values())) > 1 or (windows and getattr(stated, "use_bidirectional_attention", False)):
        # Several, or one that looks ahead, too: then only what they all leave whole can be read.
        limits, window, windows = [(size, "its windows end at") for size in windows.values()], None, {}
    limits += [(stated.max_position_embeddings, "its table of positions ends at")] * placed
    limit, reason = min(limits, default=(None, ""))
    balances = bool(getattr(stated, "output_router_logits", False))
    if balances:
        balancing(model)
    return Anatomy(
        stated, stated.hidden_size, layers, kv_heads, head_dim, tables, limit, reason, axes, balances, window,
        frozenset(windows),
    )  # fmt: skip


def balancing(model: PreTrainedModel) -> Callable[..., Tensor]:
    """The auxiliary loss that the library weighs into a mixture's loss. Raises `ContractError` where it has none."""
    found = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    if found is None or not hasattr(model.config, "router_aux_loss_coef"):
        raise ContractError(
            "config.output_router_logits", f"transformers has no auxiliary loss for {model.config.model_type}",
            "leave it out",
        )  # fmt: skip
    return found


def _layer_types(config: PretrainedConfig) -> set[str]:
    return set(getattr(config, "layer_types", None) or ())


def _windows(calls: list[Call], config: PretrainedConfig) -> dict[int, int]:
    """The windows of the layers that have one."""
    kinds = enumerate(getattr(config, "layer_types", None) or ())
    found = {layer: config.sliding_window for layer, kind in kinds if kind == SLIDING}
    return {**found, **{c.layer: c.rest["sliding_window"] for c in calls if "sliding_window" in c.rest}}  # type: ignore[misc]


def _check_config(config: PretrainedConfig) -> int:
    """Refuses what the config already tells; gives the axes of positions."""
    other = sorted(_layer_types(config) - {FULL, SLIDING})
    if other:
        raise _unfit(config, f"has layers that are no plain attention ({', '.join(other)})")
    rotary = list(_mappings(getattr(config, "rope_parameters", None) or {}))
    unsteady = sorted({r.get("rope_type") for r in rotary} & UNSTEADY)
    if unsteady:
        raise ContractError(
            "config.rope_parameters", f"the angles of `{unsteady[0]}` depend on the longest sequence of a batch",
            "override rope_parameters with another rope_type",
        )  # fmt: skip
    return 3 if any(r.get("mrope_section") for r in rotary) else 1


def _mappings(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield value
    for inner in value.values():
        if isinstance(inner, Mapping):
            yield from _mappings(inner)


def _check_model(model: PreTrainedModel) -> None:
    """Refuses models in which tokens reach each other on other ways than by attention."""
    if getattr(model, "_is_stateful", False):
        raise _unfit(model.config, "keeps a state beside keys and values (state space or linear attention)")
    mixing = [path for path, module in model.named_modules() if isinstance(module, nn.Conv1d)]
    if mixing:
        raise _unfit(model.config, f"mixes neighbouring tokens by convolution ({mixing[0]})")
    missing = {"inputs_embeds", "position_ids"} - set(inspect.signature(model.forward).parameters)
    if missing:
        raise _unfit(model.config, f"takes no {' and no '.join(sorted(missing))}")


def _tables(model: PreTrainedModel) -> tuple[tuple[str, ...], bool]:
    """The paths of the tables of tokens, and whether positions have a table."""
    tokens = model.get_input_embeddings()
    found = {path: module for path, module in model.named_modules() if isinstance(module, nn.Embedding)}
    placed = [path for path in found if re.search(r"pos|wpe", path.rpartition(".")[2])]
    other = [path for path, module in found.items() if module is not tokens and path not in placed]
    if other:
        raise _unfit(model.config, f"looks up tokens in a table of its own ({other[0]}), and here tokens have no ids")
    return tuple(path for path, module in model.named_modules() if module is tokens), bool(placed)


def _probed(model: PreTrainedModel, axes: int) -> list[Call]:
    """What the layers ask of attention in one pass."""
    probe, width = Probe(), model.config.hidden_size
    with torch.device("meta"), torch.inference_mode(False):
        places = torch.zeros((axes, 1, TOKENS) if axes > 1 else (1, TOKENS), dtype=torch.long)
        given = torch.zeros(1, TOKENS, width)
        untouched = given._version
        try:
            out = model(inputs_embeds=given, position_ids=places, use_cache=False, mmkit=probe).last_hidden_state
        except ContractError:
            raise
        except REFUSED as error:
            raise _unfit(
                model.config, f"does not run on embeddings alone ({' '.join(str(error).split())[:200]})"
            ) from error
    if given._version != untouched:
        raise _unfit(model.config, "writes into the embeddings it is given")
    if tuple(out.shape) != (1, TOKENS, width):
        raise _unfit(model.config, f"gives states {tuple(out.shape)} for {TOKENS} tokens of width {width}")
    return probe.calls


def _cache_sizes(calls: list[Call], model: PreTrainedModel) -> tuple[int, int, int]:
    """Layers, key heads and their width: the same everywhere, one call a layer, and nothing that a plan cannot say."""
    config = model.config
    for call in calls:
        odd = sorted(set(call.rest) - {"sliding_window"})
        if "dropout" in odd:
            raise ContractError(
                "config", f"its attention drops out {call.rest['dropout']:.0%} of the weights, and mmkit's has no dropout",
                "override the config's attention dropout with 0.0",
            )  # fmt: skip
        if odd:
            raise _unfit(config, f"asks its attention for {', '.join(odd)}, which mmkit's kernels do not know")
    layers = [call.layer for call in calls]
    if None in layers or sorted(layers) != list(range(config.num_hidden_layers)):
        fact = f"calls transformers' AttentionInterface {len(calls)} times, and not once in each of its"
        raise _unfit(config, f"{fact} {config.num_hidden_layers} layers")
    shapes = {(call.key, call.value[0]) for call in calls}
    key, value_heads = next(iter(shapes))
    if len(shapes) > 1 or value_heads != key[0] or any(call.value[1] > key[1] for call in calls):
        raise _unfit(config, f"has layers of several shapes ({sorted(shapes)}), and a cache has one")
    return len(layers), *key


def _unfit(config: PretrainedConfig, fact: str) -> ContractError:
    return ContractError("config.model_type", f"{config.model_type} {fact}", "name another model")
