"""Where the worst mistakes were seen: Grad-CAM maps beside a PyTorch engine's record, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from edgeopt.files import write_atomically, write_json
from edgeopt.preprocess import normalize
from edgeopt.sets import PictureSet
from edgeopt.stages.engines import Engine
from edgeopt.stages.variants import open_variant
from edgeopt.train.gradcam import gradcam

SIDE = 64  # of a map, in pixels: it is drawn over a thumbnail


def explain(engine: Engine, record: Mapping[str, Any], pictures: PictureSet) -> None:
    """Write ``gradcam.npy`` (uint8, N x 64 x 64) and ``gradcam.json`` (which picture, which answer) for the mistakes.

    ``record`` is the engine's ``accuracy.json``. Mistakes of a network without feature maps are left out.
    """
    model, spec = open_variant(engine.run, engine.variant).load(), engine.preprocess
    maps, entries = [], []
    for mistake in record["mistakes"]:
        index, answer = int(mistake["index"]), int(mistake["answer"])
        found = gradcam(model, normalize(np.asarray(pictures.pictures[index : index + 1]), spec)[0], answer)
        if found is not None:
            drawn = Image.fromarray((255 * found).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            maps.append(np.asarray(drawn))
            entries.append({"index": index, "answer": answer})
    stacked = np.stack(maps) if maps else np.zeros((0, SIDE, SIDE), np.uint8)
    write_atomically(engine.folder / "gradcam.npy", lambda path: np.save(path, stacked, allow_pickle=False))
    write_json(engine.folder / "gradcam.json", {"schema": 1, "pictures": entries})
