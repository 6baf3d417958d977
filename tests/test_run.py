"""The run folder: records are written last, nothing is overwritten, nothing leaves the folder, one writer at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeopt import environment
from edgeopt.console import Silent
from edgeopt.errors import ConfigError, MissingStageError, RunError
from edgeopt.run import Run, check_name, stage_key


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs" / "one", data_root="photos", data={}, fingerprint="f" * 64)


def _commit(run: Run, name: str, key: str, parent: str | None = None) -> None:
    stage = run.stage("host", name, record="stage.json", key=key)
    (stage.folder / "model.safetensors").write_bytes(key.encode())
    stage.commit(outputs={"model": stage.folder / "model.safetensors"}, parent=parent)


def test_a_stage_exists_only_when_its_record_does(run: Run) -> None:
    stage = run.stage("host", "float", record="stage.json", key="a" * 64)
    (stage.folder / "model.safetensors").write_bytes(b"weights")
    assert not stage.done
    assert run.variants() == {}
    stage.commit(outputs={"model": stage.folder / "model.safetensors"}, parent=None)
    assert list(Run.open(run.path).variants()) == ["float"]
    assert not (stage.folder / "pending.json").exists()


def test_the_same_key_finds_the_same_stage_and_another_gets_a_hashed_name(run: Run) -> None:
    _commit(run, "float", "a" * 64)
    assert run.stage("host", "float", record="stage.json", key="a" * 64).done
    other = run.stage("host", "float", record="stage.json", key="b" * 64)
    assert other.name == "float-bbbbbb"
    assert not other.done
    assert run.stage("host", "float", record="stage.json", key="b" * 64).name == "float-bbbbbb"


def test_an_interrupted_stage_is_found_again_by_its_key(run: Run) -> None:
    first = run.stage("host", "float", record="stage.json", key="a" * 64)
    (first.folder / "checkpoint").write_text("half way")
    again = Run.open(run.path).stage("host", "float", record="stage.json", key="a" * 64, resumes=True)
    assert (again.folder / "checkpoint").read_text() == "half way"
    anew = Run.open(run.path).stage("host", "float", record="stage.json", key="a" * 64)
    assert not (anew.folder / "checkpoint").exists()


def test_force_makes_a_stage_again_in_an_empty_folder(run: Run) -> None:
    _commit(run, "float", "a" * 64)
    again = run.stage("host", "float", record="stage.json", key="a" * 64, force=True)
    assert not again.done
    assert not (again.folder / "model.safetensors").exists()


def test_what_force_makes_again_is_kept_until_the_new_one_is_committed(run: Run) -> None:
    _commit(run, "float", "a" * 64)
    again = run.stage("host", "float", record="stage.json", key="a" * 64, force=True)
    kept = list((run.path / "host").glob(".old-float-*/model.safetensors"))
    assert [path.read_text() for path in kept] == ["a" * 64]
    (again.folder / "model.safetensors").write_bytes(b"new")
    again.commit(outputs={"model": again.folder / "model.safetensors"}, parent=None)
    assert [path.name for path in (run.path / "host").iterdir()] == ["float"]


def test_an_outdated_stage_is_replaced_where_another_configuration_is_kept(run: Run) -> None:
    _commit(run, "float", "a" * 64)
    replaced = run.stage("host", "float", record="stage.json", key="b" * 64, outdated=lambda record: True)
    assert replaced.name == "float"
    assert not replaced.done


def test_a_variant_is_outdated_once_its_parents_weights_are_others(run: Run) -> None:
    _commit(run, "float", "a" * 64)
    source = run.variant("float")["outputs"]["model"]["sha256"]
    child = {"parent": "float", "inputs": {"source": source}}
    assert not run.outdated(child)
    again = run.stage("host", "float", record="stage.json", key="a" * 64, force=True)
    (again.folder / "model.safetensors").write_bytes(b"new")
    again.commit(outputs={"model": again.folder / "model.safetensors"}, parent=None)
    assert run.outdated(child)


def test_a_half_made_variant_is_listed_and_can_be_removed(run: Run) -> None:
    stage = run.stage("host", "float", record="stage.json", key="a" * 64)
    (stage.folder / "checkpoint").write_text("half way")
    assert run.half_made() == ["float"]
    assert run.remove("float") == ["host/float"]
    assert not stage.folder.exists()


def test_a_stage_made_with_other_libraries_is_kept_and_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ears:
        def __init__(self) -> None:
            self.heard: list[str] = []

        def say(self, text: str) -> None:
            self.heard.append(text)

        task = Silent.task

    _commit(run, "float", "a" * 64)
    ears = Ears()
    stage = run.stage("host", "float", record="stage.json", key="a" * 64)
    stage.skipped(ears)
    assert ears.heard == []
    installed = environment.versions()
    monkeypatch.setattr(environment, "versions", lambda: {**installed, "numpy": "99.0"})
    assert stage.skipped(ears)["name"] == "float"
    assert ears.heard == [f"float was made with numpy {installed['numpy']} (now 99.0); --force makes it again"]


def test_a_changed_output_is_noticed_by_its_hash(run: Run) -> None:
    _commit(run, "float", "a" * 64)
    record = run.variant("float")
    assert run.output(record, "model").is_file()
    (run.path / "host/float/model.safetensors").write_bytes(b"edited")
    with pytest.raises(RunError, match="was changed since"):
        run.output(record, "model")
    (run.path / "host/float/model.safetensors").unlink()
    with pytest.raises(RunError, match="is missing"):
        run.output(record, "model")


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "host/../../outside", "link/secret"])
def test_a_record_cannot_name_a_file_outside_the_run(run: Run, path: str, tmp_path: Path) -> None:
    (run.path / "link").symlink_to(tmp_path)
    with pytest.raises(RunError, match="outside the run folder"):
        run.resolve(path)


def test_another_dataset_in_the_same_folder_is_refused(run: Run) -> None:
    with pytest.raises(RunError, match="another dataset"):
        Run.create(run.path, data_root="other", data={}, fingerprint="0" * 64)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema": 1}', '{"schema": 99, "id": "x"}', "[" * 100_000])
def test_a_damaged_or_newer_run_is_one_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json|schema"):
        Run.open(tmp_path)


def test_latest_is_by_creation_and_says_when_there_is_none(run: Run, tmp_path: Path) -> None:
    newer = Run.create(tmp_path / "runs" / "a-newer-one", data_root="photos", data={}, fingerprint="1" * 64)
    assert Run.latest(tmp_path / "runs").path == newer.path
    with pytest.raises(RunError, match="no run under"):
        Run.latest(tmp_path / "nowhere")


def test_original_and_variant_name_what_is_missing(run: Run) -> None:
    with pytest.raises(MissingStageError, match="no trained model yet"):
        run.original()
    _commit(run, "float", "a" * 64)
    _commit(run, "int8-u8a8w", "b" * 64, parent="float")
    assert run.original() == "float"
    with pytest.raises(MissingStageError, match='did you mean "int8-u8a8w"'):
        run.variant("int8-u8a8")


def test_a_folder_on_its_way_out_is_no_variant(run: Run) -> None:
    """A crash inside a removal leaves .trash-*; it must not come back as a variant."""
    _commit(run, "float", "a" * 64)
    (run.path / "host/float").rename(run.path / "host/.trash-float-0123")
    assert run.variants() == {}


def test_what_a_killed_process_left_half_written_is_swept_away(run: Run) -> None:
    (run.path / "host/.trash-float-0123").mkdir(parents=True)
    (run.path / "host/.stage.0123456789ab.tmp.json").write_text("{")
    (run.path / ".mine").write_text("a user's own")
    with run.lock():
        assert list((run.path / "host").iterdir()) == []
        assert (run.path / ".mine").is_file()


def test_an_attempt_that_made_nothing_keeps_no_name(run: Run) -> None:
    run.stage("host", "float", record="stage.json", key="a" * 64)
    assert run.stage("host", "float", record="stage.json", key="b" * 64).name == "float"


def test_remove_keeps_parents_and_takes_engines_along(run: Run) -> None:
    _commit(run, "float", "a" * 64)
    _commit(run, "int8-u8a8w", "b" * 64, parent="float")
    engine = run.stage("device/onnxruntime", "int8-u8a8w", record="build.json", key="c" * 64)
    engine.commit(
        outputs={},
        variant="int8-u8a8w",
        target="onnxruntime",
        precision="int8",
        backend="onnxruntime",
        profile={"schema": 1, "title": "t", "backend": "onnxruntime"},
    )
    with pytest.raises(RunError, match="is the parent of int8-u8a8w"):
        run.remove("float")
    assert run.remove("int8-u8a8w") == ["host/int8-u8a8w", "device/onnxruntime/int8-u8a8w"]
    assert list(run.variants()) == ["float"]
    assert run.engines() == {}


def test_a_second_writer_is_refused_and_told_who_holds_the_run(run: Run) -> None:
    program = (
        "import sys; from pathlib import Path; from edgeopt.run import Run\n"
        "with Run.open(Path(sys.argv[1])).lock(): pass"
    )
    with run.lock():
        blocked = subprocess.run(
            [sys.executable, "-c", program, str(run.path)], capture_output=True, text=True, check=False
        )
    assert blocked.returncode != 0
    assert "is in use by process" in blocked.stderr
    free = subprocess.run([sys.executable, "-c", program, str(run.path)], capture_output=True, text=True, check=False)
    assert free.returncode == 0, free.stderr


def test_the_lock_is_taken_once_by_stages_that_call_one_another(run: Run) -> None:
    with run.lock(), run.lock():
        pass
    with run.lock():
        pass


def test_records_hold_relative_paths_only(run: Run) -> None:
    _commit(run, "float", "a" * 64)
    assert str(run.path) not in json.dumps(run.variant("float")["outputs"])


def test_stage_key_depends_on_inputs_config_and_version() -> None:
    base = stage_key(inputs={"a": "1"}, config={"x": 1}, version=1)
    assert base == stage_key(inputs={"a": "1"}, config={"x": 1}, version=1)
    assert len({base, stage_key(inputs={"a": "2"}, config={"x": 1}, version=1),
                stage_key(inputs={"a": "1"}, config={"x": 2}, version=1),
                stage_key(inputs={"a": "1"}, config={"x": 1}, version=2)}) == 4  # fmt: skip


@pytest.mark.parametrize("name", ["", ".hidden", "-x", "a/b", "a\nb", "x" * 101])
def test_names_unfit_for_a_folder_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a folder"):
        check_name(name)


def test_a_machine_is_known_by_its_secret_id_and_name_not_by_hardware_that_can_be_guessed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So a container with its host's machine-id and a fixed name is one machine, at whichever start."""

    def host(machine_id: str, name: str) -> str:
        monkeypatch.setattr(
            environment, "system_file", lambda path: machine_id if path == "/etc/machine-id" else "same"
        )
        monkeypatch.setattr(environment.platform, "node", lambda: name)
        return environment.host_id()

    assert host("5ec2e7", "board") == host("5ec2e7", "board")
    assert len({host("5ec2e7", "board"), host("0ther", "board"), host("5ec2e7", "3f9c0a1b2d4e")}) == 3
