"""The Stackelberg experiment: commit to a mixed strategy against a follower whose payoffs are unknown.

In data-flow order: settings.py (what an experiment depends on), games.py (tasks, dice, the best response),
equilibrium.py (the truth), beliefs.py (models of the follower, and how they change with what is seen), planner.py (from
a belief to a commitment), meeting.py (a principal meets followers, episode after episode), training.py, evaluation.py
(rows), report.py (figure and verdict), experiment.py (all of it, resumable). The game is also an RLlib environment:
envs/stackelberg.py.
"""
