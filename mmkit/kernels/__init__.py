"""Leaf operations: plain tensors in and out. Each folder is one op; `mmkit.kernels.dispatch` chooses its implementation."""

from mmkit.hooks import Register, hookimpl

CATALOGUE = {
    ("cross_entropy", "reference"): "mmkit.kernels.cross_entropy.reference:reference",
    ("cross_entropy", "plain"): "mmkit.kernels.cross_entropy.plain:plain",
    ("cross_entropy", "chunked"): "mmkit.kernels.cross_entropy.chunked:chunked",
    ("cross_entropy", "triton"): "mmkit.kernels.cross_entropy.fused:triton",
    ("decode", "reference"): "mmkit.kernels.decode.reference:reference",
    ("decode", "sdpa"): "mmkit.kernels.decode.sdpa:sdpa",
    ("decode", "triton"): "mmkit.kernels.decode.split:triton",
    ("decode", "triton_unsplit"): "mmkit.kernels.decode.split:triton_unsplit",
    ("experts", "reference"): "mmkit.kernels.experts.reference:reference",
    ("experts", "grouped"): "mmkit.kernels.experts.grouped:grouped",
    ("experts", "triton"): "mmkit.kernels.experts.fused:experts",
    ("grouped_linear", "reference"): "mmkit.kernels.experts.reference:grouped_linear",
    ("grouped_linear", "grouped"): "mmkit.kernels.experts.grouped:grouped_linear",
    ("grouped_linear", "triton"): "mmkit.kernels.experts.fused:grouped_linear",
    ("linear", "reference"): "mmkit.kernels.linear.reference:reference",
    ("linear", "shadow"): "mmkit.kernels.linear.shadow:shadow",
    ("linear", "split"): "mmkit.kernels.linear.split:split",
    ("linear", "torch"): "mmkit.kernels.linear.native:native",
    ("nearest_code", "reference"): "mmkit.kernels.vq.reference:reference",
    ("nearest_code", "chunked"): "mmkit.kernels.vq.chunked:chunked",
    ("nearest_code", "triton"): "mmkit.kernels.vq.fused:triton",
    ("norm", "reference"): "mmkit.kernels.norm.reference:reference",
    ("norm", "eager"): "mmkit.kernels.norm.eager:eager",
    ("norm", "triton"): "mmkit.kernels.norm.fused:fused",
    ("rope", "reference"): "mmkit.kernels.rope.reference:reference",
    ("rope", "eager"): "mmkit.kernels.rope.eager:eager",
    ("rope", "triton"): "mmkit.kernels.rope.fused:fused",
    ("route", "reference"): "mmkit.kernels.route.reference:reference",
    ("route", "selected"): "mmkit.kernels.route.selected:selected",
    ("route", "triton"): "mmkit.kernels.route.fused:fused",
}


@hookimpl
def mmkit_kernels(register: Register) -> None:
    """Registers the kernels of this folder. Those of attention begin with the mask: `mmkit.sequence` registers them."""
    for (op, name), target in CATALOGUE.items():
        register(op, name, target)
