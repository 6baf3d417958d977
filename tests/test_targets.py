"""The shipped targets and calibration recipes: data that loads, is sourced, and is listed in its README."""

from __future__ import annotations

import re

import pytest

from edgeopt import registry, resources
from edgeopt.backends import capability
from edgeopt.config import CalibrationRecipe, Target, load_calibration, load_target

TARGETS = resources.names("targets")
CALIBRATIONS = resources.names("calibration")


def test_the_promised_targets_and_recipes_are_shipped() -> None:
    assert {
        "onnxruntime", "openvino", "tensorrt", "raspberry-pi-5", "intel-n100", "jetson-orin-nano", "rtx-desktop",
    } <= set(TARGETS)  # fmt: skip
    assert {"fast", "default", "thorough"} <= set(CALIBRATIONS)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_consistent_and_sourced(name: str) -> None:
    target = load_target(name)
    assert isinstance(target, Target)
    assert target.name == name
    assert target.sources
    backend = registry.load_backend(target.backend)
    assert target.precision in backend.precisions
    if target.scheme is not None:
        rows = [row for row in capability.TABLE if row.backend == target.backend]
        assert any(target.scheme in row.schemes for row in rows)
    if target.backend in ("tensorrt", "tensorrt_rtx"):
        assert target.scheme == "s8a8w"
        assert target.match.gpu or target.match.board
    if target.status == "measured":
        assert any("measured" in source for source in target.sources)


def test_the_plain_cpu_targets_leave_the_scheme_to_the_machine() -> None:
    for name in ("onnxruntime", "openvino"):
        target = load_target(name)
        assert (target.backend, target.scheme) == (name, None)
        assert target.match == Target(schema=1, title="t", backend="b").match


def test_a_device_with_another_cpu_states_its_scheme() -> None:
    """Compression happens elsewhere, so "what this machine prefers" would be about the wrong machine."""
    for name in TARGETS:
        target = load_target(name)
        if target.match.machine or target.match.cpu or target.match.board:
            assert target.scheme is not None


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_a_calibration_recipe_loads(name: str) -> None:
    recipe = load_calibration(name)
    assert isinstance(recipe, CalibrationRecipe)
    assert recipe.name == name


def test_calibration_recipes_grow_from_fast_to_thorough() -> None:
    fast, default, thorough = (load_calibration(name) for name in ("fast", "default", "thorough"))
    assert (fast.count, default.count, thorough.count) == (64, 300, 1000)
    assert default == CalibrationRecipe(schema=1, name="default")
    assert (default.selection, thorough.selection) == ("stratified", "diverse")


@pytest.mark.parametrize("kind", ["targets", "calibration"])
def test_the_readme_lists_exactly_what_is_shipped(kind: resources.Kind) -> None:
    text = (resources.folder(kind) / "README.md").read_text(encoding="utf-8")
    table = text[text.index("|---|") :]
    listed = re.findall(r"^\| `([^`]+)` \|", table[: table.index("\n\n")], flags=re.MULTILINE)
    assert sorted(listed) == resources.names(kind)


def test_the_targets_readme_states_each_status_as_it_is() -> None:
    text = (resources.folder("targets") / "README.md").read_text(encoding="utf-8")
    for name in TARGETS:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert row.rstrip().endswith(f"{load_target(name).status} |")
        assert all(key in text for key in Target.model_fields if key not in ("schema_", "name"))


def test_data_folders_hold_data_only() -> None:
    for kind in ("targets", "calibration"):
        suffixes = {path.suffix for path in resources.folder(kind).iterdir()}  # type: ignore[arg-type]
        assert suffixes <= {".toml", ".md"}
