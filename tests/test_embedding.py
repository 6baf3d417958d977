"""Preprocessing in the graph: engines that take uint8 pictures answer as those that are given normalized ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_onnx
from click.testing import CliRunner
from conftest import paint
from small_run import SPEC, write_small_run

from edgeopt import Recipe, Run, api
from edgeopt.backends.base import BuildRequest
from edgeopt.backends.embedding import embed_preprocessing
from edgeopt.bench import EngineSpec
from edgeopt.bench.crosscheck import cross_check
from edgeopt.cli.build_cmd import command
from edgeopt.config import SessionOptions, Target
from edgeopt.errors import BackendError
from edgeopt.pipeline import run_recipe
from edgeopt.preprocess import PreprocessSpec
from edgeopt.registry import BACKENDS, load_backend
from edgeopt.schemes import get_scheme
from edgeopt.stages.engines import engines, sets_folder
from edgeopt.stages.predict import predict

PLAIN, EMBEDDED = "onnxruntime/int8-u8a7w", "onnxruntime/int8-u8a7w-embedded"
#: Deviations that are no powers of two, so that another order of operations would give other bits.
ODD = PreprocessSpec(size=(16, 16), mean=(0.481, 0.457, 0.408), std=(0.268, 0.261, 0.275))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small run with plain engines, and embedded ones by the command line, for ONNX Runtime."""
    run = write_small_run(tmp_path_factory.mktemp("embedding") / "small")
    typed = ["--target", "onnxruntime", "--embed-preprocessing", "--strict", "--run", str(run.path), "--json"]
    records = json.loads(CliRunner().invoke(command, typed, catch_exceptions=False).stdout)
    assert [one["embedded_preprocessing"] for one in records] == [True, True]
    return run


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_an_engine_that_normalizes_itself_answers_as_one_given_normalized_pictures(
    name: str, precision: str, tmp_path: Path
) -> None:
    backend = load_backend(name)
    write = (lambda path: tiny_onnx.write_qdq(path, "u8a7w")) if precision == "int8" else tiny_onnx.write_float
    write(tmp_path / "source.onnx")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    scheme = get_scheme("u8a7w") if precision == "int8" else None
    target = Target(schema=1, name="t", title="t", backend=name)
    plain = BuildRequest(tmp_path / "source.onnx", tmp_path / "plain", target, precision, scheme, tiny_onnx.SHAPE)
    answers, fusions = [], []
    for request in (plain, replace(plain, folder=tmp_path / "embedded", embed=ODD)):
        request.folder.mkdir()
        built = backend.build(request)
        fusions.append(built.fusion)
        with backend.open(request.folder / built.engine, target, precision=precision, threads=1) as session:
            assert session.embedded_preprocessing is (request.embed is not None)
            given = session.prepared(pictures, ODD)
            answers += [session.infer(given), np.concatenate([session.infer(given[i : i + 1]) for i in range(3)])]
    # OpenVINO multiplies and adds with one rounding less, and folds factors into the first convolution's weights.
    bound = {("openvino", "fp32"): 1e-5, ("openvino", "int8"): 0.05 * float(answers[0].std())}.get((name, precision), 0)
    for other in answers[1:]:
        np.testing.assert_allclose(answers[0], other, rtol=0, atol=bound)
    assert fusions[1].compute_layers == fusions[0].compute_layers == 3
    assert fusions[1].int8_share_macs == fusions[0].int8_share_macs == (1.0 if precision == "int8" else 0.0)
    with pytest.raises(BackendError, match=r"expected uint8 \(N, height, width, 3\), got float32"):
        backend.open(tmp_path / "embedded" / built.engine, target, precision=precision).infer(
            np.zeros((1, 3, 16, 16), np.float32)
        )


def test_openvino_takes_pictures_that_cannot_be_written_to_in_every_way_it_infers(tmp_path: Path) -> None:
    """As those of a mapped set: copied for one request, shared for any batch, queued for several at once."""
    tiny_onnx.write_float(tmp_path / "source.onnx")
    pictures = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    pictures.flags.writeable = False
    session_options = SessionOptions(hint="throughput", streams=1)
    target = Target(schema=1, name="t", title="t", backend="openvino", batch=2, session=session_options)
    backend = load_backend("openvino")
    request = BuildRequest(tmp_path / "source.onnx", tmp_path / "e", target, "fp32", None, tiny_onnx.SHAPE, embed=SPEC)
    request.folder.mkdir()
    with backend.open(request.folder / backend.build(request).engine, target, precision="fp32", threads=1) as session:
        one = np.concatenate([session.infer(pictures[:2]), session.infer(pictures[2:])])
        np.testing.assert_allclose(session.infer(pictures), one, atol=1e-6)  # two requests at once
        np.testing.assert_allclose(session.infer(pictures[:3]), one[:3], atol=1e-5)  # of any batch


@pytest.mark.parametrize("name", sorted(set(BACKENDS) - {"onnxruntime", "openvino"}))
def test_a_backend_that_cannot_embed_says_so_before_anything_is_trained(name: str, tmp_path: Path) -> None:
    backend = load_backend(name)
    with pytest.raises(BackendError, match=f"{name} builds no engines with their preprocessing embedded"):
        backend.require_embedding()
    if name == "tensorrt":  # builds without a GPU, so that nothing else is in the way
        values = {"targets": [name], "data": {"path": "nowhere"}, "build": {"embed_preprocessing": True}}
        with pytest.raises(BackendError, match="leave --embed-preprocessing out"):
            run_recipe(Recipe.model_validate(values), run=tmp_path / "run")


def test_embedded_engines_are_evaluated_asked_and_packaged_as_the_others(run: Run, tmp_path: Path) -> None:
    record = engines(run)[EMBEDDED].record
    assert record["parity"]["ok"]
    assert record["fusion"]["int8_share_macs"] == 1.0
    assert engines(run)[PLAIN].record["embedded_preprocessing"] is False
    plain, embedded = (api.evaluate(run, key) for key in (PLAIN, EMBEDDED))
    assert embedded["predictions"] == plain["predictions"]
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(5):
        paint(index, index, (30 + 3 * index, 45 - index)).save(photos / f"{index}.png")
    expected, _ = predict(run, [str(photos)], engine=PLAIN)
    assert predict(run, [str(photos)], engine=EMBEDDED)[0] == expected
    made = api.package(run, "onnxruntime", variant="int8-u8a7w-embedded", out=tmp_path / "package")
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    typed = [sys.executable, str(made.folder / "predict.py"), str(photos), "--json"]
    done = subprocess.run(typed, capture_output=True, text=True, check=False, env=alone, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [one.to_json() for one in expected]
    # What is built again from the package takes normalized pictures, as any classifier from elsewhere.
    assert onnx.load(made.folder / made.manifest["onnx"]).graph.input[0].name == "input"


def test_the_file_is_valid_onnx_whose_names_do_not_collide(tmp_path: Path) -> None:
    source = tiny_onnx.write_float(tmp_path / "a.onnx")
    model = onnx.load(source)
    for node in model.graph.node:
        node.input[:] = ["pictures" if name == "input" else name for name in node.input]
    model.graph.input[0].name = "pictures"
    onnx.save(model, source)
    embed_preprocessing(source, tmp_path / "b.onnx", SPEC)
    written = onnx.load(tmp_path / "b.onnx")
    onnx.checker.check_model(written, full_check=True)
    [pictures] = written.graph.input
    sizes = [one.dim_value or one.dim_param for one in pictures.type.tensor_type.shape.dim]
    assert (pictures.name, pictures.type.tensor_type.elem_type) == ("pictures_", onnx.TensorProto.UINT8)
    assert sizes == ["N", 16, 16, 3]
    assert written.opset_import == model.opset_import
    for wrong in (PreprocessSpec(size=(16, 24)), PreprocessSpec(size=(24, 16))):
        with pytest.raises(BackendError, match="has another input than float32 pictures"):
            embed_preprocessing(source, tmp_path / "c.onnx", wrong)
    with pytest.raises(BackendError, match="has another input"):
        embed_preprocessing(tmp_path / "b.onnx", tmp_path / "c.onnx", SPEC)  # already embedded


@pytest.mark.slow
def test_bench_and_the_runtimes_own_tools_time_embedded_engines(run: Run) -> None:
    api.build(run, "openvino", embed_preprocessing=True)
    keys = ["onnxruntime/float-embedded", EMBEDDED, "openvino/float-embedded", "openvino/int8-u8a7w-embedded"]
    assert set(keys) <= set(api.bench(run, seconds=2).engines)
    for key in keys:
        latency = json.loads((run.path / "device" / key / "latency.json").read_text())
        assert latency["session"]["embedded_preprocessing"] is True
        # Compared with what does the same work: the embedded float engine, not the one given normalized pictures.
        # A CPU with bf16 has two of them.
        against = [one["baseline"] for one in latency["ratios"] if one["kind"] == "float"]
        assert all(one.endswith("-embedded") for one in against)
        assert against or "float" in key
    for key in (key for key in keys if "int8" in key):
        built = engines(run)[key]
        spec = EngineSpec(key, str(built.record["backend"]), built.path, built.target, "int8").completed(
            pictures=sets_folder(run, built.preprocess), preprocess=built.preprocess_path, threads=1
        )
        found = cross_check(spec, rounds=1, seconds=0.2)
        assert found is not None
        assert found.p50_ms > 0
