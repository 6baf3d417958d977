"""Measures engines side by side: one process each, interleaved windows, ratios with intervals."""

from edgeopt.bench.protocol import bench
from edgeopt.bench.records import accuracy_record, write_accuracy, write_latency, write_records
from edgeopt.bench.result import BenchResult, EngineResult
from edgeopt.bench.spec import EngineSpec

__all__ = [
    "BenchResult",
    "EngineResult",
    "EngineSpec",
    "accuracy_record",
    "bench",
    "write_accuracy",
    "write_latency",
    "write_records",
]
