"""What the Triton kernels of every op are compiled with in the tests: the shipped tiles, at sizes of real models.

`MAIN` lists the kernels that stand for their op on every architecture and with every version of Triton.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from compiling import ARCHITECTURES, PRODUCTS, SHARED_MEMORY, Code, Launch

from mmkit.kernels.attention import triton as attention_op
from mmkit.kernels.attention import triton_kernels as attention_kernels
from mmkit.kernels.attention.intervals import BLOCK
from mmkit.kernels.cross_entropy import triton as cross_entropy_op
from mmkit.kernels.cross_entropy import triton_kernels as cross_entropy_kernels
from mmkit.kernels.decode import triton as decode_op
from mmkit.kernels.decode import triton_kernels as decode_kernels
from mmkit.kernels.experts import triton as experts_op
from mmkit.kernels.experts import triton_kernels as experts_kernels
from mmkit.kernels.norm import triton as norm_op
from mmkit.kernels.norm import triton_kernels as norm_kernels
from mmkit.kernels.rope import triton as rope_op
from mmkit.kernels.rope import triton_kernels as rope_kernels
from mmkit.kernels.route import triton as route_op
from mmkit.kernels.route import triton_kernels as route_kernels
from mmkit.kernels.triton_launch import configuration
from mmkit.kernels.vq import triton as vq_op
from mmkit.kernels.vq import triton_kernels as vq_kernels


def attention(name: str, arch: int, width: int = 128, cap: float = 0.0) -> Launch:
    """Heads in groups of 4."""
    tiles = configuration(attention_op.TABLE, arch, width)
    tile = getattr(tiles, name)
    types = dict.fromkeys(("out", "dq", "dk", "dv"), "*bf16") | dict.fromkeys(("lse", "delta"), "*fp32")
    types |= dict.fromkeys(("lo", "hi", "until", "start", "whole", "index"), "*i32")
    types |= dict.fromkeys(("T", "S", "N", "K"), "i32") | {"scale": "fp32"}
    rows = {"queries": tile.m, "grads": tile.m, "keys": tile.n, "values": tile.n}
    for operand, count in rows.items():
        types[operand] = f"tensordesc<bf16[{count}, {width}]>" if tiles.tma else "*bf16"
    fixed = {"GROUPS": 4, "H": width, "TILE_M": tile.m, "TILE_N": tile.n, "BLOCK": BLOCK, "CAP": cap, "TMA": tiles.tma}
    kernel = getattr(attention_kernels, {"forward": "forward"}.get(name, f"backward_{name}"))
    return Launch(kernel, types, fixed, tile.warps, tile.stages)


def decode(name: str, arch: int, queries: int = 16, width: int = 128) -> Launch:
    """Parts of picked, masked rows, four query heads a key head; and their combination."""
    if name == "combine":
        fixed = {"H": width, "WIDTH": width, "MOST": 256, "TILE_S": decode_op.COMBINED}
        types = {"found": "*fp32", "lse": "*fp32", "out": "*bf16", "count": "i32", "parts": "i32"}
        return Launch(decode_kernels.combine, types, fixed, 2, 2)
    names, tile = decode_kernels.partial.arg_names, configuration(decode_op.TABLE, arch, queries, width)
    types = dict.fromkeys(names, "i32") | dict.fromkeys(("queries", "keys", "values"), "*bf16")
    types |= {"rows": "*i64", "end": "*i32", "mask": "*u8", "out": "*fp32", "lse": "*fp32", "scale": "fp32"}
    fixed = {"GROUPS": 4, "H": width, "WIDTH": width, "TILE_M": queries, "TILE_N": tile.n, "HALVES": 2}
    strides = tuple(each for each in names if each[:2] in ("q_", "k_", "v_"))
    return Launch(decode_kernels.partial, types, fixed, tile.warps, tile.stages, strides)


def experts(name: str, arch: int, rows: int = 128) -> Launch:
    """A mixture with SwiGLU, 2,048 wide and 768 inside. `across` is the kernel `rows` of the backward pass; `separate` and
    `separate across` are `rows` of a projection of two towers, whose matrices lie apart."""
    dim, hidden = 2048, 768
    types: dict[str, str | tuple[str, ...]] = dict.fromkeys(("COUNT", "A", "E"), "i32")
    types |= dict.fromkeys(("token", "tiles", "start", "load", "order"), "*i32") | {"scale": "*fp32", "dscale": "*fp32"}
    halves = ("x", "z", "inner", "out", "grad", "dinner", "scaled", "left", "right", "weight", "down", "bias")
    types |= dict.fromkeys(halves, "*bf16")
    if name == "tile_map":
        fixed: dict[str, Any] = {"TILE": rows, "EXPERTS": 128, "BLOCK": experts_op.BLOCK}
        return Launch(experts_kernels.tile_map, types, fixed, 4, 1)
    if name == "combine":
        return Launch(experts_kernels.combine, types, {"D": dim, "BLOCK": 1024}, 4, 1)
    if name == "sums":
        fixed = dict(zip(("TILE_M", "TILE_N"), experts_op.SUM, strict=True)) | {"N": dim}
        return Launch(experts_kernels.sums, types, fixed, 4, 1)
    tiles = configuration(experts_op.TABLE, arch, rows)
    if name == "matrices":
        step, tile = tiles.matrices
        fixed = {"TILE_M": step, "GATHER": "right", "N": 2 * hidden, "K": dim}
    else:
        tile = getattr(tiles, {"across": "rows", "separate": "rows", "separate across": "rows"}.get(name, name))
        fixed = {"TILE_M": rows, "TMA": arch >= 90}
        mixture = {"CURVE": "silu", "GATED": True, "W": hidden, "K": dim, "KEEP": True}
        fixed |= {
            "up": mixture, "inner": mixture,
            "rows": {"SCALED": True, "BIASED": False, "ACROSS": False, "SEPARATE": 0, "N": dim, "K": hidden},
            "across": {"SCALED": False, "BIASED": False, "ACROSS": True, "SEPARATE": 0, "N": dim, "K": 2 * hidden},
            "separate": {"SCALED": False, "BIASED": True, "ACROSS": False, "SEPARATE": 2, "N": dim, "K": 2 * hidden},
            "separate across": {"SCALED": False, "BIASED": False, "ACROSS": True, "SEPARATE": 2, "N": dim, "K": 2 * hidden},
        }[name]  # fmt: skip
    if arch >= 90 and name != "matrices":
        across = f"tensordesc<bf16[{tile.k}, {tile.n}]>"
        types |= {"weight": across if name == "across" else f"tensordesc<bf16[{tile.n}, {tile.k}]>", "down": across}
        types |= {} if name in ("up", "inner") else {"x": f"tensordesc<bf16[{rows}, {tile.k}]>"}
    if name.startswith("separate"):
        types["weight"] = ("*bf16", "*bf16")
    named = {"inner": "inner_grad", **dict.fromkeys(("across", "separate", "separate across"), "rows")}
    kernel = getattr(experts_kernels, named.get(name, name))
    return Launch(kernel, types, {**fixed, "TILE_N": tile.n, "TILE_K": tile.k}, tile.warps, tile.stages)


ADALN = dict.fromkeys(("weight", "bias", "dweight", "dbias"))
"""Residual, gate, LayerNorm without weights, scale and shift: the arguments that are then None."""


def norm(name: str, arch: int, dim: int = 4096, layer: bool = True, absent: dict[str, None] = ADALN) -> Launch:
    kernel, tile = getattr(norm_kernels, name), norm_op.tile(arch, norm_op.padded(dim))
    strides = [each for each in kernel.arg_names if each.endswith("_row")]
    types = dict.fromkeys(kernel.arg_names, "*bf16") | dict.fromkeys(("T", *strides), "i32") | {"eps": "fp32"}
    types |= dict.fromkeys(("mean", "rstd", "dweight", "dbias"), "*fp32")
    fixed = {"LAYER": layer, "D": dim, "TILE_M": tile.rows, "TILE_D": norm_op.padded(dim), **absent}
    return Launch(kernel, types, fixed, tile.warps, 1, strides)


WEIGHTS = dict.fromkeys(("q_weight", "k_weight", "dq_weight", "dk_weight"))
"""Heads that are turned only: the arguments that are then None."""


def rope(name: str, arch: int, head_dim: int = 128, pairs: int = 64, absent: dict[str, None] | None = None) -> Launch:
    """32 query and 8 key heads, normed first where their weights are not absent."""
    kernel, tile = getattr(rope_kernels, name), rope_op.tile(arch, head_dim, pairs)
    tensors = ("q", "k", "q_out", "k_out", "q_grad", "k_grad", "dq", "dk", "q_weight", "k_weight")
    types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(tensors, "*bf16") | {"eps": "fp32"}
    types |= dict.fromkeys(("cos", "sin", "dq_weight", "dk_weight"), "*fp32")
    constants = rope_op.constants((32, 8), head_dim, pairs, tile.rows)
    fixed = dict(zip(("N", "K", "H", "F", "TILE_M", "TILE_F", "TILE_R"), constants, strict=True)) | (absent or {})
    strides = [each for each in kernel.arg_names if each.endswith(("_token", "_head", "_row"))]
    return Launch(kernel, types, fixed, tile.warps, 1, strides)


def nearest_code(name: str, arch: int, channels: int = 32) -> Launch:
    types = {"vectors": "*fp32", "codes": "*fp32", "half": "*fp32", "least": "*fp32", "found": "*i32", "out": "*i64"}
    types |= dict.fromkeys(("V", "K", "chunk", "parts"), "i32")
    if name == "combine":
        return Launch(vq_kernels.combine, types, {"TILE_M": vq_op.COMBINED}, 4, 1)
    wide = next((c for c in vq_op.CHANNELS if c >= channels), vq_op.CHANNELS[-1])
    tile = configuration(vq_op.TABLE, arch, wide)
    fixed = {"C": channels, "WHOLE": channels <= wide, "TILE_M": tile.m, "TILE_N": tile.n, "TILE_C": wide}
    return Launch(vq_kernels.nearest, types, fixed, tile.warps, tile.stages)


def cross_entropy(name: str, arch: int) -> Launch:
    tile = configuration(cross_entropy_op.TABLE, arch, name)
    types = {"bias": "*bf16", "ids": "*i64", "S": "i32", "V": "i32"}
    types |= dict.fromkeys(("parts", "target", "lse", "by_lse", "by_target", "by_mean"), "*fp32")
    shapes = {"x": [tile.m, tile.k], "weight": [tile.n, tile.k], "out": [tile.m, tile.n]}
    types |= {operand: f"tensordesc<bf16{shape}>" if tile.tma else "*bf16" for operand, shape in shapes.items()}
    fixed = {"D": 2304, "BIAS": True, "MEAN": True, "GROUP": cross_entropy_op.GROUP, "TMA": tile.tma}
    fixed |= {"TILE_M": tile.m, "TILE_N": tile.n, "TILE_K": tile.k}
    return Launch(getattr(cross_entropy_kernels, name), types, fixed, tile.warps, tile.stages)


def route(name: str, arch: int, experts: int = 128, groups: int = 1) -> Launch:
    """8 experts a token, with all sums; in groups as DeepSeek-V3 has them."""
    many, size = route_op.padded(experts, groups)
    tile = configuration(route_op.TABLE, arch, many * size)
    types = dict.fromkeys(("logits", "bias", "weights", "shares", "squares", "share", "square"), "*fp32")
    types |= dict.fromkeys(("grad_weights", "grad_share", "grad_square", "grad_logits"), "*fp32") | {"scale": "fp32"}
    types |= dict.fromkeys(("experts", "order", "count"), "*i64") | dict.fromkeys(("counts", "stop"), "*i32")
    types |= dict.fromkeys(("T", "steps", "assignments", "span", "P"), "i32")
    fixed = {
        "E": experts, "K": 8, "SLOTS": 8, "SHARES": True, "SQUARES": True, "NORMALIZE": True, "SIGMOID": groups > 1,
        "GROUPS": groups, "KEPT": max(1, groups // 2), "BIASED": groups > 1, "G": many, "N": size,
        "WIDTH": route_op.padded(experts)[1], "ROWS": tile.rows,
        "TILE": tile.assignments if name == "place" else tile.tokens,
    }  # fmt: skip
    return Launch(getattr(route_kernels, name), types, fixed, tile.place_warps if name == "place" else tile.warps, 1)


@dataclass(frozen=True)
class Main:
    """A kernel that stands for its op: what it is launched with on an architecture, and what its machine code has to be like."""

    launch: Callable[[str, int], Launch]
    products: str = ""
    """Of groups of warps where there are such (``large``), of one warp (``small``), or none."""
    tma: bool = False
    """Whether operands come by TMA where there is any, and elsewhere by 128 bits a thread, past the registers."""
    vectors: bool = False
    """Whether nearly everything is loaded and stored by 128 bits a thread."""

    aids: bool = False
    """Whether it only prepares or ends the work of the others: one architecture is enough."""

    @property
    def architectures(self) -> tuple[int, ...]:
        return (90,) if self.aids else ARCHITECTURES

    def faults(self, code: Code, arch: int) -> list[str]:
        """What its machine code is not."""
        wanted = {"large": {PRODUCTS[arch]}, "small": {"HMMA"}, "": set()}[self.products]
        narrow = code.transfers[64] or 2 * code.transfers[32] >= code.transfers[128]
        faults = {
            f"has {code.shared} bytes of shared memory": code.shared > SHARED_MEMORY[arch],
            f"spills registers {code.spills} times": code.spills,
            f"has products {sorted(code.products)}, not {sorted(wanted)}": code.products != wanted,
            "has loads by TMA where it should not, or none": ("UTMALDG" in code.count) != (self.tma and arch >= 90),
            "has operands that come in pieces, or through registers": self.tma and arch < 90 and not code.copies,
            "has sums that differ from run to run": {"ATOM", "ATOMG", "RED"} & code.count.keys(),
            f"loads and stores of so many bits: {dict(code.transfers)}": self.vectors and narrow,
        }
        return [fault for fault, there in faults.items() if there]


def _attention(name: str, arch: int) -> Launch:
    return attention(name.removesuffix("-128"), arch)


def _partial(name: str, arch: int) -> Launch:
    return decode("partial", arch, int(name.removeprefix("partial-")))


MAIN: dict[str, dict[str, Main]] = {
    "attention": dict.fromkeys(("forward-128", "keys-128", "queries-128"), Main(_attention, "large", tma=True)),
    "decode": {
        "partial-16": Main(_partial, "small"),
        "partial-64": Main(_partial, "large"),
        "combine": Main(decode, aids=True),
    },
    "experts": {
        **dict.fromkeys(("up", "rows", "inner", "across", "separate"), Main(experts, "large", tma=True)),
        "matrices": Main(experts, "large"),
        **dict.fromkeys(("tile_map", "combine", "sums"), Main(experts, aids=True)),
    },
    "norm": dict.fromkeys(("forward", "backward"), Main(norm, vectors=True)),
    "rope": dict.fromkeys(("forward", "backward"), Main(rope, vectors=True)),
    "nearest_code": {"nearest": Main(nearest_code, "large"), "combine": Main(nearest_code, aids=True)},
    "cross_entropy": dict.fromkeys(("sums", "gradient"), Main(cross_entropy, "large", tma=True)),
    "route": dict.fromkeys(("choose", "place", "backward"), Main(route)),
}
"""By op and kernel, of every op the chief one first. `grouped_linear` runs those of `experts`: `rows`, `across` and `matrices`."""


def for_amd(op: str) -> Launch:
    """An op's chief kernel as on sm_80, with as many threads in warps twice as large, and nothing loaded ahead."""
    name, main = next(iter(MAIN[op].items()))
    launch = main.launch(name, 80)
    return replace(launch, warps=max(1, launch.warps // 2), stages=1)
