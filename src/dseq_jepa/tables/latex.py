r"""A laid-out table as LaTeX; needs \usepackage{booktabs} and nothing else.

to_latex(lay_out(table))
"""

import re
from collections.abc import Iterable

from dseq_jepa.tables.layout import Entry, Line, Sheet

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def escape(text: str) -> str:
    """Text that LaTeX prints as it is; straight double quotes become curly ones."""
    escaped = "".join(_SPECIAL.get(character, character) for character in text)
    return re.sub(r'"([^"]*)"', r"``\1''", escaped)


def to_latex(sheet: Sheet) -> str:
    """A table* environment with caption and label tab:<name>; footnotes and notes stand below the rules."""
    alignment = "l" * len(sheet.heads) + "r" * len(sheet.columns)
    below = [f"{_superscript(mark)}~{escape(text)}" for mark, text in sheet.footnotes] + [
        escape(n) for n in sheet.notes
    ]
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table*}[t]",
        r"  \centering\small\setlength{\tabcolsep}{4pt}",
        f"  \\caption{{{escape(' '.join((sheet.title, *sheet.caption)))}}}",
        f"  \\label{{tab:{sheet.name}}}",
        f"  \\begin{{tabular}}{{{alignment}}}",
        r"    \toprule",
        f"    {_cells([*map(escape, sheet.heads), *map(escape, sheet.columns)])}",
        r"    \midrule",
        *(f"    {line}" for line in _body(sheet)),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"  \par\smallskip\footnotesize\raggedright",
        *(f"  {text}\\par" for text in below),
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _body(sheet: Sheet) -> Iterable[str]:
    width = len(sheet.heads) + len(sheet.columns)
    for i, line in enumerate(sheet.lines):
        if line.section is not None:
            if i:
                yield r"\midrule"
            yield f"\\multicolumn{{{width}}}{{l}}{{\\emph{{{escape(line.section)}}}}} \\\\"
        elif i and line.heads[0]:
            yield r"\addlinespace"
        yield _cells(_texts(line))


def _texts(line: Line) -> list[str]:
    return [*map(escape, line.heads), *map(_entry, line.entries)]


def _cells(texts: list[str]) -> str:
    return " & ".join(texts) + r" \\"


def _entry(entry: Entry) -> str:
    text = entry.text if entry.deviation is None else f"{entry.text} $\\pm$ {entry.deviation}"
    if entry.delta is not None:
        text += f" {{\\scriptsize {entry.delta.replace('-', '$-$')}}}"
    return text + "".join(map(_superscript, entry.marks))


def _superscript(mark: str) -> str:
    return f"\\textsuperscript{{{mark}}}"
