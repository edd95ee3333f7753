"""What RLlib knows the players by, whoever trains or plays them. Imports nothing."""

PRINCIPAL = "principal"
"""The principal's agent id and module id."""
