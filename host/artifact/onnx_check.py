"""The check of an ONNX graph: it reads the protobuf bytes itself, before any inference and without the `onnx` package.

Field numbers are those of onnx.proto (onnx/onnx, IR version 8).  A graph may hold what `models/onnx_builder.py` writes.
An unknown field, a wrong wire type and a repeated single field are errors: parsers would disagree on their meaning.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from host.artifact.onnx_shapes import (
    FLOAT_WEIGHT,
    INT_WEIGHT,
    MAX_ROW_FLOATS,
    MAX_ROW_WORK,
    ROW_VALUE,
    GraphError,
    RowCost,
    TensorInfo,
    TensorShape,
    infer_node,
)
from kernels.ort import GraphLayout, InputSlice, OutputHead

IR_VERSION, OPSET = 8, 17
# Names and wire types of the fields of each message; + after a field that may be repeated.
MODEL_FIELDS = {1: "ir int", 2: "producer bytes", 7: "graph bytes", 8: "opset bytes+", 14: "metadata bytes+"}
METADATA_FIELDS = {1: "key bytes", 2: "value bytes"}
OPSET_FIELDS = {1: "domain bytes", 2: "version int"}
GRAPH_FIELDS = {1: "node bytes+", 2: "name bytes", 5: "weight bytes+", 11: "input bytes+", 12: "output bytes+"}
NODE_FIELDS = {1: "input bytes+", 2: "output bytes+", 3: "name bytes", 4: "operator bytes", 5: "attribute bytes+",
        7: "domain bytes"}  # fmt: skip
ATTRIBUTE_FIELDS = {1: "name bytes", 2: "f float", 3: "i int", 8: "ints int+", 20: "type int"}
TENSOR_FIELDS = {1: "dims int+", 2: "type int", 8: "name bytes", 9: "raw bytes"}
VALUE_FIELDS, TYPE_FIELDS = {1: "name bytes", 2: "type bytes"}, {1: "tensor bytes"}
TENSOR_TYPE_FIELDS = {1: "type int", 2: "shape bytes"}
SHAPE_FIELDS, DIM_FIELDS = {1: "dim bytes+"}, {1: "value int", 2: "name bytes"}
VARINT, LENGTH_DELIMITED, FIXED32 = 0, 2, 5  # wire types
WIRE_TYPES = {"int": VARINT, "bytes": LENGTH_DELIMITED, "float": FIXED32}
ATTRIBUTE_VALUE_FIELD = {1: "f", 2: "i", 7: "ints"}  # the field with the value, by the type of an attribute
FLOAT_TENSOR, INT64_TENSOR = 1, 7  # types of a tensor
DTYPES: dict[int, np.dtype[Any]] = {FLOAT_TENSOR: np.dtype("<f4"), INT64_TENSOR: np.dtype("<i8")}
NAME_PATTERN = re.compile(r"\w{1,99}", re.ASCII)
MAX_WEIGHTS, MAX_NODES, MAX_FIELDS = 1 << 24, 1024, 1 << 16  # of a tensor; of a graph; of a message
MAX_WIDTH, MAX_SUPPORT_LIMIT, MAX_PARTS = 1 << 20, 1e6, 8  # of a matrix; of a value; of inputs or of outputs
# Numbers in a row of one output.  A categorical output is wider than its columns of `y`, which hold its means.
MAX_OUTPUT_WIDTH = 1 << 16
ParsedFields = dict[str, list[Any]]
PortWidths = dict[str, tuple[str, int]]  # (symbol of the number of rows, columns) of each input or output


def layout_of(model: bytes) -> GraphLayout:
    """The layout of a graph that may run: that of its metadata, or else one input `x` and one output `y`."""
    return check_graph(model)[0]


@lru_cache(maxsize=16)  # a start reads each graph of a model several times
def check_graph(model: bytes) -> tuple[GraphLayout, RowCost]:
    """The layout of a graph that may run, and the cost of a row; GraphError for any other graph."""
    fields = _parse_message(model, MODEL_FIELDS, "model")
    versions = [_parse_message(entry, OPSET_FIELDS, "opset") for entry in fields["opset"]]
    if _single(fields, "ir") != IR_VERSION or [_single(v, "version") for v in versions] != [OPSET]:
        raise GraphError(f"not of IR version {IR_VERSION} and opset {OPSET}")
    for version in versions:
        _check_domain(version)
    graph = _parse_message(_single(fields, "graph", b""), GRAPH_FIELDS, "graph")
    inputs, outputs = _parse_matrices(graph["input"]), _parse_matrices(graph["output"])
    layout = _resolve_layout(fields["metadata"], inputs, outputs)
    values = {name: TensorInfo(ROW_VALUE, (1, columns)) for name, (_, columns) in inputs.items()}
    for weight in graph["weight"]:
        _add_tensor(values, *_parse_weight(weight))
    cost = _infer_shapes(graph["node"], values, sum(layout[:2]) + sum(cut.width for cut in layout.input_slices))
    for name, shape in _output_shapes(layout).items():
        if name in inputs or values.get(name) != TensorInfo(ROW_VALUE, shape):
            raise GraphError(f"output {name} is {values.get(name)}, not {shape} for each row")
    return layout, cost


def _resolve_layout(metadata: list[bytes], inputs: PortWidths, outputs: PortWidths) -> GraphLayout:
    """The layout of a graph; GraphError if its metadata, inputs and outputs disagree."""
    entries = [_parse_message(entry, METADATA_FIELDS, "metadata") for entry in metadata]
    layouts = [_single(entry, "value", b"") for entry in entries if _single(entry, "key") == b"layout"]
    if len(entries) > len(layouts) or len(layouts) > 1:
        raise GraphError("metadata that are not one layout")
    (rows, width_in), (_, width_out) = (ends.get(name, ("", 0)) for ends, name in ((inputs, "x"), (outputs, "y")))
    layout = _parse_layout(width_in, layouts[0]) if layouts else GraphLayout(width_in, width_out)
    reads: PortWidths = {"x": (rows, width_in)} | {cut.name: (rows, cut.width) for cut in layout.input_slices}
    writes: PortWidths = {
        o.name: (rows, o.raw + o.categorical * o.bins) if o.raw else (f"{rows}_{o.name}", o.bins) for o in layout.heads
    } or {"y": (rows, width_out)}
    if inputs != reads or outputs != writes:
        raise GraphError(f"inputs {inputs} and outputs {outputs}, not {reads} and {writes}")
    return layout


def _output_shapes(layout: GraphLayout) -> dict[str, TensorShape]:
    """The shape of each output, for one row."""
    if not layout.heads:
        return {"y": (1, layout.width_out)}
    return {o.name: (1, o.raw + o.categorical * o.bins) if o.raw else (o.categorical, o.bins) for o in layout.heads}


def _parse_layout(width_in: int, text: Any) -> GraphLayout:
    """The layout in the metadata of a graph; GraphError if they hold none."""
    try:
        passthrough, slice_rows, head_rows = json.loads(text)
        slices, heads = (tuple(InputSlice(*row) for row in slice_rows), tuple(OutputHead(*row) for row in head_rows))
        numbers = [passthrough, *(n for cut in slices for n in cut[1:3]), *(n for o in heads for n in o[1:4])]
        checks = [
            all(type(n) is int and 0 <= n < MAX_WIDTH for n in numbers),
            passthrough <= width_in,
            len(slices) <= MAX_PARTS,
            0 < len(heads) <= MAX_PARTS,
            len({"x", *(row.name for row in slices)}) == 1 + len(slices),
            len({row.name for row in heads}) == len(heads),
            all(cut.first_column + cut.width <= width_in and type(cut.relu) is bool for cut in slices),
            all(
                (o.categorical > 0) == (o.bins > 0) and o.raw + o.categorical * o.bins < MAX_OUTPUT_WIDTH for o in heads
            ),
            all(type(o.support_limit) in (int, float) and 0 <= o.support_limit < MAX_SUPPORT_LIMIT for o in heads),
        ]
        if not all(checks):
            raise ValueError("numbers beyond reason")
        width_out = passthrough + sum(o.raw + o.categorical for o in heads)
        return GraphLayout(width_in, width_out, passthrough, slices, heads)
    except (ValueError, TypeError, RecursionError) as error:
        raise GraphError(f"metadata that are no layout: {error}") from None


def _infer_shapes(nodes: list[bytes], values: dict[str, TensorInfo], floats: int) -> RowCost:
    """The cost of a row, from the shapes through the nodes in their order; the outputs of nodes join `values`."""
    if len(nodes) > MAX_NODES:
        raise GraphError(f"{len(nodes)} nodes")
    cost = RowCost(floats, 0)
    for node in (_parse_message(node, NODE_FIELDS, "node") for node in nodes):
        _check_domain(node)
        unknown = [name for name in map(_parse_name, node["input"]) if name not in values]
        if unknown:
            raise GraphError(f"a node reads {unknown[0]}, which nothing before it writes")
        reads = [values[_parse_name(name)] for name in node["input"]]
        attributes = dict(map(_parse_attribute, node["attribute"]))
        shapes, work = infer_node(_single(node, "operator", b""), reads, attributes)
        if len(shapes) != len(node["output"]) or len(attributes) != len(node["attribute"]):
            raise GraphError(f"{len(node['output'])} outputs of {_single(node, 'operator', b'')!r}")
        for name, shape in zip(map(_parse_name, node["output"]), shapes, strict=True):
            _add_tensor(values, name, TensorInfo(ROW_VALUE, shape))
        cost = RowCost(cost.floats + sum(map(math.prod, shapes)), cost.multiplications + work)
        if cost.floats > MAX_ROW_FLOATS or cost.multiplications > MAX_ROW_WORK:
            raise GraphError(f"a row takes {cost.floats} numbers and {cost.multiplications} multiplications or more")
    return cost


def _add_tensor(values: dict[str, TensorInfo], name: str, tensor: TensorInfo) -> None:
    if name in values:
        raise GraphError(f"{name} is there twice")
    values[name] = tensor


def _check_domain(fields: ParsedFields) -> None:
    if _single(fields, "domain", b"") != b"":
        raise GraphError(f"operators of another domain, {_single(fields, 'domain')!r}")


def _parse_attribute(attribute: bytes) -> tuple[str, Any]:
    """The name and the value of an attribute: an int, a float or a tuple of ints."""
    fields = _parse_message(attribute, ATTRIBUTE_FIELDS, "attribute")
    held = [name for name in ("f", "i", "ints") if fields[name]]
    if held != [ATTRIBUTE_VALUE_FIELD.get(_single(fields, "type"))]:
        raise GraphError(f"an attribute of type {_single(fields, 'type')} that holds {held}")
    values = np.frombuffer(b"".join(fields["f"]), DTYPES[FLOAT_TENSOR]).tolist() + fields["i"]
    return _parse_name(_single(fields, "name", b"")), values[0] if values else tuple(fields["ints"])


def _parse_weight(tensor: bytes) -> tuple[str, TensorInfo]:
    """The name and the tensor of weights; GraphError unless they are in the file, of a known type and finite."""
    fields = _parse_message(tensor, TENSOR_FIELDS, "tensor")
    kind, dims, raw = _single(fields, "type", 0), tuple(fields["dims"]), _single(fields, "raw", b"")
    if kind not in DTYPES:
        raise GraphError(f"weights of type {kind}")
    count = math.prod(dims)
    if len(raw) != count * DTYPES[kind].itemsize or not all(dim > 0 for dim in dims):
        raise GraphError(f"weights that are not the {count} of their shape")
    if count > MAX_WEIGHTS:
        raise GraphError(f"{count} weights in one tensor")
    array = np.frombuffer(raw, DTYPES[kind])
    if kind == FLOAT_TENSOR and not np.isfinite(array).all():
        raise GraphError("NaN or infinite weights")
    if kind == INT64_TENSOR and (len(dims) != 1 or count > MAX_NODES):
        raise GraphError(f"integers of the shape {dims}")
    is_float = kind == FLOAT_TENSOR
    tensor_info = TensorInfo(FLOAT_WEIGHT, dims) if is_float else TensorInfo(INT_WEIGHT, dims, tuple(array.tolist()))
    return _parse_name(_single(fields, "name", b"")), tensor_info


def _parse_matrices(values: list[bytes]) -> PortWidths:
    """The widths of inputs or outputs by name."""
    widths = dict(map(_parse_matrix, values))
    if len(widths) != len(values):
        raise GraphError(f"{len(values)} inputs or outputs called {', '.join(widths)}")
    return widths


def _parse_matrix(value: bytes) -> tuple[str, tuple[str, int]]:
    """The name of a float32 matrix, the symbol of its number of rows and its width; GraphError for any other value."""
    fields = _parse_message(value, VALUE_FIELDS, "value")
    name = _parse_name(_single(fields, "name", b""))
    type_fields = _parse_message(_single(fields, "type", b""), TYPE_FIELDS, "type")
    tensor = _parse_message(_single(type_fields, "tensor", b""), TENSOR_TYPE_FIELDS, "type")
    shape = _parse_message(_single(tensor, "shape", b""), SHAPE_FIELDS, "shape")
    dims = [_parse_message(dim, DIM_FIELDS, "dimension") for dim in shape["dim"]]
    is_matrix = _single(tensor, "type") == FLOAT_TENSOR and len(dims) == 2
    if not is_matrix or dims[1]["name"] or not 0 < _single(dims[1], "value", 0) < MAX_WIDTH:
        raise GraphError(f"{name!r} is not a float32 matrix of fixed width")
    if dims[0]["value"]:
        raise GraphError(f"{name!r} has {dims[0]['value'][0]} rows, however many are asked for: a fixed batch")
    return name, (_parse_name(_single(dims[0], "name", b"")), int(_single(dims[1], "value")))


def _parse_name(text: bytes) -> str:
    name = text.decode(errors="replace")
    if not NAME_PATTERN.fullmatch(name):
        raise GraphError(f"the name {name!r:.120}")
    return name


def _single(fields: ParsedFields, name: str, default: Any = None) -> Any:
    """The value of a field that is not repeated, or the default."""
    return fields[name][0] if fields[name] else default


def _parse_message(message: bytes, schema: dict[int, str], what: str) -> ParsedFields:
    """The values of each field of a message by name: ints, or the bytes of any other type."""
    kinds = {field: text.removesuffix("+").split() for field, text in schema.items()}
    fields: ParsedFields = {name: [] for name, _ in kinds.values()}
    for field, wire, value in _iter_fields(message, what):
        name, kind = kinds.get(field, ("", ""))
        if WIRE_TYPES.get(kind) != wire:
            raise GraphError(f"{what} field {field} is not on the list")
        fields[name].append(value)
        if len(fields[name]) > 1 and not schema[field].endswith("+"):
            raise GraphError(f"a {what} of more than one {name}")
    return fields


def _iter_fields(message: bytes, what: str) -> Iterator[tuple[int, int, Any]]:
    """The number, wire type and value of each field: a signed int, or the bytes of any other type."""
    offset = count = 0
    while offset < len(message):
        count += 1
        if count > MAX_FIELDS:
            raise GraphError(f"a {what} of more than {MAX_FIELDS} fields")
        key, offset = _read_varint(message, offset)
        field, wire = key >> 3, key & 7
        if wire not in (VARINT, LENGTH_DELIMITED, FIXED32):
            raise GraphError(f"wire type {wire}")
        value, offset = _read_varint(message, offset) if wire != FIXED32 else (4, offset)
        if wire == VARINT:
            yield field, wire, (value + (1 << 63)) % (1 << 64) - (1 << 63)
            continue
        if value > len(message) - offset:
            raise GraphError("not protobuf, or cut short")
        yield field, wire, message[offset : offset + value]
        offset += value


def _read_varint(message: bytes, offset: int) -> tuple[int, int]:
    """The number at `offset`, and the offset behind it; GraphError if it has no end."""
    number = 0
    for shift in range(0, 70, 7):
        if offset >= len(message):
            break
        byte = message[offset]
        offset += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, offset
    raise GraphError("not protobuf, or cut short")
