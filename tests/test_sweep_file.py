"""Reading a sweep file: inheritance, scales, dimensions, and one sentence for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mermaide_ray.cli import main
from mermaide_ray.errors import InputError
from mermaide_ray.sweep.file import dump_sweep, load_sweep, read_sweep, schema
from mermaide_ray.sweep.plan import Plan
from mermaide_ray.sweep.sections import Sweep


def sweep_from(folder: Path, text: str, name: str = "mine.yaml", **arguments: Any) -> Sweep:
    (folder / name).write_text(text, encoding="utf-8")
    return load_sweep(folder / name, **arguments)


def problem(folder: Path, text: str, **arguments: Any) -> str:
    with pytest.raises(InputError) as raised:
        sweep_from(folder, text, **arguments)
    return str(raised.value)


def test_a_sweep_needs_no_more_than_a_question_and_is_named_after_its_file(tmp_path: Path) -> None:
    sweep = sweep_from(tmp_path, "question: Why?", name="why.yaml")
    assert (sweep.name, sweep.seeds, list(sweep.conditions)) == ("why", (0,), ["validation", "test"])


def test_seeds_are_a_number_or_a_list(tmp_path: Path) -> None:
    assert sweep_from(tmp_path, "{question: q, seeds: 3}").seeds == (0, 1, 2)
    assert sweep_from(tmp_path, "{question: q, seeds: [7, 3]}").seeds == (7, 3)
    assert "`seeds` must be a number of seeds >= 1" in problem(tmp_path, "{question: q, seeds: 0}")
    assert "`seeds` must name each value once" in problem(tmp_path, "{question: q, seeds: [1, 1]}")


def test_a_scale_is_laid_over_the_rest_and_laptop_is_the_default(tmp_path: Path) -> None:
    text = """
question: q
seeds: 5
settings: {environment: {horizon: 50, num_arms: 4}}
scales:
  smoke: {seeds: 1, settings: {environment: {horizon: 10}}}
  laptop: {seeds: 2}
"""
    smoke = sweep_from(tmp_path, text, scale="smoke")
    assert (smoke.seeds, smoke.settings["environment"]) == ((0,), {"horizon": 10, "num_arms": 4})
    assert sweep_from(tmp_path, text).seeds == (0, 1)
    assert "--scale must be one that the sweep has (smoke, laptop), got 'full'" in problem(tmp_path, text, scale="full")


def test_a_file_is_laid_over_what_it_extends_dimension_by_dimension(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        """
question: base
settings: {training: {env_steps: 1000, meta_lr: 0.01}}
search: {environment.num_arms: {grid: [2, 3]}, training.gamma: {uniform: [0.9, 1]}}
conditions: {near: {split: validation}, far: {split: test}}
scales: {smoke: {seeds: 1, settings: {training: {env_steps: 10}}}}
""",
        encoding="utf-8",
    )
    text = """
extends: base.yaml
question: mine
settings: {training: {env_steps: 2000}}
search: {environment.num_arms: {randint: [2, 9]}, training.gamma: null}
conditions: {far: null}
scales: {smoke: {seeds: 2}}
"""
    sweep = sweep_from(tmp_path, text)
    assert sweep.question == "mine"
    assert sweep.settings["training"] == {"env_steps": 2000, "meta_lr": 0.01}
    assert {key: dimension.randint for key, dimension in sweep.search.items()} == {"environment.num_arms": (2, 9)}
    assert list(sweep.conditions) == ["near"]
    smoke = sweep_from(tmp_path, text, scale="smoke")
    assert (smoke.seeds, smoke.settings["training"]["env_steps"]) == ((0, 1), 10)


def test_extending_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("extends: mine.yaml", encoding="utf-8")
    assert "`extends` must not lead back" in problem(tmp_path, "{question: q, extends: other.yaml}")


def test_an_override_changes_a_setting_of_every_trial(tmp_path: Path) -> None:
    sweep = sweep_from(tmp_path, "{question: q}", overrides={"training.env_steps": 7})
    assert sweep.settings == {"training": {"env_steps": 7}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{name: q}", "`question` must be given, got nothing"),
        ("{question: q, serach: {}}", "has no key 'serach' (did you mean 'search'?)"),
        ("{question: q, search: {a.b: {grid: [1], uniform: [0, 1]}}}", "must have exactly one of grid, choice"),
        ("{question: q, search: {a.b: {}}}", "got none"),
        ("{question: q, search: {a.b: {grid: [1, 1]}}}", "must name each value once"),
        ("{question: q, search: {a.b: {grid: [a/b]}}}", "letters, digits and . _ + -"),
        ("{question: q, search: {a.b: {loguniform: [0, 1]}}}", "loguniform must be above 0"),
        ("{question: q, search: {a.b: {uniform: [2, 1]}}}", "low <= high"),
        ("{question: q, conditions: {a: {settings: {training: {}}}}}", "a condition does not train"),
        ("{question: q, tune: {samples: 3}}", "`tune.samples` must be 1 where no dimension of `search` is drawn"),
        ("{question: q, tune: {searcher: optuna}}", "needs `search` dimensions that are all drawn"),
        ("{question: q, answer: {compare: seed}}", "`answer.compare` must be one of method, k, condition"),
        (
            "{question: q, search: {evaluation.k: {grid: [0, 1]}}, answer: {compare: evaluation.k}}",
            "`answer.compare` must be one of method, k, condition, got 'evaluation.k'",
        ),
        ("{question: q, conditions: {a: {k: [1, 1]}}}", "`conditions.a.k` must name each value once"),
        (
            "{question: q, search: {environment: {grid: {2: {num_arms: 2}}}}}",
            "`search.environment.grid.2` must be text (in quotes), got 2",
        ),
        ("[1]", "the config must be a mapping of sections, got a list"),
        ("", "`question` must be given, got nothing"),
        ("{question: q, answer: {measure: retrun}}", "(did you mean 'return'?)"),
        ("{question: q, answer: {conditions: [far]}}", "`answer.conditions` must be among validation, test"),
        ("{question: q, scales: {tiny: {}}}", "`scales` must be among smoke, laptop, full, got 'tiny'"),
        ("{question: q, methods: [rl2, rl2]}", "`methods` must name each method once"),
        ("{question: q, baselines: [never, oracle, never]}", "`baselines` must name each baseline once, got [never, "),
        ("{question: q, search: {a.b: {grid: ['02', '2']}}}", "labels that differ as numbers, too, got"),
        ("{question: q, search: {a.b: {choice: [1000000, 1.0e+6]}}}", "labels that differ as numbers, too, got"),
        (
            "{question: q, search: {environment.horizon: {grid: [5]}, environment: {grid: {x: {}}}}}",
            "`search` must hold no key that lies within another, got environment.horizon within environment (",
        ),
        (
            "{question: q, search: {agents.families: {grid: {x: {}}}, agents.families.ucb.weight: {grid: [1]}}}",
            "got agents.families.ucb.weight within agents.families (",
        ),
        (
            "{question: q, search: {agents.families.my_lab.agents:MINE: {grid: {x: {}}}, "
            "agents.families.my_lab.agents:MINE.weight: {grid: [1]}}}",
            "got agents.families.my_lab.agents:MINE.weight within agents.families.my_lab.agents:MINE (",
        ),
        ("{question: q, search: {evaluation.k: {choice: [0, 5]}}, tune: {samples: 3}}", "must be a grid (the same"),
        (
            "{question: q, search: {evaluation.k: {grid: [0, 1]}}, settings: {evaluation: {k: [7]}}}",
            "`settings.evaluation.k` (or --set) must be left out beside `search.evaluation.k`, got [7] (",
        ),
        (
            "{question: q, conditions: {a: {settings: {evaluation: {every: 0.2}}}}}",
            "`conditions.a` settings must leave out evaluation.every (a condition does not train), got 0.2 (",
        ),
        (
            "{question: q, conditions: {a: {k: [0], settings: {evaluation: {k: [1]}}}}}",
            "`conditions.a` k must be given once, got [0] and settings.evaluation.k = [1] (",
        ),
        ("{question: q, seeds: two}", "`seeds` must be a number of seeds or a list of seeds, got two"),
        ("{question: q, search: {a.b: [1, 2]}}", "`search.a.b` must say how it is varied, by exactly one of grid,"),
        ("{question: q, search: {a.b: {grid: [.nan]}}}", "grid must hold finite numbers, got .nan"),
        ("{question: q, search: {a.b: {grid: [1]}}, tune: {scheduler: pbt}}", "and no methods, got a grid of a.b"),
        ("{question: q, answer: {against: []}}", "`answer.against` must name something to compare with, got []"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence_with_the_file(text: str, sentence: str, tmp_path: Path) -> None:
    told = problem(tmp_path, text)
    assert sentence in told
    assert str(tmp_path / "mine.yaml") in told
    assert "\n" not in told


def test_no_baselines_at_all_may_be_asked_for(tmp_path: Path) -> None:
    assert sweep_from(tmp_path, "{question: q, baselines: []}").baselines == ()


def test_a_file_that_searches_k_may_take_away_what_the_one_below_sets(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("{question: q, settings: {evaluation: {k: [0, 1]}}}", encoding="utf-8")
    text = "{{extends: base.yaml, search: {{evaluation.k: {{grid: [2]}}}}, settings: {{{}}}}}"
    assert "must be left out beside" in problem(tmp_path, text.format(""))
    sweep = sweep_from(tmp_path, text.format("evaluation: {k: null}"))
    assert Plan(sweep, "mine.yaml").settings[0].experiment.evaluation.k == (2,)


def test_a_set_family_leaves_the_rest_of_the_mixture(tmp_path: Path) -> None:
    text = "{question: q, settings: {agents: {families: {softmax: {train: {temperature: [1, 2]}}, exp3: {train: {}}}}}}"
    changed = {"agents.families.softmax.train.temperature": [3, 4], "agents.families.my_lab.agents:MINE.weight": 2}
    families = sweep_from(tmp_path, text, overrides=changed).settings["agents"]["families"]
    assert families == {
        "softmax": {"train": {"temperature": [3, 4]}},
        "exp3": {"train": {}},
        "my_lab.agents:MINE": {"weight": 2},
    }
    # As in `train`: of the default mixture, too.
    families = sweep_from(tmp_path, "question: q", overrides=dict([*changed.items()][1:])).settings["agents"][
        "families"
    ]
    assert {"ucb", "epsilon_greedy", "my_lab.agents:MINE"} == set(families)


@pytest.mark.parametrize("text", ["", "[", "seeds: 1"])
def test_a_damaged_sweep_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(InputError, match=r"\(runs/mine/sweep.yaml\)$"):
        read_sweep(text, "runs/mine/sweep.yaml")


@pytest.mark.parametrize(
    ("scales", "arguments", "folder"),
    [
        ("{laptop: {seeds: 1}, smoke: {seeds: 1}}", [], "mine-laptop"),
        ("{laptop: {seeds: 1}, smoke: {seeds: 1}}", ["--scale", "smoke"], "mine-smoke"),
        ("{smoke: {seeds: 1}}", [], "mine"),
        ("{}", [], "mine"),
    ],
)
def test_results_go_to_a_folder_that_is_named_after_the_scale_if_there_is_one(
    scales: str, arguments: list[str], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots: list[str] = []
    monkeypatch.setattr("mermaide_ray.sweep.job.run_sweep", lambda sweep, where, root, *_: roots.append(root))
    (tmp_path / "mine.yaml").write_text(f"{{question: q, scales: {scales}}}", encoding="utf-8")
    assert main(["sweep", str(tmp_path / "mine.yaml"), *arguments]) == 0
    assert main(["sweep", str(tmp_path / "mine.yaml"), *arguments, "--storage", "s3://lab/all?region=x"]) == 0
    assert roots == [f"runs/{folder}", f"s3://lab/all/{folder}?region=x"]


def test_scales_take_the_place_of_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("{question: q, scales: [smoke]}", encoding="utf-8")
    sweep = sweep_from(tmp_path, "{extends: base.yaml, scales: {smoke: {seeds: 2}}}", scale="smoke")
    assert sweep.seeds == (0, 1)


@pytest.mark.parametrize("label", ["1e3", "12", "yes", "null", "0x1f"])
def test_labels_that_look_like_something_else_are_read_back_as_text(label: str, tmp_path: Path) -> None:
    sweep = sweep_from(tmp_path, f"{{question: q, search: {{environment: {{grid: {{'{label}': {{num_arms: 2}}}}}}}}}}")
    assert read_sweep(dump_sweep(sweep), "sweep.yaml") == sweep


def test_a_set_mixture_is_whole(tmp_path: Path) -> None:
    text = "{question: q, settings: {agents: {families: {ucb: {train: {ucb_coefficient: [0, 1]}}}}}}"
    sweep = sweep_from(tmp_path, text, overrides={"agents.families": {"exp3": {"train": {}}}})
    assert list(sweep.settings["agents"]["families"]) == ["exp3"]


def test_a_resolved_sweep_reads_back_as_it_was(tmp_path: Path) -> None:
    text = """
question: q
seeds: [3, 5]
search: {training.meta_lr: {loguniform: [1e-4, 1e-2]}, agents.families: {choice: {a: {ucb: {train: {}}}}}}
conditions: {far: {split: test, k: [0, 2], settings: {environment: {cost_weight: 1}}}}
answer: {compare: k}
"""
    sweep = sweep_from(tmp_path, text)
    assert read_sweep(dump_sweep(sweep), "sweep.yaml") == sweep


def test_the_schema_takes_what_the_reader_takes_and_refuses_what_it_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(json.dumps(schema()))
    validator = jsonschema.Draft202012Validator(told)
    jsonschema.Draft202012Validator.check_schema(told)
    good = yaml.safe_load(
        """
question: q
extends: base.yaml
settings: {training: {env_steps: 1000}}
search: {environment.num_arms: {grid: [2, 3]}}
seeds: 3
scales: {smoke: {seeds: 1, settings: {environment: {horizon: 10}}}}
"""
    )
    assert list(validator.iter_errors(good)) == []
    for wrong in (
        {"settings": {"training": {"env_step": 1}}},
        {"search": {"a": {"gird": [1]}}},
        {"scales": {"smoke": {"sedes": 1}}},
        {"sedes": 1},
    ):
        assert list(validator.iter_errors(good | wrong)), wrong
