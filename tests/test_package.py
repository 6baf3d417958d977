"""Packages: a folder and a zip that answer as ``edgeopt predict`` does, without edgeopt."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_onnx
from click.testing import CliRunner
from conftest import paint
from small_run import write_small_run

from edgeopt import Recipe, Run, api, environment
from edgeopt.classify import rate
from edgeopt.cli import main
from edgeopt.cli.predict_cmd import command
from edgeopt.console import Silent
from edgeopt.errors import BackendError, MissingStageError, RunError
from edgeopt.packaging import standalone
from edgeopt.packaging.contents import FOLDER, write_cpp
from edgeopt.pipeline import STEPS, Journey, Step
from edgeopt.preprocess import PreprocessSpec, normalize
from edgeopt.stages.package import Packaged, _shown
from edgeopt.stages.predict import predict

_ALONE = {"numpy", "PIL", "onnxruntime", "openvino", FOLDER, *sys.stdlib_module_names}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = write_small_run(tmp_path_factory.mktemp("package") / "small")
    api.build(run, "openvino")
    return run


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 pictures of several sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(20):
        paint(index % 5, index, (30 + 3 * index, 45 - index)).save(folder / f"{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def made(run: Run) -> Packaged:
    return api.package(run, "onnxruntime")


class Said(Silent):
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def _ask(python: Path, package: Path, *arguments: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
    """``predict.py`` with nothing of this checkout in reach."""
    typed = [str(python), str(package / "predict.py"), *map(str, arguments)]
    return subprocess.run(
        typed, capture_output=True, text=True, check=False, input=given, env=_own(), cwd=package.parent
    )


def _own() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_unpacked_elsewhere_it_answers_as_edgeopt_predict(
    run: Run, made: Packaged, photos: Path, tmp_path: Path
) -> None:
    shutil.unpack_archive(made.archive, tmp_path)
    package = tmp_path / made.folder.name
    expected, _ = predict(run, [str(photos)], engine="onnxruntime/int8-u8a7w")
    done = _ask(Path(sys.executable), package, photos, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [one.to_json() for one in expected]
    assert "20 pictures in" in done.stderr
    listed = _ask(
        Path(sys.executable), package, "-", "--top", "2", given=f"{photos / '03.png'}\n{photos}/nothing.png\n"
    )
    assert listed.returncode == 1
    assert listed.stdout.rstrip("\n") == expected[3].to_text()[: len(listed.stdout) - 1]
    assert listed.stdout.count("%") == 2
    assert "nothing.png: does not exist" in listed.stderr


def test_what_it_holds_is_listed_hashed_and_free_of_edgeopt(made: Packaged) -> None:
    names = {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()}
    sums = dict(reversed(line.split("  ")) for line in (made.folder / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == names - {"SHA256SUMS"}
    for name, stated in sums.items():
        assert hashlib.sha256((made.folder / name).read_bytes()).hexdigest() == stated
    inside = zipfile.ZipFile(made.archive).namelist()
    assert {name.split("/", 1)[1] for name in inside} == names
    for path in made.folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
                assert {name.split(".")[0] for name in modules} <= _ALONE, path
    assert [line.split(">")[0] for line in (made.folder / "requirements.txt").read_text().splitlines()] == [
        "numpy", "pillow", "onnxruntime",
    ]  # fmt: skip
    assert (made.folder / "requirements.txt").read_text().count(">=") == 3


def test_its_figures_are_those_measured(run: Run, made: Packaged) -> None:
    latency = json.loads((run.path / "device/onnxruntime/int8-u8a7w/latency.json").read_text())
    accuracy = json.loads((run.path / "device/onnxruntime/int8-u8a7w/accuracy.json").read_text())
    figures = made.manifest["figures"]
    assert (figures["p50_ms"], figures["top1"]) == (latency["p50_ms"], accuracy["top1"])
    readme = (made.folder / "README.md").read_text()
    assert f"{100 * accuracy['top1']:.1f} % of 20 test pictures" in readme
    assert f"| measured on | {latency['measured_on']['cpu']['name']} |" in readme
    assert "Not measured" not in readme


def test_the_command_line_asks_for_pictures_listed_on_standard_input(run: Run, photos: Path) -> None:
    expected, _ = predict(run, [str(photos / "03.png"), str(photos / "05.png")], top=2)
    typed = ["-", "--top", "2", "--run", str(run.path)]
    done = CliRunner().invoke(command, typed, input=f"{photos}/03.png\n\n{photos}/0[5].png\n", catch_exceptions=False)
    assert done.stdout == "".join(f"{one.to_text()}\n" for one in expected)
    assert done.stdout.count("%") == 4
    assert re.search(r"2 pictures in \d+\.\d\d s: \d+\.\d pictures/s, decoding included", done.stderr)


def test_what_is_no_picture_is_said_beside_the_answers_and_in_the_exit_code(
    run: Run, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["predict", str(photos / "03.png"), "nothing.png", "--run", str(run.path)])
    assert left.value.code == 1
    said = capsys.readouterr()
    assert said.out.startswith(f"{photos}/03.png: class ")
    assert said.out.count("\n") == 1
    assert "edgeopt: nothing.png: does not exist" in said.err
    with pytest.raises(SystemExit) as left:
        main(["predict", str(photos / "03.png"), "--run", str(run.path)])
    assert left.value.code == 0
    assert rate(30, 2.0) == "30 pictures in 2.00 s: 15.0 pictures/s, decoding included"


def test_a_changed_engine_is_refused(made: Packaged, photos: Path, tmp_path: Path) -> None:
    package = shutil.copytree(made.folder, tmp_path / "package")
    with (package / "engine.onnx").open("ab") as engine:
        engine.write(b"\0")
    done = _ask(Path(sys.executable), package, photos)
    assert done.returncode == 1
    assert "engine.onnx is not the file that was packaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_same_engine_makes_the_same_package_and_foreign_folders_are_kept(
    run: Run, made: Packaged, tmp_path: Path
) -> None:
    before = made.archive.read_bytes()
    assert api.package(run, "onnxruntime").archive.read_bytes() == before
    assert not list(made.folder.parent.glob(".*"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="is no package"):
        api.package(run, "onnxruntime", out=mine)
    assert (mine / "thesis.txt").is_file()
    other = api.package(run, "onnxruntime", variant="float", out=tmp_path / "other")
    assert (other.folder, other.manifest["precision"]) == (tmp_path / "other", "fp32")


def test_what_cannot_be_packaged_says_why(run: Run, path_run: Run) -> None:
    with pytest.raises(MissingStageError, match="no engine for intel-n100"):
        api.package(run, "intel-n100")
    with pytest.raises(MissingStageError, match='did you mean "int8-u8a7w"'):
        api.package(run, "onnxruntime", variant="int8-u8a7")
    with pytest.raises(BackendError, match="tied to the GPU"):
        api.package(path_run, "rtx-desktop")


def test_figures_of_an_engine_built_before_are_not_those_of_this_one(run: Run, tmp_path: Path) -> None:
    copy = Run.open(shutil.copytree(run.path, tmp_path / "run"))
    path = copy.path / "device/onnxruntime/int8-u8a7w/accuracy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "build_key": "0" * 64}))
    package = api.package(copy, "onnxruntime")
    assert "top1" not in package.manifest["figures"]
    assert "test pictures" not in (package.folder / "README.md").read_text()


def test_its_probabilities_are_those_of_the_temperature_of_its_variant(run: Run, photos: Path, tmp_path: Path) -> None:
    copy = Run.open(shutil.copytree(run.path, tmp_path / "run"))
    path = copy.path / "host/int8-u8a7w/stage.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "metrics": {**record["metrics"], "temperature": 4.0}}))
    package = api.package(copy, "onnxruntime")
    expected, _ = predict(copy, [str(photos)], engine="onnxruntime/int8-u8a7w")
    assert standalone.Classifier(package.folder).predict([str(photos)])[0] == expected
    sharper, _ = predict(run, [str(photos)], engine="onnxruntime/int8-u8a7w")
    assert [one.label for one in sharper] == [one.label for one in expected]
    assert all(one.probability > other.probability for one, other in zip(sharper, expected, strict=True))


@pytest.mark.parametrize(
    ("backend", "scheme", "flags", "refused"),
    [
        ("openvino", "u8a8w", "avx2", True),
        ("openvino", "u8a8w", "avx2 avx_vnni", False),
        ("openvino", "u8a7w", "avx2", False),
        ("onnxruntime", "u8a8w", "avx2", False),  # exact by an option of its session, if slower
    ],
)
def test_where_sums_would_saturate_a_package_refuses_to_answer_with_planted_flags(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, backend: str, scheme: str, flags: str, refused: bool
) -> None:
    monkeypatch.setattr(environment, "has_int8_dot", lambda: True)  # the machine that builds it has VNNI
    (tmp_path / "labels.txt").write_text("".join(f"{index}\n" for index in range(tiny_onnx.CLASSES)))
    onnx = tiny_onnx.write_qdq(tmp_path / "model.onnx", scheme)
    imported = api.import_onnx(onnx, tmp_path / "labels.txt", pictures=[str(photos)], run=tmp_path / "run")
    api.build(imported, backend)
    package = api.package(imported, backend)
    (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags}\n")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(standalone, "Path", lambda name: tmp_path / Path(name).name)
    if refused:
        with pytest.raises(BackendError, match="this CPU has no VNNI") as caught:
            standalone.Classifier(package.folder)
        assert "--scheme u8a7w" in str(caught.value.fix)
    else:
        assert len(standalone.Classifier(package.folder).predict([str(photos)])[0]) == 20


@pytest.mark.parametrize(("device", "told"), [("CPU", True), ("AUTO:CPU", True), ("GPU", False), ("NPU", False)])
def test_only_what_has_threads_is_told_of_them_with_a_planted_core(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, told: bool
) -> None:
    """The GPU's and the NPU's plugins refuse a property that is not theirs."""
    import openvino
    from openvino import opset13 as ops

    picture = ops.parameter([1, 3, 2, 2], np.float32)
    openvino.save_model(openvino.Model([ops.relu(picture)], [picture], "m"), str(tmp_path / "engine.xml"))
    real, stated = openvino.Core(), {}

    def compile_model(model: object, device: str, properties: dict[str, str]) -> object:
        stated.update(properties)
        return real.compile_model(model, "CPU")

    core = SimpleNamespace(read_model=real.read_model, compile_model=compile_model)
    monkeypatch.setattr(openvino, "Core", lambda: core)
    settings = {"device": device, "threads": 2, "properties": {}}
    standalone._open_openvino(tmp_path / "engine.xml", settings, 2, 1)
    assert ("INFERENCE_NUM_THREADS" in stated) is told
    manifest = {
        "engine": "engine.xml", "batch": 1, "embedded_preprocessing": False, "temperature": 1.0, "session": settings,
    }  # fmt: skip
    write_cpp(tmp_path / "cpp", manifest, PreprocessSpec(size=(2, 2)))
    assert ("INFERENCE_NUM_THREADS" in (tmp_path / "cpp/model.hpp").read_text()) is told


def test_the_cpp_example_normalizes_as_the_preprocessing_says(tmp_path: Path) -> None:
    spec = PreprocessSpec(size=(2, 2), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    session = {"device": "CPU", "threads": 0, "properties": {}}
    manifest = {"engine": "engine.xml", "batch": 1, "embedded_preprocessing": False, "temperature": 1.5}
    write_cpp(tmp_path, {**manifest, "session": session}, spec)
    text = (tmp_path / "model.hpp").read_text()
    stated = {name: [float(one.rstrip("F")) for one in values.split(", ")]
              for name, values in re.findall(r"(scale|offset)\[3\] = \{(.*?)\}", text)}  # fmt: skip
    picture = np.array([[[[255, 0, 51]]]], np.uint8).repeat(2, 1).repeat(2, 2)
    expected = normalize(picture, spec)[0, :, 0, 0]
    np.testing.assert_allclose(np.array([255, 0, 51]) * stated["scale"] + stated["offset"], expected, rtol=1e-5)
    assert "temperature = 1.5;" in text


def test_a_recipe_packages_every_target_that_can_be(path_run: Run, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(path_run.path, tmp_path / "run"))
    recipe = Recipe.model_validate(
        {"package": True, "targets": ["onnxruntime", "rtx-desktop"], "data": {"path": "nowhere"}}
    )
    said = Said()
    steps: list[Step] = [one for one in STEPS if one.__name__ == "_package"]
    steps[0](Journey(recipe, None, False, said, run=run))
    [folder] = [one for one in (run.path / "packages").iterdir() if one.is_dir()]
    assert folder.name.startswith("onnxruntime-int8")
    assert "not packaged: engines of tensorrt_rtx are tied to the GPU" in "\n".join(said.lines)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_in_an_environment_with_the_requirements_alone_it_answers_as_edgeopt_predict(
    run: Run, photos: Path, tmp_path: Path, target: str
) -> None:
    made = api.package(run, target, out=tmp_path / "package")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", "requirements.txt"]
    subprocess.run(pip, check=True, cwd=made.folder)
    absent = subprocess.run(
        [str(python), "-c", "import edgeopt"], capture_output=True, check=False, env=_own(), cwd=tmp_path
    )
    assert b"No module named 'edgeopt'" in absent.stderr
    variant = made.manifest["variant"]
    expected, _ = predict(run, [str(photos)], engine=f"{target}/{variant}")
    done = _ask(python, made.folder, photos, "--json")
    assert done.returncode == 0, done.stderr
    for answer, one in zip(json.loads(done.stdout), expected, strict=True):
        assert answer["label"] == one.label
        assert answer["probability"] == pytest.approx(one.probability, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("embedded", [False, True])
def test_the_cpp_example_compiles_against_the_wheel_and_answers_alike(
    run: Run, photos: Path, tmp_path: Path, embedded: bool
) -> None:
    openvino = pytest.importorskip("openvino")
    if not (shutil.which("cmake") and (shutil.which("c++") or shutil.which("g++"))):
        pytest.skip("no CMake or no C++ compiler on this machine")
    if embedded:
        run = Run.open(shutil.copytree(run.path, tmp_path / "run"))
        api.build(run, "openvino", embed_preprocessing=True)
    made = api.package(run, "openvino", out=tmp_path / "package")
    assert made.manifest["embedded_preprocessing"] is embedded
    expected, _ = predict(run, [str(photos)], engine="openvino/int8-u8a7w")
    assert _ask(Path(sys.executable), made.folder, photos, "--prepare", tmp_path / "prepared").returncode == 0
    build = tmp_path / "build"
    found = f"-DOpenVINO_DIR={openvino.utils.get_cmake_path()}"
    for typed in (["cmake", "-S", made.folder / "cpp", "-B", build, found], ["cmake", "--build", build]):
        done = subprocess.run(list(map(str, typed)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    pictures = sorted((tmp_path / "prepared").iterdir())
    done = subprocess.run(
        [str(build / "classify"), str(made.folder), *map(str, pictures)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = [line.split("\t") for line in done.stdout.splitlines()]
    assert [answer[1] for answer in answers] == [one.label for one in expected]
    assert [float(answer[2]) for answer in answers] == pytest.approx([one.probability for one in expected], abs=1e-4)
    short = tmp_path / "short.ppm"
    short.write_bytes(pictures[0].read_bytes()[:-1])
    refused = subprocess.run([str(build / "classify"), str(made.folder), str(short)], capture_output=True, check=False)
    assert (refused.returncode, b"is cut off" in refused.stderr) == (1, True)


def test_times_that_other_work_disturbed_are_called_so_and_sizes_have_one_unit() -> None:
    figures = {"p50_ms": 2.0, "throughput_ips": 500.0, "size_bytes": 2**20, "peak_memory_bytes": 2**24, "stable": True}
    assert (_shown(figures)["size"], _shown(figures)["peak memory"]) == ("1.00 MiB", "16.0 MiB")
    assert "unstable" not in str(_shown(figures))
    shown = _shown(figures | {"stable": False})
    assert [name for name, text in shown.items() if "unstable" in text] == ["latency, p50 / p90 / p99", "throughput"]
