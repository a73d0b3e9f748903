"""A book of code vectors: lookup, losses, updates, revival.

Vector quantization of van den Oord et al. 2017 (arXiv 1711.00937); codes moved by exponential averages as in its appendix
or by gradients as in VQGAN; l2-normalised codes of ViT-VQGAN (Yu et al. 2022, arXiv 2110.04627).

Shape suffixes: N vectors, C channels, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from mmkit.kernels.vq import nearest_code


@dataclass(frozen=True)
class Quantized:
    """`vectors_NC` in the codes' place, with gradients to the input; `codes_N`; weighted scalar losses; figures to log."""

    vectors_NC: Tensor
    codes_N: Tensor
    losses: dict[str, Tensor]
    figures: dict[str, float]


def pass_straight(x_NC: Tensor, q_NC: Tensor) -> Tensor:
    """`q_NC`, bit for bit, with the gradient going to `x_NC` unchanged (Bengio et al. 2013)."""
    return q_NC.detach() + (x_NC - x_NC.detach())


def pass_rotated(x_NC: Tensor, q_NC: Tensor) -> Tensor:
    """`q_NC`, bit for bit, with the gradient turned and scaled as `x_NC` must be to become it (arXiv 2410.06424, §4.2)."""
    norm_x_N1 = x_NC.detach().norm(dim=1, keepdim=True).clamp_min(1e-12)
    norm_q_N1 = q_NC.detach().norm(dim=1, keepdim=True)
    from_NC, to_NC = x_NC.detach() / norm_x_N1, F.normalize(q_NC.detach(), dim=1)
    mirror_NC = F.normalize(from_NC + to_NC, dim=1)
    turned_NC = (
        x_NC
        - 2 * (x_NC * mirror_NC).sum(1, keepdim=True) * mirror_NC
        + 2 * (x_NC * from_NC).sum(1, keepdim=True) * to_NC
    )
    return pass_straight(turned_NC * (norm_q_N1 / norm_x_N1), q_NC)


def usage(counts_K: Tensor) -> dict[str, float]:
    """How a batch uses the book: the share of codes that occur, and the perplexity of their distribution."""
    share_K = counts_K.double() / counts_K.sum().clamp_min(1)
    entropy = -(share_K * share_K.clamp_min(1e-30).log()).sum()
    return {"codebook_use": (counts_K > 0).double().mean().item(), "perplexity": entropy.exp().item()}


def all_ranks() -> bool:
    """True where other processes hold the rest of the batch."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class Codebook(nn.Module):
    """`size` vectors of `dim` channels.

    `update` says who moves them: ``ema``, exponential averages with `decay` of the vectors each code stood for; or
    ``gradient``, a loss that pulls them to those vectors. `commitment` weighs the loss that pulls vectors to their codes.
    ``normalize="l2"`` compares directions only. In training, a code that stood for nothing in `revive_after` steps (0:
    never) is put where a random vector of the batch lies; since no code has been used before the first step, it seeds
    the whole book. All ranks of a sharded run keep one book: counts and sums are those of the whole batch, and revived
    codes come from the first rank's share of it.
    """

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        normalize: Literal["none", "l2"],
        update: Literal["ema", "gradient"],
        decay: float,
        commitment: float,
        estimator: Literal["straight_through", "rotation"],
        revive_after: int,
    ) -> None:
        super().__init__()
        self.normalize, self.decay, self.commitment, self.revive_after = normalize, decay, commitment, revive_after
        self.pass_gradient = {"straight_through": pass_straight, "rotation": pass_rotated}[estimator]
        vectors_KC = F.normalize(torch.randn(size, dim), dim=1)
        if normalize == "none":
            vectors_KC = torch.empty(size, dim).uniform_(-1 / size, 1 / size)
        self.averages = update == "ema"
        if self.averages:
            self.register_buffer("vectors", vectors_KC)
            self.register_buffer("mass", torch.ones(size))
            self.register_buffer("total", vectors_KC.clone())
        else:
            self.vectors = nn.Parameter(vectors_KC)
        self.register_buffer("idle", torch.full((size,), revive_after))

    def table(self) -> Tensor:
        """The vectors ``[K, C]`` as they are compared and given out."""
        return F.normalize(self.vectors, dim=1) if self.normalize == "l2" else self.vectors

    def embed(self, codes: Tensor) -> Tensor:
        """The vectors ``[..., C]`` behind codes ``[...]``."""
        return F.embedding(codes.to(self.vectors.device), self.table())

    def lookup(self, x_NC: Tensor) -> Tensor:
        """The codes ``[N]`` of vectors ``[N, C]``."""
        return nearest_code(self._prepare(x_NC), self.table())

    def forward(self, x_NC: Tensor) -> Quantized:
        """Quantizes; in training mode also moves and revives codes."""
        x_NC = self._prepare(x_NC)
        # Before the table is read: autograd keeps what it has read, so nothing may move it until the next call.
        if self.training and self.revive_after:
            self._revive(x_NC.detach())
        table_KC = self.table()
        codes_N = nearest_code(x_NC, table_KC)
        q_NC = F.embedding(codes_N, table_KC)
        losses = {"commitment": self.commitment * _mean_square(x_NC, q_NC.detach())}
        if not self.averages:
            losses["codebook"] = _mean_square(q_NC, x_NC.detach())
        counts_K = torch.bincount(codes_N, minlength=len(table_KC))
        if self.training:
            counts_K = self._learn(x_NC.detach(), codes_N, counts_K)
        return Quantized(self.pass_gradient(x_NC, q_NC), codes_N, losses, usage(counts_K))

    def _prepare(self, x_NC: Tensor) -> Tensor:
        x_NC = x_NC.to(self.vectors.dtype)
        return F.normalize(x_NC, dim=1) if self.normalize == "l2" else x_NC

    @torch.no_grad()
    def _learn(self, x_NC: Tensor, codes_N: Tensor, counts_K: Tensor) -> Tensor:
        """Moves the averages and the idle counts; returns the counts of the whole batch."""
        if all_ranks():
            distributed.all_reduce(counts_K)
        if self.averages:
            sums_KC = torch.zeros_like(self.total).index_add_(0, codes_N, x_NC)
            if all_ranks():
                distributed.all_reduce(sums_KC)
            self.mass.lerp_(counts_K.to(self.mass), 1 - self.decay)
            self.total.lerp_(sums_KC, 1 - self.decay)
            # Laplace smoothing: a code that has faded is not divided by zero.
            mass, size, smooth = self.mass.sum(), len(self.mass), 1e-5
            smooth_K = (self.mass + smooth) / (mass + size * smooth) * mass
            moved_KC = self.total / smooth_K[:, None]
            self.vectors.copy_(F.normalize(moved_KC, dim=1) if self.normalize == "l2" else moved_KC)
        self.idle.add_(1).masked_fill_(counts_K > 0, 0)
        return counts_K

    @torch.no_grad()
    def _revive(self, x_NC: Tensor) -> None:
        """Puts codes that have been idle too long where vectors of this batch lie, each vector taken at most once."""
        dead_n = (self.idle >= self.revive_after).nonzero().flatten()
        if len(dead_n) == 0:
            return
        picks_n = torch.randperm(len(x_NC))[: len(dead_n)]
        fresh_nC = self.vectors.new_zeros(len(dead_n), self.vectors.shape[1])
        fresh_nC[: len(picks_n)] = x_NC[picks_n.to(x_NC.device)]
        found = torch.tensor(len(picks_n), device=x_NC.device)
        if all_ranks():
            distributed.broadcast(fresh_nC, 0)
            distributed.broadcast(found, 0)
        dead_n, fresh_nC = dead_n[: found.item()], fresh_nC[: found.item()]
        self.vectors[dead_n] = fresh_nC
        self.idle[dead_n] = 0
        if self.averages:
            self.mass[dead_n] = 1.0
            self.total[dead_n] = fresh_nC


def _mean_square(x_NC: Tensor, y_NC: Tensor) -> Tensor:
    """Zero for an empty batch rather than 0 / 0."""
    return (x_NC - y_NC).square().sum() / max(1, x_NC.numel())
