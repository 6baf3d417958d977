"""How often `edgeopt bench` finds a planted slow-down of 10 %, and calls one where there is none, on a real machine.

    python benchmarks/bench_trust.py [--runs 20] [--seconds 8]

A small float ONNX model runs on ONNX Runtime in three processes: twice as it is, once behind a busy-wait that lengthens
every call by 10 % of its own median. A run is a whole `bench` of the three, `--runs` times; a minute-long one tells how
narrow the interval of a ratio is after 60 s. A slow-down is called where the 95 % interval of the ratio lies below 1.
Resumable: runs that are in `bench_trust.json` are not repeated. Asked for: 10 % found in 19 of 20 runs, none called in
more than 1 of 20, the interval within 3 % after 60 s.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
OUT = HERE / "bench_trust.json"

#: For the children: ONNX Runtime's own backend, its session waiting busily after each call for a share of its median.
PLUGIN = """
import time
from statistics import median
from edgeopt.backends.base import Session
from edgeopt.backends.onnxruntime import OnnxRuntimeBackend

class Slowed(Session):
    def __init__(self, session, share):
        self.session, self.share, self.wait_s, self.seen = session, share, 0.0, []
    def _infer(self, batch):
        begin = time.perf_counter()
        answer = self.session.infer(batch)
        end = time.perf_counter()
        if len(self.seen) < 200:  # while it warms up
            self.seen.append(end - begin)
            self.wait_s = self.share * median(self.seen[len(self.seen) // 2:])
        while time.perf_counter() - end < self.wait_s:
            pass
        return answer

class Planted(OnnxRuntimeBackend):
    name = "planted"
    def _open(self, engine, target, precision, threads):
        share = 0.1 if target.name == "slowed" else 0.0
        return Slowed(super()._open(engine, target, precision, threads), share)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run, for the three engines together")
    options = parser.parse_args()
    from edgeopt import environment

    machine = environment.machine_id()
    known: dict[str, Any] = json.loads(OUT.read_text()) if OUT.is_file() else {}
    asked = {"machine_id": machine, "seconds": options.seconds}
    if {name: known.get(name) for name in asked} != asked:
        known = {**asked, "cpu": environment.cpu(), "versions": environment.versions(), "runs": [], "minute": None}
    with tempfile.TemporaryDirectory() as folder:
        lab = _lab(Path(folder))
        while len(known["runs"]) < options.runs:
            known["runs"].append(_measured(lab, options.seconds))
            _write(known)
            print(f"run {len(known['runs'])}: {known['runs'][-1]}", flush=True)
        if known["minute"] is None:
            known["minute"] = _measured(lab, 60.0, width=1e-4)
    _write(known)
    print(json.dumps(known["found"], indent=1))


def _write(known: dict[str, Any]) -> None:
    runs, minute = known["runs"], known["minute"]
    known["found"] = {
        "runs": len(runs),
        "of_10_percent": sum(_slower(one["slowed"]["ci"]) for one in runs),
        "of_none": sum(_slower(one["same"]["ci"]) for one in runs),
        "width_after_60_s": minute
        and max((ci[1] - ci[0]) / one["ratio"] for one in minute.values() if (ci := one["ci"])),
    }
    OUT.write_text(json.dumps(known, indent=1) + "\n")


def _slower(ci: list[float] | None) -> bool:
    """Whether a slow-down would be called; without an interval nothing is."""
    return ci is not None and ci[1] < 1


def _measured(lab: dict[str, Any], seconds: float, width: float = 0.03) -> dict[str, Any]:
    """A whole benchmark: how many times as fast as the plain engine are the same again, and the slowed one."""
    from edgeopt.bench import bench
    from edgeopt.bench.result import bounds

    result = bench(list(lab["specs"]), pictures=lab["pictures"], preprocess=lab["preprocess"], seconds=seconds,
                   threads=1, width=width)  # fmt: skip
    ratios = {name: result.ratio(f"{name}/float", "plain/float") for name in ("same", "slowed")}
    quiet = all(engine.quiet for engine in result.engines.values())
    found = {name: {"ratio": one.value, "ci": bounds(one), "quiet": quiet} for name, one in ratios.items()}
    return found


def _lab(folder: Path) -> dict[str, Any]:
    """The plug-in on the path, a prepared set of noise, and the three engines."""
    from small_run import SPEC, write_small_set

    from edgeopt.bench import EngineSpec
    from edgeopt.config import Target
    from edgeopt.files import write_json

    info = folder / "site/edgeopt_planted-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "site/edgeopt_planted.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edgeopt-planted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgeopt.backends]\nplanted = edgeopt_planted:Planted\n")
    sys.path.insert(0, str(folder / "site"))
    pictures = folder / "sets" / SPEC.key
    write_small_set(pictures, "test")
    write_json(folder / "preprocess.json", SPEC.to_json())
    engine = folder / "engine.onnx"
    _write_model(engine, SPEC.size[0])
    targets = [
        Target.model_validate({"schema": 1, "name": name, "title": name, "backend": "planted", "precision": "fp32"})
        for name in ("plain", "same", "slowed")
    ]
    specs = [EngineSpec(f"{target.name}/float", "planted", engine, target, "fp32") for target in targets]
    return {"specs": specs, "pictures": pictures, "preprocess": folder / "preprocess.json"}


def _write_model(path: Path, side: int, channels: int = 128, layers: int = 6) -> None:
    """Some convolutions: about a millisecond on one core."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng, nodes, weights, before = np.random.default_rng(0), [], [], 3
    for layer in range(layers):
        values = rng.normal(0, 0.05, (channels, before, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{layer}"))
        source = "input" if layer == 0 else f"r{layer - 1}"
        nodes.append(helper.make_node("Conv", [source, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        before = channels
    nodes.append(helper.make_node("GlobalAveragePool", [f"r{layers - 1}"], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["logits"]))
    graph = helper.make_graph(
        nodes, "convolutions",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", channels])],
        weights,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


if __name__ == "__main__":
    main()
