"""One self-contained page from Findings: no script, no font, no picture that is fetched from anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stillroom.contracts import Finding
from stillroom.errors import DataError, say
from stillroom.files import write_bytes
from stillroom.report.figures import draw, names, plain
from stillroom.report.figures import facts as fact_list
from stillroom.report.numbers import finite
from stillroom.report.svg import slots

LONGEST_VERDICT_IN_LARGE = 260


def write_report(
    path: str | Path,
    *,
    title: str,
    verdict: str,
    summary: Sequence[tuple[str, object]] = (),
    findings: Sequence[Finding] = (),
    facts: Mapping[str, object] | None = None,
    subtitle: str = "",
    chapters: Sequence[tuple[str, int]] = (),
) -> Path:
    """Write the report to ``path``, whole or not at all, and return that path; equal input gives equal bytes.

    ``summary`` holds a few key numbers as (label, value); ``facts`` what the run stood on: values, texts of
    several lines (shown as written), or a mapping of such for a group of its own (versions, machine). ``chapters``
    are names, each with how many of the findings it holds, in their order: the contents are grouped by them.

    Raises:
        DataError: a finding's figure does not hold what its kind must hold.
        UserError: the file cannot be written.
    """
    head: dict[str, Any] = {"title": title, "verdict": verdict, "summary": summary, "subtitle": subtitle}
    content = page(**head, findings=findings, facts=facts, chapters=chapters)
    write_bytes(Path(path), content.encode("utf-8", "backslashreplace"))
    return Path(path)


def page(
    *,
    title: str,
    verdict: str,
    summary: Sequence[tuple[str, object]] = (),
    findings: Sequence[Finding] = (),
    facts: Mapping[str, object] | None = None,
    subtitle: str = "",
    chapters: Sequence[tuple[str, int]] = (),
) -> str:
    """Return the report as HTML; see :func:`write_report`."""
    from jinja2 import Environment, StrictUndefined

    palette = slots(name for finding in findings for name in names(finding.figure))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_shipped("page.html.jinja"))
    return template.render(
        title=title,
        subtitle=subtitle,
        verdict=together(verdict),
        large=len(verdict) <= LONGEST_VERDICT_IN_LARGE,
        summary=[(label, plain(value)) for label, value in summary],
        sections=[_section(finding, palette) for finding in findings],
        chapters=_chapters(chapters, findings),
        groups=_groups(facts or {}),
        stands_on=_stands_on(facts or {}),
        style=Markup(_shipped("style.css")),
    )


def _chapters(chapters: Sequence[tuple[str, int]], findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Each chapter with the places of its first and its last section; one without a name where none are given."""
    if sum(count for _, count in chapters) != len(findings):
        chapters = [("", len(findings))]
    ends = itertools.accumulate((count for _, count in chapters), initial=0)
    return [
        {"name": name, "first": first + 1, "last": last}
        for (name, _), (first, last) in zip(chapters, itertools.pairwise(ends), strict=True)
        if last > first
    ]


def _stands_on(facts: Mapping[str, object]) -> str:
    """What the last section is for: only with the recipe can a run be made again from the page alone."""
    if facts.get("recipe"):
        return "The recipe, the data and the versions: what is needed to judge these numbers and to repeat the run."
    if facts.get("settings"):
        return "The settings, the data and the versions. The models were given in Python: their code is not kept here."
    return "The data and what was asked about it."


def together(words: str) -> str:
    """Keep a number and its sign on one line: ``95 %``, ``90.4 ± 0.6``."""
    return words.replace(" %", "\u00a0%").replace(" ± ", "\u00a0±\u00a0")


def _shipped(name: str) -> str:
    return resources.files("stillroom.report").joinpath(name).read_text(encoding="utf-8")


def _section(finding: Finding, palette: Mapping[str, str]) -> dict[str, object]:
    if not finding.title or not finding.sentence:
        raise DataError(
            say("A finding has no title or no sentence", f"title '{finding.title}'", "both, in plain language")
        )
    held = finite(finding.number)
    return {
        "title": finding.title,
        "sentence": together(finding.sentence),
        "number": "" if held is None else f"{held:.6g}",
        "control": together(finding.control),
        "figure": draw(finding.figure, palette),
    }


def _groups(held: Mapping[str, object]) -> list[tuple[str, Markup]]:
    single = [(name, value) for name, value in held.items() if not isinstance(value, Mapping) and value != ""]
    groups = [
        (str(name), fact_list(list(value.items())))
        for name, value in held.items()
        if isinstance(value, Mapping) and value
    ]
    return ([("", fact_list(single))] if single else []) + groups
