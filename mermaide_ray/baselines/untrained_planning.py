"""Planning without training: what a principal that learned nothing makes of one episode with the agent.

The control of what training adds to planning (`planning.py`): the episode is played by first n, and so is the query
where no rule is clearly better. It has no policy to rehearse.
"""

from __future__ import annotations

from mermaide_ray.agent_settings import Split
from mermaide_ray.agents.distribution import Tasks
from mermaide_ray.baselines.rules import first_n
from mermaide_ray.experiment import Experiment, check_imaginable
from mermaide_ray.imagination import Imagination
from mermaide_ray.kshot import PLANNING, SUPPORT, evaluation_key
from mermaide_ray.lockstep import Principal, deal_for, play
from mermaide_ray.planning import plan
from mermaide_ray.view import view_of


def untrained_planning(experiment: Experiment, split: Split, tasks: Tasks, episodes: int) -> Principal:
    """First n for an episode with each agent, then the rule that does best with agents imagined from it.

    That episode is not among those that are scored; the agent forgets it, as it does any support.

    Raises:
        InputError: Agents of this game can't be imagined.
    """
    check_imaginable(experiment, "baseline untrained_planning")
    environment, key = experiment.environment, evaluation_key(experiment, split)
    policy = first_n(experiment, split, tasks, episodes)
    # The draws of a trained principal's support, and of its planning.
    dice = deal_for(environment, key.within(SUPPORT), tasks, 1)
    support = view_of(environment).history(play(environment, tasks, 1, dice, policy))
    choice = plan(Imagination.of(environment, support, tasks.ids), policy, key.within(PLANNING))
    return choice.principal(environment, policy, episodes)
