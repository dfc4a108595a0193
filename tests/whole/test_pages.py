"""The pages that teach run from their first block to their last, and their tables say what comes out."""

import math
import re
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

import pyro_laplace as pl

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("how-to-choose", "shapes", "limits", "mathematics", "from-pyro", "from-laplaceredux", "from-laplace-torch")


def blocks(page: str) -> list[str]:
    """The Python of a page, in its order."""
    return re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), flags=re.DOTALL)


def rows_of(page: str, header: str) -> list[list[str]]:
    """The cells of the table whose first line begins with `header`."""
    text = (DOCS / f"{page}.md").read_text()
    lines = text[text.index(header) :].splitlines()
    table = lines[: next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (table[0], *table[2:])]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # laplace-torch's
def test_a_page_runs(page):
    if page == "from-laplace-torch":
        pytest.importorskip("laplace")
    names: dict = {}
    for block in blocks(page):
        exec(compile(block, f"docs/{page}.md", "exec"), names)
    assert names


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    """Every `pl.name`, also in tables, where no code runs."""
    for path in set(re.findall(r"\bpl\.([A-Za-z_][\w.]*\w)", (DOCS / f"{page}.md").read_text())):
        found = pl
        for name in path.split("."):
            found = getattr(found, name)


def coin(heads, tosses):
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    pyro.sample("heads", dist.Binomial(tosses, p), obs=heads)


def test_the_errors_of_the_evidence_of_coins():
    tosses, errors = rows_of("limits", "| tosses, four fifths")
    for number, error in zip(tosses[1:], errors[1:], strict=True):
        count = float(number.replace(",", ""))
        data = (torch.tensor(float(round(0.8 * count))), torch.tensor(count))
        found = pl.fit_laplace(coin, data, progress=False).log_evidence + math.log(count + 1)
        assert found == pytest.approx(float(error), abs=0.0006)


def test_the_table_of_skewed_posteriors():
    """In closed form, either: the Gaussian in the logarithm, and the Gamma posterior."""
    for y, laplace, exact, _ in rows_of("limits", "| y | 5%")[1:]:
        a, levels = float(y) + 0.5, [0.05, 0.5, 0.95]
        gamma = scipy.stats.gamma(a, scale=1 / 1.01).ppf(levels)
        gauss = [a / 1.01 * math.exp(z * a**-0.5) for z in scipy.stats.norm.ppf(levels)]
        for shown, expected in ((laplace, gauss), (exact, gamma)):
            assert [float(number) for number in shown.split(",")] == pytest.approx(list(expected), rel=0.06)


def test_the_copies_of_a_network():
    units, nats = rows_of("limits", "| tanh units")
    for count, shown in zip(units[1:], nats[1:], strict=True):
        copies = int(count) * math.log(2) + math.lgamma(int(count) + 1)
        assert float(shown) == pytest.approx(copies, abs=0.06)
