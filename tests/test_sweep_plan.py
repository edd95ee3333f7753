"""From a sweep to its trials."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from mermaide_ray.agents.distribution import Tasks
from mermaide_ray.baselines.rules import FixedRule
from mermaide_ray.cli import main
from mermaide_ray.errors import InputError
from mermaide_ray.experiment import Experiment, load_experiment, variant
from mermaide_ray.report.sources import number
from mermaide_ray.sweep.checks import check_plan
from mermaide_ray.sweep.file import validate_sweep
from mermaide_ray.sweep.plan import Plan, budget_of
from mermaide_ray.sweep.sections import typed


def plan_of(**sections: Any) -> Plan:
    plan = Plan(validate_sweep({"question": "q", "name": "test", **sections}, "test.yaml"), "test.yaml")
    check_plan(plan)
    return plan


def test_a_grid_is_gone_through_seed_by_seed() -> None:
    plan = plan_of(
        search={"environment.num_arms": {"grid": [3, 4]}, "environment.cost_weight": {"grid": [0.1, 0.5, 1.0]}}, seeds=2
    )
    names = [trial.name for trial in plan.trials]
    assert names[:2] == ["num_arms=3,cost_weight=0.1,seed=0", "num_arms=3,cost_weight=0.5,seed=0"]
    assert names[6] == "num_arms=3,cost_weight=0.1,seed=1"
    assert (len(plan.settings), plan.num_runs) == (6, 12)
    last = plan.settings[-1].experiment.environment
    assert (last.num_arms, last.cost_weight) == (4, 1.0)
    assert plan.settings[-1].with_seed(1).seed == 1


def test_without_anything_to_vary_a_trial_is_its_seed() -> None:
    assert [trial.name for trial in plan_of(seeds=[4]).trials] == ["seed=4"]


def test_short_names_stay_apart() -> None:
    plan = plan_of(search={"meta_learning.inner_lr": {"grid": [0.1]}, "training.gamma": {"grid": [1.0]}})
    assert plan.settings[0].name == "inner_lr=0.1,gamma=1"
    search = {f"agents.families.{name}.weight": {"grid": [1]} for name in ("ucb", "epsilon_greedy")}
    assert plan_of(search=search).settings[0].name == (
        "agents.families.ucb.weight=1,agents.families.epsilon_greedy.weight=1"
    )


def test_methods_are_variants_of_one_setting() -> None:
    plan = plan_of(methods=["mermaide", "rl2"], settings={"training": {"env_steps": 10_000}})
    names = [setting.name for setting in plan.settings]
    assert names == ["method=mermaide", "method=rl2"]
    base = load_experiment(overrides={"training.env_steps": 10_000})
    assert plan.settings[1].experiment == variant(base, "rl2")


def test_a_method_that_sets_what_is_searched_is_refused() -> None:
    with pytest.raises(InputError, match=r"method rl2 sets meta_learning.inner_steps to 0"):
        plan_of(methods=["mermaide", "rl2"], search={"meta_learning.inner_steps": {"grid": [1, 2]}})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"meta_learning": {"inner_steps": 3}}, "method maml sets meta_learning.inner_steps to 1, got 3 (test.yaml"),
        ({"name": "mine"}, "method maml sets name to maml, got mine (test.yaml, trial method=maml)"),
        (
            {"evaluation": {"planning": True}},
            "sets evaluation.planning to false, got true (a condition may set it, for scoring; test.yaml",
        ),
    ],
)
def test_a_method_that_sets_what_is_given_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)) as refused:
        plan_of(methods=["maml", "mermaide"], settings=settings)
    assert str(refused.value).startswith("`settings` (and --set) must hold what all methods leave open, but")
    # Of the sweep's own preset, methods change what they are about.
    plan_of(preset="mermaide_learner", methods=["maml", "mermaide"])


def test_what_a_method_sets_as_it_is_given_is_not_refused() -> None:
    plan_of(methods=["maml"], settings={"name": "maml", "meta_learning": {"inner_steps": 1}})


def test_a_condition_may_set_what_methods_set() -> None:
    planned = {"planned": {"settings": {"evaluation": {"planning": True}}}}
    plan = plan_of(methods=["maml"], conditions=planned)
    ((_, experiment, _),) = plan.scored_in(plan.settings[0])
    assert experiment.evaluation.planning


def test_a_method_without_support_plays_the_given_episodes_as_query() -> None:
    given = {"meta_learning": {"adaptation_episodes": 3, "query_episodes": 2}}
    plan = plan_of(methods=["mermaide", "reinforce"], settings=given)
    made = [setting.experiment.meta_learning for setting in plan.settings]
    assert [(meta.adaptation_episodes, meta.query_episodes) for meta in made] == [(3, 2), (0, 5)]
    # One that adapts would play another number of support episodes than is given.
    given = {"meta_learning": {"adaptation_episodes": 0, "query_episodes": 5}}
    with pytest.raises(InputError, match=r"method mermaide sets meta_learning.adaptation_episodes to 1, got 0"):
        plan_of(preset="reinforce", methods=["reinforce", "mermaide"], settings=given)


def test_a_method_that_sets_k_is_refused_beside_a_search_of_k() -> None:
    with pytest.raises(
        InputError, match=r"`search` must vary .*method paper sets evaluation.k to \[0, 1\], got \[0, 5\]"
    ):
        plan_of(methods=["paper"], search={"evaluation.k": {"grid": [0, 5]}})


def test_k_as_a_dimension_multiplies_no_trial() -> None:
    plan = plan_of(search={"evaluation.k": {"grid": [0, 1, 5]}, "training.gamma": {"grid": [0.9, 1.0]}})
    assert [setting.name for setting in plan.settings] == ["gamma=0.9", "gamma=1"]
    assert plan.settings[0].experiment.evaluation.k == (0, 1, 5)
    assert plan.metric == "validation/score_k5"


def test_values_with_labels_go_by_their_labels() -> None:
    narrow = {"ucb": {"train": {"ucb_coefficient": [0.1, 0.2]}, "test": {"ucb_coefficient": [0.6, 1.5]}}}
    plan = plan_of(search={"agents.families": {"grid": {"narrow": narrow}}})
    assert plan.settings[0].name == "families=narrow"
    # The value replaces the mixture whole: no family of the default is left in it.
    assert list(plan.settings[0].experiment.agents.families) == ["ucb"]


def test_draws_keep_to_their_ranges_and_more_samples_keep_the_earlier_ones() -> None:
    search = {
        "training.meta_lr": {"loguniform": [1e-4, 1e-2]},
        "training.gamma": {"uniform": [0.9, 1.0]},
        "world_model.hidden_size": {"randint": [8, 16]},
        "training.baseline": {"choice": ["value", "leave_one_out"]},
        "environment.num_arms": {"grid": [3, 4]},
    }
    settings = {"meta_learning": {"adaptation_episodes": 2}}
    few = plan_of(search=search, settings=settings, tune={"samples": 5})
    many = plan_of(search=search, settings=settings, tune={"samples": 40})
    assert [s.name for s in few.settings] == [s.name for s in many.settings][: len(few.settings)]
    assert (len(few.settings), len(many.settings)) == (10, 80)
    drawn = [s.experiment for s in many.settings]
    assert all(1e-4 <= e.training.meta_lr <= 1e-2 and 0.9 <= e.training.gamma <= 1 for e in drawn)
    assert {e.world_model.hidden_size for e in drawn} == set(range(8, 17))
    # Half of a loguniform range lies below its geometric middle.
    assert 10 <= sum(e.training.meta_lr < 1e-3 for e in drawn) / 2 <= 30
    other = plan_of(search=search, settings=settings, tune={"samples": 5, "seed": 1})
    assert [s.name for s in few.settings] != [s.name for s in other.settings]


def test_equal_draws_are_one_run() -> None:
    plan = plan_of(search={"world_model.hidden_size": {"randint": [8, 9]}}, tune={"samples": 10})
    assert sorted(setting.name for setting in plan.settings) == ["hidden_size=8", "hidden_size=9"]


def test_seeds_share_trials_as_resources_say_and_under_a_scheduler_all_do() -> None:
    assert [trial.name for trial in plan_of(seeds=5, resources={"seeds_per_trial": 2}).trials] == [
        "seed=0-1",
        "seed=2-3",
        "seed=4",
    ]
    judged = plan_of(seeds=5, search={"training.gamma": {"grid": [0.9, 1.0]}}, tune={"scheduler": "asha"})
    assert [len(trial.seeds) for trial in judged.trials] == [5, 5]


GPU = {"CPU": 1, "GPU": 1}


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, [{"CPU": 1}]),
        ({"resources": {"gpus": 0.5}}, [{"CPU": 1, "GPU": 0.5}]),
        (
            {"settings": {"env_runners": {"num_env_runners": 1, "num_gpus_per_learner": 0.25}}},
            [{"CPU": 1, "GPU": 0.25}, {"CPU": 1}],
        ),
        ({"settings": {"env_runners": {"num_learners": 2, "num_gpus_per_learner": 1}}}, [{"CPU": 1}, GPU, GPU]),
        # Whatever a trial's settings are.
        ({"search": {"env_runners.num_gpus_per_learner": {"grid": [0, 1]}}}, [GPU]),
        # Its runs take turns, each with actors of its own.
        (
            {"settings": {"env_runners": {"num_learners": 1}}, "seeds": 4, "resources": {"seeds_per_trial": 2}},
            [{"CPU": 1}] * 2,
        ),
    ],
)
def test_a_trial_is_given_what_its_runs_need_in_turn(
    sections: dict[str, Any], expected: list[dict[str, float]]
) -> None:
    assert plan_of(**sections).bundles == expected


def test_a_condition_may_change_agents_and_game_but_not_what_the_networks_are_made_for() -> None:
    plan = plan_of(conditions={"dear": {"split": "test", "settings": {"environment": {"cost_weight": 2}}, "k": [3]}})
    ((name, experiment, ks),) = plan.scored_in(plan.settings[0])
    assert (name, experiment.environment.cost_weight, ks) == ("dear", 2.0, (3,))
    assert plan.settings[0].experiment.environment.cost_weight == 0.3
    with pytest.raises(InputError, match=r"`conditions.wide` must keep the num_arms"):
        plan_of(conditions={"wide": {"settings": {"environment": {"num_arms": 20}}}})
    wide = {"wide": {"settings": {"environment": {"num_arms": 20}}}}
    plan_of(preset="mermaide", settings={"world_model": {"arms": "equivariant"}}, conditions=wide)


def test_methods_may_play_a_game_that_the_default_method_cannot() -> None:
    plan = plan_of(methods=["mermaide", "rl2"], settings={"environment": {"game": "continuous"}})
    assert [setting.experiment.name for setting in plan.settings] == ["mermaide", "rl2"]
    # The game itself, for the rules.
    assert plan.setting({}).experiment.environment.game == "continuous"
    with pytest.raises(InputError, match=r"`environment.game` must be arms where world_model.kind is learner"):
        plan_of(methods=["mermaide_learner"], settings={"environment": {"game": "continuous"}})
    with pytest.raises(InputError, match=r"`environment.game` must be arms where world_model.kind is learner"):
        plan_of(settings={"environment": {"game": "continuous"}})


def test_what_is_wrong_with_a_combination_names_the_trial() -> None:
    with pytest.raises(InputError, match=r"test.yaml, trial num_arms=1"):
        plan_of(search={"environment.num_arms": {"grid": [2, 1]}})
    # A searcher that finds its settings as it goes is checked at the ends of its ranges.
    with pytest.raises(InputError, match=r"`training.gamma` must be .* got 1.5"):
        plan_of(search={"training.gamma": {"uniform": [0.5, 1.5]}}, tune={"searcher": "optuna", "samples": 2})


@pytest.mark.parametrize("tune", [{"searcher": "optuna", "samples": 2}, {"scheduler": "pbt", "samples": 2}])
def test_each_alternative_of_a_search_is_checked(tune: dict[str, Any]) -> None:
    search = {"training.minibatches": {"choice": [2, 100, 4]}}
    with pytest.raises(InputError, match=r"`meta_learning.meta_batch_size` must be >= training.minibatches \(100\)"):
        plan_of(search=search, tune=tune)


@pytest.mark.parametrize(
    "search",
    [
        {"world_model.hidden_size": {"randint": [4, 8]}},  # weights that fit no other member
        {"meta_learning.meta_batch_size": {"choice": [12, 48]}},  # iterations of other length
        {"training.env_steps": {"choice": [100_000, 200_000]}},
    ],
    ids=lambda search: next(iter(search)),
)
def test_a_population_draws_only_what_may_change_during_training(search: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"must hold what may change during training .* got {next(iter(search))} "):
        plan_of(search=search, tune={"scheduler": "pbt", "samples": 2})
    plan_of(search=search, tune={"searcher": "optuna", "samples": 2})


def test_a_population_may_draw_sections_and_numbers_of_inner_steps() -> None:
    tune = {"scheduler": "pbt", "samples": 2}
    plan_of(search={"training": {"choice": {"slow": {"meta_lr": 1e-4}, "fast": {"meta_lr": 1e-3}}}}, tune=tune)
    plan_of(search={"meta_learning.inner_steps": {"randint": [1, 3]}}, tune=tune)
    with pytest.raises(InputError, match=r"got training.env_steps \(test.yaml\)"):
        plan_of(search={"training": {"choice": {"a": {"env_steps": 10**6}, "b": {"gamma": 0.9}}}}, tune=tune)
    with pytest.raises(InputError, match=r"got meta_learning.inner_steps"):
        plan_of(search={"meta_learning.inner_steps": {"randint": [0, 3]}}, tune=tune)


@pytest.mark.parametrize(
    ("tune", "every", "acts"),
    [
        ({"scheduler": "asha", "asha": {"grace": 0.2}}, 0.5, True),
        ({"scheduler": "asha", "asha": {"grace": 0.5}}, 0.5, True),
        ({"scheduler": "asha", "asha": {"grace": 0.6}}, 0.5, False),
        ({"scheduler": "asha", "asha": {"grace": 0.6}}, 0.3, True),
        ({"scheduler": "asha", "asha": {"grace": 0.3}}, 0.1, True),  # 3 * 0.1, to a computer another number
        ({"scheduler": "asha", "asha": {"grace": 1.0}}, 0.1, False),
        ({"scheduler": "asha"}, 1.0, False),
        ({"scheduler": "pbt", "samples": 2, "pbt": {"interval": 0.2}}, 0.5, True),
        ({"scheduler": "pbt", "samples": 2, "pbt": {"interval": 0.2}}, 1.0, False),
        ({"scheduler": "none"}, 1.0, True),
    ],
)
def test_a_scheduler_hears_of_a_trial_in_time_to_act(tune: dict[str, Any], every: float, acts: bool) -> None:
    search = {"training.meta_lr": {"loguniform": [1e-4, 1e-2]}}
    with (
        nullcontext() if acts else pytest.raises(InputError, match=rf"`evaluation.every` must .* got {every:g}, whose")
    ):
        plan_of(search=search, tune=tune, settings={"evaluation": {"every": every}})


def test_a_trial_of_one_iteration_is_none_for_a_scheduler() -> None:
    search = {"meta_learning.meta_batch_size": {"grid": [4, 16]}}
    with pytest.raises(InputError, match=r"last before the end is at 0 \(test.yaml, trial meta_batch_size=16\)"):
        plan_of(search=search, tune={"scheduler": "asha"}, settings={"training": {"env_steps": 8000}})


def test_floors_are_measured_of_every_method() -> None:
    plan_of(preset="rl2", answer={"measure": "wm_nll_frequency", "better": "lower"})


def test_rules_of_the_user_s_own_are_played_in_each_game(monkeypatch: pytest.MonkeyPatch) -> None:
    met = []

    def rule(experiment: Experiment, split: str, tasks: Tasks, episodes: int) -> FixedRule:
        met.append((experiment.environment.num_arms, split, len(tasks), episodes))
        return FixedRule(experiment.environment, 20 if experiment.environment.num_arms < 20 else "all")  # type: ignore[arg-type]

    module = ModuleType("own_rules")
    vars(module)["RULE"] = rule
    monkeypatch.setitem(sys.modules, "own_rules", module)
    search = {"environment.num_arms": {"grid": [10, 20]}}
    with pytest.raises(InputError, match=r"of 'own_rules:RULE' must not fail.*\(`baselines`, test.yaml"):
        plan_of(search=search, baselines=["never", "own_rules:RULE"])
    # A few of the agents and episodes of each game: as many as are scored would take as long as scoring.
    assert met == [(10, "validation", 8, 2), (10, "test", 8, 2), (20, "validation", 8, 2)]


def test_a_population_draws_no_start_of_learned_rates() -> None:
    search, tune = {"meta_learning.inner_lr": {"uniform": [0.01, 0.1]}}, {"scheduler": "pbt", "samples": 2}
    plan_of(preset="mermaide", search=search, tune=tune)
    with pytest.raises(InputError, match=r"must not hold meta_learning.inner_lr where .*learn_inner_lr is true"):
        plan_of(preset="mermaide", search=search, tune=tune, settings={"meta_learning": {"learn_inner_lr": True}})


def test_a_run_whose_name_no_folder_can_have_is_refused() -> None:
    values = {f"agents.families.{name}.weight": {"grid": [1]} for name in ("ucb", "epsilon_greedy")}
    labels = {"environment.cost_weight": {"grid": {"x" * 200: 0.1}}}
    with pytest.raises(InputError, match=r"must have at most 230 characters, got \d+ in agents"):
        plan_of(search=values | labels)


def test_rows_are_counted_beforehand_with_each_game_once() -> None:
    plan = plan_of(
        settings={"evaluation": {"tasks": 6, "k": [0, 1, 2]}},
        methods=["mermaide", "rl2"],
        search={"environment.cost_weight": {"grid": [0.1, 1.0]}},
        seeds=3,
        baselines=["never", "oracle"],
    )
    # 2 conditions x 6 tasks x (2 methods x 2 costs x 3 seeds x 3 K + 2 costs x 2 rules).
    assert plan.num_rows() == 2 * 6 * (2 * 2 * 3 * 3 + 2 * 2)
    assert plan.env_steps == 12 * budget_of(plan.settings[0].experiment)


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"tune": {"stop": {"validation/nope": 0.9}}}, "`tune.stop` must be among what training tells"),
        (
            {
                "preset": "mermaide",
                "settings": {"environment": {"arm_labels": "absolute"}},
                "baselines": ["never", "untrained_planning"],
            },
            "(or --preset mermaide, which does not plan) (for untrained_planning in `baselines`, test.yaml)",
        ),
        (
            {
                "tune": {"metric": "validation/scor_k1", "samples": 2},
                "search": {"training.meta_lr": {"loguniform": [1e-4, 1e-2]}},
            },
            "got 'validation/scor_k1' (did you mean 'validation/score_k1'?)",
        ),
        ({"tune": {"stop": {"world_model/nll_after": 0.5}}}, "is to rise (principal/return, "),
        (
            {"preset": "reinforce", "tune": {"stop": {"world_model/accuracy": 0.9}}},
            "validation/score_k1), got 'world_model/accuracy' (test.yaml)",
        ),
        ({"preset": "reinforce", "tune": {"metric": "adaptation/gain"}}, "got 'adaptation/gain' (test.yaml)"),
        ({"preset": "rl2", "tune": {"metric": "adaptation/inner_lr"}}, "got 'adaptation/inner_lr' (did you mean"),
        (
            {"methods": ["mermaide", "maml"], "tune": {"stop": {"world_model/accuracy": 0.9}}},
            "got 'world_model/accuracy' (test.yaml, trial method=maml)",
        ),
        (
            {"answer": {"compare": "condition"}, "conditions": {"near": {"k": [0]}, "far": {"k": [1, 5]}}},
            "needs a K in common (test.yaml), got near: [0]; far: [1, 5]",
        ),
        ({"answer": {"compare": "k", "value": 7}}, "`answer.value` must be among what the sweep scores (0, 1), got 7"),
        (
            {"preset": "mermaide", "answer": {"measure": "planned"}},
            "got planned, for which evaluation.planning must be true",
        ),
        (
            {"preset": "rl2", "answer": {"measure": "wm_nll_after"}},
            "got wm_nll_after, for which world_model.enabled must be true",
        ),
        (
            {"answer": {"measure": "support_return"}, "settings": {"evaluation": {"k": [0]}}},
            "got support_return, for which some K must be > 0",
        ),
        (
            {"answer": {"compare": "k", "against": [1]}},
            "must not name what is claimed to be better, 1, got [1] (test.yaml)",
        ),
        ({"answer": {"value": "never", "against": ["always", "never"]}}, "what is claimed to be better, never, got"),
        (
            {
                # As the report, the check takes the lowest number for claimed where none is named.
                "answer": {"compare": "environment.cost_weight", "against": [0.1]},
                "search": {"environment.cost_weight": {"grid": [0.3, 0.1]}},
            },
            "claimed to be better, 0.1, got",
        ),
        ({"answer": {"compare": "condition", "against": ["validation"]}}, "claimed to be better, validation, got"),
        (
            {
                "answer": {"compare": "environment.cost_weight", "value": 0.1, "against": ["0.1"]},
                "search": {"environment.cost_weight": {"grid": [0.1, 0.2]}},
            },
            "must not name what is claimed to be better, 0.1,",
        ),
        ({"answer": {"measure": "support_return", "k": 0}}, "got support_return, for which some K must be > 0"),
        ({"baselines": ["nevr"]}, "(did you mean 'never'?) (`baselines`, test.yaml)"),
        ({"answer": {"k": 9}}, "`answer.k` must be among what the sweep scores (0, 1), got 9"),
        ({"answer": {"value": "mermaid"}}, "`answer.value` must be among what the sweep scores (always"),
        ({"answer": {"against": ["mermaid"]}}, "`answer.against` must be among what the sweep scores (always"),
        ({"methods": ["mermaid"]}, "got mermaid (did you mean 'mermaide'?) (methods, test.yaml)"),
        ({"search": {"evaluation.k": {"grid": [0, "all"]}}}, "`evaluation.k.1` must be a whole number, got all"),
        ({"baselines": ["never", "frist_n"]}, "got 'frist_n' (did you mean 'first_n'?)"),
        ({"baselines": ["my_lab.rules:often"]}, "baseline 'my_lab.rules:often' must be importable from"),
        ({"baselines": ["mermaide_ray.baselines.rules:oftne"]}, "has no 'oftne'"),
    ],
)
def test_what_could_only_fail_after_training_is_refused_before(sections: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        plan_of(**sections)


@pytest.mark.parametrize("sections", [{"settings": {"seed": 7}}, {"search": {"seed": {"grid": [10, 11]}}}])
def test_a_training_seed_beneath_seeds_is_refused(sections: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"must be given by `seeds`, got `seed` in .* \(test\.yaml\)"):
        plan_of(**sections)


def test_a_set_training_seed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.yaml").write_text("question: q")
    assert main(["sweep", str(tmp_path / "q.yaml"), "--dry-run", "--set", "seed=3"]) == 2
    assert "training seeds must be given by `seeds`" in capsys.readouterr().err


def test_a_drawn_value_stays_within_its_range_however_its_label_is_rounded() -> None:
    search = {"training.meta_lr": {"loguniform": [1.23456e-3, 2e-3]}, "world_model.hidden_size": {"randint": [2, 4]}}
    plan = plan_of(search=search, tune={"samples": 2})
    assert plan.drawn_value("training.meta_lr", "0.001234") == 1.23456e-3
    assert plan.drawn_value("world_model.hidden_size", "3") == 3


def test_a_population_has_as_many_members_as_asked_for() -> None:
    search = {"training.minibatches": {"choice": [2, 4]}}
    plan = plan_of(search=search, tune={"scheduler": "pbt", "samples": 8})
    assert (plan.num_trials, plan.num_runs) == (8, 8)
    assert plan.env_steps == 8 * budget_of(plan.some_setting().experiment)
    assert plan.trials == []  # Tune draws them, from its own dice


def test_methods_may_be_claimed_to_be_ahead_of_rules() -> None:
    claim = {"value": "mermaide", "against": ["first_n", "maml"]}
    plan_of(methods=["mermaide", "maml"], baselines=["never", "first_n", "oracle"], answer=claim)


def test_time_is_estimated_by_what_is_trained() -> None:
    plan = plan_of(methods=["mermaide", "mermaide_learner"], seeds=2)
    quick, slow, *_ = (trial.cpu_seconds for trial in plan.trials)
    assert slow > 1.3 * quick > 0
    assert plan.cpu_seconds() == pytest.approx(2 * (quick + slow))
    points = plan_of(preset="mermaide", settings={"environment": {"game": "continuous"}})
    assert points.cpu_seconds() > 1.3 * quick
    environment, model = {"num_arms": 200, "horizon": 290}, {"arms": "equivariant"}
    many = plan_of(preset="mermaide", settings={"environment": environment, "world_model": model})
    assert many.cpu_seconds() > 4 * quick


@pytest.mark.parametrize(
    ("label", "value"),
    [
        *[("5", 5), ("-5", -5), ("0.001", 0.001), ("1e-05", 1e-5), ("2.", 2.0), ("02", 2)],
        *[(text, text) for text in ("narrow", "0_2", "2_5", "nan", "inf", "1e999", "1e", "0x1f", "2-5", "٣")],
    ],
)
def test_a_label_is_a_number_where_it_can_be(label: str, value: object) -> None:
    assert typed(label) == value
    assert type(typed(label)) is type(value)
    assert number(label) == value


def test_a_dry_run_lists_the_trials_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "costs.yaml"
    config.write_text(
        "question: Which alpha?\nsettings: {training: {env_steps: 1e6}}\n"
        "search: {environment.cost_weight: {grid: [0.1, 1]}}\nseeds: 2\n",
        encoding="utf-8",
    )
    assert main(["sweep", str(config), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert told.startswith("Which alpha?")
    assert "cost_weight=0.1,seed=1" in told
    assert "4 runs, 4.03M env steps" in told
    assert not (tmp_path / "out").exists()
    config.write_text(config.read_text(encoding="utf-8") + "rows: 7\n", encoding="utf-8")
    assert main(["sweep", str(config), "--dry-run"]) == 2
    assert "`rows` must be what the sweep yields at this scale, 4400, got 7" in capsys.readouterr().err
    assert main(["sweep", str(config), "--dry-run", "--set", "evaluation.tasks=50"]) == 0  # another number of rows
    assert "rows: 2200" in capsys.readouterr().out


def test_a_dry_run_keeps_long_names_whole_and_invents_no_members(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = {key: {"grid": [0.05, 0.5]} for key in ("meta_learning.inner_lr", "training.meta_lr", "training.gamma")}
    config = tmp_path / "many.yaml"
    config.write_text(yaml.safe_dump({"question": "Which?", "search": search}), encoding="utf-8")
    assert main(["sweep", str(config), "--dry-run"]) == 0
    told = "".join(capsys.readouterr().out.split())
    assert "…" not in told
    bred = {"training.meta_lr": {"loguniform": [1e-4, 1e-2]}}
    tune = {"scheduler": "pbt", "samples": 4}
    config.write_text(yaml.safe_dump({"question": "Which?", "search": bred, "tune": tune}), encoding="utf-8")
    assert main(["sweep", str(config), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "4 members, whose settings Tune draws and breeds, over training.meta_lr" in told
    assert "seed=0" not in told
