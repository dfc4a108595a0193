"""The log determinant of a posterior precision as a function of the prior, and the rise to its mode; the data are held.

The gradients are closed forms: with ``Lambda = sum_t f_t H_t + H_prior`` and ``u = Lambda^-1 g``

- ``d log det Lambda = tr(Lambda^-1 d Lambda)``, of a diagonal prior the posterior variances;
- ``d (g' Lambda^-1 g / 2) = u' dg - u' (d Lambda) u / 2``.

Of a Kronecker-factored layer ``B (x) A / count``, with ``B = Q diag(beta) Q'`` and ``A = U diag(alpha) U'``, a prior
precision d of all its weights and another, e, of its bias, whose input is the last one, the matrix determinant lemma
gives

    log det = sum_oi log lambda_oi + sum_o log (1 + (e - d) sum_i u_i^2 / lambda_oi)

with ``lambda_oi = beta_o alpha_i / count + d`` and u the last row of U: one eigendecomposition for any scales.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_laplace._typing import Matrix, Scalar, Theta
from pyro_laplace.reading.gram import Gram
from pyro_laplace.reading.prior import Prior
from pyro_laplace.reading.prior_curve import PriorAt
from pyro_laplace.settings import settings
from pyro_laplace.sparse.symmetric import Symmetric
from pyro_laplace.structure.full import Full
from pyro_laplace.structure.kron import KronSum
from pyro_laplace.structure.kron_factors import KronFactors, mirrored
from pyro_laplace.structure.likelihood_sum import LikelihoodSum
from pyro_laplace.structure.precision import Precision
from pyro_laplace.structure.whitened import eigenpairs


@dataclass(frozen=True, eq=False)
class Solved:
    """Of a posterior precision Lambda, with the graph that leads to the prior and to the factors.

    Attributes:
        log_det: log det Lambda.
        rise: ``g' Lambda^-1 g / 2``, how much the quadratic model's log joint rises from the anchor to its mode; 0
            where no gradient was given.
    """

    log_det: Scalar
    rise: Scalar


class LogDet(ABC):
    """The log determinant of the posterior precision, as a function of the prior and of factors on the terms."""

    @abstractmethod
    def at(self, prior: PriorAt, factors: Mapping[str, Tensor], gradient: Theta | None = None) -> Solved:
        """At a prior.

        Args:
            prior: its curvature, with a graph.
            factors: by likelihood term, what its curvature is multiplied by; 1 where it has none.
            gradient: g of the log joint [params], if the rise to the mode is asked for.

        Returns:
            the log determinant and the rise.
        """


@dataclass(frozen=True, eq=False)
class ByPosterior(LogDet):
    """Of any structure: by its posterior, whose variances are the gradient.

    Attributes:
        likelihood: the sum over data.
        like: the prior at the anchor's hyperparameters.
    """

    likelihood: LikelihoodSum
    like: Prior

    def at(self, prior: PriorAt, factors: Mapping[str, Tensor], gradient: Theta | None = None) -> Solved:
        """By one posterior."""
        places = None
        if prior.pattern is None:
            curvature = prior.diagonal if prior.is_diagonal else prior.matrix()
        else:
            entries = prior.symmetric()
            curvature, places = entries.value, (entries.row, entries.col)
        numbers = prior.numbers(self.like)
        names = tuple(factors)
        found = _Solve.apply(self, numbers, names, gradient, places, curvature, *factors.values())
        return Solved(*found)

    def posterior(self, prior: Prior, factors: Mapping[str, float]) -> Precision:
        """The precision at plain numbers."""
        return self.likelihood.posterior(prior, factors)


class _Solve(torch.autograd.Function):
    """log det Lambda and ``g' Lambda^-1 g / 2``; once differentiable."""

    @staticmethod
    def forward(
        ctx: Any,
        log_det: ByPosterior,
        prior: Prior,
        names: tuple[str, ...],
        gradient: Tensor | None,
        places: tuple[Tensor, Tensor] | None,
        curvature: Tensor,
        *factors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.log_det, ctx.prior, ctx.names, ctx.factors = log_det, prior, names, [float(each) for each in factors]
        precision = log_det.posterior(prior, dict(zip(names, ctx.factors, strict=True)))
        ctx.precision, ctx.gradient, ctx.dense = precision, gradient, curvature.dim() == 2
        ctx.places, ctx.entries = places, curvature.detach()
        value = precision.log_det()
        ctx.step = None
        if gradient is None:
            return value, value.new_zeros(())
        ctx.step = step = precision.solve(gradient)
        return value, gradient @ step / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        of_log_det, of_rise = grad_outputs
        prior, step = ctx.prior, ctx.step
        if ctx.places is not None:
            row, col = ctx.places
            twice = torch.where(row == col, 1.0, 2.0).double()
            covariance = twice * ctx.precision.covariance_at(row, col)
            curvature = of_log_det * covariance
            kept = float(covariance @ ctx.entries)
            if step is not None:
                curvature = curvature - of_rise * twice * step[row] * step[col] / 2
        elif not ctx.dense:
            variance = ctx.precision.variance().double()
            curvature = of_log_det * variance
            kept = float(variance @ prior.diagonal)
            if step is not None:
                curvature = curvature - of_rise * step.square() / 2
        else:
            covariance = covariance_of(ctx.precision)
            curvature = of_log_det * covariance
            kept = float((covariance * prior.matrix()).sum())
            if step is not None:
                curvature = curvature - of_rise * torch.outer(step, step) / 2
        gradient = None if step is None else of_rise * step
        factors = _of_factors(ctx, of_log_det, of_rise, kept) if ctx.names else ()
        return (None, None, None, gradient, None, curvature, *factors)


def _times_prior(ctx: Any, step: Tensor) -> Tensor:
    """``H_prior v``."""
    if ctx.places is not None:
        row, col = ctx.places
        return Symmetric(len(step), row, col, ctx.entries).times(step.unsqueeze(0))[0]
    return step * ctx.prior.diagonal if ctx.prior.is_diagonal else ctx.prior.matrix() @ step


def covariance_of(precision: Precision) -> Matrix:
    """Lambda^-1 [params, params], in float64."""
    eye = torch.eye(precision.size, dtype=torch.float64, device=precision.order.device)
    return precision.solve(eye)


def _of_factors(ctx: Any, of_log_det: Tensor, of_rise: Tensor, kept: float) -> list[Tensor]:
    """Derivatives in the factors: ``tr(Lambda^-1 H_t)``, and ``-u' H_t u / 2``.

    Of a single term with factor f, ``f tr(Lambda^-1 H) = P - tr(Lambda^-1 H_prior)``. Of several by central differences
    of posteriors, which cost no pass over the data.

    Returns:
        one for each factor.
    """
    prior, step = ctx.prior, ctx.step
    likelihood, factors = ctx.log_det.likelihood, ctx.factors
    if len(likelihood.statistics) == 1:
        trace = (ctx.precision.size - kept) / factors[0]
        change = of_log_det * trace
        if step is not None:
            of_prior = _times_prior(ctx, step)
            change = change - of_rise * ((ctx.gradient - of_prior) @ step) / (2 * factors[0])
        return [change]
    changes = []
    for name, factor in zip(ctx.names, factors, strict=True):
        ends = []
        for sign in (1, -1):
            moved = dict(zip(ctx.names, factors, strict=True)) | {name: factor * (1 + sign * settings.evidence_step)}
            precision = ctx.log_det.posterior(prior, moved)
            rise = 0.0 if step is None else ctx.gradient @ precision.solve(ctx.gradient) / 2
            ends.append(of_log_det * precision.log_det() + of_rise * rise)
        changes.append((ends[0] - ends[1]) / (2 * settings.evidence_step * factor))
    return changes


@dataclass(frozen=True, eq=False)
class LayerSpectrum:
    """The eigenvalues of a layer's factors.

    Attributes:
        weight: place of one of its weights among the free coordinates; all have one prior precision.
        bias: place of one of its biases, or None.
        eigenvalues: ``beta_o alpha_i / count`` [o, i].
        last: ``u_i^2`` [i], of the bias's input.
    """

    weight: int
    bias: int | None
    eigenvalues: Tensor
    last: Tensor

    @staticmethod
    def of(layer: KronFactors, dtype: torch.dtype) -> "LayerSpectrum":
        """By two eigendecompositions."""
        beta, _ = eigenpairs(mirrored(layer.gradients), dtype)
        alpha, basis = eigenpairs(mirrored(layer.inputs), dtype)
        eigenvalues = beta.clamp(min=0).unsqueeze(1) * alpha.clamp(min=0) / max(1, layer.count)
        bias = int(layer.index[0, -1]) if layer.has_bias else None
        return LayerSpectrum(int(layer.index[0, 0]), bias, eigenvalues, basis[-1].square())

    def log_det(self, prior: PriorAt, factor: Tensor | None) -> Scalar:
        """At the layer's prior precisions, with the curvature multiplied by a factor."""
        d = prior.at(self.weight)
        shifted = (self.eigenvalues if factor is None else self.eigenvalues * factor) + d
        total = shifted.log().sum()
        if self.bias is None:
            return total
        e = prior.at(self.bias)
        return total + ((e - d) * (shifted.reciprocal() @ self.last)).log1p().sum()


@dataclass(frozen=True, eq=False)
class KronLogDet(LogDet):
    """Of layers with one prior precision for all their weights and one for all their biases.

    Attributes:
        layers: their spectra.
        fallback: for the rise, which takes a posterior.
    """

    layers: tuple[LayerSpectrum, ...]
    fallback: ByPosterior

    def at(self, prior: PriorAt, factors: Mapping[str, Tensor], gradient: Theta | None = None) -> Solved:
        """By the spectra; by a posterior where the rise is asked for."""
        if gradient is not None:
            return self.fallback.at(prior, factors, gradient)
        factor = next(iter(factors.values())) if factors else None
        total = torch.stack([layer.log_det(prior, factor) for layer in self.layers]).sum()
        return Solved(total, total.new_zeros(()))


@dataclass(frozen=True, eq=False)
class FullSpectrum(LogDet):
    """Of a dense curvature ``H = V diag(h) V'`` most of whose coordinates have one prior precision d, whatever it is.

    With E the columns of the identity at the other coordinates, and D their precisions less d,
    ``log det = sum log (h + d) + log det (I + D E' V diag(1 / (h + d)) V' E)``.

    Attributes:
        values: h.
        common: place of one of the coordinates that have d.
        others: places of the rest [m].
        rows: ``E' V`` [m, params].
        fallback: for the rise, which takes a posterior.
    """

    values: Tensor
    common: int
    others: Tensor
    rows: Tensor
    fallback: ByPosterior

    def at(self, prior: PriorAt, factors: Mapping[str, Tensor], gradient: Theta | None = None) -> Solved:
        """By the spectrum; by a posterior where the rise is asked for."""
        if gradient is not None:
            return self.fallback.at(prior, factors, gradient)
        d = prior.at(self.common)
        shifted = (self.values * next(iter(factors.values())) if factors else self.values) + d
        total = shifted.log().sum()
        if len(self.others):
            apart = prior.diagonal[self.others] - d
            inner = (self.rows / shifted) @ self.rows.mT
            eye = torch.eye(len(self.others), dtype=inner.dtype, device=inner.device)
            total = total + torch.linalg.slogdet(eye + apart.unsqueeze(1) * inner).logabsdet
        return Solved(total, total.new_zeros(()))


def log_det_of(likelihood: LikelihoodSum, like: Prior, scaled: bool) -> LogDet:
    """The log determinant of a sum over data, as a function of the prior.

    Args:
        likelihood: the sum.
        like: the prior at the anchor, which knows what form it has whatever the hyperparameters are.
        scaled: whether terms get factors.

    Returns:
        by the spectrum of the curvature, or of its Kronecker factors, where that does; else by posteriors.
    """
    fallback = ByPosterior(likelihood, like)
    sums = list(likelihood.sums.values())
    if len(like.rest.index) or (scaled and len(sums) > 1):
        return fallback
    kron = [(each, 1.0) for each in sums if isinstance(each, KronSum)]
    if kron and len(kron) == len(sums):
        total = KronSum.weighted(kron) if len(kron) > 1 else kron[0][0]
        if not len(total.index) and all(_of_one_scale(layer, like) for layer in total.layers):
            return KronLogDet(tuple(LayerSpectrum.of(layer, total.dtype) for layer in total.layers), fallback)
    if len(sums) == 1 and isinstance(sums[0], Full):
        return _full_spectrum(sums[0], like, fallback) or fallback
    return fallback


def _full_spectrum(full: Full, like: Prior, fallback: ByPosterior) -> FullSpectrum | None:
    """Where one prior precision is that of nearly all coordinates, and there are enough for a spectrum to pay."""
    size = len(like.known)
    if size < settings.spectrum_coordinates or not isinstance(full.held, Gram) or not bool((like.known > 0).all()):
        return None
    generic = like.known if like.generic is None else like.generic
    _, classes = torch.unique(torch.stack([like.known, generic]), dim=1, return_inverse=True)
    common = classes.mode().values
    others = (classes != common).nonzero()[:, 0]
    if len(others) > size // settings.spectrum_others:
        return None
    values, basis = torch.linalg.eigh(full.held.matrix())
    first = int((classes == common).nonzero()[0, 0])
    return FullSpectrum(values.clamp(min=0), first, others, basis[others], fallback)


def _of_one_scale(layer: KronFactors, like: Prior) -> bool:
    """Whether a layer's weights have one positive prior precision, and its biases one, whatever the hyperparameters."""
    weights = layer.index[:, :-1] if layer.has_bias else layer.index
    parts = [weights, layer.index[:, -1:]] if layer.has_bias else [weights]
    diagonals = [like.known] if like.generic is None else [like.known, like.generic]
    return all(
        bool((values := diagonal[part]).gt(0).all()) and bool((values == values[0, 0]).all())
        for diagonal in diagonals
        for part in parts
    )
