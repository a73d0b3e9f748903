"""Encoders: content to features. One file each."""

from mmkit.hooks import Register, hookimpl

CATALOGUE = {
    "patch": "mmkit.encoders.patch:Patch",
    "timm": "mmkit.encoders.timm:Timm",
}


@hookimpl
def mmkit_components(register: Register) -> None:
    """Registers this folder's parts."""
    for name, target in CATALOGUE.items():
        register("encoder", name, target)
