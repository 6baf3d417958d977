"""``edgeopt models``: list the models edgeopt knows best, or any by name."""

from __future__ import annotations

from importlib.util import find_spec

import click

from edgeopt.cli.common import Terminal, emit, output_options, table
from edgeopt.errors import ModelError
from edgeopt.model_table import ModelRow, known_models, matching


@click.command("models")
@click.argument("pattern", required=False)
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, help="Of models counted for PATTERN.")
@output_options
def command(pattern: str | None, limit: int, as_json: bool, quiet: bool) -> None:
    """List the models edgeopt knows best; any other timm or torchvision name works as well.

    PATTERN is a name or family, whole, in part, or with * and ?, as in 'mobilenet*' or torchvision:regnet. Models that
    are not in the list are counted on the spot, without weights.
    """
    console = Terminal(quiet=quiet)
    found = known_models() if pattern is None else _found(pattern, limit, console)
    emit(
        [row.to_json() for row in found],
        as_json=as_json,
        text=table(ModelRow.columns(), [row.cells() for row in found]),
    )


def _found(pattern: str, limit: int, console: Terminal) -> list[ModelRow]:
    if find_spec("torch") is None or find_spec("timm") is None:
        if found := matching(pattern):
            return found
        raise ModelError(
            f"no model of the list fits {pattern}, and other names need timm", fix='pip install "edgeopt[train]"'
        )
    from edgeopt.models.catalog import find_models, rows

    curated, others = find_models(pattern)
    counted = []
    with console.task("counting") as progress:
        for row in rows(others[:limit]):
            counted.append(row)
            progress(len(counted), len(others[:limit]))
    if len(others) > limit:
        console.say(
            f"{len(others) - limit} more fit {pattern}: {', '.join(others[limit : limit + 8])}, ...; see --limit"
        )
    return [*curated, *counted]
