"""The noise that heads over latents are trained on: rectified flow, and denoising diffusion in discrete time.

Shape suffix: K training steps.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mmkit.contracts.sampler import Level, Process
from mmkit.errors import ContractError

Schedule = Literal["scaled_linear", "linear", "cosine"]
TerminalSNR = Literal["kept", "zero"]

LARGEST_BETA = 0.999
"""The bound on a step's share of noise (Nichol & Dhariwal 2021)."""


def shifted(t: Tensor, shift: float) -> Tensor:
    """Times moved towards noise: ``shift * t / (1 + (shift - 1) * t)`` (SD3, section 5.3.2)."""
    return shift * t / (1 + (shift - 1) * t)


class StraightProcess(Process):
    """Rectified flow: the time t in [0, 1] is the share of noise, ``x_t = (1 - t) x0 + t noise``."""

    clean = Level(0.0, 1.0, 0.0)
    straight = True

    def __init__(self, shift: float = 1.0) -> None:
        self.shift = shift

    def levels(self, steps: int) -> tuple[Level, ...]:
        """From 1 to 0, evenly spaced, then shifted; times are rounded to float32."""
        even = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu")
        return tuple(Level(t, 1 - t, t) for t in shifted(even, self.shift).float().tolist())


def betas(schedule: Schedule, train_steps: int) -> Tensor:
    """The share of noise ``[K]`` (float64) each training step adds, on the CPU.

    The linear ones were made for 1000 steps; for others they are multiplied by ``1000 / train_steps`` (Nichol & Dhariwal
    2021), so that as much noise is there in the end.
    """
    here = {"dtype": torch.float64, "device": "cpu"}
    if schedule == "cosine":
        phase = (torch.arange(train_steps + 1, **here) / train_steps + 0.008) / 1.008
        kept = (phase * (math.pi / 2)).cos().square()
        added = 1 - kept[1:] / kept[:-1]
    elif schedule == "linear":
        added = torch.linspace(1e-4, 0.02, train_steps, **here) * (1000 / train_steps)
    else:
        added = torch.linspace(0.00085**0.5, 0.012**0.5, train_steps, **here).square() * (1000 / train_steps)
    return added.clamp_max(LARGEST_BETA)


def alphas_cumprod(schedule: Schedule, train_steps: int, terminal_snr: TerminalSNR = "kept") -> Tensor:
    """``abar`` of every time, ``[K]`` in float64 on the CPU; with ``zero`` the last is 0 (Lin et al. 2023, algorithm 1)."""
    abar_K = (1 - betas(schedule, train_steps)).cumprod(0)
    if terminal_snr == "kept":
        return abar_K
    root_K = abar_K.sqrt()
    return ((root_K - root_K[-1]) * root_K[0] / (root_K[0] - root_K[-1])).square()


class DiscreteProcess(Process):
    """Diffusion at whole times 0 .. K - 1, the last one noisiest: ``x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise``.

    The clean end is time -1, where abar is 1.
    """

    clean = Level(-1.0, 1.0, 0.0)

    def __init__(self, abar_K: Tensor) -> None:
        """`abar_K` is the cumulated product of the schedule, in float64."""
        self.trained = tuple(Level(float(t), math.sqrt(a), math.sqrt(1 - a)) for t, a in enumerate(abar_K.tolist()))

    def levels(self, steps: int) -> tuple[Level, ...]:
        """Evenly spaced down from the last time, which is the only one where all is noise (Lin et al. 2023: trailing)."""
        count = len(self.trained)
        if steps > count:
            raise ContractError(
                "steps", f"{steps} steps of sampling are more than the {count} times of training",
                f"set steps to {count} or less, or raise train_steps",
            )  # fmt: skip
        return (*(self.trained[round(count * (steps - i) / steps) - 1] for i in range(steps)), self.clean)
