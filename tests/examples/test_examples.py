"""The examples run as they stand, without a warning, make the figures that their text shows, and show what it says."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if "from _options import" in path.read_text())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict]:
    """Runs an example quickly; its figures come into `tmp_path`."""

    def runs(name: str) -> dict:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--out", str(tmp_path)])
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.delitem(sys.modules, "_options", raising=False)
        with mpl.rc_context():
            names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
            plt.close("all")
        sys.modules.pop("_options", None)
        return names

    return runs


def figures_that_are_shown(name: str) -> set[str]:
    return set(re.findall(r"^# !\[[^]]{20,}\]\(([\w.]+\.png)\)$", (EXAMPLES / f"{name}.py").read_text(), re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "source_figures"])
def test_an_example_makes_the_figures_that_it_shows(name, run, tmp_path):
    run(name)
    made = {path.name for path in tmp_path.glob("*.png")}
    assert made == figures_that_are_shown(name)
    assert made


def from_half(probs: torch.Tensor) -> torch.Tensor:
    return (probs.detach() - 0.5).abs()


@pytest.mark.slow
def test_the_figures_of_the_source_show_what_they_show_there(run, tmp_path):
    names = run("source_figures")
    assert {path.name for path in tmp_path.glob("*.png")} == figures_that_are_shown("source_figures")

    # Figure 1: rays along the boundary, at a constant distance from it, out of either cloud.
    plugin, laplace, at = names["plugin_1"], names["laplace_1"], names["guide"].median()
    normal = at["weight"] / at["weight"].norm()
    along = torch.stack([-normal[1], normal[0]])
    x, y = names["x"], names["y"]
    for label in (0, 1):
        for direction in (-along, along):
            ray = x[y == label].mean(0) + torch.linspace(0, 60, 13)[:, None] * direction
            assert from_half(plugin(ray)).std() < 1e-3  # as sure at the far end as among the data
            sure = from_half(laplace(ray))
            assert (sure.diff() < 0).all()
            assert sure[0] > 0.25
            assert sure[-1] < 0.1
    both = torch.cartesian_prod(torch.linspace(-8, 8, 41), torch.linspace(-8, 8, 41))
    assert torch.equal(plugin(both) > 0.5, laplace(both) > 0.5)  # the same boundary
    assert (from_half(laplace(both)) <= from_half(plugin(both))).all()

    # Figures 2 and 3: rays out of the middle of each quadrant's points, which the net classifies.
    plugin, laplace = names["plugin_2"], names["laplace_2"]
    x, y = names["x_2"], names["y_2"]
    assert (((plugin(x) > 0.5) == (y > 0.5)).float().mean()) > 0.95
    around = torch.linspace(0, 2 * torch.pi, 73)[:-1]
    far = 50 * torch.stack([around.cos(), around.sin()], -1)
    near = 3.5 * torch.stack([around.cos(), around.sin()], -1)
    sure = from_half(plugin(far)) > 0.4  # wedges without a single datum, broader as training goes on
    assert sure.sum() >= 4
    assert from_half(plugin(far))[sure].mean() > 0.95 * from_half(plugin(near))[sure].mean()
    assert from_half(laplace(far))[sure].mean() < from_half(laplace(near))[sure].mean()
    assert from_half(laplace(far)).max() < 0.45
    assert (from_half(laplace(far)) <= from_half(plugin(far)) + 1e-6).all()
