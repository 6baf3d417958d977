"""Train in equal parts for cross-validation: by class, nothing that belongs together divided, decided by contents."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgeopt.data.dataset import Dataset, Item
from edgeopt.data.split import deal, shuffled
from edgeopt.errors import ConfigError, DataError
from edgeopt.files import printable


@dataclass(frozen=True)
class Folds:
    """``of`` is the fold, from 1 to ``count``, of every train picture by its path; val and test are in none.

    Val stays apart on purpose. Every choice (the epoch, what is kept, weights) is made on it, so that the pictures a
    fold holds out are used for nothing but judging: their accuracy is of pictures no choice has seen.
    """

    count: int
    of: Mapping[str, int]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the division."""
        return hashlib.sha256(json.dumps([self.count, sorted(self.of.items())]).encode()).hexdigest()

    def held_out(self, dataset: Dataset, fold: int) -> tuple[Item, ...]:
        """The train pictures that ``fold`` is judged by, sorted by path."""
        return tuple(item for item in dataset.of("train") if self.of[item.path] == fold)

    def without(self, dataset: Dataset, fold: int) -> Dataset:
        """``dataset`` without the pictures of ``fold``: what its model is trained on, and val."""
        return replace(dataset, items=tuple(item for item in dataset.items if self.of.get(item.path) != fold))


def divide(dataset: Dataset, count: int, seed: int) -> Folds:
    """The train pictures of ``dataset`` in ``count`` folds, each with its share of every class, by ``seed``.

    Copies of a picture and the pictures of one group are in one fold. Raises ConfigError naming every class that has
    fewer of them than there are folds, DataError when groups across classes leave a fold without some class.
    """
    groups: dict[str, Counter[str]] = {name: Counter() for name in dataset.classes}
    for item in dataset.of("train"):
        groups[dataset.classes[item.label]][_belongs(item)] += 1
    _require_enough(groups, count)
    sizes: Counter[str] = Counter()
    for members in groups.values():
        sizes.update(members)
    # The largest first: small ones even out what they leave.
    order = sorted(shuffled(list(sizes), seed), key=lambda group: -sizes[group])
    fold_of = deal(groups, order, dict.fromkeys(range(1, count + 1), 1 / count), even=True)
    folds = Folds(count, {item.path: fold_of[_belongs(item)] for item in dataset.of("train")})
    _require_all_classes(dataset, folds)
    return folds


def _belongs(item: Item) -> str:
    return item.group or item.sha256


def _require_enough(groups: Mapping[str, Mapping[str, int]], count: int) -> None:
    small = sorted((len(members), name) for name, members in groups.items() if len(members) < count)
    if not small:
        return
    named = ", ".join(f'"{printable(name)}" ({size})' for size, name in small[:20])
    more = f" and {len(small) - 20} more" if len(small) > 20 else ""
    most = small[0][0]
    lower = f"at most --folds {most}, or add" if most >= 2 else "leave --folds out, or add"
    raise ConfigError(
        f"train.folds = {count} needs {count} different pictures (or groups) of every class in train; fewer have: "
        f"{named}{more}",
        fix=f"{lower} pictures to {'this class' if len(small) == 1 else 'these classes'}",
    )


def _require_all_classes(dataset: Dataset, folds: Folds) -> None:
    present: dict[int, set[int]] = defaultdict(set)
    for item in dataset.of("train"):
        present[item.label].add(folds.of[item.path])
    for label, name in enumerate(dataset.classes):
        if missing := sorted(set(range(1, folds.count + 1)) - present[label]):
            raise DataError(
                f'the groups leave no picture of class "{printable(name)}" for fold {missing[0]} of {folds.count}',
                fix="lower --folds, make groups smaller, or add pictures",
            )
