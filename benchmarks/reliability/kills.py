"""Kill the path at many moments and see that nothing is lost.

    python benchmarks/reliability/kills.py --kills 200 --out benchmarks/reliability/kills.json

A tiny run is taken through finetune, compress, build, bench and report once, undisturbed, and the run folder is kept as
it was before each step. Then each trial takes such a folder, starts the step in a process of its own and ends that with
SIGKILL: at a random time, or before or after its k-th fsync, rename, removal or new folder. What was committed before
must be untouched; the same step, started again, must end, and leave the files an undisturbed one leaves, hash by hash
(fp32, one thread, one memory format; figures that are times are not compared).

Processes are forked from one that has imported everything, so that a trial costs what the step costs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import nncf  # noqa: E402, F401 - imported once, here, and forked
import openvino  # noqa: E402, F401
import timm  # noqa: E402, F401
import torch  # noqa: E402
from conftest import paint_folder  # noqa: E402

from edgeopt import CompressConfig, DataConfig, ModelConfig, Run, TrainConfig, api  # noqa: E402
from edgeopt.files import read_json, sha256  # noqa: E402
from edgeopt.stages import bench, compress, finetune  # noqa: E402, F401 - loaded here, not in every fork

#: What a crash can fall between: calls that make something last, or take it away.
EVENTS = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir")
_EXCLUDED = ("metrics",)  # metrics.json has seconds in it
_TIMES = ("layer_times.json",)  # whole, but no build takes as long as another


@dataclass(frozen=True)
class Step:
    """One verb on a run folder."""

    name: str
    act: Callable[[Path, Path], object]


def _train(pictures: Path, run: Path) -> object:
    return api.finetune(
        DataConfig(path=str(pictures), image_size=32),
        ModelConfig(name="test_resnet", pretrained=False),
        TrainConfig(
            epochs=2, batch_size=4, augment="light", layer_decay=1.0, precision="fp32", memory_format="contiguous"
        ),
        run=run,
    )


def _compress_both(_: Path, run: Path) -> object:
    config = CompressConfig(prune=0.3, epochs=1, recovery_epochs=1, schemes=("u8a7w",), calibration="fast")
    return api.compress(Run.open(run), config)


STEPS = (
    Step("finetune", _train),
    Step("compress", _compress_both),
    Step("build onnxruntime", lambda _, run: api.build(Run.open(run), "onnxruntime")),
    Step("build openvino", lambda _, run: api.build(Run.open(run), "openvino")),
    Step("bench", lambda _, run: api.bench(Run.open(run), seconds=1)),
    Step("report", lambda _, run: api.report(Run.open(run))),
)


@dataclass
class Stage:
    """One step of the undisturbed run: the folder before it, what it left, how long it took, how many events."""

    step: Step
    before: Path
    left: dict[str, str]
    seconds: float
    events: int


@dataclass
class Outcome:
    """One kill."""

    step: str
    moment: str
    killed: bool
    problems: list[str] = field(default_factory=list)


def committed(run: Path) -> dict[str, str]:
    """Every file a commit record vouches for, and what bench and report leave, with a hash of what must be equal."""
    found = {}
    records = [path for name in ("stage.json", "parity.json", "build.json") for path in run.rglob(name)]
    for record in records:
        if any(part.startswith(".") for part in record.relative_to(run).parts):
            continue
        for name, entry in read_json(record)["outputs"].items():
            if name not in _EXCLUDED:
                path = run / entry["path"]
                hashed = sha256(path) if path.is_file() else "missing"
                found[entry["path"]] = "there" if path.name in _TIMES else hashed
                if hashed != entry["sha256"]:
                    found[entry["path"]] += " (not as recorded)"
    for path in run.glob("device/*/*/accuracy.json"):
        predictions = json.dumps(read_json(path)["predictions"])
        found[str(path.relative_to(run))] = hashlib.sha256(predictions.encode()).hexdigest()
    for path in [*run.glob("device/*/*/latency.json"), *run.glob("report/report.*"), *run.glob("data/**/*.npy")]:
        found[str(path.relative_to(run))] = "there" if path.suffix != ".npy" else sha256(path)
    return found


def _fork(step: Step, pictures: Path, run: Path, log: Path, prepare: Callable[[], None]) -> int:
    """Start ``step`` in a child of its own session; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        torch.set_num_threads(1)
        prepare()
        step.act(pictures, run)
        code = 0
    except BaseException:  # noqa: BLE001 - said in the log; the parent sees the code
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _run(step: Step, pictures: Path, run: Path, log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """The child's wait status."""
    return os.waitpid(_fork(step, pictures, run, log, prepare), 0)[1]


def _count_events(counter: Path) -> None:
    """Write a byte to ``counter`` for every event."""
    handle = os.open(counter, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    _intercept(lambda phase: phase == 0 and os.write(handle, b"."))


def _kill_at(moment: int, *, after: bool) -> Callable[[], None]:
    """SIGKILL before or after the event number ``moment``."""

    def prepare() -> None:
        seen = [0]

        def event(phase: int) -> None:
            seen[0] += phase == 0
            if seen[0] == moment and phase == int(after):
                os.kill(os.getpid(), signal.SIGKILL)

        _intercept(event)

    return prepare


def _intercept(event: Callable[[int], object]) -> None:
    """Call ``event(0)`` before and ``event(1)`` after every call that makes something last."""

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            event(0)
            try:
                return call(*arguments, **keywords)
            finally:
                event(1)

        return wrapped

    for name in EVENTS:
        setattr(os, name, wrap(getattr(os, name)))


def undisturbed(folder: Path, pictures: Path) -> list[Stage]:
    """Take every step once, keeping the run folder from before each."""
    run, stages = folder / "run", []
    for index, step in enumerate(STEPS):
        before = folder / f"before-{index}"
        if run.exists():
            shutil.copytree(run, before, symlinks=True)
        counter, start = folder / f"events-{index}", time.monotonic()
        status = _run(step, pictures, run, folder / "undisturbed.log", partial(_count_events, counter))
        seconds = time.monotonic() - start
        if status:
            raise SystemExit(f"the undisturbed {step.name} failed: see {folder / 'undisturbed.log'}")
        stages.append(Stage(step, before, committed(run), seconds, counter.stat().st_size))
        print(f"{step.name}: {seconds:.1f} s, {counter.stat().st_size} events", file=sys.stderr, flush=True)
    return stages


def moments(stages: Sequence[Stage], kills: int, seed: int) -> list[tuple[Stage, str, Any]]:
    """``kills`` moments dealt out over the stages, half at random times, half around events spread evenly."""
    rng, found = random.Random(seed), []
    for index in range(kills):
        stage = stages[index % len(stages)]
        turn, of = index // len(stages), -(-kills // len(stages))
        if turn % 2:
            found.append((stage, "time", rng.uniform(0, stage.seconds)))
        else:
            event = 1 + min(stage.events - 1, int((turn + rng.random()) / of * stage.events))
            found.append((stage, rng.choice(("before", "after")), event))
    return found


def trial(stage: Stage, kind: str, moment: Any, pictures: Path, folder: Path) -> Outcome:
    """One kill, and whether everything the module's docstring says held."""
    run, log = folder / "trial", folder / "trial.log"
    shutil.rmtree(run, ignore_errors=True)
    log.unlink(missing_ok=True)
    if stage.before.exists():
        shutil.copytree(stage.before, run, symlinks=True)
    outcome = Outcome(stage.step.name, f"{moment:.2f} s" if kind == "time" else f"{kind} event {moment}", killed=True)
    if kind == "time":
        child = _fork(stage.step, pictures, run, log, lambda: None)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    else:
        status = _run(stage.step, pictures, run, log, _kill_at(moment, after=kind == "after"))
    outcome.killed = os.WIFSIGNALED(status)
    if not outcome.killed and status:
        outcome.problems.append(f"the killed process ended with {status}: {_tail(log)}")
    earlier = committed(stage.before) if stage.before.exists() else {}
    now = committed(run) if run.exists() else {}
    for path, value in earlier.items():
        if now.get(path) != value:
            outcome.problems.append(f"{path} was committed before and is {now.get(path)} after the kill")
    if status := _run(stage.step, pictures, run, log):
        outcome.problems.append(f"started again it ended with {status}: {_tail(log)}")
    elif (left := committed(run)) != stage.left:
        differing = sorted(path for path in left.keys() | stage.left.keys() if left.get(path) != stage.left.get(path))
        outcome.problems.append(f"not as undisturbed: {', '.join(differing)}")
    leftovers = [str(path.relative_to(run)) for path in run.rglob(".*") if path.name != ".lock"]
    if leftovers:
        outcome.problems.append(f"left over: {', '.join(leftovers)}")
    return outcome


def _tail(log: Path) -> str:
    return " / ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])


def harness(kills: int, folder: Path, *, seed: int = 0) -> dict[str, Any]:
    """``kills`` trials; their figures."""
    pictures = paint_folder(folder / "photos", each=14)
    stages = undisturbed(folder, pictures)
    outcomes = []
    for number, (stage, kind, moment) in enumerate(moments(stages, kills, seed), start=1):
        outcome = trial(stage, kind, moment, pictures, folder)
        outcomes.append(outcome)
        verdict = "; ".join(outcome.problems) or ("ok" if outcome.killed else "ok (was done before the kill)")
        print(f"{number}/{kills} {outcome.step}, {outcome.moment}: {verdict}", file=sys.stderr, flush=True)
    return {
        "kills": len(outcomes),
        "survived": sum(not outcome.problems for outcome in outcomes),
        "done_before_the_kill": sum(not outcome.killed for outcome in outcomes),
        "by_step": dict(Counter(outcome.step for outcome in outcomes)),
        "events": {stage.step.name: stage.events for stage in stages},
        "problems": [vars(outcome) for outcome in outcomes if outcome.problems],
        "seed": seed,
    }


def main() -> None:
    """Run the harness from the command line; exit 1 when a kill was not survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = harness(arguments.kills, Path(folder), seed=arguments.seed)
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    sys.exit(figures["survived"] != figures["kills"])


if __name__ == "__main__":
    main()
