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
import sys
import weakref
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from kernels._jit import inlined, kernel
from kernels.simd import LANES, Vector, choose, exponential, fused, largest, load, total

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


class OrtError(RuntimeError):
    """ONNX Runtime refused a call; the message is its own."""


class _ApiBase(ctypes.Structure):
    _fields_ = (("get_api", ctypes.CFUNCTYPE(PTR, ctypes.c_uint32)), ("version", ctypes.CFUNCTYPE(STR)))


@cache
def _table() -> ctypes.Array[ctypes.c_void_p]:
    """The function pointers of OrtApi."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise OrtError("the package onnxruntime is not installed: pip install onnxruntime")
    pattern = {"win32": "onnxruntime.dll", "darwin": "libonnxruntime*.dylib"}
    folder = Path(spec.origin).parent / "capi"
    library = ctypes.CDLL(str(next(folder.glob(pattern.get(sys.platform, "libonnxruntime.so*")))))
    library.OrtGetApiBase.restype = ctypes.POINTER(_ApiBase)
    return (PTR * (BIND_OUTPUT + 1)).from_address(library.OrtGetApiBase().contents.get_api(API_VERSION))


@cache
def _function(index: int, result: Any, *argtypes: Any) -> Any:
    return ctypes.CFUNCTYPE(result, *argtypes)(_table()[index] or 0)


def check(status: int | None) -> None:
    """Raise what a failed call (a non-null OrtStatus) says, and release it."""
    if status:
        # it quotes the model, whose bytes need not be text
        message = _function(GET_ERROR_MESSAGE, STR, PTR)(status).decode(errors="replace")
        _release(RELEASE_STATUS, status)
        raise OrtError(message)


def _call(index: int, *args: Any, argtypes: tuple[Any, ...]) -> None:
    check(_function(index, PTR, *argtypes)(*args))


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


class Cut(NamedTuple):
    """An input of a graph besides `x`: columns of it once more, on their own."""

    name: str
    first: int
    width: int


class Output(NamedTuple):
    """An output of a graph, the next columns of `y`: some as they are, then means of categorical distributions.

    Without columns of the first kind it may have a row for each distribution.
    """

    name: str
    plain: int
    means: int = 0
    bins: int = 0  # logits of a distribution
    limit: float = 0.0  # their values are evenly spaced from -limit to limit


class Layout(NamedTuple):
    """How `x` and `y` of a `Net` are inputs and outputs of its graph; without `outputs` they are all there are."""

    width_in: int
    width_out: int
    carried: int = 0  # first columns of x that are the first of y
    cuts: tuple[Cut, ...] = ()  # at most CUTS
    outputs: tuple[Output, ...] = ()  # at most PARTS


class CutColumns(NamedTuple):
    """A `Cut` as a kernel sees it."""

    x: NDArray[np.float32]  # [R, W]
    first: int


class Part(NamedTuple):
    """An `Output` as a kernel sees it."""

    z: NDArray[np.float32]  # [R (plain + means bins) + LANES] its rows, and room to load the last ones
    plain: int
    means: int
    bins: int
    support: NDArray[np.float32]  # [V] values of the bins, and zeros up to a multiple of LANES
    inside: NDArray[np.float32]  # [V] 1 where there is a bin


CUTS, PARTS = 2, 3
LEAST, ZERO = np.float32(-1e30), np.float32(0.0)  # a logit of probability 0


class Net(NamedTuple):
    """One graph as a kernel sees it: write rows of `x`, call `evaluate`, read rows of `y`.

    Its bindings and its session live as long as `x` or `y`.
    """

    run: int  # address of RunWithBinding
    session: int
    bindings: NDArray[np.int64]  # [R + 1] binding that evaluates the first r rows, 0 where none was made
    x: NDArray[np.float32]  # [R, I]
    y: NDArray[np.float32]  # [R, O]
    carried: int
    cuts: tuple[CutColumns, CutColumns]
    parts: tuple[Part, Part, Part]


def _matrix(rows: int, width: int) -> NDArray[np.float32]:
    return np.zeros((rows, width), np.float32)


def _cut_columns(rows: int, cuts: tuple[Cut, ...]) -> tuple[CutColumns, CutColumns]:
    """Arrays for `cuts`; those that are not there have no columns."""
    one, two = (*cuts, *[Cut("", 0, 0)] * CUTS)[:CUTS]
    return CutColumns(_matrix(rows, one.width), one.first), CutColumns(_matrix(rows, two.width), two.first)


def _part(rows: int, output: Output) -> Part:
    _, plain, means, bins, limit = output
    support, inside = np.zeros((2, -(-bins // LANES) * LANES), np.float32)
    support[:bins], inside[:bins] = np.linspace(-limit, limit, bins), 1
    z = np.zeros(rows * (plain + means * bins) + LANES, np.float32)
    return Part(z, plain, means, bins, support, inside)


def _parts(rows: int, outputs: tuple[Output, ...]) -> tuple[Part, Part, Part]:
    """Arrays for `outputs`; those that are not there have no columns."""
    one, two, three = (*outputs, *[Output("", 0)] * PARTS)[:PARTS]
    return _part(rows, one), _part(rows, two), _part(rows, three)


def no_net() -> Net:
    """Stands for a network that a search does not call."""
    nothing = _matrix(0, 0), _matrix(0, 0), 0, _cut_columns(0, ()), _parts(0, ())
    return Net(0, 0, np.zeros(1, np.int64), *nothing)


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

    def bind(self, layout: Layout, rows: Iterable[int]) -> Net:
        """Fresh arrays for up to max(rows) rows; a call evaluates the next larger of `rows`."""
        counts = sorted(set(rows))
        R = counts[-1]
        x, y = _matrix(R, layout.width_in), _matrix(R, layout.width_out)
        cuts, parts = _cut_columns(R, layout.cuts), _parts(R, layout.outputs)
        inputs = {"x": x} | {cut.name: columns.x for cut, columns in zip(layout.cuts, cuts, strict=False)}
        outputs = {
            output.name: part.z[:-LANES].reshape(R if output.plain else R * output.means, -1)
            for output, part in zip(layout.outputs, parts, strict=False)
        } or {"y": y}
        bindings = np.zeros(R + 1, np.int64)
        for count in counts:
            bindings[count] = self._binding(
                {name: array[: len(array) // R * count] for name, array in inputs.items()},
                {name: array[: len(array) // R * count] for name, array in outputs.items()},
            )
        owner = _Owner(self, [int(handle) for handle in bindings if handle])
        x, y = (np.asarray(_Kept(array, owner)) for array in (x, y))
        run = int(_table()[RUN_WITH_BINDING] or 0)
        return Net(run, self.handle, bindings, x, y, layout.carried, cuts, parts)

    def _binding(
        self, inputs: dict[str, NDArray[np.float32]], outputs: dict[str, NDArray[np.float32]]
    ) -> int:
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


class _Owner:
    """Releases bindings, and only then lets go of their session."""

    def __init__(self, session: Session, bindings: list[int]) -> None:
        self._session = session
        for binding in bindings:
            weakref.finalize(self, _release, RELEASE_IO_BINDING, binding)


class _Kept:
    """An array that keeps its owner alive: a `Net` is a plain tuple and could not."""

    def __init__(self, array: NDArray[np.float32], owner: _Owner) -> None:
        self.__array_interface__ = array.__array_interface__
        self._kept = array, owner


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
def evaluate(net: Net, rows: int) -> int:
    """y[:rows] = graph(x[:rows]); 0, or the OrtStatus that `check` turns into an exception."""
    bound = rows
    while net.bindings[bound] == 0:
        bound += 1
    cut(net, rows)
    status = int(_run(net.run, net.session, 0, net.bindings[bound]))
    if status == 0:
        join(net, rows)
    return status


@inlined
def cut(net: Net, rows: int) -> None:
    """Write what the graph reads besides `x`."""
    for columns in net.cuts:
        for row in range(rows):
            for i in range(columns.x.shape[1]):
                columns.x[row, i] = net.x[row, columns.first + i]


@inlined
def join(net: Net, rows: int) -> None:
    """Write the columns of `y` that are not an output of the graph as they stand."""
    for row in range(rows):
        for i in range(net.carried):
            net.y[row, i] = net.x[row, i]
    column = net.carried
    for part in net.parts:
        means = column + part.plain
        for row in range(rows):
            at = row * (part.plain + part.means * part.bins)
            for i in range(part.plain):
                net.y[row, column + i] = part.z[at + i]
            for i in range(part.means):
                net.y[row, means + i] = mean(part, at + part.plain + i * part.bins)
        column = means + part.means


@inlined
def mean(part: Part, at: int) -> float:
    """Expectation of the distribution whose logits begin at z[at]; NaN if one of them is no finite number."""
    top = logits(part, at, 0)
    for i in range(LANES, part.support.shape[0], LANES):
        z = logits(part, at, i)
        top = choose(z > top, z, top)
    highest, z = largest(top), logits(part, at, 0)
    mass = exponential(z - highest)
    worth = fused(mass, load(part.support, 0), z * ZERO)
    for i in range(LANES, part.support.shape[0], LANES):
        z = logits(part, at, i)
        weight = exponential(z - highest)
        mass, worth = mass + weight, fused(weight, load(part.support, i), fused(z, ZERO, worth))
    return float(total(worth) / total(mass))


@inlined
def logits(part: Part, at: int, i: int) -> Vector:
    """Lanes i and after of the logits that begin at z[at]."""
    return choose(load(part.inside, i) > ZERO, load(part.z, at + i), LEAST)
