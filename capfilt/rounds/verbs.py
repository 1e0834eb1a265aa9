"""What `capfilt rounds` does."""

from capfilt.progress import Progress, Say
from capfilt.rounds.checks import RoundsRequest, check
from capfilt.rounds.cost import RoundsPlan, cost_of_rounds
from capfilt.rounds.options import RoundsOptions, build_rounds
from capfilt.rounds.result import RoundsResult
from capfilt.rounds.running import run_rounds


def rounds(
    options: RoundsOptions, given: RoundsRequest, progress: Progress, say: Say
) -> RoundsResult:
    """Run the bootstrap loop, or go on with it.

    Raises:
        InputError: something that the user gave cannot be used, or the folder holds other rounds.
    """
    return run_rounds(build_rounds(options), given, progress, say)


def plan_rounds(options: RoundsOptions, given: RoundsRequest) -> RoundsPlan:
    """Say what `rounds` would do and roughly what it costs; writes nothing.

    Raises:
        InputError: what `rounds` would raise before any work.
    """
    return cost_of_rounds(check(build_rounds(options), given))
