"""Pools the folds that are there and writes README.md's table: no number in it that is not in ``results/``.

Over folds, answers are pooled picture by picture against the float model of their own fold, and windows round by round
against eager PyTorch's of their own session; seconds are means, sizes and shares those of the worst fold.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from peers.registry import BY_KEY

from edgeopt.metrics import Interval, PairedDrop, accuracy_interval, median_interval, paired_drop, ratio_interval

PAGE = Path(__file__).with_name("README.md")
RESULTS = Path(__file__).with_name("results")
BEGIN, END = "<!-- run.py writes from here -->", "<!-- to here -->"
COLUMNS = (
    "tool", "runtime", "top-1", "drop to float, points", "p50, ms", "times eager PyTorch", "pictures/s", "MiB",
    "int8 layers", "of the MACs", "minutes", "lines", "remarks",
)  # fmt: skip
_FLOAT, _EAGER = "float", ("float", "pytorch")
_NO_RUNTIME = "-"
_RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "pytorch": "PyTorch", _NO_RUNTIME: ""}


@dataclass(frozen=True)
class Pooled:
    """One tool on one runtime over the folds that have it; ``eager`` are the float model's rows of the same folds."""

    peer: str
    runtime: str
    rows: dict[int, dict[str, Any]]
    eager: dict[int, dict[str, Any]]
    missing: dict[int, str]  # folds without it, and why

    @property
    def title(self) -> str:
        if self.peer != _FLOAT:
            return BY_KEY[self.peer].title
        return "the float model, eager" if self.runtime == "pytorch" else "the float model"

    def right(self, folds: Iterable[int] | None = None) -> npt.NDArray[np.bool_]:
        """Whether each test picture is answered right, fold after fold."""
        return _right(self.rows, self.rows if folds is None else folds)

    def windows(self, folds: Iterable[int] | None = None) -> list[float]:
        """Window medians in milliseconds, fold after fold; of untimed folds none."""
        return _windows(self.rows, self.rows if folds is None else folds)

    @property
    def drop(self) -> PairedDrop:
        return paired_drop(_right(self.eager, self.rows), self.right())

    @property
    def p50(self) -> Interval | None:
        return median_interval(self.windows(), starts=self.starts(self.rows)) if self.windows() else None

    def starts(self, folds: Iterable[int]) -> list[int]:
        """How many windows each start of the processes gave, fold after fold."""
        rows = [self.rows[fold] for fold in folds if _timed(self.rows[fold])]
        return [n for row in rows for n in row.get("windows_by_start") or [len(row["window_medians_ms"])]]

    def times_as_fast_as(self, other: Pooled) -> Interval | None:
        """How many times as fast it is, over the folds in which both were timed."""
        folds = [fold for fold in self.rows if _timed(self.rows[fold]) and _timed(other.rows.get(fold, {}))]
        if not folds:
            return None
        return ratio_interval(other.windows(folds), self.windows(folds), starts=self.starts(folds))

    def least(self, name: str) -> Any:
        """The smallest of a figure over folds; None where a fold has none."""
        values = [row.get(name) for row in self.rows.values()]
        return None if None in values or not values else min(values)


def pooled(records: Sequence[dict[str, Any]]) -> list[Pooled]:
    """Every tool and runtime of the folds in ``records`` (of one dataset), the float model first."""
    by_fold = {record["fold"]: {(row["peer"], row["runtime"]): row for row in record["rows"]} for record in records}
    eager = {fold: rows[_EAGER] for fold, rows in by_fold.items()}
    order = [_FLOAT, *BY_KEY]
    keys = {key for rows in by_fold.values() for key in rows}
    works = {peer for rows in by_fold.values() for (peer, runtime), row in rows.items() if not row["error"]}
    keys = {(peer, runtime) for peer, runtime in keys if runtime != _NO_RUNTIME or peer not in works}
    found = []
    for peer, runtime in sorted(keys, key=lambda key: (order.index(key[0]), key[1] != "pytorch", key[1])):
        rows = {fold: of[peer, runtime] for fold, of in by_fold.items() if (peer, runtime) in of}
        whole = {fold: row for fold, row in rows.items() if not row["error"]}
        missing = {
            fold: (rows.get(fold) or of.get((peer, _NO_RUNTIME)) or {"error": "not run"})["error"]
            for fold, of in by_fold.items()
            if fold not in whole
        }
        found.append(Pooled(peer, runtime, whole, eager, missing))
    return found


def table(records: Sequence[dict[str, Any]]) -> str:
    """The Markdown table of one dataset."""
    rows = pooled(records)
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(_cells(row, rows))} |" for row in rows]
    return "\n".join(lines)


def sections(results: Path = RESULTS) -> str:
    """A heading, what was measured where, and the table, for each dataset that has a record in ``results``."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    found = []
    for data in dict.fromkeys(record["data"] for record in records):
        own = [record for record in records if record["data"] == data]
        found.append(f"### {data}\n\n{_caption(own)}\n\n{table(own)}")
    return "\n\n".join(found) or "Nothing is measured yet."


def write_page(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Put :func:`sections` between the markers of ``page``."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{sections(results)}\n{END}{after}", encoding="utf-8")


def _caption(records: Sequence[dict[str, Any]]) -> str:
    first = records[0]
    count = sum(record["pictures"] for record in records)
    height, width = first["setting"]["size"]
    cpus = sorted({record["session"]["machine"]["cpu"]["name"] for record in records})
    threads = sorted({record["session"]["threads"] for record in records})
    versions = {
        f"{BY_KEY[row['peer']].package} {row['version']}"
        for record in records
        for row in record["rows"]
        if row.get("version")
    }
    return (
        f"{count} test pictures of {width}x{height} in {len(records)} of {first['folds']} "
        f"fold{'s' if first['folds'] > 1 else ''}; {', '.join(cpus)}, {', '.join(map(str, threads))} threads, batch 1; "
        f"{', '.join(sorted(versions))}."
    )


def _cells(row: Pooled, rows: Sequence[Pooled]) -> list[str]:
    if not row.rows:
        loaded = "**failed**" if row.runtime == _NO_RUNTIME else "**not loaded**"
        why = "; ".join(dict.fromkeys(row.missing.values()))
        blank = [""] * (len(COLUMNS) - 4)
        return [row.title, _RUNTIMES[row.runtime], *blank, str(BY_KEY[row.peer].lines), f"{loaded}: {_escaped(why)}"]
    reference = row.peer == _FLOAT and row.runtime == "pytorch"
    right, p50, drop = row.right(), row.p50, row.drop
    speedup = next((row.times_as_fast_as(other) for other in rows if (other.peer, other.runtime) == _EAGER), None)
    low, high = (100 * bound for bound in accuracy_interval(right))
    shares = [(one["int8_layers"], one["compute_layers"]) for one in row.rows.values() if one.get("compute_layers")]
    layers, macs = min(shares, key=lambda one: one[0] / one[1], default=None), row.least("int8_share_macs")
    seconds = [one["seconds"] for one in row.rows.values() if one.get("seconds") is not None]
    throughput = [one["throughput_ips"] for one in row.rows.values() if _timed(one)]
    return [
        row.title,
        _RUNTIMES[row.runtime],
        f"{100 * right.mean():.1f} % ({low:.1f} to {high:.1f})",
        "" if reference else f"{_zero(drop.drop_points):.2f} ({drop.ci_points[0]:.2f} to {drop.ci_points[1]:.2f})",
        f"{p50.value:.2f}" if p50 else "",
        "" if reference or speedup is None else _interval(speedup),
        f"{np.median(throughput):.0f}" if throughput else "",
        f"{max(one['size_bytes'] for one in row.rows.values()) / 2**20:.2f}",
        f"{layers[0]} of {layers[1]}" if layers and row.peer != _FLOAT else "",
        f"{macs:.0%}" if macs is not None and row.peer != _FLOAT else "",
        f"{np.mean(seconds) / 60:.1f}" if seconds else "",
        str(BY_KEY[row.peer].lines) if row.peer != _FLOAT else "",
        _escaped("; ".join(_remarks(row, rows))),
    ]


def _remarks(row: Pooled, rows: Sequence[Pooled]) -> list[str]:
    """Where it loses, and the reason as far as it was measured."""
    said = []
    if row.peer != _FLOAT:
        if row.drop.ci_points[0] > 0:
            said.append(f"**less accurate than float**{_saturation(row)}")
        for other in rows:
            same = other.peer == _FLOAT and other.runtime in (row.runtime, "pytorch")
            ratio = row.times_as_fast_as(other) if same else None
            if ratio is not None and ratio.high < 1:
                said.append(f"**slower than {other.title}{'' if other.runtime == 'pytorch' else ' on this runtime'}**")
        if best := _beaten_by(row, rows):
            faster = row.times_as_fast_as(best)
            assert faster is not None
            runtime = "" if best.runtime == row.runtime else f" on {_RUNTIMES[best.runtime]}"
            said.append(f"beaten by {best.title}{runtime}: {1 / faster.value:.2f} times as fast, no less accurate")
        if BY_KEY[row.peer].note:
            said.append(BY_KEY[row.peer].note)
    said += [f"not timed: {one['timing_error']}" for one in row.rows.values() if not _timed(one)]
    return said + [f"fold {fold}: {reason}" for fold, reason in row.missing.items()]


def _saturation(row: Pooled) -> str:
    """Whether exact sums would have answered better: then the weights' 8 bits are the reason."""
    exact = [one.get("top1_exact") for one in row.rows.values()]
    if None in exact:
        return ""
    counts = [len(one["right"]) for one in row.rows.values()]
    top1 = float(np.average(np.array(exact, float), weights=counts))
    own = row.right().mean()
    said = f"{100 * top1:.1f} % when sums do not saturate (its 8-bit weights do on this CPU)"
    return f": {said}" if top1 > own else ""


def _beaten_by(row: Pooled, rows: Sequence[Pooled]) -> Pooled | None:
    """The fastest of those certainly faster (the interval of the ratio) and right on no fewer of the same pictures.

    None where it is not known which windows were of which start: such a ratio may be off by some percent.
    """
    better = []
    for other in rows:
        folds = [fold for fold in row.rows if fold in other.rows]
        if not all(one.rows[fold].get("windows_by_start") for one in (row, other) for fold in folds):
            continue
        ratio = row.times_as_fast_as(other) if other is not row and folds else None
        if ratio is not None and ratio.high < 1 and other.right(folds).sum() >= row.right(folds).sum():
            better.append((ratio.value, other))
    return min(better, key=lambda one: one[0], default=(0.0, None))[1]


def _right(rows: dict[int, dict[str, Any]], folds: Iterable[int]) -> npt.NDArray[np.bool_]:
    return np.array([digit == "1" for fold in folds for digit in rows[fold]["right"]])


def _windows(rows: dict[int, dict[str, Any]], folds: Iterable[int]) -> list[float]:
    return [one for fold in folds for one in rows[fold].get("window_medians_ms", ())]


def _timed(row: dict[str, Any]) -> bool:
    return bool(row.get("window_medians_ms"))


def _interval(interval: Interval) -> str:
    span = f" ({interval.low:.2f} to {interval.high:.2f})" if interval.low == interval.low else ""
    return f"{interval.value:.2f}{span}"


def _zero(value: float) -> float:
    return value + 0.0  # no "-0.00"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
