"""Ensembles of real variants: judged, asked, taught from; what does not fit is refused; what is gone is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import edgeopt
from test_folds import MODEL, TRAIN, family, folds_run, photos  # noqa: F401 - fixtures

from edgeopt import CompressConfig, DataConfig, ModelConfig, Recipe, Run, api
from edgeopt.config import validate
from edgeopt.data.dataset import Dataset
from edgeopt.data.pixel_statistics import pixel_statistics
from edgeopt.errors import ConfigError, MissingStageError, RunError
from edgeopt.metrics import paired_drop, softmax
from edgeopt.pipeline import run_recipe
from edgeopt.preprocess import PreprocessSpec, load_picture
from edgeopt.sets import open_set
from edgeopt.stages import preprocessing as preprocessing_stage
from edgeopt.stages import quantizing as quantizing_stage
from edgeopt.stages import recovery as recovery_stage
from edgeopt.stages.teachers import find_teacher
from edgeopt.stages.variants import Variant, open_variant
from edgeopt.stages.voters import Ensemble, open_ensemble
from edgeopt.train.distillation import Distillation, Hinton
from edgeopt.train.evaluate_torch import logits
from edgeopt.train.teacher import Adapted
from edgeopt.voting import Combination, fit_weights


@pytest.fixture(scope="session")
def voted(folds_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:  # noqa: F811
    """The cross-validated run with an ensemble of each kind. Read only."""
    path = tmp_path_factory.mktemp("ensembles") / "run"
    shutil.copytree(folds_run.path, path)
    run = Run.open(path)
    for vote in ("soft", "hard", "weighted", "stacking"):
        api.ensemble(run, ["float", *second(run)], vote=vote)
    return run


def second(run: Run) -> list[str]:
    """The variant of the other model, which sees other pictures."""
    return [name for name, one in run.variants().items() if one.get("ingredients") and name != "float"]


@pytest.fixture
def own(voted: Run, tmp_path: Path) -> Run:
    shutil.copytree(voted.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def answers(run: Run, name: str, part: str) -> np.ndarray:
    """A variant's calibrated probabilities on a prepared set, the long way."""
    variant = open_variant(run, name)
    pictures = open_set(run.data / "sets" / variant.preprocess.key, part)
    return softmax(logits(variant.load(), pictures, variant.preprocess) / variant.record["metrics"]["temperature"])


def truth(run: Run, part: str) -> np.ndarray:
    return np.array([item.label for item in Dataset.read(run.data).of(part)])  # type: ignore[arg-type]


@pytest.mark.parametrize("vote", ["soft", "hard", "weighted", "stacking"])
def test_an_ensemble_is_judged_on_test_against_its_best_member(voted: Run, vote: str) -> None:
    result = api.evaluate(voted, variant=f"ensemble-{vote}")
    members = open_ensemble(voted, f"ensemble-{vote}").members
    assert members == ("float", *second(voted))
    table = {name: answers(voted, name, "test") for name in members}
    labels = truth(voted, "test")
    assert result["n"] == len(labels)
    assert result["members"] == {
        name: pytest.approx((one.argmax(axis=1) == labels).mean()) for name, one in table.items()
    }
    if vote == "soft":
        assert result["predictions"] == sum(table.values()).argmax(axis=1).tolist()  # type: ignore[union-attr]
    assert result["top1"] == pytest.approx((np.array(result["predictions"]) == labels).mean())
    assert result["top1_ci"][0] <= result["top1"] <= result["top1_ci"][1]
    val = truth(voted, "val")
    best = max(members, key=lambda name: (answers(voted, name, "val").argmax(axis=1) == val).mean())
    scores = {name: float((answers(voted, name, "val").argmax(axis=1) == val).mean()) for name in members}
    assert scores[result["best_member"]] == scores[best]
    expected = paired_drop(
        table[result["best_member"]].argmax(axis=1) == labels, np.array(result["predictions"]) == labels
    )
    assert result["drop_points"] == pytest.approx(expected.drop_points)
    assert result["drop"]["mcnemar_p"] == pytest.approx(expected.mcnemar_p)
    assert api.evaluate(voted, variant=f"ensemble-{vote}")["measured_on"] == result["measured_on"]  # kept


def test_weights_are_fitted_on_val_and_beat_every_member_there(voted: Run) -> None:
    ensemble = open_ensemble(voted, "ensemble-weighted")
    table, labels = [answers(voted, name, "val") for name in ensemble.members], truth(voted, "val")
    assert ensemble.record["weights"] == pytest.approx(fit_weights(table, labels), abs=1e-4)

    def loss(p: np.ndarray) -> float:
        return float(-np.log(p[np.arange(len(labels)), labels]).mean())

    mixed = np.exp(ensemble.combination().log_probabilities(table))
    assert loss(mixed) <= min(map(loss, table)) + 1e-6


def test_stacking_is_learned_from_the_out_of_fold_answers_and_kept_as_numbers(voted: Run) -> None:
    ensemble = open_ensemble(voted, "ensemble-stacking")
    assert ensemble.record["outputs"]["coefficients"]["path"] == "host/ensemble-stacking/coefficients.npy"
    coefficients = ensemble.combination().coefficients
    assert coefficients is not None
    assert coefficients.shape == (2 * 3 + 1, 3)
    losses = ensemble.record["val_losses"]
    assert min(losses, key=lambda key: losses[key]) == f"{ensemble.record['strength']:g}"


def test_predict_asks_an_ensemble_with_each_members_own_preprocessing(voted: Run, photos: Path) -> None:  # noqa: F811
    result = api.evaluate(voted, variant="ensemble-soft")
    items = Dataset.read(voted.data).of("test")
    found, failures = api.predict(voted, [str(photos / item.path) for item in items], variant="ensemble-soft", top=3)
    assert not failures
    classes = Dataset.read(voted.data).classes
    assert [classes.index(one.label) for one in found] == result["predictions"]
    temperature = voted.ensembles()["ensemble-soft"]["metrics"]["temperature"]
    table = [answers(voted, name, "test") for name in ("float", *second(voted))]
    expected = softmax(np.log(sum(table) / 2) / temperature)  # type: ignore[arg-type]
    assert [one.probability for one in found] == pytest.approx(expected.max(axis=1), abs=1e-3)
    alone, _ = api.predict(voted, [str(photos / items[0].path)], variant="float")
    assert alone[0].probability == pytest.approx(answers(voted, "float", "test")[0].max(), abs=1e-4)


def test_a_variant_is_judged_in_pytorch_by_its_name(own: Run) -> None:
    result = api.evaluate(own, variant="float-fold1")
    assert result["engine"] == "pytorch/float-fold1"
    labels = truth(own, "test")
    assert result["top1"] == pytest.approx((answers(own, "float-fold1", "test").argmax(axis=1) == labels).mean())
    assert not (own.path / "device/pytorch/float-fold2").exists()  # folds nobody asked for are no engines
    with pytest.raises(ConfigError, match="an engine and a variant"):
        api.evaluate(own, "pytorch/float", variant="float")
    with pytest.raises(ConfigError, match="an engine and a variant"):
        api.predict(own, ["x.png"], engine="pytorch/float", variant="float")


# -- as a teacher ----------------------------------------------------------------------------------------------------


def batch(size: int) -> torch.Tensor:
    return torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("vote", ["soft", "hard", "weighted", "stacking"])
def test_a_teaching_ensemble_answers_as_its_members_combined(voted: Run, vote: str) -> None:
    ensemble, spec = open_ensemble(voted, f"ensemble-{vote}"), open_variant(voted, "float").preprocess
    teacher = find_teacher(voted, ensemble.name).module(spec)
    table = []
    for name in ensemble.members:
        variant = open_variant(voted, name)
        given = batch(32)
        if variant.preprocess != spec:
            own = variant.preprocess
            pixels = given * torch.tensor(spec.std).view(3, 1, 1) + torch.tensor(spec.mean).view(3, 1, 1)
            pixels = torch.nn.functional.interpolate(pixels, own.size, mode="bilinear", antialias=True)
            given = (pixels - torch.tensor(own.mean).view(3, 1, 1)) / torch.tensor(own.std).view(3, 1, 1)
        with torch.no_grad():
            table.append(softmax(variant.load()(given).numpy() / variant.record["metrics"]["temperature"]))
    with torch.no_grad():
        found = teacher(batch(32)).numpy()
    assert found == pytest.approx(ensemble.combination().log_probabilities(table), abs=2e-3)
    student = open_variant(voted, "float").load()
    objective = Distillation(teacher, Hinton(2.0), weight=1.0)
    targets = torch.zeros(5, dtype=torch.int64)
    with torch.no_grad():
        loss = objective(student, batch(32), targets)
        own_answers = torch.log_softmax(student(batch(32)) / 2.0, dim=1).numpy()
    wanted = softmax(found / 2.0)
    by_hand = 4.0 * (wanted * (np.log(wanted) - own_answers)).sum(axis=1).mean()
    assert float(loss) == pytest.approx(float(by_hand), rel=1e-3, abs=1e-4)
    assert float(loss) > 1e-6  # its own weights as the teacher would leave nothing to learn


def test_pictures_of_another_normalization_and_size_reach_a_teacher_as_its_own() -> None:
    own = PreprocessSpec(size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    given = PreprocessSpec(size=(32, 32))
    grey = torch.full((1, 3, 32, 32), 0.25)
    normalized = (grey - torch.tensor(given.mean).view(3, 1, 1)) / torch.tensor(given.std).view(3, 1, 1)
    seen = Adapted(torch.nn.Identity(), own, given)(normalized)
    assert seen.shape == (1, 3, 16, 16)
    assert torch.allclose(seen, torch.full_like(seen, -0.5), atol=1e-5)


@pytest.mark.parametrize(
    ("stage", "asked"), [(recovery_stage, {"prune": 0.325, "int8": False}), (quantizing_stage, {"schemes": ("u8a7w",)})]
)
def test_compress_hands_the_teacher_to_training_and_its_record(
    own: Run, monkeypatch: pytest.MonkeyPatch, stage: ModuleType, asked: dict[str, Any]
) -> None:
    taught: list[Any] = []

    def stopped(*_: Any, teacher: Any, **__: Any) -> Any:
        taught.append(teacher)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "fit", stopped)
    spec = open_variant(own, "float").preprocess
    config = CompressConfig(epochs=1, calibration="fast", teacher="ensemble-weighted", **asked)
    with pytest.raises(KeyboardInterrupt):
        api.compress(own, config, variant="float")
    expected = find_teacher(own, "ensemble-weighted").module(spec)
    with torch.no_grad():
        assert torch.allclose(taught[0].module(spec)(batch(32)), expected(batch(32)), atol=1e-5)
    with pytest.raises(KeyboardInterrupt):
        api.compress(own, config.model_copy(update={"teacher": None}), variant="float")
    with torch.no_grad():
        assert torch.equal(taught[1].module(spec)(batch(32)), open_variant(own, "float").load()(batch(32)))
    keys = {json.loads(path.read_text())["key"] for path in (own.path / "host").glob("*/pending.json")}
    assert len(keys) == 1  # the first left nothing behind, so that its name was free
    with pytest.raises(MissingStageError, match='did you mean "ensemble-weighted"'):
        api.compress(own, config.model_copy(update={"teacher": "ensemble-wieghted"}), variant="float")


@pytest.mark.slow
def test_a_recipe_makes_folds_and_an_ensemble_that_teaches_the_int8_model(photos: Path, tmp_path: Path) -> None:  # noqa: F811
    values = {
        "targets": ["onnxruntime"],
        "data": {"path": str(photos), "image_size": 32},
        "model": MODEL.model_dump(),
        "train": {**TRAIN.model_dump(), "epochs": 1},
        "ensemble": {"vote": "soft"},
        "compress": {"epochs": 1, "calibration": "fast"},
        "bench": {"seconds": 1},
    }
    run, *_ = run_recipe(validate(Recipe, values, where="recipe"), run=tmp_path / "run")
    ensemble = run.ensembles()["ensemble-soft"]
    assert [one["variant"] for one in ensemble["members"]] == ["float-fold1", "float-fold2", "float-fold3"]
    (int8,) = [one for one in run.variants().values() if one.get("scheme")]
    assert int8["teacher"] == "ensemble-soft"
    assert int8["inputs"]["teacher"] == ensemble["key"]
    assert int8["parent"] == "float"
    assert not (run.path / "host/float-fold1/export").exists()
    assert not (run.path / "device/pytorch/float-fold1").exists()


@pytest.mark.slow
def test_a_soup_is_a_variant_to_compress_and_build_like_any_other(own: Run) -> None:
    made = api.ensemble(own, ["float-fold[123]"], vote="soup")
    assert isinstance(made, Variant)
    assert made.name == "float-soup"
    assert own.original() == "float-soup"
    states = [open_variant(own, name).load().state_dict() for name in made.record["ingredients"]["used"]]
    for name, parameter in made.load().named_parameters():
        assert torch.allclose(parameter, torch.stack([state[name] for state in states]).mean(dim=0), atol=1e-6)
    scores = made.record["ingredients"]["val_scores"]
    assert made.record["metrics"]["val_top1"] >= max(scores.values()) - 1e-6
    (int8,) = api.compress(own, CompressConfig(epochs=1, schemes=("u8a7w",), calibration="fast"))
    assert int8.record["parent"] == "float-soup"
    built = api.build(own, "onnxruntime", variants=[int8.name])
    assert all(item.record["parity"]["ok"] for item in built)
    assert api.ensemble(own, ["float-fold[123]"], vote="soup").skipped


# -- what does not fit -----------------------------------------------------------------------------------------------


def test_an_ensemble_has_no_weights_to_compress_export_or_build(voted: Run) -> None:
    for call in (
        lambda: api.compress(voted, variant="ensemble-soft"),
        lambda: api.export(voted, variants=["ensemble-soft"]),
        lambda: api.build(voted, "onnxruntime", variants=["ensemble-soft"]),
    ):
        with pytest.raises(RunError, match="several models that vote") as caught:
            call()
        assert "--teacher ensemble-soft" in str(caught.value.fix)
        assert "--vote soup" in str(caught.value.fix)


def test_members_that_do_not_fit_are_refused_with_every_reason_at_once(voted: Run) -> None:
    (other,) = second(voted)
    with pytest.raises(ConfigError) as caught:
        api.ensemble(voted, ["float", other, "float-fold1"], vote="soup")
    assert f"{other}: is not of the same architecture as float" in caught.value.message
    assert "float-fold1" not in caught.value.message
    with pytest.raises(ConfigError) as caught:
        api.ensemble(voted, ["float-fold1"], vote="stacking")
    assert "needs two variants or more" in caught.value.message
    assert "is the model of one fold" in caught.value.message
    with pytest.raises(ConfigError, match='did you mean "float"'):
        api.ensemble(voted, ["floot", "float-fold1"])
    with pytest.raises(RunError, match="several models that vote"):
        api.ensemble(voted, ["float", "ensemble-soft"])
    with pytest.raises(ConfigError, match="vote"):
        api.ensemble(voted, vote="quorum")


def test_without_members_the_models_of_the_originals_folds_vote(own: Run) -> None:
    made = api.ensemble(own, vote="hard")
    assert isinstance(made, Ensemble)
    assert made.members == tuple(sorted(one.name for one in family(own, own.original())))
    assert made.name == f"ensemble-hard-{made.record['key'][:6]}"  # another of that name was there
    again = api.ensemble(own, vote="hard")
    assert again.skipped
    assert again.name == made.name


def test_a_member_is_kept_from_removal_and_what_changed_is_noticed_and_made_again(own: Run) -> None:
    with pytest.raises(RunError, match="is a member of ensemble-soft"):
        own.remove("float")
    assert own.remove("ensemble-soft") == ["host/ensemble-soft"]
    assert "ensemble-soft" not in own.ensembles()
    record = own.path / "host/float/stage.json"
    values = json.loads(record.read_text())
    weights = own.path / "host/float/model.safetensors"
    shutil.copy(own.path / f"host/{values['ingredients']['used'][0]}/model.safetensors", weights)
    other = next(one for one in family(own, "float") if one.name != values["ingredients"]["used"][0])
    shutil.copy(own.path / "host" / other.name / "model.safetensors", weights)
    values["outputs"]["model"]["sha256"] = other.record["outputs"]["model"]["sha256"]
    record.write_text(json.dumps(values))
    assert own.outdated(own.ensembles()["ensemble-hard"])
    with pytest.raises(RunError, match="was removed or made again since") as caught:
        open_ensemble(own, "ensemble-hard").voters()
    assert "--vote hard" in str(caught.value.fix)
    made = api.ensemble(own, ["float", *second(own)], vote="hard")
    assert made.name == "ensemble-hard"
    assert not own.outdated(made.record)


def test_show_lists_ensembles_and_eval_says_the_paired_difference(voted: Run) -> None:
    shown = edgeopt("show", "--run", str(voted.path)).stdout
    assert "ensemble-soft" in shown
    assert "- (fold 2 of 3)" in shown
    assert f"float, {second(voted)[0]}" in shown
    said = edgeopt("eval", "--variant", "ensemble-soft", "--run", str(voted.path))
    assert said.returncode == 0, said.stderr
    assert "its best member on val" in said.stdout
    assert "McNemar p =" in said.stdout
    state = json.loads(edgeopt("show", "--json", "--run", str(voted.path)).stdout)
    assert set(state["ensembles"]) == {f"ensemble-{vote}" for vote in ("soft", "hard", "weighted", "stacking")}


def test_figures_that_lack_something_are_measured_again(own: Run) -> None:
    whole = api.evaluate(own, variant="ensemble-hard")
    path = own.path / "host/ensemble-hard/accuracy.json"
    for changes in ({"members": {}}, {"best_member": "nobody"}, {"drop": None}, {"drop_points": None}):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        again = api.evaluate(own, variant="ensemble-hard")
        assert {name: again[name] for name in changes} == {name: whole[name] for name in changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": [0.5]},
        {"weights": None},
        {"weights": [0.5, 7.0]},
        {"best_member": "float-fold1"},
        {"members": []},
        {"vote": "shout"},
        {"members": [{"variant": "../float", "model_sha256": "0" * 64, "temperature": 1.0}] * 2},
    ],
    ids=str,
)
def test_a_damaged_record_is_a_line_and_can_be_removed(own: Run, changes: dict[str, Any]) -> None:
    path = own.path / "host/ensemble-weighted/ensemble.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(RunError, match="is damaged") as caught:
        own.ensembles()
    assert "edgeopt rm ensemble-weighted" in str(caught.value.fix)
    assert own.remove("ensemble-weighted") == ["host/ensemble-weighted"]
    assert len(own.ensembles()) == 3


def test_coefficients_that_were_edited_are_noticed(own: Run) -> None:
    path = own.path / "host/ensemble-stacking/coefficients.npy"
    values = np.load(path)
    np.save(path, values * 2)
    with pytest.raises(RunError, match="was changed since"):
        open_ensemble(own, "ensemble-stacking").combination()


def test_stacking_needs_members_that_were_cross_validated(photos: Path, tmp_path: Path) -> None:  # noqa: F811
    folder, data = tmp_path / "run", DataConfig(path=str(photos), image_size=32)
    train = TRAIN.model_copy(update={"folds": None, "epochs": 1})
    for name in ("test_resnet", "test_byobnet"):
        run = api.finetune(data, ModelConfig(name=name, pretrained=False), train, run=folder).run
    names = list(run.variants())
    assert len(names) == 2  # several models in one run
    with pytest.raises(ConfigError, match="was not cross-validated"):
        api.ensemble(run, names, vote="stacking")
    made = api.ensemble(run, names, vote="weighted")
    assert made.record["weights"] == pytest.approx([made.record["weights"][0], 1 - made.record["weights"][0]])
    assert Combination("weighted", tuple(made.record["weights"])) == made.combination()  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="the original has no folds"):
        api.ensemble(run)


# -- of several preprocessings ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[int]]:  # noqa: F811
    """``float``, a soup of three folds on 32x48 pixels normalized by their own mean and deviation, and how many
    pictures those were measured on each time; ``float-<hash>``, one training on the same size unnormalized. Read only.
    """
    measured: list[int] = []

    def listening(dataset: Dataset, items: Any, *rest: Any, **more: Any) -> Any:
        measured.append(len(items))
        return pixel_statistics(dataset, items, *rest, **more)

    folder = tmp_path_factory.mktemp("wide") / "run"
    data = DataConfig(path=str(photos), image_size=(32, 48), normalize="data")
    train = TRAIN.model_copy(update={"epochs": 1, "keep": "soup"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocessing_stage, "pixel_statistics", listening)
        run = api.finetune(data, MODEL, train, run=folder).run
    single = train.model_copy(update={"folds": None, "keep": None})
    api.finetune(data.model_copy(update={"normalize": "unit"}), MODEL, single, run=folder)
    return run, measured


def test_folds_share_the_mean_and_deviation_of_all_train_pictures_and_of_no_other(wide: tuple[Run, list[int]]) -> None:
    run, measured = wide
    dataset = Dataset.read(run.data)
    assert measured == [len(dataset.of("train"))]  # once, not for every fold
    specs = [open_variant(run, name).preprocess for name in ("float", "float-fold1", "float-fold2", "float-fold3")]
    assert all(spec == specs[0] for spec in specs)
    assert specs[0].size == (32, 48)
    paths = [Path(dataset.root) / item.path for item in dataset.of("train")]
    pixels = np.stack([load_picture(path, specs[0]) for path in paths]).reshape(-1, 3) / 255.0
    assert specs[0].mean == pytest.approx(pixels.mean(axis=0).tolist(), rel=1e-12)
    assert specs[0].std == pytest.approx(pixels.std(axis=0).tolist(), rel=1e-12)
    tried = run.variant("float")["ingredients"]["tried"]
    assert {one["name"] for one in tried} <= {"float-fold1", "float-fold2", "float-fold3"}
    assert tried[0]["kept"]


def test_members_normalized_otherwise_vote_and_teach_but_make_no_soup(wide: tuple[Run, list[int]]) -> None:
    run, _ = wide
    [other] = [name for name in run.variants() if not name.startswith("float-fold") and name != "float"]
    assert open_variant(run, other).preprocess.mean == (0, 0, 0)
    made = api.ensemble(run, ["float", other], vote="soft")
    table = [answers(run, name, "val") for name in ("float", other)]
    expected = np.mean([one for one in table], axis=0).argmax(axis=1) == truth(run, "val")
    assert made.record["metrics"]["val_top1"] == pytest.approx(expected.mean())
    spec = open_variant(run, other).preprocess
    pictures = open_set(run.data / "sets" / spec.key, "val")
    taught = torch.from_numpy(next(pictures.batches(spec, 8)))
    with torch.no_grad():
        found = find_teacher(run, made.name).module(spec)(taught).exp().numpy()
    assert found == pytest.approx(np.mean([one[:8] for one in table], axis=0), abs=1e-3)
    with pytest.raises(ConfigError, match=f"{other}: its pictures are not prepared as those of float"):
        api.ensemble(run, ["float", other], vote="soup")
