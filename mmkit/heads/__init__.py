"""Heads: what is predicted, how it is learned, how it is sampled. One file each."""

from mmkit.hooks import Register, hookimpl

CATALOGUE = {
    "ar": "mmkit.heads.ar:AR",
    "diffusion": "mmkit.heads.diffusion:Diffusion",
    "flow": "mmkit.heads.flow:Flow",
    "masked": "mmkit.heads.masked:Masked",
}


@hookimpl
def mmkit_components(register: Register) -> None:
    """Registers this folder's parts."""
    for name, target in CATALOGUE.items():
        register("head", name, target)
