"""Predicting codes: a joint vocabulary's logits, one block of weights per slice, and their cross-entropy.

Shape suffixes: S tokens, D width, V vocabulary, W choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmkit.contracts.port import TargetPort
from mmkit.contracts.values import Prepared, Request, TokenLoss
from mmkit.contracts.vocabulary import MARKS, Slice, Vocabulary
from mmkit.errors import ContractError
from mmkit.kernels.cross_entropy import linear_cross_entropy
from mmkit.kernels.linear import linear
from mmkit.nn.projection import hidden_layers


def joint_vocabulary(targets: Sequence[TargetPort], marks: int) -> Vocabulary:
    """One slice per target stream in order, then the marks, if any.

    Raises `ContractError` on a stream without codes, and on one with several codes at a position.
    """
    sizes = []
    for target in targets:
        size = target.port.codebook_size
        if target.port.space != "codes" or size is None:
            raise ContractError(
                f"streams.{target.stream}", f"this head predicts codes, and the stream carries {target.port}",
                "take a tokenizer that gives codes (vq, fsq, bytes), or a head for latents such as flow", rule="head.space",
            )  # fmt: skip
        if target.port.codebooks > 1:
            raise ContractError(
                f"streams.{target.stream}",
                f"{target.port.codebooks} codes stand at each position, and this head predicts one",
                "take a head that predicts several codes per position, or a tokenizer with one codebook",
                rule="head.codebooks",
            )
        sizes.append((target.stream, size))
    return Vocabulary.lay_out([*sizes, (MARKS, marks)] if marks else sizes)


@dataclass(frozen=True)
class Wanted:
    """What may stand in a requested span: its stream's codes and, in an open span, the end mark (as the last choice)."""

    piece: Slice
    end: int | None

    @classmethod
    def by(cls, request: Request, vocabulary: Vocabulary) -> Wanted:
        """The choices of one request."""
        return cls(vocabulary.of(request.stream), request.end)

    def logits(self, logits_SV: Tensor) -> Tensor:
        """The logits ``[S, W]`` of the choices, in float32 on the CPU."""
        logits_SW = logits_SV[:, self.piece.offset : self.piece.stop]
        if self.end is not None:
            logits_SW = torch.cat([logits_SW, logits_SV[:, self.end : self.end + 1]], dim=-1)
        return logits_SW.detach().to("cpu", torch.float32)

    def ids(self, choice_S: Tensor) -> Tensor:
        """The ids of choices."""
        ids_S = choice_S + self.piece.offset
        return ids_S if self.end is None else torch.where(choice_S == self.piece.size, self.end, ids_S)


class CodeOutput(nn.Module):
    """Hidden states to logits over a joint vocabulary.

    Every slice has a block of weights of its own, so that a slice keeps its initial weights and its name in a checkpoint
    when another stream joins after it. One layer has no bias, as the language models' heads; deeper ones have biases, as
    Janus' image head (linear, GELU, linear). With `tied`, the blocks are embedding tables given later by `tie`.

    Args:
        vocabulary: the slices, in the order of the logits.
        dim: width of the hidden states.
        depth: number of linear layers.
        width: width of the layers between; None takes `dim`.
        tied: whether there are no weights here until `tie`.
    """

    def __init__(
        self, vocabulary: Vocabulary, dim: int, *, depth: int = 1, width: int | None = None, tied: bool = False
    ) -> None:
        super().__init__()
        assert depth == 1 or not tied
        self.vocabulary = vocabulary
        self.dim = (width or dim) if depth > 1 else dim
        self.hidden = hidden_layers(dim, width or dim, depth - 1)
        self.weight = nn.ParameterDict()
        self.bias = nn.ParameterDict()
        # A plain dictionary: the tables belong to the connectors, and must not be counted or saved twice.
        self.tables: dict[str, Tensor] = {}
        for piece in () if tied else vocabulary.slices:
            self.weight[piece.owner] = nn.Parameter(nn.init.normal_(torch.empty(piece.size, self.dim), std=0.02))
            if depth > 1:
                self.bias[piece.owner] = nn.Parameter(torch.zeros(piece.size))

    def tie(self, tables: dict[str, Tensor]) -> None:
        """Use embedding tables ``[size, D]``, by owner, as weights; again whenever the tables are replaced.

        Raises `ContractError` where a slice has no table, or one of another shape.
        """
        for piece in self.vocabulary.slices:
            shape = (piece.size, self.dim)
            table = tables.get(piece.owner)
            if table is None or tuple(table.shape) != shape:
                found = "it has none" if table is None else f"its table is {tuple(table.shape)}"
                raise ContractError(
                    "tied", f"the output weights of {piece.owner!r} need an embedding table {shape}, and {found}",
                    "use connector `embed` for that stream, or leave `tied` out", rule="head.tied",
                )  # fmt: skip
        self.tables = {piece.owner: tables[piece.owner] for piece in self.vocabulary.slices}

    def forward(self, x_SD: Tensor) -> Tensor:
        """``[S, D]`` to logits ``[S, V]``, slices end to end."""
        weights, biases = self._blocks()
        x_SD = self.hidden(x_SD)
        logits = [linear(x_SD, w, biases[i] if biases else None) for i, w in enumerate(weights)]
        return logits[0] if len(logits) == 1 else torch.cat(logits, dim=-1)

    def loss(self, x_SD: Tensor, prepared: Prepared, *, smoothing: float = 0.0, z_loss: float = 0.0) -> TokenLoss:
        """The `linear_cross_entropy` of hidden states ``[S, D]`` and what the head prepared, and its nats; no logits are kept."""
        x_SD, (weights, biases) = self.hidden(x_SD), self._blocks()
        value_S, nats_S = linear_cross_entropy(
            x_SD, weights, biases, prepared.target, smoothing=smoothing, z_loss=z_loss
        )
        return TokenLoss(value_S, prepared.weight_S, prepared.level_S, nats_S, prepared.bound_S)

    def _blocks(self) -> tuple[list[Tensor], list[Tensor]]:
        """The weights of the slices and their biases, if there are any."""
        owners = [piece.owner for piece in self.vocabulary.slices]
        blocks = self.weight if len(self.weight) else self.tables
        assert len(blocks) == len(owners), "tied weights are asked for before `tie` has given them"
        return [blocks[o] for o in owners], [self.bias[o] for o in owners] if len(self.bias) else []
