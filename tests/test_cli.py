"""The command line: golden help texts, exit codes, one JSON object on stdout, errors of one line with their fix."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from edgeopt import resources
from edgeopt.cli import VERBS, _of_the_run
from edgeopt.errors import EdgeoptError

GOLDEN = Path(__file__).parent / "golden" / "help"


def edgeopt(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "edgeopt", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **environment},
    )


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_is_the_golden_text(verb: str) -> None:
    """Regenerate on purpose with EDGEOPT_GOLDEN=1 and read the difference."""
    done = edgeopt(*([verb] if verb else []), "--help")
    assert done.returncode == 0, done.stderr
    golden = GOLDEN / f"{verb or 'edgeopt'}.txt"
    if os.environ.get("EDGEOPT_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(done.stdout)
    assert done.stdout == golden.read_text()


@pytest.mark.parametrize("verb", VERBS)
def test_the_one_line_help_of_a_verb_opens_its_own_help(verb: str) -> None:
    """`edgeopt --help` prints the table without importing verbs, so the two could part."""
    assert (GOLDEN / f"{verb}.txt").is_file()
    assert VERBS[verb][1].endswith(".")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["targts"], 2, 'did you mean "targets"'),
        (["finetune"], 2, "Missing argument"),
        (["compress"], 2, "say --int8, --prune F, or both"),
        (["finetune", "no-such-folder"], 1, "no-such-folder"),
        (["finetune", "x", "--epochs", "0"], 1, "epochs"),
        (["compress", "--int8", "--prune", "1.5"], 1, "prune"),
        (["finetune", "x", "--model-arg", "depth"], 1, 'is not "key=value"'),
        (["finetune", "x", "--model-arg", "depths=[[1]]"], 1, "must be a number, a word, true, false or a list"),
        (["show"], 1, "no run under runs/"),
        (["show", "--run", "nowhere"], 1, "is not a run folder"),
        (["show", "--run", "nowhere"], 1, "edgeopt finetune DATA (with --run nowhere)"),
        (["run", "nothing.toml"], 1, "nothing.toml does not exist"),
        (["build"], 2, "--target"),
    ],
)
def test_a_users_mistake_is_a_line_and_its_fix_never_a_traceback(
    tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    done = edgeopt(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
    if code == 1:
        assert "fix: " in done.stderr


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("-x.png", ["predict"]),
        ("-x.png", ["predict", "--top", "3", "a.png"]),
        ("-q.png", ["predict"]),  # click takes the q for --quiet and stumbles over the dot
        ("--x.png", ["predict"]),
        ("--x=1 of 2.png", ["predict"]),
        ("-photos", ["finetune"]),
        ("-photos", ["check"]),
        ("-photos", ["tune"]),
        ("-edgeopt.toml", ["run"]),
        ("-report.json", ["compare", "other.json"]),
    ],
)
def test_a_file_that_is_taken_for_an_option_is_said_how_to_type(
    tmp_path: Path,
    name: str,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused([*arguments, name], capsys)
    assert "No such option" in said
    assert "fix:" not in said, "there is no such file"
    (tmp_path / name).write_bytes(b"")
    quoted = shlex.quote(name)
    way = f"there is a {quoted} here: type ./{quoted}, or -- before it: edgeopt {arguments[0]} -- {quoted}"
    assert refused([*arguments, name], capsys) == f"{said}  fix: {way}\n"


def test_an_unknown_option_is_no_file_where_the_verb_takes_none_or_the_file_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-x.png", "--bogus"):
        (tmp_path / name).write_bytes(b"")
    for typed in (["rm", "-x.png"], ["show", "--bogus"], ["predict", "-y", "--", "-x.png"], ["predict", "--bogus2"]):
        assert "fix:" not in refused(typed, capsys), typed
    for way in (["--", "-x.png"], ["./-x.png"]):
        assert "no run under runs/" in edgeopt("predict", *way, cwd=tmp_path).stderr, (
            "it is past the reading of options"
        )


def refused(typed: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said on stderr of a command line that cannot be read."""
    from edgeopt import cli

    with pytest.raises(SystemExit) as ended:
        cli.main(typed)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "fix", "told"),
    [
        (["predict", "a.png", "--run", "my runs/x"], "edgeopt build --target onnxruntime", " (with --run 'my runs/x')"),
        (["build", "--run=x", "--target", "tensorrt"], "edgeopt compress --int8 --scheme s8a8w", " (with --run x)"),
        (["predict", "a.png"], "edgeopt build --target onnxruntime", ""),
        (["build", "--run", "x"], "see edgeopt targets", ""),
        (["eval", "--run", "x"], "edgeopt export --run x", ""),
        (["finetune", "data", "--run", "x"], "add more pictures of that class", ""),
    ],
)
def test_a_command_that_a_fix_names_is_for_the_run_that_was_typed(arguments: list[str], fix: str, told: str) -> None:
    assert _of_the_run(EdgeoptError("no", fix=fix), arguments) == told


def test_a_bug_is_shown_whole_and_says_how_to_report_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgeopt import cli, doctor

    def broken() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(doctor, "examine", broken)
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor"])
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "Traceback" in said
    assert "ZeroDivisionError: a bug" in said
    assert "this is a bug in edgeopt" in said
    assert "edgeopt doctor --json" in said


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert "Traceback" in edgeopt("--debug", "show", cwd=tmp_path).stderr


def test_targets_lists_every_shipped_one_as_text_and_as_json() -> None:
    text, values = edgeopt("targets").stdout, json.loads(edgeopt("targets", "--json").stdout)
    assert [row["name"] for row in values] == resources.names("targets")
    assert all(row["name"] in text for row in values)
    assert all(isinstance(row["this_machine"], bool) for row in values)


def test_targets_this_says_of_each_why() -> None:
    done = edgeopt("targets", "--this", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert set(rows) == set(resources.names("targets"))
    assert rows["onnxruntime"]["fits"]
    assert not rows["jetson-thor"]["fits"]
    assert any("board" in why for why in rows["jetson-thor"]["why"])
    assert "sources:" in edgeopt("targets", "jetson-thor").stdout


def test_models_as_json() -> None:
    assert "tf_efficientnet_lite0" in {row["name"] for row in json.loads(edgeopt("models", "--json").stdout)}


def test_models_counts_any_model_by_name_or_pattern() -> None:
    (row,) = json.loads(edgeopt("models", "resnet50d", "--json").stdout)
    assert (row["parameters_millions"], row["macs_millions"], row["input_size"]) == (25.6, 4329, 224)
    assert (row["int8"], row["weights_at_hand"]) == ("easy", False)
    found = edgeopt("models", "test_resnet*", "--limit", "0")
    assert "more fit test_resnet*: test_resnet" in found.stderr
    unknown = edgeopt("models", "resnet-50")
    assert unknown.returncode == 1
    assert 'did you mean "resnet50"' in unknown.stderr


@pytest.mark.slow
def test_arguments_of_the_constructor_reach_the_model_of_a_run_from_flag_recipe_and_api(
    pictures: Path, tmp_path: Path
) -> None:
    """The same narrower network whichever way it is said; the run's files alone rebuild it for resuming and export."""
    from edgeopt import DataConfig, ModelConfig, Run, TrainConfig, api
    from edgeopt.config import load_recipe
    from edgeopt.models import count_parameters, create

    run = tmp_path / "run"
    typed = ["finetune", str(pictures), "--model", "test_resnet", "--no-pretrained", "--image-size", "32"]
    typed += ["--epochs", "1", "--batch-size", "8", "--run", str(run), "--model-arg", "channels=[8, 16, 16, 24]"]
    done = edgeopt(*typed, "--set", "model.arguments.layers=[1, 1, 2, 1]", "--quiet")
    assert done.returncode == 0, done.stderr
    record = Run.open(run).variant("float")
    arguments = {"channels": [8, 16, 16, 24], "layers": [1, 1, 2, 1]}
    assert record["config"]["model"]["arguments"] == arguments
    usual = count_parameters(create("test_resnet", num_classes=3, pretrained=False).model)
    assert record["metrics"]["parameters"] < 0.2 * usual
    (tmp_path / "edgeopt.toml").write_text(
        f'data = {{ path = "{pictures}", image_size = 32 }}\ntrain = {{ epochs = 1, batch_size = 8 }}\n'
        '[model]\nname = "test_resnet"\npretrained = false\n'
        "arguments.channels = [8, 16, 16, 24]\narguments.layers = [1, 1, 2, 1]\n"
    )
    recipe = load_recipe(tmp_path / "edgeopt.toml")
    again = api.finetune(recipe.data, recipe.model, recipe.train, run=run)
    assert again.skipped
    called = ModelConfig(
        name="test_resnet", pretrained=False, arguments={key: tuple(v) for key, v in arguments.items()}
    )
    train = TrainConfig(epochs=1, batch_size=8)
    assert api.finetune(DataConfig(path=str(pictures), image_size=32), called, train, run=run).skipped
    opened = Run.open(run)
    assert set(api.export(opened)) == {"float"}
    weights = opened.output(record, "model")
    adopted = edgeopt(
        *("adopt", "--model", "test_resnet", "--weights", str(weights), "--data", str(pictures)),
        *(
            "--image-size",
            "32",
            "--run",
            str(tmp_path / "adopted"),
            "--json",
            "--model-arg",
            "channels=[8, 16, 16, 24]",
        ),
        *("--model-arg", "layers=[1, 1, 2, 1]"),
    )
    assert adopted.returncode == 0, adopted.stderr
    refused = edgeopt(
        *("adopt", "--model", "test_resnet", "--weights", str(weights), "--data", str(pictures)),
        *("--run", str(tmp_path / "refused")),
    )
    assert refused.returncode == 1
    assert "check --model" in refused.stderr


def test_doctor_names_every_backend_and_how_to_get_what_is_missing() -> None:
    findings = {item["name"]: item for item in json.loads(edgeopt("doctor", "--json").stdout)}
    for name in ("cpu", "memory", "training", "backend onnxruntime", "backend openvino", "backend tensorrt"):
        assert name in findings
    assert all(item["ok"] or item["fix"] for item in findings.values())


def test_init_writes_a_recipe_once(tmp_path: Path) -> None:
    assert edgeopt("init", cwd=tmp_path).returncode == 0
    before = (tmp_path / "edgeopt.toml").read_text()
    again = edgeopt("init", cwd=tmp_path)
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert (tmp_path / "edgeopt.toml").read_text() == before
