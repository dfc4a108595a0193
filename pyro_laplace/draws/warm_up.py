"""The draws of an MCMC's warm-up, which Pyro makes and does not keep."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class WarmUp:
    """A hook of `pyro.infer.MCMC` that keeps the draws of the warm-up; `fit_nuts` sets one up by itself.

    ``MCMC(kernel, ..., hook_fn=WarmUp())``, with chains that run in this process, and `mcmc.warm_up` set to it, is what
    `to_datatree` reads.
    """

    def __init__(self) -> None:
        self._by_stage: dict[str, list[dict[str, Tensor]]] = {}

    def __call__(self, kernel: Any, samples: Mapping[str, Tensor], stage: str, i: int) -> None:
        """Keep one draw, if it is of the warm-up."""
        if stage.startswith("Warmup"):
            kept = {name: value.detach().clone() for name, value in samples.items()}
            self._by_stage.setdefault(stage, []).append(kept)

    def values(self, transforms: Mapping[str, Any]) -> dict[str, Tensor]:
        """The draws in the sites' own spaces.

        Args:
            transforms: site name to the transform whose inverse leads there, as `MCMC` has them.

        Returns:
            site name to `[chains, steps, *shape]`; empty where there was no warm-up.
        """
        chains = list(self._by_stage.values())
        if not chains:
            return {}
        found = {
            name: torch.stack([torch.stack([draw[name] for draw in each]) for each in chains]) for name in chains[0][0]
        }
        return {n: transforms[n].inv(value).detach() if n in transforms else value for n, value in found.items()}
