"""THE preprocessing: every picture mode decodes to its 8-bit RGB twin, and the geometry is exact."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import paint
from picture_bytes import chunk, encoded, png
from PIL import Image, ImageCms

from edgeopt import pixels
from edgeopt.errors import ConfigError, DataError
from edgeopt.picture_files import open_picture
from edgeopt.preprocess import PreprocessSpec, load_picture, normalize, prepare, to_rgb

RGB = paint(1, 7)
#: Flat blocks of 8x8, which JPEG keeps.
BLOCKS = RGB.resize((6, 5), Image.Resampling.BOX).resize((48, 40), Image.Resampling.NEAREST)


GREY = np.asarray(RGB.convert("L"))
FADE = np.asarray(Image.linear_gradient("L").resize(RGB.size))
PALETTE = RGB.quantize(16, dither=Image.Dither.NONE)
DARK = GREY < 100
OTHER = RGB.transpose(Image.Transpose.ROTATE_180)  # a second frame


def _rgb(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def _over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return pixels * share + 255 * (1 - share)


def _faded(mode: str) -> Image.Image:
    image = RGB.convert(mode)
    image.putalpha(Image.fromarray(FADE))
    return image


def _png(depth: int, colour: int, samples: np.ndarray, *, before: bytes = b"") -> bytes:
    """A PNG of ``samples`` (height, width, channels), integers of ``depth`` bits."""
    height, width = samples.shape[:2]
    flat = samples.reshape(height, -1)
    if depth == 16:
        rows = flat.astype(">u2")
    else:
        shifts = np.arange(depth - 1, -1, -1)
        rows = np.packbits((flat[..., None] >> shifts & 1).astype(np.uint8).reshape(height, -1), axis=1)
    return png((width, height), depth, colour, [row.tobytes() for row in rows], before=before)


def _see_through(*colour: int) -> bytes:
    """The chunk that makes one colour transparent."""
    return chunk(b"tRNS", struct.pack(f">{len(colour)}H", *colour))


def _lab(image: Image.Image, *, back: bool = False) -> Image.Image:
    """In 8-bit L*a*b*, whose steps are coarser than two levels; ``back`` in RGB again."""
    lab, srgb = (ImageCms.createProfile(name) for name in ("LAB", "sRGB"))
    coarse = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    return ImageCms.profileToProfile(coarse, lab, srgb, outputMode="RGB") if back else coarse


def _levels(bits: int) -> np.ndarray:
    return GREY >> (8 - bits)


def _shown(bits: int, *, without: int | None = None) -> np.ndarray:
    """What grey of so many bits looks like, its level ``without`` transparent over white."""
    grey = _levels(bits).astype(int) * 255 // (2**bits - 1)
    return _rgb(np.where(_levels(bits) == without, 255, grey))


def _twin_of_palette(alphas: list[int] | None = None) -> np.ndarray:
    colours = np.asarray(PALETTE.convert("RGB")).astype(float)
    return colours if alphas is None else _over_white(colours, np.asarray(alphas)[np.asarray(PALETTE)])


def _palette_alphas() -> list[int]:
    return [16 * index for index in range(16)]


def _two_frames(kind: str, **options: Any) -> bytes:
    return encoded(RGB, kind, save_all=True, append_images=[OTHER.copy()], **options)


WIDE = np.asarray(RGB).astype(np.uint16) * 257 + 3 * (np.asarray(RGB) < 255)  # 16 bits, not only multiples of 257
ALPHA16 = FADE.astype(np.uint16)[..., None] * 257
#: name -> (the file, the 8-bit RGB picture it must decode to). Those with transparency are seen over white.
TWINS: dict[str, tuple[Callable[[], bytes], Callable[[], np.ndarray]]] = {
    "png 1 bit": (lambda: _png(1, 0, _levels(1)), lambda: _shown(1)),
    "png 2 bit grey": (lambda: _png(2, 0, _levels(2)), lambda: _shown(2)),
    "png 4 bit grey": (lambda: _png(4, 0, _levels(4)), lambda: _shown(4)),
    "png grey": (lambda: _png(8, 0, GREY), lambda: _rgb(GREY)),
    "png 16 bit grey": (lambda: _png(16, 0, GREY.astype(np.uint16) * 257), lambda: _rgb(GREY)),
    "png rgb": (lambda: _png(8, 2, np.asarray(RGB)), lambda: np.asarray(RGB)),
    "png 16 bit rgb": (lambda: _png(16, 2, WIDE), lambda: np.asarray(RGB)),
    "png grey with alpha": (
        lambda: encoded(_faded("L"), "PNG"),
        lambda: _over_white(_rgb(GREY), FADE),
    ),
    "png 16 bit grey with alpha": (
        lambda: _png(16, 4, np.concatenate([GREY[..., None].astype(np.uint16) * 257, ALPHA16], axis=2)),
        lambda: _over_white(_rgb(GREY), FADE),
    ),
    "png rgba": (lambda: encoded(_faded("RGB"), "PNG"), lambda: _over_white(np.asarray(RGB), FADE)),
    "png 16 bit rgba": (
        lambda: _png(16, 6, np.concatenate([WIDE, ALPHA16], axis=2)),
        lambda: _over_white(np.asarray(RGB), FADE),
    ),
    "png 1 bit, black transparent": (
        lambda: _png(1, 0, _levels(1), before=_see_through(0)),
        lambda: _shown(1, without=0),
    ),
    "png 2 bit grey, one level transparent": (
        lambda: _png(2, 0, _levels(2), before=_see_through(1)),
        lambda: _shown(2, without=1),
    ),
    "png 4 bit grey, one level transparent": (
        lambda: _png(4, 0, _levels(4), before=_see_through(5)),
        lambda: _shown(4, without=5),
    ),
    "png grey, one level transparent": (
        lambda: _png(8, 0, GREY, before=_see_through(int(GREY[0, 0]))),
        lambda: _shown(8, without=int(GREY[0, 0])),
    ),
    "png 16 bit grey, one level transparent": (
        lambda: _png(16, 0, GREY.astype(np.uint16) * 257, before=_see_through(int(GREY[0, 0]) * 257)),
        lambda: _shown(8, without=int(GREY[0, 0])),
    ),
    "png rgb, one colour transparent": (
        lambda: _png(8, 2, np.where(DARK[..., None], 7, np.asarray(RGB)), before=_see_through(7, 7, 7)),
        lambda: np.where(DARK[..., None], 255, np.asarray(RGB)),
    ),
    "png 16 bit rgb, one colour transparent": (
        lambda: _png(16, 2, np.where(DARK[..., None], 2000, WIDE), before=_see_through(2000, 2000, 2000)),
        lambda: np.where(DARK[..., None], 255, np.asarray(RGB)),
    ),
    "png palette": (lambda: encoded(PALETTE, "PNG"), _twin_of_palette),
    "png palette of 8 bits": (lambda: encoded(PALETTE, "PNG", bits=8), _twin_of_palette),
    "png palette with transparency": (
        lambda: encoded(PALETTE, "PNG", transparency=bytes(_palette_alphas())),
        lambda: _twin_of_palette(_palette_alphas()),
    ),
    "apng": (lambda: _two_frames("PNG"), lambda: np.asarray(RGB)),
    "apng with another picture for who knows none": (
        lambda: encoded(RGB, "PNG", save_all=True, append_images=[OTHER.copy()], default_image=True),
        lambda: np.asarray(RGB),
    ),
    "gif of two frames": (
        lambda: encoded(PALETTE, "GIF", save_all=True, append_images=[OTHER.quantize(16)]),
        _twin_of_palette,
    ),
    "gif with transparency": (
        lambda: encoded(PALETTE, "GIF", transparency=3),
        lambda: _twin_of_palette([0 if index == 3 else 255 for index in range(16)]),
    ),
    "webp": (lambda: encoded(RGB, "WEBP", lossless=True), lambda: np.asarray(RGB)),
    "webp with alpha": (
        lambda: encoded(_faded("RGB"), "WEBP", lossless=True, exact=True),
        lambda: _over_white(np.asarray(RGB), FADE),
    ),
    "webp of two frames": (lambda: _two_frames("WEBP", lossless=True), lambda: np.asarray(RGB)),
    "jpeg": (lambda: encoded(BLOCKS, "JPEG", quality=100, subsampling=0), lambda: np.asarray(BLOCKS)),
    "jpeg progressive": (
        lambda: encoded(BLOCKS, "JPEG", quality=100, subsampling=0, progressive=True),
        lambda: np.asarray(BLOCKS),
    ),
    "jpeg grey": (
        lambda: encoded(BLOCKS.convert("L"), "JPEG", quality=100),
        lambda: _rgb(np.asarray(BLOCKS.convert("L"))),
    ),
    "jpeg cmyk, inverted as Adobe does": (
        lambda: encoded(BLOCKS.convert("CMYK"), "JPEG", quality=100, subsampling=0),
        lambda: np.asarray(BLOCKS),
    ),
    "jpeg of two pictures": (
        lambda: encoded(BLOCKS, "MPO", save_all=True, append_images=[OTHER.copy()], quality=100, subsampling=0),
        lambda: np.asarray(BLOCKS),
    ),
    "tiff 1 bit": (lambda: encoded(RGB.convert("1"), "TIFF"), lambda: _rgb(np.asarray(RGB.convert("1").convert("L")))),
    "tiff 16 bit": (lambda: encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"), lambda: _rgb(GREY)),
    "tiff 16 bit, the other byte first": (
        lambda: encoded(Image.frombytes("I;16B", RGB.size, (GREY.astype(">u2") * 257).tobytes()), "TIFF"),
        lambda: _rgb(GREY),
    ),
    "tiff 32 bit": (lambda: encoded(Image.fromarray(GREY.astype(np.int32) * 257), "TIFF"), lambda: _rgb(GREY)),
    "tiff float of 0 to 1": (
        lambda: encoded(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"),
        lambda: _rgb(GREY),
    ),
    "tiff float of 0 to 255": (lambda: encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), lambda: _rgb(GREY)),
    "tiff float with no numbers": (
        lambda: encoded(Image.fromarray(np.where(DARK, np.nan, GREY / np.float32(255)).astype(np.float32)), "TIFF"),
        lambda: _rgb(np.where(DARK, 0, GREY)),
    ),
    "tiff float with infinity": (
        lambda: encoded(Image.fromarray(np.where(DARK, np.inf, GREY / np.float32(255)).astype(np.float32)), "TIFF"),
        lambda: _rgb(np.where(DARK, 255, GREY)),
    ),
    "tiff cmyk": (lambda: encoded(RGB.convert("CMYK"), "TIFF"), lambda: np.asarray(RGB)),
    "tiff lab": (lambda: encoded(_lab(BLOCKS), "TIFF"), lambda: np.asarray(_lab(BLOCKS, back=True))),
    "tiff ycbcr": (
        lambda: encoded(RGB.convert("YCbCr"), "TIFF"),
        lambda: np.asarray(RGB.convert("YCbCr").convert("RGB")),
    ),
    "tiff grey with alpha": (lambda: encoded(_faded("L"), "TIFF"), lambda: _over_white(_rgb(GREY), FADE)),
    "tiff palette with alpha": (lambda: encoded(PALETTE.convert("PA"), "TIFF"), _twin_of_palette),
    "tiff of two pages": (lambda: _two_frames("TIFF"), lambda: np.asarray(RGB)),
    "bmp": (lambda: encoded(RGB, "BMP"), lambda: np.asarray(RGB)),
    "ppm": (lambda: encoded(RGB, "PPM"), lambda: np.asarray(RGB)),
    "jpeg 2000": (lambda: encoded(RGB, "JPEG2000"), lambda: np.asarray(RGB)),
}


@pytest.mark.parametrize("kind", TWINS)
def test_every_mode_decodes_to_its_rgb_twin_within_two_levels(kind: str, tmp_path: Path) -> None:
    make, twin = TWINS[kind]
    (tmp_path / "picture").write_bytes(make())  # by its content: the name says nothing
    decoded = np.asarray(to_rgb(open_picture(tmp_path / "picture"))).astype(float)
    assert decoded.shape == (*twin().shape[:2], 3)
    assert np.abs(decoded - twin()).max() <= 2


@pytest.mark.parametrize("mode", ["La", "RGBa", "RGBX", "I;16L"])
def test_modes_that_no_file_has_are_converted_as_well(mode: str) -> None:
    twin = np.asarray(RGB) if mode.startswith("RGB") else _rgb(GREY)
    if mode == "I;16L":
        image = Image.frombytes(mode, RGB.size, (GREY.astype("<u2") * 257).tobytes())
    elif mode == "RGBX":
        image = RGB.convert(mode)
    else:
        image, twin = _faded(mode[:-1]).convert(mode), _over_white(twin, FADE)
    assert np.abs(np.asarray(to_rgb(image)).astype(float) - twin).max() <= 2


def test_a_large_picture_is_converted_in_strips_that_leave_no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    for image in (_faded("RGB"), PALETTE, RGB.convert("CMYK"), Image.fromarray(GREY.astype(np.uint16) * 257)):
        whole = np.asarray(to_rgb(image))
        with monkeypatch.context() as patch:
            patch.setattr(pixels, "_STRIP_PIXELS", 7 * RGB.width)
            assert len(list(pixels.strips(image))) > 2
            assert np.array_equal(np.asarray(to_rgb(image)), whole)


def test_a_transparent_palette_colour_shows_the_background() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.info["transparency"] = 1
    assert np.asarray(to_rgb(image, (1, 2, 3)))[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "TIFF, deflated"])
def test_exif_orientation_is_applied(kind: str, orientation: int, tmp_path: Path) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF's number -> the transposition that makes it so
    stored = BLOCKS.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else BLOCKS.copy()
    exif = stored.getexif()
    exif[0x0112] = orientation
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
        "TIFF, deflated": {"compression": "tiff_adobe_deflate"},
    }
    content = encoded(stored, kind.split(",")[0], exif=exif, **options.get(kind, {}))
    (tmp_path / "turned").write_bytes(content)
    upright = np.asarray(open_picture(tmp_path / "turned").convert("RGB")).astype(int)
    assert upright.shape == (40, 48, 3)
    assert np.abs(upright - np.asarray(BLOCKS)).max() <= 2
    assert open_picture(tmp_path / "turned", draft=(5, 5)).size == ((6, 5) if kind == "JPEG" else (48, 40))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0neither order of bytes",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0\0\0\x01\0\0\0",  # 65,535 entries, of which one is there
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0",  # a text for an orientation
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0",
        # Its second entry is of a tag that no number of this type is for: it is read, and cannot be written again.
        b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\x01\x01\0\x05\0\0\0\x01\0\0\0\x26\0\0\0\0"
        b"\0\0\0\x03\0\0\0\x02",
    ],
)
def test_exif_that_is_damaged_says_nothing(exif: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(encoded(BLOCKS, "JPEG", exif=exif))
    assert open_picture(tmp_path / "x").size == BLOCKS.size
    (tmp_path / "x").write_bytes(encoded(BLOCKS, "WEBP", exif=exif))
    assert open_picture(tmp_path / "x").size == BLOCKS.size


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_picture_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.png: cannot be read as a picture"):
        open_picture(tmp_path / "x.png")


def test_a_truncated_jpeg_is_an_error_not_half_a_picture(tmp_path: Path) -> None:
    RGB.resize((400, 400)).save(tmp_path / "x.jpg", quality=95)
    whole = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        open_picture(tmp_path / "x.jpg")


def test_pictures_above_max_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    Image.new("L", (300, 300)).save(tmp_path / "big.png")
    with pytest.raises(DataError, match="300x300 pixels are more than max_pixels = 1000"):
        open_picture(tmp_path / "big.png", max_pixels=1000)


def test_a_jpeg_of_too_many_pixels_is_decoded_at_the_scale_that_fits(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(encoded(RGB.resize((400, 300)), "JPEG"))
    assert open_picture(tmp_path / "x.jpg", max_pixels=120_000, draft=(400, 300)).size == (400, 300)
    assert open_picture(tmp_path / "x.jpg", max_pixels=119_999, draft=(400, 300)).size == (200, 150)
    assert open_picture(tmp_path / "x.jpg", max_pixels=2_000, draft=(400, 300)).size == (50, 38)
    for draft in (None, (400, 300)):
        with pytest.raises(DataError, match="400x300 pixels are more than max_pixels = 1000"):
            open_picture(tmp_path / "x.jpg", max_pixels=1000, draft=draft)


def test_a_jpeg_kept_whole_while_it_is_decoded_must_fit_whole(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(encoded(RGB.resize((400, 300)), "JPEG", progressive=True))
    assert open_picture(tmp_path / "x.jpg", max_pixels=120_000, draft=(100, 75)).size == (100, 75)
    with pytest.raises(DataError, match="400x300 pixels are more than"):
        open_picture(tmp_path / "x.jpg", max_pixels=119_999, draft=(100, 75))
    interleaved = encoded(RGB.resize((400, 300)), "JPEG")
    scan = interleaved.index(b"\xff\xda")
    one_colour_first = interleaved[:scan] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + interleaved[scan + 14 :]
    (tmp_path / "x.jpg").write_bytes(one_colour_first)
    with pytest.raises(DataError, match="400x300 pixels are more than"):
        open_picture(tmp_path / "x.jpg", max_pixels=119_999, draft=(100, 75))


def test_crop_takes_the_centre_at_the_stated_fraction() -> None:
    image = Image.new("RGB", (200, 100), (255, 0, 0))
    image.paste((0, 0, 255), (75, 25, 125, 75))  # blue square: the central half of the height
    spec = PreprocessSpec(size=(40, 40), crop_pct=0.5, interpolation="bilinear")
    pixels = prepare(image, spec)
    assert pixels.shape == (40, 40, 3)
    # Cropping the central half makes the blue square fill the whole input.
    assert (pixels[5:-5, 5:-5] == [0, 0, 255]).all()


@pytest.mark.parametrize("resize", ["crop", "squash", "letterbox"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_pictures_are_resized_by_the_filter_that_is_stated(interpolation: str, resize: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 50, 3)).astype(np.uint8)
    spec = PreprocessSpec(size=(32, 32), crop_pct=1.0, interpolation=interpolation, resize=resize)  # type: ignore[arg-type]
    resized = Image.fromarray(pixels).resize((32, 32), Image.Resampling[interpolation.upper()])
    np.testing.assert_array_equal(prepare(Image.fromarray(pixels), spec), np.asarray(resized))


def test_squash_keeps_every_corner_and_letterbox_keeps_the_shape() -> None:
    image = Image.new("RGB", (80, 40), (10, 20, 30))
    squashed = prepare(image, PreprocessSpec(size=(20, 30), resize="squash"))
    assert squashed.shape == (20, 30, 3)
    assert (squashed == [10, 20, 30]).all()
    boxed = prepare(image, PreprocessSpec(size=(40, 40), resize="letterbox", background=(9, 9, 9)))
    assert (boxed[0] == 9).all()
    assert (boxed[20] == [10, 20, 30]).all()


@pytest.mark.parametrize("size", [(1, 70_000), (70_000, 1)])
def test_a_picture_too_thin_for_a_pixel_is_letterboxed_as_a_line(size: tuple[int, int]) -> None:
    boxed = prepare(Image.new("RGB", size), PreprocessSpec(size=(32, 32), resize="letterbox"))
    assert (boxed == 0).all(axis=2).sum() == 32


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (500, 1), (31, 33), (1, 70_000), (70_000, 1)])
@pytest.mark.parametrize("resize", ["crop", "squash", "letterbox"])
def test_any_size_gives_the_input_size(width: int, height: int, resize: str) -> None:
    spec = PreprocessSpec.model_validate({"size": (24, 32), "resize": resize})
    assert prepare(Image.new("RGB", (width, height)), spec).shape == (24, 32, 3)


def test_jpeg_draft_mode_changes_pixels_only_a_little(tmp_path: Path) -> None:
    RGB.resize((1600, 1600), Image.Resampling.BICUBIC).save(tmp_path / "big.jpg", quality=95)
    spec = PreprocessSpec(size=(64, 64))
    drafted = load_picture(tmp_path / "big.jpg", spec).astype(float)
    whole = prepare(open_picture(tmp_path / "big.jpg"), spec).astype(float)
    assert np.abs(drafted - whole).mean() < 2


def test_normalize_is_the_formula_and_contiguous() -> None:
    spec = PreprocessSpec(size=(5, 4), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    tensor = normalize(pictures, spec)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    expected = (pictures / 255.0 - np.array(spec.mean)) / np.array(spec.std)
    assert np.allclose(tensor, expected.transpose(0, 3, 1, 2), atol=1e-5)
    with pytest.raises(DataError, match="expected uint8 pictures"):
        normalize(pictures.astype(np.float32), spec)  # type: ignore[arg-type]


def test_the_key_is_of_the_geometry_alone_and_survives_json(tmp_path: Path) -> None:
    spec = PreprocessSpec(size=(5, 4))
    assert spec.key == PreprocessSpec(size=(5, 4), mean=(0, 0, 0)).key
    assert spec.key != PreprocessSpec(size=(4, 5)).key
    (tmp_path / "p.json").write_text(__import__("json").dumps(spec.to_json()))
    assert PreprocessSpec.read(tmp_path / "p.json") == spec


def test_a_spec_from_a_stranger_is_checked(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"schema": 1, "size": ["a", 4], "crop": 1}')
    with pytest.raises(ConfigError, match="2 problems"):
        PreprocessSpec.read(tmp_path / "p.json")
