"""What a full disk, a signal, a clock, a hand or a kill can do to a run: nothing is lost, a line says what to do."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from conftest import paint_folder
from onnx import numpy_helper
from small_run import write_small_run

from edgeopt import CompressConfig, DataConfig, ModelConfig, Run, TrainConfig, api
from edgeopt import run as run_module
from edgeopt.cli.build_cmd import command as build_command
from edgeopt.cli.terminal import Terminal
from edgeopt.errors import ConfigError, EdgeoptError, LoweringError, ParityError, RunError
from edgeopt.export import precision
from edgeopt.files import read_json, sha256, write_json
from edgeopt.metrics import Parity
from edgeopt.registry import load_backend
from edgeopt.report.table import assemble
from edgeopt.sets import open_set
from edgeopt.stages import bench as bench_stage
from edgeopt.stages import export as export_stage
from edgeopt.stages.build_plan import source_onnx
from edgeopt.stages.engines import engines, left_out

ROOT = Path(__file__).resolve().parent.parent
MODEL = ModelConfig(name="test_resnet", pretrained=False)
TRAIN = TrainConfig(epochs=1, batch_size=4, augment="light", layer_decay=1.0)
COMPRESS = CompressConfig(epochs=1, schemes=("u8a7w",), calibration="fast")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_folder(tmp_path_factory.mktemp("accidents") / "photos", each=14)


@pytest.fixture(scope="module")
def writes() -> dict[str, bool]:
    """Files of the run below, by their path in it, and whether its lock was held whenever they were written."""
    return {}


@pytest.fixture(scope="module")
def made(photos: Path, writes: dict[str, bool]) -> Run:
    """A tiny run with a float and an int8 variant, an engine, figures and a report. Copy it before changing it."""
    path, replace = photos.parent / "run", Path.replace

    def watched(temporary: Path, target: Path) -> Path:
        if target.is_relative_to(path):
            name = target.relative_to(path).as_posix()
            writes[name] = writes.get(name, True) and _is_held(path)
        return replace(temporary, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", watched)
        run = api.finetune(DataConfig(path=str(photos), image_size=32), MODEL, TRAIN, run=path).run
        api.compress(run, COMPRESS)
        api.build(run, "onnxruntime")
        api.bench(run, seconds=1, starts=1)
        api.report(run)
    return run


def _is_held(run: Path) -> bool:
    with (run / ".lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.fixture
def own(made: Run, tmp_path: Path) -> Run:
    shutil.copytree(made.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def edgeopt(*arguments: str | Path, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeopt", *map(str, arguments)],
        capture_output=True, text=True, check=False, preexec_fn=before, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


# -- disk full -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verb:
    """A command, the parts of the finished run that it makes, and a file size (bytes) that is too small for it."""

    arguments: tuple[str, ...]
    makes: tuple[str, ...]
    too_small: int


VERBS = {
    "compress": Verb(
        ("compress", "--int8", "--scheme", "u8a7w", "--epochs", "1", "--calibration", "fast"),
        ("host/int8-u8a7w", "device", "report"),
        100_000,
    ),
    "export": Verb(("export",), ("host/float/export", "host/int8-u8a7w/export", "device", "report"), 100_000),
    "build": Verb(("build", "--target", "onnxruntime"), ("device", "report"), 100_000),
    "bench": Verb(
        ("bench", "--seconds", "1", "--starts", "1"),
        (
            "device/onnxruntime/float/latency.json",
            "device/onnxruntime/float/accuracy.json",
            "device/pytorch/float/latency.json",
            "device/pytorch/float/accuracy.json",
            "report",
        ),
        300,
    ),
    "report": Verb(("report",), ("report",), 2_000),
}


def _remove(run: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        path = run / part
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _one_line_and_fix(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    said = done.stderr[done.stderr.index("edgeopt: ") :].splitlines()
    assert len(said) == 2, done.stderr
    assert said[1].startswith("  fix: ")


def _nothing_half_named(run: Path) -> None:
    """Whatever has a record is whole; a temporary file or folder has a name that says so."""
    opened = Run.open(run)
    for record in (*opened.variants().values(), *opened.exports().values(), *opened.engines().values()):
        for name in record["outputs"]:
            opened.output(record, name)
    for path in run.rglob("*.json"):
        if not path.name.startswith("."):
            json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_file_size_limit_ends_every_stage_with_one_line_and_the_same_command_completes(verb: str, own: Run) -> None:
    stage = VERBS[verb]
    _remove(own.path, stage.makes)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (stage.too_small, stage.too_small))

    _one_line_and_fix(edgeopt(*stage.arguments, "--run", own.path, "--quiet", before=limit))
    _nothing_half_named(own.path)
    done = edgeopt(*stage.arguments, "--run", own.path, "--quiet")
    assert done.returncode == 0, done.stderr
    _nothing_half_named(own.path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many bytes; skipped where that is not allowed."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a file system is not allowed here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["finetune", *VERBS])
def test_a_full_disk_ends_every_stage_with_one_line(
    verb: str, own: Run, photos: Path, small_disk: Callable[[int], Path]
) -> None:
    arguments = ("finetune", str(photos), "--model", "test_resnet", "--no-pretrained", "--image-size", "32")
    if verb == "finetune":
        run = small_disk(400_000) / "run"  # the weights alone are more
    else:
        _remove(own.path, VERBS[verb].makes)
        arguments = VERBS[verb].arguments
        used = sum(path.stat().st_size + 4096 for path in own.path.rglob("*"))
        run = small_disk(used + 2**20) / "run"
        shutil.copytree(own.path, run)
        free = shutil.disk_usage(run).free
        with (run / "filler").open("wb") as filler:  # to within what this verb needs
            filler.write(bytes(max(0, free - VERBS[verb].too_small // 4096 * 4096)))
    _one_line_and_fix(edgeopt(*arguments, "--run", run, "--quiet"))
    if (run / "run.json").is_file():
        _nothing_half_named(run)


# -- read only -----------------------------------------------------------------------------------------------------


def test_a_run_that_cannot_be_written_can_be_read(
    own: Run, photos: Path, small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    """As on a device where another user copied it: show, predict and eval work, what would write says so."""
    run = own.path
    if os.getuid() == 0:  # who may write whatever the modes say, so the disk itself must refuse
        run = small_disk(64 * 2**20) / "run"
        shutil.copytree(own.path, run)
        subprocess.run(["mount", "-o", "remount,ro", str(run.parent)], check=True)
    else:
        for path in [run, *run.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
    picture = next(photos.rglob("*.png"))
    for arguments in (("show",), ("predict", str(picture)), ("eval", "--engine", "onnxruntime/int8-u8a7w")):
        done = edgeopt(*arguments, "--run", run)
        assert done.returncode == 0, done.stderr
    for writes in (("report",), ("build", "--target", "onnxruntime"), ("rm", "int8-u8a7w")):
        _one_line_and_fix(edgeopt(*writes, "--run", run))


# -- clock, place, hands -------------------------------------------------------------------------------------------


def test_a_clock_that_went_back_does_not_change_what_is_newest(
    own: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "now", lambda: "2001-01-01T00:00:00.000000+00:00")
    trained = api.finetune(
        DataConfig(path=str(photos), image_size=32), MODEL, TRAIN.model_copy(update={"seed": 1}), run=own.path
    )
    assert trained.name.startswith("float-")
    assert Run.open(own.path).original() == trained.name


def test_a_run_folder_moved_between_stages_goes_on(own: Run, tmp_path: Path) -> None:
    moved = own.path.rename(tmp_path / "moved to another place")
    run = Run.open(moved)
    assert all(variant.skipped for variant in api.compress(run, COMPRESS))
    shutil.rmtree(moved / "device")
    api.build(run, "onnxruntime")
    assert api.evaluate(run)["n"] == 9


@pytest.mark.parametrize("accident", ["deleted", "edited"])
@pytest.mark.parametrize(
    ("path", "again"),
    [
        ("host/int8-u8a7w/model.safetensors", lambda run, force: api.compress(run, COMPRESS, force=force)),
        ("host/int8-u8a7w/export/model.onnx", lambda run, force: api.export(run, variants=["int8-u8a7w"], force=force)),
        ("device/onnxruntime/float/engine.onnx", lambda run, force: api.build(run, "onnxruntime", force=force)),
    ],
    ids=["variant", "export", "engine"],
)
def test_a_file_deleted_or_edited_by_hand_is_named_and_made_again_on_request(
    accident: str, path: str, again: Callable[[Run, bool], object], own: Run
) -> None:
    file = own.path / path
    before = file.read_bytes()
    file.unlink() if accident == "deleted" else file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(RunError, match=file.name) as caught:
        again(own, False)
    assert "--force" in str(caught.value.fix)
    again(own, True)
    assert file.is_file()
    again(own, False)


def test_engines_of_a_variant_that_was_made_again_are_not_used(own: Run) -> None:
    """Trained again, the original is another model: its old engines and int8 variants would be measured against it."""
    assert not left_out(own)
    weights = own.path / "host/float/model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    record = json.loads((own.path / "host/float/stage.json").read_text())
    record["outputs"]["model"]["sha256"] = sha256(weights)
    (own.path / "host/float/stage.json").write_text(json.dumps(record))
    assert own.outdated(own.variant("int8-u8a7w"))
    assert left_out(own)["pytorch/float"] == "its variant was made again since"
    export = json.loads((own.path / "host/int8-u8a7w/export/parity.json").read_text())
    export["outputs"]["onnx"]["sha256"] = "0" * 64
    (own.path / "host/int8-u8a7w/export/parity.json").write_text(json.dumps(export))
    assert left_out(own)["onnxruntime/int8-u8a7w"] == "its variant was made again since"


def _made_again(run: Run) -> None:
    """The original's weights are others, as its record says."""
    record = read_json(run.path / "host/float/stage.json")
    record["outputs"]["model"]["sha256"] = sha256(run.path / "run.json")
    write_json(run.path / "host/float/stage.json", record)


def test_engines_of_what_an_earlier_original_became_are_named_and_not_measured_or_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_small_run(tmp_path / "run")
    int8 = "onnxruntime/int8-u8a7w"
    assert [engine.key for engine in bench_stage._chosen(run, (), False, Terminal())] == ["onnxruntime/float", int8]
    assert {row.key: row.measured for row in assemble(run.path).engines}[int8]
    _made_again(run)
    assert run.stale("int8-u8a7w")
    assert [engine.key for engine in bench_stage._chosen(run, (), False, Terminal())] == ["onnxruntime/float"]
    said = f"not measured here: {int8} (what it was made from was made again since"
    assert said in capsys.readouterr().err
    [row] = [row for row in assemble(run.path).engines if row.key == int8]
    assert not row.measured
    assert "made again since" in row.reason


def test_what_comes_of_an_outdated_variant_is_stale_too(tmp_path: Path) -> None:
    run = write_small_run(tmp_path / "run")
    shutil.copytree(run.path / "host/int8-u8a7w", run.path / "host/further")
    record = read_json(run.path / "host/further/stage.json")
    record["inputs"]["source"] = run.stated(run.variant("int8-u8a7w"), "model")[1]
    write_json(run.path / "host/further/stage.json", {**record, "name": "further", "parent": "int8-u8a7w"})
    assert not run.stale("further")
    _made_again(run)
    assert not run.outdated(run.variant("further"))
    assert run.stale("further")


def test_accuracy_is_compared_anew_when_the_original_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, original = write_small_run(tmp_path / "run"), "onnxruntime/float"
    monkeypatch.setattr(bench_stage, "_original_key", lambda _: original)
    monkeypatch.setattr(bench_stage, "test_set", lambda _: open_set(next((run.data / "sets").iterdir()), "test"))

    def judged() -> dict[str, Any]:
        return bench_stage._accuracy(engines(run)["onnxruntime/int8-u8a7w"], Terminal(quiet=True))

    before = judged()
    assert judged() == before, "it is kept while nothing changes"
    folder = run.path / "device" / original
    record = read_json(folder / "accuracy.json")
    others = [(one + 1) % len(record["labels"]) for one in record["predictions"]]
    write_json(folder / "accuracy.json", {**record, "predictions": others, "build_key": "0" * 64})
    assert judged().get("drop_points") is None, "figures of another original are none to compare with"
    write_json(folder / "build.json", {**read_json(folder / "build.json"), "key": "0" * 64})
    assert judged()["baseline_key"] == "0" * 64
    assert judged()["drop_points"] != before["drop_points"]


# -- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_with_130_and_the_same_command_goes_on(
    number: signal.Signals, photos: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "edgeopt", "finetune", str(photos), "--model", "test_resnet", "--no-pretrained",
        "--image-size", "32", "--epochs", "200", "--batch-size", "4", "--run", str(tmp_path / "run"),
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 2/"):
                process.send_signal(number)
                break
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "epochs are done and saved" in said
    assert said.splitlines()[-1] == "edgeopt: interrupted; nothing is lost, the same command goes on from here"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as again:
        assert again.stderr is not None
        assert any("training goes on: " in line for line in again.stderr)
        again.kill()


# -- kills ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_in_every_stage_lose_nothing(tmp_path: Path) -> None:
    """A sample with a seed of its own; the 200 are in benchmarks/reliability/kills.json."""
    script = ROOT / "benchmarks" / "reliability" / "kills.py"
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "24", "--seed", str(int(time.time()) % 1000)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


# -- two at once -----------------------------------------------------------------------------------------------------


def test_every_stage_writes_under_the_runs_lock(made: Run, writes: dict[str, bool]) -> None:
    stages = {"/".join(name.split("/")[:2]) for name in writes}
    assert stages > {"data/sets", "host/float", "host/int8-u8a7w", "device/onnxruntime", "device/pytorch"}
    assert {"host/float/checkpoints/last.safetensors", "report/report.json"} <= set(writes)
    assert [name for name, held in writes.items() if not held] == []


# -- one that does not work among several ------------------------------------------------------------------------------


def test_a_variant_that_cannot_be_exported_does_not_keep_the_others_from_being_built(
    own: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What answers otherwise is planted: no model here really does."""
    host = own.path / "host"
    shutil.rmtree(host / "int8-u8a7w/export")
    shutil.copytree(host / "int8-u8a7w", host / "int8-u8a7w-other")
    record = host / "int8-u8a7w-other/stage.json"
    record.write_text(record.read_text().replace('"int8-u8a7w"', '"int8-u8a7w-other"'))
    shutil.rmtree(own.path / "device")

    def check(path: Path, *args: object, **kwargs: object) -> Parity:
        ok = path.parent.parent.name != "int8-u8a7w"
        return Parity("int8", ok, 1.0, 1.0, 9, 0.0, 0.0, 9, "planted")

    monkeypatch.setattr(export_stage, "check_file", check)
    with pytest.raises(ParityError, match="ONNX of int8-u8a7w does not answer") as caught:
        api.export(own)
    assert "edgeopt rm int8-u8a7w" in str(caught.value.fix)
    assert set(own.exports()) == {"float", "int8-u8a7w-other"}, "the others are exported all the same"
    done = CliRunner().invoke(build_command, ["--target", "onnxruntime", "--run", str(own.path)])
    assert done.exit_code == 0, done.output
    assert "left out: int8-u8a7w: the ONNX of int8-u8a7w does not answer" in done.stderr
    assert set(own.engines()) == {"onnxruntime/float", "onnxruntime/int8-u8a7w-other"}
    for named in ({"variants": ["int8-u8a7w"]}, {"strict": True}):
        with pytest.raises(ParityError):
            api.build(own, "onnxruntime", **named)
    own.remove("int8-u8a7w-other")
    with pytest.raises(ParityError):
        api.build(own, "onnxruntime")


@pytest.mark.parametrize("problem", ["too large", "too large inside", "other answers"])
def test_a_float16_file_that_fails_is_left_out_and_only_those_who_need_it_are_refused(
    own: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problem: str
) -> None:
    """What is wrong with it is planted."""

    def write(source: Path, destination: Path) -> None:
        if problem == "too large":
            raise LoweringError("fc.bias holds 1e+06, too large for float16")
        precision.to_fp16(source, destination)
        model = onnx.load(destination)
        bias = next(one for one in model.graph.initializer if one.name == "fc.bias")
        bias.CopyFrom(numpy_helper.from_array(np.array([9, -9, 4], np.float16), "fc.bias"))
        onnx.save(model, destination)

    monkeypatch.setattr(export_stage, "to_fp16", write)
    if problem == "too large inside":
        monkeypatch.setattr(export_stage, "half_noise", lambda *_: float("nan"))
    shutil.rmtree(own.path / "device")
    written = api.export(own, variants=["float"], force=True, console=Terminal())["float"]
    told = {
        "too large": "holds 1e+06",
        "too large inside": "its numbers go beyond 65504",
        "other answers": "in float16 it does not answer as the trained model",
    }[problem]
    assert told in written["half_problem"]
    assert (
        f"float has no float16 file, which TensorRT builds from: {written['half_problem']}" in capsys.readouterr().err
    )
    assert set(written["outputs"]) == {"onnx", "logits"}
    assert not (own.path / "host/float/export/model.fp16.onnx").exists()
    with pytest.raises(LoweringError, match="float has no float16 file, which tensorrt builds from: ") as caught:
        source_onnx(own, load_backend("tensorrt"), "float", "fp16")
    assert told in caught.value.message
    source_onnx(own, load_backend("tensorrt"), "float", "fp32")
    assert {item.name for item in api.build(own, "onnxruntime")} == {"float", "int8-u8a7w"}


def test_a_target_that_cannot_be_built_does_not_keep_the_next_from_being_built(own: Run) -> None:
    shutil.rmtree(own.path / "device")
    targets = ["--target", "rtx-desktop", "--target", "onnxruntime"]  # the first takes s8a8w, which is not made
    done = CliRunner().invoke(build_command, [*targets, "--run", str(own.path), "--json"])
    assert isinstance(done.exception, EdgeoptError)
    assert {record["target"] for record in json.loads(done.stdout)} == {"onnxruntime"}
    shutil.rmtree(own.path / "device")
    misspelt = ["--target", "onnxruntime", "--target", "openvinno"]
    done = CliRunner().invoke(build_command, [*misspelt, "--run", str(own.path)])
    assert isinstance(done.exception, ConfigError)
    assert not own.engines(), "a misspelt target is said before anything is built"
