"""Read a class folder of very many pictures, and see that it takes neither long nor much memory.

    python benchmarks/reliability/ingest.py --counts 10000 100000 --out benchmarks/reliability/ingest.json

For each count, so many distinct pictures of 32x32 pixels, PNG and JPEG in turn, are made in one class and a few in a
second one. A fresh process then reads, checks and splits them, writes the records and reads these back. Its seconds,
by the clock and of the CPU, and its peak resident memory are recorded, and how much of that it had before it began.
The files were just written, so they are in the page cache: this times edgeopt, not a disk.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeopt import environment
from edgeopt.config import DataConfig
from edgeopt.data.dataset import Dataset
from edgeopt.data.ingest import ingest
from edgeopt.files import write_json

_OTHER_CLASS = 100
_SIDE = 32


def make_pictures(root: Path, count: int) -> None:
    """``count`` distinct pictures in one class, a few in another."""
    rng = np.random.default_rng(0)
    for name, pictures in (("many", count), ("few", _OTHER_CLASS)):
        folder = root / name
        folder.mkdir(parents=True)
        for index in range(pictures):
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)  # 48 random bytes: no two alike
            image = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            image.save(folder / f"{index:06d}.{'jpg' if index % 2 else 'png'}")


def measure(root: Path, records: Path) -> dict[str, Any]:
    """Seconds and memory of this process for the pictures under ``root``."""
    before = _peak_mib()
    start, start_cpu = time.perf_counter(), time.process_time()
    dataset = ingest(DataConfig(path=str(root)))
    read, read_cpu = time.perf_counter(), time.process_time()
    read_peak = _peak_mib()
    dataset.write(records)
    written = time.perf_counter()
    again = Dataset.read(records)
    return {
        "pictures": len(dataset.items),
        "set_aside": len(dataset.set_aside),
        "splits": dataset.counts(),
        "ingest_s": round(read - start, 2),
        "ingest_cpu_s": round(read_cpu - start_cpu, 2),
        "write_records_s": round(written - read, 2),
        "read_records_s": round(time.perf_counter() - written, 2),
        "records_round_trip": again == dataset,
        "memory_before_mib": round(before, 1),
        "ingest_peak_memory_mib": round(read_peak, 1),
        "peak_memory_mib": round(_peak_mib(), 1),
    }


def _peak_mib() -> float:
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # On Linux, ru_maxrss includes what the process that started this one had.
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) / 2**10 if found else 0.0


def _in_a_process(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        root, records = Path(folder) / "pictures", Path(folder) / "records"
        make_pictures(root, count)
        command = [sys.executable, __file__, "--measure", str(root), str(records)]
        return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    """Parse the arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    results = []
    for count in arguments.counts:
        results.append(_in_a_process(count))
        print(f"{count}: {json.dumps(results[-1])}", file=sys.stderr)
    write_json(
        arguments.out,
        {
            "schema": 1,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "side": _SIDE,
            "results": results,
            "measured_on": environment.record(),
        },
    )


if __name__ == "__main__":
    main()
