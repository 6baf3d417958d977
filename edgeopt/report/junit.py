"""The budget as JUnit XML: one case a budget line and engine, so that CI systems list them."""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, indent, tostring

from edgeopt.report.model import Report


def render_junit(report: Report) -> str:
    """XML text. Missed is a failure; unstable and undecided are errors; what another device must judge is skipped.

    Undecided lines are skipped as well where the budget allows them.
    """
    statuses = [line.status for line in report.budget]
    skipped = ("not judged", "undecided") if report.allow_undecided else ("not judged",)
    counts = {
        "tests": len(statuses),
        "failures": statuses.count("missed"),
        "errors": sum(status in ("unstable", "undecided") and status not in skipped for status in statuses),
        "skipped": sum(status in skipped for status in statuses),
    }
    attributes = {name: str(count) for name, count in counts.items()}
    suites = Element("testsuites", {"name": "edgeopt", **attributes})
    suite = SubElement(suites, "testsuite", {"name": f"edgeopt budget: {report.name}", **attributes})
    for line in report.budget:
        case = SubElement(suite, "testcase", {"classname": line.engine.replace("/", "."), "name": line.name})
        if line.status == "missed":
            SubElement(case, "failure", {"message": line.message, "type": "missed"})
        elif line.status in skipped:
            SubElement(case, "skipped", {"message": line.message})
        elif line.status in ("unstable", "undecided"):
            SubElement(case, "error", {"message": line.message, "type": line.status})
        else:
            SubElement(case, "system-out").text = line.message
    indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(suites, encoding="unicode") + "\n"
