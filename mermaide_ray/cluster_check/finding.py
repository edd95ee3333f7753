"""One thing that is wrong with a cluster's file, and the words that several checks share."""

from __future__ import annotations

from dataclasses import dataclass

PLACEHOLDER = "CHANGE_ME"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEAD_WORKS = "a trial on the head takes the cluster down with it when it runs out of memory"
NOT_SHARED = "a sweep fails at its first checkpoint where its nodes share no storage"
IDLE_COSTS = "they would cost money whether there is work or not"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        where: Dotted path of the key to change.
        problem: What was required, what was given, and why.
    """

    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"
