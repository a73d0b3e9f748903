"""Compiles Triton kernels ahead of time, no GPU needed, and reads their machine code."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
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

    @property
    def spills(self) -> int:
        """Loads and stores of registers that had to be put away."""
        return self.count["LDL"] + self.count["STL"]

    @property
    def products(self) -> set[str]:
        """The tensor core instructions it has."""
        return {"HMMA", "HGMMA", "UTCHMMA"} & self.count.keys()


def compiled(
    kernel: Any, arch: int, types: Mapping[str, str], fixed: Mapping[str, Any], *, warps: int, stages: int,
    multiples: Sequence[str] = (),
) -> Code:  # fmt: skip
    """One kernel for one NVIDIA architecture.

    `types` gives the type of every argument that is no constant (``*bf16``, ``i32``, ``fp32``, ``tensordesc<bf16[64, 64]>``),
    `fixed` the value of every constant. Pointers are taken to be aligned, as allocations are: unaligned ones would not be read
    in whole vectors. The numbers named in `multiples` (strides) are taken to be multiples of 16.
    """
    signature = {name: "constexpr" if name in fixed else types[name] for name in kernel.arg_names}
    aligned = {(kernel.arg_names.index(a),): [["tt.divisibility", 16]]
               for a, t in signature.items() if t[0] == "*" or a in multiples}  # fmt: skip
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(fixed), attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    made = compile_source(source, target=GPUTarget("cuda", arch, 32), options=options)
    return Code(made.metadata.shared, Counter(re.findall(r"\b[A-Z][A-Z0-9]+\b", made.asm["sass"])))
