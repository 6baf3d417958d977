"""``edgeopt targets``: list the devices edgeopt knows, show one, or say which this machine is."""

from __future__ import annotations

from typing import Any

import click

from edgeopt import environment, resources
from edgeopt.cli.common import emit, output_options, table
from edgeopt.config import Target, load_target


@click.command("targets")
@click.argument("name", required=False)
@click.option("--this", is_flag=True, help="Which of them this machine is and can run, and why or why not.")
@output_options
def command(name: str | None, this: bool, as_json: bool, quiet: bool) -> None:
    """List the devices edgeopt knows, and which of them this machine is; or all about NAME."""
    known = [load_target(one) for one in ([name] if name else resources.names("targets"))]
    values: list[dict[str, Any]] = [
        {**target.model_dump(mode="json", by_alias=True), "this_machine": environment.matches(target.match)}
        for target in known
    ]
    if this:
        from edgeopt.fit import fit

        fits = {target.name: fit(target) for target in known}
        values = [{**value, **fits[value["name"]].to_json()} for value in values]
        rows = [(one, "yes" if found.fits else "no", "; ".join(found.why)) for one, found in fits.items()]
        text = table(("name", "fits", "why"), sorted(rows, key=lambda row: row[1], reverse=True))
    elif name:
        text = _all_about(known[0])
    else:
        text = _listed(known)
    emit(values, as_json=as_json, text=text)


def _listed(known: list[Target]) -> str:
    columns = ("name", "backend", "precision", "scheme", "status", "this machine", "device")
    rows = [
        (
            target.name,
            target.backend,
            target.precision,
            target.scheme or "auto",
            target.status,
            "yes" if environment.matches(target.match) else "no",
            target.title,
        )
        for target in known
    ]
    return table(columns, rows)


def _all_about(target: Target) -> str:
    """Every key it has a value for; the sources of what is claimed, a line each."""
    stated = target.model_dump(mode="json", exclude={"schema_", "sources"}, exclude_none=True)
    lines = []
    for key, value in stated.items():
        shown = ", ".join(f"{one} = {of}" for one, of in value.items()) if isinstance(value, dict) else str(value)
        lines += [f"{key}: {shown}"] if shown else []
    return "\n".join([*lines, "sources:", *(f"  - {source}" for source in target.sources)])
