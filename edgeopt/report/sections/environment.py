"""The machines that measured, as they recorded themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeopt.report import format as form
from edgeopt.report.model import Report
from edgeopt.report.page import fragment


def render(report: Report) -> str:
    """A list of facts a machine, and the data the accuracy was measured on."""
    machines = [
        {"id": key, "facts": _facts(machine), "versions": machine.get("versions") or {}}
        for key, machine in report.machines.items()
    ]
    return fragment(
        "environment", machines=machines, dataset=report.run.get("dataset") or {}, run=report.run, report=report
    )


def _facts(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    cpu = machine.get("cpu") or {}
    load = machine.get("load_1m")
    facts = [
        ("Board", machine.get("board")),
        ("CPU", cpu.get("name")),
        ("Architecture", cpu.get("machine")),
        ("Cores used at most", cpu.get("cores")),
        ("Flags that matter", ", ".join(cpu.get("flags") or ()) or "none of them"),
        ("GPU", ", ".join(str(gpu.get("name")) for gpu in machine.get("gpus") or ())),
        ("Memory", form.mib(machine.get("memory_bytes")) if machine.get("memory_bytes") else None),
        ("Frequency governor", machine.get("governor")),
        ("Load before measuring", None if load is None else f"{load:.2f}"),
        ("System", machine.get("os")),
        ("Python", machine.get("python")),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]
