"""`AutoLaplaceApproximation`: Pyro's guide of that name, with the Laplace approximation of this package."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.infer.autoguide as pyros
import torch
from pyro.infer.autoguide import AutoDiscreteParallel, AutoGuideList
from pyro.poutine.block_messenger import BlockMessenger
from torch import Tensor, nn

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption, check_option
from pyro_laplace.data import Batch, Data
from pyro_laplace.posterior.fit import fit_laplace
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.request import Request
from pyro_laplace.posterior.subset import Subset
from pyro_laplace.structure.options import Structure


class AutoLaplaceApproximation(pyros.AutoLaplaceApproximation):
    """Pyro's guide of that name, to be swapped in for it: a point that `SVI` trains, and then a Gaussian around it.

    Training is Pyro's own: the guide is a point, the parameter `loc` in unconstrained space, and SVI with it maximises
    the density of theta, ``log p(y, x) + log |dx/dtheta|``. `laplace_approximation` then is `fit_laplace` from that
    point, with all that `fit_laplace` offers: structures that scale, Gauss-Newton curvature, a judgement of the mode.
    Where Pyro's succeeds, `curvature="hessian"` with `polish=False` gives its covariance.

    As part of an `AutoGuideList` the Gaussian is over the part's own sites, and the other parts' are held at their
    medians; Pyro's draws them anew at each call.

    Args:
        model: a Pyro program.
        init_loc_fn: where sites start, as Pyro's autoguides take it: `init_to_median`, `init_to_value(values=...)`, ...
        subset: as `fit_laplace` takes it.
        structure: as `fit_laplace` takes it.
        curvature: as `fit_laplace` takes it.
        jacobian: as `fit_laplace` takes it.
        polish: as `fit_laplace` takes it; "auto" moves the point of a small program on to the mode, False keeps it.
        on_not_a_mode: as `fit_laplace` takes it.
        progress: whether passes over the data that last show a progress bar.

    Raises:
        InvalidOption: for an option's unknown value, or structure and curvature that do not go together.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        init_loc_fn: Callable[..., Any] = pyros.init_to_median,
        *,
        subset: Subset = "all",
        structure: Structure = "full",
        curvature: str = "auto",
        jacobian: bool = True,
        polish: bool | str = "auto",
        on_not_a_mode: str = "warn",
        progress: bool = True,
    ) -> None:
        check_option("polish", polish, (True, False, "auto"))
        check_option("on_not_a_mode", on_not_a_mode, ("warn", "raise", "ignore"))
        with undisturbed():  # options are refused before the training, and draw nothing yet
            Request.of(model, subset, structure, curvature, jacobian, progress)
        super().__init__(model, init_loc_fn=init_loc_fn)
        self._program = (model,)  # in a tuple, as Pyro has its own: no submodule
        self._options = {"structure": structure, "curvature": curvature, "jacobian": jacobian, "polish": polish}
        self._options |= {"subset": subset, "on_not_a_mode": on_not_a_mode, "progress": progress}

    def laplace_approximation(self, *args: Any, **kwargs: Any) -> AutoLaplace:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The Gaussian posterior around the point, as `fit_laplace` makes it.

        A model without observed sites has its prior for posterior, as with Pyro's.

        Args:
            *args: what the model is called with, all data.
            **kwargs: the same by name.

        Returns:
            the fitted guide. It needs neither this guide nor the param store any more.

        Raises:
            InvalidOption: if this guide was copied by pickle, which leaves the model behind.
            UnsupportedProgram: if the program has no Laplace approximation, naming the site and what to do.
            NotAMode: if the point is not a mode and `on_not_a_mode="raise"`.
            IndefiniteCurvature: if the precision is not positive definite, naming the sites to blame.
        """
        (model,) = self._program
        if model is None:
            raise InvalidOption(
                "this AutoLaplaceApproximation was pickled, and its model stayed with the original: make it anew with "
                "the model, and load its state with load_state_dict; or pickle what laplace_approximation gave"
            )
        if self.prototype_trace is None:
            self(*args, **kwargs)
        options, whole = dict(self._options), None if self.master is None else self.master()
        point: dict[Any, Tensor] = self.median(*args, **kwargs)
        if whole is not None:
            model = whole.model
            options["subset"] = list(point) if options["subset"] == "all" else options["subset"]
            point = _medians(whole, args, kwargs) | point
        data = Data(Batch(args, kwargs), one_batch=True, prior_alone=not _is_blocked(model))
        return fit_laplace(model, data, point, **options)

    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """A point has none.

        Args:
            quantiles: probabilities.
            *args: what the model is called with.
            **kwargs: the same by name.

        Raises:
            InvalidOption: saying what has.
        """
        raise InvalidOption("the guide is a point, without quantiles: ask guide.laplace_approximation(*args) for them")

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.loc, torch.zeros_like(self.loc)  # of which Pyro's `median` takes the first

    def __getstate__(self) -> dict[str, Any]:
        """The state without the model, which stays with the live guide; Pyro's takes it off that."""
        plain = {name: nn.Parameter(value.detach()) for name, value in self.named_parameters()}  # Pyro's hold a weakref
        return {**self.__dict__, "_model": (None,), "_program": (None,), "master": None, "_parameters": plain}


def _medians(guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """What the parts of a list of guides say of their sites; enumerated ones are summed out instead."""
    if not isinstance(guide, AutoGuideList):
        return {} if isinstance(guide, AutoDiscreteParallel) else guide.median(*args, **kwargs)
    return {name: value.detach() for part in guide for name, value in _medians(part, args, kwargs).items()}


def _is_blocked(model: Callable[..., Any]) -> bool:
    """Whether a model hides sites by `poutine.block`, the observed ones among them perhaps."""
    return isinstance(model, partial) and any(isinstance(each, BlockMessenger) for each in model.args)
