"""Newton's method for many inner modes at once, on functions whose modes are known."""

import pytest
import torch
from torch.testing import assert_close

from pyro_laplace.inner.newton_rows import Expanded, search_rows

pytestmark = pytest.mark.usefixtures("float64")


class Counted:
    """``sum exp(x - h) - x``, with its mode at h; its value as told errs, and ever higher on the way there."""

    def __init__(self, noise: float, of_gradient: float = 0.0) -> None:
        self.noise, self.of_gradient, self.calls = noise, of_gradient, 0

    def __call__(self, x, h):
        self.calls += 1
        value = ((x - h).exp() - x).sum(-1) + self.noise / (1 + 1e9 * (x - h).abs()).log1p().sum(-1)
        gradient = (x - h).exp() - 1 + self.of_gradient * (1e9 * x).cos()
        return Expanded(value, gradient, torch.diag_embed((x - h).exp()))


@pytest.mark.parametrize("of_gradient", [0.0, 1e-6])
@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-9])
def test_rounding_does_not_hold_a_search_up(noise, of_gradient):
    expand, h = Counted(noise, of_gradient), torch.tensor([[0.0], [0.7], [-1.3]])
    modes = search_rows(expand, torch.linspace(-1.0, 1.5, 9).reshape(3, 3), h, torch.finfo(h.dtype).eps)
    assert bool(modes.found.all())
    assert_close(modes.x, h.expand(3, 3), rtol=0, atol=1e-7 + 10 * of_gradient)
    assert expand.calls <= 12


def test_a_step_too_far_is_damped():
    expand, h = Counted(0.0), torch.tensor([[0.0]])
    modes = search_rows(expand, torch.tensor([[-6.0]]), h, torch.finfo(h.dtype).eps)
    assert bool(modes.found)
    assert_close(modes.x, h, rtol=0, atol=1e-7)
    assert modes.log_det.abs() < 1e-7
