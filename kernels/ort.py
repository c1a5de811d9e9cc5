"""ONNX Runtime called from kernels through its C API, without the GIL.

Every onnxruntime wheel ships the plain C library.  Its one exported function returns a table of function pointers, to
which new versions only append.  A kernel gets integers: the address of RunWithBinding, a session, a binding.  An
address that is an argument leaves the kernel cacheable; one captured as a global does not.

Any node of a graph takes about as long as a small matrix product.  So a graph has no nodes that slice its input, join
its outputs or take means of distributions: `evaluate` does that, between one matrix `x` and one matrix `y`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import weakref
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.simd import LANES, Vector, exponential, fma, load, reduce_add, reduce_max, select, store

# Position of each function in OrtApi, API version 5 and later (onnxruntime_c_api.h; the order is frozen upstream).
API_VERSION = 17
GET_ERROR_MESSAGE, CREATE_ENV, CREATE_SESSION_FROM_ARRAY, CREATE_SESSION_OPTIONS = 2, 3, 8, 10
DISABLE_MEM_PATTERN, DISABLE_CPU_MEM_ARENA = 17, 19
SET_GRAPH_OPTIMIZATION_LEVEL, SET_INTRA_OP_THREADS, SET_INTER_OP_THREADS = 23, 24, 25
CREATE_TENSOR_WITH_DATA, CREATE_CPU_MEMORY_INFO = 49, 69
RELEASE_STATUS, RELEASE_SESSION, RELEASE_VALUE, RELEASE_SESSION_OPTIONS = 93, 95, 96, 100
ADD_SESSION_CONFIG_ENTRY, RUN_WITH_BINDING, CREATE_IO_BINDING, RELEASE_IO_BINDING = 130, 133, 134, 135
BIND_INPUT, BIND_OUTPUT = 136, 137

PTR, INT, STR, SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t
WARNINGS_AND_ABOVE, FLOAT32, ALL_OPTIMISATIONS = 3, 1, 99

# names of the library in the wheels for Linux, macOS and Windows
LIBRARIES = ("libonnxruntime.so*", "libonnxruntime.*dylib", "onnxruntime.dll")


class OrtError(RuntimeError):
    """ONNX Runtime refused a call; the message is its own."""


class _ApiBase(ctypes.Structure):
    _fields_ = (("get_api", ctypes.CFUNCTYPE(PTR, ctypes.c_uint32)), ("version", ctypes.CFUNCTYPE(STR)))


@cache
def _functions() -> ctypes.Array[ctypes.c_void_p]:
    """The function pointers of OrtApi."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise OrtError("the package onnxruntime is not installed: pip install onnxruntime")
    folder = Path(spec.origin).parent / "capi"
    libraries = [path for name in LIBRARIES for path in folder.glob(name)]
    if not libraries:
        raise OrtError(f"{folder} has none of {', '.join(LIBRARIES)}: pip install --force-reinstall onnxruntime")
    library = ctypes.CDLL(str(libraries[0]))
    library.OrtGetApiBase.restype = ctypes.POINTER(_ApiBase)
    return (PTR * (BIND_OUTPUT + 1)).from_address(library.OrtGetApiBase().contents.get_api(API_VERSION))


@cache
def _function(index: int, result: Any, *argtypes: Any) -> Any:
    return ctypes.CFUNCTYPE(result, *argtypes)(_functions()[index] or 0)


def check_status(status: int | None) -> None:
    """Raise OrtError with the message of a failed call (a non-null OrtStatus), and release the status."""
    if status:
        # the message quotes the model, whose bytes need not be text
        message = _function(GET_ERROR_MESSAGE, STR, PTR)(status).decode(errors="replace")
        _release(RELEASE_STATUS, status)
        raise OrtError(message)


def _call(index: int, *args: Any, argtypes: tuple[Any, ...]) -> None:
    check_status(_function(index, PTR, *argtypes)(*args))


def _new(index: int, *args: Any, argtypes: tuple[Any, ...] = ()) -> int:
    """Call an entry whose last argument receives a handle; return that handle."""
    handle = PTR()
    _call(index, *args, ctypes.byref(handle), argtypes=(*argtypes, PTR))
    return int(handle.value or 0)


def _release(index: int, handle: int) -> None:
    _function(index, None, PTR)(handle)


@cache
def _environment() -> tuple[int, int]:
    """The one environment of the process and the description of CPU memory."""
    env = _new(CREATE_ENV, WARNINGS_AND_ABOVE, b"swt", argtypes=(INT, STR))
    return env, _new(CREATE_CPU_MEMORY_INFO, 0, 0, argtypes=(INT, INT))


class InputSlice(NamedTuple):
    """An input of a graph besides `x`: some columns of `x`, or relu of them."""

    name: str
    first_column: int
    width: int
    relu: bool = False


class OutputHead(NamedTuple):
    """An output of a graph, the next columns of `y`: `raw` ones, then means of `categorical` distributions.

    An output without raw columns may have a row for each distribution.
    """

    name: str
    raw: int
    categorical: int = 0
    bins: int = 0  # of a distribution, each with a logit
    support_limit: float = 0.0  # the values of the bins are evenly spaced from -support_limit to support_limit


class GraphLayout(NamedTuple):
    """How inputs and outputs of a graph lie in the rows `x` and `y` of a `BoundGraph`.

    Without `heads` the graph has one output, `y`.
    """

    width_in: int
    width_out: int
    passthrough: int = 0  # first columns of y, copied from the first of x
    input_slices: tuple[InputSlice, ...] = ()
    heads: tuple[OutputHead, ...] = ()


OFFSET, SLICE_FIRST_COLUMN, SLICE_WIDTH, SLICE_RELU = range(4)  # columns of BoundGraph.input_slices
HEAD_RAW, HEAD_CATEGORICAL, HEAD_BINS, HEAD_SUPPORT = range(1, 5)  # columns of BoundGraph.heads, after OFFSET
PADDED_BIN_LOGIT = np.float32(-1e30)  # a logit of probability 0
ZERO = np.float32(0.0)


class BoundGraph(NamedTuple):
    """A graph for kernels: write rows of `x`, call `evaluate`, read rows of `y`.

    The bindings and the session live as long as `x` or `y`.  An array `..._flat` has matrices one after the other, each
    with room for LANES numbers behind it: a vector may begin in the last row of a matrix.
    """

    run_address: int  # address of RunWithBinding
    session: int
    bindings: NDArray[np.int64]  # [rows + 1] binding that evaluates so many rows, 0 where there is none
    x: NDArray[np.float32]  # [rows, width_in]
    y: NDArray[np.float32]  # [rows, width_out]
    x_flat: NDArray[np.float32]
    y_flat: NDArray[np.float32]
    passthrough: int
    input_slices: NDArray[np.int64]  # [slices, 4] offset in `slices_flat`, then the numbers of `InputSlice`
    slices_flat: NDArray[np.float32]
    heads: NDArray[np.int64]  # [heads, 5] offset in `heads_flat`, raw, categorical, bins, offset in `support`
    heads_flat: NDArray[np.float32]
    support: NDArray[np.float32]  # values of the bins of every head, each padded with zeros to a multiple of LANES
    bin_mask: NDArray[np.float32]  # 1 where `support` has a bin, 0 in the padding


def _allocate_flat(sizes: Iterable[int]) -> tuple[NDArray[np.float32], list[int]]:
    """A flat array for matrices of these sizes, and the offset of each."""
    *offsets, end = accumulate((size + LANES for size in sizes), initial=0)
    return np.zeros(end, np.float32), offsets


def _int_table(rows: Sequence[tuple[int, ...]], columns: int) -> NDArray[np.int64]:
    return np.array(rows, np.int64).reshape(-1, columns)


def _new_bound_graph(layout: GraphLayout, rows: int) -> BoundGraph:
    """Arrays for up to `rows` rows, and nothing to evaluate them with."""
    (x, _), (y, _) = (_allocate_flat([rows * width]) for width in layout[:2])
    slices_flat, offsets = _allocate_flat(rows * piece.width for piece in layout.input_slices)
    input_slices = [(offset, *piece[1:]) for offset, piece in zip(offsets, layout.input_slices, strict=True)]
    heads_flat, offsets = _allocate_flat(rows * (head.raw + head.categorical * head.bins) for head in layout.heads)
    support, bin_mask, heads = list[float](), list[float](), list[tuple[int, ...]]()
    for offset, (_, raw, categorical, bins, limit) in zip(offsets, layout.heads, strict=True):
        padding = [0.0] * (-bins % LANES)
        heads.append((offset, raw, categorical, bins, len(support)))
        support += [*np.linspace(-limit, limit, bins), *padding]
        bin_mask += [*np.ones(bins), *padding]
    return BoundGraph(
        run_address=0,
        session=0,
        bindings=np.zeros(rows + 1, np.int64),
        x=x[:-LANES].reshape(rows, layout.width_in),
        y=y[:-LANES].reshape(rows, layout.width_out),
        x_flat=x,
        y_flat=y,
        passthrough=layout.passthrough,
        input_slices=_int_table(input_slices, 4),
        slices_flat=slices_flat,
        heads=_int_table(heads, 5),
        heads_flat=heads_flat,
        support=np.array(support, np.float32),
        bin_mask=np.array(bin_mask, np.float32),
    )


def no_graph() -> BoundGraph:
    """A graph without rows, for a network that a search does not call."""
    return _new_bound_graph(GraphLayout(0, 0), 0)


def _graph_inputs(graph: BoundGraph, layout: GraphLayout, rows: int) -> dict[str, NDArray[np.float32]]:
    """The arrays that the graph reads for the first `rows` rows, by input."""
    inputs = {"x": graph.x[:rows]}
    for piece, offset in zip(layout.input_slices, graph.input_slices[:, OFFSET], strict=True):
        inputs[piece.name] = graph.slices_flat[offset : offset + rows * piece.width].reshape(rows, piece.width)
    return inputs


def _graph_outputs(graph: BoundGraph, layout: GraphLayout, rows: int) -> dict[str, NDArray[np.float32]]:
    """The arrays that the graph writes for the first `rows` rows, by output."""
    outputs = dict[str, NDArray[np.float32]]()
    for (name, raw, categorical, bins, _), offset in zip(layout.heads, graph.heads[:, OFFSET], strict=True):
        head = graph.heads_flat[offset : offset + rows * (raw + categorical * bins)]
        outputs[name] = head.reshape(rows if raw else rows * categorical, -1)
    return outputs or {"y": graph.y[:rows]}


class Session:
    """An ONNX graph, computed in the thread that calls it.  OrtError for a graph that ONNX Runtime refuses."""

    def __init__(self, graph: bytes, arena: bool = True) -> None:
        env, self._cpu = _environment()
        options = _new(CREATE_SESSION_OPTIONS)
        _call(SET_INTRA_OP_THREADS, options, 1, argtypes=(PTR, INT))
        _call(SET_INTER_OP_THREADS, options, 1, argtypes=(PTR, INT))
        _call(SET_GRAPH_OPTIMIZATION_LEVEL, options, ALL_OPTIMISATIONS, argtypes=(PTR, INT))
        spin = (options, b"session.intra_op.allow_spinning", b"0")
        _call(ADD_SESSION_CONFIG_ENTRY, *spin, argtypes=(PTR, STR, STR))
        if not arena:
            _call(DISABLE_CPU_MEM_ARENA, options, argtypes=(PTR,))
            _call(DISABLE_MEM_PATTERN, options, argtypes=(PTR,))
        try:
            arguments = (env, graph, len(graph), options)
            self.handle = _new(CREATE_SESSION_FROM_ARRAY, *arguments, argtypes=(PTR, STR, SIZE, PTR))
        finally:
            _release(RELEASE_SESSION_OPTIONS, options)
        weakref.finalize(self, _release, RELEASE_SESSION, self.handle)

    def bind(self, layout: GraphLayout, rows: Iterable[int]) -> BoundGraph:
        """New arrays for up to max(rows) rows, and a binding for each of `rows`: a call takes the next larger one."""
        counts = sorted(set(rows))
        graph = _new_bound_graph(layout, counts[-1])
        for count in counts:
            graph.bindings[count] = self._new_binding(
                _graph_inputs(graph, layout, count), _graph_outputs(graph, layout, count)
            )
        owner = _BindingOwner(self, [int(handle) for handle in graph.bindings if handle])
        x, y = (np.asarray(_KeepAlive(array, owner)) for array in (graph.x, graph.y))
        return graph._replace(run_address=int(_functions()[RUN_WITH_BINDING] or 0), session=self.handle, x=x, y=y)

    def _new_binding(self, inputs: dict[str, NDArray[np.float32]], outputs: dict[str, NDArray[np.float32]]) -> int:
        binding = _new(CREATE_IO_BINDING, self.handle, argtypes=(PTR,))
        for index, arrays in ((BIND_INPUT, inputs), (BIND_OUTPUT, outputs)):
            for name, array in arrays.items():
                shape = (ctypes.c_int64 * 2)(*array.shape)
                tensor = (self._cpu, array.ctypes.data, array.nbytes, shape, 2, FLOAT32)
                value = _new(CREATE_TENSOR_WITH_DATA, *tensor, argtypes=(PTR, PTR, SIZE, PTR, SIZE, INT))
                try:
                    _call(index, binding, name.encode(), value, argtypes=(PTR, STR, PTR))
                finally:
                    _release(RELEASE_VALUE, value)  # the binding holds its own reference
        return binding


class _BindingOwner:
    """Releases bindings when it is collected, before the session that it holds."""

    def __init__(self, session: Session, bindings: list[int]) -> None:
        self._session = session
        for binding in bindings:
            weakref.finalize(self, _release, RELEASE_IO_BINDING, binding)


class _KeepAlive:
    """The base of an array, which keeps array and owner alive: the fields of a NamedTuple cannot."""

    def __init__(self, array: NDArray[np.float32], owner: _BindingOwner) -> None:
        self.__array_interface__ = array.__array_interface__
        self._owned = array, owner


@intrinsic
def _run_compiled(typingctx: Any, run: Any, session: Any, options: Any, binding: Any) -> Any:
    """OrtStatus* RunWithBinding(session, options, binding) at address `run`; 0 means success."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        function = builder.inttoptr(args[0], ir.FunctionType(word, [word] * 3).as_pointer())
        return builder.call(function, list(args[1:]))

    return types.int64(*[types.int64] * 4), codegen


def _run_interpreted(run: int, session: int, options: int, binding: int) -> int:
    return int(ctypes.CFUNCTYPE(PTR, PTR, PTR, PTR)(run)(session, options, int(binding)) or 0)


# an intrinsic exists in compiled code only
_run: Any = _run_interpreted if config.DISABLE_JIT else _run_compiled  # type: ignore[attr-defined]


@kernel
def evaluate(graph: BoundGraph, rows: int) -> int:
    """y[:rows] = graph(x[:rows]); 0, or the OrtStatus that `check_status` turns into an exception."""
    return evaluate_prefilled(graph, rows, 0)


@kernel
def evaluate_prefilled(graph: BoundGraph, rows: int, prefilled: int) -> int:
    """`evaluate` of rows whose first `prefilled` columns of input slices `write_preactivation` has written."""
    bound = rows
    while graph.bindings[bound] == 0:
        bound += 1
    gather_inputs(graph, rows, prefilled)
    status = int(_run(graph.run_address, graph.session, 0, graph.bindings[bound]))
    if status == 0:
        scatter_outputs(graph, rows)
    return status


@inlined
def write_preactivation(graph: BoundGraph, row: int, a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
    """Write a + b into the first input slices of a row, as many as its columns fill; relu where a slice has it.

    a and b have room for LANES numbers behind them.
    """
    i = column = 0
    while column < a.shape[0]:
        width = graph.input_slices[i, SLICE_WIDTH]
        to = graph.input_slices[i, OFFSET] + row * width
        for j in range(0, width, LANES):
            z = load(a, column + j) + load(b, column + j)
            if graph.input_slices[i, SLICE_RELU] > 0:
                z = relu(z)
            store(graph.slices_flat, to + j, z)
        column += width
        i += 1


@inlined
def gather_inputs(graph: BoundGraph, rows: int, prefilled: int) -> None:
    """Copy columns of `x` into the input slices, but for the first ones, of `prefilled` columns together."""
    for i in range(graph.input_slices.shape[0]):
        prefilled -= graph.input_slices[i, SLICE_WIDTH]
        if prefilled >= 0:
            continue
        first, width = graph.input_slices[i, SLICE_FIRST_COLUMN], graph.input_slices[i, SLICE_WIDTH]
        for row in range(rows):
            to = graph.input_slices[i, OFFSET] + row * width
            copy_lanes(graph.slices_flat, to, graph.x_flat, row * graph.x.shape[1] + first, width)
            if graph.input_slices[i, SLICE_RELU] > 0:
                for j in range(0, width, LANES):
                    store(graph.slices_flat, to + j, relu(load(graph.slices_flat, to + j)))


@inlined
def scatter_outputs(graph: BoundGraph, rows: int) -> None:
    """Write `y` from the passthrough columns of `x` and the outputs of the graph."""
    # row by row: a copy may write beyond its columns, into those that are written next
    for row in range(rows):
        to = row * graph.y.shape[1]
        copy_lanes(graph.y_flat, to, graph.x_flat, row * graph.x.shape[1], graph.passthrough)
        to += graph.passthrough
        for i in range(graph.heads.shape[0]):
            raw, categorical, bins = (
                graph.heads[i, HEAD_RAW],
                graph.heads[i, HEAD_CATEGORICAL],
                graph.heads[i, HEAD_BINS],
            )
            logits = graph.heads[i, OFFSET] + row * (raw + categorical * bins)
            copy_lanes(graph.y_flat, to, graph.heads_flat, logits, raw)
            to, logits = to + raw, logits + raw
            for j in range(categorical):
                mean = categorical_mean(graph, logits + j * bins, graph.heads[i, HEAD_SUPPORT], bins)
                graph.y_flat[to + j] = mean
            to += categorical


@inlined
def copy_lanes(out: NDArray[np.float32], to: int, source: NDArray[np.float32], first: int, count: int) -> None:
    """out[to : to + count] = source[first : first + count], and on to the next multiple of LANES."""
    for j in range(0, count, LANES):
        store(out, to + j, load(source, first + j))


@inlined
def relu(z: Vector) -> Vector:
    """z where it is positive, else 0; a NaN stays NaN, so that a broken weight is not mistaken for a dead unit."""
    return select(z > ZERO, z, z * ZERO)


@inlined
def categorical_mean(graph: BoundGraph, first: int, support: int, bins: int) -> float:
    """Mean of the distribution whose logits begin at heads_flat[first]; NaN if a logit is not finite."""
    top = load_logits(graph, first, support)
    for i in range(LANES, bins, LANES):
        z = load_logits(graph, first + i, support + i)
        top = select(z > top, z, top)
    highest, mass = reduce_max(top), load(graph.support, support) * ZERO
    weighted = mass
    for i in range(0, bins, LANES):
        z = load_logits(graph, first + i, support + i)
        weight = exponential(z - highest)
        # z 0 adds nothing, but a NaN where the logit is not finite
        mass, weighted = mass + weight, fma(weight, load(graph.support, support + i), fma(z, ZERO, weighted))
    return float(reduce_add(weighted) / reduce_add(mass))


@inlined
def load_logits(graph: BoundGraph, first: int, support: int) -> Vector:
    """LANES logits of a distribution from heads_flat[first] on, PADDED_BIN_LOGIT behind its last bin."""
    return select(load(graph.bin_mask, support) > ZERO, load(graph.heads_flat, first), PADDED_BIN_LOGIT)
