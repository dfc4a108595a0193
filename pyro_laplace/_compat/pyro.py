"""The one file that touches what is private to Pyro."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import util
from pyro.infer import MCMC
from pyro.nn.module import PyroModule
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch.distributions import constraints, transform_to
from torch.distributions.constraints import Constraint

from pyro_laplace._compat.compiler import without_compiler
from pyro_laplace._compat.ordered import plain_ordinals
from pyro_laplace._compat.random import RandomState
from pyro_laplace._compat.torch import plain_attention, plain_bags, plain_tables
from pyro_laplace.unwrap import innermost

__all__ = ["mask_of", "name_apart", "site_is_deterministic", "site_is_factor", "site_is_subsample", "undisturbed"]


def site_is_deterministic(msg: Any) -> bool:
    """Whether a sample message comes from `pyro.deterministic`, or says as much, as those of `poutine.reparam` do."""
    if msg["infer"] and msg["infer"].get("_deterministic"):
        return True
    if not msg["is_observed"]:
        return False
    fn = innermost(msg["fn"])
    return isinstance(fn, dist.Delta) and msg["value"] is fn.v


def carries_density(fn: Any) -> bool:
    """Whether the Delta of a deterministic site has a log density, as those of some reparametrisations have."""
    fn = innermost(fn)
    return isinstance(fn, dist.Delta) and bool((torch.as_tensor(fn.log_density) != 0).any())


def is_delta(fn: Any) -> bool:
    """Whether a distribution has all its mass at one value."""
    return isinstance(innermost(fn), dist.Delta)


def scale_and_mask(per_datum: torch.Tensor, scale: Any, mask: Any) -> torch.Tensor:
    """Pyro's own, whose scale may also be a tensor (its signature says float)."""
    return util.scale_and_mask(per_datum, scale, mask)


def param_constraint(msg: Any) -> Constraint:
    """The constraint of a param message: the store's, which the statement that made the param has given it."""
    known = pyro.get_param_store()._constraints
    return known.get(msg["name"]) or msg["kwargs"].get("constraint", constraints.real)


class Enumeration(EnumMessenger):
    """Gives discrete sites all their values at once, along axes to the left of all plates.

    It is entered around a messenger that hides the run from it, and that calls it for the sites to be enumerated.

    Args:
        nesting: number of axes from the right that plates may take.
    """

    def __init__(self, nesting: int) -> None:
        super().__init__(first_available_dim=-1 - nesting)

    def enumerate(self, msg: Any) -> int | None:
        """Before a site has its value: give it all of them if it is marked so.

        Returns:
            the axis of the site's values, from the right; None where it is not enumerated.
        """
        self._pyro_sample(msg)
        return msg["infer"].get("_enumerate_dim")

    def axes(self, msg: Any) -> dict[int, int]:
        """After a site has its value: axis from the right to what identifies the discrete site along it."""
        self._pyro_post_sample(msg)
        return dict(msg["infer"].get("_dim_to_id", {}))


def mask_of(fn: Any) -> bool | torch.Tensor:
    """The mask of a `MaskedDistribution`."""
    return fn._mask


class _Blocks:
    """The blocks of `undisturbed` that the program is inside of.

    Attributes:
        open: their number.
    """

    def __init__(self) -> None:
        self.open = 0


_BLOCKS = _Blocks()


@contextmanager
def undisturbed(rng: bool = True) -> Iterator[RandomState | None]:
    """Run the user's program without leaving a trace of it.

    Validation is off inside (its data-dependent checks cannot run under `torch.func`), and attention and bags of words
    are computed by kernels that can be differentiated forwards and twice; validation flags, the random
    state (if `rng`) and the set of names in the param store are what they were on leaving, exceptions included. Params
    that the program creates live until the outermost such block ends: they cannot be created under `torch.func`.

    Yields:
        the random state on entering, if `rng`.
    """
    if _BLOCKS.open and not rng:  # the outer one sees to everything
        yield None
        return
    store = pyro.get_param_store()
    known = set(store.keys())
    state = RandomState() if rng else None
    _BLOCKS.open += 1
    try:
        with (
            pyro.validation_enabled(False),
            plain_attention(),
            plain_bags(),
            plain_tables(),
            plain_ordinals(),
            without_compiler(),
        ):
            yield state
    finally:
        _BLOCKS.open -= 1
        for name in set(store.keys()) - known if _BLOCKS.open == 0 else ():
            del store[name]
        if state is not None:
            state.restore()


def as_start(value: torch.Tensor) -> torch.Tensor:
    """A copy of a value that Pyro's `InitMessenger` takes for a start, and not for a value that the user fixed."""
    start = value.detach().clone()
    setattr(start, "_pyro_custom_init", False)  # noqa: B010 (no attribute of Tensor)
    return start


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


def share_params(guides: Iterable[Any]) -> str | None:
    """The name that two guides have in common, under which the global param store holds one set of parameters for both.

    Args:
        guides: guides, and whatever else.

    Returns:
        the name, or None if each has its own parameters.
    """
    if pyro.settings.get("module_local_params"):
        return None
    modules = {id(guide): guide for guide in guides if isinstance(guide, PyroModule)}
    names = [module._pyro_name for module in modules.values() if list(module.parameters())]
    return next((name for name in names if names.count(name) > 1), None)


def auxiliary_name(guide: PyroModule, kind: str) -> str:
    """The name of a guide's own auxiliary site, as Pyro's autoguides call theirs."""
    return f"_{guide._pyro_name}_{kind}"


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


def once_per_call(module: PyroModule, name: str, make: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """A tensor that a module makes once in each call of the outermost `PyroModule`, as it does its attributes.

    Args:
        module: the module, inside a call.
        name: of the tensor in the module.
        make: makes the tensor, of its full name.

    Returns:
        the tensor.
    """
    full_name = module._pyro_get_fullname(name)
    value = module._pyro_context.get(full_name)
    if value is None:
        value = make(full_name)
        module._pyro_context.set(full_name, value)
    return value


def in_call(module: PyroModule) -> AbstractContextManager[Any]:
    """The context of a call of the module, in which its statements have their names."""
    return module._pyro_context


def write_param(model: Any, name: str, value: torch.Tensor, constraint: Constraint) -> None:
    """Set a param where the model reads it: in the store, in place, or in the module that it is an attribute of.

    Args:
        model: whose param it is.
        name: its name.
        value: constrained.
        constraint: of a param that there is not yet.
    """
    owner = _owner_of(model, name)
    if owner is not None:
        setattr(*owner, value)
        return
    with _params_of(model) as store, torch.no_grad():
        if name in store:
            unconstrained = store._params[name]
            unconstrained.copy_(transform_to(store._constraints[name]).inv(value.to(unconstrained)))
        else:
            store.setdefault(name, value.detach().clone(), constraint)


def live_param(model: Any, name: str) -> torch.Tensor | None:
    """The constrained value of a param where the model reads it, with the graph that leads to the unconstrained one.

    Args:
        model: whose param it is.
        name: its name.

    Returns:
        the value, or None if nothing holds it yet.
    """
    owner = _owner_of(model, name)
    if owner is not None:
        module, key = owner
        constraint: Constraint = module._pyro_params[key][0]
        return transform_to(constraint)(getattr(module, f"{key}_unconstrained"))
    with _params_of(model) as store:
        return store[name] if name in store else None  # noqa: SIM401 (the store has no get)


def _owner_of(model: Any, name: str) -> tuple[Any, str] | None:
    """The module and attribute of a `PyroParam`, where modules keep their own."""
    if not pyro.settings.get("module_local_params") or not isinstance(model, PyroModule):
        return None
    modules = (module for module in model.modules() if isinstance(module, PyroModule))
    owners = ((module, key) for module in modules for key in vars(module).get("_pyro_params", {}))
    return next(((module, key) for module, key in owners if module._pyro_get_fullname(key) == name), None)


@contextmanager
def _params_of(model: Any) -> Iterator[Any]:
    """The param store as the model sees it: its own, where modules keep theirs."""
    local = pyro.settings.get("module_local_params") and isinstance(model, PyroModule)
    with in_call(model) if local else nullcontext():
        yield pyro.get_param_store()


class StoreState:
    """The param store at the moment of its making."""

    def __init__(self) -> None:
        store = pyro.get_param_store()
        self._values = {name: value.detach().clone() for name, value in store._params.items()}

    def restore(self) -> None:
        """Go back to it, each param in place; those that came since are taken out."""
        store = pyro.get_param_store()
        for name in set(store.keys()) - self._values.keys():
            del store[name]
        with torch.no_grad():
            for name, value in self._values.items():
                if name in store and not torch.equal(store._params[name], value):
                    store._params[name].copy_(value)

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """A block that leaves the store as it was if it raises."""
        try:
            yield
        except BaseException:
            self.restore()
            raise

    def end(self, model: Any, values: Mapping[str, torch.Tensor], constraints: Mapping[str, Constraint]) -> None:
        """Write values where the model reads them, new params with their constraints; of none, go back to what was."""
        if not values:
            self.restore()
        for name, value in values.items():
            write_param(model, name, value, constraints[name])


def forget_gradients(names: Iterable[str]) -> None:
    """Take away what a training has left on params that it did not train."""
    store = pyro.get_param_store()
    for name in names:
        if name in store:
            store._params[name].grad = None


class ParamsHeld(Messenger):
    """Gives `pyro.param` statements values in place of those that the param store has.

    Args:
        values: by name.
    """

    def __init__(self, values: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True
