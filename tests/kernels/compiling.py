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

ARCHITECTURES = (80, 90, 100)
SHARED_MEMORY = {80: 166912, 90: 232448, 100: 232448}
"""Bytes a program may have, by architecture."""
SHARED_MEMORY_OF_AMD = 65536
"""Of gfx942."""
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
    def copies(self) -> int:
        """Copies from global to shared memory of 128 bits a thread."""
        return len(re.findall(r"\bLDGSTS\.\S*128\b", self.sass))

    @property
    def transfers(self) -> Counter[int]:
        """Loads from and stores to global memory, by their bits for each thread."""
        found = re.findall(r"\b(?:LDG|STG)((?:\.\w+)+)", self.sass)
        widths = ([int(part) for part in each.split(".") if part in ("64", "128")] for each in found)
        return Counter(max(each, default=32) for each in widths)


@dataclass(frozen=True)
class AmdCode:
    """The same for an AMD GPU: bytes of shared memory (LDS), what the text says of registers, and the matrix products in it."""

    shared: int
    registers: Mapping[str, int]
    products: int


@dataclass(frozen=True)
class Launch:
    """A kernel, and what it is compiled with.

    `types` gives the type of every argument that is no constant (``*bf16``, ``i32``, ``fp32``, ``tensordesc<bf16[64, 64]>``, or a
    tuple of them), `fixed` the value of every constant. Pointers are taken to be aligned, as allocations are: unaligned ones
    would not be read in whole vectors. So are the whole numbers of `divisible`, strides as a rule, to be multiples of 16.
    """

    kernel: Any
    types: Mapping[str, str | tuple[str, ...]]
    fixed: Mapping[str, Any]
    warps: int
    stages: int
    divisible: Collection[str] = ()

    def _compiled(self, target: GPUTarget) -> Any:
        names = self.kernel.arg_names
        fixed = {name: value for name, value in self.fixed.items() if name in names}
        signature = {name: "constexpr" if name in fixed else self.types[name] for name in names}
        even: list[tuple[int, ...]] = []
        for place, (name, kind) in enumerate(signature.items()):
            if isinstance(kind, tuple):
                even += [(place, inner) for inner, each in enumerate(kind) if each[0] == "*"]
            elif kind[0] == "*" or name in self.divisible:
                even.append((place,))
        aligned = {place: [["tt.divisibility", 16]] for place in even}
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=fixed, attrs=aligned)
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        return compile_source(source, target=target, options=options)

    def compiled(self, arch: int) -> Code:
        """For one NVIDIA architecture."""
        made = self._compiled(GPUTarget("cuda", arch, 32))
        sass = made.asm["sass"]
        return Code(made.metadata.shared, Counter(re.findall(r"\b[A-Z][A-Z0-9]+\b", sass)), sass)

    def compiled_for_amd(self, arch: str) -> AmdCode:
        """For one AMD architecture (``gfx942``), whose warps are of 64 threads."""
        made = self._compiled(GPUTarget("hip", arch, 64))
        text = made.asm["amdgcn"]
        found = re.findall(r"^ *\.(\w+_count|private_segment_fixed_size): +(\d+)$", text, re.MULTILINE)
        return AmdCode(made.metadata.shared, {key: int(n) for key, n in found}, text.count("v_mfma_"))
