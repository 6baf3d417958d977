"""The README's tables of training, from training_accuracy.json, training_speed.json and training_limit.json.

    python benchmarks/training_tables.py                  # writes them between their markers

A ratio counts pictures a second once the way to compute (precision and memory format) is chosen, or with the seconds of
choosing counted, which edgeopt spends once a training and the others never; from the medians of both follows after how
many pictures edgeopt is ahead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "README.md"
END = "<!-- to here -->"
SCRIPTS = {"ten-lines": "the ten lines", "tutorial": "PyTorch's transfer-learning tutorial"}
LOOPS = {"timm": "timm's defaults", "timm-bf16": "bf16, channels_last"}


def begin(name: str) -> str:
    """The comment a table begins after."""
    return f"<!-- training_tables.py writes {name} from here -->"


def tables() -> dict[str, str]:
    """By name, the tables as the JSON files have them."""
    accuracy, speed, limit = (
        json.loads((HERE / f"training_{name}.json").read_text()) for name in ("accuracy", "speed", "limit")
    )
    return {"accuracy": accuracy_table(accuracy), "speed": speed_table(speed, limit)}


def accuracy_table(record: Mapping[str, Any]) -> str:
    """A row for each script that edgeopt's defaults were compared with."""
    head = ("against", "network", "test pictures", "script", "edgeopt", "points more", "McNemar's p", "minutes")
    rows = []
    for key, title in SCRIPTS.items():
        one = record["against"][key]
        setting, folds, pooled = one["setting"], one["folds"], one["pooled"]
        low, high = pooled["gain_ci_points"]
        weights = "ImageNet's weights" if setting["pretrained"] else "random weights"
        script, ours = (sum(fold["seconds"][who] for fold in folds.values()) / 60 for who in ("script", "edgeopt"))
        rows.append(
            (
                title,
                f"{setting['model']}, {weights}, {setting['size']} pixels, {setting['epochs']} epochs",
                f"{pooled['pictures']:,} ({len(folds)} of 3 folds)",
                f"{pooled['top1']['script']:.1%}",
                f"{pooled['top1']['edgeopt']:.1%}",
                f"**{pooled['gain_points']:.1f}** ({low:.1f} to {high:.1f})",
                f"{pooled['mcnemar_p']:.1g}",
                f"{script:.0f}, edgeopt {ours:.0f}",
            )
        )
    return _table(head, rows)


def speed_table(record: Mapping[str, Any], limit: Mapping[str, Any]) -> str:
    """A row for each network and loop that edgeopt's loop was timed against."""
    head = ("network", "loop of timm's parts", "pictures a second", "edgeopt", "times as fast")
    trained = record["pictures"] * record["epochs"]
    head = (*head, f"choosing counted, {trained} pictures trained on", "ahead after", "no loop can reach more than")
    rows = []
    for network, one in record["models"].items():
        for key, title in LOOPS.items():
            steady, whole = one[f"over_{key}"]["images_per_second"], one[f"over_{key}"]["with_setup"]
            theirs, ours = steady["medians"][key], steady["medians"]["edgeopt"]
            rows.append(
                (
                    network,
                    title,
                    f"{theirs:.0f}",
                    f"{ours:.0f}",
                    f"**{steady['ratio']:.2f}** ({_range(steady)})",
                    f"{whole['ratio']:.2f} ({_range(whole)})",
                    ahead_after(theirs, ours, whole["medians"]["edgeopt"], trained),
                    f"{limit['models'][network]['over'][key]:.2f}",
                )
            )
    return _table(head, rows)


def ahead_after(theirs: float, ours: float, ours_with_setup: float, trained: int) -> str:
    """How many pictures have to be trained on until the seconds of choosing are won back; rates in pictures a second.

    ``ours_with_setup`` is the rate over ``trained`` pictures with the choosing counted.
    """
    choosing_s = trained / ours_with_setup - trained / ours
    won_s = 1 / theirs - 1 / ours
    return f"{choosing_s / won_s:,.0f} pictures" if won_s > 0 else "never"


def _range(figure: Mapping[str, Any]) -> str:
    return f"{figure['ci'][0]:.2f} to {figure['ci'][1]:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def written(page: str, name: str) -> str:
    """What stands between a table's markers on ``page``."""
    return page.partition(begin(name))[2].partition(END)[0].strip()


def main() -> None:
    """Put every table between its markers."""
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables().items():
        before, mark, rest = page.partition(begin(name))
        page = f"{before}{mark}\n{table}\n{END}{rest.partition(END)[2]}"
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
