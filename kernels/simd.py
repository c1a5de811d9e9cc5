"""Sixteen float32 side by side as one value of a kernel: a register of the processor, or two.

A vectoriser cannot prove that the legs of a butterfly do not overlap, and its checks at run time cost more than the
work.  Here nothing is left to prove.  Lanes never mix: what one holds does not depend on what the others do.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.typing.templates import ConcreteTemplate, infer_global
from numba.extending import lower_builtin, models, register_model
from numpy.typing import NDArray

LANES = 16
Vector = NDArray[np.float32]  # [LANES] where the code is interpreted


def load(a: NDArray[np.float32], i: int) -> Vector:
    """a[i : i + LANES]."""
    return a[i : i + LANES].copy()


def store(a: NDArray[np.float32], i: int, x: Vector) -> None:
    """a[i : i + LANES] = x."""
    a[i : i + LANES] = x


def root(x: Vector) -> Vector:
    """Square roots."""
    return np.sqrt(x)


class VectorType(types.Type):
    """What the compiler takes a Vector for."""

    def __init__(self) -> None:
        super().__init__("float32 x 16")


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    """A value of the processor, not an array in memory."""

    def __init__(self, manager: Any, of: Any) -> None:
        super().__init__(manager, of, REGISTER)  # type: ignore[no-untyped-call]


REGISTER = ir.VectorType(ir.FloatType(), LANES)
VECTOR = VectorType()
NUMBER, ROW = types.float32, types.Array(types.float32, 1, "C")


def compiled(function: Callable[..., Any], result: Any, *arguments: Any) -> Callable[[Any], None]:
    """Let kernels call `function` on such arguments; what is decorated writes its instructions."""

    def register(emit: Callable[..., Any]) -> None:
        @infer_global(function)  # type: ignore[no-untyped-call]
        class Call(ConcreteTemplate):
            cases = (result(*arguments),)

        @lower_builtin(function, *arguments)  # type: ignore[no-untyped-call, untyped-decorator]
        def instructions(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return emit(context, builder, *values)

    return register


def address(context: Any, builder: Any, a: Any, i: Any) -> Any:
    """Of LANES values from a[i] on."""
    data = context.make_array(ROW)(context, builder, a).data
    return builder.bitcast(builder.gep(data, [i]), REGISTER.as_pointer())


@compiled(load, VECTOR, ROW, types.intp)
def _load(context: Any, builder: Any, a: Any, i: Any) -> Any:
    return builder.load(address(context, builder, a, i), align=4)


@compiled(store, types.none, ROW, types.intp, VECTOR)
def _store(context: Any, builder: Any, a: Any, i: Any, x: Any) -> Any:
    builder.store(x, address(context, builder, a, i), align=4)
    return context.get_dummy_value()


@compiled(root, VECTOR, VECTOR)
def _root(context: Any, builder: Any, x: Any) -> Any:
    name = f"llvm.sqrt.v{LANES}f32"
    known = builder.module.globals.get(name)
    return builder.call(
        known or ir.Function(builder.module, ir.FunctionType(REGISTER, [REGISTER]), name), [x]
    )


def spread(builder: Any, x: Any) -> Any:
    """A number in every lane."""
    nothing = ir.Constant(REGISTER, ir.Undefined)
    first = builder.insert_element(nothing, x, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), LANES), None))


def compile_operator(operation: Callable[[Any, Any], Any], instruction: str) -> None:
    """Of two vectors, or of a vector and a number."""

    @compiled(operation, VECTOR, VECTOR, VECTOR)
    def of_vectors(context: Any, builder: Any, x: Any, y: Any) -> Any:
        return getattr(builder, instruction)(x, y)

    @compiled(operation, VECTOR, VECTOR, NUMBER)
    def of_number(context: Any, builder: Any, x: Any, y: Any) -> Any:
        return getattr(builder, instruction)(x, spread(builder, y))


compile_operator(operator.add, "fadd")
compile_operator(operator.sub, "fsub")
compile_operator(operator.mul, "fmul")
