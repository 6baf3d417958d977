"""Watching and bounding a training: TensorBoard, progress, and a time that it keeps with its schedule completed."""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import edgeopt
from test_train import STEPS, Killed, equal, killed_in, one_way, run, tiny, validate
from torch import nn

from edgeopt import AugmentConfig, DataConfig, ModelConfig, Recipe, TrainConfig, api
from edgeopt.cli import terminal
from edgeopt.config import validate as validated
from edgeopt.console import duration
from edgeopt.data.preview import batch_grid
from edgeopt.errors import ConfigError
from edgeopt.preprocess import PreprocessSpec, normalize
from edgeopt.train import clock as clock_module
from edgeopt.train import forecast as forecast_module
from edgeopt.train import loop, probe
from edgeopt.train.forecast import Forecast
from edgeopt.train.objectives import CrossEntropy
from edgeopt.train.probe import Choice
from edgeopt.training_tables import contradictions, seconds_of

__all__ = ["one_way"]  # a fixture used by all tests here


def log(folder: Path) -> list[dict[str, Any]]:
    """The rows of the epochs."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if "epoch" in row]


# --- TensorBoard --------------------------------------------------------------------------------------------------


def board(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    read.Reload()
    return read


def test_tensorboard_shows_the_curves_of_the_log_and_the_pictures_as_the_network_saw_them(
    pictures: Path, tmp_path: Path
) -> None:
    train = TrainConfig(epochs=3, batch_size=8, layer_decay=0.5, head_epochs=1, augment="default", flip=False)
    made = api.finetune(
        DataConfig(path=str(pictures), image_size=32),
        ModelConfig(name="test_resnet", pretrained=False),
        train,
        run=tmp_path / "run",
    )
    folder = made.run.path / "host" / "float"
    read, rows = board(folder), log(folder)
    for name in ("train_loss", "lr", "val_top1", "val_loss", "images_per_second"):
        points = read.Scalars(name)
        assert [point.step for point in points] == [1, 2, 3]
        assert [point.value for point in points] == pytest.approx([row[name] for row in rows], rel=1e-6)
    rates = sorted(tag for tag in read.Tags()["scalars"] if tag.startswith("lr/"))
    assert len(rates) > 4
    values = [read.Scalars(tag)[-1].value for tag in rates]
    assert values == pytest.approx([values[0] * 0.5**depth for depth in range(len(rates))], rel=1e-5)
    assert [point.value for point in read.Scalars("open_layers")] == [1, len(rates), len(rates)]

    (image,) = read.Images("augmented")
    shown = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert shown.shape == (2 * 34 - 2, 4 * 34 - 2, 3)  # eight pictures, four in a row, two white pixels between
    np.testing.assert_array_equal(shown, expected_grid(pictures, train, made.preprocess))


def expected_grid(pictures: Path, train: TrainConfig, spec: PreprocessSpec) -> np.ndarray:
    """The first batch, made by the loader alone."""
    from edgeopt.data.ingest import ingest
    from edgeopt.data.loader import TrainLoader

    dataset = ingest(DataConfig(path=str(pictures), image_size=32))
    loader = TrainLoader(dataset, dataset.of("train"), spec, batch_size=8, augment=train.augment, flip=False, epochs=3)
    images, _ = next(iter(loader(0)))
    return batch_grid(images, spec)


def test_the_grid_gives_back_the_pixels_that_were_normalized() -> None:
    spec = PreprocessSpec(size=(5, 4))
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), dtype=np.uint8)
    grid = batch_grid(torch.from_numpy(normalize(pixels, spec)), spec)
    assert grid.shape == (5, 4 * 4 + 3 * 2, 3)
    for column in range(4):
        np.testing.assert_array_equal(grid[:, column * 6 : column * 6 + 4], pixels[column])
    assert batch_grid(torch.from_numpy(normalize(np.concatenate([pixels] * 3), spec)), spec).shape == (26, 22, 3)


def test_a_resumed_training_has_every_point_once(tmp_path: Path) -> None:
    def draw(images: torch.Tensor) -> np.ndarray:
        return np.full((4, 4, 3), 7, np.uint8)

    with pytest.raises(Killed):
        run(tiny(), tmp_path, epochs=4, batches=killed_in(2), draw=draw)
    run(tiny(), tmp_path, epochs=4, draw=draw)
    read = board(tmp_path)
    assert [point.step for point in read.Scalars("train_loss")] == [1, 2, 3, 4]
    assert len(read.Images("augmented")) == 1


# --- progress -----------------------------------------------------------------------------------------------------


def test_progress_tells_loss_accuracy_and_the_time_left(tmp_path: Path) -> None:
    notes: list[str] = []
    said: list[str] = []
    run(tiny(), tmp_path, epochs=2, progress=lambda done, total, note: notes.append(note), say=said.append)
    assert len(notes) == 2 * STEPS
    assert all(note.startswith("loss ") for note in notes)
    best = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[2])["val_top1"]
    assert notes[-1].endswith(f", val top-1 {100 * best:.1f} %")
    assert said[1].startswith("epoch 1/2: loss ")
    assert " left" in said[1]
    assert " left" not in said[2]


def test_the_time_left_is_of_the_work_told_of_not_of_what_came_before_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe takes longer than many steps, and a resumed training begins in the middle."""
    now = [100.0]
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with terminal._lines("training", every_s=10.0) as shown:
        for seconds, done in ((60.0, 101), (62.0, 103), (70.0, 111)):
            now[0] = 100.0 + seconds
            shown(done, 201, "loss 0.5")
    assert capsys.readouterr().err.splitlines() == [
        "training: 101/201 (60 s), loss 0.5",
        "training: 111/201 (70 s, about 2 min left), loss 0.5",
    ]


# --- a time that is kept ------------------------------------------------------------------------------------------


@dataclass
class Time:
    """A clock that only training moves: other work on the machine must not decide what is found here."""

    now: float = 0.0
    step: float = 0.02
    evaluation: float = 0.1

    def train(self, model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.now += self.step
        return CrossEntropy(0.1)(model, images, targets)

    def validate(self, model: nn.Module) -> dict[str, float]:
        self.now += self.evaluation
        return validate(model)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    read = SimpleNamespace(monotonic=lambda: made.now, perf_counter=lambda: made.now)
    for module in (loop, clock_module, forecast_module, probe):
        monkeypatch.setattr(module, "time", read)
    return made


def bounded(folder: Path, clock: Time, model: nn.Module | None = None, **values: Any) -> Any:
    settings = {"epochs": 500, "patience": 500, "objective": clock.train, "evaluate": clock.validate, **values}
    return run(model or tiny(), folder, **settings)


@pytest.mark.parametrize("kind", ["cosine", "one_cycle", "exponential"])
def test_training_ends_in_time_with_its_schedule_completed(tmp_path: Path, clock: Time, kind: str) -> None:
    said: list[str] = []
    planned: list[int] = []
    values = {"say": said.append, "planned": planned.append, "ema_decay": 0.0, "checkpoint_seconds": 1e9}
    result = bounded(tmp_path, clock, time_seconds=6.0, schedule=kind, **values)
    assert 5.7 < clock.now <= 6.0
    # 0.1 s of the first validation, 0.08 s of the probe, then epochs of 6 steps and a validation: 0.22 s.
    assert result.epochs == 26
    assert said[0].startswith("6 s are enough for about 26.0 of 500 epochs")
    assert planned[0] in (26, 27)
    rates = [row["lr"] for row in log(tmp_path)]
    assert max(rates) > 0.016
    assert rates[-1] == min(rates)
    assert rates[-1] < 0.015 * 0.02  # the schedule ends at a hundredth of lr
    assert result.best_top1 > 0.9


def test_a_training_slower_or_faster_than_the_probe_said_ends_in_time_all_the_same(tmp_path: Path, clock: Time) -> None:
    """Slower: what was thought to fit is cut short. Faster: there are more epochs than was thought."""

    def changing(seconds: float) -> Any:
        def objective(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            clock.step = 0.02 if clock.now < start + 0.5 else seconds
            return clock.train(model, images, targets)

        return objective

    for seconds, words, epochs in ((0.3, "training will take about", (2, 5)), (0.005, "are enough for", (15, 40))):
        said: list[str] = []
        start = clock.now
        limit = 5.0 if seconds == 0.3 else 3.0
        result = bounded(
            tmp_path / str(seconds), clock, epochs=20 if seconds == 0.3 else 500, time_seconds=limit,
            objective=changing(seconds), say=said.append,
        )  # fmt: skip
        assert words in said[0]
        assert limit - 0.5 < clock.now - start <= limit + 0.1
        assert epochs[0] <= result.epochs <= epochs[1]
        assert log(tmp_path / str(seconds))[-1]["lr"] < 0.03 * 0.02


def test_time_for_everything_changes_nothing(tmp_path: Path) -> None:
    timed, free = tiny(), tiny()
    run(free, tmp_path / "free")
    result = run(timed, tmp_path / "timed", time_seconds=3600.0)
    assert result.epochs == 4
    assert equal(timed, free)


def test_what_was_spent_before_an_interruption_counts(tmp_path: Path, clock: Time) -> None:
    with pytest.raises(Killed):
        bounded(tmp_path, clock, time_seconds=3.0, batches=killed_in(5))
    before = clock.now
    assert 1.1 < before < 1.7
    clock.now += 1000  # which does not count
    result = bounded(tmp_path, clock, time_seconds=3.0)
    assert 2.7 < before + clock.now - before - 1000 <= 3.0
    assert 11 <= result.epochs <= 14
    assert log(tmp_path)[-1]["lr"] < 0.015 * 0.02
    done = clock.now
    assert bounded(tmp_path, clock, time_seconds=3.0).epochs == result.epochs  # nothing is trained again
    assert clock.now == done


def test_phases_of_freezing_fit_the_time_too(tmp_path: Path, clock: Time) -> None:
    model, opened = tiny(), []

    def objective(net: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if net is model:
            opened.append(sum(parameter.requires_grad for parameter in net.parameters()))
        return clock.train(net, images, targets)

    bounded(tmp_path, clock, model, head_epochs=250, time_seconds=3.0, objective=objective)
    assert opened == sorted(opened)
    assert set(opened) == {2, 5}
    assert 0.4 < opened.count(2) / len(opened) < 0.6


def test_how_many_epochs_fit() -> None:
    forecast = Forecast(Choice("fp32", "contiguous"), 32, 0.1, 2.0, 20, 100)
    assert forecast.seconds == pytest.approx(240)
    assert forecast.fitting(1000) == 20
    assert forecast.fitting(24) == pytest.approx(2)
    assert forecast.fitting(24 + 7) == pytest.approx(2.5)
    assert forecast.fitting(24 + 1) == pytest.approx(2)  # too little for a validation
    assert forecast.fitting(0.0) == 0
    assert "10 min are enough" not in forecast.words(600.0, 590.0)
    assert "30 s are enough for about 2.4 of 20 epochs at 320 pictures/s" in forecast.words(30.0, 30.0)
    assert [duration(seconds) for seconds in (0.2, 40, 720, 9000)] == ["1 s", "40 s", "12 min", "2.5 h"]


def test_times_are_read_and_bad_ones_refused(tmp_path: Path) -> None:
    assert [seconds_of(text) for text in ("90s", "20m", "1h30m", "2h", "1h0m5s")] == [90, 1200, 5400, 7200, 3605]
    for text in ("", "20", "0s", "20 m", "m", "1.5h", "30m1h"):
        with pytest.raises(ConfigError, match=r"train\.time: no time; write 20m, 1h30m or 90s"):
            validated(Recipe, {"data": {"path": "x"}, "train": {"time": text}}, where="recipe")
    (refused,) = contradictions(TrainConfig(time="20m", schedule="plateau"), AugmentConfig())
    assert refused.startswith("train.time: ")
    done = edgeopt("finetune", "photos", "--time", "soon", cwd=tmp_path)
    assert done.returncode == 1
    assert "no time; write 20m" in done.stderr


def test_finetune_keeps_its_time(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process's CPU time, which other work on the machine does not stretch."""
    monkeypatch.setattr(clock_module, "time", SimpleNamespace(monotonic=time.process_time))
    made = api.finetune(
        DataConfig(path=str(pictures), image_size=32),
        ModelConfig(name="test_resnet", pretrained=False),
        TrainConfig(epochs=10_000, time="6s", batch_size=8, augment="heavy", patience=10_000),
        run=tmp_path / "run",
    )
    record = made.record["metrics"]["training"]
    assert record["seconds"] < 9
    assert record["announced_seconds"] < 6
    assert 1 <= record["epochs"] < 5000
    rates = [row["lr"] for row in log(made.run.path / "host/float")]
    assert rates[-1] < 0.1 * 1e-3
    assert made.record["config"]["train"]["time"] == "6s"


def test_the_last_epochs_that_fit_are_not_mixed(pictures: Path) -> None:
    from edgeopt.data.ingest import ingest
    from edgeopt.data.loader import TrainLoader

    dataset = ingest(DataConfig(path=str(pictures)))
    changes = AugmentConfig(mixup=0.2, unmixed=0.5)
    loader = TrainLoader(
        dataset, dataset.of("train"), PreprocessSpec(size=(16, 16)), batch_size=8, changes=changes, epochs=100
    )
    loader.epochs = 4  # what there is time for
    assert [next(iter(loader(epoch)))[1].ndim for epoch in range(4)] == [2, 2, 1, 1]
