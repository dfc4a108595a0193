"""Where the random generators stand."""

import torch
from pyro.util import get_rng_state, set_rng_state


class RandomState:
    """The state of every random generator that Pyro seeds, at the moment of its making."""

    def __init__(self) -> None:
        self._state = get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        """Go back to it."""
        set_rng_state(self._state)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)

    def is_current(self) -> bool:
        """Whether nothing has been drawn since."""
        now = RandomState()
        tensors = zip([self._state["torch"], *self._cuda], [now._state["torch"], *now._cuda], strict=True)
        return all(torch.equal(one, other) for one, other in tensors) and self._is_current_outside_torch(now)

    def is_current_outside_torch(self) -> bool:
        """Whether nothing has been drawn by numpy and Python since."""
        return self._is_current_outside_torch(RandomState())

    def _is_current_outside_torch(self, now: "RandomState") -> bool:
        name, keys, *rest = self._state["numpy"]
        other_name, other_keys, *other_rest = now._state["numpy"]
        same_numpy = (name, *rest) == (other_name, *other_rest) and bool((keys == other_keys).all())
        return same_numpy and self._state["random"] == now._state["random"]
