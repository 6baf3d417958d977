"""``edgeopt doctor``: what works on this machine, and how to get the rest."""

from __future__ import annotations

import click

from edgeopt.cli.common import emit, output_options

_MARKS = {"ok": "ok    ", "note": "note  ", "missing": "MISS  "}


@click.command("doctor")
@output_options
def command(as_json: bool, quiet: bool) -> None:
    """What works on this machine, what each missing piece costs, and how to get it."""
    from edgeopt.doctor import Finding, examine

    def lines(item: Finding) -> list[str]:
        said = [f"{_MARKS[item.state]}{item.name}: {item.text}"]
        if item.cost:
            said.append(f"        it means: {item.cost}")
        if item.fix:
            said.append(f"        fix: {item.fix}")
        return said

    findings = examine()
    text = "\n".join(line for item in findings for line in lines(item))
    emit([item.to_json() for item in findings], as_json=as_json, text=text)
