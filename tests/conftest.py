"""What holds for every test: a clean Pyro, a fixed seed, and nothing global left behind."""

from collections.abc import Iterator
from random import Random
from zlib import crc32

import jaxtyping
import pyro
import pytest
import torch
from beartype._check.code import codemain
from hypothesis import HealthCheck, settings
from pyro.poutine import runtime
from torch.overrides import _get_current_function_mode_stack

pytest.register_assert_rewrite("oracles.predictions")

# The tests' tensors are small, and pytest-xdist brings a process for each core.
torch.set_num_threads(1)

# Of a list beartype checks an entry at random, and this package sees where a program draws from Python's generator.
codemain.getrandbits = Random(0).getrandbits

settings.register_profile(
    "pyro_laplace",
    deadline=None,
    derandomize=True,
    max_examples=20,
    # The fixtures below guard a test as a whole; its examples clear the param store themselves.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("pyro_laplace")

TYPED = 3
"""One test in so many checks the types of what it calls: in all of them the checks take half of the run's time."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--types all` checks types in every test."""
    parser.addoption("--types", choices=("sampled", "all"), default="sampled")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Switch the checks of types by the test's name, so that a test behaves alike wherever it runs."""
    checked = item.config.getoption("--types") == "all" or crc32(item.nodeid.encode()) % TYPED == 0
    jaxtyping.config.update("jaxtyping_disable", not checked)


def global_state() -> dict:
    """What a library must not leave changed. Pyro's settings hold Pyro's and torch's validation flags."""
    return pyro.settings.get() | {
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "Pyro handlers": list(runtime._PYRO_STACK),
        "torch function modes": _get_current_function_mode_stack(),
    }


@pytest.fixture(autouse=True)
def hermetic() -> Iterator[None]:
    """Fail a test that leaks a global, and put the global back for the next."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    before = global_state()
    yield
    after = global_state()
    pyro.clear_param_store()
    pyro.settings.set(**{name: before[name] for name in pyro.settings.get()})
    torch.set_default_dtype(before["default dtype"])
    torch.set_grad_enabled(before["grad mode"])
    runtime._PYRO_STACK[:] = before["Pyro handlers"]
    leaked = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    if leaked:
        pytest.fail(f"the test left globals changed, {{name: (before, after)}} = {leaked}")


@pytest.fixture
def float64(hermetic: None) -> Iterator[None]:
    """Double precision by default; after the test, single again."""
    torch.set_default_dtype(torch.float64)
    yield
    left = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    assert left == torch.float64, f"the test left the default dtype at {left}"


@pytest.fixture(params=[False, True], ids=["global_params", "local_params"])
def param_mode(request: pytest.FixtureRequest, hermetic: None) -> Iterator[bool]:
    """Both of Pyro's modes: parameters in the global store, and in their modules."""
    with pyro.settings.context(module_local_params=request.param):
        yield request.param
