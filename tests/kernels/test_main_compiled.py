"""The main Triton kernels of every op compiled ahead of time, for every architecture: what their machine code is like."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

import triton
from budgeting import excess, hot, loops, recorded
from compiling import SHARED_MEMORY_OF_AMD
from launches import MAIN, for_amd
from triton.compiler.errors import CompilationError

import mmkit.kernels

KERNELS = [
    pytest.param(op, name, arch, id=f"{op}-{name}-sm_{arch}")
    for op, kernels in MAIN.items()
    for name, main in kernels.items()
    for arch in main.architectures
]


@pytest.mark.parametrize(("op", "name", "arch"), KERNELS)
def test_a_main_kernel_is_what_it_should_be(op: str, name: str, arch: int) -> None:
    main = MAIN[op][name]
    code = main.launch(name, arch).compiled(arch)
    assert not (wrong := main.faults(code, arch)), wrong
    assert not (more := excess(op, f"{name}-sm_{arch}", code.sass)), more


NOT_FOR_AMD = {"nearest_code": "input_precision must be one of"}
"""What Triton's AMD backend refuses, by op: it knows no products of three TF32 parts."""


@pytest.mark.parametrize("op", [op for op in MAIN if op not in NOT_FOR_AMD])
def test_the_chief_kernel_compiles_for_amd_too(op: str) -> None:
    """A proof that kernels are portable, by pointers: the ops refuse AMD GPUs (`mmkit.kernels.triton_launch.refusal`)."""
    found = for_amd(op).compiled_for_amd("gfx942")
    assert found.shared <= SHARED_MEMORY_OF_AMD
    assert found.registers["vgpr_spill_count"] == 0
    assert found.registers["private_segment_fixed_size"] == 0, "scalar registers may go to vector ones, not to memory"
    assert bool(found.products) == bool(next(iter(MAIN[op].values())).products), (
        "products are those of the matrix cores"
    )


@pytest.mark.parametrize("op", NOT_FOR_AMD)
def test_what_amd_does_not_take_is_known(op: str) -> None:
    with pytest.raises(CompilationError, match=NOT_FOR_AMD[op]):
        for_amd(op).compiled_for_amd("gfx942")


def test_every_kernel_that_is_launched_is_a_main_one() -> None:
    folder = Path(mmkit.kernels.__file__).parent
    launched = {
        (path.parent.name, name)
        for path in folder.glob("*/triton.py")
        for name in re.findall(r"\bkernels\.(\w+)(?=\[|, )", path.read_text())
    }
    found = {main.launch(name, 90).kernel for kernels in MAIN.values() for name, main in kernels.items()}
    assert launched == {(kernel.fn.__module__.split(".")[-2], kernel.fn.__name__) for kernel in found}


@pytest.mark.parametrize("op", MAIN)
def test_budgets_are_recorded_for_this_triton(op: str) -> None:
    if not recorded(op):
        pytest.skip(f"triton {triton.__version__} has no recorded budgets; `budgeting` says how to record them")
    assert recorded(op).keys() >= {
        f"{name}-sm_{arch}" for name, main in MAIN[op].items() for arch in main.architectures
    }
    assert all(n > 0 for found in recorded(op).values() for n in found)


def test_hot_loops_are_found() -> None:
    """The innermost loops with a product: not those that wait, nor what jumps back from behind the exit."""
    lines = """
        MOV R0; LBB1: ADD R1; LBB2: HGMMA.64x128x16 R2; LBB5: SYNCS R1; @P2 BRA LBB5; @P0 BRA LBB2; ADD R2; @!P1 BRA LBB1;
        @P3 BRA LBB4; EXIT; LBB4: SYNCS R1; @P2 BRA LBB4; BRA LBB5;
    """
    assert loops(_sass(lines)) == [4]


def test_of_a_kernel_without_products_all_instructions_count() -> None:
    assert hot(_sass("LBB1: ADD R1; @P0 BRA LBB1; EXIT; LBB2: BRA LBB2; NOP; NOP;")) == [4]


def _sass(lines: str) -> str:
    found = [x.strip() for x in lines.replace(": ", ":;").split(";") if x.strip()]
    return "\n".join(x if x.endswith(":") else f"--:-:1:-:1\t{x};" for x in found)
