"""The words of records: names, paths, numbers and hashes with their bounds, and what a record is."""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from edgeopt.files import MAX_JSON_BYTES, fits_a_command, fits_a_folder, is_plain
from edgeopt.schemes import SCHEMES


def _folder_name(value: str) -> str:
    if not fits_a_folder(value):
        raise ValueError("cannot name a folder")
    return value


def _inside(value: str) -> str:
    parts = PurePosixPath(value)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or not is_plain(value) or "\\" in value:
        raise ValueError("is not a path inside the run folder")
    return value


def _device_command(value: str) -> str:
    target = value.removeprefix("edgeopt build --target ")
    known = fits_a_folder(target) and not _SHELL & set(target)
    path = target.removeprefix("'").removesuffix("'")
    own = fits_a_command(path) and target == shlex.quote(path)
    if value and (target == value or not (known or own)):
        raise ValueError("is no command of edgeopt's")
    return value


def _known_scheme(value: str) -> str:
    if value not in SCHEMES:
        raise ValueError(f"is none of the schemes {', '.join(SCHEMES)}")
    return value


_SHELL = frozenset("$`;&")  # beside what no folder's name may hold

Text = Annotated[str, StringConstraints(max_length=65_536)]
Name = Annotated[str, AfterValidator(_folder_name)]
Inside = Annotated[str, StringConstraints(max_length=1000), AfterValidator(_inside)]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
SchemeName = Annotated[str, AfterValidator(_known_scheme)]
#: An engine's folder, ``target/variant``.
Key = Annotated[str, StringConstraints(max_length=300), AfterValidator(_inside)]
#: What a reader is told to type must be our own words, not a stranger's.
DeviceCommand = Annotated[str, AfterValidator(_device_command)]
Share = Annotated[float, Field(ge=0, le=1)]
Points = Annotated[float, Field(ge=-100, le=100)]
Positive = Annotated[float, Field(ge=1e-9, le=1e12)]  # milliseconds, ratios, pictures a second
Nats = Annotated[float, Field(ge=-1e6, le=1e6)]
NatsPair = Annotated[list[Nats], Field(min_length=2, max_length=2)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Temperature = Annotated[float, Field(ge=0.01, le=100)]
Shares = Annotated[list[Share], Field(min_length=2, max_length=2)]
PointsPair = Annotated[list[Points], Field(min_length=2, max_length=2)]
Pair = Annotated[list[Positive], Field(min_length=2, max_length=2)]


class Record(BaseModel):
    """A record: unknown fields are left alone, types are exact, numbers finite."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False, defer_build=True)
    fix: ClassVar[str] = "get the folder again from its source"
    limit: ClassVar[int] = MAX_JSON_BYTES

    schema_: Literal[1] = Field(alias="schema")


class Part(BaseModel):
    """An object inside a record."""

    model_config = Record.model_config
