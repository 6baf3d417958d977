"""Picture files from anyone: found in folders and decoded without crashing, waiting for ever or filling the memory."""

from __future__ import annotations

import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile, ImageOps, JpegImagePlugin

from edgeopt.errors import DataError
from edgeopt.files import printable

DEFAULT_MAX_PIXELS = 100_000_000
_SAVE_AGAIN = "leave it out, or save it again as PNG or JPEG"
_RAISE = "make it smaller, or raise max_pixels in [data] (--max-pixels)"
#: What Pillow decodes by itself, told by content. EPS would run Ghostscript on the file, an icon is decoded before its
#: size can be known, others are drawings and stubs.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "PCX", "QOI", "SGI")
#: Formats whose content could be anything: these go by the suffix.
_BY_SUFFIX = {".tga": "TGA", ".dib": "DIB"}
#: Files of folders that should be pictures.
SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "bmp", "dib", "gif", "webp", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "pfm", "jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "avif", "avifs", "tga"),
        *("pcx", "qoi", "sgi"),
    )
)
#: Files of folders that are pictures to their owner, but not to Pillow: they must be named, not passed over.
_UNREAD = frozenset(
    f".{name}"
    for name in (
        *("heic", "heif", "hif", "jxl", "jxr", "bpg", "exr", "hdr", "svg", "eps", "psd", "xcf", "dds", "ico", "icns"),
        *("dng", "raw", "cr2", "cr3", "nef", "nrw", "arw", "orf", "rw2", "raf", "pef", "srw"),
    )
)
LINKED_FOLDER = "a link to a folder; put the pictures themselves there"
#: Bytes a pixel of an uncompressed 16-bit RGBA picture, and what may come on top of that: metadata, other frames.
_BYTES_A_PIXEL, _BYTES_BESIDE = 8, 64 * 2**20
#: A JPEG's block of 8x8 takes two bits at least. What is not there would be made up, in grey, without an error.
_JPEG_PIXELS_A_BYTE = 256
_PIXELS_AT_ONCE = 64_000_000
#: What Pillow raises on EXIF that is damaged; a warning when warnings are errors.
_BAD_EXIF = (SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, struct.error, Warning)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is a system's own business."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir", "Thumbs.db")


def as_utf8(name: str) -> str:
    """``name`` with the bytes that are not UTF-8 written as ``\\xe9``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass
class Contents:
    """What a folder holds, by names alone, sorted: ``files`` that should be pictures, and all the rest.

    ``problems`` (path, reason) are of what looks like a picture, or a folder of pictures, and cannot be used;
    ``others`` do not look like pictures; ``hidden`` files and folders are only counted.
    """

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: int = 0


def contents(folder: str, *, nested: bool = True) -> Contents:
    """What is in ``folder``, at any depth or, without ``nested``, beside its ``folders``; links are not followed."""
    found = Contents()
    waiting = [folder]
    while waiting:  # no recursion, as os.walk has: folders may be nested deeper than Python's stack
        here = waiting.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    _add(found, entry, waiting if nested else found.folders)
        except OSError as error:
            found.problems.append((here, f"a folder that cannot be read ({error.strerror})"))
    for names in (found.files, found.folders, found.others):
        names.sort()
    found.problems.sort()
    return found


def _add(found: Contents, entry: os.DirEntry[str], folders: list[str]) -> None:
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a Path for each of 100,000 names takes a second
    if is_hidden(entry.name):
        found.hidden += 1
    elif entry.is_dir(follow_symlinks=False):
        folders.append(entry.path)
    elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112 - as above
        found.problems.append((entry.path, LINKED_FOLDER))
    elif suffix in _UNREAD:
        found.problems.append((entry.path, f"{suffix[1:].upper()} is not read; save it as JPEG or PNG"))
    elif suffix not in SUFFIXES:
        found.others.append(entry.path)
    elif not entry.is_file(follow_symlinks=False) and (reason := why_no_file(entry.path)):
        found.problems.append((entry.path, reason))
    else:
        found.files.append(entry.path)


def why_no_file(path: str | Path) -> str | None:
    """Why ``path`` cannot be opened as a file, None when it can: opening a pipe, say, would wait for its writer."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - os.stat takes both
    except OSError as error:
        link = os.path.islink(path)  # noqa: PTH114 - as above
        return "a link that leads nowhere" if link else f"cannot be read ({error.strerror})"
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return f"{kinds.get(stat.S_IFMT(mode), 'a device')}, not a file"


@contextmanager
def decoded(
    path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS, draft: tuple[int, int] | None = None
) -> Iterator[Image.Image]:
    """The picture in ``path``, its first frame, decoded, turned upright by its EXIF orientation, in its own mode.

    ``draft`` (width, height) lets JPEG decode at a smaller scale that is still at least that large, or fits
    ``max_pixels``. For threads: pictures whose blocks run at the same time have at most 64 megapixels together, or
    one is alone. Raises DataError saying what is wrong with the file.
    """
    name = printable(str(path))
    if reason := why_no_file(path):
        raise DataError(f"{name}: {reason}", fix="name a picture file")
    with ExitStack() as stack:
        with _refusals(name):
            handle = stack.enter_context(path.open("rb"))
            size = _size(handle, max_pixels)
            image = _header(handle, path.suffix.lower())
            pixels = _shrink(image, size, max_pixels, draft)
        stack.enter_context(_MEMORY.room_for(pixels))
        with _refusals(name):
            _load(image)
        try:
            yield image
        except MemoryError:
            raise DataError(
                f"{name}: takes more memory than there is", fix="make it smaller, or lower max_pixels"
            ) from None


def open_picture(
    path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS, draft: tuple[int, int] | None = None
) -> Image.Image:
    """As :func:`decoded`, to keep."""
    with decoded(path, max_pixels=max_pixels, draft=draft) as image:
        return image


@contextmanager
def pillow_quiet() -> Iterator[None]:
    """Pillow's warnings are not shown: a stranger's file may cause thousands. Not for threads to enter, but around."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Whatever a file makes Pillow raise is a DataError that names it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error.message}", fix=error.fix) from None
    # Pillow's decoders raise a wide family (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:  # noqa: BLE001 - the one place; the type is recorded
        stated = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        why = f"{type(error).__name__}: {printable(stated)}"
        raise DataError(f"{name}: cannot be read as a picture ({why})", fix=_SAVE_AGAIN) from None


def _size(handle: BinaryIO, max_pixels: int) -> int:
    """Of the file in bytes; there are limits."""
    size = os.fstat(handle.fileno()).st_size
    if size == 0:
        raise DataError("cannot be read as a picture (the file is empty)", fix="copy it again")
    if size > max_pixels * _BYTES_A_PIXEL + _BYTES_BESIDE:
        raise DataError(f"{size} bytes are more than a picture of max_pixels = {max_pixels} takes", fix=_RAISE)
    return size


def _header(handle: BinaryIO, suffix: str) -> ImageFile.ImageFile:
    """The picture, not decoded yet. Image.open would refuse large JPEGs before they can be shrunk."""
    begin = handle.read(32)
    for name in (*_formats(), _BY_SUFFIX.get(suffix, "")):
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory is not None and (accepts is None or accepts(begin[:16]) is True):
            handle.seek(0)
            image = factory(handle, "")
            _scale_transparency(image, begin)
            return image
    raise DataError(f"cannot be read as a picture (its content is none of {', '.join(_formats())})", fix=_SAVE_AGAIN)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow has: AVIF came late."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _scale_transparency(image: ImageFile.ImageFile, begin: bytes) -> None:
    """Bring a PNG's transparent colour to 8 bits, as Pillow brings its pixels, but for 16-bit grey."""
    colour = image.info.get("transparency")
    if image.format != "PNG" or colour is None:
        return
    depth = begin[24]  # https://www.w3.org/TR/png-3/#11IHDR
    if depth in (2, 4) and image.mode == "L":
        image.info["transparency"] = colour * 255 // (2**depth - 1)
    elif depth == 16 and image.mode == "RGB":
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _shrink(image: ImageFile.ImageFile, size: int, max_pixels: int, draft: tuple[int, int] | None) -> int:
    """Have a JPEG decoded at a scale that fits, refuse what does not fit; returns how many pixels decoding keeps.

    The (width, height) in the file stays in ``image.info["full_size"]``.
    """
    width, height = image.info["full_size"] = image.size
    jpeg = image if draft is not None and isinstance(image, JpegImagePlugin.JpegImageFile) else None
    streamed = jpeg is not None and _in_one_scan(jpeg)
    for scale in (1, 2, 4, 8) if streamed else (1,):
        if -(-width // scale) * -(-height // scale) <= max_pixels:
            break
    else:
        raise DataError(f"{width}x{height} pixels are more than max_pixels = {max_pixels}", fix=_RAISE)
    if streamed and width * height > size * _JPEG_PIXELS_A_BYTE:
        raise DataError(
            f"cannot be read as a picture ({width}x{height} pixels do not fit into its {size} bytes)", fix=_SAVE_AGAIN
        )
    if draft is not None and jpeg is not None:
        jpeg.draft(None, (max(1, min(draft[0], width // scale)), max(1, min(draft[1], height // scale))))
    return image.width * image.height if streamed else width * height


def _in_one_scan(image: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether a JPEG is decoded row by row: of others, libjpeg keeps all coefficients, at whatever scale.

    Pillow has read it up to the end of the first scan's header, which is two bytes of length, one of how many
    components it has, two for each of these and three more (ITU-T T.81, B.2.3).
    """
    length = 6 + 2 * image.layers
    if image.info.get("progressive") or image.fp is None or image.fp.tell() < length:
        return False
    image.fp.seek(image.fp.tell() - length)
    return image.fp.read(length)[:3] == bytes((0, length, image.layers))


def _load(image: ImageFile.ImageFile) -> None:
    """Decode, and turn upright; EXIF that is damaged says nothing."""
    image.load()
    if image.format == "TIFF":  # Pillow has turned it, and older ones do not say so
        return
    with suppress(*_BAD_EXIF):
        ImageOps.exif_transpose(image, in_place=True)


class _Memory:
    """Lets pictures in while they have at most ``pixels`` together; a larger one waits until it is alone."""

    def __init__(self, pixels: int) -> None:
        self._all = self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def room_for(self, pixels: int) -> Iterator[None]:
        """Wait for room, and take it until the block ends."""
        pixels = min(pixels, self._all)
        with self._changed:
            self._changed.wait_for(lambda: pixels <= self._free)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


#: One for the process: what is bounded is the process's memory.
_MEMORY = _Memory(_PIXELS_AT_ONCE)
#: A truncated JPEG must be an error, never a half-grey picture.
ImageFile.LOAD_TRUNCATED_IMAGES = False
