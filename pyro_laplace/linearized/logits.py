"""The logits that a program computes, before a distribution normalises them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_laplace._compat.torch import saved
from pyro_laplace.likelihood import Likelihood, require_likelihood
from pyro_laplace.program.run import Site
from pyro_laplace.settings import settings


def written_logits(likelihood: Likelihood) -> Tensor | None:
    """The logits that the program wrote of a distribution that keeps them normalised, if the run's graph shows them."""
    if not likelihood.family.shift_invariant:
        return None
    found = unnormalised(likelihood.family.link(likelihood.base))
    return None if found is None else found[0]


def predictor(site: Site) -> Tensor:
    """The unconstrained parameters of a site's distribution; for classes, the logits as the program wrote them.

    Where it wrote none, or normalised ones, they are centred: sums of normalised logits are all but certain, and the
    Laplace bridge, which conditions on a sum of zero, does not survive that.

    Returns:
        eta `[*base batch, outputs]`.
    """
    likelihood = require_likelihood(site.name, site.fn)
    eta = likelihood.link()
    if not likelihood.family.shift_invariant:
        return eta
    kept = likelihood.family.link(likelihood.base)
    written = getattr(kept, _WRITTEN, None)
    found = unnormalised(kept) if written is None else (written, written.detach().logsumexp(-1))
    if found is None or bool(found[1].abs().max() < settings.normalised):
        return eta - _mean_of_classes(eta)
    return _expanded(found[0], eta)


def _mean_of_classes(logits: Tensor) -> Tensor:
    """The mean logit `[*batch, 1]` of the classes that there are: those of minus infinity are masked."""
    there = ~logits.isneginf()
    return torch.where(there, logits, 0.0).sum(-1, keepdim=True) / there.sum(-1, keepdim=True)


def _expanded(written: Tensor, like: Tensor) -> Tensor:
    """Logits in the shape of others; the very tensor where that is theirs, which may be a product's output."""
    return written if written.shape == like.shape else written.expand_as(like)


_WRITTEN = "_pyro_laplace_written"


class _WrittenLogits(TorchFunctionMode):
    """Remembers the logits that `Categorical` was given, on the normalised ones that it keeps, where no graph does.

    A softmax does not see the constant between them, but the probit approximation and the Laplace bridge do: the
    approximated predictive is then that of the predictor that the program computes, whoever normalises it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function; mark ``x - logsumexp(x)``, and what is expanded from it."""
        result = func(*args, **(kwargs or {}))
        kind = getattr(func, "__name__", "")
        if kind == "logsumexp":
            self._sums[id(result)] = (result, args[0])
        elif kind in ("sub", "__sub__") and len(args) == 2 and self._sums.get(id(args[1]), (None, None))[1] is args[0]:
            setattr(result, _WRITTEN, args[0])
        elif kind == "expand" and (written := getattr(args[0], _WRITTEN, None)) is not None:
            setattr(result, _WRITTEN, _expanded(written, result))
        return result


def as_written(model: Callable[..., Any]) -> Callable[..., Any]:
    """A program of which `predictor` finds the logits also where no graph leads to them.

    Args:
        model: the program.

    Returns:
        the same, its operations watched.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        with _WrittenLogits():
            return model(*args, **kwargs)

    setattr(run, "__wrapped__", model)  # noqa: B010 (as functools.wraps has it, of whatever the model is)
    return run


def unnormalised(logits: Tensor) -> tuple[Tensor, Tensor] | None:
    """x and ``logsumexp(x)`` of ``logits = x - logsumexp(x)``, if their graph says that they were computed so.

    Args:
        logits: of `Categorical`, which keeps them normalised; of a run under autograd.

    Returns:
        x and its sums, or None.
    """
    node: Any = logits.grad_fn
    while node is not None and node.name() == "ExpandBackward0":
        node = node.next_functions[0][0]
    if node is None or node.name() != "SubBackward0" or saved(node, "alpha") != 1:
        return None
    first, (sums, _) = node.next_functions
    if sums is None or sums.name() != "LogsumexpBackward0" or sums.next_functions[0] != first:
        return None
    return saved(sums, "self"), saved(sums, "result")


def operations_of(tensor: Tensor) -> tuple[Any, ...]:
    """The graph of a tensor.

    Args:
        tensor: of a run under autograd.

    Returns:
        names of operations in the order of a walk, and numbers of those met again.
    """
    numbers: dict[Any, int] = {}
    found: list[Any] = []
    pending: list[Any] = [tensor.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in numbers:
            found.append(numbers.get(node))
            continue
        numbers[node] = len(numbers)
        found.append(node.name())
        pending += [each for each, _ in node.next_functions]
    return tuple(found)
