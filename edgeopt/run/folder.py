"""What a run folder says: the paths in it, its records, and what stands on what; nothing is written."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from edgeopt import records
from edgeopt.errors import MissingStageError, RunError, did_you_mean
from edgeopt.files import fits_a_folder, printable, sha256

#: Why engines of a stale variant are compared with nothing.
STALE = "what it was made from was made again since; the same compress and build make it again"


class RunFolder:
    """A run folder as it is read. Its state is the union of the records in it, computed on reading."""

    def __init__(self, path: Path, info: Mapping[str, Any]) -> None:
        self.path = path
        self.info = dict(info)

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

    @property
    def imported(self) -> bool:
        """Whether all of it comes from an ONNX file, which is built as it is: there are no labelled pictures."""
        variants = self.variants()
        return bool(variants) and all(record.get("stage") == "import" for record in variants.values())

    def require_own(self) -> None:
        """Raise RunError in a run of an ONNX file, for what needs a model that can be trained and labelled pictures."""
        if self.imported:
            raise RunError(
                f"{self.path} is made of an ONNX file alone: no labelled pictures, and no model that can be trained",
                fix="adopt the model it was exported from into another run; engines of this one are for: "
                "edgeopt predict PICTURES, edgeopt package --target TARGET",
            )

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
        """Whether what ``record`` describes stands on others made again since.

        They are a variant's parent and the one that its weights come from, and an ensemble's members.
        """
        if members := record.get("members"):
            return any(self._weights_of(one["variant"]) != one["model_sha256"] for one in members)
        inputs, variants = record.get("inputs"), self.variants()
        if not isinstance(inputs, Mapping):
            return False
        stands_on = (("source", record.get("parent")), ("weights_from", record.get("weights_from")))
        found = [(inputs.get(key), variants[str(name)]) for key, name in stands_on if str(name) in variants]
        return any(then != self.stated(one, "model")[1] for then, one in found)

    def stale(self, variant: str) -> bool:
        """Whether ``variant`` is outdated, or one that it goes back to is."""
        variants = self.variants()
        for _ in range(len(variants)):
            record = variants.get(variant)
            if record is None or record.get("parent") is None:
                return False
            if self.outdated(record):
                return True
            variant = str(record["parent"])
        return False

    def next_command(self) -> str:
        """What a newcomer would type next."""
        variants = self.variants()
        # `eval --variant` lists what PyTorch itself runs, which nobody built.
        engines = [key for key, record in self.engines().items() if record.get("backend") != "pytorch"]
        if all(record.get("fold") for record in variants.values()):
            return "edgeopt finetune DATA" + (" --folds K, as before: it goes on" if variants else "")
        if not self.imported and not any(record.get("scheme") for record in variants.values()):
            return "edgeopt compress --int8"
        if not engines:
            return "edgeopt build --target onnxruntime   (or another of: edgeopt targets)"
        if self.imported:
            return f"edgeopt package --target {shlex.quote(engines[-1].split('/')[0])}"
        measured = any((self.path / "device" / name / "latency.json").is_file() for name in engines)
        return "edgeopt report" if measured else "edgeopt bench"

    def _weights_of(self, variant: str) -> str | None:
        """SHA-256 of a variant's weights; None when there is no such variant."""
        record = self.variants().get(variant)
        return None if record is None else self.stated(record, "model")[1]

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

    def _whole(self, pattern: str, kind: type[records.Record]) -> dict[str, dict[str, Any]]:
        """The records that ``pattern`` finds, oldest first; raises RunError for a damaged one."""
        found, damaged = self._records(pattern, kind)
        for name, error in damaged.items():
            raise RunError(error.message, fix=f"get the run again from its source, or: edgeopt rm {shlex.quote(name)}")
        return found

    def _named(self, pattern: str, kind: type[records.Record]) -> dict[str, dict[str, Any]]:
        """The records that ``pattern`` finds by the last two of their folders; raises RunError for a damaged one."""
        return {"/".join(path.parent.parts[-2:]): records.read(kind, path) for path in self._glob(pattern)}

    def _glob(self, pattern: str) -> Iterator[Path]:
        """Files of committed stages; folders with a leading dot are on their way out."""
        for path in sorted(self.path.glob(pattern)):
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(self.path).parts):
                yield path
