"""Records of pictures: how they were divided, and sets prepared for devices."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from edgeopt.records.fields import Count, Hash, Name, Record, Text


class SplitRecord(Record):
    """``data/split.json``, as far as a report needs it; training reads it with a stricter eye."""

    limit: ClassVar[int] = 256 * 2**20  # a line a picture

    classes: list[Text]
    items: list[Annotated[tuple[Text, Count, Text, Literal["train", "val", "test"]], Field(strict=False)]]


class SetRecord(Record):
    """``data/sets/<key>/<name>.json``."""

    fix: ClassVar[str] = "make it where the pictures are: delete it and run edgeopt export, then copy the run again"
    limit: ClassVar[int] = 256 * 2**20  # a line a picture

    name: Name
    paths: list[Text]
    preprocess: dict[Text, Any]
    sha256: dict[Text, Hash]
