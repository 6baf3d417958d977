"""scikit-learn's handwritten digits as class folders of PNG pictures: the demo's dataset, available offline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from edgeopt.errors import DataError
from edgeopt.files import write_text

_SIDE = 64
_WHITE = 16.0  # scikit-learn's digits have 17 shades, 0 to 16
_DONE = ".complete"


def write_digits(folder: Path, *, limit: int | None = None) -> Path:
    """Write the 1,797 digits (8x8, enlarged to 64x64) as ``folder/<digit>/<number>.png``; returns ``folder``.

    ``limit`` writes the first so many only; they are in turn 0, 1, ... 9, so classes stay balanced. What is complete
    already is left alone. Raises DataError when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "the demo's pictures come with scikit-learn, which is not installed", fix="pip install 'edgeopt[demo]'"
        ) from None
    digits = load_digits()
    count = len(digits.target) if limit is None else min(limit, len(digits.target))
    done = folder / _DONE
    if done.is_file() and done.read_text(encoding="utf-8").strip() == str(count):
        return folder
    for index, (values, label) in enumerate(zip(digits.images[:count], digits.target[:count], strict=True)):
        target = folder / str(label) / f"{index:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(np.round(values * (255 / _WHITE)).astype(np.uint8))
        small.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(target)
    write_text(done, f"{count}\n")
    return folder
