"""The page on hierarchies runs and says what comes out."""

import re
from pathlib import Path

import arviz_stats  # noqa: F401 (its import looks at the callers' files, and a page's code has none)
import torch

PAGE = Path(__file__).parents[2] / "docs" / "hierarchies.md"


def test_the_page_on_hierarchies_runs(capsys):
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(compile(block, "docs/hierarchies.md", "exec"), names)
    guide = names["guide"]
    assert guide.hyper == ("tau",)
    assert str(guide.reasons["tau"]) == "sets the curvature of the prior of 'u'"
    assert "TRUSTED" in capsys.readouterr().out
    assert names["draws"]["u"].shape == (1000, 10)
    assert names["rates"].shape == (10,)
    assert bool(((names["rates"] > 0) & (names["rates"] < 1)).all())
    assert names["mcmc"].get_samples()["tau"].shape == (15,)
    assert names["marginal"].failures == 0
    assert names["mode"]["tau"] > 0
    assert names["functions"].shape == (1000, 20)
    assert names["of_network"].layers == ("w1",)
    assert float((names["predicted"].mean - torch.sin(names["x"])).abs().max()) < 0.3
    assert torch.isfinite(guide.hyper_points["tau"]).all()
