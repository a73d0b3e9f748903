"""Compiles Triton kernels ahead of time, no GPU needed, and reads their machine code."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from triton import compile as compile_source
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_MEMORY = {80: 166912, 90: 232448, 100: 232448}
"""Bytes a program may have, by architecture."""
PRODUCTS = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
"""Instructions of the tensor cores, by architecture: from 9.0 on for groups of warps, where a tile has 64 rows or more."""


@dataclass(frozen=True)
class Code:
    """A compiled kernel: bytes of shared memory, and how often each instruction stands in it."""

    shared: int
    count: Counter[str]
    sass: str = ""

    @property
    def spills(self) -> int:
        """Loads and stores of registers that had to be put away."""
        return self.count["LDL"] + self.count["STL"]

    @property
    def products(self) -> set[str]:
        """The tensor core instructions it has."""
        return {"HMMA", "HGMMA", "UTCHMMA"} & self.count.keys()

    @property
    def transfers(self) -> Counter[int]:
        """Loads from and stores to global memory, by their bits for each thread."""
        found = re.findall(r"\b(?:LDG|STG)((?:\.\w+)+)", self.sass)
        widths = ([int(part) for part in each.split(".") if part in ("64", "128")] for each in found)
        return Counter(max(each, default=32) for each in widths)


def compiled(
    kernel: Any,
    arch: int,
    types: Mapping[str, str | tuple[str, ...]],
    fixed: Mapping[str, Any],
    *,
    warps: int,
    stages: int,
    divisible: Collection[str] = (),
) -> Code:
    """One kernel for one NVIDIA architecture.

    `types` gives the type of every argument that is no constant (``*bf16``, ``i32``, ``fp32``, ``tensordesc<bf16[64, 64]>``, or a
    tuple of them),
    `fixed` the value of every constant. Pointers are taken to be aligned, as allocations are: unaligned ones would not be read
    in whole vectors. So are the whole numbers of `divisible`, strides as a rule, to be multiples of 16.
    """
    signature = {name: "constexpr" if name in fixed else types[name] for name in kernel.arg_names}
    places: list[tuple[int, ...]] = []
    for i, (name, kind) in enumerate(signature.items()):
        if isinstance(kind, tuple):
            places += [(i, k) for k, each in enumerate(kind) if each[0] == "*"]
        elif kind[0] == "*" or name in divisible:
            places.append((i,))
    aligned = {place: [["tt.divisibility", 16]] for place in places}
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(fixed), attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    made = compile_source(source, target=GPUTarget("cuda", arch, 32), options=options)
    sass = made.asm["sass"]
    return Code(made.metadata.shared, Counter(re.findall(r"\b[A-Z][A-Z0-9]+\b", sass)), sass)


def compiled_for_amd(
    kernel: Any, arch: str, types: Mapping[str, str], fixed: Mapping[str, Any], *, warps: int, stages: int
) -> dict[str, int]:
    """The same for an AMD architecture (``gfx942``): what the text of its code says of registers, and its matrix products."""
    signature = {name: "constexpr" if name in fixed else types[name] for name in kernel.arg_names}
    aligned = {(kernel.arg_names.index(a),): [["tt.divisibility", 16]] for a, t in signature.items() if t[0] == "*"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(fixed), attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    text = compile_source(source, target=GPUTarget("hip", arch, 64), options=options).asm["amdgcn"]
    found = {
        key: int(n)
        for key, n in re.findall(r"^ *\.(\w+_count|private_segment_fixed_size): +(\d+)$", text, re.MULTILINE)
    }
    return {**found, "mfma": len(re.findall(r"\bv_mfma_", text))}
