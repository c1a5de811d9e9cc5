"""The operators that a graph may have: the inputs, the attributes and the output shapes of each.

They are those that `models/export.py` writes.  Every value of a graph is float32; integers are weights that give places
and shapes to operators.  A shape is for one row of `x`: dimension 0 of a value is its number of rows for each row of
`x`.  So a shape holds for any number of rows, and gives the memory and the time of a row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

TensorShape = tuple[int, ...]
ROW_VALUE, FLOAT_WEIGHT, INT_WEIGHT = "rfi"  # kinds of a tensor: a value, or a weight of float32 or int64
ELEMENTWISE_COST = 64  # multiplications that a power or an exponential is counted as
MAX_ROW_FLOATS, MAX_ROW_WORK = 1 << 24, 1 << 32  # numbers that a row may make a graph write; multiplications for them
MATMUL_OPERATORS = (b"Gemm", b"MatMul")


class GraphError(ValueError):
    """The graph holds something that a model may not; the message names it."""


class TensorInfo(NamedTuple):
    """The kind and the shape of an input of a node."""

    kind: str
    shape: TensorShape
    integers: TensorShape = ()  # the values of a weight of int64


class RowCost(NamedTuple):
    """The memory and the time that one row takes."""

    floats: int  # numbers in all values
    multiplications: int


class Operator(NamedTuple):
    """The inputs and attributes of an operator, and the function of both that gives the shapes of its outputs."""

    input_kinds: str  # pattern of the kinds of the inputs
    infer_shapes: Callable[..., list[TensorShape]]
    attributes: tuple[tuple[str, type], ...] = ()  # all of them are required


def infer_node(name: bytes, inputs: list[TensorInfo], attributes: dict[str, Any]) -> tuple[list[TensorShape], int]:
    """The output shapes of one node, and the multiplications for them; GraphError if no model may have the node."""
    operator = OPERATORS.get(name)
    if operator is None:
        raise GraphError(f"the operator {name!r} is not on the list")
    if {key: type(value) for key, value in attributes.items()} != dict(operator.attributes):
        raise GraphError(f"{name!r} with the attributes {attributes}")
    kinds = "".join(tensor.kind for tensor in inputs)
    try:
        _require(re.fullmatch(operator.input_kinds, kinds) is not None)
        shapes = operator.infer_shapes(*inputs, **attributes)
        _require(all(len(shape) > 1 for shape in shapes))
    except GraphError as error:
        kinds_and_shapes = [(tensor.kind, tensor.shape) for tensor in inputs]
        raise GraphError(f"{name!r} of {kinds_and_shapes}, {attributes}: {error}") from None
    inner = inputs[0].shape[-1] if name in MATMUL_OPERATORS else ELEMENTWISE_COST
    return shapes, inner * sum(map(math.prod, shapes))


def _require(fits: bool) -> None:
    if not fits:
        raise GraphError("these do not fit together")


def _axis(x: TensorInfo, axis: int) -> int:
    """An axis counted from the front; GraphError for axis 0, which is that of the rows."""
    axis += len(x.shape) if axis < 0 else 0
    _require(1 <= axis < len(x.shape))
    return axis


def _same_shape(x: TensorInfo) -> list[TensorShape]:
    return [x.shape]


def _clip(x: TensorInfo, low: TensorInfo, high: TensorInfo) -> list[TensorShape]:
    _require(low.shape in ((), (1,)) and high.shape in ((), (1,)))
    return [x.shape]


def _softmax(x: TensorInfo, axis: int) -> list[TensorShape]:
    _axis(x, axis)
    return [x.shape]


def _layernorm(x: TensorInfo, *weights: TensorInfo, axis: int, epsilon: float) -> list[TensorShape]:
    _require(_axis(x, axis) == len(x.shape) - 1 and 0 < epsilon < 1)
    _require(all(weight.shape == x.shape[-1:] for weight in weights))
    return [x.shape]


def _broadcast(*tensors: TensorInfo) -> list[TensorShape]:
    """The shape of an elementwise operator: weights broadcast over rows, and values have equally many rows."""
    rank = max(len(tensor.shape) for tensor in tensors)
    shapes = [(1,) * (rank - len(tensor.shape)) + tensor.shape for tensor in tensors]
    counts = {shape[0] for tensor, shape in zip(tensors, shapes, strict=True) if tensor.kind == ROW_VALUE}
    _require(len(counts) == 1)
    for tensor, shape in zip(tensors, shapes, strict=True):
        _require(len(tensor.shape) == rank if tensor.kind == ROW_VALUE else shape[0] == 1)
    rest = list(zip(*shapes, strict=True))[1:]
    _require(all(len({*sizes} - {1}) < 2 for sizes in rest))
    return [(*counts, *map(max, rest))]


def _gemm(x: TensorInfo, w: TensorInfo, c: TensorInfo) -> list[TensorShape]:
    _require(len(x.shape) == len(w.shape) == 2 and x.shape[1] == w.shape[0])
    y = x.shape[0], w.shape[1]
    _require(c.shape == y if c.kind == ROW_VALUE else c.shape == y[1:])
    return [y]


def _matmul(a: TensorInfo, b: TensorInfo) -> list[TensorShape]:
    if b.kind == FLOAT_WEIGHT:
        _require(len(b.shape) == 2)
    else:
        _require(len(a.shape) == len(b.shape) > 2 and a.shape[:-2] == b.shape[:-2])
    _require(a.shape[-1] == b.shape[-2])
    return [a.shape[:-1] + b.shape[-1:]]


def _concat(*parts: TensorInfo, axis: int) -> list[TensorShape]:
    axis, shapes = _axis(parts[0], axis), [part.shape for part in parts]
    _require(len({(*shape[:axis], *shape[axis + 1 :], -len(shape)) for shape in shapes}) == 1)
    return [(*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])]


def _split(x: TensorInfo, sizes: TensorInfo, axis: int) -> list[TensorShape]:
    _require(_axis(x, axis) == len(x.shape) - 1)
    _require(min(sizes.integers) > 0 and sum(sizes.integers) == x.shape[-1])
    return [(*x.shape[:-1], size) for size in sizes.integers]


def _slice(x: TensorInfo, *bounds: TensorInfo) -> list[TensorShape]:
    _require(all(len(tensor.integers) == 1 for tensor in bounds))
    start, end, axis = (tensor.integers[0] for tensor in bounds)
    axis = _axis(x, axis)
    _require(0 <= start < end <= x.shape[axis])
    return [(*x.shape[:axis], end - start, *x.shape[axis + 1 :])]


def _reshape(x: TensorInfo, size: TensorInfo) -> list[TensorShape]:
    rows, *inner = size.integers
    _require(rows == -1 and len(inner) > 0 and min(inner) > 0 and math.prod(x.shape) % math.prod(inner) == 0)
    return [(math.prod(x.shape) // math.prod(inner), *inner)]


def _reduce(x: TensorInfo, axes: TensorInfo, keepdims: int) -> list[TensorShape]:
    _require(len(axes.integers) == 1 and keepdims in (0, 1))
    axis = _axis(x, axes.integers[0])
    return [(*x.shape[:axis], *(1,) * keepdims, *x.shape[axis + 1 :])]


def _transpose(x: TensorInfo, perm: TensorShape) -> list[TensorShape]:
    _require(perm[0] == 0 and sorted(perm) == [*range(len(x.shape))])
    return [tuple(x.shape[axis] for axis in perm)]


UNARY, BINARY, AXIS_ATTRIBUTE = Operator("r", _same_shape), Operator("rr|rf|fr", _broadcast), ("axis", int)
OPERATORS = {
    **dict.fromkeys((b"Relu", b"Sigmoid", b"Tanh"), UNARY),
    **dict.fromkeys((b"Add", b"Sub", b"Mul", b"Pow"), BINARY),
    b"Clip": Operator("rff", _clip),
    b"Concat": Operator("r{2,64}", _concat, (AXIS_ATTRIBUTE,)),
    b"Gemm": Operator("rf[rf]", _gemm),
    b"LayerNormalization": Operator("rff?", _layernorm, (AXIS_ATTRIBUTE, ("epsilon", float))),
    b"MatMul": Operator("r[rf]", _matmul),
    b"ReduceSum": Operator("ri", _reduce, (("keepdims", int),)),
    b"Reshape": Operator("ri", _reshape),
    b"Slice": Operator("riii", _slice),
    b"Softmax": Operator("r", _softmax, (AXIS_ATTRIBUTE,)),
    b"Split": Operator("ri", _split, (AXIS_ATTRIBUTE,)),
    b"Transpose": Operator("r", _transpose, (("perm", tuple),)),
}
