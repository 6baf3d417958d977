"""Training batches: the same for the same (seed, epoch), normalized as everywhere else, decoded once."""

from __future__ import annotations

import errno
import io
import pickle
import tempfile
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import paint
from PIL import Image

from edgeopt import allotment
from edgeopt.config import AugmentConfig, DataConfig, TrainConfig
from edgeopt.console import Silent
from edgeopt.data import cache
from edgeopt.data.augment import cached_picture, make_augment
from edgeopt.data.cache import PictureCache, Shelf, memory_limit
from edgeopt.data.dataset import Dataset
from edgeopt.data.ingest import ingest
from edgeopt.data.loader import TrainLoader
from edgeopt.preprocess import PreprocessSpec, UInt8, load_picture, normalize
from edgeopt.run import Run
from edgeopt.stages.training import TrainingPlan

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


# --- workers that are not forked, as on macOS and from Python 3.14 on ---------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": "none"},
        {"augment": "light"},
        {"augment": "default"},
        {"augment": "heavy", "changes": AugmentConfig(noise=0.1, blur=1.0, rotation=10, policy="rand")},
        {"augment": "default", "cache_bytes": 0},
        {"augment": "default", "cache_bytes": 20_000, "no_disk": True},
    ],
)
def test_what_workers_are_sent_makes_the_same_batch(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    if changes.pop("no_disk", False):
        full_disk(monkeypatch)
    made = loader(dataset, **changes)
    sent = pickle.loads(pickle.dumps(made))
    rows = np.arange(84)[::-1].copy()[:16]
    for images, other in zip(made.batch(0, 1, rows), sent.batch(0, 1, rows), strict=True):
        assert torch.equal(images, other)


def test_spawned_workers_make_the_same_batches_from_the_same_file(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = list(loader(dataset)(2, 3))
    method = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method("spawn", force=True)
    try:
        helped = loader(dataset, workers=1, cache_folder=tmp_path)
        assert helped._cache.on_disk == 84, "nothing is held in memory that each worker would get a copy of"
        assert len(pickle.dumps(helped._cache)) < 10_000
        found = list(helped(2, 3))
    finally:
        torch.multiprocessing.set_start_method(method, force=True)
    assert len(found) == len(expected) == 2
    for (images, labels), (other_images, other_labels) in zip(expected, found, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


# --- the cache ----------------------------------------------------------------------------------------------------


def full_disk(monkeypatch: pytest.MonkeyPatch, room: int = 0) -> None:
    """All disks have ``room`` bytes, and what is to be left free."""
    left = [room + cache._DISK_MARGIN]
    write = io.FileIO.write

    class Counting(io.FileIO):
        def write(self, data: Any) -> int:
            left[0] -= memoryview(data).nbytes
            return write(self, data)

    def opened(dir: Path, buffering: int) -> Counting:
        handle, path = tempfile.mkstemp(dir=dir)
        Path(path).unlink()
        return Counting(handle, "w+b")

    monkeypatch.setattr(cache.tempfile, "TemporaryFile", opened)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=left[0]))


def noise(count: int = 20) -> list[UInt8]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (8 + i, 9, 3), dtype=np.uint8) for i in range(count)]


def never(index: int) -> UInt8:
    raise AssertionError(f"picture {index} is decoded anew")


def test_a_cache_too_big_for_memory_goes_on_on_the_disk_and_reads_the_same(tmp_path: Path) -> None:
    pictures = noise()
    held = PictureCache(iter(pictures), again=never)
    spilled = PictureCache(iter(pictures), again=never, limit=2000, folder=tmp_path)
    assert (held.on_disk, spilled.on_disk, held.kept, spilled.kept) == (0, 14, 20, 20)
    for index, picture in enumerate(pictures):
        assert np.array_equal(held[index], picture)
        assert np.array_equal(spilled[index], picture)
    with pytest.raises(IndexError):
        spilled[20]
    assert list(tmp_path.iterdir()) == []  # nothing to clean up after a kill


def test_what_fits_nowhere_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, asked = noise(), []
    full_disk(monkeypatch, room=2000)

    def again(index: int) -> UInt8:
        asked.append(index)
        return pictures[index]

    some = PictureCache(iter(pictures), again=again, limit=2000, folder=tmp_path)
    assert (some.on_disk, some.kept) == (4, 10)
    assert all(np.array_equal(some[index], picture) for index, picture in enumerate(pictures))
    assert asked == list(range(10, 20))


@pytest.mark.parametrize("taken", [None, 3])
def test_a_disk_that_becomes_full_while_it_is_written_to_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int | None
) -> None:
    full_disk(monkeypatch, room=10**6)
    usual = cache.tempfile.TemporaryFile

    def refused(data: Any) -> int:
        if taken is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return taken

    def small(dir: Path, buffering: int) -> Any:
        handle = usual(dir, buffering)
        monkeypatch.setattr(handle, "write", refused)
        return handle

    monkeypatch.setattr(cache.tempfile, "TemporaryFile", small)
    pictures = noise()
    some = PictureCache(iter(pictures), again=pictures.__getitem__, limit=2000, folder=tmp_path)
    assert some.kept == 6
    assert all(np.array_equal(some[index], picture) for index, picture in enumerate(pictures))


def test_training_goes_on_when_pictures_fit_nowhere_and_that_is_said_once(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(loader(dataset)(1))
    full_disk(monkeypatch)
    said: list[str] = []
    some = loader(dataset, cache_bytes=50_000, say=said.append)
    for (images, _), (other, _) in zip(expected, some(1), strict=True):
        assert torch.equal(images, other)
    (line,) = said
    assert line.startswith(f"{some._cache.kept} of 84 decoded pictures fit")
    assert 0 < some._cache.kept < 84


def test_making_the_cache_takes_no_more_memory_than_the_cache() -> None:
    size = (200, 200, 3)
    tracemalloc.start()
    try:
        kept = PictureCache((np.full(size, index, np.uint8) for index in range(100)), again=never)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept[99][0, 0, 0] == 99
    assert peak < 1.1 * 100 * 200 * 200 * 3


def test_the_limit_is_a_quarter_of_the_containers_memory_shared_by_processes_and_shelves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = {"/sys/fs/cgroup/memory.max": str(2**32), "/sys/fs/cgroup/memory.current": "1"}
    monkeypatch.setattr(allotment, "system_file", lambda path: limits.get(path, ""))
    monkeypatch.setattr(allotment, "memory_bytes", lambda: 2**36)
    assert memory_limit() == 2**30
    assert memory_limit(Shelf(processes=4).caches) == 2**30 // 8
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory_limit() == 2**28
    limits.clear()
    assert memory_limit() == 2**32


def test_a_shelfs_caches_share_the_memory(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeopt.data.loader.memory_limit", lambda among=1: 300_000 // among)
    alone, shelved = loader(dataset), loader(dataset, shelf=Shelf(processes=3))
    held = [len(one._cache._held) for one in (alone, shelved)]
    assert 0 < held[1] <= held[0] // 4


def test_the_file_is_in_the_runs_folder_but_not_in_memory(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeopt.data.loader.memory_limit", lambda among=1: 0)
    workspace: Any = SimpleNamespace(dataset=dataset, data=DataConfig(path="x"), run=Run(tmp_path, {}), shelf=None)
    plan = TrainingPlan.for_finetuning(TrainConfig())
    places = []
    for memory in (False, True):
        monkeypatch.setattr(allotment, "is_memory", lambda folder, memory=memory: memory and folder == tmp_path)
        kept = plan.loader(workspace, SPEC, Silent(), batch_size=8)._cache
        assert kept.on_disk == 84
        assert kept._file is not None
        places.append(kept._file._folder)
    assert places == [tmp_path, Path(tempfile.gettempdir())]
    monkeypatch.setattr(allotment, "is_memory", lambda _: True)
    assert plan.loader(workspace, SPEC, Silent(), batch_size=8)._cache.kept == 0


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
