"""A program on its data, each datum once, with what the axes of its sites mean."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace.capture.loop import Loop
from pyro_laplace.data import Data
from pyro_laplace.draws.arguments import tensor_arguments
from pyro_laplace.draws.density import log_joint_at
from pyro_laplace.draws.draws import PosteriorDraws
from pyro_laplace.draws.monte_carlo import draw_deterministic, draw_log_lik, draw_log_prior, draw_means, draw_observed
from pyro_laplace.draws.vectorize import over_rows
from pyro_laplace.likelihood import marginalises_nan
from pyro_laplace.posterior.own import observed_of, own_params
from pyro_laplace.program.entries import counted_entries
from pyro_laplace.program.observations import Place, refuse_outside_support
from pyro_laplace.program.program import Program
from pyro_laplace.program.run import Run, Site
from pyro_laplace.settings import settings


@dataclass(frozen=True)
class View:
    """A program on its data, each datum once, with what each of its sites' axes mean.

    Attributes:
        program: traced on the data.
        data: the data.
        progress: whether a pass that lasts shows a progress bar.
    """

    program: Program
    data: Data
    progress: bool = False

    @staticmethod
    def of(
        model: Callable[..., Any],
        data: Data,
        draws: PosteriorDraws,
        progress: bool = False,
        observed: Collection[str] = (),
    ) -> "View":
        """Trace a model on data, at the first of the draws.

        Args:
            model: a Pyro program, or what `linearize` makes of one.
            data: the data.
            draws: of the program's latent sites.
            progress: whether a pass that lasts shows a progress bar.
            observed: names of sites that the data are known to be of, beside those that a posterior names.

        Returns:
            the view.

        Raises:
            UnsupportedProgram: if that is impossible, or two plates of the model draw their own indices.
        """
        values = {name: value[0] for name, value in draws.values.items()}
        known = {*observed, *observed_of(draws.source)}
        program = Program.trace(model, data, values, own_params(model, draws.source), known)
        if len(program.own_indices) > 1:
            raise UnsupportedProgram(
                f"the plates {sorted(program.own_indices)} all draw their own subsamples: leave subsample_size out of "
                "the model for this call"
            )
        return View(program, data, progress)

    @cached_property
    def dims(self) -> dict[str, list[str]]:
        """Variable to the names of its axes, draws excluded."""
        run = self.run
        dims = {}
        for name, site in {**run.observed, **run.factors, **run.deterministic, **run.latents}.items():
            event_dims = site.value.dim() - len(self._batch(site))
            dims[name] = [*self._kept(name, site), *(None for _ in range(event_dims))]
        for name, value in self.constant.items():
            dims[name] = [self._plate_of(value), *(None for _ in value.shape[1:])] if value.dim() else []
        return {name: _numbered(name, axes) for name, axes in dims.items()}

    def batch_dims(self, name: str) -> list[str | None]:
        """The plates of the batch axes of an observed site or factor, None for an axis without a plate."""
        return self._kept(name, {**self.run.observed, **self.run.factors}[name])

    def latents(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Latent sites' draws as variables `[draws, *dims]`."""
        shaped = {n: values[n].reshape(len(values[n]), *latent.shape) for n, latent in self.program.latents.items()}
        return self._variables(shaped)

    def deterministic(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`pyro.deterministic` sites at the draws; those inside a plate that subsamples by itself are left out."""
        parts = draw_deterministic(self.loop, values, self.progress)
        found = {}
        for name, first in parts[0].items():
            site = self.run.deterministic[name]
            if any(frame.name in self.program.own_indices for frame in site.frames):
                continue
            rest = [part[name] for part in parts[1:]]
            same = all(first.shape == other.shape and torch.equal(first, other) for other in rest)
            found[name] = first if same or first.dim() == 1 else torch.cat([first, *rest], 1)
        return self._variables(found)

    def log_lik(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Log likelihood of each datum at the draws, `[draws, *batch dims]`."""
        return self._variables(self._once(draw_log_lik(self.loop, values, self.progress), lead=1))

    def log_prior(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Log prior density of each latent site, and of each factor outside any plate, at the draws `[draws]`."""
        return {name: value.reshape(len(value), -1).sum(1) for name, value in draw_log_prior(self.loop, values).items()}

    def replicated(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Observed sites drawn anew at the draws, `[draws, *dims]`."""
        return self._variables(self._once(draw_observed(self.loop, values, self.progress), lead=1))

    def log_joint(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log p(y, theta) [draws], the log-Jacobian included."""
        program, latents = self.program, self.program.latents
        values = {name: values[name].reshape(-1, *latent.shape) for name, latent in latents.items()}
        with undisturbed(rng=False), torch.no_grad():
            theta = torch.func.vmap(program.pack)(values)
        return log_joint_at(Loop(program, self.data), theta, "log joint" if self.progress else None)

    @cached_property
    def observed(self) -> dict[str, Tensor]:
        """Values of the observed sites that the data hold."""
        return self._of_data(lambda site: site.value)

    @cached_property
    def entries(self) -> dict[str, Tensor]:
        """Which entries of these count, `[*dims]`: the program does not mask them, and they are not missing."""
        return self._of_data(_entries_of)

    @cached_property
    def constant(self) -> dict[str, Tensor]:
        """The model's tensor arguments that are not observed values."""
        arguments = tensor_arguments(self.program.model, self.data)
        seen = list(self.observed.values())
        taken = {*self.run.observed, *self._plates}
        return {
            f"{name}_data" if name in taken else name: value
            for name, value in arguments.items()
            if not any(value.shape == other.shape and torch.equal(value, other.to(value.dtype)) for other in seen)
        }

    def expected(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mean of the observed sites given each draw.

        Args:
            values: latent site to draws `[draws, *shape]`.

        Returns:
            site name to `[draws, *dims]`; of a `Categorical` its probabilities `[draws, *dims, classes]`. A site whose
            distribution has no closed-form mean is left out.
        """
        return self._variables(self._once(draw_means(self.loop, values, self.progress), lead=1))

    @cached_property
    def counted(self) -> dict[str, Tensor]:
        """Which data of each observed site have an entry that counts, `[*batch dims]`."""
        dims = {name: len(self.batch_dims(name)) for name in self.entries}
        return {n: e.flatten(dims[n]).any(-1) if e.dim() > dims[n] else e for n, e in self.entries.items()}

    @cached_property
    def counts(self) -> frozenset[str]:
        """Observed sites whose values are whole numbers."""
        return frozenset(name for name, site in self.run.observed.items() if site.fn.support.is_discrete)

    @cached_property
    def plain(self) -> Program:
        """The program without the weights by which a part of the data stands for all."""
        return replace(self.program, external={})

    @cached_property
    def loop(self) -> Loop:
        """Passes of that program over the data."""
        return Loop(self.plain, self.data)

    @cached_property
    def run(self) -> Run:
        """The program's sites on the first chunk of the data."""
        with undisturbed(), torch.no_grad():
            return self.plain.run(self.program.start, next(self.loop.chunks()))

    @cached_property
    def _plates(self) -> dict[str, int]:
        """Plates around the observed sites, and how many of their elements the data hold."""
        sizes: dict[str, int] = {}
        for site in self.run.observed.values():
            sizes |= {frame.name: frame.size for frame in site.frames}
        return sizes | {name: size for name, (size, _) in self.program.own_indices.items()}

    def _of_data(self, read: Callable[[Site], Tensor]) -> dict[str, Tensor]:
        """What is read off the observed sites of which there are data, each datum once."""
        parts = [{name: read(site) for name, site in run.items()} for run in self._data]
        joined = {name: _behind([part[name] for part in parts]) for name in parts[0]}
        return {name: value[0] for name, value in self._variables(_lifted(self._once(joined, lead=0))).items()}

    @cached_property
    def _data(self) -> list[dict[str, Site]]:
        """The observed sites of which there are data, of each chunk."""
        found, first = [], 0
        with undisturbed(), torch.no_grad():
            for chunk in self.loop.chunks():
                run = self.plain.run(self.program.start, chunk)
                refuse_outside_support(run, self.program.derived, Place(first, chunk.indices))
                first += max((len(site.value) for site in run.observed.values() if site.value.dim()), default=1)
                found.append({name: site for name, site in run.observed.items() if site.given})
        return found

    def _plate_of(self, value: Tensor) -> str | None:
        """The plate along an argument's first axis, where there is no doubt."""
        observed = next(iter(self.observed.items()), None)
        if observed is None:
            return None
        name, data = observed
        axes = self._kept(name, self.run.observed[name])
        matching = [axis for axis, size in zip(axes, data.shape, strict=False) if axis and size == len(value)]
        return matching[0] if len(matching) == 1 else None

    def _batch(self, site: Site) -> list[str | None]:
        """The plate of each batch axis of a site."""
        declared = len(site.fn.event_shape)
        aligned = site.name in self.run.deterministic and declared == site.value.dim()
        if aligned:  # pyro.deterministic without event_dim= calls every axis an event axis
            fits = all(f.dim >= -site.value.dim() and site.value.shape[f.dim] == f.size for f in site.frames)
            count = max((-f.dim for f in site.frames), default=0) if fits else 0
            length = site.value.dim() if count else 0
        else:
            fits, length = True, site.value.dim() - declared
        axes: list[str | None] = [None for _ in range(length)]
        for frame in site.frames if fits else ():
            if -frame.dim <= len(axes):
                axes[frame.dim] = frame.name
        return axes

    def _kept(self, name: str, site: Site) -> list[str | None]:
        """`_batch` without the axes of size one that no plate owns."""
        axes = self._batch(site)
        drop = self._singletons(site, axes)
        return [axis for i, axis in enumerate(axes) if i not in drop]

    @staticmethod
    def _singletons(site: Site, axes: list[str | None]) -> list[int]:
        return [i for i, axis in enumerate(axes) if site.frames and axis is None and site.value.shape[i] == 1]

    def _variables(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Drop the axes [draws, ...] that no plate owns and that only align sites with one another."""
        run = self.run
        sites = {**run.observed, **run.factors, **run.deterministic, **run.latents}
        result = {}
        for name, value in values.items():
            drop = self._singletons(sites[name], self._batch(sites[name]))
            result[name] = value.squeeze([i + 1 for i in drop]) if drop else value
        return result

    def _once(self, values: dict[str, Tensor], lead: int) -> dict[str, Tensor]:
        """`[*lead, visits, ...]` to `[*lead, size, ...]`: drop what the chunks of a self-subsampling plate repeat."""
        if not self.program.own_indices:
            return values
        ((plate, _),) = self.program.own_indices.items()
        fresh = torch.cat([chunk.weights[plate] > 0 for chunk in self.loop.chunks()]).nonzero()[:, 0]
        run = self.run
        result = {}
        for name, value in values.items():
            frames = {**run.observed, **run.factors}[name].frames
            inside = any(frame.name == plate for frame in frames)
            if inside and plate != min(frames, key=lambda frame: frame.dim).name:
                raise UnsupportedProgram(
                    f"plate {plate!r} draws its own subsample, and site {name!r} has another plate to the left of it: "
                    "leave subsample_size out of the model for this call"
                )
            result[name] = value.index_select(lead, fresh.to(value.device)) if inside else value
        return result


def map_rows(
    fn: Callable[[Tensor], Mapping[str, Tensor]], rows: Tensor, size: int, what: str | None = None
) -> dict[str, Tensor]:
    """`fn`, which makes about `size` elements of a row, at each row: vectorised where it can be."""
    step = max(1, settings.density_elements // (8 * size + 1))
    return over_rows(lambda row: fn(row["row"]), {"row": rows}, len(rows), step, what=what)


def _entries_of(site: Site) -> Tensor:
    """Which entries of a site count, of the shape of its value."""
    keep = counted_entries(site.fn, site.value, site.mask, site.own_scale)
    keep = keep & ~site.value.isnan() if marginalises_nan(site.fn) else keep
    return keep.long().sum_to_size(site.value.shape) > 0


def _behind(parts: list[Tensor], dim: int = 0) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, dim) if parts[0].dim() > dim else torch.stack(parts, dim)


def _lifted(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[None] for name, value in values.items()}


def _numbered(name: str, axes: list[str | None]) -> list[str]:
    """Name the axes that no plate owns, as ArviZ does."""
    count, named = 0, []
    for axis in axes:
        named.append(axis or f"{name}_dim_{count}")
        count += axis is None
    return named
