"""What training needs to go on as if nothing had happened: the optimizers' state by parameter name, and the random streams."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmkit.checkpoint.tensors import listed
from mmkit.errors import CheckpointError

_PREFIX = "state."


def flatten_optimizers(
    optimizers: Sequence[Optimizer], named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, Tensor]:
    """The optimizers' tensors as ``state.<parameter>.<key>``, for all whose state is tensors alone.

    Hyperparameters are left out: they come from the recipe. A parameter without a gradient so far has no state.
    """
    names, flat = _names(named_parameters), {}
    for optimizer in optimizers:
        for name, parameter in _in_order(optimizer, names):
            for key, value in optimizer.state.get(parameter, {}).items():
                assert isinstance(value, Tensor), (
                    f"{type(optimizer).__name__} keeps a {type(value).__name__} as {key!r}"
                )
                flat[f"{_PREFIX}{name}.{key}"] = value
    return flat


def restore_optimizers(
    optimizers: Sequence[Optimizer], named_parameters: Iterable[tuple[str, nn.Parameter]], tensors: Mapping[str, Tensor]
) -> None:
    """Gives optimizers the state that `flatten_optimizers` took; their own hyperparameters stay.

    Raises `CheckpointError` that lists every parameter whose state does not fit, and then changes nothing.
    """
    names, wrong, states = _names(named_parameters), [], []
    by_name: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, _, key = full.rpartition(".")
        by_name.setdefault(name, {})[key] = value
    for optimizer in optimizers:
        state: dict[int, dict[str, Tensor]] = {}
        ordered = _in_order(optimizer, names)
        for index, (name, parameter) in enumerate(ordered):
            for key, value in by_name.pop(f"{_PREFIX}{name}", {}).items():
                if value.shape != (torch.Size() if key == "step" else parameter.shape):
                    wrong.append(
                        f"{_PREFIX}{name}.{key} is {list(value.shape)} and the parameter {list(parameter.shape)}"
                    )
                else:
                    state.setdefault(index, {})[key] = value.clone()
        keys = {key for found in state.values() for key in found}
        for index, found in state.items():
            wrong += [f"{_PREFIX}{ordered[index][0]}.{key} is missing" for key in sorted(keys - found.keys())]
        states.append(state)
    wrong += [f"{name}.{key} belongs to no trained parameter" for name, keys in by_name.items() for key in keys]
    if wrong:
        raise CheckpointError(
            "optimizer", f"its state does not fit the parameters: {listed(wrong)}",
            "resume with the recipe the checkpoint was written with, or start a new run with `weights:`",
        )  # fmt: skip
    for optimizer, state in zip(optimizers, states, strict=True):
        whole = optimizer.state_dict()
        whole["state"] = state
        optimizer.load_state_dict(whole)


def _names(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in reversed(list(named_parameters))}


def _in_order(optimizer: Optimizer, names: Mapping[nn.Parameter, str]) -> list[tuple[str, nn.Parameter]]:
    """The optimizer's parameters, by name, in the order its own state dict counts them."""
    mine = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert all(parameter in names for parameter in mine), "the optimizer holds a parameter that was not named"
    return [(names[parameter], parameter) for parameter in mine]


def capture_random() -> dict[str, Any]:
    """The states of torch's default generators, as hexadecimal text: ``cpu``, and one of ``cuda`` per device."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": _hex(torch.get_rng_state()), "cuda": [_hex(state) for state in devices]}


def restore_random(captured: Mapping[str, Any]) -> None:
    """Sets torch's default generators. Warns where the machine has another number of CUDA devices than before."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        cpu, cuda = _bytes(captured["cpu"]), [_bytes(text) for text in captured["cuda"]]
        torch.set_rng_state(cpu)
        for device, state in enumerate(cuda[:count]):
            torch.cuda.set_rng_state(state, device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError("trainer.json", f"holds no usable random state ({error})", "seed the run anew") from error
    if count != len(cuda):
        warnings.warn(
            f"random states of {len(cuda)} CUDA devices were saved and {count} are here: "
            "what is drawn on them will differ from an uninterrupted run",
            stacklevel=2,
        )


def _hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
