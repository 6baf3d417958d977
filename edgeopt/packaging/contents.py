"""The parts of a package that do not depend on a run: code shipped as it is, requirements, the C++ example."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from edgeopt.errors import RunError
from edgeopt.files import make_folder, read_text, write_text
from edgeopt.preprocess import PreprocessSpec, normalization

#: Modules that ``predict.py`` stands on: numpy, Pillow and each other, nothing else. They lie in ``edgeopt_pictures``.
MODULES = ("arrays", "classify", "errors", "files", "picture_files", "pixels", "telemetry")
FOLDER = "edgeopt_pictures"
_SOURCE = Path(__file__).resolve().parent


def write_code(folder: Path) -> None:
    """``predict.py`` and the modules it stands on, verbatim but for the name of their package."""
    make_folder(folder / FOLDER)
    write_text(folder / FOLDER / "__init__.py", '"""Parts of edgeopt, as they were when this package was made."""\n')
    for name in MODULES:
        write_text(folder / FOLDER / f"{name}.py", _renamed(_SOURCE.parent / f"{name}.py"))
    write_text(folder / "predict.py", _renamed(_SOURCE / "standalone.py"))


def _renamed(path: Path) -> str:
    return re.sub(r"^from edgeopt\.", f"from {FOLDER}.", read_text(path), flags=re.MULTILINE)


def requirements(extra: str) -> str:
    """``requirements.txt``: numpy, Pillow and the runtime that ``extra`` of edgeopt brings, by edgeopt's own bounds."""
    stated = [line.replace(" ", "") for line in requires("edgeopt") or ()]
    wanted = [line for line in stated if re.match(r"(numpy|pillow)\b", line, re.IGNORECASE) and ";" not in line]
    marker = re.compile(rf";extra==['\"]{re.escape(extra)}['\"]$")
    wanted += [marker.sub("", line) for line in stated if marker.search(line)]
    if len(wanted) < 3:
        raise RunError("the metadata of the installed edgeopt do not say what it needs", fix="install edgeopt again")
    return "".join(f"{line}\n" for line in wanted)


def write_cpp(folder: Path, manifest: Mapping[str, Any], spec: PreprocessSpec) -> None:
    """The C++ example, with ``model.hpp`` for what it must know of this engine."""
    make_folder(folder)
    for name in ("CMakeLists.txt", "main.cpp"):
        write_text(folder / name, read_text(_SOURCE / "cpp" / name))
    scale, offset = normalization(spec)
    session = manifest["session"]
    counted = session["threads"] and str(session["device"]).startswith(("CPU", "AUTO"))  # others refuse to be told
    threads = {"INFERENCE_NUM_THREADS": str(session["threads"])} if counted else {}
    # JSON's strings are C++'s as well: a stranger's record must not become code.
    stated = {**session["properties"], **threads}
    properties = ", ".join(f"{{{json.dumps(name)}, {json.dumps(value)}}}" for name, value in stated.items())
    write_text(
        folder / "model.hpp",
        "// Written by edgeopt package: what main.cpp must know of the engine.\n#pragma once\n\n"
        "#include <cstddef>\n#include <map>\n#include <string>\n\nnamespace model {\n"
        f"const std::string engine = {json.dumps(manifest['engine'])};\n"
        f"const std::string device = {json.dumps(session['device'])};\n"
        f"const std::map<std::string, std::string> properties = {{{properties}}};\n"
        f"constexpr std::size_t batch = {manifest['batch']};\n"
        f"constexpr bool embedded_preprocessing = {json.dumps(manifest['embedded_preprocessing'])};\n"
        f"constexpr std::size_t height = {spec.size[0]}, width = {spec.size[1]};\n"
        f"constexpr float scale[3] = {{{_floats(scale)}}}, offset[3] = {{{_floats(offset)}}};\n"
        f"constexpr double temperature = {manifest['temperature']!r};\n"
        "}  // namespace model\n",
    )


def _floats(values: Iterable[Any]) -> str:
    """float32 values so that C++ reads the same ones."""
    return ", ".join(f"{float(value):.9e}F" for value in values)
