"""A mixture of transformers: weights of its own for each group of streams, one attention over all tokens.

Shape suffixes: T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mmkit.contracts.values import Condition, Packed
from mmkit.nn.block import Block, Context, Last
from mmkit.nn.cache import KVCache
from mmkit.nn.rotary import Turn
from mmkit.nn.sizes import Sizes
from mmkit.nn.split import Split, group_streams
from mmkit.nn.transformer import Transformer


class MoT(Transformer):
    """Towers that share nothing but what they see of each other (Liang et al. 2024, 2411.04996; BAGEL, 2505.14683).

    Projections, norms, modulation and MLPs are the tower's; keys and values of all towers meet in one attention. With
    one tower it is `dense`.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Sizes):
        __doc__ = (
            Sizes.__doc__
            + """    towers: the streams of each tower, by its name; default a tower for each stream.
    """
        )

        towers: dict[str, tuple[str, ...]] | None = None

    def __init__(self, config: Config, streams: Sequence[str]) -> None:
        towers = config.towers or {stream: (stream,) for stream in streams}
        groups = group_streams("towers", towers, streams)
        names = tuple(towers)
        super().__init__(
            config, streams, lambda layer: TowerBlock(config, layer, names), lambda: TowerLast(config, names), groups
        )  # fmt: skip

    def context(self, packed: Packed, cache: KVCache | None) -> TowerContext:
        """What all blocks of one pass share, also by tower."""
        whole = super().context(packed, cache)
        assert whole.split is not None
        turns = window_turns = _turns(whole.split, whole.turn)
        if whole.window_turn is not whole.turn:
            window_turns = _turns(whole.split, whole.window_turn)
        return TowerContext(
            **vars(whole), turns=turns, conditions=_apart(whole.split, whole.condition), window_turns=window_turns
        )


@dataclass(frozen=True)
class TowerContext(Context):
    """The context taken apart by tower, once for all layers. So are the hidden states, from the first block to the last."""

    turns: tuple[Turn | None, ...] = ()
    conditions: tuple[Condition | None, ...] = ()
    window_turns: tuple[Turn | None, ...] = ()

    def arranged(self, x_TD: Tensor) -> Sequence[Tensor]:
        """Each tower's own."""
        assert self.split is not None
        return self.split.apart(x_TD)

    def in_order(self, x: Sequence[Tensor]) -> Tensor:
        """All towers' together."""
        assert self.split is not None
        return self.split.together(x)


class TowerBlock(nn.Module):
    """One layer of all towers."""

    def __init__(self, sizes: Sizes, layer: int, towers: Sequence[str]) -> None:
        super().__init__()
        self.layer = layer
        self.towers = nn.ModuleDict({name: Block(sizes, layer) for name in towers})

    def forward(self, parts: Sequence[Tensor], context: TowerContext) -> tuple[list[Tensor], None]:
        """The tokens of each tower to the same; all meet for attention."""
        split, blocks = context.split, list(self.towers.values())
        assert split is not None
        turns = context.window_turns if self.layer in context.windowed else context.turns
        changes = [block.changes(c) for block, c in zip(blocks, context.conditions, strict=True)]
        asked = [
            block.before_attention(x, change, turn)
            for block, x, change, turn in zip(blocks, parts, changes, turns, strict=True)
        ]
        q_TNH, k_TKH, v_TKH = (split.together(each) for each in zip(*asked, strict=True))
        attended = split.apart(context.attend(self.layer, q_TNH, k_TKH, v_TKH))
        done = [
            block.after_attention(x, read, change, None)[0]
            for block, x, read, change in zip(blocks, parts, attended, changes, strict=True)
        ]
        return done, None


class TowerLast(nn.Module):
    """The last norm of every tower."""

    def __init__(self, sizes: Sizes, towers: Sequence[str]) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({name: Last(sizes) for name in towers})

    def forward(self, parts: Sequence[Tensor], context: Context) -> Tensor:
        """The tokens of each tower to all of them, ``[T, D]``."""
        split = context.split
        assert split is not None
        given = zip(self.towers.values(), parts, _apart(split, context.last_condition), strict=True)
        return split.together([last.apply_to(x, condition) for last, x, condition in given])


def _turns(split: Split, turn: Turn | None) -> tuple[Turn | None, ...]:
    return tuple(None if turn is None else turn.take(group) for group in split.groups)


def _apart(split: Split, condition: Condition | None) -> tuple[Condition | None, ...]:
    return tuple(None if condition is None else condition.take(group) for group in split.groups)
