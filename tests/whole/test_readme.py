"""The README's code runs as it stands, and does what the prose says."""

import re
from pathlib import Path

import pytest
import torch

import pyro_laplace as pl

README = Path(__file__).parents[2] / "README.md"


QUICKER = {
    'evidence(bnn, train, structure="kron")': 'evidence(bnn, train, structure="kron", refit=False)',
    "num_steps=1000": "num_steps=200",
    "num_samples=60, warmup_steps=60": "num_samples=20, warmup_steps=20",
}
"""What takes long in the README, and what the test runs in its place: the same calls with less work."""


@pytest.mark.slow
def test_readme_example_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 4
    assert all(any(slow in block for block in blocks) for slow in QUICKER)
    names: dict = {}
    for block in blocks:
        quick = block  # minutes, in CI, as it stands
        for slow, fast in QUICKER.items():
            quick = quick.replace(slow, fast)
        exec(compile(quick, str(README), "exec"), names)
    assert names["guide"].mode.is_mode
    assert names["draws"].shape == (200, 92)
    assert set(names["last"].layout) == {"net.2.weight", "net.2.bias"}
    assert set(names["names"].layout) == {"net.2.weight", "net.2.bias", "sigma"}
    table = names["table"]
    assert {"map", "laplace", "laplace (sampled)", "vi", "nuts"} <= set(table.index)
    assert {"posterior", "log_likelihood", "posterior_predictive"} <= set(names["tree"].children)
    target = names["test"][1]
    error = (names["draws"].mean(0) - target).square().mean()
    assert error < 0.75 * target.var()  # the network explains what a linear fit of these data does, about half
    assert torch.isfinite(names["draws"]).all()
    program, data = names["schools"], (names["standard_error"], names["effect"])
    assert pl.diagnose(program, names["nested"], data).verdict == "trusted"
