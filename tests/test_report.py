"""The report's files: one page that opens anywhere, Markdown whose links hold, LaTeX that compiles; the command."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from sweep_folders import METHODS, Effects, write_sweep

from mermaide_ray.cli import main
from mermaide_ray.errors import InputError
from mermaide_ray.report import document
from mermaide_ray.report.document import LIST, Report, write_report
from mermaide_ray.report.document_table import Table, escape_latex
from mermaide_ray.report.pictures import pictures
from mermaide_ray.report.provenance import failed_table, origin_table
from mermaide_ray.report.study import read_study

ODD = "50% of <b>_{arms} & $more$ #1 ~^\\"
PICTURES = {
    "comparison",
    "kshot_curve",
    "performance_profiles",
    "over_meta_lr",
    "shift_meta_lr_condition",
    "pareto_front",
    "learning_curves",
    "adaptation_gain",
    "world_model_loss",
    "calibration",
    "intervention_heatmap",
}


class Page(HTMLParser):
    """What a page fetches, its images, and the text that it shows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.tags.append(tag)
        self.fetched += [told[key] or "" for key in ("src", "srcset", "data") if key in told]
        self.fetched += [told.get("href") or ""] if tag == "link" else []
        if tag == "img":
            self.images.append(told)
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A sweep with a claim, an oddly named method that fails in several ways, and a failed run."""
    methods = {**METHODS, ODD: Effects(score=0.5, gain=-0.1, model_margin=-0.2, seed_offsets={0: -0.3})}
    folder = write_sweep(
        tmp_path_factory.mktemp("report") / "sweep",
        methods,
        {"training.meta_lr": [0.001, 0.01]},
        answer={"compare": "method", "value": "mermaide", "against": ["rl2"], "conditions": ["test"]},
        failed=[("rl2", 4)],
        tasks=8,
    )
    return write_report([folder])


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(report.html.read_text(encoding="utf-8"))


def test_the_page_is_one_file_that_fetches_nothing(report: Report, page: Page) -> None:
    assert page.fetched
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.fetched)
    assert "script" not in page.tags
    style = report.html.read_text(encoding="utf-8").partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert page.open == []


def test_every_picture_has_an_alternative_text_with_numbers(report: Report, page: Page) -> None:
    assert len(page.images) == len(PICTURES)
    for image in page.images:
        assert len(image["alt"] or "") > 40
    assert sum(bool(re.search(r"\d", image["alt"] or "")) for image in page.images) >= len(PICTURES) - 1
    for kind in ("png", "pdf", "svg"):
        assert {path.stem for path in (report.folder / "figures").glob(f"*.{kind}")} == PICTURES


def test_the_page_says_question_answer_findings_and_origin(report: Report, page: Page) -> None:
    assert report.answer.verdict == "supported"
    shown = " ".join(page.text.split())
    for text in (
        "Does adaptation pay on agents that were never met?",
        report.answer.sentence,
        *(finding.text for finding in report.findings),
        ODD,
        "0123456789abcdef0123456789abcdef01234567",
        "torch 2.13.0",
        "mermaide sweep tune_configs/sweep.yaml",
        "RunFault: the loss must be finite, got nan",
        "laptop",
        "meta_lr",
    ):
        assert " ".join(text.split()) in shown
    assert {finding.check for finding in report.findings} >= {"failed_trials", "adaptation", "world_model_floor"}
    # 29 runs of 50 s; the failed one's time counts as well.
    assert "wall hours" in shown
    assert f"{30 * 50 / 3600:.2f}" in shown


def test_the_page_follows_the_readers_colours_and_prints(report: Report) -> None:
    style = report.html.read_text(encoding="utf-8").partition("</style>")[0]
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_links_in_the_markdown_and_the_page_lead_to_files(report: Report) -> None:
    markdown = (report.folder / "report.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", markdown)
    links = re.findall(r'href="([^"#]+)"', report.html.read_text(encoding="utf-8"))
    assert {Path(link).stem for link in pictures} == PICTURES
    assert len(links) > 3 * len(PICTURES)
    for link in (*pictures, *links):
        assert (report.folder / link).is_file()
    assert report.answer.sentence in markdown
    table = next(block for block in markdown.split("\n\n") if block.startswith("| method | K |"))
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
    assert len(widths) == 1


def test_pictures_are_well_formed(report: Report) -> None:
    for svg in (report.folder / "figures").glob("*.svg"):
        ElementTree.parse(svg)


def test_latex_tables_are_well_formed_and_escaped(report: Report) -> None:
    tables = sorted((report.folder / "tables").glob("*.tex"))
    assert {table.stem for table in tables} >= {"comparison", "scores_test", "scores_validation", "by_meta_lr"}
    for table in tables:
        text = table.read_text(encoding="utf-8")
        columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
        assert columns is not None
        for rule in ("toprule", "midrule", "bottomrule"):
            assert f"\\{rule}" in text
        lines = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len(lines) > 1
        for line in lines:
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns[1]) - 1
            assert not re.search(r"(?<!\\)[%#_]", line)
        assert text.isascii()
    assert escape_latex(ODD) in (report.folder / "tables" / "scores_test.tex").read_text(encoding="utf-8")


def test_every_special_letter_of_latex_is_escaped() -> None:
    assert escape_latex(r"a_b & 5% {x} $y$ #1 ~^\<|>") == (
        r"a\_b \& 5\% \{x\} \$y\$ \#1 \textasciitilde{}\textasciicircum{}\textbackslash{}\textless{}"
        r"\textbar{}\textgreater{}"
    )
    assert escape_latex("3 × 4 ≥ 1 – 2…") == r"3 $\times$ 4 $\geq$ 1 -- 2\dots{}"


def test_a_cell_that_begins_with_a_bracket_is_no_argument_of_the_line_before() -> None:
    table = Table("t", "T", ("a", "b"), (("x", "1"), ("[0, 1]", "a|b")), rules=frozenset({1}))
    assert "\\midrule\n{[0, 1]} & a\\textbar{}b \\\\" in table.to_latex()
    assert table.to_markdown().splitlines()[-1] == r"| [0, 1] | a\|b |"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_tables_compile(report: Report, tmp_path: Path) -> None:
    inputs = "\n".join(rf"\input{{{table}}}" for table in sorted((report.folder / "tables").glob("*.tex")))
    document = (
        r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}\begin{document}"
        f"\n{inputs}\n" + r"\end{document}"
    )
    (tmp_path / "all.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)


def test_a_second_report_replaces_the_first_with_the_same_bytes(tmp_path: Path) -> None:
    options = {"seeds": 2, "tasks": 4, "ks": (0,), "curves": False, "profiles": False}
    folder = write_sweep(tmp_path / "sweep", {"mermaide": Effects(model_margin=None)}, **options)
    rows = pd.read_parquet(folder / "rows.parquet")
    pd.concat([rows, rows[rows["method"] == "mermaide"].assign(k=1)]).to_parquet(folder / "rows.parquet")
    report = write_report([folder])
    assert (report.folder / "figures" / "kshot_curve.png").is_file()
    rows.to_parquet(folder / "rows.parquet")
    kept = folder / "report" / "mine.txt"
    kept.touch()
    write_report([folder])
    drawn = {path.stem for path in (report.folder / "figures").glob("*.*g")}
    # One K, no world model, no progress, no profiles: what can't be drawn isn't.
    assert drawn == {"comparison", "performance_profiles", "pareto_front"}
    assert kept.exists()
    first = {path: path.read_bytes() for path in report.folder.rglob("*") if path.is_file()}
    write_report([folder])
    assert {path: path.read_bytes() for path in report.folder.rglob("*") if path.is_file()} == first


FAST: dict[str, Any] = {"seeds": 2, "tasks": 4, "ks": (0,), "curves": False, "profiles": False}


def test_settings_whose_keys_end_alike_have_pictures_and_tables_of_their_own(tmp_path: Path) -> None:
    keys = [f"agents.families.{family}.weight" for family in ("ucb", "epsilon_greedy")]
    folder = write_sweep(tmp_path / "sweep", {"mermaide": Effects()}, {key: [1.0, 2.0] for key in keys}, **FAST)
    report = write_report([folder])
    page = (report.folder / "report.md").read_text(encoding="utf-8")
    for place, key in enumerate(keys):
        name = f"over_weight{'' if not place else '_2'}"
        after = page[page.index(f"### Score over {key}") :]
        assert f"](figures/{name}.png)" in after[: after.index("\n### ")]
        assert (report.folder / "figures" / f"{name}.png").is_file()
    assert {path.stem for path in (report.folder / "tables").glob("by_*")} == {"by_weight", "by_weight_2"}


@pytest.mark.parametrize("mine", ["figures/plot.png", "tables/mine.csv", "tables", "report.md", "figures/own/plot.png"])
def test_what_no_report_wrote_is_not_replaced(mine: str, tmp_path: Path) -> None:
    paper = tmp_path / "paper"
    (paper / mine).parent.mkdir(parents=True)
    (paper / mine).write_text("mine")
    # Nothing is read before: there is no such run.
    with pytest.raises(
        InputError, match=rf"not replace what no report wrote, but {paper / mine.partition('/plot')[0]}"
    ):
        write_report([tmp_path / "none"], paper)
    assert [path for path in paper.rglob("*") if path.is_file()] == [paper / mine]


def test_what_is_put_among_a_reports_files_is_kept_and_the_rest_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "pictures", lambda *given: islice(pictures(*given), 1))
    folder = write_sweep(tmp_path / "sweep", {"mermaide": Effects(model_margin=None)}, **FAST)
    report = write_report([folder])
    mine = report.folder / "figures" / "mine.png"
    mine.touch()
    with pytest.raises(InputError, match=f"must not replace what no report wrote, but {mine}"):
        write_report([folder])
    mine.unlink()
    # Killed before it had its pages, or written by an older version.
    report.html.unlink()
    with pytest.raises(InputError, match=r"no report wrote, but .*report\.md is such a file"):
        write_report([folder])
    (report.folder / "report.md").unlink()
    write_report([folder])
    for name in ("figures", "tables"):
        (report.folder / name / LIST).unlink()
    assert write_report([folder]).html.is_file()


def test_tracebacks_are_promised_only_of_runs_that_failed(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", failed=[("rl2", 1)], **FAST)
    table = failed_table(read_study([folder]).sources)
    assert table is not None
    assert table.caption == "The folder failures/ of the sweep holds configs and tracebacks of those that failed."
    trials = pd.read_parquet(folder / "trials.parquet")
    trials.assign(status=trials["status"].replace("failed", "stopped")).to_parquet(folder / "trials.parquet")
    table = failed_table(read_study([folder]).sources)
    assert table is not None
    assert (len(table.rows), table.caption) == (1, "")


def test_provenance_tells_whose_code_trained_what_was_adopted(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", **FAST)
    trials = pd.read_parquet(folder / "trials.parquet")
    codes = ["a" if row % 2 else "b" for row in range(len(trials))]
    trials.assign(sources="c", trained_sources=codes).to_parquet(folder / "trials.parquet")
    told = {row[0]: row[1] for row in origin_table(read_study([folder]).sources).rows}
    assert told["sources"] == "c"
    assert told["sources that trained, elsewhere"] == "b (2 runs), a (2 runs)"
    assert told["environment steps"] == "0"
    # A run that was not adopted, and one of before this was on record.
    trials.assign(sources=["c", "c", "c", None], trained_sources=["a", "a", "a", None]).to_parquet(
        folder / "trials.parquet"
    )
    told = {row[0]: row[1] for row in origin_table(read_study([folder]).sources).rows}
    assert told["sources"] == "c (3 runs), unknown (1 runs)"
    assert told["sources that trained, elsewhere"] == "a (3 runs), trained here (1 runs)"


def test_provenance_tells_with_what_other_code_a_run_went_on(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "run", **FAST)
    (folder / "sweep.yaml").unlink()
    record = {"sources": "a", "continued": [{"started": "later", "sources": "b", "commit": "1234"}]}
    (folder / "provenance.json").write_text(json.dumps(record), encoding="utf-8")
    told = {row[0]: row[1] for row in origin_table(read_study([folder]).sources).rows}
    assert (told["sources"], told["continued with other code"]) == ("a", "later: sources b, 1234")


def test_the_command_prints_answer_findings_and_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "FORMATS", ("svg",))
    options = {"seeds": 2, "tasks": 4, "ks": (0,), "curves": False, "profiles": False}
    folders = [
        write_sweep(tmp_path / name, {name: Effects(model_margin=None)}, failed=[(name, 1)], **options)
        for name in ("maml", "rl2")
    ]
    assert main(["report", *map(str, folders), "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "maml reaches a normalised score of" in out
    assert "training runs failed" in out
    assert str(tmp_path / "out" / "report.html") in out
    assert (tmp_path / "out" / "report.html").is_file()


def test_mistakes_of_the_command_end_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("in the way")
    options = {"seeds": 2, "tasks": 4, "ks": (0,), "curves": False, "profiles": False}
    folder = write_sweep(tmp_path / "sweep", {"mermaide": Effects()}, **options)
    for arguments, code, expected in (
        (["report"], 2, "required: DIR"),
        (["report", str(tmp_path / "none")], 2, "needs the folder of a sweep or a run, got"),
        (["report", str(tmp_path)], 2, "got neither in"),
        (["report", str(folder), "--out", str(blocked)], 2, "--out must be a folder, got"),
        (["report", str(folder), "--out", str(blocked / "beneath")], 1, "the report must be writable, but"),
    ):
        assert main(arguments) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("mermaide: error: ")
        assert expected in err
        assert err.count("\n") == 1
