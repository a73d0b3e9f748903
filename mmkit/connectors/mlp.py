"""`mlp`: a small network per token, with neighbours merged into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor, nn

from mmkit.contracts.connector import Connector
from mmkit.contracts.options import Count, Positive
from mmkit.contracts.port import Port, Space
from mmkit.nn.grid import AxisTables, SinCos, add_positions, fold_grid, fold_of, folded, folded_port, unfold_grid
from mmkit.nn.linear import Linear

ACTIVATIONS = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "relu": nn.ReLU,
}
NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


class MLP(Connector):
    """Linear layers with an activation between them, after merging neighbours into channels.

    The projector of LLaVA-1.5 (``depth: 2``), of InternVL (``merge: 2, norm: layer, norm_over: merged``), of Qwen2-VL
    (``merge: 2, norm: layer, hidden: source``) and of BAGEL (``activation: gelu_tanh, position: sincos``).

    Merged channels run as (row in the neighbourhood, column, channel). That is the order of InternVL's pixel shuffle and of
    Qwen2-VL's merger; Qwen2-VL's own image processor hands tokens over neighbourhood by neighbourhood, whereas a grid here
    is always row-major, and so are the tokens that come out.
    """

    takes: ClassVar[frozenset[Space]] = frozenset({"latents", "features"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `mlp`.

        Options:
            depth: linear layers; 1 is a single projection.
            merge: neighbours merged along height and along width, so one token stands for ``merge * merge``; along the only
                axis of what has one (sound).
            activation: between the layers; ``gelu_tanh`` is the tanh approximation.
            hidden: width between the layers: ``backbone`` (LLaVA, InternVL), ``source`` (that of what enters, neighbours
                included: Qwen2-VL), or a number.
            norm: of what enters, before the first layer.
            norm_over: ``feature`` norms each feature before merging (Qwen2-VL), ``merged`` the merged ones together (InternVL).
            norm_eps: added to the variance.
            bias: whether the layers add a bias.
            position: what is added after the last layer: nothing, ``sincos``, the fixed table of MAE and DiT counted from the
                corner (BAGEL), or ``learned``, a table per axis.
            max_grid: longest side, in tokens, that ``learned`` positions are made for.
        """

        depth: Count = 2
        merge: Count = 1
        activation: Literal["gelu", "gelu_tanh", "silu", "relu"] = "gelu"
        hidden: Count | Literal["backbone", "source"] = "backbone"
        norm: Literal["none", "layer", "rms"] = "none"
        norm_over: Literal["feature", "merged"] = "feature"
        norm_eps: Positive = 1e-6
        bias: bool = True
        position: Literal["none", "sincos", "learned"] = "none"
        max_grid: Count = 64

    def __init__(self, config: Config, source: Port, dim: int) -> None:
        super().__init__()
        self.merge = fold_of(source, config.merge)
        self.port = folded_port(source, self.merge, "merge")
        width = self.port.width
        hidden = {"backbone": dim, "source": width}.get(config.hidden, config.hidden)
        widths = [width, *[hidden] * (config.depth - 1), dim]
        self.norm_width = source.width if config.norm_over == "feature" else width
        self.norm = NORMS[config.norm](self.norm_width, eps=config.norm_eps) if config.norm in NORMS else None
        self.layers = nn.ModuleList(Linear(i, o, bias=config.bias) for i, o in pairwise(widths))
        self.activation = ACTIVATIONS[config.activation]()
        self.positions: AxisTables | SinCos | None = None
        if config.position != "none":
            self.positions = (
                SinCos(dim) if config.position == "sincos" else AxisTables(source.axes, config.max_grid, dim)
            )
        self.whole = self.positions is not None

    def grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The grid with its last two axes, or its only one, divided by `merge`.

        Raises `ContractError` where it has no positions.
        """
        merged = folded(grid, self.merge, "merge")
        if self.positions is not None:
            self.positions.check(merged)
        return merged

    def fold(self, x: Tensor) -> Tensor:
        """``[..., H, W, C]`` to ``[..., H/m, W/m, m*m*C]``."""
        return fold_grid(x, self.merge, "merge") if self.merge != 1 else x

    def unfold(self, x: Tensor) -> Tensor:
        """``[..., H/m, W/m, m*m*C]`` to ``[..., H, W, C]``."""
        return unfold_grid(x, self.merge) if self.merge != 1 else x

    def forward(self, x: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
        """Folded vectors ``[S, m*m*C]`` to ``[S, D]``. With positions, `grids` must account for every token."""
        if self.norm is not None:
            x = self.norm(x.unflatten(-1, (-1, self.norm_width))).flatten(-2)
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return add_positions(self.layers[-1](x), self.positions, grids)
