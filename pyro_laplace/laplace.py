"""`fit_laplace`: from a Pyro program, its data and its mode to a Gaussian posterior guide."""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.infer.autoguide.guides import AutoGuide
from torch import Tensor

from pyro_laplace._autodiff import push_forward
from pyro_laplace._compat import undisturbed
from pyro_laplace._errors import InvalidOption, NotAMode, NotAModeWarning, check_option
from pyro_laplace._typing import Theta
from pyro_laplace.curvature import CURVATURES, Curvature, Point
from pyro_laplace.curvature.ggn import root as ggn_root
from pyro_laplace.data import Data, as_data
from pyro_laplace.evidence import log_evidence
from pyro_laplace.guide import AutoLaplace
from pyro_laplace.mode import SMALL, Mode, Objective, descend, fit_map, minimise
from pyro_laplace.precision import Precision, Structure, build_precision, check_combination, check_structure
from pyro_laplace.program import Program
from pyro_laplace.subset import Subnetwork, Subset, free_index, names_of, select

_GAUSS_NEWTON_STEPS = 20


def fit_laplace(
    model: Callable[..., Any],
    data: Any,
    map_guide: AutoGuide | Mapping[str, Tensor] | None = None,
    *,
    subset: Subset = "all",
    structure: Structure = "full",
    curvature: str = "ggn",
    jacobian: bool = True,
    polish: bool | str = "auto",
    on_not_a_mode: str = "warn",
    progress: bool = True,
) -> AutoLaplace:
    """Turn a Pyro program at its mode into a Gaussian posterior guide.

    The posterior is ``N(theta*, Lambda^-1)`` over the latent sites in unconstrained space, with
    ``Lambda = sum_n J_n' I_n J_n + H_prior`` (MacKay 1992, "A practical Bayesian framework for backpropagation
    networks"; Daxberger et al. 2021, "Laplace Redux").

    Args:
        model: a Pyro program.
        data: a batch (tuple, dict or tensor), or a re-iterable of batches. Observed sites are those that have a value.
        map_guide: an `AutoDelta` at the mode, however it was trained, or a mapping of site values; None fits it first.
        subset: the random sites, the others are held at the mode: "all", "last_layer", site names or globs, a callable
            of the site name, or a `Subnetwork` of single coordinates.
        structure: of the precision: "full"; "block" (dense for each site); "kron" (a Kronecker product per layer,
            dense blocks for sites in no layer); "diag"; `LowRank(rank)` (a diagonal prior and the likelihood's leading
            eigenpairs); or a mapping of site globs to these, in which the first match wins, every random site is
            matched, and the curvature between its groups is dropped.
        curvature: of the log likelihood: "ggn" (exact Fisher information; exact Hessian for distributions without a
            registered one), "mc_fisher" (its unbiased estimate from labels drawn for each datum, of any distribution;
            `pyro.set_rng_seed` reproduces it), "empirical_fisher" (the gradients at the data's own labels: one row a
            datum) or "hessian".
        jacobian: True builds the Gaussian at the mode of the density of theta, ``log |dx/dtheta|`` included; False at
            AutoDelta's, the mode of the density of the constrained values.
        polish: True moves the point to the mode, False leaves it, "auto" moves it where it must: sites with constraints
            and `jacobian=True`, or a program of at most 200 coordinates. A trained network is measured, not retrained.
        on_not_a_mode: what to do about a point further than 0.1 sqrt(P) posterior standard deviations from the mode:
            "warn", "raise" or "ignore".
        progress: whether to show a progress bar while the mode is fitted.

    Returns:
        the posterior as a Pyro guide.

    Raises:
        InvalidOption: for an option's unknown value.
        UnsupportedProgram: if the program has no Laplace approximation, naming the site and what to do.
        NotAMode: if the point is not a mode and `on_not_a_mode="raise"`.
        IndefiniteCurvature: if the precision is not positive definite, naming the sites to blame.
    """
    start = time.perf_counter()
    check_structure(structure)
    check_option("curvature", curvature, tuple(CURVATURES))
    check_option("jacobian", jacobian, (True, False))
    check_option("polish", polish, (True, False, "auto"))
    check_option("on_not_a_mode", on_not_a_mode, ("warn", "raise", "ignore"))
    data = as_data(data)
    given = map_guide is not None
    check_combination(structure, CURVATURES[curvature])
    if map_guide is None:
        select(subset, Program.trace(model, data), data)  # a typo need not wait for the training
        map_guide = fit_map(model, data, progress=progress)
    measure = CURVATURES[curvature].drawn()  # outside: a draw advances the user's random state
    generator = subset.generator() if isinstance(subset, Subnetwork) else None
    with undisturbed(), torch.no_grad():
        program = Program.trace(model, data, _values(map_guide, data))
        random = select(subset, program, data)
        search = _Search(program, data, free_index(program, random), structure, measure, jacobian)
        theta = search.move(program.start, polish, given)
        if isinstance(subset, Subnetwork) and generator is not None:
            search = replace(search, index=subset.choose(program, theta, lambda: search.variance(theta), generator))
        precision = search.precision(theta)
        if polish is True or (polish == "auto" and not given):
            theta, precision = search.gauss_newton(theta, precision)
        mode = search.judge(theta, precision, moved=not torch.equal(theta, program.start))
        _report(mode, on_not_a_mode, given)
        guide = AutoLaplace(
            model,
            program.latents,
            search.index,
            mode,
            precision,
            structure=structure,
            curvature=curvature,
            observed=program.observed,
            log_evidence=log_evidence(program, theta, names_of(program, search.index), precision, data),
            nonlinearity=search.nonlinearity(theta, precision),
        )
    guide.fit_seconds = time.perf_counter() - start
    return guide


@dataclass(frozen=True)
class _Search:
    """The posterior's precision anywhere, and the way to the mode by it."""

    program: Program
    data: Data
    index: Tensor
    structure: Structure
    curvature: Curvature
    jacobian: bool

    def precision(self, theta: Theta) -> Precision:
        point = Point(theta, self.index)
        return build_precision(self.structure, self.curvature, self.program, point, self.data, self.jacobian)

    def variance(self, theta: Theta) -> Theta:
        """Marginal variances under the diagonal approximation."""
        return replace(self, structure="diag").precision(theta).variance()

    def objective(self, theta: Theta, index: Tensor) -> Objective:
        return Objective(self.program, self.data, self.jacobian, theta, index)

    def judge(self, theta: Theta, precision: Precision, moved: bool) -> Mode:
        objective = self.objective(theta, self.index)
        value, gradient = objective.value_and_gradient(objective.start)
        decrement = float((gradient @ precision.solve(gradient)).clamp(min=0).sqrt())
        return Mode(theta, -float(value), float(gradient.norm()), decrement, len(self.index), moved)

    def move(self, theta: Theta, polish: bool | str, given: bool) -> Theta:
        """To the mode of the log joint, as far as `polish` asks."""
        everything = torch.arange(len(theta), device=theta.device)
        constrained = [name for name, latent in self.program.latents.items() if latent.constrained]
        must = self.jacobian and bool(constrained)
        if polish is False:
            return theta
        if len(theta) <= SMALL:
            return self._minimise(theta, everything)
        if polish is True or not given:
            objective = self.objective(theta, everything)
            return objective.embed(descend(objective))
        return self._minimise(theta, free_index(self.program, constrained)) if must else theta

    def gauss_newton(self, theta: Theta, precision: Precision) -> tuple[Theta, Precision]:
        """Steps Lambda^-1 g with backtracking, until the decrement says that this is a mode."""
        for _ in range(_GAUSS_NEWTON_STEPS):
            objective = self.objective(theta, self.index)
            part = objective.start
            value, gradient = objective.value_and_gradient(part)
            step = -precision.solve(gradient)
            slope = float(-(step * gradient).sum())
            if slope <= 0.01 * 0.1**2 * len(part):
                break
            for halving in range(12):
                trial, _ = objective.value_and_gradient(part + 0.5**halving * step)
                if float(value - trial) > 1e-4 * 0.5**halving * slope:
                    break
            else:
                break
            theta = objective.embed(part + 0.5**halving * step)
            precision = self.precision(theta)
        return theta, precision

    def nonlinearity(self, theta: Theta, precision: Precision) -> float:
        """``|g(theta) - g(theta*) - J (theta - theta*)| / |J (theta - theta*)|`` at one draw, g in Fisher's metric."""
        if self.curvature.root is None:
            return 0.0
        point = Point(theta, self.index)
        root = point.on(ggn_root(self.program, theta, next(self.program.chunks(self.data))))
        white = torch.randn(1, len(self.index), generator=torch.Generator().manual_seed(0)).to(theta)
        (deviation,) = precision.color(white)
        at_mode, straight = push_forward(root, point.part, deviation)
        bent = root(point.part + deviation) - at_mode - straight
        return float(bent.norm() / straight.norm()) if bool(straight.any()) else 0.0

    def _minimise(self, theta: Theta, index: Tensor) -> Theta:
        objective = self.objective(theta, index)
        return objective.embed(minimise(objective) if len(index) <= SMALL else descend(objective))


def _values(map_guide: AutoGuide | Mapping[str, Tensor], data: Data) -> dict[str, Tensor]:
    """The point that a guide or a mapping holds."""
    if isinstance(map_guide, Mapping):
        return {name: torch.as_tensor(value).detach() for name, value in map_guide.items()}
    if not isinstance(map_guide, AutoGuide):
        raise InvalidOption(
            f"map_guide is a {type(map_guide).__name__}: give a Pyro AutoDelta, a mapping of site values, or None"
        )
    if map_guide.prototype_trace is None:
        raise InvalidOption(
            f"map_guide is an {type(map_guide).__name__} that has never been run: train it with SVI, or leave "
            "map_guide out and let fit_map do it"
        )
    batch = data.first()
    return {name: value.detach() for name, value in map_guide.median(*batch.args, **batch.kwargs).items()}


def _report(mode: Mode, on_not_a_mode: str, given: bool) -> None:
    if mode.is_mode or on_not_a_mode == "ignore":
        return
    remedy = "train longer, or give polish=True" if given else "give a map_guide trained longer"
    message = (
        f"this point is not a mode: Newton decrement {mode.decrement:.3g} (its distance to the mode in posterior "
        f"standard deviations; {mode.allowed:.3g} is allowed for {mode.num_random} coordinates), gradient norm "
        f"{mode.gradient_norm:.3g}. To mend it, {remedy}. on_not_a_mode='ignore' accepts it as it is"
    )
    if on_not_a_mode == "raise":
        raise NotAMode(message)
    warnings.warn(message, NotAModeWarning, stacklevel=3)
