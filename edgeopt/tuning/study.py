"""A study in a folder: Optuna's journal, whose turn it is, and which trial belongs to whom.

Several processes work on one study, started together or by hand. What a process holds it holds by ``flock``, which the
kernel releases when the process ends, however it ends: a trial whose worker is gone is taken up where it was.
"""

from __future__ import annotations

import fcntl
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import numpy as np
import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from edgeopt.errors import RunError
from edgeopt.files import make_folder

_NAME = "tune"
#: A trial that takes its process down with it, as when memory runs out, is not tried for ever.
_MOST_ATTEMPTS = 3
_STARTUP_TRIALS = 8  # drawn evenly before the sampler models what it saw


class StudyFolder:
    """The study in ``folder``, made by whoever comes first; one worker, of ``seed``, works on it through this object.

    Raises RunError when its journal is damaged.
    """

    def __init__(self, folder: Path, *, pruner: optuna.pruners.BasePruner | None = None, seed: int = 0) -> None:
        self.folder = make_folder(folder)
        make_folder(folder / "workers")
        self._seed = seed
        self._worker = ""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        journal = folder / "journal.log"
        with self.lock():
            _mend(journal)
            try:
                storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=_Lock(folder / ".journal.lock")))
                self.study = optuna.create_study(
                    storage=storage, study_name=_NAME, direction="maximize", pruner=pruner, load_if_exists=True
                )
            except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
                raise RunError(
                    f"{journal} is damaged ({type(error).__name__}: {str(error)[:100]})",
                    fix=f"begin the search again in its place: rm -r {folder}",
                ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Alone among the processes of this study for as long as the block runs; waits for its turn."""
        with (self.folder / ".lock").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    @contextmanager
    def working(self) -> Iterator[None]:
        """Be a worker while the block runs."""
        self._worker = uuid4().hex[:12]
        path = self.folder / "workers" / self._worker
        with path.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def first(self, parameters: Mapping[str, Any]) -> None:
        """Have these parameters tried first, if this study has no trial yet."""
        with self.lock():
            if not self.study.get_trials(deepcopy=False):
                self.study.enqueue_trial(dict(parameters), user_attrs={"defaults": True})

    def claim(self, most: int | None) -> optuna.Trial | None:
        """The next trial to work on: one whose worker is gone, else a new one; None when ``most`` have begun."""
        with self.lock():
            running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            for frozen in running:
                if not self._alive(str(frozen.user_attrs.get("worker", ""))) and (taken := self._take_over(frozen)):
                    return taken
            begun = [t for t in self.study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]
            if most is not None and len(begun) >= most:
                return None
            trial = self.study.ask()
            trial.set_user_attr("worker", self._worker)
        self._sample(trial)
        return trial

    def release(self, trial: optuna.Trial) -> None:
        """Leave a trial for another worker, or a later call, to go on with."""
        with self.lock():
            trial.set_user_attr("attempts", int(trial.user_attrs.get("attempts", 0)) - 1)
            trial.set_user_attr("worker", "")

    def finish(
        self, trial: optuna.Trial, state: TrialState, *, score: float | None = None, **attributes: Any
    ) -> FrozenTrial:
        """Record how a trial ended; ``attributes`` such as ``reason`` are kept with it."""
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        return self.study.tell(trial, score, state=state)

    def _sample(self, trial: optuna.Trial) -> None:
        """Draw by (seed, number of the trial): two workers do not draw the same, a resumed study nothing again."""
        seed = int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # constant_liar was one until 5.0
            self.study.sampler = TPESampler(n_startup_trials=_STARTUP_TRIALS, constant_liar=True, seed=seed)

    def _take_over(self, frozen: FrozenTrial) -> optuna.Trial | None:
        trial = optuna.Trial(self.study, frozen._trial_id)
        attempts = int(frozen.user_attrs.get("attempts", 0)) + 1
        if attempts >= _MOST_ATTEMPTS:
            self.finish(
                trial,
                TrialState.FAIL,
                reason=f"its process was killed {attempts} times; most likely memory ran out",
            )
            return None
        trial.set_user_attr("attempts", attempts)
        trial.set_user_attr("worker", self._worker)
        self._sample(trial)
        return trial

    def _alive(self, worker: str) -> bool:
        path = self.folder / "workers" / worker
        if not worker or not path.is_file():
            return False
        with suppress(FileNotFoundError), path.open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            path.unlink(missing_ok=True)
        return False


def make_pruner(name: str, epochs: int) -> optuna.pruners.BasePruner:
    """Who decides, after an epoch, that a trial is not worth going on with.

    ``median``: under the median of earlier trials at that epoch, after a quarter of the epochs and four trials.
    ``halving``: successive halving (Li et al. 2018, https://arxiv.org/abs/1810.05934), a third goes on at epochs 1, 3,
    9... ``hyperband`` (Li et al. 2018, https://arxiv.org/abs/1603.06560): several of those, begun at later epochs.
    """
    makers: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=epochs // 4),
        "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3),
        "none": optuna.pruners.NopPruner,
    }
    return makers[name]()


def _mend(journal: Path) -> None:
    """Cut off a last line that a full disk or a power failure left unfinished: what follows would be read with it."""
    if not journal.is_file():
        return
    with journal.open("rb+") as handle:
        content = handle.read()
        if content and not content.endswith(b"\n"):
            handle.truncate(content.rfind(b"\n") + 1)


class _Lock:
    """Optuna's own locks are files that outlive a killed process; this one ends with it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: IO[str] | None = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._handle = self._path.open("a")
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Give it back."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None
