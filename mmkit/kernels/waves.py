"""How work is split among the programs of a GPU."""

from __future__ import annotations

import functools

PARTS = 256
"""Into how many parts a loop is split at most."""
START = 1
"""What a program takes before its first tile and after its last, in the time of a tile. Guessed, as the next is: not measured."""
COMBINING = 2
"""What a second kernel takes that combines the parts, in the time of a tile."""


@functools.lru_cache(4096)
def parts_of(programs: int, tiles: int, room: int, ragged: bool = False) -> int:
    """Into how many parts loops of `tiles` tiles are split, where unsplit ones are run by `programs` programs, `room` of which run
    at a time.

    It is the number for which the GPU is done soonest. Programs of one length run in waves, and a last wave takes as long
    as a full one. `ragged` ones end anywhere: they follow each other closely and take half of what the longest does on average,
    and then the longest part is waited for.
    """

    def time(parts: int) -> float:
        longest = -(-tiles // parts)
        combining = COMBINING if parts > 1 else 0
        if ragged:
            return programs * parts / room * (longest / 2 + START) + longest + combining
        return -(-programs * parts // room) * (longest + START) + combining

    return min(range(1, max(1, min(PARTS, tiles)) + 1), key=time)
