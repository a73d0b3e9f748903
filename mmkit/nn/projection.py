"""The output layers of a head: a linear layer, or an MLP of some depth."""

from __future__ import annotations

from torch import Tensor, nn

from mmkit.nn.linear import Linear


def hidden_layers(dim: int, width: int, count: int) -> nn.Sequential:
    """`count` times linear, GELU: ``dim`` to ``width``; nothing where `count` is 0."""
    layers: list[nn.Module] = []
    for index in range(count):
        layers += [Linear(dim if index == 0 else width, width), nn.GELU()]
    return nn.Sequential(*layers)


class Projection(nn.Module):
    """Hidden states to vectors through `depth` linear layers with GELU between them.

    The last layer starts at zero, so that an untrained head predicts the mean of what it learns.

    Args:
        dim: width of the hidden states.
        out: width of the vectors.
        depth: number of linear layers.
        width: width of the layers between; None takes `dim`.
    """

    def __init__(self, dim: int, out: int, *, depth: int = 1, width: int | None = None) -> None:
        super().__init__()
        width = width or dim
        self.hidden = hidden_layers(dim, width, depth - 1)
        self.out = Linear(width if depth > 1 else dim, out)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., dim]`` to ``[..., out]``."""
        return self.out(self.hidden(x))
