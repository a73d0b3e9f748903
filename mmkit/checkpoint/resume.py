"""What training needs to go on as if nothing had happened: the optimizer's state by parameter name, and the random streams."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmkit.checkpoint.tensors import listed
from mmkit.errors import CheckpointError

_PREFIX = "state."


def flatten_optimizer(optimizer: Optimizer, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """The optimizer's tensors as ``state.<parameter>.<key>``, for AdamW and any optimizer whose state is all tensors.

    Hyperparameters are left out: they come from the recipe. A parameter without a gradient so far has no state.
    """
    flat = {}
    for name, parameter in _in_order(optimizer, named_parameters):
        for key, value in optimizer.state.get(parameter, {}).items():
            assert isinstance(value, Tensor), f"{type(optimizer).__name__} keeps a {type(value).__name__} as {key!r}"
            flat[f"{_PREFIX}{name}.{key}"] = value
    return flat


def restore_optimizer(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, nn.Parameter]], tensors: Mapping[str, Tensor]
) -> None:
    """Gives an optimizer the state that `flatten_optimizer` took; its own hyperparameters stay.

    Raises `CheckpointError` that lists every parameter whose state does not fit, and then changes nothing.
    """
    ordered = _in_order(optimizer, named_parameters)
    indices = {name: (index, parameter) for index, (name, parameter) in enumerate(ordered)}
    keys = {full.rpartition(".")[2] for full in tensors}
    state: dict[int, dict[str, Tensor]] = {}
    wrong: list[str] = []
    for full, value in tensors.items():
        name, _, key = full.removeprefix(_PREFIX).rpartition(".")
        index, parameter = indices.get(name, (-1, None))
        if parameter is None or not full.startswith(_PREFIX):
            wrong.append(f"{full} belongs to no trained parameter")
        elif value.shape != (torch.Size() if key == "step" else parameter.shape):
            wrong.append(f"{full} is {list(value.shape)} and the parameter {list(parameter.shape)}")
        else:
            state.setdefault(index, {})[key] = value.clone()
    for index, found in state.items():
        wrong += [f"{_PREFIX}{ordered[index][0]}.{key} is missing" for key in sorted(keys - found.keys())]
    if wrong:
        raise CheckpointError(
            "optimizer", f"its state does not fit the parameters: {listed(wrong)}",
            "resume with the recipe the checkpoint was written with, or start a new run with `weights:`",
        )  # fmt: skip
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def _in_order(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> list[tuple[str, nn.Parameter]]:
    """The optimizer's parameters, by name, in the order its own state dict counts them."""
    names = {parameter: name for name, parameter in reversed(list(named_parameters))}
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
