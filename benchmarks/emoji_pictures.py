"""The emoji that the benchmarks train on, as class folders, out of two packages of the npm registry.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
    python benchmarks/emoji_pictures.py FOLDER *.tgz

FOLDER/CLASS/CODE-VENDOR.png: a class is a category of emoji.json without "Component", a picture the base drawing of
64x64 pixels (no variation of skin) of each vendor that has one, its alpha composited over white: 9 classes, 3,812
pictures.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

from PIL import Image

SIDE = 64


def unpack(package: Path, folder: Path) -> int:
    """Write the pictures of one vendor's package; how many."""
    written = 0
    with tarfile.open(package) as archive:
        files = {member.name: member for member in archive.getmembers() if member.isfile()}

        def read(name: str) -> bytes:
            file = archive.extractfile(files[name])
            assert file is not None
            return file.read()

        vendor = next(name.split("/")[2] for name in files if f"/{SIDE}/" in name)
        for emoji in json.loads(read("package/emoji.json")):
            name = f"package/img/{vendor}/{SIDE}/{emoji['image']}"
            if emoji["category"] == "Component" or not emoji[f"has_img_{vendor}"] or name not in files:
                continue
            picture = Image.open(io.BytesIO(read(name))).convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            target = folder / emoji["category"].replace(" & ", "-and-").replace(" ", "-")
            target.mkdir(parents=True, exist_ok=True)
            stem = Path(emoji["image"]).stem
            Image.alpha_composite(white, picture).convert("RGB").save(target / f"{stem}-{vendor}.png")
            written += 1
    return written


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    print(sum(unpack(Path(package), Path(sys.argv[1])) for package in sys.argv[2:]), "pictures")
