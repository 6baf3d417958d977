"""Finds the data folders ``targets/`` and ``calibration/`` in a wheel, an editable install and a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgeopt.errors import ConfigError, did_you_mean

Kind = Literal["targets", "calibration"]


def folder(kind: Kind) -> Path:
    """The folder that holds ``kind``: inside the wheel, else beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "_data" / kind, package.parent / kind):
        if candidate.is_dir():
            return candidate
    raise ConfigError(f"edgeopt's {kind}/ folder is missing from this installation", fix="reinstall edgeopt")


def names(kind: Kind) -> list[str]:
    """Names that can be given for ``kind``, sorted."""
    return sorted(path.stem for path in folder(kind).glob("*.toml"))


def is_file_name(name_or_file: str) -> bool:
    """Whether it is meant as the path to a file of one's own, and not as a shipped name."""
    return name_or_file.endswith(".toml") or "/" in name_or_file


def find(kind: Kind, name_or_file: str) -> Path:
    """The TOML file for a shipped name or a path to the user's own file; raises ConfigError when there is none."""
    if is_file_name(name_or_file):
        path = Path(name_or_file)
        if not path.is_file():
            raise ConfigError(f"{kind} file {name_or_file} does not exist", fix="check the path")
        return path
    path = folder(kind) / f"{name_or_file}.toml"
    if not path.is_file():
        known = names(kind)
        raise ConfigError(
            f'unknown name "{name_or_file}" in {kind}{did_you_mean(name_or_file, known)}',
            fix=f"use one of {', '.join(known)}, or a path to your own .toml file",
        )
    return path
