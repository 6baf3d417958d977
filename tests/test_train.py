"""The training loop: it learns, keeps the best averaged weights, resumes bit-equal, and says what goes wrong."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeopt.errors import TrainingError
from edgeopt.train import checkpoint, clock, loop
from edgeopt.train.allocator import keep_memory
from edgeopt.train.config import Advice
from edgeopt.train.loop import LoopConfig, TrainResult, train
from edgeopt.train.objectives import CrossEntropy
from edgeopt.train.probe import Choice, ProbeResult

STEPS = 6


def tiny(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(32, 3),
        )


def examples(seed: int, count: int = 24) -> tuple[Tensor, Tensor]:
    """Pictures whose brightest channel is their class."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 3
    images = torch.randn(count, 3, 12, 12, generator=generator)
    images[torch.arange(count), targets] += 0.7
    return images, targets


def batches(epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    for step in range(first, STEPS):
        yield examples(1000 * epoch + step)


def validate(model: nn.Module) -> dict[str, float]:
    assert not any(module.training for module in model.modules())
    images, targets = examples(999_999, 120)
    with torch.inference_mode():
        logits = model(images)
    return {
        "top1": float((logits.argmax(1) == targets).float().mean()),
        "loss": float(nn.functional.cross_entropy(logits, targets)),
    }


def run(model: nn.Module, folder: Path, **values: Any) -> TrainResult:
    arguments = {
        "batches": batches,
        "steps_per_epoch": STEPS,
        "evaluate": validate,
        "objective": CrossEntropy(0.1),
        **{name: values.pop(name) for name in list(values) if name not in LoopConfig.__dataclass_fields__},
    }
    config = LoopConfig(**{"epochs": 4, "lr": 0.02, "layer_decay": 1.0, "checkpoint_seconds": 0.0, **values})
    return train(model, config=config, folder=folder, **arguments)


@pytest.fixture(autouse=True)
def one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """No races between memory formats here: which is fastest may differ from run to run, and with it the last bits."""
    monkeypatch.setattr(loop, "candidates", lambda *_, **__: (Choice("fp32", "channels_last"),))


def equal(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


def test_it_learns_logs_and_leaves_the_model_as_it_came(tmp_path: Path) -> None:
    model, said, steps = tiny(), [], []
    torch.manual_seed(3)
    before = torch.get_rng_state()
    result = run(
        model, tmp_path, epochs=8, say=said.append, progress=lambda done, total, note: steps.append((done, total))
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert result.best_top1 > 0.9
    assert validate(model)["top1"] == result.best_top1
    assert not model.training
    assert model[0].weight.is_contiguous()
    assert result.images_per_second > 0
    assert (result.precision, result.memory_format) == ("fp32", "channels_last")
    assert re.search(r"training will take about \d+ s: 8 epochs", said[0])
    assert result.estimate_seconds is not None
    assert steps[-1] == (8 * STEPS, 8 * STEPS)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if "epoch" in row] == list(range(1, 9))
    assert {"initial", "probe"} <= {row.get("event") for row in rows}
    assert {"lr", "train_loss", "val_top1", "val_loss", "images_per_second", "seconds"} <= set(rows[-1])
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(("epochs", "measured"), [(99 // STEPS, 1), (100 // STEPS + 1, 3)])
def test_what_is_nothing_to_choose_costs_a_short_training_one_step(
    epochs: int, measured: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop._Loop, "_goes_on", lambda self: False)
    run(tiny(), tmp_path, epochs=epochs, keep_initial=True)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [choice["steps"] for row in rows if row.get("event") == "probe" for choice in row["choices"]] == [measured]


def test_a_way_that_is_known_is_not_looked_for_and_one_that_cannot_be_is_no_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = (Choice("fp32", "channels_last"), Choice("fp32", "contiguous"))
    monkeypatch.setattr(loop, "candidates", lambda *_, **__: ways)
    for known, tried in ((("fp32", "contiguous"), ways[1:]), (("bf16", "contiguous"), ways), (None, ways)):
        folder = tmp_path / str(known)
        run(tiny(), folder, epochs=1, known_way=known)
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        (probed,) = [row["choices"] for row in rows if row.get("event") == "probe"]
        assert {row["memory_format"] for row in probed} == {way.memory_format for way in tried}


@pytest.mark.parametrize("fastest", [0, 1])
def test_it_trains_in_the_way_that_was_fastest_with_memory_kept_from_the_first_step(
    fastest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is fastest is planted: it differs by machine."""
    ways = (Choice("fp32", "channels_last"), Choice("fp32", "contiguous"))
    monkeypatch.setattr(loop, "candidates", lambda *_, **__: ways)
    found = ProbeResult(ways[fastest], {way: (1.0 + (way != ways[fastest]),) for way in ways})
    monkeypatch.setattr(loop, "probe", lambda *_, **__: found)
    kept: list[bool] = []
    monkeypatch.setattr(loop, "keep_memory", lambda: kept.append(keep_memory()))
    seen: set[tuple[bool, int]] = set()

    def objective(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        seen.add((images.is_contiguous(), len(kept)))
        return CrossEntropy()(model, images, targets)

    result = run(tiny(), tmp_path, epochs=1, objective=objective)
    assert result.memory_format == ways[fastest].memory_format
    assert seen == {(ways[fastest].memory_format == "contiguous", 1)}


class Killed(BaseException):
    pass


def disturbed_in(epoch: int, disturb: Callable[[], None]) -> Callable[[int, int], Iterator[tuple[Tensor, Tensor]]]:
    """The batches, and ``disturb`` called before the third of ``epoch``."""

    def make(now: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step, batch in enumerate(batches(now, first), start=first):
            if now == epoch and step == 2:
                disturb()
            yield batch

    return make


def killed_in(epoch: int) -> Callable[[int, int], Iterator[tuple[Tensor, Tensor]]]:
    def kill() -> None:
        raise Killed

    return disturbed_in(epoch, kill)


@pytest.mark.parametrize("ema_decay", [0.9, 0.0])
def test_killed_and_resumed_gives_the_same_weights_to_the_bit(tmp_path: Path, ema_decay: float) -> None:
    undisturbed = tiny()
    whole = run(undisturbed, tmp_path / "whole", epochs=5, ema_decay=ema_decay)
    for epoch in (2, 4):
        with pytest.raises(Killed):
            run(tiny(), tmp_path / "cut", epochs=5, ema_decay=ema_decay, batches=killed_in(epoch))
    # Another initialization: everything must come from the checkpoint.
    resumed, said = tiny(seed=5), []
    result = run(resumed, tmp_path / "cut", epochs=5, ema_decay=ema_decay, say=said.append)
    assert said[0] == f"training goes on: {4 + 2 / STEPS:.1f} of 5 epochs are done"
    assert equal(undisturbed, resumed)
    assert (result.best_top1, result.best_epoch, result.epochs) == (whole.best_top1, whole.best_epoch, 5)
    assert result.seconds > 0

    def epochs(folder: str) -> list[tuple[int, float]]:
        rows = [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
        return [(row["epoch"], row["train_loss"]) for row in rows if "epoch" in row]

    assert epochs("cut") == epochs("whole")


def logged(folder: Path) -> list[str | int]:
    """What log.jsonl has, line by line: the event, or the epoch."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row.get("event") or row["epoch"] for row in rows]


def test_killed_before_the_first_validation_it_goes_on_too(tmp_path: Path) -> None:
    undisturbed, resumed, said = tiny(), tiny(seed=5), []
    run(undisturbed, tmp_path / "whole")

    def killed(epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step, batch in enumerate(batches(epoch, first), start=first):
            if step == 4:  # past what the speed probe takes
                raise Killed
            yield batch

    with pytest.raises(Killed):
        run(tiny(), tmp_path / "cut", batches=killed)
    run(resumed, tmp_path / "cut", say=said.append)
    assert said[0] == f"training goes on: {4 / STEPS:.1f} of 4 epochs are done"
    assert equal(undisturbed, resumed)
    events = ["initial", "probe", 1, 2, 3, 4]
    assert logged(tmp_path / "cut") == events, "what was written before the first epoch stays"
    run(tiny(), tmp_path / "cut", lr=0.01)
    assert logged(tmp_path / "cut") == events, "another training begins its own log"


def test_killed_after_any_write_it_stops_at_the_same_epoch_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A best epoch must not be found without the counters of its own moment: it would be judged again, and tie."""
    top1s = {1: 0.3, 2: 0.5, 3: 0.4, 4: 0.8, 5: 0.7, 6: 0.6, 7: 0.5, 8: 0.9}
    values: dict[str, Any] = {"epochs": 9, "schedule": "plateau", "lr_patience": 1, "warmup_epochs": 0.0}
    values |= {"patience": 3, "lr_decay": 0.5, "ema_decay": 0.0, "steps_per_epoch": 2}
    values["batches"] = lambda epoch, first: islice(batches(epoch, first), 2 - first)

    def judged(model: nn.Module) -> dict[str, float]:
        # The number of steps BatchNorm has seen says which epoch this is, however often it is judged.
        return {"top1": top1s.get(int(model[1].num_batches_tracked) // 2, 0.1), "loss": 1.0}

    def counters(folder: Path) -> list[int]:
        found = checkpoint.load(folder / "checkpoints" / "last.safetensors")
        assert found is not None
        return [found[1][name] for name in ("epoch", "idle_epochs", "lr_drops")]

    save, written = checkpoint.save, [0]

    def counted(*arguments: Any) -> None:
        save(*arguments)
        written[0] += 1
        if written[0] == strike:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", counted)
    undisturbed, strike = tiny(), 0
    whole = run(undisturbed, tmp_path / "whole", evaluate=judged, **values)
    assert (whole.epochs, whole.best_epoch) == (7, 4)
    assert counters(tmp_path / "whole") == [7, 3, 4]
    for strike in range(1, written[0]):
        folder, written[0] = tmp_path / str(strike), 0
        with pytest.raises(Killed):
            run(tiny(), folder, evaluate=judged, **values)
        resumed = tiny(seed=5)
        result = run(resumed, folder, evaluate=judged, **values)
        assert (result.epochs, result.best_epoch, result.best_top1) == (7, 4, 0.8)
        assert counters(folder) == counters(tmp_path / "whole")
        assert equal(undisturbed, resumed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_end_and_the_same_call_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    undisturbed, handler = tiny(), signal.getsignal(number)
    run(undisturbed, tmp_path / "whole", checkpoint_seconds=1e9)
    said: list[str] = []
    stop = disturbed_in(1, lambda: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt):
        run(tiny(), tmp_path / "cut", checkpoint_seconds=1e9, batches=stop, say=said.append)
    assert said[-2:] == [
        "stopping after this step; once more to stop at once",
        f"stopped: {1 + 3 / STEPS:.1f} of 4 epochs are done and saved",
    ]
    assert signal.getsignal(number) == handler
    resumed = tiny(seed=5)
    run(resumed, tmp_path / "cut", checkpoint_seconds=1e9)
    assert equal(undisturbed, resumed)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    said: list[str] = []

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tiny(), tmp_path, batches=disturbed_in(1, twice), say=said.append)
    assert not any(line.startswith("stopped") for line in said)


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first, second = tiny(), tiny(seed=1)
    done = run(first, tmp_path)
    again = run(second, tmp_path, batches=lambda epoch, first: pytest.fail("trained again"))
    assert equal(first, second)
    assert again.best_epoch == done.best_epoch


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_not_taken_up(tmp_path: Path) -> None:
    run(tiny(), tmp_path)
    said: list[str] = []
    result = run(tiny(), tmp_path, lr=0.01, say=said.append)
    assert said[0] == "training starts afresh: the checkpoint found is of another training"
    assert result.epochs == 4
    last = tmp_path / "checkpoints" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-40])
    assert checkpoint.load(tmp_path / "absent.safetensors") is None
    assert run(tiny(), tmp_path, lr=0.01).epochs == 4


def test_checkpoints_are_safetensors_and_can_be_cleared(tmp_path: Path) -> None:
    model = tiny()
    run(model, tmp_path)
    stored = load_file(tmp_path / "checkpoints" / "last.safetensors")
    assert all(torch.equal(stored[f"best/{name}"], value) for name, value in model.state_dict().items())
    checkpoint.clear(tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


def scripted(top1s: list[float], seen: list[dict[str, Tensor]]) -> Callable[[nn.Module], Mapping[str, float]]:
    """Validation that gives these figures in turn, and keeps the weights it was shown."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"top1": top1s[len(seen) - 1], "loss": 1.0}

    return evaluate


def test_the_best_epoch_wins_and_patience_ends_the_training(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    model = tiny()
    evaluate = scripted([0.1, 0.3, 0.8, 0.7, 0.8, 0.6, 0.9], seen)  # the initial weights, then epochs 1 to 6
    result = run(model, tmp_path, epochs=20, patience=3, evaluate=evaluate)
    assert (result.best_epoch, result.best_top1, result.epochs) == (2, 0.8, 5)
    assert all(torch.equal(seen[2][name], value) for name, value in model.state_dict().items())


def test_good_initial_weights_can_win(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    model, before = tiny(), tiny()
    result = run(model, tmp_path, evaluate=scripted([0.9, 0.2, 0.2, 0.2, 0.2], seen), keep_initial=True)
    assert result.best_epoch == 0
    assert equal(model, before)
    unchanged = tiny()
    assert run(unchanged, tmp_path / "none", epochs=0).epochs == 0
    assert equal(unchanged, before)


@pytest.mark.parametrize(
    ("losses", "winner"),
    [
        ([1.0, 0.9, 0.8, 0.85], 3),
        ([1.0, 0.9, 1.1, 1.04], 3),
        ([1.0, 0.9, 1.1, 1.2], 1),
        ([1.0, 1.2, 1.2, 1.2], 0),
        ([1.0, 0.9, math.nan, math.nan], 1),
    ],
)
def test_the_last_epoch_counts_unless_it_is_clearly_worse_than_the_start(
    tmp_path: Path, losses: list[float], winner: int
) -> None:
    """Top-1, by which a few hundred pictures pick at random among epochs that are alike, has no say."""
    seen: list[dict[str, Tensor]] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"top1": 1 / len(seen), "loss": losses[len(seen) - 1], "loss_error": 0.05}

    model = tiny()
    result = run(model, tmp_path, epochs=3, evaluate=evaluate, keep_initial=True, select="last")
    assert (result.best_epoch, result.epochs) == (winner, 3)
    assert all(torch.equal(seen[winner][name], value) for name, value in model.state_dict().items())


def test_batchnorm_statistics_move_in_the_first_epochs_alone(tmp_path: Path) -> None:
    model, means = tiny(), []

    def note(epoch: int, score: float, last: bool) -> None:
        means.append(model[1].running_mean.clone())

    run(model, tmp_path, epochs=3, batchnorm_epochs=1.0, epoch_end=note, keep_initial=True)
    assert not torch.equal(means[0], torch.zeros(8))
    assert torch.equal(means[1], means[0])
    assert torch.equal(means[2], means[0])


def test_averaged_weights_are_judged(tmp_path: Path) -> None:
    judged: dict[float, list[dict[str, Tensor]]] = {0.0: [], 0.9: []}
    for decay, seen in judged.items():
        run(tiny(), tmp_path / str(decay), epochs=1, ema_decay=decay, evaluate=scripted([0.1, 0.2], seen))
    live, averaged = judged[0.0][1], judged[0.9][1]
    start = tiny().state_dict()
    # The average lags behind on the way from the start, and takes BatchNorm's statistics along.
    for name in ("0.weight", "6.weight", "1.running_mean"):
        assert 0 < (averaged[name] - start[name]).norm() < (live[name] - start[name]).norm()
    assert averaged["1.num_batches_tracked"] == live["1.num_batches_tracked"] == STEPS


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path: Path) -> None:
    def poisoned(epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step, (images, targets) in enumerate(batches(epoch, first), start=first):
            yield (images * float("nan") if (epoch, step) == (1, 3) else images), targets

    with pytest.raises(TrainingError, match="the loss became nan in epoch 2, step 4") as caught:
        run(tiny(), tmp_path, batches=poisoned)
    assert "lower lr (now 0.02)" in str(caught.value.fix)


def test_a_gradient_that_is_not_finite_stops_before_it_is_stepped_with(tmp_path: Path) -> None:
    def steep(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return CrossEntropy()(model, images, targets) + (0 * images.sum() * model[6].weight.sum()).abs().sqrt()

    with pytest.raises(TrainingError, match="a gradient is not finite in epoch 1, step 1"):
        run(tiny(), tmp_path, objective=steep)


def test_the_advice_is_that_of_the_stage_that_trains(tmp_path: Path) -> None:
    def poisoned(epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        return ((images * float("nan"), targets) for images, targets in batches(epoch, first))

    def greedy(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return torch.empty(2**50).sum()

    advice = Advice("lower recovery_lr (now {lr:g})", "free memory")
    for number, (what, fix) in enumerate(
        [({"batches": poisoned}, "lower recovery_lr (now 0.02)"), ({"objective": greedy}, "free memory")]
    ):
        with pytest.raises(TrainingError) as caught:
            run(tiny(), tmp_path / str(number), advice=advice, **what)
        assert caught.value.fix == fix


def test_what_was_spent_before_the_loop_counts(tmp_path: Path) -> None:
    late = clock.now() - 1000
    assert run(tiny(), tmp_path / "late", epochs=5, time_seconds=900.0, begun=late).epochs == 1
    assert run(tiny(), tmp_path / "early", epochs=5, time_seconds=900.0).epochs == 5


def test_a_training_goes_on_though_another_time_is_left_for_it(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tiny(), tmp_path, batches=killed_in(2), epochs=5, time_seconds=900.0, checkpoint_seconds=0.0)
    said: list[str] = []
    run(tiny(), tmp_path, epochs=5, time_seconds=800.0, checkpoint_seconds=0.0, say=said.append)
    assert any(line.startswith("training goes on") for line in said)


def test_running_out_of_memory_names_the_batch_size(tmp_path: Path) -> None:
    def greedy(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return torch.empty(2**50).sum()

    with pytest.raises(TrainingError, match="out of memory") as caught:
        run(tiny(), tmp_path, objective=greedy)
    assert "batch_size" in str(caught.value.fix)


def test_no_batches_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no batches"):
        run(tiny(), tmp_path, batches=lambda epoch, first: iter(()))
