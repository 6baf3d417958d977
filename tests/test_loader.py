"""Training batches: the same for the same (seed, epoch), normalized as everywhere else, decoded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import paint
from PIL import Image

from edgeopt.config import DataConfig
from edgeopt.data.augment import cached_picture, make_augment
from edgeopt.data.cache import PictureCache
from edgeopt.data.dataset import Dataset
from edgeopt.data.ingest import ingest
from edgeopt.data.loader import TrainLoader
from edgeopt.preprocess import PreprocessSpec, load_picture, normalize

SPEC = PreprocessSpec(size=(24, 24), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


@pytest.fixture(scope="module")
def dataset(pictures: Path) -> Dataset:
    return ingest(DataConfig(path=str(pictures)))


def loader(dataset: Dataset, **values: object) -> TrainLoader:
    return TrainLoader(dataset, dataset.of("train"), SPEC, **{"batch_size": 16, **values})  # type: ignore[arg-type]


def test_batches_are_decided_by_seed_and_epoch_and_leave_torchs_generator_alone(dataset: Dataset) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other_seed = loader(dataset), loader(dataset), loader(dataset, seed=1)
    first = [(images.clone(), labels) for images, labels in one(3)]
    torch.rand(5)
    again = list(same(3))
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], next(iter(one(4)))[0])
    assert not torch.equal(first[0][0], next(iter(other_seed(3)))[0])
    torch.set_rng_state(before)
    list(one(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_sees_every_picture_at_most_once_in_full_batches(dataset: Dataset) -> None:
    batches = loader(dataset, augment="none")
    assert len(batches) == 84 // 16
    seen = torch.cat([images for images, _ in batches(0)])
    assert len(seen) == 80
    assert len(torch.unique(seen.flatten(1), dim=0)) == 80
    assert len(loader(dataset, batch_size=500)) == 1


def test_without_augmentation_training_sees_exactly_what_evaluation_sees(dataset: Dataset, pictures: Path) -> None:
    images, labels = next(iter(loader(dataset, augment="none", batch_size=84)(0)))
    expected = {
        normalize(load_picture(pictures / item.path, SPEC)[None], SPEC).tobytes(): item.label
        for item in dataset.of("train")
    }
    assert {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)} == expected


@pytest.mark.parametrize("preset", ["light", "default"])
def test_augmented_pictures_differ_between_epochs_and_stay_in_range(dataset: Dataset, preset: str) -> None:
    batches = loader(dataset, augment=preset, batch_size=84)
    images, labels = next(iter(batches(0)))
    assert images.shape == (84, 3, 24, 24)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    low = normalize(np.zeros((1, 1, 1, 3), np.uint8), SPEC).reshape(3)
    high = normalize(np.full((1, 1, 1, 3), 255, np.uint8), SPEC).reshape(3)
    for channel in range(3):
        assert float(images[:, channel].min()) >= low[channel] - 1e-5
        assert float(images[:, channel].max()) <= high[channel] + 1e-5
    one = TrainLoader(dataset, dataset.of("train")[:1], SPEC, batch_size=1, augment=preset)  # type: ignore[arg-type]
    assert len({next(iter(one(epoch)))[0].numpy().tobytes() for epoch in range(6)}) == 6


def test_no_picture_is_mirrored_when_flips_are_off() -> None:
    half = np.zeros((32, 32, 3), np.uint8)
    half[:, 16:] = 255
    spec = PreprocessSpec(size=(24, 24))
    mirrored = {}
    for flip in (True, False):
        augment = make_augment("light", spec, flip=flip)
        assert augment is not None
        torch.manual_seed(0)
        made = [np.asarray(augment(Image.fromarray(half))) for _ in range(60)]
        mirrored[flip] = sum(float(picture[:, 0].mean()) > float(picture[:, -1].mean()) for picture in made)
    assert mirrored[False] == 0
    assert 15 < mirrored[True] < 45


def test_upright_pictures_are_neither_turned_far_nor_shifted_out_of_sight() -> None:
    bar = np.zeros((64, 64, 3), np.uint8)
    bar[:, 28:36] = 255  # a vertical bar in the middle
    spec = PreprocessSpec(size=(64, 64), mean=(0.0, 0.0, 0.0))
    leaning = {}
    for flip in (True, False):
        augment = make_augment("default", spec, flip=flip)
        assert augment is not None
        torch.manual_seed(0)
        made = [np.asarray(augment(Image.fromarray(bar)))[..., 0] > 40 for _ in range(400)]
        # Lying bars are wider than high; sheared ones (by 45 degrees at most) are not.
        spans = [(np.ptp(np.nonzero(m)[1]), np.ptp(np.nonzero(m)[0])) for m in made if 0 < m.mean() < 0.5]
        leaning[flip] = sum(width > 1.3 * height for width, height in spans)
        assert sum(m.any() for m in made) > 0.95 * len(made)
    assert leaning[False] == 0
    assert leaning[True] > 0


def test_workers_make_the_same_batches(dataset: Dataset) -> None:
    alone, helped = loader(dataset), loader(dataset, workers=1)
    for (images, labels), (other_images, other_labels) in zip(alone(2), helped(2), strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_a_cache_too_big_for_memory_moves_to_disk_and_reads_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (8 + i, 9, 3), dtype=np.uint8) for i in range(20)]
    held, spilled = PictureCache(iter(pictures)), PictureCache(iter(pictures), limit=2000, folder=tmp_path / "cache")
    assert (held.on_disk, spilled.on_disk) == (False, True)
    for index, picture in enumerate(pictures):
        assert np.array_equal(held[index], picture)
        assert np.array_equal(spilled[index], picture)
    assert list((tmp_path / "cache").iterdir()) == []  # nothing to clean up after a kill


@pytest.mark.parametrize(
    ("resize", "size", "expected"),
    [
        ("crop", (100, 50), (32, 64)),
        ("crop", (50, 400), (64, 32)),
        ("squash", (100, 50), (28, 28)),
        ("letterbox", (9, 50), (28, 28)),
    ],
)
def test_cached_pictures_keep_what_random_crops_need(resize: str, size: tuple[int, int], expected: object) -> None:
    spec = PreprocessSpec.model_validate({"schema": 1, "size": (24, 24), "resize": resize})
    assert cached_picture(paint(0, 0, size), spec, "default").shape[:2] == expected
