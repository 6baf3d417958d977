"""An ARM64 machine that runs here: Debian's Python and the runtimes' own ARM wheels, under qemu's user emulation.

    python tests/arm64.py FOLDER COMMAND...        runs `edgeopt COMMAND...` as a Cortex-A76 would

Nothing is installed into the system and no root is needed: packages are downloaded and unpacked into FOLDER once. It
says what the device half answers on ARM64, not how fast it is. Needs ``qemu-user-static`` and ``debootstrap``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Newer ones crash on import under qemu 7.2; 1.23 is also what pip has for Python 3.10, that of JetPack 6.
RUNTIME = "onnxruntime==1.23.2"
BASE = ("numpy<2.4", "pillow", "click", "rich", "pydantic", "jinja2")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
TOOLS = ("qemu-aarch64-static", "debootstrap", "dpkg")


def missing() -> list[str]:
    """The tools that are not installed here."""
    return [tool for tool in TOOLS if shutil.which(tool, path="/usr/bin:/usr/sbin:/bin:/sbin") is None]


def prepare(folder: Path) -> Path:
    """Download and unpack the machine into ``folder``, once; raises CalledProcessError without a network."""
    if (folder / "ready").is_file():
        return folder
    system, wheels, site = folder / "system", folder / "wheels", folder / "site"
    for one in (system, wheels, site):
        shutil.rmtree(one, ignore_errors=True)
        one.mkdir(parents=True)
    include = "--include=python3.11,libgomp1,libstdc++6"
    typed = ["debootstrap", "--arch=arm64", "--variant=minbase", include, "--download-only", "bookworm", str(system)]
    subprocess.run(typed, check=True, capture_output=True)
    for package in sorted((system / "var/cache/apt/archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(system)], check=True)
    typed = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version", "3.11"]
    typed += [word for name in PLATFORMS for word in ("--platform", f"{name}_aarch64")]
    subprocess.run([*typed, "--dest", str(wheels), *BASE, RUNTIME], check=True, capture_output=True)
    for wheel in wheels.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(site)
    (folder / "ready").write_text("")
    return folder


def run(folder: Path, *command: str, cpu: str = "cortex-a76") -> subprocess.CompletedProcess[str]:
    """``edgeopt COMMAND...`` of this checkout as an ARM64 machine runs it; ``cpu`` is qemu's name of the core."""
    system = folder / "system"
    emulator = ["qemu-aarch64-static", "-cpu", cpu, "-L", str(system), "-E", f"PYTHONPATH={folder / 'site'}:{ROOT}"]
    emulator += ["-E", "OMP_NUM_THREADS=1", str(system / "usr/bin/python3.11"), "-m", "edgeopt"]
    return subprocess.run([*emulator, *command], capture_output=True, text=True, check=False)


if __name__ == "__main__":
    if missing():
        sys.exit(f"not installed: {', '.join(missing())}; apt-get install qemu-user-static debootstrap")
    done = run(prepare(Path(sys.argv[1]).absolute()), *sys.argv[2:])
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    sys.exit(done.returncode)
