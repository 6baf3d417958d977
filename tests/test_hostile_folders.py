"""Folders from strangers: nothing in them stops, hangs, fills the memory, leads out, or is dropped without a word."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import paint, paint_folder
from picture_bytes import chunk, declaring, encoded, png
from PIL import Image
from test_predict import CLASSES, SPEC, MeanColour

from edgeopt import picture_files
from edgeopt.config import DataConfig
from edgeopt.console import Silent
from edgeopt.data.dataset import Dataset
from edgeopt.data.ingest import ingest
from edgeopt.data.threads import in_threads
from edgeopt.errors import DataError
from edgeopt.picture_files import contents, decoded, open_picture
from edgeopt.predict import predict
from edgeopt.preprocess import PreprocessSpec, load_picture
from edgeopt.stages.starting import start

pytestmark = pytest.mark.timeout(60)  # a pipe that is opened would be waited for
PICTURE = paint(0, 900)
PNG = encoded(PICTURE, "PNG")
JPEG = encoded(PICTURE, "JPEG")
TINY = [bytes((1, 2, 3, 4, 5, 6))]
SQUEEZED = zlib.compress(bytes(150_000_000), 1)  # 150 MB in less than one
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="APFS and HFS+ refuse such names")


def config(path: Path, **values: object) -> DataConfig:
    return DataConfig.model_validate({"path": str(path), **values})


def reasons(path: Path, **values: object) -> dict[str, str]:
    """What ingest sets aside."""
    return dict(ingest(config(path, **values)).set_aside)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of 5, to be spoilt by the test."""
    return paint_folder(tmp_path / "photos", classes=2, each=5)


# --- files that are no pictures, or not what they say -------------------------------------------------------------


def _cut(kind: str, **options: object) -> bytes:
    whole = encoded(PICTURE.resize((200, 200)), kind, **options)
    return whole[: len(whole) * 2 // 3]


def _lying_icon() -> bytes:
    """An icon of 16x16 by its directory, of 13,000x13,000 by the PNG inside, which Pillow decodes at once."""
    inside = png((13_000, 13_000), 1, 0, [bytes(1_627 * 13_000 - 1)], level=1)
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22) + inside


def _huge_tiff() -> bytes:
    width = struct.pack("<HHII", 256, 4, 1, PICTURE.width)
    whole = encoded(PICTURE, "TIFF", tiffinfo={256: PICTURE.width})
    assert width in whole
    return whole.replace(width, struct.pack("<HHII", 256, 4, 1, 2_000_000_000))


#: name -> (content, what the reason must say)
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "the file is empty"),
    "text.png": (b"not a picture", "its content is none of"),
    "text.jpg": (b"P6 is how this text begins, but no picture does", "cannot be read as a picture"),
    "text.tga": (b"this text, too, is no picture" * 10, "cannot be read as a picture"),
    "page.gif": (b"<!DOCTYPE html><title>404</title>", "its content is none of"),
    "drawing.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage", "its content is none"),
    "drawing.jpg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "its content is none of"),
    "archive.png": (b"PK\x03\x04" + bytes(100), "its content is none of"),
    "zeros.png": (bytes(1000), "cannot be read as a picture"),
    "cut.png": (_cut("PNG"), "cannot be read as a picture"),
    "cut.jpg": (_cut("JPEG", quality=95), "cannot be read as a picture"),
    "cut progressive.jpg": (_cut("JPEG", quality=95, progressive=True), "cannot be read as a picture"),
    "cut.gif": (_cut("GIF"), "cannot be read as a picture"),
    "cut.webp": (_cut("WEBP"), "cannot be read as a picture"),
    "cut.bmp": (_cut("BMP"), "cannot be read as a picture"),
    "cut.tif": (_cut("TIFF"), "cannot be read as a picture"),
    "cut.jp2": (_cut("JPEG2000"), "cannot be read as a picture"),
    "cut.ppm": (_cut("PPM"), "cannot be read as a picture"),
    "head.png": (PNG[:33], "cannot be read as a picture"),
    "no rows.png": (png((4, 4), 8, 2, []), "cannot be read as a picture"),
    "no width.png": (png((0, 4), 8, 2, []), "cannot be read as a picture"),
    "no size.gif": (b"GIF89a" + bytes(7) + b";", "cannot be read as a picture"),
    "huge.png": (png((60_000, 60_000), 8, 2, TINY), "60000x60000 pixels are more than max_pixels = 100000000"),
    "huge.ppm": (b"P6 60000 60000 255\n", "60000x60000 pixels are more than max_pixels = 100000000"),
    "huge.bmp": (b"BM" + struct.pack("<IIIIiiHHIIiiII", 60, 0, 54, 40, 60_000, 60_000, 1, 24, *[0] * 6), "60000x60000"),
    "huge.gif": (b"GIF89a\xff\xff\xff\xff" + encoded(PICTURE, "GIF")[10:], "65535x65535 pixels are more than"),
    "huge.jpg": (declaring(JPEG, (60_000, 60_000)), "60000x60000 pixels do not fit into its"),
    "huge progressive.jpg": (
        declaring(encoded(PICTURE, "JPEG", progressive=True), (60_000, 60_000)),
        "60000x60000 pixels are more than max_pixels = 100000000",
    ),
    "huge.tif": (_huge_tiff(), "2000000000x40 pixels are more than max_pixels"),
    "icon.png": (_lying_icon(), "its content is none of"),
    "iTXt.png": (png((2, 1), 8, 2, TINY, before=chunk(b"iTXt", b"k\0\1\0\0\0" + SQUEEZED)), "Decompressed"),
    "zTXt.png": (png((2, 1), 8, 2, TINY, before=chunk(b"zTXt", b"k\0\0" + SQUEEZED)), "Decompressed"),
    "many iTXt.png": (
        png((2, 1), 8, 2, TINY, before=chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(999_999))) * 80),
        "Too much memory",
    ),
}


def test_every_file_that_is_no_picture_is_set_aside_with_its_reason(root: Path, tmp_path: Path) -> None:
    for name, (content, _) in BROKEN.items():
        (root / "class 0" / name).write_bytes(content)
    dataset = ingest(config(root))
    found = dict(dataset.set_aside)
    for name, (_, expected) in BROKEN.items():
        assert expected in found.get(f"class 0/{name}", "nothing was said"), name
    assert len(found) == len(BROKEN)
    assert len(dataset.items) == 10
    dataset.write(tmp_path / "record")
    assert Dataset.read(tmp_path / "record") == dataset
    listed = json.loads((tmp_path / "record" / "issues.json").read_text())["set_aside"]
    assert {row["path"]: row["reason"] for row in listed} == found


def test_bombs_take_neither_memory_nor_time(root: Path) -> None:
    for name, (content, _) in BROKEN.items():
        (root / "class 0" / name).write_bytes(content)
    # Rows that are not part of the picture are not looked at, so that this is one.
    (root / "class 0" / "many rows.png").write_bytes(png((2, 1), 8, 2, [bytes(150_000_000)], level=1))
    used, seconds = _measured(f"ingest(DataConfig(path={str(root)!r}))")
    assert used < 100
    assert seconds < 20


def _measured(work: str) -> tuple[float, float]:
    """MiB by which a process's peak memory grows, and seconds, when it does ``work``."""
    program = (
        "import re, resource, sys, time\n"
        "from pathlib import Path\n"
        "from edgeopt.config import DataConfig\n"
        "from edgeopt.data.ingest import ingest\n"
        "from edgeopt.preprocess import PreprocessSpec, load_picture\n"
        "def peak():\n"
        "    if not sys.platform.startswith('linux'):\n"
        "        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20\n"
        # ru_maxrss would include what the process had before it was this program: this test's own memory.
        "    return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024\n"
        "before, start = peak(), time.monotonic()\n"
        f"{work}\n"
        "print(peak() - before, time.monotonic() - start)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    used, seconds = map(float, done.stdout.split())
    return used, seconds


def test_damaged_files_raise_one_kind_of_error_only(tmp_path: Path) -> None:
    """A few hundred files with a few bytes changed, always the same ones."""
    rng = random.Random(0)
    kinds = ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "TGA", "MPO"]
    whole = {kind: encoded(PICTURE.copy(), kind) for kind in kinds}
    path = tmp_path / "x.tga"
    read = 0
    for _ in range(400):
        content = bytearray(whole[rng.choice(kinds)])
        for _ in range(rng.choice((1, 2, 8))):
            content[rng.randrange(min(len(content), rng.choice((40, 100_000))))] = rng.choice((0, 1, 127, 128, 255))
        path.write_bytes(content)
        with suppress(DataError), picture_files.pillow_quiet():
            assert load_picture(path, SPEC).shape == (8, 8, 3)
            read += 1
    assert 50 < read < 350


def test_a_picture_is_told_by_its_content_whatever_its_name(root: Path) -> None:
    for name, content in (("a.png", JPEG), ("b.jpg", encoded(PICTURE.rotate(90), "PNG")), ("c.gif", _bmp())):
        (root / "class 0" / name).write_bytes(content)
    dataset = ingest(config(root))
    assert dataset.set_aside == ()
    assert len(dataset.items) == 13


def _bmp() -> bytes:
    return encoded(PICTURE.rotate(180), "BMP")


def test_what_pillow_warns_of_is_read_without_a_word(root: Path, recwarn: pytest.WarningsRecorder) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0\0\0\x01\0\0\0"  # 65,535 entries, of which one is there
    (root / "class 0" / "x.jpg").write_bytes(encoded(PICTURE.copy(), "JPEG", exif=exif))
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        open_picture(root / "class 0" / "x.jpg")
    recwarn.clear()
    assert ingest(config(root)).set_aside == ()
    assert predict(MeanColour(), [str(root / "class 0" / "x.jpg")], SPEC, CLASSES)[1] == []
    assert len(recwarn) == 0


def test_a_file_larger_than_any_picture_is_not_read(root: Path) -> None:
    with (root / "class 0" / "endless.png").open("wb") as handle:
        handle.write(PNG)
        handle.truncate(2**40)  # a hole: a terabyte that takes no room, and hours to read
    assert "bytes are more than a picture of max_pixels" in reasons(root)["class 0/endless.png"]


def test_pictures_that_pillow_does_not_read_are_named(root: Path) -> None:
    for name in ("a.heic", "b.CR2", "c.svg", "d.psd"):
        (root / "class 1" / name).write_bytes(b"\0\0\0\x18ftypheic")
    found = reasons(root)
    assert set(found) == {f"class 1/{name}" for name in ("a.heic", "b.CR2", "c.svg", "d.psd")}
    assert found["class 1/a.heic"] == "HEIC is not read; save it as JPEG or PNG"


# --- names --------------------------------------------------------------------------------------------------------

NAMES = [
    "with space.png",
    " leading and trailing .png",
    "two\nlines.png",
    "tab\t.png",
    "\x1b[31mred.png",
    "-rf.png",
    "--force.png",
    "$(reboot);'\".png",
    "*?[a].png",
    "Привет 图 🙂.png",
    "cafe\u0301.png",
    "\u202egnp.exe.png",
    "con.png",
    "a" * 251 + ".png",
    ".".join("abc") + ".PnG",
]


@linux_only
def test_any_name_is_just_a_name(root: Path, tmp_path: Path) -> None:
    for index, name in enumerate(NAMES):
        paint(1, 300 + index).save(root / "class 1" / name, format="PNG")
    dataset = ingest(config(root))
    assert dataset.set_aside == ()
    assert {f"class 1/{name}" for name in NAMES} <= {item.path for item in dataset.items}
    dataset.write(tmp_path / "record")
    assert Dataset.read(tmp_path / "record") == dataset
    found, failures = predict(MeanColour(), [str(root / "class 1")], SPEC, CLASSES)
    assert failures == []
    assert {Path(item.path).name for item in found} >= set(NAMES)


@linux_only
def test_what_no_record_can_name_is_set_aside_by_a_name_that_it_can(root: Path) -> None:
    folder = os.fsencode(root / "class 0")
    Path(os.fsdecode(folder + b"/caf\xe9.png")).write_bytes(PNG)
    Path(os.fsdecode(folder + b"/back\\slash.png")).write_bytes(PNG)
    Path(os.fsdecode(folder + b"/\xff\xfe")).mkdir()
    Path(os.fsdecode(folder + b"/\xff\xfe/inside.png")).write_bytes(PNG)
    for name in (b"\xff class", b"two\nlines", b"trailing ", b"\x1b[2J"):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).mkdir()
        Path(os.fsdecode(os.fsencode(root) + b"/" + name + b"/x.png")).write_bytes(PNG)
    found = reasons(root)
    assert {name for name, reason in found.items() if "UTF-8" in reason} == {
        "class 0/caf\\xe9.png",
        "class 0/back\\slash.png",
        "class 0/\\xff\\xfe/inside.png",
    }
    assert {name for name, reason in found.items() if "labels.txt" in reason} == {
        "\\xff class",
        "two\nlines",
        "trailing ",
        "\x1b[2J",
    }


@linux_only
def test_a_folder_that_no_record_can_name_is_one_error(root: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(root.parent) + b"/\xff"))
    root.rename(odd)
    with pytest.raises(DataError, match=r"\\xff is not valid UTF-8"):
        ingest(config(odd))


def test_errors_about_odd_names_are_one_line_without_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines\x1b[2J.png"
    path.write_bytes(b"nothing")
    for act in (lambda: open_picture(path), lambda: load_picture(path, SPEC)):
        with pytest.raises(DataError) as caught:
            act()
        assert caught.value.message.isprintable()
        assert "two\\nlines\\x1b[2J.png: cannot be read" in caught.value.message


# --- links, pipes, sockets, devices, rights -----------------------------------------------------------------------


def test_links_neither_lead_out_nor_in_circles(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(PNG)
    within = root / "class 0"
    links = {
        "out.png": outside / "secret.png",
        "passwd.png": Path("/etc/passwd"),
        "zero.png": Path("/dev/zero"),
        "self.png": within / "self.png",
        "here.png": within / "there.png",
        "there.png": within / "here.png",
        "nowhere.png": within / "absent.png",
        "folder": outside,
        "loop": root,
        "up.png": Path(".."),
    }
    for name, target in links.items():
        (within / name).symlink_to(target)
    (within / "twin.png").symlink_to(within / "000.png")  # inside: the same picture twice, in one class
    (root / "class 2").symlink_to(outside)
    (root / "class 3").symlink_to(root / "class 3")
    dataset = ingest(config(root))
    found = dict(dataset.set_aside)
    assert {name: found.pop(f"class 0/{name}") for name in ("out.png", "passwd.png")} == {
        name: "a link that leads out of the dataset" for name in ("out.png", "passwd.png")
    }
    assert "a device" in found.pop("class 0/zero.png")
    for name in ("class 0/self.png", "class 0/here.png", "class 0/there.png", "class 0/nowhere.png", "class 3"):
        assert found.pop(name) == "a link that leads nowhere"
    for name in ("class 0/folder", "class 0/loop", "class 0/up.png", "class 2"):
        assert found.pop(name) == "a link to a folder; put the pictures themselves there"
    assert found == {}
    assert {item.path for item in dataset.items if "twin" in item.path} == {"class 0/twin.png"}
    assert len(dataset.items) == 11


def test_pipes_sockets_and_devices_are_not_opened(root: Path) -> None:
    folder = root / "class 1"
    os.mkfifo(folder / "pipe.png")
    (folder / "to the pipe.png").symlink_to(folder / "pipe.png")
    os.mkfifo(root / "stray.png")
    os.mkfifo(root / "class 2")
    expected = {
        "class 1/pipe.png": "a pipe, not a file",
        "class 1/to the pipe.png": "a pipe, not a file",
        "stray.png": "a pipe, not a file",
        "class 2": "a pipe, not a file",
        "class 1/socket.png": "a socket, not a file",
    }
    with socket.socket(socket.AF_UNIX) as plug, _working_in(folder):  # its whole path would be too long
        plug.bind("socket.png")
        if os.getuid() == 0:
            os.mknod(folder / "device.png", 0o600 | 0o020000, os.makedev(1, 5))
            expected["class 1/device.png"] = "a device, not a file"
        assert reasons(root) == expected
        found, failures = predict(MeanColour(), [str(folder), str(folder / "pipe.png")], SPEC, CLASSES)
    assert len(found) == 5
    assert {Path(line.split(": ")[0]).name: line.split(": ")[1] for line in failures} == {
        Path(name).name: reason for name, reason in expected.items() if name.startswith("class 1/")
    }


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def test_a_picture_replaced_by_a_pipe_or_a_circle_is_noticed(root: Path) -> None:
    dataset = ingest(config(root))
    item = dataset.items[0]
    path = root / item.path
    for replace in (os.mkfifo, lambda path: path.symlink_to(path)):
        path.unlink()
        replace(path)
        for read in (dataset.open, dataset.encoded, dataset.check_unchanged):
            with pytest.raises(DataError, match="cannot be read"):
                read(item)


@contextmanager
def _without_rights() -> Iterator[Path]:
    """A folder outside of pytest's own, which nobody else may enter; inside the block this process is nobody."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        for path in folder.rglob("*"):
            path.chmod(0o755)
        shutil.rmtree(folder)


def _become_nobody() -> None:
    if os.getuid() == 0:
        os.seteuid(65534)


def test_what_may_not_be_read_is_set_aside() -> None:
    with _without_rights() as folder:
        root = paint_folder(folder / "photos", classes=2, each=5)
        ingest(config(root))  # everything is imported before the rights are gone
        for name in ("class 0/locked.png", "class 0/deeper/x.png", "class 2/x.png", "class 1/deeper/x.png"):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(PNG)
        (root / "class 0" / "locked.png").chmod(0)
        (root / "class 0" / "deeper").chmod(0)
        (root / "class 2").chmod(0o111)  # may be entered, not listed
        (root / "class 1" / "deeper").chmod(0o444)  # may be listed, not entered
        _become_nobody()
        found = reasons(root)
        answers, failures = predict(MeanColour(), [str(root / "class 0")], SPEC, CLASSES)
        os.seteuid(os.getuid())
        root.chmod(0)
        _become_nobody()
        with pytest.raises(DataError, match=r"photos cannot be read \(Permission denied\)"):
            ingest(config(root))
    assert found["class 0/locked.png"] == "cannot be read as a picture (PermissionError: Permission denied)"
    assert found["class 0/deeper"] == "a folder that cannot be read (Permission denied)"
    assert found["class 2"] == "a folder that cannot be read (Permission denied)"
    assert "Permission denied" in found["class 1/deeper/x.png"]
    assert len(answers) == 5
    assert len(failures) == 2


# --- classes ------------------------------------------------------------------------------------------------------


def test_everything_in_a_folder_is_accounted_for(root: Path) -> None:
    (root / "class 0" / "notes.txt").write_text("x")
    (root / "class 0" / "Thumbs.db").write_bytes(b"x")
    (root / "class 0" / "._000.png").write_bytes(b"x")
    (root / ".DS_Store").write_bytes(b"x")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "000.png").write_bytes(PNG)
    (root / "class 1" / ".git").mkdir()
    (root / "class 1" / ".git" / "x.png").write_bytes(PNG)
    (root / "class 2").mkdir()
    (root / "class 3").write_bytes(b"a file where a folder is expected")
    (root / "README.md").write_text("x")
    (root / "cover.jpg").write_bytes(JPEG)
    dataset = ingest(config(root))
    assert dict(dataset.set_aside) == {
        "class 2": "a folder without pictures",
        "class 3": "a file where a folder of pictures is expected",
        "cover.jpg": "in no class folder",
    }
    assert dict(dataset.ignored) == {"hidden": 5, "not a picture": 2}
    assert len(dataset.items) == 10


def test_files_where_ready_made_splits_expect_folders_are_named(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    paint_folder(root / "train", classes=2, each=6)
    paint_folder(root / "test", classes=2, each=6)
    for path in (root / "test").rglob("*.png"):
        Image.open(path).rotate(90).save(path)
    (root / "val").write_text("not a folder")
    (root / "train" / "class 2").write_bytes(PNG)
    (root / "train" / "x.png").write_bytes(PNG)
    (root / "more").mkdir()
    assert reasons(root) == {
        "val": "a file where a folder of pictures is expected",
        "train/class 2": "a file where a folder of pictures is expected",
        "train/x.png": "in no class folder",
        "more": "beside the train folder, but not a split",
    }


@pytest.mark.parametrize(("count", "shown"), [(1, r'"poor" \(1\)'), (2, r'"poor" \(2\)')])
def test_a_class_of_one_or_two_pictures_is_named(root: Path, count: int, shown: str) -> None:
    (root / "poor").mkdir()
    for index in range(count):
        paint(2, index).save(root / "poor" / f"{index}.png")
    with pytest.raises(DataError, match=f"1 class has fewer than 3 different pictures: {shown}"):
        ingest(config(root))


def test_a_class_of_nothing_but_broken_pictures_says_why(root: Path) -> None:
    (root / "poor").mkdir()
    (root / "poor" / "x\n.png").write_bytes(b"")
    with pytest.raises(DataError, match=r'"poor" \(0\)') as caught:
        ingest(config(root))
    assert "poor/x\\n.png: cannot be read as a picture (the file is empty)" in caught.value.message


def test_a_single_class_is_refused(root: Path) -> None:
    shutil.rmtree(root / "class 1")
    with pytest.raises(DataError, match="found 1 class of pictures; a classifier needs at least two"):
        ingest(config(root))


def test_folders_may_be_nested_deeper_than_pythons_stack(root: Path) -> None:
    deep = root / "class 0"
    levels = sys.getrecursionlimit() + 200
    with _working_in(deep):
        for _ in range(levels):
            Path("d").mkdir()
            os.chdir("d")
        Path("deep.png").write_bytes(PNG)
    try:
        assert f"class 0/{'d/' * levels}deep.png" in {item.path for item in ingest(config(root)).items}
        found, failures = predict(MeanColour(), [str(deep)], SPEC, CLASSES)
        assert (len(found), failures) == (6, [])
    finally:
        subprocess.run(["rm", "-rf", str(deep)], check=True)  # shutil.rmtree recurses


def test_a_path_that_the_system_finds_too_long_is_said(root: Path) -> None:
    deep = root / "class 0"
    with _working_in(deep):
        for _ in range(25):
            Path("d" * 200).mkdir()
            os.chdir("d" * 200)
        Path("deep.png").write_bytes(PNG)
    [(path, reason)] = reasons(root).items()
    assert path.startswith("class 0/ddd")
    assert reason == "a folder that cannot be read (File name too long)"


def test_a_picture_in_many_classes_is_set_aside_everywhere(root: Path) -> None:
    for name in ("class 0", "class 1"):
        for index in range(3):
            (root / name / f"copy {index}.png").write_bytes(PNG)
    found = reasons(root)
    assert len(found) == 6
    assert found["class 0/copy 2.png"] == "the same picture has another label: class 1/copy 0.png"
    assert found["class 1/copy 2.png"] == "the same picture has another label: class 0/copy 0.png"


@linux_only
def test_classes_that_a_reader_takes_for_one_are_noted(root: Path, tmp_path: Path) -> None:
    for index, name in enumerate(("Class 1", "caf\u00e9", "cafe\u0301")):
        (root / name).mkdir()
        for picture in range(4):
            paint(2 + index, picture).save(root / name / f"{picture}.png")
    dataset = ingest(config(root))
    assert len(dataset.classes) == 5
    assert len(dataset.notes) == 2
    assert 'differ in case or spelling only: "Class 1", "class 1"' in dataset.notes[0]
    dataset.write(tmp_path / "record")
    assert Dataset.read(tmp_path / "record").notes == dataset.notes
    assert ingest(config(paint_folder(tmp_path / "plain", classes=2, each=4))).notes == ()


class _Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@linux_only
def test_a_run_lists_what_was_set_aside_also_when_it_is_started_again(root: Path, tmp_path: Path) -> None:
    def issues() -> dict[str, str]:
        rows = json.loads((tmp_path / "run" / "data" / "issues.json").read_text())["set_aside"]
        return {row["path"]: row["reason"] for row in rows}

    (root / "class 0" / "x.png").write_bytes(b"")
    (root / "class 0" / "x.txt").write_bytes(b"")
    start(config(root), tmp_path / "run", Silent())
    assert set(issues()) == {"class 0/x.png"}
    (root / "class 1" / "y.png").write_bytes(b"")
    heard = _Heard()
    start(config(root), tmp_path / "run", heard)
    assert set(issues()) == {"class 0/x.png", "class 1/y.png"}
    assert (
        "set aside: 2 files (2 as class 0/x.png: cannot be read as a picture); all are named in the run's "
        "data/issues.json"
    ) in heard.lines
    assert "passed over: 1 file not named as pictures are" in heard.lines


@linux_only
def test_every_kind_of_what_was_set_aside_is_said_and_counted(root: Path, tmp_path: Path) -> None:
    """The first file alone hid that others were left out for other reasons."""
    for name in ("x.png", "y.png"):
        (root / "class 0" / name).write_bytes(b"")
    shutil.copy(next((root / "class 1").glob("*.png")), root / "class 0" / "other.png")
    heard = _Heard()
    start(config(root), tmp_path / "run", heard)
    [line] = [line for line in heard.lines if line.startswith("set aside: 4 files")]
    assert "(2 as class 0/other.png: the same picture has another label; " in line
    assert "2 as class 0/x.png: cannot be read as a picture)" in line


# --- prediction ---------------------------------------------------------------------------------------------------


def test_predict_lists_what_it_cannot_read_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    for name, (content, _) in BROKEN.items():
        (folder / name).write_bytes(content)
    Image.new("RGB", (9, 9), (255, 0, 0)).save(folder / "zz good.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "elsewhere").symlink_to(tmp_path)
    (folder / "phone.heic").write_bytes(b"x")
    found, failures = predict(MeanColour(), [str(folder)], SPEC, CLASSES)
    assert [Path(item.path).name for item in found] == ["zz good.png"]
    assert found[0].label == "red"
    said = {Path(line.split(": ")[0]).name: line for line in failures}
    assert set(said) == {*BROKEN, "circle.png", "elsewhere", "phone.heic"}
    for name, (_, expected) in BROKEN.items():
        assert expected in said[name]


@linux_only
def test_predictions_of_names_that_are_not_utf8_can_be_written_as_json(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Path(path).write_bytes(PNG)
    [found], failures = predict(MeanColour(), [path], SPEC, CLASSES)
    assert failures == []
    assert json.dumps(found.to_json(), ensure_ascii=False).encode().count(b"caf\\\\xe9.png") == 1


# --- memory -------------------------------------------------------------------------------------------------------


def test_pictures_in_threads_share_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 48x40 = 1,920 pixels each, three fit into 6,000; one of more than that is alone."""
    monkeypatch.setattr(picture_files, "_MEMORY", picture_files._Memory(6_000))
    for index in range(12):
        PICTURE.save(tmp_path / f"{index}.png")
    PICTURE.resize((200, 200)).save(tmp_path / "12.png")
    inside: list[int] = []
    most: list[int] = []
    lock = threading.Lock()

    def use(index: int) -> None:
        with decoded(tmp_path / f"{index}.png") as image:
            with lock:
                inside.append(image.width * image.height)
                most.append(sum(inside))
            time.sleep(0.02)
            with lock:
                inside.remove(image.width * image.height)

    threads = [threading.Thread(target=use, args=(index,)) for index in range(13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 13
    assert {value for value in most if value > 6_000} == {40_000}
    assert max(value for value in most if value <= 6_000) >= 2 * 1_920


def test_few_pictures_are_in_flight_however_many_there_are() -> None:
    started: list[int] = []
    results = in_threads(lambda number: started.append(number) or -number, range(1_000))
    assert next(results) == 0
    assert len(started) <= 64
    assert list(results) == [-number for number in range(1, 1_000)]


def test_a_picture_of_one_column_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "thin.png"
    path.write_bytes(png((1, 5_000_000), 8, 0, [bytes(9_999_999)]))
    used, _ = _measured(
        "for resize in ('crop', 'squash', 'letterbox'):\n"
        f"    load_picture(Path({str(path)!r}), PreprocessSpec(resize=resize))"
    )
    assert used < 200  # 65 is the picture, with Pillow's pointer to each row; resized like any other it took gigabytes


@pytest.mark.slow
def test_180_megapixels_are_read_where_a_jpeg_can_be_shrunk_and_set_aside_where_not(tmp_path: Path) -> None:
    root = paint_folder(tmp_path / "photos", classes=2, each=5)
    side = 13_417  # 180,015,889 pixels
    image = Image.new("RGB", (side, side), (200, 30, 60))
    image.save(root / "class 0" / "large.jpg")
    image.save(root / "class 0" / "progressive.jpg", progressive=True)
    image.save(root / "class 0" / "large.png", compress_level=1)
    del image
    used, _ = _measured(f"print(ingest(DataConfig(path={str(root)!r})).set_aside, file=sys.stderr)")
    assert used < 60
    large = f"{side}x{side} pixels are more than max_pixels = 100000000"
    assert reasons(root) == {"class 0/large.png": large, "class 0/progressive.jpg": large}
    drafted = load_picture(root / "class 0" / "large.jpg", PreprocessSpec(size=(64, 64))).astype(int)
    assert np.abs(drafted - [200, 30, 60]).max() <= 2


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "most"), [("RGB", 500), ("RGBA", 900), ("P", 600), ("I;16", 700), ("CMYK", 900)])
def test_the_largest_pictures_allowed_take_two_copies_at_most(mode: str, most: int, tmp_path: Path) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new(mode, (9_990, 10_000)).save(path, **({} if mode == "CMYK" else {"compress_level": 1}))
    used, _ = _measured(f"load_picture(Path({str(path)!r}), PreprocessSpec())")
    assert used < most


def test_contents_of_a_folder_are_sorted_whatever_the_system_says(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = contents(str(root))
    scandir = os.scandir

    @contextmanager
    def backwards(path: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        with scandir(path) as entries:
            yield reversed(sorted(entries, key=lambda entry: entry.name))

    monkeypatch.setattr(picture_files.os, "scandir", backwards)
    assert contents(str(root)) == expected
    assert expected.files == sorted(expected.files)
    assert len(expected.files) == 10
