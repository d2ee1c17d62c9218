"""Configuration of the documentation (Sphinx + MyST)."""

import sb3_sparse

project = "sb3_sparse"
author = "The sb3_sparse contributors"
copyright = "2026, The sb3_sparse contributors"
version = release = sb3_sparse.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "sphinx_rtd_theme"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
