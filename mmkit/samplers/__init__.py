"""Samplers: how a head over latents comes from noise to data. One file each."""

from mmkit.hooks import Register, hookimpl

CATALOGUE = {
    "ddim": "mmkit.samplers.ddim:DDIM",
    "ddpm": "mmkit.samplers.ddpm:DDPM",
    "euler": "mmkit.samplers.euler:Euler",
    "heun": "mmkit.samplers.heun:Heun",
}


@hookimpl
def mmkit_components(register: Register) -> None:
    """Registers this folder's parts."""
    for name, target in CATALOGUE.items():
        register("sampler", name, target)
