"""The ONNX reader: agrees with the onnx package, refuses external data, survives damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeopt.backends import onnx_reader
from edgeopt.backends.onnx_reader import read_onnx
from edgeopt.errors import BackendError


def test_it_reads_what_the_onnx_package_reads(tmp_path: Path) -> None:
    path = tiny_onnx.write_qdq(tmp_path / "a.onnx", "u8a8w")
    ours, theirs = read_onnx(path), onnx.load(str(path)).graph
    assert [(node.name, node.op_type, list(node.inputs), list(node.outputs)) for node in ours.nodes] == [
        (node.name, node.op_type, list(node.input), list(node.output)) for node in theirs.node
    ]
    assert {name: (item.dtype, item.dims) for name, item in ours.initializers.items()} == {
        item.name: (item.data_type, tuple(item.dims)) for item in theirs.initializer
    }
    assert ours.inputs == {"input": (1, (-1, *tiny_onnx.SHAPE))}
    assert ours.outputs == ["logits"]
    assert [node.op_type for node in ours.compute_nodes()] == ["Conv", "Conv", "Gemm"]


@pytest.mark.parametrize("raw", [True, False])
def test_small_integers_are_read_raw_and_listed(raw: bool, tmp_path: Path) -> None:
    values = np.array([-128, -1, 0, 127], np.int8)
    tensor = helper.make_tensor("z", TensorProto.INT8, [4], values.tobytes() if raw else values.tolist(), raw=raw)
    zero = read_onnx(_save(tmp_path / "a.onnx", initializers=[tensor])).initializers["z"]
    np.testing.assert_array_equal(zero.integers(), values)


def test_external_data_is_refused_in_initializers_and_in_subgraphs(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "outside")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    inner = helper.make_graph([], "inner", [], [helper.make_tensor_value_info("outside", 1, [3])], [tensor])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    constant = helper.make_node("Constant", [], ["k"], value=tensor)
    for index, options in enumerate(({"initializers": [tensor]}, {"nodes": [branch]}, {"nodes": [constant]})):
        path = _save(tmp_path / f"{index}.onnx", **options)
        with pytest.raises(BackendError, match='keeps the tensor "outside" in another file'):
            read_onnx(path)


def test_every_truncation_is_an_error_or_a_whole_model(tmp_path: Path) -> None:
    whole = tiny_onnx.write_float(tmp_path / "a.onnx").read_bytes()
    cut = tmp_path / "cut.onnx"
    for size in range(0, len(whole), 7):
        cut.write_bytes(whole[:size])
        with pytest.raises(BackendError):
            read_onnx(cut)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_never_raises_anything_else(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / "damaged.onnx"
    source = folder / "source.onnx"
    if not source.exists():
        tiny_onnx.write_qdq(source, "s8a8w")
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        model = read_onnx(path)
    except BackendError:
        return
    assert model.nodes


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "leaf", [], [])
    for _ in range(12):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=graph)], "branch", [], [])
    onnx.save(helper.make_model(graph), str(tmp_path / "deep.onnx"))
    with pytest.raises(BackendError, match="nested too deeply"):
        read_onnx(tmp_path / "deep.onnx")


def _many(what: str) -> bytes:
    """A model of few bytes a piece, which Python's objects would make a hundred times as large."""
    node = b"\x0a\x00"  # a field of a graph: one empty node
    pieces = {
        "nodes": node * 1_100,
        "inputs": b"\x0a" + _varint(2_200) + b"\x0a\x00" * 1_100,
        "dims": node + b"\x2a" + _varint(4_000) + b"\x08\x01" * 2_000,
        "packed dims": node + b"\x2a" + _varint(2_003) + b"\x0a" + _varint(2_000) + b"\x01" * 2_000,
        "tensors": node + b"\x2a\x00" * 1_100,
    }
    return b"\x3a" + _varint(len(pieces[what])) + pieces[what]


def _varint(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


@pytest.mark.parametrize("what", ["nodes", "inputs", "dims", "packed dims", "tensors"])
def test_a_small_file_does_not_fill_the_memory(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_reader, "_MAX_NAMES", 1_000)
    (tmp_path / "many.onnx").write_bytes(_many(what))
    with pytest.raises(BackendError, match=r"more nodes than any network|more inputs than any|longer than any"):
        read_onnx(tmp_path / "many.onnx")


def test_weights_that_are_listed_are_judged_too(tmp_path: Path) -> None:
    """An int8 -64 to 63 fits 7 bits but for -64; a list too long to be looked through is taken for 8 bits."""
    for values, wide in (([-63, 63], False), ([-64, 1], True), ([1] * 70_000, True)):
        tensor = helper.make_tensor("w", TensorProto.INT8, [len(values)], values)
        model = read_onnx(_save(tmp_path / "a.onnx", initializers=[tensor]))
        assert model.weights_need_8_bits() == wide


def test_a_missing_file_and_another_kind_of_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot read"):
        read_onnx(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(BackendError, match="not a readable ONNX model"):
        read_onnx(tmp_path / "text.onnx")


def _save(path: Path, *, nodes: list | None = None, initializers: list | None = None) -> Path:
    graph = helper.make_graph(
        nodes or [helper.make_node("Relu", ["input"], ["y"])],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        initializers or [],
    )
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path
