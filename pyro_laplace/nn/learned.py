"""`learned`: a scale for the evidence to choose, and what to look at in a program that has some."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._errors import InvalidOption, LaplaceWarning
from pyro_laplace.nn.scale import Initial, Learned


def learned(initial: float | Tensor = 1.0, *, name: str | None = None) -> Learned:
    """A scale that is a `pyro.param`, a hyperparameter: `maximize_evidence` and `tune` choose its value.

    It fits wherever a scale does. There is one for each parameter, called after it: ``0.weight.scale``,
    ``0.weight.gain`` of `FanIn`, ``0.weight.shared`` of `ScaleMixture`; and ``noise`` of `Regression`. `ARD` has one
    for each input.

    Args:
        initial: its value before it is learned; a tensor gives the param its shape.
        name: of the param, one for all parameters that the prior is of, and for all scales of this name.

    Returns:
        the scale. What is not positive and finite, or no name, is refused with `InvalidOption`.
    """
    return Learned(initial, name)


def refuse_two_values(holders: Iterable[Any]) -> None:
    """See that learned scales of one name have one initial value, of which Pyro would take the first.

    Args:
        holders: priors and a likelihood, whose attributes may be learned scales.

    Raises:
        InvalidOption: naming the param and both values.
    """
    found: dict[str, Learned] = {}
    for scale in (each for holder in holders for each in getattr(holder, "__dict__", {}).values()):
        if isinstance(scale, Learned) and scale.name is not None:
            first = found.setdefault(scale.name, scale)
            if not torch.equal(*(torch.as_tensor(each.initial).double().cpu() for each in (first, scale))):
                raise InvalidOption(
                    f"learned: the param {scale.name!r} has two initial values, {first.initial} and {scale.initial}: "
                    "give them one, or names of their own"
                )


def warn_of_kept(nodes: Mapping[str, Any]) -> None:
    """Warn of learned scales that the param store holds at other values than their initial ones.

    Args:
        nodes: of a trace of the program.
    """
    starts = {name: node["args"][1] for name, node in nodes.items() if node["type"] == "param" and node["args"][1:]}
    kept = [
        name
        for name, start in starts.items()
        if isinstance(start, Initial) and not torch.allclose(nodes[name]["value"].to(start.value), start.value)
    ]
    if kept:
        warnings.warn(
            f"the param store already holds {kept} at values other than the initial ones of pl.nn.learned, and Pyro "
            "will use what it holds. To start anew, call pyro.clear_param_store(), or give name=",
            LaplaceWarning,
            stacklevel=3,
        )
