"""The nodes of a running cluster, and asking each of them. Ray must be up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mermaide_ray.errors import InputError

# On a loaded machine a process takes most of a minute to start.
_ANSWER_SECONDS = 180.0


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, or one that could join it.

    Attributes:
        name: Host name and address; empty for one that is not there.
        resources: Everything that it has, in use or not.
        identity: Ray's, in hexadecimal digits.
    """

    name: str
    resources: dict[str, float]
    identity: str = ""


def nodes() -> list[Node]:
    """The nodes that are there."""
    return [
        Node(f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})", node["Resources"], node["NodeID"])
        for node in ray.nodes()
        if node["Alive"]
    ]


def on_every_node(question: Callable[..., Any], *arguments: Any) -> list[tuple[str, Any]]:
    """(node name, answer) of each node; an exception is an answer too.

    Args:
        question: Must be a function within a function: those travel by value, and need nothing installed there.
        arguments: Of the question.
    """
    # No CPU asked for: a node that works, or the head, answers beside what it does.
    task = ray.remote(num_cpus=0, max_retries=0)(question)
    asked = [
        (
            node.name,
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.identity, soft=False)).remote(
                *arguments
            ),
        )
        for node in nodes()
    ]
    ray.wait([reference for _, reference in asked], num_returns=len(asked), timeout=_ANSWER_SECONDS)
    answers: list[tuple[str, Any]] = []
    for name, reference in asked:
        try:
            answers.append((name, ray.get(reference, timeout=0)))
        except ray.exceptions.GetTimeoutError:
            answers.append((name, TimeoutError(f"it gave no answer for {_ANSWER_SECONDS:.0f} s")))
        except Exception as error:  # whatever went wrong there
            answers.append((name, error))
    return answers


def last_line(error: Exception) -> str:
    """What an exception says in the end, after Ray's frames around it."""
    return said(error)[-1]


def refusal(error: Exception) -> str:
    """The sentence of an `InputError` that another process has raised, without Ray's frames around it; else empty."""
    _, found, sentence = str(error).rpartition(f"{InputError.__module__}.{InputError.__name__}: ")
    return sentence if found else ""


def said(error: Exception) -> list[str]:
    """What an exception says, line by line: at the least what it is."""
    return str(error).strip().splitlines() or [type(error).__name__]
