"""Leaf operations: plain tensors in and out. Each folder is one op; `mmkit.kernels.dispatch` chooses its implementation."""

from mmkit.hooks import Register, hookimpl

CATALOGUE = {
    ("linear", "reference"): "mmkit.kernels.linear.reference:reference",
    ("linear", "shadow"): "mmkit.kernels.linear.shadow:shadow",
    ("linear", "torch"): "mmkit.kernels.linear.native:native",
    ("nearest_code", "reference"): "mmkit.kernels.vq.reference:reference",
    ("nearest_code", "chunked"): "mmkit.kernels.vq.chunked:chunked",
}


@hookimpl
def mmkit_kernels(register: Register) -> None:
    """Registers the kernels of this folder. Those of attention begin with the mask: `mmkit.sequence` registers them."""
    for (op, name), target in CATALOGUE.items():
        register(op, name, target)
