"""Another machine over ssh: a run's needed parts go there, a verb runs, and its records come back.

OpenSSH's own client does the talking, in batch mode: host keys, agents and ``~/.ssh/config`` count as they do when one
types ``ssh``, unknown hosts are refused, and no password is ever asked for. ``EDGEOPT_SSH`` names another client or
adds options, as ``GIT_SSH_COMMAND`` does for git. Files are compared by their hashes, so that what a dropped connection
left behind is not sent again; the verb itself runs detached, and goes on while nobody listens.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shlex
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from edgeopt.console import Console, Silent
from edgeopt.errors import RemoteError
from edgeopt.files import make_folder, printable, sha256, write_bytes
from edgeopt.resources import is_file_name
from edgeopt.run import Run

_HOME = "edgeopt-runs"  # in the user's home, where the URL states no folder
_PAUSES = (1, 2, 4, 8, 16)  # seconds before each further attempt
_CHUNK = 16 * 2**20
_LOST = 255  # what ssh exits with when the connection, and not the command, failed
#: Trying again would not help.
_REFUSED = ("Permission denied", "Host key verification failed", "Could not resolve", "REMOTE HOST IDENTIFICATION")
#: Of a run, what a device builds, measures and predicts from.
_NEEDED = (
    "run.json", "budget.json", "data/labels.txt", "data/sets/**/*", "data/samples/*", "host/*/stage.json",
    "host/*/model.*", "host/*/architecture.json", "host/*/preprocess.json", "host/*/export/*", "host/*/candidates-*/*",
    "device/pytorch/**/*.json",
)  # fmt: skip
_HOST = re.compile(r"(?:^|@)\[?([^@\[\]]*?)\]?(?::\d*)?$")  # of a URL's netloc, as it was typed
_PLAIN = re.compile(r"device/[\w@.+-]+(/[\w@.+-]+)+")


@dataclass(frozen=True)
class Host:
    """Where ``ssh://[user@]host[:port][/folder]`` leads; ``folder`` is in the user's home unless it is stated.

    The host keeps its case, for it may be an alias of ``~/.ssh/config``; ``/~/folder`` is in the user's home.
    """

    destination: str
    port: int | None
    folder: str

    @classmethod
    def parse(cls, url: str) -> Host:
        """Raises RemoteError for what is no such URL, passwords included."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        user, (name,) = parts.username or "", _HOST.findall(parts.netloc) or ("",)
        folder = unquote(parts.path).removeprefix("/~/").rstrip("/")
        sound = re.fullmatch(r"[\w.:-]+", name) and re.fullmatch(r"[\w.-]*", user) and folder.isprintable()
        if parts.scheme != "ssh" or not sound or (name + user).startswith("-") or user.startswith("-"):
            raise RemoteError(
                f"{printable(url)} is no ssh://user@host", fix="write it so: --on ssh://pi@raspberrypi.local"
            )
        if parts.password is not None or parts.query or parts.fragment:
            raise RemoteError("passwords do not belong into a URL", fix="set up a key: ssh-copy-id user@host")
        return cls(f"{user}@{name}" if user else name, port, folder or _HOME)


def run_on(
    run: Run, url: str, arguments: Sequence[str], *, ok: Sequence[int] = (0,), console: Console | None = None
) -> str:
    """Run ``edgeopt ARGUMENTS --run ...`` on the machine at ``url``, on a copy of ``run``; returns its standard output.

    Files that ``--target`` names are copied there. What is new under ``device/`` there is brought back to ``run``. Its
    messages are said here. Raises RemoteError when the machine cannot be reached, has no edgeopt, or the command exits
    with a code that is not ``ok``.
    """
    console = console or Silent()
    machine = _Machine(Host.parse(url), console)
    command = machine.edgeopt()
    folder = f"{machine.host.folder}/{run.name}-{str(run.info['id'])[:8]}"
    with console.task(f"copying {run.name} to {machine.host.destination}"):
        machine.send(run.path, folder, _needed(run.path))
    there = _with_targets_sent(machine, arguments, f"{folder}-targets")
    code, out, said = machine.detached([command, *there, "--run", folder])
    for line in said.splitlines():
        console.say(f"{machine.host.destination}: {line}")
    with run.lock():
        machine.fetch(folder, run.path)
    if code not in ok:
        last = next((line for line in said.splitlines() if line.startswith("edgeopt: ")), f"exit code {code}")
        raise RemoteError(
            f"{machine.host.destination}: {printable(last.removeprefix('edgeopt: '))}",
            fix="the lines above are that machine's own; mend it there, then type the same again",
        )
    return out


def _with_targets_sent(machine: _Machine, arguments: Sequence[str], folder: str) -> list[str]:
    """``arguments`` with the paths there of the target files they name, which are copied into ``folder``."""
    sent = list(arguments)
    for index, (option, value) in enumerate(pairwise(arguments)):
        if option == "--target" and is_file_name(value):
            path = Path(value)
            machine.send(path.parent, folder, [path.name])
            sent[index + 1] = f"{folder}/{path.name}"
    return sent


def _needed(root: Path) -> list[str]:
    found = {path for pattern in _NEEDED for path in root.glob(pattern) if path.is_file()}
    names = sorted(path.relative_to(root).as_posix() for path in found)
    return [name for name in names if not any(part.startswith(".") for part in PurePosixPath(name).parts)]


class _Machine:
    """A machine at the other end of ssh. Every call may be repeated, and is when the connection is lost."""

    def __init__(self, host: Host, console: Console) -> None:
        self.host, self.console = host, console
        port = ["-p", str(host.port)] if host.port else []
        options = [
            "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15",
            "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3",
        ]  # fmt: skip
        self._ssh = [*shlex.split(os.environ.get("EDGEOPT_SSH", "ssh")), *options, *port, "--", host.destination]

    def call(self, script: str, *, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a shell script there, again while the connection is lost; raises RemoteError when it stays so."""
        for pause in (*_PAUSES, None):
            try:
                done = subprocess.run(
                    [*self._ssh, f"sh -c {shlex.quote(script)}"], input=given, capture_output=True, check=False
                )
            except FileNotFoundError:
                raise RemoteError(f"{self._ssh[0]} is not installed here", fix="install OpenSSH's client") from None
            if done.returncode != _LOST:
                return done
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["the connection was lost"]
            if pause is None or any(word in line for line in lines for word in _REFUSED):
                break
            self.console.say(f"{self.host.destination}: {printable(lines[-1])}; trying again in {pause} s")
            time.sleep(pause)
        raise RemoteError(
            f"{self.host.destination} cannot be reached: {printable(lines[-1])}",
            fix=f"see that this works without a question: ssh {self.host.destination} true",
        )

    def checked(self, script: str, *, given: bytes = b"") -> bytes:
        """Standard output of a script that must succeed."""
        done = self.call(script, given=given)
        if done.returncode:
            why = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
            raise RemoteError(f"{self.host.destination}: {printable(why[-1])}", fix="mend that on the machine")
        return done.stdout

    def edgeopt(self) -> str:
        """The command found there: in the folder's own ``venv``, in ``~/.edgeopt``, else on the path."""
        own = shlex.quote(f"{self.host.folder}/venv/bin/edgeopt")
        places = f'"$HOME"/{own}' if not self.host.folder.startswith("/") else own
        done = self.call(
            f'for e in {places} "$HOME/.edgeopt/bin/edgeopt" "$(command -v edgeopt)"; do '
            'if [ -x "$e" ]; then "$e" --version >/dev/null && echo "$e" && exit 0; fi; done; exit 3'
        )
        if done.returncode:
            raise RemoteError(
                f"{self.host.destination} has no edgeopt",
                fix=f"ssh {self.host.destination} 'python3 -m venv ~/.edgeopt && ~/.edgeopt/bin/pip install "
                '"edgeopt[onnxruntime]"\'',
            )
        found = done.stdout.decode(errors="replace").strip().splitlines()
        if not found:
            raise RemoteError(
                f"the shell of {self.host.destination} answers nothing, as where one command is forced on a key",
                fix=f"see that this prints yes: ssh {self.host.destination} echo yes",
            )
        if len(found) != 1:
            raise RemoteError(
                f"the shell of {self.host.destination} prints when it should not: {printable(found[0])}",
                fix="see what it prints: ssh HOST true; in its ~/.bashrc, print only where [ -t 1 ]",
            )
        return found[0]

    def hashes(self, folder: str) -> dict[str, str]:
        """SHA-256 of every file in a folder there, by its path; empty when there is none."""
        where = shlex.quote(folder)
        listed = self.checked(f"mkdir -p {where} && cd {where} && find . -type f -exec sha256sum {{}} +").decode()
        return {line[66:].removeprefix("./"): line[:64] for line in listed.splitlines()}

    def send(self, root: Path, folder: str, names: Sequence[str]) -> None:
        """Copy files of ``root`` that are not there yet, in parts, so that a lost connection loses one part."""
        there = self.hashes(folder)
        missing = [name for name in names if there.get(name) != sha256(root / name)]
        for part in _parts(root, missing):
            self.checked(f"tar -C {shlex.quote(folder)} -xf -", given=_tar(root, part))

    def detached(self, command: Sequence[str]) -> tuple[int, str, str]:
        """Run ``command`` so that it outlives the connection; returns its exit code, output and messages."""
        job = f"{self.host.folder}/jobs/{uuid4().hex[:12]}"
        here = shlex.quote(job)
        typed = (
            f"{shlex.join(command)} >{here}/out 2>{here}/err; echo $? >{here}/code.new; mv {here}/code.new {here}/code"
        )
        # Made once, however often the connection is lost: only who makes the folder starts the command.
        start = f"setsid nohup sh -c {shlex.quote(f'echo $$ >{here}/pid; {typed}')} </dev/null >/dev/null 2>&1 &"
        alive = f'kill -0 "$(cat {here}/pid 2>/dev/null)" 2>/dev/null'
        self.checked(f"mkdir -p {shlex.quote(self.host.folder)}/jobs; mkdir {here} 2>/dev/null || exit 0; {start}")
        try:
            wait = f"for i in 1 2 3 4 5; do [ -f {here}/pid ] || sleep 1; done; "
            wait += f"while [ ! -f {here}/code ] && {alive}; do sleep 0.3; done; cat {here}/code"
            code = self.checked(f"{wait} 2>/dev/null || echo gone").decode().strip()
            out, said = (self.checked(f"cat {here}/{name}").decode(errors="replace") for name in ("out", "err"))
        except KeyboardInterrupt:
            self.call(f'kill -s TERM -- "-$(cat {here}/pid)"')  # dash reads no -TERM beside --
            raise
        self.checked(f"rm -rf {here}")
        if not code.isascii() or not code.isdigit():
            raise RemoteError(
                f"{self.host.destination}: the command ended without a word, as when a machine is switched off",
                fix="see that the machine is well, then type the same again",
            )
        return int(code), out, said

    def fetch(self, folder: str, root: Path) -> list[str]:
        """Bring what differs under ``device/`` there into ``root``, commit records last; returns the names."""
        there = {name: digest for name, digest in self.hashes(folder).items() if _is_ours(name)}
        changed = [name for name, digest in there.items() if _digest(root / name) != digest]
        changed.sort(key=lambda name: (name.endswith("/build.json"), name))
        for start in range(0, len(changed), 64):
            names = changed[start : start + 64]
            listed = "".join(f"{name}\n" for name in names).encode()
            packed = self.checked(f"cd {shlex.quote(folder)} && tar -cf - -T -", given=listed)
            for name, data in _unpacked(packed, names):
                if hashlib.sha256(data).hexdigest() != there[name]:
                    raise RemoteError(f"{name} changed while it was copied", fix="type the same again")
                make_folder((root / name).parent)
                write_bytes(root / name, data)
        return changed


def _unpacked(packed: bytes, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """What a tar from there holds of ``names``; nothing of one that is missing or no file."""
    try:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            for name in names:
                content = archive.extractfile(name)
                yield name, b"" if content is None else content.read()
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise RemoteError(
            f"what the machine sent is not what it listed: {printable(str(error))}", fix="type the same again"
        ) from None


def _is_ours(name: str) -> bool:
    """Whether a file there is one that a device makes, by a name that stays inside the run."""
    return bool(_PLAIN.fullmatch(name)) and not any(part.startswith(".") for part in name.split("/"))


def _digest(path: Path) -> str:
    return sha256(path) if path.is_file() else ""


def _parts(root: Path, names: Sequence[str]) -> Iterator[list[str]]:
    """The names in parts of some megabytes; a larger file is a part of its own."""
    part: list[str] = []
    size = 0
    for name in names:
        bytes_ = (root / name).stat().st_size
        if part and size + bytes_ > _CHUNK:
            yield part
            part, size = [], 0
        part.append(name)
        size += bytes_
    if part:
        yield part


def _tar(root: Path, names: Sequence[str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in names:
            archive.add(root / name, arcname=name, recursive=False)
    return packed.getvalue()
