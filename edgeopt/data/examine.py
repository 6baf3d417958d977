"""Lists the pictures of a source and decodes every one: what can be read, what it contains, and what cannot be used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from edgeopt.config import DataConfig
from edgeopt.console import Progress
from edgeopt.data import exclusion, folder_source, manifest_source, torchvision_source
from edgeopt.data.dataset import SPLITS, Split
from edgeopt.data.folder_source import Found, Listing
from edgeopt.data.threads import in_threads
from edgeopt.errors import DataError
from edgeopt.files import printable, sha256
from edgeopt.picture_files import decoded
from edgeopt.preprocess import strips, to_rgb

#: Larger JPEGs are decoded at a reduced scale of at least this many pixels a side, enough to check and compare them.
_CHECKED_SIDE = 1024

#: What a caller wants to know of each picture while it is decoded: called with the picture, in threads.
Look = Callable[[Image.Image], Any]


@dataclass(frozen=True, slots=True)
class Checked:
    """A picture that can be read. ``pixels`` names its content: equal pixels are the same picture.

    ``seen`` is what the caller's :data:`Look` made of it.
    """

    found: Found
    sha256: str
    pixels: str
    seen: Any = None


@dataclass(frozen=True)
class Examined:
    """All pictures of a source, before anything is decided about them; ``root`` as in Dataset, ``broken`` by reason."""

    root: str
    listing: Listing
    checked: tuple[Checked, ...]
    broken: tuple[tuple[str, str], ...]


def examine(config: DataConfig, *, look: Look | None = None, progress: Progress | None = None) -> Examined:
    """List and decode the pictures at ``config.path``, but for those that ``config.exclude`` names.

    ``progress(done, total)`` counts pictures. Raises DataError, ConfigError for a manifest's bad rows.
    """
    left_out = exclusion.read(config.exclude)
    if torchvision_source.is_reference(config.path):
        return _from_torchvision(torchvision_source.normalized(config.path), left_out, look, progress)
    # Unlike Path's own, these stand links that lead in circles and homes that are not there.
    path = Path(os.path.realpath(os.path.expanduser(config.path)))  # noqa: PTH111
    if manifest_source.is_manifest(path):
        root, listing = path.parent, manifest_source.read(path)
    else:
        root, listing = path, folder_source.scan(path)
    listing = left_out.applied(listing)
    checked, broken = _check_files(root, listing.found, config.max_pixels, look, progress)
    return Examined(str(root), listing, tuple(checked), tuple(broken))


def _check_files(
    root: Path, found: Sequence[Found], max_pixels: int, look: Look | None, progress: Progress | None
) -> tuple[list[Checked], list[tuple[str, str]]]:
    def check(item: Found) -> Checked | str:
        path = root / item.path
        try:
            with decoded(path, max_pixels=max_pixels, draft=(_CHECKED_SIDE, _CHECKED_SIDE)) as image:
                pixels = _pixel_hash(image)
                seen = look(image) if look is not None else None
            return Checked(item, sha256(path), pixels, seen)
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        except DataError as error:
            return error.message.removeprefix(f"{printable(str(path))}: ")

    return _collect(found, check, progress)


def _from_torchvision(
    reference: str, left_out: exclusion.Exclusion, look: Look | None, progress: Progress | None
) -> Examined:
    parts = torchvision_source.parts(reference)
    names = torchvision_source.class_names(parts.get("train") or parts["all"])
    samples = [(part, index) for part, samples in parts.items() for index in range(len(samples))]

    def check(sample: tuple[str, int]) -> Checked | str:
        part, index = sample
        path = f"{part}/{index:06d}"
        try:
            image, label = torchvision_source.read(parts[part], index, path)
        except DataError as error:
            if error.fix is not None:  # the dataset is of another kind: no picture of it will do
                raise
            return error.message.removeprefix(f"{path}: ")
        name = names[label] if names is not None and 0 <= label < len(names) else f"{label:04d}"
        digest = _pixel_hash(image)
        split: Split | None = None if part == "all" else next(split for split in SPLITS if split == part)
        return Checked(Found(path, name, split), digest, digest, look(image) if look is not None else None)

    checked, broken = _collect(samples, check, progress, name=lambda sample: f"{sample[0]}/{sample[1]:06d}")
    listing = Listing(
        found=tuple(item.found for item in checked),
        classes=tuple(sorted({item.found.label for item in checked})),
        ready_made=tuple(split for split in SPLITS if split in parts),
    )
    kept = left_out.applied(listing)
    paths = {found.path for found in kept.found}
    return Examined(reference, kept, tuple(item for item in checked if item.found.path in paths), tuple(broken))


def _collect(
    sources: Sequence[Any],
    check: Callable[[Any], Checked | str],
    progress: Progress | None,
    *,
    name: Callable[[Any], str] = lambda found: str(found.path),
) -> tuple[list[Checked], list[tuple[str, str]]]:
    """``check`` over all sources, in threads (decoding and hashing release the GIL); reasons where it gave one."""
    checked: list[Checked] = []
    broken: list[tuple[str, str]] = []
    for done, (source, result) in enumerate(zip(sources, in_threads(check, sources), strict=True), start=1):
        if isinstance(result, str):
            broken.append((name(source), result))
        else:
            checked.append(result)
        if progress is not None:
            progress(done, len(sources))
    return checked, broken


def _pixel_hash(image: Image.Image) -> str:
    rgb = to_rgb(image)
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode())
    for box in strips(rgb):
        digest.update(rgb.crop(box).tobytes())
    return digest.hexdigest()
