"""What the documentation says of the package is so: its examples run, its files and settings exist."""

import math
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

import pyro_laplace as pl
from pyro_laplace.likelihood import FAMILIES
from pyro_laplace.settings import Settings
from pyro_laplace.structure import build

DOCS = Path(__file__).parents[2] / "docs"
PACKAGE = Path(pl.__file__).parent
PAGES = sorted(DOCS.glob("*.md"))
ARCHITECTURE = (DOCS / "architecture.md").read_text()


@pytest.fixture
def families() -> Iterator[None]:
    """What an example registers is taken back."""
    before = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


@pytest.fixture
def example(families) -> dict:
    """The names that the example of a likelihood defines."""
    blocks = re.findall(r"```python\n(.*?)```", ARCHITECTURE, flags=re.DOTALL)
    (code,) = (block for block in blocks if "@register" in block)
    names: dict = {}
    exec(compile(code, "docs/architecture.md", "exec"), names)
    return names


def test_the_example_of_a_likelihood_runs(example):
    guide, x = example["guide"], example["x"]
    assert guide.mode.is_mode
    assert set(guide.layout) == {"slope", "shape"}
    low, high = guide.quantiles([0.001, 0.999])["slope"]
    assert low < 0.5 < high
    assert example["predicted"].mean.shape == x.shape


def test_the_example_of_a_likelihood_has_the_information_of_its_scores(example):
    make, family = example["InverseGaussian"], example["InverseGaussianFamily"]()
    eta = torch.tensor([1.5, 2.0], dtype=torch.float64).log()
    fn = family.distribution(eta, None)
    torch.testing.assert_close(family.link(fn), eta)
    values = fn.expand([400_000]).sample()
    torch.testing.assert_close(values.mean(), fn.mean, rtol=0.01, atol=0)
    torch.testing.assert_close(values.var(), fn.variance, rtol=0.05, atol=0)

    def log_prob(eta, value):
        return make(*eta.exp().unbind(-1), validate_args=False).log_prob(value)

    scores = torch.func.vmap(torch.func.grad(log_prob), (None, 0))(eta, values)
    root = family.fisher_root(eta, fn)
    torch.testing.assert_close(scores.T @ scores / len(scores), root @ root.mT, rtol=0.03, atol=0.02)


def test_the_example_of_a_structure_runs(monkeypatch):
    monkeypatch.setattr(build, "STRUCTURES", dict(build.STRUCTURES))
    blocks = re.findall(r"```python\n(.*?)```", ARCHITECTURE, flags=re.DOTALL)
    (code,) = (block for block in blocks if "STRUCTURES[" in block)
    names: dict = {}
    exec(compile(code, "docs/architecture.md", "exec"), names)
    guide, model, x = names["guide"], names["model"], names["x"]
    variances = guide.precision.variance()
    assert torch.equal(variances, variances[:1].expand_as(variances))
    full = pl.fit_laplace(model, (x, names["y"]), guide.median(), on_not_a_mode="ignore", polish=False)
    curvature = full.precision.to_dense().double() - torch.eye(len(variances))
    torch.testing.assert_close(1 / variances[0].double(), 1 + curvature.trace() / len(variances), rtol=1e-4, atol=0)
    assert names["predicted"].variance.min() > 0.3**2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyro_laplace.LaplaceWarning")  # those that the page speaks of
def test_the_page_on_priors_runs_and_says_what_comes_out():
    page = (DOCS / "choosing-priors.md").read_text()
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "docs/choosing-priors.md", "exec"), names)
    best, apart, relevant = names["best"], names["apart"], names["relevant"]
    assert float(best.hyperparameters["std"]) == pytest.approx(0.18, abs=0.01)
    assert best.log_evidence == pytest.approx(-286.7, abs=0.1)
    assert apart.log_evidence == pytest.approx(best.log_evidence, abs=1e-3)
    assert float(names["slope"]) < -8  # a std of 1 is too large
    assert int((relevant.hyperparameters["stds"] < 0.01).sum()) == 4
    assert relevant.log_evidence > best.log_evidence + 4
    evidence = pl.log_evidence(names["relevance"], relevant, names["train"])
    assert evidence.effective_dim < names["evidence"].effective_dim - 4
    alone, around = names["alone"]["nll"], names["around"]["nll"]
    assert around < alone + 0.02
    misled = pl.LinearizedPredictive(names["classifier"], names["linearized"])
    assert pl.scores(misled, names["unseen"])["nll"] > 2 * alone


def test_the_page_on_verdicts_says_what_comes_out(capsys):
    """All that it prints, but for times and for what rounding decides."""
    page = (DOCS / "verdict.md").read_text()
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "docs/verdict.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    shown = "".join(re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL)).splitlines()
    assert len(printed) == len(shown)
    for line, other in zip(printed, shown, strict=True):
        assert re.sub(r"[-+0-9.,e]+", "#", line).split() == re.sub(r"[-+0-9.,e]+", "#", other).split()
    assert names["draws"].exact


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyro_laplace.LaplaceWarning")  # of draws through the nonlinear network
def test_the_page_on_peers_runs():
    page = (DOCS / "peers.md").read_text()
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "docs/peers.md", "exec"), names)
    table = names["table"]
    assert set(names["posteriors"]) <= set(table.index)
    assert bool(np.isfinite(table["test_lpd"].to_numpy(float)).all())


def test_the_page_on_calibration_runs_and_says_what_comes_out():
    page = (DOCS / "calibration.md").read_text()
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "docs/calibration.md", "exec"), names)
    losses = names["losses"]
    assert losses["map, calibrated"] < losses["map"]
    assert names["predictives"]["map, calibrated"].temperatures["y"] > 1
    assert len(names["figure"].axes) == 2


def test_standard_errors_of_a_lethal_dose():
    """The block of the page, by the gradient written out."""
    page = (DOCS / "programs.md").read_text()
    names: dict = {"torch": torch, "pyro": pyro, "dist": dist, "pl": pl}
    exec(
        compile(
            re.findall(r"```python\n(.*?)```", page[page.index("## Standard errors of") :], re.DOTALL)[0], "", "exec"
        ),
        names,
    )
    guide, a, b = names["guide"], *(names["guide"].median()[name] for name in "ab")
    slope = torch.stack([-1 / b, a / b**2])
    torch.testing.assert_close(names["mean"], -a / b)
    torch.testing.assert_close(names["std"], (slope @ guide.covariance @ slope).sqrt(), rtol=1e-4, atol=1e-6)
    assert float(names["robust"]) > 0


def test_the_five_models_equal_their_oracles():
    """Each block of the page, by closed forms; the regression by scipy's optimum and a Hessian of differences."""
    page = (DOCS / "programs.md").read_text()
    page = page[page.index("## Five models") : page.index("## Standard errors of")]
    names: dict = {"torch": torch, "pyro": pyro, "dist": dist, "poutine": pyro.poutine, "pl": pl}
    guides = []
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "docs/programs.md", "exec"), names)
        guides.append(names["guide"])
    regression, survival, gaps, ordinal, series = guides

    x, y = names["x"].double().numpy(), names["y"].double().numpy()

    def negative(at: np.ndarray) -> float:
        mean, size = np.exp(x @ at[:3]), np.exp(at[3])
        prior = (at[:3] ** 2).sum() / 200 + at[3] ** 2 / 8
        return prior - scipy.stats.nbinom.logpmf(y, size, size / (size + mean)).sum()

    mode = regression.theta.double().numpy()
    eye = 1e-3 * np.eye(4)
    hessian = [
        [
            (negative(mode + a + b) - negative(mode + a - b) - negative(mode - a + b) + negative(mode - a - b))
            for b in eye
        ]
        for a in eye
    ]
    stds = np.sqrt(np.linalg.inv(np.array(hessian) / 4e-6).diagonal())
    assert regression.covariance.diagonal().sqrt().numpy() == pytest.approx(stds, rel=2e-3)

    events = float(names["event"].sum())
    assert float(survival.theta) == pytest.approx(math.log(events / float(names["time"].sum())), abs=1e-3)
    assert float(survival.covariance.sqrt()) == pytest.approx(events**-0.5, rel=1e-3)

    seen, out = ~names["missing"].numpy(), names["outcome"].double().numpy()
    slope, level = np.polyfit(out[seen], names["covariate"].double().numpy()[seen], 1)
    rest = (names["covariate"].double().numpy()[seen] - level - slope * out[seen]).var()
    variance = rest + slope**2 * out.var()
    b, m = slope * out.var() / variance, level + slope * out.mean()
    expected = {"b": b, "a": out.mean() - b * m, "m": m, "t": variance**0.5, "s": (out.var() - b**2 * variance) ** 0.5}
    found = gaps.median()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, abs=0.005)

    below = torch.stack([(names["answer"] <= k).double().mean() for k in (0, 1)])
    drawn = ordinal.sample_posterior(20_000)["cut"].std(0).double()
    torch.testing.assert_close(drawn, (300 * below * (1 - below)).rsqrt(), rtol=0.03, atol=0)

    z = names["series"].double()
    phi = (z[1:] @ z[:-1]) / (z[:-1] @ z[:-1])
    std = ((z[1:] - phi * z[:-1]).square().mean() / (z[:-1] @ z[:-1])).sqrt()
    assert float(series.median()["phi"]) == pytest.approx(float(phi), abs=1e-3)
    assert float(series.covariance[0, 0].sqrt()) == pytest.approx(float(std), rel=1e-2)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_that_is_named_exists(page):
    named = set(re.findall(r"`((?:tests/)?[a-z_]+/(?:[a-z_]+/)*(?:[a-z_]+\.py)?)`", page.read_text()))
    missing = {path for path in named if not (PACKAGE / path).exists() and not (DOCS.parent / path).exists()}
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_setting_that_is_named_exists(page):
    known = {field.name for field in fields(Settings)} | {"using", "Settings", "set"}
    assert set(re.findall(r"(?<!pyro\.)\bsettings\.(\w+)", page.read_text())) <= known


def test_every_page_is_in_the_index():
    index = (DOCS / "index.md").read_text()
    trees = re.findall(r"```{toctree}\n:hidden:\n:caption: [^\n]+\n\n(.*?)```", index, flags=re.DOTALL)
    listed = " ".join(trees).split()
    assert sorted(listed) == sorted({page.stem for page in PAGES} - {"index"} | {"examples/index"})


def test_every_room_has_a_row_in_the_architecture():
    table = ARCHITECTURE[ARCHITECTURE.index("| room |") : ARCHITECTURE.index("## The life of a fit")]
    named = set(re.findall(r"`([a-z_]+)/?`", table))
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} <= named
    assert named - there <= {"__init__", "to_event", "mask", "expand"} | set(pl.__all__)


def test_every_setting_says_why():
    """A docstring below each field, as `docs/api.md` shows it."""
    source = "".join(path.read_text() for path in (PACKAGE / "settings").glob("*.py"))
    silent = [field.name for field in fields(Settings) if not re.search(rf'    {field.name}: .*\n    """\S', source)]
    assert not silent
