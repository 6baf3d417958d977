"""Optimizers, schedules, gradients added up when memory runs out, and what is found: batch size and learning rate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_cli import edgeopt
from test_train import STEPS, Killed, batches, equal, examples, killed_in, run, scripted, tiny
from torch import Tensor, nn

from edgeopt import AugmentConfig, CompressConfig, DataConfig, ModelConfig, Recipe, TrainConfig, api
from edgeopt.config import validate
from edgeopt.errors import ConfigError, TrainingError
from edgeopt.stages.passes import training_recipe
from edgeopt.stages.training import TrainingPlan
from edgeopt.train import checkpoint, loop, probe
from edgeopt.train.batch_size import find_batch_size
from edgeopt.train.config import LoopConfig
from edgeopt.train.lr_range import find_lr
from edgeopt.train.objectives import CrossEntropy
from edgeopt.train.optimizer import make_optimizer, require_known_optimizer, schedule
from edgeopt.train.probe import Choice
from edgeopt.training_tables import SCHEDULES, contradictions

ONE_WAY = Choice("fp32", "contiguous")


@pytest.fixture(autouse=True)
def one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """No races between memory formats here: which is fastest may differ from run to run, and with it the last bits."""
    monkeypatch.setattr(loop, "candidates", lambda *_, **__: (ONE_WAY,))


# --- optimizers ---------------------------------------------------------------------------------------------------


def made(name: str, **values: Any) -> torch.optim.Optimizer:
    return make_optimizer(tiny(), LoopConfig(epochs=1, optimizer=name, layer_decay=1.0, **values))


def test_the_named_optimizers_are_what_they_are_called_and_decay_no_norms_and_biases() -> None:
    kinds = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD", "momentum": "SGD", "rmsprop": "RMSprop", "lion": "Lion"}
    for name, kind in kinds.items():
        optimizer = made(name, weight_decay=0.02)
        assert type(optimizer).__name__ == kind
        decays = {p.ndim > 1: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert decays == {True: 0.02, False: 0.0}
    for name, nesterov in (("sgd", True), ("momentum", False)):
        group = made(name, momentum=0.7).param_groups[0]
        assert (group["momentum"], group["nesterov"]) == (0.7, nesterov)
    assert made("rmsprop").param_groups[0]["momentum"] == 0.9


def test_rates_that_are_not_stated_are_those_of_the_optimizer() -> None:
    rates = {name: TrainConfig(optimizer=name) for name in ("adamw", "adam", "sgd", "rmsprop", "lion")}
    assert (rates["adamw"].lr, rates["adamw"].weight_decay) == (1e-3, 0.05)
    assert rates["sgd"].lr == 0.03
    assert rates["rmsprop"].lr == 1e-4
    assert max(rates[name].weight_decay for name in ("adam", "sgd", "rmsprop")) <= 1e-4  # L2: not AdamW's 0.05
    assert rates["sgd"].model_fields_set == {"optimizer"}  # so that another optimizer's trial takes its own
    stated = TrainConfig(optimizer="sgd", lr=0.5, weight_decay=0.0)
    assert (stated.lr, stated.weight_decay) == (0.5, 0.0)
    assert TrainConfig(optimizer="sgd", lr="auto").lr == "auto"
    plan = TrainingPlan.for_finetuning(rates["sgd"])
    assert (plan.loop.lr, plan.loop.weight_decay) == (0.03, 1e-4)


def test_every_value_of_the_recipe_that_training_knows_reaches_it() -> None:
    loop: dict[str, Any] = {
        "epochs": 7, "optimizer": "momentum", "momentum": 0.5, "lr": 0.02, "schedule": "step", "lr_decay": 0.3,
        "lr_step_epochs": 2.0, "lr_patience": 2, "weight_decay": 0.01, "layer_decay": 0.7, "warmup_epochs": 0.5,
        "head_epochs": 1.5, "unfreeze": "gradual", "ema_decay": 0.9, "patience": 4, "clip_grad": 0.5, "seed": 3,
        "precision": "fp32", "memory_format": "contiguous", "select": "recall",
    }  # fmt: skip
    batches: dict[str, Any] = {
        "loss": "focal", "loss_arguments": {"gamma": 1.0}, "label_smoothing": 0.2, "l1": 0.1, "sampling": "balanced",
        "augment": "light", "flip": False, "batch_size": 5, "workers": 2, "distill": "dkd", "temperature": 2.0,
        "distill_weight": 0.4,
    }  # fmt: skip
    stated = TrainConfig(**loop, **batches, time="20m", batchnorm="frozen")
    for name, value in {**loop, **batches}.items():
        assert value != TrainConfig.model_fields[name].default, name
    plan = TrainingPlan.for_finetuning(stated)
    for made, values in ((plan.loop, loop), (plan, batches)):
        known = {field.name for field in fields(made)} & set(TrainConfig.model_fields)
        assert {name: getattr(made, name) for name in known} == values
    assert plan.loop.time_seconds == 1200
    assert plan.freeze_batchnorm


@pytest.mark.parametrize("name", ["adam", "sgd", "rmsprop", "lamb", "adafactor"])
def test_killed_and_resumed_gives_the_same_weights_with_every_kind_of_state(tmp_path: Path, name: str) -> None:
    undisturbed, resumed = tiny(), tiny(seed=5)
    values: dict[str, Any] = {"epochs": 3, "optimizer": name, "lr": 0.005}
    run(undisturbed, tmp_path / "whole", **values)
    with pytest.raises(Killed):
        run(tiny(), tmp_path / "cut", **values, batches=killed_in(1))
    run(resumed, tmp_path / "cut", **values)
    assert equal(undisturbed, resumed)
    assert not equal(undisturbed, tiny())


def test_every_optimizer_of_timms_that_is_offered_trains_and_goes_on_exactly() -> None:
    from timm.optim import list_optimizers

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        images, targets = examples(number)
        optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(number)  # of dropout
        CrossEntropy()(model, images, targets).backward()
        optimizer.step()

    tried = 0
    for name in list_optimizers():
        try:
            require_known_optimizer(name)
        except ConfigError:
            continue
        config = LoopConfig(epochs=1, optimizer=name, layer_decay=1.0, lr=1e-3)
        model, other = tiny(), tiny()
        optimizer, again = make_optimizer(model, config), make_optimizer(other, config)
        for number in range(3):
            step(model, optimizer, number)
        kept = {key: value.clone() for key, value in checkpoint.optimizer_tensors(optimizer).items()}
        checkpoint.restore_optimizer(again, kept)
        other.load_state_dict(model.state_dict())
        for number in range(3, 5):
            step(model, optimizer, number)
            step(other, again, number)
        assert equal(model, other), name
        assert not torch.equal(model[6].weight, tiny()[6].weight), name
        tried += 1
    assert tried > 50


def test_gradients_are_clipped_to_the_norm_that_was_said(tmp_path: Path) -> None:
    moved = {}
    for clip in (0.01, 0.0):
        model = tiny()
        values: dict[str, Any] = {"optimizer": "momentum", "momentum": 0.0, "lr": 1.0, "weight_decay": 0.0}
        run(model, tmp_path / str(clip), epochs=1, clip_grad=clip, ema_decay=0.0, warmup_epochs=0.0, **values)
        start = dict(tiny().named_parameters())
        steps = [(p.detach() - start[name].detach()).norm() for name, p in model.named_parameters()]
        moved[clip] = float(torch.stack(steps).norm())
    assert moved[0.01] <= 0.01 * STEPS
    assert moved[0.0] > 10 * moved[0.01]


# --- schedules ----------------------------------------------------------------------------------------------------


def curve(kind: Any, **values: Any) -> list[float]:
    settings = {"steps": 100, "warmup_steps": 10, "min_ratio": 0.01, "steps_per_epoch": 10, **values}
    return [schedule(step, kind=kind, **settings) for step in range(100)]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_schedule_warms_up_to_one(kind: Any) -> None:
    values = curve(kind)
    assert values[0] < 0.15
    assert values[:10] == sorted(values[:10])
    assert max(values) == pytest.approx(1.0, abs=0.01)


def test_schedules_have_their_shapes() -> None:
    assert [round(value, 6) for value in curve("step")[10::30]] == [1.0, 0.1, 0.01]
    assert [curve("step", decay=0.5, step_epochs=2)[step] for step in (19, 20, 39, 40, 99)] == [
        1,
        0.5,
        0.5,
        0.25,
        1 / 16,
    ]
    exponential = curve("exponential")[10:]
    ratios = [after / before for before, after in pairwise(exponential)]
    assert max(ratios) == pytest.approx(min(ratios))
    assert exponential[-1] == pytest.approx(0.01, rel=0.1)
    assert curve("exponential", decay=0.5)[30] == pytest.approx(0.25)
    cycle = curve("one_cycle")
    assert cycle.index(max(cycle)) == 30
    assert cycle[0] == pytest.approx(1 / 25, abs=0.01)
    assert cycle[30:] == sorted(cycle[30:], reverse=True)
    assert cycle[-1] == pytest.approx(0.01, abs=0.002)
    assert set(curve("plateau", drops=2)[10:]) == {0.1**2}


def rates(folder: Path) -> list[float]:
    """The learning rate of every epoch."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["lr"] for row in rows if "epoch" in row]


def test_a_plateau_lowers_the_rate_when_val_stays_and_a_resumed_training_knows(tmp_path: Path) -> None:
    values: dict[str, Any] = {"epochs": 7, "schedule": "plateau", "lr_patience": 2, "lr_decay": 0.5, "lr": 0.01}
    values |= {"warmup_epochs": 0.0, "patience": 9}
    top1s = [0.1, 0.3, 0.2, 0.2, 0.4, 0.1, 0.1, 0.1]  # the initial weights, then epochs 1 to 7
    run(tiny(), tmp_path / "whole", evaluate=scripted(top1s, []), **values)
    assert rates(tmp_path / "whole") == pytest.approx([0.01, 0.01, 0.01, 0.005, 0.005, 0.005, 0.0025])
    with pytest.raises(Killed):
        run(tiny(), tmp_path / "cut", evaluate=scripted(top1s, []), batches=killed_in(4), **values)
    run(tiny(), tmp_path / "cut", evaluate=scripted(top1s[5:], []), **values)
    assert rates(tmp_path / "cut") == rates(tmp_path / "whole")


@pytest.mark.parametrize("kind", SCHEDULES)
def test_training_follows_its_schedule_and_learns(tmp_path: Path, kind: str) -> None:
    result = run(tiny(), tmp_path, epochs=8, schedule=kind)
    assert result.best_top1 > 0.85
    if kind != "plateau":
        settings = {"steps": 8 * STEPS, "warmup_steps": STEPS, "min_ratio": 0.01, "steps_per_epoch": STEPS}
        expected = [0.02 * schedule((epoch + 1) * STEPS - 1, kind=kind, **settings) for epoch in range(8)]  # type: ignore[arg-type]
        assert rates(tmp_path) == pytest.approx(expected)


# --- memory -------------------------------------------------------------------------------------------------------


def plain() -> nn.Sequential:
    """Without BatchNorm and dropout a batch's gradient is exactly the sum of its parts'."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)
    )


def test_when_memory_runs_out_gradients_are_added_up_and_the_effective_batch_stays(tmp_path: Path) -> None:
    said: list[str] = []
    sizes: list[int] = []

    def narrow(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        if len(images) > 8:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: x")
        sizes.append(len(images))
        return CrossEntropy()(model, images, targets)

    wide, parted = plain(), plain()
    whole = run(wide, tmp_path / "wide", objective=CrossEntropy(), optimizer="sgd")
    result = run(parted, tmp_path / "narrow", objective=narrow, optimizer="sgd", say=said.append)
    assert (whole.gradient_parts, result.gradient_parts) == (1, 4)  # 24 pictures: 12, then 6
    assert "memory ran out: 6 pictures at a time from now on, added up to batches of 24" in said
    assert set(sizes) == {6}
    for name, value in wide.state_dict().items():
        assert torch.allclose(value, parted.state_dict()[name], atol=1e-5), name
    assert not torch.allclose(wide[0].weight, plain()[0].weight, atol=1e-3)


def test_memory_that_runs_out_later_repeats_only_that_step(tmp_path: Path) -> None:
    calls: list[int] = []

    def later(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(images))
        if len(calls) == 12:
            raise RuntimeError("can't allocate memory")
        return CrossEntropy()(model, images, targets)

    undisturbed, disturbed = plain(), plain()
    run(undisturbed, tmp_path / "a", objective=CrossEntropy(), optimizer="sgd")
    assert run(disturbed, tmp_path / "b", objective=later, optimizer="sgd").gradient_parts == 2
    assert set(calls[:12]) == {24}
    assert set(calls[12:]) == {12}
    for name, value in undisturbed.state_dict().items():
        assert torch.allclose(value, disturbed.state_dict()[name], atol=1e-5), name


# --- what is found ------------------------------------------------------------------------------------------------


def test_the_batch_size_is_the_smallest_with_nearly_the_best_throughput_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]  # other work on the machine must not decide what is found here
    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def sleeping(seconds: float, each: float, largest: int = 10_000) -> Any:
        def objective(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
            if len(images) > largest:
                raise RuntimeError("can't allocate memory")
            clock[0] += seconds + each * len(images)
            return CrossEntropy()(model, images, targets)

        return objective

    def found(objective: Any, pictures: int) -> Any:
        return find_batch_size(tiny(), *examples(0), objective, ONE_WAY, pictures=pictures)

    overhead = found(sleeping(0.1, 0.0), 700)  # the more at once the better; 64 make ten steps, 128 only five
    assert overhead.size == 64
    assert found(sleeping(0.0, 0.01), 200).size == 8
    full = found(sleeping(0.1, 0.0, largest=16), 5000)
    assert (full.size, full.too_large) == (16, 32)
    assert overhead.to_json()["tried"][0]["size"] == 8
    with pytest.raises(TrainingError, match="not even 8 pictures"):
        found(sleeping(0.0, 0.0, largest=4), 5000)


def endless() -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in range(1000):
        yield from batches(epoch)


def test_the_range_test_finds_a_rate_that_trains_and_touches_nothing(tmp_path: Path) -> None:
    model = tiny()
    generator = torch.get_rng_state()
    config = LoopConfig(epochs=3, layer_decay=1.0, optimizer="momentum", ema_decay=0.0)
    found = find_lr(model, endless(), CrossEntropy(), config)
    assert equal(model, tiny())
    assert torch.equal(torch.get_rng_state(), generator)
    assert found == find_lr(model, endless(), CrossEntropy(), config)
    assert len(found.rates) == len(found.losses) == len(found.smoothed) > 40
    assert list(found.rates) == sorted(found.rates)
    assert found.smoothed[found.rates.index(found.lr * 10)] == min(found.smoothed)
    losses = {}
    for rate in (found.lr, found.lr / 300):
        run(tiny(), tmp_path / str(rate), epochs=3, optimizer="momentum", ema_decay=0.0, lr=rate)
        losses[rate] = json.loads((tmp_path / str(rate) / "log.jsonl").read_text().splitlines()[-1])["train_loss"]
    assert losses[found.lr] < losses[found.lr / 300] - 0.1
    with pytest.raises(TrainingError, match="no learning rate"):
        find_lr(model, endless(), lambda model, images, targets: 0 * CrossEntropy()(model, images, targets), config)


def test_finetune_finds_both_keeps_the_curve_and_compression_takes_the_batch_size_and_the_way_to_compute(
    pictures: Path, tmp_path: Path
) -> None:
    train = TrainConfig(epochs=2, batch_size="auto", lr="auto", optimizer="sgd", layer_decay=1.0, augment="none")
    data = DataConfig(path=str(pictures), image_size=32)
    variant = api.finetune(data, ModelConfig(name="resnet18", pretrained=False), train, run=tmp_path / "run")
    folder = variant.run.path / "host" / "float"
    size, curve = (json.loads((folder / name).read_text()) for name in ("batch_size.json", "lr_range.json"))
    assert [row["size"] for row in size["tried"]] == [8]  # 84 pictures: 16 would make five steps an epoch
    assert len(curve["rates"]) == len(curve["smoothed"]) > 10
    figures = variant.record["metrics"]["training"]
    assert (figures["batch_size"], figures["lr"]) == (8, curve["lr"])
    assert variant.record["metrics"]["val_top1"] > 0.6
    again = TrainingPlan.for_recovery(CompressConfig(), **training_recipe(SimpleNamespace(start=variant)))  # type: ignore[arg-type]
    assert again.batch_size == 8
    assert again.loop.known_way == (figures["precision"], figures["memory_format"])
    elsewhere = SimpleNamespace(start=SimpleNamespace(record={**variant.record, "machine": "another"}))
    assert TrainingPlan.for_qat(CompressConfig(), **training_recipe(elsewhere)).loop.known_way is None  # type: ignore[arg-type]


# --- mistakes -----------------------------------------------------------------------------------------------------


def test_what_does_not_belong_together_is_refused_at_once() -> None:
    train = {"lr_decay": 0.5, "lr_patience": 3, "momentum": 0.9, "lr": "fast", "batch_size": 0}
    with pytest.raises(ConfigError) as caught:
        validate(Recipe, {"data": {"path": "x"}, "train": train}, where="recipe")
    for part in ("2 problems", "train.lr: ", 'or "auto"', "train.batch_size: "):
        assert part in str(caught.value)
    train = {"lr_decay": 0.5, "lr_patience": 3, "momentum": 0.9}
    with pytest.raises(ConfigError) as caught:
        validate(Recipe, {"data": {"path": "x"}, "train": train}, where="recipe")
    for part in ("3 problems", "train.lr_decay: the schedule cosine has none", "train.momentum: adamw has none"):
        assert part in str(caught.value)

    def against(**values: Any) -> list[str]:
        return contradictions(TrainConfig(**values), AugmentConfig())

    assert "training would end" in against(schedule="plateau", lr_patience=5, patience=5)[0]
    assert "Nesterov's needs more than 0" in against(optimizer="sgd", momentum=0)[0]
    assert against(schedule="plateau", optimizer="momentum", momentum=0.0, lr_decay=0.3) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--lr", "fast"], 2, "neither a number nor auto"),
        (["--batch-size", "0"], 1, 'or "auto"'),
        (["--schedule", "cosin"], 2, "cosine"),
        (["--optimizer", "adamv"], 1, "did you mean"),
        (["--optimizer", "adahessian"], 1, "unknown optimizer"),
    ],
)
def test_mistakes_of_the_flags_are_named(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    done = edgeopt("finetune", "photos", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []
