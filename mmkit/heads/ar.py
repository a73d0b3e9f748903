"""Next-token prediction over a joint vocabulary.

Shape suffixes: S tokens of one call, D backbone width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmkit.contracts.head import Head
from mmkit.contracts.options import Count, Fraction, Guidance, NonNegative, Size
from mmkit.contracts.port import Needs, TargetPort
from mmkit.contracts.values import Feed, Prepared, Request, Targets, TokenLoss
from mmkit.contracts.vocabulary import MARKS
from mmkit.errors import CheckpointError, ContractError
from mmkit.nn.codes import CodeOutput, Wanted, joint_vocabulary
from mmkit.nn.sampling import Warp, draw


@dataclass(frozen=True)
class ARState:
    """One span being written: the ids found so far, in the head's vocabulary."""

    request: Request
    ids: tuple[int, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether the last id is the end mark."""
        return bool(self.ids) and self.ids[-1] == self.request.end

    @property
    def done(self) -> bool:
        """True after the end mark, or once the grid (an open span: its ``max_tokens``) is full."""
        return self.ended or len(self.ids) >= self.request.count

    @property
    def progress(self) -> float:
        """The share of the span's tokens that are known."""
        return 1.0 if self.ended else len(self.ids) / max(1, self.request.count)


class AR(Head[ARState]):
    """One softmax over the codes of all its streams and the marks; each token is predicted at the one before it."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Options:
            depth: linear layers of the output; 2 is linear, GELU, linear (Janus' image head).
            dim: width between those layers; the backbone's where not given.
            tied: output weights are the streams' embedding tables.
            label_smoothing: share of the target spread evenly over the vocabulary.
            z_loss: weight of the squared log of the softmax normaliser (PaLM: 1e-4).
            temperature: of sampling; 0 takes the likeliest id.
            top_k: draw among the k likeliest ids only; 0 for all.
            top_p: draw among the fewest ids whose probabilities sum to this.
            guidance: classifier-free guidance on logits, before temperature and top-k.
        """

        depth: Count = 1
        dim: Count | None = None
        tied: bool = False
        label_smoothing: Fraction = 0.0
        z_loss: NonNegative = 0.0
        temperature: NonNegative = 1.0
        top_k: Size = 0
        top_p: Fraction = 1.0
        guidance: Guidance | None = None

    needs = Needs(spaces=frozenset({"codes"}), attends=("causal",))
    shift = -1

    def __init__(self, config: Config, targets: Sequence[TargetPort], marks: int, dim: int) -> None:
        """Raises `ContractError` where options do not go together, or a stream has several codes per position."""
        super().__init__(config, targets, marks, dim)
        if config.tied and config.depth > 1:
            raise ContractError(
                "tied", f"embedding tables can be the weights of one layer, and depth is {config.depth}",
                "set depth to 1, or leave `tied` out", rule="head.tied",
            )  # fmt: skip
        if config.depth == 1 and config.dim is not None:
            raise ContractError(
                "dim", "it is the width between layers, and depth is 1", "set depth to 2 or more, or leave `dim` out"
            )
        self.config = config
        self.tied = config.tied
        self.guidance = config.guidance
        self.vocabulary = joint_vocabulary(targets, marks)
        self.output = CodeOutput(self.vocabulary, dim, depth=config.depth, width=config.dim, tied=config.tied)

    def tie(self, tables: dict[str, Tensor]) -> None:
        """Use the given embedding tables ``[size, D]``, by vocabulary owner, as output weights.

        Call again whenever the tables are replaced by other tensors (`to_empty`, sharding). Raises `ContractError` where a
        slice has no table, or one of another shape.
        """
        self.output.tie(tables)

    def from_published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A language model's output matrix ``weight [rows, D]``: its rows are the codes of the streams, in their order.

        Marks, of which it knows nothing, keep the weights they have. Raises `CheckpointError` where the rows are not as many
        as the codes.
        """
        if tensors.keys() != {"weight"} or self.tied or self.config.depth > 1:
            return tensors
        codes = [piece for piece in self.vocabulary.slices if piece.owner != MARKS]
        rows, count = len(tensors["weight"]), sum(piece.size for piece in codes)
        if rows != count:
            raise CheckpointError(
                "head ar", f"the published matrix has {rows} rows, and the streams have {count} codes",
                "give the tokenizer as many codes as the matrix has rows, where it has the option",
            )  # fmt: skip
        parts = tensors["weight"].split([piece.size for piece in codes])
        named = {f"output.weight.{piece.owner}": part.clone() for piece, part in zip(codes, parts, strict=True)}
        return {**self.state_dict(), **named}

    def prepare(self, targets: Targets) -> Prepared:
        """The backbone sees the ids, every one of which must be predicted."""
        weight_S = torch.ones(len(targets.tokens), device=targets.tokens.device)
        return Prepared(Feed(targets.tokens), targets.tokens, weight_S)

    def predict(self, hidden_SD: Tensor) -> Tensor:
        """Hidden states of the tokens before to logits ``[S, V]``."""
        return self.output(hidden_SD)

    def loss(self, hidden_SD: Tensor, prepared: Prepared) -> TokenLoss:
        """Cross-entropy of each token, in nats, over the whole vocabulary."""
        config = self.config
        return self.output.loss(hidden_SD, prepared, smoothing=config.label_smoothing, z_loss=config.z_loss)

    def begin(self, request: Request) -> ARState:
        """An empty span."""
        return ARState(request)

    def feed(self, state: ARState) -> Feed | None:
        """The id found last; None before the first, and after the end mark, which the sequence writes itself.

        A span that is done has one id that the backbone has not read yet: ask once more where something follows it.
        """
        if not state.ids or state.ended:
            return None
        return Feed(torch.tensor(state.ids[-1:], device=state.request.device))

    def step(self, state: ARState, prediction: Tensor) -> ARState:
        """One more id from logits ``[1, V]``: a code of the wanted stream or, in an open span, its end mark."""
        wanted = Wanted.by(state.request, self.vocabulary)
        how = Warp.of(self.config, state.request.sampling)
        found = wanted.ids(draw(wanted.logits(prediction), how, state.request.generator))
        return replace(state, ids=(*state.ids, int(found)))

    def finish(self, state: ARState) -> Tensor:
        """Ids ``[*grid]`` in the head's vocabulary; open spans ``[n]`` without the end mark."""
        request = state.request
        ids = torch.tensor(state.ids[:-1] if state.ended else state.ids, dtype=torch.long, device=request.device)
        return ids if request.end is not None else ids.reshape(request.grid)
