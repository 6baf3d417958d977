"""Writes prepared picture sets and end-to-end samples: what a device needs of the pictures, readable without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeopt.console import Progress
from edgeopt.data.dataset import Dataset, Item
from edgeopt.data.split import draw
from edgeopt.data.threads import in_threads
from edgeopt.errors import DataError
from edgeopt.files import write_atomically, write_json
from edgeopt.picture_files import DEFAULT_MAX_PIXELS
from edgeopt.preprocess import Float32, PreprocessSpec, UInt8, normalize, prepare
from edgeopt.sets import write_prepared


def load_item(dataset: Dataset, item: Item, spec: PreprocessSpec, max_pixels: int = DEFAULT_MAX_PIXELS) -> UInt8:
    """uint8 (height, width, 3) of one item as ``spec`` says, as :func:`edgeopt.preprocess.load_picture` reads files."""
    side = 2 * int(max(spec.size) / spec.crop_pct)
    with dataset.open(item, max_pixels=max_pixels, draft=(side, side)) as image:
        return prepare(image, spec)


@dataclass(frozen=True)
class StreamedSet:
    """Pictures decoded as they are asked for, in the order of ``items``: for what is looked at once."""

    dataset: Dataset
    items: Sequence[Item]
    max_pixels: int = DEFAULT_MAX_PIXELS

    def batches(self, spec: PreprocessSpec, size: int) -> Iterator[Float32]:
        """float32 (<= size, 3, height, width), normalized as ``spec`` says; DataError for a picture that is gone."""
        for start in range(0, len(self.items), size):
            some = self.items[start : start + size]
            loaded = in_threads(lambda item: load_item(self.dataset, item, spec, self.max_pixels), some)
            yield normalize(np.stack(list(loaded)), spec)


def write_set(
    dataset: Dataset,
    items: Sequence[Item],
    name: str,
    spec: PreprocessSpec,
    folder: Path,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Progress | None = None,
) -> None:
    """Write ``items`` as the set ``name`` into ``folder``, as :func:`edgeopt.sets.open_set` reads it.

    ``<name>.npy`` is uint8 (N, height, width, 3) in the order of ``items``, ``<name>.labels.npy`` int64 (N,), and the
    record ``<name>.json`` (paths, hashes, the spec) comes last. Raises DataError when there are no items or a picture
    changed since the split.
    """
    if not items:
        raise DataError(f"the {name} set would be empty", fix="add pictures")
    folder.mkdir(parents=True, exist_ok=True)
    write_prepared(
        folder,
        name,
        spec,
        fill=lambda path: _fill(dataset, items, spec, path, max_pixels, progress),
        labels=[item.label for item in items],
        paths=[item.path for item in items],
    )


def _fill(
    dataset: Dataset,
    items: Sequence[Item],
    spec: PreprocessSpec,
    path: Path,
    max_pixels: int,
    progress: Progress | None,
) -> None:
    def load(item: Item) -> UInt8:
        dataset.check_unchanged(item)
        return load_item(dataset, item, spec, max_pixels)

    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(items), *spec.size, 3))
    for index, picture in enumerate(in_threads(load, items)):
        array[index] = picture
        if progress is not None:
            progress(index + 1, len(items))
    array.flush()


def write_samples(dataset: Dataset, items: Sequence[Item], folder: Path, count: int = 32) -> None:
    """Copy ``count`` of ``items``, in class proportions, as encoded files for end-to-end timing on a device.

    They are called ``00.jpg`` and so on; ``samples.json`` (file, original path, label) comes last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, item in enumerate(draw(items, count, seed=0)):
        content, suffix = dataset.encoded(item)
        target = folder / f"{index:02d}{suffix}"
        write_atomically(target, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]
        rows.append({"file": target.name, "path": item.path, "label": item.label})
    write_json(folder / "samples.json", {"schema": 1, "samples": rows})
