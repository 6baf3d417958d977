"""Runs the recipes: each in a process and a folder of its own, in its own environment where it needs one, timed."""

from __future__ import annotations

import hashlib
import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path
from time import monotonic
from typing import Any

from peers.inputs import Case, copy_float
from peers.registry import Peer

from edgeopt import Run
from edgeopt.files import read_json, write_json

#: No telemetry, no hub; and NNCF compiles its C++ on first use, which takes longer than it waits by itself.
_VARIABLES = {"NNCF_CI": "1", "OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "NNCF_EXTENSION_LOAD_TIMEOUT": "0"}
_ROOT = str(Path(__file__).resolve().parents[2])  # recipes in edgeopt's own environment run this checkout
_ERROR_CHARACTERS = 300
_INSTALL_SECONDS = 1800


def make(
    peer: Peer, case: Case, work: Path, inputs: dict[str, Any], *, venvs: Path, timeout: float, retry: bool
) -> dict[str, Any]:
    """Run the recipe of ``peer`` in ``work/peers/<key>`` unless it was run on these inputs; returns ``made.json``.

    A recipe that fails is recorded with its last line and run again only with ``retry``: ``error``, else None;
    ``seconds`` of the process, ``lines`` the user writes, ``version`` of the package.
    """
    folder = work / "peers" / peer.key
    record = folder / "made.json"
    recipe = peer.path.read_text(encoding="utf-8")
    key = hashlib.sha256(repr((recipe, case.setting, inputs, peer.requirements)).encode()).hexdigest()
    if record.is_file():
        found = read_json(record)
        if found["key"] == key and not (retry and found["error"]):
            return found
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "inputs").symlink_to(work / "inputs")
    if peer.path.suffix == ".sh":
        copy_float(Run.open(work / inputs["run"]), folder / "run")
    made: dict[str, Any] = {"key": key, "lines": peer.lines, "seconds": None, "version": None}
    made["error"], python = _environment(peer, venvs)
    if made["error"] is None:
        own = {"PYTHONPATH": _ROOT} if peer.venv is None else {}
        command = ["bash", "-e", str(peer.path)] if peer.path.suffix == ".sh" else [python, "-u", str(peer.path)]
        start = monotonic()
        made["error"] = _run(command, folder, {**_VARIABLES, **case.setting, **own}, timeout)
        made["seconds"] = round(monotonic() - start, 1)
        made["version"] = _version(python, peer.package)
    write_json(record, made)
    return made


def _environment(peer: Peer, venvs: Path) -> tuple[str | None, str]:
    """(why there is none, or None; its interpreter), made on first use."""
    if peer.venv is None:
        return None, sys.executable
    folder = venvs / peer.venv
    python, done = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join(peer.requirements) + "\n"
    if not done.is_file() or done.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        packages = next((folder / "lib").glob("python*")) / "site-packages"
        if peer.torch:  # behind its own packages, which come first; pip leaves what is elsewhere alone
            (packages / "shared.pth").write_text("".join(f"{path}\n" for path in site.getsitepackages()))
        error = _run([str(python), "-m", "pip", "install", "-q", *peer.requirements], folder, {}, _INSTALL_SECONDS)
        if error is not None:
            return f"does not install: {error}", str(python)
        done.write_text(wanted)
    return None, str(python)


def _run(command: list[str], folder: Path, more: dict[str, str], timeout: float) -> str | None:
    """Run ``command`` in ``folder``, what it prints going to ``log.txt``; why it failed, in a line, or None."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {**inherited, **more, "PATH": path}
    with (folder / "log.txt").open("wb") as log:
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, stdout=log, stderr=log, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            return f"not done after {timeout / 60:.0f} minutes"
    return None if done.returncode == 0 else _last_line(folder / "log.txt", done.returncode)


def _last_line(log: Path, code: int) -> str:
    """The line that says what went wrong: a traceback ends with it, edgeopt and pip begin one with their name."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0] or line.startswith(("edgeopt: ", "ERROR: "))]
    said = (errors or lines or [f"exit code {code}"])[-1]
    return said if len(said) <= _ERROR_CHARACTERS else said[:_ERROR_CHARACTERS] + "..."


def _version(python: str, package: str) -> str | None:
    code = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
    done = subprocess.run([python, "-c", code, package], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
