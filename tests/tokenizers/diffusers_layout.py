"""Where diffusers keeps the weights of the convolutional autoencoder."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from mmkit.nn.autoencoder import Autoencoder
from mmkit.nn.convolution import PixelAttention, ResBlock

LEAVES = {
    ResBlock: {
        "norm_1": "norm1",
        "conv_1": "conv1",
        "norm_2": "norm2",
        "conv_2": "conv2",
        "shortcut": "conv_shortcut",
    },
    PixelAttention: {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"},
}


def level_names(level: nn.Sequential, theirs: str, resample: str) -> Iterator[tuple[str, str]]:
    """(place in our level, module name there), resnets and attentions each counted on their own."""
    counts = {"resnets": 0, "attentions": 0}
    for place, layer in enumerate(level):
        if type(layer) not in LEAVES:
            yield f"{place}.conv", f"{theirs}.{resample}.0.conv"
            continue
        kind = "resnets" if isinstance(layer, ResBlock) else "attentions"
        for ours, leaf in LEAVES[type(layer)].items():
            yield f"{place}.{ours}", f"{theirs}.{kind}.{counts[kind]}.{leaf}"
        counts[kind] += 1


def names(autoencoder: Autoencoder) -> dict[str, str]:
    """Our module names to theirs."""
    found = {"inward": "quant_conv", "outward": "post_quant_conv"}
    for side, blocks, resample in (
        ("encoder", "down_blocks", "downsamplers"),
        ("decoder", "up_blocks", "upsamplers"),
    ):
        half = getattr(autoencoder, side)
        found |= {
            f"{side}.enter": f"{side}.conv_in",
            f"{side}.leave": f"{side}.conv_out",
            f"{side}.norm": f"{side}.conv_norm_out",
        }
        for index, level in enumerate(half.levels):
            for ours, theirs in level_names(level, f"{side}.{blocks}.{index}", resample):
                found[f"{side}.levels.{index}.{ours}"] = theirs
        for ours, theirs in level_names(half.middle, f"{side}.mid_block", resample):
            found[f"{side}.middle.{ours}"] = theirs
    return found


@torch.no_grad()
def copy_weights(autoencoder: Autoencoder, theirs: nn.Module) -> set[str]:
    """Fills the autoencoder from diffusers' module, every parameter of it, and returns the names that were not asked for."""
    state, mapped = theirs.state_dict(), names(autoencoder)
    left = set(state)
    for name, parameter in autoencoder.named_parameters():
        module, _, leaf = name.rpartition(".")
        source = f"{mapped[module]}.{leaf}"
        parameter.copy_(state[source].view(parameter.shape))
        left.remove(source)
    return left
