"""A dense transformer: Llama, Qwen, GPT or DiT, as its options say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmkit.nn.block import Block
from mmkit.nn.sizes import Sizes
from mmkit.nn.transformer import Transformer


class Dense(Transformer):
    """Every token goes through the same weights, whatever stream it is of."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Sizes):
        __doc__ = Sizes.__doc__

    def __init__(self, config: Config, streams: Sequence[str]) -> None:
        super().__init__(config, streams, lambda layer: Block(config, layer))
