"""Leaf operations: plain tensors in and out. Each folder is one op; `mmkit.kernels.dispatch` chooses its implementation."""

from mmkit.hooks import Register, hookimpl

CATALOGUE = {
    ("cross_entropy", "reference"): "mmkit.kernels.cross_entropy.reference:reference",
    ("cross_entropy", "plain"): "mmkit.kernels.cross_entropy.plain:plain",
    ("cross_entropy", "chunked"): "mmkit.kernels.cross_entropy.chunked:chunked",
    ("cross_entropy", "triton"): "mmkit.kernels.cross_entropy.triton:triton",
    ("nearest_code", "reference"): "mmkit.kernels.vq.reference:reference",
    ("nearest_code", "chunked"): "mmkit.kernels.vq.chunked:chunked",
}


@hookimpl
def mmkit_kernels(register: Register) -> None:
    """Registers the kernels of this folder. Those of attention begin with the mask: `mmkit.sequence` registers them."""
    for (op, name), target in CATALOGUE.items():
        register(op, name, target)
