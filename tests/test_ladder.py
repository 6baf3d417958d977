"""The ladder: the cheapest rung that keeps the accuracy is taken, every rung is recorded, and the verdict is honest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import planted as planted_records
import pytest
import torch
from conftest import paint_folder
from safetensors.torch import save_file
from torch.nn import functional

from edgeopt import (
    CalibrationRecipe,
    CompressConfig,
    DataConfig,
    ModelConfig,
    Run,
    TrainConfig,
    api,
    cli,
    metrics,
    models,
)
from edgeopt.compress.quantize import quantize
from edgeopt.compress.sensitivity import layer_sensitivity
from edgeopt.config import validate
from edgeopt.errors import ConfigError
from edgeopt.models.architecture import Architecture
from edgeopt.report.sections.ladder import render
from edgeopt.report.table import assemble
from edgeopt.schemes import get_scheme
from edgeopt.stages import ladder, rungs
from edgeopt.stages.calibrating import CalibrationBatches
from edgeopt.stages.training import TrainingPlan
from edgeopt.stages.variants import Variant, open_variant
from edgeopt.stages.workspace import open_workspace
from edgeopt.train.clock import Clock
from tests.listening import Listening
from tests.report_fixture import write_run
from tests.tiny_torch import PlainNet, calibration, uneven_channels

PLAIN = "tests.tiny_torch:PlainNet"
CHEAP = CompressConfig(epochs=2, schemes=("u8a7w",), calibration="fast")


def test_the_layer_that_int8_hurts_most_is_named_first() -> None:
    torch.manual_seed(0)
    net = PlainNet(4).train()
    pictures = torch.cat(calibration())
    for _ in range(20):
        net(pictures)
    net.eval()
    uneven_channels(net, 3000, (1,))  # read by convs.2
    model = quantize(net, calibration(), scheme=get_scheme("u8a7w"))
    expected = net(pictures).detach()

    def loss(one: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(functional.mse_loss(one(pictures), expected))

    before = loss(model)
    first, *rest = layer_sensitivity(model, loss, example=pictures[:2])
    assert first.layer == "convs.2"
    assert first.loss_increase > 3 * max(one.loss_increase for one in rest)
    assert {first.layer, *(one.layer for one in rest)} == {"convs.0", "convs.1", "convs.2", "convs.3", "head"}
    assert loss(model) == before, "the model is left as it was"


@pytest.mark.parametrize(
    ("lost", "gained", "n", "verdict"),
    [(0, 0, 1000, "met"), (6, 0, 1000, "undecided"), (30, 0, 1000, "missed"), (0, 0, 40, "undecided")],
)
def test_the_verdict_rests_on_the_bound(lost: int, gained: int, n: int, verdict: str) -> None:
    reference = torch.ones(n, dtype=torch.bool).numpy()
    candidate = reference.copy()
    candidate[:lost] = False
    found = ladder.judged(metrics.paired_drop(reference, candidate), 1.0)
    assert found["verdict"] == verdict
    assert (found["pictures_to_decide"] is not None) == (verdict == "undecided")


def test_as_many_pictures_as_are_said_would_decide() -> None:
    n, lost = 1000, 6
    drop = metrics.paired_drop(*_answers(n, lost))
    assert drop.upper_points > 1.0
    enough = metrics.pictures_to_decide(lost, 0, n, 1.0)
    assert enough is not None
    for pictures, decided in ((int(1.15 * enough), True), (int(0.8 * enough), False)):
        again = metrics.paired_drop(*_answers(pictures, round(lost * pictures / n)))
        assert (again.upper_points <= 1.0) == decided
    assert metrics.pictures_to_decide(10, 0, 1000, 1.0) is None, "at the limit: never"


NAMES = ["ptq", "ranges", "qat", "long", "float-1", "float-2"]
LOSSES = dict(zip(NAMES, (3.0, 1.5, 2.0, 1.0, 4.0, 5.0), strict=True))


def _rung(name: str, folder: Path, *, holds: bool = False) -> rungs.Rung:
    layers = {"sensitivity": [{"layer": name} for name in "cab"], "float_layers": ["c"]} if "float" in name else {}
    recipe = {"schema": 1, "count": 64}
    return rungs.Rung(
        {"name": name, "holds": holds, "val_loss": LOSSES[name], "calibration": recipe, **layers}, folder, np.zeros(0)
    )


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., rungs.Ladder]:
    """A ladder whose rungs are planted, of a network of three int8 layers; the one called ``holds`` does."""
    layers = {"quantizers": [{"shape": [8]}] * 3 + [{"shape": []}]}
    monkeypatch.setattr(rungs.Architecture, "read", lambda _: SimpleNamespace(quantizers=layers))
    monkeypatch.setattr(rungs.Rung, "load", lambda self, _: f"the model of {self.name}")

    def made(holds: str = "", **config: Any) -> rungs.Ladder:
        ladder = object.__new__(rungs.Ladder)
        config = {"max_drop": 1.0, "epochs": 2, **config}
        start = SimpleNamespace(record={})
        ladder.job = SimpleNamespace(config=CompressConfig(**config), clock=Clock(None), start=start, run=None)  # type: ignore[assignment]
        ladder.rungs, ladder._end = [], float("inf")
        monkeypatch.setattr(rungs.Ladder, "_taken", lambda self, name, *_: _rung(name, tmp_path, holds=name == holds))
        return ladder

    return made


def test_rungs_are_climbed_from_cheap_to_dear_until_one_holds_or_trials_are_over(
    planted: Callable[..., rungs.Ladder],
) -> None:
    for config, why, names in (
        ({}, "no rung is left", NAMES),
        ({"holds": "qat"}, "held", NAMES[:3]),
        ({"holds": "long", "trials": 2}, "trials", NAMES[:2]),
        ({"epochs": 0}, "no rung is left", [name for name in NAMES if name not in ("qat", "long")]),
    ):
        climbing = planted(**config)  # type: ignore[arg-type]
        assert climbing.climb() == why
        assert [rung.name for rung in climbing.rungs] == names
        assert ladder.taken(climbing.rungs).name == (config["holds"] if why == "held" else min(names, key=LOSSES.get))  # type: ignore[arg-type]


def test_training_goes_on_from_the_best_rung_and_the_next_one_takes_three_times_the_epochs(
    planted: Callable[..., rungs.Ladder], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: list[tuple[object, int]] = []

    def fitted(self: rungs.Ladder, plan: TrainingPlan, model: object, folder: Path) -> dict[str, Any]:
        trained.append((model, plan.loop.epochs))
        return {"training": {"epochs": plan.loop.epochs}}

    monkeypatch.setattr(rungs.Ladder, "_fit", fitted)
    monkeypatch.setattr(rungs, "remove_quantizers", lambda model: model)
    monkeypatch.setattr(rungs.Ladder, "_start", lambda self: "the untrained")
    monkeypatch.setattr(rungs.Ladder, "_quantized", lambda self, start, recipe, ignored: (start, ignored))
    monkeypatch.setattr(rungs.Ladder, "_loss_of", lambda self, model: 1.0 if "qat" in model[0] else 2.0)  # type: ignore[index]
    climbing = planted(epochs=4)
    made = []
    for name, _, make in climbing._ways():
        made.append(make(tmp_path) if name in ("qat", "long", "float-2") else None)
        if name != "long":  # it was clearly worse, as may be
            climbing.rungs.append(_rung(name, tmp_path))
    assert trained[:2] == [("the model of ranges", 4), ("the model of ranges", 12)]
    assert made[2] is not None
    assert (made[2].fields["from"], made[2].recipe.count) == ("ranges", 64)
    assert made[5] is not None
    assert made[5].fields["float_layers"] == ["c", "a"], "the two that int8 hurts most"
    assert trained[2] == (("the model of ranges", ("c", "a")), 1)


def test_a_rung_holds_by_its_point_and_is_compared_by_paired_log_loss(planted: Callable[..., rungs.Ladder]) -> None:
    climbing = planted(max_drop=2.5)
    climbing.labels = np.zeros(40, np.int64)
    certain = np.tile(np.array([3.0, 0.0], np.float32), (40, 1))
    climbing._reference = certain
    less = certain * 0.5
    less[0] *= -1  # one of forty is lost: 2.5 points, and up to 10 by its bound
    figures = climbing._figures(less)
    assert figures["holds"]
    assert figures["drop"]["drop_points"] == pytest.approx(2.5)
    assert figures["drop"]["upper_points"] > 2.5
    assert figures["val_top1"] == pytest.approx(39 / 40)
    assert figures["loss_over_float"]["mean"] > 0.1
    assert figures["loss_over_best"] is None
    climbing.rungs.append(replace(_rung("ptq", Path()), answers=less))
    again = climbing._figures(certain)
    assert again["loss_over_float"]["mean"] == 0
    assert again["loss_over_best"]["mean"] == pytest.approx(-figures["loss_over_float"]["mean"])
    less[1] *= -1
    assert not climbing._figures(less)["holds"]


@pytest.fixture(scope="module")
def int8() -> tuple[Architecture, torch.nn.Module]:
    created = models.create(PLAIN, num_classes=3, pretrained=False)
    return created.architecture, quantize(created.model.eval(), calibration()[:1], scheme=get_scheme("u8a7w"))


@pytest.mark.parametrize("killed", ["ptq", "ranges", "qat"])
def test_killed_at_any_rung_none_before_it_is_climbed_again(
    killed: str, int8: tuple[Architecture, torch.nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rungs are committed for real; how they are made is planted, and so is what they answer."""
    run = Run.create(tmp_path / "run", data_root="x", data={"path": "x"}, fingerprint="a" * 64)
    architecture, model = int8
    recipe, made, alive = CalibrationRecipe(schema=1), [], [killed]
    wrong = np.tile(np.array([0.0, 1.0, 0.0], np.float32), (20, 1))

    def ways(self: rungs.Ladder) -> Iterator[tuple[str, str, Callable[[Path], rungs.Made]]]:
        for name in NAMES[:3]:

            def make(folder: Path, name: str = name) -> rungs.Made:
                made.append(name)
                if name in alive:
                    alive.remove(name)
                    raise KeyboardInterrupt
                return rungs.Made(model, recipe, name)

            yield name, name, make

    def climbing() -> rungs.Ladder:
        ladder = object.__new__(rungs.Ladder)
        config = CompressConfig(max_drop=1.0)
        ladder.job = SimpleNamespace(run=run, config=config, clock=Clock(None), console=Listening())  # type: ignore[assignment]
        ladder.source = SimpleNamespace(architecture=architecture, preprocess=None)  # type: ignore[assignment]
        ladder.stage = run.stage("host", "int8-u8a7w", record="stage.json", key="k" * 64, resumes=True)
        ladder.scheme, ladder.rungs, ladder._end, ladder._pictures = "u8a7w", [], float("inf"), None  # type: ignore[assignment]
        ladder.labels, ladder._reference = np.zeros(20, np.int64), -wrong
        return ladder

    monkeypatch.setattr(rungs.Ladder, "_ways", ways)
    monkeypatch.setattr(rungs, "logits", lambda *_: wrong)
    with pytest.raises(KeyboardInterrupt):
        climbing().climb()
    again = climbing()
    assert again.climb() == "no rung is left"
    before = NAMES[:3].index(killed)
    assert made == [*NAMES[: before + 1], *NAMES[before:3]]
    assert [rung.name for rung in again.rungs] == NAMES[:3]
    assert all(rung.record["drop"]["n"] == 20 and rung.load(run) is not None for rung in again.rungs)


def test_rungs_are_judged_on_val_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def prepared(name: str, spec: object) -> Any:
        asked.append(name)
        return SimpleNamespace(labels=[0, 1])

    monkeypatch.setattr(rungs, "logits", lambda *_: np.zeros((2, 2), np.float32))
    workspace = SimpleNamespace(prepared=prepared, dataset=SimpleNamespace(of=lambda _: range(100)))
    variant: Any = SimpleNamespace(preprocess=None, load=lambda: None)
    job: Any = SimpleNamespace(workspace=workspace, start=variant, clock=Clock(None))
    rungs.Ladder(job, variant, "u8a7w", None, None)  # type: ignore[arg-type]
    assert set(asked) == {"val"}


@pytest.mark.parametrize(("verdict", "missed"), [("met", 0), ("undecided", 0), ("missed", 1)])
def test_only_a_missed_drop_is_a_missed_goal(verdict: str, missed: int) -> None:
    record = {"ladder": {"verdict": verdict, "max_drop_points": 1.0}}
    assert len(Variant(Run(Path("x"), {}), "int8", record, skipped=False).missed) == missed


def test_the_report_has_every_rung_and_what_layers_cost_in_int8_and_in_float(tmp_path: Path) -> None:
    write_run(tmp_path / "planted")
    report, found = assemble(tmp_path / "planted"), planted_records.LADDER
    page = render(replace(report, ladders={"int8": found}))
    for said in ("at most 1 point below float", "undecided", "PTQ", "0.50", "0.1000", "About 2000 val pictures"):
        assert said in page
    assert "<code>conv1</code></td>" not in page
    assert re.search(r'<code>conv1</code></th><td class="num">0.1000</td><td class="num">\+0.200</td>', page)
    untimed = {key: value for key, value in found.items() if key not in ("layers", "timed_on")}
    page = render(replace(report, ladders={"int8": untimed}))
    assert "add to the log-loss on val, most first:\n<code>conv1</code> 0.1000." in page


def _answers(n: int, lost: int) -> tuple[metrics.Bool, metrics.Bool]:
    reference = torch.ones(n, dtype=torch.bool).numpy()
    candidate = reference.copy()
    candidate[:lost] = False
    return reference, candidate


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"time": "20m"}, "time and trials bound the ladder of max_drop"),
        ({"max_drop": 1.0, "int8": False}, "int8 is off"),
        ({"max_drop": -1.0}, "max_drop"),
        ({"max_drop": 1.0, "time": "soon"}, "no time"),
    ],
)
def test_what_makes_no_ladder_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(CompressConfig, values, where="compress options")


def _int8_top1(net: PlainNet, batches: CalibrationBatches, labels: metrics.Int64) -> float:
    model = quantize(net, batches, scheme=get_scheme("u8a7w"))
    with torch.no_grad():
        answers = torch.cat([model(batch) for batch in batches]).argmax(1).numpy()
    return float((answers == labels).mean())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Variant:
    root = tmp_path_factory.mktemp("ladder")
    data = DataConfig(path=str(paint_folder(root / "shapes", classes=4, each=60)), image_size=32, val=0.3)
    train = TrainConfig(epochs=8, batch_size=16, layer_decay=1.0, augment="light", flip=False)
    return api.finetune(data, ModelConfig(name=PLAIN, pretrained=False), train, run=root / "trained")


def _made_uneven(trained: Variant, root: Path, *, until: float) -> Run:
    """A run whose original answers in float as ``trained`` does, and in int8 is right on less than ``until`` of val.

    How uneven its channels must be for that depends on the network, and so on the order of sums it was trained by.
    """
    net = trained.load()
    assert isinstance(net, PlainNet)
    pictures = open_workspace(trained.run).prepared("val", trained.preprocess)
    batches = CalibrationBatches(pictures, trained.preprocess)
    while _int8_top1(net, batches, pictures.labels) > until:
        uneven_channels(net, 1.5, (0, 1, 2))
    weights = root / "uneven.safetensors"
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, weights)
    data = DataConfig(path=str(trained.run.path.parent / "shapes"), image_size=32, val=0.3)
    adopted = api.adopt(data, ModelConfig(name=PLAIN, weights=str(weights)), run=root / "run")
    assert adopted.record["metrics"]["val_top1"] == trained.record["metrics"]["val_top1"]
    return adopted.run


@pytest.fixture(scope="module")
def uneven(trained: Variant, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A network that is right on hardly more than half of val in int8."""
    return _made_uneven(trained, tmp_path_factory.mktemp("uneven"), until=0.6)


@pytest.mark.slow
def test_the_first_rung_that_holds_is_taken_and_all_are_recorded(uneven: Run, tmp_path: Path) -> None:
    (made,) = api.compress(uneven, CHEAP.model_copy(update={"max_drop": 3.0}))
    found = made.record["ladder"]
    rungs = found["rungs"]
    names = [rung["name"] for rung in rungs]
    assert names == ["ptq", "ranges", "qat", "long", "float-1", "float-2", "float-4"][: len(names)]
    assert len(names) > 1, "post-training ranges alone do not keep this network's accuracy"
    assert [rung["holds"] for rung in rungs] == [False] * (len(rungs) - 1) + [found["stopped"] == "held"]
    assert found["chosen"] == names[-1]
    assert found["timed_on"] == "onnxruntime"
    assert len({rung["p50_ms"] for rung in rungs if not rung.get("float_layers")}) == 1
    assert all(rung["p50_ms"] > 0 and rung["seconds"] > 0 and rung["drop"]["n"] == 72 for rung in rungs)
    assert set(rungs[1]["tried"]) == {
        "percentile ranges of 64 stratified pictures",
        "histogram ranges of 64 stratified pictures",
        "minmax ranges of 120 diverse pictures",
    }
    last = rungs[-1]
    assert made.record["metrics"]["val_top1"] == last["val_top1"]
    write_run(tmp_path / "planted")
    page = render(replace(assemble(tmp_path / "planted"), ladders={made.name: found}))
    assert "better ranges" in page
    assert "at most 3 points below float" in page
    assert last["drop"]["drop_points"] <= 3.0
    assert not (made.run.path / "host" / made.name / "rungs").exists(), "what is not taken is not kept"
    assert api.compress(uneven, CHEAP.model_copy(update={"max_drop": 3.0}))[0].skipped


@pytest.mark.slow
def test_the_layers_that_int8_hurts_go_back_to_float_and_their_cost_is_measured(uneven: Run) -> None:
    (made,) = api.compress(uneven, CHEAP.model_copy(update={"max_drop": 0.0, "epochs": 0}))
    rungs = {rung["name"]: rung for rung in made.record["ladder"]["rungs"]}
    assert list(rungs)[:3] == ["ptq", "ranges", "float-1"]
    layers = made.record["ladder"]["layers"]
    assert [row["layer"] for row in layers] == [row["layer"] for row in rungs["float-1"]["sensitivity"]][: len(layers)]
    assert {row["layer"] for row in layers} == {"convs.0", "convs.1", "convs.2", "convs.3", "head"}
    assert all(-1e3 < row["cost_ms"] < 1e3 for row in layers)
    assert rungs["float-1"]["float_layers"] == [layers[0]["layer"]]
    last = list(rungs.values())[-1]
    assert last["val_loss"] < rungs["ptq"]["val_loss"], "float layers give some of the loss back"
    assert last["p50_ms"] > 0


@pytest.mark.slow
def test_where_nothing_holds_the_best_is_kept_and_the_exit_code_says_so(
    trained: Variant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uneven = _made_uneven(trained, tmp_path, until=0.97)
    options = ["--max-drop", "0", "--trials", "1", "--epochs", "1", "--scheme", "u8a7w", "--calibration", "fast"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["compress", "--int8", *options, "--run", str(uneven.path)])
    assert ended.value.code == 3
    assert "a drop of at most 0 points is missed by ptq" in capsys.readouterr().out
    made = next(
        record for record in uneven.variants().values() if (record.get("ladder") or {}).get("stopped") == "trials"
    )
    assert made["ladder"]["verdict"] == "missed"
    assert [rung["name"] for rung in made["ladder"]["rungs"]] == ["ptq"]


@pytest.mark.slow
def test_an_interrupted_rung_is_gone_on_with(uneven: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CHEAP.model_copy(update={"max_drop": 0.0, "epochs": 1, "trials": 3})
    console = Listening()
    said = console.said

    def interrupted(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rungs, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            api.compress(uneven, config, console=console)
    assert [line for line in said if line.startswith("rung")][-1].startswith("rung 3")
    assert not any(
        (record.get("ladder") or {}).get("stopped") == "no rung is left" for record in uneven.variants().values()
    )
    said.clear()
    (made,) = api.compress(uneven, config, console=console)
    taken = [line for line in said if line.startswith("rung")]
    assert [line.split(":")[0] for line in taken] == ["rung 3"], "the first two are not climbed again"
    assert [rung["name"] for rung in made.record["ladder"]["rungs"]] == ["ptq", "ranges", "qat"]
    assert open_variant(uneven, made.name).load() is not None
