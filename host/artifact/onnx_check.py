"""What an ONNX graph may hold, read from its protobuf bytes without the `onnx` package and before any inference.

Field numbers are those of onnx.proto (onnx/onnx, IR version 8).  What `models/onnx_builder.py` does not write is
refused: an unknown field, a known one of another wire type, and one that comes twice where a parser would keep one
or merge both.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
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
# names and wire types of the fields of each message; + of those that may come more than once
MODEL_FIELDS = {1: "ir int", 2: "producer bytes", 7: "graph bytes", 8: "opset bytes+", 14: "metadata bytes+"}
METADATA_FIELDS = {1: "key bytes", 2: "value bytes"}
OPSET_FIELDS = {1: "domain bytes", 2: "version int"}
GRAPH_FIELDS = {1: "node bytes+", 2: "name bytes", 5: "weight bytes+", 11: "input bytes+", 12: "output bytes+"}
NODE_FIELDS = {1: "input bytes+", 2: "output bytes+", 3: "name bytes", 4: "operator bytes", 5: "attribute bytes+",
        7: "domain bytes"}  # fmt: skip
ATTRIBUTE_FIELDS = {1: "name bytes", 2: "f float", 3: "i int", 8: "ints int+", 20: "type int"}
TENSOR_FIELDS = {1: "dims int+", 2: "type int", 8: "name bytes", 9: "raw bytes"}
VALUE_FIELDS, TYPE_FIELDS = {1: "name bytes", 2: "type bytes"}, {1: "tensor bytes"}
TENSOR_TYPE_FIELDS, SHAPE_FIELDS, DIM_FIELDS = (
    {1: "type int", 2: "shape bytes"},
    {1: "dim bytes+"},
    {1: "value int", 2: "name bytes"},
)
VARINT, LENGTH_DELIMITED, FIXED32 = 0, 2, 5  # wire types
WIRE_TYPES = {"int": VARINT, "bytes": LENGTH_DELIMITED, "float": FIXED32}
ATTRIBUTE_VALUE_FIELD = {1: "f", 2: "i", 7: "ints"}  # field that holds an attribute of this type
FLOAT_TENSOR, INT64_TENSOR = 1, 7  # types of a tensor
DTYPES: dict[int, np.dtype[Any]] = {FLOAT_TENSOR: np.dtype("<f4"), INT64_TENSOR: np.dtype("<i8")}
NAME_PATTERN = re.compile(r"\w{1,99}", re.ASCII)
MAX_WEIGHTS, MAX_NODES, MAX_FIELDS = 1 << 24, 1024, 1 << 16  # of a tensor, of a graph, of a message
MAX_WIDTH, MAX_SUPPORT_LIMIT, MAX_PARTS = 1 << 20, 1e6, 8  # of a matrix, of a value, of inputs or outputs
MAX_OUTPUT_WIDTH = 1 << 16  # numbers in a row of one output, which `y` may not show
ParsedFields = dict[str, list[Any]]
PortWidths = dict[str, tuple[str, int]]  # (name of the number of rows, columns) of each input or output


def layout_of(model: bytes) -> GraphLayout:
    """How a graph that may be run is laid out: its metadata say so, or it has one input `x` and one output `y`."""
    return check_graph(model)[0]


def check_graph(model: bytes) -> tuple[GraphLayout, RowCost]:
    """Layout of a graph that may be run, and what a row takes; GraphRefused for any other."""
    found = _parse_message(model, MODEL_FIELDS, "model")
    versions = [_parse_message(entry, OPSET_FIELDS, "opset") for entry in found["opset"]]
    if _single(found, "ir") != IR_VERSION or [_single(v, "version") for v in versions] != [OPSET]:
        raise GraphError(f"not of IR version {IR_VERSION} and opset {OPSET}")
    for version in versions:
        _check_domain(version)
    graph = _parse_message(_single(found, "graph", b""), GRAPH_FIELDS, "graph")
    inputs, outputs = _parse_matrices(graph["input"]), _parse_matrices(graph["output"])
    layout = _resolve_layout(found["metadata"], inputs, outputs)
    values = {name: TensorInfo(ROW_VALUE, (1, columns)) for name, (_, columns) in inputs.items()}
    for weight in graph["weight"]:
        _add_tensor(values, *_parse_weight(weight))
    cost = _infer_shapes(graph["node"], values, sum(layout[:2]) + sum(cut.width for cut in layout.input_slices))
    for name, shape in _output_shapes(layout).items():
        if name in inputs or values.get(name) != TensorInfo(ROW_VALUE, shape):
            raise GraphError(f"output {name} is {values.get(name)}, not {shape} for each row")
    return layout, cost


def _resolve_layout(metadata: list[bytes], inputs: PortWidths, outputs: PortWidths) -> GraphLayout:
    """The layout that metadata, inputs and outputs agree on."""
    entries = [_parse_message(entry, METADATA_FIELDS, "metadata") for entry in metadata]
    said = [_single(entry, "value", b"") for entry in entries if _single(entry, "key") == b"layout"]
    if len(entries) > len(said) or len(said) > 1:
        raise GraphError("metadata that are not one layout")
    (rows, width_in), (_, width_out) = (ends.get(name, ("", 0)) for ends, name in ((inputs, "x"), (outputs, "y")))
    layout = _parse_layout(width_in, said[0]) if said else GraphLayout(width_in, width_out)
    reads: PortWidths = {"x": (rows, width_in)} | {cut.name: (rows, cut.width) for cut in layout.input_slices}
    writes: PortWidths = {
        o.name: (rows, o.raw + o.categorical * o.bins) if o.raw else (f"{rows}_{o.name}", o.bins) for o in layout.heads
    } or {"y": (rows, width_out)}
    if inputs != reads or outputs != writes:
        raise GraphError(f"inputs {inputs} and outputs {outputs}, not {reads} and {writes}")
    return layout


def _output_shapes(layout: GraphLayout) -> dict[str, TensorShape]:
    """Shape of each output, for one row."""
    return {
        o.name: (1, o.raw + o.categorical * o.bins) if o.raw else (o.categorical, o.bins) for o in layout.heads
    } or {"y": (1, layout.width_out)}


def _parse_layout(width_in: int, text: Any) -> GraphLayout:
    """What the metadata of a graph say, if that is a layout."""
    try:
        carried, cut_rows, output_rows = json.loads(text)
        cuts, outputs = (tuple(InputSlice(*row) for row in cut_rows), tuple(OutputHead(*row) for row in output_rows))
        numbers = [carried, *(n for cut in cuts for n in cut[1:3]), *(n for o in outputs for n in o[1:4])]
        sound = [
            all(type(n) is int and 0 <= n < MAX_WIDTH for n in numbers),
            carried <= width_in,
            len(cuts) <= MAX_PARTS,
            0 < len(outputs) <= MAX_PARTS,
            len({"x", *(row.name for row in cuts)}) == 1 + len(cuts),
            len({row.name for row in outputs}) == len(outputs),
            all(cut.first_column + cut.width <= width_in and type(cut.relu) is bool for cut in cuts),
            all(
                (o.categorical > 0) == (o.bins > 0) and o.raw + o.categorical * o.bins < MAX_OUTPUT_WIDTH
                for o in outputs
            ),
            all(type(o.support_limit) in (int, float) and 0 <= o.support_limit < MAX_SUPPORT_LIMIT for o in outputs),
        ]
        if not all(sound):
            raise ValueError("numbers beyond reason")
        width_out = carried + sum(o.raw + o.categorical for o in outputs)
        return GraphLayout(width_in, width_out, carried, cuts, outputs)
    except (ValueError, TypeError, RecursionError) as error:
        raise GraphError(f"metadata that are no layout: {error}") from None


def _infer_shapes(nodes: list[bytes], values: dict[str, TensorInfo], floats: int) -> RowCost:
    """Follow the shapes through the nodes, in their order; add what they write to `values`."""
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
    """Name and value: an int, a float or a tuple of ints."""
    fields = _parse_message(attribute, ATTRIBUTE_FIELDS, "attribute")
    held = [name for name in ("f", "i", "ints") if fields[name]]
    if held != [ATTRIBUTE_VALUE_FIELD.get(_single(fields, "type"))]:
        raise GraphError(f"an attribute of type {_single(fields, 'type')} that holds {held}")
    values = np.frombuffer(b"".join(fields["f"]), DTYPES[FLOAT_TENSOR]).tolist() + fields["i"]
    return _parse_name(_single(fields, "name", b"")), values[0] if values else tuple(fields["ints"])


def _parse_weight(tensor: bytes) -> tuple[str, TensorInfo]:
    """Name and tensor of weights: inside the file, of a known type, as many as the shape says, and finite."""
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
    name = _parse_name(_single(fields, "name", b""))
    return name, TensorInfo(FLOAT_WEIGHT, dims) if kind == FLOAT_TENSOR else TensorInfo(
        INT_WEIGHT, dims, tuple(array.tolist())
    )


def _parse_matrices(values: list[bytes]) -> PortWidths:
    """Shapes by the names of inputs or outputs."""
    found = dict(map(_parse_matrix, values))
    if len(found) != len(values):
        raise GraphError(f"{len(values)} inputs or outputs called {', '.join(found)}")
    return found


def _parse_matrix(value: bytes) -> tuple[str, tuple[str, int]]:
    """Name and shape of a float32 matrix of any number of rows."""
    fields = _parse_message(value, VALUE_FIELDS, "value")
    name = _parse_name(_single(fields, "name", b""))
    tensor = _parse_message(
        _single(_parse_message(_single(fields, "type", b""), TYPE_FIELDS, "type"), "tensor", b""),
        TENSOR_TYPE_FIELDS,
        "type",
    )
    dims = [
        _parse_message(dim, DIM_FIELDS, "dimension")
        for dim in _parse_message(_single(tensor, "shape", b""), SHAPE_FIELDS, "shape")["dim"]
    ]
    if (
        _single(tensor, "type") != FLOAT_TENSOR
        or len(dims) != 2
        or dims[1]["name"]
        or not 0 < _single(dims[1], "value", 0) < MAX_WIDTH
    ):
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
    """Value of a field that is there once or not at all."""
    return fields[name][0] if fields[name] else default


def _parse_message(message: bytes, schema: dict[int, str], what: str) -> ParsedFields:
    """The values of each field of `schema`: ints, or bytes of anything else."""
    kinds = {field: text.removesuffix("+").split() for field, text in schema.items()}
    found: ParsedFields = {name: [] for name, _ in kinds.values()}
    for field, wire, value in _iter_fields(message, what):
        name, kind = kinds.get(field, ("", ""))
        if WIRE_TYPES.get(kind) != wire:
            raise GraphError(f"{what} field {field} is not on the list")
        found[name].append(value)
        if len(found[name]) > 1 and not schema[field].endswith("+"):
            raise GraphError(f"a {what} of more than one {name}")
    return found


def _iter_fields(message: bytes, what: str) -> Iterator[tuple[int, int, Any]]:
    """(number, wire type, value) of each field: a signed int, or the bytes of anything else."""
    at = seen = 0
    while at < len(message):
        seen += 1
        if seen > MAX_FIELDS:
            raise GraphError(f"a {what} of more than {MAX_FIELDS} fields")
        key, at = _read_varint(message, at)
        field, wire = key >> 3, key & 7
        if wire not in (VARINT, LENGTH_DELIMITED, FIXED32):
            raise GraphError(f"wire type {wire}")
        value, at = _read_varint(message, at) if wire != FIXED32 else (4, at)
        if wire == VARINT:
            yield field, wire, (value + (1 << 63)) % (1 << 64) - (1 << 63)
            continue
        if value > len(message) - at:
            raise GraphError("not protobuf, or cut short")
        yield field, wire, message[at : at + value]
        at += value


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
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
    raise GraphError("not protobuf, or cut short")
