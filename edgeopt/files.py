"""Atomic writes, bounded reads of JSON, text and ``.npy``, and hashes: what everything in a run folder goes through.

A run folder may come from a stranger. Whatever is read here is bounded before it is taken into memory, and what is
wrong with it is a RunError, never another exception.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

from edgeopt.errors import RunError

MAX_JSON_BYTES = 16 * 2**20  # the largest record but two is under one
_MAX_DEPTH = 40
_BYTES_PER_CONTAINER = 32  # of text, at least, on average: brackets alone would take 40 times their size in memory
_MAX_TEXT_BYTES = 16 * 2**20
_FROM_SOURCE = "get the folder again from its source"


# -- writing -------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary neighbour, then fsync and rename it: ``path`` holds the old or the new content.

    Raises RunError when the file cannot be written.
    """
    # A name that nobody can guess: one planted there as a link would be written through.
    temporary = path.with_name(f".{path.stem[:60]}.{uuid4().hex[:12]}.tmp{path.suffix}")
    try:
        write(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}", fix="make room, or make the folder writable"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` atomically, UTF-8."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically; NaN and infinity are refused because other readers would choke on them."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_npy(path: Path, array: Any) -> Path:
    """Write ``array`` as ``.npy``, atomically; its path."""
    import numpy as np

    write_atomically(path, lambda temporary: np.save(temporary, array, allow_pickle=False))
    return path


def make_folder(path: Path) -> Path:
    """``path``, made with its parents when it is not there; raises RunError when it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot make the folder {path}: {error.strerror or error}", fix="make room, or make the folder writable"
        ) from None
    return path


# -- reading -------------------------------------------------------------------------------------------------------


def read_text(path: Path, *, limit: int = _MAX_TEXT_BYTES) -> str:
    """The UTF-8 text in ``path``, line ends as they are; raises RunError when it is absent, no file, or too large."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, a device never ends
            raise RunError(f"{path} is not a file", fix=_FROM_SOURCE)
        if found.st_size > limit:
            raise RunError(f"{path} is larger than any that edgeopt writes", fix=_FROM_SOURCE)
        return path.read_bytes().decode()
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {_one_line(error)}", fix=_FROM_SOURCE) from None


def read_json(path: Path, *, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in ``path``; raises RunError when it is absent, too large, not JSON or not an object.

    Not JSON are also NaN, numbers beyond a float, half surrogates, and nesting deeper than edgeopt writes: what would
    be read here and fail when it is written or printed.
    """
    text = read_text(path, limit=limit)
    if text.count("[") + text.count("{") > limit // _BYTES_PER_CONTAINER:
        raise RunError(f"cannot read {path}: it holds more lists than any record edgeopt writes", fix=_FROM_SOURCE)
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path}: {_one_line(error)}", fix=_FROM_SOURCE) from None
    if not isinstance(value, dict):
        raise RunError(f"{path} should hold a JSON object, not a {type(value).__name__}", fix=_FROM_SOURCE)
    if _deeper(value, _MAX_DEPTH):
        raise RunError(f"cannot read {path}: it is nested too deeply", fix=_FROM_SOURCE)
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _deeper(value: Any, levels: int) -> bool:
    """Whether containers are nested more than ``levels`` deep in ``value``."""
    inner = value.values() if type(value) is dict else value
    return levels == 0 or any(_deeper(one, levels - 1) for one in inner if type(one) is dict or type(one) is list)


def _one_line(error: Exception) -> str:
    stated = error.strerror if isinstance(error, OSError) else None
    return stated or (str(error).splitlines() or [type(error).__name__])[0][:200]


# -- npy -----------------------------------------------------------------------------------------------------------

_NPY = re.compile(rb"\x93NUMPY[\x01\x02\x03]\x00", re.DOTALL)
_MAX_NPY_HEADER = 4096
_MAX_DIMENSIONS = 8


def read_npy(path: Path, dtype: str, *, mapped: bool = False) -> Any:
    """The array in a ``.npy`` file that must be of ``dtype`` (such as ``<i8``), mapped read-only when ``mapped``.

    Never unpickles. The shape that the header declares is compared with the file's size before anything is allocated
    or mapped. Raises RunError for anything else.
    """
    import numpy as np

    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        size = path.stat().st_size
        with path.open("rb") as handle:
            shape, offset = _npy_header(handle.read(_MAX_NPY_HEADER + 12), dtype)
        count = 1
        for side in shape:
            count *= side
        if offset + count * np.dtype(dtype).itemsize != size:
            raise ValueError(f"it declares the shape {shape}, which does not fit its {size} bytes")
        if mapped and count:
            return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
        return np.fromfile(path, dtype=dtype, offset=offset).reshape(shape)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {_one_line(error)}", fix=_FROM_SOURCE) from None


def _npy_header(begin: bytes, dtype: str) -> tuple[tuple[int, ...], int]:
    """The shape a header declares and where the data begin: numpy.lib.format, versions 1 to 3."""
    if not _NPY.match(begin):
        raise ValueError("it is not a .npy file")
    width = 2 if begin[6] == 1 else 4
    length = int.from_bytes(begin[8 : 8 + width], "little")
    text = begin[8 + width : 8 + width + length]
    if length > _MAX_NPY_HEADER or len(text) != length:
        raise ValueError("its header is cut off or too long")
    try:
        header = ast.literal_eval(text.decode("latin-1").strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError("its header is damaged") from None
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise ValueError("its header is damaged")
    if header["descr"] != dtype or header["fortran_order"] is not False:
        raise ValueError(f"it holds {str(header['descr'])[:40]!r}, not {dtype!r}")
    shape = header["shape"]
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError("its header is damaged")
    if not all(type(side) is int and 0 <= side < 2**40 for side in shape):
        raise ValueError("its shape is no shape")
    return shape, 8 + width + length


# -- hashes, names, links ------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """The file's SHA-256 in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fits_a_folder(name: str) -> bool:
    """Whether ``name`` is fit for a folder in a run: one part of a path, printable, on every system."""
    return (
        0 < len(name) <= 100
        and not name.startswith((".", "-"))
        and is_plain(name)  # a name is shown in terminals, reports and file names
        and not any(character in name for character in '/\\:*?"<>|')
    )


def fits_a_command(path: str) -> bool:
    """Whether ``path`` of a TOML file may be shown to be typed: one line, and to a shell only a path."""
    harmless = is_plain(path) and not any(character in path for character in "$`;&'\"\\<>|*?!")
    return harmless and path.endswith(".toml") and not path.startswith("-") and len(path) <= 1000


def refuse_links_out(folder: Path) -> None:
    """Raise RunError when a link in ``folder`` leads out of it, or something there is neither a file nor a folder.

    Everything below may then be opened by its plain path. Hard links are files like any other.
    """
    root = Path(os.path.realpath(folder))
    for entry in _entries(root):
        if entry.is_symlink():
            wrong = "" if Path(os.path.realpath(entry.path)).is_relative_to(root) else "is a link that leads out of it"
        else:
            plain = entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
            wrong = "" if plain else "is neither a file nor a folder"
        if wrong:
            raise RunError(
                f"{folder} cannot be trusted: {printable(os.path.relpath(entry.path, root))} {wrong}",
                fix="remove it; if it is yours, put the file itself there",
            )


def _entries(root: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below ``root``, links not followed."""
    waiting = [str(root)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    yield entry
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except FileNotFoundError:  # removed meanwhile by the command that works on the run
            continue
        except OSError as error:
            raise RunError(f"cannot read {root}: {error.strerror}", fix="make the folder readable") from None


def is_plain(text: str) -> bool:
    """Whether ``text`` has no control characters, line ends or half surrogates: fit for one line anywhere."""
    return text.isprintable() or not any(map(_controls, text))


def printable(text: str, *, keep: str = "") -> str:
    """``text`` with control characters escaped, but for those in ``keep``: a stranger's must not reach a terminal."""
    if text.isprintable():
        return text
    return "".join(one.encode("unicode_escape").decode() if _controls(one) and one not in keep else one for one in text)


def _controls(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
