"""Products of groups of rows, each with a matrix of its own, and mixtures of experts made of them.

Shape suffixes: T tokens, A assignments or rows, E experts, G groups, D width, P rows of the first matrix, M width inside,
N width that comes out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmkit.errors import ContractError
from mmkit.kernels.dispatch import Own, capability, choose_for
from mmkit.kernels.experts.grouped import CAPABILITY, DEVICES, why_not
from mmkit.kernels.experts.reference import Stack

_REASONS = {
    "grouped": "all groups in one call of torch's grouped product",
    "reference": "torch's grouped product does not take this device, dtype or width, or not when it is compiled",
    "separate": "torch's grouped product takes a stack of matrices, and these are separate",
}


def experts(
    x_TD: Tensor, up_EPD: Tensor, down_EDM: Tensor, token_A: Tensor, weight_A: Tensor, load_E: Tensor, activation: str
) -> Tensor:
    """Each token through the experts it is assigned to, and their weighted sum: ``[T, D]`` to ``[T, D]``.

    Token ``token_A[a]`` reads with the weight ``weight_A[a]`` the expert ``down[e] activate(up[e] x)``. Assignments stand in
    the order of the experts, ``load_E`` (of any dtype) of them for each; a token has any number of them, none included, and an
    expert without any costs nothing. `up` has ``P = 2 M`` rows, the gate's first, where the activation (a name of
    `mmkit.kernels.activations.CURVES`) is gated, and ``P = M`` otherwise.

    Sums over experts are in the precision of `weight_A`, float32 as a rule. Differentiable in `x`, `up`, `down` and `weight`.
    Under autocast all but the weights are cast. Chosen is `grouped`, torch's grouped product, where it takes the device, dtype
    and widths, else the plain `reference`; that one, too, on a CPU without gradients for fewer assignments than experts. In
    float16 and bfloat16 on GPUs where they have proved themselves, the Triton kernels are: gathering, activation and weights
    are part of the products, and the bits are the same every time.
    """
    own: Own
    _check("experts", load_E, len(token_A))
    x_TD, up_EPD, down_EDM = _cast(x_TD, up_EPD, down_EDM)
    if len(token_A) < len(up_EPD) and _reads_loads(x_TD):
        own, reason = "reference", "it touches the matrices of the few experts that are read, and no others"
    else:
        own, reason = _choice(x_TD, *up_EPD.shape[1:], down_EDM.shape[2])
    run = choose_for("experts", own, reason, x_TD, up_EPD, down_EDM, weight_A)
    return run(x_TD, up_EPD, down_EDM, token_A, weight_A, load_E, activation)


def grouped_linear(x_AD: Tensor, weight_GND: Stack, load_G: Tensor, bias_GN: Stack | None = None) -> Tensor:
    """Rows in the order of their groups, each times the matrix of its group: ``[A, D]`` to ``[A, N]``.

    ``load_G`` (of any dtype) says how many rows each group has. A group may be an expert, or a modality with weights of its own
    (mixture-of-transformers, 2411.04996): the matrices are one stack, or a sequence of a ``[N, D]`` for each group, which nothing
    copies into a stack. Biases may be either, too. Differentiable in `x`, `weight` and `bias`. For a stack is chosen as for
    `experts`; separate matrices are multiplied one after the other where ``triton`` is not named. Under autocast all are cast.

    Raises `ContractError` unless there is a matrix of one shape for every group, and a bias where there are any.
    """
    _check("grouped_linear", load_G, len(x_AD))
    matrices, biases = _listed(weight_GND), _listed(bias_GN)
    if not isinstance(weight_GND, Tensor):
        _check_separate(weight_GND, len(load_G))
    if bias_GN is not None and len(bias_GN) != len(load_G):
        fact = f"there are {len(load_G)} groups and {len(bias_GN)} biases"
        raise ContractError("grouped_linear", fact, "give one for each group, or none")
    x_AD, *factors = _cast(x_AD, *matrices, *biases)
    matrices, biases = factors[: len(matrices)], factors[len(matrices) :]
    own: Own
    own, reason = "reference", _REASONS["separate"]
    if isinstance(weight_GND, Tensor):
        own, reason = _choice(x_AD, *weight_GND.shape[1:])
    run = choose_for("grouped_linear", own, reason, x_AD, *factors)
    return run(x_AD, _as(weight_GND, matrices), load_G, None if bias_GN is None else _as(bias_GN, biases))


def _listed(stack: Stack | None) -> list[Tensor]:
    return [] if stack is None else [stack] if isinstance(stack, Tensor) else list(stack)


def _as(stack: Stack, tensors: list[Tensor]) -> Stack:
    return tensors[0] if isinstance(stack, Tensor) else tensors


def _check_separate(matrices: Sequence[Tensor], groups: int) -> None:
    shapes = {tuple(w.shape) for w in matrices}
    if len(matrices) != groups or len(shapes) != 1:
        fact = (
            f"there are {groups} groups, and {len(matrices)} matrices of shapes {', '.join(map(str, sorted(shapes)))}"
        )
        raise ContractError("grouped_linear", fact, "give one for each group, all of one shape")


def _check(op: str, load: Tensor, rows: int) -> None:
    """Rows that no group claims would be read from memory that nobody wrote. On a GPU looking would wait for it."""
    if load.is_cpu and not torch.compiler.is_compiling() and int(load.sum()) != rows:
        raise ContractError(
            op, f"the loads add up to {int(load.sum())}, and there are {rows} rows", "count every row once"
        )


def _cast(*factors: Tensor) -> tuple[Tensor, ...]:
    """As autocast has it, which knows nothing of grouped products."""
    device = factors[0].device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        return tuple(x.to(dtype) for x in factors)
    return factors


def _reads_loads(x: Tensor) -> bool:
    """Whether reading the loads in Python costs little: no gradient is wanted, no device is waited for, no graph broken."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _choice(x: Tensor, *widths: int) -> tuple[Own, str]:
    """mmkit's own, and why."""
    own = _own(x.device, x.dtype, *widths)
    # The Triton kernels take the widths that torch's grouped product takes.
    return ("triton", own) if x.is_cuda and not why_not(x.dtype, *widths) else own, _REASONS[own]


def _own(device: torch.device, dtype: torch.dtype, *widths: int) -> str:
    if device.type not in DEVICES or why_not(dtype, *widths):
        return "reference"
    # What torch says of the shapes of grouped products when it compiles covers bfloat16 only.
    if dtype != torch.bfloat16 and torch.compiler.is_compiling():
        return "reference"
    return "grouped" if device.type != "cuda" or capability(device) >= CAPABILITY else "reference"
