"""Configuration of the documentation (Sphinx + MyST)."""

import torch as th

import sb3_sparse

project = "sb3_sparse"
author = "The sb3_sparse contributors"
copyright = "2026, The sb3_sparse contributors"
version = release = sb3_sparse.__version__

extensions = ["myst_parser", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "results", "modules/rooms/modules.rst", "modules/runtime/modules.rst"]
apidoc_automodule_options = {"members"}
# One page per folder of the package, made anew by every build
apidoc_modules = [
    {
        "path": "../sb3_sparse",
        "destination": "modules/rooms",
        "exclude_patterns": ["**/__main__.py", "**/_native*"],
        "module_first": True,
    },
    {
        "path": "../sb3_sparse_runtime",
        "destination": "modules/runtime",
        "exclude_patterns": ["**/_compiled*"],
        "module_first": True,
    },
]
html_theme = "sphinx_rtd_theme"
html_static_path = ["_static"]
html_css_files = ["sb3_sparse.css"]
autodoc_default_options = {"ignore-module-all": True, "undoc-members": False}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"


def _is_torchs_own(app, what, name, obj, skip, options):
    """Methods that only note that they were called are torch's, and so is their documentation."""
    return True if getattr(obj, "__wrapped__", None) is getattr(th.Tensor, name, th) else None


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", _is_torchs_own)
