"""``compress`` as a whole: 16 bits, which train nothing, what is out of scope, running out of memory, and its time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edgeopt import CompressConfig, ModelConfig, Recipe, Run, TrainConfig, api, cli
from edgeopt.config import DataConfig, validate
from edgeopt.errors import BackendError, ConfigError, TrainingError
from edgeopt.pipeline import STEPS, run_recipe
from edgeopt.registry import load_backend
from edgeopt.stages import compress as compress_stage
from edgeopt.stages import ladder, pruning, quantizing, rungs
from edgeopt.stages.quantizing import SHORT_QAT
from edgeopt.stages.training import TrainingPlan
from edgeopt.stages.variants import Variant
from edgeopt.train import clock
from tests.listening import Listening

PLAIN = {"name": "tests.tiny_torch:PlainNet", "pretrained": False}
TRAIN = {"epochs": 1, "batch_size": 16, "layer_decay": 1.0, "augment": "light", "flip": False}
PRUNED = {"prune": 0.27, "recovery_epochs": 0}


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    data = DataConfig(path=str(pictures), image_size=32)
    folder = tmp_path_factory.mktemp("compress") / "run"
    return api.finetune(data, ModelConfig(**PLAIN), TrainConfig(**TRAIN), run=folder).run  # type: ignore[arg-type]


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy, to compress in."""
    return Run.open(Path(shutil.copytree(trained.path, tmp_path / "run")))


# --- 16 bits --------------------------------------------------------------------------------------------------------


def test_bf16_alone_makes_nothing_and_says_what_to_type(run: Run) -> None:
    console = Listening()
    (made,) = api.compress(run, CompressConfig(bf16=True), console=console)
    assert (made.name, list(run.variants())) == ("float", ["float"])
    assert "float" in run.exports()
    assert "bf16 needs no training: edgeopt build --target T --variant float" in console.said[-1]


def test_a_recipe_with_bf16_prunes_skips_int8_and_builds_the_pruned_model_in_it(
    run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the CPU does not compute in bf16 the whole is refused; that it does is then planted but for the engine."""
    backend = load_backend("openvino")
    compress = {**PRUNED, "bf16": True}
    values = {"targets": ["openvino"], "data": {"path": str(pictures), "image_size": 32}, "model": PLAIN}
    recipe = validate(Recipe, {**values, "train": TRAIN, "compress": compress}, where="recipe")
    if "bf16" not in backend.float_baselines():
        with pytest.raises(ConfigError, match="no target has float engines in bf16 on this machine"):
            run_recipe(recipe, run=run.path, steps=STEPS[:5])
        return
    run_recipe(recipe, run=run.path, steps=STEPS[:5])
    assert set(run.variants()) == {"float", "float-prune27"}, "no int8"
    engines = {key: record["precision"] for key, record in run.engines().items()}
    assert engines["openvino/float-prune27-bf16"] == "bf16"


def test_a_precision_that_no_target_has_is_said_before_anything_is_made(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"no target has float engines in bf16 on this machine \(onnxruntime: fp32\)"):
        api.compress(run, CompressConfig(bf16=True, prune=0.3), targets=("onnxruntime",))
    assert list(run.variants()) == ["float"]
    assert not run.exports()


def test_16_bits_are_in_place_of_int8() -> None:
    assert validate(CompressConfig, {"fp16": True}, where="x").int8 is False
    for wrong in ({"fp16": True, "int8": True}, {"bf16": True, "int8": True, "prune": 0.3}):
        with pytest.raises(ConfigError, match="16 is in place of int8; leave one out"):
            validate(CompressConfig, wrong, where="compress options")
    with pytest.raises(ConfigError, match="add int8"):
        validate(CompressConfig, {"fp16": True, "latency": "4ms"}, where="compress options")


@pytest.mark.parametrize(
    ("typed", "key", "value", "said"),
    [
        (["--int4"], "int4", True, "int4: is out of scope: the runtimes here have no int4 convolutions"),
        (["--int8", "--sparsity", "2:4"], "sparsity", "2:4", "sparsity: is out of scope, 2:4 as well"),
    ],
)
def test_what_is_out_of_scope_says_so_and_what_to_take_instead(
    typed: list[str], key: str, value: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["compress", *typed])
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert said in told
    assert "prune" in told
    with pytest.raises(ConfigError, match=f"compress.{said}"):
        validate(Recipe, {"data": {"path": "x"}, "compress": {key: value}}, where="recipe")
    with pytest.raises(ConfigError, match=f"data.{key}: unknown key"):
        validate(Recipe, {"data": {"path": "x", key: value}}, where="recipe")


# --- what cannot go on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "at"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "channels_of"),
        (MemoryError(), "reconstruct"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "calibrated"),
    ],
)
def test_running_out_of_memory_where_nothing_is_trained_is_one_line(
    error: Exception, at: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory that is not there is planted."""

    def greedy(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(quantizing if at == "calibrated" else pruning, at, greedy)
    config = CompressConfig(int8=at == "calibrated", **({} if at == "calibrated" else PRUNED))  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="compressing ran out of memory") as caught:
        api.compress(run, config)
    assert "fine-tuned with a smaller --batch-size or --image-size" in str(caught.value.fix)
    monkeypatch.setattr(quantizing if at == "calibrated" else pruning, at, _bug)
    with pytest.raises(RuntimeError, match="a bug"):
        api.compress(run, config)


def _bug(*_: object, **__: object) -> None:
    raise RuntimeError("a bug")


@pytest.mark.parametrize(("make", "key"), [(TrainingPlan.for_recovery, "recovery_lr"), (TrainingPlan.for_qat, "lr")])
def test_the_advice_of_a_training_names_keys_that_compress_has(make: Callable[..., TrainingPlan], key: str) -> None:
    advice = make(CompressConfig()).advice
    assert advice.diverged.format(lr=0.5).startswith(f"lower {key} of [compress] (now 0.5), as in --set {key}=")
    assert not {"warmup_epochs", "precision", "train."} & set((advice.diverged + advice.memory).split())
    assert "lower lr (now" in TrainingPlan.for_finetuning(TrainConfig()).advice.diverged


@pytest.mark.parametrize(
    ("stated", "share", "epochs"), [(5, 1.0, 5), (5, SHORT_QAT, 2), (1, SHORT_QAT, 1), (0, 1.0, 0)]
)
def test_int8_means_training_too_unless_no_epochs_are_asked_for(stated: int, share: float, epochs: int) -> None:
    plan = TrainingPlan.for_qat(CompressConfig(epochs=stated), share=share)
    assert plan.loop.epochs == epochs
    assert plan.epoch_share == min(1.0, stated * share or 1.0)


def test_what_compress_states_of_its_trainings_reaches_them() -> None:
    stated = CompressConfig(
        epochs=6, lr=0.003, scale_lr=4.0, batchnorm_epochs=1.5, ema_decay=0.9, light_end=0.3, recovery_epochs=3,
        recovery_lr=0.02, match_weight=0.5, distill="dist", temperature=2.0, distill_weight=0.6,
    )  # fmt: skip
    qat, recovery = TrainingPlan.for_qat(stated), TrainingPlan.for_recovery(stated)
    loop = qat.loop
    assert (loop.epochs, loop.lr, loop.batchnorm_epochs, loop.ema_decay) == (6, 0.003, 1.5, 0.9)
    assert (qat.scale_lr, qat.light_end) == (4.0, 0.3)
    assert (recovery.loop.epochs, recovery.loop.lr, recovery.match_weight) == (3, 0.02, 0.5)
    for plan in (qat, recovery):
        assert (plan.distill, plan.temperature, plan.distill_weight) == ("dist", 2.0, 0.6)
        assert plan.loop.keep_initial, "training that does harm is not kept"
    assert TrainingPlan.for_qat(CompressConfig()).loop.batchnorm_epochs == 0.0, "statistics stay, unless stated"


def test_widths_are_rounded_as_the_most_demanding_of_the_targets_says(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = tmp_path / "wide.toml"
    wide.write_text('schema = 1\ntitle = "planted"\nbackend = "openvino"\nround_to = 32\n')
    asked: list[int] = []

    def stopped(job: Any) -> Any:
        asked.append(job.round_to)
        raise KeyboardInterrupt

    monkeypatch.setattr(compress_stage, "export", lambda *_, **__: [])
    monkeypatch.setattr(compress_stage, "pruned", stopped)
    for targets in ((), ("openvino", str(wide)), (str(wide), "openvino")):
        with pytest.raises(KeyboardInterrupt):
            api.compress(run, CompressConfig(int8=False, prune=0.3), targets=targets)
    assert asked == [8, 32, 32]


# --- time -----------------------------------------------------------------------------------------------------------


def test_the_time_of_the_call_is_divided_among_what_is_climbed_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The climbs are planted: each takes ten seconds of a fake clock."""
    now, shares = [0.0], []
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def climbed(*_: object, seconds: float) -> str:
        shares.append(seconds)
        now[0] += 10
        return "int8"

    monkeypatch.setattr(ladder, "climbed", climbed)
    job: Any = SimpleNamespace(config=CompressConfig(max_drop=1.0), clock=clock.Clock(90))
    list(quantizing.quantized(job, "float", ("u8a7w", "s8a8w"), later=1))  # type: ignore[arg-type]
    assert shares == [30, 40]


def test_when_the_time_of_the_call_is_over_no_scheme_is_climbed_further(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that is fast, with rungs that never hold."""
    ticks = count()
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: 40.0 * next(ticks)))
    monkeypatch.setattr(rungs.Rung, "holds", property(lambda self: False))

    def hangs(*_: object, **__: object) -> None:  # a ladder that was climbed is kept all the same
        raise BackendError("whole: no answer within 300 s", fix="measure again")

    monkeypatch.setattr(rungs, "times_of", hangs)
    config = CompressConfig(max_drop=0.0, time="1m", epochs=0, schemes=("u8a7w", "s8a8w"), calibration="fast")
    made = api.compress(run, config)
    assert [item.record["ladder"]["stopped"] for item in made] == ["time", "time"]
    assert [len(item.record["ladder"]["rungs"]) for item in made] == [1, 1], "one each, or there is nothing to keep"
    assert [item.record["ladder"]["timed_on"] for item in made] == [None, None]


@pytest.mark.slow
def test_a_climb_that_a_limit_ended_goes_on_from_its_rungs_when_allowed_more(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rungs never hold, and are not timed."""
    monkeypatch.setattr(rungs.Rung, "holds", property(lambda self: False))
    monkeypatch.setattr(rungs, "times_of", lambda *_, **__: None)
    console = Listening()

    def climbed(**limits: Any) -> Variant:
        console.said.clear()
        config = CompressConfig(max_drop=0.25, epochs=0, schemes=("u8a7w",), calibration="fast", **limits)
        (made,) = api.compress(run, config, console=console)
        return made

    first = climbed(trials=1)
    kept = run.path / "host" / first.name / ladder.RUNGS
    assert kept.is_dir()
    assert "  its rungs are kept: with more --trials it goes on from them" in console.said
    assert climbed(trials=1).skipped
    assert climbed(trials=1, time="2h").skipped

    second = climbed(trials=2)
    assert second.name == first.name, "nothing else is made beside it"
    assert [line for line in console.said if line.startswith("rung ")] == ["rung 2: better ranges"]
    assert [rung["name"] for rung in second.record["ladder"]["rungs"]] == ["ptq", "ranges"]
    assert second.record["ladder"]["rungs"][0] == first.record["ladder"]["rungs"][0]
    assert second.load() is not None

    # Between its two records there are only rungs, which the next call goes on from.
    with monkeypatch.context() as patch:
        patch.setattr(ladder, "commit_variant", interrupted)
        with pytest.raises(KeyboardInterrupt):
            climbed()
    assert first.name not in run.variants()
    last = climbed()
    assert not [line for line in console.said if line.startswith("rung ")]
    assert (last.name, last.record["ladder"]["stopped"]) == (first.name, "no rung is left")
    assert not kept.exists()
    assert climbed(trials=1).skipped, "less than what is there asks for nothing"


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("stopped", "before", "now", "later"),
    [
        ("time", {"time": 60}, {"time": "2m"}, True),
        ("time", {"time": 60}, {}, True),
        ("time", {"time": 60}, {"time": "1m"}, False),  # though other schemes took half of it
        ("time", {"time": 60}, {"time": "2m", "trials": 2}, False),
        ("time", None, {"time": "31s"}, True),
        ("trials", {"trials": 2}, {"trials": 3}, True),
        ("trials", {"trials": 2}, {"trials": 3, "time": "29s"}, False),
        ("held", {"trials": 2}, {"trials": 3}, False),
        ("no rung is left", {}, {}, False),
    ],
)
def test_more_of_what_ended_a_climb_is_more_of_all_that_bounds_it(
    stopped: str, before: dict[str, int] | None, now: dict[str, Any], later: bool
) -> None:
    record = {"stopped": stopped, "limits": before, "rungs": [{"seconds": 20}, {"seconds": 10}]}
    assert ladder.ends_later(record, CompressConfig(max_drop=1.0, **now)) == later
