"""Where a search for the mode ended, and why."""

from dataclasses import dataclass, field
from enum import StrEnum

from pyro_laplace._typing import Theta


class Stopped(StrEnum):
    """Why a search ended, in the words of a message: "the search for the mode stopped because ..."."""

    RESOLVED = "the log joint would rise by less than its rounding error"
    CLOSE = "its Newton decrement was far below what counts as a mode"
    STUCK = "no step, however short, raised the log joint any more"
    CREPT = "it crept, as along a kink (of ReLUs, say), where the log joint is unlike its quadratic model at any step"
    STEPS = "it had made as many steps as it may"
    OUTSIDE = "the log joint is not finite where it began"


@dataclass(frozen=True)
class Reached:
    """Where a search ended.

    Attributes:
        part: the free coordinates [params] of the best point found, float64.
        stopped: why it went no further.
    """

    part: Theta = field(repr=False)
    stopped: Stopped
