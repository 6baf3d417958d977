"""The run folder: one dataset, its variants, engines and measurements, each with a commit record written last."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

from edgeopt import environment, records
from edgeopt.errors import ConfigError, RunError
from edgeopt.files import fits_a_folder, make_folder, printable, refuse_links_out, write_json
from edgeopt.records import SCHEMA
from edgeopt.run.folder import RunFolder
from edgeopt.run.stage import Stage, command_line, commit_record, discard, key_of, set_aside, stage_key

__all__ = ["Run", "RunFolder", "Stage", "check_name", "command_line", "discard", "now", "stage_key"]


class Run(RunFolder):
    """An open run folder: read as a :class:`RunFolder`, and made, locked, filled by stages, relieved of variants."""

    _locked = 0  # stages call one another; the lock is taken once

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

    @staticmethod
    def is_free(path: Path) -> bool:
        """Whether a new run can be made in ``path``: nothing is there, or what a process killed at once left."""
        return not path.exists() or (path.is_dir() and all(entry.name.startswith(".") for entry in path.iterdir()))

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
            committed = commit_record(folder / record, force=force)
            stale = committed is not None and committed.get("key") != key and outdated(committed)
            if stale or key_of(folder, record) in (None, key):
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
        folders = [self.path / "host" / variant, *set_aside(self.path / "host" / variant)]
        folders += [
            self.path / "device" / name for name, record in self.engines().items() if record.get("variant") == variant
        ]
        for folder in folders:
            discard(folder)
        return [self.relative(folder) for folder in folders]

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

    def _sweep(self) -> None:
        """Remove what processes that were killed left half written or half removed. Call it under the lock."""
        for path in self.path.rglob(".*"):
            if path.is_relative_to(self.path / "tune"):
                continue  # searches have workers and locks of their own
            if path.name.startswith(".trash-") and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif re.search(r"\.[0-9a-f]{12}\.tmp", path.name) and path.is_file():
                path.unlink(missing_ok=True)


def check_name(name: str) -> str:
    """A name fit for a folder inside a run; raises ConfigError otherwise."""
    if not fits_a_folder(name):
        raise ConfigError(
            f'"{printable(name)[:120]}" cannot name a folder', fix="use letters, digits, dots, dashes and underscores"
        )
    return name


def now() -> str:
    """The time in UTC, ISO 8601 with microseconds, which sorts as text."""
    return datetime.now(timezone.utc).isoformat()
