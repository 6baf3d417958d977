"""Training batches that (seed, epoch, step) decide alone, whichever process makes which part of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.multiprocessing import get_start_method
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from edgeopt.console import Progress
from edgeopt.data.augment import Augment, cached_key, cached_picture, lighter, make_augment, make_mix
from edgeopt.data.cache import PictureCache, Shelf, memory_limit
from edgeopt.data.dataset import Dataset, Item
from edgeopt.data.threads import in_threads
from edgeopt.errors import DataError
from edgeopt.picture_files import DEFAULT_MAX_PIXELS, pillow_quiet
from edgeopt.preprocess import PreprocessSpec, UInt8, normalization
from edgeopt.training_tables import AugmentConfig, Preset, augmentation


class TrainLoader:
    """Call it with an epoch for that epoch's batches: float32 (N, 3, height, width) normalized, int64 (N,) labels.

    While MixUp or CutMix is on, labels are float32 (N, classes) instead: not in the last ``unmixed`` of the ``epochs``,
    whole ones, or, where that is less than one, of the ``steps`` that the last one takes (None: all). In the last
    ``light_end`` (0 to 1) of the epochs, whole ones, pictures are only cropped, a little, and mirrored. With
    ``answers``, a teacher's float32 (items, classes), they are float32 (N, 1 + classes): the class, then its answers.

    Every epoch goes once through the items in a new order; what does not fill the last batch is left to chance in
    another epoch, unless there is less than one batch in all. With ``sampling`` balanced it has as many pictures, every
    class equally often: those of rare classes several times, of frequent ones a new part in every epoch. Where items
    differ in weight, an epoch of as many pictures shows each as often as its share of the weights (of its class's, when
    balanced) says, so that any loss, mixing and teacher see it so often. ``workers`` 0 makes batches in the training
    process: the pictures are decoded once, before, so little is left to do. Batches do not depend on ``workers``. A
    ``shelf`` must be of the same ``items``: what is on it is not decoded again. ``cache_folder`` and ``cache_bytes``
    are of :class:`edgeopt.data.cache.PictureCache`; ``say`` hears, once, when not all decoded pictures can be kept.
    """

    def __init__(
        self,
        dataset: Dataset,
        items: Sequence[Item],
        spec: PreprocessSpec,
        *,
        batch_size: int,
        augment: Preset = "default",
        flip: bool = True,
        changes: AugmentConfig | None = None,
        epochs: int = 1,
        light_end: float = 0.0,
        sampling: Literal["shuffled", "balanced"] = "shuffled",
        seed: int = 0,
        workers: int = 0,
        cache_folder: Path | None = None,
        cache_bytes: int | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        progress: Progress | None = None,
        say: Callable[[str], None] | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        if not items:
            raise DataError("there is nothing to train on", fix="add pictures to train")
        load = _Load(dataset, tuple(items), spec, augment, changes, max_pixels)
        if workers and get_start_method() != "fork" and cache_bytes is None:
            cache_bytes = 0  # each would be sent a copy of what is held in memory, where the file is shared

        def loaded() -> Iterator[UInt8]:
            for done, picture in enumerate(in_threads(load, range(len(items))), start=1):
                if progress is not None:
                    progress(done, len(items))
                yield picture

        def make() -> PictureCache:
            limit = memory_limit(1 if shelf is None else shelf.caches) if cache_bytes is None else cache_bytes
            cache = PictureCache(loaded(), again=load.quietly, limit=limit, folder=cache_folder)
            if cache.kept < len(items) and say is not None:
                say(
                    f"{cache.kept} of {len(items)} decoded pictures fit into memory and on the disk; the others are "
                    "decoded anew in every epoch, which takes longer: make room, or set train.workers"
                )
            return cache

        self._cache = make() if shelf is None else shelf.get(cached_key(spec, augment, changes), make)
        self.labels = torch.tensor([item.label for item in items], dtype=torch.int64)
        weights = np.asarray([item.weight for item in items], np.float64)
        self._weights = weights if (weights != weights[0]).any() else None  # equal ones choose nothing
        self._spec = spec
        self._augment = make_augment(augment, spec, flip=flip, changes=changes)
        chosen = augmentation(augment, changes, flip=flip)
        self._lighter = make_augment("none", spec, flip=flip, changes=lighter(chosen))
        self._light_end = light_end
        self._mix = make_mix(chosen, len(dataset.classes))
        self._unmixed = chosen.unmixed or 0.0
        self.epochs = epochs
        self.steps: int | None = None
        self.answers: npt.NDArray[np.float32] | None = None
        self._share = (0, 1)
        self.batch_size = batch_size
        self._seed = seed
        self._sampling = sampling
        self._workers = workers

    @property
    def batch_size(self) -> int:
        """Pictures in a batch: all there are when they are fewer than asked for."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        size, count = min(size, len(self.labels)), self._share[1]
        if size < count:
            raise DataError(
                f"{size} pictures a batch cannot be divided over {count} processes",
                fix="start fewer processes, or add pictures to train",
            )
        self._batch_size = size // count * count

    @property
    def share(self) -> tuple[int, int]:
        """Which share of every batch is made here, of how many equal ones: (0, 1) is all of it."""
        return self._share

    @share.setter
    def share(self, share: tuple[int, int]) -> None:
        self._share = share
        self.batch_size = self._batch_size

    @property
    def repeats(self) -> bool:
        """Whether every epoch shows the same pictures: nothing about them is left to chance."""
        return self._augment is None and self._mix is None

    def plain(self, rows: Sequence[int]) -> Tensor:
        """The pictures of these rows without augmentation, normalized; those that fit into one batch of equal size."""
        return self._normalized(np.stack([self._cache[row] for row in rows]))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.labels) // self.batch_size

    def __call__(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from step ``first`` on; torch's default generator is left as it was found."""
        order = self._order(np.random.default_rng([self._seed, epoch]))
        steps = _Steps(self, epoch, order)
        if self._workers == 0:
            for step in range(first, len(self)):
                with torch.random.fork_rng(devices=[]):
                    batch = steps[step]
                yield batch
            return
        # Its workers draw their base seed from the generator given, not from torch's default one.
        yield from DataLoader(
            steps,
            batch_size=None,
            sampler=range(first, len(self)),
            num_workers=self._workers,
            generator=torch.Generator().manual_seed(0),
        )

    def _order(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """An epoch's items in order."""
        count = len(self.labels)
        if self._sampling == "shuffled":
            if self._weights is None:
                return rng.permutation(count)
            return rng.permutation(by_weight(rng, self._weights, count))
        labels = self.labels.numpy()
        classes = rng.permutation(np.unique(labels))  # the first ones get what does not divide
        chosen = []
        for turn, label in enumerate(classes):
            rows = np.flatnonzero(labels == label)
            wanted = count // len(classes) + (turn < count % len(classes))
            if self._weights is None:
                repeats = -(-wanted // len(rows))
                chosen.append(np.concatenate([rng.permutation(rows) for _ in range(repeats)])[:wanted])
            else:
                chosen.append(rows[by_weight(rng, self._weights[rows], wanted)])
        return rng.permutation(np.concatenate(chosen))

    def batch(self, epoch: int, step: int, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """This loader's share of the batch of these rows; picture i is augmented by (seed, epoch, step, i)."""
        seeds = np.random.SeedSequence([self._seed, epoch, step]).generate_state(1 + len(rows), np.uint64) >> np.uint64(
            1
        )
        rank, count = self._share
        mine = range(rank * len(rows) // count, (rank + 1) * len(rows) // count)
        light = epoch >= self.epochs - math.floor(self.epochs * self._light_end + 1e-9)
        augment = self._lighter if light else self._augment
        pictures = np.stack([self._picture(int(rows[place]), int(seeds[1 + place]), augment) for place in mine])
        images, labels = self._normalized(pictures), self.labels[torch.from_numpy(rows[mine])]
        if self.answers is not None:
            answers = torch.from_numpy(self.answers[rows[mine]])
            return images, torch.cat([labels[:, None].to(answers.dtype), answers], dim=1)
        if self._mix is None or light or self._ends_unmixed(epoch, step):
            return images, labels
        torch.default_generator.manual_seed(int(seeds[0]))
        return self._mix(images, labels)

    def _ends_unmixed(self, epoch: int, step: int) -> bool:
        """Whether this step is in the end that is not mixed."""
        end = self.epochs * self._unmixed
        if end < 1:  # rounded up to an epoch, it would be all of a training of one
            return epoch + step / (self.steps or len(self)) >= self.epochs - end - 1e-9
        return epoch >= self.epochs - math.ceil(end - 1e-9)

    def _normalized(self, pictures: UInt8) -> Tensor:
        """To the bit what ``normalize`` gives, in all threads and in channels_last, which saves most models a copy."""
        scale, offset = (torch.from_numpy(values) for values in normalization(self._spec))
        return torch.from_numpy(pictures).float().mul_(scale).add_(offset).permute(0, 3, 1, 2)

    def _picture(self, row: int, seed: int, augment: Augment | None) -> UInt8:
        picture = self._cache[row]
        if augment is None:
            return picture
        # The CPU's generator alone: torch.manual_seed would also reset the GPU's, in the middle of an epoch.
        torch.default_generator.manual_seed(seed)
        return np.asarray(augment(Image.fromarray(picture)))


def by_weight(rng: np.random.Generator, weights: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """``count`` rows, each as often as its weight's share of ``count`` says, rounded up or down by chance.

    Systematic sampling (Madow 1949): one random offset and equal strides over the cumulated weights, in a random order
    of the rows, so that an epoch strays from its shares by less than one showing of a picture.
    """
    rows = rng.permutation(len(weights))
    ends = np.cumsum(weights[rows])
    marks = (rng.random() + np.arange(count)) * (ends[-1] / count)
    found: npt.NDArray[np.int64] = rows[np.minimum(np.searchsorted(ends, marks, side="right"), len(rows) - 1)]
    return found


@dataclass(frozen=True)
class _Load:
    """Decodes what is kept of item ``index``; unlike a closure it can be sent to another process."""

    dataset: Dataset
    items: tuple[Item, ...]
    spec: PreprocessSpec
    augment: Preset
    changes: AugmentConfig | None
    max_pixels: int

    def __call__(self, index: int) -> UInt8:
        side = 4 * int(max(self.spec.size) / self.spec.crop_pct)
        with self.dataset.open(self.items[index], max_pixels=self.max_pixels, draft=(side, side)) as image:
            return cached_picture(image, self.spec, self.augment, self.changes)

    def quietly(self, index: int) -> UInt8:
        """The same outside of threads."""
        with pillow_quiet():
            return self(index)


class _Steps(TorchDataset[tuple[Tensor, Tensor]]):
    """The batches of one epoch by step, for torch's DataLoader."""

    def __init__(self, loader: TrainLoader, epoch: int, order: npt.NDArray[np.int64]) -> None:
        self._loader = loader
        self._epoch = epoch
        self._order = order

    def __len__(self) -> int:
        return len(self._loader)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        size = self._loader.batch_size
        return self._loader.batch(self._epoch, step, self._order[step * size : (step + 1) * size])
