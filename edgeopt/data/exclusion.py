"""The list of pictures to leave out: written by ``edgeopt check``, edited by its reader, honoured by ingest."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeopt.data.folder_source import Listing
from edgeopt.errors import DataError
from edgeopt.files import is_plain, printable, write_text

_MAX_BYTES = 256 * 2**20
_HEADER = """\
# Pictures to leave out, as `edgeopt check` proposes them for {data}
# Look at them first (check.html) and delete the lines of those to keep; then: edgeopt finetune DATA --exclude FILE
# One path a line, relative to the data; what follows " # " is why. Nothing is ever deleted or moved.
"""


@dataclass(frozen=True)
class Exclusion:
    """Lines of a list: each line as it stands -> (its path, its reason); ``name`` is the list's file."""

    name: str = ""
    lines: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def applied(self, listing: Listing) -> Listing:
        """``listing`` without the pictures named, which are set aside instead; names that fit none are noted."""
        if not self.name:
            return listing
        known = {found.path for found in listing.found}
        known.update(path for path, _ in listing.set_aside)
        reasons: dict[str, str] = {}
        unknown: list[str] = []
        for line, (path, reason) in self.lines.items():
            if line in known:  # a name that holds " # " itself
                reasons[line] = ""
            elif path in known:
                reasons[path] = reason
            else:
                unknown.append(path)
        aside = tuple(
            (found.path, f"excluded by {self.name}" + (f": {why}" if (why := reasons[found.path]) else ""))
            for found in listing.found
            if found.path in reasons
        )
        notes = listing.notes
        if unknown:
            notes = (*notes, f"{self.name} names {len(unknown)} pictures that are not in the data, first {unknown[0]}")
        kept = tuple(found for found in listing.found if found.path not in reasons)
        return replace(listing, found=kept, set_aside=(*listing.set_aside, *aside), notes=notes)


def read(file: str | None) -> Exclusion:
    """The list in ``file``; an empty one when it is None. Raises DataError when it cannot be read."""
    if file is None:
        return Exclusion()
    path = Path(file)
    try:
        if not path.is_file():
            raise DataError(f"the list {file} does not exist", fix="check the path given to --exclude")
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"the list {file} is larger than any list of pictures", fix="give another file")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(
            f"the list {file} cannot be read ({type(error).__name__})", fix="give a UTF-8 text, one path a line"
        ) from None
    lines: dict[str, tuple[str, str]] = {}
    for line in text.splitlines():
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            lines[stripped] = _parsed(stripped)
    return Exclusion(path.name, lines)


def write(file: Path, data: str, rows: Iterable[tuple[str, str]]) -> None:
    """Write (path, reason) rows as a list that :func:`read` reads."""
    lines = (f"{_quoted(path)}  # {printable(reason)}\n" for path, reason in rows)
    write_text(file, _HEADER.format(data=printable(data)) + "".join(lines))


def _parsed(line: str) -> tuple[str, str]:
    if line.startswith('"'):
        try:
            path, end = json.JSONDecoder().raw_decode(line)
            return str(path), line[end:].strip().lstrip("#").strip()
        except ValueError:
            pass
    path, _, reason = re.split(r"(\s#\s?)", line, maxsplit=1) if re.search(r"\s#", line) else (line, "", "")
    return path.strip().removeprefix("./"), reason.strip()


def _quoted(path: str) -> str:
    """Names that would read as something else are written as JSON strings."""
    plain = is_plain(path) and path == path.strip() and not path.startswith(("#", '"', "./")) and " #" not in path
    return path if plain else json.dumps(path)
