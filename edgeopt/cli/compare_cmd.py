"""``edgeopt compare``: what became slower, less accurate or larger since an earlier report."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.common import allow_undecided_option, allowance_options, emit, given, output_options
from edgeopt.config import BaselineConfig, validate


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", nargs=-1, required=True, type=click.Path(path_type=Path))
@allowance_options
@allow_undecided_option
@output_options
def command(
    before: Path,
    after: tuple[Path, ...],
    slower: float | None,
    drop_points: float | None,
    larger: float | None,
    allow_undecided: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Judge each report AFTER against BEFORE, engine by engine: run folders, or their report.json.

    Exits with 3 when an engine of one of them is slower, less accurate or larger than is allowed, 5 when that cannot
    be told.
    """
    from edgeopt.report import exit_code
    from edgeopt.stages.report import compare

    values = given(slower=slower, drop_points=drop_points, larger=larger)
    found = compare(before, after, allowance=validate(BaselineConfig, values, where="compare options"))
    emit([one.to_json() for one in found], as_json=as_json, text="\n".join(one.text() for one in found))
    return exit_code([line for one in found for line in one.lines], allow_undecided=allow_undecided)
