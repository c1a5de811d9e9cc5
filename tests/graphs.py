"""Small ONNX graphs for tests."""

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper


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
