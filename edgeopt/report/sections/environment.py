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
    after = machine.get("after") or {}

    def both(name: str, pattern: str) -> str | None:
        """Before and, where it changed, after measuring."""
        found = [one[name] for one in (machine, after) if one.get(name) is not None]
        return " → ".join(pattern.format(one) for one in found) or None

    facts = [
        ("Board", machine.get("board")),
        ("CPU", cpu.get("name")),
        ("Architecture", cpu.get("machine")),
        ("Cores used at most", cpu.get("cores")),
        ("Flags that matter", ", ".join(cpu.get("flags") or ()) or "none of them"),
        ("GPU", ", ".join(str(gpu.get("name")) for gpu in machine.get("gpus") or ())),
        ("GPU, before and after", _gpus(machine, after)),
        ("Memory", form.mib(machine.get("memory_bytes")) if machine.get("memory_bytes") else None),
        ("Cores the cgroup allows", machine.get("cpu_quota")),
        (
            "Memory the cgroup allows",
            form.mib(machine.get("memory_limit_bytes")) if machine.get("memory_limit_bytes") else None,
        ),
        ("Frequency governor", machine.get("governor")),
        ("Frequency, before and after", both("frequency_mhz", "{:.0f} MHz")),
        ("Temperature, before and after", both("temperature_c", "{:.0f} °C")),
        ("Slowed down", after.get("throttled") or machine.get("throttled")),
        ("Load, before and after", both("load_1m", "{:.2f}")),
        ("System", machine.get("os")),
        ("Python", machine.get("python")),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _gpus(*moments: Mapping[str, Any]) -> str | None:
    """Clock and temperature of each, and what slowed it down, at each moment that is known."""
    shown = {"clock_mhz": "{:.0f} MHz", "temperature_c": "{:.0f} °C", "slowed": "slowed down by {}"}
    said = []
    for moment in moments:
        states = [
            ", ".join(pattern.format(gpu[name]) for name, pattern in shown.items() if gpu.get(name))
            for gpu in moment.get("gpus") or ()
        ]
        said += ["; ".join(states)] if any(states) else []
    return " → ".join(said) or None
