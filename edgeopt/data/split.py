"""Deterministic stratified splits and draws: decided by contents and a seed, never by the order of a directory."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from edgeopt.data.dataset import Item, Split
from edgeopt.errors import DataError

Key = TypeVar("Key", bound=Hashable)
Part = TypeVar("Part", bound=Hashable)


def shuffled(keys: Sequence[str], seed: int) -> list[str]:
    """``keys`` in an order that depends on nothing but the keys and ``seed``: adding one key moves no other."""
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())


def carve(
    groups: Mapping[str, Mapping[str, int]], fractions: Mapping[Split, float], seed: int
) -> dict[tuple[str, str], Split]:
    """A split for every group of pictures that belong together: ``fractions`` of each class, the rest train.

    ``groups`` is class -> group -> pictures in it; groups are never divided, nor are those with pictures of several
    classes. Every class gets at least one picture of each split. Returns (class, group) -> split. Raises DataError
    naming the classes that have too few.
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
    shared = _carve_shared(groups, fractions, seed)
    assigned: dict[tuple[str, str], Split] = {}
    for name, members in groups.items():
        taken: Counter[Split] = Counter()
        for group in members.keys() & shared.keys():
            assigned[name, group] = shared[group]
            taken[shared[group]] += members[group]
        own = {group: count for group, count in members.items() if group not in shared}
        assigned.update({(name, group): split for group, split in _carve_class(own, taken, fractions, seed).items()})
    if shared:
        _check_all_have(groups, assigned, (*fractions, "train"))
    return assigned


def _carve_class(
    members: Mapping[str, int], taken: Mapping[Split, int], fractions: Mapping[Split, float], seed: int
) -> dict[str, Split]:
    """A split for each group of one class; ``taken`` pictures of it have one already."""
    total = sum(members.values()) + sum(taken.values())
    order = shuffled(list(members), seed)
    assigned: dict[str, Split] = {}
    waiting: list[Split] = [*fractions, "train"]
    for split, fraction in fractions.items():
        waiting.remove(split)
        wanted = max(1, round(total * fraction)) - taken.get(split, 0)
        if wanted <= 0 or not order:
            continue
        reserve = sum(not taken.get(other) for other in waiting)
        assigned.update(dict.fromkeys(_fitting(members, order, wanted, reserve), split))
        order = [group for group in order if group not in assigned]
    assigned.update(dict.fromkeys(order, "train"))
    return assigned


def _carve_shared(
    groups: Mapping[str, Mapping[str, int]], fractions: Mapping[Split, float], seed: int
) -> dict[str, Split]:
    """A split for each group with pictures of several classes."""
    classes_of: Counter[str] = Counter(group for members in groups.values() for group in members)
    spanning = shuffled([group for group, names in classes_of.items() if names > 1], seed)
    return deal(groups, spanning, {"train": 1 - sum(fractions.values()), **fractions})


def deal(
    groups: Mapping[str, Mapping[str, int]], order: Sequence[str], shares: Mapping[Part, float], *, even: bool = False
) -> dict[str, Part]:
    """A part for each group of ``order``, one after the other: where, together, its classes lack the most.

    ``groups`` is class -> group -> pictures in it, ``shares`` the fraction of every class that a part should have.
    Where a class could otherwise be left without a picture of some part, that part goes first. ``even`` gives what is
    equally good to the part that has the fewest pictures in all.
    """
    classes_of: dict[str, list[str]] = defaultdict(list)
    for name, members in groups.items():
        for group in members:
            classes_of[group].append(name)
    totals = {name: sum(members.values()) for name, members in groups.items()}
    lacking = {name: {part: totals[name] * share for part, share in shares.items()} for name in groups}
    empty = {name: set(shares) for name in groups}
    waiting = {name: len(members) for name, members in groups.items()}  # groups of the class still to be assigned
    held: Counter[Part] = Counter()
    assigned: dict[str, Part] = {}
    for group in order:
        names = classes_of[group]
        # A class with no more groups than parts without a picture of it needs one for each.
        urgent = [empty[name] for name in names if waiting[name] <= len(empty[name])]

        def worth(part: Part, group: str = group, urgent: Sequence[set[Part]] = urgent) -> tuple[int, float, int]:
            lacks = sum(groups[name][group] * lacking[name][part] / totals[name] for name in classes_of[group])
            return sum(part in parts for parts in urgent), lacks, -held[part] if even else 0

        chosen = max(shares, key=worth)
        assigned[group] = chosen
        for name in names:
            lacking[name][chosen] -= groups[name][group]
            held[chosen] += groups[name][group]
            empty[name].discard(chosen)
            waiting[name] -= 1
    return assigned


def _check_all_have(
    groups: Mapping[str, Mapping[str, int]], assigned: Mapping[tuple[str, str], Split], splits: Sequence[Split]
) -> None:
    """With groups across classes it may be that no division gives every class a picture of every split."""
    for name, members in groups.items():
        present = {assigned[name, group] for group in members}
        missing = [split for split in splits if split not in present]
        if missing:
            raise DataError(
                f'the groups leave no picture of class "{name}" for {" and ".join(missing)}',
                fix="make groups smaller, add pictures, or state the split of each picture in a manifest",
            )


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
