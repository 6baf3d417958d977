"""The pruning pass takes, of the ways to spread the cuts, the one that val prefers once its layers were fitted."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgeopt import CompressConfig, TrainConfig, environment, models
from edgeopt.compress.prune import MOST_IMPORTANT, layer_widths, prune, replay, step_of
from edgeopt.config import validate
from edgeopt.errors import BackendError, ConfigError, ModelError
from edgeopt.models.macs import count_macs
from edgeopt.preprocess import PreprocessSpec
from edgeopt.stages import cut_timing, pruning
from edgeopt.stages.training import TrainingPlan
from edgeopt.train.soup import refresh_batchnorm
from tests.tiny_torch import PlainNet, calibration

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
    monkeypatch.setattr(pruning, "_ways", lambda *_: dict(made))
    monkeypatch.setattr(pruning, "settled", lambda job, start, cut, history, plan, **_: cut)

    def validate(model: nn.Module) -> dict[str, float]:
        return {"loss": losses.get(id(model), UNCUT), "loss_error": 0.05}

    monkeypatch.setattr(pruning, "evaluator", lambda name, spec: validate)
    return made


def fewer(said: list[str]) -> tuple[nn.Module, Any]:
    whole: Any = nn.Identity()
    return pruning._fewer_channels(job(said), whole, whole, [], SimpleNamespace(), 1)  # type: ignore[arg-type]


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
    monkeypatch.setattr(pruning, "_ways", lambda *_: only)
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


def test_a_pruning_killed_between_its_steps_goes_on_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cuts are real and by weights; their recovery is planted, and killed in the second of three."""
    created = models.create("tests.tiny_torch:PlainNet", num_classes=3, pretrained=False)
    start, example = created.model.eval(), torch.zeros(1, 3, 32, 32)
    steps: list[int] = []
    recovered: list[tuple[int, int, str]] = []

    def fewer_channels(
        job: Any, start: nn.Module, model: nn.Module, before: Any, plan: Any, step: int
    ) -> tuple[nn.Module, Any]:
        steps.append(step)
        left = count_macs(model, example.shape) / count_macs(start, example.shape)
        fraction, _ = step_of(left, fraction=0.49, step=step, steps=3)
        found = prune(model, fraction=fraction, example=example, importance="l2", round_to=1)
        return found.model, found

    def recover(job: Any, plan: TrainingPlan, *_: Any, folder: Path) -> dict[str, Any]:
        if len(recovered) == 1 and plan is not None:
            recovered.append((0, 0, "killed"))
            raise KeyboardInterrupt
        recovered.append((plan.loop.epochs, plan.loop.seed, folder.name))
        return {"val_top1": len(recovered)}

    monkeypatch.setattr(pruning, "_fewer_channels", fewer_channels)
    monkeypatch.setattr(pruning, "recover", recover)
    monkeypatch.setattr(pruning, "require_faster", lambda *_: None)
    asked = job([])
    asked.config = CompressConfig(prune=0.49, prune_steps=3)
    asked.start.architecture, asked.run = created.architecture, SimpleNamespace(info={"host": environment.host_id()})
    plan = TrainingPlan.for_recovery(asked.config)
    with pytest.raises(KeyboardInterrupt):
        pruning._in_steps(asked, start, plan, tmp_path)
    model, done = pruning._in_steps(asked, start, plan, tmp_path)
    assert [row[2] for row in recovered] == ["step-1", "killed", "step-2", "step-3"]
    assert {row[0] for row in recovered} == {7, 0}, "a third of twenty epochs, rounded up"
    assert len({row[1] for row in recovered}) == 4, "views of their own"
    assert steps == [1, 2, 2, 3]
    assert count_macs(model, (3, 32, 32)) / count_macs(start, (3, 32, 32)) == pytest.approx(0.51, abs=0.02)
    again = replay(models.create("tests.tiny_torch:PlainNet", num_classes=3, pretrained=False).model, done["history"])
    again.load_state_dict(model.state_dict())  # what all three steps cut
    assert done["metrics"] == {"val_top1": 4}


@pytest.mark.parametrize(
    ("name", "share", "steps"), [("mobilenetv3_small_050", 0.3, 3), ("resnet10t", 0.5, 8), ("resnet10t", 0.3, 10)]
)
def test_steps_that_cannot_be_made_exactly_are_made_up_for_by_the_next(name: str, share: float, steps: int) -> None:
    """In steps of 8 channels: only all of them together are held to what was asked, and to the cap a layer."""
    torch.manual_seed(0)
    start = models.create(name, num_classes=3, pretrained=False, image_size=64).model.eval()
    example, cut = torch.zeros(1, 3, 64, 64), 0
    asked = job([])
    asked.config = CompressConfig(prune=share, prune_steps=steps, importance="l2")
    asked.round_to, asked.start.preprocess = 8, PreprocessSpec(size=(64, 64))
    model, history = start, []
    for step in range(1, steps + 1):
        (way, *_) = pruning._ways(asked, start, model, history, SimpleNamespace(), step).values()  # type: ignore[arg-type]
        model, history, cut = way.model, [*history, *way.history], cut + bool(way.history)
    assert count_macs(model, example.shape) / count_macs(start, example.shape) == pytest.approx(1 - share, abs=0.021)
    assert cut > 1
    before, after = layer_widths(start), layer_widths(model)
    assert min(after[layer] / before[layer] for layer in before) >= 0.3


def _cut_network() -> tuple[nn.Module, nn.Module, list[Any], list[tuple[torch.Tensor, torch.Tensor]]]:
    """A network whose BatchNorms know its pictures, the same after a cut, the cut, and batches that it is right on."""
    torch.manual_seed(0)
    whole = PlainNet(4)
    refresh_batchnorm(whole.eval(), calibration())
    with torch.no_grad():
        batches = [(images, whole(images).argmax(1)) for images in calibration()]
    found = prune(whole, fraction=0.4, example=torch.zeros(1, 3, 32, 32), importance="l2", round_to=4)
    return whole, found.model, found.history, batches


@pytest.mark.parametrize("fitted", [False, True])
def test_after_a_cut_batchnorm_is_estimated_anew_and_layers_are_fitted_where_that_helps(
    fitted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut, history, batches = _cut_network()
    said: list[str] = []
    asked = job(said)
    asked.config = CompressConfig(reconstruct=fitted)
    plan: Any = SimpleNamespace(gradient_batches=lambda workspace, spec: iter(batches))
    loss_of, weights = pruning._loss(batches), cut.get_parameter("convs.2.weight").clone()
    stale = loss_of(cut)
    ready = pruning.settled(asked, whole, copy.deepcopy(cut), history, plan)
    assert torch.equal(ready.get_parameter("convs.2.weight"), weights) == (not fitted)
    with torch.no_grad():
        norm = ready.get_submodule("norms.0")
        given = [ready.get_submodule("convs.0")(images) for images, _ in batches]
        shown = [F.relu(F.batch_norm(one, None, None, norm.weight, norm.bias, training=True)) for one in given]  # type: ignore[arg-type]
        expected = torch.stack([ready.get_submodule("convs.1")(maps).mean((0, 2, 3)) for maps in shown]).mean(0)
    torch.testing.assert_close(ready.get_buffer("norms.1.running_mean"), expected)
    assert loss_of(ready) < stale
    assert not ready.training
    assert said == []

    def harmful(whole: nn.Module, cut: nn.Module, *_: Any) -> int:
        nn.init.normal_(cut.get_parameter("head.weight"), std=100.0)
        return 1

    monkeypatch.setattr(pruning, "reconstruct", harmful)
    asked.config = CompressConfig()
    ready = pruning.settled(asked, whole, copy.deepcopy(cut), history, plan)
    assert torch.equal(ready.get_parameter("head.weight"), cut.get_parameter("head.weight"))
    assert said[0].startswith("fitting layers anew did not help this way: loss ")


def test_the_cap_a_layer_that_is_stated_is_kept_and_makes_another_variant() -> None:
    asked = job([])
    asked.start = SimpleNamespace(preprocess=SimpleNamespace(input_shape=(3, 32, 32)))
    asked.round_to = 1
    start, plan = PlainNet().eval(), cast(Any, None)
    for stated, cap in (({}, 0.7), ({"layer_cap": 0.25}, 0.25)):
        asked.config = CompressConfig(importance="l2", prune=0.3, **stated)
        found = pruning.channels_of(asked, start, plan)
        assert {group.most / len(group.scores) for group in found.groups} == {
            int(cap * len(group.scores)) / len(group.scores) for group in found.groups
        }
        assert pruning.stated(asked, "layer_cap") == set(stated)
    with pytest.raises(ConfigError, match="layer_cap"):
        validate(CompressConfig, {"prune": 0.3, "layer_cap": 1.0}, where="compress options")


def test_a_pruning_that_took_nothing_away_makes_no_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    start = PlainNet().eval()
    nothing = {"history": [], "reasons": {}, "metrics": {}, "latency": None}
    monkeypatch.setattr(pruning, "_in_steps", lambda *_: (start, nothing))
    monkeypatch.setattr(pruning, "recovered", lambda *_, make, **__: make(Path()))
    asked = job([])
    asked.config, asked.targets = CompressConfig(prune=0.3), ()
    asked.start = SimpleNamespace(
        name="float", record={}, preprocess=SimpleNamespace(input_shape=(3, 32, 32)), load=lambda: start
    )
    with pytest.raises(ModelError, match="pruning did not lower the MACs"):
        pruning.pruned(asked)


def test_layers_that_could_not_be_pruned_are_named_with_the_reason() -> None:
    said: list[str] = []
    figures = {"macs_before": 2e6, "macs_after": 1e6, "parameters_before": 10, "parameters_after": 5}
    reasons = {f"stem.{i}": "ignored on request" for i in range(6)} | {"fc": "classifier", "kept": MOST_IMPORTANT}
    pruning._say(job(said), {**figures, "untouched": reasons})
    assert said[0].startswith("pruned: 2 to 1 M MACs")
    assert said[1] == ("not pruned: stem.0, stem.1, stem.2, stem.3 and 2 more (ignored on request); fc (classifier)")


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
