"""The tutorial's blocks run in their order, and the front page's; what they print is what the pages show."""

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"


def run(page: Path, quicker: dict[str, str]) -> dict:
    names: dict = {}
    text = page.read_text()
    for slow, fast in quicker.items():
        assert slow in text
        text = text.replace(slow, fast)
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, str(page), "exec"), names)
    return names


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = DOCS / "tutorial.md"
    names = run(
        page, {"num_steps=800": "num_steps=150", "num_samples=150, warmup_steps=100": "num_samples=30, warmup_steps=30"}
    )
    (shown,) = re.findall(r"```text\n(.*?)```", page.read_text(), flags=re.DOTALL)
    numbers = re.compile(r"-?[0-9.]+")
    assert numbers.sub("#", shown.strip()) == numbers.sub("#", capsys.readouterr().out.splitlines()[0])
    assert abs(float(names["guide"].median()["slope"]) + 0.8) < 0.2  # the truth, as the page says
    assert names["draws"].shape == (500, 20)
    assert set(names["table"].index) == {"laplace", "vi", "nuts"}
    assert (tmp_path / "posteriors.png").exists()


def test_the_front_page_runs():
    names = run(DOCS / "index.md", {})
    predicted = names["predictive"](torch.cat([torch.zeros(1, 1), names["x"][:1]]))["y"]
    in_the_gap, at_a_datum = predicted.variance
    assert in_the_gap > 2 * at_a_datum
