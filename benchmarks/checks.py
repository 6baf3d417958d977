"""What `edgeopt check` finds of faults planted on purpose, and how long it takes; writes benchmarks/checks.json.

    python benchmarks/checks.py labels-digits near-digits
    python benchmarks/checks.py --emoji FOLDER labels-emoji near-emoji
    python benchmarks/checks.py --emoji FOLDER speed

Labels: 5 % of the pictures are put into another class, drawn evenly; recall is the share of them among the tenth of all
pictures that `issues.json` ranks worst, and chance would find a tenth. Near duplicates: 400 pictures get a copy of 0.8
times the size as JPEG of quality 60; a pair on the unplanted set is false when, at full size, the root mean square of
its differences is above 1 % of white. Emoji are FOLDER/CLASS/NAME.png.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeopt import api, environment
from edgeopt.config import DataConfig
from edgeopt.data import near
from edgeopt.data.checks.look import make_look
from edgeopt.data.digits import write_digits
from edgeopt.data.examine import examine
from edgeopt.picture_files import open_picture
from edgeopt.preprocess import to_rgb

OUT = Path(__file__).with_suffix(".json")
SWAPPED, COPIED, SPEED_PICTURES = 0.05, 400, 5000


def pictures_of(name: str, emoji: Path | None, work: Path) -> Path:
    """A copy of the dataset that may be changed."""
    if name == "digits":
        return write_digits(work / "digits")
    assert emoji is not None, "give --emoji FOLDER"
    return shutil.copytree(emoji, work / "emoji")


def labels(root: Path, work: Path, seed: int = 0) -> dict[str, Any]:
    """Planted swaps, and where the ranking puts them."""
    rng = np.random.default_rng(seed)
    paths = sorted(root.glob("*/*.png"))
    classes = sorted({path.parent.name for path in paths})
    swapped = set()
    for index in rng.choice(len(paths), round(SWAPPED * len(paths)), replace=False):
        path = paths[index]
        others = [name for name in classes if name != path.parent.name]
        target = root / others[rng.integers(len(others))] / path.name
        target = target if not target.exists() else target.with_stem(f"{path.stem}-{index}")
        path.rename(target)
        swapped.add(str(target.relative_to(root)))
    started = time.monotonic()
    result = api.check(root, out=work / "labels")
    assert not result.not_run, result.not_run
    ranking = [path for path, _ in result.label_quality]
    worst = set(ranking[: round(0.1 * len(ranking))])
    flagged = {issue.path for issue in result.issues if issue.kind == "label"}
    left_out = {issue.path for issue in result.issues if issue.kind == "label" and issue.leave_out}
    recall = len(swapped & worst) / len(swapped)
    return {
        "pictures": len(paths),
        "swapped": len(swapped),
        "recall_in_worst_tenth": recall,
        "times_chance": recall / 0.1,
        "flagged": len(flagged),
        "flagged_precision": len(flagged & swapped) / max(1, len(flagged)),
        "flagged_recall": len(flagged & swapped) / len(swapped),
        "left_out": len(left_out),
        "left_out_precision": len(left_out & swapped) / max(1, len(left_out)),
        "left_out_recall": len(left_out & swapped) / len(swapped),
        "seconds": time.monotonic() - started,
    }


def near_duplicates(root: Path, work: Path, seed: int = 0) -> dict[str, Any]:
    """Pairs on the set as it is, then the share of planted copies found."""
    import imagehash

    checked = examine(DataConfig(path=str(root)), look=make_look(measure=False)).checked
    pairs = near.near_pairs([item.seen.thumbnail for item in checked])
    false = []
    for first, second, _ in pairs:
        one, two = (to_rgb(open_picture(root / checked[index].found.path)) for index in (first, second))
        difference = np.asarray(one, np.float32) - np.asarray(two.resize(one.size), np.float32)
        if np.sqrt((difference**2).mean()) > 2.55:
            false.append([checked[first].found.path, checked[second].found.path])
    paths = sorted(root.glob("*/*.png"))
    copies: dict[str, str] = {}
    same_hash = 0
    for index in np.random.default_rng(seed).choice(len(paths), COPIED, replace=False):
        picture = to_rgb(open_picture(paths[index]))
        size = (round(0.8 * picture.width), round(0.8 * picture.height))
        target = paths[index].with_name(f"copy-of-{paths[index].stem}.jpg")
        picture.resize(size, Image.Resampling.BICUBIC).save(target, quality=60)
        same_hash += imagehash.phash(picture) == imagehash.phash(Image.open(target))
        copies[str(target.relative_to(root))] = str(paths[index].relative_to(root))
    result = api.check(root, labels=False, out=work / "near")
    kept: dict[str, str] = {}  # every picture that is like others -> the one of them that is kept
    for issue in result.issues:
        if issue.kind in ("near_duplicate", "duplicate", "conflict") and issue.other is not None:
            kept[issue.path] = min(issue.path, issue.other) if issue.kind == "conflict" else issue.other

    def root_of(path: str) -> str:
        while path in kept and kept[path] != path:
            path = kept[path]
        return path

    found = sum(root_of(copy) == root_of(origin) for copy, origin in copies.items())
    return {
        "pictures": len(paths),
        "copies": len(copies),
        "recall": found / len(copies),
        "recall_of_equal_phash": same_hash / len(copies),
        "pairs_unplanted": len(pairs),
        "false_pairs_unplanted": len(false),
        "false_pairs_share_of_pictures": len(false) / len(paths),
        "false_pairs": false[:20],
    }


def speed(emoji: Path | None, work: Path) -> dict[str, Any]:
    """Seconds for 5,000 JPEGs of 500x375 pixels, everything checked."""
    assert emoji is not None, "give --emoji FOLDER"
    paths = sorted(emoji.glob("*/*.png"))
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (700, 900, 3), dtype=np.uint8)
    for index in range(SPEED_PICTURES):
        path = paths[index % len(paths)]
        x, y = rng.integers(0, 325, 2)
        picture = Image.fromarray(texture[y : y + 375, x : x + 500])
        shade = Image.new("RGB", picture.size, tuple(rng.integers(60, 220, 3).tolist()))
        picture = Image.blend(picture, shade, 0.85)
        front = to_rgb(open_picture(path)).resize((300, 300))
        picture.paste(front, (int(rng.integers(0, 200)), int(rng.integers(0, 75))))
        target = work / "speed" / path.parent.name / f"{index:05d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target, quality=85)
    started, busy = time.monotonic(), time.process_time()
    result = api.check(work / "speed", out=work / "out")
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - busy
    assert not result.not_run
    return {"pictures": result.pictures, "seconds": seconds, "cpu_seconds": cpu_seconds}


def main() -> None:
    """Measure what is named and put it beside what was measured before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path)
    parser.add_argument(
        "what", nargs="+", choices=["labels-digits", "labels-emoji", "near-digits", "near-emoji", "speed"]
    )
    arguments = parser.parse_args()
    for what in arguments.what:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            if what == "speed":
                measured = speed(arguments.emoji, work)
            else:
                kind, name = what.split("-")
                root = pictures_of(name, arguments.emoji, work)
                measured = (labels if kind == "labels" else near_duplicates)(root, work)
        record = json.loads(OUT.read_text()) if OUT.exists() else {"schema": 1}
        record[what] = {**measured, "measured_on": environment.record()}
        OUT.write_text(json.dumps(record, indent=1) + "\n")
        print(what, {key: value for key, value in measured.items() if key != "false_pairs"}, flush=True)


if __name__ == "__main__":
    main()
