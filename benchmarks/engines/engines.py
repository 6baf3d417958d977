"""Time our int8 engines against the same backend's float, ONNX Runtime's quantize_static and NNCF's OpenVINO path.

    python benchmarks/engines/engines.py resnet18         # one network: resnet18.json, and the tables of README.md
    python benchmarks/engines/engines.py                  # every network, one after the other
    python benchmarks/engines/engines.py --table          # only the tables, from the JSON files

For each backend and batch (1 and 8), all engines in interleaved windows by the protocol of `edgeopt bench`, each in a
process of its own, started anew three times, with the same threads and pictures; a ratio is the median over rounds of
paired windows, with its 95 % interval. Of a rival's several settings the fastest at batch 1 is measured. The overhead
of a session is our `infer` over the runtime's own call in the same process, by windows that take turns; so is what it
saves to normalize pictures in the graph (`build --embed-preprocessing`). Resumable: files and groups of engines that
are there are not made or measured again (`--force` measures again).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networks
import numpy as np
from networks import NETWORKS, Network

from edgeopt import allotment, environment
from edgeopt.backends.base import Backend, BuildRequest
from edgeopt.bench import EngineSpec, bench
from edgeopt.bench.result import bounds
from edgeopt.bench.worker import window
from edgeopt.config import SessionOptions, Target
from edgeopt.files import write_json
from edgeopt.metrics import Interval, ratio_interval
from edgeopt.preprocess import normalize
from edgeopt.registry import load_backend
from edgeopt.sets import write_prepared

HERE = Path(__file__).resolve().parent
PAGE = HERE / "README.md"
BEGIN, END = "<!-- engines.py writes from here -->", "<!-- to here -->"
BACKENDS, BATCHES = ("onnxruntime", "openvino"), (1, 8)
STARTS = 3
OURS, FLOAT, STATIC, NATIVE = "edgeopt int8", "fp32", "quantize_static", "NNCF native"
OVERHEAD_ROUNDS, OVERHEAD_WINDOW = 40, 0.1  # rounds; seconds of each window


def prepared(network: Network, backend: Backend, folder: Path, seconds: float) -> dict[str, dict[str, Any]]:
    """Every engine of ``backend``: its file, precision and audit, the rival's fastest setting."""
    built = {
        OURS: built_engine(network, backend, networks.edgeopt_onnx(network, backend.name, folder), "int8", folder),
        FLOAT: built_engine(network, backend, networks.float_onnx(network, folder), "fp32", folder),
    }
    for precision in set(backend.float_baselines()) - {"fp32"}:
        built[precision] = built_engine(network, backend, networks.float_onnx(network, folder), precision, folder)
    if backend.name == "onnxruntime":
        made = {one: networks.static_onnx(network, one, folder) for one in networks.STATIC}
        rivals = {one: built_engine(network, backend, path, "int8", folder) for one, path in made.items()}
        rival = STATIC
    else:
        paths = {one: networks.native_xml(network, one, folder) for one in networks.NATIVE}
        rivals = {one: _opened(backend, path) for one, path in paths.items()}
        rival = NATIVE
    built[rival] = _fastest(network, backend, rivals, folder, seconds)
    return built


def built_engine(network: Network, backend: Backend, onnx: Path, precision: str, folder: Path) -> dict[str, Any]:
    """The engine of an ONNX file, built once, with its audit."""
    place = folder / backend.name / f"{onnx.stem}-{precision}"
    record = place / "built.json"
    if not record.is_file():
        place.mkdir(parents=True, exist_ok=True)
        scheme = networks.scheme_of(backend) if precision == "int8" else None
        shape = network.spec.input_shape
        result = backend.build(BuildRequest(onnx, place, _target(backend.name, 1), precision, scheme, shape))
        assert result.engine is not None
        assert result.fusion is not None
        write_json(record, {"engine": str(place / result.engine), **result.fusion.to_json(), "precision": precision})
    found: dict[str, Any] = json.loads(record.read_text())
    return found


def _opened(backend: Backend, xml: Path) -> dict[str, Any]:
    """The audit of an IR that was not built by us."""
    with backend.open(xml, _target(backend.name, 1), precision="int8", threads=1) as session:
        return {"engine": str(xml), **session.audit().to_json(), "precision": "int8"}  # type: ignore[attr-defined]


def _fastest(
    network: Network, backend: Backend, rivals: Mapping[str, dict[str, Any]], folder: Path, seconds: float
) -> dict[str, Any]:
    result = _measured(network, backend, rivals, folder, 1, seconds)
    times = {name: result.engines[name].p50.value for name in rivals}
    best = min(times, key=times.__getitem__)
    return {**rivals[best], "setting": best, "settings_p50_ms": times}


def _target(backend: str, batch: int) -> Target:
    return Target(schema=1, name=backend, title=backend, backend=backend, batch=batch, session=SessionOptions())


def _measured(
    network: Network, backend: Backend, built: Mapping[str, dict[str, Any]], folder: Path, batch: int, seconds: float
) -> Any:
    """All of ``built``, interleaved."""
    target = _target(backend.name, batch)
    specs = [
        EngineSpec(name, backend.name, Path(one["engine"]), target, one["precision"]) for name, one in built.items()
    ]
    place = _pictures(network, folder)
    preprocess = place / "preprocess.json"
    # A width of nought: no start ends early, all count alike.
    return bench(specs, pictures=place, preprocess=preprocess, seconds=seconds, starts=STARTS, width=0.0)


def _pictures(network: Network, folder: Path) -> Path:
    """Painted pictures as a prepared set."""
    place = folder / "pictures"
    if not (place / "preprocess.json").is_file():
        place.mkdir(parents=True, exist_ok=True)
        pictures = networks.pictures_of(network)
        names = [f"painted-{index}" for index in range(len(pictures))]
        write_prepared(
            place, "test", network.spec, fill=lambda path: _save(path, pictures), labels=[0] * len(names), paths=names
        )
        write_json(place / "preprocess.json", network.spec.to_json())
    return place


def _save(path: Path, pictures: Any) -> None:
    with path.open("wb") as file:
        np.save(file, pictures)


def measure(network: Network, folder: Path, out: Path, *, seconds: float, force: bool) -> None:
    """Write ``out``: what is not in it yet, group by group."""
    record = json.loads(out.read_text()) if out.is_file() and not force else {}
    record = {"groups": {}, "overhead": {}, "embedding": {}, **record}
    record |= {"network": network.title, "model": network.model, "image_size": network.size}
    for name in BACKENDS:
        backend: Backend = load_backend(name)
        wanted = [batch for batch in BATCHES if f"{name}, batch {batch}" not in record["groups"]]
        if not wanted and name in record["overhead"] and name in record["embedding"]:
            continue
        built = prepared(network, backend, folder / network.key, max(2.0, seconds / 6))
        for batch in wanted:
            result = _measured(network, backend, built, folder / network.key, batch, seconds)
            record["groups"][f"{name}, batch {batch}"] = _group(result, built)
            record["environment"] = environment.record()
            write_json(out, record)
            print(
                f"{network.key}: {name}, batch {batch}: {_said(record['groups'][f'{name}, batch {batch}'])}", flush=True
            )
        if name not in record["overhead"]:
            record["overhead"][name] = overhead(network, backend, Path(built[OURS]["engine"]))
            write_json(out, record)
        if name not in record["embedding"]:
            onnx = networks.edgeopt_onnx(network, name, folder / network.key)
            record["embedding"][name] = embedding(network, backend, onnx, folder / network.key)
            write_json(out, record)


def _group(result: Any, built: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    engines = {}
    for name, one in built.items():
        if name not in result.engines:
            engines[name] = {"failed": result.failures.get(name, "")}
            continue
        found = result.engines[name]
        ratio = result.ratio(OURS, name)
        engines[name] = {
            "p50_ms": found.p50.value,
            "p50_ci_ms": bounds(found.p50),
            "int8_share_macs": one["int8_share_macs"],
            "int8_layers": one["int8_layers"],
            "compute_layers": one["compute_layers"],
            "setting": one.get("setting"),
            "settings_p50_ms": one.get("settings_p50_ms"),
            "times_as_fast": None if name == OURS else ratio.value,  # ours
            "times_as_fast_ci": None if name == OURS else bounds(ratio),
            "stable": found.stable,
        }
    threads = next(iter(result.engines.values())).spec.threads
    return {"engines": engines, "rounds": result.rounds, "seconds": result.seconds, "threads": threads}


@dataclass(frozen=True)
class _Calls:
    """Calls to time in a session's place."""

    infer: Callable[[Any], Any]

    def device_ms(self) -> None:
        """No clock but the host's."""


def overhead(network: Network, backend: Backend, engine: Path) -> dict[str, Any]:
    """Our session's call over the runtime's own, batch 1; ``ratio`` is ours over the runtime's."""
    batch = normalize(networks.pictures_of(network, 1), network.spec)
    with backend.open(engine, _target(backend.name, 1), precision="int8", threads=allotment.usable_cores()) as session:
        ours, raw, ratio = _paired(session, _Calls(_bare(session)), batch)
    return {"p50_ms": ours, "runtime_p50_ms": raw, **ratio}


def embedding(network: Network, backend: Backend, onnx: Path, folder: Path) -> dict[str, Any]:
    """From uint8 pictures to logits, batch 1: ``ratio`` is normalized by numpy over normalized in the graph."""
    place = folder / backend.name / f"{onnx.stem}-embedded"
    place.mkdir(parents=True, exist_ok=True)
    target, spec, threads = _target(backend.name, 1), network.spec, allotment.usable_cores()
    built = []
    for name, embed in (("plain", None), ("embedded", spec)):
        (place / name).mkdir(exist_ok=True)
        scheme = networks.scheme_of(backend)
        request = BuildRequest(onnx, place / name, target, "int8", scheme, spec.input_shape, embed)
        built.append(place / name / str(backend.build(request).engine))
    with (
        backend.open(built[0], target, precision="int8", threads=threads) as plain,
        backend.open(built[1], target, precision="int8", threads=threads) as embedded,
    ):
        from_uint8 = _Calls(lambda pictures: plain.infer(plain.prepared(pictures, spec)))
        outside, inside, ratio = _paired(from_uint8, embedded, networks.pictures_of(network, 1))
    return {"p50_ms": inside, "outside_p50_ms": outside, **ratio}


def _paired(one: Any, other: Any, batch: Any) -> tuple[float, float, dict[str, Any]]:
    """Median milliseconds of both, and the ratio, by windows that take turns in this process."""
    first: list[float] = []
    second: list[float] = []
    for number in range(OVERHEAD_ROUNDS):  # each is as often the one that finds the other's threads still spinning
        turns = ((one, first), (other, second))
        for each, times in turns if number % 2 else turns[::-1]:
            times.append(_typical(each, batch))
    ratio: Interval = ratio_interval(first, second)
    stated = {"ratio": ratio.value, "ratio_ci": bounds(ratio), "rounds": OVERHEAD_ROUNDS}
    return float(np.median(first)), float(np.median(second)), {**stated, "threads": allotment.usable_cores()}


def _typical(one: Any, batch: Any) -> float:
    return float(np.median(window(one, [batch], OVERHEAD_WINDOW, 5)[0]))


def _bare(session: Any) -> Any:
    """The runtime's documented call on the very model that ``session`` has loaded."""
    if hasattr(session, "_session"):
        run, outputs, name = session._session.run, session._outputs, session._input
        return lambda batch: run(outputs, {name: batch})[0]
    request = session._compiled.create_infer_request()

    def infer(batch: Any) -> Any:
        request.start_async({0: batch})
        request.wait()
        return request.get_output_tensor().data

    return infer


def _said(group: Mapping[str, Any]) -> str:
    parts = []
    for name, one in group["engines"].items():
        if "failed" in one:
            parts.append(f"{name} failed")
            continue
        against = f" (ours {_times(one)})" if one["times_as_fast"] else ""
        parts.append(f"{name} {one['p50_ms']:.2f} ms{against}")
    return ", ".join(parts)


def _times(one: Mapping[str, Any]) -> str:
    low, high = one["times_as_fast_ci"] or (float("nan"),) * 2
    return f"{one['times_as_fast']:.2f}x, {low:.2f} to {high:.2f}"


def tables(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Milliseconds a call, how many times as fast ours is, shares, and the overhead of a session."""
    rivals = (FLOAT, "bf16", "fp16", STATIC, NATIVE)
    lines = []
    measured = {key: record for key, record in records.items() if record["groups"]}
    if not measured:
        return "Not measured yet."
    shown = [one for one in rivals if any(one in g["engines"] for r in measured.values() for g in r["groups"].values())]
    head = ["network", "px", "CPU", "backend, batch", OURS, "of the MACs in int8", *(f"against {one}" for one in shown)]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for record in measured.values():
        for name, group in record["groups"].items():
            ours = group["engines"][OURS]
            cells = [record["network"], str(record["image_size"]), _cpu(record["environment"]["cpu"]), name]
            cells += [f"{ours['p50_ms']:.2f} ms", _share(ours)]
            cells += [_cell(group["engines"].get(one)) for one in shown]
            lines.append(f"| {' | '.join(cells)} |")
    kinds = {
        "overhead": ("`Session.infer`", "the runtime's call", "p50_ms", "runtime_p50_ms"),
        "embedding": ("normalized by numpy, then inferred", "normalized in the graph", "outside_p50_ms", "p50_ms"),
    }
    for kind, (first, second, *fields) in kinds.items():
        lines += ["", f"| network | backend | {first} | {second} | ratio |", "|---|---|---|---|---|"]
        for record in measured.values():
            for backend, one in record[kind].items():
                low, high = one["ratio_ci"] or (float("nan"),) * 2
                cells = [f"{record['network']}, {record['image_size']} px", backend]
                cells += [
                    *(f"{one[field]:.3f} ms" for field in fields),
                    f"{one['ratio']:.3f} ({low:.3f} to {high:.3f})",
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cpu(cpu: Mapping[str, Any]) -> str:
    """Its maker, its cores, and what computes in int8."""
    units = (("amx_int8", "AMX"), ("avx512_vnni", "VNNI"), ("avx_vnni", "VNNI"))
    unit = next((name for flag, name in units if flag in cpu["flags"]), "AVX2")
    return f"{cpu['name'].partition('(')[0].split()[0]}, {unit}, {cpu['cores']} cores"


def _share(one: Mapping[str, Any]) -> str:
    return "not known" if one["int8_share_macs"] is None else f"{one['int8_share_macs']:.1%}"


def _cell(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ""
    if "failed" in one:
        return "failed"
    share = f"; {_share(one)} int8, {one['setting']}" if one["setting"] else ""
    return f"**{one['times_as_fast']:.2f}x** ({_times(one).partition(', ')[2]}); {one['p50_ms']:.2f} ms{share}"


def write_page(records: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the tables between their markers."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{tables(records)}\n{END}{after}", encoding="utf-8")


def read(folder: Path = HERE) -> dict[str, dict[str, Any]]:
    """What was measured, by network, in the order of the table."""
    return {
        key: json.loads((folder / f"{key}.json").read_text()) for key in NETWORKS if (folder / f"{key}.json").is_file()
    }


def main(typed: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("keys", nargs="*", help=f"networks; all by default: {', '.join(NETWORKS)}")
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, of each backend and batch")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "edgeopt-engines")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the JSON files")
    parser.add_argument("--force", action="store_true", help="measure what was measured again")
    parser.add_argument("--prepare", action="store_true", help="only make the files and engines, on a busy machine too")
    parser.add_argument("--table", action="store_true", help="only write the tables")
    options = parser.parse_args(typed)
    for key in () if options.table else options.keys or NETWORKS:
        if options.prepare:
            prepare(NETWORKS[key], options.work / key)
        else:
            measure(
                NETWORKS[key], options.work, options.out / f"{key}.json", seconds=options.seconds, force=options.force
            )
    if options.out == HERE and not options.prepare:
        write_page(read())


def prepare(network: Network, folder: Path) -> None:
    """Everything that need not be timed."""
    for name in BACKENDS:
        backend: Backend = load_backend(name)
        built_engine(network, backend, networks.edgeopt_onnx(network, name, folder), "int8", folder)
        for precision in backend.float_baselines():
            built_engine(network, backend, networks.float_onnx(network, folder), precision, folder)
    for setting in networks.STATIC:
        built_engine(
            network, load_backend("onnxruntime"), networks.static_onnx(network, setting, folder), "int8", folder
        )
    for preset in networks.NATIVE:
        networks.native_xml(network, preset, folder)


if __name__ == "__main__":
    main()
