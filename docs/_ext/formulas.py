"""Formulas as MathML, made when the pages are built: a reader's browser draws them, without a script or a request."""

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

CONVERTER = LatexToMathML(annotation=True)  # the LaTeX stays in the page, for who copies it
LOGGER = logging.getLogger(__name__)


def mathml(node: nodes.Element, displayed: bool) -> str:
    """A formula; one that cannot be read is a warning, and stands in the page as it was written."""
    latex = node.astext()
    try:
        return CONVERTER.convert_with_local_state(latex, displaystyle=displayed)
    except LatexError as error:
        LOGGER.warning("a formula that is no LaTeX: %s (%s)", latex, error, location=node)
        return f"<code>{nodes.unescape(latex)}</code>"


def visit_inline(self: HTML5Translator, node: nodes.Element) -> None:
    """In a line of text."""
    self.body.append(mathml(node, displayed=False))
    raise nodes.SkipNode


def visit_displayed(self: HTML5Translator, node: nodes.Element) -> None:
    """In a box of its own, in which a wide one scrolls."""
    self.body.append(self.starttag(node, "div", CLASS="math displayed"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})</span>')
    self.body.append(mathml(node, displayed=True))
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Take the place of MathJax."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_displayed, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
