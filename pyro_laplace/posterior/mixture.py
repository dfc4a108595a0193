"""`LaplaceMixture`: several Laplace posteriors of one program as one guide."""

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide.guides import AutoGuide
from torch import Tensor
from torch.distributions import biject_to

from pyro_laplace._compat.pyro import auxiliary_name, prototype_frames, share_params, stripped_trace, undisturbed
from pyro_laplace._errors import InvalidOption, check_option
from pyro_laplace._typing import Matrix, Theta, Values
from pyro_laplace.capture.loop import Loop
from pyro_laplace.data import Data, as_data
from pyro_laplace.mode.given import values_given
from pyro_laplace.mode.mode import Mode
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture_density import POINT, MixtureDensity
from pyro_laplace.program.program import Program
from pyro_laplace.program.sites import Latent
from pyro_laplace.structure.diag import DiagBlock
from pyro_laplace.structure.precision import Precision

if TYPE_CHECKING:
    from pyro_laplace.posterior.delta import Estimate

WEIGHTS = ("evidence", "equal")
"""How components may be weighted."""


class LaplaceMixture(AutoGuide):
    """Laplace posteriors around several modes, weighted: ``q(theta) = sum_k w_k N(theta_k, Lambda_k^-1)``.

    `fit_laplace` makes it of several starts (Eschenhagen et al. 2021, "Mixtures of Laplace approximations for improved
    post-hoc uncertainty in deep learning"); `of_modes` makes the mixture without covariances, a deep ensemble. It is a
    guide with the log density of the mixture; its state is in buffers, and it needs neither data nor param store.

    Weights by evidence are the modes' masses where the modes are distinct. A mode that was found twice counts twice;
    drop the copy if that is not meant. So do symmetric modes (a network's, its hidden units permuted), which have the
    same evidence and predict alike. Sites outside the subset are at their component's mode, and its evidence is given
    their values.

    Args:
        components: a list of posteriors of one program from `fit_laplace`, with the same random coordinates. They are
            not copied.
        weights: "evidence", the softmax of the log evidences, or "equal".

    Attributes:
        weights: w_k [components], float64.
        theta: the mode of largest weight, unconstrained [params].
        layout: site name to its slice of theta.
        random: names of the sites that are random in a component.
        observed: names of the observed sites that the posterior is conditioned on.
        fit_seconds: wall time of `fit_laplace`.

    Raises:
        InvalidOption: if something is not a posterior, they are not of one program or of other random coordinates, or
            are to be weighted by an evidence that they do not have.
    """

    weights: Tensor
    theta: Tensor

    def __init__(self, components: Any, *, weights: str = "evidence") -> None:
        check_option("weights", weights, WEIGHTS)
        _check_components(components)
        first = components[0]
        super().__init__(first.model)
        self.weighting = weights
        self._components = cast("Iterable[AutoLaplace]", torch.nn.ModuleList(components))
        self.latents: dict[str, Latent] = dict(first.latents)
        self.layout = {name: latent.slice for name, latent in self.latents.items()}
        self.random = () if first.structure == POINT else first.random
        self.observed = first.observed
        self.prototype_trace = stripped_trace(list(self.latents.values()), first.theta)
        self._prototype_frames = prototype_frames(self.latents.values())
        self._create_plates()
        self.register_buffer("weights", _weights(components, weights).to(first.theta.device))
        self.register_buffer("theta", components[int(self.weights.argmax())].theta)

    @staticmethod
    def of_modes(model: Callable[..., Any], data: Any, map_guides: Any) -> "LaplaceMixture":
        """A deep ensemble: the modes with equal weights and no covariance (Lakshminarayanan et al. 2017).

        Draws are the modes themselves, and predictions are averages of theirs. No curvature is computed, and no point
        is moved. There is no evidence: a point has no volume.

        Args:
            model: the Pyro program.
            data: what the guides were fitted to, as in `fit_laplace`.
            map_guides: a list of `AutoDelta` guides, or of mappings of site values.

        Returns:
            the mixture.

        Raises:
            InvalidOption: if that is not a list of guides or mappings.
        """
        check_starts("map_guides", map_guides)
        data = as_data(data)
        return LaplaceMixture([_point(model, data, guide) for guide in map_guides], weights="equal")

    @property
    def hyperparameters(self) -> Values:
        """The pyro.params of priors and noise, at the values that all components were built at."""
        return self.components[0].hyperparameters

    @property
    def components(self) -> tuple[AutoLaplace, ...]:
        """The posteriors."""
        return tuple(self._components)

    @property
    def points(self) -> list[dict[str, Tensor]]:
        """The components' modes as starts for `fit_laplace`: site values of each."""
        return [component.median() for component in self.components]

    @property
    def log_evidence(self) -> float:
        """Log of the mean of the components' evidences; nan for a mixture of points.

        That is log p(y) where all starts found one mode, or symmetric copies of one (of which one is counted, as in a
        single Laplace approximation). K modes that are distinct and all there are have log K more, the log of the sum.
        """
        evidences = _log_evidences(self._components)
        return float(evidences.logsumexp(0) - evidences.new_tensor(len(evidences)).log())

    @property
    def structure(self) -> str:
        """Of the components' precisions; "point" where they have none."""
        return ", ".join(dict.fromkeys(str(component.structure) for component in self.components))

    @property
    def curvature(self) -> str:
        """Of the components."""
        return ", ".join(dict.fromkeys(component.curvature for component in self.components))

    @property
    def mean(self) -> Theta:
        """Mean of theta, unconstrained."""
        return self.get_posterior().mean

    @property
    def variance(self) -> Theta:
        """Marginal variances of theta: within components, and between them."""
        return self.get_posterior().variance

    @property
    def covariance(self) -> Matrix:
        """Covariance of theta, dense [params, params]: within components, and between them."""
        return self.get_posterior().covariance_matrix

    @torch.no_grad()
    def of(self, name: str, data: Any = None) -> "Estimate":
        """Mean and standard deviation of a value that the program computes, by the delta method at each component.

        Args:
            name: of a deterministic site (``pyro.deterministic``), or of a latent one, in its own space.
            data: what the program is called with, as in `AutoLaplace.of`.

        Returns:
            ``mean`` and ``std``, of the site's shape: within components, and between them.
        """
        from pyro_laplace.posterior.delta import mixed

        return mixed([each.of(name, data) for each in self.components], self.weights)

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """The mixture as a `MixtureDensity` over all of theta; the arguments are ignored."""
        return MixtureDensity(self._components, self.weights)

    def mode_of(self, theta: Tensor) -> Tensor:
        """The mode `[*batch, params]` of the component that theta `[*batch, params]` most probably came from."""
        return self.get_posterior().mode_of(theta)

    def log_density_by(self, theta: Tensor, terms: Tensor) -> Tensor:
        """The density by which draws theta `[draws, params]` are weighed [draws].

        Args:
            theta: draws of the mixture.
            terms: ``log w_k q_k(theta)`` [components, draws].

        Returns:
            nats [draws].
        """
        return terms.logsumexp(0)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every latent site of the program; the arguments are ignored."""
        theta = pyro.sample(auxiliary_name(self, "latent"), self.get_posterior(), infer={"is_auxiliary": True})
        plates = self._create_plates()
        return {name: self._sample(latent, theta, plates) for name, latent in self.latents.items()}

    @torch.no_grad()
    def sample_theta(self, num_samples: int) -> Tensor:
        """Independent draws of theta [num_samples, params]."""
        chosen = torch.multinomial(self.weights, num_samples, replacement=True)
        draws = self.theta.new_empty(num_samples, len(self.theta))
        for number, component in enumerate(self.components):
            mine = chosen == number
            if bool(mine.any()):
                draws[mine] = component.sample_theta(int(mine.sum()))
        return draws

    def sample_posterior(self, num_samples: int = 1) -> dict[str, Tensor]:
        """Independent posterior draws.

        Args:
            num_samples: number of draws.

        Returns:
            site name to draws `[num_samples, *shape]`, in the sites' own (constrained) spaces.
        """
        return self._values(self.sample_theta(num_samples))

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Marginal medians of the mixture; between two modes of equal weight there may be no mass at all."""
        return {name: value[0] for name, value in self.quantiles([0.5]).items()}

    @torch.no_grad()
    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Marginal quantiles of the mixture, found in unconstrained space by inverting its distribution function.

        Args:
            quantiles: probabilities, a list or a tensor [quantiles].
            *args: ignored.
            **kwargs: ignored.

        Returns:
            site name to values `[quantiles, *shape]`.

        Raises:
            InvalidOption: for a number that is no probability.
        """
        levels = torch.as_tensor(quantiles, dtype=torch.float64, device=self.theta.device)
        if levels.dim() != 1 or not bool(((levels >= 0) & (levels <= 1)).all()):
            raise InvalidOption(f"quantiles={quantiles!r}: give a list of probabilities between 0 and 1")
        return self._values(self.get_posterior().quantile(levels))

    def _values(self, theta: Tensor) -> dict[str, Tensor]:
        return {name: latent.constrain(theta[:, latent.slice]) for name, latent in self.latents.items()}

    def _sample(self, latent: Latent, theta: Tensor, plates: Mapping[str, Any]) -> Tensor:
        """Emit a site as a Delta, whose density takes that of theta to the site's own space if it is random."""
        event_dim = len(latent.event_shape)
        aligned = (1,) * (event_dim + len(latent.unconstrained_shape) - len(latent.shape))
        shape = torch.broadcast_shapes(latent.unconstrained_shape, (*theta.shape[:-1], *aligned))
        unconstrained = theta[..., latent.slice].reshape(shape)
        transform = biject_to(latent.support)
        value: Any = transform(unconstrained)
        log_density: Any = 0.0
        if latent.constrained and latent.name in self.random:
            jacobian = transform.inv.log_abs_det_jacobian(value, unconstrained)
            log_density = sum_rightmost(jacobian, jacobian.dim() - value.dim() + event_dim)
        with ExitStack() as stack:
            for frame in latent.frames:
                stack.enter_context(plates[frame.name])
            return pyro.sample(latent.name, dist.Delta(value, log_density, event_dim=event_dim))

    def __repr__(self) -> str:
        """The components' weights and evidences."""
        rows = ", ".join(
            f"{float(w):.3f} at log evidence {each.log_evidence:.4g}"
            for w, each in zip(self.weights, self.components, strict=True)
        )
        return f"LaplaceMixture({rows})"

    def __getstate__(self) -> dict[str, Any]:
        """The state without the model, which stays with the live guide."""
        return {**self.__dict__, "_model": (None,), "master": None, "plates": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state; plates are made anew."""
        super().__setstate__(state)
        for component in self.components:
            component.master = None  # each stands for itself
        self._create_plates()

    def __deepcopy__(self, memo: dict[int, Any]) -> "LaplaceMixture":
        """A copy that shares the model."""
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        new._model = self._model
        return new


def _point(model: Callable[..., Any], data: Data, map_guide: Any) -> AutoLaplace:
    """A component at the point given, with infinite precision."""
    with undisturbed(), torch.no_grad():
        program = Program.trace(model, data, values_given(map_guide, data))
        theta = program.start
        chunks = list(Loop(program, data).chunks())
        log_lik = sum(float(program.log_joint(theta, chunk, prior=0.0)) for chunk in chunks)
        log_joint = log_lik + float(program.log_prior(theta, chunks[0], jacobian=False))
        everything = torch.arange(len(theta), device=theta.device)
        return AutoLaplace(
            model,
            program.latents,
            everything,
            Mode(theta, log_joint, torch.zeros_like(theta, dtype=torch.float64), decrement=0.0, moved=False),
            Precision([(everything, DiagBlock(torch.full_like(theta, torch.inf)))], theta.dtype),
            structure=POINT,
            curvature="none",
            observed=program.observed,
            log_evidence=torch.nan,
        )


def _log_evidences(components: Iterable[AutoLaplace]) -> Tensor:
    """[components]."""
    return torch.tensor([component.log_evidence for component in components], dtype=torch.float64)


def _weights(components: Iterable[AutoLaplace], weights: str) -> Tensor:
    evidences = _log_evidences(components)
    if weights == "equal":
        return torch.full_like(evidences, 1 / len(evidences))
    if not bool(evidences.isfinite().all()):
        raise InvalidOption(
            f"weights='evidence', and the components have the log evidences {evidences.tolist()}: give weights='equal'"
        )
    return evidences.softmax(0)


def check_starts(option: str, starts: Any) -> None:
    """Refuse what is not a list of guides or mappings."""
    if not isinstance(starts, list | tuple) or not starts:
        kind = "empty" if starts in ([], ()) else f"a {type(starts).__name__}"
        raise InvalidOption(f"{option} is {kind}: give a list of AutoDelta guides, or of mappings of site values")
    for number, start in enumerate(starts):
        if not isinstance(start, AutoGuide | Mapping):
            raise InvalidOption(
                f"{option}[{number}] is a {type(start).__name__}: give a Pyro AutoDelta or a mapping of site values; "
                "fit_map(model, data) makes one from a random start"
            )
    if (name := share_params(starts)) is not None:
        raise InvalidOption(
            f"{option}: guides of the one name {name!r} share their parameters in Pyro's param store, and hold one "
            "mode. Train with fit_map, or under pyro.settings.set(module_local_params=True), or give the median() that "
            "each guide had after its training"
        )


def _check_components(components: Any) -> None:
    """Refuse what is not a list of posteriors over the same coordinates."""
    if not isinstance(components, list | tuple) or not components:
        kind = "empty" if components in ([], ()) else f"a {type(components).__name__}"
        raise InvalidOption(f"components is {kind}: give a list of posteriors from fit_laplace")
    for number, component in enumerate(components):
        if not isinstance(component, AutoLaplace):
            raise InvalidOption(
                f"components[{number}] is a {type(component).__name__}: give posteriors from fit_laplace; "
                "LaplaceMixture.of_modes takes AutoDelta guides"
            )
        _check_same(number, components[0], component)


def _check_same(number: int, first: AutoLaplace, other: AutoLaplace) -> None:
    shapes = [{name: tuple(latent.shape) for name, latent in each.latents.items()} for each in (first, other)]
    if list(shapes[0].items()) != list(shapes[1].items()) or set(first.observed) != set(other.observed):
        raise InvalidOption(
            f"components[{number}] is of another program than components[0]: latent sites {shapes[1]} and observed "
            f"sites {list(other.observed)}, against {shapes[0]} and {list(first.observed)}"
        )
    same = torch.equal(first.index, other.index) and (first.structure == POINT) == (other.structure == POINT)
    if not same:
        raise InvalidOption(
            f"components[{number}] has other random coordinates than components[0], so that the mixture has no "
            "density: fit all with the same subset, Subnetwork(mask=...) where it is of single coordinates"
        )
