"""Leaf operations: plain tensors in and out. Each folder is one op; `mmkit.kernels.dispatch` chooses its implementation."""

from mmkit.hooks import Register, hookimpl

CATALOGUE = {
    ("nearest_code", "reference"): "mmkit.kernels.vq.reference:reference",
    ("nearest_code", "chunked"): "mmkit.kernels.vq.chunked:chunked",
    ("norm", "reference"): "mmkit.kernels.norm.reference:reference",
    ("norm", "eager"): "mmkit.kernels.norm.eager:eager",
    ("norm", "triton"): "mmkit.kernels.norm.triton:fused",
    ("rope", "reference"): "mmkit.kernels.rope.reference:reference",
    ("rope", "eager"): "mmkit.kernels.rope.eager:eager",
    ("rope", "triton"): "mmkit.kernels.rope.triton:fused",
}


@hookimpl
def mmkit_kernels(register: Register) -> None:
    """Registers the kernels of this folder. Those of attention begin with the mask: `mmkit.sequence` registers them."""
    for (op, name), target in CATALOGUE.items():
        register(op, name, target)
