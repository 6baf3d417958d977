"""``edgeopt show``: what is in a run, and what to type next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeopt.cli.common import Terminal, emit, output_options, pick_run, run_option, table
from edgeopt.run import Run


@click.command("show")
@run_option
@output_options
def command(run_path: Path | None, as_json: bool, quiet: bool) -> None:
    """Variants, their parents, engines and sizes, and what to type next."""
    run = pick_run(run_path, Terminal(quiet=quiet))
    variants = run.variants()
    state = {
        "run": str(run.path),
        "variants": variants,
        "ensembles": run.ensembles(),
        "outdated": [
            name for name, record in {**variants, **run.ensembles()}.items() if run.outdated(record) or run.stale(name)
        ],
        "half_made": run.half_made(),
        "engines": run.engines(),
        "damaged": {key: error.message for key, error in run.damaged_engines().items()},
        "next": run.next_command(),
    }
    emit(state, as_json=as_json, text=_text(run, state))


def _text(run: Run, state: dict[str, Any]) -> str:
    variants = [
        (
            name,
            record.get("parent") or _fold(record),
            _percent((record.get("metrics") or {}).get("val_top1")),
            _size(run, record),
        )
        for name, record in state["variants"].items()
    ]
    variants += [
        (name, ", ".join(one["variant"] for one in record["members"]), _percent(record["metrics"].get("val_top1")), "-")
        for name, record in state["ensembles"].items()
    ]
    engines = [
        (
            name,
            record["precision"],
            record.get("scheme") or "-",
            record.get("engine") or f"none here: {record.get('reason')}",
        )
        for name, record in state["engines"].items()
    ]
    parts = [table(("variant", "parent", "val top-1", "weights"), variants) if variants else "no variants yet"]
    parts += [
        f"{name}: what it stands on was made again since; the same command makes it again" for name in state["outdated"]
    ]
    parts += [
        f"{name}: half made; the same command goes on, edgeopt rm {name} removes it" for name in state["half_made"]
    ]
    parts += [f"{key} cannot be used: {reason}" for key, reason in state["damaged"].items()]
    if engines:
        parts.append(table(("engine", "precision", "scheme", "file"), engines))
    return "\n\n".join([*parts, f"next: {state['next']}"])


def _fold(record: dict[str, Any]) -> str:
    fold = record.get("fold")
    return f"- (fold {fold['fold']} of {fold['of']})" if fold else "-"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _size(run: Run, record: dict[str, Any]) -> str:
    path = run.stated(record, "model")[0]
    return f"{path.stat().st_size / 2**20:.1f} MiB" if path.is_file() else "missing"
