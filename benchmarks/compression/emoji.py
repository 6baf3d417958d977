"""Compression on emoji: int8, half of the MACs gone, and what post-training quantizers of others reach.

    python benchmarks/compression/emoji.py lite0 0 --emoji FOLDER --work FOLDER   # one fold: emoji/lite0-0.json
    python benchmarks/compression/emoji.py resnet18 0 --emoji FOLDER --work FOLDER
    python benchmarks/compression/emoji.py --table                                # emoji.md, from what is there

Folds are those of ../emoji_folds.py: FOLDER/CLASS/CODE-VENDOR.png, both drawings of an emoji in one group, a
third of the groups test, an eighth of the others val. What is measured, each part once (``--only`` takes some; what is
done is kept in the work folder, and a killed call goes on):

* float: `edgeopt finetune`, 12 epochs at 128 px from ImageNet weights (lite0), 40 at 96 px from random ones (resnet18);
* int8: `edgeopt compress --int8`; prune: `edgeopt compress --int8 --prune 0.5`; both for ONNX Runtime and OpenVINO;
* peers: NNCF's post-training quantization of OpenVINO's model with its defaults; ONNX Runtime's quantize_static with
  its defaults, and as its documentation advises for this CPU. All start from the float ONNX file and read the 300
  pictures that set edgeopt's ranges; ONNX Runtime's run without the options edgeopt would add;
* control: the float model trained on by the same recipe for as many epochs as the pruned model gets in all;
* bench: all of these engines, interleaved, batch 1, by edgeopt's protocol;
* on request: rival (the unpruned model at a smaller input, as many epochs, int8), latency (`--latency 0.6x` on
  OpenVINO, its rival, and one global ratio of equal latency), ladder (`--max-drop 1.0`); bench again after them.

Everything is edgeopt's default but the size and epochs of fine-tuning and what the parts name; ``--recovery-epochs``
and ``--qat-epochs`` change two more, and the file says so. Accuracy is the deployed engines' on the test pictures. The
file keeps for every row which pictures were answered rightly, so that folds can be pooled.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from emoji_fold import OUT, SETTINGS, TARGETS, Fold, deploy, is_right, right_in_torch
from emoji_peers import PEERS
from emoji_table import RIVALS, write_page

from edgeopt import DataConfig, ModelConfig, TrainConfig, api, models
from edgeopt.bench import BenchResult, EngineSpec, bench
from edgeopt.bench.result import bounds
from edgeopt.config import load_calibration, validate
from edgeopt.errors import EdgeoptError
from edgeopt.evaluate import evaluate
from edgeopt.registry import load_backend
from edgeopt.report.latencies import latencies
from edgeopt.stages.engines import engines, sets_folder
from edgeopt.stages.latency import cut_and_recovered, rival_of
from edgeopt.stages.passes import Job, Recovered, recovered
from edgeopt.stages.quantizing import quantized
from edgeopt.stages.recovery import epochs_of
from edgeopt.stages.teachers import find_teacher
from edgeopt.stages.training import TrainingPlan, fit
from edgeopt.stages.variants import Variant

BENCH_SECONDS = 150.0


# -- the parts ---------------------------------------------------------------------------------------------------------


def train_float(fold: Fold) -> None:
    """The folds' manifest, and the model fine-tuned on it."""
    folder = fold.work / "emoji"
    if not folder.is_dir():
        shutil.copytree(fold.asked.emoji, fold.work / "copying", dirs_exist_ok=True)
        (fold.work / "copying").rename(folder)
    write_manifest = import_module("emoji_folds").write_manifest
    write_manifest(folder / "emoji.csv", fold.fold, most=120 if fold.asked.trial else None)
    setting = fold.setting
    variant = api.finetune(
        DataConfig(path=str(folder / "emoji.csv"), image_size=setting.size),
        ModelConfig(name=setting.model, pretrained=setting.pretrained),
        TrainConfig(epochs=fold.epochs(setting.epochs)),
        run=fold.work / "run",
        console=fold.console,
    )
    fold.record["pictures"] = fold.workspace.dataset.counts()
    fold.add("float", "float", right_in_torch(fold, variant.load()), macs=variant.record["metrics"]["macs"])


def train_control(fold: Fold) -> None:
    """The float model's own recipe again, from where it ended; the epoch with the best val counts, the start too."""
    config = fold.config()
    start = fold.original
    train = validate(TrainConfig, start.record["config"]["train"], where="the original's record")
    extra = _recovered_epochs(fold) + config.epochs
    plan = TrainingPlan.for_finetuning(train.model_copy(update={"epochs": extra}))
    plan = replace(plan, loop=replace(plan.loop, keep_initial=True))
    folder = fold.work / "control"
    folder.mkdir(exist_ok=True)
    model = start.load()
    figures = fit(plan, model, fold.workspace, start.preprocess, folder=folder, console=fold.console)
    models.save(model, start.architecture, folder)
    fold.add("control", f"float + {extra} epochs", right_in_torch(fold, model), val_top1=figures["val_top1"])


def _recovered_epochs(fold: Fold) -> int:
    """Those that the pruned model got, in all rounds."""
    return int(fold.record.get("recovered_epochs", fold.config().recovery_epochs))


def make_int8(fold: Fold) -> None:
    deploy(fold, "int8", "edgeopt --int8", api.compress(fold.run, fold.config(), targets=TARGETS, console=fold.console))


def make_pruned(fold: Fold) -> None:
    made = api.compress(fold.run, fold.config(prune=0.5), targets=TARGETS, console=fold.console)
    fold.record["recovered_epochs"] = epochs_of(made[0])
    deploy(fold, "prune", "edgeopt --int8 --prune 0.5", made)


def make_rival(fold: Fold) -> None:
    """The unpruned model at a smaller input, trained on and in int8 as the pruned one."""
    side = 32 if fold.asked.trial else fold.setting.rival
    made = _int8_of(fold, lambda job: rival_of(job, (side, side), epochs=_recovered_epochs(fold)))
    deploy(fold, "rival", f"edgeopt --int8 at {side} px", made)


def _int8_of(fold: Fold, source: Callable[[Job], Variant]) -> list[Variant]:
    """The int8 variant of a float one that no option of edgeopt makes alone."""
    run, start = fold.run, fold.original
    teacher = find_teacher(run, start.name, console=fold.console)
    job = Job(fold.workspace, fold.config(), start, teacher, TARGETS, 8, False, fold.console)
    with run.lock():
        return list(quantized(job, source(job), (load_backend("openvino").schemes()[0],)))


def make_latency(fold: Fold) -> None:
    """To 0.6 of the unpruned latency, its rival, and the plan of one global ratio where that was not the best."""
    made = api.compress(fold.run, fold.config(latency="0.6x"), targets=("openvino",), console=fold.console)
    finals = [item for item in made if item.record.get("scheme")]
    for key, title, item in zip(("latency", "latency-rival"), ("", ", its rival"), finals, strict=False):
        deploy(fold, key, f"edgeopt --int8 --latency 0.6x{title}", [item], judged=item.record["latency"])
    search = made[0].record["latency_search"]
    fold.record["latency_search"] = latencies(fold.run)[made[0].name]
    fitting = (plan for plan in search["plans"] if plan["way"] == "global ratio" and "history" in plan)
    alike = next(fitting, None)
    if alike is not None and search["chosen"]["way"] != "global ratio":
        config = {"history": alike["history"], **fold.config().model_dump(include={"recovery_epochs", "recovery_lr"})}

        def source(job: Job) -> Variant:
            def make(folder: Path) -> Recovered:
                return cut_and_recovered(job, alike["history"], search["untouched"], folder)

            return recovered(job, f"{job.start.name}-alike", "prune", config=config, origin={}, make=make)

        deploy(fold, "latency-alike", "one global ratio of equal latency, int8", _int8_of(fold, source))


def make_ladder(fold: Fold) -> None:
    made = api.compress(fold.run, fold.config(max_drop=1.0), targets=TARGETS, console=fold.console)
    ladder = dict(made[-1].record["ladder"])
    ladder["rungs"] = [{key: rung[key] for key in rung if key != "sensitivity"} for rung in ladder["rungs"]]
    deploy(fold, "ladder", "edgeopt --int8 --max-drop 1.0", made, ladder=ladder)


def make_peers(fold: Fold) -> None:
    """Each from edgeopt's float ONNX, which has BatchNorm folded, and its calibration pictures one by one."""
    run, spec, start = fold.run, fold.original.preprocess, fold.original
    api.export(run, variants=[start.name], console=fold.console)
    onnx = run.output(run.exports()[start.name], "onnx")
    calibration = fold.workspace.calibration(load_calibration("default"), spec)
    pictures = list(calibration.batches(spec, 1))
    test = fold.workspace.prepared("test", spec)
    for key, peer in PEERS.items():
        folder = fold.work / "peers" / key
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        engine = peer.make(onnx, pictures, folder)
        target = peer.target()
        with load_backend(peer.backend).open(engine, target, precision="int8") as session:
            right = is_right(evaluate(session, test, spec).logits, test)
        fold.add(key, peer.title, right, runtime=target.name, file=str(engine.relative_to(fold.work)))


def measure(fold: Fold) -> None:
    """p50 of every engine that is there, and how many times as fast as the float and the unpruned int8 one it is."""
    specs = _specs(fold)
    first = specs[0]
    assert first.pictures is not None
    assert first.preprocess is not None
    seconds = 2.0 * len(specs) if fold.asked.trial else BENCH_SECONDS
    result = bench(specs, pictures=first.pictures, preprocess=first.preprocess, seconds=seconds, width=0.01)
    found: dict[str, Any] = {"seconds": result.seconds, "rounds": result.rounds, "failures": dict(result.failures)}
    found["engines"] = {}
    for key, engine in result.engines.items():
        runtime = fold.record["rows"][key]["runtime"] if key in fold.record["rows"] else key.partition("-")[2]
        row: dict[str, Any] = {"p50_ms": engine.p50.value, "p50_ci_ms": bounds(engine.p50), "stable": engine.stable,
                               "other_load_cores": engine.other_load_cores}  # fmt: skip
        for name in (f"float-{runtime}", f"int8-{runtime}"):
            if name in result.engines and name != key:
                row[f"times_{name.partition('-')[0]}"] = _ratio(result, key, name)
        found["engines"][key] = row
    found["pairs"] = {}
    for ours, theirs in RIVALS:
        if ours in result.engines and theirs in result.engines:
            found["pairs"][f"{ours} over {theirs}"] = _ratio(result, ours, theirs)
    fold.record["bench"] = found


def _ratio(result: BenchResult, ours: str, theirs: str) -> list[float | None]:
    ratio = result.ratio(ours, theirs)
    return [ratio.value, *(bounds(ratio) or (None, None))]


def _specs(fold: Fold) -> list[EngineSpec]:
    known = engines(fold.run)
    rows = {
        **{f"float-{target}": {"engine": f"{target}/{fold.original.name}"} for target in TARGETS},
        **{key: row for key, row in fold.record["rows"].items() if "runtime" in row},
    }
    made = []
    for key, row in rows.items():
        if "file" in row:
            peer, spec = PEERS[key], fold.original
            path = spec.run.output(spec.record, "preprocess")
            folder, target = sets_folder(fold.run, spec.preprocess), peer.target()
            made.append(EngineSpec(key, peer.backend, fold.work / row["file"], target, "int8", 0, folder, path))
        else:
            one = known[row["engine"]]
            folder = sets_folder(fold.run, one.preprocess)
            made.append(EngineSpec(key, str(one.record["backend"]), one.path, one.target, one.precision, 0, folder,
                                   one.preprocess_path))  # fmt: skip
    return made


PARTS: dict[str, Callable[[Fold], None]] = {
    "float": train_float,
    "int8": make_int8,
    "prune": make_pruned,
    "control": train_control,
    "rival": make_rival,
    "latency": make_latency,
    "ladder": make_ladder,
    "peers": make_peers,
    "bench": measure,
}
USUAL = ("float", "int8", "prune", "peers", "control", "bench")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=list(SETTINGS))
    parser.add_argument("fold", nargs="?", type=int, choices=range(3))
    parser.add_argument("--emoji", type=Path)
    parser.add_argument("--work", type=Path, help="a folder of <name>-<fold> is made in it and kept")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(USUAL))
    parser.add_argument("--recovery-epochs", type=int, help="instead of edgeopt's default")
    parser.add_argument("--qat-epochs", type=int, help="instead of edgeopt's default")
    parser.add_argument("--trial", action="store_true", help="240 pictures, an epoch each; nothing is committed")
    parser.add_argument("--table", action="store_true", help="only write emoji.md")
    asked = parser.parse_args()
    if asked.table:
        write_page(OUT)
        return
    if asked.name is None or asked.fold is None or asked.emoji is None or asked.work is None:
        parser.error("name the model, the fold, --emoji and --work")
    work = asked.work.absolute() / f"{asked.name}-{asked.fold}"
    work.mkdir(parents=True, exist_ok=True)
    fold = Fold(asked.name, asked.fold, asked, work)
    for part in (one for one in PARTS if one in asked.only):
        if part in fold.record["minutes"] and part != "bench":
            continue  # done by an earlier call
        began = time.monotonic()
        try:
            PARTS[part](fold)
        except EdgeoptError as error:  # what edgeopt refuses is a result; the other parts are still measured
            fold.record["refused"][part] = error.message
            print(f"{asked.name}-{asked.fold} {part}: {error}", flush=True)
        else:
            fold.record["refused"].pop(part, None)
            # Of a part that was killed and went on this is the second half; stages resume.
            fold.record["minutes"][part] = round((time.monotonic() - began) / 60, 2)
            print(f"{asked.name}-{asked.fold} {part}: {fold.record['minutes'][part]} minutes", flush=True)
        fold.save()
    if not asked.trial:
        write_page(OUT)


if __name__ == "__main__":
    main()
