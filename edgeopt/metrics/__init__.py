"""The numbers edgeopt judges by, one implementation for both halves: accuracy, paired drops, ratios, parity."""

from edgeopt.arrays import Bool, Float, Float64, Int64, softmax
from edgeopt.metrics.accuracy import (
    accuracy_interval,
    agreement,
    confusion_matrix,
    macro,
    per_class,
    share_bound,
    top_k_accuracy,
)
from edgeopt.metrics.paired import PairedDrop, class_drops, mcnemar, paired_drop, pictures_to_decide
from edgeopt.metrics.parity import (
    FLOAT_MAX_RELATIVE,
    INT8_MAX_MEAN_OVER_STD,
    INT8_MIN_AGREEMENT,
    INT8_MIN_DECIDED,
    Parity,
    float_parity,
    int8_parity,
)
from edgeopt.metrics.timings import (
    MIN_WINDOWS,
    Interval,
    median_interval,
    percentile_interval,
    quantiles,
    ratio_interval,
    seconds_to_decide,
    start_medians,
    starts_differ,
    window_percentile,
)

__all__ = [
    "FLOAT_MAX_RELATIVE", "INT8_MAX_MEAN_OVER_STD", "INT8_MIN_AGREEMENT", "INT8_MIN_DECIDED", "MIN_WINDOWS", "Bool",
    "Float", "Float64", "Int64", "Interval", "PairedDrop", "Parity", "accuracy_interval", "agreement", "class_drops",
    "confusion_matrix", "float_parity", "int8_parity", "macro", "mcnemar", "median_interval", "paired_drop",
    "per_class", "percentile_interval", "pictures_to_decide", "quantiles", "ratio_interval", "seconds_to_decide",
    "share_bound", "softmax", "start_medians", "starts_differ", "top_k_accuracy", "window_percentile",
]  # fmt: skip
