"""What a network's forward takes, and which of a call's arguments are its inputs, the data, or the likelihood's."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from pyro_laplace._errors import InvalidData, InvalidOption

_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a network's program, by whom they are for.

    Attributes:
        args: the network's, by position.
        kwargs: the network's, by name.
        y: the data; None where they are to be drawn.
        mask: which positions count; None: all.
        likelihood_args: the likelihood's after the output, by position.
        likelihood_kwargs: the likelihood's, by name.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    y: Any
    mask: Any
    likelihood_args: tuple[Any, ...] = ()
    likelihood_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Signature:
    """The names that a network's program is called with.

    Attributes:
        positional: names that the network takes by position, in order.
        names: all that it takes, in order.
        required: those without a default.
        any_position: whether it takes ``*args``.
        any_name: whether it takes ``**kwargs``.
        takes_mapping: whether its only argument is annotated as a mapping: a batch's names are then keys of it.
        of_likelihood: names that the likelihood takes after the output.
        likelihood_takes_args: how many of them by position.
        target: the name of y.
        mask: the name of what says which positions count, or None.
    """

    positional: tuple[str, ...]
    names: tuple[str, ...]
    required: tuple[str, ...]
    any_position: bool
    any_name: bool
    takes_mapping: bool
    of_likelihood: tuple[str, ...]
    likelihood_takes_args: int
    target: str
    mask: str | None

    @staticmethod
    def of(module: nn.Module, likelihood: Callable[..., Any], target: str, mask: str | None) -> "Signature":
        """Read it off a network's forward and a likelihood.

        Args:
            module: the network.
            likelihood: a function of its output, and of more.
            target: the name of y in a batch.
            mask: the name of what says which positions count.

        Returns:
            the signature.

        Raises:
            InvalidOption: if `target` or `mask` is no name, or both are one.
        """
        for option, name in (("target", target), ("mask", mask)):
            if not (isinstance(name, str) and name) and not (option == "mask" and name is None):
                raise InvalidOption(f"{option}={name!r} is not the name of an entry of a batch, such as {option}='y'")
        if mask == target:
            raise InvalidOption(f"mask={mask!r} is the name of y too: which positions count is an entry of its own")
        parameters = _parameters(module.forward)
        named = [each for each in parameters if each.kind in _NAMED and each.name != target]
        kinds = {each.kind for each in parameters}
        extra = [each for each in _parameters(likelihood)[1:] if each.kind in _NAMED]
        by_position = [each for each in extra if each.kind is not inspect.Parameter.KEYWORD_ONLY]
        some = inspect.Parameter.VAR_POSITIONAL in {each.kind for each in _parameters(likelihood)}
        return Signature(
            positional=tuple(each.name for each in named if each.kind is not inspect.Parameter.KEYWORD_ONLY),
            names=tuple(each.name for each in named),
            required=tuple(each.name for each in named if each.default is inspect.Parameter.empty),
            any_position=inspect.Parameter.VAR_POSITIONAL in kinds,
            any_name=inspect.Parameter.VAR_KEYWORD in kinds,
            takes_mapping=len(named) == 1 and _is_mapping(named[0].annotation),
            of_likelihood=tuple(each.name for each in extra),
            likelihood_takes_args=2**31 if some else len(by_position),
            target=target,
            mask=mask,
        )

    def split(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Divide the arguments of a call.

        By position come the inputs without a default (at least one input), y, and what the likelihood takes. By name
        they come in any order. A mapping in the inputs' place is a batch by name, where its keys are the network's.

        Args:
            args: by position.
            kwargs: by name.

        Returns:
            the arguments by whom they are for.

        Raises:
            InvalidData: for a name that nobody takes, an input that is missing, or one that is given twice.
        """
        if args and self._is_batch(args[0]):
            kwargs, args = {**args[0], **kwargs}, (None, *args[1:]) if self.takes_mapping else args[1:]
            inputs, given, args = self._by_name(kwargs), kwargs, args[1:] if self.takes_mapping else args
            count = 0
        else:
            inputs, given = self._by_name(kwargs), kwargs
            count = min(len(args), self._open(inputs))
        places = [name for name in (self.required or self.names[:1]) if name not in inputs][:count]
        positional = args[:count]
        if len(places) == count:
            inputs, positional = {**dict(zip(places, positional, strict=True)), **inputs}, ()
        y, rest = self._data(args[count:], given)
        self._refuse_missing(inputs, positional, given)
        if self.takes_mapping and not positional and self.names[0] not in inputs:
            positional, inputs = (inputs,), {}
        leading = []
        for name in () if positional else self.positional:
            if name not in inputs:
                break
            leading.append(inputs.pop(name))
        known = {name: given[name] for name in self.of_likelihood if name in given and name not in self.names}
        return Call((*positional, *leading), inputs, y, given.get(self.mask) if self.mask else None, rest, known)

    def _is_batch(self, first: Any) -> bool:
        """Whether what stands in the first input's place holds the inputs by name."""
        if not isinstance(first, Mapping):
            return False
        if self.takes_mapping:
            return True
        own = [name for name in first if name not in (self.target, self.mask) and name not in self.of_likelihood]
        several = len(self.names) > 1 or not self.positional
        return several and bool(own) and (self.any_name or all(name in self.names for name in own))

    def _open(self, inputs: Mapping[str, Any]) -> int:
        """How many inputs are to come by position."""
        if not self.names:
            return 1
        wanted = self.required or self.names[:1]
        return len([name for name in wanted if name not in inputs])

    def _by_name(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The network's inputs among arguments that come by name."""
        inputs = {}
        for name, value in kwargs.items():
            if name in self.names:
                inputs[name] = value
            elif name in (self.target, self.mask) or name in self.of_likelihood:
                continue
            elif name == "x" and self.names and self.names[0] not in kwargs and not self.takes_mapping:
                inputs[self.names[0]] = value
            elif self.any_name or self.takes_mapping:
                inputs[name] = value
            else:
                raise InvalidData(f"{self._said(kwargs)}: it takes no {name!r}. {_RENAME}")
        return inputs

    def _data(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...]]:
        """y, and what the likelihood is given by position."""
        if self.target in kwargs:
            if args and args[0] is not None:
                raise InvalidData(f"{self._said(kwargs)}: {self.target!r}, the data, is there by position too")
            return kwargs[self.target], args[1:]
        if len(args) > 1 + self.likelihood_takes_args:
            raise InvalidData(
                f"{self._said(kwargs)}, and {len(args)} arguments by position after the inputs: after these come y"
                f"{' and ' + ', '.join(self.of_likelihood) if self.of_likelihood else ', and nothing else'}. Give an "
                "input that has a default by its name, in a dict"
            )
        return (args[0], args[1:]) if args else (None, ())

    def _refuse_missing(self, inputs: Mapping[str, Any], positional: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        missing = [] if positional or self.takes_mapping else [name for name in self.required if name not in inputs]
        if missing:
            raise InvalidData(f"{self._said(given)}: it needs {_quoted(missing)}. {_RENAME}")

    def _said(self, given: Mapping[str, Any]) -> str:
        takes = f"the network's forward takes {_quoted(self.names) or 'no names'}"
        likelihoods = [name for name in self.of_likelihood if name not in self.names]
        beside = [*([self.mask] if self.mask and self.mask not in self.names else ()), *likelihoods]
        return (
            f"{takes}{' and others' if self.any_name else ''} (beside {_quoted([self.target, *beside])}), and is given "
            f"{_quoted(list(given)) or 'nothing'} by name"
        )


_RENAME = (
    "Rename or leave out entries where batches are made (collate_fn); target= of bayesianize names the data among them"
)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Of a function; of one that does not say, any."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return [inspect.Parameter(name, kind) for name, kind in zip(("args", "kwargs"), kinds, strict=True)]


def _is_mapping(annotation: Any) -> bool:
    kind = getattr(annotation, "__origin__", annotation)
    return isinstance(kind, type) and issubclass(kind, Mapping)


def _quoted(names: Any) -> str:
    return ", ".join(map(repr, names))
