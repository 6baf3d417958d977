"""What every backend in the registry keeps, and every target; a backend that is not here is skipped aloud."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_onnx  # beside conftest.py, one folder up

from edgeopt import registry, resources
from edgeopt.backends import capability
from edgeopt.backends.base import Availability, Backend, BuildRequest, BuildResult, FusionReport, Session
from edgeopt.config import SessionOptions, Target, load_target
from edgeopt.errors import BackendError, MissingBackendError
from edgeopt.export.precision import to_fp16
from edgeopt.schemes import SCHEMES, get_scheme

BACKENDS = sorted(registry.backends())
#: Where building ahead of time needs to be told for which GPU.
SESSIONS = {"tensorrt_rtx": SessionOptions(compute_capabilities=("SM86",))}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    loaded = registry.load_backend(request.param)
    assert isinstance(loaded, Backend)
    return loaded


def _runs(backend: Backend) -> Backend:
    """The backend, or a visible skip with the reason and the command that would help."""
    found = backend.availability()
    if not found.ok:
        pytest.skip(f"{backend.name} does not run here: {found.reason}; {found.install}")
    return backend


def _builds(backend: Backend) -> Backend:
    found = backend.can_build()
    if not found.ok:
        pytest.skip(f"{backend.name} cannot build here: {found.reason}; {found.install}")
    if backend.name == "pytorch":
        pytest.skip("pytorch runs the trained model itself and builds nothing (tests/test_torch_session.py)")
    return backend


def _request(backend: Backend, folder: Path, precision: str) -> BuildRequest:
    folder.mkdir(parents=True, exist_ok=True)
    scheme = backend.schemes()[0] if precision == "int8" else None
    onnx = folder.with_suffix(".onnx")
    if scheme:
        tiny_onnx.write_qdq(onnx, scheme)
    else:
        tiny_onnx.write_float(onnx)
    return BuildRequest(
        onnx=onnx,
        folder=folder,
        target=Target(
            schema=1, name="t", title="t", backend=backend.name, session=SESSIONS.get(backend.name, SessionOptions())
        ),
        precision=precision,
        scheme=get_scheme(scheme) if scheme else None,
        input_shape=tiny_onnx.SHAPE,
    )


def _open(backend: Backend, folder: Path, precision: str) -> Session:
    request = _request(_builds(_runs(backend)), folder, precision)
    built = backend.build(request)
    assert built.engine is not None
    return backend.open(folder / built.engine, request.target, precision=precision, threads=1)


def _pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *tiny_onnx.SHAPE)).astype(np.float32)


def test_it_says_what_it_is(backend: Backend) -> None:
    assert backend.name in BACKENDS
    assert "fp32" in backend.precisions
    assert set(backend.precisions) <= {"fp32", "bf16", "fp16", "int8"}
    assert set(backend.float_baselines()) <= set(backend.precisions) - {"int8"}
    assert set(backend.schemes()) <= set(SCHEMES)
    assert backend.float_rest in ("fp32", "fp16")


def test_an_absent_backend_says_why_and_what_to_type(backend: Backend) -> None:
    for found in (backend.availability(), backend.can_build()):
        assert isinstance(found, Availability)
        if found.ok:
            assert found.reason == ""
        else:
            assert found.reason
            assert found.install
    if backend.availability().ok:
        assert backend.availability().version
        backend.require()
    else:
        with pytest.raises(MissingBackendError) as caught:
            backend.require()
        assert caught.value.fix == backend.availability().install


@pytest.mark.parametrize("package", ["onnxruntime", "openvino", "tensorrt_rtx"])
def test_a_package_that_is_not_installed_is_a_reason_and_not_a_crash(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what import finds for a package that is not there
    found = registry.load_backend(package).can_build()
    assert not found.ok
    assert found.install == f'pip install "edgeopt[{package.replace("_", "-")}]"'


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_a_precision_of_the_table_answers_as_float32_or_is_refused_aloud(
    backend: Backend, precision: str, tmp_path: Path
) -> None:
    """Those that the capability table does not list are refused by name; so is what this machine's devices lack."""
    request = _request(_builds(backend), tmp_path / "built", precision)
    if precision not in backend.precisions:
        with pytest.raises(BackendError, match=f"has no precision {precision}"):
            backend.build(request)
        return
    if precision == "fp16" and backend.name != "openvino":  # which makes it of the float32 file
        half = tmp_path / "half.onnx"
        to_fp16(request.onnx, half)
        request = replace(request, onnx=half)
    [row] = [one for one in capability.PRECISIONS if (one.backend, one.precision) == (backend.name, precision)]
    if row.needs and precision not in backend.float_baselines():
        with pytest.raises(BackendError, match=f"does not compute in {precision}"):
            backend.build(request)
        return
    built = backend.build(request)
    if built.engine is None or not built.runs_here:
        pytest.skip(f"built for another device: {built.reason}")
    pictures = _pictures(4)
    with backend.open(request.folder / built.engine, request.target, precision=precision, threads=1) as session:
        answers = session.infer(pictures)
    reference = onnxruntime.InferenceSession(str(request.onnx.with_name("built.onnx"))).run(None, {"input": pictures})[
        0
    ]
    assert np.abs(answers - reference).mean() <= {"fp32": 1e-3, "int8": 0.05}.get(precision, 0.01) * reference.std()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_build_leaves_what_it_says(backend: Backend, precision: str, tmp_path: Path) -> None:
    _builds(backend)
    request = _request(backend, tmp_path / "built", precision)
    built = backend.build(request)
    assert isinstance(built, BuildResult)
    json.dumps(dict(built.details))
    if built.engine is None:
        assert built.reason
        assert built.device_command.startswith("edgeopt ")
    else:
        assert built.files[0] == built.engine
        assert all((request.folder / name).stat().st_size > 0 for name in built.files)
        alone = tmp_path / "alone"  # the engine's size is theirs, so they must be all that it needs
        alone.mkdir()
        for name in built.files:
            shutil.copy(request.folder / name, alone)
        if built.runs_here:
            with backend.open(alone / built.engine, request.target, precision=precision, threads=1) as session:
                assert session.infer(_pictures(1)).shape == (1, tiny_onnx.CLASSES)
    if built.fusion is not None:
        _check_fusion(built.fusion, precision)


def _check_fusion(fusion: FusionReport, precision: str) -> None:
    stated = json.loads(json.dumps(fusion.to_json()))
    assert set(stated) == {
        "schema", "backend", "compute_layers", "int8_layers", "int8_share", "int8_share_macs", "float_layers", "source",
        "float_shares_macs", "float_by_request",
    }  # fmt: skip
    assert stated["compute_layers"] == 3
    assert stated["int8_layers"] + len(stated["float_layers"]) == 3
    assert stated["int8_share"] == (1.0 if precision == "int8" else 0.0)
    assert stated["source"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_any_batch_gives_float32_logits_that_do_not_depend_on_it(
    backend: Backend, precision: str, tmp_path: Path
) -> None:
    with _open(backend, tmp_path / "e", precision) as session:
        pictures = _pictures(5)
        one_by_one = np.concatenate([session.infer(pictures[index : index + 1]) for index in range(5)])
        assert one_by_one.shape == (5, tiny_onnx.CLASSES)
        assert one_by_one.dtype == np.float32
        for size in (5, 3):
            np.testing.assert_allclose(session.infer(pictures[:size]), one_by_one[:size], atol=1e-5)


def test_answers_are_the_callers_own(backend: Backend, tmp_path: Path) -> None:
    with _open(backend, tmp_path / "e", "fp32") as session:
        for size in (1, 2):
            first = session.infer(_pictures(size, seed=1))
            kept = first.copy()
            session.infer(_pictures(size, seed=2))
            np.testing.assert_array_equal(first, kept)
            first[:] = 0  # writable, and no engine's buffer
            np.testing.assert_array_equal(session.infer(_pictures(size, seed=1)), kept)


def test_wrong_input_is_a_backend_error(backend: Backend, tmp_path: Path) -> None:
    with _open(backend, tmp_path / "e", "fp32") as session:
        for wrong in (
            _pictures(1).astype(np.float64),
            _pictures(1)[0],
            np.zeros((1, 3, 9, 9), np.float32),
            np.zeros((2, 1, 16, 16), np.float32),
        ):
            with pytest.raises(BackendError):
                session.infer(wrong)


def test_a_session_describes_itself_in_json(backend: Backend, tmp_path: Path) -> None:
    with _open(backend, tmp_path / "e", "fp32") as session:
        stated = json.loads(json.dumps(session.describe()))
    assert stated["device"]
    assert stated["runtime"]


def test_an_engine_that_is_missing_or_no_engine_is_a_backend_error(backend: Backend, tmp_path: Path) -> None:
    _runs(_builds(backend))
    target = Target(schema=1, title="t", backend=backend.name)
    with pytest.raises(BackendError, match="does not exist"):
        backend.open(tmp_path / "none", target, precision="fp32")
    (tmp_path / "engine.onnx").write_bytes(b"nonsense")
    (tmp_path / "engine.xml").write_bytes(b"nonsense")
    for name in ("engine.onnx", "engine.xml"):
        with pytest.raises(BackendError):
            backend.open(tmp_path / name, target, precision="fp32")


def test_a_build_that_makes_no_sense_is_refused(backend: Backend, tmp_path: Path) -> None:
    _builds(backend)
    request = _request(backend, tmp_path / "e", "fp32")
    for precision, scheme, words in (("int4", None, "no precision int4"), ("int8", None, "needs a scheme")):
        wrong = BuildRequest(request.onnx, request.folder, request.target, precision, scheme, request.input_shape)
        with pytest.raises(BackendError, match=words):
            backend.build(wrong)


def test_a_file_that_is_no_onnx_is_refused(backend: Backend, tmp_path: Path) -> None:
    _builds(backend)
    request = _request(backend, tmp_path / "e", "fp32")
    request.onnx.write_bytes(b"\x08\x08nonsense")
    with pytest.raises(BackendError):
        backend.build(request)


def test_a_model_that_keeps_data_in_another_file_is_refused(backend: Backend, tmp_path: Path) -> None:
    """The other file is there and right, so that only a refusal, and not an accident, keeps the model out."""
    _builds(backend)
    request = _request(backend, tmp_path / "e", "fp32")
    model = onnx.load(str(request.onnx))
    onnx.save(model, str(request.onnx), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").is_file()
    with pytest.raises(BackendError, match="in another file"):
        backend.build(request)


@pytest.mark.parametrize("name", resources.names("targets"))
def test_every_target_builds_or_says_why_not(name: str, tmp_path: Path) -> None:
    target = load_target(name)
    backend = registry.load_backend(target.backend)
    _builds(backend)
    scheme = target.scheme or backend.schemes()[0]
    folder = tmp_path / "built"
    folder.mkdir()
    onnx = tiny_onnx.write_qdq(tmp_path / "a.onnx", scheme)
    built = backend.build(BuildRequest(onnx, folder, target, target.precision, get_scheme(scheme), tiny_onnx.SHAPE))
    assert built.engine is not None or (built.reason and built.device_command)
    if built.fusion is not None:
        assert built.fusion.int8_share == 1.0
