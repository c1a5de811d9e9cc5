"""A builder of ONNX graphs from rows `x` to rows `y`; equal weights give equal bytes.

Each node costs time, so the caller of a graph slices its inputs, applies some relus and copies columns.  The metadata
of the graph say which (`kernels.ort.GraphLayout`).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from kernels.ort import GraphLayout, InputSlice, OutputHead
from models.layers import LAYERNORM_EPSILON, bin_centres
from models.shape import Array

OPSET, IR_VERSION = 17, 8


class GraphBuilder:
    """Nodes and weights in the order they are added."""

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._weights: dict[str, NDArray[Any]] = {}
        self._input_slices: list[InputSlice] = []

    def node(self, op: str, inputs: list[str], outputs: str | list[str], **attributes: Any) -> str:
        """Add a node; return the name of its first output."""
        names = [outputs] if isinstance(outputs, str) else outputs
        self._nodes.append(helper.make_node(op, inputs, names, name=names[0], **attributes))
        return names[0]

    def weight(self, name: str, array: Any, dtype: Any = np.float32) -> str:
        """Add a constant; return its name."""
        self._weights[name] = np.ascontiguousarray(array, dtype)
        return name

    def linear(self, x: str, y: str, w: Array, b: Array) -> str:
        """y = x @ w + b."""
        return self.node("Gemm", [x, self.weight(f"{y}_w", w), self.weight(f"{y}_b", b)], y)

    def linear_relu(self, x: str, y: str, w: Array, b: Array) -> str:
        """y = relu(x @ w + b)."""
        return self.node("Relu", [self.linear(x, f"{y}_z", w, b)], y)

    def layernorm(self, x: str, y: str, width: int, scale: str = "ones", shift: Array | None = None) -> str:
        """Layer norm without parameters, plus `shift` [width]."""
        weights = [self.weight(scale, np.ones(width))]
        if shift is not None:
            weights.append(self.weight("shift", shift))
        return self.node("LayerNormalization", [x, *weights], y, axis=-1, epsilon=LAYERNORM_EPSILON)

    def decode(self, z: str, y: str, limit: float, bins: int) -> str:
        """Expectation y [rows, 1] of categorical logits z [rows, bins]."""
        p = self.node("Softmax", [z], f"{y}_p", axis=-1)
        return self.node("MatMul", [p, self.weight(f"{y}_support", bin_centres(limit, bins)[:, None])], y)

    def split(self, x: str, widths: dict[str, int]) -> None:
        """Split the last axis of x into parts of these names and widths; a part of width 0 is left out."""
        widths = {name: width for name, width in widths.items() if width}
        sizes = self.weight(f"{x}_widths", list(widths.values()), np.int64)
        self.node("Split", [x, sizes], list(widths), axis=-1)

    def reshape(self, x: str, y: str, *size: int) -> str:
        """x in the shape `size`, in which one axis may be -1."""
        return self.node("Reshape", [x, self.weight(f"{y}_shape", size, np.int64)], y)

    def concat(self, parts: list[str], y: str, axis: int = -1) -> str:
        """Concatenate parts, none of which has width 0."""
        if len(parts) == 1:
            return parts[0]
        return self.node("Concat", parts, y, axis=axis)

    def input_slice(self, name: str, first: int, width: int, relu: bool = False) -> str:
        """Columns of the rows `x`, or their relu, as an input of the graph; return its name."""
        self._input_slices.append(InputSlice(name, first, width, relu))
        return name

    def serialise(self, width_in: int, outputs: list[OutputHead], passthrough: int = 0) -> bytes:
        """The bytes of the model; `y` are the first `passthrough` columns of `x`, then the outputs."""
        width_out = passthrough + sum(output.raw + output.categorical for output in outputs)
        layout = GraphLayout(width_in, width_out, passthrough, tuple(self._input_slices), tuple(outputs))
        inputs = [("x", "rows", width_in), *((part.name, "rows", part.width) for part in self._input_slices)]
        outcomes = [
            (name, "rows", plain + means * bins) if plain else (name, f"rows_{name}", bins)
            for name, plain, means, bins, _ in outputs
        ]
        read, written = (
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, width]) for name, rows, width in ends]
            for ends in (inputs, outcomes)
        )
        constants = [numpy_helper.from_array(array, name) for name, array in self._weights.items()]
        graph = helper.make_graph(self._nodes, "swt", read, written, constants)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="swt")
        helper.set_model_props(model, {"layout": json.dumps(layout[2:])})
        return bytes(model.SerializeToString(deterministic=True))
