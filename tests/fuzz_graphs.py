"""Doctor exported graphs in a process of its own, which a graph that is wrongly let in may crash.

`python -m tests.fuzz_graphs FIRST COUNT` prints a line before and after each seed: the parent sees which one it was.
"""

import json
import random
import sys
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from host.artifact.onnx_check import GraphRefused, layout_of
from kernels.ort import OrtError, Session, check, evaluate
from models import params as net
from models.export import export

SHAPES = [
    net.Shape(features=12, latent=8, hidden=10, codes=5),
    net.Shape(features=12, latent=8, hidden=10, codes=5, sizes=4, prefix=4),
    net.Shape(features=12, latent=8, hidden=10, codes=5, layers=1, heads=2, window=2, context=3),
]
OPERATORS = """
    Add Sub Mul Div Mod Pow Clip Concat Gemm LayerNormalization MatMul MatMulInteger ReduceSum ReduceMean Relu Reshape
    Sigmoid Slice Softmax Split Tanh Transpose Gather GatherND Cast Constant ConstantOfShape Expand Tile Pad Range Where
    Identity Shape Loop If Scan Squeeze Unsqueeze Flatten Resize OneHot NonZero CumSum TopK Einsum Conv LSTM BitShift
""".split()
NUMBERS = (-(2**63), 2**63 - 1, -(2**31), 2**31, -2, -1, 0, 1, 2, 3, 4, 5, 7, 8, 1 << 20, 1 << 40)
ROWS = (1, 3, 8)
AXES: dict[str, Any] = {"axis": [-1, 1, 2]}
SOUND: list[tuple[str, str, dict[str, Any]]] = [  # operator, kinds of its inputs, attributes to choose from
    *((op, kinds, {}) for op in ("Add", "Sub", "Mul") for kinds in ("rr", "rf", "fr")),
    *((op, "r", {}) for op in ("Relu", "Sigmoid", "Tanh")),
    ("Concat", "rr", AXES),
    ("Concat", "rrr", AXES),
    ("Gemm", "rff", {}),
    ("Gemm", "rfr", {}),
    ("MatMul", "rf", {}),
    ("MatMul", "rr", {}),
    ("Softmax", "r", AXES),
    ("Reshape", "ri", {}),
    ("ReduceSum", "ri", {"keepdims": [0, 1]}),
    ("Slice", "riii", {}),
    ("Split", "ri", AXES),
    ("Transpose", "r", {"perm": [[0, 2, 1], [0, 1], [0, 3, 1, 2]]}),
    ("LayerNormalization", "rf", {"axis": [-1], "epsilon": [1e-5]}),
    ("Clip", "rff", {}),
]


@cache
def exported(seed: int) -> list[bytes]:
    """Every graph of one kind of network."""
    shape = SHAPES[seed]
    flat, slots = net.new_params(shape, seed), 0 if shape.prefix else 2
    flat += np.random.default_rng(seed).normal(0, 0.3, flat.shape).astype(np.float32)
    return [*export(flat, shape, slots).values()]


class Victim:
    """A model, and what one change of it is about."""

    def __init__(self, model: Any, draw: random.Random) -> None:
        self.model, self.graph, self.draw = model, model.graph, draw
        self.node, self.weight = draw.choice(model.graph.node), draw.choice(model.graph.initializer)
        self.end = draw.choice([*model.graph.input, *model.graph.output])
        nodes = [name for node in model.graph.node for name in (*node.input, *node.output)]
        self.names = [*nodes, *(weight.name for weight in model.graph.initializer), "new"]

    def name(self) -> str:
        return self.draw.choice(self.names)

    def operator(self) -> None:
        self.node.op_type = self.draw.choice(OPERATORS)

    def new_attribute(self) -> None:
        name = self.draw.choice(["axis", "perm", "keepdims", "alpha", "to"])
        self.node.attribute.append(helper.make_attribute(name, self.draw.choice(NUMBERS)))

    def attribute(self) -> None:
        found = self.draw.choice(self.node.attribute)
        if found.ints:
            found.ints[self.draw.randrange(len(found.ints))] = self.draw.choice(NUMBERS)
        else:
            found.i, found.f = self.draw.choice(NUMBERS), self.draw.choice([0.0, 1e30, -1.0, float("nan")])

    def no_attribute(self) -> None:
        self.node.attribute.remove(self.draw.choice(self.node.attribute))

    def integer(self) -> None:
        weight = self.draw.choice([w for w in self.graph.initializer if w.data_type == TensorProto.INT64])
        array = numpy_helper.to_array(weight).copy()
        array[self.draw.randrange(len(array))] = self.draw.choice(NUMBERS)
        weight.raw_data = array.tobytes()

    def reads(self) -> None:
        self.node.input[self.draw.randrange(len(self.node.input))] = self.name()

    def reads_more(self) -> None:
        self.node.input.append(self.name())

    def reads_less(self) -> None:
        self.node.input.pop()

    def writes(self) -> None:
        self.node.output[0] = self.name()

    def writes_more(self) -> None:
        self.node.output.append(self.name())

    def new_node(self) -> None:
        reads = self.draw.choices(self.names, k=self.draw.randint(1, 3))
        new = helper.make_node(self.draw.choice(OPERATORS), reads, [self.name()])
        self.graph.node.insert(self.draw.randrange(len(self.graph.node) + 1), new)

    def no_node(self) -> None:
        self.graph.node.remove(self.node)

    def twice(self) -> None:
        self.graph.node.append(self.node)

    def shape(self) -> None:
        self.weight.dims[0] = self.draw.choice(NUMBERS)

    def kind(self) -> None:
        self.weight.data_type = self.draw.choice([1, 2, 6, 7, 9, 10, 11])

    def cut_short(self) -> None:
        self.weight.raw_data = self.weight.raw_data[: self.draw.randrange(len(self.weight.raw_data))]

    def weight_name(self) -> None:
        self.weight.name = self.name()

    def no_weight(self) -> None:
        self.graph.initializer.remove(self.weight)

    def batch(self) -> None:
        self.draw.choice(self.end.type.tensor_type.shape.dim).dim_value = self.draw.choice(NUMBERS)

    def rows(self) -> None:
        name = self.draw.choice(["rows", "rows_heads", "", "other"])
        self.draw.choice(self.end.type.tensor_type.shape.dim).dim_param = name

    def end_kind(self) -> None:
        self.end.type.tensor_type.elem_type = self.draw.choice([1, 6, 7, 10, 11])

    def claim(self) -> None:
        shape = [self.draw.choice(NUMBERS)]
        self.graph.value_info.append(helper.make_tensor_value_info(self.name(), TensorProto.FLOAT, shape))

    def metadata(self) -> None:
        said = json.loads(self.model.metadata_props[0].value)
        row = self.draw.choice(self.draw.choice(said[1:]))
        row[self.draw.randrange(1, len(row))] = self.draw.choice(NUMBERS[4:])
        self.model.metadata_props[0].value = json.dumps(said)

    def sound_node(self) -> None:
        """What might be let in: behind a value that it reads, and before something that reads it from now on."""
        graph, draw = self.graph, self.draw
        first = draw.randrange(len(graph.node))
        known = [name for node in graph.node[: first + 1] for name in node.output]
        op, kinds, options = draw.choice(SOUND)
        reads = [draw.choice(known) if kind == "r" else self.new_weight(kind) for kind in kinds]
        told = {key: draw.choice(values) for key, values in options.items()}
        new = helper.make_node(op, reads, [f"new{draw.randrange(10**9)}"], **told)
        graph.node.insert(first + 1, new)
        reader = draw.choice(graph.node[first + 2 :])
        reader.input[draw.randrange(len(reader.input))] = new.output[0]

    def new_weight(self, kind: str) -> str:
        draw, name = self.draw, f"new{self.draw.randrange(10**9)}"
        shape = [draw.choice([1, 1, 2, 3, 4, 8, 10, 24]) for _ in range(draw.randint(0, 2))]
        array = np.random.default_rng(draw.randrange(99)).normal(size=shape).astype(np.float32)
        if kind == "i":
            array = np.array(draw.choice([[1], [2], [-1], [-1, 4], [-1, 2, 4], [4, 4], [8]]))
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name


CHANGES = [
    change for name, change in vars(Victim).items() if name[0] != "_" and name not in ("name", "new_weight")
]


def doctored(seed: int) -> bytes:
    """A graph that somebody has changed, once or a few times in any way, or often and so that it is let in."""
    draw = random.Random(seed)
    graph = draw.choice(exported(draw.randrange(len(SHAPES))))
    patient = draw.random() < 0.5
    for _ in range(60 if patient else draw.randint(1, 3)):
        model = onnx.load_from_string(graph)
        with suppress(
            IndexError, ValueError
        ):  # what was to change is no longer there, or takes no such number
            draw.choice([*CHANGES, *[Victim.sound_node] * 8])(Victim(model, draw))
        changed = model.SerializeToString()
        if not patient or is_let_in(changed):
            graph = changed
    data = bytearray(graph)
    if draw.random() < 0.1:
        at = draw.randrange(len(data))
        data[at : at + draw.randrange(9)] = draw.randbytes(draw.randrange(9))
    return bytes(data)


def is_let_in(graph: bytes) -> bool:
    with suppress(GraphRefused):
        return layout_of(graph) is not None
    return False


def verdict(graph: bytes) -> str:
    """What becomes of a graph: refused; or accepted, and then ONNX's own reference computes the same."""
    try:
        layout = layout_of(graph)
    except GraphRefused:
        return "refused"
    reference = ReferenceEvaluator(onnx.load_from_string(graph))
    try:
        net = Session(graph).bind(layout, ROWS)
        for rows in ROWS:
            net.x[:] = np.random.default_rng(rows).normal(size=net.x.shape)
            check(evaluate(net, rows))
            compare(net, layout, rows, reference)
    except OrtError as error:
        return f"failed: {error}"
    return "equal"


def compare(net: Any, layout: Any, rows: int, reference: Any) -> None:
    """AssertionError where an output of the graph is not the reference's."""
    x = net.x[:rows]
    columns = [(cut.name, x[:, cut.first : cut.first + cut.width], cut.rectified) for cut in layout.cuts]
    cuts = {name: np.maximum(part, 0) if rectified else part for name, part, rectified in columns}
    with np.errstate(all="ignore"):
        found = reference.run(None, {"x": x, **cuts})
    at = layout.carried
    for (_, plain, means, _, _), part in zip(layout.outputs, found, strict=True):
        mine, theirs = net.y[:rows, at : at + plain], part.reshape(rows, -1)[:, :plain]
        np.testing.assert_allclose(mine, theirs, rtol=2e-3, atol=2e-3)
        at += plain + means


if __name__ == "__main__":
    first, count = map(int, sys.argv[1:])
    for seed in range(first, first + count):
        print(seed, end=" ", flush=True)
        print(verdict(doctored(seed)), flush=True)
