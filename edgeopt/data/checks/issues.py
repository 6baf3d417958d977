"""What a check finds: one issue a picture and kind, and why a check could not run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from edgeopt.data.examine import Checked
from edgeopt.data.folder_source import Found

#: kind -> (title, what it means), in the order they are shown: what spoils a result most comes first.
KINDS: dict[str, tuple[str, str]] = {
    "leak": ("In two splits", "The same or nearly the same picture is in two of the ready-made splits."),
    "conflict": ("Alike, with different labels", "The same or nearly the same picture has two labels; one is wrong."),
    "label": (
        "Probably mislabelled",
        "A classifier that never saw the picture disagrees with its label, by cleanlab's confident learning.",
    ),
    "unreadable": ("Cannot be used", "Damaged, empty or in no class; finetune sets these aside by itself."),
    "duplicate": ("Exact copies", "Pixel for pixel the picture named; finetune keeps copies in one split."),
    "near_duplicate": ("Near duplicates", "Recoded, resized or almost the same; --group-near keeps them in one split."),
    "low_information": ("Little in them", "Of so little variety that hardly anything can be seen."),
    "dark": ("Dark", "Even the brightest parts are dark."),
    "bright": ("Bright", "Even the darkest parts are bright."),
    "blurry": ("Blurry", "Without sharp edges."),
    "odd_aspect_ratio": ("Very long or wide", "Cropping to a square loses most of the picture."),
    "odd_size": ("Of unusual size", "Much larger or smaller than the rest."),
}


@dataclass(frozen=True)
class Issue:
    """One thing wrong with one picture. ``score`` orders issues of a kind: 1 is the worst, 0 hardly one.

    ``other`` is the picture it is like, ``suggested`` the label it should probably have. ``leave_out`` says whether
    it is on the list that ``--exclude`` writes: not when finetune sets it aside by itself, or it may well be wanted.
    """

    kind: str
    path: str
    label: str
    split: str | None
    score: float
    reason: str
    other: str | None = None
    suggested: str | None = None
    leave_out: bool = False

    def to_json(self) -> dict[str, Any]:
        """For ``issues.json``."""
        return {**asdict(self), "score": round(self.score, 4)}


@dataclass(frozen=True)
class NotRun:
    """A check that could not be made, why, and what would make it possible."""

    check: str
    reason: str
    fix: str


def of(picture: Checked | Found, kind: str, score: float, reason: str, **more: Any) -> Issue:
    """The issue ``kind`` of ``picture``."""
    found = picture.found if isinstance(picture, Checked) else picture
    return Issue(kind, found.path, found.label, found.split, float(min(max(score, 0.0), 1.0)), reason, **more)


def missing(check: str, *modules: str) -> NotRun | None:
    """Why ``check`` cannot run when one of ``modules`` is not installed, None when all are."""
    absent = [name for name in modules if find_spec(name) is None]
    if not absent:
        return None
    extra = "train,check" if "torch" in absent else "check"
    packages = ", ".join({"sklearn": "scikit-learn"}.get(name, name) for name in absent)
    return NotRun(check, f"{packages} is not installed", f'pip install "edgeopt[{extra}]"')
