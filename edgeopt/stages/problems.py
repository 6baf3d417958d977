"""Everything that is wrong with what was asked for, said at once and before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from edgeopt.config import AugmentConfig, ModelConfig, TrainConfig, listed
from edgeopt.errors import ConfigError, EdgeoptError
from edgeopt.models.builders import require_known, split_name
from edgeopt.stages.following import require_shareable
from edgeopt.stages.starting import check_weights, regularization
from edgeopt.train.losses import takes_soft_targets
from edgeopt.train.optimizer import require_known_optimizer
from edgeopt.training_tables import contradictions


def training_problems(train: TrainConfig, augment: AugmentConfig, model: ModelConfig) -> list[EdgeoptError]:
    """What a fine-tuning cannot go by: names that are unknown, files that are not there, what contradicts itself."""
    soft: list[bool] = []  # whether the loss takes soft targets, once it is known
    found = errors_of(
        (
            lambda: require_known(*split_name(model.name)),
            lambda: check_weights(model),
            lambda: regularization(model, train),
            lambda: require_known_optimizer(train.optimizer),
            lambda: soft.append(takes_soft_targets(train.loss)),
            lambda: require_shareable(train),
        )
    )
    lines = contradictions(train, augment, soft_targets=soft[0] if soft else None, random_weights=model.random_weights)
    return [*found, *(ConfigError(reason, fix=fix) for reason, _, fix in (line.partition("; ") for line in lines))]


def errors_of(checks: Iterable[Callable[[], object]]) -> list[EdgeoptError]:
    """What the ``checks`` raise on purpose."""
    found: list[EdgeoptError] = []
    for check in checks:
        try:
            check()
        except EdgeoptError as error:
            found.append(error)
    return found


def raise_together(problems: Sequence[EdgeoptError], *, where: str) -> None:
    """Raise the one there is as it is, several as one ConfigError that lists them with what to do about each."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = [f"{one.message}; {one.fix}" if one.fix else one.message for one in problems]
        raise ConfigError(listed(lines, where=where), fix=f"correct {where}")
