"""``edgeopt targets``: list the devices edgeopt knows."""

from __future__ import annotations

import click

from edgeopt import environment, resources
from edgeopt.cli.common import emit, output_options, table
from edgeopt.config import load_target


@click.command("targets")
@output_options
def command(as_json: bool, quiet: bool) -> None:
    """List the devices edgeopt knows, and which of them this machine is."""
    known = [load_target(name) for name in resources.names("targets")]
    rows = [
        (
            target.name,
            target.backend,
            target.precision,
            target.scheme or "auto",
            target.status,
            _here(target.match),
            target.title,
        )
        for target in known
    ]
    values = [
        {**target.model_dump(mode="json", by_alias=True), "this_machine": environment.matches(target.match)}
        for target in known
    ]
    columns = ("name", "backend", "precision", "scheme", "status", "this machine", "device")
    emit(values, as_json=as_json, text=table(columns, rows))


def _here(match: object) -> str:
    from edgeopt.config import Match

    return "yes" if isinstance(match, Match) and environment.matches(match) else "no"
