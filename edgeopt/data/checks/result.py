"""What a check of pictures found, as it is handed on and kept in ``issues.json``."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeopt.data import exclusion
from edgeopt.data.checks.issues import KINDS, Issue, NotRun
from edgeopt.errors import RunError
from edgeopt.files import read_json


@dataclass(frozen=True)
class CheckResult:
    """What was found. ``issues`` are in the order of their kinds, worst first within each.

    ``key`` says in what and by which settings; ``classes`` counts the pictures that can be used; ``label_quality``
    ranks (path, probability of its own label), worst first, when labels were checked; ``not_run`` says which checks
    could not be made, and why; ``exclude`` is the list that was written.
    """

    key: str
    data: str
    created: str
    pictures: int
    classes: dict[str, int]
    issues: tuple[Issue, ...]
    notes: tuple[str, ...]
    not_run: tuple[NotRun, ...]
    label_quality: tuple[tuple[str, float], ...]
    folder: Path
    exclude: Path | None = None

    @property
    def html(self) -> Path:
        """The page of thumbnails."""
        return self.folder / "check.html"

    @property
    def json(self) -> Path:
        """All that was found."""
        return self.folder / "issues.json"

    @property
    def counts(self) -> dict[str, int]:
        """Issues by kind, in the order of KINDS, those that were found."""
        found = Counter(issue.kind for issue in self.issues)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    def left_out(self) -> list[tuple[str, str]]:
        """(path, reason) of the pictures to leave out, each once, sorted by path."""
        reasons: dict[str, str] = {}
        for issue in self.issues:
            if issue.leave_out:
                reasons.setdefault(issue.path, f"{KINDS[issue.kind][0].lower()}: {issue.reason}")
        return sorted(reasons.items())

    def also(self, exclude: Path | None) -> CheckResult:
        """With the list of the pictures to leave out written to ``exclude``, where that is one."""
        if exclude is not None:
            exclusion.write(exclude, self.data, self.left_out())
        return replace(self, exclude=exclude)

    def summary(self) -> str:
        """One line, and one for each check that could not be made."""
        found = ", ".join(f"{n} {KINDS[kind][0].lower()}" for kind, n in self.counts.items()) or "nothing suspicious"
        lines = [f"checked {self.pictures} pictures: {found}; page: {self.html}"]
        return "\n".join(lines + self.not_checked())

    def not_checked(self) -> list[str]:
        """A line for each check that could not be made."""
        return [f"not checked: {item.check}: {item.reason}; {item.fix}" for item in self.not_run]

    def to_json(self) -> dict[str, Any]:
        """``issues.json``."""
        return {
            "schema": 1,
            "key": self.key,
            "data": self.data,
            "created": self.created,
            "pictures": self.pictures,
            "classes": self.classes,
            "counts": self.counts,
            "issues": [issue.to_json() for issue in self.issues],
            "leave_out": [path for path, _ in self.left_out()],
            "notes": list(self.notes),
            "not_run": [asdict(item) for item in self.not_run],
            "label_quality": [[path, round(quality, 6)] for path, quality in self.label_quality],
        }

    @classmethod
    def read(cls, folder: Path, key: str) -> CheckResult | None:
        """What ``folder`` holds of an earlier check by the same ``key``; None when it holds none, or not all of it."""
        try:
            record = read_json(folder / "issues.json")
            if record.get("key") != key or record["not_run"] or not (folder / "check.html").is_file():
                return None
            return cls(
                key=key,
                data=str(record["data"]),
                created=str(record["created"]),
                pictures=int(record["pictures"]),
                classes={str(name): int(n) for name, n in record["classes"].items()},
                issues=tuple(Issue(**item) for item in record["issues"]),
                notes=tuple(map(str, record["notes"])),
                not_run=(),
                label_quality=tuple((str(path), float(quality)) for path, quality in record["label_quality"]),
                folder=folder,
            )
        except (RunError, AttributeError, KeyError, TypeError, ValueError):  # none, or edited: it is made again
            return None
