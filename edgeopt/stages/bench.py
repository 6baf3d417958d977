"""Measure a run's engines that work on this machine: accuracy on the test set, latency by interleaved windows."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from edgeopt import allotment, environment, records
from edgeopt.bench import EngineSpec, write_records
from edgeopt.bench import bench as measure
from edgeopt.bench.child import Child
from edgeopt.bench.crosscheck import CrossCheck
from edgeopt.bench.crosscheck import cross_check as check_by_tool
from edgeopt.bench.records import accuracy_record, write_accuracy
from edgeopt.bench.result import BenchResult
from edgeopt.bench.throughput import Search, search
from edgeopt.config import BenchConfig, SessionOptions, Target, load_target, validate
from edgeopt.console import Console, Silent
from edgeopt.errors import BackendError, ConfigError, EdgeoptError, MissingStageError
from edgeopt.evaluate import Evaluation, judged
from edgeopt.evaluate import evaluate as evaluate_session
from edgeopt.preprocess import PreprocessSpec
from edgeopt.run import Run, stage_key
from edgeopt.run.folder import STALE
from edgeopt.sets import PictureSet, open_set
from edgeopt.stages.build_plan import target_folder
from edgeopt.stages.engines import (
    Engine,
    engines,
    labels,
    left_out,
    pick_engine,
    require_torch,
    sets_folder,
    usable_engines,
)

ORIGINAL_TARGET = Target(schema=1, name="pytorch", title="PyTorch, eager", backend="pytorch", precision="fp32")
#: How long an engine may take to open, or to answer a piece of the test set, before it counts as hanging.
ANSWER_SECONDS = 300.0
_PIECE = 16  # pictures
#: The target, in name only, of the original through torch.compile.
COMPILED = "pytorch-compiled"


def bench(
    run: Run,
    *,
    targets: Sequence[str] = (),
    seconds: float = 20.0,
    starts: int = 2,
    width: float = 0.03,
    threads: int = 0,
    compiled: bool = False,
    throughput: bool = False,
    max_latency_ms: float | None = None,
    cross_check: bool = False,
    trust_engine: bool = False,
    console: Console | None = None,
) -> BenchResult:
    """Measure the engines of ``targets`` (default: all) and the PyTorch original; writes accuracy and latency records.

    ``seconds`` is for the timing of all engines together, less when every ratio to the original is known to ``width``
    of itself, and divided among ``starts`` of new processes for all; accuracy comes on top and is kept while an engine
    is unchanged. ``trust_engine`` measures engines that were built on another machine as well. ``compiled`` times the
    original through torch.compile too; ``throughput`` searches batches and processes for the most pictures a second
    with calls of at most ``max_latency_ms`` (p90); ``cross_check`` times each engine by its runtime's own tool as well.
    Raises MissingStageError when nothing was built for this machine.
    """
    stated: dict[str, Any] = {
        "seconds": seconds,
        "starts": starts,
        "width": width,
        "threads": threads,
        "compiled": compiled,
        "throughput": throughput,
        "max_latency_ms": max_latency_ms,
        "cross_check": cross_check,
    }
    config, console = validate(BenchConfig, stated, where="bench options"), console or Silent()
    run.require_own()
    with run.lock():
        _list_pytorch(run)
        chosen = _chosen(run, targets, trust_engine, console)
        # Engines of another device (TensorRT without a GPU) are named below; the original is still worth measuring.
        if not chosen or not any(engine.record["backend"] != "pytorch" for engine in engines(run).values()):
            raise MissingStageError(
                f"{run.path} has no engine that runs on this machine", fix="edgeopt build --target onnxruntime"
            )
        for key, reason in left_out(run, trust_engine=trust_engine).items():
            console.say(f"not measured here: {key} ({reason})")
        original = _original_key(run)
        chosen.sort(key=lambda engine: engine.key != original)
        failures = _judge(chosen, console)
        timed = [engine for engine in chosen if engine.record["backend"] != "pytorch" or engine.key == original]
        timed = [engine for engine in timed if engine.key not in failures]
        if not timed:  # simulated int8 variants alone are left, which are judged and not timed
            raise BackendError("no engine is left to time", fix="edgeopt build --target onnxruntime --force")
        result = _latency(run, timed, config, console)
    return replace(result, failures={**failures, **result.failures})


def _judge(chosen: Sequence[Engine], console: Console) -> dict[str, str]:
    """Sees to it that the accuracy of all is known; says and gives why those that fail do. Raises when all fail."""
    failures: dict[str, EdgeoptError] = {}
    for engine in chosen:
        try:
            _accuracy(engine, console, apart=True)
            for checked in (engine.path, _pictures(engine)):  # what timing opens, in processes of its own
                assert checked.exists()
        except EdgeoptError as error:
            failures[engine.key] = error
            console.say(f"not measured here: {engine.key} ({error.message})")
    if len(failures) == len(chosen):
        raise next(iter(failures.values()))
    return {key: error.message for key, error in failures.items()}


def _chosen(run: Run, targets: Sequence[str], trust_engine: bool, console: Console) -> list[Engine]:
    """The engines to measure: those of ``targets`` that run here and come from the run's original as it is now."""
    names = {profile.name: profile.build_command for profile in map(load_target, targets)}
    built = {str(engine.record["target"]) for engine in engines(run).values()}
    for name in sorted(names.keys() - built):
        raise MissingStageError(f"{run.path} has no engine of {name}", fix=names[name])
    original = run.original()
    usable = usable_engines(run, trust_engine=trust_engine)
    stale = {key for key, engine in usable.items() if run.stale(engine.variant)}
    for key in sorted(stale):
        console.say(f"not measured here: {key} ({STALE})")
    return [
        engine
        for key, engine in usable.items()
        if key not in stale
        # Another trained model's engines would be compared with a model they do not come from.
        and run.root_of(engine.variant) == original
        and (not names or engine.record["target"] in names or engine.record["backend"] == "pytorch")
    ]


def evaluate(
    run: Run,
    key: str | None = None,
    *,
    variant: str | None = None,
    trust_engine: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Accuracy of one engine (default: the int8 one built last) on the test set, written beside the engine.

    ``variant`` instead names a variant, judged in PyTorch, or an ensemble, whose paired difference to its best member
    is in the answer. In a run that cannot be written it is only answered. ``trust_engine`` opens an engine that was
    built on another machine as well.
    """
    console = console or Silent()
    run.require_own()
    if variant is not None:
        if key is not None:
            raise ConfigError("an engine and a variant are named, and one is judged", fix="leave one of them out")
        require_torch()
        if variant in run.ensembles():
            from edgeopt.stages.voters import evaluate_ensemble

            return evaluate_ensemble(run, variant, console=console)
        run.variant(variant)
        key = f"{ORIGINAL_TARGET.name}/{variant}"
    if not os.access(run.path, os.W_OK):
        engine = pick_engine(run, key, trust_engine=trust_engine)
        return {"engine": engine.key, **_accuracy(engine, console, keep=False)}
    with run.lock():
        _list_pytorch(run, also=variant)
        engine = pick_engine(run, key, trust_engine=trust_engine)
        record = _accuracy(engine, console)
    return {"engine": engine.key, **record}


def _original_key(run: Run) -> str:
    """The original's engine: this machine's where torch is, else the one that came along with its figures."""
    keys = [
        key
        for key, engine in engines(run).items()
        if engine.record["backend"] == "pytorch" and engine.variant == run.original()
    ]
    usable = [key for key in keys if not engines(run)[key].unusable()]
    return (usable or keys or [f"{ORIGINAL_TARGET.name}/{run.original()}"])[-1]


def _list_pytorch(run: Run, also: str | None = None) -> None:
    """Where torch is, the original and the simulated int8 variants are engines as well: of the target ``pytorch``."""
    if importlib.util.find_spec("torch") is None:
        return
    for name, record in run.variants().items():
        step = record.get("fold") or (record.get("parent") is not None and record.get("scheme") is None)
        if step and name != also:
            continue  # a pruned float model, or that of a fold, is a step on the way, not a result
        key = stage_key(
            inputs={"model": run.stated(record, "model")[1], "machine": environment.machine_id()},
            config={},
            version=1,
        )
        folder = target_folder(run, ORIGINAL_TARGET.name)
        stage = run.stage(folder, name, record="build.json", key=key, outdated=lambda _: True)
        if not stage.done:
            stage.commit(
                outputs={"model.safetensors": run.output(record, "model")},
                stage="build",
                target=ORIGINAL_TARGET.name,
                target_folder=stage.folder.parent.name,
                profile=ORIGINAL_TARGET.model_copy(update={"session": SessionOptions(threads=0)}).model_dump(
                    mode="json", by_alias=True
                ),
                backend="pytorch",
                variant=name,
                precision="int8" if record.get("scheme") else "fp32",
                simulated=bool(record.get("scheme")),
                scheme=record.get("scheme"),
                engine="model.safetensors",
                runs_here=True,
            )


def test_set(engine: Engine) -> PictureSet:
    """The prepared test pictures in the engine's preprocessing, made from the dataset where the host half is."""
    return prepared_test(engine.run, engine.preprocess)


def prepared_test(run: Run, spec: PreprocessSpec) -> PictureSet:
    """The test pictures as ``spec`` prepares them, made from the dataset where the host half is."""
    folder = sets_folder(run, spec)
    if not (folder / "test.json").is_file() and importlib.util.find_spec("torch") is not None:
        from edgeopt.stages.workspace import open_workspace

        return open_workspace(run).prepared("test", spec)
    return open_set(folder, "test")


def _accuracy(engine: Engine, console: Console, *, keep: bool = True, apart: bool = False) -> dict[str, Any]:
    """The engine's ``accuracy.json``: the one at hand when it is of this very engine, else measured now.

    ``apart``: in a process of its own, so that one that dies or hangs takes nobody with it.
    """
    path = engine.folder / "accuracy.json"
    original_key = _original_key(engine.run)
    reference = _reference(engine, original_key)
    baseline = original_key if reference else None
    baseline_key = reference.get("build_key") if reference else None
    if path.is_file():
        record = records.read(records.AccuracyRecord, path)
        complete = baseline is None or record.get("class_drops") is not None  # older ones have none
        made_of = (engine.record["key"], baseline, baseline_key)
        if made_of == (record.get("build_key"), record.get("baseline"), record.get("baseline_key")) and complete:
            return record
    pictures = test_set(engine)
    with console.task(f"accuracy of {engine.key}") as progress:
        if apart and engine.record["backend"] != "pytorch":
            answers = _judged_apart(engine, pictures, progress)
        else:
            with engine.open() as session:
                answers = evaluate_session(session, pictures, engine.preprocess, progress=progress)
    record = accuracy_record(
        answers.logits,
        pictures.labels,
        labels(engine.run),
        key=engine.key,
        baseline=baseline,
        baseline_predictions=reference["predictions"] if reference else None,
        temperature=engine.temperature,
    )
    record |= {"build_key": engine.record["key"], "baseline_key": baseline_key}
    if keep:
        write_accuracy(engine.folder, record)
        if engine.record["backend"] == "pytorch":  # its gradients say where a mistake was seen
            from edgeopt.stages.explain import explain

            explain(engine, record, pictures)
    return record


def _judged_apart(engine: Engine, pictures: PictureSet, progress: Callable[[int, int], None]) -> Evaluation:
    """The engine's answers, given in a process of its own; BackendError when that dies or does not answer."""
    child, count = Child(_spec(engine, threads=allotment.usable_cores())), len(pictures)
    try:
        child.open(ANSWER_SECONDS)
        pieces = ((first, min(_PIECE, count - first)) for first in range(0, count, _PIECE))
        return judged((child.logits(*piece, ANSWER_SECONDS) for piece in pieces), pictures, progress=progress)
    finally:
        child.close()


def _spec(engine: Engine, *, threads: int) -> EngineSpec:
    """The engine as a process opens it."""
    return EngineSpec(
        key=engine.key,
        backend=str(engine.record["backend"]),
        engine=engine.path.absolute(),
        target=engine.target,
        precision=engine.precision,
        threads=threads,
        pictures=_pictures(engine).absolute(),
        preprocess=engine.preprocess_path.absolute(),
    )


def _reference(engine: Engine, original_key: str) -> dict[str, Any] | None:
    """The figures of the original, to compare with; None for itself, and where they are of earlier weights."""
    path = engine.run.path / "device" / original_key / "accuracy.json"
    if engine.key == original_key or not path.is_file():
        return None
    record = records.read(records.AccuracyRecord, path)
    now = engines(engine.run).get(original_key)
    return record if now is None or record.get("build_key") in (None, now.record["key"]) else None


def _threads(timed: Sequence[Engine], console: Console) -> int:
    """Threads for all alike, so that ratios compare: what the targets state where they agree, else every core (0)."""
    stated = {engine.target.session.threads for engine in timed if engine.target.session.threads}
    if len(stated) > 1:
        console.say(
            f"targets state {', '.join(map(str, sorted(stated)))} threads; all are timed with every core "
            "(--threads N or --target NAME to choose)"
        )
    return min(stated.pop(), allotment.usable_cores()) if len(stated) == 1 else 0


def _latency(run: Run, timed: Sequence[Engine], config: BenchConfig, console: Console) -> BenchResult:
    threads = config.threads or _threads(timed, console)
    specs = [_spec(engine, threads=threads) for engine in timed]
    original = _original_key(run)
    compiled = _compiled_spec(specs[0]) if config.compiled and specs[0].key == original else None
    if compiled is not None:
        specs.append(compiled)
    elif config.compiled:
        console.say("the compiled original is not timed here: torch is not installed")
    first = timed[0]
    with console.task(f"timing {len(specs)} engines") as progress:
        result = measure(
            specs,
            pictures=_pictures(first),
            preprocess=first.preprocess_path,
            seconds=config.seconds,
            starts=config.starts,
            width=config.width,
            samples=samples if (samples := run.data / "samples").is_dir() else None,
            threads=threads,
            progress=progress,
        )
    for key, reason in result.failures.items():
        console.say(f"{key} could not be timed: {reason}")
        (run.path / "device" / key / "latency.json").unlink(
            missing_ok=True
        )  # of an earlier session: not its figure now
    for old in run.path.glob(f"device/{COMPILED}/*/latency.json"):
        old.unlink()  # of another session: its milliseconds do not belong beside these
    write = partial(
        write_records,
        run.path,
        result,
        original=original if original in result.engines else None,
        compiled=compiled.key if compiled else None,
    )
    write()  # what follows may be interrupted
    found = _throughput(run, specs, result, config, console) if config.throughput else None
    if found is not None:
        write(throughput=found)
    if config.cross_check:
        write(throughput=found, cross_checks=_cross_checks(result, console))
    return result


def _cross_checks(result: BenchResult, console: Console) -> dict[str, CrossCheck]:
    """Every engine that was timed by its runtime's own tool as well, those that have one."""
    found: dict[str, CrossCheck] = {}
    with console.task("cross-checking") as progress:
        for done, (key, engine) in enumerate(result.engines.items()):
            progress(done, len(result.engines))
            try:
                checked = check_by_tool(engine.spec)
            except BackendError as error:
                console.say(f"{key}: not cross-checked: {error.message}")
                continue
            if checked is None:
                console.say(f"{key}: not cross-checked: its runtime has no tool of its own here")
            else:
                found[key] = checked
                console.say(f"{key}: {checked}")
    return found


def _compiled_spec(original: EngineSpec) -> EngineSpec:
    """The original, run through torch.compile."""
    session = original.target.session.model_copy(update={"compile": True})
    target = original.target.model_copy(update={"name": COMPILED, "title": "PyTorch, compiled", "session": session})
    return replace(original, key=f"{COMPILED}/{original.key.rpartition('/')[2]}", target=target)


def _throughput(
    run: Run, specs: Sequence[EngineSpec], result: BenchResult, config: BenchConfig, console: Console
) -> dict[str, Search]:
    """The best setting of every engine that could be timed."""
    found: dict[str, Search] = {}
    cores = allotment.usable_cores()
    with console.task("searching for throughput") as progress:
        for done, spec in enumerate(specs):
            progress(done, len(specs))
            if spec.key not in result.engines or spec.target.session.compile:  # it would compile for every batch
                continue
            try:
                found[spec.key] = search(result.engines[spec.key].spec, cores=cores, cap_ms=config.max_latency_ms)
            except BackendError as error:
                console.say(f"{spec.key}: no throughput was found: {error.message}")
    return found


def _pictures(engine: Engine) -> Path:
    """The folder of the engine's test set, its hashes checked; the processes that time do not check them again."""
    folder = sets_folder(engine.run, engine.preprocess)
    open_set(folder, "test")
    return folder
