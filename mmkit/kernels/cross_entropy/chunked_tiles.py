"""Tiles of logits in plain torch.

Shape suffixes: S tokens, D width, V codes of one slice; s tokens and v codes of one tile.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CPU_TILE = (512, 2048)
"""Tokens and codes on a CPU: 4 MiB of float32, which the caches keep between the steps. Among the fastest of 128 .. 2048 by
512 .. 4096."""
TILE = (4096, 16384)
"""The same on other devices, where fewer and larger steps are better."""


class TorchTiles:
    """See `tiled.Tiles`. Logits are made in the dtype of the hidden states, then float32, as `plain` does."""

    def __init__(self) -> None:
        self._room: Tensor | None = None

    def extent(self, x_SD: Tensor) -> tuple[int, int]:
        """Tokens and codes of a tile."""
        return CPU_TILE if x_SD.device.type == "cpu" else TILE

    def sums(self, x_SD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, ids_S: Tensor, target_S: Tensor) -> Tensor:
        """``logsumexp [S]``, and the targets."""
        rows, codes = self.extent(x_SD)
        lse_S = torch.full_like(target_S, float("-inf"))
        for v in range(0, len(weight_VD), codes):
            weight_vD, bias_v = weight_VD[v : v + codes], None if bias_V is None else bias_V[v : v + codes]
            for s in range(0, len(x_SD), rows):
                own = slice(s, s + rows)
                logits_sv = self._logits(x_SD[own], weight_vD, bias_v, target_S.dtype)
                here_s, place_s = _found(ids_S[own] - v, len(weight_vD))
                found_s = logits_sv.gather(1, place_s[:, None])[:, 0]
                target_S[own] = torch.where(here_s, found_s, target_S[own])
                top_s = logits_sv.amax(1)
                part_s = logits_sv.sub_(top_s[:, None]).exp_().sum(1).log_().add_(top_s)
                lse_S[own] = torch.logaddexp(lse_S[own], part_s)
        return lse_S

    def gradient(
        self, x_sD: Tensor, weight_vD: Tensor, bias_v: Tensor | None, ids_s: Tensor, lse_s: Tensor, grads: Sequence[Tensor]
    ) -> Tensor:  # fmt: skip
        """``[s, v]``."""
        logits_sv = self._logits(x_sD, weight_vD, bias_v, lse_s.dtype)
        dl_sv = logits_sv.sub_(lse_s[:, None]).exp_().mul_(grads[0][:, None])
        here_s, place_s = _found(ids_s, len(weight_vD))
        extra_s1 = torch.where(here_s, grads[1], 0)[:, None]
        dl_sv.scatter_(1, place_s[:, None], dl_sv.gather(1, place_s[:, None]) + extra_s1)
        for by_mean_s in grads[2:]:
            dl_sv += by_mean_s[:, None]
        return dl_sv.to(x_sD.dtype)

    def _logits(self, x_sD: Tensor, weight_vD: Tensor, bias_v: Tensor | None, dtype: torch.dtype) -> Tensor:
        """In one piece of memory for all tiles, which stays in the caches."""
        if x_sD.dtype != dtype:
            return F.linear(x_sD, weight_vD, bias_v).to(dtype)
        shape = len(x_sD), len(weight_vD)
        if self._room is None or self._room.numel() < shape[0] * shape[1]:
            self._room = x_sD.new_empty(shape[0] * shape[1])
        out = self._room[: shape[0] * shape[1]].view(shape)
        if bias_v is None:
            return torch.mm(x_sD, weight_vD.T, out=out)
        return torch.addmm(bias_v, x_sD, weight_vD.T, out=out)


def _found(ids_s: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which ids are in ``0 .. count``, and a place for each."""
    return (ids_s >= 0) & (ids_s < count), ids_s.clamp(0, count - 1)
