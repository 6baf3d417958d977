"""The whole path as a tuple of steps: a recipe's run, and the demo, which is a recipe on handwritten digits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from edgeopt.backends.base import Backend
from edgeopt.config import Budget, CompressConfig, Recipe, load_target, stated_by
from edgeopt.console import Console, Silent
from edgeopt.errors import BackendError, MissingBackendError, RunError, raise_first
from edgeopt.registry import load_backend
from edgeopt.run import Run


class Outcome(NamedTuple):
    """What a recipe came to. ``missed`` has a line for each goal of ``[compress]`` that nothing made by it meets."""

    run: Run
    budget: Budget
    missed: tuple[str, ...]


@dataclass
class Journey:
    """What the steps hand on: the recipe, where to put the run, and the run once there is one."""

    recipe: Recipe
    path: Path | None
    force: bool
    console: Console
    run: Run | None = None
    teacher: str | None = None  # the ensemble that was made, unless it is a soup
    floats: tuple[str, ...] = ()  # what engines of 16 bits are wanted of, alone
    missed: list[str] = field(default_factory=list)  # goals of compression, with the variants that miss them

    @property
    def opened(self) -> Run:
        """The run; the first step makes it."""
        assert self.run is not None
        return self.run


def _check(journey: Journey) -> None:
    wanted = journey.recipe.check
    if wanted is None:
        return
    from edgeopt.stages.check import check

    recipe = journey.recipe
    found = check(recipe.data, model=wanted.model, labels=wanted.labels, again=journey.force, console=journey.console)
    journey.console.say(found.summary())
    if wanted.leave_out:
        listed = found.also(found.folder / "leave-out.txt")
        journey.console.say(f"{len(found.left_out())} pictures are left out: {listed.exclude}")
        data = recipe.data.model_copy(update={"exclude": str(listed.exclude)})
        journey.recipe = recipe.model_copy(update={"data": data})


def _finetune(journey: Journey) -> None:
    from edgeopt.stages.finetune import finetune
    from edgeopt.stages.report import keep_budget

    recipe = journey.recipe
    trained = finetune(
        recipe.data,
        recipe.model,
        recipe.train,
        augment=recipe.augment,
        run=journey.path,
        force=journey.force,
        console=journey.console,
    )
    journey.run = trained.run
    keep_budget(trained.run, recipe.budget)
    journey.console.say(trained.summary())


def _ensemble(journey: Journey) -> None:
    wanted = journey.recipe.ensemble
    if wanted is None:
        return
    from edgeopt.stages.ensemble import ensemble

    made = ensemble(journey.opened, wanted.members, vote=wanted.vote, force=journey.force, console=journey.console)
    journey.console.say(made.summary())
    journey.teacher = made.name if wanted.vote != "soup" else None


def _compress(journey: Journey) -> None:
    config = journey.recipe.compress
    if config.int8 or config.prunes or config.half:
        _compress_as(journey, config)


def _compress_unpruned(journey: Journey) -> None:
    """The demo shows int8 alone beside int8 after pruning."""
    _compress_as(journey, journey.recipe.compress.model_copy(update={"prune": None}))


def _compress_as(journey: Journey, config: CompressConfig) -> None:
    from edgeopt.stages.compress import compress

    if config.teacher is None:
        config = config.model_copy(update={"teacher": journey.teacher})
    targets = journey.recipe.targets
    for variant in compress(journey.opened, config, targets=targets, force=journey.force, console=journey.console):
        journey.console.say(variant.summary())
        if config.half:
            journey.floats += (variant.name,)
        journey.missed += [f"{variant.name} misses {goal}" for goal in variant.missed]


def _build(journey: Journey) -> None:
    from edgeopt.stages.build import build_each

    recipe, console = journey.recipe, journey.console
    config = recipe.build.model_dump()
    built, failed = build_each(
        journey.opened, recipe.targets, variants=journey.floats, **config, force=journey.force, console=console
    )
    for item in built:
        console.say(item.summary())
    raise_first(failed)


def _bench(journey: Journey) -> None:
    from edgeopt.stages.bench import bench
    from edgeopt.stages.report import check_baseline

    config, baseline = journey.recipe.bench, journey.recipe.baseline.report
    if baseline is not None:
        check_baseline(journey.opened, baseline)
    bench(journey.opened, **config.model_dump(), console=journey.console)


def _package(journey: Journey) -> None:
    from edgeopt.stages.package import package

    for target in journey.recipe.targets if journey.recipe.package else ():
        try:
            journey.console.say(package(journey.opened, target, console=journey.console).summary())
        except BackendError as error:  # of a runtime whose engines are built on the device
            journey.console.say(f"not packaged: {error.message}; {error.fix}")


Step = Callable[[Journey], None]
STEPS: tuple[Step, ...] = (_check, _finetune, _ensemble, _compress, _build, _bench, _package)
DEMO_STEPS: tuple[Step, ...] = (_finetune, _compress_unpruned, _compress, _build, _bench)


def run_recipe(
    recipe: Recipe,
    *,
    run: Path | None = None,
    steps: tuple[Step, ...] = STEPS,
    force: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Take every step of ``recipe``; steps whose inputs did not change are skipped.

    Returns the run, the budget that :func:`edgeopt.stages.report.report` judges, and what compression missed: the steps
    after it are taken all the same. A target whose backend is not installed, or cannot build what ``[build]`` asks for,
    and a goal of ``[compress]`` that cannot be measured are errors before anything is trained.
    """
    path = run or recipe.run_path
    _require_possible(recipe, path)
    journey = Journey(recipe, path, force, console or Silent())
    for step in steps:
        step(journey)
    return Outcome(journey.opened, recipe.budget, tuple(journey.missed))


def _require_possible(recipe: Recipe, path: Path | None) -> None:
    """That every step can be taken, as far as that can be told before anything is trained."""
    from edgeopt.stages.compress import require_possible
    from edgeopt.stages.problems import errors_of, raise_together, training_problems

    def buildable(name: str) -> None:
        backend: Backend = load_backend(load_target(name).backend)
        backend.require(to_build=True)
        if recipe.build.embed_preprocessing:
            backend.require_embedding()

    wrong = errors_of(partial(buildable, name) for name in recipe.targets)
    problems = [*wrong, *training_problems(recipe.train, recipe.augment, recipe.model)]
    if not wrong:  # else a target that is none would be said twice
        problems += errors_of([lambda: require_possible(recipe.compress, recipe.targets, _known_runs(path))])
    raise_together(problems, where="the recipe")


def _known_runs(path: Path | None) -> list[Run]:
    """Runs that may hold another device's times: the one in ``path``, else any, for only the pictures tell which."""
    found = []
    for one in [path] if path else sorted(Path("runs").glob("*")):
        with suppress(RunError):  # none, or one of another version, which is said when it is used
            found.append(Run.open(one))
    return found


def demo(run: Path, *, force: bool = False, console: Console | None = None) -> Outcome:
    """Everything on scikit-learn's handwritten digits: int8, and a third of the MACs pruned + int8, on every backend.

    Backends that are not installed are left out and said. Returns the run, the demo's budget, and nothing missed.
    """
    from edgeopt.data.digits import write_digits

    console = console or Silent()
    targets = []
    for name in ("onnxruntime", "openvino", "tensorrt", "rtx-desktop"):
        try:
            load_backend(load_target(name).backend).require(to_build=True)
        except MissingBackendError as error:
            console.say(f"left out: {error.message}; to have it: {error.fix}")
        else:
            targets.append(name)
    pictures = write_digits(run.parent / f"{run.name}-digits")
    recipe = demo_recipe(pictures, tuple(targets))
    with stated_by("the demo's recipe"):
        return run_recipe(recipe, run=run, steps=DEMO_STEPS, force=force, console=console)


def demo_recipe(pictures: Path, targets: tuple[str, ...]) -> Recipe:
    """The demo's recipe: small pictures and few epochs, so that it ends within minutes on two cores."""
    return Recipe.model_validate(
        {
            "targets": targets,
            # 30 % test: with 539 pictures a loss of half a point can be told from none of 1.5.
            "data": {"path": str(pictures), "image_size": 112, "test": 0.3},
            "model": {"name": "tf_efficientnet_lite0"},
            "train": {"epochs": 4, "flip": False},  # a mirrored 2 is no digit
            # A third less, fitted anew, answers nearly as the whole: the default rate would first take it further away.
            "compress": {"int8": True, "prune": 1 / 3, "epochs": 1, "recovery_epochs": 3, "recovery_lr": 3e-4},
            "bench": {"seconds": 25},
            "budget": {"max_drop_points": 1.5},
        }
    )
