"""The report as Markdown, for a pull request or a job summary."""

from __future__ import annotations

from edgeopt.report import format as form
from edgeopt.report.budget import verdict
from edgeopt.report.engine_row import EngineRow
from edgeopt.report.headline import confidence, sentence
from edgeopt.report.model import Report
from edgeopt.report.notes import notes

_HEAD = ("engine", "top-1", "change, points", "p50 ms", "p99 ms", "× original", "× its float", "size", "int8 layers")


def render_markdown(report: Report) -> str:
    """Sentence, budget, tables, what is left in float, machine, commands."""
    parts = [f"## edgeopt: {_escape(report.name)}", sentence(report), confidence(report)]
    if report.budget:
        parts.append(_budget(report))
    parts += [f"**Warning**: {text}" for text in report.warnings]
    parts += [_table(report), _accuracy(report)]
    parts.append("\n".join(f"- {text}" for text in notes(report)))
    parts += [_float_layers(report), _machines(report), _commands(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _budget(report: Report) -> str:
    lines = [f"**Budget {verdict(report.budget)}**", ""]
    return "\n".join(lines + [f"- {line.message}" for line in report.budget])


def _table(report: Report) -> str:
    compiled = any(row.compiled_speedup is not None for row in report.rows)
    names = [*_HEAD, "× compiled"] if compiled else list(_HEAD)
    head = [f"| {' | '.join(names)} |", f"| {' | '.join(['---'] + ['---:'] * (len(names) - 1))} |"]
    lines = []
    for row in report.rows:
        cells = _cells(row, report)
        if compiled:
            cells.append(_with(form.times(row.compiled_speedup), form.times_range(row.compiled_speedup_ci)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(head + lines)


def _cells(row: EngineRow, report: Report) -> list[str]:
    original = report.original is not None and row.key == report.original.key
    against = row.speedup if report.original is not None and row.baseline == report.original.key else None
    return [
        _escape(row.key) + (" (original)" if original else f" ({row.precision})"),
        _with(form.percent(row.top1), form.percent_range(row.top1_ci)),
        form.DASH if original else _with(form.points(row.drop_points), form.points_range(row.drop_ci_points)),
        _with(form.ms(row.p50_ms), form.span(row.p50_ci_ms)),
        form.ms(row.p99_ms),
        "1×" if original else _with(form.times(against), form.times_range(row.speedup_ci) if against else ""),
        _against_float(row),
        form.mib(row.size_bytes),
        f"{row.int8_layers} of {row.compute_layers}" if row.precision == "int8" and row.compute_layers else form.DASH,
    ]


def _accuracy(report: Report) -> str:
    """Top-5, and the means of the classes; a table of its own, since the engines' is wide enough."""
    rows = [row for row in report.rows if row.macro_f1 is not None]
    if not rows:
        return ""
    top5 = any(row.top5 is not None for row in rows)
    names = ["engine", *(["top-5"] if top5 else []), "macro precision", "macro recall", "macro F1"]
    lines = [f"| {' | '.join(names)} |", f"| {' | '.join(['---'] + ['---:'] * (len(names) - 1))} |"]
    for row in rows:
        figures = [*([row.top5] if top5 else []), row.macro_precision, row.macro_recall, row.macro_f1]
        lines.append(f"| {' | '.join([_escape(row.key), *map(form.percent, figures)])} |")
    return "\n".join(lines)


def _against_float(row: EngineRow) -> str:
    """Against the fastest float of its target, and where that is not float32, against that too."""
    fastest = _with(form.times(row.float_speedup), form.times_range(row.float_speedup_ci))
    if row.fp32_speedup is None:
        return fastest
    return f"{fastest}; fp32: {_with(form.times(row.fp32_speedup), form.times_range(row.fp32_speedup_ci))}"


def _with(value: str, interval: str) -> str:
    return f"{value} ({interval})" if interval else value


def _float_layers(report: Report) -> str:
    lines = []
    for row in report.engines:
        if row.precision == "int8" and row.float_layers:
            shown = ", ".join(f"`{name}`" for name in row.float_layers[:20])
            more = f" and {len(row.float_layers) - 20} more" if len(row.float_layers) > 20 else ""
            lines.append(f"- {row.key}, left in float: {shown}{more}")
    return "\n".join(lines)


def _machines(report: Report) -> str:
    lines = []
    for machine in report.machines.values():
        cpu = machine.get("cpu") or {}
        flags = ", ".join(cpu.get("flags") or ()) or "none that matter"
        lines.append(
            f"Measured on {machine.get('board') or cpu.get('name')}, {cpu.get('cores')} cores, flags: {flags}."
        )
    return "\n".join(lines) + ("\nIntervals are 95 %; ratios are from windows run in turn." if lines else "")


def _commands(report: Report) -> str:
    return "```sh\n" + "\n".join(report.commands) + "\n```" if report.commands else ""


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
