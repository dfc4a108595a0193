"""A network whose parameters are drawn from priors each time it is called."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.func import functional_call

from pyro_laplace._compat.pyro import in_call, once_per_call
from pyro_laplace._compat.torch import own_children, plain_layers, renew_flat_weights
from pyro_laplace._errors import InvalidData, UnsupportedProgram
from pyro_laplace.nn.likelihoods import Likelihood, Regression, masked, observation
from pyro_laplace.nn.output import Pick, described, pick
from pyro_laplace.nn.priors import Prior
from pyro_laplace.nn.scale import Learned, scale_value
from pyro_laplace.nn.signature import Signature
from pyro_laplace.nn.target import Target


class BayesianNetwork(PyroModule):
    """A network with priors on its parameters; a call draws them, and returns the network's output.

    It holds the network as a plain module, whose own parameters are the start of the mode, and calls it with drawn
    values in their place. A parameter that several layers share is one site.

    Args:
        module: the network; the caller gives it away.
        priors: name of a parameter to its prior, in the order of the sites.
        trained: names of parameters without a prior that are ``pyro.param`` statements; all others are constants.
        name: prefix of the sites, of a network that is not itself part of a `PyroModule`.
        output: what of the network's output is returned.
    """

    def __init__(
        self,
        module: nn.Module,
        priors: Mapping[str, Prior],
        trained: Iterable[str] = (),
        name: str = "",
        output: Pick = None,
    ) -> None:
        super().__init__(name)
        self.output = output
        self.module = module
        self.priors = dict(priors)
        self.trained = tuple(trained)
        self.scales = nn.ParameterList()
        for parameter_name, parameter in module.named_parameters():
            parameter.requires_grad_(parameter_name in self.trained)
        for layer in module.modules():
            if isinstance(layer, nn.RNNBase):
                layer.register_forward_pre_hook(_renew_flat_weights)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Draw the parameters, and call the network.

        Args:
            *args: the network's.
            **kwargs: the network's.

        Returns:
            the network's output, or the part of it that is predicted.
        """
        network = self._network
        try:
            with plain_layers(), _told_of_packing(network):
                return pick(functional_call(network, self.draw(), args, kwargs), self.output)
        finally:
            for layer in network.modules():
                _renew_flat_weights(layer)

    @property
    def fixed(self) -> frozenset[str]:
        """Names of the network's parameters that are neither random nor trained."""
        return frozenset(dict(self._network.named_parameters()).keys() - {*self.priors, *self.trained})

    def draw(self) -> dict[str, Tensor]:
        """The parameters that have a prior or are trained, by name; drawn once in a call of the model."""
        parameters = dict(self._network.named_parameters())

        def sample(name: str, site: str) -> Tensor:
            layer, _, attribute = name.rpartition(".")
            target = Target(site, parameters[name], self._network.get_submodule(layer), attribute)
            value = self.priors[name].sample(target)
            if value.shape != target.parameter.shape:
                raise UnsupportedProgram(
                    f"the value of {site!r} has shape {list(value.shape)}, and the parameter "
                    f"{list(target.parameter.shape)}: if the network is called inside a plate, move the call out of it"
                )
            return value

        def param(name: str, site: str) -> Tensor:
            return pyro.param(site, parameters[name])

        random = {name: once_per_call(self, name, partial(sample, name)) for name in self.priors}
        fitted = {name: once_per_call(self, name, partial(param, name)) for name in self.trained}
        self._hold_scales()
        return random | fitted

    def _hold_scales(self) -> None:
        """In Pyro's local mode, keep the learned scales that this call has put into the outermost module's own store.

        Pyro raises at the end of a call that leaves there what is no module's parameter.
        """
        if not pyro.settings.get("module_local_params"):
            return
        found = [
            each for each in pyro.get_param_store().get_state()["params"].values() if isinstance(each, nn.Parameter)
        ]
        if [id(each) for each in found] != [id(each) for each in self._child("scales").parameters()]:
            self.scales = nn.ParameterList(found)

    @property
    def _network(self) -> nn.Module:
        return self._child("module")

    def _child(self, name: str) -> nn.Module:
        """A module of this one, without the param statements that `PyroModule` makes of reading it."""
        child = own_children(self)[name]
        assert child is not None
        return child


_NO_STORAGE = "Cannot access data pointer of Tensor that doesn't have storage"
"""What torch says of a packed sequence in a recurrent layer under `torch.func`: its kernel reads sizes from memory."""


class PackedSequence(UnsupportedProgram, RuntimeError):
    """A packed sequence where `torch.func` is needed; a RuntimeError too, for what has another way to go."""

    def __init__(self) -> None:
        super().__init__(
            "the network packs its sequences, and torch cannot take such a recurrent layer's derivatives by "
            "torch.func, which is needed where not all uses of its weights are seen: the last state of a packed "
            "sequence, say. Give the layer the padded sequence, and take the output at each one's last step, "
            "out[torch.arange(len(out)), lengths - 1], which is the same; or use subset='last_layer'"
        )


@contextmanager
def _told_of_packing(network: nn.Module) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        recurrent = any(isinstance(layer, nn.RNNBase) for layer in network.modules())
        if recurrent and ("_pack_padded_sequence" in str(error) or _NO_STORAGE in str(error)):
            raise PackedSequence from None
        raise


class NetworkProgram(BayesianNetwork):
    """A network and a likelihood: the program ``model(x, y=None)``, or ``model(**batch)`` of a batch by name.

    The observed site is ``y``, in the plate ``data``, one element for each row of the network's output.

    Args:
        module: the network; the caller gives it away.
        priors: name of a parameter to its prior.
        likelihood: makes the distribution of y of the network's output.
        trained: names of parameters without a prior that are trained.
        name: prefix of the sites of the network's parameters.
        output: what of the network's output the likelihood is given.
        target: the name of y in a batch.
        mask: the name of what in a batch says which positions count.
    """

    def __init__(
        self,
        module: nn.Module,
        priors: Mapping[str, Prior],
        likelihood: Likelihood,
        trained: Iterable[str] = (),
        name: str = "",
        output: Pick = None,
        target: str = "y",
        mask: str | None = None,
    ) -> None:
        signature = Signature.of(module, likelihood, target, mask)
        super().__init__(module, priors, trained, name, output)
        self.likelihood = likelihood
        self.signature = signature

    @property
    def observed_entries(self) -> Mapping[str, str]:
        """The observed site, and what its values are called in a batch."""
        return {"y": self.signature.target}

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the program.

        Args:
            *args: the network's inputs that have no default (or its first), y (None draws it), and what the likelihood
                takes after the network's output (the exposure of counts).
            **kwargs: the same by name; y under that of `target`.

        Returns:
            y.

        Raises:
            UnsupportedProgram: if the likelihood gives no distribution with an axis for the data.
            InvalidData: if the shape of y is not its distribution's, or a name is nobody's.
        """
        call = self.signature.split(args, kwargs)
        output = super().forward(*call.args, **call.kwargs)
        fn = self.likelihood(output, *call.likelihood_args, **call.likelihood_kwargs)
        self._hold_scales()
        batch_shape = getattr(fn, "batch_shape", None)
        if not batch_shape:
            raise UnsupportedProgram(
                f"the likelihood gave {fn!r} for an output that is {described(output)}: let it give a distribution "
                "whose first batch axis is the data's, one element for each row of the network's output"
            )
        y = call.y
        if y is not None:
            observed = observation(fn, y)
            if observed is None:
                raise InvalidData(
                    f"{self.signature.target} has shape {list(y.shape)}, and its distribution {list(fn.shape())}, from "
                    f"a network output that is {described(output)}: the network needs as many outputs as "
                    f"{type(self.likelihood).__name__} wants"
                )
            y = observed
        fn, y = masked(fn, y, call.mask, getattr(self.likelihood, "ignore_index", None))
        fn = fn.to_event(len(batch_shape) - 1)
        with pyro.plate("data", batch_shape[0]):
            return pyro.sample("y", fn, obs=y)


def run_priors(network: BayesianNetwork) -> dict[str, Tensor]:
    """The network's parameters drawn alone, for a check of the priors; a learned noise is made as well."""
    with in_call(network):
        values = network.draw()
        likelihood = network.likelihood if isinstance(network, NetworkProgram) else None
        if isinstance(likelihood, Regression) and isinstance(likelihood.noise, Learned):
            scale_value("noise", likelihood.noise, next(iter(values.values())))
            network._hold_scales()
        return values


def _renew_flat_weights(layer: nn.Module, *_: Any) -> None:
    if isinstance(layer, nn.RNNBase):
        renew_flat_weights(layer)
