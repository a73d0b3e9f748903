"""Linear cross-entropy without the matrix of logits: what `chunked` and `triton` share, two ops to `torch.compile`.

Of a token's logits three numbers are kept. The backward pass makes the logits again, for some tokens and codes at once, and
from them the gradients of these logits, which three products then spread (Cut Cross-Entropy, Wijmans et al. 2024, does the
same with its tile on the chip). Every sum has its order, so the same inputs give the same bits.

Shape suffixes: S tokens, D width, V codes of one slice; s tokens and v codes of one tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mmkit.kernels.cross_entropy import chunked_tiles, cross_entropy, wide


class Tiles(Protocol):
    """How logits are made."""

    def sums(self, x_SD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, ids_S: Tensor, target_S: Tensor) -> Tensor:
        """``logsumexp [S]`` over a slice; the logits of the ids that are in ``0 .. V`` are written to `target_S`."""
        ...

    def extent(self, x_SD: Tensor) -> tuple[int, int]:
        """Tokens and codes of a tile of the backward pass, at most."""
        ...

    def gradient(
        self, x_sD: Tensor, weight_vD: Tensor, bias_v: Tensor | None, ids_s: Tensor, lse_s: Tensor, grads: Sequence[Tensor]
    ) -> Tensor:  # fmt: skip
        """The gradient ``[s, v]`` of a tile's logits, in the dtype of `x_sD`: ``a softmax(l) + b [id] + c``, where the `grads`
        are a, b and, where the mean is asked for, c ``[s]``. The next call may write to the same memory."""
        ...


def tiled(
    how: str, x_SD: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], ids_S: Tensor,
    smoothing: float, z_loss: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The op by ``chunked`` or ``triton`` tiles. Under autocast everything is cast to its dtype first, as linear layers do."""
    device = x_SD.device.type
    # Of the meta device torch does not know whether there is autocast.
    if device != "meta" and torch.is_autocast_enabled(device) and x_SD.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x_SD, weights, biases = x_SD.to(dtype), [w.to(dtype) for w in weights], [b.to(dtype) for b in biases]
    found = linear_logsumexp(x_SD, list(weights), list(biases), ids_S, bool(smoothing), how)
    return cross_entropy(*found, smoothing, z_loss)


def tiles(how: str) -> Tiles:
    """The tiles of that name, for one pass."""
    if how == "triton":
        from mmkit.kernels.cross_entropy import triton

        return triton.TritonTiles()
    return chunked_tiles.TorchTiles()


@torch.library.custom_op("mmkit::linear_logsumexp", mutates_args=())
def linear_logsumexp(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], ids: Tensor, mean: bool, how: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token's logits ``[S]``: the logarithm of the sum of exponentials, the one of its id, and the mean (else 0)."""
    dtype = wide(x.dtype)
    target = torch.full(ids.shape, float("nan"), dtype=dtype, device=x.device)
    if not len(x):
        return target.clone(), target, target.clone()
    by, parts, first = tiles(how), [], 0
    with torch.autocast(x.device.type, enabled=False):
        for weight, bias in _slices(weights, biases):
            parts.append(by.sums(x, weight, bias, ids - first, target))
            first += len(weight)
        # The mean is linear in the hidden states: no logit is needed.
        middle = _mean(x.to(dtype), weights, biases, first) if mean else torch.zeros_like(target)
    return parts[0] if len(parts) == 1 else torch.stack(parts).logsumexp(0), target, middle


@linear_logsumexp.register_fake
def _(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], ids: Tensor, mean: bool, how: str) -> Any:
    return tuple(x.new_empty(ids.shape, dtype=wide(x.dtype)) for _ in range(3))


def _mean(x_SD: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], count: int) -> Tensor:
    sum_D = sum(weight.sum(0, dtype=x_SD.dtype) for weight in weights)
    return (x_SD @ sum_D + sum(bias.sum(dtype=x_SD.dtype) for bias in biases)) / count


def _slices(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Any:
    return zip(weights, biases or [None] * len(weights), strict=True)


@torch.library.custom_op("mmkit::linear_logsumexp_backward", mutates_args=())
def _backward(
    grads: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], ids: Tensor, lse: Tensor,
    wanted: Sequence[bool], how: str,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:  # fmt: skip
    """The gradients of those hidden states, weights and biases that are `wanted`; empty for the others."""
    dx, dweights, dbiases = (
        [torch.zeros(t.shape if want else 0, dtype=t.dtype, device=t.device) for t, want in zip(part, of, strict=True)]
        for part, of in zip(([x], weights, biases), _split(wanted, weights), strict=True)
    )
    if not len(x):
        return dx[0], dweights, dbiases
    grads, rows = [*grads[:2], *(grad / sum(map(len, weights)) for grad in grads[2:])], None
    if x.device.type == "cpu" and not (needed := torch.stack(grads).ne(0).any(0)).all():
        # Tokens that are not learned, such as the visible ones of a masked head. Elsewhere the question would wait for the GPU.
        rows = needed.nonzero()[:, 0]
        x, ids, lse, grads = x[rows], ids[rows], lse[rows], [grad[rows] for grad in grads]
    with torch.autocast(x.device.type, enabled=False):
        own = _spread(tiles(how), x, ids, lse, grads, list(_slices(weights, biases)), wanted[0], dweights, dbiases)
    if wanted[0]:
        dx[0] = own.to(dx[0].dtype) if rows is None else dx[0].index_copy_(0, rows, own.to(dx[0].dtype))
    return dx[0], dweights, dbiases


def _split(wanted: Sequence[bool], weights: Sequence[Tensor]) -> tuple[Sequence[bool], Sequence[bool], Sequence[bool]]:
    return wanted[:1], wanted[1 : 1 + len(weights)], wanted[1 + len(weights) :]


def _spread(
    by: Tiles, x_SD: Tensor, ids_S: Tensor, lse_S: Tensor, grads: Sequence[Tensor], slices: Sequence[Any],
    wants_x: bool, dweights: Sequence[Tensor], dbiases: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """Adds the gradients of every tile of logits to those of weights and biases, and gives that of the hidden states."""
    count, rows, codes = len(x_SD), *by.extent(x_SD)
    dx_SD = torch.zeros(x_SD.shape if wants_x else 0, dtype=wide(x_SD.dtype), device=x_SD.device)
    first = 0
    for i, (weight_VD, bias_V) in enumerate(slices):
        dbias_V = dbiases[i] if dbiases else torch.empty(0)
        for v in range(0, len(weight_VD), codes):
            weight_vD, dweight_vD = weight_VD[v : v + codes], dweights[i][v : v + codes]
            bias_v = None if bias_V is None else bias_V[v : v + codes]
            # Half types are added up in float32; a lone tile has nothing to add up.
            sum_vD = dweight_vD if count <= rows else dweight_vD.to(dx_SD.dtype)
            for s in range(0, count, rows):
                x_sD, *rest = (t[s : s + rows] for t in (x_SD, lse_S, *grads))
                ids_s = ids_S[s : s + rows] - first - v
                dl_sv = by.gradient(x_sD, weight_vD, bias_v, ids_s, rest[0], rest[1:])
                if wants_x:
                    _add(dx_SD[s : s + rows], dl_sv, weight_vD)
                if len(dweight_vD):
                    _add(sum_vD, dl_sv.T, x_sD)
                if len(dbias_V):
                    dbias_V[v : v + codes] += dl_sv.sum(0, dtype=dx_SD.dtype)
            if sum_vD is not dweight_vD:
                dweight_vD.copy_(sum_vD)
        first += len(weight_VD)
    return dx_SD


def _add(sum_: Tensor, a: Tensor, b: Tensor) -> None:
    if sum_.dtype == a.dtype:
        sum_.addmm_(a, b)
    else:
        sum_.add_(a @ b)


@_backward.register_fake
def _(
    grads: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], ids: Tensor, lse: Tensor,
    wanted: Sequence[bool], how: str,
) -> Any:  # fmt: skip
    of = _split(wanted, weights)
    dx, *others = (
        [t.new_empty(t.shape if want else 0) for t, want in zip(part, own, strict=True)]
        for part, own in zip(([x], weights, biases), of, strict=True)
    )
    return dx[0], *others


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weights, biases, ids, ctx.mean, ctx.how = inputs
    ctx.counts = len(weights), len(biases)
    ctx.save_for_backward(x, ids, output[0], *weights, *biases)


def _gradients(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    x, ids, lse, *blocks = ctx.saved_tensors
    weights, biases = blocks[: ctx.counts[0]], blocks[ctx.counts[0] :]
    needed = ctx.needs_input_grad
    wanted = [needed[0], *needed[1], *needed[2]]
    dx, *lists = _backward(list(grads[: 3 if ctx.mean else 2]), x, weights, biases, ids, lse, wanted, ctx.how)
    dweights, dbiases = (
        [t if want else None for t, want in zip(own, of, strict=True)]
        for own, of in zip(lists, _split(wanted, weights)[1:], strict=True)
    )
    return dx if needed[0] else None, dweights, dbiases, None, None, None


linear_logsumexp.register_autograd(_gradients, setup_context=_save)
