"""A table as HTML for notebooks: escaped, in the colours of the page, dark or light."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Okabe and Ito's blue, under text in the colour of the page: legible on white and on black.
_SHADE = "background:rgba(0,114,178,{:.2f});"
_STRONGEST = 0.45


def table_html(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    notes: Iterable[str] = (),
    *,
    left: Iterable[int] = (0,),
    shades: Sequence[Sequence[float | None]] | None = None,
) -> str:
    """Return a table with a caption.

    Args:
        title: The caption.
        columns: Names of the columns.
        rows: Cells of each row; the first one is the row's heading.
        notes: Lines below the table.
        left: Columns that are aligned left; others are aligned right.
        shades: For each cell after the first, from 0 to 1, how strongly its ground is coloured; None for not
            at all. The text states the value, so that colour is never needed.
    """
    from html import escape  # its table of entities would slow `import sparsebert` down

    lefts = set(left)

    def style(number: int, extra: str = "") -> str:
        return f' style="text-align:{"left" if number in lefts else "right"};{extra}"'

    head = "".join(
        f'<th scope="col"{style(number)}>{escape(name)}</th>' for number, name in enumerate(columns)
    )
    body = []
    for index, row in enumerate(rows):
        cells = []
        for number, cell in enumerate(row):
            shade = shades[index][number - 1] if shades is not None and number else None
            ground = "" if shade is None else _SHADE.format(_STRONGEST * min(max(shade, 0.0), 1.0))
            tag, scope = ("td", "") if number else ("th", ' scope="row"')
            cells.append(f"<{tag}{scope}{style(number, ground)}>{escape(cell)}</{tag}>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    caption = f'<caption style="text-align:left;font-weight:bold;">{escape(title)}</caption>' if title else ""
    below = "".join(f"<div>{escape(note)}</div>" for note in notes)
    table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div style="overflow-x:auto">{table}{below}</div>'
