"""One way to turn a key into a seed, so that every draw depends on what it is for and on nothing else. Torch-free."""

from __future__ import annotations

import hashlib


def derive(*key: int | str) -> int:
    """A seed in ``[0, 2**63)`` from a key such as ``(seed, step, sample id)``; the same on every machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
