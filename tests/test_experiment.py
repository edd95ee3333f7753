"""Settings: what is accepted, what is refused, and in which words."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import of_mermaide

from mermaide_ray.config_file import explained_yaml, load_yaml
from mermaide_ray.environment import Environment
from mermaide_ray.errors import InputError
from mermaide_ray.experiment import (
    Evaluation,
    Experiment,
    WorldModel,
    elsewhere,
    load_experiment,
    load_preset,
    preset_description,
    preset_names,
    validate,
    variant,
)


def refusal(config: Path | None = None, **kwargs: object) -> str:
    with pytest.raises(InputError) as caught:
        load_experiment(config, **kwargs)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


UCB = "agents: {families: {ucb: {train: {ucb_coefficient: [0.1, 0.5]}, test: {ucb_coefficient: [1, 2]}}}}"

REFUSED = {
    # text of the file: what the sentence must hold, beside the name of the file
    "trainning: {meta_lr: 1e-3}": "the top level has no key 'trainning' (did you mean 'training'?); it has name, seed,",
    "training: {meta_rl: 1e-3}": "section `training` has no key 'meta_rl' (did you mean 'meta_lr'?)",
    "agents: {population: {trian: 5}}": "section `agents.population` has no key 'trian' (did you mean 'train'?)",
    "agents: {families: {ucb: {wieght: 2}}}": "section `agents.families.ucb` has no key 'wieght'",
    "1: {meta_lr: 1e-3}": "the top level has no key '1'",
    "training: {meta_lr: fast}": "`training.meta_lr` must be a number, got fast",
    "training: {meta_lr: '0.1'}": '`training.meta_lr` must be a number, got "0.1"',
    "training: {meta_lr: true}": "`training.meta_lr` must be a number, got true",
    "training: {meta_lr: null}": "`training.meta_lr` must be a number, got null",
    "training: {meta_lr: .nan}": "`training.meta_lr` must be a finite number, got .nan",
    "training: {meta_lr: .inf}": "`training.meta_lr` must be a finite number, got .inf",
    "training: {meta_lr: 0}": "`training.meta_lr` must be greater than 0, got 0",
    "training: {env_steps: 1.5}": "`training.env_steps` must be a whole number, got 1.5",
    "training: {env_steps: .inf}": "`training.env_steps` must be a finite number, got .inf",
    "training: {objective: ppo}": "`training.objective` must be 'reinforce' or 'clipped', got ppo",
    "training: fast": "`training` must be a section (keys with values), got fast",
    "training: [1]": "`training` must be a section (keys with values), got [1]",
    "training:": "`training` must be a section (keys with values), got null",
    "seed: -1": "`seed` must be greater than or equal to 0, got -1",
    "seed: 4294967296": "`seed` must be less than 4294967296",
    "seed: 1.5": "`seed` must be a whole number, got 1.5",
    "seed: 2020-01-01": '`seed` must be a whole number, got "2020-01-01"',
    "name: 5": "`name` must be text, got 5",
    "name: ''": "`name` must be printable text without '/' or ':'",
    "name: a/b": "`name` must be printable text without '/' or ':', got \"a/b\"",
    "name: ..": "`name` must be printable text without '/' or ':'",
    "name: mine:v2": "`name` must be printable text without '/' or ':', got \"mine:v2\"",
    "environment: {num_arms: 1}": "`environment.num_arms` must be greater than or equal to 2, got 1",
    "environment: {num_arms: 1001}": "`environment.num_arms` must be less than or equal to 1000, got 1001",
    "environment: {graded_sizes: 1}": "`environment.graded_sizes` must be a list, got 1",
    "environment: {graded_sizes: []}": "`environment.graded_sizes` must be at least 1 long, got []",
    "environment: {graded_sizes: [1, 0]}": "`environment.graded_sizes` must hold sizes > 0 and <= 10, got [1.0, 0.0]",
    "environment: {graded_sizes: [1, 11]}": "`environment.graded_sizes` must hold sizes > 0 and <= 10, got [1.0, 11.0]",
    "environment: {delta: 1e300}": "`environment.delta` must be less than or equal to 10000, got 1.0e+300",
    "environment: {reward_noise: 1e5}": "`environment.reward_noise` must be less than or equal to 10000, got 100000.0",
    "environment: {cost_weight: 1e5}": "`environment.cost_weight` must be less than or equal to 10000, got 100000.0",
    "environment: {base_length: 0.02}": "`environment.base_length` must be greater than or equal to 0.03, got 0.02",
    "environment: {base_length: 11}": "`environment.base_length` must be less than or equal to 10, got 11",
    "environment: {target_width: 0}": "`environment.target_width` must be greater than or equal to 0.001, got 0",
    "agents: {base_reward: [0, 1e300]}": "`agents.base_reward` must lie in [-10000, 10000], got [0.0, 1.0e+300]",
    "environment: {graded_sizes: [1, .nan]}": "`environment.graded_sizes.1` must be a finite number, got .nan",
    "world_model: {enabled: 1}": "`world_model.enabled` must be true or false, got 1",
    "world_model: {enabled: 'on'}": "`world_model.enabled` must be true or false, got ",
    "evaluation: {k: 1}": "`evaluation.k` must be a list, got 1",
    "evaluation: {k: [-1]}": "`evaluation.k.0` must be greater than or equal to 0, got -1",
    "evaluation: {every: 2}": "`evaluation.every` must be less than or equal to 1, got 2",
    "agents: {base_reward: [1, 0]}": "`agents.base_reward` must be [low, high] with low <= high, got [1.0, 0.0]",
    "agents: {base_reward: [1]}": "`agents.base_reward` must be [low, high], got [1]",
    "agents: {base_reward: 5}": "`agents.base_reward` must be [low, high], got 5",
    "agents: {base_reward: [.nan, 1]}": "`agents.base_reward.0` must be a finite number, got .nan",
    "agents: {base_reward: [low, 1]}": "`agents.base_reward.0` must be a number, got low",
    "agents: {families: {}}": "`agents.families` must be at least 1 long, got {}",
    "agents: {families: [ucb]}": "`agents.families` must be a section",
    "agents: {families: {ucb: {}}}": "`agents.families.ucb.train` must be given, got nothing",
    "agents: {families: {ucb: {train: {ucb_coefficient: [0.5, 0.1]}}}}": "must be [low, high] with low <= high",
    "agents: {families: {ucb: {train: {ucb_coefficient: 0.5}}}}": (
        "`agents.families.ucb.train.ucb_coefficient` must be [low, high], got 0.5"
    ),
    "agents: {families: {ubc: {train: {ucb_coefficient: [0, 1]}}}, disjoint: []}": (
        "`agents.families`: agent family must be one of ucb, epsilon_greedy,"
    ),
    "agents: {families: {ucb: {train: {coefficient: [0, 1]}}}, disjoint: []}": (
        "`agents.families.ucb.train` must name hyperparameters of ucb (ucb_coefficient), got 'coefficient' "
        "(did you mean 'ucb_coefficient'?)"
    ),
    "agents: {families: {ucb: {train: {ucb_coefficient: [0, 1]}, test: {ucb_coeficient: [2, 3]}}}}": (
        "`agents.families.ucb.test` must name hyperparameters of ucb (ucb_coefficient), got 'ucb_coeficient'"
    ),
    "agents: {families: {ucb: {train: {}}}}": (
        "`agents.families.ucb.train` must give a range for each hyperparameter of ucb, got none for 'ucb_coefficient'"
    ),
    "agents: {families: {ucb: {train: {ucb_coefficient: [-1, 1]}, test: {ucb_coefficient: [2, 3]}}}}": (
        "`agents.families.ucb.train.ucb_coefficient` must lie in [0, 100], got [-1, 1]"
    ),
    "agents: {families: {ucb: {train: {ucb_coefficient: [0, 1]}, test: {ucb_coefficient: [0.9, 2]}}}}": (
        "`agents.families.ucb` must have a range that does not overlap between the splits 'train' and 'test'"
    ),
    "agents: {families: {ucb: {train: {ucb_coefficient: [0, 1]}}}}": "which overlap (`agents.disjoint` names",
    "agents: {disjoint: [[train, validation]]}": "between the splits 'train' and 'validation'",
    "agents: {disjoint: [[train, tset]]}": "`agents.disjoint.0.1` must be 'train', 'validation' or 'test', got tset",
    "agents: {disjoint: [[train, test, validation]]}": (
        "`agents.disjoint.0` must be at most 2 long, got [train, test, validation]"
    ),
    "agents: {population: {}, families: {ucb: {train: {ucb_coefficient: [0, 1]}}}}": "which overlap (`agents.disjoint`",
    "agents: {families: {ucb: {train: {ucb_coefficient: [0, 1]}, test: {}}}}": (
        "`agents.families.ucb.test` must give a range for each hyperparameter of ucb, got none for 'ucb_coefficient'"
    ),
    "agents: {disjoint: [[test, test]]}": "`agents.disjoint` must name two different splits, got 'test' twice",
    "agents: {population: 15}": "`agents.population` must be a section (keys with values), got 15",
    "agents: {population: {train: 0}}": "`agents.population.train` must be greater than or equal to 1, got 0",
    "meta_learning: {adaptation_episodes: 0}": "`meta_learning.adaptation_episodes` must be >= 1 where",
    "{training: {baseline: leave_one_out}, meta_learning: {adaptation_episodes: 2, carry_state: true}}": (
        "`training.baseline` must be value where the state is carried over (meta_learning.carry_state)"
    ),
    "{agents: {base_reward: [1, 1]}, environment: {reward_noise: 0}}": (
        "`environment.reward_noise` must be > 0 where agents.base_reward is one number"
    ),
    "meta_learning: {inner_lr: 0, learn_inner_lr: true}": (
        "`meta_learning.inner_lr` must be > 0 where meta_learning.learn_inner_lr is true"
    ),
    "{meta_learning: {inner_policy_weight: 0}, world_model: {loss_weight: 0}}": (
        "`meta_learning.inner_policy_weight` must be > 0 where world_model.loss_weight is 0"
    ),
    "training: {baseline: leave_one_out}": "must be 0 or >= 2 for training.baseline = leave_one_out, got 1",
    "{training: {baseline: leave_one_out}, meta_learning: {query_episodes: 1}}": "`meta_learning.query_episodes` must",
    "{world_model: {enabled: false}, meta_learning: {adapt: world_model}}": "needs `world_model.enabled` = true",
    "world_model: {enabled: false, policy_gradient: false}": "`world_model.policy_gradient` must be true where",
    "world_model: {loss_weight: 0, policy_gradient: false}": "nothing else would train the recurrent core, got false",
    "{world_model: {enabled: false}, meta_learning: {inner_policy_weight: 0}}": "the inner step would have no loss",
    "{meta_learning: {inner_policy_weight: 0, adapt: policy}}": "nothing else would move it, got 0",
    "agents: {families: {ucb: {train: {ucb_coefficient: [0, 1]}, test: {ucb_coefficient: [2, 3]}}, "
    "'mermaide_ray.agents.ucb:FAMILY': {train: {ucb_coefficient: [0, 1]}, test: {ucb_coefficient: [2, 3]}}}}": (
        "got 'ucb' twice: ucb and mermaide_ray.agents.ucb:FAMILY"
    ),
    "env_runners: {num_learners: 5}": "`meta_learning.meta_batch_size` must be a multiple of env_runners.num_learners",
    "env_runners: {num_learners: 2, num_gpus_per_learner: 0.5}": (
        "`env_runners.num_gpus_per_learner` must be 0 or 1 where learners are several, got 0.5"
    ),
    "preset: papr": "`preset` must be one of maml, mermaide,",
    "preset: [paper]": "`preset` must be one of maml, mermaide,",
    "- training": "the config must be a mapping of sections, got a list",
    "just words": "the config must be a mapping of sections, got a str",
    "training: {meta_lr: 1": "the config must be YAML, got expected ',' or '}'",
    "seed: 1\nseed: 2": "the config must be YAML, got key 'seed' is given twice in line 2, column 1",
    "seed: !!python/object:os.system x": "the config must be YAML, got could not determine a constructor",
    "seed: \x07": "the config must be YAML, got",
}


@pytest.mark.parametrize("text", REFUSED)
def test_bad_settings_are_refused_in_one_sentence_that_names_the_file(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    message = refusal(path)
    assert REFUSED[text] in message
    assert message.endswith(f"({path})")


def test_file_that_is_missing_a_folder_or_not_utf8_is_refused(tmp_path: Path) -> None:
    assert "must be a readable file" in refusal(tmp_path / "none.yaml")
    assert "No such file" in refusal(tmp_path / "none.yaml")
    assert "Is a directory" in refusal(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: é".encode("latin-1"))
    assert "must be UTF-8 text, got byte 0xe9 at offset 6" in refusal(latin)


def test_where_to_change_it_is_the_layer_that_set_it(tmp_path: Path) -> None:
    path = written(tmp_path, "preset: rl2\ntraining: {gamma: 2}\n")
    assert refusal(path).endswith(f"({path})")
    assert refusal(path, overrides={"training.gamma": 3}).endswith("got 3 (--set training.gamma)")
    good = written(tmp_path, "preset: rl2\ntraining: {gamma: 1}\n")
    assert refusal(good, overrides={"seed": -1}).endswith("(--set seed)")
    # Between settings of several layers: every layer that may be meant.
    between = refusal(good, overrides={"meta_learning.inner_steps": 1, "meta_learning.adaptation_episodes": 0})
    assert between.endswith(
        f"(--set meta_learning.adaptation_episodes, --set meta_learning.inner_steps, {good}, preset rl2)"
    )


def test_empty_file_and_no_file_give_the_defaults(tmp_path: Path) -> None:
    assert load_experiment(written(tmp_path, "# nothing yet\n")) == load_experiment() == Experiment()


def test_override_beats_file_beats_preset_beats_default(tmp_path: Path) -> None:
    default, preset = load_experiment(), load_experiment(preset="rl2")
    assert (default.meta_learning.carry_state, preset.meta_learning.carry_state) == (False, True)
    path = written(tmp_path, "preset: rl2\nmeta_learning: {carry_state: false, inner_lr: 0.5}\n")
    assert load_experiment(path).name == "rl2"
    assert not load_experiment(path).meta_learning.carry_state
    assert load_experiment(path, overrides={"meta_learning.carry_state": True}).meta_learning.carry_state
    assert load_experiment(path, preset="reinforce").name == "reinforce"


def test_numbers_in_exponent_form_are_numbers() -> None:
    for text in ("1e-3", "1E-3", "+1e-3", "1.e-3", ".1e-2", "1.0e-3"):
        assert load_yaml(text) == pytest.approx(1e-3)
    assert load_yaml("2_0e3") == 20_000
    assert load_yaml("[1e3, e3, 1e, deadbeef, 1e3x]") == [1000.0, "e3", "1e", "deadbeef", "1e3x"]
    # The reason: plain YAML 1.1 reads text.
    assert yaml.safe_load("1e-3") == "1e-3"
    assert load_experiment(overrides={"training.env_steps": load_yaml("2e7")}).training.env_steps == 20_000_000


def test_families_in_a_file_replace_the_mixture_and_an_override_changes_one_of_it(tmp_path: Path) -> None:
    path = written(tmp_path, UCB)
    assert list(load_experiment(path).agents.families) == ["ucb"]
    changed = load_experiment(path, overrides={"agents.families.ucb.weight": 3}).agents.families["ucb"]
    assert changed.weight == 3
    assert changed.train == {"ucb_coefficient": (0.1, 0.5)}
    default = load_experiment(overrides={"agents.families.ucb.weight": 3}).agents.families
    assert {name: family.weight for name, family in default.items()} == {"ucb": 3, "epsilon_greedy": 1}


def test_a_mixture_given_as_part_of_its_section_replaces_the_mixture(tmp_path: Path) -> None:
    softmax = {"softmax": {"train": {"temperature": [0.1, 0.2]}, "test": {"temperature": [0.3, 1]}}}
    changed = load_experiment(written(tmp_path, UCB), overrides={"agents": {"families": softmax}})
    assert list(changed.agents.families) == ["softmax"]


def test_the_continuous_game_has_its_own_mixture_however_it_is_given() -> None:
    made = Experiment(
        environment=Environment(game="continuous"),
        world_model=WorldModel(kind="recurrent"),
        evaluation=Evaluation(planning=False),
    )
    assert "kernel_ucb" in made.agents.families


def test_families_in_a_file_replace_those_of_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "greedy.yaml").write_text(
        "agents: {seed: 4, families: {epsilon_greedy: {train: {epsilon: [0, 0.1]}, test: {epsilon: [0.2, 0.3]}}}}"
    )
    monkeypatch.setattr("mermaide_ray.experiment.PRESETS_DIR", tmp_path)
    agents = load_experiment(written(tmp_path, UCB), preset="greedy").agents
    assert (list(agents.families), agents.seed) == (["ucb"], 4)
    assert list(variant(load_experiment(written(tmp_path, UCB)), "greedy").agents.families) == ["epsilon_greedy"]


SOFTMAX = """
from mermaide_ray.agents.base import Family, Hyperparameter, sample_mean_init, sample_mean_learn

Softmax = Family(
    name="mine", description="mine", reference="mine", init=sample_mean_init, learn=sample_mean_learn,
    act=lambda state, params, step, draws: state["mean"].argmax(-1),
    hyperparameters={"heat": Hyperparameter("temperature", 0.0, 1.0)},
)
"""


def test_own_family_by_dotted_path_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_lab_of_experiments").mkdir()
    (tmp_path / "my_lab_of_experiments" / "agents.py").write_text(SOFTMAX)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # puts sys.path back afterwards
    name = "my_lab_of_experiments.agents:Softmax"
    path = written(tmp_path, f"agents: {{disjoint: [], families: {{{name}: {{train: {{heat: [0.1, 0.5]}}}}}}}}")
    assert load_experiment(path).agents.families[name].train == {"heat": (0.1, 0.5)}
    # The same by --set, beside the default families.
    mixed = load_experiment(
        overrides={
            f"agents.families.{name}.train.heat": [0.1, 0.5],
            f"agents.families.{name}.test": {"heat": [0.6, 0.9]},
        }
    )
    assert list(mixed.agents.families) == ["ucb", "epsilon_greedy", name]
    wrong = refusal(path, overrides={f"agents.families.{name}.train.heat": [0.1, 5]})
    assert "must lie in [0, 1], got [0.1, 5]" in wrong
    assert wrong.endswith(f"(--set agents.families.{name}.train.heat)")


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid_named_after_their_file_and_described(name: str) -> None:
    assert load_experiment(preset=name).name == load_preset(name)["name"] == name
    assert 10 < len(preset_description(name)) < 120


def test_preset_mermaide_learner_is_the_default() -> None:
    assert load_experiment(preset="mermaide_learner") == Experiment()


def test_learned_variants_spend_the_same_steps_per_iteration() -> None:
    budget = Experiment().env_steps_per_iteration
    assert {name: load_experiment(preset=name).env_steps_per_iteration for name in preset_names()} == dict.fromkeys(
        preset_names(), budget
    )


def test_variants_without_adaptation_do_not_adapt() -> None:
    for name in ("reinforce", "reinforce_world_model", "rl2"):
        assert load_experiment(preset=name).meta_learning.inner_steps == 0
    assert {name for name in preset_names() if load_experiment(preset=name).world_model.enabled} == {
        "mermaide",
        "mermaide_learner",
        "paper",
        "reinforce_world_model",
    }


def test_variant_keeps_the_game_and_the_agents_and_changes_the_method() -> None:
    mine = load_experiment(overrides={"environment.horizon": 7, "seed": 3, "agents.families.ucb.weight": 2})
    other = variant(mine, "rl2")
    assert (other.name, other.meta_learning.carry_state) == ("rl2", True)
    assert (other.environment, other.agents, other.seed) == (mine.environment, mine.agents, 3)


def test_paper_preset_has_15_training_and_10_test_agents_and_no_range_in_common() -> None:
    paper = load_experiment(preset="paper")
    assert paper.agents.population is not None
    assert (paper.agents.population.train, paper.agents.population.test) == (15, 10)
    for family in paper.agents.families.values():
        for (_, high), (low, _) in zip(family.ranges("train").values(), family.ranges("test").values(), strict=True):
            assert high < low


UNUSUAL = {
    "name": "true",
    "agents": {
        "disjoint": [],
        "population": {"train": 3},
        "base_reward": [-1e-7, 1e4],
        "families": {"ucb": {"weight": 1e22, "train": {"ucb_coefficient": [1e-5, 2]}, "test": None}},
    },
    "environment": {"intervention": "graded", "graded_sizes": [0.1, 1 / 3]},
}


@pytest.mark.parametrize(
    "settings", [{}, UNUSUAL, {"name": "ε ‘quoted’ # no comment"}, *map(load_preset, preset_names())]
)
def test_explained_config_loads_back_to_the_same_experiment(settings: dict[str, object], tmp_path: Path) -> None:
    experiment = validate(settings)
    text = explained_yaml(experiment)
    assert load_experiment(written(tmp_path, text)) == experiment
    # Any other YAML reader must agree.
    assert Experiment.model_validate(yaml.safe_load(text)) == experiment
    assert max(map(len, text.splitlines())) <= 120


def test_explained_config_comments_every_key() -> None:
    lines = explained_yaml(validate(UNUSUAL)).splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r" *\w+:", line)]
    assert len(keys) > 60
    uncommented = [lines[number].strip() for number in keys if "#" not in lines[number - 1]]
    assert uncommented == ["ucb:"]
    assert "  # pulls per episode, T (>= 1)" in lines


def test_explained_config_keeps_an_empty_mapping() -> None:
    text = explained_yaml(Experiment.model_validate({"agents": {"families": {"mine": {"train": {}}}}}))
    assert load_yaml(text)["agents"]["families"]["mine"]["train"] == {}


def test_rounds_of_training_spend_the_budget() -> None:
    experiment = load_experiment(overrides={"training.env_steps": 480_000})
    assert experiment.env_steps_per_iteration == 48 * 5 * 100
    assert experiment.num_iterations == 20


@pytest.mark.parametrize("main", preset_names())
@pytest.mark.parametrize("other", preset_names())
def test_a_baseline_is_the_method_that_its_name_says_with_as_many_episodes(main: str, other: str) -> None:
    """Whatever it is laid over; the switches that tell the methods apart are its own preset's."""
    experiment, alone = load_experiment(preset=main), load_experiment(preset=other)
    beside = variant(experiment, other)
    assert beside.name == other
    assert beside.world_model == alone.world_model
    for switch in ("inner_steps", "carry_state", "adapt", "support_weight"):
        assert getattr(beside.meta_learning, switch) == getattr(alone.meta_learning, switch), switch
    assert beside.evaluation.planning == alone.evaluation.planning
    assert beside.env_steps_per_iteration == experiment.env_steps_per_iteration
    assert (beside.meta_learning.adaptation_episodes > 0) == (alone.meta_learning.adaptation_episodes > 0)


def test_k_names_each_number_once() -> None:
    with pytest.raises(InputError, match=r"each value once, at least one, got \[1, 1\]"):
        validate({"evaluation": {"k": [1, 1]}})


EQUIVARIANT = {"world_model": {"arms": "equivariant"}}
CHOOSING = {"environment": {"intervention": "arm"}}


@pytest.mark.parametrize(
    ("trained", "change", "refused"),
    [
        ({}, {"environment.cost_weight": 2}, None),
        ({}, {"environment.num_arms": 20}, r"`environment` must keep the num_arms .* \(10\), got 20; one trained with"),
        (EQUIVARIANT, {"environment.num_arms": 20}, None),
        (EQUIVARIANT | CHOOSING, {"environment.num_arms": 20}, None),
        (EQUIVARIANT, {"environment.arm_labels": "absolute"}, "must keep the arm_labels"),
        (EQUIVARIANT, {"environment.intervention": "graded"}, "must keep the num_interventions"),
        (EQUIVARIANT, {"environment.sight": {"noise": 0.1}}, None),
        (EQUIVARIANT, {"environment.sight": {"share": 0.5}}, "must keep the num_blank_symbols"),
        # As many interventions, of another kind.
        (
            {"environment": {"intervention": "arm", "num_arms": 3}} | EQUIVARIANT,
            {"environment.intervention": "graded"},
            r"must keep the intervention .* \(arm\), got graded",
        ),
        ({}, {"training.gamma": 0.9}, "--set must name a setting of environment, agents, evaluation"),
        ({}, {"environment.num_arms": 1}, "--set environment.num_arms"),
    ],
)
def test_a_trained_principal_is_scored_only_where_its_networks_fit(
    trained: dict[str, Any], change: dict[str, Any], refused: str | None
) -> None:
    experiment = of_mermaide(trained, where="here")
    if refused is None:
        scored = elsewhere(experiment, change)
        assert scored != experiment
        assert scored.training == experiment.training
        return
    with pytest.raises(InputError, match=refused):
        elsewhere(experiment, change)
