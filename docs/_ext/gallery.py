"""Pages of the examples, from the scripts themselves and from what `make examples` left of their runs.

A script in percent format has cells: Markdown behind ``# %% [markdown]``, code behind ``# %%``. Its page has the same,
and what it printed at the end. Figures are PNGs that the script writes, and that its Markdown shows as ``![alternative
text](name.png)``. Where the script was not run, its page says so in place of the figures.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "docs" / "_build" / "examples"
PAGES = ROOT / "docs" / "examples"
IMAGE = re.compile(r"!\[([^\]]+)\]\(([\w.-]+\.png)\)")

GROUPS = {
    "Learn": ["source_figures", "regression_gap", "counts", "learned_priors"],
    "Networks": ["digits_ood", "continual", "bayesian_optimisation"],
    "Whether it is right": ["hierarchy", "diagnose_wrong"],
}
"""The examples, as the page that lists them has them."""


@dataclass(frozen=True)
class Cell:
    """A cell of a script: text in Markdown, or code."""

    text: str
    is_code: bool


def cells_of(script: str) -> list[Cell]:
    """The cells of a script in percent format."""
    parts = re.split(r"^# %%(.*)\n", script, flags=re.MULTILINE)[1:]
    found = []
    for kind, body in zip(parts[::2], parts[1::2], strict=True):
        if "[markdown]" in kind:
            found.append(Cell("\n".join(re.sub(r"^# ?", "", line) for line in body.strip().splitlines()), False))
        elif body.strip():
            found.append(Cell(body.strip("\n"), True))
    return found


def one_line(text: str) -> str:
    """A text that may go over several lines."""
    return " ".join(text.split())


def title_of(cells: list[Cell]) -> str:
    """The first line, without its mark."""
    return cells[0].text.splitlines()[0].lstrip("# ")


def first_paragraph(cells: list[Cell]) -> str:
    """What the example is about."""
    return cells[0].text.split("\n\n")[1].replace("\n", " ")


def page(name: str, script: str, run: Path) -> str:
    """The page of an example.

    Args:
        name: of the script.
        script: its text.
        run: the folder of its run, which need not be there.

    Returns:
        Markdown.
    """

    def shown(match: re.Match[str]) -> str:
        if (run / match[2]).exists():
            return f"![{one_line(match[1])}]({name}/{match[2]})"
        return f"*A figure, once `make examples` has run: {one_line(match[1])}.*"

    cells = cells_of(script)
    parts = [f"```python\n{c.text}\n```" if c.is_code else IMAGE.sub(shown, c.text) for c in cells]
    printed = run / "printed.txt"
    if printed.exists() and printed.read_text().strip():
        parts.append(f"## What it prints\n\n```text\n{printed.read_text().rstrip()}\n```")
    parts.append(f"The script is `examples/{name}.py`.")
    return "\n\n".join(parts) + "\n"


def card(name: str, script: str, run: Path) -> str:
    """An example on the page that lists them: its last figure, its title, what it is about."""
    cells = cells_of(script)
    images = [match for c in cells if not c.is_code for match in IMAGE.finditer(c.text)]
    head = f"### [{title_of(cells)}]({name}.md)\n\n{first_paragraph(cells)}"
    there = [match for match in images if (run / match[2]).exists()]
    return f"{head}\n\n![{one_line(there[0][1])}]({name}/{there[0][2]}){{.thumbnail}}" if there else head


def write_pages(app: Sphinx | None = None) -> None:
    """Write all of them into a folder of their own, which git does not keep."""
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir()
    groups = []
    for group, names in GROUPS.items():
        groups.append(f"## {group}")
        for name in names:
            script, run = (ROOT / "examples" / f"{name}.py").read_text(), RUNS / name
            (PAGES / f"{name}.md").write_text(page(name, script, run))
            for picture in run.glob("*.png"):
                (PAGES / name).mkdir(exist_ok=True)
                shutil.copy(picture, PAGES / name / picture.name)
            groups.append(card(name, script, run))
    intro = (
        "# Examples\n\nScripts that run as they stand: `python examples/counts.py --out figures`. `make examples` runs "
        "all of them."
    )
    names = "\n".join(name for names in GROUPS.values() for name in names)
    tree = f"```{{toctree}}\n:hidden:\n\n{names}\n```"
    (PAGES / "index.md").write_text("\n\n".join([intro, *groups, tree]) + "\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before any is read."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
