"""What a model is without its weights: name, arguments, channels pruned away and quantizers, as one JSON file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError
from pydantic import field_validator as validator

from edgeopt.errors import ModelError, did_you_mean
from edgeopt.files import write_text
from edgeopt.schemes import SCHEMES

Source: TypeAlias = Literal["timm", "torchvision", "attr"]
#: What a constructor may be given: plain values, and numbers for each stage or side as in depths=[2, 2, 6, 2].
Argument: TypeAlias = (
    StrictBool
    | StrictInt
    | StrictFloat
    | StrictStr
    | Annotated[tuple[StrictInt | StrictFloat, ...], Field(min_length=1, max_length=64)]
    | None
)
ImageSize: TypeAlias = int | tuple[int, int]  # pixels: of both sides, or (height, width)
MAX_CLASSES = 100_000
_MAX_FILE_BYTES = 64 * 2**20
_MAX_ARGUMENT = 65_536
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,200}")
_ATTRIBUTE = re.compile(r"[A-Za-z_][\w.]{0,200}:[A-Za-z_][\w.]{0,200}")
_MODULE_PATH = re.compile(r"[A-Za-z0-9_.]{1,300}")
_TEXT = re.compile(r"[A-Za-z0-9_.+\-]{0,64}")
_DAMAGED = "get the file again from where the model was made, or make the variant again with --force"
#: Arguments of timm and torchvision that read files or the network: never taken from a file or a recipe.
_LOADING = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "weights",
     "weights_backbone", "progress", "model_args"}
)  # fmt: skip


class Architecture(BaseModel):
    """How to build a model again: ``architecture.json``.

    ``arguments`` go to the model's constructor and hold ``num_classes``; ``pruning`` is the history of cuts
    and ``quantizers`` NNCF's configuration, both replayed in that order; ``input_size`` is (channels, height, width).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal[1] = Field(1, alias="schema")
    source: Source
    name: StrictStr
    arguments: dict[StrictStr, Argument]
    pruning: list[Any] = Field([], max_length=10_000)
    quantizers: dict[str, Any] | None = None
    scheme: StrictStr | None = None
    input_size: tuple[
        Annotated[StrictInt, Field(ge=1, le=64)],
        Annotated[StrictInt, Field(ge=1, le=2048)],
        Annotated[StrictInt, Field(ge=1, le=2048)],
    ] = (3, 224, 224)

    @validator("arguments")
    @classmethod
    def _plain_arguments(cls, arguments: dict[str, Argument]) -> dict[str, Argument]:
        for key, value in arguments.items():
            _check_argument(key, value)
        return arguments

    @validator("pruning")
    @classmethod
    def _well_formed_cuts(cls, cuts: list[Any]) -> list[Any]:
        return check_cuts(cuts)

    @validator("scheme")
    @classmethod
    def _known_scheme(cls, scheme: str | None) -> str | None:
        if scheme is not None and scheme not in SCHEMES:
            raise ValueError(f'unknown scheme "{scheme}"{did_you_mean(scheme, SCHEMES)}')
        return scheme

    def model_post_init(self, _context: Any, /) -> None:
        """Checks that need two fields: the name's form and that the number of classes is there."""
        pattern = _ATTRIBUTE if self.source == "attr" else _NAME
        if not pattern.fullmatch(self.name):
            kind = {"attr": "module:attr"}.get(self.source, self.source)
            raise ModelError(
                f"{self.name[:100]!r} is not the name of a model ({kind})",
                fix="give a name of timm, torchvision:NAME or module:attr; `edgeopt models` lists some",
            )
        if "num_classes" not in self.arguments:
            raise ModelError(
                "architecture: arguments lack num_classes", fix='add the number of classes: {"num_classes": 10}'
            )
        if self.quantizers is not None and self.scheme is None:
            raise ModelError(
                "architecture: quantizers are given without their scheme",
                fix=f"add the scheme they were made for, one of {', '.join(SCHEMES)}",
            )

    @property
    def num_classes(self) -> int:
        """How many logits the model gives."""
        classes = self.arguments["num_classes"]
        assert isinstance(classes, int)  # checked when it was made
        return classes

    @property
    def full_name(self) -> str:
        """The name as a user types it: timm's bare, ``torchvision:NAME``, ``module:attr``."""
        return f"torchvision:{self.name}" if self.source == "torchvision" else self.name

    def pruned(self, history: list[Any]) -> Architecture:
        """This architecture with the cuts of one more pruning after those it has."""
        return self._with(pruning=[*self.pruning, *history])

    def quantized(self, quantizers: dict[str, Any], scheme: str) -> Architecture:
        """This architecture with quantizers placed in it."""
        return self._with(quantizers=quantizers, scheme=scheme)

    def resized(self, image_size: ImageSize) -> Architecture:
        """This architecture for pictures of another size; refused where weights depend on the size."""
        height, width = sides(image_size)
        if {"img_size", "image_size", "input_size"} & set(self.arguments):
            raise ModelError(
                f"{self.full_name} is made for one picture size and cannot take {height}x{width} pixels",
                fix=f"make it for that size: edgeopt finetune DATA --image-size {height}x{width}",
            )
        return self._with(input_size=(self.input_size[0], height, width))

    def _with(self, **changes: Any) -> Architecture:
        return parse({**self.model_dump(by_alias=True), **changes}, where="architecture")

    def to_json(self) -> dict[str, Any]:
        """As written to ``architecture.json``."""
        return self.model_dump(mode="json", by_alias=True)

    def write(self, path: Path) -> None:
        """Write the file in one act: a reader sees all of it or none."""
        write_text(path, json.dumps(self.to_json(), allow_nan=False))

    @classmethod
    def read(cls, path: Path) -> Architecture:
        """The architecture in ``path``; raises ModelError, in one line, when it is missing or not valid."""
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise ModelError(f"{path} is larger than an architecture can be", fix=_DAMAGED)
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"cannot read {path}: {_one_line(error)}", fix=_DAMAGED) from None
        return parse(values, where=str(path), fix=_DAMAGED)


def sides(image_size: ImageSize) -> tuple[int, int]:
    """(height, width) in pixels; one number is both."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def parse(values: Any, *, where: str, fix: str | None = None) -> Architecture:
    """``values`` as an Architecture; raises ModelError, in one line from ``where`` on, with ``fix`` where given."""
    try:
        return Architecture.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"][:3])
        raise ModelError(
            f"{where}: {place}: {first['msg'].removeprefix('Value error, ')}"[:300],
            fix=fix or "correct model.name, model.arguments or data.image_size in the recipe, or the arguments passed",
        ) from None
    except ModelError as error:
        message = f"{where}: {error.message.removeprefix('architecture: ')}"[:300]
        raise ModelError(message, fix=fix or error.fix) from None


def check_cuts(cuts: list[Any]) -> list[Any]:
    """The acts of a pruning's history as they are; ValueError for one that is none."""
    for cut in cuts:
        _check_cut(cut)
    return cuts


def _check_cut(cut: Any) -> None:
    """An act: [module, whether its outputs (else inputs), channels], [block, "drop"], [attention, "heads", which]."""
    if isinstance(cut, list) and cut[1:] == ["drop"] and isinstance(cut[0], str) and _MODULE_PATH.fullmatch(cut[0]):
        return
    kinds = [type(part) for part in cut] if isinstance(cut, list) else []
    if kinds != [str, bool, list] and not (kinds == [str, str, list] and cut[1] == "heads"):
        raise ValueError("a cut is [module, whether its outputs, channels]")
    if not _MODULE_PATH.fullmatch(cut[0]):
        raise ValueError(f"{cut[0][:64]!r} is not a module's name")
    if not cut[2] or not all(type(channel) is int and 0 <= channel < 1_000_000 for channel in cut[2]):
        raise ValueError(f"the channels cut from {cut[0]} are not channel numbers")


def _check_argument(key: str, value: Argument) -> None:
    if not key.isidentifier() or len(key) > 64:
        raise ValueError(f"{key[:64]!r} is not an argument's name")
    if key in _LOADING:
        raise ValueError(f"argument {key} is refused: it would read files or the network")
    if isinstance(value, str) and not _TEXT.fullmatch(value):
        raise ValueError(f"argument {key} is refused: {value[:64]!r} is not a plain word")
    numbers = value if isinstance(value, tuple) else (value,) if isinstance(value, (int, float)) else ()
    # NaN compares false, and so is refused too.
    if wrong := [number for number in numbers if not abs(number) <= _limit(key)]:
        raise ValueError(f"argument {key} is refused: {wrong[0]!r} is out of bounds")
    if key == "num_classes" and not (type(value) is int and 1 <= value <= MAX_CLASSES):
        raise ValueError(f"num_classes must be an integer from 1 to {MAX_CLASSES}, not {value!r}")


def _limit(key: str) -> int:
    return MAX_CLASSES if key == "num_classes" else _MAX_ARGUMENT


def _one_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
