"""Content becomes one sequence: layout, visibility (the mask), positions, packing."""

from mmkit.hooks import Register, hookimpl

MODALITIES = {
    "image": "mmkit.sequence.modalities:Image",
    "text": "mmkit.sequence.modalities:Text",
    "video": "mmkit.sequence.modalities:Video",
}
POSITIONS = {
    "axial": "mmkit.sequence.positions:Axial",
    "mrope": "mmkit.sequence.positions:MRope",
    "rope": "mmkit.sequence.positions:Rope",
}


@hookimpl
def mmkit_components(register: Register) -> None:
    """Registers the modalities and the position schemes."""
    for name, target in MODALITIES.items():
        register("modality", name, target)
    for name, target in POSITIONS.items():
        register("positions", name, target)


@hookimpl
def mmkit_kernels(register: Register) -> None:
    """Registers the kernels of attention, which make plans of the mask."""
    for name in ("reference", "dense", "batches", "flex"):
        register("attention", name, f"mmkit.sequence.lowering:{name}")
    register("attention", "triton", "mmkit.sequence.intervals:interval_plan")
