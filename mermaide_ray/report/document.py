"""The report itself: what stands in it, in which order; as one HTML file, as Markdown, as LaTeX tables."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from mermaide_ray import __version__
from mermaide_ray.disk import whole_file, whole_folder
from mermaide_ray.errors import InputError, RunFault
from mermaide_ray.report.answer import Answer, answer
from mermaide_ray.report.diagnostics import CHECKS, Check, Finding, diagnose
from mermaide_ray.report.document_table import Table
from mermaide_ray.report.drawing import save_figure
from mermaide_ray.report.pictures import pictures
from mermaide_ray.report.pictures.picture import Picture
from mermaide_ray.report.provenance import failed_table, origin_table
from mermaide_ray.report.score_tables import contrast_table, score_tables, setting_tables, world_model_table
from mermaide_ray.report.sources import Source
from mermaide_ray.report.study import Study, read_study

FORMATS = ("png", "pdf", "svg")
# Settings that take more lines than this are in the folder, not in the report.
MOST_CONFIG_LINES = 400
# Findings told on the terminal.
MOST_TOLD = 8
# In figures/ and in tables/: the names of what a report wrote there, which the next one may delete.
LIST = ".report"
# Stands in every report.html.
MARK = '<meta name="generator" content="mermaide'

_Part = TypeVar("_Part", Picture, Table)


@dataclass(frozen=True)
class Report:
    """A report that has been written.

    Attributes:
        folder: Where.
        answer: The answer to the question.
        findings: What the diagnostics found.
        notes: What is missing.
    """

    folder: Path
    answer: Answer
    findings: Sequence[Finding]
    notes: Sequence[str]

    @property
    def html(self) -> Path:
        """The file to open."""
        return self.folder / "report.html"

    def summary(self) -> str:
        """The answer, what is missing, what the diagnostics found, and where the files are."""
        notes = [f"- {note}" for note in self.notes]
        found = [f"- {CHECKS[finding.check].title}: {finding.text}" for finding in self.findings[:MOST_TOLD]]
        if len(self.findings) > MOST_TOLD:
            found.append(f"- and {len(self.findings) - MOST_TOLD} more in the report")
        parts = [
            [self.answer.sentence],
            ["Missing or put together:", *notes] if notes else [],
            [f"Diagnostics ({len(self.findings)} found):", *found] if found else ["Diagnostics: nothing found."],
            [f"{self.html}", f"report.md, figures/ and tables/ beside it, in {self.folder}"],
        ]
        return "\n\n".join("\n".join(part) for part in parts if part)


def write_report(folders: Sequence[Path], out: Path | None = None) -> Report:
    """Writes report.html, report.md, figures/ and tables/ for sweeps and runs.

    Args:
        folders: Sweeps' or runs' folders; several are compared.
        out: Where to; `report` in the folder, or `report_with_…` in the first of several, if not given.

    Raises:
        InputError: A folder holds nothing to report, or what it holds can't be read; or the report would replace what
            no report wrote.
        RunFault: The report can't be written.
    """
    target = out or _default_folder([folder.resolve() for folder in folders])
    _check_owned(target)
    study = read_study(folders)
    found = answer(study)
    told = (contrast_table(found), *score_tables(study), *setting_tables(study), world_model_table(study))
    tables = _named_apart([table for table in told if table])
    drawn = _named_apart(list(pictures(study, found)))
    findings = diagnose(study)  # last: it tells of what had to be left out of anything above
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _listed_folder(target / "figures") as folder:
            for picture in drawn:
                for kind in FORMATS:
                    save_figure(picture.figure, folder / f"{picture.name}.{kind}")
                    # Laid out once: all formats show the same, and it takes longer than drawing.
                    picture.figure.set_layout_engine("none")
        with _listed_folder(target / "tables") as folder:
            for table in tables:
                (folder / f"{table.name}.tex").write_text(table.to_latex(), encoding="utf-8")
        context = _context(study, found, tables, drawn, findings)
        images = {picture.name: _inlined(target / "figures" / f"{picture.name}.svg") for picture in drawn}
        _write(
            target / "report.html", _environment(True).get_template("report.html.j2").render(**context, images=images)
        )
        _write(target / "report.md", _environment(False).get_template("report.md.j2").render(**context))
    except OSError as error:
        raise RunFault(f"the report must be writable, but {target} is not: {error.strerror or error}") from None
    return Report(target, found, findings, study.notes)


def _named_apart(parts: list[_Part]) -> list[_Part]:
    """Pictures, or tables, in files of their own: keys may end alike, and conditions differ in a sign alone."""
    seen: Counter[str] = Counter()
    apart = []
    for part in parts:
        seen[part.name] += 1
        apart.append(part if seen[part.name] == 1 else replace(part, name=f"{part.name}_{seen[part.name]}"))
    return apart


def _default_folder(folders: Sequence[Path]) -> Path:
    first, *others = dict.fromkeys(folders)
    return first / (f"report_with_{'_'.join(folder.name for folder in others)[:100]}" if others else "report")


def _check_owned(target: Path) -> None:
    """Whether all that a report would replace was written by one: a run has figures/ of its own, and so has a paper."""
    page, figures = target / "report.html", target / "figures"
    is_report = page.is_file() and MARK in page.read_text(encoding="utf-8", errors="replace")
    # A report that was killed has left its figures, if anything, or its page and no report.md.
    strange = [path for path in (page, target / "report.md") if path.exists() and not is_report]
    for folder in (figures, target / "tables"):
        written, found = folder / LIST, [*folder.iterdir()] if folder.is_dir() else [folder][: folder.exists()]
        if written.is_file():
            names = {LIST, *written.read_text(encoding="utf-8").splitlines()}
            strange += [path for path in found if path.name not in names]
        elif not is_report:  # those of older versions have no list
            strange += found
    if strange:
        raise InputError(
            f"a report must not replace what no report wrote, but {min(strange)} is such a file (name another folder "
            "by --out, or move it)"
        )


@contextmanager
def _listed_folder(target: Path) -> Iterator[Path]:
    """As `whole_folder`, with a list of what is in it."""
    with whole_folder(target) as folder:
        yield folder
        names = sorted(path.name for path in folder.iterdir())
        (folder / LIST).write_text("\n".join(names), encoding="utf-8")


def _context(
    study: Study, found: Answer, tables: Sequence[Table], drawn: Sequence[Picture], findings: Sequence[Finding]
) -> dict[str, Any]:
    """What the templates are filled with."""
    silent: list[Check] = [check for key, check in CHECKS.items() if key not in {finding.check for finding in findings}]
    return {
        "question": study.question,
        "answer": found,
        "notes": study.notes,
        "tables": tables,
        "pictures": drawn,
        "findings": [(CHECKS[finding.check], finding) for finding in findings],
        "silent": silent,
        "failed": failed_table(study.sources),
        "origin": origin_table(study.sources),
        "configs": [(source, _config(source)) for source in study.sources if source.document],
        "version": __version__,
        "formats": FORMATS,
    }


def _config(source: Source) -> str:
    lines = yaml.safe_dump(source.document, sort_keys=False, allow_unicode=True, width=110).splitlines()
    if len(lines) > MOST_CONFIG_LINES:
        lines = [*lines[:MOST_CONFIG_LINES], f"# {len(lines) - MOST_CONFIG_LINES} more lines in {source.folder}"]
    return "\n".join(lines)


def _environment(html: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("mermaide_ray.report"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["one_line"] = lambda text: " ".join(str(text).split())
    return environment


def _inlined(picture: Path) -> str:
    """A picture as a data URI, so that the page opens anywhere."""
    return f"data:image/svg+xml;base64,{b64encode(picture.read_bytes()).decode('ascii')}"


def _write(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8")
