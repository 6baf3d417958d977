"""The README: its commands exist with the options it shows, its Python runs, its links lead somewhere."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import tiny_onnx
from conftest import paint_folder

from edgeopt import CompressConfig, DataConfig, ModelConfig, TrainConfig, api
from edgeopt.cli import VERBS
from edgeopt.run import Run

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "targets" / "README.md", ROOT / "calibration" / "README.md"]


def _blocks(language: str) -> list[str]:
    return [
        block
        for document in DOCUMENTS
        for block in re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    ]


def _commands() -> list[str]:
    """Every ``edgeopt ...`` a reader could type."""
    found = []
    for block in _blocks("console"):
        for line in block.replace("\\\n", " ").splitlines():
            typed = line.removeprefix("$ ").split("  #")[0]
            found += [part.strip() for part in re.split(r"&&|;", typed) if part.strip().startswith("edgeopt ")]
    return sorted(set(found))


def _typed(document: Path) -> list[list[str]]:
    """The lines a reader of ``document`` types after installing, block by block."""
    blocks = re.findall(r"```console\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    lines = [[line for line in block.replace("\\\n", " ").splitlines() if line.startswith("$ ")] for block in blocks]
    typed = [[line.removeprefix("$ ") for line in some if not line.startswith(("$ pip ", "$ make "))] for some in lines]
    return [some for some in typed if some]


#: Verbs that start from pictures or a model; a block that begins with another goes on with a run that is there.
_BEGINNERS = re.compile(r"edgeopt (finetune|adopt|tune|check|init|build .*--onnx)|torchrun")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """What the README assumes to be there: photos/, new-pictures/, model.pth, classifier.onnx, labels.txt."""
    import torch
    from torchvision.models import resnet18

    paint_folder(tmp_path / "photos", each=14)
    shutil.copytree(tmp_path / "photos/class 0", tmp_path / "new-pictures")
    torch.manual_seed(0)
    torch.save(resnet18(num_classes=3).state_dict(), tmp_path / "model.pth")
    tiny_onnx.write_float(tmp_path / "classifier.onnx")
    (tmp_path / "labels.txt").write_text("".join(f"class {index}\n" for index in range(tiny_onnx.CLASSES)))
    return tmp_path


@pytest.fixture(scope="module")
def made(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of edgeopt's default model, which is small enough for the budgets of the README's devices."""
    data = DataConfig(path=str(pictures), image_size=32)
    folder = tmp_path_factory.mktemp("made") / "photos"
    run = api.finetune(data, ModelConfig(name="tf_efficientnet_lite0"), TrainConfig(epochs=1), run=folder).run
    api.compress(run, CompressConfig(epochs=1))
    for target in ("onnxruntime", "openvino"):
        api.build(run, target)
    api.bench(run, seconds=3)
    api.report(run)
    return run


def _with_runs(desk: Path, made: Run) -> None:
    """runs/photos, compressed, built and measured; its copy on "the device"; the report of an earlier one."""
    shutil.copytree(made.path, desk / "runs/photos")
    (desk / "main").mkdir()
    shutil.copy(made.path / "report/report.json", desk / "main")
    shutil.copytree(desk / "runs/photos", desk / "flowers")
    shutil.copytree(desk / "runs/photos", desk / "runs/flowers")


@pytest.mark.slow
@pytest.mark.timeout(1100)
@pytest.mark.parametrize("lines", _typed(ROOT / "README.md"), ids=lambda lines: lines[0][:60])
def test_every_line_of_the_readme_does_what_it_says(
    lines: list[str], desk: Path, request: pytest.FixtureRequest
) -> None:
    """As typed, block by block; with so few test pictures, or beside other tests, a budget stays undecided: 5, or 4."""
    if not _BEGINNERS.match(lines[0]):
        _with_runs(desk, request.getfixturevalue("made"))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line], cwd=desk, env=environment, capture_output=True, text=True, check=False
        )
        judged = any(verb in line for verb in ("edgeopt run", "edgeopt compare", "--b"))
        measured = (3,) if "--latency" in line else ()  # by what else runs here
        assert done.returncode in ((0, 4, 5) if judged else (0, *measured)), f"{line}\n{done.stdout}{done.stderr}"


def test_the_readme_has_blocks_to_type() -> None:
    assert len(_typed(ROOT / "README.md")) >= 8


@pytest.mark.slow
@pytest.mark.timeout(1100)
def test_the_python_of_the_readme_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    assert list((desk / "runs").glob("*/report/report.html"))


def test_there_are_commands_to_check() -> None:
    assert len(_commands()) >= 8


@pytest.mark.parametrize("typed", _commands())
def test_every_command_parses(typed: str) -> None:
    _, verb, *arguments = shlex.split(typed)
    assert verb in VERBS, typed
    command: click.Command = importlib.import_module(f"edgeopt.cli.{VERBS[verb][0]}_cmd").command
    command.make_context(verb, arguments, resilient_parsing=False)


def test_make_targets_named_in_the_readme_exist() -> None:
    named = set(re.findall(r"\$ make ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {"demo", "test"} <= named
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.parent.name)
def test_relative_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_every_python_block_calls_what_exists_with_arguments_it_takes() -> None:
    """Nothing is trained here: each call is bound to the signature of what it names."""
    import ast
    import inspect

    import edgeopt
    from edgeopt import api

    blocks = _blocks("python")
    assert blocks
    for block in blocks:
        for call in (node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)):
            if not (isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)):
                continue
            owner = {"edgeopt": edgeopt, "api": api}[call.func.value.id]
            positional = [None] * len(call.args)
            keywords = {str(keyword.arg): None for keyword in call.keywords}
            inspect.signature(getattr(owner, call.func.attr)).bind(*positional, **keywords)
