"""What a program must be for a Laplace approximation, and what to do where it is not."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint

from pyro_laplace._compat.pyro import is_delta
from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace.program.run import Run, Site
from pyro_laplace.program.sites import Latent
from pyro_laplace.program.start import init_to_start
from pyro_laplace.settings import settings


def latent_layout(run: Run) -> dict[str, Latent]:
    """The latent sites of a run, laid out in theta in trace order.

    Returns:
        site name to `Latent`; their slices follow each other from 0 on.

    Raises:
        UnsupportedProgram: if there is none, or one is discrete, lives on a sphere or inside a subsampled plate, or has
            a support that depends on another.
    """
    if not run.latents and run.discrete:
        raise UnsupportedProgram(
            f"the latent sites {list(run.discrete)} are discrete and enumerated, and there is no continuous one: their "
            "posterior is exact without an approximation, by pyro.infer.infer_discrete or TraceEnum_ELBO"
        )
    if not run.latents:
        raise UnsupportedProgram(
            "the model has no latent site (is it a Pyro program?): put a prior on what shall be random, with "
            "pyro.sample(name, prior) or PyroSample(prior); a torch network becomes a program by "
            "pl.bayesianize(net, prior=..., likelihood=...)"
        )
    latents, start = {}, 0
    for name, site in run.latents.items():
        support = _continuous_support(name, site.fn)
        _refuse_moving_support(site, run)
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


def refuse_unsampled(latents: Collection[str], sampled: Collection[str]) -> None:
    """Refuse a posterior of sites that a program it is to predict with does not sample.

    Args:
        latents: the posterior's sites.
        sampled: the sites of a run.

    Raises:
        UnsupportedProgram: naming the sites that are not there.
    """
    surplus = [name for name in latents if name not in sampled]
    if surplus:
        raise UnsupportedProgram(
            f"the guide has the latent sites {surplus}, which the model does not sample on this call: it belongs to "
            "another model. To predict with some of its sites, give their draws by name: "
            "pl.Predictive(model, posterior_samples=guide.sample_posterior(1000))"
        )


def refuse_surplus(run: Run, values: Mapping[str, Tensor], fixed: Collection[str] = ()) -> None:
    """Refuse a point with values for sites that are not latent: it belongs to another program, or to other data.

    Args:
        run: the program's run.
        values: the point given.
        fixed: names of a network's parameters that have no prior, where the model is a network.

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
        if name in fixed and name not in run.latents:
            raise UnsupportedProgram(
                f"the point given has a value for {name!r}, a parameter that has no prior (those of normalisation "
                "layers have none unless parameters= names them): leave such ones out, {name: weight for name, weight "
                "in net.named_parameters() if name in model.priors}"
            )
        if name not in {*run.latents, *run.deterministic, *run.missing}:
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
    lonely = [name for name, site in run.factors.items() if not site.frames]
    if run.latents and lonely and not run.observed and len(lonely) == len(run.factors) and not one_batch:
        raise UnsupportedProgram(
            f"the model has no observed site, and pyro.factor {lonely} stands in no plate: it counts once, as a prior "
            "does, and not once a batch. Put it into the data's plate, one value a datum: with pyro.plate('data', n): "
            f"pyro.factor({lonely[0]!r}, log_lik); or give all data as one batch"
        )
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
    if not torch.isclose(first, second, rtol=settings.same_run, equal_nan=True):
        raise UnsupportedProgram(
            f"the log density changes between two runs at the same latent values ({first.item():.6g}, "
            f"{second.item():.6g}): something random is not a latent site. Dropout: call model.eval(). A site hidden "
            "by poutine.block: hold it with poutine.condition(model, data={site: value}), or keep it visible and leave "
            "it out of subset="
        )


def refuse_used_missing(run: Run) -> None:
    """Refuse values that `obs_mask` leaves unobserved and that the program uses: they do not integrate to 1.

    Args:
        run: the program's run, its latent and missing values leaves of a graph.

    Raises:
        UnsupportedProgram: naming the site.
    """
    if not run.missing:
        return
    with torch.enable_grad():
        sites = [*run.latents.values(), *run.observed.values(), *run.factors.values()]
        total = torch.stack([site.log_prob().sum() for site in sites]).sum()
    for name, site in run.missing.items():
        if not site.value.requires_grad or not total.requires_grad:
            continue
        (gradient,) = torch.autograd.grad(total, site.value, retain_graph=True, allow_unused=True)
        if gradient is not None:
            stem = name.removesuffix("_unobserved")
            raise UnsupportedProgram(
                f"the values of {stem!r} that obs_mask leaves unobserved are used further on in the program, so that "
                f"they are latent, while the observed ones beside them are not: sample the missing entries alone, "
                f"missing = pyro.sample({stem + '_missing'!r}, fn_of_them), and put them into the data, "
                f"{stem}.masked_scatter(~mask, missing)"
            )


def refuse_local(run: Run, again: Callable[[], Run]) -> None:
    """Refuse a latent site with a value for each datum, where the data come in several batches.

    Args:
        run: the program's run on the first batch.
        again: runs it on the second one, where another shape of the site is refused by its sizes.

    Raises:
        UnsupportedProgram: naming the site and its plates.
    """
    plates = {name: {frame.name for frame in site.frames} for name, site in run.observed.items() if site.frames}
    for name, site in run.latents.items():
        own = {frame.name for frame in site.frames}
        inside = next((observed for observed, around in plates.items() if around <= own), None)
        if inside is not None:
            again()
            raise UnsupportedProgram(
                f"latent site {name!r} has a value for each datum of {inside!r} (both are inside the plates "
                f"{sorted(own)}), and the data come in several batches, of which each would share these values with "
                "the others. Give all data as one batch, a tuple of whole tensors; if they are the same ones in each "
                f"batch (groups that are measured again and again), put {inside!r} into one more plate"
            )


def refuse_shared_discrete(run: Run, one_batch: bool) -> None:
    """Refuse an enumerated site that data in different batches share.

    Args:
        run: the program's run, its discrete sites summed out.
        one_batch: whether the data were given as one batch.

    Raises:
        UnsupportedProgram: naming the site.
    """
    shared = [name for name, site in run.factors.items() if not site.frames]
    if shared and not one_batch:
        raise UnsupportedProgram(
            f"the discrete latent sites summed out in {shared} are outside the plate of the data, or it is a factor "
            "outside any plate: the sum over them does not divide into batches. Give all data as one batch"
        )


def nesting_of(run: Run) -> int:
    """Number of axes from the right that the plates and batch shapes of a run's sites take."""
    sites = [*run.latents.values(), *run.observed.values(), *run.factors.values(), *run.discrete.values()]
    depths = [-min((frame.dim for frame in site.frames), default=0) for site in sites]
    return max([*depths, *(len(site.fn.batch_shape) for site in sites)], default=0)


def _continuous_support(name: str, fn: Any) -> Constraint:
    if is_delta(fn):
        raise UnsupportedProgram(
            f"latent site {name!r} is a Delta, whose value is known: write pyro.deterministic({name!r}, value), and "
            "what log_density it has as pyro.factor; or give the value, obs=value"
        )
    support = fn.support
    try:
        if support.is_discrete:
            raise UnsupportedProgram(_discrete(name, fn))
        axes = biject_to(support).codomain.event_dim
    except NotImplementedError:
        remedy = (
            f"use dist.ProjectedNormal with poutine.reparam(config={{{name!r}: ProjectedNormalReparam()}})"
            if "sphere" in repr(support).lower()
            else "rewrite the site in terms of unconstrained variables"
        )
        raise UnsupportedProgram(
            f"latent site {name!r} has support {support}, which has no bijection to unconstrained space: {remedy}"
        ) from None
    if axes > len(fn.shape()):
        raise UnsupportedProgram(
            f"latent site {name!r} has values of shape {list(fn.shape())}, and its support {support} is of values "
            f"with at least {axes} axes: take constraints.independent away from it, or give the site a longer shape"
        )
    return support


def _refuse_moving_support(site: Site, run: Run) -> None:
    bounds = [bound for bound in _bounds(site.fn.support) if bound.requires_grad]
    leaves = {name: other.value for name, other in run.latents.items() if other.value.requires_grad}
    if not bounds or not leaves:
        return
    with torch.enable_grad():
        bounds = [bound.sum() for bound in bounds]
    gradients = torch.autograd.grad(
        sum(bounds[1:], bounds[0]), [*leaves.values()], retain_graph=True, allow_unused=True
    )
    others = [name for name, gradient in zip(leaves, gradients, strict=True) if gradient is not None]
    if others:
        raise UnsupportedProgram(
            f"latent site {site.name!r} ({type(site.fn).__name__}) has a support that depends on the latent sites "
            f"{others}, so that no fixed map takes it to unconstrained space: sample it on a fixed support and "
            "transform it, as in x = low + (high - low) * pyro.sample(name, dist.Uniform(0, 1)), and record x by "
            "pyro.deterministic"
        )


def _bounds(support: Any) -> list[Tensor]:
    """The tensors that a constraint is made of."""
    if isinstance(support, Tensor):
        return [support]
    if isinstance(support, Constraint):
        return [bound for part in vars(support).values() for bound in _bounds(part)]
    return [bound for part in support for bound in _bounds(part)] if isinstance(support, list | tuple) else []


def _discrete(name: str, fn: Any) -> str:
    enumerate_it = (
        "have it enumerated: mark it infer={'enumerate': 'parallel'}, or wrap the model in pyro.infer.config_enumerate"
        if fn.has_enumerate_support
        else "sum it out by hand (its support cannot be enumerated)"
    )
    return (
        f"latent site {name!r} is discrete ({type(fn).__name__}), and a Gaussian cannot describe it. If it is data, "
        f"give its value (obs=). Else {enumerate_it}; or hold it with poutine.condition(model, data={{{name!r}: "
        f"value}}), or hide it with poutine.block(model, hide=[{name!r}]) once nothing depends on it"
    )


def _refuse_subsampled(site: Site) -> None:
    for frame in site.frames:
        if frame.full_size not in (None, frame.size):
            raise UnsupportedProgram(
                f"latent site {site.name!r} is local to plate {frame.name!r}, which subsamples {frame.size} of "
                f"{frame.full_size}: a Laplace approximation over local latents needs all data at once. Drop "
                "subsample_size= from the plate, and give the data as one batch"
            )
