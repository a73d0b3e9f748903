"""Leaf operations: plain tensors in and out. Each folder is one op; `mmkit.kernels.dispatch` chooses its implementation."""

from mmkit.hooks import Register, hookimpl

CATALOGUE = {
    ("decode", "reference"): "mmkit.kernels.decode.reference:reference",
    ("decode", "sdpa"): "mmkit.kernels.decode.sdpa:sdpa",
    ("decode", "triton"): "mmkit.kernels.decode.split:triton",
    ("decode", "triton_unsplit"): "mmkit.kernels.decode.split:triton_unsplit",
    ("nearest_code", "reference"): "mmkit.kernels.vq.reference:reference",
    ("nearest_code", "chunked"): "mmkit.kernels.vq.chunked:chunked",
    ("nearest_code", "triton"): "mmkit.kernels.vq.fused:triton",
}


@hookimpl
def mmkit_kernels(register: Register) -> None:
    """Registers the kernels of this folder. Those of attention begin with the mask: `mmkit.sequence` registers them."""
    for (op, name), target in CATALOGUE.items():
        register(op, name, target)
