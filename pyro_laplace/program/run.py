"""One run of the program with given values: what each sample statement was, and how much it counts."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_laplace._compat.pyro import (
    Enumeration,
    carries_density,
    param_constraint,
    scale_and_mask,
    site_is_deterministic,
    site_is_factor,
    site_is_subsample,
)
from pyro_laplace._errors import InvalidData, UnsupportedProgram
from pyro_laplace._typing import Values
from pyro_laplace.data import Batch
from pyro_laplace.program.entries import without_masked_nan
from pyro_laplace.program.sparse import SparseProducts, has_sparse
from pyro_laplace.unwrap import parameter_of


@dataclass(frozen=True)
class Site:
    """A sample statement as it ran.

    Attributes:
        name: the site's name.
        fn: its distribution.
        value: its value; for an observed site the datum, or a draw where none was given.
        scale: the product of `poutine.scale` and of the plates' own subsample scales.
        mask: of `poutine.mask`, or None.
        frames: the plates around it.
        given: whether an observed site's value came with the data.
    """

    name: str
    fn: Any
    value: Tensor
    scale: float | Tensor
    mask: bool | Tensor | None
    frames: tuple
    given: bool = True

    @property
    def subsample_scale(self) -> float:
        """How much the surrounding subsampling plates multiply the log density."""
        scale = 1.0
        for frame in self.frames:
            scale *= (frame.full_size or frame.size) / frame.size
        return scale

    @property
    def own_scale(self) -> float | Tensor:
        """The user's `poutine.scale` alone: the subsampling plates' scale is undone."""
        return self.scale / self.subsample_scale

    def log_prob(self) -> Tensor:
        """Log density per batch element, `[*batch_shape]`, as the program scales and masks it."""
        return scale_and_mask(self.fn.log_prob(self.value), self.scale, self.mask)

    def own_log_prob(self) -> Tensor:
        """The same with the plates' subsample scale undone."""
        return scale_and_mask(self.fn.log_prob(self.value), self.own_scale, self.mask)


@dataclass
class Run:
    """The sites of one run, by kind, in the order in which they ran."""

    latents: dict[str, Site] = field(default_factory=dict)
    observed: dict[str, Site] = field(default_factory=dict)
    factors: dict[str, Site] = field(default_factory=dict)
    deterministic: dict[str, Site] = field(default_factory=dict)
    params: dict[str, Tensor] = field(default_factory=dict)
    constraints: dict[str, Constraint] = field(default_factory=dict)
    """Of the params."""
    subsampled: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Plates that draw their own indices: name to (size, subsample size)."""
    discrete: dict[str, Site] = field(default_factory=dict)
    """Latent sites that are to be enumerated."""
    missing: dict[str, Site] = field(default_factory=dict)
    """What `obs_mask` leaves unobserved, with placeholders for values."""
    axes: dict[str, dict[int, int]] = field(default_factory=dict)
    """Where sites were enumerated: of each site, axis to what identifies the discrete site along it."""
    own_axis: dict[str, int] = field(default_factory=dict)
    """The axis of each site that was enumerated."""
    computed: dict[str, Site] = field(default_factory=dict)
    """Deterministic sites that carry a density: the prior of a value that a reparametrisation computes."""

    @property
    def other_priors(self) -> list[Site]:
        """What the log prior has beside the latent sites: computed ones, and factors outside any plate."""
        return [*self.computed.values(), *(site for site in self.factors.values() if not site.frames)]


Fill = Callable[[Mapping[str, Any]], Tensor]


class Recorder(Messenger):
    """Replaces latent values, records every site, and hides the run from the handlers around it.

    Args:
        values: latent site to value.
        observed: sites that are observed even where no value is given (prediction).
        fill: makes the value of a latent site that `values` does not hold; None refuses such a site.
        sample: what to do at observed sites. False: keep the data, and put zeros where there are none (only the
            distributions are wanted). True: draw from the likelihood, data or not.
        indices: plate name to the indices it shall visit.
        leaves: whether latent values are made of leaves of a graph, which shows what depends on them.
        nesting: number of axes that plates take, to the left of which marked discrete sites have all their values at
            once; None leaves them at one value, or a draw where the observed sites are drawn.
        computed: deterministic sites whose density counts; None finds out which.
        params: values of `pyro.param`s in place of those that the param store has.
    """

    def __init__(
        self,
        values: Values,
        observed: frozenset[str] = frozenset(),
        fill: Fill | None = None,
        sample: bool = False,
        indices: Mapping[str, Tensor] | None = None,
        leaves: bool = False,
        nesting: int | None = None,
        computed: frozenset[str] | None = None,
        params: Values | None = None,
    ) -> None:
        super().__init__()
        self.params = params or {}
        self.nesting, self.computed = nesting, computed
        self.enumeration = None if nesting is None else Enumeration(nesting)
        self.leaves = leaves
        self.values, self.observed, self.fill, self.sample, self.indices = values, observed, fill, sample, indices or {}
        self.run = Run()

    def _process_message(self, msg: Any) -> None:
        msg["stop"] = True
        if msg["type"] == "param" and msg["name"] in self.params:
            msg["value"], msg["done"] = self.params[msg["name"]], True
        if msg["type"] != "sample":
            return
        if site_is_subsample(msg):
            self._subsample(msg)
            return
        self._refuse_again(msg["name"])
        missing = self._is_missing(msg)
        if missing:
            msg["infer"]["enumerate"] = None
        own_axis = None if self.enumeration is None else self.enumeration.enumerate(msg)
        if own_axis is not None:
            self.run.own_axis[msg["name"]] = own_axis
        elif not site_is_deterministic(msg) and not site_is_factor(msg):
            if msg["is_observed"] or self._is_data(msg["name"]):
                self._observe(msg)
            elif missing:
                self._leave_out(msg)
            elif is_enumerated(msg):
                self._take_one(msg)
            else:
                self._replace(msg)

    def _refuse_again(self, name: str) -> None:
        run = self.run
        if any(name in kind for kind in (run.latents, run.observed, run.factors, run.deterministic, run.discrete)):
            raise UnsupportedProgram(
                f"site {name!r} is sampled twice in one run of the model, and a name stands for one site. If it is a "
                "parameter of a network that is called twice, make the network an attribute of a PyroModule whose "
                "forward is the program: its parameters are then drawn once a call. Or call it once, on "
                "torch.cat([first, second])"
            )

    def _subsample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        size, subsample_size = fn.size, fn.subsample_size
        if msg["value"] is None and subsample_size is not None and subsample_size < size:
            self.run.subsampled[name] = (int(size), int(subsample_size))
            index = self.indices.get(name)
            msg["value"] = torch.arange(subsample_size, device=fn.device) if index is None else index
            msg["done"] = True

    def _is_data(self, name: str) -> bool:
        """Whether a site is one of the data, or, of one with `obs_mask`, the half of it that was observed."""
        return name in self.observed or name.removesuffix("_observed") in self.observed

    def _is_missing(self, msg: Any) -> bool:
        """Whether this is the other half of a site with `obs_mask`: what of it was not observed."""
        stem, found, _ = msg["name"].rpartition("_unobserved")
        return bool(found) and f"{stem}_observed" in self.run.observed

    def _leave_out(self, msg: Any) -> None:
        if not self.sample:
            value = _zeros(msg["fn"])
            if self.leaves and value.is_floating_point():
                value = value.clone().requires_grad_()
            msg["value"], msg["done"] = value, True

    def _join(self, name: str) -> None:
        """Both halves of a site with `obs_mask` are there: what was observed has the name that the user wrote."""
        run, half = self.run, f"{name}_observed"
        run.observed[name] = replace(run.observed.pop(half), name=name)
        if half in run.axes:
            run.axes[name] = run.axes.pop(half)

    def _take_one(self, msg: Any) -> None:
        """Of a discrete site that is not enumerated on this run: its first value, while the structure is read."""
        if self.fill is not None:
            msg["value"], msg["done"] = msg["fn"].enumerate_support(expand=True)[0], True
        elif not self.sample:
            raise UnsupportedProgram(
                f"latent site {msg['name']!r} is discrete and was summed out when the posterior was fitted: what the "
                "program says at one of its values alone is not asked for. Draw through the program instead, with "
                "pyro.infer.Predictive or pyro_laplace.Predictive"
            )

    def _observe(self, msg: Any) -> None:
        msg["given"] = msg["value"] is not None
        if self.sample:
            msg["value"], msg["is_observed"] = None, False
        elif msg["value"] is None:
            msg["value"] = _zeros(msg["fn"])
            msg["is_observed"] = True
        elif not isinstance(msg["value"], Tensor | int | float):
            kind = type(msg["value"])
            raise InvalidData(
                f"the observed site {msg['name']!r} has a {kind.__module__.split('.')[0]}.{kind.__name__} for value: "
                "give a tensor, as torch.as_tensor(y) makes it"
            )
        else:
            msg["value"] = without_masked_nan(msg["value"], msg["mask"], msg["fn"])

    def _replace(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.values:
            value = self.values[name]
            expected = msg["fn"].shape()
            if value.shape != (
                expected if self.nesting is None else _without_enumerated(msg["fn"], self.nesting, value)
            ):
                plates = [frame.name for frame in msg["cond_indep_stack"]]
                inside = f" inside the plates {plates}" if plates else ""
                raise UnsupportedProgram(
                    f"latent site {name!r}{inside} has shape {tuple(expected)} on this call of the model, but its "
                    f"value has shape {tuple(value.shape)}, as on an earlier call. If its shape depends on the data, "
                    "give all data as one batch, or write the site so that it does not. Groups that were not in the "
                    "data have draws by with_new_groups(...) of pl.fit_nested_laplace's guide. If it is inside a plate "
                    "by accident (a network called within `with pyro.plate(...)`), move it out"
                )
        elif self.fill is not None:
            value = self.fill(msg)
        else:
            raise UnsupportedProgram(
                f"latent site {name!r} appears on this call of the model, but not when it was first run, among "
                f"{sorted(self.values)}. If it is an observed site, give its data. If the guide is of another program, "
                "give the program it was fitted to. Else the program's structure must not change from call to call"
            )
        msg["value"], msg["done"] = _of_leaf(value) if self.leaves else value, True

    def _postprocess_message(self, msg: Any) -> None:
        name = msg["name"]
        if msg["type"] == "param":
            self.run.params[name] = msg["value"]
            self.run.constraints[name] = param_constraint(msg)
        if msg["type"] != "sample" or site_is_subsample(msg):
            return
        if self.enumeration is not None:
            self.run.axes[name] = self.enumeration.axes(msg)
        frames = tuple(msg["cond_indep_stack"])
        for frame in frames:
            if not frame.vectorized:
                raise UnsupportedProgram(
                    f"site {name!r} is inside the sequential plate {frame.name!r}: write `with pyro.plate(...)` over "
                    "whole tensors instead of `for i in pyro.plate(...)`"
                )
        given = msg.get("given", True)
        site = Site(name, msg["fn"], msg["value"], msg["scale"], msg["mask"], frames, given)
        if site_is_deterministic(msg) and f"{name}_unobserved" in self.run.missing:
            self._join(name)
        elif site_is_deterministic(msg):
            self.run.deterministic[name] = site
            if carries_density(msg["fn"]) if self.computed is None else name in self.computed:
                self.run.computed[name] = site
        elif site_is_factor(msg):
            self.run.factors[name] = site
        elif msg["is_observed"] or self._is_data(name):
            self.run.observed[name] = site
        elif self._is_missing(msg):
            self.run.missing[name] = site
        elif is_enumerated(msg):
            self.run.discrete[name] = site
        else:
            self.run.latents[name] = site


def _of_leaf(value: Tensor) -> Tensor:
    """A value that is made of a flat leaf of a graph."""
    leaf = value.detach().reshape(-1).detach().requires_grad_()
    with torch.enable_grad():
        return leaf.view(value.shape)


def run_model(model: Callable[..., Any], batch: Batch, recorder: Recorder) -> Run:
    """Call the model on a batch under a recorder."""
    with ExitStack() as stack:
        if recorder.enumeration is not None:
            stack.enter_context(recorder.enumeration)
        stack.enter_context(recorder)
        if has_sparse(model, batch):
            stack.enter_context(SparseProducts())
        model(*batch.args, **batch.kwargs)
    return recorder.run


def is_enumerated(msg: Mapping[str, Any]) -> bool:
    """Whether a sample message asks for its site to be summed out: ``infer={"enumerate": "parallel"}``."""
    return (msg["infer"] or {}).get("enumerate") == "parallel" and msg["fn"].has_enumerate_support


def _without_enumerated(fn: Any, nesting: int, value: Tensor) -> torch.Size:
    """The shape of a site whose distribution may have axes to the left of all plates."""
    shape = fn.shape()[max(0, len(fn.batch_shape) - nesting) :]
    extra = max(0, len(shape) - value.dim())
    return shape[extra:] if all(size == 1 for size in shape[:extra]) else shape


def _zeros(fn: Any) -> Tensor:
    """A placeholder of a draw's shape, dtype and device, made without drawing."""
    like = parameter_of(fn)
    return (torch.zeros(()) if like is None else like.new_zeros(())).expand(fn.shape())
