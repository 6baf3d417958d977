"""``edgeopt doctor``: what works on this machine, and how to get the rest."""

from __future__ import annotations

import click

from edgeopt.cli.common import emit, output_options


@click.command("doctor")
@output_options
def command(as_json: bool, quiet: bool) -> None:
    """What works on this machine, what each missing piece costs, and how to get it."""
    from edgeopt.doctor import examine

    findings = examine()
    lines = [
        f"{'ok  ' if item.ok else 'MISS'}  {item.name}: {item.text}" + (f"\n      {item.fix}" if item.fix else "")
        for item in findings
    ]
    emit([item.to_json() for item in findings], as_json=as_json, text="\n".join(lines))
