"""The run folder: one dataset, its variants, engines and measurements, each with a commit record written last."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from edgeopt import environment, records
from edgeopt.console import Console
from edgeopt.errors import ConfigError, MissingStageError, RunError, did_you_mean
from edgeopt.files import (
    fits_a_folder,
    make_folder,
    printable,
    read_json,
    refuse_links_out,
    sha256,
    write_json,
)
from edgeopt.records import SCHEMA


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
        for earlier in _set_aside(self.folder):
            shutil.rmtree(earlier, ignore_errors=True)
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
    def create(
        cls, path: Path, *, data_root: str, data: Mapping[str, Any], fingerprint: str, wait_seconds: float = 0.0
    ) -> Run:
        """Make the run in ``path``, or open it when it already holds this dataset; another dataset is a RunError.

        ``wait_seconds`` is as for :meth:`lock`.
        """
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file, not a folder", fix="give another --run")
        make_folder(path)
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
        record = path / "run.json"
        if not record.is_file():
            new = cls(path, info)
            with new.lock(wait_seconds):
                if not record.is_file():  # another process may have made it while this one waited
                    write_json(record, info)
                    return new
        run = cls.open(path)
        if run.info["fingerprint"] != fingerprint:
            raise RunError(
                f"{path} holds another dataset ({run.info.get('data_root')}), or its pictures changed since",
                fix=f"use another folder: --run {path}-2",
            )
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open an existing run; raises RunError when it is none, unsafe, or of a schema this version does not read."""
        if not (path / "run.json").is_file():
            raise RunError(
                f"{path} is not a run folder (no run.json in it)", fix="make one with: edgeopt finetune DATA"
            )
        # Before anything is read, locked or written: a link would take all of that elsewhere.
        refuse_links_out(path)
        return cls(path, records.read(records.RunInfo, path / "run.json"))

    @classmethod
    def latest(cls, root: Path = Path("runs")) -> Run:
        """The run created last under ``root``."""
        found, unreadable = [], []
        for record in sorted(root.glob("*/run.json")):
            try:
                found.append((records.read(records.RunInfo, record)["created"], record.parent))
            except RunError as error:  # of another version, or damaged: it must not stand in the way of the others
                unreadable.append(error)
        if unreadable and not found:
            raise unreadable[0]
        if not found:
            raise RunError(
                f"there is no run under {root}/", fix="make one with: edgeopt finetune DATA, or give --run FOLDER"
            )
        return cls.open(max(found)[1])

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def name(self) -> str:
        return self.path.name

    @staticmethod
    def is_free(path: Path) -> bool:
        """Whether a new run can be made in ``path``: nothing is there, or what a process killed at once left."""
        return not path.exists() or (path.is_dir() and all(entry.name.startswith(".") for entry in path.iterdir()))

    # -- paths -----------------------------------------------------------------------------------------------------

    def relative(self, path: Path) -> str:
        """``path`` as it is written in records: relative to the run, with forward slashes."""
        return path.relative_to(self.path).as_posix()

    def resolve(self, relative: str) -> Path:
        """The path a record names; raises RunError when it would leave the run folder."""
        pure = PurePosixPath(relative)
        path = self.path / pure
        try:
            inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.path))
        except (OSError, ValueError):  # too long for a path, or with a zero byte
            inside = False
        if pure.is_absolute() or ".." in pure.parts or not inside:
            raise RunError(
                f"{self.path}: a record names {relative!r:.200}, which is outside the run folder",
                fix="do not use this run, or get it again from its source",
            )
        return path

    def stated(self, record: Mapping[str, Any], name: str) -> tuple[Path, str]:
        """Where the file a record lists as output ``name`` should be, and its SHA-256; nothing is read."""
        entry = record.get("outputs", {}).get(name)
        if entry is None:
            raise RunError(
                f"{self.path}: the record of {printable(str(record.get('name')))} lists no {name!r}",
                fix="make it again with --force",
            )
        return self.resolve(entry["path"]), entry["sha256"]

    def output(self, record: Mapping[str, Any], name: str) -> Path:
        """The file a record lists as output ``name``, checked against its hash."""
        path, expected = self.stated(record, name)
        if not path.is_file():
            raise RunError(f"{path} is missing, though its record says it was made", fix="make it again with --force")
        try:
            found = sha256(path)
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}", fix="make it readable") from None
        if found != expected:
            raise RunError(f"{path} was changed since its record was written", fix="make it again with --force")
        return path

    # -- records ---------------------------------------------------------------------------------------------------

    def variants(self) -> dict[str, dict[str, Any]]:
        """Committed variants by name, oldest first; a damaged record is a RunError that says how to be rid of it.

        Nothing is compared with what is left then: the original itself might be what is missing.
        """
        return self._whole("host/*/stage.json", records.StageRecord)

    def ensembles(self) -> dict[str, dict[str, Any]]:
        """Committed ensembles by name, oldest first; a damaged record is a RunError that says how to be rid of it."""
        return self._whole("host/*/ensemble.json", records.EnsembleRecord)

    def half_made(self) -> list[str]:
        """Variants whose making was interrupted; the command that was making one goes on with it."""
        pending = [path.parent for path in self._glob("host/*/pending.json")]
        made = ("stage.json", "ensemble.json")
        return [folder.name for folder in pending if not any((folder / name).is_file() for name in made)]

    def exports(self) -> dict[str, dict[str, Any]]:
        """Committed exports by variant name."""
        paths = self._glob("host/*/export/parity.json")
        return {path.parent.parent.name: records.read(records.ExportRecord, path) for path in paths}

    def latency_verdicts(self) -> dict[str, dict[str, Any]]:
        """What int8 variants measured against the latency they were asked for, by name."""
        paths = self._glob("host/*/latency/verdict.json")
        return {path.parent.parent.name: records.read(records.LatencyVerdict, path) for path in paths}

    def candidates(self) -> dict[str, dict[str, Any]]:
        """Networks exported for other devices to time, by ``variant/candidates-target``."""
        return self._named("host/*/candidates-*/candidates.json", records.CandidatesRecord)

    def candidate_times(self) -> dict[str, dict[str, Any]]:
        """What devices measured of them, by ``target/candidates-variant``."""
        return self._named("device/*/candidates-*/times.json", records.CandidateTimes)

    def engines(self) -> dict[str, dict[str, Any]]:
        """Committed builds by ``target/variant``, oldest first; see :meth:`damaged_engines` for those left out."""
        return self._records("device/*/*/build.json", records.BuildRecord, parts=2)[0]

    def damaged_engines(self) -> dict[str, RunError]:
        """What is wrong with the records of builds that cannot be used; the other engines can."""
        return self._records("device/*/*/build.json", records.BuildRecord, parts=2)[1]

    def variant(self, name: str) -> dict[str, Any]:
        """The record of one variant; raises MissingStageError naming what there is."""
        found = self.variants()
        if name not in found:
            ensembles = self.ensembles()
            if name in ensembles:
                raise RunError(
                    f"{name} is an ensemble: several models that vote, with no weights of its own",
                    fix=f"compress --teacher {name} teaches one model what it knows; edgeopt ensemble --vote soup "
                    "makes one model of several",
                )
            raise MissingStageError(
                f'{self.path} has no variant "{name}"{did_you_mean(name, [*found, *ensembles])}',
                fix=f"use one of {', '.join(found) or '(none yet)'}",
            )
        return found[name]

    def original(self) -> str:
        """The float model everything is compared with: the variant with no parent that was made last.

        Models of single folds are steps on the way to the one that is kept.
        """
        variants = self.variants()
        roots = [name for name, one in variants.items() if one.get("parent") is None and not one.get("fold")]
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

    def outdated(self, record: Mapping[str, Any]) -> bool:
        """Whether what ``record`` describes stands on others made again since: a variant's parent, or its members."""
        if members := record.get("members"):
            return any(self._weights_of(one["variant"]) != one["model_sha256"] for one in members)
        inputs, parent = record.get("inputs"), self.variants().get(str(record.get("parent")))
        if not isinstance(inputs, Mapping) or parent is None:
            return False
        return bool(inputs.get("source") != self.stated(parent, "model")[1])

    def _weights_of(self, variant: str) -> str | None:
        """SHA-256 of a variant's weights; None when there is no such variant."""
        record = self.variants().get(variant)
        return None if record is None else self.stated(record, "model")[1]

    def next_command(self) -> str:
        """What a newcomer would type next."""
        variants, engines = self.variants(), self.engines()
        if all(record.get("fold") for record in variants.values()):
            return "edgeopt finetune DATA" + (" --folds K, as before: it goes on" if variants else "")
        if not any(record.get("scheme") for record in variants.values()):
            return "edgeopt compress --int8"
        if not engines:
            return "edgeopt build --target onnxruntime   (or another of: edgeopt targets)"
        measured = any((self.path / "device" / name / "latency.json").is_file() for name in engines)
        return "edgeopt report" if measured else "edgeopt bench"

    def remove(self, variant: str) -> list[str]:
        """Delete a variant and its engines; raises RunError while other variants stand on it. Returns what went.

        A variant whose making was interrupted, or whose record is damaged, can be removed too.
        """
        damaged = {
            **self._records("host/*/stage.json", records.StageRecord)[1],
            **self._records("host/*/ensemble.json", records.EnsembleRecord)[1],
        }
        ensembles = {} if damaged else self.ensembles()
        whole = variant in damaged or variant in ensembles
        if whole or (variant not in self.variants() and variant in self.half_made()):
            discard(self.path / "host" / variant)
            return [f"host/{variant}"]
        self.variant(variant)
        if votes := [name for name, one in ensembles.items() if variant in [m["variant"] for m in one["members"]]]:
            raise RunError(
                f"{variant} is a member of {', '.join(votes)}", fix=f"remove that first: edgeopt rm {votes[0]}"
            )
        children = [name for name, record in self.variants().items() if record.get("parent") == variant]
        if children:
            raise RunError(
                f"{variant} is the parent of {', '.join(children)}", fix=f"remove those first: edgeopt rm {children[0]}"
            )
        folders = [self.path / "host" / variant, *_set_aside(self.path / "host" / variant)]
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

    def _named(self, pattern: str, kind: type[records.Record]) -> dict[str, dict[str, Any]]:
        """The records that ``pattern`` finds by the last two of their folders; raises RunError for a damaged one."""
        return {"/".join(path.parent.parts[-2:]): records.read(kind, path) for path in self._glob(pattern)}

    def _whole(self, pattern: str, kind: type[records.Record]) -> dict[str, dict[str, Any]]:
        """The records that ``pattern`` finds, oldest first; raises RunError for a damaged one."""
        found, damaged = self._records(pattern, kind)
        for name, error in damaged.items():
            raise RunError(error.message, fix=f"get the run again from its source, or: edgeopt rm {shlex.quote(name)}")
        return found

    def _records(
        self, pattern: str, kind: type[records.Record], parts: int = 1
    ) -> tuple[dict[str, dict[str, Any]], dict[str, RunError]]:
        """The records that ``pattern`` finds, by the last ``parts`` of their folders, oldest first; and the damaged."""
        found: dict[str, dict[str, Any]] = {}
        damaged: dict[str, RunError] = {}
        for path in self._glob(pattern):
            names = path.parent.parts[-parts:]
            try:
                if not all(map(fits_a_folder, names)):
                    where = printable(str(path.parent))
                    raise RunError(f"{where} has a name that edgeopt never gives", fix="remove it")
                found["/".join(names)] = records.read(kind, path)
            except RunError as error:
                damaged[printable("/".join(names))] = error
        return dict(sorted(found.items(), key=lambda item: str(item[1]["created"]))), damaged

    def next_moment(self) -> str:
        """Now, or just after the newest record where the clock went back: what is made last must sort last."""
        made = [str(record.get("created", "")) for record in (*self.variants().values(), *self.engines().values())]
        latest, present = max(made, default=""), now()
        if latest < present:
            return present
        try:
            return (datetime.fromisoformat(latest) + timedelta(microseconds=1)).isoformat()
        except (ValueError, OverflowError):  # of a record that is no time
            return present

    # -- writing ---------------------------------------------------------------------------------------------------

    def stage(
        self,
        parent: str,
        name: str,
        *,
        record: str,
        key: str,
        force: bool = False,
        resumes: bool = False,
        outdated: Callable[[Mapping[str, Any]], bool] = lambda _: False,
    ) -> Stage:
        """The folder for a stage of this key under ``parent``: the committed one when there is one.

        A half-made one is taken up as it is by a stage that ``resumes``; others start in an empty folder.

        Another configuration that already took ``name`` is left alone; this one then gets ``name-<6 hex digits>``.
        One whose record is ``outdated`` is replaced. What is replaced, or made again by ``force``, is kept in a hidden
        folder beside it until the new one is committed.
        """
        for candidate in (name, f"{name}-{key[:6]}"):
            folder = self.path / parent / candidate
            committed = _committed(folder / record, force=force)
            stale = committed is not None and committed.get("key") != key and outdated(committed)
            if stale or _key_of(folder, record) in (None, key):
                if stale or (force and committed is not None):
                    folder.rename(folder.with_name(f".old-{candidate}-{uuid4().hex[:8]}"))
                elif force or (committed is None and not resumes):
                    discard(folder)
                folder.mkdir(parents=True, exist_ok=True)
                if not (folder / record).is_file():
                    write_json(folder / "pending.json", {"key": key})
                return Stage(self, folder, record, key, time.monotonic())
        raise RunError(
            f"{self.path / parent}: {name}-{key[:6]} is taken by another configuration",
            fix=f"edgeopt rm {name}-{key[:6]}",
        )

    def _sweep(self) -> None:
        """Remove what processes that were killed left half written or half removed. Call it under the lock."""
        for path in self.path.rglob(".*"):
            if path.is_relative_to(self.path / "tune"):
                continue  # searches have workers and locks of their own
            if path.name.startswith(".trash-") and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif re.search(r"\.[0-9a-f]{12}\.tmp", path.name) and path.is_file():
                path.unlink(missing_ok=True)

    @contextmanager
    def lock(self, wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold the run for writing; a second writer is refused at once, because it would train for nothing.

        One that holds it for a moment only, as the workers of a search do, may wait for others like it.
        """
        if self._locked:
            yield
            return
        import fcntl

        try:
            handle = (self.path / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot write in {self.path}: {error.strerror}", fix="make the folder writable") from None
        with handle:
            deadline = time.monotonic() + wait_seconds
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() < deadline:
                        time.sleep(0.05)
                        continue
                    handle.seek(0)
                    holder = printable(handle.read(300).strip()) or "another process"
                    raise RunError(
                        f"{self.path} is in use by {holder}", fix="wait for it to end, or use another --run"
                    ) from None
            handle.truncate(0)
            handle.write(f"process {os.getpid()} ({command_line()}, since {now()[:19]} UTC)")
            handle.flush()
            self._sweep()
            self._locked += 1
            try:
                yield
            finally:
                self._locked -= 1


def _committed(record: Path, *, force: bool) -> dict[str, Any] | None:
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


def _key_of(folder: Path, record: str) -> str | None:
    """The key of what is or was being made in ``folder``; None when nothing is."""
    if folder.is_dir() and [path.name for path in folder.iterdir()] == ["pending.json"]:
        return None  # an attempt that failed before it made anything keeps no name
    for name in (record, "pending.json"):
        if (folder / name).is_file():
            return str(read_json(folder / name).get("key"))
    return None


def _set_aside(folder: Path) -> list[Path]:
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


def check_name(name: str) -> str:
    """A name fit for a folder inside a run; raises ConfigError otherwise."""
    if not fits_a_folder(name):
        raise ConfigError(
            f'"{printable(name)[:120]}" cannot name a folder', fix="use letters, digits, dots, dashes and underscores"
        )
    return name
