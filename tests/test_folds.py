"""Cross-validation: honest folds, figures, resumption, and what is kept."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import paint, paint_folder
from test_cli import edgeopt
from test_data import config as data_config

from edgeopt import DataConfig, ModelConfig, Recipe, Run, TrainConfig, api
from edgeopt.config import validate
from edgeopt.cross_validation import fold_figures, student_quantile
from edgeopt.data.dataset import Dataset, Item
from edgeopt.data.folds import Folds, divide
from edgeopt.data.ingest import ingest
from edgeopt.data.sets import StreamedSet
from edgeopt.errors import ConfigError, DataError, MissingStageError, RunError
from edgeopt.files import read_npy
from edgeopt.metrics import softmax
from edgeopt.stages import finetune, training
from edgeopt.stages import folds as stage
from edgeopt.stages.folds import read_out_of_fold
from edgeopt.stages.starting import start
from edgeopt.stages.training import TrainingPlan
from edgeopt.stages.variants import Variant, open_variant
from edgeopt.stages.workspace import open_workspace
from edgeopt.train import clock
from edgeopt.train.evaluate_torch import logits

MODEL = ModelConfig(name="test_resnet", pretrained=False)
TRAIN = TrainConfig(
    epochs=2, batch_size=8, augment="light", flip=False, layer_decay=1.0, folds=3, precision="fp32",
    memory_format="contiguous",
)  # fmt: skip


def planted(groups: dict[str, list[tuple[int, int]]], singles: dict[int, int]) -> Dataset:
    """Train items: groups of (label, count), and single pictures by label; and one of val and test for each class."""
    rows = [
        (label, f"{name}-{label}-{i}", name)
        for name, members in groups.items()
        for label, count in members
        for i in range(count)
    ]
    rows += [(label, f"single-{label}-{i}", "") for label, count in singles.items() for i in range(count)]
    items = [Item(name, label, name, "train", group=group) for label, name, group in rows]
    items += [
        Item(f"{split}-{label}", label, f"{split}{label}", split) for label in singles for split in ("val", "test")
    ]  # type: ignore[arg-type]
    classes = tuple(f"class {label}" for label in sorted(singles))
    return Dataset("/nowhere", classes, tuple(sorted(items, key=lambda item: item.path)))


def test_every_train_picture_is_held_out_exactly_once_and_no_other_ever() -> None:
    dataset = planted({}, {0: 23, 1: 7, 2: 11})
    folds = divide(dataset, 5, 0)
    held = [item.path for fold in range(1, 6) for item in folds.held_out(dataset, fold)]
    assert sorted(held) == [item.path for item in dataset.of("train")]
    for fold in range(1, 6):
        rest = folds.without(dataset, fold)
        assert {item.path for item in rest.of("train")}.isdisjoint(item.path for item in folds.held_out(dataset, fold))
        assert len(rest.of("train")) + len(folds.held_out(dataset, fold)) == len(dataset.of("train"))
        assert (rest.of("val"), rest.of("test")) == (dataset.of("val"), dataset.of("test"))


def test_every_fold_has_its_share_of_every_class_and_folds_are_of_one_size() -> None:
    dataset = planted({}, {0: 23, 1: 7, 2: 11})
    folds = divide(dataset, 5, 0)
    for label, count in ((0, 23), (1, 7), (2, 11)):
        sizes = Counter(folds.of[item.path] for item in dataset.of("train") if item.label == label)
        assert set(sizes.values()) <= {count // 5, count // 5 + 1}
    assert set(Counter(folds.of.values()).values()) <= {8, 9}  # of 41


@pytest.mark.parametrize("seed", range(5))
def test_what_belongs_together_is_in_one_fold_also_across_classes(seed: int) -> None:
    groups = {f"g{i}": [(i % 3, 1 + i % 4)] for i in range(12)}
    groups |= {f"across{i}": [(0, 2), (1, 1)] for i in range(4)}
    dataset = planted(groups, {0: 10, 1: 10, 2: 10})
    folds = divide(dataset, 4, seed)
    where: dict[str, set[int]] = {}
    for item in dataset.of("train"):
        if item.group:
            where.setdefault(item.group, set()).add(folds.of[item.path])
    assert len(where) == 16
    assert all(len(found) == 1 for found in where.values())
    for label in range(3):  # as even as the largest group lets it be
        sizes = Counter(folds.of[item.path] for item in dataset.of("train") if item.label == label)
        assert max(sizes.values()) - min(sizes.values()) <= 4
        assert len(sizes) == 4


def test_the_folds_depend_on_the_seed_and_on_nothing_else() -> None:
    dataset = planted({}, {0: 9, 1: 9})
    shuffled = Dataset(dataset.root, dataset.classes, tuple(reversed(dataset.items)))
    assert divide(dataset, 3, 0) == divide(shuffled, 3, 0)
    assert divide(dataset, 3, 0).fingerprint == divide(shuffled, 3, 0).fingerprint
    assert divide(dataset, 3, 0).of != divide(dataset, 3, 1).of


def test_more_folds_than_the_smallest_class_are_refused_naming_every_class_that_is_too_small() -> None:
    dataset = planted({"many": [(2, 40)]}, {0: 4, 1: 20, 2: 3})
    with pytest.raises(ConfigError) as caught:
        divide(dataset, 5, 0)
    assert '"class 0" (4)' in caught.value.message
    assert '"class 2" (4)' in caught.value.message  # three pictures and one group of forty
    assert "class 1" not in caught.value.message
    assert caught.value.fix is not None
    assert "--folds 4" in caught.value.fix
    assert divide(dataset, 4, 0).count == 4


def test_groups_that_leave_a_fold_without_a_class_are_refused() -> None:
    """Every two of three groups share a class: whichever two are in one of the two folds, the other lacks theirs."""
    groups = {"a": [(0, 1), (1, 1)], "b": [(0, 1), (2, 1)], "c": [(1, 1), (2, 1)]}
    with pytest.raises(DataError, match="the groups leave no picture of class"):
        divide(planted(groups, {0: 0, 1: 0, 2: 0}), 2, 0)


def test_copies_of_a_picture_are_known_as_one_group_and_the_record_keeps_it(tmp_path: Path) -> None:
    root = paint_folder(tmp_path / "photos", classes=2, each=12)
    for index in range(3):
        shutil.copy(root / "class 0" / f"{index:03d}.png", root / "class 0" / f"copy-{index}.png")
    paint(1, 5).save(root / "class 1" / "recoded.bmp")  # other bytes, the same pixels
    dataset = ingest(data_config(root))
    by_name = {item.path: item for item in dataset.items}
    assert by_name["class 0/000.png"].group == by_name["class 0/copy-0.png"].group != ""
    assert by_name["class 1/005.png"].group == by_name["class 1/recoded.bmp"].group != ""
    assert by_name["class 1/005.png"].sha256 != by_name["class 1/recoded.bmp"].sha256
    assert by_name["class 0/004.png"].group == ""
    dataset.write(tmp_path / "record")
    assert Dataset.read(tmp_path / "record").items == dataset.items
    folds = divide(dataset, 4, 0)
    for one, other in (("class 0/000.png", "class 0/copy-0.png"), ("class 1/005.png", "class 1/recoded.bmp")):
        assert folds.of.get(one) == folds.of.get(other)


def test_figures_of_folds_are_those_of_the_formulas() -> None:
    folds = [np.array([1, 1, 1, 0], bool), np.array([1, 1, 0, 0], bool), np.array([1, 1, 1, 1], bool)]
    found = fold_figures(folds)
    assert found.folds == (0.75, 0.5, 1.0)
    assert found.mean == pytest.approx(0.75)
    assert found.spread == pytest.approx(0.25)
    half = 4.302653 * 0.25 * np.sqrt(1 / 3 + 1 / 2)
    assert found.mean_ci == pytest.approx((max(0, 0.75 - half), min(1, 0.75 + half)))
    assert found.pooled == pytest.approx(9 / 12)
    assert found.pooled_ci[0] < 0.75 < found.pooled_ci[1]


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (99, 1.98422)]
)
def test_students_quantile_is_that_of_the_tables(freedom: int, expected: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(expected, rel=1e-4)


def test_what_is_kept_of_folds_that_are_not_asked_for_is_refused_with_the_rest_at_once(tmp_path: Path) -> None:
    values = {
        "data": {"path": "x"},
        "train": {"keep": "soup", "lr_decay": 0.5},
        "ensemble": {"vote": "soft"},
    }
    with pytest.raises(ConfigError, match=r"train\.keep") as caught:
        validate(Recipe, values, where="recipe")
    assert "train.lr_decay" in caught.value.message
    assert "ensemble.members" in caught.value.message
    for changes, said in (
        ({"train": {"folds": 3}, "ensemble": {"vote": "stacking"}}, "ensemble.vote: stacking"),
        ({"train": {"folds": 3, "keep": "soup"}, "ensemble": {"vote": "soup"}}, "ensemble.vote: train.keep"),
        ({"train": {"folds": 1}}, "train.folds"),
    ):
        with pytest.raises(ConfigError, match=said):
            validate(Recipe, {**values, "ensemble": None, **changes}, where="recipe")
    root = paint_folder(tmp_path / "photos", classes=2, each=6)
    done = edgeopt("finetune", str(root), "--folds", "9", "--run", str(tmp_path / "run"), "--no-pretrained")
    assert done.returncode == 1
    assert "train.folds = 9 needs 9 different pictures" in done.stderr
    assert "at most --folds 4" in done.stderr


# -- on a real run ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 14, one picture twice."""
    root = paint_folder(tmp_path_factory.mktemp("folds") / "photos", each=14)
    shutil.copy(root / "class 0" / "003.png", root / "class 0" / "copy.png")
    return root


@pytest.fixture(scope="session")
def folds_run(photos: Path) -> Run:
    """A run cross-validated twice: ``float`` at 32 px, and ``float-<hash>`` of another model at 48 px. Read only."""
    folder = photos.parent / "run"
    run = api.finetune(DataConfig(path=str(photos), image_size=32), MODEL, TRAIN, run=folder).run
    other = ModelConfig(name="test_byobnet", pretrained=False)
    api.finetune(DataConfig(path=str(photos), image_size=48), other, TRAIN, run=folder)
    return run


def family(run: Run, name: str) -> list[Variant]:
    """The models of the folds that the variant ``name`` was kept of."""
    return [open_variant(run, one) for one in sorted(run.variant(name)["ingredients"]["val_scores"])]


def test_out_of_fold_answers_are_those_of_the_models_that_did_not_see_the_picture(folds_run: Run) -> None:
    variant = open_variant(folds_run, "float")
    found = read_out_of_fold(variant)
    dataset = Dataset.read(folds_run.data)
    assert found.paths == tuple(item.path for item in dataset.of("train"))
    assert found.labels.tolist() == [item.label for item in dataset.of("train")]
    folds = divide(dataset, 3, 0)
    assert found.fold.tolist() == [folds.of[path] for path in found.paths]
    assert found.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    workspace = open_workspace(folds_run)
    for number, fold in enumerate(family(folds_run, "float"), start=1):
        items = folds.held_out(dataset, number)
        answers = logits(fold.load(), StreamedSet(workspace.dataset, items), fold.preprocess)
        expected = softmax(answers / fold.record["metrics"]["temperature"])
        assert found.probabilities[found.fold == number] == pytest.approx(expected, abs=1e-4)
        assert fold.record["metrics"]["held_out_top1"] == pytest.approx(
            float((expected.argmax(axis=1) == [item.label for item in items]).mean())
        )
    figures = variant.record["cross_validation"]
    assert figures["pooled_top1"] == pytest.approx(float(found.correct.mean()))
    assert figures["fold_top1"] == [fold.record["metrics"]["held_out_top1"] for fold in family(folds_run, "float")]
    assert figures["spread_top1"] == pytest.approx(float(np.std(figures["fold_top1"], ddof=1)))
    assert f"{figures['mean_top1']:.2%} held out" in variant.summary()


def test_an_out_of_fold_file_that_was_edited_is_noticed(folds_run: Run, tmp_path: Path) -> None:
    shutil.copytree(folds_run.path, tmp_path / "run")
    own = Run.open(tmp_path / "run")
    path = own.path / "host/float/out_of_fold.json"
    path.write_text(path.read_text().replace("photos", "photo").replace('"schema": 1', '"schema":  1'))
    with pytest.raises(RunError, match="was changed"):
        read_out_of_fold(open_variant(own, "float"))


def test_the_best_fold_on_val_is_kept(folds_run: Run) -> None:
    variant = open_variant(folds_run, "float")
    scores = variant.record["ingredients"]["val_scores"]
    folds = {one.name: one for one in family(folds_run, "float")}
    assert scores == {name: pytest.approx(one.record["metrics"]["val_top1"]) for name, one in folds.items()}
    (kept,) = variant.record["ingredients"]["used"]
    best = max(folds.values(), key=lambda one: (one.record["metrics"]["val_top1"], -one.record["metrics"]["val_loss"]))
    assert kept == best.name
    state = best.load().state_dict()
    assert all(torch.equal(value, state[name]) for name, value in variant.load().state_dict().items())
    assert folds_run.variant("float")["metrics"]["val_top1"] == best.record["metrics"]["val_top1"]


def test_folds_start_alike_and_what_is_kept_is_the_original(folds_run: Run) -> None:
    assert folds_run.original().startswith("float-")
    assert "fold" not in folds_run.original()
    assert folds_run.variant(folds_run.original())["config"]["model"]["name"] == "test_byobnet"
    assert folds_run.variant("float")["config"]["train"]["folds"] == 3
    assert folds_run.variant("float")["config"]["train"]["keep"] == "best"
    assert [one.record["fold"] for one in family(folds_run, "float")] == [{"fold": k, "of": 3} for k in (1, 2, 3)]


def test_killed_in_the_third_fold_the_first_two_are_not_repeated_and_other_keeping_trains_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Dataset] = []
    real = stage.fit

    def killed_in_the_third(plan: Any, model: Any, workspace: Any, *rest: Any, **more: Any) -> Any:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(workspace.dataset)
        return real(plan, model, workspace, *rest, **more)

    data, folder = DataConfig(path=str(photos), image_size=32), tmp_path / "run"
    train = TRAIN.model_copy(update={"epochs": 1})
    monkeypatch.setattr(stage, "fit", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        api.finetune(data, MODEL, train, run=folder)
    run = Run.open(folder)
    assert list(run.variants()) == ["float-fold1", "float-fold2"]
    assert "float" in run.half_made()
    with pytest.raises(MissingStageError):
        run.original()  # one fold's model is not what was asked for
    assert run.next_command() == "edgeopt finetune DATA --folds K, as before: it goes on"
    before = {name: (folder / "host" / name / "stage.json").read_bytes() for name in run.variants()}
    seen.clear()

    def again(plan: Any, model: Any, workspace: Any, *rest: Any, **more: Any) -> Any:
        seen.append(workspace.dataset)
        return real(plan, model, workspace, *rest, **more)

    monkeypatch.setattr(stage, "fit", again)
    made = api.finetune(data, MODEL, train, run=folder)
    assert made.name == "float"
    dataset = Dataset.read(run.data)
    folds = divide(dataset, 3, train.seed)
    assert [one.of("train") for one in seen] == [folds.without(dataset, 3).of("train")]
    assert seen[0].of("val") == dataset.of("val")
    assert before == {name: (folder / "host" / name / "stage.json").read_bytes() for name in before}

    seen.clear()
    soup = api.finetune(data, MODEL, train.model_copy(update={"keep": "soup"}), run=folder)
    assert seen == []
    assert soup.name == f"float-{soup.record['key'][:6]}"
    assert soup.record["ingredients"]["tried"][0]["kept"]
    assert api.finetune(data, MODEL, train, run=folder).skipped
    for name in before:
        run.remove(name)  # what was kept has weights of its own
    assert api.finetune(data, MODEL, train, run=folder).skipped


def test_the_folds_share_the_time_and_what_one_leaves_is_for_the_next(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a fake clock: reading the pictures takes a minute of the ten, the first fold one, the second nine."""
    now, limits, done = [0.0], [], iter((60, 540, 0))
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def read(*given: Any, **options: Any) -> Any:
        now[0] += 60
        return start(*given, **options)

    def fit(plan: TrainingPlan, *given: Any, **options: Any) -> Any:
        limits.append(plan.loop.time_seconds)
        now[0] += next(done)
        return training.fit(replace(plan, loop=replace(plan.loop, time_seconds=None)), *given, **options)

    monkeypatch.setattr(finetune, "start", read)
    monkeypatch.setattr(stage, "fit", fit)
    config = TRAIN.model_copy(update={"time": "10m"})
    api.finetune(DataConfig(path=str(photos), image_size=32), MODEL, config, run=tmp_path / "run")
    assert limits == [180, 240, 1]


def test_the_same_in_a_recipe_and_on_the_command_line() -> None:
    recipe = validate(Recipe, {"data": {"path": "x"}, "train": {"folds": 5, "keep": "soup"}}, where="recipe")
    assert (recipe.train.folds, recipe.train.keep) == (5, "soup")
    help_text = edgeopt("finetune", "--help").stdout
    assert "--folds K" in help_text
    assert "--keep [best|soup]" in help_text


def test_held_out_answers_lie_in_the_run_with_their_hashes(folds_run: Run) -> None:
    record = json.loads((folds_run.path / "host/float-fold2/stage.json").read_text())
    answers = read_npy(folds_run.output(record, "held_out"), "<f4")
    dataset = Dataset.read(folds_run.data)
    assert answers.shape == (len(Folds(3, divide(dataset, 3, 0).of).held_out(dataset, 2)), 3)
