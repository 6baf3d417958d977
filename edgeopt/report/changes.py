"""Test pictures to which an engine answers otherwise than the original, read from the run: what only the page shows."""

from __future__ import annotations

from edgeopt import records
from edgeopt.files import printable
from edgeopt.report.engine_row import Change, EngineRow
from edgeopt.report.mistakes import test_pictures
from edgeopt.report.thumbnails import thumbnail
from edgeopt.run import Run

#: Shown of each kind; the rest is counted.
SHOWN = 24
#: What became worse first.
KINDS = ("lost", "gained", "other")


def changes(run: Run, row: EngineRow, original: EngineRow | None, labels: tuple[str, ...]) -> tuple[Change, ...]:
    """Those of ``row`` against ``original``, at most 24 of a kind; pictures where the run carries its test set."""
    if original is None or row.test_set is None or row.test_set != original.test_set or not labels:
        return ()
    answers = [
        records.read(records.AccuracyRecord, run.path / "device" / key / "accuracy.json")
        for key in (original.key, row.key)
    ]
    before, after, truth = answers[0]["predictions"], answers[1]["predictions"], answers[1]["truth"]
    found: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for index, (was, now) in enumerate(zip(before, after, strict=True)):
        if was != now:
            right = truth[index]
            found["lost" if was == right else "gained" if now == right else "other"].append(index)
    if not any(found.values()):
        return ()
    pictures = test_pictures(run, row.variant)
    made = []
    for kind, places in found.items():
        for index in places[:SHOWN]:
            known = pictures is not None and index < len(pictures)
            made.append(
                Change(
                    kind=kind,
                    total=len(places),
                    path=printable(pictures.paths[index])
                    if pictures is not None and known
                    else f"test picture {index}",
                    truth=labels[truth[index]],
                    before=labels[before[index]],
                    after=labels[after[index]],
                    picture=thumbnail(pictures.pictures[index]) if pictures is not None and known else "",
                )
            )
    return tuple(made)
