"""The one-way wall: the device half and the core never need torch, and importing edgeopt loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "edgeopt"
CORE = {
    "__init__", "allotment", "api", "arrays", "classify", "compress_table", "config", "console", "cross_validation",
    "data_table", "environment", "errors", "files", "latency_goal", "metrics", "model_table", "nvidia",
    "picture_files", "pixels", "preprocess", "probability", "recipe_problems", "recipe_tables", "recipe_text",
    "records", "registry", "remote", "resources", "run", "schemes", "sets", "tables", "target_tables", "telemetry",
    "training_tables", "tune_space", "tune_table", "voting",
}  # fmt: skip
DEVICE = {"backends", "bench", "evaluate", "fit", "packaging", "predict", "report", "doctor"}
DEVICE_STAGES = {
    "__init__", "bench", "build", "build_plan", "built", "candidates", "engines", "foreign", "package", "predict",
    "report",
}  # fmt: skip
HOST = {"compress", "data", "export", "models", "torch_session", "train", "tuning"}
#: Functions of the core and the device half that call the host half where torch is installed, after looking whether.
DELIBERATE = {
    ("recipe_problems", "edgeopt.models.builders"),
    ("recipe_problems", "edgeopt.train.optimizer"),
    ("stages.build_plan", "edgeopt.stages.export"),
    ("stages.build_plan", "edgeopt.stages.mixing"),
    ("stages.bench", "edgeopt.stages.workspace"),
    ("stages.bench", "edgeopt.stages.explain"),
    ("stages.bench", "edgeopt.stages.voters"),
    ("stages.predict", "edgeopt.stages.voters"),
}
BASE = {"numpy", "PIL", "click", "rich", "pydantic", "jinja2", "tomli", "edgeopt"}


def _modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") or "__init__"


def _half(name: str) -> str:
    head, _, rest = name.partition(".")
    if head == "stages":
        return "device" if (rest or "__init__") in DEVICE_STAGES else "host"
    if head in CORE:
        return "core"
    if head in DEVICE:
        return "device"
    if head in HOST:
        return "host"
    assert head in ("cli", "pipeline", "__main__"), f"{name} belongs to no half: add it to a list in this test"
    return "top"


def _imports(path: Path, *, top_only: bool) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            elif top_only and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            visit(child)

    visit(tree)
    return found


def _target_half(imported: str) -> str | None:
    parts = imported.split(".")
    if parts[0] != "edgeopt" or len(parts) < 2:
        return None
    name = ".".join(parts[1:])
    while name and not ((ROOT / f"{name.replace('.', '/')}.py").is_file() or (ROOT / name.replace(".", "/")).is_dir()):
        name = name.rpartition(".")[0]
    return _half(name) if name else None


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_no_module_imports_across_the_wall(path: Path) -> None:
    name, half = _name(path), _half(_name(path))
    allowed = {"core": {"core"}, "device": {"core", "device"}, "host": {"core", "device", "host"}}.get(half)
    if allowed is None:
        return
    for imported in _imports(path, top_only=False):
        if any(name == module and imported.startswith(reference) for module, reference in DELIBERATE):
            continue
        target = _target_half(imported)
        assert target is None or target in allowed, f"{name} ({half} half) imports {imported} ({target} half)"


@pytest.mark.parametrize("path", [path for path in _modules() if _half(_name(path)) != "host"], ids=_name)
def test_outside_the_host_half_only_base_dependencies_load_at_import(path: Path) -> None:
    for imported in _imports(path, top_only=True):
        top = imported.split(".")[0]
        assert top in BASE or top in sys.stdlib_module_names, f"{_name(path)} imports {imported} at import time"


@pytest.mark.parametrize("arguments", [["--help"], ["finetune", "--help"], ["targets"], ["models"], ["show", "--help"]])
def test_light_commands_load_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom edgeopt.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'timm', 'nncf', 'onnx', 'onnxruntime', 'openvino', 'sklearn', 'tensorrt_rtx'}\n"
        "sys.stderr.write(','.join(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout
