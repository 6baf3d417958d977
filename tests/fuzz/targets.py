"""What is fuzzed: a target reads bytes as edgeopt would; success and EdgeoptError are its only allowed outcomes."""

from __future__ import annotations

import functools
import io
import json
import shutil
import tempfile
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import hostile
import numpy as np
import tiny_onnx
from PIL import Image, ImageCms
from planted import plant
from small_run import write_small_run

from edgeopt import environment, resources
from edgeopt.backends.onnx_reader import read_onnx
from edgeopt.config import load_recipe, load_target
from edgeopt.errors import EdgeoptError
from edgeopt.preprocess import PreprocessSpec, load_picture

CORPUS = Path(__file__).parent / "corpus"
#: A picture's own limit in these tests: decoding a hundred million pixels a hundred thousand times takes days.
_MAX_PIXELS = 4_000_000


class Target(ABC):
    """One reader. ``folder`` is where it may write; ``kind`` is what the mutator takes its seeds for."""

    name: ClassVar[str]
    kind: ClassVar[str]
    prefix: ClassVar[int] = 0  # bytes at the begin that say what the rest is, and stay

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def seeds(self) -> list[bytes]:
        """Valid inputs to start from."""

    @abstractmethod
    def read(self, data: bytes) -> None:
        """Read ``data`` as edgeopt would."""

    def case(self, data: bytes) -> bool:
        """Whether ``data`` was read; False for an EdgeoptError. Anything else comes through."""
        try:
            self.read(data)
        except EdgeoptError:
            return False
        return True

    def corpus(self) -> list[Path]:
        """What once went wrong."""
        return sorted((CORPUS / self.name).glob("*"))


class Onnx(Target):
    """An ONNX file."""

    name, kind = "onnx", "binary"

    def seeds(self) -> list[bytes]:
        """Float and int8 ones."""
        path = self.folder / "seed.onnx"
        made = [tiny_onnx.write_float(path).read_bytes()]
        return made + [tiny_onnx.write_qdq(path, scheme).read_bytes() for scheme in ("u8a8w", "s8a8w")]

    def read(self, data: bytes) -> None:
        """As a build does, and what it asks of the model."""
        path = self.folder / "model.onnx"
        path.write_bytes(data)
        model = read_onnx(path)
        model.weights_need_8_bits()
        for tensor in model.initializers.values():
            tensor.integers()


class Recipe(Target):
    """A recipe in TOML. One that is taken must also be fit for a record."""

    name, kind = "recipe", "toml"

    def seeds(self) -> list[bytes]:
        """The one in the README's spirit, with a value for most fields."""
        return [
            b'name = "a"\ntargets = ["openvino"]\n[data]\npath = "photos"\nimage_size = 64\nval = 0.1\nseed = 1\n'
            b'max_pixels = 100000\n[model]\nname = "resnet18"\npretrained = false\nweights = "w.pth"\n'
            b"arguments = { drop_rate = 0.1 }\n[train]\nepochs = 3\nlr = 0.001\nweight_decay = 0.05\n"
            b'warmup_epochs = 1.0\nema_decay = 0.9\nprecision = "fp32"\nclip_grad = 1.0\n[compress]\nint8 = true\n'
            b'prune = 0.3\nschemes = ["u8a8w"]\ncalibration = "default"\ntemperature = 3.0\n[bench]\nseconds = 5.0\n'
            b"threads = 2\n[budget]\nmax_drop_points = 1.0\nmax_p99_ms = 3.0\nmin_top1 = 0.9\n"
        ]

    def read(self, data: bytes) -> None:
        """As ``edgeopt run`` does before it begins."""
        path = self.folder / "edgeopt.toml"
        path.write_bytes(data)
        recipe = load_recipe(path)
        json.dumps(recipe.model_dump(mode="json"), allow_nan=False).encode()


class Device(Target):
    """A target's TOML file."""

    name, kind = "target", "toml"

    def seeds(self) -> list[bytes]:
        """Those that are shipped."""
        return [path.read_bytes() for path in sorted(resources.folder("targets").glob("*.toml"))]

    def read(self, data: bytes) -> None:
        """As ``edgeopt build --target FILE`` does before it begins."""
        path = self.folder / "board.toml"
        path.write_bytes(data)
        target = load_target(str(path))
        environment.matches(target.match)
        json.dumps(target.model_dump(mode="json", by_alias=True), allow_nan=False).encode()


def _to_lab() -> ImageCms.ImageCmsTransform:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.buildTransform(*profiles, "RGB", "LAB")


class Picture(Target):
    """A picture file."""

    name, kind = "picture", "binary"
    specs = tuple(PreprocessSpec(size=(24, 32), resize=resize) for resize in ("crop", "squash", "letterbox"))

    def seeds(self) -> list[bytes]:
        """Small pictures in every common format and mode, with EXIF, transparency and palettes among them."""
        noise = np.random.default_rng(0).integers(0, 256, (13, 17, 4), dtype=np.uint8)
        modes = {
            **{mode: Image.fromarray(noise).convert(mode) for mode in ("RGB", "RGBA", "L", "P", "1", "LA", "CMYK")},
            "I;16": Image.fromarray(noise[..., 0].astype(np.uint16) * 257),
            "F": Image.fromarray(noise[..., 0].astype(np.float32) / 255),
            "LAB": ImageCms.applyTransform(Image.fromarray(noise[..., :3]), _to_lab()),
        }
        exif = Image.Exif()
        exif[0x0112] = 6
        found = []
        for format_ in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "JPEG2000", "AVIF", "PCX"):
            for image in modes.values():
                buffer = io.BytesIO()
                try:
                    image.save(buffer, format=format_, **({"exif": exif} if format_ in ("JPEG", "WEBP", "PNG") else {}))
                except (OSError, ValueError, KeyError, TypeError):
                    continue  # a format that has not this mode
                found.append(buffer.getvalue())
        return found

    def read(self, data: bytes) -> None:
        """As training and ``edgeopt predict`` do."""
        path = self.folder / f"picture.{'tga' if data[-18:-2] == b'TRUEVISION-XFILE' else 'png'}"
        path.write_bytes(data)
        spec = self.specs[len(data) % 3]
        pixels = load_picture(path, spec, max_pixels=_MAX_PIXELS)
        assert pixels.shape == (24, 32, 3)
        assert pixels.dtype == np.uint8


class Record(Target):
    """A record of a run: the first byte says which, the rest is put in its place; then the verbs that read it run."""

    name, kind, prefix = "record", "json", 1
    verbs = ("show", "report", "eval", "measure", "predict", "bench", "candidates")

    #: What verbs replace or remove on their way to measuring it again.
    measured = (f"{hostile.INT8}/accuracy.json", "device/onnxruntime/candidates-float/times.json")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.picture = folder / "picture.png"
        Image.new("RGB", (20, 20)).save(self.picture)
        run = write_small_run(folder / "run")
        plant(run)
        self.run = run.path
        hostile.outcome("eval", self.run, self.picture)  # so that every record is there, and nothing is left to write
        self.whole = {name: (self.run / name).read_bytes() for name in hostile.RECORDS}

    def seeds(self) -> list[bytes]:
        """The records of a whole run."""
        return [bytes([index]) + data for index, data in enumerate(self.whole.values())]

    def read(self, data: bytes) -> None:
        """As one of the device's verbs does, but for those that build and remove; which one the content says."""
        name = list(hostile.RECORDS)[data[0] % len(hostile.RECORDS) if data else 0]
        verbs = [verb for verb in hostile.RECORDS[name] if verb in self.verbs]
        verb = verbs[zlib.crc32(data) % len(verbs)] if verbs else "show"
        try:
            (self.run / name).write_bytes(data[1:])
            said = hostile.outcome(verb, self.run, self.picture)
        finally:
            for one in (name, *self.measured):
                (self.run / one).write_bytes(self.whole[one])
            for earlier in self.run.glob("device/onnxruntime/.old-*"):
                shutil.rmtree(earlier)
        if said != "done":
            raise EdgeoptError(said)


TARGETS: dict[str, type[Target]] = {one.name: one for one in (Onnx, Recipe, Device, Picture, Record)}


@functools.lru_cache(maxsize=1)
def scratch() -> Path:
    """In memory where that is possible: a hundred thousand files are written."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else Path(tempfile.gettempdir())


def opened(name: str, folder: Path) -> Target:
    """The target called ``name``."""
    folder.mkdir(parents=True, exist_ok=True)
    return TARGETS[name](folder)
