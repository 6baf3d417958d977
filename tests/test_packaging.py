"""sdist -> wheel -> empty environment: base dependencies are enough for the device half to import and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEVICE_MODULES = [
    f"edgeopt.{'.'.join(path.relative_to(ROOT / 'edgeopt').with_suffix('').parts)}"
    for folder in ("backends", "bench", "report")
    for path in sorted((ROOT / "edgeopt" / folder).rglob("*.py"))
    if path.name not in ("__init__.py",)
] + [f"edgeopt.{name}" for name in ("evaluate", "predict", "metrics", "preprocess", "sets", "doctor")]


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _python310() -> Path | None:
    """Python 3.10, what JetPack 6 has, where one is at hand."""
    candidates = [*sorted((Path.home() / ".pyenv" / "versions").glob("3.10.*/bin/python")), shutil.which("python3.10")]
    working = [
        Path(candidate)
        for candidate in candidates
        if candidate and subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0
    ]
    return next(iter(working), None)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(sdist, wheel), the wheel built from the sdist, as users of an index get it."""
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.fixture(scope="session", params=["this", "python3.10"])
def empty(request: pytest.FixtureRequest, built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel and its base dependencies, nothing else."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    if request.param == "this":
        venv.create(folder, with_pip=True)
    elif (python := _python310()) is not None:
        _run(python, "-m", "venv", folder)
    else:
        pytest.skip("there is no Python 3.10 here")
    _run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", built[1])
    return folder / "bin"


def test_the_wheel_holds_the_package_and_its_data_and_no_more(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[1]).namelist()
    assert any(name == "edgeopt/_data/targets/onnxruntime.toml" for name in names)
    assert any(name == "edgeopt/_data/calibration/default.toml" for name in names)
    assert any(name == "edgeopt/py.typed" for name in names)
    assert any(name.endswith("LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"edgeopt", names[-1].split("/")[0]}


def test_extras_are_those_promised_with_lower_bounds_and_never_both_onnxruntimes(built: tuple[Path, Path]) -> None:
    archive = zipfile.ZipFile(built[1])
    (metadata,) = [archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA")]
    stated = re.findall(r"^Requires-Dist: ([\w-]+)([^;\n]*)(?:;.*extra == '([\w-]+)')?", metadata, re.MULTILINE)
    of: dict[str, set[str]] = {}
    for package, bound, extra in stated:
        assert re.fullmatch(r">=[\d.]+", bound), f"{package}{bound} is no lower bound"
        of.setdefault(extra, set()).add(package)
    assert {
        "train", "onnxruntime", "gpu", "openvino", "tensorrt", "pycuda", "tensorrt-rtx", "demo", "test", "dev",
    } <= of.keys()  # fmt: skip
    assert of["tensorrt"] == {"tensorrt", "cuda-bindings"}
    assert of[""] <= {"numpy", "pillow", "click", "rich", "pydantic", "jinja2", "tomli"}
    # Both unpack into one folder, and the second breaks the first.
    assert not [extra for extra, packages in of.items() if {"onnxruntime", "onnxruntime-gpu"} <= packages]


def test_the_sdist_holds_the_checkout_so_that_its_tests_find_what_they_read(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "tests/test_packaging.py",
        "SECURITY.md",
        ".ci/run",
        ".github/workflows/ci.yml",
        "benchmarks/demo.json",
    ):
        assert name in names
    assert not any(name.startswith(("runs/", ".venv/")) for name in names)
    if (ROOT / ".git").exists():
        tracked = _run("git", "ls-files", cwd=ROOT).splitlines()
        assert set(tracked) <= names


def test_in_an_empty_environment_the_command_lists_targets(empty: Path, tmp_path: Path) -> None:
    assert "raspberry-pi-5" in _run(empty / "edgeopt", "targets", cwd=tmp_path)
    assert _run(empty / "edgeopt", "--version", cwd=tmp_path).startswith("edgeopt ")


def test_in_an_empty_environment_every_device_half_module_imports(empty: Path, tmp_path: Path) -> None:
    program = (
        "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint('torch' in sys.modules)"
    )
    assert _run(empty / "python", "-W", "error", "-c", program, *DEVICE_MODULES, cwd=tmp_path).strip() == "False"


def test_in_an_empty_environment_every_help_works(empty: Path, tmp_path: Path) -> None:
    from edgeopt.cli import VERBS

    for verb in VERBS:
        assert _run(empty / "edgeopt", verb, "--help", cwd=tmp_path).startswith("Usage")


def test_in_an_empty_environment_the_doctor_says_what_to_install(empty: Path, tmp_path: Path) -> None:
    text = _run(empty / "edgeopt", "doctor", cwd=tmp_path)
    for extra in ("train", "onnxruntime", "openvino"):
        assert f'pip install "edgeopt[{extra}]"' in text


def test_in_an_empty_environment_training_says_what_is_missing(empty: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(empty / "edgeopt"), "finetune", "photos"], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 1
    assert 'pip install "edgeopt[train]"' in done.stderr
    assert "Traceback" not in done.stderr
