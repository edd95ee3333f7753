"""The principals of the Stackelberg experiment, their training, their scores, and the experiment as a whole."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from mermaide_ray.cli import main
from mermaide_ray.disk import one_process
from mermaide_ray.envs.stackelberg import StackelbergEnv
from mermaide_ray.errors import InputError
from mermaide_ray.noise import Key
from mermaide_ray.stackelberg.beliefs import Adaptive, Recurrent, Support, scratch
from mermaide_ray.stackelberg.evaluation import FollowerScoring, uninformed_values, unstructured
from mermaide_ray.stackelberg.experiment import _opened, run
from mermaide_ray.stackelberg.games import GameDistribution, Games, commitment_value, deal
from mermaide_ray.stackelberg.meeting import Believer, meet
from mermaide_ray.stackelberg.planner import Planner, choose_commitment, lattice
from mermaide_ray.stackelberg.report import episodes_to_target, figure, first_crossing, verdict
from mermaide_ray.stackelberg.settings import Game, PrincipalSettings, Scratch, Settings, Training, load_settings
from mermaide_ray.stackelberg.training import advantages, meta_loss, meta_train

GAME = Game(rows=3, columns=4, rounds=3, response_noise=0.3)
SMALL = PrincipalSettings(hidden_size=5, inner_steps=3, resolution=4, fine_resolution=6)


def tasks(ids: range, game: Game = GAME) -> Games:
    return GameDistribution(game).tasks("test", ids)


def in_doubles(games: Games) -> Games:
    return replace(games, leader=games.leader.double(), follower=games.follower.double())


def principal_of(kind: type[Adaptive] | type[Recurrent], game: Game = GAME) -> Adaptive | Recurrent:
    """With random weights everywhere: some are zero to begin with, and would hide a missing gradient."""
    generator = torch.Generator().manual_seed(1)
    principal = kind(game, SMALL, generator)
    with torch.no_grad():
        for parameter in principal.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return principal


def support(noise: float, rounds: int = 7) -> tuple[Support, Tensor]:
    """Random rounds in float64, and a context."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    responses = torch.randint(4, (2, 3, rounds), generator=generator)
    seen = torch.nn.functional.one_hot(responses, 4).double()
    commitments = normal(2, 3, rounds, 3).softmax(-1)
    return Support(normal(2, 1, 12), 3 * normal(2, 5, 12), commitments, seen, noise), normal(2, 3, 5)


WEIGHT = torch.tensor(0.7, dtype=torch.float64)


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_inner_gradient_is_that_of_the_inner_loss(noise: float) -> None:
    rounds, context = support(noise)
    context.requires_grad_()
    (expected,) = torch.autograd.grad(rounds.loss(context, WEIGHT).sum(), context)
    torch.testing.assert_close(rounds.gradient(context.detach(), WEIGHT), expected)


def test_a_response_that_was_held_impossible_has_a_gradient() -> None:
    rounds, context = support(0.0)
    sure = replace(rounds, prior=1e4 * rounds.prior)
    p = (sure.logits(context).softmax(-1) * sure.seen).sum(-1)
    assert (p == 0).any()
    assert sure.gradient(context, WEIGHT).isfinite().all()


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_inner_steps_never_raise_the_loss_and_end_where_it_is_flat(noise: float) -> None:
    rounds, context = support(noise)
    context = 10 * context
    step = torch.linalg.inv(rounds.curvature(WEIGHT))
    losses = [rounds.loss(context, WEIGHT)]
    for _ in range(1000):
        context = context - (step @ rounds.gradient(context, WEIGHT).unsqueeze(-1)).squeeze(-1)
        losses.append(rounds.loss(context, WEIGHT))
    assert (torch.stack(losses).diff(dim=0) <= 1e-9).all()
    assert rounds.gradient(context, WEIGHT).abs().max() < 1e-2
    # A control: a step ten times as long does overshoot.
    start = 10 * support(noise)[1]
    long = start - 10 * (step @ rounds.gradient(start, WEIGHT).unsqueeze(-1)).squeeze(-1)
    assert (rounds.loss(long, WEIGHT) > losses[0]).any()


def test_curvature_bounds_the_hessian() -> None:
    rounds, context = support(0.0)
    for b, e in ((0, 0), (1, 2)):

        def loss(x: Tensor, b: int = b, e: int = e) -> Tensor:
            everywhere = context.clone()
            everywhere[b, e] = x
            return rounds.loss(everywhere, WEIGHT)[b, e]

        hessian = torch.autograd.functional.hessian(loss, context[b, e] / 10)
        assert torch.linalg.eigvalsh(rounds.curvature(WEIGHT)[b, e] - hessian).min() > -1e-9


@pytest.mark.parametrize("kind", [Adaptive, Recurrent])
def test_meta_gradient_equals_finite_differences(kind: type[Adaptive] | type[Recurrent]) -> None:
    """Through several episodes and the adaptation between them, in float64; the dice, so the actions, stay the same."""
    principal, games = principal_of(kind).double(), in_doubles(tasks(range(3)))
    dice = deal(Key(0, "test", "gradient", 0), games.ids, 2, 3, GAME.rounds)
    commitments = lattice(3, SMALL.resolution).double()
    training = Training(entropy_weight=0.1)

    def loss() -> Tensor:
        return meta_loss(training, meet(GAME, principal, games, dice, commitments), True, 0.1)

    loss().backward()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in principal.named_parameters():
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = []
        for size in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.add_(size * direction)
                values.append(loss().item())
                parameter.sub_(size * direction)
        slope = (values[0] - values[1]) / 2e-6
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-4, abs=1e-7), name
        assert parameter.grad.any(), name


def test_advantages_by_hand() -> None:
    payoffs = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])
    # To go, at half a discount per round: [2, 2] and [3, 0]; less the other trial's: [-1, 2] and [1, -2].
    expected = torch.tensor([[[-1.0, 2.0], [1.0, -2.0]]]) / 2.5**0.5
    torch.testing.assert_close(advantages(Training(gamma=0.5), payoffs), expected)


def test_plan_weighs_payoffs_by_the_believed_responses() -> None:
    leader = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    commitments = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    belief = torch.tensor([1.0, 3.0]).log().expand(1, 1, 2, 2)
    # Columns with probabilities 1/4 and 3/4 whatever the commitment.
    predicted = Planner.of(leader, commitments).predicted(belief)
    torch.testing.assert_close(predicted, torch.tensor([[[0.25, 0.25 * 0.5 + 0.75 * 1.0]]]))


def test_actions_are_drawn_by_their_probabilities() -> None:
    logits = torch.log(torch.tensor([0.2, 0.0, 0.5, 0.3])).expand(10, -1)
    uniform = torch.tensor([0.0, 0.1, 0.19, 0.21, 0.3, 0.5, 0.69, 0.71, 0.9, 0.9999])
    assert choose_commitment(logits, uniform).tolist() == [0, 0, 0, 2, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("kind", [Adaptive, Recurrent])
def test_both_paths_play_the_same_rounds(kind: type[Adaptive] | type[Recurrent]) -> None:
    """The RLlib environment, given the commitments of the fast path and the same dice: the same, to the last bit."""
    games = tasks(range(5))
    dice = deal(Key(GAME.seed, "test", "two paths", 4), games.ids, 1, 3, GAME.rounds)
    with torch.no_grad():
        trial = meet(GAME, principal_of(kind), games, dice, lattice(3, 12))
    assert len(trial.commitments.flatten(0, 2).unique(dim=0)) > 5
    env = StackelbergEnv(
        {
            "game": GAME.model_dump(),
            "split": "test",
            "tasks": list(games.ids),
            "episodes": 3,
            "purpose": "two paths",
            "iteration": 4,
        }
    )
    for task in range(5):
        for turn in range(3 * GAME.rounds):
            if turn % GAME.rounds == 0:
                _, infos = env.reset()
                assert infos["principal"] == {"task": games.ids[task], "episode": turn // GAME.rounds}
            commitment = trial.commitments[task, 0, turn].numpy()
            observations, rewards, _, _, infos = env.step({"principal": commitment})
            assert rewards["principal"] == trial.payoffs[task, 0, turn].item()
            assert infos["principal"]["seen_response"] == trial.seen[task, 0, turn].item()
            np.testing.assert_array_equal(observations["principal"][12:15], commitment)


@pytest.mark.parametrize("kind", [Adaptive, Recurrent])
def test_meetings_depend_neither_on_company_nor_on_later_episodes(kind: type[Adaptive] | type[Recurrent]) -> None:
    principal, key = principal_of(kind), Key(0, "test", "company", 0)
    with torch.no_grad():
        one, other = (
            meet(GAME, principal, tasks(ids), deal(key, ids, 2, episodes, GAME.rounds), lattice(3, 8))
            for ids, episodes in ((range(4), 4), (range(2, 3), 2))
        )
    rounds = 2 * GAME.rounds
    assert torch.equal(one.seen[2:3, :, :rounds], other.seen)
    assert torch.equal(one.commitments[2:3, :, :rounds], other.commitments)
    torch.testing.assert_close(one.nll[2:3, :, :rounds], other.nll)


def test_scratch_nears_the_equilibrium_where_it_sees_and_stays_where_it_was_where_it_does_not() -> None:
    overrides = {"game.columns": 3, "principal.fine_resolution": 20, "evaluation.k": [0, 40]}
    settings = load_settings(scale="smoke", overrides=overrides)
    evaluation = FollowerScoring(settings, num_tasks=60)
    regrets = {}
    for noise in (0.0, 1.0):
        values = evaluation.score(scratch(settings.with_noise(noise), 3.0, 8.0), noise)
        regrets[noise] = {k: (evaluation.equilibrium - value).mean() for k, value in values.items()}
    assert regrets[0.0][40] < 0.4 * regrets[0.0][0]
    assert regrets[1.0][40] == regrets[1.0][0] == regrets[0.0][0]


def test_no_commitment_beats_the_equilibrium_and_knowing_the_distribution_is_worth_something() -> None:
    evaluation = FollowerScoring(load_settings(scale="smoke"), num_tasks=40)
    assert (evaluation.uninformed <= evaluation.equilibrium + 1e-5).all()
    leader, follower = evaluation.games.leader, evaluation.games.follower
    assert evaluation.span > 0
    # Against many followers the best uninformed commitment does better than a uniform one.
    uniform = commitment_value(torch.full((3,), 1 / 3), leader, follower).mean()
    assert evaluation.uninformed.mean() > uniform.item()


def test_the_uninformed_leader_knows_the_distribution_of_the_condition_s_own_followers() -> None:
    """Against followers without structure, commitments chosen for them bring more than those for the training's."""
    settings = load_settings(scale="smoke")
    evaluation = FollowerScoring(settings, condition="unstructured", num_tasks=200)
    structured = uninformed_values(settings.game, evaluation.games, "test", evaluation._fine)
    assert evaluation.uninformed.mean() > structured.mean()


@pytest.mark.parametrize("game", [{}, {"alignment": 3, "tastes": 5}, {"taste_scale": 0.1, "idiosyncrasy": 2}])
def test_followers_without_structure_have_payoffs_as_large_as_those_with(game: dict[str, float]) -> None:
    settings = Game(**game)
    payoffs = [
        GameDistribution(each).tasks("test", range(2000)).follower for each in (settings, unstructured(settings))
    ]
    assert payoffs[1].std().item() == pytest.approx(payoffs[0].std().item(), rel=0.1)


def test_training_is_deterministic_and_its_seed_matters() -> None:
    settings = load_settings(scale="smoke")
    first, again, other = (meta_train(settings, "mermaide", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.slow
def test_meta_training_pays_on_followers_never_met() -> None:
    settings = load_settings(
        overrides={"response_noises": [0.2], "training.iterations": 150, "evaluation.k": [0, 1, 2]}
    ).with_noise(0.2)
    evaluation = FollowerScoring(settings)
    learned = evaluation.score(meta_train(settings, "mermaide", 0), 0.2)
    unlearned = evaluation.score(scratch(settings, 3.0, 8.0), 0.2)
    assert learned[1].mean() > unlearned[1].mean() + 0.05 * evaluation.span


SMOKE = load_settings(scale="smoke")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stackelberg") / "run"
    assert main(["stackelberg", "--scale", "smoke", "--out", str(out)]) == 0
    return out


def test_command_leaves_rows_figure_and_verdict(finished: Path) -> None:
    rows = pd.read_parquet(finished / "rows.parquet")
    methods = 2 * SMOKE.seeds + 1
    evaluation = SMOKE.evaluation
    assert len(rows) == 2 * methods * len(SMOKE.response_noises) * evaluation.tasks * len(evaluation.k)
    keys = ["method", "seed", "condition", "setting.game.response_noise", "task", "k"]
    assert not rows.duplicated(keys).any()
    assert rows.notna().all(axis=None)
    assert (rows["regret"] >= -1e-5).all()
    assert rows.groupby(["condition", "task"])["equilibrium_value"].nunique().eq(1).all()
    assert (finished / "figures" / "stackelberg.png").stat().st_size > 10_000
    assert "| test | 0.5 |" in (finished / "verdict.md").read_text(encoding="utf-8")


def test_resumed_after_a_kill_the_numbers_are_the_same(finished: Path, tmp_path: Path) -> None:
    rows = pd.read_parquet(finished / "rows.parquet")
    killed = tmp_path / "run"
    killed.mkdir()
    for name in ("config.yaml", "provenance.json"):
        (killed / name).write_bytes((finished / name).read_bytes())
    parts = sorted((finished / "parts").iterdir())
    (killed / "parts").mkdir()
    for part in parts[::2]:
        (killed / "parts" / part.name).write_bytes(part.read_bytes())
    begun = json.loads((killed / "provenance.json").read_text(encoding="utf-8"))
    (killed / "provenance.json").write_text(json.dumps({**begun, "sources": "other"}), encoding="utf-8")
    pd.testing.assert_frame_equal(run(SMOKE, killed), rows)
    told = json.loads((killed / "provenance.json").read_text(encoding="utf-8"))
    assert (told["sources"], [step["sources"] for step in told["continued"]]) == ("other", [begun["sources"]])


def test_a_damaged_part_is_told_in_one_sentence(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    first = sorted((copy / "parts").iterdir())[0]
    first.write_bytes(b"half of it")
    with pytest.raises(InputError, match=r"but .*\.parquet is damaged .*: delete it, and the same command makes it ag"):
        run(SMOKE, copy)


def test_other_settings_do_not_go_on_with_a_run(finished: Path) -> None:
    other = SMOKE.model_copy(update={"seeds": 3})
    with pytest.raises(InputError, match="same settings"):
        run(other, finished)


def test_what_a_kill_left_before_the_settings_were_written_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text("{}")
    with _opened(SMOKE, tmp_path):
        assert (tmp_path / "config.yaml").is_file()


def test_a_folder_given_to_two_at_the_same_moment_is_the_first_one_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with one_process(tmp_path), pytest.raises(InputError, match="by one process at a time, and one does already"):
        run(SMOKE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    first = SMOKE.model_copy(update={"seeds": 3})

    @contextmanager
    def held(folder: Path) -> Iterator[None]:
        """Before the second takes its turn, the first has had its own."""
        monkeypatch.undo()
        with _opened(first, folder):
            pass
        with one_process(folder):
            yield

    monkeypatch.setattr("mermaide_ray.stackelberg.experiment.one_process", held)
    with pytest.raises(InputError, match="or one of the same settings, got"):
        run(SMOKE, tmp_path)
    with _opened(first, tmp_path):
        assert not (tmp_path / "parts").exists()


def test_a_folder_of_another_kind_of_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: mermaide\n")
    with pytest.raises(InputError, match="same settings"):
        run(SMOKE, tmp_path)


@pytest.mark.parametrize(
    "game",
    [{"evaluation.tasks": 1}, {"game.alignment": 0.0, "game.tastes": 0, "game.idiosyncrasy": 0.0}],
    ids=["one follower", "all alike"],
)
def test_nothing_is_trained_where_there_is_nothing_to_know(
    game: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mermaide_ray.stackelberg.experiment.meta_train", None)
    with pytest.raises(InputError, match="the equilibrium is worth more"):
        run(load_settings(scale="smoke", overrides=game), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # the corrected command may use it


def test_scratch_adapts_as_the_settings_of_the_principal_say() -> None:
    plain, slow, firm = (
        scratch(load_settings(overrides=overrides), 3.0, 8.0)
        for overrides in ({}, {"principal.inner_lr": 0.5}, {"principal.prior_weight": 2.0})
    )
    assert (plain._rate, slow._rate) == (1.0, 0.5)
    assert (plain.log_prior_weight.exp().item(), firm.log_prior_weight.exp().item()) == pytest.approx((1.0, 2.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "game.response_noise=0.5"], "`game.response_noise` must not be set: the experiment compares those"),
        (["--set", "evaluation.k=[0]"], "`evaluation.k` must hold a number >= 1, got [0]"),
        (["--set", "game.row=3"], "no key 'row' (did you mean 'rows'?)"),
        (["--set", "game.columns=1"], "greater than or equal to 2"),
        (["--config", "none.yaml"], "readable file"),
    ],
)
def test_wrong_settings_are_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stackelberg", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("scale", ["smoke", "laptop", "full"])
def test_every_scale_is_valid(scale: str) -> None:
    assert isinstance(load_settings(scale=scale), Settings)  # type: ignore[arg-type]


def test_every_k_is_within_the_figure(finished: Path) -> None:
    rows = pd.read_parquet(finished / "rows.parquet")
    drawn = figure(rows.assign(k=rows["k"].replace({rows["k"].max(): 64})), 0.5)
    assert drawn.axes[0].get_xlim()[1] > 64
    assert [tick.get_text() for tick in drawn.axes[0].get_xticklabels()][-1] == "64"


def test_first_crossing_by_hand() -> None:
    ks = np.array([0.0, 1.0, 4.0])
    assert first_crossing(ks, np.array([1.0, 0.5, 0.2]), 0.35) == pytest.approx(2.5)
    assert first_crossing(ks, np.array([0.3, 0.5, 0.2]), 0.35) == 0
    assert first_crossing(ks, np.array([1.0, 0.5, 0.4]), 0.35) == np.inf


def curves(method: str, by_k: dict[int, float], seeds: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "method": method,
            "seed": seed,
            "split": "test",
            "condition": "test",
            "setting.game.response_noise": 0.2,
            "task": task,
            "family": "best_response",
            "k": k,
            "normalised_regret": regret + rng.normal(scale=0.05),
        }
        for seed in range(seeds)
        for task in range(30)
        for k, regret in by_k.items()
    )


def test_episodes_to_target_and_verdict_of_known_curves() -> None:
    fast, slow = curves("mermaide", {0: 1.0, 1: 0.4, 2: 0.1}), curves("scratch", {0: 1.0, 1: 0.8, 2: 0.6}, seeds=1)
    found = episodes_to_target(fast, 0.25)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(1.5, abs=0.1)
    never = episodes_to_target(slow, 0.25)
    assert (never.value, never.low, never.high) == (np.inf, np.inf, np.inf)
    said = verdict(pd.concat([fast, slow, curves("rl2", {0: 1.0, 1: 0.4, 2: 0.1})], ignore_index=True), 0.25)
    assert "never [never, never]" in said
    assert re.search(r"\| scratch \| -0\.(39|40|41)", said)


def test_scratch_and_a_fresh_principal_start_alike() -> None:
    """Meta-training starts from the learner that it is compared with: what differs afterwards was learned."""
    fresh: Believer = Adaptive(
        GAME, PrincipalSettings(payoff_scale=3.0, linear_factors=0), torch.Generator().manual_seed(0)
    )
    settings = Settings(scratch=Scratch(inner_steps=PrincipalSettings().inner_steps)).model_copy(update={"game": GAME})
    none = scratch(settings, 3.0, PrincipalSettings().sharpness)
    games = tasks(range(3))
    dice = deal(Key(0, "test", "alike", 0), games.ids, 2, 2, GAME.rounds)
    with torch.no_grad():
        one, other = (meet(GAME, principal, games, dice, lattice(3, 8)) for principal in (fresh, none))
    torch.testing.assert_close(one.nll, other.nll)
