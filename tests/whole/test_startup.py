"""What a process loads: nothing heavy with the package, and torch's compiler not even in its first fits.

Each test asks a fresh process, as this one has long loaded everything.
"""

import json
import operator
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

HEAVY = ["arviz", "arviz_base", "arviz_stats", "arviz_plots", "pandas", "xarray", "scipy", "matplotlib", "sklearn"]
COMPILER = ["torch._dynamo", "torch._inductor", "sympy"]
TESTS = Path(__file__).parents[1]


def fresh(source: str) -> Any:
    """What a new process prints last, read as JSON."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS / "whole")]), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", source], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


def loaded(names: list[str]) -> list[str]:
    return [name for name in names if name in sys.modules]


def test_importing_it_loads_nothing_that_pyro_has_not():
    new = fresh(
        "import json, sys, pyro; before = set(sys.modules); import pyro_laplace;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    assert "pyro_laplace.posterior.fit" in new
    assert not set(HEAVY + COMPILER) & set(new)


def test_what_is_loaded_late_is_found():
    names = fresh(
        "import json, pyro_laplace as pl; found = [getattr(pl, name).__name__ for name in pl.__all__"
        " if name not in ('settings',)]; import sys; print(json.dumps([found, 'matplotlib' in sys.modules]))"
    )
    assert "pyro_laplace.plots" in names[0]
    assert names[1]


# --- the first fits of a process --------------------------------------------------------------


def first_fits() -> None:
    """In a fresh process: each fit, with what it has loaded."""
    from programs.first_fits import FITS, trained

    warnings.simplefilter("ignore")
    found = {"nothing": loaded(HEAVY + COMPILER)}
    for name, fit in FITS.items():
        fit()
        found[name] = loaded(HEAVY + COMPILER)
    trained()
    print(json.dumps([found, loaded(COMPILER), loaded(HEAVY)]))


@pytest.mark.slow
def test_first_fits_load_no_compiler():
    found, of_training, besides = fresh("from test_startup import first_fits; first_fits()")
    assert len(found) > 10
    assert not {name: names for name, names in found.items() if names}
    assert not of_training
    assert besides == ["scipy"]  # whose L-BFGS searches for large modes


def all_of_the_zoo() -> None:
    from programs.zoo import CANONICAL, OTHERS

    import pyro_laplace as pl

    warnings.simplefilter("ignore")
    found = {}
    for make, curvature in product([*CANONICAL, *OTHERS], ["auto", "ggn"]):
        case = make()
        guide = pl.fit_laplace(case.model, case.data, curvature=curvature, on_not_a_mode="ignore", progress=False)
        guide.median()
        found[f"{make.__name__}, {curvature}"] = loaded(COMPILER)
    print(json.dumps(found))


@pytest.mark.slow
def test_programs_of_all_kinds_load_no_compiler():
    found = fresh("from test_startup import all_of_the_zoo; all_of_the_zoo()")
    assert not {name: names for name, names in found.items() if names}


# --- what stands in for torch's own -----------------------------------------------------------


def forward_mode() -> dict[str, Any]:
    """Arithmetic with constants, whose derivatives are zeros that have only a shape and a dtype."""
    x = torch.tensor([0.3, -1.2, 0.7])
    constants = [2, 2.5, torch.tensor(2.0), torch.tensor(3), torch.tensor(0.5, dtype=torch.float64)]
    constants += [torch.ones(3, dtype=torch.float64), torch.ones(2, 1), torch.tensor([[1], [2]])]
    found = {}
    for op, point, (number, constant) in product(
        (operator.add, operator.sub, operator.mul, operator.truediv), (x, x[0]), enumerate(constants)
    ):
        name = f"{op.__name__}, {point.dim()} dimensions, constant {number}"
        ways = (partial(op, constant), lambda z, op=op, c=constant: op(z, c))
        found[name] = [torch.func.jvp(way, (point,), (torch.ones_like(point),)) for way in ways]
        if point.dim():
            found[name + ", vmap"] = [torch.func.jacfwd(way)(point) for way in ways]
    return found


def derivatives() -> dict[str, Any]:
    x, matrix = torch.tensor([0.3, -1.2, 0.7]), torch.arange(9.0).reshape(3, 3).sin()

    def curve(z):
        return ((matrix @ z).sin() * z).sum() ** 2 + 1.0

    leaf = x.clone().requires_grad_()
    out = matrix @ leaf.sin()
    kept = {"retain_graph": True}
    with torch.no_grad():
        without_grad = torch.func.grad(curve)(x)
    with torch.inference_mode():
        inference = torch.func.grad(curve)(x).clone()
    return {
        "grad": torch.func.grad(curve)(x),
        "grad and value": torch.func.vmap(torch.func.grad_and_value(curve))(torch.stack([x, -x])),
        "grad of a constant": torch.func.grad(lambda z: torch.ones(()))(x),
        "grad of what is unused": torch.func.grad(lambda z, w: z.sum(), argnums=(0, 1))(x, x),
        "grad in no_grad": without_grad,
        "grad in inference_mode": inference,
        "forward over reverse": torch.func.hessian(curve)(x),
        "reverse over reverse": torch.func.jacrev(torch.func.grad(curve))(x),
        "vjp": torch.func.vjp(lambda z: (matrix @ z, z[0]), x)[1]((x, x[1])),
        "autograd": torch.autograd.grad(out, leaf, x, **kept),
        "autograd, batched": torch.autograd.grad(out, leaf, torch.eye(3), is_grads_batched=True, **kept),
    }


def shapes() -> list[torch.Size]:
    cases = [(), ((2, 1), (3,)), ((0,), (1,)), ((), (4, 1), (1, 5)), (torch.Size([2]), torch.Size([]))]
    return [torch.broadcast_shapes(*case) for case in cases]


def errors() -> list[str]:
    """What torch says of what does not fit, which it may load anything for."""
    leaf = torch.ones(3, requires_grad=True)
    calls = [
        lambda: torch.autograd.grad(leaf.sin(), leaf, torch.ones(2)),
        lambda: torch.autograd.grad(leaf.sin(), leaf, torch.ones(2, 2), is_grads_batched=True),
        lambda: torch.autograd.grad(leaf.sin(), leaf, torch.ones(3) + 0j),
        lambda: torch.autograd.grad(leaf.sin(), leaf),
        lambda: torch.broadcast_shapes((2,), (3,)),
    ]
    return [said(call) for call in calls] + [str(torch.broadcast_shapes(3, (2, 1)))]


def said(call: Callable[[], Any]) -> str:
    with pytest.raises(RuntimeError) as error:
        call()
    return str(error.value)


def steps_of(adam: type[torch.optim.Optimizer]) -> list[torch.Tensor]:
    at = torch.tensor([1.0, -2.0], requires_grad=True)
    optim, path = adam([at], lr=0.1), []
    for _ in range(5):
        optim.zero_grad()
        at.square().sum().backward()
        optim.step()
        path.append(at.detach().clone())
    return path


def stand_ins() -> None:
    """In a fresh process: the same without the compiler, and then with it."""
    from pyro_laplace._compat.compiler import Adam, without_compiler

    warnings.simplefilter("ignore")
    with without_compiler():
        own = [forward_mode(), derivatives(), shapes(), steps_of(Adam)]
        assert not loaded(COMPILER)
        told = errors()
    import_module("torch._dynamo")
    assert torch.broadcast_shapes is torch.functional.broadcast_shapes
    theirs = [forward_mode(), derivatives(), shapes(), steps_of(torch.optim.Adam)]
    torch.testing.assert_close(own, theirs, rtol=0, atol=0, equal_nan=True)
    assert told == errors()
    print("true")


def test_what_stands_in_computes_the_same():
    assert fresh("from test_startup import stand_ins; stand_ins()")


def globals_of_torch() -> list[Any]:
    from pyro_laplace._compat.compiler import _STANDING_IN

    return [vars(owner).get(name) for owner, name, _ in _STANDING_IN]


def blocks() -> None:
    from pyro_laplace._compat.compiler import without_compiler

    before = globals_of_torch()
    with without_compiler():
        inside = globals_of_torch()
        with without_compiler():
            assert globals_of_torch() == inside
        assert globals_of_torch() == inside
    assert globals_of_torch() == before
    assert all(one is not other for one, other in zip(before, inside, strict=True))
    with pytest.raises(KeyError), without_compiler():
        raise KeyError
    assert globals_of_torch() == before
    import_module("torch._dynamo")
    before = globals_of_torch()
    with without_compiler():
        assert globals_of_torch() == before
    print("true")


def test_torch_is_left_as_it_was_and_untouched_once_the_compiler_is_there():
    assert fresh("from test_startup import blocks; blocks()")
