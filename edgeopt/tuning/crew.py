"""Who works on a study: this process alone, or processes of its own that it leads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from edgeopt import allotment
from edgeopt.console import Console
from edgeopt.errors import TrainingError
from edgeopt.tuning.result import TrialRow, best_of, row, rows
from edgeopt.tuning.trial import Search, run_trial

#: When the first trials all fail, so will the others.
_HOPELESS = 3
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 120.0  # for a worker to end its step and save it
_TAIL = 400  # characters of a dead worker's last words


def work(search: Search, console: Console) -> None:
    """Trial after trial until there are enough, or time is over; raises TrainingError when the first ones all fail.

    However little time there is, one is begun, so that a search that is started again and again gets on.
    """
    study, most = search.study, search.recipe.tune.most
    with console.task("trials") as progress:
        while (trial := study.claim(most)) is not None:
            done = row(run_trial(search, trial, console), search.space)
            trials = rows(study.study, search.space)
            console.say(_line(done, trials))
            progress(len(trials), most or len(trials))
            _require_hope(trials)
            if search.deadline is not None and time.monotonic() >= search.deadline:
                return


def lead(search: Search, console: Console) -> None:
    """As :func:`work`, by ``tune.workers`` processes, which share the cores; raises TrainingError when they all die."""
    tune = search.recipe.tune
    crew = [_Worker(search, tune.workers) for _ in range(tune.workers)]
    seen = {one.number for one in rows(search.study.study, search.space) if one.state != "running"}
    try:
        with console.task("trials") as progress:
            while any(worker.running for worker in crew):
                time.sleep(_POLL_SECONDS)
                trials = rows(search.study.study, search.space)
                for one in trials:
                    if one.state != "running" and one.number not in seen:
                        seen.add(one.number)
                        console.say(_line(one, trials))
                progress(len(seen), tune.most or len(seen))
                _require_hope(trials)
    finally:
        for worker in crew:
            worker.stop()
        words = [worker.words() for worker in crew]
    dead = [said for said in words if said is not None]
    if len(dead) == len(crew):
        raise TrainingError(
            f"all {len(crew)} workers ended: {dead[0]}", fix="correct that, or find out with one: --workers 1"
        )
    for said in dead:
        console.say(f"a worker ended: {said}; the others went on with its trial")


class _Worker:
    """A process that works on the study until there is nothing left to do."""

    def __init__(self, search: Search, of: int) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        threads = str(max(1, allotment.usable_cores() // of))
        until = None if search.deadline is None else time.time() + search.deadline - time.monotonic()
        # The same imports as here; the working directory may hold the user's own modules.
        path = os.pathsep.join(str(Path(one).absolute()) for one in sys.path if one)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgeopt.tuning.worker", str(search.study.folder.absolute())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            start_new_session=True,  # Ctrl-C is for the leader, who passes it on
        )
        self._stopped = False
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(
                json.dumps(
                    {"recipe": search.recipe.model_dump(mode="json", exclude_unset=True), "until": until}
                ).encode()
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """Have it end its step and save it, without waiting for that."""
        if self.running:
            self._stopped = True
            self._process.terminate()

    def words(self) -> str | None:
        """How it ended and what it said last; None when it did as it should."""
        try:
            code = self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._log.seek(0)
        text = " ".join(self._log.read().decode(errors="replace").split())[-_TAIL:]
        self._log.close()
        return None if code == 0 or self._stopped else f"exit code {code}: {text}"


def _require_hope(trials: tuple[TrialRow, ...]) -> None:
    failed = [one for one in trials if one.state == "failed"]
    if len(failed) >= _HOPELESS and all(one.state in ("failed", "running") for one in trials):
        raise TrainingError(
            f"the first {len(failed)} trials all failed: {failed[-1].reason}",
            fix="correct the recipe or its search space until one trains: edgeopt finetune DATA",
        )


def _line(one: TrialRow, trials: tuple[TrialRow, ...]) -> str:
    """How a trial went, in a line."""
    score = "" if one.score is None else f" {one.score:.2%}"
    if one.state == "failed":
        said = f"failed: {one.reason}"
    elif one.state == "pruned":
        said = f"pruned at{score}, {one.reason}"
    else:
        best = best_of(trials)
        said = f"val{score}" + (f" (best {best.score:.2%}, trial {best.number})" if best and best.score else "")
    drawn = ", ".join(f"{key} {shown(value)}" for key, value in one.parameters.items())
    return f"trial {one.number}{' (the defaults)' if one.defaults else ''}: {said}; {drawn}"


def shown(value: object) -> str:
    """A parameter's value for a person."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return "the model's own" if value is None else str(value)
