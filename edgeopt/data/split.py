"""Deterministic stratified splits and draws: decided by contents and a seed, never by the order of a directory."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from edgeopt.data.dataset import Item, Split
from edgeopt.errors import DataError

Key = TypeVar("Key", bound=Hashable)


def shuffled(keys: Sequence[str], seed: int) -> list[str]:
    """``keys`` in an order that depends on nothing but the keys and ``seed``: adding one key moves no other."""
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())


def carve(
    groups: Mapping[str, Mapping[str, int]], fractions: Mapping[Split, float], seed: int
) -> dict[tuple[str, str], Split]:
    """A split for every group of identical pictures: ``fractions`` of each class, the rest train.

    ``groups`` is class -> group -> pictures in it; groups are never divided. Every class gets at least one picture of
    each split. Returns (class, group) -> split. Raises DataError naming the classes that have too few.
    """
    needed = 1 + len(fractions)
    poor = sorted(name for name, members in groups.items() if len(members) < needed)
    if poor:
        named = ", ".join(f'"{name}" ({len(groups[name])})' for name in poor[:20])
        more = f" and {len(poor) - 20} more" if len(poor) > 20 else ""
        raise DataError(
            f"{_plural(len(poor), 'class has', 'classes have')} fewer than {needed} different pictures: {named}{more}",
            fix="add pictures to these classes, or remove their folders",
        )
    assigned: dict[tuple[str, str], Split] = {}
    for name, members in groups.items():
        total = sum(members.values())
        order = shuffled(list(members), seed)
        for reserve, (split, fraction) in zip(range(needed - 1, 0, -1), fractions.items(), strict=True):
            taken = _fitting(members, order, max(1, round(total * fraction)), reserve)
            assigned.update({(name, group): split for group in taken})
            order = [group for group in order if (name, group) not in assigned]
        assigned.update({(name, group): "train" for group in order})
    return assigned


def _fitting(members: Mapping[str, int], order: Sequence[str], wanted: int, reserve: int) -> list[str]:
    """Groups, first come first taken, that hold ``wanted`` pictures together; ``reserve`` groups are left over."""
    taken: list[str] = []
    for group in order:
        if len(order) - len(taken) <= reserve:
            break
        if members[group] <= wanted:
            taken.append(group)
            wanted -= members[group]
    return taken or [min(order, key=lambda group: members[group])]


def proportional(sizes: Mapping[Key, int], count: int) -> dict[Key, int]:
    """``count`` shared out in proportion to ``sizes``, at least 1 each, at most the size: largest remainders.

    Raises ValueError when ``count`` is below the number of sizes.
    """
    if count < len(sizes):
        raise ValueError(f"{count} cannot be shared among {len(sizes)}")
    total = sum(sizes.values())
    count = min(count, total)
    exact = {key: count * size / total for key, size in sizes.items()}
    shares = {key: min(sizes[key], max(1, int(value))) for key, value in exact.items()}
    while (missing := count - sum(shares.values())) != 0:
        step = 1 if missing > 0 else -1
        open_keys = [k for k in sizes if (shares[k] < sizes[k] if step > 0 else shares[k] > 1)]
        chosen = max(open_keys, key=lambda k: step * (exact[k] - shares[k]))
        shares[chosen] += step
    return shares


def draw(items: Sequence[Item], count: int, seed: int) -> tuple[Item, ...]:
    """``count`` of ``items`` in class proportions, sorted by path; all of them when there are no more than that.

    When ``count`` is below the number of classes, the first ``count`` classes in a seeded order give one item each.
    """
    if len(items) <= count:
        return tuple(sorted(items, key=lambda item: item.path))
    sizes = Counter(item.label for item in items)
    if count < len(sizes):
        kept = shuffled([str(label) for label in sizes], seed)[:count]
        shares = {int(label): 1 for label in kept}
    else:
        shares = proportional(dict(sorted(sizes.items())), count)
    by_label: dict[int, dict[str, Item]] = defaultdict(dict)
    for item in items:
        by_label[item.label][f"{item.sha256}:{item.path}"] = item
    drawn = [
        by_label[label][key] for label, share in shares.items() for key in shuffled(list(by_label[label]), seed)[:share]
    ]
    return tuple(sorted(drawn, key=lambda item: item.path))


def _plural(count: int, one: str, many: str) -> str:
    return f"1 {one}" if count == 1 else f"{count} {many}"
