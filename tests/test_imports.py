"""Who may import whom: the rules of the house, held by walking the source; and that start-up stays light."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import mermaide_ray

ROOT = Path(mermaide_ray.__file__).parent
PACKAGE = ROOT.name

# The validation of a config looks families up by name, in a function: settings are read everywhere, and naming a family
# there doesn't tell a network anything about it.
ALLOWED = {("mermaide_ray.agent_settings", "mermaide_ray.agents")}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(tree: ast.AST, module: str, typing_only: bool) -> Iterator[str]:
    """Dotted names that a module imports, in functions too; `typing_only` counts `if TYPE_CHECKING:` in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute here"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typing_only:
            for other in node.orelse:
                yield from imported(other, module, typing_only)
        else:
            yield from imported(node, module, typing_only)


@cache
def imports(module: str, typing_only: bool = False) -> set[str]:
    return set(imported(ast.parse(MODULES[module].read_text(encoding="utf-8")), module, typing_only))


@cache
def edges(module: str) -> set[str]:
    """Modules of the package that importing or calling into `module` may load, the packages around them included."""
    found: set[str] = set()
    for name in imports(module):
        parts = name.split(".")
        found |= {".".join(parts[:end]) for end in range(2, len(parts) + 1)} & MODULES.keys()
    return {name for name in found if (module, name) not in ALLOWED}


def reachable(module: str) -> set[str]:
    """`module` and all of the package that it reaches, through functions too."""
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += edges(name)
    return seen


def inside(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


def rooms(*names: str) -> list[str]:
    found = [module for module in MODULES for name in names if inside(module, f"{PACKAGE}.{name}")]
    assert found, f"no module in {names}"
    return found


def uses(modules: set[str], *libraries: str) -> set[tuple[str, str]]:
    """(module, library) wherever one of the modules imports one of the libraries."""
    return {
        (module, library)
        for module in modules
        for library in libraries
        for name in imports(module)
        if inside(name, library)
    }


@pytest.mark.parametrize("module", rooms("models", "learners"))
def test_what_is_trained_cannot_name_what_it_must_generalise_to(module: str) -> None:
    forbidden = (f"{PACKAGE}.agents", f"{PACKAGE}.envs")
    # Directly not even for a type; through other modules not at run time.
    named = {name for name in imports(module, typing_only=True) for room in forbidden if inside(name, room)}
    reached = {name for name in reachable(module) for room in forbidden if inside(name, room)}
    assert (named, reached) == (set(), set())


def test_only_the_sweep_imports_tune() -> None:
    assert {module for module, _ in uses(set(MODULES), "ray.tune")} == {
        f"{PACKAGE}.sweep.{name}" for name in ("search", "trainable", "tuning")
    }


@pytest.mark.parametrize("module", rooms("report"))
def test_report_reads_files_without_ray_or_torch(module: str) -> None:
    # A plan draws settings by a generator of `noise`, where Torch is imported for the dice of episodes alone.
    assert uses(reachable(module), "ray", "torch") <= {(f"{PACKAGE}.noise", "torch")}


@pytest.mark.parametrize("module", [m for m in rooms("agents", "envs.incentive") if m != f"{PACKAGE}.agents.rl_module"])
def test_agents_and_incentives_know_no_ray(module: str) -> None:
    assert uses(reachable(module), "ray") == set()


def test_the_walk_sees_imports_in_functions_of_submodules_and_for_types() -> None:
    source = """
import ray.tune
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from torch import Tensor
def later():
    from mermaide_ray.agents import distribution
"""
    tree = ast.parse(source)
    found = set(imported(tree, "m", typing_only=False))
    assert {"ray.tune", "mermaide_ray.agents", "mermaide_ray.agents.distribution"} <= found
    assert "torch" not in found
    assert "torch" in set(imported(tree, "m", typing_only=True))
    # Lockstep plays agents in environments: the walk must find both from there.
    assert {f"{PACKAGE}.agents.base", f"{PACKAGE}.envs.incentive"} <= reachable(f"{PACKAGE}.lockstep")


LIGHT = """
import json, resource, sys
from mermaide_ray.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
usage = resource.getrusage(resource.RUSAGE_SELF)
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"ray", "torch", "pandas", "matplotlib"})
print(json.dumps({"code": code, "heavy": heavy, "cpu": usage.ru_utime + usage.ru_stime}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["config"], 0),
        (["agents"], 0),
        (["envs"], 0),
        (["baselines"], 0),
        (["train", "--set", "training.meta_rl=1"], 2),
        (["train", "--set", "agents.families.ucb.test={ucb_coefficient: [0, 1]}"], 2),
        (["train", "--config", "none.yaml"], 2),
        (["train", "--baseline", "none"], 2),
        (["train", "--config", "sweep.yaml"], 2),
        (["train", "--out", "."], 2),
        (["train", "--resume", "."], 2),
        (["stock-ppo", "--out", "."], 2),
        (["evaluate", "none"], 2),
        (["evaluate", "."], 2),
        (["export", ".", "--out", "new"], 2),
        (["report", "--help"], 0),
        (["report", "none"], 2),
        (["cluster", "check", "none.yaml"], 2),
        (["sweep", "--help"], 0),
        (["sweep", "none.yaml"], 2),
        (["sweep", "sweep.yaml", "--dry-run"], 0),
        (["sweep", "sweep.yaml", "--set", "training.meta_rl=1"], 2),
        (["schema"], 0),
        (["schema", "--markdown"], 0),
        (["tensorboard", "none"], 2),
    ],
)
def test_help_lists_and_config_errors_answer_within_a_second_without_ray_or_torch(
    arguments: list[str], code: int, tmp_path: Path
) -> None:
    search = "search: {environment.cost_weight: {grid: [0.1, 1]}}"
    (tmp_path / "sweep.yaml").write_text(f"question: Which alpha?\n{search}\n", encoding="utf-8")
    command = [sys.executable, "-c", LIGHT, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True, timeout=60
    )
    seen = json.loads(done.stderr.splitlines()[-1])
    assert (seen["code"], seen["heavy"]) == (code, [])
    assert seen["cpu"] < 1.0
