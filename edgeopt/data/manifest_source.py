"""Lists the pictures of a manifest: a CSV or JSONL table with the columns path, label, and split, group, weight."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from edgeopt.data.dataset import SPLITS, Split
from edgeopt.data.folder_source import SPLIT_NAMES, Found, Listing, alike, has_plain_name
from edgeopt.errors import ConfigError, DataError, did_you_mean
from edgeopt.files import is_plain, printable
from edgeopt.picture_files import why_no_file

SUFFIXES = (".csv", ".jsonl")
REQUIRED = ("path", "label")
OPTIONAL = ("split", "group", "weight")
_COLUMNS = "path, label and, when wanted, split, group, weight"
_MAX_BYTES = 2**30
_MOST_PROBLEMS = 100  # said at once
_MOST_COLUMNS = 1000


class _Row(NamedTuple):
    line: int
    values: Mapping[str, Any]
    wrong: str = ""  # why there are no values


@dataclass
class _Reader:
    """Turns rows into pictures; ``problems`` collects what is wrong, so that all of it is said at once."""

    root: Path
    found: list[Found] = field(default_factory=list)
    aside: list[tuple[str, str]] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)
    first_line: dict[str, int] = field(default_factory=dict)
    group_split: dict[str, tuple[Split | None, int]] = field(default_factory=dict)
    stated: list[tuple[int, Split | None]] = field(default_factory=list)

    def add(self, row: _Row) -> None:
        """One picture, or what is wrong with its row."""
        if row.wrong:
            self.problems.append((row.line, row.wrong))
            return
        wrong: list[str] = []
        path = self._path(row.values.get("path"), wrong)
        label = _label(row.values.get("label"), wrong)
        split = _split(row.values.get("split"), wrong)
        group = _text(row.values.get("group"), "group", wrong)
        weight = _weight(row.values.get("weight"), wrong)
        if path in self.first_line:
            wrong.append(f"{path} is named on line {self.first_line[path]} already")
        if not wrong and group is not None:
            home, line = self.group_split.setdefault(group, (split, row.line))
            if home != split:
                wrong.append(f'group "{group}" is in {split or "no split"}, but in {home or "no split"} on line {line}')
        if wrong:
            self.problems += [(row.line, why) for why in wrong]
            return
        self.first_line[path] = row.line
        self.stated.append((row.line, split))
        # Unlike Path.resolve, it stands links that lead in circles.
        if not Path(os.path.realpath(self.root / path)).is_relative_to(self.root):
            self.aside.append((path, "a link that leads out of the dataset"))
        else:
            self.found.append(Found(path, label, split, group, weight))

    def _path(self, value: Any, wrong: list[str]) -> str:
        if not isinstance(value, str) or not value.strip():
            wrong.append("no path")
            return ""
        pure = PurePosixPath(value.strip())
        if pure.is_absolute() and pure.is_relative_to(self.root):
            pure = pure.relative_to(self.root)
        path = str(pure)
        if pure.is_absolute() or ".." in pure.parts:
            wrong.append(f"{path} is not in the manifest's folder")
        elif not is_plain(path) or "\\" in path:
            wrong.append(f"{printable(path)} holds a backslash or a control character")
        elif reason := _why_no_file(self.root / path):
            wrong.append(f"{path} {reason}")
        return path

    def check_splits(self) -> None:
        """Either every row states its split or none does."""
        without = [line for line, split in self.stated if split is None]
        if without and len(without) < len(self.stated):
            self.problems += [(line, "no split, which other rows have") for line in without]


def is_manifest(path: Path) -> bool:
    """Whether ``path`` is to be read as a manifest: by its suffix."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def read(path: Path) -> Listing:
    """The pictures that the manifest at ``path`` names, relative to its folder, in an order of their own.

    Raises ConfigError that lists every bad row by its line, DataError when it cannot be read or holds nothing.
    """
    text = _content(path)
    rows, columns = _csv(path, text) if path.suffix.lower() == ".csv" else _jsonl(path, text)
    reader = _Reader(Path(os.path.realpath(path.parent)))
    for row in rows:
        reader.add(row)
    reader.check_splits()
    if reader.problems:
        raise _bad_rows(path, reader.problems)
    if not reader.found:
        raise DataError(f"{path} names no pictures", fix=f"give it rows with the columns {_COLUMNS}")
    classes = tuple(sorted({item.label for item in reader.found}))
    present = {item.split for item in reader.found if item.split is not None}
    _check_trained(path, reader.found, classes, present)
    unused = sorted(columns - {*REQUIRED, *OPTIONAL})
    notes = [f'column "{name}" is not used{did_you_mean(name, OPTIONAL)}' for name in unused[:20]]
    return Listing(
        found=tuple(sorted(reader.found, key=lambda item: item.path)),
        classes=classes,
        ready_made=tuple(split for split in SPLITS if split in present),
        set_aside=tuple(reader.aside),
        notes=(*notes, *alike(classes)),
    )


def _check_trained(path: Path, found: list[Found], classes: tuple[str, ...], present: set[Split]) -> None:
    if not present:
        return
    unknown = sorted(set(classes) - {item.label for item in found if item.split == "train"})
    if unknown:
        raise DataError(
            f"{path} has no train rows of classes that val or test have: {', '.join(unknown[:20])}",
            fix="add rows of them with the split train, or remove theirs",
        )


def _content(path: Path) -> str:
    fix = f"give a UTF-8 CSV or JSONL file with the columns {_COLUMNS}"
    if reason := _why_no_file(path):
        raise DataError(f"the manifest {printable(str(path))} {reason}", fix=fix)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"the manifest {path} is larger than any table of pictures", fix=fix)
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"the manifest {path} cannot be read ({reason})", fix=fix) from None


def _csv(path: Path, text: str) -> tuple[Iterator[_Row], set[str]]:
    handle = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip().lower() for name in next(handle, [])]
    except csv.Error as error:
        raise DataError(f"{path}, line 1: {error}", fix="write it as CSV, the columns' names first") from None
    _check_header(path, header)

    def rows() -> Iterator[_Row]:
        begins = handle.line_num + 1
        try:
            for cells in handle:
                if len(cells) > len(header):
                    yield _Row(begins, {}, f"{len(cells)} cells, but {len(header)} columns")
                elif any(cell.strip() for cell in cells):
                    yield _Row(begins, dict(zip(header, cells, strict=False)))
                begins = handle.line_num + 1
        except csv.Error as error:
            yield _Row(handle.line_num, {}, f"{error}; nothing after it was read")

    return rows(), set(header)


def _check_header(path: Path, header: list[str]) -> None:
    if len(header) > _MOST_COLUMNS:
        raise DataError(f"{path} has {len(header)} columns", fix=f"give it the columns {_COLUMNS}")
    doubled = sorted({name for name in header if name and header.count(name) > 1})
    if doubled:
        raise DataError(f"{path} has two columns called {doubled[0]}", fix="rename one of them")
    for name in REQUIRED:
        if name not in header:
            shown = ", ".join(header[:20]) or "nothing"
            close = next((one for one in header if did_you_mean(one, [name])), None)
            hint = f' (is "{close}" it?)' if close else ""
            raise DataError(
                f"{path} has no column {name}{hint}: its first line is {printable(shown)}",
                fix=f"name the columns in its first line: {_COLUMNS}",
            )


def _jsonl(path: Path, text: str) -> tuple[Iterator[_Row], set[str]]:
    columns: set[str] = set()
    rows: list[_Row] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            rows.append(_Row(number, {}, "not JSON"))
            continue
        if not isinstance(values, dict):
            rows.append(_Row(number, {}, "not a JSON object"))
            continue
        columns.update(name for name in list(values)[:_MOST_COLUMNS] if is_plain(name))
        rows.append(_Row(number, values))
    return iter(rows), columns


def _label(value: Any, wrong: list[str]) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        wrong.append("no label")
        return ""
    label = value.strip()
    if not has_plain_name(label):
        wrong.append(f"the label {printable(label)[:60]} cannot be written in labels.txt")
    return label


def _split(value: Any, wrong: list[str]) -> Split | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    split = SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None:
        wrong.append(f"the split {printable(str(value))[:60]} is none of {', '.join(SPLITS)}")
    return split


def _text(value: Any, column: str, wrong: list[str]) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        wrong.append(f"the {column} {printable(str(value))[:60]} is neither a text nor a whole number")
        return None
    return printable(str(value).strip())


def _weight(value: Any, wrong: list[str]) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        return 1.0
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not 0 < weight < 1e6:
        wrong.append(f"the weight {printable(str(value))[:60]} is no number above 0 and below a million")
    return weight


def _why_no_file(path: Path) -> str | None:
    if not os.path.lexists(path):
        return "does not exist"
    reason = why_no_file(path)
    return f"cannot be used: {reason}" if reason else None


def _bad_rows(path: Path, problems: list[tuple[int, str]]) -> ConfigError:
    lines = [f"  - line {line}: {why}" for line, why in sorted(problems)[:_MOST_PROBLEMS]]
    if len(problems) > _MOST_PROBLEMS:
        lines.append(f"  and {len(problems) - _MOST_PROBLEMS} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ConfigError(f"{path}: {count}\n" + "\n".join(lines), fix=f"correct these lines of {path.name}")
