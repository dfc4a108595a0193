"""Where the names of other projects are documented, without asking their sites while the pages are built.

`_inventories/PROJECT.txt` lists the names that the reference mentions, one a line, with the page that has each: a small
inventory of Sphinx's own format, which this makes of it. Links then work where there is a network; a build needs none.
"""

import zlib
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

LISTS = Path(__file__).parents[1] / "_inventories"
SITES = {
    "torch": "https://docs.pytorch.org/docs/stable/",
    "pyro": "https://docs.pyro.ai/en/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "xarray": "https://docs.xarray.dev/en/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "python": "https://docs.python.org/3/",
}


def packed(project: str, lines: str) -> bytes:
    """An inventory, version 2 of Sphinx's format."""
    entries = [line for line in lines.splitlines() if line and not line.startswith("#")]
    head = (
        f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n# The remainder is compressed using zlib.\n"
    )
    body = "".join(f"{name} {role} 1 {place}#$ -\n" for name, role, place in (entry.split() for entry in entries))
    return head.encode() + zlib.compress(body.encode())


def write_inventories(app: Sphinx, config: Config) -> None:
    """Make them, and tell intersphinx of them."""
    folder = Path(app.doctreedir) / "inventories"
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for project, site in SITES.items():
        path = folder / f"{project}.inv"
        path.write_bytes(packed(project, (LISTS / f"{project}.txt").read_text()))
        mapping[project] = (site, str(path))
    config.intersphinx_mapping = mapping


def setup(app: Sphinx) -> dict[str, bool]:
    """Before intersphinx reads its mapping."""
    app.connect("config-inited", write_inventories, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
