"""No network and no telemetry: the verbs run with sockets forbidden, in edgeopt's process and in those it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

# Python imports sitecustomize by itself in every process of this environment, bench's workers included.
FORBID = """
import os, socket, sys

def forbid(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        if event == "socket.connect" and arguments[0].family == socket.AF_UNIX:
            return
        with open(os.environ["ATTEMPTS"], "a") as log:
            log.write(f"{event} {arguments[1:]} by {sys.argv[:2]}\\n")
        raise PermissionError("the network is forbidden in this test")

sys.addaudithook(forbid)
"""
RECIPE = """
targets = ["onnxruntime", "openvino", "tensorrt"]
[data]
path = "photos"
image_size = 32
[model]
name = "tf_efficientnet_lite0"
[train]
epochs = 1
[compress]
prune = 0.3
epochs = 1
recovery_epochs = 1
[bench]
seconds = 3
"""


@pytest.fixture
def offline(tmp_path: Path) -> Mapping[str, str]:
    """An environment in which every process that opens a connection fails, and says so in ``attempts``."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(FORBID)
    return {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "ATTEMPTS": str(tmp_path / "attempts")}


def test_the_forbidding_works(offline: Mapping[str, str], tmp_path: Path) -> None:
    program = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    done = subprocess.run([sys.executable, "-c", program], env=offline, capture_output=True, text=True, check=False)
    assert "the network is forbidden" in done.stderr
    assert (tmp_path / "attempts").read_text().startswith("socket.")


@pytest.mark.parametrize("module", ["backends.openvino", "compress.nncf_placement"])
def test_openvino_reports_no_import(offline: Mapping[str, str], tmp_path: Path, module: str) -> None:
    """Its import sends an event and makes ~/intel, where openvino_telemetry is installed, which pip does with it."""
    environment = {name: value for name, value in offline.items() if not name.startswith(("CI", "NNCF", "PYTEST"))}
    environment["HOME"] = str(tmp_path / "home")
    (tmp_path / "home").mkdir()

    def imports(first: str) -> None:
        program = f"import time; {first}; import openvino.tools.ovc; time.sleep(1)"
        subprocess.run([sys.executable, "-c", program], env=environment, check=True)

    imports(f"import edgeopt.{module}")
    assert not (tmp_path / "attempts").exists(), (tmp_path / "attempts").read_text()
    assert not list((tmp_path / "home").iterdir())
    imports("pass")
    assert (tmp_path / "home/intel").exists()  # so that this test could fail


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_verbs_open_no_connection(offline: Mapping[str, str], pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").symlink_to(pictures)
    (tmp_path / "edgeopt.toml").write_text(RECIPE)
    picture = next(pictures.rglob("*.png"))
    for arguments in (
        ("run", "edgeopt.toml"),
        ("eval",),
        ("predict", str(picture)),
        ("report",),
        ("package", "--target", "onnxruntime"),
        ("check", "photos"),
        ("show",),
        ("doctor",),
        ("models",),
        ("targets",),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "edgeopt", *arguments],
            env=offline, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"
    attempts = tmp_path / "attempts"
    assert not attempts.exists(), attempts.read_text()
