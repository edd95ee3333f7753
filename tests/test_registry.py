"""Names that users write: registered, or a dotted path to code of their own."""

import sys
from pathlib import Path

import pytest

from mermaide_ray.errors import InputError
from mermaide_ray.registry import lookup, near

REGISTERED = {"seven": 7, "eight": 8}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def refusal(name: str) -> str:
    with pytest.raises(InputError) as caught:
        lookup(name, REGISTERED, int, "number")
    return str(caught.value)


def test_registered_name_gives_the_registered_object() -> None:
    assert lookup("seven", REGISTERED, int, "number") == 7


def test_dotted_path_gives_the_object_in_a_file_of_the_current_folder(here: Path) -> None:
    (here / "registry_mine.py").write_text("NINE = 9\n")
    assert lookup("registry_mine:NINE", REGISTERED, int, "number") == 9


def test_dotted_path_is_printed_before_it_is_imported_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "registry_printed.py").write_text("import sys\nprint('imported', file=sys.stderr)\nNINE = 9\n")
    for _ in range(2):
        lookup("registry_printed:NINE", REGISTERED, int, "number")
    assert capsys.readouterr().err == "importing registry_printed:NINE (number)\nimported\n"
    # The package's own modules, which registries name in the same way, run nobody else's code.
    lookup("mermaide_ray.baselines.stock_ppo:__name__", REGISTERED, str, "number")
    assert capsys.readouterr().err == ""


def test_file_in_the_current_folder_does_not_hide_an_installed_module(here: Path) -> None:
    (here / "colorsys.py").write_text("rgb_to_hsv = 5\n")
    with pytest.raises(InputError, match="must be of type int, got function"):
        lookup("colorsys:rgb_to_hsv", REGISTERED, int, "number")


def test_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    assert refusal("sevn") == (
        "number must be one of seven, eight, or a dotted path `package.module:NAME`, got 'sevn' (did you mean 'seven'?)"
    )
    assert "did you mean" not in refusal("zzz")


@pytest.mark.parametrize("name", [":NINE", "mine:", "mine:a.b", ".mine:NINE", "my lab:NINE", "mine:NINE:TEN", "a..b:C"])
def test_malformed_dotted_path_is_refused(name: str) -> None:
    assert refusal(name) == f"number must be a dotted path `package.module:NAME`, got {name!r}"


def test_module_that_is_missing_or_fails_is_refused_with_its_own_words(here: Path) -> None:
    assert "got ModuleNotFoundError: No module named 'registry_none'" in refusal("registry_none:X")
    (here / "registry_syntax.py").write_text("def\n")
    assert "got SyntaxError" in refusal("registry_syntax:X")
    (here / "registry_raises.py").write_text("1 / 0\n")
    assert "got ZeroDivisionError: division by zero" in refusal("registry_raises:X")


def test_missing_attribute_and_wrong_type_are_refused(here: Path) -> None:
    (here / "registry_attribute.py").write_text("NINE = 'nine'\n")
    assert "has no 'NIEN' (did you mean 'NINE'?)" in refusal("registry_attribute:NIEN")
    assert refusal("registry_attribute:NINE") == "number 'registry_attribute:NINE' must be of type int, got str"


def test_near_names_the_closest_or_nothing() -> None:
    assert near("horizont", ["horizon", "delta"]) == " (did you mean 'horizon'?)"
    assert near("xyz", ["horizon", "delta"]) == ""
