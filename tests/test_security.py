"""No file, config or principal of somebody else's may run code unasked: held by reading the package's own sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mermaide_ray.config_file import ConfigLoader

REPOSITORY = Path(__file__).parent.parent
SOURCES = [*sorted((REPOSITORY / "mermaide_ray").rglob("*.py")), REPOSITORY / "cluster" / "submit.py"]
# What runs code that it is given, and the only module that may call it, if any: `registry` prints a dotted path before
# it imports it, `session` and `tuning` first look who may have written the pickles that RLlib and Tune will load.
GUARDED = {
    "eval": None,
    "exec": None,
    "compile": None,
    "__import__": None,
    "os.system": None,
    "torch.load": None,
    "np.load": None,
    "pd.read_pickle": None,
    "yaml.unsafe_load": None,
    "yaml.full_load": None,
    "importlib.import_module": "registry.py",
    "Mermaide.from_checkpoint": "session.py",
    "algorithm.restore_from_path": "session.py",
    "tune.Tuner.restore": "tuning.py",
}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def offences(source: str, module: str) -> Iterator[str]:
    """What a module does that it may not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (name for name in names if PICKLES & set(name.split(".")))
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if GUARDED.get(called, module) != module:
            yield called
        if called in ("yaml.load", "yaml.load_all") and ast.unparse(node.args[1]) != ConfigLoader.__name__:
            yield called
        if any(keyword.arg == "shell" for keyword in node.keywords):
            yield called


def test_package_runs_no_code_that_it_is_given() -> None:
    assert len(SOURCES) > 100
    found = {path: list(offences(path.read_text(encoding="utf-8"), path.name)) for path in SOURCES}
    assert {path: offence for path, offence in found.items() if offence} == {}


def test_yaml_is_read_safely() -> None:
    assert issubclass(ConfigLoader, yaml.SafeLoader)
    unsafe = {tag for tag in ConfigLoader.yaml_constructors if tag and "python" in tag}
    assert not unsafe
    assert not [tag for tag in ConfigLoader.yaml_multi_constructors if tag]


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "from ray import cloudpickle\nimport ray.cloudpickle",
        "eval(text)",
        "torch.load(path)",
        "yaml.load(text, yaml.UnsafeLoader)",
        "subprocess.run(command, shell=True)",
        "importlib.import_module(name)",
        "tune.Tuner.restore(path, trainable)",
    ],
)
def test_what_is_planted_is_found(planted: str) -> None:
    assert list(offences(planted, "somewhere.py"))
