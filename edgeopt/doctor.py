"""What works on this machine, what each missing piece costs, and the command that gets it."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import asdict, dataclass
from typing import Any

from edgeopt import environment
from edgeopt.registry import backends, load_backend

_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing looked at: whether it is in order, what was found, and what would mend it."""

    name: str
    ok: bool
    text: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """For ``edgeopt doctor --json``."""
        return asdict(self)


def examine() -> list[Finding]:
    """Every check, in the order a newcomer would ask."""
    return [_cpu(), _memory(), _gpu(), _training(), *(_backend(name) for name in sorted(backends())), _pair()]


def _cpu() -> Finding:
    cpu = environment.cpu()
    text = f"{cpu['name']}, {cpu['cores']} usable cores, {', '.join(cpu['flags']) or 'no int8 or bf16 instructions'}"
    if environment.has_int8_dot():
        return Finding("CPU", True, text)
    return Finding(
        "CPU",
        True,
        f"{text}; no int8 dot-product (VNNI): 8-bit weights would saturate, so compress --int8 makes u8a7w here",
    )


def _memory() -> Finding:
    size = environment.memory_bytes()
    text = f"{size / _GIB:.1f} GiB" if size else "unknown"
    enough = size == 0 or size >= 3.5 * _GIB
    return Finding(
        "memory",
        enough,
        text,
        "" if enough else "train elsewhere and copy the run folder here",
    )


def _gpu() -> Finding:
    found = environment.gpus()
    if found:
        return Finding("GPU", True, ", ".join(f"{gpu['name']} (driver {gpu['driver']})" for gpu in found))
    reason = "nvidia-smi lists none" if shutil.which("nvidia-smi") else "none seen (no nvidia-smi)"
    return Finding(
        "GPU", True, f"{reason}: training runs on the CPU, TensorRT engines are prepared and built on the device"
    )


def _training() -> Finding:
    missing = [
        name for name in ("torch", "timm", "nncf", "torch_pruning", "onnx") if importlib.util.find_spec(name) is None
    ]
    if missing:
        return Finding(
            "training",
            False,
            f"missing {', '.join(missing)}: build, bench, eval and predict work, finetune and compress do not",
            'pip install "edgeopt[train]"',
        )
    return Finding("training", True, f"torch {environment.versions(['torch'])['torch']}")


def _backend(name: str) -> Finding:
    if name == "pytorch" and importlib.util.find_spec("torch") is None:
        return Finding("backend pytorch", False, "torch is not installed: the original cannot be measured here",
                       'pip install "edgeopt[train]"')  # fmt: skip
    backend = load_backend(name)
    found = backend.availability()
    text = " ".join(part for part in (found.version, found.reason) if part)
    if not found.ok and backend.can_build().ok:
        text += " (engines can be built here)"
    return Finding(f"backend {name}", found.ok, text, "" if found.ok else found.install)


def _pair() -> Finding:
    both = environment.versions(["onnxruntime", "onnxruntime-gpu"])
    if len(both) == 2:
        return Finding(
            "onnxruntime pair",
            False,
            "onnxruntime and onnxruntime-gpu are both installed: they overwrite each other's files",
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of them",
        )
    return Finding("onnxruntime pair", True, "not both installed")
