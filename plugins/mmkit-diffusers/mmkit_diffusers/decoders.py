"""Transformers of diffusers as one function: the velocity of noised latents, given a sequence to attend to.

Each class has arguments, a time and a sign of its own. Here the time t in [0, 1] is the noise level, ``x_t = (1 - t) x0 + t
noise``, and the velocity is ``noise - x0``.

Shape suffixes: B images of one size, H and W height and width of the latents, C their channels, Q queries, E width of the
condition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmkit.errors import ContractError
from mmkit_diffusers.wrapped import Described

STEPS = 1000
"""Training steps in whose number most of these models count time."""

Call = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Signature:
    """How a class is told what to attend to, and called.

    `condition` is the key of its config for the width of what it attends to, `pooled` that for the width of one vector that
    modulates it, where it has one. `limits` gives, for a config, the most rows and columns of patches, and of queries (None:
    any number). `idle` names parameters that its output does not depend on, for a config.
    """

    condition: str
    call: Call
    pooled: str | None = None
    refused: tuple[str, ...] = ()
    limits: Callable[[Any], tuple[int | None, int | None]] = lambda config: (None, None)
    idle: Callable[[Any], tuple[str, ...]] = lambda config: ()


def _sana(model: nn.Module, x: Tensor, t: Tensor, condition: Tensor, pooled: Tensor | None) -> Tensor:
    return model(x, condition, timestep=t * STEPS * model.config.timestep_scale, return_dict=False)[0]


def _sd3(model: nn.Module, x: Tensor, t: Tensor, condition: Tensor, pooled: Tensor | None) -> Tensor:
    return model(x, condition, pooled_projections=pooled, timestep=t * STEPS, return_dict=False)[0]


def _lumina2(model: nn.Module, x: Tensor, t: Tensor, condition: Tensor, pooled: Tensor | None) -> Tensor:
    """Lumina's time is the share of data, and its velocity leads from noise to data."""
    every = condition.new_ones(condition.shape[:2], dtype=bool)
    return -model(x, 1 - t, condition, encoder_attention_mask=every, return_dict=False)[0]


DECODERS = {
    "SanaTransformer2DModel": Signature("caption_channels", _sana, refused=("guidance_embeds",)),
    "SD3Transformer2DModel": Signature(
        "joint_attention_dim", _sd3, "pooled_projection_dim",
        limits=lambda config: (config.pos_embed_max_size, None),
        # What the last block asks in the name of its condition is thrown away.
        idle=lambda config: tuple(f"transformer_blocks.{config.num_layers - 1}.attn.{n}" for n in ("add_q_proj", "norm_added_q")),
    ),
    "Lumina2Transformer2DModel": Signature(
        "cap_feat_dim", _lumina2, limits=lambda config: (min(config.axes_lens[1:]), config.axes_lens[0] - 1)
    ),
}  # fmt: skip


class LatentDecoder(nn.Module):
    """One transformer of diffusers behind one signature.

    Args:
        described: its class and options. Channels are those of the latents; the width of what it attends to is `width` where
            the config does not say it.
        channels: of the latents.
        width: of what it attends to, unless its config gives one.
        queries: how many it attends to.

    Raises `ContractError` where the config says something else, or the class cannot take it.
    """

    def __init__(self, described: Described, channels: int, width: int, queries: int) -> None:
        super().__init__()
        signature = DECODERS[described.name]
        for key in signature.refused:
            if described.options.get(key):
                raise ContractError(
                    f"{described.place}.{key}", f"{described.name} with {key} is not wrapped", "leave it out"
                )
        self.width = int(described.options.get(signature.condition) or width)
        self.model = described.build(
            **{"in_channels": channels, "out_channels": channels, signature.condition: self.width}
        )
        self.call = signature.call
        config = self.model.config
        self.pool = nn.Linear(self.width, config[signature.pooled]) if signature.pooled else None
        self.patch = config.patch_size
        self.most, most_queries = signature.limits(config)
        if most_queries is not None and queries > most_queries:
            fact = f"{queries} queries, and {described.name} of this config has positions for {most_queries}"
            raise ContractError("queries", fact, "take fewer, or raise `axes_lens`")
        for name in signature.idle(config):
            if name.rpartition(".")[2] in dict(self.model.get_submodule(name.rpartition(".")[0]).named_children()):
                self.model.get_submodule(name).requires_grad_(False)

    def check(self, grid: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of latents of this grid; of one axis, a row.

        Raises `ContractError` on three axes, on sizes that its patches do not divide, and on those it has no positions for.
        """
        place = type(self.model).__name__
        if len(grid) > 2:
            raise ContractError(
                place, f"it draws images, and latents of {len(grid)} axes are another thing", "use head `flow`"
            )
        height, width = (1, *grid)[-2:]
        if height % self.patch or width % self.patch:
            raise ContractError(
                place, f"latents of {height} x {width} do not divide by its patches of {self.patch} x {self.patch}",
                f"set decoder.patch_size to 1, or take images whose latents divide by {self.patch}",
            )  # fmt: skip
        if self.most is not None and max(height, width) > self.most * self.patch:
            fact = (
                f"latents of {height} x {width} are larger than it has positions for ({self.most * self.patch} a side)"
            )
            raise ContractError(place, fact, "take smaller images, or raise `pos_embed_max_size` or `axes_lens`")
        return height, width

    def forward(self, x_BHWC: Tensor, t_B: Tensor, condition_BQE: Tensor) -> Tensor:
        """The velocity of noised latents at noise levels `t_B` (float32, in [0, 1]), given what to attend to."""
        pooled = None if self.pool is None else self.pool(condition_BQE.mean(dim=1))
        x_BCHW = x_BHWC.to(condition_BQE.dtype).movedim(-1, 1).contiguous()
        return self.call(self.model, x_BCHW, t_B, condition_BQE, pooled).movedim(1, -1)
