"""What moves the parameters: AdamW, and Muon for the matrices inside the backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from mmkit.compose.recipe import Train

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of one step, tuned for a steep start (Jordan et al. 2024): singular values end between 0.7 and 1.2."""


def make_optimizers(
    options: Train, trained: Mapping[str, nn.Parameter], matrices: set[str], scale: Callable[[str], float]
) -> list[Optimizer]:
    """The optimizers of a run; every parameter is in one of them. Their groups carry ``peak``, their full learning rate.

    Weights with two axes and more decay, what scales or shifts does not, nor do the marks.

    Args:
        options: of the recipe.
        trained: the parameters by name.
        matrices: the names of those that Muon moves where `options` ask for it.
        scale: the `lr_scale` of the part a name belongs to.
    """
    orthogonal = matrices & trained.keys() if options.optimizer == "muon" else set()
    optimizers: list[Optimizer] = []
    rest = {name: p for name, p in trained.items() if name not in orthogonal}
    if orthogonal:
        inside = {name: p for name, p in trained.items() if name in orthogonal}
        optimizers.append(Muon(_groups(inside, options.muon_lr, options.weight_decay, scale), options.muon_lr))
    if rest:
        betas = (options.betas[0], options.betas[1])
        optimizers.append(AdamW(_groups(rest, options.lr, options.weight_decay, scale), options.lr, betas, eps=1e-8))
    return optimizers


def _groups(
    parameters: Mapping[str, nn.Parameter], lr: float, weight_decay: float, scale: Callable[[str], float]
) -> list[dict[str, Any]]:
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in parameters.items():
        decay = weight_decay if parameter.ndim >= 2 and not name.startswith("marks") else 0.0
        groups.setdefault((lr * scale(name), decay), []).append(parameter)
    return [{"params": ps, "peak": peak, "weight_decay": d, "lr": peak} for (peak, d), ps in groups.items()]


def matrices_of(module: nn.Module) -> set[str]:
    """The names of a module's matrices: weights of linear layers, and stacks of such (experts, ``[E, out, in]``)."""
    linear = {f"{name}.weight".lstrip(".") for name, m in module.named_modules() if isinstance(m, nn.Linear)}
    return linear | {name for name, p in module.named_parameters() if p.ndim == 3}


class Muon(Optimizer):
    """Momentum whose every singular value is brought near 1 (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    Parameters are matrices ``[..., rows, columns]``; an update is scaled by ``sqrt(max(1, rows / columns))``, so that one rate
    serves all shapes and widths. `torch.optim.Muon` does the same in bfloat16 wherever it runs, which takes a CPU many
    times as long (`benchmarks/muon.py`), and one matrix at a time.
    """

    def __init__(
        self, params: Any, lr: float, *, momentum: float = 0.95, weight_decay: float = 0.0, steps: int = 5
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step on the gradients at hand; parameters without one stay."""
        for group in self.param_groups:
            alike: dict[tuple[Any, ...], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault((parameter.shape, parameter.device, parameter.dtype), []).append(parameter)
            for parameters in alike.values():
                self._move(parameters, group)

    def _move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of parameters of one shape: their matrices are multiplied together, in one call."""
        updates = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            updates.append(parameter.grad.lerp(state["momentum"], group["momentum"]))  # Nesterov's
        rows, columns = parameters[0].shape[-2:]
        rate = group["lr"] * max(1, rows / columns) ** 0.5
        for parameter, update in zip(parameters, orthogonalized(torch.stack(updates), group["steps"]), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)


def orthogonalized(x: Tensor, steps: int = 5) -> Tensor:
    """Matrices ``[..., rows, columns]`` with their singular values brought near 1, by Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    # The iteration is stable in bfloat16 (Jordan et al. 2024), which CPUs without such arithmetic are slow at.
    y = (x.bfloat16() if x.is_cuda else x.float()).reshape(-1, *x.shape[-2:])
    tall = x.shape[-2] > x.shape[-1]
    y = y.mT if tall else y
    y = y / torch.linalg.vector_norm(y, dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = y @ y.mT
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return (y.mT if tall else y).reshape(x.shape).to(x.dtype)
