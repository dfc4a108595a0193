"""The steps of a search for hyperparameters, kept with the posterior that came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Path:
    """What a search went through.

    Attributes:
        log_evidence: (or the score) at each step.
        values: of the hyperparameters at each step, [steps, *shape], by name.
        rounds: the steps at which a new mode was begun with.
        kept: whether the param store holds the values that the search ended with.
        objective: what was searched for.
    """

    log_evidence: tuple[float, ...] = ()
    values: Mapping[str, Tensor] = field(default_factory=dict)
    rounds: tuple[int, ...] = ()
    kept: bool = True
    objective: str = "log evidence"
