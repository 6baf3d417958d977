"""The page of the emoji benchmark: folds pooled, drops paired over the same pictures, what is asked of them judged."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeopt.metrics import PairedDrop, paired_drop

Bools = npt.NDArray[np.bool_]
ORDER = ("float", "control", "int8-onnxruntime", "int8-openvino", "prune-onnxruntime", "prune-openvino",
         "rival-onnxruntime", "rival-openvino", "nncf-openvino", "static-onnxruntime", "tuned-onnxruntime",
         "latency-onnxruntime", "latency-openvino", "latency-rival-onnxruntime", "latency-rival-openvino",
         "latency-alike-onnxruntime", "latency-alike-openvino",
         "ladder-onnxruntime", "ladder-openvino")  # fmt: skip
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


class Limit(NamedTuple):
    """That ``row`` loses at most ``points`` against ``base``, with an upper 95 % bound of at most ``upper``."""

    row: str
    base: str
    points: float
    upper: float | None = None


#: By model; what the issue asks.
LIMITS = {
    "lite0": (
        *(Limit(f"int8-{runtime}", "float", 0.5, 1.2) for runtime in RUNTIMES),
        *(Limit(f"prune-{runtime}", "float", 0.5) for runtime in RUNTIMES),
        *(Limit(f"prune-{runtime}", "control", 1.5) for runtime in RUNTIMES),
    ),
    "resnet18": (
        *(Limit(f"int8-{runtime}", "float", 0.5, 1.2) for runtime in RUNTIMES),
        *(Limit(f"prune-{runtime}", "float", 1.0) for runtime in RUNTIMES),
    ),
}
#: (ours, theirs): not less accurate, and not slower as far as the interval tells.
RIVALS = (("int8-openvino", "nncf-openvino"), ("int8-onnxruntime", "static-onnxruntime"),
          ("int8-onnxruntime", "tuned-onnxruntime"), ("prune-openvino", "rival-openvino"),
          ("latency-openvino", "latency-alike-openvino"))  # fmt: skip
LEAST_RATIO = 1.4  # of the pruned int8 engine's speed to the unpruned one's, OpenVINO


def packed(right: Bools) -> dict[str, Any]:
    """bool (N,) as JSON: ``pictures`` and ``right``, the bits in base64."""
    return {"pictures": len(right), "right": base64.b64encode(np.packbits(right).tobytes()).decode()}


def unpacked(row: Mapping[str, Any]) -> Bools:
    """What :func:`packed` made."""
    bits = np.frombuffer(base64.b64decode(row["right"]), np.uint8)
    return np.unpackbits(bits, count=row["pictures"]).astype(bool)


def paired(folds: Sequence[Mapping[str, Any]], base: str, row: str) -> PairedDrop | None:
    """How much worse ``row`` is than ``base`` on the pictures of all folds that have both; None where none has."""
    both = [fold["rows"] for fold in folds if base in fold["rows"] and row in fold["rows"]]
    if not both:
        return None
    return paired_drop(*(np.concatenate([unpacked(rows[key]) for rows in both]) for key in (base, row)))


def write_page(folder: Path) -> None:
    """``folder``.md from the JSON files in it."""
    folds = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    lines = ["# Compression on emoji", "", "Written by `emoji.py`, which says what is measured and how.", ""]
    for name in LIMITS:
        of = [fold for fold in folds if fold["name"] == name]
        lines += _of_model(name, of) if of else [f"## {name}", "", "Not measured.", ""]
    folder.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")


def _of_model(name: str, folds: Sequence[Mapping[str, Any]]) -> list[str]:
    settings = list(dict.fromkeys(json.dumps(fold["setting"], sort_keys=True) for fold in folds))
    setting = json.loads(settings[0])
    numbers = ", ".join(str(fold["fold"]) for fold in folds)
    start = "ImageNet weights" if setting["pretrained"] else "random weights"
    epochs = ", ".join(
        f"{setting[key]} epochs of {what}" for key, what in (("recovery_epochs", "recovery"), ("qat_epochs", "QAT"))
        if setting[key]
    )  # fmt: skip
    lines = [
        f"## {name}: `{setting['model']}`, {setting['size']} px",
        "",
        f"Fold{'s' * (len(folds) > 1)} {numbers} of 3, from {start}, {setting['epochs']} epochs"
        f"{', with ' + epochs if epochs else ''}. {folds[0]['environment']['cpu']['name']}, "
        f"{folds[0]['environment']['cpu']['cores']} cores. Drops are points of top-1 on the same pictures, with their "
        "95 % intervals; a drop below zero is a gain. Speeds are ratios from interleaved windows, batch 1: of each "
        "fold where there are several.",
        "",
    ]
    if len(settings) > 1:
        lines += ["**The folds were measured with different settings; pooling them says little.**", ""]
    lines += [
        "| | runtime | top-1 | drop against float | against float + epochs | times as fast as float | as int8 |",
        "|---|---|---|---|---|---|---|",
        *(_row(key, folds) for key in ORDER if any(key in fold["rows"] for fold in folds)),
        "",
        *_judged(name, folds),
        *(f"- refused (fold {fold['fold']}): {part}: {why}" for fold in folds for part, why in _refused(fold).items()),
        "",
        "Minutes: " + "; ".join(f"fold {fold['fold']}: {_minutes(fold)}" for fold in folds) + ".",
        "",
    ]
    return lines


def _minutes(fold: Mapping[str, Any]) -> str:
    return ", ".join(f"{part} {minutes:.1f}" for part, minutes in fold["minutes"].items())


def _refused(fold: Mapping[str, Any]) -> Mapping[str, str]:
    """What edgeopt said of parts that it did not go through with."""
    return {part: why.splitlines()[0] for part, why in (fold.get("refused") or {}).items()}


def _row(key: str, folds: Sequence[Mapping[str, Any]]) -> str:
    rows = [fold["rows"][key] for fold in folds if key in fold["rows"]]
    right, pictures = sum(int(unpacked(row).sum()) for row in rows), sum(row["pictures"] for row in rows)
    cells = [
        rows[0]["title"],
        RUNTIMES.get(rows[0].get("runtime", ""), "PyTorch"),
        f"{right / pictures:.2%} of {pictures}",
        "" if key == "float" else _drop(paired(folds, "float", key)),
        "" if key in ("float", "control") else _drop(paired(folds, "control", key)),
        _speeds(key, "times_float", folds),
        _speeds(key, "times_int8", folds),
    ]
    return f"| {' | '.join(cells)} |"


def _drop(found: PairedDrop | None) -> str:
    if found is None:
        return ""
    low, high = found.ci_points
    return f"{found.drop_points:.2f} [{low:.2f}, {high:.2f}]"


def _measured(key: str, what: str, folds: Sequence[Mapping[str, Any]]) -> list[tuple[float, float | None]]:
    """(ratio, its lower bound) of each fold that has one."""
    engines = [(fold.get("bench") or {}).get("engines", {}).get(key, {}) for fold in folds]
    return [(one[what][0], one[what][1]) for one in engines if what in one]


def _speeds(key: str, what: str, folds: Sequence[Mapping[str, Any]]) -> str:
    found = _measured(key, what, folds)
    return ", ".join(f"{value:.2f}" + (f" (at least {low:.2f})" if low is not None else "") for value, low in found)


def _judged(name: str, folds: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each thing that is asked of this model, and whether it is so."""
    lines = []
    for limit in LIMITS[name]:
        if found := paired(folds, limit.base, limit.row):
            met = found.drop_points <= limit.points and (limit.upper is None or found.upper_points <= limit.upper)
            asked = f"at most {limit.points:g}" + (f", upper bound {limit.upper:g}" if limit.upper else "")
            words = f"{limit.row} against {limit.base}: drop {found.drop_points:.2f}, upper bound"
            lines.append(f"- {_verdict(met)}: {words} {found.upper_points:.2f}; asked {asked}")
    for ours, theirs in RIVALS:
        if found := paired(folds, theirs, ours):
            low, high = found.ci_points
            words = f"{ours} is {-found.drop_points:.2f} points [{-high:.2f}, {-low:.2f}] above {theirs}"
            paces = _paces(ours, theirs, folds)
            as_fast = all(high is None or high >= 1 for _, _, high in paces)
            verdict = "within the noise" if found.drop_points > 0 >= low and as_fast else _verdict(low <= 0 and as_fast)
            lines.append(f"- {verdict}: {words}; {_in_words(paces)}")
    if ratios := _measured("prune-openvino", "times_int8", folds):
        least = min(value if low is None else low for value, low in ratios)
        words = "as fast as the unpruned one on OpenVINO"
        lines.append(
            f"- {_verdict(least >= LEAST_RATIO)}: the pruned int8 engine is at least {least:.2f} times {words}; "
            f"asked {LEAST_RATIO:g}"
        )
    return [*lines, *(line for fold in folds for line in _of_goals(fold))]


def _of_goals(fold: Mapping[str, Any]) -> Iterator[str]:
    """What `--latency` and `--max-drop` said themselves."""
    number = f"fold {fold['fold']}"
    for key, row in fold["rows"].items():
        judged = row.get("judged")
        if judged and judged["target"] == row["runtime"]:
            best = ", recommended" if judged["recommended"] else ""
            share = f"{judged['share_of_unpruned']:.0%} of the unpruned latency"
            yield f"- {judged['verdict']} ({number}): {key}, {share}{best}"
        if ladder := row.get("ladder"):
            rungs = ", ".join(rung["name"] for rung in ladder["rungs"])
            yield f"- {ladder['verdict']} ({number}): {key} took {ladder['chosen']} of the rungs {rungs}"


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def _paces(ours: str, theirs: str, folds: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """How many times as fast ours is, with its interval, of each fold that has both."""
    found = [(fold.get("bench") or {}).get("pairs", {}).get(f"{ours} over {theirs}") for fold in folds]
    return [one for one in found if one]


def _in_words(paces: Sequence[Sequence[Any]]) -> str:
    words = [f"{value:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low is not None else "") for value, low, high in paces]
    return f"{', '.join(words)} times as fast" if words else "latency not measured"
