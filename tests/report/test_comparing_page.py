"""The page on comparing runs, and what it says of its numbers is so."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "comparing.md").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
def test_the_page_on_comparing_runs_and_is_right():
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(compile(block, "docs/comparing.md", "exec"), names)
    table = names["table"]
    told = set(re.findall(r"`([a-z_0-9]+)`", PAGE[PAGE.index("| column |") : PAGE.index("Where a column has no")]))
    assert set(table.columns) - {f"{kind}_{level}" for kind in ("coverage", "width") for level in (50, 95)} <= told
    assert table["elpd_method"].tolist()[1:] == ["approximate_posterior", "approximate_posterior", "psis"]
    assert table.loc["laplace", "distance"] < 0.1 < table.loc["nuts", "ood_auroc"]
    assert math.isnan(table.loc["map", "elpd_loo"])
    exact = torch.stack(names["exact"]).numpy()
    np.testing.assert_allclose(names["closed"].elpd_i.values, exact, rtol=1e-6)
    assert {"predictions", "predictions_constant_data", "unconstrained_posterior"} <= set(names["tree"].children)
    assert names["tree"]["predictions"]["y"].shape == (1, 1000, 30)
    assert "warmup_posterior" in names["chain"].children
    assert np.isfinite(names["after"].elpd)
