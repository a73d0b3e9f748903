"""How the published files name their tensors.

==========================  ===========================================  =================================================
file                        encoder                                      decoder
==========================  ===========================================  =================================================
this part, `taesd-join`     ``encoder.0.weight``                         ``decoder.1.weight``
``*_encoder``, ``*_decoder``  ``0.weight``                               ``1.weight``: number 0 is the clamp
diffusers AutoencoderTiny   ``encoder.layers.0.weight``                  ``decoder.layers.0.weight``: the clamp has no number
==========================  ===========================================  =================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from mmkit.errors import CheckpointError

_OURS = re.compile(r"(encoder|decoder)\.(\d+)\.(.+)")
_DIFFUSERS = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.+)")
_HALF = re.compile(r"\d+\..+")


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a whole autoencoder by this part's names; a name that no layout has stays as it is.

    Raises `CheckpointError` where they are an encoder's or a decoder's alone.
    """
    if tensors and all(_HALF.fullmatch(name) for name in tensors):
        raise CheckpointError(
            "weights", "these are the tensors of an encoder or a decoder alone, and a tokenizer is both",
            "join the two files: mmkit taesd-join ENCODER DECODER OUTPUT.safetensors, and name OUTPUT",
        )  # fmt: skip
    return {_moved(name, _DIFFUSERS, "{}.{}.{}", 1): tensor for name, tensor in tensors.items()}


def joined(encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Two published files as one."""
    halves = {"encoder": encoder, "decoder": decoder}
    return {f"{half}.{name}": tensor for half, tensors in halves.items() for name, tensor in tensors.items()}


def diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This part's tensors by the names of ``AutoencoderTiny``, which has none for pooled blocks."""
    return {_moved(name, _OURS, "{}.layers.{}.{}", -1): tensor for name, tensor in tensors.items()}


def _moved(name: str, form: re.Pattern[str], into: str, by: int) -> str:
    """A name in another form, with the decoder's layers counted from another start."""
    found = form.fullmatch(name)
    if not found:
        return name
    half, number, rest = found.groups()
    return into.format(half, int(number) + by * (half == "decoder"), rest)
