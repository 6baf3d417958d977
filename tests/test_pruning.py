"""The pruning pass takes, of the ways to spread the cuts, the one that val prefers once its layers were fitted."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from edgeopt import CompressConfig, TrainConfig, environment
from edgeopt.errors import BackendError, ModelError
from edgeopt.stages import cut_timing, pruning
from edgeopt.stages.training import TrainingPlan

LOSSES = {"one ratio": 0.9, "importance per MAC": 0.7}
UNCUT = 0.5


def job(said: list[str]) -> Any:
    @contextmanager
    def task(title: str) -> Any:
        yield lambda *_: None

    start = SimpleNamespace(preprocess=None)
    workspace = SimpleNamespace(prepared=lambda name, spec: name)
    config = SimpleNamespace(importance="taylor")
    console = SimpleNamespace(task=task, say=said.append)
    return SimpleNamespace(start=start, workspace=workspace, config=config, console=console, round_to=8)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two cuts, each a model of its own, and figures on val that are planted."""
    made = {name: SimpleNamespace(model=nn.Identity(), history=[[name, True, [0]]]) for name in LOSSES}
    losses = {id(way.model): LOSSES[name] for name, way in made.items()}
    monkeypatch.setattr(pruning, "channels_of", lambda *_: None)
    monkeypatch.setattr(pruning, "cuts", lambda *_, **__: dict(made))
    monkeypatch.setattr(pruning, "settled", lambda job, start, cut, history, plan, **_: cut)

    def validate(model: nn.Module) -> dict[str, float]:
        return {"loss": losses.get(id(model), UNCUT), "loss_error": 0.05}

    monkeypatch.setattr(pruning, "evaluator", lambda name, spec: validate)
    return made


def fewer(said: list[str]) -> tuple[nn.Module, Any]:
    whole: Any = nn.Identity()
    return pruning._fewer_channels(job(said), whole, whole, [], SimpleNamespace(), 0.5)  # type: ignore[arg-type]


def test_the_way_with_the_lower_loss_on_val_is_taken_and_both_are_said(ways: dict[str, Any]) -> None:
    said: list[str] = []
    model, way = fewer(said)
    assert way is ways["importance per MAC"]
    assert model is way.model
    assert said == [
        "cut by importance per MAC: val loss before recovery 0.900 by one ratio, 0.700 by importance per MAC"
    ]


def test_where_the_first_way_costs_nothing_that_val_can_tell_the_others_are_not_fitted(
    ways: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[str] = []

    def settled(job: Any, start: Any, cut: nn.Module, history: Any, plan: Any, *, what: str) -> nn.Module:
        fitted.append(what)
        return cut

    monkeypatch.setattr(pruning, "settled", settled)
    for uncut, took in ((0.79, ["one ratio", "importance per MAC"]), (0.81, ["one ratio"])):
        fitted.clear()
        monkeypatch.setitem(globals(), "UNCUT", uncut)
        said: list[str] = []
        fewer(said)
        assert fitted == took
    assert said == ["cut by one ratio: val loss before recovery 0.900, within the error of 0.810 uncut"]


def test_one_way_is_taken_as_it_is(ways: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    only = {"one ratio": ways["one ratio"]}
    monkeypatch.setattr(pruning, "cuts", lambda *_, **__: only)
    said: list[str] = []
    assert fewer(said)[1] is ways["one ratio"]
    assert said == []


def test_a_step_that_takes_nothing_away_is_refused() -> None:
    record = {"macs_before": 10, "macs_after": 5, "parameters_before": 7, "parameters_after": 7}
    with pytest.raises(ModelError, match="did not lower the parameters"):
        pruning._require_smaller(record)


def timed(
    monkeypatch: pytest.MonkeyPatch, shares: dict[str, Any], *, targets: tuple[str, ...] = ()
) -> tuple[Any, list[str]]:
    """A job on whose targets here the cut engines take shares that are planted: value and interval, or an error."""
    told: list[str] = []
    asked = job(told)
    asked.config, asked.targets = CompressConfig(prune=0.3), targets
    here = [(SimpleNamespace(name=name), "u8a8w") for name in shares]
    monkeypatch.setattr(cut_timing, "all_here", lambda _: here)

    def share_after(_: Any, target: Any, scheme: str, *__: Any) -> dict[str, Any]:
        found = shares[target.name]
        if isinstance(found, Exception):
            raise found
        value, interval = found
        return {"target": target.name, "scheme": scheme, "share_of_unpruned": value, "share_of_unpruned_ci": interval}

    monkeypatch.setattr(cut_timing, "share_after", share_after)
    return asked, told


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ([0.6, 0.7], "int8 on openvino it takes 0.65 (0.60 to 0.70) of the whole network's time"),
        ([0.6, 1.1], "(0.60 to 1.10) of the whole network's time; whether it is faster cannot be told"),
        (None, "it takes 0.65 of the whole network's time; whether it is faster cannot be told"),
        ([1.0, 1.1], None),
    ],
)
def test_cuts_that_make_the_engine_no_faster_are_refused_before_anything_is_trained(
    interval: list[float] | None, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, told = timed(monkeypatch, {"openvino": (0.65, interval)})
    if said is None:
        with pytest.raises(ModelError, match=r"did not lower the latency: int8 on openvino it takes 0\.65 \(1\.00 to"):
            cut_timing.require_faster(asked, nn.Identity(), [])
    else:
        found = cut_timing.require_faster(asked, nn.Identity(), [])
        assert found is not None
        assert found["share_of_unpruned_ci"] == interval
        assert told[0].endswith(said)


NO_CUDA = BackendError("this ONNX Runtime has no CUDAExecutionProvider", fix="another provider")


def test_an_engine_that_cannot_be_timed_ends_no_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that names no machine, on another provider or device than is here: int8 alone is made for it as well."""
    asked, told = timed(monkeypatch, {"cuda": NO_CUDA}, targets=("cuda",))
    assert cut_timing.require_faster(asked, nn.Identity(), []) is None
    assert told == ["not timed before training: cuda: this ONNX Runtime has no CUDAExecutionProvider"]


def test_cuts_are_refused_where_they_help_no_target_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    slower, faster = (1.1, [1.05, 1.15]), (0.7, [0.68, 0.72])
    asked, told = timed(monkeypatch, {"onnxruntime": slower, "openvino": faster}, targets=("onnxruntime", "openvino"))
    found = cut_timing.require_faster(asked, nn.Identity(), [])
    assert found is not None
    assert found["target"] == "openvino"
    assert len(told) == 2
    for shares, targets in (({"onnxruntime": slower}, ("onnxruntime", "raspberry-pi-5")),
                            ({"onnxruntime": slower, "cuda": NO_CUDA}, ("onnxruntime", "cuda"))):  # fmt: skip
        asked, told = timed(monkeypatch, shares, targets=targets)
        assert cut_timing.require_faster(asked, nn.Identity(), []) is not None
        assert told[-1] == "it is pruned all the same, for the targets that could not be timed here"
    asked, told = timed(monkeypatch, {"onnxruntime": slower, "openvino": slower})
    with pytest.raises(ModelError, match="did not lower the latency"):
        cut_timing.require_faster(asked, nn.Identity(), [])


def test_pruning_in_steps_is_judged_by_all_of_its_cuts(
    tmp_path: Path, ways: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of them may round to no faster engine, where all of them halve its time."""
    judged: list[int] = []
    monkeypatch.setattr(pruning, "_without_parts", lambda job, start, plan: (start, []))
    monkeypatch.setattr(
        pruning, "_fewer_channels", lambda *_: (nn.Identity(), SimpleNamespace(untouched={}, history=[0]))
    )
    monkeypatch.setattr(pruning, "require_faster", lambda job, start, history: judged.append(len(history)))
    monkeypatch.setattr(pruning, "recover", lambda *_, **__: {})
    monkeypatch.setattr(pruning.models, "save", lambda *_: None)
    asked = job([])
    asked.config = CompressConfig(prune=0.3, prune_steps=3)
    asked.start.architecture = SimpleNamespace(pruned=lambda history: history)
    plan = TrainingPlan.for_recovery(asked.config)
    pruning._in_steps(asked, nn.Identity(), plan, tmp_path)
    assert judged == [3]


def test_without_int8_or_a_runtime_here_nothing_is_timed() -> None:
    asked: Any = job([])
    asked.config, asked.targets = CompressConfig(int8=False, prune=0.3), ("openvino",)
    assert cut_timing.require_faster(asked, nn.Identity(), []) is None
    asked.config, asked.targets = CompressConfig(prune=0.3), ("raspberry-pi-5",)
    assert environment.record()["board"] or cut_timing.require_faster(asked, nn.Identity(), []) is None


def test_every_training_of_a_run_sees_views_of_its_own() -> None:
    # With the seed of fine-tuning, students would be taught by the very views that their teacher was trained on.
    finetuned = TrainingPlan.for_finetuning(TrainConfig(seed=3)).loop.seed
    recovery = TrainingPlan.for_recovery(CompressConfig(), seed=3)
    int8 = TrainingPlan.for_qat(CompressConfig(), seed=3)
    plans = [recovery, recovery.again(1), recovery.again(2), int8, int8.again(1)]
    seeds = [plan.loop.seed for plan in plans]
    assert len({finetuned, *seeds}) == 6
    assert TrainingPlan.for_recovery(CompressConfig(), seed=3).again(1).loop.seed == recovery.again(1).loop.seed
    assert TrainingPlan.for_recovery(CompressConfig(), seed=4).loop.seed != recovery.loop.seed
