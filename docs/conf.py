"""Settings of the documentation site: Markdown pages, a notebook and docstrings, by Sphinx. `make site` builds it."""

from importlib.metadata import version as installed_version

project = "Geograft"
author = "The Geograft developers"
version = release = installed_version("geograft")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "pydata_sphinx_theme"
html_title = "Geograft"
html_theme_options = {
    "navbar_center": [],
    "navigation_with_keys": False,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
}
# All pages, in the groups of the front page.
html_sidebars = {"**": ["globaltoc.html"]}
html_show_sourcelink = False
# Headings have the same anchors as in the repository, where tests/test_docs.py checks them.
myst_heading_anchors = 3
# A test executes the notebook; its outputs depend on the machine.
nb_execution_mode = "off"

# Docstrings write code in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
