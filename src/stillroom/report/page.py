"""One self-contained page from Findings: no script, no font, no picture that is fetched from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

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
) -> Path:
    """Write the report to ``path``, whole or not at all, and return that path; equal input gives equal bytes.

    ``summary`` holds a few key numbers as (label, value); ``facts`` what the run stood on: values, texts of
    several lines (shown as written), or a mapping of such for a group of its own (versions, machine).

    Raises:
        DataError: a finding's figure does not hold what its kind must hold.
        UserError: the file cannot be written.
    """
    content = page(title=title, verdict=verdict, summary=summary, findings=findings, facts=facts, subtitle=subtitle)
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
        groups=_groups(facts or {}),
        style=Markup(_shipped("style.css")),
    )


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
    single = [(name, value) for name, value in held.items() if not isinstance(value, Mapping)]
    groups = [
        (str(name), fact_list(list(value.items())))
        for name, value in held.items()
        if isinstance(value, Mapping) and value
    ]
    return ([("", fact_list(single))] if single else []) + groups
