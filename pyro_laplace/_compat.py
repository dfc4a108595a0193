"""The one file that touches private names of Pyro's."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import util
from pyro.infer import MCMC
from pyro.nn.module import PyroModule
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_factor, site_is_subsample
from pyro.util import get_rng_state, set_rng_state
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["mask_of", "name_apart", "site_is_deterministic", "site_is_factor", "site_is_subsample", "undisturbed"]

LinAlgError = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage] (documented as public)


def site_is_deterministic(msg: Any) -> bool:
    """Whether a sample message comes from `pyro.deterministic`."""
    return bool(msg["infer"] and msg["infer"].get("_deterministic"))


def scale_and_mask(per_datum: torch.Tensor, scale: Any, mask: Any) -> torch.Tensor:
    """Pyro's own, whose scale may also be a tensor (its signature says float)."""
    return util.scale_and_mask(per_datum, scale, mask)


def mask_of(fn: Any) -> bool | torch.Tensor:
    """The mask of a `MaskedDistribution`."""
    return fn._mask


_depth = 0


@contextmanager
def undisturbed(rng: bool = True) -> Iterator[None]:
    """Run the user's program without leaving a trace of it.

    Validation is off inside (its data-dependent checks cannot run under `torch.func`), and attention is computed by the
    one kernel that can be differentiated forwards and twice; validation flags, the random
    state (if `rng`) and the set of names in the param store are what they were on leaving, exceptions included. Params
    that the program creates live until the outermost such block ends: they cannot be created under `torch.func`.
    """
    global _depth
    store = pyro.get_param_store()
    known = set(store.keys())
    state = get_rng_state() if rng else None
    cuda = torch.cuda.get_rng_state_all() if rng and torch.cuda.is_initialized() else None
    _depth += 1
    try:
        with pyro.validation_enabled(False), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _depth -= 1
        for name in set(store.keys()) - known if _depth == 0 else ():
            del store[name]
        if state is not None:
            set_rng_state(state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def name_apart(guide: PyroModule) -> None:
    """Give a guide a name under which the global param store holds nothing yet.

    Two guides of one class otherwise share their parameters, and the second fit overwrites the first.
    """
    store = pyro.get_param_store()
    base, name, count = guide._pyro_name, guide._pyro_name, 1
    while any(key.startswith(f"{name}.") or key.startswith(f"{name}$$$") for key in store):
        count += 1
        name = f"{base}_{count}"
    guide._pyro_set_supermodule(name, guide._pyro_context)


def stripped_trace(latents: list[Any], theta: torch.Tensor) -> Trace:
    """A prototype trace with nothing in it but what `AutoContinuous` reads: supports, shapes and plates.

    A trace made by running the model keeps its arguments, the training data.

    Args:
        latents: the `Latent` sites.
        theta: all of theta.

    Returns:
        one node for each of the sites, with its value at theta.
    """
    trace = Trace()
    for latent in latents:
        trace.add_node(
            latent.name,
            type="sample",
            name=latent.name,
            fn=dist.ImproperUniform(latent.support, latent.batch_shape, latent.event_shape),
            value=latent.constrain(theta[latent.slice]),
            is_observed=False,
            infer={},
            scale=1.0,
            mask=None,
            cond_indep_stack=latent.frames,
        )
    return trace


def prototype_frames(latents: Iterable[Any]) -> dict[str, Any]:
    """The plates that a guide over these latent sites makes anew, by name."""
    return {frame.name: frame for latent in latents for frame in latent.frames}


def chains_in_turn(kernel: Any, initial_params: dict[str, torch.Tensor], **options: Any) -> MCMC:
    """An `MCMC` whose chains run one after the other in this process, however many cores there are.

    Pyro runs them in processes of their own where there are cores enough. A closure cannot be pickled for these, and
    after torch has started threads a fork is not safe.

    Args:
        kernel: the kernel.
        initial_params: site name to unconstrained values, `[chains, *unconstrained_shape]`.
        **options: of `MCMC`.

    Returns:
        the `MCMC`, to be run.
    """
    num_chains = len(next(iter(initial_params.values())))
    mcmc = MCMC(kernel, initial_params={name: value[0] for name, value in initial_params.items()}, **options)
    mcmc.num_chains = mcmc.sampler.num_chains = num_chains
    mcmc.sampler.initial_params = initial_params
    mcmc._diagnostics = [None] * num_chains
    return mcmc
