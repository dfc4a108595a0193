"""What the gallery makes of a script: its cells as a page, with the figures that are there."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = {p.stem for p in (ROOT / "examples").glob("*.py") if "from _options import" in p.read_text()}
SCRIPT = """# %% [markdown]
# # A title
#
# What it is about,
# in two lines.

# %%
x = 1  # %% is no cell here


# %% [markdown]
# ![What is to be seen](a.png)
#
# And why.
"""


@pytest.fixture
def gallery(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    pytest.importorskip("sphinx")
    import gallery

    yield gallery
    sys.modules.pop("gallery", None)


def test_a_script_is_a_page(gallery, tmp_path):
    assert [cell.is_code for cell in gallery.cells_of(SCRIPT)] == [False, True, False]
    page = gallery.page("some", SCRIPT, tmp_path)
    assert page.startswith("# A title\n\nWhat it is about,\nin two lines.\n")
    assert "```python\nx = 1  # %% is no cell here\n```" in page
    assert "![" not in page
    assert "once `make examples` has run: What is to be seen" in page
    assert "What it prints" not in page


def test_a_script_that_ran_has_its_figures_and_its_words(gallery, tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "printed.txt").write_text("so be it\n")
    page = gallery.page("some", SCRIPT, tmp_path)
    assert "![What is to be seen](some/a.png)" in page
    assert "## What it prints\n\n```text\nso be it\n```" in page
    card = gallery.card("some", SCRIPT, tmp_path)
    assert card.startswith(
        "### [A title](some.md)\n\nWhat it is about, in two lines.\n\n![What is to be seen](some/a.png)"
    )


def test_every_example_is_in_a_group(gallery):
    names = [name for group in gallery.GROUPS.values() for name in group]
    assert sorted(names) == sorted(EXAMPLES)
