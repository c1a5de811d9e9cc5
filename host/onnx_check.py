"""What an ONNX graph may hold, read from its protobuf bytes without the `onnx` package and before any inference.

Field numbers are those of onnx.proto (onnx/onnx, IR version 8).  A repeated field is judged at each occurrence, so it
does not matter which of them a parser would keep.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from kernels.ort import Cut, Layout, Output

VARINT, BYTES = 0, 2
FIXED = {1: 8, 5: 4}  # bytes of a value of wire type 1 or 5
MODEL_IR, MODEL_GRAPH, MODEL_OPSET, MODEL_METADATA = 1, 7, 8, 14
MODEL_FIELDS = {
    MODEL_IR,
    2,
    3,
    4,
    5,
    6,
    MODEL_GRAPH,
    MODEL_OPSET,
    MODEL_METADATA,
}  # others: training graphs, functions
ENTRY_KEY, ENTRY_VALUE = 1, 2
OPSET_DOMAIN = 1
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 1, 5, 11, 12
GRAPH_FIELDS = {
    GRAPH_NODE,
    2,
    GRAPH_INITIALIZER,
    10,
    GRAPH_INPUT,
    GRAPH_OUTPUT,
    13,
}  # 13: shapes; others: sparse
NODE_OPERATOR, NODE_ATTRIBUTE, NODE_DOMAIN = 4, 5, 7
NODE_FIELDS = {1, 2, 3, NODE_OPERATOR, NODE_ATTRIBUTE, 6, NODE_DOMAIN}
ATTRIBUTE_FLOAT, ATTRIBUTE_TENSOR, ATTRIBUTE_FLOATS = 2, 5, 7
ATTRIBUTE_FIELDS = {
    1,
    ATTRIBUTE_FLOAT,
    3,
    4,
    ATTRIBUTE_TENSOR,
    ATTRIBUTE_FLOATS,
    8,
    9,
    13,
    20,
}  # others: subgraphs
TENSOR_DIMS, TENSOR_TYPE, TENSOR_FLOATS, TENSOR_RAW, TENSOR_DOUBLES = 1, 2, 4, 9, 10
TENSOR_EXTERNAL, TENSOR_LOCATION = 13, 14
VALUE_NAME, VALUE_TYPE, TYPE_TENSOR, TENSOR_SHAPE, SHAPE_DIM, DIM_VALUE = 1, 2, 1, 2, 1, 1
FLOAT, INT32, INT64, BOOL, DOUBLE = 1, 6, 7, 9, 11
FLOATS: dict[int, np.dtype[Any]] = {FLOAT: np.dtype("<f4"), DOUBLE: np.dtype("<f8")}
BYTES_OF = {FLOAT: 4, INT32: 4, INT64: 8, BOOL: 1, DOUBLE: 8}
TYPES = BYTES_OF.keys()
MAX_WEIGHTS, MAX_NODES, MAX_FIELDS = 1 << 24, 1024, 1 << 16  # of a tensor, of a graph, of a message
MAX_WIDTH, MAX_LIMIT, MAX_PARTS = 1 << 20, 1e6, 8  # of a matrix, of a value, of inputs or outputs
MAX_OUTPUT = 1 << 16  # numbers in a row of one output, which `y` may not show
DOMAINS = (b"", b"ai.onnx")
OPERATORS = frozenset(
    b"Abs Add Cast Clip Concat Constant Div Erf Exp Flatten Gather Gemm Identity LayerNormalization Log LogSoftmax"
    b" MatMul Max Min Mul Neg Pow ReduceMax ReduceMean ReduceSum Relu Reshape Sigmoid Slice Softmax Softplus Split"
    b" Sqrt Squeeze Sub Tanh Transpose Unsqueeze Where".split()
)


class GraphRefused(ValueError):  # noqa: N818
    """The graph holds what a model may not; the message says what."""


def layout_of(model: bytes) -> Layout:
    """How a graph that may be run is laid out: its metadata say so, or it has one input `x` and one output `y`."""
    values: dict[int, list[bytes]] = {GRAPH_INPUT: [], GRAPH_OUTPUT: []}
    said: list[bytes] = []
    graphs = 0
    for field, value in _fields(model, MODEL_FIELDS, "model"):
        if field == MODEL_OPSET:
            _check_domain(_last(value, OPSET_DOMAIN, b""))
        elif field == MODEL_METADATA and _last(value, ENTRY_KEY, b"") == b"layout":
            said.append(_last(value, ENTRY_VALUE, b""))
        elif field == MODEL_GRAPH:
            graphs += 1
            _check_graph(value, values)
    if graphs != 1 or len(said) > 1:
        raise GraphRefused("not one graph of one layout")
    inputs, outputs = (_matrices(values[field]) for field in (GRAPH_INPUT, GRAPH_OUTPUT))
    layout = _layout(inputs.get("x", 0), said[0]) if said else Layout(inputs.get("x", 0), outputs.get("y", 0))
    reads = {"x": layout.width_in} | {cut.name: cut.width for cut in layout.cuts}
    writes = {o.name: o.plain + o.means * o.bins if o.plain else o.bins for o in layout.outputs}
    if inputs != reads or outputs != (writes or {"y": layout.width_out}):
        raise GraphRefused(f"inputs {inputs} and outputs {outputs}, not {reads} and {writes or 'y'}")
    return layout


def _layout(width_in: int, text: Any) -> Layout:
    """What the metadata of a graph say, if that is a layout."""
    try:
        carried, cut_rows, output_rows = json.loads(text)
        cuts, outputs = tuple(Cut(*row) for row in cut_rows), tuple(Output(*row) for row in output_rows)
        numbers = [carried, *(n for cut in cuts for n in cut[1:3]), *(n for o in outputs for n in o[1:4])]
        sound = [
            all(type(n) is int and 0 <= n < MAX_WIDTH for n in numbers),
            carried <= width_in,
            len(cuts) <= MAX_PARTS,
            0 < len(outputs) <= MAX_PARTS,
            len({"x", *(row.name for row in cuts)}) == 1 + len(cuts),
            len({row.name for row in outputs}) == len(outputs),
            all(cut.first + cut.width <= width_in and type(cut.rectified) is bool for cut in cuts),
            all((o.means > 0) == (o.bins > 0) and o.plain + o.means * o.bins < MAX_OUTPUT for o in outputs),
            all(type(o.limit) in (int, float) and 0 <= o.limit < MAX_LIMIT for o in outputs),
        ]
        if not all(sound):
            raise ValueError("numbers beyond reason")
        width_out = carried + sum(o.plain + o.means for o in outputs)
        return Layout(width_in, width_out, carried, cuts, outputs)
    except (ValueError, TypeError, RecursionError) as error:
        raise GraphRefused(f"metadata that are no layout: {error}") from None


def _check_graph(graph: bytes, values: dict[int, list[bytes]]) -> None:
    """Check nodes and weights; collect the descriptions of inputs and outputs."""
    nodes = 0
    for field, value in _fields(graph, GRAPH_FIELDS, "graph"):
        if field == GRAPH_NODE:
            nodes += 1
            _check_node(value)
        elif field == GRAPH_INITIALIZER:
            _check_tensor(value)
        elif field in values:
            values[field].append(value)
    if nodes > MAX_NODES:
        raise GraphRefused(f"{nodes} nodes")


def _check_node(node: bytes) -> None:
    for field, value in _fields(node, NODE_FIELDS, "node"):
        if field == NODE_OPERATOR and value not in OPERATORS:
            raise GraphRefused(f"the operator {value!r} is not on the list")
        if field == NODE_DOMAIN:
            _check_domain(value)
        if field == NODE_ATTRIBUTE:
            _check_attribute(value)


def _check_domain(domain: bytes) -> None:
    if domain not in DOMAINS:
        raise GraphRefused(f"operators of another domain, {domain!r}")


def _check_attribute(attribute: bytes) -> None:
    for field, value in _fields(attribute, ATTRIBUTE_FIELDS, "attribute"):
        if field == ATTRIBUTE_TENSOR:
            _check_tensor(value)
        elif field in (ATTRIBUTE_FLOAT, ATTRIBUTE_FLOATS):
            _check_finite(value, FLOATS[FLOAT])


def _check_tensor(tensor: bytes) -> None:
    """Weights must be inside the file, of a known type, as many as the shape says, and finite."""
    fields = list(_fields(tensor, None, "tensor"))
    if any(field in (TENSOR_EXTERNAL, TENSOR_LOCATION) and value != 0 for field, value in fields):
        raise GraphRefused("weights outside the file")
    kinds = {value for field, value in fields if field == TENSOR_TYPE}
    if len(kinds) != 1 or not kinds <= TYPES:
        raise GraphRefused(f"weights of type {sorted(kinds)}")
    kind = kinds.pop()
    count = math.prod(_integers(value for field, value in fields if field == TENSOR_DIMS))
    for field, value in fields:
        if field == TENSOR_RAW and kind in FLOATS:
            _check_finite(value, FLOATS[kind])
        elif field in (TENSOR_FLOATS, TENSOR_DOUBLES):
            _check_finite(value, FLOATS[FLOAT if field == TENSOR_FLOATS else DOUBLE])
        if field == TENSOR_RAW and (not isinstance(value, bytes) or len(value) != count * BYTES_OF[kind]):
            raise GraphRefused(f"weights that are not the {count} of their shape")
    if count > MAX_WEIGHTS:
        raise GraphRefused(f"{count} weights in one tensor")


def _integers(values: Iterable[Any]) -> Iterator[int]:
    """Integers packed or one at a time."""
    for value in values:
        if isinstance(value, int):
            yield value
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            yield number


def _check_finite(data: Any, dtype: np.dtype[Any]) -> None:
    """Floats packed or one at a time; either way the bytes are theirs."""
    if not isinstance(data, bytes) or len(data) % dtype.itemsize:
        raise GraphRefused("weights cut short")
    if not np.isfinite(np.frombuffer(data, dtype)).all():
        raise GraphRefused("NaN or infinite weights")


def _matrices(values: list[bytes]) -> dict[str, int]:
    """Columns by the names of inputs or outputs."""
    found = dict(map(_matrix, values))
    if len(found) != len(values):
        raise GraphRefused(f"{len(values)} inputs or outputs called {', '.join(found)}")
    return found


def _matrix(value: bytes) -> tuple[str, int]:
    """Name and columns of a float32 matrix."""
    name = _last(value, VALUE_NAME, b"")
    tensor = _last(_last(value, VALUE_TYPE, b""), TYPE_TENSOR, b"")
    shape = _last(tensor, TENSOR_SHAPE, b"")
    dims = [dim for field, dim in _fields(shape, {SHAPE_DIM}, "shape") if field == SHAPE_DIM]
    width = _last(dims[1], DIM_VALUE, 0) if len(dims) == 2 else 0
    if not isinstance(name, bytes) or _last(tensor, 1, 0) != FLOAT or not 0 < width < MAX_WIDTH:
        raise GraphRefused(f"{name!r} is not a float32 matrix of fixed width")
    return name.decode(errors="replace"), int(width)


def _last(message: Any, field: int, default: Any) -> Any:
    """Value of a field that is not repeated."""
    if not isinstance(message, bytes):
        raise GraphRefused("not a protobuf message")
    found = [value for number, value in _fields(message, None, "message") if number == field]
    return found[-1] if found else default


def _fields(message: Any, allowed: set[int] | None, what: str) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field: an int, or the bytes of anything else."""
    if not isinstance(message, bytes):
        raise GraphRefused(f"not a protobuf {what}")
    at = seen = 0
    while at < len(message):
        seen += 1
        if seen > MAX_FIELDS:
            raise GraphRefused(f"a {what} of more than {MAX_FIELDS} fields")
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        if allowed is not None and field not in allowed:
            raise GraphRefused(f"{what} field {field} is not on the list")
        value, at = (
            _varint(message, at) if wire in (VARINT, BYTES) else (FIXED.get(wire, len(message) + 1), at)
        )
        if wire == VARINT:
            yield field, value
            continue
        if value > len(message) - at:
            raise GraphRefused("not protobuf, or cut short")
        yield field, message[at : at + value]
        at += value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """(number, position behind it)."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise GraphRefused("not protobuf, or cut short")
