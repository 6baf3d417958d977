"""Pictures to datasets: honest splits, nothing dropped silently, records that round-trip, sets that match."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import paint, paint_folder
from PIL import Image

from edgeopt.config import CalibrationRecipe, DataConfig
from edgeopt.data.calibration import draw_calibration
from edgeopt.data.dataset import Dataset, Item
from edgeopt.data.digits import write_digits
from edgeopt.data.ingest import ingest
from edgeopt.data.sets import write_samples, write_set
from edgeopt.errors import ConfigError, DataError, RunError
from edgeopt.preprocess import PreprocessSpec, load_picture
from edgeopt.sets import open_set


def config(path: Path | str, **values: object) -> DataConfig:
    return DataConfig.model_validate({"path": str(path), **values})


def reasons(dataset: Dataset) -> dict[str, str]:
    return dict(dataset.set_aside)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of 10, to be spoilt by the test."""
    return paint_folder(tmp_path / "photos", classes=2, each=10)


# --- splits -------------------------------------------------------------------------------------------------------


def test_class_folders_are_split_by_class_in_the_stated_shares(pictures: Path) -> None:
    dataset = ingest(config(pictures))
    assert dataset.classes == ("class 0", "class 1", "class 2")
    per_class = Counter((item.label, item.split) for item in dataset.items)
    assert all(per_class[label, "train"] == 28 for label in range(3))
    assert all(per_class[label, "val"] == 4 for label in range(3))
    assert all(per_class[label, "test"] == 8 for label in range(3))
    assert dataset.set_aside == ()


def test_the_split_depends_on_neither_place_nor_listing_order_but_on_the_seed(pictures: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    for path in sorted(pictures.rglob("*.png"), reverse=True):  # another creation order, another directory order
        target = other / path.relative_to(pictures)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    first, second = ingest(config(pictures)), ingest(config(other))
    assert first.items == second.items
    assert first.fingerprint == second.fingerprint
    assert ingest(config(pictures, seed=1)).fingerprint != first.fingerprint


def test_adding_a_picture_moves_few_others(root: Path) -> None:
    before = {item.path: item.split for item in ingest(config(root)).items}
    paint(0, 99).save(root / "class 0" / "new.png")
    after = {item.path: item.split for item in ingest(config(root)).items}
    assert sum(after[path] != split for path, split in before.items()) <= 2


def test_copies_of_a_picture_stay_in_one_split(root: Path) -> None:
    for index in range(8):
        for copy in range(2):
            shutil.copy(root / "class 0" / f"{index:03d}.png", root / "class 0" / f"copy{copy}-{index:03d}.png")
    # The same pixels in another encoding are the same picture.
    Image.open(root / "class 0" / "009.png").save(root / "class 0" / "again.bmp")
    splits: dict[str, set[str]] = {}
    for item in ingest(config(root, val=0.2)).items:
        name = item.path.split("/")[1].split(".")[0]
        group = {"again": "009"}.get(name, name.split("-")[-1])
        splits.setdefault(f"{item.label}/{group}", set()).add(item.split)
    assert len(splits["0/003"]) == 1
    assert all(len(found) == 1 for found in splits.values())


def test_one_picture_with_two_labels_is_set_aside_on_both_sides(root: Path) -> None:
    shutil.copy(root / "class 0" / "003.png", root / "class 1" / "stray.png")
    dataset = ingest(config(root))
    assert reasons(dataset) == {
        "class 0/003.png": "the same picture has another label: class 1/stray.png",
        "class 1/stray.png": "the same picture has another label: class 0/003.png",
    }
    assert not {item.path for item in dataset.items} & set(reasons(dataset))


def test_ready_made_splits_are_kept_and_leaks_into_test_are_set_aside(tmp_path: Path) -> None:
    root = tmp_path / "ready"
    paint_folder(root / "train", classes=2, each=12)
    for label in range(2):
        for split, seeds in (("validation", range(100, 103)), ("test", range(200, 204))):
            folder = root / split / f"class {label}"
            folder.mkdir(parents=True)
            for seed in seeds:
                paint(label, seed).save(folder / f"{seed}.png")
    shutil.copy(root / "train" / "class 0" / "005.png", root / "test" / "class 0" / "leak.png")
    dataset = ingest(config(root))
    assert dataset.counts() == {"train": 23, "val": 6, "test": 9}
    assert reasons(dataset) == {"train/class 0/005.png": "the same picture is in test: test/class 0/leak.png"}
    folders = {"train": "train", "val": "validation", "test": "test"}
    assert all(item.path.startswith(f"{folders[item.split]}/class {item.label}/") for item in dataset.items)


def test_missing_ready_made_splits_are_carved_from_train(tmp_path: Path) -> None:
    paint_folder(tmp_path / "a" / "train", classes=2, each=10)
    assert ingest(config(tmp_path / "a")).counts() == {"train": 14, "val": 2, "test": 4}
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    folder = tmp_path / "b" / "test" / "class 1"
    folder.mkdir(parents=True)
    paint(1, 77).save(folder / "only.png")
    assert ingest(config(tmp_path / "b")).counts() == {"train": 18, "val": 2, "test": 1}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for label, name in enumerate(("train", "bus")):
        folder = tmp_path / "vehicles" / name
        folder.mkdir(parents=True)
        for index in range(6):
            paint(label, index).save(folder / f"{index}.png")
    assert ingest(config(tmp_path / "vehicles")).classes == ("bus", "train")


# --- what is wrong is said ----------------------------------------------------------------------------------------


def test_unreadable_hidden_and_foreign_files_are_accounted_for(root: Path, tmp_path: Path) -> None:
    content = (root / "class 0" / "000.png").read_bytes()
    (root / "class 0" / "cut.png").write_bytes(content[: len(content) // 2])
    (root / "class 0" / "text.jpg").write_text("not a picture")
    (root / "class 1" / "notes.txt").write_text("ignored")
    (root / "class 1" / ".hidden.png").write_bytes(content)
    (root / "stray.png").write_bytes(content)
    (root / "empty").mkdir()
    paint(0, 500).save(tmp_path / "outside.png")
    (root / "class 1" / "link.png").symlink_to(tmp_path / "outside.png")
    nested = root / "class 1" / "2024" / "may"
    nested.mkdir(parents=True)
    paint(1, 501).save(nested / "deep.JPG")
    dataset = ingest(config(root))
    found = reasons(dataset)
    assert set(found) == {"class 0/cut.png", "class 0/text.jpg", "stray.png", "empty", "class 1/link.png"}
    assert "cannot be read as a picture" in found["class 0/cut.png"]
    assert found["class 1/link.png"] == "a link that leads out of the dataset"
    assert found["stray.png"] == "in no class folder"
    assert dict(dataset.ignored) == {"hidden": 1, "not a picture": 1}
    assert any(item.path == "class 1/2024/may/deep.JPG" and item.label == 1 for item in dataset.items)
    assert len(dataset.items) == 21


def test_too_many_pixels_are_set_aside(root: Path) -> None:
    Image.new("RGB", (200, 200)).save(root / "class 0" / "big.png")
    dataset = ingest(config(root, max_pixels=30_000))
    assert reasons(dataset) == {"class 0/big.png": "200x200 pixels are more than max_pixels = 30000"}


def test_small_classes_are_named_with_what_was_set_aside(root: Path) -> None:
    poor = root / "poor"
    poor.mkdir()
    for index in range(3):
        paint(2, index).save(poor / f"{index}.png")
    (poor / "1.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r'1 class has fewer than 3 different pictures: "poor" \(2\)') as caught:
        ingest(config(root))
    assert "poor/1.png: cannot be read" in caught.value.message
    assert caught.value.fix is not None


def test_every_class_has_a_picture_in_every_split_even_with_three(tmp_path: Path) -> None:
    dataset = ingest(config(paint_folder(tmp_path / "few", classes=2, each=3)))
    assert Counter((item.label, item.split) for item in dataset.items) == Counter(
        (label, split) for label in range(2) for split in ("train", "val", "test")
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: shutil.rmtree(root), "does not exist"),
        (lambda root: shutil.rmtree(root / "class 0"), "at least two"),
        (lambda root: [path.rename(path.with_suffix(".txt")) for path in root.rglob("*.png")], "20 not a picture"),
    ],
)
def test_unusable_folders_say_what_was_found(root: Path, make: object, message: str) -> None:
    make(root)  # type: ignore[operator]
    with pytest.raises(DataError, match=message) as caught:
        ingest(config(root))
    assert caught.value.fix


def test_shares_that_leave_nothing_to_train_on_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"under 0\.95|too little to train"):
        ingest(config(root, val=0.5, test=0.5))


def test_names_that_are_not_utf8_are_set_aside(root: Path) -> None:
    shutil.copy(root / "class 0" / "000.png", os.fsencode(root / "class 0") + b"/caf\xe9.png")
    dataset = ingest(config(root))
    assert list(reasons(dataset)) == ["class 0/caf\\xe9.png"]


# --- the record ---------------------------------------------------------------------------------------------------


def test_the_record_round_trips(root: Path, tmp_path: Path) -> None:
    (root / "class 0" / "bad.png").write_bytes(b"")
    dataset = ingest(config(root))
    dataset.write(tmp_path / "run" / "data")
    assert Dataset.read(tmp_path / "run" / "data") == dataset
    assert (tmp_path / "run" / "data" / "labels.txt").read_text() == "class 0\nclass 1\n"


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../b.png", "", "a\\b.png"])
def test_a_record_that_leaves_its_root_is_refused(root: Path, tmp_path: Path, path: str) -> None:
    dataset = ingest(config(root))
    Dataset(dataset.root, dataset.classes, (Item(path, 0, "0" * 64, "train"), *dataset.items)).write(tmp_path / "data")
    with pytest.raises(RunError, match="not inside"):
        Dataset.read(tmp_path / "data")


def test_a_link_that_leaves_the_root_is_not_followed_later(root: Path, tmp_path: Path) -> None:
    dataset = ingest(config(root))
    item = dataset.items[0]
    paint(0, 0).save(tmp_path / "secret.png")
    (root / item.path).unlink()
    (root / item.path).symlink_to(tmp_path / "secret.png")
    for read in (dataset.open, dataset.encoded):
        with pytest.raises(DataError, match="leads out"):
            read(item)


def test_an_edited_record_is_noticed(root: Path, tmp_path: Path) -> None:
    ingest(config(root)).write(tmp_path)
    record = json.loads((tmp_path / "split.json").read_text())
    moved = next(row for row in record["items"] if row[3] == "test")
    moved[3] = "train"
    (tmp_path / "split.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="fingerprint"):
        Dataset.read(tmp_path)


# --- torchvision --------------------------------------------------------------------------------------------------


def write_mnist(folder: Path, counts: dict[str, int]) -> None:
    """A small dataset in MNIST's own file format."""
    rng = np.random.default_rng(0)
    for part, count in counts.items():
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        for kind, header, values in (
            ("images-idx3", struct.pack(">4I", 0x803, count, 28, 28), images),
            ("labels-idx1", struct.pack(">2I", 0x801, count), labels),
        ):
            path = folder / "MNIST" / "raw" / f"{part}-{kind}-ubyte"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(header + values.tobytes())
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))


def test_torchvision_datasets_on_disk_keep_their_test_part(tmp_path: Path) -> None:
    write_mnist(tmp_path, {"train": 60, "t10k": 20})
    dataset = ingest(config(f"torchvision:MNIST@{tmp_path}"))
    assert dataset.counts() == {"train": 50, "val": 10, "test": 20}
    assert len(dataset.classes) == 10
    item = dataset.of("test")[0]
    with dataset.open(item) as image:
        assert image.size == (28, 28)
    content, suffix = dataset.encoded(item)
    assert (content[:4], suffix) == (b"\x89PNG", ".png")
    assert dataset.fingerprint == ingest(config(f"torchvision:MNIST@{tmp_path}")).fingerprint


def test_torchvision_datasets_that_are_not_there_say_where_they_were_sought(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"cannot be read from {tmp_path}") as caught:
        ingest(config(f"torchvision:CIFAR10@{tmp_path}"))
    assert "torchvision:CIFAR10@" in str(caught.value.fix)
    with pytest.raises(DataError, match="did you mean"):
        ingest(config("torchvision:CIFAR11"))


# --- calibration --------------------------------------------------------------------------------------------------


def test_calibration_is_stratified_fixed_and_from_train_only(pictures: Path) -> None:
    dataset = ingest(config(pictures))
    recipe = CalibrationRecipe(schema=1, count=30)
    drawn = draw_calibration(dataset, recipe)
    assert Counter(item.label for item in drawn) == {0: 10, 1: 10, 2: 10}
    assert {item.split for item in drawn} == {"train"}
    assert drawn == draw_calibration(dataset, recipe)
    assert drawn != draw_calibration(dataset, recipe.model_copy(update={"seed": 1}))
    assert len(draw_calibration(dataset, CalibrationRecipe(schema=1, count=1000))) == 84


def test_diverse_calibration_covers_the_features(pictures: Path) -> None:
    dataset = ingest(config(pictures))
    train = dataset.of("train")
    rng = np.random.default_rng(0)
    features = rng.normal(0, 0.01, (len(train), 4))
    odd = [next(i for i, item in enumerate(train) if item.label == label) for label in range(3)]
    features[odd] += 10  # one outlier in each class, which a random draw of 6 of 28 mostly misses
    recipe = CalibrationRecipe(schema=1, count=18, selection="diverse")
    drawn = draw_calibration(dataset, recipe, features)
    assert {train[index] for index in odd} <= set(drawn)
    assert Counter(item.label for item in drawn) == {0: 6, 1: 6, 2: 6}
    thumbnails = draw_calibration(dataset, recipe)
    assert len(thumbnails) == 18
    assert thumbnails == draw_calibration(dataset, recipe)


def test_too_little_to_calibrate_with_is_an_error(root: Path, pictures: Path) -> None:
    with pytest.raises(DataError, match="only 14 different"):
        draw_calibration(ingest(config(root)), CalibrationRecipe(schema=1))
    dataset = ingest(config(pictures))
    absent = Dataset(dataset.root, (*dataset.classes, "zebra"), dataset.items)
    with pytest.raises(DataError, match="zebra"):
        draw_calibration(absent, CalibrationRecipe(schema=1))


# --- prepared sets ------------------------------------------------------------------------------------------------


def test_sets_hold_what_preprocessing_makes_of_each_file(pictures: Path, tmp_path: Path) -> None:
    dataset = ingest(config(pictures))
    spec = PreprocessSpec(size=(24, 32))
    seen: list[tuple[int, int]] = []
    write_set(
        dataset, dataset.of("val"), "val", spec, tmp_path, progress=lambda done, total: seen.append((done, total))
    )
    made = open_set(tmp_path, "val")
    assert isinstance(made.pictures, np.memmap)  # a test set may be larger than a board's memory
    assert made.paths == tuple(item.path for item in dataset.of("val"))
    assert list(made.labels) == [item.label for item in dataset.of("val")]
    for index in (0, 5, 11):
        assert np.array_equal(made.pictures[index], load_picture(pictures / made.paths[index], spec))
    assert seen[-1] == (12, 12)


def test_a_picture_changed_since_the_split_is_noticed(root: Path, tmp_path: Path) -> None:
    dataset = ingest(config(root))
    item = dataset.of("test")[0]
    paint(0, 700).save(root / item.path)
    with pytest.raises(DataError, match="has changed since"):
        write_set(dataset, dataset.of("test"), "test", PreprocessSpec(size=(16, 16)), tmp_path)
    assert not (tmp_path / "test.json").exists()


def test_samples_are_the_original_files(pictures: Path, tmp_path: Path) -> None:
    dataset = ingest(config(pictures))
    write_samples(dataset, dataset.of("test"), tmp_path, count=9)
    rows = json.loads((tmp_path / "samples.json").read_text())["samples"]
    assert Counter(row["label"] for row in rows) == {0: 3, 1: 3, 2: 3}
    for row in rows:
        assert (tmp_path / row["file"]).read_bytes() == (pictures / row["path"]).read_bytes()


def test_digits_are_ten_balanced_classes(tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "digits", limit=200)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [str(digit) for digit in range(10)]
    assert len(list(folder.rglob("*.png"))) == 200
    first = (folder / "0" / "0000.png").stat().st_mtime_ns
    write_digits(folder, limit=200)
    assert (folder / "0" / "0000.png").stat().st_mtime_ns == first
