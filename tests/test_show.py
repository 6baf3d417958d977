"""`show`, `rm` and `init`: what they say and leave, as text and as JSON; what a newcomer is told to type next."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_onnx
from click.testing import CliRunner
from small_run import INT8, write_small_run

from edgeopt import Run, api
from edgeopt.cli import VERBS, group
from edgeopt.errors import EdgeoptError
from edgeopt.stages.bench import evaluate


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A float and an int8 variant, built for ONNX Runtime and measured. Read only."""
    return write_small_run(tmp_path_factory.mktemp("small") / "run")


def said(*typed: str) -> str:
    """What a command prints on stdout; it must end well."""
    done = CliRunner().invoke(group, typed, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_show_says_what_there_is_and_what_to_type_next(small: Run) -> None:
    lines = [line.split() for line in said("show", "--run", str(small.path)).splitlines()]
    assert lines == [
        ["variant", "parent", "val", "top-1", "weights"],
        ["float", "-", "50.00%", "0.0", "MiB"],
        ["int8-u8a7w", "float", "50.00%", "0.0", "MiB"],
        [],
        ["engine", "precision", "scheme", "file"],
        ["onnxruntime/float", "fp32", "-", "engine.onnx"],
        ["onnxruntime/int8-u8a7w", "int8", "u8a7w", "engine.onnx"],
        [],
        ["next:", "edgeopt", "report"],
    ]


def test_show_names_what_is_outdated_half_made_or_damaged(small: Run, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small.path, tmp_path / "run"))
    (run / "host/half").mkdir()
    (run / "host/half/pending.json").write_text('{"key": "0"}')
    (run / "device" / INT8 / "build.json").write_text("no JSON")
    record = json.loads((run / "host/int8-u8a7w/stage.json").read_text())
    record["inputs"] = {"source": "f" * 64}
    (run / "host/int8-u8a7w/stage.json").write_text(json.dumps(record))
    text = said("show", "--run", str(run))
    assert "half: half made; the same command goes on, edgeopt rm half removes it" in text
    assert f"{INT8} cannot be used: " in text
    assert "int8-u8a7w: what it stands on was made again since; the same command makes it again" in text
    state = json.loads(said("show", "--run", str(run), "--json"))
    assert (state["half_made"], state["outdated"], list(state["damaged"])) == (["half"], ["int8-u8a7w"], [INT8])


def test_rm_removes_a_variant_with_its_engines_and_nothing_that_others_stand_on(small: Run, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small.path, tmp_path / "run"))
    refused = CliRunner().invoke(group, ["rm", "float", "--run", str(run)])
    assert "float is the parent of int8-u8a7w" in str(refused.exception)
    text = said("rm", "int8-u8a7w", "--run", str(run))
    assert text.splitlines() == ["removed host/int8-u8a7w", f"removed device/{INT8}"]
    assert not (run / "host/int8-u8a7w").exists()
    assert not (run / "device" / INT8).exists()
    assert said("show", "--run", str(run)).endswith("next: edgeopt compress --int8\n")
    removed = json.loads(said("rm", "float", "--run", str(run), "--json"))["removed"]
    assert removed == ["host/float", "device/onnxruntime/float"]


def test_what_is_measured_without_being_built_is_not_what_bench_is_for(small: Run, tmp_path: Path) -> None:
    """`eval --variant` lists the variant as an engine of PyTorch."""
    run = Run.open(shutil.copytree(small.path, tmp_path / "run", ignore=shutil.ignore_patterns("device")))
    assert run.next_command().startswith("edgeopt build --target")
    with pytest.raises(EdgeoptError, match="not a complete weights file"):  # it is listed before they are read
        evaluate(run, variant="float")
    assert list(run.engines()) == ["pytorch/float", "pytorch/int8-u8a7w"]
    assert run.next_command().startswith("edgeopt build --target")


def test_an_onnx_from_elsewhere_is_not_to_be_compressed(tmp_path: Path) -> None:
    tiny_onnx.write_float(tmp_path / "float.onnx")
    (tmp_path / "labels.txt").write_text("".join(f"class {index}\n" for index in range(tiny_onnx.CLASSES)))
    run = api.import_onnx(tmp_path / "float.onnx", tmp_path / "labels.txt", run=tmp_path / "run")
    assert run.next_command().startswith("edgeopt build --target")
    api.build(run, "onnxruntime")
    assert run.next_command() == "edgeopt package --target onnxruntime"  # bench needs labelled pictures


def test_init_says_as_json_where_the_recipe_is(tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    assert json.loads(said("init", str(recipe), "--json")) == {"recipe": str(recipe)}
    assert recipe.read_text().startswith("# An edgeopt recipe")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_json(verb: str) -> None:
    assert "--json " in said(verb, "--help")
