"""THE preprocessing: every picture mode decodes to its 8-bit RGB twin, and the geometry is exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import paint
from PIL import Image

from edgeopt.errors import ConfigError, DataError
from edgeopt.preprocess import PreprocessSpec, load_picture, normalize, open_picture, prepare, to_rgb

RGB = paint(1, 7)


def _over_white(image: Image.Image) -> np.ndarray:
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def _half_transparent() -> Image.Image:
    image = RGB.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(RGB.size))
    return image


def _deep() -> Image.Image:
    return Image.fromarray(np.asarray(RGB.convert("L")).astype(np.uint16) * 257)


GREY = np.repeat(np.asarray(RGB.convert("L"))[..., None], 3, axis=2)
TWINS: dict[str, tuple[Callable[[], Image.Image], np.ndarray]] = {
    "rgba": (_half_transparent, _over_white(_half_transparent())),
    "grey": (lambda: RGB.convert("L"), GREY),
    "grey with alpha": (lambda: RGB.convert("LA"), GREY),
    "16 bit": (_deep, GREY),
    "32 bit integer": (lambda: Image.fromarray(np.asarray(RGB.convert("L")).astype(np.int32) * 257), GREY),
    "float": (lambda: Image.fromarray(np.asarray(RGB.convert("L")).astype(np.float32) / 255), GREY),
    "palette": (
        lambda: RGB.quantize(64),
        np.asarray(RGB.quantize(64).convert("RGB")),
    ),
    "1 bit": (lambda: RGB.convert("1"), np.repeat(np.asarray(RGB.convert("1").convert("L"))[..., None], 3, axis=2)),
    "cmyk": (lambda: RGB.convert("CMYK"), np.asarray(RGB)),
}


@pytest.mark.parametrize("mode", TWINS)
def test_every_mode_decodes_to_its_rgb_twin_within_two_levels(mode: str) -> None:
    make, twin = TWINS[mode]
    decoded = np.asarray(to_rgb(make())).astype(float)
    assert np.abs(decoded - twin).max() <= 2


def test_a_transparent_palette_colour_shows_the_background() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.info["transparency"] = 1
    assert np.asarray(to_rgb(image, (1, 2, 3)))[0, 0].tolist() == [1, 2, 3]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    turned = RGB.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # "rotate 90 degrees clockwise to see it upright"
    turned.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(open_picture(tmp_path / "turned.png").convert("RGB")), np.asarray(RGB))


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


def test_crop_takes_the_centre_at_the_stated_fraction() -> None:
    image = Image.new("RGB", (200, 100), (255, 0, 0))
    image.paste((0, 0, 255), (75, 25, 125, 75))  # blue square: the central half of the height
    spec = PreprocessSpec(size=(40, 40), crop_pct=0.5, interpolation="bilinear")
    pixels = prepare(image, spec)
    assert pixels.shape == (40, 40, 3)
    # Cropping the central half makes the blue square fill the whole input.
    assert (pixels[5:-5, 5:-5] == [0, 0, 255]).all()


def test_squash_keeps_every_corner_and_letterbox_keeps_the_shape() -> None:
    image = Image.new("RGB", (80, 40), (10, 20, 30))
    squashed = prepare(image, PreprocessSpec(size=(20, 30), resize="squash"))
    assert squashed.shape == (20, 30, 3)
    assert (squashed == [10, 20, 30]).all()
    boxed = prepare(image, PreprocessSpec(size=(40, 40), resize="letterbox", background=(9, 9, 9)))
    assert (boxed[0] == 9).all()
    assert (boxed[20] == [10, 20, 30]).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (500, 1), (31, 33)])
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
