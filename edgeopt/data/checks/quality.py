"""Dark, bright, blurry, nearly empty, oddly shaped or sized pictures, by cleanvision's measures and thresholds.

cleanvision's Imagelab opens files by itself, whatever they hold; here our decoder opens them, and cleanvision's issue
manager judges what its own properties measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from edgeopt.data.checks.issues import Issue, of
from edgeopt.data.examine import Checked

#: cleanvision's name -> (ours, the score below which most would leave the picture out: about half its threshold).
_TYPES = {
    "dark": ("dark", 0.16),
    "light": ("bright", 0.025),
    "blurry": ("blurry", 0.145),
    "low_information": ("low_information", 0.2),  # a picture of one colour has 0.16
    "odd_aspect_ratio": ("odd_aspect_ratio", 0.0),
    "odd_size": ("odd_size", 0.0),
}


#: Where nearly all pictures have one size, cleanvision flags every other one; so much in side length is no oddity.
_USUAL_SIZES = 1.5


def measures(picture: Image.Image, size: tuple[int, int]) -> Mapping[str, Any]:
    """cleanvision's raw measures of an RGB picture, and of the (width, height) it has in its file."""
    from cleanvision.issue_managers.image_property import BlurrinessProperty, BrightnessProperty, EntropyProperty

    values: dict[str, Any] = {}
    for measure in (BrightnessProperty("dark"), EntropyProperty(), BlurrinessProperty()):
        values.update(measure.calculate(picture))
    width, height = size
    return {**values, "aspect_ratio": min(width / height, height / width), "size": math.sqrt(width * height)}


def find(checked: Sequence[Checked]) -> list[Issue]:
    """The pictures that cleanvision flags at its own thresholds."""
    if not checked:
        return []
    import pandas as pd
    from cleanvision.issue_managers.image_property_issue_manager import ImagePropertyIssueManager

    manager = ImagePropertyIssueManager()
    manager.issues = pd.DataFrame(index=range(len(checked)))
    manager.update_issues(pd.DataFrame([item.seen.measures for item in checked]), list(_TYPES))
    usual = statistics.median(item.seen.measures["size"] for item in checked)
    issues: list[Issue] = []
    for theirs, (ours, useless_below) in _TYPES.items():
        flagged: Iterable[Any] = manager.issues[f"is_{theirs}_issue"]
        for item, is_issue, score in zip(checked, flagged, manager.issues[f"{theirs}_score"], strict=True):
            if is_issue and not (ours == "odd_size" and _is_usual(item.seen.measures["size"], usual)):
                issues.append(of(item, ours, 1.0 - score, _reason(ours, item), leave_out=bool(score < useless_below)))
    return issues


def _is_usual(size: float, usual: float) -> bool:
    return usual / _USUAL_SIZES <= size <= usual * _USUAL_SIZES


def _reason(kind: str, item: Checked) -> str:
    seen = item.seen
    values = seen.measures
    return {
        "dark": f"99 % of it is darker than {values['brightness_perc_99']:.0%} of white",
        "bright": f"95 % of it is brighter than {values['brightness_perc_5']:.0%} of white",
        "blurry": f"edges vary by {values['blurriness']:.1f} grey levels",
        "low_information": f"{values['entropy']:.1f} bits of entropy",
        "odd_aspect_ratio": f"{seen.size[0]}x{seen.size[1]} pixels",
        "odd_size": f"{seen.size[0]}x{seen.size[1]} pixels",
    }[kind]
