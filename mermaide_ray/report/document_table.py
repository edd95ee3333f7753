"""A table as people read it, in Markdown and in LaTeX. Knows nothing of what stands in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Whatever a method, a setting or an agent family may be called must come out as it went in.
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "×": r"$\times$",
    "–": "--",
    "−": "$-$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "…": r"\dots{}",
}


@dataclass(frozen=True)
class Table:
    """Headings and cells.

    Attributes:
        name: Short name, that of its file.
        title: What it shows.
        head: Headings.
        rows: Cells, as text.
        text: How many of the columns, from the left, are text; the others are numbers, set flush right.
        caption: What the numbers are.
        rules: Rows before which a new group begins.
    """

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: int = 1
    caption: str = ""
    rules: frozenset[int] = frozenset()

    def to_markdown(self) -> str:
        """A pipe table."""
        marks = ["---"] * self.text + ["---:"] * (len(self.head) - self.text)
        lines = [self.head, tuple(marks), *self.rows]
        return "\n".join(f"| {' | '.join(_pipe(cell) for cell in line)} |" for line in lines) + "\n"

    def to_latex(self) -> str:
        r"""A booktabs table; the paper needs `\usepackage{booktabs}`, T1 fonts and nothing else."""
        columns = "l" * self.text + "r" * (len(self.head) - self.text)
        body = []
        for number, row in enumerate(self.rows):
            if number in self.rules:
                body.append(r"\midrule")
            body.append(_line(row))
        return "\n".join(
            [
                r"% \usepackage{booktabs} \usepackage[T1]{fontenc}",
                r"\begin{table}[t]",
                r"\centering",
                rf"\caption{{{escape_latex(self.title)}. {escape_latex(self.caption)}}}",
                rf"\label{{tab:{self.name.replace('_', '-')}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                _line(self.head),
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _line(cells: Sequence[str]) -> str:
    # A bracket after a line's end would be read as its optional argument.
    return (
        " & ".join("{" + escape_latex(cell) + "}" if cell.startswith("[") else escape_latex(cell) for cell in cells)
        + r" \\"
    )


def _pipe(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
