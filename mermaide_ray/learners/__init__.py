"""Losses, inner adaptation and the meta-learner. Knows no agent and no game."""
