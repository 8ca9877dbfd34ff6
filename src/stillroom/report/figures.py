"""From a Finding's figure to HTML: the kinds of figure, and what each must hold.

Numbers are drawn as given: who wants per cent multiplies by 100 and says ``"unit": "%"``. None and NaN are
shown as a dash in tables and left out of charts. Series named ``teacher``, ``alone`` and ``distilled`` keep
their colour and mark in every report; other names get theirs by order of appearance. Any figure may have a
``title`` (its accessible name) and a ``note`` (printed small below it).

=============  ==============================================================================================
kind           holds
=============  ==============================================================================================
``table``      ``columns``: [{``name``, ``unit``?, ``digits``? (a number, or "each": every cell its own),
               ``best``?: high|low|none}], ``rows``: [[cell]],
               ``apart``?: [row numbers outside the contest, such as the teacher], ``main``?: [rows to stress].
               A cell is a number, a text, None, or {``mean``, ``low``, ``high``, ``n``}: ``90.4 ± 0.6``.
               Units ``bytes`` and ``count`` are written out. The best is stressed only if its interval is
               clear of every other.
``lines``      ``series``: [{``name``, ``x``, ``y``, ``low``?, ``high``?}], ``x_label``, ``y_label``, ``log_y``?
``bars``       ``labels``, ``series``: [{``name``, ``values``, ``low``?, ``high``?}], ``unit``, ``horizontal``?,
               ``digits``?
``dots``       ``rows``: [{``name``, ``mean``, ``low``?, ``high``?, ``points``?, ``series``?}], ``unit``,
               ``x_label``?, ``digits``?, ``zero``? (nought is drawn), ``references``?: [{``name``, ``value``}]
``spread``     ``labels``, ``series``: [{``name``, ``values``}], ``unit``, ``x_label``?: a mark a series on each row
``reliability`` ``series``: [{``name``, ``confidence``, ``accuracy``, ``share`` (a number a bin), ``ece``}], in 0..1
``matrix``     ``labels`` (rows), ``columns``? (else the same labels), ``values``: [[number]]
``dendrogram`` ``labels``, ``merges``: [[node, node, value]] (node i is a leaf, n + i what the i-th merge made),
               ``groups``?: [[place]] of one colour, ``x_label``?, ``text``?: the same in letters, folded below
``pictures``   ``items``: [{``pixels``: (H, W) or (H, W, 3) of 0..255, or a PNG in base64, or ``text``;
               or ``words``: [[text as written, how much it speaks for (to 1) or against (to -1)]];
               ``caption``, ``rows``?: [[who, what]]}]; of long texts the beginning is shown, the rest folded
``sheet``      ``columns``: [name], ``rows``: [[{``pixels`` as above, ``text``, ``about``?: what it shows}, or None]]:
               pictures side by side under their columns' names, all within the page's width; a place without a
               picture stays empty; ``width``? of a column: 118
``text``       ``text``: shown as written, such as a recipe; ``folded``?: only on demand
``facts``      ``pairs``: [[name, value]]
``panels``     ``figures``: [figure], drawn side by side as small multiples under one legend
=============  ==============================================================================================
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from stillroom.errors import DataError, say
from stillroom.report import charts
from stillroom.report.dendrogram import dendrogram
from stillroom.report.numbers import DASH, digits_for, finite, number, with_interval
from stillroom.report.shortened import shortened, shortened_pieces
from stillroom.report.svg import Palette, legend, tag

WIDE, NARROW, SQUARE = 720, 340, 240
SMALL_PICTURE = 64
LONG = 60  # letters of a cell: on a narrow page it gets room, and the table scrolls
FAINT = 0.08  # of the strongest word: less is not marked
CHARTS: dict[str, Callable[[Mapping[str, Any], float, Palette], Markup]] = {
    "lines": charts.lines,
    "bars": charts.bars,
    "dots": charts.dots,
    "spread": charts.spread,
    "matrix": charts.matrix,
    "dendrogram": dendrogram,
}
KINDS = (*sorted([*CHARTS, "table", "reliability", "pictures", "sheet", "text", "facts", "panels"]),)


def names(figure: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names in ``figure`` that want a colour, so that a page can give each one for all its figures."""
    for one in figure.get("figures", ()):
        yield from names(one)
    yield from (str(one["name"]) for one in figure.get("references", ()))
    if figure.get("kind") == "dots":
        yield from (str(row.get("series") or row["name"]) for row in figure["rows"])
    yield from (str(one["name"]) for one in figure.get("series", ()))


def draw(figure: Mapping[str, Any], palette: Palette) -> Markup:
    """Return the HTML of one figure.

    Raises:
        DataError: the kind is unknown, or the figure lacks what its kind must hold.
    """
    kind = figure.get("kind")
    if not figure or (kind == "panels" and not any(map(_is_curve, figure.get("figures") or [{}]))):
        return Markup("")
    try:
        drawn = _body(str(kind), figure, palette)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            say(
                f"A figure of kind '{kind}' cannot be drawn",
                f"{type(error).__name__} {error}",
                "what stillroom.report.figures lists for that kind",
            )
        ) from error
    note = tag("p", figure["note"], class_="note") if figure.get("note") else ""
    return tag("figure", drawn, note, class_=f"figure of-{kind}")


def _body(kind: str, figure: Mapping[str, Any], palette: Palette) -> Markup:
    if kind in CHARTS:
        chart = CHARTS[kind]
        both = Markup("").join(chart(figure, width, palette) for width in (WIDE, NARROW))
        return Markup("").join([_legend(figure, palette), both, _behind(figure)])
    whole: dict[str, Callable[[Mapping[str, Any], Palette], Markup]] = {
        "table": lambda one, _: table(one),
        "reliability": _reliability,
        "pictures": lambda one, _: _pictures(one),
        "sheet": lambda one, _: _sheet(one),
        "text": lambda one, _: _written(one),
        "facts": lambda one, _: facts(one["pairs"]),
        "panels": _panels,
    }
    if kind not in whole:
        raise DataError(say("Unknown kind of figure in a finding", f"'{kind}'", KINDS))
    return whole[kind](figure, palette)


def _legend(figure: Mapping[str, Any], palette: Palette) -> Markup:
    found = list(dict.fromkeys(str(one["name"]) for one in figure.get("series", ())))
    return legend(found, palette, str(figure.get("kind"))) if len(found) > 1 else Markup("")


def _is_curve(figure: Mapping[str, Any]) -> bool:
    """Whether a figure has something to draw: of lines, one that leads from a point to another."""
    return figure.get("kind") != "lines" or any(
        sum(finite(value) is not None for value in one.get("y", ())) > 1 for one in figure.get("series", ())
    )


def _panels(figure: Mapping[str, Any], palette: Palette) -> Markup:
    inner = [one for one in figure["figures"] if _is_curve(one)]
    series = {str(s["name"]): s for one in inner for s in one.get("series", ())}
    shared = {"kind": inner[0].get("kind") if inner else "", "series": list(series.values())}
    drawn = []
    for one in inner:
        kind = str(one.get("kind"))
        if kind not in CHARTS:
            raise DataError(say("A panel cannot hold this kind of figure", f"'{kind}'", sorted(CHARTS)))
        head = tag("h3", one["title"]) if one.get("title") else ""
        drawn.append(tag("div", head, CHARTS[kind](one, NARROW, palette), _behind(one), class_="panel"))
    return Markup("").join([_legend(shared, palette), tag("div", *drawn, class_="panels")])


def _reliability(figure: Mapping[str, Any], palette: Palette) -> Markup:
    drawn = []
    for one in figure["series"]:
        error = finite(one.get("ece"))
        told = f"calibration error {DASH if error is None else number(100 * error, 1)} %"
        head = tag("h3", one["name"], " ", tag("span", told, class_="quiet"))
        drawn.append(tag("div", head, charts.reliability(one, SQUARE, palette), class_="panel"))
    axes = "Across: confidence, %. Up: accuracy of the examples with that confidence, %. "
    axes += "Area of a dot and height of a bar at the foot: share of the examples."
    return Markup("").join([tag("div", *drawn, class_="panels squares"), tag("p", axes, class_="note")])


# --- tables ----------------------------------------------------------------------------------------


def table(figure: Mapping[str, Any]) -> Markup:
    """Return a table in a box of its own, which scrolls where the page is narrower."""
    columns, rows = list(figure["columns"]), [list(row) for row in figure["rows"]]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} cells under {len(columns)} columns")
    apart, main = set(figure.get("apart", ())), set(figure.get("main", ()))
    stressed = {(_best([row[i] for row in rows], column.get("best"), apart), i) for i, column in enumerate(columns)}
    digits = [_digits(column, [row[i] for row in rows]) for i, column in enumerate(columns)]
    textual = [i == 0 or all(isinstance(row[i], str) or row[i] is None for row in rows) for i in range(len(columns))]
    long = [i > 0 and any(len(str(row[i])) > LONG for row in rows) for i in range(len(columns))]
    head = [
        tag("th", column["name"], _unit(column), scope="col", class_="words" if textual[i] else None)
        for i, column in enumerate(columns)
    ]
    body = []
    for order, row in enumerate(rows):
        cells = [
            _cell(value, columns[i], digits[i], _kind(i == 0, textual[i], long[i]), (order, i) in stressed)
            for i, value in enumerate(row)
        ]
        kinds = " ".join(word for word, members in (("apart", apart), ("main", main)) if order in members)
        body.append(tag("tr", *cells, class_=kinds or None))
    label = str(figure.get("title") or "Table")
    inner = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body))
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=label)


def _unit(column: Mapping[str, Any]) -> Markup:
    unit = column.get("unit")
    return tag("span", f" {unit}", class_="unit") if unit and unit not in ("bytes", "count") else Markup("")


def _mean(cell: object) -> float | None:
    return finite(cell.get("mean")) if isinstance(cell, Mapping) else finite(cell)


def _digits(column: Mapping[str, Any], cells: Sequence[object]) -> int | None:
    if "digits" in column:
        return None if column["digits"] == "each" else int(column["digits"])
    return digits_for([held for cell in cells if (held := _mean(cell)) is not None])


def _best(cells: Sequence[object], which: str | None, apart: set[int]) -> int | None:
    """Return the row that wins the column, or None where no interval is clear of the next."""
    if which not in ("high", "low"):
        return None
    sign = 1 if which == "high" else -1
    ranges = []
    for order, cell in enumerate(cells):
        mean = _mean(cell)
        if order in apart or mean is None:
            continue
        ends = [mean, mean]
        if isinstance(cell, Mapping):
            ends = [held if (held := finite(cell.get(key))) is not None else mean for key in ("low", "high")]
        ranges.append((min(sign * ends[0], sign * ends[1]), max(sign * ends[0], sign * ends[1]), order))
    if len(ranges) < 2:
        return None
    worst_end, _, winner = max(ranges)
    return winner if all(top < worst_end for _, top, order in ranges if order != winner) else None


def _kind(first: bool, textual: bool, long: bool) -> str | None:
    """How a cell is set: a row's name, words, many words that want room, or a number."""
    if first:
        return "name"
    return ("words long" if long else "words") if textual else None


def _cell(value: object, column: Mapping[str, Any], digits: int | None, kind: str | None, best: bool) -> Markup:
    unit, about = str(column.get("unit") or ""), None
    if isinstance(value, Mapping):
        shown = with_interval(value.get("mean"), value.get("low"), value.get("high"), digits, unit)
        if finite(value.get("low")) is not None and finite(value.get("high")) is not None:
            low, high = (number(value[key], digits, unit) for key in ("low", "high"))
            seeds = f", {value['n']} seeds" if value.get("n") else ""
            about = f"95 % interval {low} to {high}{seeds}"
    elif isinstance(value, str):
        shown = shortened(value)
    else:
        shown = number(value, digits, unit)
    inside = tag("strong", shown) if best else escape(shown)
    if kind == "name":
        return tag("th", inside, scope="row", title=about)
    return tag("td", inside, title=about, class_=kind)


def _behind(figure: Mapping[str, Any]) -> Markup:
    """Return the numbers behind a chart as a folded table: its alternative for who cannot see it."""
    kind, unit = figure.get("kind"), figure.get("unit")
    if kind == "dots":
        columns: list[dict[str, Any]] = [
            {"name": ""},
            {"name": "mean", "unit": unit},
            {"name": "95 % from"},
            {"name": "to"},
        ]
        rows = [[str(row["name"]), row.get("mean"), row.get("low"), row.get("high")] for row in figure["rows"]]
    elif kind in ("bars", "spread"):
        digits = {"digits": figure["digits"]} if "digits" in figure else {}
        columns = [{"name": ""}, *({"name": str(one["name"]), "unit": unit, **digits} for one in figure["series"])]
        values = [list(one["values"]) for one in figure["series"]]
        rows = [[str(label), *(column[i] for column in values)] for i, label in enumerate(figure["labels"])]
    elif kind == "matrix":
        across = figure.get("columns") or figure["labels"]
        columns = [{"name": ""}, *({"name": str(label)} for label in across)]
        rows = [[str(label), *row] for label, row in zip(figure["labels"], figure["values"], strict=True)]
    elif kind == "lines":
        ends = [_ends(one) for one in figure["series"]]
        columns = [{"name": ""}, {"name": "first"}, {"name": "lowest"}, {"name": "highest"}, {"name": "last"}]
        rows = [[str(one["name"]), *end] for one, end in zip(figure["series"], ends, strict=True)]
    else:
        inner = tag("pre", figure["text"], tabindex="0") if kind == "dendrogram" and figure.get("text") else None
        return _folded(inner) if inner else Markup("")
    return _folded(table({"columns": columns, "rows": rows, "title": "Numbers behind the figure"}))


def _folded(inner: Markup, summary: str = "Numbers") -> Markup:
    return tag("details", tag("summary", summary), inner)


def _written(figure: Mapping[str, Any]) -> Markup:
    shown, lines = tag("pre", figure["text"], tabindex="0"), str(figure["text"]).count("\n") + 1
    return _folded(shown, f"{figure.get('title', 'Text')} ({lines:,} lines)") if figure.get("folded") else shown


def _ends(series: Mapping[str, Any]) -> list[float | None]:
    held = [value for one in series["y"] if (value := finite(one)) is not None]
    return [held[0], min(held), max(held), held[-1]] if held else [None] * 4


# --- pictures and facts ----------------------------------------------------------------------------


def picture(pixels: object) -> tuple[str, int]:
    """Return a data URI of ``pixels`` as a PNG, and its width.

    Raises:
        DataError: neither (H, W) or (H, W, 3) of 0..255 nor a PNG in base64.
    """
    from PIL import Image

    if isinstance(pixels, str):
        try:
            raw = base64.b64decode(pixels, validate=True)
            width = Image.open(io.BytesIO(raw), formats=["PNG"]).width
        except (binascii.Error, ValueError, OSError) as error:
            raise DataError(
                say("A picture of a finding cannot be read", f"a text of {len(pixels)} letters", "a PNG in base64")
            ) from error
        return "data:image/png;base64," + base64.b64encode(raw).decode(), width
    import numpy as np

    array = np.asarray(pixels)
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))
    if not shaped or not array.size or array.dtype.kind not in "iuf" or array.min() < 0 or array.max() > 255:
        raise DataError(
            say(
                "A picture of a finding cannot be drawn",
                f"an array of shape {array.shape} and kind {array.dtype}",
                "(H, W), (H, W, 1) or (H, W, 3) of 0..255",
            )
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    stream = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(stream, format="PNG", optimize=False, compress_level=9)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode(), int(array.shape[1])


def _image(pixels: object, about: str) -> Markup:
    source, width = picture(pixels)
    shown = tag("img", src=source, alt=about, class_="pixels" if width <= SMALL_PICTURE else None)
    return Markup(str(shown).removesuffix("</img>"))


def _sheet(figure: Mapping[str, Any]) -> Markup:
    columns = list(figure["columns"])
    body = []
    for row in figure["rows"]:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} pictures under {len(columns)} columns")
        body.append(tag("tr", *(_pictured(cell, name) for name, cell in zip(columns, row, strict=True))))
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in columns)))
    width = int(figure.get("width", 118)) * len(columns)
    return tag("table", head, tag("tbody", *body), class_="sheet", style=f"max-width: {width}px")


def _pictured(cell: Mapping[str, Any] | None, name: str) -> Markup:
    if cell is None:
        return tag("td")
    words = tag("p", shortened(str(cell.get("text", ""))))
    return tag("td", _image(cell["pixels"], str(cell.get("about", name))), words)


def _pictures(figure: Mapping[str, Any]) -> Markup:
    cards = []
    for item in figure["items"]:
        caption = str(item.get("caption", ""))
        if item.get("pixels") is not None:
            shown = _image(item["pixels"], caption or "an example")
        elif item.get("words") is not None:
            pieces = ((str(text), _word(str(text), float(value))) for text, value in item["words"])
            shown = tag("blockquote", shortened_pieces(pieces))
        else:
            shown = tag("blockquote", shortened(str(item.get("text", DASH))))
        rows = [Markup("").join([tag("dt", who), tag("dd", what)]) for who, what in item.get("rows", ())]
        cards.append(tag("li", shown, tag("p", caption), tag("dl", *rows) if rows else "", class_="card"))
    marked = any("words" in item for item in figure["items"])
    written = any(item.get("pixels") is None for item in figure["items"])
    return tag("ul", *cards, class_="cards of-words" if marked else "cards of-texts" if written else "cards")


def _word(text: str, value: float) -> object:
    """A piece of a text, marked by how much it speaks for or against; what hardly does is left plain."""
    if abs(value) < FAINT or not text.strip():
        return text
    return tag("mark", text, class_="for" if value > 0 else "against", style=f"--much: {min(1.0, abs(value)):.2f}")


def plain(value: object) -> str:
    """Write a fact: whole numbers whole, what is missing as a dash."""
    if isinstance(value, bool | str):
        return str(value)
    if value is None or finite(value) is not None:
        return number(value, 0) if isinstance(value, int) else number(value)
    return str(value)


def facts(pairs: Sequence[Sequence[object]]) -> Markup:
    """Return names and values as a list; a value of several lines is shown as written."""
    rows = []
    for name, value in pairs:
        if isinstance(value, str):
            shown: object = tag("pre", value, tabindex="0") if "\n" in value.strip() else value
        else:
            shown = plain(value)
        rows.append(tag("div", tag("dt", str(name)), tag("dd", shown)))
    return tag("dl", *rows, class_="facts")
