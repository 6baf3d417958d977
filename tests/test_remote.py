"""Another machine over ssh: a real sshd on the loopback, with a folder, keys and an edgeopt of its own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from small_run import write_small_run

from edgeopt import Run, remote
from edgeopt.cli import bench_cmd, build_cmd, eval_cmd
from edgeopt.console import Silent
from edgeopt.errors import RemoteError
from edgeopt.remote import Host, run_on
from edgeopt.stages import export as export_stage
from edgeopt.stages import mixing

ROOT = Path(__file__).resolve().parent.parent
SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True)
class Device:
    """The other machine: its sshd's process, its URL, and its folder as seen from here."""

    sshd: int
    url: str
    folder: Path
    known_hosts: Path

    def drop(self) -> int:
        """Cut every connection there is, as a network would; returns how many."""
        cut = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == self.sshd:
                os.kill(int(stat.parent.name), signal.SIGKILL)
                cut += 1
        return cut


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    if SSHD is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no sshd on this machine; apt-get install openssh-server")
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    for name in ("host", "user"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)]
        subprocess.run(make, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (keys / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {keys}/host\nPidFile {keys}/pid\nStrictModes no\nUsePAM no\n"
        f"AuthorizedKeysFile {keys}/user.pub\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    (keys / "known_hosts").write_text(f"[127.0.0.1]:{port} {(keys / 'host.pub').read_text()}")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd gives up its rights
    with (keys / "log").open("wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(keys / "sshd_config")], stderr=log)
    client = ["ssh", "-F", "none", "-i", str(keys / "user"), "-o", f"UserKnownHostsFile={keys}/known_hosts"]
    client += ["-o", "GlobalKnownHostsFile=none", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR"]
    monkeypatch.setenv("EDGEOPT_SSH", shlex.join(client))
    folder = tmp_path / "device"
    folder.mkdir()
    try:
        for _ in range(100):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            pytest.skip(f"sshd does not start here: {(keys / 'log').read_text()[-300:]}")
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        yield Device(server.pid, f"ssh://{user}@127.0.0.1:{port}{folder}", folder, keys / "known_hosts")
    finally:
        server.terminate()
        server.wait(10)


def _install(device: Device, before: str = "") -> None:
    """An edgeopt there: this checkout's, by a command of the device's own folder."""
    command = device.folder / "venv/bin/edgeopt"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\n{before}\nPYTHONPATH={ROOT} exec {sys.executable} -m edgeopt "$@"\n')
    command.chmod(0o755)


def _unbuilt(path: Path) -> Run:
    """A run with its exports and no engine."""
    run = write_small_run(path)
    shutil.rmtree(run.path / "device")
    return run


@pytest.mark.slow
def test_build_eval_and_bench_on_a_device_with_an_environment_of_its_own(device: Device, tmp_path: Path) -> None:
    """A venv without torch, of the wheel and ONNX Runtime; the records that come back make the report here."""
    dist = tmp_path / "dist"
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "-w", "--outdir", str(dist), str(ROOT)],
                   check=True, capture_output=True)  # fmt: skip
    venv.create(device.folder / "venv", with_pip=True)
    pip = [str(device.folder / "venv/bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"edgeopt[onnxruntime] @ file://{next(dist.glob('*.whl'))}"], check=True)
    run = _unbuilt(tmp_path / "run")
    on = ["--on", device.url, "--run", str(run.path)]
    done = CliRunner().invoke(build_cmd.command, ["--target", "onnxruntime", *on, "--json"], catch_exceptions=False)
    assert [one["parity"]["ok"] for one in json.loads(done.stdout)] == [True, True]
    assert {key.split("/")[1] for key in run.engines()} == {"float", "int8-u8a7w"}
    done = CliRunner().invoke(eval_cmd.command, [*on, "--json"], catch_exceptions=False)
    judged = json.loads(done.stdout)
    assert judged["n"] == 20
    accuracy = json.loads((run.path / "device" / judged["engine"] / "accuracy.json").read_text())
    assert accuracy["top1"] == judged["top1"]
    done = CliRunner().invoke(bench_cmd.command, ["--seconds", "2", *on], catch_exceptions=False)
    latency = json.loads((run.path / "device" / judged["engine"] / "latency.json").read_text())
    assert latency["p50_ms"] > 0
    assert (run.path / "report" / "report.json").is_file()
    assert not list((device.folder / "jobs").iterdir())


@pytest.mark.slow
def test_a_dropped_connection_resumes(device: Device, tmp_path: Path) -> None:
    """Cut while the verb runs there: it is started once, and its records come back by the next connection."""
    starts = device.folder / "starts"
    _install(device, before=f'case "$1" in build) echo started >>{starts}; sleep 3;; esac')
    run = _unbuilt(tmp_path / "run")
    cut: list[int] = []

    def network() -> None:
        for _ in range(600):
            if starts.is_file():
                time.sleep(0.5)
                cut.append(device.drop())
                return
            time.sleep(0.05)

    thread = threading.Thread(target=network)
    thread.start()
    out = run_on(run, device.url, ["build", "--target", "onnxruntime", "--json"])
    thread.join()
    assert cut
    assert cut[0] >= 1
    assert starts.read_text() == "started\n"
    assert [one["variant"] for one in json.loads(out)] == list(run.engines()[key]["variant"] for key in run.engines())
    sent = {path: path.stat().st_mtime_ns for path in device.folder.rglob("*.onnx") if "host" in path.parts}
    again = json.loads(run_on(run, device.url, ["build", "--target", "onnxruntime", "--json"]))
    assert [one["created"] for one in again] == [one["created"] for one in json.loads(out)]
    assert {path: path.stat().st_mtime_ns for path in sent} == sent  # nothing is copied twice


@pytest.mark.slow
def test_a_device_that_is_unknown_empty_or_unwilling_is_a_line(device: Device, tmp_path: Path) -> None:
    run = _unbuilt(tmp_path / "run")
    with pytest.raises(RemoteError, match="has no edgeopt") as refused:
        run_on(run, device.url, ["build", "--target", "onnxruntime"])
    assert "pip install" in str(refused.value.fix)
    _install(device)
    with pytest.raises(RemoteError, match='unknown name "onnxruntim"'):
        run_on(run, device.url, ["build", "--target", "onnxruntim"])
    device.known_hosts.write_text("")
    with pytest.raises(RemoteError, match="cannot be reached: Host key verification failed"):
        run_on(run, device.url, ["build", "--target", "onnxruntime"])


def test_a_target_file_is_copied_there_and_named_by_where_it_is_there(tmp_path: Path) -> None:
    """No machine: what would be sent is noted."""
    sent: list[tuple[Path, str, list[str]]] = []
    machine: Any = SimpleNamespace(send=lambda *what: sent.append(what))
    file = str(tmp_path / "my-board.toml")
    typed = ["build", "--json", "--target", file, "--target", "openvino", "--strict"]
    there = remote._with_targets_sent(machine, typed, "edgeopt-runs/flowers-1-targets")
    assert there == [
        *typed[:3], "edgeopt-runs/flowers-1-targets/my-board.toml", "--target", "openvino", "--strict"
    ]  # fmt: skip
    assert sent == [(tmp_path, "edgeopt-runs/flowers-1-targets", ["my-board.toml"])]


def test_layers_left_in_float_for_another_machine_are_exported_before_they_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a machine nor a model: the steps are noted in their order."""
    run, steps = _unbuilt(tmp_path / "run"), []
    variant = SimpleNamespace(name="int8-u8a7w-mixed")
    monkeypatch.setattr(mixing, "mix", lambda *_, **asked: steps.append(("mix", asked["variants"])) or [variant])
    monkeypatch.setattr(export_stage, "export", lambda *_, **asked: steps.append(("export", asked["variants"])) or {})
    monkeypatch.setattr(remote, "run_on", lambda _run, _url, typed, **_: steps.append(("send", typed)) or "[]")
    typed = ["--target", "onnxruntime", "--variant", "int8-u8a7w", "--float-layer", "fc", "--on", "ssh://pi@pi"]
    CliRunner().invoke(build_cmd.command, [*typed, "--run", str(run.path)], catch_exceptions=False)
    assert [name for name, _ in steps] == ["mix", "export", "send"]
    assert [list(asked) for name, asked in steps if name != "send"] == [["int8-u8a7w"], ["int8-u8a7w-mixed"]]
    assert "int8-u8a7w-mixed" in steps[-1][1]


@pytest.mark.parametrize(
    "url",
    [
        "http://pi@board", "ssh://", "ssh://-oProxyCommand=x", "ssh://pi:secret@board", "ssh://board:none", "board",
        "ssh://board/a%0ab",
    ],
)  # fmt: skip
def test_what_is_no_url_of_ssh_is_refused(url: str) -> None:
    with pytest.raises(RemoteError):
        Host.parse(url)


def test_a_url_says_who_where_and_in_which_folder() -> None:
    assert Host.parse("ssh://pi@board.local:2222/srv/edge/") == Host("pi@board.local", 2222, "/srv/edge")
    assert Host.parse("ssh://board") == Host("board", None, "edgeopt-runs")
    assert Host.parse("ssh://MyPi").destination == "MyPi", "an alias of ~/.ssh/config is matched by its case"
    assert Host.parse("ssh://pi@[fe80::1]:2222/a") == Host("pi@fe80::1", 2222, "/a")
    assert Host.parse("ssh://pi@board/~/my%20runs/") == Host("pi@board", None, "my runs")
    assert Host.parse("ssh://pi@board/srv/my runs").folder == "/srv/my runs"


def _answering(monkeypatch: pytest.MonkeyPatch, *answers: bytes) -> remote._Machine:
    """No machine: its answers, one a call, the last for all that follow."""
    left = list(answers)
    machine = remote._Machine(Host("pi", None, "runs"), Silent())
    done = lambda *_, **__: subprocess.CompletedProcess([], 0, left.pop(0) if len(left) > 1 else left[0], b"")  # noqa: E731
    monkeypatch.setattr(machine, "call", done)
    return machine


def test_a_shell_that_prints_at_login_is_named_before_its_words_are_taken_for_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(RemoteError, match="prints when it should not: Welcome to pi"):
        _answering(monkeypatch, b"Welcome to pi\n/home/pi/.edgeopt/bin/edgeopt\n").edgeopt()
    with pytest.raises(RemoteError, match="the shell of pi answers nothing"):
        _answering(monkeypatch, b"").edgeopt()
    assert _answering(monkeypatch, b"/home/pi/.edgeopt/bin/edgeopt\n").edgeopt() == "/home/pi/.edgeopt/bin/edgeopt"


@pytest.mark.parametrize("code", [b"gone\n", b"", b"0\nnoise\n"])
def test_a_command_that_ends_without_a_word_is_a_line_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, code: bytes
) -> None:
    with pytest.raises(RemoteError, match="pi: the command ended without a word"):
        _answering(monkeypatch, b"", code, b"").detached(["edgeopt", "build"])


@pytest.mark.parametrize("sent", [b"no tar", b"", bytes(1024)])
def test_what_a_machine_sends_that_is_no_archive_of_what_it_listed_is_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sent: bytes
) -> None:
    listed = f"{'0' * 64}  ./device/onnxruntime/int8/build.json\n".encode()
    with pytest.raises(RemoteError, match="what the machine sent is not what it listed"):
        _answering(monkeypatch, listed, sent).fetch("runs/a", tmp_path)
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class Near:
    """A machine that is a folder here: its home, a script that runs before what it is asked, all that it was asked."""

    home: Path
    first: Path
    calls: Path

    def write(self, name: str, text: str) -> None:
        """A file of its home."""
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Near:
    """No sshd, but everything at either end of it: what stands for ssh runs the command it is given, in a folder."""
    home = tmp_path / "home"
    home.mkdir()
    ssh = tmp_path / "ssh"
    ssh.write_text(
        f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\nfor command; do :; done\ncd {home}\n'
        f'if [ -f {tmp_path}/first ]; then . {tmp_path}/first; fi\nexec sh -c "$command"\n'
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("EDGEOPT_SSH", str(ssh))
    monkeypatch.setattr(remote, "_PAUSES", (0, 0))
    return Near(home, tmp_path / "first", tmp_path / "calls")


def test_what_a_device_made_is_brought_back_records_last_and_nothing_else(near: Near, tmp_path: Path) -> None:
    made = ["device/pi/int8/build.json", "device/pi/int8/engine.onnx", "device/pi/int8/z/layers.json"]
    others = ["host/float/stage.json", "device/pi/.ssh/authorized_keys", "device/pi/a b.json", "run.json"]
    for name in (*made, *others):
        near.write(f"runs/a/{name}", name)
    machine = remote._Machine(Host("pi", None, "runs"), Silent())
    root = tmp_path / "root"
    assert machine.fetch("runs/a", root) == [made[1], made[2], made[0]], "without its record an engine is not there"
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()) == sorted(made)
    assert all((root / name).read_text() == name for name in made)
    assert machine.fetch("runs/a", root) == []
    assert all("-o BatchMode=yes" in line for line in near.calls.read_text().splitlines()), "nobody is asked anything"


def test_a_file_that_changes_while_it_is_copied_is_not_taken_for_what_was_listed(near: Near, tmp_path: Path) -> None:
    near.write("runs/a/device/pi/int8/engine.onnx", "half of an eng")
    near.first.write_text('case "$command" in *"tar -cf"*) echo ine >>runs/a/device/pi/int8/engine.onnx;; esac\n')
    machine = remote._Machine(Host("pi", None, "runs"), Silent())
    with pytest.raises(RemoteError, match=r"engine\.onnx changed while it was copied"):
        machine.fetch("runs/a", tmp_path / "root")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("said", "calls"), [("Connection reset by peer", 2), ("pi@pi: Permission denied (publickey).", 1)]
)
def test_a_lost_connection_is_tried_again_and_a_refusal_is_not(near: Near, said: str, calls: int) -> None:
    near.first.write_text(f"rm {near.first}\necho '{said}' >&2\nexit 255\n")
    machine = remote._Machine(Host("pi", None, "runs"), Silent())
    if calls == 1:
        with pytest.raises(RemoteError, match="pi cannot be reached: pi@pi: Permission denied") as caught:
            machine.checked("echo done")
        assert "ssh pi true" in str(caught.value.fix)
    else:
        assert machine.checked("echo done") == b"done\n"
    assert len(near.calls.read_text().splitlines()) == calls


def test_only_what_is_not_there_yet_is_sent_and_the_command_is_run_once(near: Near, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("a.txt", "b.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(name)
    near.write("runs/a/a.txt", "a.txt")
    near.write("runs/a/b.txt", "b.t")
    before = (near.home / "runs/a/a.txt").stat().st_mtime_ns
    machine = remote._Machine(Host("pi", None, "runs"), Silent())
    machine.send(root, "runs/a", ["a.txt", "b.txt"])
    assert (near.home / "runs/a/a.txt").stat().st_mtime_ns == before
    assert (near.home / "runs/a/b.txt").read_text() == "b.txt"
    typed = ["sh", "-c", "echo one >>starts; echo out; echo said >&2; exit 3"]
    assert machine.detached(typed) == (3, "out\n", "said\n")
    assert (near.home / "starts").read_text() == "one\n"
    assert not list((near.home / "runs/jobs").iterdir())


def test_a_command_whose_start_was_not_heard_of_is_not_started_again(near: Near, tmp_path: Path) -> None:
    """The connection is lost after the command was started, before that could be told."""
    once = tmp_path / "once"
    near.first.write_text(
        f'case "$command" in *setsid*) if [ ! -f {once} ]; then touch {once}; sh -c "$command"; exit 255; fi;; esac\n'
    )
    machine = remote._Machine(Host("pi", None, "runs"), Silent())
    assert machine.detached(["sh", "-c", "echo one >>starts; sleep 1; echo out"]) == (0, "out\n", "")
    assert (near.home / "starts").read_text() == "one\n"


@pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")  # the ssh that waited is killed, not waited for
def test_ctrl_c_here_ends_the_command_there(near: Near) -> None:
    """Its shell is this machine's /bin/sh: of Debian and its kin that is dash, whose kill reads fewer forms."""
    machine = remote._Machine(Host("pi", None, "runs"), Silent())

    def interrupt() -> None:
        for _ in range(600):
            if (near.home / "pid").is_file():
                break
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        machine.detached(["sh", "-c", "echo $$ >pid.new; mv pid.new pid; exec sleep 60"])
    thread.join()
    there = Path("/proc") / (near.home / "pid").read_text().strip()
    for _ in range(100):
        if not there.exists() or ") Z " in (there / "stat").read_text():
            return
        time.sleep(0.05)
    os.kill(int(there.name), signal.SIGKILL)
    pytest.fail("it goes on there")


def test_what_a_device_needs_of_a_run_is_sent_and_no_more(tmp_path: Path) -> None:
    needed = [
        "budget.json", "data/labels.txt", "data/samples/0.png", "data/sets/a/calib.npy", "device/pytorch/float/x.json",
        "host/float/architecture.json", "host/float/candidates-pi/0.onnx", "host/float/export/model.onnx",
        "host/float/model.safetensors", "host/float/preprocess.json", "host/float/stage.json", "run.json",
    ]  # fmt: skip
    others = ["data/sets/a/.x", "device/onnxruntime/float/engine.onnx", "host/float/log.jsonl", "report/report.html"]
    for name in (*needed, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert remote._needed(tmp_path) == needed
