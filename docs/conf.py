"""Sphinx configuration: `make docs`."""

import importlib.metadata
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "pyro_laplace"
author = "pyro_laplace developers"
project_copyright = author
release = importlib.metadata.version("pyro-laplace")

extensions = [
    "formulas",
    "gallery",
    "inventories",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

# `x` in a docstring is code, as in Markdown.
default_role = "code"
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

napoleon_numpy_docstring = False
napoleon_use_ivar = True  # a dataclass field is documented once, under "Attributes"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"

html_theme = "furo"
html_title = f"pyro_laplace {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
