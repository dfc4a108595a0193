"""The steps of a search for hyperparameters, kept with the posterior that came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
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

    def followed_by(self, other: "Path") -> "Path":
        """This search, and one that went on from its end."""
        count = len(self.log_evidence)
        values = {name: torch.cat([value, other.values[name]]) for name, value in self.values.items()}
        rounds = (*self.rounds, *(count + number for number in other.rounds))
        return Path(self.log_evidence + other.log_evidence, values, rounds, self.kept, self.objective)
