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
    FLOATS,
    INTEGERS,
    MAX_FLOATS,
    MAX_WORK,
    ROWS,
    Cost,
    GraphRefused,
    Shape,
    Tensor,
    run_node,
)
from kernels.ort import Cut, Layout, Output

IR_VERSION, OPSET = 8, 17
# names and wire types of the fields of each message; + of those that may come more than once
MODEL = {1: "ir int", 2: "producer bytes", 7: "graph bytes", 8: "opset bytes+", 14: "metadata bytes+"}
ENTRY = {1: "key bytes", 2: "value bytes"}
VERSION = {1: "domain bytes", 2: "version int"}
GRAPH = {1: "node bytes+", 2: "name bytes", 5: "weight bytes+", 11: "input bytes+", 12: "output bytes+"}
NODE = {1: "input bytes+", 2: "output bytes+", 3: "name bytes", 4: "operator bytes", 5: "attribute bytes+",
        7: "domain bytes"}  # fmt: skip
ATTRIBUTE = {1: "name bytes", 2: "f float", 3: "i int", 8: "ints int+", 20: "type int"}
TENSOR = {1: "dims int+", 2: "type int", 8: "name bytes", 9: "raw bytes"}
VALUE, TYPE = {1: "name bytes", 2: "type bytes"}, {1: "tensor bytes"}
TENSOR_TYPE, SHAPE, DIM = (
    {1: "type int", 2: "shape bytes"},
    {1: "dim bytes+"},
    {1: "value int", 2: "name bytes"},
)
VARINT, BYTES, FLOAT32 = 0, 2, 5  # wire types
WIRES = {"int": VARINT, "bytes": BYTES, "float": FLOAT32}
VALUE_OF = {1: "f", 2: "i", 7: "ints"}  # field that holds an attribute of this type
FLOAT, INT64 = 1, 7  # types of a tensor
DTYPES: dict[int, np.dtype[Any]] = {FLOAT: np.dtype("<f4"), INT64: np.dtype("<i8")}
NAME = re.compile(r"\w{1,99}", re.ASCII)
MAX_WEIGHTS, MAX_NODES, MAX_FIELDS = 1 << 24, 1024, 1 << 16  # of a tensor, of a graph, of a message
MAX_WIDTH, MAX_LIMIT, MAX_PARTS = 1 << 20, 1e6, 8  # of a matrix, of a value, of inputs or outputs
MAX_OUTPUT = 1 << 16  # numbers in a row of one output, which `y` may not show
Fields = dict[str, list[Any]]
Ends = dict[str, tuple[str, int]]  # (name of the number of rows, columns) of each input or output


def layout_of(model: bytes) -> Layout:
    """How a graph that may be run is laid out: its metadata say so, or it has one input `x` and one output `y`."""
    return judge(model)[0]


def judge(model: bytes) -> tuple[Layout, Cost]:
    """Layout of a graph that may be run, and what a row takes; GraphRefused for any other."""
    found = _read(model, MODEL, "model")
    versions = [_read(entry, VERSION, "opset") for entry in found["opset"]]
    if _one(found, "ir") != IR_VERSION or [_one(v, "version") for v in versions] != [OPSET]:
        raise GraphRefused(f"not of IR version {IR_VERSION} and opset {OPSET}")
    for version in versions:
        _check_domain(version)
    graph = _read(_one(found, "graph", b""), GRAPH, "graph")
    inputs, outputs = _matrices(graph["input"]), _matrices(graph["output"])
    layout = _layout_of(found["metadata"], inputs, outputs)
    values = {name: Tensor(ROWS, (1, columns)) for name, (_, columns) in inputs.items()}
    for weight in graph["weight"]:
        _add(values, *_weight(weight))
    cost = _run(graph["node"], values, sum(layout[:2]) + sum(cut.width for cut in layout.cuts))
    for name, shape in _shapes(layout).items():
        if name in inputs or values.get(name) != Tensor(ROWS, shape):
            raise GraphRefused(f"output {name} is {values.get(name)}, not {shape} for each row")
    return layout, cost


def _layout_of(metadata: list[bytes], inputs: Ends, outputs: Ends) -> Layout:
    """The layout that metadata, inputs and outputs agree on."""
    entries = [_read(entry, ENTRY, "metadata") for entry in metadata]
    said = [_one(entry, "value", b"") for entry in entries if _one(entry, "key") == b"layout"]
    if len(entries) > len(said) or len(said) > 1:
        raise GraphRefused("metadata that are not one layout")
    (rows, width_in), (_, width_out) = (
        ends.get(name, ("", 0)) for ends, name in ((inputs, "x"), (outputs, "y"))
    )
    layout = _layout(width_in, said[0]) if said else Layout(width_in, width_out)
    reads: Ends = {"x": (rows, width_in)} | {cut.name: (rows, cut.width) for cut in layout.cuts}
    writes: Ends = {
        o.name: (rows, o.plain + o.means * o.bins) if o.plain else (f"{rows}_{o.name}", o.bins)
        for o in layout.outputs
    } or {"y": (rows, width_out)}
    if inputs != reads or outputs != writes:
        raise GraphRefused(f"inputs {inputs} and outputs {outputs}, not {reads} and {writes}")
    return layout


def _shapes(layout: Layout) -> dict[str, Shape]:
    """Shape of each output, for one row."""
    return {
        o.name: (1, o.plain + o.means * o.bins) if o.plain else (o.means, o.bins) for o in layout.outputs
    } or {"y": (1, layout.width_out)}


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


def _run(nodes: list[bytes], values: dict[str, Tensor], floats: int) -> Cost:
    """Follow the shapes through the nodes, in their order; add what they write to `values`."""
    if len(nodes) > MAX_NODES:
        raise GraphRefused(f"{len(nodes)} nodes")
    cost = Cost(floats, 0)
    for node in (_read(node, NODE, "node") for node in nodes):
        _check_domain(node)
        unknown = [name for name in map(_name, node["input"]) if name not in values]
        if unknown:
            raise GraphRefused(f"a node reads {unknown[0]}, which nothing before it writes")
        reads = [values[_name(name)] for name in node["input"]]
        attributes = dict(map(_attribute, node["attribute"]))
        shapes, work = run_node(_one(node, "operator", b""), reads, attributes)
        if len(shapes) != len(node["output"]) or len(attributes) != len(node["attribute"]):
            raise GraphRefused(f"{len(node['output'])} outputs of {_one(node, 'operator', b'')!r}")
        for name, shape in zip(map(_name, node["output"]), shapes, strict=True):
            _add(values, name, Tensor(ROWS, shape))
        cost = Cost(cost.floats + sum(map(math.prod, shapes)), cost.work + work)
        if cost.floats > MAX_FLOATS or cost.work > MAX_WORK:
            raise GraphRefused(f"a row takes {cost.floats} numbers and {cost.work} multiplications or more")
    return cost


def _add(values: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    if name in values:
        raise GraphRefused(f"{name} is there twice")
    values[name] = tensor


def _check_domain(fields: Fields) -> None:
    if _one(fields, "domain", b"") != b"":
        raise GraphRefused(f"operators of another domain, {_one(fields, 'domain')!r}")


def _attribute(attribute: bytes) -> tuple[str, Any]:
    """Name and value: an int, a float or a tuple of ints."""
    fields = _read(attribute, ATTRIBUTE, "attribute")
    held = [name for name in ("f", "i", "ints") if fields[name]]
    if held != [VALUE_OF.get(_one(fields, "type"))]:
        raise GraphRefused(f"an attribute of type {_one(fields, 'type')} that holds {held}")
    values = np.frombuffer(b"".join(fields["f"]), DTYPES[FLOAT]).tolist() + fields["i"]
    return _name(_one(fields, "name", b"")), values[0] if values else tuple(fields["ints"])


def _weight(tensor: bytes) -> tuple[str, Tensor]:
    """Name and tensor of weights: inside the file, of a known type, as many as the shape says, and finite."""
    fields = _read(tensor, TENSOR, "tensor")
    kind, dims, raw = _one(fields, "type", 0), tuple(fields["dims"]), _one(fields, "raw", b"")
    if kind not in DTYPES:
        raise GraphRefused(f"weights of type {kind}")
    count = math.prod(dims)
    if len(raw) != count * DTYPES[kind].itemsize or not all(dim > 0 for dim in dims):
        raise GraphRefused(f"weights that are not the {count} of their shape")
    if count > MAX_WEIGHTS:
        raise GraphRefused(f"{count} weights in one tensor")
    array = np.frombuffer(raw, DTYPES[kind])
    if kind == FLOAT and not np.isfinite(array).all():
        raise GraphRefused("NaN or infinite weights")
    if kind == INT64 and (len(dims) != 1 or count > MAX_NODES):
        raise GraphRefused(f"integers of the shape {dims}")
    name = _name(_one(fields, "name", b""))
    return name, Tensor(FLOATS, dims) if kind == FLOAT else Tensor(INTEGERS, dims, tuple(array.tolist()))


def _matrices(values: list[bytes]) -> Ends:
    """Shapes by the names of inputs or outputs."""
    found = dict(map(_matrix, values))
    if len(found) != len(values):
        raise GraphRefused(f"{len(values)} inputs or outputs called {', '.join(found)}")
    return found


def _matrix(value: bytes) -> tuple[str, tuple[str, int]]:
    """Name and shape of a float32 matrix of any number of rows."""
    fields = _read(value, VALUE, "value")
    name = _name(_one(fields, "name", b""))
    tensor = _read(_one(_read(_one(fields, "type", b""), TYPE, "type"), "tensor", b""), TENSOR_TYPE, "type")
    dims = [_read(dim, DIM, "dimension") for dim in _read(_one(tensor, "shape", b""), SHAPE, "shape")["dim"]]
    if (
        _one(tensor, "type") != FLOAT
        or len(dims) != 2
        or dims[1]["name"]
        or not 0 < _one(dims[1], "value", 0) < MAX_WIDTH
    ):
        raise GraphRefused(f"{name!r} is not a float32 matrix of fixed width")
    if dims[0]["value"]:
        raise GraphRefused(
            f"{name!r} has {dims[0]['value'][0]} rows, however many are asked for: a fixed batch"
        )
    return name, (_name(_one(dims[0], "name", b"")), int(_one(dims[1], "value")))


def _name(text: bytes) -> str:
    name = text.decode(errors="replace")
    if not NAME.fullmatch(name):
        raise GraphRefused(f"the name {name!r:.120}")
    return name


def _one(fields: Fields, name: str, default: Any = None) -> Any:
    """Value of a field that is there once or not at all."""
    return fields[name][0] if fields[name] else default


def _read(message: bytes, schema: dict[int, str], what: str) -> Fields:
    """The values of each field of `schema`: ints, or bytes of anything else."""
    kinds = {field: text.removesuffix("+").split() for field, text in schema.items()}
    found: Fields = {name: [] for name, _ in kinds.values()}
    for field, wire, value in _fields(message, what):
        name, kind = kinds.get(field, ("", ""))
        if WIRES.get(kind) != wire:
            raise GraphRefused(f"{what} field {field} is not on the list")
        found[name].append(value)
        if len(found[name]) > 1 and not schema[field].endswith("+"):
            raise GraphRefused(f"a {what} of more than one {name}")
    return found


def _fields(message: bytes, what: str) -> Iterator[tuple[int, int, Any]]:
    """(number, wire type, value) of each field: a signed int, or the bytes of anything else."""
    at = seen = 0
    while at < len(message):
        seen += 1
        if seen > MAX_FIELDS:
            raise GraphRefused(f"a {what} of more than {MAX_FIELDS} fields")
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        if wire not in (VARINT, BYTES, FLOAT32):
            raise GraphRefused(f"wire type {wire}")
        value, at = _varint(message, at) if wire != FLOAT32 else (4, at)
        if wire == VARINT:
            yield field, wire, (value + (1 << 63)) % (1 << 64) - (1 << 63)
            continue
        if value > len(message) - at:
            raise GraphRefused("not protobuf, or cut short")
        yield field, wire, message[at : at + value]
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
