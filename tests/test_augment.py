"""Augmentation: every single value does what it says, presets are sums of them, batches mix, the preview shows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import edgeopt

from edgeopt import AugmentConfig, CompressConfig, DataConfig, ModelConfig, TrainConfig, api
from edgeopt.config import Recipe, validate
from edgeopt.data.augment import cached_picture, make_augment
from edgeopt.data.dataset import Dataset
from edgeopt.data.ingest import ingest
from edgeopt.data.loader import TrainLoader
from edgeopt.errors import ConfigError
from edgeopt.preprocess import PreprocessSpec, UInt8, prepare
from edgeopt.stages.passes import training_recipe
from edgeopt.stages.training import TrainingPlan
from edgeopt.training_tables import PRESETS, augmentation, contradictions

SPEC = PreprocessSpec(size=(32, 32), mean=(0.0, 0.0, 0.0))


def wedge() -> Image.Image:
    """32 x 32: a bright coloured square left of and above the middle on grey, so that every change shows."""
    pixels = np.full((32, 32, 3), 90, np.uint8)
    pixels[6:16, 6:16] = (200, 120, 60)
    return Image.fromarray(pixels)


def drawn(times: int = 60, **changes: Any) -> list[UInt8]:
    """Augmented by ``changes`` alone."""
    augment = make_augment("none", SPEC, flip=True, changes=AugmentConfig(**changes))
    assert augment is not None
    torch.manual_seed(0)
    return [augment(wedge()) for _ in range(times)]


def square(picture: UInt8) -> tuple[float, float, float]:
    """Centre (x, y) and area of the square: where red stands out from blue."""
    there = picture[..., 0].astype(int) - picture[..., 2] > 60
    y, x = np.nonzero(there)
    return float(x.mean()), float(y.mean()), float(there.sum())


def areas(made: list[UInt8]) -> list[float]:
    return sorted(square(picture)[2] for picture in made)


def edge(picture: UInt8) -> float:
    """The largest step in red between neighbours; 110 in the wedge."""
    return float(np.abs(np.diff(picture[..., 0].astype(int), axis=1)).max())


def spread(values: list[float]) -> float:
    return max(values) - min(values)


BEFORE = np.asarray(wedge())
CHECKS: dict[str, tuple[dict[str, Any], Callable[[list[UInt8]], bool]]] = {
    "crop": ({"crop": 0.5}, lambda made: 1.3 * 100 < max(square(p)[2] for p in made) < 2.4 * 100),
    "rotation": ({"rotation": 90}, lambda made: spread([square(p)[1] for p in made]) > 6),
    "scale": ({"scale": 0.4}, lambda made: areas(made)[0] < 60 and areas(made)[-1] > 140),
    "shift": ({"shift": 0.2}, lambda made: 6 < spread([square(p)[0] for p in made]) <= 13),
    "horizontal_flip": (
        {"horizontal_flip": True},
        lambda made: {np.array_equal(p, BEFORE[:, ::-1]) for p in made} == {True, False}
        and all(np.array_equal(p, BEFORE) or np.array_equal(p, BEFORE[:, ::-1]) for p in made),
    ),
    "vertical_flip": (
        {"vertical_flip": True},
        lambda made: {np.array_equal(p, BEFORE[::-1]) for p in made} == {True, False}
        and all(np.array_equal(p, BEFORE) or np.array_equal(p, BEFORE[::-1]) for p in made),
    ),
    "brightness": ({"brightness": 0.4}, lambda made: spread([float(p[0, 0, 0]) for p in made]) > 40),
    "contrast": ({"contrast": 0.6}, lambda made: spread([float(p[8, 8, 0]) - float(p[0, 0, 0]) for p in made]) > 40),
    "saturation": (
        {"saturation": 0.8},
        lambda made: spread([float(p[8, 8, 0]) - float(p[8, 8, 2]) for p in made]) > 60
        and all(np.array_equal(p[0, 0], (90, 90, 90)) for p in made),
    ),
    "hue": ({"hue": 0.5}, lambda made: len({int(p[8, 8].argmax()) for p in made}) == 3),
    "policy trivial": ({"policy": "trivial"}, lambda made: len({p.tobytes() for p in made}) > 20),
    "policy rand": ({"policy": "rand"}, lambda made: len({p.tobytes() for p in made}) > 20),
    "blur": ({"blur": 3.0}, lambda made: min(edge(p) for p in made) < 30 and max(edge(p) for p in made) > 100),
    "noise": (
        {"noise": 0.2},
        lambda made: 25 < max(float(p[20:, 20:].std()) for p in made) < 60
        and float(np.mean(made)) == pytest.approx(BEFORE.mean(), abs=4),
    ),
    "erase": ({"erase": 0.5}, lambda made: 15 <= sum(bool((p == 0).all(-1).sum() >= 12) for p in made) <= 45),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_every_single_value_does_what_it_says(name: str) -> None:
    changes, holds = CHECKS[name]
    made = drawn(**changes)
    assert all(picture.shape == (32, 32, 3) and picture.dtype == np.uint8 for picture in made)
    assert holds(made)
    again = drawn(**changes)
    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True)), "torch's generator alone decides"


def test_every_key_of_the_table_is_checked_here() -> None:
    mixing = {"mixup", "cutmix", "unmixed"}
    assert set(AugmentConfig.model_fields) - mixing - {"operations", "magnitude"} == {n.split()[0] for n in CHECKS}


def test_randaugment_is_stronger_with_magnitude_and_operations() -> None:
    def change(**values: Any) -> float:
        return float(np.mean([np.abs(p.astype(int) - BEFORE).mean() for p in drawn(150, policy="rand", **values)]))

    assert change(magnitude=1) < change(magnitude=9) < change(magnitude=25)
    assert change(operations=1) < change(operations=4)


def test_presets_grow_and_single_values_replace_theirs() -> None:
    assert [augmentation(name).crop for name in PRESETS] == [1.0, 0.8, 0.5, 0.35]
    heavy = augmentation("heavy", AugmentConfig(erase=0.0, mixup=0.0), flip=False)
    assert (heavy.crop, heavy.erase, heavy.mixup, heavy.cutmix) == (0.35, 0.0, 0.0, 1.0)
    assert not heavy.horizontal_flip
    assert not augmentation("none").horizontal_flip
    assert make_augment("none", SPEC, flip=True) is None
    nothing = AugmentConfig(crop=1.0, brightness=0.0, contrast=0.0, saturation=0.0)
    assert make_augment("light", SPEC, flip=False, changes=nothing) is None


def test_without_crops_what_is_kept_is_what_evaluation_sees() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 50, 3), dtype=np.uint8))
    assert np.array_equal(cached_picture(image, SPEC, "default", AugmentConfig(crop=1.0)), prepare(image, SPEC))
    assert not np.array_equal(cached_picture(image, SPEC, "none", AugmentConfig(crop=0.9)).shape, (32, 32, 3))


# --- MixUp and CutMix ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(pictures: Path) -> Dataset:
    return ingest(DataConfig(path=str(pictures)))


def loader(dataset: Dataset, **values: Any) -> TrainLoader:
    changes = AugmentConfig(**{name: values.pop(name) for name in list(values) if name in AugmentConfig.model_fields})
    arguments = {"batch_size": 16, "augment": "none", "epochs": 10, "changes": changes, **values}
    return TrainLoader(dataset, dataset.of("train"), SPEC, **arguments)


def test_mixup_blends_pictures_and_labels_in_the_same_shares(dataset: Dataset) -> None:
    images, targets = next(iter(loader(dataset, mixup=1.0)(0)))
    plain, labels = next(iter(loader(dataset)(0)))
    assert targets.dtype == torch.float32
    assert targets.shape == (16, 3)
    assert torch.allclose(targets.sum(1), torch.ones(16))
    # The one share that explains every picture explains every label.
    direction = plain.roll(1, 0) - plain
    other = float(((images - plain) * direction).sum() / direction.square().sum())
    assert 0.02 < other < 0.98
    assert torch.allclose(images, plain + other * direction, atol=1e-4)
    hot = torch.nn.functional.one_hot(labels, 3).float()
    assert torch.allclose(targets, (1 - other) * hot + other * hot.roll(1, 0), atol=1e-4)


def test_cutmix_pastes_a_rectangle_and_its_share_of_the_label(dataset: Dataset) -> None:
    images, targets = next(iter(loader(dataset, cutmix=1.0)(1)))
    plain, labels = next(iter(loader(dataset)(1)))
    pasted = (images != plain).any(1)
    share = float(((images == plain.roll(1, 0)).all(1) & pasted)[labels != labels.roll(1)].float().mean())
    assert 0.02 < share < 0.98
    hot = torch.nn.functional.one_hot(labels, 3).float()
    assert torch.allclose(targets, (1 - share) * hot + share * hot.roll(1, 0), atol=0.02)


def test_in_the_last_share_of_the_epochs_pictures_are_only_cropped_and_mirrored(dataset: Dataset) -> None:
    heavy = loader(dataset, augment="heavy", epochs=10, light_end=0.25)  # whole epochs: the last two
    light = loader(dataset, augment="none", changes=AugmentConfig(crop=0.8, horizontal_flip=True))
    for epoch, same in ((7, False), (8, True), (9, True)):
        images, labels = next(heavy(epoch))
        expected, classes = next(light(epoch))
        assert torch.equal(images, expected) is same
        assert torch.equal(labels, classes) if same else labels.is_floating_point()


def test_mixing_is_decided_by_seed_epoch_and_step_alone_and_ends_before_training_does(dataset: Dataset) -> None:
    mixed = loader(dataset, mixup=0.4, cutmix=1.0, augment="heavy", unmixed=0.3)
    whole, rest = list(mixed(2)), list(loader(dataset, mixup=0.4, cutmix=1.0, augment="heavy", unmixed=0.3)(2, 3))
    for (images, targets), (again, again_targets) in zip(whole[3:], rest, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(targets, again_targets)
    assert [next(iter(mixed(epoch)))[1].dtype for epoch in (0, 6, 7, 9)] == [torch.float32] * 2 + [torch.int64] * 2


@pytest.mark.parametrize(
    ("epochs", "steps", "unmixed", "expected"),
    [
        (1, None, 0.4, "mmm.."),  # of five steps
        (1, None, 0.1, "mmmmm"),
        (1, 3, 0.4, "mm..."),  # a training of the first three steps of one epoch
        (1, None, 1.0, "....."),
        (2, None, 0.1, "mmmmm mmmm."),
        (2, None, 0.5, "mmmmm ....."),
        (3, None, 0.5, "mmmmm ..... ....."),  # whole epochs, rounded up
    ],
)
def test_a_training_of_one_epoch_is_mixed_too_but_for_its_last_steps(
    dataset: Dataset, epochs: int, steps: int | None, unmixed: float, expected: str
) -> None:
    mixed = loader(dataset, mixup=0.4, epochs=epochs, unmixed=unmixed)
    mixed.steps = steps
    seen = ["".join("m" if labels.ndim == 2 else "." for _, labels in mixed(epoch)) for epoch in range(epochs)]
    assert " ".join(seen) == expected


@pytest.mark.slow
def test_finetune_learns_with_mixed_batches_and_its_compression_trains_alike(pictures: Path, tmp_path: Path) -> None:
    train = TrainConfig(epochs=3, batch_size=8, layer_decay=1.0, augment="light", flip=False)
    data, model = DataConfig(path=str(pictures), image_size=32), ModelConfig(name="resnet18", pretrained=False)
    made = api.finetune(
        data, model, train, augment=AugmentConfig(mixup=0.2, cutmix=1.0, rotation=5), run=tmp_path / "r"
    )
    assert made.record["metrics"]["val_top1"] > 0.6
    assert made.record["config"]["augment"]["rotation"] == 5
    assert made.record["config_origin"]["augment"]["mixup"] == "call"
    again = TrainingPlan.for_recovery(CompressConfig(), **training_recipe(SimpleNamespace(start=made)))  # type: ignore[arg-type]
    assert (again.augment, again.flip, again.augmentation.mixup, again.augmentation.rotation) == (
        "light",
        False,
        0.2,
        5,
    )
    other = api.finetune(data, model, train, run=tmp_path / "r")
    assert not other.skipped, "another augmentation is another training"


# --- preview, recipe, command line --------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["finetune", "check"])
def test_the_preview_draws_what_training_sees_and_trains_nothing(pictures: Path, tmp_path: Path, verb: str) -> None:
    done = edgeopt(
        verb, str(pictures), "--model", "test_resnet", "--image-size", "32", "--augment", "none",
        "--set", "augment.vertical_flip=true", "--augment-preview", "grid.png", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"preview": "grid.png"}
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (6 * 34 - 2, 8 * 34 - 2, 3)
    tiles = [[grid[34 * y : 34 * y + 32, 34 * x : 34 * x + 32] for x in range(8)] for y in range(6)]
    mirrored = [np.array_equal(tile, row[0][::-1]) for row in tiles for tile in row[1:]]
    same = [np.array_equal(tile, row[0]) for row in tiles for tile in row[1:]]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 10 < sum(mirrored) < 32
    with pytest.raises(ConfigError, match=r"must be a \.png file"):
        api.augment_preview(str(pictures), tmp_path / "grid.jpeg", ModelConfig(name="test_resnet"))


@pytest.mark.parametrize("typed", [["--augment", "heavy"], ["--no-flip"], ["--set", "augment.rotation=15"]])
def test_check_refuses_what_only_its_preview_takes(pictures: Path, tmp_path: Path, typed: list[str]) -> None:
    done = edgeopt("check", str(pictures), *typed, cwd=tmp_path)
    assert done.returncode == 1
    assert "fix: to draw it: --augment-preview grid.png" in done.stderr


def test_values_out_of_range_unknown_keys_and_contradictions_are_said_at_once() -> None:
    values = {
        "data": {"path": "x"},
        "train": {"augment": "havy"},
        "augment": {"rotaton": 3, "hue": 0.9},
    }
    with pytest.raises(ConfigError) as caught:
        validate(Recipe, values, where="recipe")
    for part in ("3 problems", "train.augment", 'did you mean "rotation"', "augment.hue"):
        assert part in str(caught.value)
    values = {"data": {"path": "x", "val": 2}, "augment": {"magnitude": 5}}
    with pytest.raises(ConfigError) as caught:
        validate(Recipe, values, where="recipe")
    for part in ("2 problems", "data.val", "augment.magnitude: belongs to RandAugment"):
        assert part in str(caught.value)
    assert contradictions(TrainConfig(), AugmentConfig(policy="rand", magnitude=5)) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "augment.rotation"], "is not"),
        (["--set", "augment.rotation=200"], "augment.rotation"),
        (["--set", "augmnt.rotation=2"], 'did you mean "augment"'),
        (["--set", "augment.mixup=0.1", "--set", "augment.mixup.x=1"], "inside a value"),
        (["--mixup", "-1"], "augment.mixup"),
    ],
)
def test_mistakes_of_the_flags_are_named(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = edgeopt("finetune", "photos", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert "fix: " in done.stderr
