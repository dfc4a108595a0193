"""The log prior as a function of the hyperparameters, theta held: value, gradient and curvature with their graph.

`Prior` is what one run of the program says at one value of the `pyro.param`s. Here it is read off a run whose params
are leaves: what Normal sites say in closed form, all else by differentiating once more.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_laplace._errors import LaplaceError
from pyro_laplace._typing import Matrix, Scalar, Theta
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.program.program import add_up
from pyro_laplace.reading.prior import Prior, counted_once, is_free_normal, log_p_of_normal, without_copies
from pyro_laplace.reading.second_order import Stored
from pyro_laplace.settings import settings
from pyro_laplace.sparse.compression import Compression
from pyro_laplace.sparse.symmetric import Symmetric


@dataclass(frozen=True, eq=False)
class PriorAt:
    """The log prior at some hyperparameters.

    Attributes:
        anchor: theta and its free coordinates.
        log_density: log p of the free coordinates' theta, log-Jacobian included, in nats.
        log_gradient: of the density that the mode is of, over the free coordinates [params], in float64.
        known: by Normal site the precision of its free coordinates, [] for one that all have, or [n].
        index: the free coordinates [rest] that the rest covers.
        rest: minus the Hessian of everything else, its diagonal [rest] or all of it [rest, rest]; or its entries in the
            places of a pattern [nnz].
        pattern: these places among the free coordinates, which all are in `index` then.
    """

    anchor: Anchor
    log_density: Scalar
    log_gradient: Theta
    known: Mapping[str, Tensor]
    index: Tensor
    rest: Tensor
    pattern: Compression | None = None

    @property
    def is_diagonal(self) -> bool:
        """Whether everything beside the diagonal is zero."""
        return self.rest.dim() == 1 and self.pattern is None

    @property
    def diagonal(self) -> Theta:
        """The diagonal of the curvature [params], in float64."""
        return _spread(self.anchor, self.known).index_add(0, self.index, self._diagonal_of_rest)

    @property
    def _diagonal_of_rest(self) -> Tensor:
        if self.pattern is not None:
            return self._entries_of_rest.diagonal
        return self.rest if self.is_diagonal else self.rest.diagonal()

    @property
    def _entries_of_rest(self) -> Symmetric:
        assert self.pattern is not None
        return Symmetric(self.pattern.size, self.pattern.row, self.pattern.col, self.rest)

    def symmetric(self) -> Symmetric:
        """The curvature by its entries, which have the graph, where it has a pattern."""
        return Symmetric.total([Symmetric.of_diagonal(_spread(self.anchor, self.known)), self._entries_of_rest])

    def matrix(self) -> Matrix:
        """The curvature [params, params], in float64."""
        if self.pattern is not None:
            return self.symmetric().matrix()
        known = torch.diag(_spread(self.anchor, self.known))
        rest = torch.diag(self.rest) if self.is_diagonal else self.rest
        return known.index_put((self.index.unsqueeze(1), self.index.unsqueeze(0)), rest, accumulate=True)

    def log_det(self) -> Scalar:
        """Log determinant of the curvature; minus infinity where it is not positive definite."""
        if self.is_diagonal:
            diagonal = self.diagonal
            return diagonal.log().sum() if bool((diagonal > 0).all()) else torch.full_like(diagonal.sum(), -math.inf)
        factor, info = torch.linalg.cholesky_ex(self.matrix())
        return torch.full_like(factor.sum(), -math.inf) if bool(info) else 2 * factor.diagonal().log().sum()

    def at(self, place: int) -> Scalar:
        """The diagonal's entry of one free coordinate that belongs to a Normal site."""
        for name, (span, _) in self.anchor.spans.items():
            if span.start <= place < span.stop:
                own = self.known[name]
                return own[place - span.start] if own.dim() else own
        raise IndexError(place)

    def held(self) -> "PriorAt":
        """The same without a graph."""
        known = {name: each.detach() for name, each in self.known.items()}
        numbers = self.log_density.detach(), self.log_gradient.detach(), known, self.index, self.rest.detach()
        return PriorAt(self.anchor, *numbers, self.pattern)

    def numbers(self, like: Prior) -> Prior:
        """The same without a graph.

        Args:
            like: the prior at other hyperparameters, for what form it has whatever they are.

        Returns:
            the prior.
        """
        rest, diagonal = self.rest.detach(), self._diagonal_of_rest.detach()
        stored = Stored(self.index, diagonal, rest if rest.dim() == 2 else None)
        if self.pattern is not None:
            entries = replace(self._entries_of_rest, value=rest)
            stored = Stored(self.index, diagonal, None, entries.coupled, entries)
        known = _spread(self.anchor, {name: each.detach() for name, each in self.known.items()})
        density = float(self.log_density.detach())
        return Prior(density, density, self.log_gradient.detach(), known, stored, like.hyperparameters, like.generic)


@dataclass(frozen=True, eq=False)
class PriorCurve:
    """What reads the prior off runs at other hyperparameters.

    Attributes:
        anchor: theta and its free coordinates.
        jacobian: whether the mode is that of the density of theta, or of the constrained values.
        normals: the free sites that have a Normal prior that depends on nothing latent.
        moving: whether the prior beyond these depends on the hyperparameters.
        diagonal: whether its curvature is a diagonal, whatever they are.
        constant: the density, gradient, coordinates and curvature of the rest, where they do not move.
        pattern: where the curvature of the rest has entries, if it is no diagonal, but sparse.
    """

    anchor: Anchor
    jacobian: bool
    normals: tuple[str, ...]
    moving: bool
    diagonal: bool
    constant: tuple[Scalar, Theta, Tensor, Tensor]
    pattern: Compression | None = None

    @staticmethod
    def of(run: CapturedRun, prior: Prior, jacobian: bool, moving: bool) -> "PriorCurve":
        """Find the form of the prior.

        Args:
            run: of the program at the anchor, whose params are held.
            prior: what was read off it.
            jacobian: whether the mode is that of the density of theta.
            moving: whether the prior beyond Normal sites depends on the hyperparameters.

        Returns:
            the curve.
        """
        anchor, normals = run.anchor, PriorCurve.normals_of(run)
        # numbers may hide what couples a few coordinates: the form of many is that of the numbers
        diagonal = prior.rest.is_diagonal and not (moving and len(prior.rest.index) <= settings.small)
        entries = None if diagonal else _few_entries(prior)
        pattern = None if entries is None else Compression.of(entries)
        curve = PriorCurve(anchor, jacobian, normals, moving, diagonal, _nothing(anchor), pattern)
        if moving:
            return curve
        with torch.no_grad():
            _, density, gradient = curve._of_normals(run)
        rest, index = prior.rest, prior.rest.index
        if entries is None:
            curvature = rest.diagonal if rest.is_diagonal else rest.matrix
        else:
            curvature, index = entries.value, torch.arange(anchor.size, device=index.device)
        left = torch.tensor(prior.log_density_of_free, dtype=torch.float64) - density.cpu()
        constant = left.to(anchor.theta.device), prior.log_gradient - gradient, index, curvature.detach()
        return PriorCurve(anchor, jacobian, normals, moving, rest.is_diagonal, constant, pattern)

    @staticmethod
    def normals_of(run: CapturedRun) -> tuple[str, ...]:
        """The free sites that have a Normal prior that depends on nothing latent, of a run whose params are held."""
        latents = run.program.latents
        free = (name for name in run.anchor.touched if not latents[name].constrained)
        return tuple(name for name in free if is_free_normal(counted_once(run.run.latents[name])))

    def at(self, run: CapturedRun) -> PriorAt:
        """The prior at the hyperparameters of a run.

        Args:
            run: of the program at the anchor's theta; its free sites are leaves where the curve is `moving`.

        Returns:
            the prior, with the graph that leads to the run's params.
        """
        with torch.enable_grad():
            known, density, gradient = self._of_normals(run)
            constant, constant_gradient, index, rest = self._of_rest(run) if self.moving else self.constant
        return PriorAt(self.anchor, density + constant, gradient + constant_gradient, known, index, rest, self.pattern)

    def _of_normals(self, run: CapturedRun) -> tuple[dict[str, Tensor], Scalar, Theta]:
        """Precisions, log density and gradient of the Normal sites, over their own free coordinates."""
        theta, layout = self.anchor.theta, run.program.layout
        known, density, gradients = {}, torch.zeros((), dtype=torch.float64, device=theta.device), {}
        for name in self.normals:
            _, own = self.anchor.spans[name]
            fn = counted_once(run.run.latents[name])
            shape = run.run.latents[name].value.shape
            loc, scale = (without_copies(param, shape) for param in (fn.loc, fn.scale))
            loc, scale = (each[own] if each.dim() else each for each in (loc, scale))
            deviation = loc - theta[layout[name]][own].double()
            known[name] = precision = scale.square().reciprocal()
            gradients[name] = pull = deviation * precision
            density = density + log_p_of_normal(deviation @ pull, scale, len(deviation))
        return known, density, _spread(self.anchor, gradients)

    def _of_rest(self, run: CapturedRun) -> tuple[Scalar, Theta, Tensor, Tensor]:
        """Density, gradient, coordinates and curvature of everything else, by double differentiation."""
        program, anchor = run.program, self.anchor
        sites = frozenset(program.latents) - frozenset(self.normals)
        factors = [site.log_prob() for site in run.run.other_priors]
        log_p = add_up([run.log_prior(self.jacobian, sites), *factors], anchor.theta)
        used = run.gradient(log_p, create_graph=True)
        gradient = _spread_over(anchor, used)
        leaves = [run.leaves[name] for name in used]
        places = torch.cat([anchor.index[:0], *(anchor.positions[program.layout[name]] for name in used)])
        negative = -torch.cat([anchor.theta[:0], *used.values()])
        own = log_p
        if frozenset(run.leaves) != program.latents.keys() or not self.jacobian:
            counted = factors if len(run.leaves) == len(program.latents) else []
            own = add_up([run.log_prior(True, sites & frozenset(run.leaves)), *counted], anchor.theta)
        index, rest = self._curvature_of_rest(negative, leaves, places)
        return own, gradient, index, rest

    def _curvature_of_rest(self, negative: Tensor, leaves: list[Tensor], places: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates, and the diagonal, the entries of the pattern or all of the Jacobian of a gradient of leaves."""
        free = places >= 0
        if self.pattern is None:
            rows = torch.ones_like(negative)[None] if self.diagonal else torch.eye(len(negative)).to(negative)[free]
            rest = _rows_of_hessian(negative, leaves, rows)[:, free]
            return places[free], rest[0] if self.diagonal else (rest + rest.mT) / 2
        size, where = self.pattern.size, places[free]

        def multiply(vectors: Tensor) -> Tensor:
            wide = vectors.new_zeros(len(vectors), len(free))
            wide[:, free] = vectors[:, where]
            products = _rows_of_hessian(negative, leaves, wide)[:, free]
            return products.new_zeros(len(vectors), size).index_copy(1, where, products)

        return torch.arange(size, device=places.device), self.pattern.values(multiply, negative.detach())


def _few_entries(prior: Prior) -> Symmetric | None:
    """What a prior beyond Normal sites has for curvature, by its entries, where many coordinates have few."""
    if len(prior.rest.index) <= settings.small:
        return None
    try:
        return prior.symmetric_of_rest()
    except LaplaceError:  # it has many, or they were not kept
        return None


def _rows_of_hessian(vector: Tensor, leaves: list[Tensor], rows: Tensor) -> Tensor:
    """Products of rows with the Jacobian of a vector [rows, leaves], with their graph, in float64."""
    if not vector.requires_grad:
        return torch.zeros_like(rows, dtype=torch.float64)
    found = []
    for row in rows:
        grads = torch.autograd.grad(
            vector, leaves, row, create_graph=True, allow_unused=True, materialize_grads=True, retain_graph=True
        )
        found.append(torch.cat(grads))
    return torch.stack(found).double()


def _spread(anchor: Anchor, by_site: Mapping[str, Tensor]) -> Theta:
    """A vector over the free coordinates from one number or a vector of each site, zero elsewhere."""
    zero = torch.zeros((), dtype=torch.float64, device=anchor.theta.device)
    parts = [by_site.get(name, zero).expand(span.stop - span.start) for name, (span, _) in anchor.spans.items()]
    return torch.cat([anchor.theta[:0].double(), *parts])


def _spread_over(anchor: Anchor, leaves: Mapping[str, Tensor]) -> Theta:
    """The same from vectors over whole sites."""
    return _spread(
        anchor, {name: leaves[name][own].double() for name, (_, own) in anchor.spans.items() if name in leaves}
    )


def _nothing(anchor: Anchor) -> tuple[Scalar, Theta, Tensor, Tensor]:
    zeros = torch.zeros(anchor.size, dtype=torch.float64, device=anchor.theta.device)
    return zeros.sum(), zeros, anchor.index[:0], zeros[:0]
