"""``edgeopt models``: list the models edgeopt knows best."""

from __future__ import annotations

import click

from edgeopt.cli.common import emit, output_options, table


@click.command("models")
@output_options
def command(as_json: bool, quiet: bool) -> None:
    """List the models edgeopt knows best; any other timm or torchvision name works as well."""
    from edgeopt.model_table import known_models

    known = known_models()
    emit(
        [row.to_json() for row in known],
        as_json=as_json,
        text=table(known[0].columns(), [row.cells() for row in known]),
    )
