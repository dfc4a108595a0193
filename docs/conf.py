"""Sphinx configuration: `make docs`."""

import importlib.metadata

project = "pyro_laplace"
author = "pyro_laplace developers"
project_copyright = author
release = importlib.metadata.version("pyro-laplace")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

# `x` in a docstring is code, as in Markdown.
default_role = "code"
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

napoleon_numpy_docstring = False
napoleon_use_ivar = True  # a dataclass field is documented once, under "Attributes"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"

html_theme = "furo"
html_title = f"pyro_laplace {release}"
