"""bench: real child processes that run a tiny numpy engine from an entry point, as a plug-in would."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hostile import without_torch
from small_run import FLOAT, INT8, write_small_run

from edgeopt import allotment, api, cli, environment, resources
from edgeopt.backends.base import Session
from edgeopt.bench import (
    BenchResult,
    EngineSpec,
    accuracy_record,
    bench,
    crosscheck,
    load,
    protocol,
    throughput,
    worker,
    write_accuracy,
    write_records,
)
from edgeopt.bench.child import Child
from edgeopt.bench.protocol import _known, _Runner
from edgeopt.bench.result import EngineResult
from edgeopt.bench.throughput import Search, Setting, search
from edgeopt.bench.worker import window
from edgeopt.cli.bench_cmd import _unmeasured
from edgeopt.config import Budget, Match, Target
from edgeopt.errors import BackendError, ConfigError, DataError, RunError
from edgeopt.files import sha256
from edgeopt.metrics import MIN_WINDOWS, int8_parity
from edgeopt.preprocess import PreprocessSpec
from edgeopt.report import write_report
from edgeopt.run import Run
from edgeopt.stages import bench as stage
from edgeopt.stages.build import build
from edgeopt.stages.engines import Engine
from edgeopt.stages.report import check_baseline

TARGET = Target.model_validate({"schema": 1, "name": "here", "title": "here", "backend": "tiny"})

#: A backend for the children only: a linear layer on mean colours, run `repeat` times, with the faults a file asks for.
PLUGIN = """
import gc, json, os, threading, time
import numpy as np
from edgeopt.backends.base import Availability, Backend, Session
from edgeopt.errors import BackendError

class TinySession(Session):
    def __init__(self, settings, target):
        self.settings, self.target, self.calls, self.seen = settings, target, 0, set()
        self.weights = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
        self.log = open(settings["log"], "w", buffering=1) if settings.get("log") else None
        if settings.get("spin"):  # as the thread pools of real runtimes do
            threading.Thread(target=self._spin, daemon=True).start()
    def _spin(self):
        while True:
            pass
    def _infer(self, batch):
        self.calls += 1
        if self.log:
            self.log.write(f"{time.monotonic()}\\n")
        if self.settings.get("untidy") and self.calls > 1 and gc.isenabled():
            raise BackendError("garbage is collected meanwhile", fix="turn that off")
        if self.calls == self.settings.get("dies_at"):
            os._exit(7)
        if self.calls == self.settings.get("hangs_at"):
            time.sleep(60)
        self.seen.add(float(batch[0, 0, 0, 0]))
        logits = batch.mean(axis=(2, 3)) @ self.weights
        if len(batch) > self.settings.get("most", 1000):
            raise BackendError("this engine takes no such batch", fix="build it for a larger one")
        time.sleep(len(batch) * self.settings.get("ms_a_picture", 0.0) / 1000)
        time.sleep(self.settings.get("ms", 0.0) / 1000)  # unlike computing, as long on a busy machine
        if self.settings.get("nan") or self.calls >= self.settings.get("nan_from", self.calls + 1):
            logits[:] = np.nan
        return logits[:, :3] if self.settings.get("flat") is None else logits[0]
    def device_ms(self):
        return self.settings.get("device_ms")
    def describe(self):
        return {"batch_seen": self.target.batch, "threads": os.environ["OMP_NUM_THREADS"]}

class TinyBackend(Backend):
    name, extra, precisions = "tiny", "tiny", ("fp32", "int8")
    def availability(self):
        return Availability(ok=True)
    def schemes(self):
        return ("u8a8w",)
    def _build(self, request):
        raise NotImplementedError
    def _open(self, engine, target, precision, threads):
        print("a runtime that prints to stdout, as some do")
        settings = json.loads(engine.read_text())
        if "by_start" in settings:  # what another process of it does otherwise
            starts = engine.with_suffix(".starts")
            with starts.open("a") as file:
                file.write(f"{time.monotonic()}\\n")
            settings |= settings["by_start"][len(starts.read_text().split()) - 1]
        if settings.get("refuse"):
            raise BackendError("this engine is of another version", fix="build it again")
        if settings.get("allocate"):
            self.ballast = np.ones(settings["allocate"], dtype=np.uint8)
        return TinySession(settings, target)
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the plug-in installed for children, a prepared test set and its preprocess.json."""
    site = tmp_path / "site"
    info = site / "edgeopt_tiny-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "edgeopt_tiny.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edgeopt-tiny\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgeopt.backends]\ntiny = edgeopt_tiny:TinyBackend\n")
    monkeypatch.syspath_prepend(str(site))
    spec = PreprocessSpec(size=(16, 16))
    folder = tmp_path / "sets" / spec.key
    folder.mkdir(parents=True)
    pictures = np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3), dtype=np.uint8)
    np.save(folder / "test.npy", pictures)
    np.save(folder / "test.labels.npy", np.arange(40) % 3)
    paths = [f"{i}.png" for i in range(40)]
    hashes = {f"test{suffix}": sha256(folder / f"test{suffix}") for suffix in (".npy", ".labels.npy")}
    stated = {"schema": 1, "name": "test", "paths": paths, "preprocess": spec.to_json(), "sha256": hashes}
    (folder / "test.json").write_text(json.dumps(stated))
    (tmp_path / "preprocess.json").write_text(json.dumps(spec.to_json()))
    (tmp_path / "pictures").symlink_to(folder)
    return tmp_path


def engine(lab: Path, key: str, *, target: Target = TARGET, precision: str = "fp32", **settings: object) -> EngineSpec:
    path = lab / f"{key.replace('/', '-')}.engine"
    path.write_text(json.dumps(settings))
    return EngineSpec(key=key, backend="tiny", engine=path, target=target, precision=precision)


def run(lab: Path, *specs: EngineSpec, seconds: float = 1.0, **options: object) -> BenchResult:
    return bench(
        specs,
        pictures=lab / "pictures",
        preprocess=lab / "preprocess.json",
        seconds=seconds,
        threads=1,
        **options,  # type: ignore[arg-type]
    )


def test_the_ratio_is_the_one_that_was_planted(lab: Path) -> None:
    ticks: list[tuple[int, int]] = []
    slow, fast = engine(lab, "here/slow", ms=16.0), engine(lab, "here/fast", ms=8.0)
    result = run(lab, slow, fast, seconds=4.0, progress=lambda done, total: ticks.append((done, total)))
    ratio = result.ratio("here/fast", "here/slow")
    assert ratio.value == pytest.approx(2.0, rel=0.2)
    assert ratio.low <= ratio.value <= ratio.high
    assert result.rounds >= 6
    assert {len(one.windows) for one in result.engines.values()} == {result.rounds}
    assert all(len(window) >= 10 for window in result.engines["here/fast"].windows)
    assert result.engines["here/slow"].p50.value == pytest.approx(16.0, rel=0.3)
    assert result.engines["here/slow"].throughput().value == pytest.approx(1000 / 16, rel=0.3)
    assert ticks[-1] == (4, 4)
    assert not result.failures


def test_from_the_picture_file_to_the_answer_from_the_start_and_in_cpu_time(lab: Path) -> None:
    from PIL import Image

    samples = lab / "samples"
    samples.mkdir()
    for index in range(4):
        Image.effect_noise((640, 480), 50).convert("RGB").save(samples / f"{index}.png")
    (samples / "samples.json").write_text("{}")
    sleeping, spinning = (
        engine(lab, "here/sleeping", ms=30.0, device_ms=12.5),
        engine(lab, "here/spinning", ms=5.0, spin=True),
    )
    result = run(lab, sleeping, spinning, seconds=1.0, samples=samples)
    one = result.engines["here/sleeping"].to_json()
    assert one["end_to_end"]["pictures"] == 4
    assert one["end_to_end"]["infer_ms"] >= 30.0
    assert one["end_to_end"]["decode_ms"] > one["end_to_end"]["preprocess_ms"] / 100 > 0
    assert one["cold_start_s"] > one["load_s"] + 0.03  # the interpreter, the imports and a first answer come on top
    assert one["cpu_ms"] < 15.0  # it slept...
    assert one["device_p50_ms"] == 12.5
    assert result.engines["here/spinning"].to_json()["device_p50_ms"] is None
    assert result.engines["here/spinning"].to_json()["cpu_ms"] > 0.02  # ...and this one has a thread that never does
    assert set(one["load_by_window"]) == {"other_cores", "steal_cores"}
    (samples / "4.png").write_bytes(b"no picture")
    damaged = run(lab, sleeping, seconds=0.2, samples=samples)
    assert damaged.engines["here/sleeping"].to_json()["end_to_end"] is None  # what was timed before stays


def test_who_read_the_files_from_the_disk_for_all_others_has_no_longer_cold_start(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = engine(lab, "here/x").completed(pictures=lab / "pictures", preprocess=lab / "preprocess.json", threads=1)
    runner = _Runner(spec)
    monkeypatch.setattr(protocol, "monotonic", iter([0.0, 3.0, 10.0, 12.0, 20.0, 29.0]).__next__)
    try:
        for _ in range(3):
            runner.open(60)
            runner.close()
    finally:
        runner.close()
    assert runner.cold_start_s == 2.0


def test_the_parts_of_the_way_to_an_answer_are_told_apart_and_cpu_time_is_that_of_a_call(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    class Still(Session):
        def _infer(self, batch: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
            return np.zeros((len(batch), 2), dtype=np.float32)

    (lab / "samples").mkdir()
    for index in range(3):
        Image.effect_noise((64, 48), 50).convert("RGB").save(lab / f"samples/{index}.png")
    two = engine(lab, "here/two", target=TARGET.model_copy(update={"batch": 2}))
    spec = two.completed(pictures=lab / "pictures", preprocess=lab / "preprocess.json", threads=1)
    now, steps = [0.0], itertools.cycle([0.1, 0.003, 0.005, 0.014])  # between pictures, and the three parts

    def clock() -> float:
        now[0] += next(steps)
        return now[0]

    monkeypatch.setattr(worker, "perf_counter", clock)
    found = worker.end_to_end(Still(), spec, lab / "samples")
    parts = {"decode_ms": 3.0, "preprocess_ms": 5.0, "infer_ms": 7.0, "pictures": 3}
    assert found == pytest.approx(parts), "of one picture of the two in a batch"
    monkeypatch.setattr(worker, "process_time", iter([5.0, 5.09]).__next__)
    batches = [np.zeros((2, 3, 16, 16), np.float32)]
    answer = worker._task(Still(), spec, batches, {"window": 0.0, "iterations": 30})  # type: ignore[arg-type]
    assert 0 < answer["cpu_ms"] <= 90 / (30 + worker.DISCARD_ITERATIONS)


def test_the_best_of_many_settings_is_measured_anew_and_gives_way_where_it_breaks_the_cap(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, float]] = []

    def tried(children: list[int], batch: int, threads: int, seconds: float, timeout: float) -> Setting:
        asked.append((batch, seconds))
        lucky = seconds < 1.0  # when it was searched: 50 % more, and calls within the cap
        rate = 100.0 * batch**0.5 * (1.5 if lucky else 1.0)
        return Setting(batch, len(children), threads, rate, 1.0, 5.0 if lucky or batch < 16 else 12.0)

    monkeypatch.setattr(throughput, "_children", lambda specs, timeout: nullcontext([0] * len(specs)))
    monkeypatch.setattr(throughput, "_try", tried)
    spec = engine(lab, "here/x").completed(pictures=lab, preprocess=lab, threads=1)
    found = search(spec, cores=1, cap_ms=10.0)
    assert [batch for batch, seconds in asked if seconds > 1.0] == [16, 8]
    assert found.best is not None
    assert (found.best.batch, found.best.throughput_ips) == (8, pytest.approx(100 * 8**0.5))
    assert found.to_json()["best"]["throughput_ips"] == found.best.throughput_ips
    assert max(one.throughput_ips for one in found.tried) == pytest.approx(600)
    assert search(spec, cores=1, cap_ms=1.0).best is None


@pytest.mark.slow
def test_the_search_for_throughput_finds_the_best_setting_within_the_cap(lab: Path) -> None:
    def searched(cap_ms: float | None, **settings: float) -> Search:
        spec = engine(lab, "here/x", ms=20.0, **settings)
        complete = spec.completed(pictures=lab / "pictures", preprocess=lab / "preprocess.json", threads=2)
        return search(complete, cores=2, cap_ms=cap_ms, seconds=0.2)

    free = searched(None, ms_a_picture=2.0)  # a call costs 20 ms and 2 ms a picture, so that large batches pay
    assert free.best is not None
    assert (free.best.batch, free.best.streams, free.best.threads) == (16, 2, 1)
    assert free.best.throughput_ips == pytest.approx(2 * 16 / 0.052, rel=0.4)
    capped = searched(33.0, ms_a_picture=2.0)  # 4 pictures take 28 ms, 8 take 36
    assert capped.best is not None
    assert (capped.best.batch, capped.best.streams) == (4, 2)
    assert capped.best.p90_ms <= 33.0
    assert max(one.batch for one in capped.tried) == 8  # beyond, nothing is tried
    small = searched(None, most=2)
    assert {(one.batch, one.streams) for one in small.tried} == {(1, 1), (2, 1), (1, 2), (2, 2)}
    assert searched(1.0).best is None
    assert searched(1.0).to_json()["best"] is None


def test_the_same_engine_by_the_runtimes_own_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from small_run import write_small_run

    from edgeopt.bench.crosscheck import CrossCheck, _median, cross_check
    from edgeopt.stages.engines import engines, sets_folder

    built = engines(write_small_run(tmp_path / "run"))[INT8]
    spec = EngineSpec(INT8, "onnxruntime", built.path, built.target, "int8").completed(
        pictures=sets_folder(built.run, built.preprocess), preprocess=built.preprocess_path, threads=1
    )
    found = cross_check(spec, rounds=2, seconds=0.1)
    assert found is not None
    assert found.tool == "a bare loop of onnxruntime"
    assert found.ratio == pytest.approx(found.edgeopt_p50_ms / found.p50_ms, rel=1.0)
    assert found.to_json()["ratio_ci"] is None  # two rounds are too few
    lying = CrossCheck("benchmark_app", 1.0, 0.9, 0.9, [0.89, 0.91], 6)
    assert lying.agrees is False
    assert CrossCheck("benchmark_app", 1.0, 0.9, 0.9, [0.7, 1.2], 6).agrees is None  # a busy machine
    assert str(lying) == "benchmark_app 1 ms, edgeopt 0.9 ms: ratio 0.900 (0.890 to 0.910), they DIFFER"
    said = [sys.executable, "-c", "print('[ INFO ]    Median:        517.16 us')"]
    assert _median("benchmark_app", said, r"Median:\s+([\d.]+) (ms|us)", 1) == pytest.approx(0.51716)
    monkeypatch.setattr(crosscheck, "BARE_ONNXRUNTIME", "print(1000.0)")
    planted = cross_check(spec, rounds=MIN_WINDOWS, seconds=0.02)
    assert planted is not None
    assert (planted.p50_ms, planted.agrees) == (1000.0, False)
    assert planted.ratio == pytest.approx(planted.edgeopt_p50_ms / 1000), "edgeopt's over the tool's"
    with pytest.raises(BackendError, match="a bare loop of onnxruntime printed no median"):
        _median("a bare loop of onnxruntime", [sys.executable, "-c", "print('no number')"], r"^([\d.]+)$", 1)


@pytest.fixture
def typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[object, str]]:
    """``edgeopt bench`` of a small run without torch: its exit code and all that it said."""
    run = write_small_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)

    def bench_(*arguments: str) -> tuple[object, str]:
        command = ["bench", "--run", str(run.path), "--seconds", "0.3", "--starts", "1", *arguments]
        with without_torch(), pytest.raises(SystemExit) as ended:
            cli.main(command)
        return ended.value.code, "".join(capfd.readouterr())

    return bench_


def test_what_is_asked_of_bench_reaches_the_search_and_the_tool_and_is_said(
    typed: Callable[..., tuple[object, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crosscheck, "BARE_ONNXRUNTIME", "print(1000.0)")
    for name, quick in (("check_by_tool", {"rounds": MIN_WINDOWS, "seconds": 0.02}), ("search", {"seconds": 0.02})):
        monkeypatch.setattr(stage, name, functools.partial(getattr(stage, name), **quick))
    code, said = typed("--throughput", "--max-latency-ms", "0.000001", "--cross-check")
    assert code in (0, None), said
    assert re.search(r"onnxruntime/int8-u8a7w: a bare loop of onnxruntime 1000 ms, edgeopt .* they DIFFER", said), said
    record = json.loads((tmp_path / "run/device/onnxruntime/int8-u8a7w/latency.json").read_text())
    assert (record["throughput_search"]["cap_ms"], record["throughput_search"]["best"]) == (1e-6, None)
    assert {one["batch"] for one in record["throughput_search"]["tried"]} == {1}, "beyond the cap no batch grows"
    assert record["cross_check"]["agrees"] is False
    assert "a bare loop of onnxruntime measured 1000 ms beside" in (tmp_path / "run/report/report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--budget", "max_drop=1"], "max_drop: unknown key"),
        (["--budget", "min_speedup.eager=2"], "eager"),
        (["--baseline", "other.json"], "has schema 2; this edgeopt reads schema 1"),
        (["--baseline", "gone.json"], "does not exist"),
        (["--baseline", "others.json"], "are reports of different datasets"),
        (["--slower", "0.1"], "none is named"),
        (["--max-latency-ms", "5"], "set throughput as well"),
    ],
)
def test_what_is_wrong_with_a_budget_or_a_baseline_is_said_before_anything_is_measured(
    arguments: list[str], said: str, typed: Callable[..., tuple[object, str]], tmp_path: Path
) -> None:
    (tmp_path / "other.json").write_text('{"schema": 2}')
    own = write_report(tmp_path / "run").json.read_text()
    fingerprint = json.loads(own)["run"]["dataset"]["fingerprint"]
    (tmp_path / "others.json").write_text(own.replace(fingerprint, "0" * len(fingerprint)))
    path = tmp_path / "run/device/onnxruntime/int8-u8a7w/latency.json"
    before = path.stat().st_mtime_ns
    code, text = typed(*arguments)
    assert code == 1
    assert said in text
    assert path.stat().st_mtime_ns == before


def test_what_did_not_run_here_decides_nothing(tmp_path: Path) -> None:
    """Not by the figures that came along with it, nor by those of an earlier day."""
    run = write_small_run(tmp_path / "run")

    def status(*measured: str, trust: bool = False, failure: str = "") -> list[str]:
        result: Any = SimpleNamespace(engines=dict.fromkeys(measured), failures={INT8: failure} if failure else {})
        unmeasured = _unmeasured(run, result, trust_engine=trust)
        written = api.report(run, budget=Budget(max_size_mib=9), unmeasured=unmeasured)
        return [line.message.partition(" is ")[2] for line in written.report.budget]

    (met,) = status()
    assert met.startswith("met, measured 0.00")
    assert status(failure="no answer within 300 s\n  fix: look") == [
        "undecided, not measured; it could not be measured: no answer within 300 s"
    ]
    build_elsewhere(run)
    assert status() == ["undecided, not measured; it was not measured here: it was built on another kind of machine"]
    assert status(trust=True) == [met]
    build(run, "onnxruntime")
    (here,) = (key for key in run.engines() if key.startswith("onnxruntime@") and key.endswith("int8-u8a7w"))
    (judged,) = status(here)
    assert judged.startswith("met, measured 0.00"), "what is here is judged, and what is elsewhere is not"


def build_elsewhere(run: Run) -> None:
    """As if another machine had built all engines."""
    for path in run.path.glob("device/*/*/build.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "machine": "f" * 16}))


def test_a_baseline_is_held_against_pictures_and_not_against_engines_that_a_device_has(tmp_path: Path) -> None:
    run = write_small_run(tmp_path / "run")
    baseline = write_report(run.path).json.read_text()
    (tmp_path / "main.json").write_text(baseline)
    shutil.rmtree(run.path / "device")
    check_baseline(run, tmp_path / "main.json")
    (tmp_path / "main.json").write_text(baseline.replace("class 0", "another"))
    with pytest.raises(RunError, match="are reports of different datasets"):
        check_baseline(run, tmp_path / "main.json")


def test_what_was_timed_is_kept_when_a_search_after_it_is_interrupted(
    typed: Callable[..., tuple[object, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run/device/onnxruntime/int8-u8a7w/latency.json"
    before = path.read_text()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "search", interrupted)
    code, said = typed("--throughput")
    assert (code, "interrupted; nothing is lost" in said) == (130, True), said
    assert path.read_text() != before


@pytest.mark.parametrize(
    ("fault", "said"), [({"dies_at": 2}, "exit code 7"), ({"hangs_at": 2}, "no answer within 3 s")]
)
def test_an_engine_that_dies_or_hangs_while_it_is_judged_is_named_and_the_rest_is_measured(
    fault: dict[str, int],
    said: str,
    typed: Callable[..., tuple[object, str]],
    lab: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The engine of the float variant is another one, which has the fault."""
    planted, real = engine(lab, FLOAT, **fault).engine, stage._spec

    def spec(of: Engine, *, threads: int) -> EngineSpec:
        found = real(of, threads=threads)
        return replace(found, backend="tiny", engine=planted) if of.key == FLOAT else found

    monkeypatch.setattr(stage, "_spec", spec)
    monkeypatch.setattr(stage, "ANSWER_SECONDS", 3.0)
    for path in (lab / "run/device").glob("*/*/accuracy.json"):
        path.unlink()
    code, text = typed("--budget", "max_size_mib=9")
    assert code == 0, text
    assert (lab / "run/device" / INT8 / "accuracy.json").is_file()
    assert not (lab / "run/device" / FLOAT / "accuracy.json").is_file()
    (line,) = (line for line in text.splitlines() if line.startswith(f"not measured here: {FLOAT} ("))
    assert said in line


def test_the_compiled_original_is_the_same_engine_through_torch_compile(lab: Path) -> None:
    original = engine(lab, "pytorch/float")
    compiled = stage._compiled_spec(original)
    assert compiled.key == "pytorch-compiled/float"
    assert (compiled.engine, compiled.precision, compiled.backend) == (original.engine, "fp32", original.backend)
    assert (original.target.session.compile, compiled.target.session.compile) == (False, True)


@pytest.mark.slow
def test_benchmark_app_times_an_openvino_engine(path_run: Run) -> None:
    from edgeopt.bench.crosscheck import cross_check
    from edgeopt.stages.engines import engines, sets_folder

    built = next(one for key, one in engines(path_run).items() if key.startswith("openvino/int8-"))
    spec = EngineSpec(built.key, "openvino", built.path, built.target, "int8").completed(
        pictures=sets_folder(path_run, built.preprocess), preprocess=built.preprocess_path, threads=1
    )
    found = cross_check(spec, rounds=1, seconds=0.2)
    assert found is not None
    assert found.tool == "benchmark_app"
    assert found.p50_ms > 0


def test_engines_are_started_anew_and_what_differs_between_processes_is_in_the_interval(lab: Path) -> None:
    steady = engine(lab, "here/steady", by_start=[{"ms": 8.0}, {"ms": 8.0}])
    moody = engine(lab, "here/moody", by_start=[{"ms": 8.0}, {"ms": 12.0}])
    failing = engine(lab, "here/failing", by_start=[{"ms": 8.0}, {"refuse": True}])
    result = run(lab, steady, moody, failing, seconds=6.0)
    ratio = result.ratio("here/moody", "here/steady")  # 1 in the first half, two thirds in the second
    assert ratio.low == pytest.approx(2 / 3, rel=0.15)
    assert ratio.high == pytest.approx(1.0, rel=0.15)
    by_start, _ = result.ratio_by_start("here/moody", "here/steady")
    assert len(by_start) == 2
    assert ratio.low <= min(by_start) < max(by_start) <= ratio.high
    assert sum(result.engines["here/moody"].starts) == result.rounds
    assert list(result.failures) == ["here/failing"]
    assert result.starts == 2
    assert {len(one.windows) for one in result.engines.values()} == {result.rounds}
    opened = {key: lab / f"here-{key}.starts" for key in ("steady", "moody", "failing")}
    first, second = ([float(path.read_text().split()[n]) for path in opened.values()] for n in (0, 1))
    assert max(first) < min(second)  # all of them, not one after its rounds
    assert np.argsort(first).tolist() != np.argsort(second).tolist()  # and in another order


def test_measuring_stops_early_when_the_ratios_are_known(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LONGEST_WINDOW", 0.02)
    result = run(lab, engine(lab, "here/slow", ms=4.0), engine(lab, "here/fast", ms=2.0), seconds=60.0, width=5.0)
    assert result.rounds == 2 * protocol.ROUNDS_BEFORE_STOPPING  # of each start
    assert result.seconds < 30.0


def test_windows_take_turns_one_engine_at_a_time_and_no_garbage_is_collected_in_them(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LONGEST_WINDOW", 0.02)
    names = ("a", "b", "c")
    specs = [engine(lab, f"here/{name}", ms=1.0, untidy=True, log=str(lab / f"{name}.log")) for name in names]
    result = run(lab, *specs, seconds=2.0, starts=1, width=0.0)
    assert not result.failures
    calls = sorted((float(line), name) for name in names for line in (lab / f"{name}.log").read_text().split())
    turns = [name for place, (_, name) in enumerate(calls) if place == 0 or calls[place - 1][1] != name]
    # Opened and warmed up, then a turn each a round: two at least are seen, if one ends a round and begins the next.
    assert 2 * result.rounds <= len(turns) - 3 <= 3 * result.rounds
    assert len(set(itertools.pairwise(turns[3:]))) > 3, "who always came after the same other was slower for it"


def test_stopped_children_use_no_cpu_though_their_threads_spin(lab: Path) -> None:
    spec = engine(lab, "here/spinning", spin=True, ms=1.0)
    child = Child(spec.completed(pictures=lab / "pictures", preprocess=lab / "preprocess.json", threads=1))
    try:
        child.open(60)
        awake = child.cpu_seconds()
        for _ in range(100):  # a busy machine may give it little at a time
            child.window(0.1, 1, 60)
            if child.cpu_seconds() - awake >= 0.1:
                break
        threads = list(Path(f"/proc/{child.pid}/task").iterdir())
        assert len(threads) > 1
        until = time.monotonic() + 10  # the stop signal is asynchronous
        while any(") T " not in (thread / "stat").read_text() for thread in threads) and time.monotonic() < until:
            time.sleep(0.02)
        asleep = child.cpu_seconds()
        assert asleep - awake >= 0.1  # while it is asked, it works...
        time.sleep(0.5)
        assert child.cpu_seconds() == asleep  # ...and in between it takes nothing
    finally:
        child.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can tell a child to die with its parent")
def test_stopped_children_do_not_outlive_a_killed_parent(lab: Path) -> None:
    spec = engine(lab, "here/orphan").completed(
        pictures=lab / "pictures", preprocess=lab / "preprocess.json", threads=1
    )
    code = (
        "import json, sys; from edgeopt.bench.child import Child; from edgeopt.bench.spec import EngineSpec\n"
        "child = Child(EngineSpec.from_json(json.load(sys.stdin))); child.open(60); print(child.pid, flush=True)\n"
        "import time; time.sleep(60)"
    )
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=paths, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(json.dumps(spec.to_json()))
        parent.stdin.close()
        stat = Path(f"/proc/{parent.stdout.readline().strip()}/stat")
        assert stat.is_file()
        parent.kill()
        parent.wait()
    until = time.monotonic() + 10
    while stat.is_file() and ") Z " not in stat.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert not stat.is_file() or ") Z " in stat.read_text()


def test_modules_of_the_working_directory_are_not_imported(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/numpy.py").write_text("raise RuntimeError('a run folder from a stranger was trusted')")
    monkeypatch.chdir(tmp_path / "here")
    assert not run(lab, engine(lab, "here/x", ms=1.0), seconds=0.1).failures


def test_a_child_that_dies_hangs_or_refuses_is_named_and_the_rest_is_measured(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "GRACE_SECONDS", 4.0)
    monkeypatch.setattr(protocol, "WARM_UP_SECONDS", 0.01)
    # More calls than opening and warming up make, and no more than two windows: these fail in the middle of one.
    result = run(
        lab,
        engine(lab, "here/good", ms=1.0),
        engine(lab, "here/dies", ms=1.0, dies_at=30),
        engine(lab, "here/hangs", ms=1.0, hangs_at=30),
        engine(lab, "here/refuses", refuse=True),
        engine(lab, "here/nan", nan=True),
        engine(lab, "here/late", ms=1.0, nan_from=30),
        engine(lab, "here/flat", flat=True),
        seconds=3.0,
        timeout=120.0,
    )
    assert list(result.engines) == ["here/good"]
    assert result.rounds >= 6  # waiting for the one that hangs did not use up the time of the others
    assert "exit code 7" in result.failures["here/dies"]
    assert "no answer within" in result.failures["here/hangs"]
    assert "another version" in result.failures["here/refuses"]
    assert "build it again" in result.failures["here/refuses"]
    assert "not finite" in result.failures["here/nan"]
    assert "not finite" in result.failures["here/late"]
    assert "answered (4,) for 1" in result.failures["here/flat"]
    with pytest.raises(BackendError, match=r"here/dies has no measurement: the process ended \(exit code 7\)"):
        result.ratio("here/dies", "here/good")


def without_pictures(lab: Path) -> Path:
    """The same lab with a test set of none."""
    copy = lab / "empty"
    shutil.copytree(lab / "pictures", copy / "pictures")
    shutil.copy(lab / "preprocess.json", copy)
    np.save(copy / "pictures/test.npy", np.zeros((0, 16, 16, 3), np.uint8))
    np.save(copy / "pictures/test.labels.npy", np.zeros(0, np.int64))
    stated = json.loads((copy / "pictures/test.json").read_text())
    hashes = {name: sha256(copy / "pictures" / name) for name in stated["sha256"]}
    (copy / "pictures/test.json").write_text(json.dumps({**stated, "paths": [], "sha256": hashes}))
    return copy


def test_nothing_left_to_measure_is_an_error_that_says_why(lab: Path) -> None:
    with pytest.raises(BackendError, match="another version"):
        run(lab, engine(lab, "here/refuses", refuse=True))
    with pytest.raises(BackendError, match=r"the test set in .* is empty") as empty:
        run(without_pictures(lab), engine(lab, "here/x"))
    assert "edgeopt export" in str(empty.value.fix)
    with pytest.raises(BackendError, match="does not exist"):
        run(lab, EngineSpec("here/gone", "tiny", lab / "gone.engine", TARGET, "fp32"))
    with pytest.raises(BackendError, match='unknown backend "tinny"'):
        run(lab, EngineSpec("here/typo", "tinny", lab / "gone.engine", TARGET, "fp32"))
    with pytest.raises(ConfigError, match="twice: here/a"):
        run(lab, engine(lab, "here/a"), engine(lab, "here/a"))
    with pytest.raises(ConfigError, match="no engine"):
        run(lab)


def test_records_hold_every_number_its_baselines_and_the_machine(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LONGEST_WINDOW", 0.02)
    monkeypatch.setattr(environment, "temperature_c", iter([41.0, 72.0]).__next__)
    batched = TARGET.model_copy(update={"batch": 8})
    elsewhere = TARGET.model_copy(update={"match": Match(board="Raspberry Pi 5")})
    result = run(
        lab,
        engine(lab, "pytorch/float", ms=8.0),
        engine(lab, "pytorch-compiled/float", ms=6.0),
        engine(lab, "here/float", ms=4.0, target=elsewhere),
        engine(lab, "here/int8", precision="int8", target=elsewhere, allocate=200_000_000),
        engine(lab, "there/int8", precision="int8", target=batched),
        seconds=5.0,
    )
    run_path = lab / "run"
    written = write_records(run_path, result, original="pytorch/float", compiled="pytorch-compiled/float")
    assert len(written) == 5
    record = json.loads((run_path / "device/here/int8/latency.json").read_text())
    assert record["schema"] == 1
    assert (record["target"], record["variant"], record["precision"], record["batch"]) == ("here", "int8", "int8", 1)
    assert [record[name]["temperature_c"] for name in ("measured_on", "measured_on_after")] == [41.0, 72.0]
    assert (record["p99_ms"] is not None) == (record["samples"] >= 1000)
    assert record["p50_ms"] <= record["p90_ms"]
    assert record["p50_ci_ms"][0] <= record["p50_ms"] <= record["p50_ci_ms"][1]
    assert [(r["baseline"], r["kind"], r["precision"]) for r in record["ratios"]] == [
        ("pytorch/float", "original", "fp32"),
        ("pytorch-compiled/float", "compiled", "fp32"),
        ("here/float", "float", "fp32"),
    ]
    assert record["fits_target"] is False
    assert record["threads"] == 1
    assert record["session"] == {"batch_seen": 1, "threads": "1"}
    assert record["measured_on"]["cpu"]["cores"] >= 1
    assert record["bench"]["id"] == result.id
    beside = json.loads((run_path / "device/here/float/latency.json").read_text())
    assert [one["kind"] for one in beside["ratios"]] == ["original", "compiled"], "int8 is no baseline of its float"
    other = json.loads((run_path / "device/there/int8/latency.json").read_text())
    assert other["batch"] == other["session"]["batch_seen"] == 8
    assert other["fits_target"] is True
    assert record["peak_memory_bytes"] - other["peak_memory_bytes"] > 150e6
    (against,) = json.loads((run_path / "device/pytorch/float/latency.json").read_text())["ratios"]
    assert (against["kind"], against["speedup"] < 1) == ("compiled", True)
    assert record["ratios"][0]["speedup"] > record["ratios"][1]["speedup"] > record["ratios"][2]["speedup"] > 1.0


def _result(windows: list[list[float]], load: float | None = 0.0) -> EngineResult:
    spec = EngineSpec("here/x", "tiny", Path("x"), TARGET, "fp32")
    return EngineResult(spec, tuple(map(tuple, windows)), 0.1, 1, {}, load, True)


@pytest.mark.parametrize(("stated", "timed"), [((1, 1), 1), ((1, 2), allotment.usable_cores())])
def test_engines_are_timed_with_equal_threads_whatever_their_targets_state(
    stated: tuple[int, int], timed: int, tmp_path: Path
) -> None:
    run = write_small_run(tmp_path / "run")
    text = resources.find("targets", "onnxruntime").read_text(encoding="utf-8")
    names = [f"{name}-{count}" for name, count in zip("ab", stated, strict=True)]
    for name, count in zip(names, stated, strict=True):
        (tmp_path / f"{name}.toml").write_text(f"{text}[session]\nthreads = {count}\n")
        api.build(run, str(tmp_path / f"{name}.toml"), variants=["int8-u8a7w"])
    with without_torch():
        api.bench(run, targets=[str(tmp_path / f"{name}.toml") for name in names], seconds=0.5, starts=1)
    records = [json.loads((run.path / f"device/{name}/int8-u8a7w/latency.json").read_text()) for name in names]
    assert [(one["threads"], one["session"]["threads"]) for one in records] == [(timed, timed)] * 2


def test_p99_needs_a_thousand_samples_and_intervals_need_windows() -> None:
    rng = np.random.default_rng(0)
    few = _result(rng.normal(5, 0.1, (5, 100)).tolist()).to_json()
    assert few["p99_ms"] is few["p99_ci_ms"] is few["p50_ci_ms"] is None
    assert few["stable"] is False
    many = _result(rng.normal(5, 0.1, (20, 2000)).tolist()).to_json()
    assert many["p99_ms"] == pytest.approx(5.23, abs=0.02)
    assert many["stable"] is True
    assert many["samples"] == 40_000
    assert len(many["samples_ms"]) == 20_000
    assert many["samples_kept_every"] == 2


def test_a_wandering_machine_is_called_unstable() -> None:
    windows = [[5.0 * 1.3 ** (i % 5)] * 20 for i in range(20)]
    assert _result(windows).to_json()["stable"] is False


def test_a_busy_machine_is_called_unstable_however_narrow_the_interval() -> None:
    windows = [[5.0] * 20] * 20
    assert [_result(windows, load).stable for load in (None, 0.0, 0.9)] == [True, True, False]


def test_the_load_of_others_is_all_but_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([(9.0, 1.0), (9.9, 1.1), (18.0, 2.0), (18.5, 2.0)])
    own, clock = iter([1.0, 1.6, 5.0, 5.5]), iter([0.0, 1.0, 3.0, 3.5])
    monkeypatch.setattr(load, "_busy_seconds", lambda: next(ticks))
    monkeypatch.setattr(load, "monotonic", lambda: next(clock))
    monkeypatch.setattr(load, "_STAT", Path(__file__))
    found = load.OtherLoad()
    assert found.cores is None
    with found.watch(lambda: next(own)):
        pass
    assert found.cores == pytest.approx(0.4)
    with found.watch(lambda: next(own)):
        pass
    assert found.cores == pytest.approx(0.4 / 1.5)
    assert found.by_window() == {"other_cores": [0.3, 0.0], "steal_cores": [0.1, 0.0]}


def test_busy_and_stolen_time_are_told_from_idle_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stat").write_text("cpu  100 20 30 5000 400 6 7 800 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    monkeypatch.setattr(load, "_STAT", tmp_path / "stat")
    tick = os.sysconf("SC_CLK_TCK")
    assert load._busy_seconds() == (163 / tick, 800 / tick)  # user, nice, system, irq and softirq; stolen


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="the load of others is read from /proc/stat")
def test_the_machines_busy_time_holds_ones_own() -> None:
    before, until = load._busy_seconds()[0], time.process_time() + 0.3
    while time.process_time() < until:
        pass
    assert load._busy_seconds()[0] - before >= 0.25


def test_measuring_goes_on_while_any_ratio_is_wide() -> None:
    def runner(medians: list[float]) -> _Runner:
        one = _Runner.__new__(_Runner)
        one.medians, one.starts = medians, [len(medians)]
        return one

    first, same, noisy = [1.0] * 12, [2.0] * 12, [2.0 * 1.2 ** (i % 3) for i in range(12)]
    assert _known({"a": runner(first), "b": runner(same)}, 12, 0.03)
    assert not _known({"a": runner(first), "b": runner(same), "c": runner(noisy)}, 12, 0.03)
    assert not _known({"a": runner(first[:8]), "b": runner(same[:8])}, 8, 0.03)
    assert not _known({"a": runner(first)}, 12, 0.03)


def test_accuracy_record_compares_with_the_original_on_the_same_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    logits = rng.normal(0, 1, (200, 4)).astype(np.float32)
    logits[np.arange(200), labels] += 4
    original = accuracy_record(logits, labels, list("abcd"), key="pytorch/float")
    assert original["drop_points"] is None
    assert original["baseline"] is None
    assert original["top5"] is None
    worse = logits.copy()
    wrong = [i for i in range(200) if original["predictions"][i] == labels[i]][:6]
    worse[wrong, (labels[wrong] + 1) % 4] = 99
    record = accuracy_record(
        worse,
        labels,
        list("abcd"),
        key="here/int8",
        baseline="pytorch/float",
        baseline_predictions=original["predictions"],
        parity=int8_parity(logits, worse),
    )
    write_accuracy(tmp_path / "device/here/int8", record)
    read = json.loads((tmp_path / "device/here/int8/accuracy.json").read_text())
    assert read == record
    assert read["drop_points"] == pytest.approx(3.0)
    assert read["drop"]["lost"] == 6
    assert read["agreement"] == pytest.approx(0.97)
    assert read["drop_lower_points"] < 3.0 < read["drop_upper_points"]
    assert read["parity"]["ok"] is False
    assert np.array(read["confusion"]).sum() == read["n"] == 200
    assert sum(row["correct"] for row in read["per_class"].values()) == round(read["top1"] * 200)


def test_accuracy_record_refuses_what_does_not_fit() -> None:
    logits = np.zeros((3, 2), dtype=np.float32)
    with pytest.raises(DataError, match="do not fit"):
        accuracy_record(logits, np.zeros(4, dtype=np.int64), ["a", "b"], key="here/x")
    logits[0, 0] = math.inf
    with pytest.raises(BackendError, match="not finite"):
        accuracy_record(logits, np.zeros(3, dtype=np.int64), ["a", "b"], key="here/x")


def test_a_windows_first_iterations_are_thrown_away_and_pictures_rotate() -> None:
    class Recorder(Session):
        seen: ClassVar[list[float]] = []

        def _infer(self, batch: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
            self.seen.append(float(batch[0, 0, 0, 0]))
            time.sleep(0.03 if len(self.seen) == 1 else 0.006)
            return np.zeros((1, 2), dtype=np.float32)

        def device_ms(self) -> float:
            return 0.5 * len(self.seen)  # of the call before

    samples, device, calls = window(Recorder(), [np.full((1, 3, 2, 2), i, np.float32) for i in range(3)], 0.0, 7)
    assert (len(samples), calls) == (7, 9)
    assert device == [0.5 * number for number in range(3, 10)]
    assert max(samples) < 30
    assert Recorder.seen == [0, 1, 0, 1, 2, 0, 1, 2, 0]


def test_what_is_thrown_away_lasts_ten_milliseconds_however_short_a_call_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]
    monkeypatch.setattr(worker, "perf_counter_ns", lambda: now[0])

    class Stepping(Session):
        def _infer(self, batch: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
            now[0] += 3_000_000
            return np.zeros((1, 2), dtype=np.float32)

    samples, _, calls = window(Stepping(), [np.zeros((1, 3, 2, 2), np.float32)], 0.1, 7)
    assert calls - len(samples) == 4  # 12 ms; after three it was 9
    assert samples == [3.0] * 34  # until 0.1 s are over
