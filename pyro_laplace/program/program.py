"""The Pyro program as functions of theta: log prior, log likelihood per datum, and the distributions of its data."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import scale_and_mask, undisturbed
from pyro_laplace._typing import Scalar, Theta, Values
from pyro_laplace.data import Batch, Data
from pyro_laplace.program.arguments import refuse_spoilt, told_of_arguments
from pyro_laplace.program.chunks import Chunk, index_chunks
from pyro_laplace.program.marginal import conditional_probs, marginalise, shared_sites
from pyro_laplace.program.module_state import modules_kept, refuse_changed_buffers
from pyro_laplace.program.observations import Expected, Place, refuse_outside_support
from pyro_laplace.program.run import Recorder, Run, Site, run_model
from pyro_laplace.program.sites import Latent, pack, unpack
from pyro_laplace.program.validate import (
    latent_layout,
    nesting_of,
    refuse_local,
    refuse_missing,
    refuse_no_likelihood,
    refuse_outside,
    refuse_randomness,
    refuse_shared_discrete,
    refuse_surplus,
    refuse_used_missing,
    start_value,
)
from pyro_laplace.settings import settings


@dataclass(frozen=True)
class Program:
    """A Pyro program traced once on data.

    Attributes:
        model: the user's program.
        latents: latent sites in trace order.
        observed: names of the observed sites, the likelihood.
        derived: observed sites whose value is computed from latent ones, so that they are no data (a prior written as
            ``pyro.sample(name, prior, obs=w)``).
        own_indices: plates that draw the indices of their data themselves: name to (size, subsample size).
        terms: names of the terms of the log likelihood: the observed sites, and the factors inside plates.
        external: plates that stand for more data than one call brings: name to (size, visited in one pass).
        hidden: sites that are latent to Pyro and not part of theta: discrete ones that are enumerated, and what
            `obs_mask` leaves unobserved.
        nesting: number of axes that plates take, where discrete sites are enumerated to the left of them; None where
            there are none.
        computed: deterministic sites that carry a density, the prior of a value that a reparametrisation computes.
        start: theta at the values the program was traced with.
        params: values of `pyro.param`s at which it runs, in place of those that the param store has.
    """

    model: Callable[..., Any]
    latents: Mapping[str, Latent]
    observed: tuple[str, ...]
    derived: frozenset[str] = frozenset()
    terms: frozenset[str] = frozenset()
    own_indices: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    external: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()
    nesting: int | None = None
    computed: frozenset[str] = frozenset()
    start: Tensor = field(default_factory=lambda: torch.zeros(0))
    params: Values = field(default_factory=dict)

    @staticmethod
    def trace(
        model: Callable[..., Any],
        data: Data,
        values: Values | None = None,
        params: Values | None = None,
        observed: Collection[str] = (),
    ) -> "Program":
        """Run the model and read its structure.

        Args:
            model: a Pyro program.
            data: what it is called with; observed sites are those that have a value on this call.
            values: value of every latent site; without them they start from `init_to_start`.
            params: values of `pyro.param`s in place of those that the param store has.
            observed: names of sites that the data are known to be of, as those that a posterior was fitted to.

        Returns:
            the program, whose `start` is theta at these values.

        Raises:
            UnsupportedProgram: if a construct has no Laplace approximation, naming the site and what to do, or if the
                run changes buffers of the program's modules.
            InvalidData: if an observed value of the first batch is no tensor, outside its distribution's support, or
                lacking; if the model fails on its arguments: no tensors, empty, too many, of another dtype or shape;
                if its density is not finite at the values given, and an argument is not.
        """
        with undisturbed() as before, modules_kept(model) as kept, torch.no_grad():
            first = data.first()
            entries = getattr(model, "observed_entries", {})
            names = frozenset() if data.prior_alone else frozenset({*observed, *entries})
            expected = Expected(names, entries, data.name)
            fill = expected.or_else(start_value if values is None else refuse_missing)
            recorder = Recorder(values or {}, fill=fill, leaves=True, params=params)
            with torch.enable_grad(), told_of_arguments(model, first, recorder.run):
                run = run_model(model, first, recorder)
            drew = before is not None and not before.is_current()
            changed = kept.changed()
            expected.refuse_summed(run)
            if not data.prior_alone:
                refuse_no_likelihood(run, data.one_batch)
            latents = latent_layout(run)
            refuse_surplus(run, values or {}, getattr(model, "fixed", ()))
            refuse_outside(run)
            derived = frozenset(name for name, site in run.observed.items() if site.value.requires_grad)
            refuse_outside_support(run, derived, leaves=True)
            refuse_used_missing(run)
            if values is not None:
                refuse_spoilt(run, first)
            theta = pack(latents, {name: site.value.detach() for name, site in run.latents.items()})
            program = Program(
                model,
                latents,
                observed=tuple(run.observed),
                derived=derived,
                hidden=frozenset({**run.discrete, **run.missing}),
                nesting=nesting_of(run) if run.discrete else None,
                computed=frozenset(run.computed),
                start=theta,
                params=params or {},
            )
            for second in islice(() if data.one_batch else data, 1, 2):
                refuse_local(run, lambda batch=second: program.run(theta, Chunk(batch)))
            if run.discrete:
                run = program.run(theta, Chunk(first))
                refuse_shared_discrete(run, data.one_batch)
            program = replace(program, terms=frozenset(likelihood_sites(run)))
            if drew or changed:
                runs = [program.run(theta, Chunk(first)) for _ in range(2)]
                one, other = (sum_log_lik(r, Chunk(first)) + program.log_prior_of(r, theta) for r in runs)
                refuse_changed_buffers(
                    changed, random=not torch.isclose(one, other, rtol=settings.same_run, equal_nan=True)
                )
                refuse_randomness(one, other)
            own = run.subsampled if data.one_batch and program._reads_indices(theta, first, run) else {}
            return replace(program, own_indices=own, external=program._external(data, run, own))

    @cached_property
    def layout(self) -> dict[str, slice]:
        """Site name to its coordinates in theta."""
        return {name: latent.slice for name, latent in self.latents.items()}

    @property
    def num_params(self) -> int:
        """Length of theta."""
        return sum(latent.size for latent in self.latents.values())

    def unpack(self, theta: Tensor) -> dict[str, Tensor]:
        """theta [..., params] to site values."""
        return unpack(self.latents, theta)

    def pack(self, values: Values) -> Theta:
        """Site values to theta."""
        return pack(self.latents, values)

    def chunks(self, data: Data) -> Iterator[Chunk]:
        """One pass over the data, each datum once."""
        for batch in data:
            if self.own_indices:
                for indices, weights in index_chunks(self.own_indices):
                    yield Chunk(batch, indices, weights)
            else:
                shares = {name: size / visited for name, (size, visited) in self.external.items()}
                yield Chunk(batch, weights={n: torch.tensor(s, dtype=torch.float64) for n, s in shares.items()})

    def run(self, theta: Tensor, chunk: Chunk, sample: bool = False) -> Run:
        """Run the program at theta; with `sample`, observed sites are drawn anew."""
        return self.run_at(self.unpack(theta), chunk, sample)

    def run_at(self, values: Values, chunk: Chunk, sample: bool = False, params: Values | None = None) -> Run:
        """Run the program at given site values, and at given values of `pyro.param`s where there are any."""
        run = self._run(values, chunk, sample, params)
        return run if sample or self.nesting is None else marginalise(run, self.nesting)

    def run_of_discrete(self, values: Values, chunk: Chunk) -> Run:
        """As `run_at`, with all values of the discrete sites, if there are any, and not their sum."""
        return self._run(values, chunk)

    def conditionals(self, values: Values, chunk: Chunk) -> dict[str, Tensor]:
        """The enumerated sites' probabilities given the data of a chunk, at given values of the latent sites.

        Args:
            values: latent site to value.
            chunk: of the data, observed values included.

        Returns:
            name of a discrete site to the probability of each of its values `[*batch_shape, values]`.
        """
        assert self.nesting is not None  # who asks has seen that there are discrete sites
        return conditional_probs(self._run(values, chunk), self.nesting)

    def shared_discrete(self, chunk: Chunk) -> tuple[str, ...]:
        """The enumerated sites outside all plates that data inside a plate depend on, so that all of them share it."""
        if self.nesting is None:
            return ()
        return shared_sites(self._run(self.unpack(self.start), chunk))

    def _run(self, values: Values, chunk: Chunk, sample: bool = False, params: Values | None = None) -> Run:
        """A run whose discrete sites, if any, still have all their values, unless it draws."""
        recorder = Recorder(
            values,
            frozenset(self.observed),
            sample=sample,
            indices=chunk.indices,
            nesting=None if sample else self.nesting,
            computed=self.computed,
            params={**self.params, **(params or {})},
        )
        return run_model(self.model, chunk.batch, recorder)

    def log_prior(
        self, theta: Tensor, chunk: Chunk, jacobian: bool = True, sites: frozenset[str] | None = None
    ) -> Scalar:
        """Log prior density of theta in float64: the latent sites', plus the factors outside any plate.

        Args:
            theta: unconstrained latent values.
            chunk: any chunk of the data.
            jacobian: whether ``log |d value / d theta|`` is counted, making it the density of theta.
            sites: only these sites (and no factors); None means all.

        Returns:
            the log density in nats.
        """
        return self.log_prior_of(self.run(theta, chunk), theta, jacobian, sites)

    def log_prior_of(
        self, run: Run, theta: Tensor, jacobian: bool = True, sites: frozenset[str] | None = None
    ) -> Scalar:
        """`log_prior` read off a run that was made at theta."""
        moved = {name: theta[latent.slice] for name, latent in self.latents.items() if latent.constrained}
        return self.log_prior_at(run, moved, jacobian, sites)

    def log_prior_at(
        self, run: Run, coordinates: Values, jacobian: bool = True, sites: frozenset[str] | None = None
    ) -> Scalar:
        """`log_prior` read off a run, by the coordinates that the values of constrained sites were made of."""
        chosen = {name: latent for name, latent in self.latents.items() if sites is None or name in sites}
        terms = [run.latents[name].log_prob() for name in chosen]
        if jacobian:
            moved = {name: latent for name, latent in chosen.items() if latent.constrained}
            terms += [latent.log_abs_det_jacobian(coordinates[name]) for name, latent in moved.items()]
        if sites is None:
            terms += [site.log_prob() for site in run.other_priors]
        return add_up(terms, self.start)

    def log_lik(self, theta: Tensor, chunk: Chunk) -> dict[str, Tensor]:
        """Log likelihood per datum, scaled and masked as in the program.

        The scale by which a subsampling plate extrapolates to all its data is undone.

        Returns:
            name of an observed site, or of a factor inside a plate, to its terms `[*batch_shape]`.
        """
        return log_lik_of(self.run(theta, chunk), chunk)

    def log_joint(self, theta: Tensor, chunk: Chunk, jacobian: bool = True, prior: float = 1.0) -> Scalar:
        """Log likelihood of a chunk, plus `prior` times the log prior, in float64."""
        run = self.run(theta, chunk)
        total = sum_log_lik(run, chunk)
        if prior:
            total = total + prior * self.log_prior_of(run, theta, jacobian)
        return total

    def visit(self, data: Data) -> None:
        """Run every batch once: refuse one on which a latent site has another shape, or data are outside a support."""
        with undisturbed(), torch.no_grad():
            for number, chunk in enumerate(self.chunks(data)):
                place = Place(indices=chunk.indices, batch=None if data.one_batch else number)
                refuse_outside_support(self.run(self.start, chunk), self.derived, place)

    def _reads_indices(self, theta: Theta, batch: Batch, run: Run) -> bool:
        """Whether the data that the model sees depend on the indices its subsampling plates draw."""
        if not run.subsampled:
            return False
        shifted = {}
        for name, (size, subsample_size) in run.subsampled.items():
            shifted[name] = torch.arange(size - subsample_size, size)
        other = self.run(theta, Chunk(batch, shifted))
        pairs = zip(likelihood_sites(run).values(), likelihood_sites(other).values(), strict=True)
        return any(not torch.equal(a.value, b.value) or not torch.equal(a.log_prob(), b.log_prob()) for a, b in pairs)

    def _external(self, data: Data, first: Run, own: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """Plates whose subsample comes with the batches, and how much of them one pass visits."""
        visited: dict[str, tuple[int, int]] = {}
        for number, batch in enumerate(data):
            run = self.run(self.start, Chunk(batch)) if number else first
            frames = {frame.name: frame for site in likelihood_sites(run).values() for frame in site.frames}
            if all(frame.full_size in (None, frame.size) or name in own for name, frame in frames.items()):
                return {}
            for name, frame in frames.items():
                if name not in own and frame.full_size is not None and frame.full_size != frame.size:
                    visited[name] = (frame.full_size, visited.get(name, (0, 0))[1] + frame.size)
        return visited


def log_lik_of(run: Run, chunk: Chunk) -> dict[str, Tensor]:
    """`Program.log_lik` read off a run."""
    return {name: weigh(site, chunk, site.own_log_prob()) for name, site in likelihood_sites(run).items()}


def likelihood_sites(run: Run) -> dict[str, Site]:
    """What makes up the log likelihood: observed sites, and factors inside plates."""
    return {**run.observed, **{name: site for name, site in run.factors.items() if site.frames}}


def sum_log_lik(run: Run, chunk: Chunk) -> Scalar:
    """Log likelihood of a chunk, summed in float64."""
    return add_up(log_lik_of(run, chunk).values())


def add_up(terms: Iterable[Tensor], like: Tensor | None = None) -> Scalar:
    """The sum of all entries of some tensors, in float64."""
    sums = [term.double().sum() for term in terms]
    device = None if like is None else like.device
    return torch.stack(sums).sum() if sums else torch.zeros((), dtype=torch.float64, device=device)


def weigh(site: Site, chunk: Chunk, per_datum: Tensor) -> Tensor:
    """Multiply a tensor `[*batch_shape]` by the chunk's weights along the plates of its site."""
    for frame in site.frames:
        if frame.name in chunk.weights:
            weight = chunk.weights[frame.name].to(per_datum)
            per_datum = per_datum * (weight.reshape(-1, *(1,) * (-frame.dim - 1)) if weight.dim() else weight)
    return per_datum


def datum_weight(site: Site, chunk: Chunk) -> Tensor:
    """What each datum's curvature is multiplied by, `[*batch_shape]`: user scale, mask and the chunk's weights."""
    ones = torch.ones(site.fn.batch_shape, dtype=torch.float64, device=site.value.device)
    return weigh(site, chunk, scale_and_mask(ones, site.own_scale, site.mask))
