"""Small ONNX graphs for tests."""

import json
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from kernels.ort import Layout


def widths(graph: bytes) -> Layout:
    """The layout of a graph that computes in float64, as no model may, for tests that compare with a formula."""
    model = onnx.load_from_string(graph).graph
    return Layout(*(row[0].type.tensor_type.shape.dim[1].dim_value for row in (model.input, model.output)))


class Naive:
    """A graph's rows y of its rows x as its metadata tell, by ONNX Runtime's own Python and numpy."""

    def __init__(self, graph: bytes) -> None:
        self.session = onnxruntime.InferenceSession(graph)
        properties = onnx.load_from_string(graph).metadata_props
        self.carried, self.cuts, self.outputs = json.loads(properties[0].value) if properties else (0, [], [])

    def __call__(self, x: Any) -> Any:
        x = np.asarray(x, np.float32)
        cuts = {
            name: np.maximum(x[:, first : first + width], 0 if rectified else -np.inf)
            for name, first, width, rectified in self.cuts
        }
        found = self.session.run([name for name, *_ in self.outputs] or None, {"x": x, **cuts})
        if not self.outputs:
            return found[0]
        columns = [x[:, : self.carried]]
        for z, (_, plain, means, bins, limit) in zip(found, self.outputs, strict=True):
            rows = z.reshape(len(x), -1).astype(np.float64)
            columns.append(rows[:, :plain])
            for i in range(means):
                logits = rows[:, plain + i * bins : plain + (i + 1) * bins]
                p = np.exp(logits - logits.max(axis=1, keepdims=True))
                columns.append((p @ np.linspace(-limit, limit, bins) / p.sum(axis=1))[:, None])
        return np.concatenate(columns, axis=1).astype(np.float32)


def graph(
    columns_in: int, columns_out: int, steps: list[tuple[str, list[str], str]], weights: dict[str, Any]
) -> bytes:
    """ONNX bytes of a few nodes that lead from `x64` to `y64`, computed in float64."""
    steps = [("Cast", ["x"], "x64"), *steps, ("Cast", ["y64"], "y")]
    attributes = {"Concat": {"axis": 1}}
    nodes = []
    for op, inputs, output in steps:
        to = {"to": TensorProto.FLOAT if output == "y" else TensorProto.DOUBLE} if op == "Cast" else {}
        nodes.append(helper.make_node(op, inputs, [output], **attributes.get(op, {}), **to))
    info = helper.make_tensor_value_info
    constants = [numpy_helper.from_array(np.asarray(w, np.float64), name) for name, w in weights.items()]
    x = [info("x", TensorProto.FLOAT, ["r", columns_in])]
    y = [info("y", TensorProto.FLOAT, ["r", columns_out])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", x, y, constants),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return bytes(model.SerializeToString())
