"""Runs verbs on hostile runs in a process of its own, and prints what they opened, wrote, started and imported.

``python hostile_child.py WHOLE_RUN SCRATCH CANARY PICTURE EVERY``: every EVERY-th field of each record is made hostile.
CANARY is a folder outside the run that hostile paths point into.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
#: Events that change files: where their arguments have the paths, and the folder's descriptor when there is one.
_CHANGES: dict[str, tuple[tuple[int, ...], int | None]] = {
    "os.rename": ((0, 1), 2), "os.remove": ((0,), 1), "os.rmdir": ((0,), 1), "os.mkdir": ((0,), 2),
    "os.link": ((0, 1), 2), "os.symlink": ((1,), 2), "os.truncate": ((0,), None), "os.chmod": ((0,), 2),
    "os.chown": ((0,), 3), "os.utime": ((0,), 3), "shutil.rmtree": ((0,), None), "shutil.move": ((0, 1), None),
    "shutil.copyfile": ((1,), None),
}  # fmt: skip
_RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork")


class Watch:
    """An audit hook that notes what leaves the folders it was given."""

    def __init__(self, run: Path, canary: Path) -> None:
        self.run, self.canary = os.path.realpath(run), os.path.realpath(canary)
        self.allowed = (self.run, os.path.realpath(tempfile.gettempdir()), "/dev/null")
        self.notes: dict[str, set[str]] = {"written": set(), "canary": set(), "started": set(), "executed": set()}
        self.on = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Called by Python for every audited event."""
        if not self.on:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & _WRITING) if mode is None else any(letter in mode for letter in "wax+")
            self._note(path, writes=writes)
        elif event in _CHANGES:
            positions, descriptor = _CHANGES[event]
            if descriptor is not None and arguments[descriptor] >= 0:
                return  # inside shutil.rmtree, which has an event of its own
            for position in positions:
                self._note(arguments[position], writes=True)
        elif event in _RUNS:
            command = arguments[0] if arguments else ""
            self.notes["started"].add(Path(os.fsdecode(command) if command else event).name)
        elif event == "exec":
            self._note_code(getattr(arguments[0], "co_filename", ""))
        elif event in ("import", "pickle.find_class", "ctypes.dlopen"):
            self._note_code(str(arguments[1] or "") if event == "import" else f"{event} {arguments}")

    def _note(self, path: Any, *, writes: bool) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return  # a descriptor that was opened before
        real = os.path.realpath(os.fsdecode(path))
        if real.startswith(self.canary):
            self.notes["canary"].add(real)
        if writes and not real.startswith(self.allowed):
            self.notes["written"].add(real)

    def _note_code(self, origin: str) -> None:
        if origin.startswith((self.run, self.canary, "pickle.")):
            self.notes["executed"].add(origin)


def _peak_mib() -> int:
    """Largest resident size of this program; ``ru_maxrss`` would include what forked it."""
    if not sys.platform.startswith("linux"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**20
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) // 2**10


def main() -> None:
    """See the module's docstring."""
    whole, scratch, canary, picture = (Path(argument) for argument in sys.argv[1:5])
    every = int(sys.argv[5])
    # Temporary files are allowed nowhere near the canary.
    tempfile.tempdir = str(scratch / "temporary")
    Path(tempfile.tempdir).mkdir(parents=True)
    run = scratch / "run"
    watch = Watch(run, canary)
    sys.addaudithook(watch)
    import hostile

    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
    hostile.copied(whole, run)
    for verb in (
        "show",
        "report",
        "measure",
        "predict",
        "bench",
        "candidates",
    ):  # so that edgeopt's own modules are all imported
        hostile.outcome(verb, run, picture)
    up = os.path.relpath(canary / "secret.json", run)
    values = {
        "traversal": up,
        "absolute": str(canary / "secret.json"),
        "folder": str(canary),
        "module": "secret:attribute",
        **{name: hostile.VALUES[name] for name in ("huge", "long", "nested", "63 bits")},
    }
    cases = 0
    for name, verbs in hostile.RECORDS.items():
        record = json.loads((whole / name).read_text())
        for number, path in enumerate(hostile.fields(record)):
            if number % every:
                continue
            for index, value in enumerate(values.values()):
                verb = [*verbs][(number + index) % len(verbs)]
                hostile.copied(whole, run)
                hostile.dump(run / name, hostile.planted(record, path, value))
                watch.on = True
                hostile.outcome(verb, run, picture)
                watch.on = False
                cases += 1
    notes: dict[str, Any] = {kind: sorted(found) for kind, found in watch.notes.items()}
    print(json.dumps({**notes, "cases": cases, "peak_mib": _peak_mib(), "torch": "torch" in sys.modules}))


if __name__ == "__main__":
    main()
