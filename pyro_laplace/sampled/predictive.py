"""`Predictive`: Pyro's, vectorised over draws."""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.infer
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyro_laplace._compat.pyro import ParamsHeld, site_is_subsample, undisturbed
from pyro_laplace._compat.random import RandomState
from pyro_laplace._errors import InvalidOption, LaplaceWarning, UnsupportedProgram
from pyro_laplace.data import Batch, Data
from pyro_laplace.draws.vectorize import Widest, over_rows, row_by_row
from pyro_laplace.linearized.choose import bend_of
from pyro_laplace.linearized.predictor import LinearizedPredictive
from pyro_laplace.linearized.program import LinearizedProgram
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.posterior.own import own_params
from pyro_laplace.program.arguments import told_of_arguments
from pyro_laplace.program.module_state import modules_kept
from pyro_laplace.program.validate import refuse_unsampled
from pyro_laplace.settings import settings

RETURN = "_RETURN"
"""Pyro's name for what the program returns."""


class Predictive(pyro.infer.Predictive):
    """`pyro.infer.Predictive`, vectorised over draws: the same arguments and results, in a fraction of the time.

    The program is run by `torch.func.vmap` on a chunk of draws at a time, whatever it is made of: plates,
    `PyroModule[nn.Linear]`, a linearised program, a plain function. Random numbers differ from draw to draw, those of
    dropout too. A program that `vmap` cannot run, for example one with ``if`` on a tensor, is run draw by draw, with a
    warning that says why. Batch axes need no plates, as they do for ``parallel=True``. A discrete site that is
    enumerated is drawn from its prior, whatever data are given; `discrete_posterior` says what it was.

    No gradient is kept. Modules keep their mode and their buffers (the running statistics of a batch normalisation in
    training mode, say), and the param store its names, also when the program raises.

    Args:
        model: the Pyro program.
        posterior_samples: latent site to draws `[num_samples, *shape]`; without it and without a guide, the program's
            own latent sites are drawn (the prior predictive).
        guide: any Pyro guide, called with the model's arguments.
        num_samples: number of draws; that of `posterior_samples` if they are given.
        return_sites: names of the sites to return, ``"_RETURN"`` for what the program returns. By default, those not in
            `posterior_samples`; with a guide, all; None, all.
        parallel: Pyro's own vectorisation, by a plate around the program. It is Pyro's code that is run then.
        chunk_size: draws of one vectorised pass. "auto" bounds the memory: it looks at the largest tensor that one run
            of the program makes. None takes all draws at once.

    Raises:
        InvalidOption: if an argument has a value that it cannot have.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        posterior_samples: Any = None,
        guide: Any = None,
        num_samples: int | None = None,
        return_sites: Collection[str] | None = (),
        parallel: bool = False,
        *,
        chunk_size: int | str | None = "auto",
    ) -> None:
        if isinstance(model, LinearizedPredictive):
            raise InvalidOption(
                f"model={type(model).__name__}: it predicts by itself, and .sample(num_samples)(x) draws; the program "
                "to give here is pl.linearize(model, guide)"
            )
        _check_draws(posterior_samples, guide)
        _check(posterior_samples, num_samples, return_sites, chunk_size)
        super().__init__(model, posterior_samples, guide, num_samples, return_sites, parallel)
        self.chunk_size = chunk_size
        self._unvectorised: set[str] = set()
        self._weighed = False

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw from the predictive distribution.

        Args:
            *args: the model's.
            **kwargs: the model's.

        Returns:
            site name to draws `[num_samples, *shape]`, as `pyro.infer.Predictive` gives them: axes of size one align
            sites of fewer plates with those of more.
        """
        batch = Batch(args, kwargs)
        with _untouched(self.model, self.guide), ParamsHeld(own_params(self.model, self.guide)), torch.no_grad():
            self._warn_of_nonlinearity(batch)
            if self.parallel:
                return super().forward(*args, **kwargs)
            draws, sites = self.posterior_samples, self.return_sites
            if self.guide is not None:
                draws, sites = self._guide_draws(batch), self.return_sites or None
            first = _first_draw(draws)
            with told_of_arguments(self.model, batch, values=lambda: first):
                form = Form.of(self.model, batch, first)
            if isinstance(self.guide, AutoLaplace | LaplaceMixture):
                refuse_unsampled(self.guide.latents, form.shapes)
            shapes = form.select(sites, draws)
            values = self._run("model", form, shapes, batch, draws)
            return {name: values[name].reshape(self.num_samples, *shapes[name]).contiguous() for name in shapes}

    def _guide_draws(self, batch: Batch) -> dict[str, Tensor]:
        """Site name to draws `[num_samples, *shape]`."""
        guide: Any = self.guide
        if isinstance(guide, AutoLaplace | LaplaceMixture):
            return guide.sample_posterior(self.num_samples)
        form = Form.of(guide, batch, {})
        return self._run("guide", form, form.shapes, batch, {})

    def _run(
        self, role: str, form: "Form", names: Collection[str], batch: Batch, draws: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The values of the named sites at each draw: vectorised, or with a warning draw by draw."""
        program = getattr(self, role)
        if not names:
            return {}

        def at(row: dict[str, Tensor]) -> dict[str, Tensor]:
            return _values_at(program, batch, row, names)

        if form.draws_outside_torch:
            self._tell(role, "it draws from Python's or NumPy's random numbers, of which vmap knows nothing")
        if role in self._unvectorised:
            return row_by_row(at, draws, self.num_samples)
        chunk_size = form.chunk_size if isinstance(self.chunk_size, str) else self.chunk_size
        return over_rows(at, draws, self.num_samples, chunk_size, on_loop=partial(self._tell, role))

    def _warn_of_nonlinearity(self, batch: Batch) -> None:
        """Warn, once, of a Gauss-Newton posterior whose draws go through a program that is not linear within it."""
        guide: Any = self.guide
        mine = isinstance(guide, AutoLaplace | LaplaceMixture)
        if not mine or self._weighed or isinstance(self.model, LinearizedProgram):
            return
        self._weighed = True
        try:
            with told_of_arguments(self.model, batch, values=guide.median):
                bent = bend_of(self.model, guide, Data(batch, one_batch=True))
        except UnsupportedProgram:  # the model is not the one that the guide was fitted to: nothing can be said
            return
        if bent > settings.linear:
            warnings.warn(
                f"the program is not linear within the posterior (nonlinearity {bent:.2g}), and its draws go through "
                "the nonlinear program, where such a posterior may predict badly. Predict with "
                "pl.linearize(model, guide) in place of the model; for a network, subset='last_layer' does not have "
                "that fault either",
                LaplaceWarning,
                skip_file_prefixes=_INSIDE,
            )

    def _tell(self, role: str, reason: str) -> None:
        """Warn, once, that the model or guide is run draw by draw, and why."""
        if role in self._unvectorised:
            return
        self._unvectorised.add(role)
        warnings.warn(
            f"the {role} is run draw by draw, as slowly as by pyro.infer.Predictive: torch.func.vmap cannot run it "
            f"({reason})",
            LaplaceWarning,
            skip_file_prefixes=_INSIDE,
        )


_INSIDE = tuple(str(Path(file).parent) for file in (__file__, nn.__file__))
"""Where the lines are that a warning does not point to."""


@dataclass(frozen=True)
class Form:
    """What one run of a program shows.

    Attributes:
        shapes: name of a site to the shape of its value with axes of size one for the plates that it is not in;
            latent sites come before observed ones.
        returned: shape of what the program returns, None if that is no tensor.
        chunk_size: draws of one vectorised pass.
        draws_outside_torch: whether it draws from generators that are not torch's.
    """

    shapes: Mapping[str, torch.Size]
    returned: torch.Size | None
    chunk_size: int
    draws_outside_torch: bool

    @staticmethod
    def of(program: Callable[..., Any], batch: Batch, values: Mapping[str, Tensor]) -> "Form":
        """Run a program once, its latent sites at the given values or drawn by itself.

        Args:
            program: a model or guide.
            batch: its arguments.
            values: site name to value.

        Returns:
            what was seen.
        """
        state = RandomState()
        with Widest() as widest, poutine.trace() as tracer, _values_given(values):
            result = program(*batch.args, **batch.kwargs)
        sites: Any = prune_subsample_sites(tracer.trace)
        depth = _plate_depth(tracer.trace)
        shapes = {}
        for name in [*sites.stochastic_nodes, *sites.observation_nodes]:
            node = sites.nodes[name]
            shapes[name] = torch.Size((1,) * (depth - len(node["fn"].batch_shape))) + node["value"].shape
        return Form(
            shapes=shapes,
            returned=result.shape if isinstance(result, Tensor) else None,
            chunk_size=widest.chunk_size,
            draws_outside_torch=not state.is_current_outside_torch(),
        )

    def select(self, return_sites: Collection[str] | None, given: Collection[str]) -> dict[str, torch.Size]:
        """The sites to return, in Pyro's order.

        Args:
            return_sites: those wanted, () for those that are not given, None for all.
            given: names of the sites whose draws are given.

        Returns:
            site name to shape.

        Raises:
            InvalidOption: if one of them does not exist, or the program's result is wanted and is no tensor.
        """
        if return_sites is None:
            return dict(self.shapes)
        if not return_sites:
            return {name: shape for name, shape in self.shapes.items() if name not in given}
        unknown = sorted(set(return_sites) - {*self.shapes, RETURN})
        if unknown:
            raise InvalidOption(f"return_sites: the model has no sites {unknown}; it has {list(self.shapes)}")
        chosen = {name: shape for name, shape in self.shapes.items() if name in return_sites}
        if RETURN not in return_sites:
            return chosen
        if self.returned is None:
            raise InvalidOption(f"return_sites: {RETURN!r} is no tensor; make what you want of it a pyro.deterministic")
        return chosen | {RETURN: self.returned}


class _Conditioned(Messenger):
    """Gives sites their values, and keeps those of all sites."""

    def __init__(self, given: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.given = given
        self.values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.given:
            msg["value"] = _unpadded(self.given[msg["name"]], msg["fn"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            self.values[msg["name"]] = msg["value"]


@contextmanager
def _values_given(values: Mapping[str, Tensor]) -> Iterator[_Conditioned]:
    """Sites at their values, and no density computed, as in Pyro's `Predictive`."""
    with _Conditioned(values) as conditioned, poutine.mask(mask=False):
        yield conditioned


def _values_at(
    program: Callable[..., Any], batch: Batch, values: Mapping[str, Tensor], names: Collection[str]
) -> dict[str, Tensor]:
    """The values of the named sites of one run."""
    with _values_given(values) as run:
        result = program(*batch.args, **batch.kwargs)
    found = {**run.values, RETURN: result}
    missing = [name for name in names if name not in found]
    if missing:
        raise UnsupportedProgram(
            f"the sites {missing} appear on one run of the program and not on the next: its sites must not depend on "
            "what is drawn. return_sites chooses those that always appear"
        )
    return {name: found[name] for name in names}


def _unpadded(value: Tensor, fn: Any) -> Tensor:
    """A draw without the axes of size one that Pyro's `Predictive` puts before it."""
    shape = fn.shape() if hasattr(fn, "shape") else value.shape
    extra = value.dim() - len(shape)
    return value.reshape(shape) if extra > 0 and value.shape == (1,) * extra + shape else value


def _plate_depth(trace: Any) -> int:
    """How many batch axes the plates around any site take."""
    sites = (node for node in trace.nodes.values() if node["type"] == "sample")
    return max((-frame.dim for site in sites for frame in site["cond_indep_stack"] if frame.vectorized), default=0)


def _first_draw(draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[0] for name, value in draws.items()}


@contextmanager
def _untouched(*programs: Any) -> Iterator[None]:
    """Leave the param store, and the buffers and modes of every module that is called, as they are.

    Validation stays as the user has it, so that the first run finds what Pyro's would.
    """
    flags = {name: value for name, value in pyro.settings.get().items() if name.startswith("validate_")}
    with ExitStack() as stack:
        for program in programs:
            stack.enter_context(modules_kept(program))
        stack.enter_context(undisturbed(rng=False))
        stack.enter_context(pyro.settings.context(**flags))
        yield


def _check_draws(samples: Any, guide: Any) -> None:
    """Refuse what holds draws where a mapping of draws, or a program that makes them, is wanted."""
    for option, value, right in (
        ("posterior_samples", samples, samples is None or isinstance(samples, Mapping)),
        ("guide", guide, guide is None or callable(guide)),
    ):
        if not right:
            source = "mcmc.get_samples()" if hasattr(value, "get_samples") else "{site name: draws [num_samples, ...]}"
            raise InvalidOption(
                f"{option}={type(value).__name__}: a guide is a Pyro program, and draws are posterior_samples={source}"
            )


def _check(samples: Mapping[str, Any] | None, num_samples: Any, return_sites: Any, chunk_size: Any) -> None:
    """Refuse what Pyro would stumble over later, or take for something else."""
    for option, value, allowed in (("num_samples", num_samples, (None,)), ("chunk_size", chunk_size, (None, "auto"))):
        positive = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not positive and value not in allowed:
            raise InvalidOption(
                f"{option}={value!r}: give a positive number of draws, or {' or '.join(map(repr, allowed))}"
            )
    if return_sites is not None and not isinstance(return_sites, list | tuple | set):
        raise InvalidOption(f"return_sites={return_sites!r}: give a list, tuple or set of site names, or None for all")
    kinds = {name: type(value).__name__ for name, value in (samples or {}).items() if not isinstance(value, Tensor)}
    if kinds:
        raise InvalidOption(f"posterior_samples: give tensors of draws [num_samples, ...], not {kinds}")
    lengths = {name: len(value) if value.dim() else 0 for name, value in (samples or {}).items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise InvalidOption(
            f"posterior_samples: give the same number of draws [draws, ...] of each site, not {lengths}"
        )
