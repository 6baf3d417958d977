"""The same engine through a tool that is not ours: a clock of edgeopt's that lied would be found here.

OpenVINO's ``benchmark_app``, a bare loop of ONNX Runtime's own API, NVIDIA's ``trtexec``; each in turn with edgeopt's
own windows, so that a machine that changes speed changes both. ``benchmark_app`` leaves the copying of the input out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeopt.bench.child import Child
from edgeopt.bench.result import bounds
from edgeopt.bench.spec import EngineSpec
from edgeopt.errors import REPORT, BackendError
from edgeopt.metrics import quantiles, ratio_interval
from edgeopt.preprocess import PreprocessSpec

ROUNDS, SECONDS = 6, 1.0
#: Beyond this the two do not measure the same thing.
TOLERANCE = 0.05

#: The whole of the bare loop: no code of edgeopt's runs in it. Arguments: engine, shape, threads, seconds, options,
#: optimizers that are left out.
BARE_ONNXRUNTIME = """
import json, sys, time
import numpy as np, onnxruntime as ort
engine, shape, threads, seconds, options, disabled = (json.loads(one) for one in sys.argv[1:7])
settings = ort.SessionOptions()
settings.intra_op_num_threads = threads
settings.inter_op_num_threads = 1
for name, value in options.items():
    settings.add_session_config_entry(name, value)
session = ort.InferenceSession(engine, settings, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
wanted, random = session.get_inputs()[0], np.random.default_rng(0)
batch = random.normal(size=shape).astype(np.float32)
if wanted.type == "tensor(uint8)":
    batch = random.integers(0, 256, shape, np.uint8)
feed = {wanted.name: batch}
times, end = [], time.perf_counter() + seconds
for _ in range(5):
    session.run(None, feed)
while time.perf_counter() < end:
    begin = time.perf_counter()
    session.run(None, feed)
    times.append((time.perf_counter() - begin) * 1000)
print(json.dumps(float(np.median(times))))
"""


@dataclass(frozen=True)
class CrossCheck:
    """Medians over rounds, ms a call; ``ratio`` is edgeopt's over the tool's, ``ratio_ci`` its 95 % interval."""

    tool: str
    p50_ms: float
    edgeopt_p50_ms: float
    ratio: float
    ratio_ci: list[float] | None
    rounds: int

    @property
    def agrees(self) -> bool | None:
        """Whether the two are within 5 % of each other; None when they are not, but noise may have made that."""
        if abs(self.ratio - 1) <= TOLERANCE:
            return True
        low, high = self.ratio_ci or (0.0, float("inf"))
        return False if low > 1 + TOLERANCE or high < 1 - TOLERANCE else None

    def to_json(self) -> dict[str, Any]:
        """As in ``latency.json``."""
        return {**asdict(self), "agrees": self.agrees}

    def __str__(self) -> str:
        span = f" ({self.ratio_ci[0]:.3f} to {self.ratio_ci[1]:.3f})" if self.ratio_ci else ""
        said = {True: "they agree", False: "they DIFFER", None: "too noisy to tell"}
        measured = f"{self.tool} {self.p50_ms:.4g} ms, edgeopt {self.edgeopt_p50_ms:.4g} ms"
        return f"{measured}: ratio {self.ratio:.3f}{span}, {said[self.agrees]}"


def cross_check(
    spec: EngineSpec, *, rounds: int = ROUNDS, seconds: float = SECONDS, timeout: float = 300.0
) -> CrossCheck | None:
    """``spec`` (completed) measured by edgeopt and by its runtime's own tool in turn; None where there is no tool.

    Raises BackendError when either fails.
    """
    child = Child(spec)
    try:
        session = child.open(timeout)["session"]
        other = _tool(spec, session, seconds)
        if other is None:
            return None
        name, measure = other
        child.window(seconds / 2, 3, timeout)
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(quantiles(child.window(seconds, 5, timeout)["samples_ms"], (50,))[0])
            theirs.append(measure())
    finally:
        child.close()
    ratio = ratio_interval(ours, theirs)
    p50, own = (quantiles(values, (50,))[0] for values in (theirs, ours))
    return CrossCheck(name, p50, own, ratio.value, bounds(ratio), rounds)


def _tool(spec: EngineSpec, session: dict[str, Any], seconds: float) -> tuple[str, Callable[[], float]] | None:
    """What the runtime has, and a function that runs it once and gives its median, ms a call."""
    assert spec.preprocess is not None
    channels, height, width = PreprocessSpec.read(spec.preprocess).input_shape
    picture = (height, width, channels) if session.get("embedded_preprocessing") else (channels, height, width)
    shape = [spec.target.batch, *picture]
    commands = {"onnxruntime": _bare_loop, "openvino": _benchmark_app, "tensorrt": _trtexec}
    if spec.backend not in commands or spec.target.session.provider != "CPUExecutionProvider":
        return None
    found = commands[spec.backend](spec, shape, session, seconds)
    if found is None:
        return None
    name, command, pattern = found
    return name, lambda: _median(name, command, pattern, spec.threads)


def _bare_loop(
    spec: EngineSpec, shape: list[int], session: dict[str, Any], seconds: float
) -> tuple[str, list[str], str]:
    import json

    from edgeopt.backends.onnxruntime_session import UNASKED

    options = {str(name): str(value) for name, value in (session.get("options") or {}).items()}
    arguments = (str(spec.engine), shape, spec.threads, seconds, options, UNASKED)
    command = [sys.executable, "-I", "-c", BARE_ONNXRUNTIME, *map(json.dumps, arguments)]
    return "a bare loop of onnxruntime", command, r"^([\d.]+)$"


def _benchmark_app(
    spec: EngineSpec, shape: list[int], session: dict[str, Any], seconds: float
) -> tuple[str, list[str], str] | None:
    program = Path(sysconfig.get_path("scripts")) / "benchmark_app"
    found = str(program) if program.is_file() else shutil.which("benchmark_app")
    if found is None:
        return None
    device, precision = spec.target.session.device, str(session.get("precision_hint") or "f32")
    command = [found, "-m", str(spec.engine), "-d", device, "-hint", "none", "-api", "sync", "-nireq", "1"]
    command += ["-shape", str(shape), "-t", str(max(1, round(seconds))), "-infer_precision", precision]
    if device == "CPU":
        command += ["-nstreams", "1", "-nthreads", str(spec.threads)]
    return "benchmark_app", command, r"Median:\s+([\d.]+) (ms|us)"


def _trtexec(
    spec: EngineSpec, shape: list[int], session: dict[str, Any], seconds: float
) -> tuple[str, list[str], str] | None:
    found = shutil.which("trtexec") or "/usr/src/tensorrt/bin/trtexec"
    if not Path(found).is_file():
        return None
    command = [found, f"--loadEngine={spec.engine}", f"--duration={max(1, round(seconds))}", "--useSpinWait"]
    command += [f"--shapes={session['input']}:{'x'.join(map(str, shape))}"]  # else one picture, whatever the batch
    return "trtexec", command, r"\] Latency: .*?median = ([\d.]+) ms"


def _median(name: str, command: list[str], pattern: str, threads: int) -> float:
    # OpenVINO's tools send no telemetry where CI is true.
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CI": "true"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, env=environment, cwd="/"
        )
    except subprocess.TimeoutExpired:
        raise BackendError(f"{name} did not end within 300 s", fix="measure when the machine is quiet") from None
    found = re.search(pattern, done.stdout, re.MULTILINE)
    if found is None:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise BackendError(f"{name} printed no median: {said}", fix=f"run it alone to see why; if it works, {REPORT}")
    microseconds = found.lastindex == 2 and found[2] == "us"  # benchmark_app's, below a millisecond
    return float(found[1]) / (1000 if microseconds else 1)
