"""What `make demo` measured, against what it promises; writes benchmarks/demo.json and its table in README.md.

    python benchmarks/demo.py runs/demo [--seconds 510 --seconds-installed 603]     # of a finished demo
    python benchmarks/demo.py                                                       # only the table, from demo.json

Drops of top-1 and ratios of latency are those of the run's report, with its 95 % intervals; a ratio is that of the
same backend's float32. It meets its figure when the lower end of its interval does, a drop when its value and the upper
end do. Seconds of stages are from their commit records, of the whole from the making of the run to its report; the
process's own, and those with the installation, are the clock's and typed.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from edgeopt.files import write_json

OUT = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- demo.py writes from here -->", "<!-- to here, demo -->"
LEAST_TOP1 = 0.98  # of the float model
MOST_DROP, MOST_DROP_UPPER = 0.5, 1.5  # points of top-1
LEAST_SPEEDUP = {"onnxruntime": 1.3, "openvino": 1.5}  # int8 over the same backend's float32


def measured(run: Path) -> dict[str, Any]:
    """The demo's figures, and of each what it promises whether it is met."""
    report = json.loads((run / "report/report.json").read_text(encoding="utf-8"))
    original, began = report["original"], json.loads((run / "run.json").read_text(encoding="utf-8"))["created"]
    machine = report["environment"][original["measured_on"]]
    whole = datetime.fromisoformat(report["created"]) - datetime.fromisoformat(began)
    rows = [_engine(row) for row in report["engines"] if row["precision"] == "int8" and row["target"] in LEAST_SPEEDUP]
    return {
        "schema": 1,
        "date": report["created"][:10],
        "cpu": machine["cpu"],
        "versions": machine["versions"],
        "seconds": {**_stages(run), "bench, timing": original["bench_seconds"], "run to report": whole.total_seconds()},
        "test_pictures": original["pictures"],
        "float_top1": original["top1"],
        "float_size_bytes": original["size_bytes"],
        "engines": rows,
        "met": {"float_top1": original["top1"] >= LEAST_TOP1, **{row["key"]: all(row["met"].values()) for row in rows}},
    }


def _stages(run: Path) -> dict[str, float]:
    """Seconds by kind of stage, as the commit records state them."""
    seconds: Counter[str] = Counter()
    for pattern in ("host/*/stage.json", "host/*/export/parity.json", "device/*/*/build.json"):
        for path in sorted(run.glob(pattern)):
            record = json.loads(path.read_text(encoding="utf-8"))
            seconds[str(record["stage"])] += float(record["seconds"])
    return {name: round(spent, 1) for name, spent in seconds.items()}


def _engine(row: dict[str, Any]) -> dict[str, Any]:
    # A ratio to the fastest float precision is one to float32 where that is the fastest.
    over = "fp32_speedup" if row["fp32_speedup_ci"] is not None else "float_speedup"
    ratio_ci = row[f"{over}_ci"]
    kept = (
        "key",
        "top1",
        "drop_points",
        "drop_lower_points",
        "drop_upper_points",
        "int8_share",
        "size_bytes",
        "p50_ms",
    )
    return {
        **{name: row[name] for name in kept},
        "speedup_over_float32": row[over],
        "speedup_over_float32_ci": ratio_ci,
        "speedup_over_fastest_float": row["float_speedup"],
        "met": {
            "drop": row["drop_points"] <= MOST_DROP and row["drop_upper_points"] <= MOST_DROP_UPPER,
            "int8_share": row["int8_share"] == 1.0,
            "speedup": ratio_ci is not None and ratio_ci[0] >= LEAST_SPEEDUP[row["target"]],
        },
    }


def table(record: dict[str, Any]) -> str:
    """The figures as Markdown: the machine and the minutes, then a line an engine."""
    seconds = dict(record["seconds"])
    clock = [f"{minutes(seconds.pop(key))} {what}" for key, what in _CLOCK.items() if key in seconds]
    stages = ", ".join(f"{name} {spent:.0f} s" for name, spent in seconds.items())
    cpu, top1 = record["cpu"], 100 * record["float_top1"]
    lines = [
        f"{record['date']}, {cpu['name']}, {cpu['cores']} cores ({', '.join(cpu['flags'])}): {', '.join(clock)}",
        f"({stages}). Float top-1 {top1:.2f} % of {record['test_pictures']} test pictures (asked:",
        f"{100 * LEAST_TOP1:.0f} %), {record['float_size_bytes'] / 2**20:.1f} MiB.",
        "",
        f"| engine | top-1 lost, points (asked: {MOST_DROP}, at most {MOST_DROP_UPPER}) | layers in int8 | "
        "times float32 | asked | MiB | all met |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["engines"]:
        low, high = row["speedup_over_float32_ci"] or (float("nan"), float("nan"))
        cells = (
            f"`{row['key']}`",
            f"{row['drop_points']:.2f} ({row['drop_lower_points']:.2f} to {row['drop_upper_points']:.2f})",
            f"{100 * row['int8_share']:.0f} %",
            f"{row['speedup_over_float32']:.2f} ({low:.2f} to {high:.2f})",
            f"{LEAST_SPEEDUP[row['key'].split('/')[0]]}",
            f"{row['size_bytes'] / 2**20:.1f}",
            "yes"
            if all(row["met"].values())
            else f"no: {', '.join(key for key, met in row['met'].items() if not met)}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


_CLOCK = {
    "process": "after the installation",
    "process, installed": "with it",
    "run to report": "from the making of the run to its report",
}


def minutes(seconds: float) -> str:
    """Minutes and seconds, as people say them."""
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def main() -> None:
    """Write the JSON of a run that is named, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, help="of `edgeopt demo`, by the clock")
    parser.add_argument("--seconds-installed", type=float, help="of `make demo` in an empty checkout, by the clock")
    arguments = parser.parse_args()
    if arguments.run is not None:
        record = measured(arguments.run)
        typed = {"process": arguments.seconds, "process, installed": arguments.seconds_installed}
        record["seconds"] |= {name: spent for name, spent in typed.items() if spent is not None}
        write_json(OUT, record)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    text = table(json.loads(OUT.read_text(encoding="utf-8")))
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
