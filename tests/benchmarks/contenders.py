"""Who is timed: `fit_laplace`, laplace-torch with each of its backends, and Pyro's own Laplace approximation.

A contender takes a problem, prepares what a user has before the call, and gives the call to time.
"""

import copy
import warnings
from collections.abc import Callable
from functools import partial

import torch
from problems import NOISE, PRIOR_STD, Problem
from pyro.infer.autoguide import AutoLaplaceApproximation, init_to_value

import pyro_laplace as pl

Call = Callable[[], object]

OURS = "pyro_laplace"
MEMORY_LIMIT = 6 * 2**30
"""Bytes that a contender's largest tensor may take before it is left out."""


def ours(problem: Problem) -> Call:
    """The whole of `fit_laplace` from a given AutoDelta."""
    model, guide = problem.program()
    row = problem.row
    options = {"structure": row.structure, "subset": row.subset}
    data = problem.batches
    return lambda: pl.fit_laplace(model, data, guide, polish=False, on_not_a_mode="ignore", **options)


class Loader(list):
    """Batches with the attribute of a `DataLoader` that laplace-torch reads, and none of its overhead."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.batches)
        self.dataset = range(len(problem.x))


def laplace_torch(problem: Problem, backend: str) -> Call:
    """The whole of the constructor and of `fit`."""
    import laplace
    from laplace.curvature import BackPackGGN, CurvlinopsGGN

    row, net = problem.row, copy.deepcopy(problem.net)
    noise = {} if row.classification else {"sigma_noise": NOISE}

    def call() -> object:
        posterior = laplace.Laplace(
            net,
            "classification" if row.classification else "regression",
            subset_of_weights=row.subset,
            hessian_structure=row.structure,
            prior_precision=PRIOR_STD**-2,
            backend={"curvlinops": CurvlinopsGGN, "backpack": BackPackGGN}[backend],
            **noise,
        )
        posterior.fit(Loader(problem))
        return posterior

    return call


def auto_laplace(problem: Problem) -> Call:
    """`AutoLaplaceApproximation` at the same weights: exact Hessian, dense, one batch."""
    model, _ = problem.program()
    values = {f"net.{name}": value.detach().clone() for name, value in problem.net.named_parameters()}

    def call() -> object:
        guide = AutoLaplaceApproximation(model, init_loc_fn=init_to_value(values=values))
        guide(problem.x, problem.y)
        try:
            return guide.laplace_approximation(problem.x, problem.y)
        except torch.linalg.LinAlgError:  # the weights are no mode: the Hessian is indefinite, and has cost the same
            return None

    return call


CONTENDERS: dict[str, Callable[[Problem], Call]] = {
    OURS: ours,
    "curvlinops": partial(laplace_torch, backend="curvlinops"),
    "backpack": partial(laplace_torch, backend="backpack"),
    "AutoLaplace": auto_laplace,
}


def left_out(name: str, problem: Problem) -> str | None:
    """Why a contender does not run, or None."""
    row, batch = problem.row, min(problem.row.batch, len(problem.x))
    outputs, width = problem.net(problem.x[:2]).shape[-1], problem.num_params
    if name == "AutoLaplace" and (row.structure, row.subset) != ("full", "all"):
        return "dense only"
    if name == "AutoLaplace" and len(problem.x) > 1000:
        return "takes minutes"
    elements = 0
    if name == "curvlinops" and row.structure == "diag":
        elements = batch * outputs * width  # its diagonal is that of a Jacobian
    if name == "backpack":
        elements = batch * outputs**2
        if row.structure == "full" or (row.subset == "last_layer" and row.structure != "kron"):
            elements = max(elements, batch * outputs * width)
    if elements * 4 > MEMORY_LIMIT:
        return f"needs {elements * 4 / 2**30:.0f} GiB"
    return None


def run_quietly(call: Call) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


def marginal_precision(result: object) -> torch.Tensor | None:
    """The diagonal of a contender's precision in float64, to see that they computed the same; None if it is dear."""
    if hasattr(result, "random"):
        prec = result.precision
        return prec.to_dense().diagonal().double() if prec.size <= 4000 else None
    prec = getattr(result, "posterior_precision", None)
    if prec is None:
        return None
    if isinstance(prec, torch.Tensor):
        return (prec.diagonal() if prec.dim() == 2 else prec).detach().double()
    return prec.to_matrix().diagonal().detach().double() if result.n_params <= 4000 else None
