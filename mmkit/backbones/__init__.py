"""Backbones: hidden states in, hidden states out. One file each."""

from mmkit.hooks import Register, hookimpl

CATALOGUE = {
    "dense": "mmkit.backbones.dense:Dense",
    "moe": "mmkit.backbones.moe:MoE",
    "mot": "mmkit.backbones.mot:MoT",
}


@hookimpl
def mmkit_components(register: Register) -> None:
    """Registers this folder's parts."""
    for name, target in CATALOGUE.items():
        register("backbone", name, target)
