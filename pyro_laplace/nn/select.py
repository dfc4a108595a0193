"""Which parameters of a network have which prior."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from pyro_laplace._errors import InvalidOption
from pyro_laplace.nn.layers import NORMALISATION
from pyro_laplace.nn.priors import FromFunction, Prior

type PriorLike = Prior | Callable[[str, Tensor], Any]
"""A prior, or a function of a parameter's name and value that returns a distribution."""

type Priors = PriorLike | Mapping[str, PriorLike | None]
"""One for all parameters, or glob to prior: the first match wins, and None means no prior."""

type Chosen = str | Iterable[str] | Callable[[str], bool] | None
"""What `parameters=` may be."""

type Names = Mapping[str, tuple[str, ...]]
"""Parameter, by its first name, to all of its names."""


def aliases_of(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Every parameter of a network, a shared one once, by its first name, with all of its names."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {each[0]: tuple(each) for each in names.values()}


def choose(module: nn.Module, parameters: Chosen) -> tuple[str, ...]:
    """The parameters that may have a prior.

    Args:
        module: the network.
        parameters: a glob or several, or a callable of the name; None means those that require a gradient and belong
            to no normalisation layer.

    Returns:
        their (first) names, in the order of `named_parameters`.

    Raises:
        InvalidOption: if nothing matches, listing the parameters there are.
    """
    names = aliases_of(module)
    if parameters is None:
        left_out = _left_out(module)
        chosen = tuple(name for name in names if name not in left_out)
        if not chosen:
            raise InvalidOption(
                f"no parameter is left for a prior: {_with_reasons(left_out)}. Name some: parameters='*'"
                if names
                else f"the {type(module).__name__} has no parameters"
            )
        return chosen
    if callable(parameters):
        chosen = tuple(name for name, aliases in names.items() if any(parameters(alias) for alias in aliases))
        if not chosen:
            raise InvalidOption(f"parameters: the callable chose none of {list(names)}")
        return chosen
    patterns = [parameters] if isinstance(parameters, str) else list(parameters)
    if not patterns:
        raise InvalidOption(f"parameters is empty; there are {list(names)}")
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InvalidOption(f"parameters: {pattern!r} is not the name of a parameter; there are {list(names)}")
        if not any(_matches(aliases, pattern) for aliases in names.values()):
            raise InvalidOption(f"parameters: {pattern!r} matches none of {list(names)}")
    return tuple(name for name, aliases in names.items() if any(_matches(aliases, pattern) for pattern in patterns))


def assign(module: nn.Module, chosen: tuple[str, ...], prior: Priors) -> dict[str, Prior]:
    """The prior of each parameter that has one.

    Args:
        module: the network.
        chosen: the parameters that may have one.
        prior: as `bayesianize` takes it.

    Returns:
        name of a parameter to its prior.

    Raises:
        InvalidOption: if a glob matches nothing, a value is no prior, or no parameter has one.
    """
    if not isinstance(prior, Mapping):
        return dict.fromkeys(chosen, _as_prior("prior", prior))
    names = aliases_of(module)
    of_glob = {glob: None if each is None else _as_prior(f"prior[{glob!r}]", each) for glob, each in prior.items()}
    for glob in of_glob:
        if not any(_matches(names[name], glob) for name in chosen):
            raise InvalidOption(f"prior: {glob!r} matches none of {list(chosen)}{_why(module, names, chosen, glob)}")
    found = {}
    for name in chosen:
        glob = next((glob for glob in of_glob if _matches(names[name], glob)), None)
        each = None if glob is None else of_glob[glob]
        if each is not None:
            found[name] = each
    if not found:
        raise InvalidOption(f"prior={prior!r} gives none of the parameters {list(chosen)} a prior")
    return found


def _matches(aliases: tuple[str, ...], pattern: str) -> bool:
    return any(fnmatchcase(alias, pattern) for alias in aliases)


def _as_prior(option: str, prior: Any) -> Prior:
    if isinstance(prior, Prior):
        return prior
    if isinstance(prior, type) or hasattr(prior, "log_prob") or not callable(prior):
        raise InvalidOption(
            f"{option}={prior!r} is no prior: give one of pl.nn (Isotropic, FanIn, ARD, StudentT, ScaleMixture, "
            "Horseshoe), or a function (name, parameter) -> distribution, such as lambda name, parameter: "
            "dist.Normal(0.0, 1.0)"
        )
    return FromFunction(prior)


def _left_out(module: nn.Module) -> dict[str, str]:
    """Parameters that have no prior unless they are named, and why."""
    normalised = {
        id(parameter)
        for layer in module.modules()
        if isinstance(layer, NORMALISATION)
        for parameter in layer.parameters(recurse=False)
    }
    reasons = {}
    for name, parameter in module.named_parameters():
        if id(parameter) in normalised:
            reasons[name] = "belongs to a normalisation layer"
        elif not parameter.requires_grad:
            reasons[name] = "requires no gradient"
    return reasons


def _why(module: nn.Module, names: Names, chosen: tuple[str, ...], glob: str) -> str:
    """What keeps the parameters that a glob matches from having a prior."""
    matched = [name for name, aliases in names.items() if name not in chosen and _matches(aliases, glob)]
    if not matched:
        return ""
    reasons = {name: reason for name, reason in _left_out(module).items() if name in matched}
    return f". {_with_reasons(reasons) or f'{matched} are left out by parameters='}: name them in parameters="


def _with_reasons(reasons: Mapping[str, str]) -> str:
    return ", ".join(f"{name!r} {reason}" for name, reason in reasons.items())
