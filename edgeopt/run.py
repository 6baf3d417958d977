"""The run folder: one dataset, its variants, engines and measurements, each with a commit record written last."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from edgeopt import environment
from edgeopt.errors import ConfigError, MissingStageError, RunError, did_you_mean
from edgeopt.files import read_json, sha256, write_json

SCHEMA = 1


def now() -> str:
    """The time in UTC, ISO 8601 with microseconds, which sorts as text."""
    return datetime.now(timezone.utc).isoformat()


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
        return read_json(self.record_path)

    def commit(self, *, outputs: Mapping[str, Path], **fields: Any) -> dict[str, Any]:
        """Hash the outputs and write the record, last of all."""
        for path in outputs.values():
            _sync(path)
        record = {
            "schema": SCHEMA,
            "name": self.name,
            "key": self.key,
            "created": now(),
            "seconds": round(time.monotonic() - self.started, 3),
            **fields,
            "outputs": {
                name: {"path": self.run.relative(path), "sha256": sha256(path)} for name, path in outputs.items()
            },
            "command": command_line(),
            "machine": environment.machine_id(),
            "versions": environment.versions(),
        }
        write_json(self.record_path, record)
        (self.folder / "pending.json").unlink(missing_ok=True)
        return record


def command_line() -> str:
    """The command that is running, as one would type it; ``python`` when edgeopt is used as a library."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    if program not in ("edgeopt", "__main__.py"):
        return program or "python"
    return " ".join(["edgeopt", *sys.argv[1:]])


class Run:
    """An open run folder. Its state is the union of the records in it, computed on reading."""

    def __init__(self, path: Path, info: Mapping[str, Any]) -> None:
        self.path = path
        self.info = dict(info)
        self._locked = 0  # stages call one another; the lock is taken once

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    # -- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, *, data_root: str, data: Mapping[str, Any], fingerprint: str) -> Run:
        """Make the run in ``path``, or open it when it already holds this dataset; another dataset is a RunError."""
        record = path / "run.json"
        if record.is_file():
            run = cls.open(path)
            if run.info["fingerprint"] != fingerprint:
                raise RunError(
                    f"{path} holds another dataset ({run.info.get('data_root')}), or its pictures changed since",
                    fix=f"use another folder: --run {path}-2",
                )
            return run
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file, not a folder", fix="give another --run")
        try:
            path.mkdir(parents=True, exist_ok=True)
            info = {
                "schema": SCHEMA,
                "id": uuid4().hex,
                "created": now(),
                "data_root": data_root,
                "data": dict(data),
                "fingerprint": fingerprint,
                "machine": environment.machine_id(),
                "host": environment.host_id(),
            }
            write_json(record, info)
        except OSError as error:
            raise RunError(f"cannot write the run folder {path}: {error.strerror}", fix="give another --run") from None
        return cls(path, info)

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open an existing run; raises RunError when it is none or of a schema this version does not read."""
        if not (path / "run.json").is_file():
            raise RunError(
                f"{path} is not a run folder (no run.json in it)", fix="make one with: edgeopt finetune DATA"
            )
        info = read_json(path / "run.json")
        schema = info.get("schema")
        if schema != SCHEMA:
            raise RunError(
                f"{path} has schema {schema!r}; this edgeopt reads schema {SCHEMA}", fix="pip install --upgrade edgeopt"
            )
        for name in ("id", "created", "fingerprint"):
            if not isinstance(info.get(name), str):
                raise RunError(f'{path / "run.json"}: "{name}" should be a text')
        return cls(path, info)

    @classmethod
    def latest(cls, root: Path = Path("runs")) -> Run:
        """The run created last under ``root``."""
        found, unreadable = [], []
        for record in sorted(root.glob("*/run.json")):
            try:
                found.append(cls.open(record.parent))
            except RunError as error:  # of another version, or damaged: it must not stand in the way of the others
                unreadable.append(error)
        if unreadable and not found:
            raise unreadable[0]
        if not found:
            raise RunError(
                f"there is no run under {root}/", fix="make one with: edgeopt finetune DATA, or give --run FOLDER"
            )
        return max(found, key=lambda run: str(run.info["created"]))

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def name(self) -> str:
        return self.path.name

    # -- paths -----------------------------------------------------------------------------------------------------

    def relative(self, path: Path) -> str:
        """``path`` as it is written in records: relative to the run, with forward slashes."""
        return path.relative_to(self.path).as_posix()

    def resolve(self, relative: str) -> Path:
        """The path a record names; raises RunError when it would leave the run folder."""
        pure = PurePosixPath(relative)
        path = self.path / pure
        if pure.is_absolute() or ".." in pure.parts or not path.resolve().is_relative_to(self.path.resolve()):
            raise RunError(f'{self.path}: a record names "{relative}", which is outside the run folder')
        return path

    def output(self, record: Mapping[str, Any], name: str) -> Path:
        """The file a record lists as output ``name``, checked against its hash."""
        try:
            entry = record["outputs"][name]
            path, expected = self.resolve(str(entry["path"])), str(entry["sha256"])
        except (KeyError, TypeError):
            raise RunError(f'{self.path}: the record of {record.get("name")} lists no "{name}"') from None
        if not path.is_file():
            raise RunError(f"{path} is missing, though its record says it was made", fix="make it again with --force")
        if sha256(path) != expected:
            raise RunError(f"{path} was changed since its record was written", fix="make it again with --force")
        return path

    # -- records ---------------------------------------------------------------------------------------------------

    def variants(self) -> dict[str, dict[str, Any]]:
        """Committed variants by name, oldest first."""
        return self._records("host/*/stage.json")

    def exports(self) -> dict[str, dict[str, Any]]:
        """Committed exports by variant name."""
        found = {path.parent.parent.name: read_json(path) for path in self._glob("host/*/export/parity.json")}
        return dict(sorted(found.items()))

    def engines(self) -> dict[str, dict[str, Any]]:
        """Committed builds by ``target/variant``, oldest first."""
        return self._records("device/*/*/build.json", parts=2)

    def variant(self, name: str) -> dict[str, Any]:
        """The record of one variant; raises MissingStageError naming what there is."""
        found = self.variants()
        if name not in found:
            raise MissingStageError(
                f'{self.path} has no variant "{name}"{did_you_mean(name, found)}',
                fix=f"use one of {', '.join(found) or '(none yet)'}",
            )
        return found[name]

    def original(self) -> str:
        """The float model everything is compared with: the variant with no parent that was made last."""
        roots = [name for name, record in self.variants().items() if record.get("parent") is None]
        if not roots:
            raise MissingStageError(f"{self.path} has no trained model yet", fix="make one with: edgeopt finetune DATA")
        return roots[-1]

    def root_of(self, variant: str) -> str:
        """The variant without a parent that ``variant`` goes back to."""
        variants = self.variants()
        for _ in variants:
            parent = variants.get(variant, {}).get("parent")
            if parent is None:
                break
            variant = str(parent)
        return variant

    def next_command(self) -> str:
        """What a newcomer would type next."""
        variants, engines = self.variants(), self.engines()
        if not variants:
            return "edgeopt finetune DATA"
        if not any(record.get("scheme") for record in variants.values()):
            return "edgeopt compress --int8"
        if not engines:
            return "edgeopt build --target onnxruntime   (or another of: edgeopt targets)"
        measured = any((self.path / "device" / name / "latency.json").is_file() for name in engines)
        return "edgeopt report" if measured else "edgeopt bench"

    def remove(self, variant: str) -> list[str]:
        """Delete a variant and its engines; raises RunError while other variants stand on it. Returns what went."""
        self.variant(variant)
        children = [name for name, record in self.variants().items() if record.get("parent") == variant]
        if children:
            raise RunError(
                f"{variant} is the parent of {', '.join(children)}", fix=f"remove those first: edgeopt rm {children[0]}"
            )
        folders = [self.path / "host" / variant]
        folders += [
            self.path / "device" / name for name, record in self.engines().items() if record.get("variant") == variant
        ]
        for folder in folders:
            discard(folder)
        return [self.relative(folder) for folder in folders]

    def _glob(self, pattern: str) -> Iterator[Path]:
        """Files of committed stages; folders with a leading dot are on their way out."""
        for path in sorted(self.path.glob(pattern)):
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(self.path).parts):
                yield path

    def _records(self, pattern: str, parts: int = 1) -> dict[str, dict[str, Any]]:
        found = {"/".join(path.parent.parts[-parts:]): read_json(path) for path in self._glob(pattern)}
        return dict(sorted(found.items(), key=lambda item: str(item[1].get("created", ""))))

    # -- writing ---------------------------------------------------------------------------------------------------

    def stage(self, parent: str, name: str, *, record: str, key: str, force: bool = False) -> Stage:
        """The folder for a stage of this key under ``parent``: the committed or half-made one when there is one.

        Another configuration that already took ``name`` is left alone; this one then gets ``name-<6 hex digits>``.
        """
        for candidate in (name, f"{name}-{key[:6]}"):
            folder = self.path / parent / candidate
            if _key_of(folder, record) in (None, key):
                if force and folder.exists():
                    discard(folder)
                folder.mkdir(parents=True, exist_ok=True)
                if not (folder / record).is_file():
                    write_json(folder / "pending.json", {"key": key})
                return Stage(self, folder, record, key, time.monotonic())
        raise RunError(
            f"{self.path / parent}: {name}-{key[:6]} is taken by another configuration",
            fix=f"edgeopt rm {name}-{key[:6]}",
        )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing; a second writer is refused at once, because it would train for nothing."""
        if self._locked:
            yield
            return
        import fcntl

        try:
            handle = (self.path / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot write in {self.path}: {error.strerror}", fix="make the folder writable") from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                holder = handle.read().strip() or "another process"
                raise RunError(
                    f"{self.path} is in use by {holder}", fix="wait for it to end, or use another --run"
                ) from None
            handle.truncate(0)
            handle.write(f"process {os.getpid()} ({command_line()}, since {now()[:19]} UTC)")
            handle.flush()
            self._locked += 1
            try:
                yield
            finally:
                self._locked -= 1


def _key_of(folder: Path, record: str) -> str | None:
    """The key of what is or was being made in ``folder``; None when nothing is."""
    if folder.is_dir() and [path.name for path in folder.iterdir()] == ["pending.json"]:
        return None  # an attempt that failed before it made anything keeps no name
    for name in (record, "pending.json"):
        if (folder / name).is_file():
            return str(read_json(folder / name).get("key"))
    return None


def discard(folder: Path) -> None:
    """Delete a folder so that a crash half-way leaves no committed stage with missing files."""
    if not folder.exists():
        return
    doomed = folder.with_name(f".trash-{folder.name}-{uuid4().hex[:8]}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def check_name(name: str) -> str:
    """A name fit for a folder inside a run; raises ConfigError otherwise."""
    if (
        not name
        or name.startswith((".", "-"))
        or any(character in name for character in '/\\\0\n\t:*?"<>|')
        or len(name) > 100
    ):
        raise ConfigError(f'"{name}" cannot name a folder', fix="use letters, digits, dots, dashes and underscores")
    return name
