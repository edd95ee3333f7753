"""The two ways in which a run may fail, and their exit codes."""


class InputError(ValueError):
    """What the user gave can't be used: one sentence on what was required, what was given, where to change it."""

    exit_code = 2


class RunFault(RuntimeError):
    """The input was fine, the run was not (a crashed worker, a full disk, a loss that is not a number)."""

    exit_code = 1


class WorkersLost(RunFault):
    """Processes that the run needs are gone, with their node perhaps: it can be gone on with from its checkpoint."""
