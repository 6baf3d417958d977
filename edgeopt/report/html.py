"""The report as one HTML page that asks nothing of the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from edgeopt.registry import load
from edgeopt.report import format as form
from edgeopt.report.budget import verdict
from edgeopt.report.engine_row import EngineRow
from edgeopt.report.headline import champion, confidence, sentence
from edgeopt.report.model import Report
from edgeopt.report.page import asset, fragment
from edgeopt.report.sections import SECTIONS

MOST_BYTES = 6_000_000  # a page that can still be mailed and attached


def render_html(report: Report) -> str:
    """The whole page; sections with nothing to show are left out, and pictures where they would make it over 6 MB."""
    page = _page(report)
    if len(page.encode()) > MOST_BYTES:
        page = _page(_without_pictures(report), "Pictures are left out: with them this page would be over 6 MB.")
    return page


def _without_pictures(report: Report) -> Report:
    def bare(row: EngineRow) -> EngineRow:
        mistakes = tuple(replace(one, picture="", evidence="") for one in row.mistakes)
        return replace(row, mistakes=mistakes, changes=tuple(replace(one, picture="") for one in row.changes))

    original = None if report.original is None else bare(report.original)
    return replace(report, engines=tuple(bare(row) for row in report.engines), original=original)


def _page(report: Report, note: str = "") -> str:
    sections = []
    for name, (title, reference) in SECTIONS.items():
        render: Callable[[Report], str] = load(reference)
        html = render(report)
        if html:
            sections.append({"id": name, "title": title, "html": html})
    return fragment(
        "page",
        report=report,
        sentence=_unbroken(sentence(report)),
        confidence=_unbroken(confidence(report)),
        verdict=verdict(report.budget),
        verdict_note=_verdict_note(report),
        cards=_cards(report),
        sections=sections,
        note=note,
        style=asset("style.css"),
        script=asset("script.js"),
    )


def _unbroken(text: str) -> str:
    """A line must not begin with a percent sign."""
    return text.replace(" %", "\u00a0%")


def _verdict_note(report: Report) -> str:
    worst = verdict(report.budget)
    if worst in (None, "met"):
        return f"all {len(report.budget)} lines"
    return "; ".join(line.message for line in report.budget if line.status == worst)


def _cards(report: Report) -> list[dict[str, str]]:
    """The leading engine's figures, those that were measured."""
    row, original = champion(report), report.original
    if row is None:
        return []
    cards = []
    if row.speedup is not None:
        against = "the original" if original and row.baseline == original.key else str(row.baseline)
        cards.append(_card("Speed", form.times(row.speedup), f"{form.times_range(row.speedup_ci)} against {against}"))
    if row.float_speedup is not None and row.float_baseline != row.baseline:
        note = f"{form.times_range(row.float_speedup_ci)} against {row.float_baseline}"
        cards.append(_card("Against its float", form.times(row.float_speedup), note))
    if row.p50_ms is not None:
        note = f"{form.whole(row.throughput_ips)} pictures a second"
        cards.append(_card("Latency, p50", f"{form.ms(row.p50_ms)} ms", note))
    if row.top1 is not None:
        note = f"the original {form.percent(original.top1)}" if original else form.percent_range(row.top1_ci)
        cards.append(_card("Top-1", form.percent(row.top1), note))
    if row.size_bytes is not None:
        note = f"the original {form.mib(original.size_bytes)}" if original and original.size_bytes else "engine files"
        cards.append(_card("Size", form.mib(row.size_bytes), note))
    if row.int8_share is not None and row.precision == "int8":
        cards.append(
            _card("In int8", form.percent(row.int8_share, 0), f"{row.int8_layers} of {row.compute_layers} layers")
        )
    return cards


def _card(title: str, value: str, note: str) -> dict[str, str]:
    return {"title": title, "value": value, "note": note}
