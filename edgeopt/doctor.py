"""What works on this machine, what each missing piece costs, and the command that gets it."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgeopt import allotment, environment
from edgeopt.backends.onnxruntime_session import preload
from edgeopt.backends.tensorrt import hidden_tensorrt
from edgeopt.registry import backends, load_backend

_GIB = 2**30
_TRAINING_MEMORY = 3.5 * _GIB  # torch, a small network with its teacher, and the pictures
_RUN_SPACE = 2 * _GIB  # the demo's run takes 0.2 GiB; sets, checkpoints and engines grow with the pictures

#: An ONNX file, y = Identity(x) of one float, in opset 13: a device has no onnx package to write it with.
_IDENTITY = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a0808011204"
    "0a020801620f0a0179120a0a08080112040a02080142040a00100d"
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found, what it costs, and what would mend it.

    ``state``: "ok"; "note", worth knowing and working; "missing", something that edgeopt could do does not work here.
    """

    name: str
    state: Literal["ok", "note", "missing"]
    text: str
    cost: str = ""
    fix: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is missing."""
        return self.state != "missing"

    def to_json(self) -> dict[str, Any]:
        """For ``edgeopt doctor --json``."""
        return {**asdict(self), "ok": self.ok}


def examine() -> list[Finding]:
    """Every check, in the order a newcomer would ask. One that fails itself is a finding too."""
    return [finding for check in CHECKS for finding in _sure(check)]


def _sure(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    name = check.__name__.strip("_").replace("_", " ")
    try:
        return list(check())
    except Exception as error:  # noqa: BLE001 - a broken driver or package must not hide the other findings
        said = f"looking at it failed: {type(error).__name__}: {error}"
        return [Finding(name, "missing", said, cost="it cannot be told", fix="please report it, with this line")]


def _python() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} in {sys.prefix}")


def _cpu() -> Iterator[Finding]:
    cpu = environment.cpu()
    text = f"{cpu['name']}, {cpu['cores']} usable cores, {', '.join(cpu['flags']) or 'no int8 or bf16 instructions'}"
    if environment.has_int8_dot():
        yield Finding("cpu", "ok", text)
        return
    yield Finding(
        "cpu",
        "note",
        f"{text}; no int8 dot-product (VNNI)",
        cost="8-bit weights would saturate, so compress --int8 makes u8a7w (7-bit weights) here, and int8 gains less "
        "over float",
    )


def _speed() -> Iterator[Finding]:
    """Whether the CPU may run as fast as it can: governor, frequency cap, quota, heat."""
    state = environment.cpu_limits()
    slow = []
    if state["governor"] == "powersave" and state["driver"] not in ("intel_pstate", "amd-pstate-epp"):
        slow.append(("the governor is powersave", "sudo cpupower frequency-set -g performance"))
    if state["max_khz"] and state["hardware_khz"] and state["max_khz"] < 0.95 * state["hardware_khz"]:
        capped = f"the frequency is capped at {state['max_khz'] / 1e6:.1f} of {state['hardware_khz'] / 1e6:.1f} GHz"
        slow.append((capped, f"sudo cpupower frequency-set -u {state['hardware_khz']}"))
    if state["throttled"]:
        slow.append((state["throttled"], "cool it, give it its full power supply, and bench again"))
    for text, fix in slow:
        yield Finding("speed", "note", text, cost="latencies measured here are worse than the device's own", fix=fix)
    if not slow:
        known = f"governor {state['governor']}" if state["governor"] else "no limit seen (no cpufreq to read)"
        yield Finding("speed", "ok", known)


def _memory() -> Iterator[Finding]:
    size, free = allotment.memory_bytes(), allotment.available_bytes()
    text = f"{size / _GIB:.1f} GiB, {free / _GIB:.1f} GiB of it free" if size else "unknown"
    if not size or free >= _TRAINING_MEMORY:
        yield Finding("memory", "ok", text)
    elif size >= _TRAINING_MEMORY:
        yield Finding("memory", "note", text, cost="training may run out of it", fix="close other programs")
    else:
        yield Finding(
            "memory",
            "missing",
            text,
            cost="finetune and compress need about 4 GiB; build, bench, eval and predict work",
            fix="train elsewhere and copy the run folder here",
        )


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    text = f"{free / _GIB:.1f} GiB free here"
    if free >= _RUN_SPACE:
        yield Finding("disk", "ok", text)
    else:
        yield Finding("disk", "note", text, cost="a run may not fit", fix="make room, or give --run on another disk")


def _gpu() -> Iterator[Finding]:
    found = environment.gpus()
    if found:
        yield Finding("gpu", "ok", ", ".join(f"{gpu['name']} (driver {gpu['driver']})" for gpu in found))
        return
    reason = "nvidia-smi lists none" if shutil.which("nvidia-smi") else "none seen (no nvidia-smi)"
    cost = "training runs on the CPU; TensorRT engines are prepared here and built on the device"
    yield Finding("gpu", "note", reason, cost=cost)


def _training() -> Iterator[Finding]:
    names = ("torch", "timm", "nncf", "torch_pruning", "onnx")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding(
            "training",
            "missing",
            f"no {', '.join(missing)}",
            cost="finetune, compress and export do not work; build, bench, eval and predict do",
            fix='pip install "edgeopt[train]"',
        )
        return
    yield Finding("training", "ok", f"torch {environment.versions(['torch'])['torch']}")


def _compiler() -> Iterator[Finding]:
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if found:
        yield Finding("compiler", "ok", str(shutil.which(found)))
        return
    yield Finding(
        "compiler",
        "note",
        "no C++ compiler",
        cost="nothing that edgeopt does needs one; pycuda (an extra) and torch.compile do",
        fix="sudo apt install g++",
    )


def _runtimes() -> Iterator[Finding]:
    for name in sorted(backends()):
        yield _backend(name)


def _backend(name: str) -> Finding:
    title = f"backend {name}"
    if name == "pytorch" and importlib.util.find_spec("torch") is None:
        cost = "the original cannot be measured here; its row carries the figures of the machine that trained it"
        return Finding(title, "missing", "torch is not installed", cost=cost, fix='pip install "edgeopt[train]"')
    backend = load_backend(name)
    found = backend.availability()
    text = " ".join(part for part in (found.version, found.reason) if part)
    if found.ok:
        return Finding(title, "ok", text)
    if name == "tensorrt" and (where := hidden_tensorrt()):
        return Finding(title, "missing", where[0], cost="no TensorRT engine can be built or run", fix=where[1])
    can_build = backend.can_build().ok
    cost = "engines can be built here, and run on the device" if can_build else "its targets cannot be built or run"
    return Finding(title, "missing", text, cost=cost, fix=found.install)


def _onnxruntime_pair() -> Iterator[Finding]:
    both = environment.versions(["onnxruntime", "onnxruntime-gpu"])
    if len(both) == 2:
        yield Finding(
            "onnxruntime pair",
            "missing",
            "onnxruntime and onnxruntime-gpu are both installed",
            cost="they overwrite each other's files: which of them answers is chance",
            fix="pip uninstall onnxruntime onnxruntime-gpu, then install one of them",
        )
    elif "onnxruntime-gpu" in both:
        yield _cuda_provider()


def _cuda_provider() -> Finding:
    """Whether ONNX Runtime really computes on the GPU: it falls back to the CPU without an error."""
    import onnxruntime

    wanted = "CUDAExecutionProvider"
    preload()
    session = onnxruntime.InferenceSession(_IDENTITY, providers=[wanted, "CPUExecutionProvider"])
    if wanted in session.get_providers():
        return Finding("onnxruntime on cuda", "ok", f"{wanted} opens a session")
    return Finding(
        "onnxruntime on cuda",
        "missing",
        f"onnxruntime-gpu is installed, but {wanted} does not load",
        cost="its sessions would run on the CPU",
        fix='pip install "onnxruntime-gpu[cuda,cudnn]", and a driver that nvidia-smi can talk to',
    )


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _cpu,
    _speed,
    _memory,
    _disk,
    _gpu,
    _training,
    _compiler,
    _runtimes,
    _onnxruntime_pair,
)
