"""Nothing is sent anywhere: what other packages would report about their use, they do not report from here."""

from __future__ import annotations

import os
import sys


def switch_off() -> None:
    """Keep NNCF and OpenVINO from sending events; only heard before either is imported in this process.

    ``import openvino`` alone sends one to Google Analytics and keeps a client id in ``~/intel``, unless the user has
    opted out or ``CI`` is ``true``. Both do without openvino_telemetry where it is not installed, and None in
    ``sys.modules`` is how Python says that (https://docs.python.org/3/reference/import.html#the-module-cache).
    """
    os.environ.setdefault("NNCF_CI", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
