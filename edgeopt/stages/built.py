"""One engine that was built: its record, in words, and whether it is what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt import environment
from edgeopt.errors import REPORT, BackendError, EdgeoptError, ParityError
from edgeopt.metrics.parity import INT8_MAX_MEAN_OVER_STD

_NAMED = 3  # layers in float that a line names


@dataclass(frozen=True)
class Built:
    """One engine's record, and whether this call made it or found it made."""

    target: str
    name: str
    record: dict[str, Any]
    skipped: bool

    def summary(self) -> str:
        """One line for a person."""
        record = self.record
        if record.get("engine") is None:
            if record.get("left_out"):
                return f"{self.target}/{self.name}: left out of the comparison: {record['reason']}"
            command = f"; on the device: {record['device_command']}" if record.get("device_command") else ""
            return f"{self.target}/{self.name}: no engine here: {record.get('reason')}{command}"
        words = [f"{self.target}/{self.name}: {'made before, unchanged' if self.skipped else 'built'}"]
        fusion, parity = record.get("fusion"), record.get("parity")
        if fusion and record["precision"] == "int8":
            words.append(f"{fusion['int8_layers']} of {fusion['compute_layers']} compute layers in int8")
            requested = fusion.get("float_by_request") or ()
            if left := [name for name in fusion["float_layers"] if name not in requested]:
                more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
                share = fusion.get("int8_share_macs")
                words[-1] += f" with {share:.1%} of the MACs" if share is not None else ""
                words[-1] += f" (in float: {', '.join(left[:_NAMED])}{more}; see fusion.json)"
            if requested:
                words.append(f"{len(requested)} in float by request")
        if record["precision"] == "int8" and not fusion:
            words.append("what it runs in int8 is not known, for the runtime names no layers")
        if parity:
            words.append(f"{parity['top1_agreement']:.1%} of {parity['n']} answers as trained")
            if parity["ok"] and (parity.get("allowed") or 0) > INT8_MAX_MEAN_OVER_STD:
                words[-1] += (
                    f" (mean difference {parity['mean_abs_over_std']:.1%} of the logits' spread; rounding alone moves "
                    f"this network so far that up to {parity['allowed']:.1%} is allowed, not "
                    f"{INT8_MAX_MEAN_OVER_STD:.0%})"
                )
            if not parity["ok"]:
                words.append(f"not used, for it does not answer as trained: {_told(parity)}")
        if record.get("reason"):
            words.append(str(record["reason"]))
        return ", ".join(words)


def misjudged(built: Sequence[Built], *, strict: bool) -> list[EdgeoptError]:
    """Errors of engines that answer differently from what was trained and, when ``strict``, of too few int8 MACs."""
    failed: list[EdgeoptError] = []
    wrong = [item for item in built if item.record.get("parity") and not item.record["parity"]["ok"]]
    if wrong:
        worst = "; ".join(f"{item.target}/{item.name}: {_told(item.record['parity'])}" for item in wrong)
        saturating = not environment.has_int8_dot() and any(item.record["scheme"] == "u8a8w" for item in wrong)
        wrongly = ParityError(
            f"an engine does not answer as the model it was made from: {worst}",
            fix="this CPU lacks int8 dot-products: edgeopt compress --int8 --scheme u8a7w"
            if saturating
            else f"name the model, and {REPORT}",
        )
        failed.append(wrongly)
    asked = [item for item in built if strict and item.record["precision"] == "int8"]
    return failed + [error for item in asked if (error := _too_little_int8(item)) is not None]


def _too_little_int8(item: Built) -> BackendError | None:
    """The error of an int8 engine with a smaller share in int8 than its target asks for, or with no audit of it."""
    fusion = item.record.get("fusion") or {}
    if not fusion.get("compute_layers"):
        why = item.record.get("reason") or "the runtime names no compute layer"
        return BackendError(
            f"{item.target}/{item.name}: no audit says what runs in int8 ({why})",
            fix="build it with --strict where it runs, or leave out --strict",
        )
    share, of = _share_where_asked(fusion)
    least = float(item.record["profile"]["min_int8_share_macs"])
    if share >= least:
        return None
    counts = f"{fusion['int8_layers']} of {fusion['compute_layers']} compute layers"
    return BackendError(
        f"{item.target}/{item.name}: {share:.1%} of the {of} are int8 ({counts}), {item.target} asks for {least:.0%}",
        fix="fusion.json has the names of the others; lower min_int8_share_macs in the target, or leave out --strict",
    )


def _share_where_asked(fusion: Mapping[str, Any]) -> tuple[float, str]:
    """The int8 share (0-1) of all but the layers that are float by request, and of what: MACs, else compute layers."""
    requested = set(fusion.get("float_by_request") or ())
    shares = dict(zip(fusion.get("float_layers") or (), fusion.get("float_shares_macs") or (), strict=False))
    if fusion.get("int8_share_macs") is not None and requested <= shares.keys():
        asked = 1.0 - sum(shares[name] for name in requested)
        # Sums of shares are off by the last bits, and 1 is asked for exactly.
        return (round(fusion["int8_share_macs"] / asked, 9) if asked > 0 else 1.0), "MACs"
    layers = fusion.get("compute_layers", 0) - len(requested)
    return (fusion["int8_layers"] / layers if layers > 0 else 1.0), "compute layers"


def _told(parity: Mapping[str, Any]) -> str:
    return f"{parity['message']}; {parity['parted']}" if parity.get("parted") else str(parity["message"])
