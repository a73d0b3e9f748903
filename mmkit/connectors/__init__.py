"""Connectors: codes, latents or features to the width of the backbone. One file each."""

from mmkit.hooks import Register, hookimpl

CATALOGUE = {
    "embed": "mmkit.connectors.embed:Embed",
    "linear": "mmkit.connectors.linear:Linear",
    "mlp": "mmkit.connectors.mlp:MLP",
    "patchify": "mmkit.connectors.patchify:Patchify",
}


@hookimpl
def mmkit_components(register: Register) -> None:
    """Registers this folder's parts."""
    for name, target in CATALOGUE.items():
        register("connector", name, target)
