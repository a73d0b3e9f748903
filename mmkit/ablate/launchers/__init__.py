"""Where the runs of an ablation run: one file each."""

from mmkit.hooks import Register, hookimpl

CATALOGUE = {
    "local": "mmkit.ablate.launchers.local:Local",
    "slurm": "mmkit.ablate.launchers.slurm:Slurm",
}


@hookimpl
def mmkit_components(register: Register) -> None:
    """Registers this folder's parts."""
    for name, target in CATALOGUE.items():
        register("launcher", name, target)
