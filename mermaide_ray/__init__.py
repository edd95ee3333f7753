"""Incentives for learners: meta-learned principals that steer agents which they never met (MERMAIDE on Ray)."""

__version__ = "0.1.0"
