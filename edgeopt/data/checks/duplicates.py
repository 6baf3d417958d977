"""Copies and near copies: within a class, across classes, across ready-made splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from edgeopt.data import near
from edgeopt.data.checks.issues import Issue, of
from edgeopt.data.checks.look import Seen
from edgeopt.data.examine import Checked

_ORDER = {"test": 0, "val": 1, "train": 2, None: 3}


def find(checked: Sequence[Checked]) -> tuple[list[Issue], list[list[str]]]:
    """The issues, and groups of pictures (their paths) that are alike and must not be in different folds.

    ``checked`` were looked at by :func:`edgeopt.data.checks.look.look`. Of alike pictures the one in test, else val,
    is kept, then the larger one; the others are issues. Raises DataError when most of the pictures are alike.
    """
    by_pixels: dict[str, list[Checked]] = defaultdict(list)
    for item in sorted(checked, key=_rank):
        by_pixels[item.pixels].append(item)
    issues: list[Issue] = []
    for same in by_pixels.values():
        issues += _exact(same)
    firsts = [same[0] for same in by_pixels.values()]
    pairs = near.near_pairs([_seen(item).thumbnail for item in firsts])
    distances = {(first, second): distance for first, second, distance in pairs}
    groups = near.complete_link(pairs)
    for group in groups:
        # In the order of _rank, so that the first is the one to keep.
        for index in group[1:]:
            issues += _near(firsts[group[0]], firsts[index], distances[group[0], index])
    together = {id(firsts[index]): number for number, group in enumerate(groups) for index in group}
    alike: dict[int, list[str]] = defaultdict(list)
    for number, same in enumerate(by_pixels.values()):
        key = together.get(id(same[0]), len(groups) + number)
        alike[key] += [item.found.path for item in same]
    return issues, [paths for paths in alike.values() if len(paths) > 1]


def _rank(item: Checked) -> tuple[int, int, str]:
    width, height = _seen(item).size
    return _ORDER[item.found.split], -width * height, item.found.path


def _seen(item: Checked) -> Seen:
    seen: Seen = item.seen
    return seen


def _exact(same: Sequence[Checked]) -> list[Issue]:
    kept, issues = same[0], []
    if len({item.found.label for item in same}) > 1:
        for item in same:
            other = next(one for one in same if one.found.label != item.found.label)
            reason = f"the same picture is labelled {other.found.label}"
            issues.append(of(item, "conflict", 1.0, reason, other=other.found.path))
        return issues
    for item in same[1:]:
        if item.found.split != kept.found.split:
            reason = f"the same picture is in {kept.found.split}"
            issues.append(of(item, "leak", 1.0, reason, other=kept.found.path))
        else:
            reason = "the same picture as " + kept.found.path
            issues.append(of(item, "duplicate", 1.0, reason, other=kept.found.path, leave_out=True))
    return issues


def _near(kept: Checked, item: Checked, distance: float) -> list[Issue]:
    score = 1.0 - 0.5 * distance / near.MOST_RMS
    if item.found.label != kept.found.label:
        return [
            of(one, "conflict", score, f"nearly the same picture is labelled {two.found.label}", other=two.found.path)
            for one, two in ((kept, item), (item, kept))
        ]
    if item.found.split != kept.found.split:
        reason = f"nearly the same picture is in {kept.found.split}"
        return [of(item, "leak", score, reason, other=kept.found.path, leave_out=True)]
    reason = "nearly the same picture as " + kept.found.path
    return [of(item, "near_duplicate", score, reason, other=kept.found.path, leave_out=True)]
