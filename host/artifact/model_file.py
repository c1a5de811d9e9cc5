"""The file `model.swt`: the graphs, the arrays and the manifest of a model in one zip, and the checks of its form.

The zip is uncompressed, sorted and dated 1980, so equal models are equal bytes.  The reader packs the members again and
compares the bytes, which differ if a zip hides anything: other paths, doubles, comments, bytes between members.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.artifact.onnx_check import layout_of
from host.artifact.onnx_shapes import GraphError
from host.atomic import atomic_write
from host.console import program_command
from host.data.parsing import parse_finite
from kernels.jit import program_digest
from kernels.ort import GraphLayout, OrtError, Session, check_status, evaluate

Arrays = dict[str, NDArray[Any]]
MODEL_FORMAT = 4
REQUIRED_KEYS = {  # keys of the manifest that the trainer gives, with the keys that each must hold
    **{"features": ("spec", "digest")},
    **dict.fromkeys(("markets", "interval_s", "history", "actions", "search", "configuration"), ()),
}
ADDED_KEYS = {"format": int, "program": str, "members": dict, "selftest": dict}  # keys that `write_model` adds
MANIFEST = "manifest.json"
MEMBER_NAME = re.compile(r"(graphs/[a-z0-9_]{1,64}\.onnx|arrays/[a-z0-9_]{1,64}\.npy)")
NPY_HEADER = re.compile(  # the header of an array: dtype and shape
    rb"\x93NUMPY\x01\0..\{'descr': '([<|](?:f[248]|[iu][1248]|b1))', "
    rb"'fortran_order': False, 'shape': \(([\d, ]{0,99})\), \} *\n",
    re.DOTALL,
)
MAX_MODEL_BYTES, MAX_MANIFEST_BYTES, MAX_MODEL_MEMBERS = 1 << 26, 1 << 23, 64
MAX_SELFTEST_ROWS = 16
SELFTEST_ROWS, SELFTEST_SEED = 3, 20_240_229
SELFTEST_TOLERANCE = 1e-4  # relative to the sum of an output and the largest output of its graph


class ModelError(Exception):
    """The file is not a model that may trade; the message names the reason."""

    exit_code = 5


class ModelFile(NamedTuple):
    """The content of a model file that passed every check but the self-test."""

    manifest: dict[str, Any]
    graphs: dict[str, bytes]  # ONNX by name
    arrays: Arrays
    sha256: str  # of the file


def write_model(path: Path, manifest: dict[str, Any], graphs: dict[str, bytes], arrays: Arrays) -> str:
    """Write a model to `path`, replacing any file there, and return the sha256 of the file.

    ModelError, and nothing is written, if the reader would refuse the model.
    """
    clashes = sorted(ADDED_KEYS.keys() & manifest.keys())
    if clashes:
        raise ValueError(f"the manifest's {', '.join(clashes)} are not the caller's to set")
    members = {f"graphs/{name}.onnx": graph for name, graph in graphs.items()}
    members |= {f"arrays/{name}.npy": _npy_bytes(array) for name, array in arrays.items()}
    added = {
        "format": MODEL_FORMAT,
        "program": program_digest(),
        "members": {name: hashlib.sha256(data).hexdigest() for name, data in members.items()},
        "selftest": {name: _selftest_vector(name, graph) for name, graph in graphs.items()},
    }
    text = json.dumps({**manifest, **added}, sort_keys=True, allow_nan=False, indent=1)
    data = pack_zip({**members, MANIFEST: text.encode()})
    model = parse_model(data)
    check_selftest(model)
    with atomic_write(path) as file:
        file.write(data)
    return model.sha256


def read_model(path: Path) -> ModelFile:
    """The content of the model file at `path`; ModelError before any graph runs."""
    data = model_bytes(path)
    try:
        return parse_model(data)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def model_bytes(path: Path) -> bytes:
    """The bytes of a model file, perhaps inside a packed program; ModelError if it is too large or no file."""
    try:
        if path.parent.is_file():  # a packed program is a zip
            with zipfile.ZipFile(path.parent) as archive:
                _check_size(path, archive.getinfo(path.name).file_size)
                with archive.open(path.name) as member:
                    return member.read(MAX_MODEL_BYTES + 1)
        if not path.exists():
            raise ModelError(f"no model at {path}: train one first: {program_command('train', 'CSV')}")
        if not path.is_file():
            raise ModelError(f"{path}: cannot be read: not a file")
        _check_size(path, path.stat().st_size)
        with path.open("rb") as file:
            return file.read(MAX_MODEL_BYTES + 1)
    except (OSError, LookupError, ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from None


def _check_size(path: Path, size: int) -> None:
    if size > MAX_MODEL_BYTES:
        raise ModelError(f"{path}: {size} bytes, larger than the {MAX_MODEL_BYTES} that a model may have")


def parse_model(data: bytes) -> ModelFile:
    """The content of a model file with these bytes; ModelError if its form is wrong."""
    members = _unpack(data)
    manifest = _read_manifest(members)
    graphs = {_stem(name): member for name, member in members.items() if name.startswith("graphs/")}
    arrays = {_stem(name): _parse_array(name, member) for name, member in members.items() if name.startswith("arrays/")}
    if not graphs or manifest["selftest"].keys() != graphs.keys():
        raise ModelError(f"{MANIFEST}: a self-test vector for each graph, no more and no less")
    for name, graph in graphs.items():
        vector = _parse_vector(name, manifest["selftest"][name])
        if _checked_layout(name, graph)[:2] != tuple(rows.shape[1] for rows in vector):
            raise ModelError(f"graph {name}: its shape is not that of its self-test vector")
    return ModelFile(manifest, graphs, arrays, hashlib.sha256(data).hexdigest())


def check_selftest(model: ModelFile) -> None:
    """ModelError if a graph returns other numbers here than on the machine that wrote the model."""
    for name, graph in model.graphs.items():
        x, expected = _parse_vector(name, model.manifest["selftest"][name])
        y = _evaluate(name, graph, x)
        scale = np.abs(expected) + np.abs(expected).max()
        if not (np.abs(y - expected) <= SELFTEST_TOLERANCE * scale).all():  # False for a NaN
            raise ModelError(f"graph {name}: its self-test gives other numbers on this machine")


def _stem(name: str) -> str:
    return Path(name).stem


def _npy_bytes(array: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def _parse_array(name: str, data: bytes) -> NDArray[Any]:
    """The array of a .npy member; ModelError unless `_npy_bytes` of the array is `data` again."""
    header = NPY_HEADER.match(data)
    if not header:
        raise ModelError(f"{name}: not a plain array of numbers")
    dtype, shape = np.dtype(header[1].decode()), tuple(int(n) for n in header[2].replace(b",", b" ").split())
    if math.prod(shape) * dtype.itemsize != len(data) - header.end():
        raise ModelError(f"{name}: not an array of that shape")
    array = np.frombuffer(data, dtype, offset=header.end()).reshape(shape)
    if _npy_bytes(array) != data:
        raise ModelError(f"{name}: not an array as this program writes it")
    if not np.isfinite(array).all():
        raise ModelError(f"{name}: NaN or infinite numbers")
    return array.copy()  # which may be written, as arrays of a training: kernels compile once for both


def pack_zip(members: dict[str, bytes]) -> bytes:
    """The bytes of a zip of these members: the same members give the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, members[name])
    return out.getvalue()


def _unpack(data: bytes) -> dict[str, bytes]:
    """The members of a zip by name; ModelError unless packing them again gives `data`."""
    if len(data) > MAX_MODEL_BYTES:
        raise ModelError(f"larger than {MAX_MODEL_BYTES} bytes")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_directory(archive.infolist(), len(data))
            members = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, struct.error, EOFError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"not a model file, or damaged: {error}") from None
    if pack_zip(members) != data:
        raise ModelError("not a model file as this program writes it, or damaged")
    return members


def _check_directory(infos: list[zipfile.ZipInfo], size: int) -> None:
    """ModelError for a member of a wrong name, kind or size, before any member is read."""
    if len(infos) > MAX_MODEL_MEMBERS:
        raise ModelError(f"more than {MAX_MODEL_MEMBERS} members")
    for info in infos:
        if info.filename != MANIFEST and not MEMBER_NAME.fullmatch(info.filename):
            raise ModelError(f"a member that has no business in a model: {info.filename!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits or info.file_size != info.compress_size:
            raise ModelError(f"{info.filename}: compressed or encrypted")
    if sum(info.file_size for info in infos) > size:
        raise ModelError("members overlap")


def _read_manifest(members: dict[str, bytes]) -> dict[str, Any]:
    """The manifest; ModelError if a key is missing or its hashes are not those of the members."""
    text = members.get(MANIFEST, b"")
    if not text or len(text) > MAX_MANIFEST_BYTES:
        raise ModelError(f"no {MANIFEST}, or one beyond {MAX_MANIFEST_BYTES} bytes")
    try:
        manifest = json.loads(text, parse_float=parse_finite, parse_constant=parse_finite)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{MANIFEST}: {error}") from None
    _check_keys(manifest)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in members.items() if name != MANIFEST}
    if manifest["members"].keys() != hashes.keys():
        odd = sorted(manifest["members"].keys() ^ hashes.keys())
        raise ModelError(f"members missing or not in the manifest: {', '.join(odd)}")
    for name, sha256 in hashes.items():
        if manifest["members"][name] != sha256:
            raise ModelError(f"{name}: its sha256 is not the manifest's")
    return dict(manifest)


def _check_keys(manifest: Any) -> None:
    if not isinstance(manifest, dict) or type(manifest.get("format")) is not int:
        raise ModelError(f"{MANIFEST}: no format number")
    if manifest["format"] != MODEL_FORMAT:
        raise ModelError(f"format {manifest['format']}; this program reads {MODEL_FORMAT}: train again")
    missing = [key for key, kind in ADDED_KEYS.items() if not isinstance(manifest.get(key), kind)]
    for key, inner in REQUIRED_KEYS.items():
        if manifest.get(key) is None:
            missing.append(key)
        elif inner:
            value = manifest[key]
            missing += [f"{key}.{k}" for k in inner if not isinstance(value, dict) or value.get(k) is None]
    if missing:
        raise ModelError(f"{MANIFEST}: missing or of a wrong type: {', '.join(missing)}")


def _checked_layout(name: str, graph: bytes) -> GraphLayout:
    try:
        return layout_of(graph)
    except GraphError as error:
        raise ModelError(f"graph {name}: {error}") from None


def _selftest_vector(name: str, graph: bytes) -> dict[str, list[list[float]]]:
    """Random input rows of a graph, of a fixed seed, and its output rows."""
    width_in = _checked_layout(name, graph).width_in
    generator = np.random.Generator(np.random.Philox(key=SELFTEST_SEED))
    x = generator.standard_normal((SELFTEST_ROWS, width_in)).astype(np.float32)
    return {"x": x.tolist(), "y": _evaluate(name, graph, x).tolist()}


def _parse_vector(name: str, vector: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The input and output rows (x, y) of a self-test vector; ModelError if their form is wrong."""
    try:
        x, y = (np.array(vector[key], np.float32) for key in ("x", "y"))
    except (TypeError, ValueError, KeyError, OverflowError):
        raise ModelError(f"graph {name}: no self-test vector") from None
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not np.isfinite(x).all() or not np.isfinite(y).all():
        raise ModelError(f"graph {name}: a self-test vector of a wrong shape, or not finite")
    if x.size == 0 or y.size == 0 or len(x) > MAX_SELFTEST_ROWS:
        raise ModelError(f"graph {name}: an empty self-test vector, or one of more than {MAX_SELFTEST_ROWS} rows")
    return x, y


def _evaluate(name: str, graph: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The output rows of a graph for input rows `x`, by ONNX Runtime."""
    layout = _checked_layout(name, graph)
    try:
        bound = Session(graph).bind(layout, [len(x)])
        bound.x[:] = x
        check_status(evaluate(bound, len(x)))
    except OrtError as error:
        raise ModelError(f"graph {name}: {error}") from None
    return bound.y.copy()
