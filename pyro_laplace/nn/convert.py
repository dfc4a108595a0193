"""`bayesianize`: a network becomes a Pyro program."""

import copy
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.nn import PyroModule
from torch import nn

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import is_lazy, wrapper_of
from pyro_laplace._errors import InvalidOption, UnsupportedProgram, check_option
from pyro_laplace.nn.learned import refuse_two_values, warn_of_kept
from pyro_laplace.nn.likelihoods import Likelihood
from pyro_laplace.nn.network import BayesianNetwork, NetworkProgram, run_priors
from pyro_laplace.nn.output import Pick, check_pick
from pyro_laplace.nn.select import Chosen, Priors, assign, choose
from pyro_laplace.program.start import init_to_start


def bayesianize(
    module: nn.Module,
    prior: Priors,
    likelihood: Likelihood | None = None,
    *,
    parameters: Chosen = None,
    rest: str = "fixed",
    name: str = "",
    output: Pick = None,
    target: str = "y",
    mask: str | None = None,
) -> BayesianNetwork:
    """Make a Pyro program of a network, trained or not: its parameters get priors, and its weights start the mode.

    The network is copied; the one given is left as it is, and the program shares no tensor of it. The program is in
    eval mode: a log density that is random (dropout) or in which data depend on one another (batch statistics) has no
    Laplace approximation. `train()` switches back.

    `fit_map`, `fit_laplace` and `fit_nuts` start from the network's weights; Pyro's autoguides do so with
    ``init_loc_fn=pl.init_to_start``.

    Args:
        module: the network.
        prior: of `pyro_laplace.nn`, or a function ``(name, parameter) -> distribution``, or a mapping from globs of
            parameter names to these: the first match wins, None means no prior, as does no match.
        likelihood: a likelihood of `pyro_laplace.nn`, or any function of the network's output that gives the
            distribution of y; the result is then the program ``model(x, y=None)``, or ``model(**batch)``, with the
            plate ``data`` and the observed site ``y``. Without one, calling the result returns the network's output,
            inside a program of the caller's.
        parameters: which may have a prior: a glob or several, or a callable of the name. None: those that require a
            gradient and belong to no normalisation layer.
        rest: the parameters without a prior: "fixed" at their values, or "trained" with the mode, as ``pyro.param``
            statements (those that require no gradient stay fixed).
        name: prefix of the sites, ``name.0.weight``; needed for two networks in one program.
        output: what of the network's output is predicted: an attribute or key, such as "logits", the place in a tuple,
            or a function of the output. None: all of it.
        target: the name of y in a batch by name, ``model(**batch)``; the network is not given it. The observed site is
            ``y`` all the same.
        mask: the name of an entry of a batch that says which positions count, such as "attention_mask"; the network is
            given it too where it takes it.

    Returns:
        the program. Its sites have the names of `named_parameters`.

    Raises:
        InvalidOption: for a pattern that matches nothing, or a prior that does not fit its parameter, naming it.
        UnsupportedProgram: if the module cannot be copied, is a `PyroModule`, or has lazy parameters; or for
            ``rest="trained"`` under Pyro's setting `module_local_params`, whose SVI cannot train them.
    """
    check_option("rest", rest, ("fixed", "trained"))
    _refuse_module(module)
    _refuse_likelihood(likelihood)
    check_pick(output)
    if likelihood is None and (target != "y" or mask is not None):
        raise InvalidOption("target= and mask= are of a likelihood, and none is given: give likelihood= too")
    priors = assign(module, choose(module, parameters), prior)
    refuse_two_values([*priors.values(), likelihood])
    others = {key for key, each in module.named_parameters() if key not in priors and each.requires_grad}
    trained = sorted(others) if rest == "trained" else ()
    if trained:
        _refuse_local_params()
        _refuse_known(name, trained)
    network = _copied(module).eval()
    if likelihood is None:
        program = BayesianNetwork(network, priors, trained, name, output)
    else:
        program = NetworkProgram(network, priors, likelihood, trained, name, output, target, mask)
    warn_of_kept(_check_priors(program))
    return program.eval()


def _refuse_module(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise InvalidOption(f"module is a {type(module).__name__}: give an nn.Module")
    for each in module.modules():
        if (wrapper := wrapper_of(each)) is not None:
            raise UnsupportedProgram(
                f"the network holds a module from {wrapper.name}, which no derivative goes through here: "
                f"{wrapper.remedy}"
            )
    if any(isinstance(each, PyroModule) for each in module.modules()):
        raise UnsupportedProgram(
            f"the {type(module).__name__} has Pyro statements of its own: give its parameters a PyroSample each, or "
            "bayesianize the nn.Module it was made of"
        )
    tensors = [*module.named_parameters(), *module.named_buffers()]
    lazy = [key for key, each in tensors if is_lazy(each)]
    if lazy:
        raise UnsupportedProgram(f"the parameters {lazy} have no shape yet: call the network on an input first")


def _refuse_likelihood(likelihood: Any) -> None:
    if likelihood is not None and (isinstance(likelihood, type) or not callable(likelihood)):
        raise InvalidOption(
            f"likelihood={likelihood!r} is no likelihood: give one of pl.nn, such as pl.nn.Regression(noise=0.1), or a "
            "function of the network's output that returns a distribution"
        )


def _refuse_local_params() -> None:
    if pyro.settings.get("module_local_params"):
        raise UnsupportedProgram(
            "rest='trained' under pyro.settings.set(module_local_params=True): Pyro's SVI cannot train the ordinary "
            "parameters of a module in this mode. Use rest='fixed', or switch the mode off"
        )


def _refuse_known(name: str, trained: Any) -> None:
    """Two programs with a param of one name would share it."""
    store = pyro.get_param_store()
    known = [site for each in trained if (site := f"{name}.{each}" if name else each) in store]
    if known:
        raise InvalidOption(
            f"rest='trained': the param store already holds {known}, and Pyro would use what it holds. Call "
            "pyro.clear_param_store(), or give name="
        )


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except RuntimeError as error:
        raise UnsupportedProgram(f"the {type(module).__name__} cannot be copied: {error}") from error


def _check_priors(program: BayesianNetwork) -> dict[str, Any]:
    """Draw from every prior once, and refuse what does not fit its parameter; the sites of this run."""
    parameters = dict(program.module.named_parameters())
    with undisturbed(), torch.no_grad(), poutine.block(), poutine.trace() as tracer, InitMessenger(init_to_start):
        values = run_priors(program)
    for name in program.priors:
        value, parameter = values[name], parameters[name]
        kind, expected = (value.shape, value.dtype, value.device), (parameter.shape, parameter.dtype, parameter.device)
        if kind != expected:
            raise InvalidOption(f"the prior of parameter {name!r} draws {kind}, and the parameter is {expected}")
    nodes: dict[str, Any] = dict(tracer.trace.nodes)
    for site, node in nodes.items():
        if node["type"] == "sample" and not bool(node["fn"].support.check(node["value"]).all()):
            raise InvalidOption(
                f"the prior of {site!r} has the support {node['fn'].support}, and the network's value lies outside it"
            )
    return nodes
