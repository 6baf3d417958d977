"""edgeopt's int8 engines against those of other tools, from the same float model, on the same pictures: one command.

    python benchmarks/peers/run.py --data digits                         # the demo's pictures, model and settings
    python benchmarks/peers/run.py --data emoji --emoji FOLDER --fold 0  # and 1, 2: every picture is tested once
    python benchmarks/peers/run.py --table                               # only the table, from what is in results/

The float model is trained once by `edgeopt finetune` (or taken: ``--run FOLDER``), and every tool gets it as ONNX and
as a torch module with the same train, calibration and val pictures, prepared. Each recipe in ``recipes/`` follows its
tool's own guide, whose address it cites, and runs alone in a process that needs only that tool; those with ``venv`` in
``registry.py`` in an environment made on first use under ``--venvs``. A tool that does not install or fails is a row
with its error. All that was made is then asked for the same test pictures, and timed with eager PyTorch in one
interleaved session. ``results/<data>-<fold>.json`` holds every answer, so that folds pool; README.md's table is made
of what is there. Killed, the same command goes on; what failed is tried again with ``--retry``.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "plugin")]  # the plugin: for the processes that time, too

from peers.inputs import Case, prepare  # noqa: E402
from peers.make import make  # noqa: E402
from peers.measure import Course, Engine, session_record, timing  # noqa: E402
from peers.registry import BY_KEY, PEERS, Peer  # noqa: E402
from peers.table import table, write_page  # noqa: E402

from edgeopt import environment  # noqa: E402
from edgeopt.cli.common import Terminal  # noqa: E402
from edgeopt.errors import EdgeoptError  # noqa: E402
from edgeopt.files import read_json, sha256, write_json  # noqa: E402

RESULTS = HERE / "results"


def main() -> None:
    """Make, measure, record, and write the table."""
    asked = _arguments()
    if not asked.table:
        case = Case(asked.data, asked.fold, asked.emoji, asked.trial)
        work = (asked.work or environment.cache_folder() / "peers").absolute() / case.name
        work.mkdir(parents=True, exist_ok=True)
        inputs, made = _make(case, work, asked)
        if asked.make:
            return
        RESULTS.mkdir(exist_ok=True)  # before minutes are measured
        record = measured(case, Course(work, inputs), made, inputs, asked.seconds)
        out = (work if case.trial else RESULTS) / f"{case.name}.json"
        write_json(out, record)
        print(f"{out}: {len(record['rows'])} rows")
        if case.trial:
            print(table([record]))
            return
    write_page()


def _make(case: Case, work: Path, asked: argparse.Namespace) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """``inputs.json``, and what became of each recipe by the tool's key: those asked for run, others did before."""
    console = Terminal()
    inputs = prepare(case, work, asked.run, console)
    venvs = (asked.venvs or environment.cache_folder() / "peers-venvs").absolute()
    made = {}
    for peer in PEERS:
        if asked.only and peer.key not in asked.only:
            if (before := work / "peers" / peer.key / "made.json").is_file():
                made[peer.key] = read_json(before)
            continue
        console.say(f"{peer.key} ...")
        of = make(peer, case, work, inputs, venvs=venvs, timeout=60 * asked.minutes, retry=asked.retry)
        console.say(f"{peer.key}: {of['error'] or str(of['seconds']) + ' s'}")
        made[peer.key] = of
    return inputs, made


def measured(
    case: Case, course: Course, made: dict[str, dict[str, Any]], inputs: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """The record of one dataset and fold: ``rows`` of every tool and runtime, those that failed included."""
    console = Terminal()
    engines = course.float_engines()
    for key, of in made.items():
        engines.update(_engines(course, BY_KEY[key], of))
    for key, engine in engines.items():
        if isinstance(engine, Engine):
            owner = key.partition("/")[2]
            try:
                with console.task(f"asking {key}"):
                    course.ask(engine, made[owner]["key"] if owner in made else inputs["float_onnx_sha256"])
            except EdgeoptError as error:
                engines[key] = error.message
    ready = [engine for engine in engines.values() if isinstance(engine, Engine)]
    with console.task(f"timing {len(ready)} engines") as progress:
        result = course.time(ready, seconds, progress)
    pictures = course.pictures
    return {
        "schema": 1,
        "data": case.data,
        "fold": case.fold,
        "folds": case.folds,
        "setting": {"compress": case.setting, "train": inputs["train_config"], "size": list(course.spec.size)},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "pictures": len(pictures),
        "pictures_sha256": sha256(course.run.data / "sets" / course.spec.key / "test.npy"),
        "calibration_sha256": inputs["calibration_sha256"],
        "session": session_record(result),
        "rows": [_row(key, engine, made, timing(result, key)) for key, engine in engines.items()],
    }


def _engines(course: Course, peer: Peer, made: dict[str, Any]) -> dict[str, Engine | str]:
    """What a recipe left, by runtime; one entry with the reason where it left nothing."""
    folder = course.work / "peers" / peer.key
    if made["error"]:
        return {f"-/{peer.key}": made["error"]}
    if (folder / "run").is_dir():
        return course.own(folder / "run", peer.key)
    models = [folder / name for name in ("model.onnx", "model.xml") if (folder / name).is_file()]
    if not models:
        return {f"-/{peer.key}": "it left neither model.onnx nor model.xml"}
    return course.foreign(peer.key, models[0], folder)


def _row(key: str, engine: Engine | str, made: dict[str, Any], timed: dict[str, Any]) -> dict[str, Any]:
    runtime, _, peer = key.partition("/")
    of = made.get(peer, {})
    row = {"peer": peer, "runtime": runtime, **{name: of.get(name) for name in ("seconds", "lines", "version")}}
    if isinstance(engine, str):
        return {**row, "error": engine}
    fusion = engine.fusion or {}
    return {
        **row,
        "error": None,
        "right": engine.answers["right"],
        "top1_exact": engine.answers["top1_exact"],
        "size_bytes": engine.size_bytes,
        "compute_layers": fusion.get("compute_layers"),
        "int8_layers": fusion.get("int8_layers"),
        "int8_share_macs": fusion.get("int8_share_macs"),
        "float_layers": fusion.get("float_layers"),
        **timed,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "emoji"))
    parser.add_argument("--emoji", type=Path, help="the folder of emoji, FOLDER/CLASS/CODE-VENDOR.png")
    parser.add_argument("--fold", type=int, default=0, choices=range(3))
    parser.add_argument("--run", type=Path, help="a run folder on these pictures: its original is the float model")
    parser.add_argument("--only", nargs="+", choices=list(BY_KEY), help="run the recipes of these alone")
    parser.add_argument("--make", action="store_true", help="only train and run the recipes; measure by another call")
    parser.add_argument("--retry", action="store_true", help="run again what failed before")
    parser.add_argument("--seconds", type=float, default=240.0, help="of timing, all engines together")
    parser.add_argument("--minutes", type=float, default=60.0, help="that a recipe may take")
    parser.add_argument("--work", type=Path, help="where all is made [default: edgeopt's cache folder]")
    parser.add_argument("--venvs", type=Path, help="environments of the other tools [default: the same]")
    parser.add_argument("--trial", action="store_true", help="a tiny model, few pictures; nothing goes into results/")
    parser.add_argument("--table", action="store_true", help="only write the table")
    asked = parser.parse_args()
    if not asked.table and asked.data is None:
        parser.error("say --data digits, or --data emoji --emoji FOLDER")
    if asked.data == "emoji" and asked.emoji is None and not asked.table:
        parser.error("--data emoji needs --emoji FOLDER")
    return asked


if __name__ == "__main__":
    main()
