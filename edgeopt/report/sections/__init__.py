"""The report's sections, in order: id -> (title, "module:render"). A new section is one file and one line here."""

from __future__ import annotations

SECTIONS: dict[str, tuple[str, str]] = {
    "engines": ("Engines", "edgeopt.report.sections.engines:render"),
    "budget": ("Budget", "edgeopt.report.sections.budget:render"),
    "plot": ("Accuracy and latency", "edgeopt.report.sections.plot:render"),
    "scenarios": ("Scenarios", "edgeopt.report.sections.scenarios:render"),
    "timing": ("Timing", "edgeopt.report.sections.timing:render"),
    "accuracy": ("Accuracy", "edgeopt.report.sections.accuracy:render"),
    "classes": ("Classes", "edgeopt.report.sections.classes:render"),
    "confusion": ("Confusions", "edgeopt.report.sections.confusion:render"),
    "changes": ("Changed answers", "edgeopt.report.sections.changes:render"),
    "mistakes": ("Worst mistakes", "edgeopt.report.sections.mistakes:render"),
    "confidence": ("Confidence", "edgeopt.report.sections.confidence:render"),
    "fusion": ("Int8 audit", "edgeopt.report.sections.fusion:render"),
    "training": ("Training", "edgeopt.report.sections.training:render"),
    "ladder": ("Ladder", "edgeopt.report.sections.ladder:render"),
    "latency": ("To a latency", "edgeopt.report.sections.latency:render"),
    "compression": ("Compression", "edgeopt.report.sections.compression:render"),
    "widths": ("Widths", "edgeopt.report.sections.widths:render"),
    "environment": ("Environment", "edgeopt.report.sections.environment:render"),
    "commands": ("Commands", "edgeopt.report.sections.commands:render"),
}
