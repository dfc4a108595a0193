"""What can go wrong, by name: every error of the package derives from `LaplaceError`."""


class LaplaceError(Exception):
    """Base class of the package's errors."""


class UnsupportedProgram(LaplaceError, ValueError):
    """The Pyro program contains a construct that no Gaussian in unconstrained space can describe."""


class InvalidData(LaplaceError, TypeError):
    """`data` is neither one batch nor a re-iterable of batches, or holds values that no density is of."""


class InvalidOption(LaplaceError, ValueError):
    """An option has an unknown value, or two options do not go together."""


class NotAMode(LaplaceError, RuntimeError):
    """The point is too far from the posterior mode for a Laplace approximation there."""


class IndefiniteCurvature(LaplaceError, RuntimeError):
    """The posterior precision is not positive definite at the given point."""


class TooLarge(LaplaceError, MemoryError):
    """A block of memory that would not fit was asked for."""


class LaplaceWarning(UserWarning):
    """Something works, but not as well as the caller may think."""


class NotAModeWarning(LaplaceWarning):
    """The point is not a mode; the posterior is still returned."""


def check_option(option: str, value: object, allowed: tuple[object, ...]) -> None:
    """Refuse a value that an option does not take.

    Args:
        option: the option's name as the caller writes it.
        value: what was given.
        allowed: every value the option takes.

    Raises:
        InvalidOption: naming the option, the value and what is possible.
    """
    if not any(value is a or (isinstance(a, str) and value == a) for a in allowed):
        raise InvalidOption(f"{option}={value!r} is not one of {', '.join(map(repr, allowed))}")
