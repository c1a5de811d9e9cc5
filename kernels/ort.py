"""ONNX Runtime called from kernels through its C API, without the GIL.

Every onnxruntime wheel ships the plain C library; its one exported function hands out a table of function pointers to
which entries are only ever appended.  A kernel gets integers (the address of RunWithBinding, a session, a binding): an
address that arrives as an argument leaves the kernel cacheable, one captured as a global does not.

A node of a graph costs about as much as a small product, whatever it does.  So a graph neither cuts its input nor joins
its outputs nor takes the means of distributions: `evaluate` does, and a caller sees one matrix `x` and one matrix `y`.
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

# what the wheels call it on Linux, macOS and Windows
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
    found = [path for name in LIBRARIES for path in folder.glob(name)]
    if not found:
        raise OrtError(f"{folder} has none of {', '.join(LIBRARIES)}: pip install --force-reinstall onnxruntime")
    library = ctypes.CDLL(str(found[0]))
    library.OrtGetApiBase.restype = ctypes.POINTER(_ApiBase)
    return (PTR * (BIND_OUTPUT + 1)).from_address(library.OrtGetApiBase().contents.get_api(API_VERSION))


@cache
def _function(index: int, result: Any, *argtypes: Any) -> Any:
    return ctypes.CFUNCTYPE(result, *argtypes)(_functions()[index] or 0)


def check_status(status: int | None) -> None:
    """Raise what a failed call (a non-null OrtStatus) says, and release it."""
    if status:
        # it quotes the model, whose bytes need not be text
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
    """An input of a graph besides `x`: columns of it once more, on their own, perhaps rectified."""

    name: str
    first_column: int
    width: int
    relu: bool = False


class OutputHead(NamedTuple):
    """An output of a graph, the next columns of `y`: some as they are, then means of categorical distributions.

    Without columns of the first kind it may have a row for each distribution.
    """

    name: str
    raw: int
    categorical: int = 0
    bins: int = 0  # logits of a distribution
    support_limit: float = 0.0  # their values are evenly spaced from -limit to limit


class GraphLayout(NamedTuple):
    """How `x` and `y` of a `BoundGraph` are inputs and outputs of its graph; without `heads` they are all there are."""

    width_in: int
    width_out: int
    passthrough: int = 0  # first columns of x that are the first of y
    input_slices: tuple[InputSlice, ...] = ()
    heads: tuple[OutputHead, ...] = ()


OFFSET, SLICE_FIRST_COLUMN, SLICE_WIDTH, SLICE_RELU = range(4)  # columns of Net.input_slices
HEAD_RAW, HEAD_CATEGORICAL, HEAD_BINS, HEAD_SUPPORT = range(1, 5)  # columns of Net.heads, after BEGIN
PADDED_BIN_LOGIT, ZERO = np.float32(-1e30), np.float32(0.0)  # a logit of probability 0


class BoundGraph(NamedTuple):
    """One graph as a kernel sees it: write rows of `x`, call `evaluate`, read rows of `y`.

    Its bindings and its session live as long as `x` or `y`.  What is flat has matrices one after the other, each with
    room behind it for LANES numbers: a vector may begin in its last row.
    """

    run_address: int  # address of RunWithBinding
    session: int
    bindings: NDArray[np.int64]  # [R + 1] binding that evaluates the first r rows, 0 where none was made
    x: NDArray[np.float32]  # [R, I]
    y: NDArray[np.float32]  # [R, O]
    x_flat: NDArray[np.float32]
    y_flat: NDArray[np.float32]
    passthrough: int
    input_slices: NDArray[np.int64]  # [.., 4] begin in `slices_flat`, `InputSlice`
    slices_flat: NDArray[np.float32]
    heads: NDArray[np.int64]  # [.., 5] begin in `heads_flat`, `OutputHead`, begin in `support`
    heads_flat: NDArray[np.float32]
    support: NDArray[np.float32]  # values of bins, and zeros up to a multiple of LANES
    bin_mask: NDArray[np.float32]  # 1 where there is a bin


def _allocate_flat(sizes: Iterable[int]) -> tuple[NDArray[np.float32], list[int]]:
    """A flat array for matrices of so many numbers, and where each begins."""
    *begins, end = accumulate((size + LANES for size in sizes), initial=0)
    return np.zeros(end, np.float32), begins


def _int_table(rows: Sequence[tuple[int, ...]], columns: int) -> NDArray[np.int64]:
    return np.array(rows, np.int64).reshape(-1, columns)


def _new_bound_graph(layout: GraphLayout, rows: int) -> BoundGraph:
    """Arrays for up to `rows` rows, and nothing to evaluate them with."""
    (x, _), (y, _) = (_allocate_flat([rows * width]) for width in layout[:2])
    cut_flat, begins = _allocate_flat(rows * cut.width for cut in layout.input_slices)
    cuts = [(begin, *cut[1:]) for begin, cut in zip(begins, layout.input_slices, strict=True)]
    part_flat, begins = _allocate_flat(rows * (o.raw + o.categorical * o.bins) for o in layout.heads)
    support, inside, parts = list[float](), list[float](), list[tuple[int, ...]]()
    for begin, (_, *part, limit) in zip(begins, layout.heads, strict=True):
        bins, beyond = part[-1], [0.0] * (-part[-1] % LANES)
        parts.append((begin, *part, len(support)))
        support += [*np.linspace(-limit, limit, bins), *beyond]
        inside += [*np.ones(bins), *beyond]
    return BoundGraph(
        run_address=0,
        session=0,
        bindings=np.zeros(rows + 1, np.int64),
        x=x[:-LANES].reshape(rows, layout.width_in),
        y=y[:-LANES].reshape(rows, layout.width_out),
        x_flat=x,
        y_flat=y,
        passthrough=layout.passthrough,
        input_slices=_int_table(cuts, 4),
        slices_flat=cut_flat,
        heads=_int_table(parts, 5),
        heads_flat=part_flat,
        support=np.array(support, np.float32),
        bin_mask=np.array(inside, np.float32),
    )


def no_graph() -> BoundGraph:
    """Stands for a network that a search does not call."""
    return _new_bound_graph(GraphLayout(0, 0), 0)


def _graph_inputs(graph: BoundGraph, layout: GraphLayout, rows: int) -> dict[str, NDArray[np.float32]]:
    """What the graph reads of the first `rows` rows."""
    found = {"x": graph.x[:rows]}
    for cut, begin in zip(layout.input_slices, graph.input_slices[:, OFFSET], strict=True):
        found[cut.name] = graph.slices_flat[begin : begin + rows * cut.width].reshape(rows, cut.width)
    return found


def _graph_outputs(graph: BoundGraph, layout: GraphLayout, rows: int) -> dict[str, NDArray[np.float32]]:
    """What the graph writes of the first `rows` rows."""
    found = dict[str, NDArray[np.float32]]()
    for (name, plain, means, bins, _), begin in zip(layout.heads, graph.heads[:, OFFSET], strict=True):
        part = graph.heads_flat[begin : begin + rows * (plain + means * bins)]
        found[name] = part.reshape(rows if plain else rows * means, -1)
    return found or {"y": graph.y[:rows]}


class Session:
    """An ONNX graph that computes in the thread that calls it."""

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
        """Fresh arrays for up to max(rows) rows; a call evaluates the next larger of `rows`."""
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
    """Releases bindings, and only then lets go of their session."""

    def __init__(self, session: Session, bindings: list[int]) -> None:
        self._session = session
        for binding in bindings:
            weakref.finalize(self, _release, RELEASE_IO_BINDING, binding)


class _KeepAlive:
    """An array that keeps its owner alive: a `BoundGraph` is a plain tuple and could not."""

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
    """`evaluate` after `write_preactivation` has written so many columns of every row."""
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
    """Have a + b stand for the columns of the first cuts in a row; both have room behind them for LANES numbers."""
    i = at = 0
    while at < a.shape[0]:
        width = graph.input_slices[i, SLICE_WIDTH]
        to = graph.input_slices[i, OFFSET] + row * width
        for j in range(0, width, LANES):
            z = load(a, at + j) + load(b, at + j)
            if graph.input_slices[i, SLICE_RELU] > 0:
                z = relu(z)
            store(graph.slices_flat, to + j, z)
        at += width
        i += 1


@inlined
def gather_inputs(graph: BoundGraph, rows: int, prefilled: int) -> None:
    """Write what the graph reads besides `x` and has not been told."""
    for i in range(graph.input_slices.shape[0]):
        prefilled -= graph.input_slices[i, SLICE_WIDTH]
        if prefilled >= 0:
            continue
        begin, first, width = (
            graph.input_slices[i, OFFSET],
            graph.input_slices[i, SLICE_FIRST_COLUMN],
            graph.input_slices[i, SLICE_WIDTH],
        )
        for row in range(rows):
            to, at = begin + row * width, row * graph.x.shape[1] + first
            copy_lanes(graph.slices_flat, to, graph.x_flat, at, width)
            if graph.input_slices[i, SLICE_RELU] > 0:
                for j in range(0, width, LANES):
                    store(graph.slices_flat, to + j, relu(load(graph.slices_flat, to + j)))


@inlined
def scatter_outputs(graph: BoundGraph, rows: int) -> None:
    """Write the columns of `y` that are not an output of the graph as they stand, row by row: copies run over."""
    for row in range(rows):
        to = row * graph.y.shape[1]
        copy_lanes(graph.y_flat, to, graph.x_flat, row * graph.x.shape[1], graph.passthrough)
        to += graph.passthrough
        for i in range(graph.heads.shape[0]):
            plain, means, bins = (graph.heads[i, HEAD_RAW], graph.heads[i, HEAD_CATEGORICAL], graph.heads[i, HEAD_BINS])
            at = graph.heads[i, OFFSET] + row * (plain + means * bins)
            copy_lanes(graph.y_flat, to, graph.heads_flat, at, plain)
            to += plain
            for k in range(means):
                graph.y_flat[to + k] = categorical_mean(
                    graph, at + plain + k * bins, graph.heads[i, HEAD_SUPPORT], bins
                )
            to += means


@inlined
def copy_lanes(to: NDArray[np.float32], i: int, of: NDArray[np.float32], k: int, count: int) -> None:
    """to[i : i + count] = of[k : k + count], and what follows, up to a multiple of LANES."""
    for j in range(0, count, LANES):
        store(to, i + j, load(of, k + j))


@inlined
def relu(z: Vector) -> Vector:
    """z, or 0 where it is less; of what is no finite number comes one that is none."""
    return select(z > ZERO, z, z * ZERO)


@inlined
def categorical_mean(graph: BoundGraph, at: int, support: int, bins: int) -> float:
    """Expectation of the distribution whose logits begin at part_flat[at]; NaN if one of them is no finite number."""
    top = load_logits(graph, at, support)
    for i in range(LANES, bins, LANES):
        z = load_logits(graph, at + i, support + i)
        top = select(z > top, z, top)
    highest, mass = reduce_max(top), load(graph.support, support) * ZERO
    worth = mass
    for i in range(0, bins, LANES):
        z = load_logits(graph, at + i, support + i)
        weight = exponential(z - highest)
        mass, worth = mass + weight, fma(weight, load(graph.support, support + i), fma(z, ZERO, worth))
    return float(reduce_add(worth) / reduce_add(mass))


@inlined
def load_logits(graph: BoundGraph, at: int, support: int) -> Vector:
    """The next logits of a distribution, and LEAST where there are no more."""
    return select(load(graph.bin_mask, support) > ZERO, load(graph.heads_flat, at), PADDED_BIN_LOGIT)
