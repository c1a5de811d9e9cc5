"""Vectors of 16 or of 4 float32 as values of a kernel: registers of the processor.

A vectoriser cannot prove that the inputs and outputs of a butterfly do not overlap, and its checks at run time cost
more than the work.  It does not know either that the actions of a node fill one register.  A kernel that names its
vectors has nothing to prove.  Only `reduce_add`, `reduce_max`, `reduce_min` and `first_set` mix lanes, in a fixed
order.
"""

import math
import operator
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.typing.templates import ConcreteTemplate, infer_global
from numba.extending import lower_builtin, models, register_model
from numpy.typing import NDArray

from kernels.jit import inlined

LANES, LANES_4 = 16, 4
Vector = NDArray[np.float32]  # interpreted: [LANES] or [LANES_4]
Mask = NDArray[np.bool_]  # interpreted: [LANES] or [LANES_4]
Scalar = Any  # a float32
LOG2_E = np.float32(math.log2(math.e))
LN2_HIGH = np.float32(0.693359375)  # it has few bits: its product with a small integer is exact
LN2_LOW = np.float32(math.log(2.0) - 0.693359375)
INVERSE_FACTORIALS = tuple(np.float32(1 / math.factorial(k)) for k in range(8))
MIN_EXPONENT = np.float32(-87.0)  # e^-87 is about the smallest normal float32


def padded(width: int) -> int:
    """`width` rounded up to a multiple of LANES_4."""
    return -(-width // LANES_4) * LANES_4


def load(a: NDArray[np.float32], i: int) -> Vector:
    """a[i : i + LANES]."""
    return a[i : i + LANES].copy()


def load_4(a: NDArray[np.float32], i: int) -> Vector:
    """a[i : i + LANES_4]; the row must be contiguous, though its type need not say so."""
    return a[i : i + LANES_4].copy()


def store(a: NDArray[np.float32], i: int, x: Vector) -> None:
    """a[i : i + len(x)] = x."""
    a[i : i + len(x)] = x


def prefetch(a: NDArray[np.float32], i: int) -> None:
    """Start loading the cache line of a[i] without waiting for it."""


def sqrt(x: Vector) -> Vector:
    """Square roots."""
    return np.sqrt(x)


def fma(x: Vector, y: Vector | Scalar, z: Vector | Scalar) -> Vector:
    """x y + z, rounded once."""
    return (x.astype(np.float64) * y + z).astype(np.float32)


def rint(x: Vector) -> Vector:
    """The nearest integers, halves to even."""
    return np.rint(x)


def power_of_two(x: Vector) -> Vector:
    """2^x for integers x from -126 to 127."""
    return np.ldexp(np.float32(1), x.astype(np.int32))


def select(mask: Mask, x: Vector, y: Vector | Scalar) -> Vector:
    """x where the mask is set, else y."""
    return np.where(mask, x, y).astype(np.float32)


def _reduce_lanes(x: Vector, combine: Callable[..., Any]) -> np.float32:
    while len(x) > 1:
        half = len(x) // 2
        x = combine(x[:half], x[half:])
    return np.float32(x[0])


def reduce_add(x: Vector) -> Scalar:
    """Sum of the lanes: the halves are added until one lane is left."""
    return _reduce_lanes(x, operator.add)


def reduce_max(x: Vector) -> Scalar:
    """The largest of the lanes."""
    return _reduce_lanes(x, lambda a, b: np.where(a > b, a, b))


def reduce_min(x: Vector) -> Scalar:
    """The smallest of the lanes."""
    return _reduce_lanes(x, lambda a, b: np.where(a < b, a, b))


def first_set(mask: Mask) -> int:
    """The first lane that is set; the number of lanes if none is."""
    return int(np.argmax(mask)) if mask.any() else len(mask)


class VectorType(types.Type):
    """The type of a Vector of so many lanes, for the compiler."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.register = ir.VectorType(ir.FloatType(), lanes)
        super().__init__(f"float32 x {lanes}")


class MaskType(types.Type):
    """The type of a Mask of so many lanes, for the compiler: a bit each."""

    def __init__(self, lanes: int) -> None:
        self.register = ir.VectorType(ir.IntType(1), lanes)
        super().__init__(f"bool x {lanes}")


@register_model(VectorType)
@register_model(MaskType)
class RegisterModel(models.PrimitiveModel):
    """Vectors and masks are values in registers, not arrays in memory."""

    def __init__(self, manager: Any, of: Any) -> None:
        super().__init__(manager, of, of.register)  # type: ignore[no-untyped-call]


SCALAR = types.float32
ARRAY_TYPES = [types.Array(types.float32, 1, "C"), types.Array(types.float32, 1, "A")]


def register_lowering(function: Callable[..., Any], result: Any, *arguments: Any) -> Callable[[Any], None]:
    """Let kernels call `function` with arguments of these types; the decorated function emits its instructions."""

    def register(emit: Callable[..., Any]) -> None:
        @infer_global(function)  # type: ignore[no-untyped-call]
        class Call(ConcreteTemplate):
            cases = (result(*arguments),)

        @lower_builtin(function, *arguments)  # type: ignore[no-untyped-call, untyped-decorator]
        def instructions(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return emit(context, builder, *values)

    return register


def pointer(context: Any, builder: Any, row: Any, a: Any, i: Any, vector: VectorType) -> Any:
    """Pointer to a vector of lanes from a[i] on."""
    data = context.make_array(row)(context, builder, a).data
    return builder.bitcast(builder.gep(data, [i]), vector.register.as_pointer())


def splat(builder: Any, x: Any, vector: VectorType) -> Any:
    """The vector that has x in every lane."""
    nothing = ir.Constant(vector.register, ir.Undefined)
    lane = builder.insert_element(nothing, x, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(lane, nothing, ir.Constant(int32_vector(vector.lanes), None))


def int32_vector(lanes: int) -> Any:
    """The type of a vector of so many 32-bit integers."""
    return ir.VectorType(ir.IntType(32), lanes)


def call_intrinsic(builder: Any, name: str, *vectors: Any) -> Any:
    """Call an intrinsic function of LLVM on vectors of one type."""
    kind = vectors[0].type
    name = f"llvm.{name}.v{kind.count}f32"
    declared = builder.module.globals.get(name)
    function = declared or ir.Function(builder.module, ir.FunctionType(kind, [kind] * len(vectors)), name)
    return builder.call(function, vectors)


def greater(builder: Any, x: Any, y: Any) -> Any:
    """Mask of the lanes with x > y."""
    return builder.fcmp_ordered(">", x, y)


def less(builder: Any, x: Any, y: Any) -> Any:
    """Mask of the lanes with x < y."""
    return builder.fcmp_ordered("<", x, y)


def emit_reduction(builder: Any, x: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Combine the halves of a vector until one lane is left; its value."""
    width = x.type.count
    while width > 1:
        width //= 2
        halves = (range(width), range(width, 2 * width))
        x = combine(*(builder.shuffle_vector(x, x, ir.Constant(int32_vector(width), list(part))) for part in halves))
    return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))


def compile_memory(vector: VectorType, loader: Callable[..., Any]) -> None:
    """Register loads and stores of a vector."""
    for row in ARRAY_TYPES:

        @register_lowering(loader, vector, row, types.intp)
        def _load(context: Any, builder: Any, a: Any, i: Any, row: Any = row) -> Any:
            return builder.load(pointer(context, builder, row, a, i, vector), align=4)

        @register_lowering(store, types.none, row, types.intp, vector)
        def _store(context: Any, builder: Any, a: Any, i: Any, x: Any, row: Any = row) -> Any:
            builder.store(x, pointer(context, builder, row, a, i, vector), align=4)
            return context.get_dummy_value()


def compile_prefetch() -> None:
    """Register `prefetch`: a hint to read data into the nearest cache."""
    for row in ARRAY_TYPES:

        @register_lowering(prefetch, types.none, row, types.intp)
        def _fetch(context: Any, builder: Any, a: Any, i: Any, row: Any = row) -> Any:
            byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
            declared = builder.module.globals.get("llvm.prefetch.p0i8")
            hint = declared or ir.Function(builder.module, kind, "llvm.prefetch.p0i8")
            data = context.make_array(row)(context, builder, a).data
            at = builder.bitcast(builder.gep(data, [i]), byte)
            builder.call(hint, [at, *(ir.Constant(word, n) for n in (0, 3, 1))])
            return context.get_dummy_value()


def compile_binary(function: Callable[..., Any], vector: VectorType, result: Any, emit: Callable[..., Any]) -> None:
    """Register a function of two vectors, and of a vector and a number."""

    @register_lowering(function, result, vector, vector)
    def of_vectors(context: Any, builder: Any, x: Any, y: Any) -> Any:
        return emit(builder, x, y)

    @register_lowering(function, result, vector, SCALAR)
    def of_number(context: Any, builder: Any, x: Any, y: Any) -> Any:
        return emit(builder, x, splat(builder, y, vector))


def compile_arithmetic(vector: VectorType, mask: MaskType) -> None:
    """Register operators and functions that work lane by lane."""
    for operation, instruction in (("add", "fadd"), ("sub", "fsub"), ("mul", "fmul"), ("truediv", "fdiv")):
        emit = getattr(ir.IRBuilder, instruction)
        compile_binary(getattr(operator, operation), vector, vector, emit)
    for kinds in product((vector, SCALAR), repeat=2):

        @register_lowering(fma, vector, vector, *kinds)
        def _fused(context: Any, builder: Any, x: Any, *others: Any, kinds: Any = kinds) -> Any:
            vectors = (
                y if kind is vector else splat(builder, y, vector) for y, kind in zip(others, kinds, strict=True)
            )
            return call_intrinsic(builder, "fma", x, *vectors)

    compile_binary(operator.gt, vector, mask, greater)
    compile_binary(operator.eq, vector, mask, lambda builder, x, y: builder.fcmp_ordered("==", x, y))
    for function, name in ((sqrt, "sqrt"), (rint, "rint")):

        @register_lowering(function, vector, vector)
        def _call(context: Any, builder: Any, x: Any, name: str = name) -> Any:
            return call_intrinsic(builder, name, x)

    @register_lowering(power_of_two, vector, vector)
    def _power_of_two(context: Any, builder: Any, x: Any) -> Any:
        bias, shift = (ir.Constant(int32_vector(vector.lanes), [n] * vector.lanes) for n in (127, 23))
        exponent = builder.shl(builder.add(builder.fptosi(x, int32_vector(vector.lanes)), bias), shift)
        return builder.bitcast(exponent, vector.register)

    @register_lowering(select, vector, mask, vector, vector)
    def _choose(context: Any, builder: Any, where: Any, x: Any, y: Any) -> Any:
        return builder.select(where, x, y)

    @register_lowering(select, vector, mask, vector, SCALAR)
    def _choose_number(context: Any, builder: Any, where: Any, x: Any, y: Any) -> Any:
        return builder.select(where, x, splat(builder, y, vector))


def compile_reductions(vector: VectorType, mask: MaskType) -> None:
    """Register the functions that combine the lanes of a vector."""

    @register_lowering(reduce_add, SCALAR, vector)
    def _total(context: Any, builder: Any, x: Any) -> Any:
        return emit_reduction(builder, x, builder.fadd)

    for function, compare in ((reduce_max, greater), (reduce_min, less)):

        @register_lowering(function, SCALAR, vector)
        def _extreme(context: Any, builder: Any, x: Any, compare: Any = compare) -> Any:
            return emit_reduction(builder, x, lambda a, b: builder.select(compare(builder, a, b), a, b))

    @register_lowering(first_set, types.intp, mask)
    def _first(context: Any, builder: Any, where: Any) -> Any:
        word = ir.IntType(64)
        bits = builder.zext(builder.bitcast(where, ir.IntType(vector.lanes)), word)
        stop = ir.Constant(word, 1 << vector.lanes)
        return builder.cttz(builder.or_(bits, stop), ir.Constant(ir.IntType(1), 1))


compile_prefetch()
for _loader, _lanes in ((load, LANES), (load_4, LANES_4)):
    compile_memory(VectorType(_lanes), _loader)
    compile_arithmetic(VectorType(_lanes), MaskType(_lanes))
    compile_reductions(VectorType(_lanes), MaskType(_lanes))


@inlined
def exponential(x: Vector) -> Vector:
    """e^x for x <= 0, within two units in the last place; e^-87 for any smaller x."""
    x = select(x > MIN_EXPONENT, x, MIN_EXPONENT)
    n = rint(x * LOG2_E)
    # |r| <= ln 2 / 2: eight terms of the series are enough; in pairs side by side, they take half the time of a chain
    r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x))
    r2 = r * r
    high = fma(
        fma(r, INVERSE_FACTORIALS[7], INVERSE_FACTORIALS[6]), r2, fma(r, INVERSE_FACTORIALS[5], INVERSE_FACTORIALS[4])
    )
    low = fma(fma(r, INVERSE_FACTORIALS[3], INVERSE_FACTORIALS[2]), r2, r + INVERSE_FACTORIALS[0])
    y = fma(high, r2 * r2, low)
    scaled: Vector = y * power_of_two(n)
    return scaled
