"""The parent's side of one benchmark process: asks, waits with a deadline, stops it while others are measured."""

from __future__ import annotations

import base64
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from edgeopt.backends.base import Float32
from edgeopt.bench.spec import EngineSpec
from edgeopt.errors import REPORT, BackendError

_TAIL = 400  # characters of a dead child's last words


class Child:
    """One engine in its own process. It runs only between a question and its answer; otherwise it is stopped."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child, closed with it
        self._buffer = b""
        # The same imports as here, but not from the working directory, which `python -m` would put first.
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path if path),
            "OMP_NUM_THREADS": str(spec.threads),
            "MKL_NUM_THREADS": str(spec.threads),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgeopt.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            cwd="/",
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def open(self, timeout: float) -> dict[str, Any]:
        """Open the engine; raises BackendError with the child's own words when it cannot."""
        return self._ask(self.spec.to_json(), timeout)

    def window(self, seconds: float, iterations: int, timeout: float, **more: Any) -> dict[str, Any]:
        """Time one window; raises BackendError when the child dies or does not answer in time."""
        return self._ask({"window": seconds, "iterations": iterations, **more}, timeout)

    def end_to_end(self, pictures: Path, timeout: float) -> dict[str, Any]:
        """Time decoding, preprocessing and inference of encoded pictures; raises as :meth:`window`."""
        return self._ask({"pictures": str(pictures)}, timeout)

    def logits(self, first: int, count: int, timeout: float) -> Float32:
        """The answers (count, classes) to pictures of the test set; raises as :meth:`window`."""
        answer = self._ask({"first": first, "count": count}, timeout)
        values = np.frombuffer(base64.b64decode(answer["logits"]), "<f4")
        return values.reshape(count, int(answer["classes"])).astype(np.float32)

    def cpu_seconds(self) -> float:
        """CPU time the process has used so far, all threads; Linux only."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process, whatever state it is in."""
        with suppress(ProcessLookupError):
            self._process.kill()  # reaches stopped processes too
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._log.close()

    def _ask(self, question: dict[str, Any], timeout: float) -> dict[str, Any]:
        self.send(question)
        return self.receive(timeout)

    def send(self, question: dict[str, Any]) -> None:
        """Let the child go on and hand it a question; :meth:`receive` waits for the answer."""
        assert self._process.stdin is not None
        try:
            self._process.send_signal(signal.SIGCONT)
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ProcessLookupError):
            raise self._death() from None

    def receive(self, timeout: float) -> dict[str, Any]:
        """The answer to what was sent, after which the child is stopped; raises BackendError."""
        answer = json.loads(self._line(timeout))
        if "error" in answer:
            raise BackendError(str(answer["error"]), fix=answer.get("fix"))
        # Idle thread pools spin: a stopped process takes nothing from the one being measured.
        self._process.send_signal(signal.SIGSTOP)
        return dict(answer)

    def _line(self, timeout: float) -> bytes:
        stream = self._process.stdout
        assert stream is not None
        deadline = monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - monotonic())):
                    raise BackendError(
                        f"no answer within {timeout:.0f} s",
                        fix=f"stop other work on this machine and measure again; if it hangs again, {REPORT}",
                    )
                chunk = os.read(stream.fileno(), 1 << 16)
                if not chunk:
                    raise self._death()
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _death(self) -> BackendError:
        """What the process said last, and how it ended."""
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._log.seek(0)
        text = self._log.read().decode(errors="replace")
        text = " ".join(text.split())  # a message is one line
        message = f"the process ended ({how})" + (f": ...{text[-_TAIL:]}" if text else "")
        if code == -signal.SIGKILL:
            return BackendError(
                message, fix="most likely memory ran out: free some, or lower batch in the target and build again"
            )
        return BackendError(message, fix=f"see whether it runs alone: edgeopt eval --engine {self.spec.key}")
