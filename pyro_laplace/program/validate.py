"""What a program must be for a Laplace approximation, and what to do where it is not."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint

from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace.program.initial import init_to_start
from pyro_laplace.program.run import Run, Site
from pyro_laplace.program.sites import Latent


def latent_layout(run: Run) -> dict[str, Latent]:
    """The latent sites of a run, laid out in theta in trace order.

    Returns:
        site name to `Latent`; their slices follow each other from 0 on.

    Raises:
        UnsupportedProgram: if there is none, or one is discrete, lives on a sphere or inside a subsampled plate.
    """
    if not run.latents:
        raise UnsupportedProgram(
            "the model has no latent site (is it a Pyro program?): put a prior on what shall be random, with "
            "pyro.sample(name, prior) or PyroSample(prior)"
        )
    latents, start = {}, 0
    for name, site in run.latents.items():
        support = _continuous_support(name, site.fn)
        _refuse_subsampled(site)
        unconstrained = biject_to(support).inv(site.value)
        latents[name] = Latent(
            name=name,
            support=support,
            batch_shape=torch.Size(site.fn.batch_shape),
            event_shape=torch.Size(site.fn.event_shape),
            unconstrained_shape=unconstrained.shape,
            slice=slice(start, start + unconstrained.numel()),
            frames=site.frames,
        )
        start += unconstrained.numel()
    return latents


def refuse_missing(site: Mapping[str, Any]) -> Tensor:
    """Refuse a latent site that the point given does not hold.

    Args:
        site: its sample message.

    Raises:
        UnsupportedProgram: naming the site.
    """
    name = site["name"]
    if site["fn"].support.is_discrete:
        raise UnsupportedProgram(_discrete(name, site["fn"]))
    raise UnsupportedProgram(
        f"latent site {name!r} has no value in the guide or mapping given. If {name!r} is data, give its value; else "
        f"train the guide on the whole model, or hold the site with poutine.condition(model, data={{{name!r}: value}})"
    )


def refuse_surplus(run: Run, values: Mapping[str, Tensor]) -> None:
    """Refuse a point with values for sites that are not latent: it belongs to another program, or to other data.

    Args:
        run: the program's run.
        values: the point given.

    Raises:
        UnsupportedProgram: naming the sites.
    """
    for name in values:
        if name in run.observed:
            raise UnsupportedProgram(
                f"the guide or mapping given has a value for {name!r}, which is observed on this data. If the guide "
                f"was first called without observations, it took {name!r} for a latent site: train it anew on the "
                f"data. If {name!r} is conditioned on, leave it out: give a mapping of the other sites' values"
            )
        if name not in run.latents and name not in run.deterministic:
            raise UnsupportedProgram(
                f"the guide or mapping given has a value for {name!r}, but the latent sites of the model are "
                f"{list(run.latents)}: it belongs to another model"
            )


def refuse_outside(run: Run) -> None:
    """Refuse a latent value outside its site's support.

    Args:
        run: the program's run at the values given.

    Raises:
        UnsupportedProgram: naming the site, the value and the support.
    """
    for name, site in run.latents.items():
        inside = site.fn.support.check(site.value)
        if not bool(inside.all()):
            raise UnsupportedProgram(
                f"latent site {name!r} has a value outside its support {site.fn.support}: {site.value.flatten()[:5]}"
            )


def start_value(site: Mapping[str, Any]) -> Tensor:
    """`init_to_start` at a site that a Gaussian can describe.

    Args:
        site: its sample message.

    Returns:
        a value of the distribution's shape, within its support.

    Raises:
        UnsupportedProgram: if it is discrete or has no unconstrained form, naming it.
    """
    _continuous_support(site["name"], site["fn"])
    return init_to_start(site)


def refuse_no_likelihood(run: Run, one_batch: bool) -> None:
    """Refuse a run without observed sites and factors.

    Args:
        run: the program's run.
        one_batch: whether the data were given as one batch.

    Raises:
        UnsupportedProgram: naming the latent sites, among which the unobserved data may be.
    """
    if run.latents and not run.observed and not run.factors:
        hint = "" if one_batch else "A list is a sequence of batches; one batch is a tuple (x, y) or a dict. "
        raise UnsupportedProgram(
            f"the model has no observed site on this data; its latent sites are {list(run.latents)}. {hint}Give the "
            "observed values with the data, e.g. data=(x, y) for model(x, y=None) with pyro.sample('obs', ..., obs=y)"
        )


def refuse_randomness(first: Tensor, second: Tensor) -> None:
    """Refuse a program whose log density at fixed latent values changes from run to run.

    Args:
        first: the log density of one run.
        second: of another at the same point, the random state having moved on.

    Raises:
        UnsupportedProgram: saying what usually causes it.
    """
    if not torch.isclose(first, second, rtol=1e-6, equal_nan=True):
        raise UnsupportedProgram(
            f"the log density changes between two runs at the same latent values ({first.item():.6g}, "
            f"{second.item():.6g}): something random is not a latent site. Dropout: call model.eval(). A site hidden "
            "by poutine.block: hold it with poutine.condition(model, data={site: value}), or keep it visible and leave "
            "it out of subset="
        )


def _continuous_support(name: str, fn: Any) -> Constraint:
    support = fn.support
    if support.is_discrete:
        raise UnsupportedProgram(_discrete(name, fn))
    try:
        biject_to(support)
    except NotImplementedError:
        remedy = (
            f"use dist.ProjectedNormal with poutine.reparam(config={{{name!r}: ProjectedNormalReparam()}})"
            if "sphere" in repr(support).lower()
            else "rewrite the site in terms of unconstrained variables"
        )
        raise UnsupportedProgram(
            f"latent site {name!r} has support {support}, which has no bijection to unconstrained space: {remedy}"
        ) from None
    return support


def _discrete(name: str, fn: Any) -> str:
    return (
        f"latent site {name!r} is discrete ({type(fn).__name__}), and a Gaussian cannot describe it. If it is data, "
        "give its value (obs=). Else enumerate it by hand (dist.MixtureSameFamily in place of a mixture's assignment, "
        f"say), or hold it with poutine.condition(model, data={{{name!r}: value}}), or hide it with "
        f"poutine.block(model, hide=[{name!r}]) once nothing depends on it"
    )


def _refuse_subsampled(site: Site) -> None:
    for frame in site.frames:
        if frame.full_size not in (None, frame.size):
            raise UnsupportedProgram(
                f"latent site {site.name!r} is local to plate {frame.name!r}, which subsamples {frame.size} of "
                f"{frame.full_size}: a Laplace approximation over local latents needs all data at once. Drop "
                "subsample_size= from the plate, and give the data as one batch"
            )
