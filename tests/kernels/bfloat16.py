"""Makes Triton's interpreter compute in bfloat16 as GPUs do.

It holds bfloat16 numbers as whole numbers of 16 bits, and multiplies and adds those; its casts from float32 cut bits off.
Here casts round to nearest even, and arithmetic widens exactly to float32 and rounds its result. Sums over an axis are refused:
a GPU rounds them at every step, in an order of its own, so a kernel widens what it sums. Works with Triton 3.6 to 3.9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def widened(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers of these bfloat16 ones."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(x: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16 numbers, of two equally near ones the even; NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).reshape(np.shape(x)).view(np.uint32)
    nearest = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(x), 0x7FC0, nearest).astype(np.uint16)


def install() -> None:
    """Put this in the place of the interpreter's own for the rest of the program."""
    own = InterpreterBuilder

    def has(*handles: Any) -> bool:
        return any(_is(h) for h in handles)

    def through(name: str, operands: int, result: int) -> None:
        """Operands widened, and the result rounded where its type, that of one of them, is bfloat16."""
        original: Callable[..., Any] = getattr(own, name)

        def method(self: Any, *args: Any) -> Any:
            given = args[:operands]
            if not has(*given):
                return original(self, *args)
            out = original(self, *map(_wide, given), *args[operands:])
            if out.data.dtype == np.bool_:
                return TensorHandle(out.data, tl.int1)
            if not _is(given[result]):
                return out
            return TensorHandle(rounded(out.data), tl.bfloat16)

        setattr(own, name, method)

    for name, operands, result in (("unary_op", 1, 0), ("binary_op", 2, 0), ("create_fma", 3, 2), ("create_dot", 3, 2)):
        through(name, operands, result)
    for operation, name in (
        (interpreter.ReduceOps, "sum"),
        (interpreter.ScanOps, "cumsum"),
        (interpreter.ScanOps, "cumprod"),
    ):
        setattr(operation, name, _refusing(getattr(operation, name)))
    cast, convert, ternary = own.cast_impl, own.create_fp_to_fp, own.ternary_op

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if dst_type.scalar == tl.bfloat16:
            return src if _is(src) else TensorHandle(rounded(src.data.astype(np.float32)), tl.bfloat16)
        return cast(self, _wide(src), dst_type)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        toward_zero = rounding_mode == interpreter._ir.ROUNDING_MODE.RTZ
        narrow = src.dtype.primitive_bitwidth == 8 or dst_type.scalar.primitive_bitwidth == 8
        if toward_zero or narrow or not (_is(src) or dst_type.scalar == tl.bfloat16):
            return convert(self, src, dst_type, rounding_mode)
        return self.cast_impl(src, dst_type)

    def ternary_op(self: Any, lhs: Any, rhs: Any, other: Any, op: Any) -> Any:
        if op is np.where or not has(lhs, rhs, other):  # choosing among bits is right as it is
            return ternary(self, lhs, rhs, other, op)
        return TensorHandle(rounded(op(*(_wide(x).data for x in (lhs, rhs, other)))), tl.bfloat16)

    own.cast_impl, own.create_fp_to_fp, own.ternary_op = cast_impl, create_fp_to_fp, ternary_op
    own.get_bf16 = lambda self, value: TensorHandle(rounded(np.array([value], np.float32)), tl.bfloat16)


def _refusing(original: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, input: Any) -> Any:
        if input.dtype.scalar == tl.bfloat16:
            raise TypeError("a sum of bfloat16 numbers: make them float32 first")
        return original(self, input)

    return method


def _is(handle: Any) -> bool:
    return isinstance(handle, TensorHandle) and handle.dtype.scalar == tl.bfloat16


def _wide(handle: Any) -> Any:
    return TensorHandle(widened(handle.data), tl.float32) if _is(handle) else handle
