"""The one training loop: fine-tuning, recovery, distillation and QAT differ in model and objective only."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.console import NotedProgress, duration
from edgeopt.errors import ProcessError, TrainingError
from edgeopt.preprocess import UInt8
from edgeopt.train import checkpoint
from edgeopt.train.allocator import keep_memory
from edgeopt.train.clock import Clock
from edgeopt.train.config import OF_FINETUNING, Advice, LoopConfig, TrainResult
from edgeopt.train.forecast import Forecast, first_batch, measure
from edgeopt.train.freezing import Freezing, freeze_batchnorm_statistics
from edgeopt.train.gradients import Gradients
from edgeopt.train.interruption import interruptible
from edgeopt.train.journal import Journal, NoJournal
from edgeopt.train.memory import memory_told
from edgeopt.train.objectives import Objective
from edgeopt.train.optimizer import make_optimizer, schedule
from edgeopt.train.probe import LAYOUTS, MOST_ROUNDS, Choice, ProbeResult, candidates, probe
from edgeopt.train.processes import ALONE, Processes, training_device
from edgeopt.train.state import Best, State, Store, Tensors, identity, parts_of, restore, shared

__all__ = ["Batches", "EpochEnd", "Evaluate", "LoopConfig", "TrainResult", "train"]

Batches = Callable[[int, int], Iterable[tuple[Tensor, Tensor]]]
Evaluate = Callable[[nn.Module], Mapping[str, float]]
Draw = Callable[[Tensor], UInt8]
#: Called after each epoch with its number, from 1, the best score (0-1) so far, and whether it was the last one; what
#: it raises ends the training.
EpochEnd = Callable[[int, float, bool], None]
_SHORT = 100  # steps


def train(
    model: nn.Module,
    *,
    batches: Batches,
    steps_per_epoch: int,
    evaluate: Evaluate,
    objective: Objective,
    config: LoopConfig,
    folder: Path,
    progress: NotedProgress | None = None,
    say: Callable[[str], None] | None = None,
    extra_groups: Sequence[Mapping[str, Any]] = (),
    planned: Callable[[int], None] | None = None,
    draw: Draw | None = None,
    epoch_end: EpochEnd | None = None,
    processes: Processes = ALONE,
    advice: Advice = OF_FINETUNING,
    begun: float | None = None,
) -> TrainResult:
    """Train ``model`` in place; at the end it holds the weights of the best epoch, in eval mode, where it was before.

    ``batches(epoch, first)`` gives the epoch's pairs of float32 images (N, 3, height, width) and targets, as the
    objective wants them, from step ``first`` on, ``steps_per_epoch`` of them from step 0; ``evaluate(model)`` gives at
    least ``top1`` (0-1), ``loss`` and what ``config.select`` names on val and decides, on averaged weights, which epoch
    is best; ``loss_error``, where it gives that too, is the standard error of ``loss``: what is worse than the start by
    no more is not clearly worse. ``folder`` receives ``checkpoints/``, ``log.jsonl`` and ``tensorboard/``; when it
    holds a checkpoint of the same training, that goes on, in fp32 on the same machine to the very same weights, unless
    the time is bounded.
    ``progress(done, total, note)`` counts steps. ``planned`` is told for how many epochs there is time; ``draw`` makes
    of the first batch's images a picture for TensorBoard, uint8 (height, width, 3); ``epoch_end`` hears of each epoch.
    ``begun`` is when the bounded time began, as :func:`edgeopt.train.clock.now` gave it; None: now. Raises
    TrainingError, with ``advice``, when the loss is not finite or memory runs out, and KeyboardInterrupt after SIGINT
    or SIGTERM, once the step has ended and was saved.
    """
    keep_memory()
    device, origin = training_device(), next(model.parameters()).device
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        loop = _Loop(
            model.to(device),
            device,
            batches=batches,
            steps_per_epoch=steps_per_epoch,
            evaluate=evaluate,
            objective=objective,
            config=config,
            folder=folder,
            progress=progress or (lambda done, total, note="": None),
            say=say or (lambda text: None),
            extra_groups=extra_groups,
            planned=planned or (lambda epochs: None),
            draw=draw,
            epoch_end=epoch_end or (lambda epoch, score, last: None),
            processes=processes,
            advice=advice,
            begun=begun,
        )
        try:
            with memory_told("training", fix=advice.memory):
                result = loop.run()
        finally:
            loop.freezing.release()
            model.to(origin).to(memory_format=torch.contiguous_format).eval()
    return result


@dataclass
class _Loop:
    """The parts of one training; ``run`` starts it, or goes on with the one whose checkpoint it finds."""

    model: nn.Module
    device: torch.device
    batches: Batches
    steps_per_epoch: int
    evaluate: Evaluate
    objective: Objective
    config: LoopConfig
    folder: Path
    progress: NotedProgress
    say: Callable[[str], None]
    extra_groups: Sequence[Mapping[str, Any]]
    planned: Callable[[int], None]
    draw: Draw | None
    epoch_end: EpochEnd
    processes: Processes
    advice: Advice
    begun: float | None

    def __post_init__(self) -> None:
        model, config = self.model, self.config
        self.steps = config.epochs * self.steps_per_epoch
        self.clock = Clock(config.time_seconds, begun=self.begun)
        self.another = 0.0
        self.freezing = Freezing(model, config, steps_per_epoch=self.steps_per_epoch)
        self.gradients = Gradients(
            model, self.objective, self.device, seed=config.seed, processes=self.processes, say=self.say
        )
        self.store = Store(self.folder, identity(model, config, self.steps_per_epoch))

    def run(self) -> TrainResult:
        stored = shared(self.store.load() if self.processes.leads else None, self.processes)
        if stored is None and self.processes.leads and self.store.exists():
            self.say("training starts afresh: the checkpoint found is of another training")
            checkpoint.clear(self.folder)
        checkpoint.copy_into(self.model, self.processes.tell_tensors(self.model.state_dict()))
        keep = stored[0].epoch if stored else None
        with Journal(self.folder, keep_epochs=keep) if self.processes.leads else NoJournal() as journal:
            self.state = stored[0] if stored else self._start(journal)
            self._prepare()
            if stored is not None:
                restore(stored[1], self.model, self.optimizer, self._averaged())
                self.clock.add(self.state.elapsed)
                self.say(f"training goes on: {self._position()} of {self.config.epochs} epochs are done")
            self.planned(self.state.planned or self.config.epochs)
            self.saved_at = time.monotonic()
            with interruptible(self.say) as self.interruption:
                while self._goes_on():
                    self._epoch(journal)
                    self._look_up()
                    self.epoch_end(self.state.epoch, self.state.best.score, not self._goes_on())
                    self._pause()
            self._save({}, finished=True)
        checkpoint.copy_into(self.model, self.state.best.weights)
        state = self.state
        return TrainResult(
            best_top1=state.best.top1,
            best_epoch=state.best.epoch,
            epochs=state.epoch,
            seconds=state.seconds,
            images_per_second=state.images / state.step_seconds if state.step_seconds else 0.0,
            gradient_parts=state.parts,
            precision=state.choice.precision,
            memory_format=state.choice.memory_format,
            estimate_seconds=state.estimate_seconds,
        )

    def _start(self, journal: Journal | NoJournal) -> State:
        """Judge the initial weights, choose how to run, and say how long it will take."""
        config, start = self.config, time.perf_counter()
        initial = self.evaluate(self.model.eval())
        evaluated = time.perf_counter() - start
        journal.write({"event": "initial", **{f"val_{name}": value for name, value in initial.items()}})
        choices = candidates(config.precision, self.device, config.memory_format, model=self.model)
        known = tuple(choice for choice in choices if (choice.precision, choice.memory_format) == config.known_way)
        choices = known or choices
        self.state = State(choices[0], evaluation_seconds=evaluated)
        if config.keep_initial or not config.epochs:
            self.state.best = Best(0, _score(config, initial, 0), initial["top1"], initial["loss"], _copy(self.model))
            worst = initial["loss"] + initial.get("loss_error", 0.0)
            self.state.worst_loss = worst if math.isfinite(worst) else None
        if not config.epochs:
            return self.state
        if self.processes.leads:
            self._forecast(journal, choices)
        return State.from_json(self.processes.tell(self.state.to_json()), self.state.best.weights)

    def _forecast(self, journal: Journal | NoJournal, choices: Sequence[Choice]) -> None:
        """Time a few steps of each choice, and say how long training will take with the fastest."""
        state = self.state
        (images, targets), loading_seconds = first_batch(self.batches(0, 0))
        if self.draw is not None:
            journal.write_picture("augmented", self.draw(images))

        def timed(choices: Sequence[Choice]) -> ProbeResult:
            part = slice(0, -(-len(images) // state.parts))
            some, wanted = images[part].to(self.device), targets[part].to(self.device)
            # Where there is nothing to choose, three steps more would be a good part of a short training.
            short = len(choices) == 1 and self.config.epochs * self.steps_per_epoch < _SHORT
            return probe(self.model, some, wanted, self.objective, choices, rounds=1 if short else MOST_ROUNDS)

        found, step_seconds = self.gradients.within_memory(
            state, len(images), lambda: measure(timed, choices, self.freezing, steps=self.steps)
        )
        forecast = Forecast(
            found.best,
            len(images) * self.processes.count,
            step_seconds * state.parts + loading_seconds,
            state.evaluation_seconds,
            self.config.epochs,
            self.steps_per_epoch,
        )
        state.choice, left = found.best, self.clock.left
        state.estimate_seconds = min(forecast.seconds, max(0.0, left))
        state.planned = max(1, math.ceil(forecast.fitting(left)))
        journal.write({"event": "probe", "choices": found.to_json(), "loading_seconds": loading_seconds})
        self.say(forecast.words(self.config.time_seconds, left))

    def _prepare(self) -> None:
        from timm.utils import ModelEmaV3

        config = self.config
        self.layout = LAYOUTS[self.state.choice.memory_format]
        self.model.to(memory_format=self.layout)
        self.ema = ModelEmaV3(self.model, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
        self.freezing.release()  # the optimizer knows every layer, frozen or not, so that its state keeps its shape
        self.optimizer = make_optimizer(self.model, config, extra_groups=self.extra_groups)
        self.trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _goes_on(self) -> bool:
        state, config = self.state, self.config
        return state.epoch < config.epochs and state.idle_epochs < config.patience and not state.over

    def _epoch(self, journal: Journal | NoJournal) -> None:
        """Train and judge one epoch, or what is left of one that was interrupted."""
        state, start, first, images = self.state, time.perf_counter(), self.state.step, 0
        self.model.train()
        self._look_up()
        for batch in self.batches(state.epoch, first):
            begun = time.perf_counter()
            state.loss_sum += self._step(state.epoch * self.steps_per_epoch + state.step, *batch)
            state.step += 1
            images += len(batch[1]) * self.processes.count
            self.another = time.perf_counter() - begun
            self._look_up()
            self.progress(self.due, self.steps, self._note())
            if state.over:
                break
            if state.step < self.steps_per_epoch:
                self._pause()
        trained = time.perf_counter() - start
        self._judge(journal, start=start, trained=trained, images=images)

    def _judge(self, journal: Journal | NoJournal, *, start: float, trained: float, images: int) -> None:
        """Validate what an epoch made, and record it."""
        state = self.state
        judged: nn.Module = self.model if self.ema is None else self.ema.module
        found = self.evaluate(judged.eval())
        state.evaluation_seconds = time.perf_counter() - start - trained
        mean_loss = state.loss_sum / state.step
        state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
        state.idle_epochs += 1
        score = _score(self.config, found, state.epoch, worst_loss=state.worst_loss)
        if state.best.beaten_by(score, found["loss"]):
            state.best = Best(state.epoch, score, found["top1"], found["loss"], _copy(judged))
            state.idle_epochs = 0
        # When no patience is stated, the rate drops before training ends for want of it.
        elif state.idle_epochs % (self.config.lr_patience or max(1, min(3, self.config.patience - 1))) == 0:
            state.lr_drops += 1
        state.images += images
        state.step_seconds += trained
        seconds = time.perf_counter() - start
        state.seconds += seconds
        journal.write_epoch(
            {
                "epoch": state.epoch,
                "lr": max(group["lr"] for group in self.optimizer.param_groups),
                "train_loss": mean_loss,
                **{f"val_{name}": value for name, value in found.items()},
                "images_per_second": images / trained,
                "seconds": seconds,
            },
            self._curves(),
        )
        left = min(self.clock.left, (self.config.epochs - state.epoch) * seconds)
        self.say(
            f"epoch {state.epoch}/{self.config.epochs}: loss {mean_loss:.3f}, "
            f"val top-1 {100 * found['top1']:.2f} % ({self._kept()})"
            + (f", about {duration(left)} left" if left > 0 and self._goes_on() else "")
        )

    def _kept(self) -> str:
        best = self.state.best
        if self.config.select == "last":
            return f"kept: {f'epoch {best.epoch}' if best.epoch else 'the start'}"
        return f"best {100 * best.top1:.2f} %, epoch {best.epoch}"

    def _curves(self) -> dict[str, float]:
        """For TensorBoard alone: the learning rate by layers, 0 the head's, and how many layers are trained."""
        rates = {group["initial_lr"]: group["lr"] for group in self.optimizer.param_groups}
        curves = {f"lr/{number:02d}": rates[initial] for number, initial in enumerate(sorted(rates, reverse=True))}
        return curves | ({"open_layers": self.opened} if self.freezing.changes else {})

    def _note(self) -> str:
        state = self.state
        loss = f"loss {state.loss_sum / max(1, state.step):.3f}" if state.step else ""
        return loss + (f", val top-1 {100 * state.best.top1:.1f} %" if state.best.epoch else "")

    def _look_up(self) -> None:
        """Between two steps: what is due now. ``due`` is the step whose learning rate and layers are, by the clock.

        Without the time for another step like the last one, and a validation, training is over.
        """
        state = self.state
        done, needed = state.epoch * self.steps_per_epoch + state.step, state.evaluation_seconds + self.another
        asked, over = self.interruption.requested, state.over or self.clock.left <= needed
        found: list[float] = [done, time.monotonic() - self.saved_at >= self.config.checkpoint_seconds, over, asked]
        if self.processes.leads:  # whose clock counts
            found[0] = max(done, int(self.clock.share(needed) * self.steps))
        else:
            found[1:3] = False, state.over
        due, saving, ending, stopping = self.processes.largest(found)
        self.due, self.saving, self.stopping, state.over = int(due), saving + stopping > 0, stopping > 0, ending > 0

    def _pause(self) -> None:
        """Save when it is time to, and stop when that was asked for."""
        if self.saving:
            self._save(parts_of(self.model, self.optimizer, self._averaged()), finished=False)
            self.saved_at = time.monotonic()
        if self.stopping:
            self.say(f"stopped: {self._position()} of {self.config.epochs} epochs are done and saved")
            raise KeyboardInterrupt

    def _save(self, parts: Mapping[str, Tensors], *, finished: bool) -> None:
        self.state.elapsed = self.clock.elapsed
        if self.processes.leads:
            self.store.save(self.state, parts, finished=finished)

    def _averaged(self) -> nn.Module | None:
        return self.ema.module if self.ema is not None else None

    def _position(self) -> str:
        """Epochs done, with a decimal for a part of one."""
        done = self.state.epoch + self.state.step / self.steps_per_epoch
        return f"{done:g}" if self.state.step == 0 else f"{done:.1f}"

    def _step(self, step: int, images: Tensor, targets: Tensor) -> float:
        """One step of the optimizer; the loss."""
        config = self.config
        factor = schedule(
            self.due,
            steps=self.steps,
            warmup_steps=round(config.warmup_epochs * self.steps_per_epoch),
            min_ratio=config.min_lr_ratio,
            kind=config.schedule,
            steps_per_epoch=self.steps_per_epoch,
            decay=config.lr_decay,
            step_epochs=config.lr_step_epochs,
            drops=self.state.lr_drops,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.opened = self.freezing.apply(self.due)
        if config.batchnorm_epochs is not None and step >= config.batchnorm_epochs * self.steps_per_epoch:
            freeze_batchnorm_statistics(self.model)
        value = self.gradients(self.state, step, images, targets)
        if not math.isfinite(value):
            raise self._diverged(step, f"the loss became {value}")
        norm = nn.utils.clip_grad_norm_(self.trained, config.clip_grad or math.inf)
        if not math.isfinite(norm.item()):
            raise self._diverged(step, "a gradient is not finite")
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, step=step + 1)
        return value

    def _diverged(self, step: int, what: str) -> TrainingError:
        if not self.processes.leads:
            return ProcessError(f"{what}, as the first process says", fix="see its message")
        return TrainingError(
            f"{what} in epoch {step // self.steps_per_epoch + 1}, step {step % self.steps_per_epoch + 1}",
            fix=self.advice.diverged.format(lr=self.config.lr),
        )


def _score(config: LoopConfig, figures: Mapping[str, float], epoch: int, *, worst_loss: float | None = None) -> float:
    """What epochs are ranked by, 0-1: a figure of val, or how late an epoch is; -1 for one that is clearly worse."""
    if config.select != "last":
        return figures[config.select]
    holds = figures["loss"] <= (math.inf if worst_loss is None else worst_loss)  # no number is no epoch to keep
    return epoch / max(1, config.epochs) if holds else -1.0


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
