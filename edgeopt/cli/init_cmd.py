"""``edgeopt init``: write a commented recipe."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.common import emit, output_options
from edgeopt.errors import ConfigError
from edgeopt.recipe_text import RECIPE


@click.command("init")
@click.argument("path", type=click.Path(path_type=Path), default=Path("edgeopt.toml"))
@output_options
def command(path: Path, as_json: bool, quiet: bool) -> None:
    """Write a commented recipe to PATH; an existing file is never overwritten."""
    try:
        with path.open("x", encoding="utf-8") as handle:
            handle.write(RECIPE.format(name=path.name))
    except FileExistsError:
        raise ConfigError(f"{path} exists already", fix="give another name: edgeopt init other.toml") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", fix="give another path") from None
    emit({"recipe": str(path)}, as_json=as_json, text=f"wrote {path}; edit it, then: edgeopt run {path}")
