"""A model file returns what was put in, its bytes depend on nothing else, and no doctored one reaches inference."""

import hashlib
import json
import os
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from host.artifact import model_file
from host.artifact.model_file import ModelError, check_selftest, parse_model, read_model, write_model
from host.artifact.onnx_check import layout_of
from host.artifact.onnx_shapes import GraphError
from kernels.ort import GraphLayout, OutputHead

ARRAYS: dict[str, Any] = {
    "shift": np.arange(5, dtype=np.float32),
    "edges": np.linspace(-1, 1, 7),
    "codes": np.array([[1, 2]]),
}
MANIFEST: dict[str, Any] = {
    "features": {"spec": {"window": 256}, "digest": "ab"},
    "markets": [{"instrument": {"name": "EURUSD", "pip": 0.0001}, "costs": {"slippage": 0.1 + 0.2}}],
    "interval_s": 60,
    "history": 600,
    "actions": ["HOLD", "BUY", "SELL", "CLOSE"],
    "search": {"num_simulations": 16},
    "configuration": {"seed": 7},
}


def onnx_model(weights: Any, operator: str = "Relu", **replaced: Any) -> Any:
    """y = operator(x @ weights)."""
    weights = np.asarray(weights, np.float32)
    info = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node(operator, ["h"], ["y"])]
    nodes[1].domain = replaced.get("domain", "")
    x = [info(replaced.get("x", "x"), TensorProto.FLOAT, ["r", weights.shape[0]])]
    y = [info("y", TensorProto.FLOAT, ["r", weights.shape[1]])]
    graph = helper.make_graph(nodes, "g", x, y, [numpy_helper.from_array(weights, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def graph_bytes(weights: Any = None, operator: str = "Relu") -> bytes:
    weights = np.sin(np.arange(12)).reshape(4, 3) if weights is None else weights
    return bytes(onnx_model(weights, operator).SerializeToString())


GRAPHS = {"root": graph_bytes(), "dynamics": graph_bytes(np.cos(np.arange(10)).reshape(5, 2), "Tanh")}


def written(folder: Path, **replaced: Any) -> bytes:
    path = folder / "model.swt"
    arguments: dict[str, Any] = {"manifest": MANIFEST, "graphs": GRAPHS, "arrays": ARRAYS} | replaced
    write_model(path, **arguments)
    return path.read_bytes()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("model"))


def members_of(data: bytes) -> dict[str, bytes]:
    return model_file._unpack(data)


def repacked(data: bytes, change: Any, resign: bool = True) -> bytes:
    """`data` with its members changed by an attacker who knows how to hash and pack."""
    members = members_of(data)
    manifest = json.loads(members[model_file.MANIFEST])
    change(members, manifest)
    if resign:
        files = {name: blob for name, blob in members.items() if name != model_file.MANIFEST}
        manifest["members"] = {name: hashlib.sha256(blob).hexdigest() for name, blob in files.items()}
    members[model_file.MANIFEST] = json.dumps(manifest, sort_keys=True).encode()
    return model_file.pack_zip(members)


def test_round_trip(tmp_path: Path) -> None:
    sha256 = write_model(tmp_path / "m.swt", MANIFEST, GRAPHS, ARRAYS)
    model = read_model(tmp_path / "m.swt")
    check_selftest(model)
    assert model.sha256 == sha256 == hashlib.sha256((tmp_path / "m.swt").read_bytes()).hexdigest()
    assert model.graphs == GRAPHS
    assert {key: model.manifest[key] for key in MANIFEST} == MANIFEST
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(model.arrays[name], array)
        assert model.arrays[name].dtype == array.dtype
        assert model.arrays[name].flags.writeable  # or every kernel would be compiled again for arrays that are not
    assert [path.name for path in tmp_path.iterdir()] == ["m.swt"]


def test_equal_inputs_give_equal_bytes(tmp_path: Path, good: bytes) -> None:
    backwards = {name: dict(reversed(value.items())) for name, value in (("graphs", GRAPHS), ("arrays", ARRAYS))}
    assert written(tmp_path, manifest=dict(reversed(MANIFEST.items())), **backwards) == good
    assert written(tmp_path, manifest=MANIFEST | {"history": 601}) != good


def test_selftest_vector_is_the_graphs_output(good: bytes) -> None:
    vector = parse_model(good).manifest["selftest"]["root"]
    expected = np.maximum(np.array(vector["x"]) @ np.sin(np.arange(12)).reshape(4, 3), 0)
    np.testing.assert_allclose(vector["y"], expected, rtol=1e-5, atol=1e-6)


def test_every_flipped_byte_is_refused(good: bytes) -> None:
    for at in range(0, len(good)):
        with pytest.raises(ModelError):
            parse_model(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_damage_is_refused_and_nothing_else_is_raised(good: bytes, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(good)))
    stop = data.draw(st.integers(first, min(first + 64, len(good))))
    damaged = good[:first] + data.draw(st.binary(max_size=64)) + good[stop:]
    if damaged != good:
        with pytest.raises(ModelError):
            parse_model(damaged)


def test_a_graph_cut_short_is_refused() -> None:
    for end in range(len(GRAPHS["root"]) - 4, len(GRAPHS["root"])):
        with pytest.raises(GraphError):
            layout_of(GRAPHS["root"][:end])


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_damaged_graphs_are_refused_or_sound(data: st.DataObject) -> None:
    graph = GRAPHS["root"]
    at = data.draw(st.integers(0, len(graph) - 1))
    damaged = graph[:at] + data.draw(st.binary(max_size=8)) + graph[at + data.draw(st.integers(0, 8)) :]
    with suppress(GraphError):
        assert min(layout_of(damaged)[:2]) > 0


def rezipped(good: bytes, path: Path, method: int = zipfile.ZIP_STORED, more: dict[str, bytes] | None = None) -> bytes:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in [*members_of(good).items(), *(more or {}).items()]:
            archive.writestr(name, data)
    return path.read_bytes()


def test_foreign_containers_are_refused(tmp_path: Path, good: bytes) -> None:
    bomb = {"arrays/zeros.npy": bytes(1 << 24)}
    for data, reason in (
        (b"", "not a model file"),
        (b"PK\x05\x06" + bytes(18), "manifest.json"),
        (good[:-1], "not a model file"),
        (good + b"\0", "not a model file"),
        (b"\0" + good, "not a model file"),
        (rezipped(good, tmp_path / "dated.zip"), "not a model file as this"),
        (rezipped(good, tmp_path / "bomb.zip", zipfile.ZIP_DEFLATED, bomb), "compressed"),
        (rezipped(good, tmp_path / "path.zip", more={"../../evil": b""}), "no business"),
        (rezipped(good, tmp_path / "many.zip", more={f"arrays/{i}.npy": b"" for i in range(99)}), "more than"),
    ):
        with pytest.raises(ModelError, match=reason):
            parse_model(data)


def test_oversized_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: bytes) -> None:
    (tmp_path / "m.swt").write_bytes(good)
    monkeypatch.setattr(model_file, "MAX_MODEL_BYTES", len(good) - 1)
    monkeypatch.setattr(Path, "open", None)
    with pytest.raises(ModelError, match="larger"):
        read_model(tmp_path / "m.swt")


def test_a_member_of_a_packed_program_is_refused_by_its_size(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "swt.pyz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.swt", bytes(model_file.MAX_MODEL_BYTES + 1))
    for program, says in (("swt.pyz", f"{model_file.MAX_MODEL_BYTES + 1} bytes, larger"), ("other.pyz", "no model at")):
        with pytest.raises(ModelError, match=says):
            read_model(tmp_path / program / "model.swt")
    with pytest.raises(ModelError, match=r"cannot be read.*nothing\.swt"):
        read_model(tmp_path / "swt.pyz" / "nothing.swt")


def test_a_sparse_file_of_gigabytes_is_refused_at_once(tmp_path: Path) -> None:
    with (tmp_path / "m.swt").open("wb") as file:
        file.truncate(3 << 30)
    tracemalloc.start()
    with pytest.raises(ModelError, match="3221225472 bytes, larger"):
        read_model(tmp_path / "m.swt")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.skipif(os.name == "nt", reason="no such files there")
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/stdin"), tmp_path):
        with pytest.raises(ModelError, match="cannot be read: not a file"):
            read_model(path)


def npy(shape: str, payload: bytes) -> bytes:
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + payload


MEMBER_CHANGES = {
    "members missing": lambda members, manifest: members.pop("graphs/root.onnx"),
    "members missing or not": lambda members, manifest: members.update({"arrays/more.npy": b""}),
    "its sha256": lambda members, manifest: members.update({"graphs/root.onnx": GRAPHS["dynamics"]}),
}
CHANGES = {
    "a self-test vector for each": lambda members, manifest: manifest["selftest"].pop("root"),
    "no self-test vector": lambda members, manifest: manifest["selftest"].update(root={"x": [[1.0]]}),
    "wrong shape": lambda members, manifest: manifest["selftest"]["root"].update(x=[1.0]),
    "its shape is not": lambda members, manifest: manifest["selftest"]["root"].update(x=[[1.0]] * 3),
    "format 3; this program reads 4: train again": lambda members, manifest: manifest.update(format=3),
    "no format": lambda members, manifest: manifest.pop("format"),
    "missing.*history": lambda members, manifest: manifest.pop("history"),
    "missing.*program": lambda members, manifest: manifest.pop("program"),
    "missing.*features.digest": lambda members, manifest: manifest["features"].pop("digest"),
    "missing.*markets": lambda members, manifest: manifest.pop("markets"),
    "missing.*features.spec": lambda members, manifest: manifest.update(features="2021"),
    "the number NaN": lambda members, manifest: manifest.update(history=float("nan")),
    "of that shape": lambda members, manifest: members.update({"arrays/a.npy": npy("(1000000000000,)", b"")}),
    "arrays/a.npy": lambda members, manifest: members.update({"arrays/a.npy": npy("(-1, -8)", bytes(64))}),
    "a.npy: NaN": lambda members, manifest: members.update({"arrays/a.npy": model_file._npy_bytes(np.array([np.nan]))}),
    "arrays/b.npy": lambda members, manifest: members.update({"arrays/b.npy": b"pickle"}),
}


@pytest.mark.parametrize("reason", MEMBER_CHANGES)
def test_members_that_are_not_the_manifests_are_refused(good: bytes, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        parse_model(repacked(good, MEMBER_CHANGES[reason], resign=False))


@pytest.mark.parametrize("reason", CHANGES)
def test_doctored_contents_are_refused(good: bytes, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        parse_model(repacked(good, CHANGES[reason]))


def test_a_deep_manifest_and_infinity_are_refused(good: bytes) -> None:
    for text in (b"[" * 100_000, b'{"format": 1e999}', b"{", b'"\xff"', b"[]"):
        with pytest.raises(ModelError, match=r"manifest.json"):
            parse_model(model_file.pack_zip({**members_of(good), model_file.MANIFEST: text}))
    text = members_of(good)[model_file.MANIFEST].replace(b'"history": 600', b'"history": 1e999')
    with pytest.raises(ModelError, match="the number 1e999"):
        parse_model(model_file.pack_zip({**members_of(good), model_file.MANIFEST: text}))


def doctored_graphs() -> dict[str, Any]:
    """Graphs by the reason to refuse them."""
    square = np.eye(4)
    external = onnx_model(square)
    weights = external.graph.initializer[0]
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="/etc/passwd")
    listed = onnx_model(square)
    listed.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, [4, 4], [np.inf] * 16))
    constant = onnx_model(square)
    nan = numpy_helper.from_array(np.full((1, 4), np.nan, np.float32), "c")
    constant.graph.node.append(helper.make_node("Constant", [], ["c"], value=nan))
    attribute = onnx_model(square)
    attribute.graph.node.append(helper.make_node("Gemm", ["x", "w"], ["z"], alpha=float("nan")))
    half = onnx_model(square)
    half.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.eye(4, dtype=np.float16), "w"))
    shape = onnx_model(square)
    shape.graph.initializer[0].dims[0] = 1 << 40
    nodes = onnx_model(square)
    nodes.graph.node.extend([helper.make_node("Identity", ["x"], [f"i{i}"]) for i in range(1025)])
    fields = onnx_model(square)
    fields.graph.node[0].input.extend(["x"] * (1 << 16))
    subgraph = onnx_model(square)
    subgraph.graph.node.append(helper.make_node("Identity", ["x"], ["z"], body=onnx_model(square).graph))
    function = onnx_model(square)
    function.functions.add(name="f", domain="d")
    sparse = onnx_model(square)
    sparse.graph.sparse_initializer.add()
    two = onnx_model(square)
    two.graph.output.add().CopyFrom(two.graph.output[0])
    two.graph.output[1].name = "z"
    twice = onnx_model(square)
    twice.graph.output.add().CopyFrom(twice.graph.output[0])
    free = onnx_model(square)
    free.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "free"
    return {
        "tensor field 13 is not": external,
        "tensor field 4 is not": listed,
        "attribute field 5 is not": constant,
        "b'Gemm' with the attributes": attribute,
        "NaN or infinite weights": onnx_model(np.full((4, 4), np.nan)),
        "weights of type": half,
        "weights that are not": shape,
        "1027 nodes": nodes,
        "a node of more than": fields,
        "attribute field 6": subgraph,
        "model field 25": function,
        "graph field 15": sparse,
        r"outputs \{'y': \('r', 4\), 'z': \('r', 4\)\}": two,
        "2 inputs or outputs": twice,
        "fixed width": free,
        "operator b'Loop'": onnx_model(square, "Loop"),
        "another domain": onnx_model(square, domain="com.microsoft"),
        r"inputs \{'input': \('r', 4\)\}": onnx_model(square, x="input"),
    }


@pytest.mark.parametrize(
    "text",
    [
        "[0, [], [",
        "[" * 100_000,
        "{}",
        "[0, []]",
        '[-1, [], [["y", 4]]]',
        '[5, [], [["y", 4]]]',
        '[0, [["x", 0, 4]], [["y", 4]]]',
        '[0, [["y", 1, 4]], [["y", 4]]]',
        '[0, [["y", "1", 4]], [["y", 4]]]',
        "[0, [], []]",
        '[0, [], [["y", 3]]]',
        '[0, [], [["z", 4]]]',
        '[0, [], [["y", 4, 1]]]',
        '[0, [], [["y", 4, 1, 1, 1.0]]]',
        '[0, [], [["y", 3, 1, 1, NaN]]]',
        '[0, [], [["y", 3, 1, 1, 1e7]]]',
        '[0, [], [["y", 3, 1.0, 1, 1.0]]]',
        '[0, [], [["y", 0, 1000000, 1000000, 1.0]]]',
        '[0, [], [["y", 4], ["y", 4]]]',
        '[0, [["y", 0, 1], ["y", 1, 1]], [["y", 4]]]',
    ],
)
def test_metadata_that_do_not_fit_the_graph_are_refused(text: str) -> None:
    model = onnx_model(np.eye(4))
    model.metadata_props.add(key="layout", value=text)
    with pytest.raises(GraphError):
        layout_of(model.SerializeToString())


def test_an_output_is_no_wider_than_a_search_can_hold() -> None:
    model = onnx_model(np.zeros((4, 1 << 16)))
    model.metadata_props.add(key="layout", value='[0, [], [["y", 0, 1, 65536, 1.0]]]')
    with pytest.raises(GraphError, match="beyond reason"):
        layout_of(model.SerializeToString())


def test_metadata_say_how_outputs_make_y() -> None:
    model = onnx_model(np.eye(4))
    model.metadata_props.add(key="layout", value='[2, [], [["y", 1, 1, 3, 1.5]]]')
    layout = layout_of(model.SerializeToString())
    assert layout == GraphLayout(4, 4, 2, (), (OutputHead("y", 1, 1, 3, 1.5),))
    model.metadata_props.add(key="layout", value="[0, [], []]")
    with pytest.raises(GraphError, match="one layout"):
        layout_of(model.SerializeToString())


@pytest.mark.parametrize("reason", doctored_graphs())
def test_doctored_graphs_are_refused_before_inference(
    good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr(model_file, "Session", None)
    data = bytes(doctored_graphs()[reason].SerializeToString())
    with pytest.raises(ModelError, match=reason):
        parse_model(repacked(good, lambda members, manifest: members.update({"graphs/root.onnx": data})))
    with pytest.raises(ModelError, match=reason):
        write_model(tmp_path / "m.swt", MANIFEST, GRAPHS | {"root": data}, ARRAYS)
    assert not list(tmp_path.iterdir())


def test_other_numbers_fail_the_selftest(good: bytes) -> None:
    weights = np.sin(np.arange(12)).reshape(4, 3) * (1 + 1e-3)
    other = repacked(good, lambda members, manifest: members.update({"graphs/root.onnx": graph_bytes(weights)}))
    with pytest.raises(ModelError, match="self-test"):
        check_selftest(parse_model(other))


def test_a_graph_that_does_not_load_is_refused(good: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ONNX Runtime itself will not have, should it be let in."""
    broken = onnx_model(np.eye(4))
    broken.graph.node[1].input[0] = "nowhere"
    data = bytes(broken.SerializeToString())
    model = parse_model(good)._replace(graphs={"root": data})
    with pytest.raises(ModelError, match="graph root: a node reads nowhere"):
        check_selftest(model)
    monkeypatch.setattr(model_file, "layout_of", lambda graph: GraphLayout(4, 4))
    with pytest.raises(ModelError, match="graph root: Invalid model"):
        check_selftest(model)


def test_what_would_be_refused_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="NaN"):
        written(tmp_path, arrays={"shift": np.array([np.nan])})
    with pytest.raises(ModelError, match="missing"):
        written(tmp_path, manifest={key: value for key, value in MANIFEST.items() if key != "markets"})
    with pytest.raises(ValueError, match="JSON compliant"):
        written(tmp_path, manifest=MANIFEST | {"costs": float("inf")})
    with pytest.raises(ValueError, match="selftest"):
        written(tmp_path, manifest=MANIFEST | {"selftest": {}})
    assert ModelError.exit_code == 5
    assert not list(tmp_path.iterdir())
