"""`load`: a posterior from a file that `save` wrote."""

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from pyro_laplace._errors import InvalidData, UnsupportedProgram
from pyro_laplace.data import Data, as_data
from pyro_laplace.io.file import read
from pyro_laplace.io.records import explored_again, laplace_again, moved_to, sites_again
from pyro_laplace.nested.guide import NestedLaplace
from pyro_laplace.nn.network import BayesianNetwork, run_priors
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.program.program import Program
from pyro_laplace.program.sites import Latent
from pyro_laplace.state import unpacked


def load(
    path: str | PathLike[str],
    model: Callable[..., Any],
    data: Any = None,
    *,
    device: torch.device | str | None = None,
) -> AutoLaplace | LaplaceMixture:
    """Make a posterior of a file again, as the guide of a model.

    Args:
        path: of a file that `save` wrote. Reading it runs no code from it.
        model: the Pyro program that the posterior is of.
        data: what the program is called with, new data will do. Where it is given, the program is run once, and
            refused if its latent sites are not those of the file. Without data that is asked of what runs without: the
            priors of a network by `bayesianize`, and a program that closes over its data. Of another program it shows
            where the guide is first used.
        device: where to put it; None for the processor.

    Returns:
        the guide: an `AutoLaplace`, a `LaplaceMixture` or a `NestedLaplace`, as it was saved.

    Raises:
        InvalidData: if the file is not there, is none of `save`'s, is damaged, or comes from a newer version.
        UnsupportedProgram: if the model's sites have other names, shapes, supports or another dtype, naming them.
    """
    document, tensors = read(Path(path))
    try:
        tree = moved_to(unpacked(document, tensors), device)
        latents = sites_again(tree["sites"])
        guide = _posterior_again(tree["posterior"], latents, model)
    except Exception as error:
        raise InvalidData(
            f"{path} has the right checksum, and what it holds is no posterior ({type(error).__name__}: {error}): save "
            "it again"
        ) from error
    if data is not None:
        _refuse_other_model(path, latents, guide, Program.trace(model, as_data(data), None, guide.hyperparameters))
    elif isinstance(model, BayesianNetwork):
        _refuse_other_model(path, latents, guide, _priors_of(model), whole=False)
    elif (program := _without_data(model, guide)) is not None:
        _refuse_other_model(path, latents, guide, program)
    return guide


def _posterior_again(
    saved: Mapping[str, Any], latents: dict[str, Latent], model: Callable[..., Any]
) -> AutoLaplace | LaplaceMixture:
    rest = {name: value for name, value in saved.items() if name != "kind"}
    if saved["kind"] == "AutoLaplace":
        return laplace_again(rest, latents, model)
    components = [laplace_again(each, latents, model) for each in saved["components"]]
    if saved["kind"] == "NestedLaplace":
        guide: LaplaceMixture = NestedLaplace(components, explored_again(saved["nested"]))
    else:
        guide = LaplaceMixture(components, weights="equal")
    guide.weighting = saved["weighting"]
    guide.weights = saved["weights"]
    guide.theta = components[int(guide.weights.argmax())].theta
    if saved["fit_seconds"] is not None:
        guide.fit_seconds = saved["fit_seconds"]
    return guide


def _priors_of(network: BayesianNetwork) -> Program:
    """The priors of a network's parameters, which need no data, as a program."""

    def priors() -> None:
        run_priors(network)

    return Program.trace(priors, Data((), one_batch=True, prior_alone=True))


def _without_data(model: Callable[..., Any], guide: AutoLaplace | LaplaceMixture) -> Program | None:
    """The program run on nothing; None where it wants data, whatever it says then."""
    try:
        return Program.trace(model, as_data(()), None, guide.hyperparameters)
    except Exception:  # of the user's code, called as it may not be meant to
        return None


def _refuse_other_model(
    path: Any, saved: Mapping[str, Latent], guide: AutoLaplace | LaplaceMixture, program: Program, whole: bool = True
) -> None:
    """Refuse a model with other latent sites than the file's, or of another dtype; `whole` if it shows all it has."""
    _refuse_other_sites(path, saved, program.latents, whole)
    dtype = program.start.dtype
    if dtype != guide.theta.dtype:
        raise UnsupportedProgram(
            f"{path} holds a posterior of {guide.theta.dtype}, and the model is of {dtype}: use the dtype that it "
            "was fitted in (torch.set_default_dtype, module.to)"
        )


def _refuse_other_sites(path: Any, saved: Mapping[str, Latent], own: Mapping[str, Latent], whole: bool) -> None:
    """Refuse a model with other latent sites than the file's; of a part of a model, one with others beside them."""
    missing, surplus = [n for n in saved if n not in own and whole], [n for n in own if n not in saved]
    if missing or surplus:
        raise UnsupportedProgram(
            f"{path} is a posterior of the sites {list(saved)}, and the model has {list(own)}"
            f"{f', without {missing}' if missing else ''}{f', with {surplus} besides' if surplus else ''}: give the "
            "model that it was fitted to"
        )
    known = {name: latent for name, latent in saved.items() if name in own}
    for name, latent in known.items():
        if latent.shape != own[name].shape:
            raise UnsupportedProgram(
                f"site {name!r} has the shape {tuple(latent.shape)} in {path}, and {tuple(own[name].shape)} in the "
                "model: a plate or a layer has another size now"
            )
        if repr(latent.support) != repr(own[name].support):
            raise UnsupportedProgram(
                f"site {name!r} has the support {latent.support} in {path}, and {own[name].support} in the model: its "
                "prior is another one now"
            )
    if list(known) != list(own):
        raise UnsupportedProgram(f"{path} has its sites in the order {list(saved)}, and the model in {list(own)}")
