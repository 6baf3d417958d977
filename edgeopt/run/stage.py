"""A stage of a run: the folder that one act fills, whose commit record is written last; the earlier ones set aside."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from edgeopt import environment, records
from edgeopt.console import Console
from edgeopt.errors import RunError
from edgeopt.files import read_json, sha256, write_json
from edgeopt.records import SCHEMA

if TYPE_CHECKING:
    from edgeopt.run import Run


def stage_key(*, inputs: Mapping[str, str], config: Mapping[str, Any], version: int) -> str:
    """What decides whether a stage may be skipped: its inputs' hashes, its config, its own format number."""
    text = json.dumps([dict(inputs), dict(config), version], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Stage:
    """A folder that a stage fills. It exists for others only when ``record_path`` does."""

    run: Run
    folder: Path
    record_name: str
    key: str
    started: float

    @property
    def record_path(self) -> Path:
        return self.folder / self.record_name

    @property
    def done(self) -> bool:
        return self.record_path.is_file()

    @property
    def name(self) -> str:
        return self.folder.name

    def record(self) -> dict[str, Any]:
        """The commit record."""
        return records.read(records.COMMITS.get(self.record_name, records.Record), self.record_path)

    def skipped(self, console: Console) -> dict[str, Any]:
        """The commit record of a stage that need not be made again, its files checked against their hashes.

        Libraries that changed since are said. Raises RunError for a file that was edited or deleted.
        """
        record = self.record()
        for name in record["outputs"]:
            self.run.output(record, name)
        here = environment.versions()
        made_with = dict(record.get("versions") or {})
        changed = [
            f"{name} {made_with[name]} (now {here[name]})"
            for name in sorted(made_with.keys() & here.keys())
            if made_with[name] != here[name]
        ]
        if changed:
            console.say(f"{self.name} was made with {', '.join(changed)}; --force makes it again")
        return record

    def reopen(self, keep: str) -> None:
        """Half-made again, with the folder ``keep`` alone: a crash leaves what the next call goes on from."""
        write_json(self.folder / "pending.json", {"key": self.key})
        self.record_path.unlink()
        _sync(self.folder)
        for path in self.folder.iterdir():
            if path.is_dir() and path.name != keep:
                discard(path)
            elif path.is_file() and path.name != "pending.json":
                path.unlink()

    def commit(self, *, outputs: Mapping[str, Path], **fields: Any) -> dict[str, Any]:
        """Hash the outputs and write the record, last of all."""
        for path in (*outputs.values(), self.folder):
            _sync(path)
        record = {
            "schema": SCHEMA,
            "name": self.name,
            "key": self.key,
            "created": self.run.next_moment(),
            "seconds": round(time.monotonic() - self.started, 3),
            **fields,
            "outputs": {
                name: {"path": self.run.relative(path), "sha256": sha256(path)} for name, path in outputs.items()
            },
            "command": command_line(),
            "machine": environment.machine_id(),
            "host": environment.host_id(),
            "versions": environment.versions(),
        }
        write_json(self.record_path, record)
        _sync(self.folder)
        (self.folder / "pending.json").unlink(missing_ok=True)
        for earlier in set_aside(self.folder):
            shutil.rmtree(earlier, ignore_errors=True)
        return record


def command_line() -> str:
    """The command that is running, as one would type it; ``python`` when edgeopt is used as a library."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    if program not in ("edgeopt", "__main__.py"):
        return program or "python"
    return " ".join(["edgeopt", *sys.argv[1:]])


def commit_record(record: Path, *, force: bool) -> dict[str, Any] | None:
    """The commit record, None without one; one that is not even JSON is gone with its stage when ``force``."""
    if not record.is_file():
        return None
    try:
        return read_json(record)
    except RunError as error:
        if not force:
            raise RunError(error.message, fix="make it again with --force") from None
    discard(record.parent)
    return None


def key_of(folder: Path, record: str) -> str | None:
    """The key of what is or was being made in ``folder``; None when nothing is."""
    if folder.is_dir() and [path.name for path in folder.iterdir()] == ["pending.json"]:
        return None  # an attempt that failed before it made anything keeps no name
    for name in (record, "pending.json"):
        if (folder / name).is_file():
            return str(read_json(folder / name).get("key"))
    return None


def set_aside(folder: Path) -> list[Path]:
    """Earlier makings of the stage in ``folder``, kept until it was made again."""
    return sorted(folder.parent.glob(f".old-{glob.escape(folder.name)}-{'[0-9a-f]' * 8}"))


def discard(folder: Path) -> None:
    """Delete a folder so that a crash half-way leaves no committed stage with missing files."""
    if not folder.exists():
        return
    doomed = folder.with_name(f".trash-{folder.name}-{uuid4().hex[:8]}")
    try:
        if folder.is_symlink():  # to another folder of the run, which stays
            folder.unlink()
            return
        folder.rename(doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        raise RunError(f"cannot remove {folder}: {error.strerror}", fix="make the run folder writable") from None


def _sync(path: Path) -> None:
    """Have a file's content, or a folder's entries, on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
