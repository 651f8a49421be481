"""Sphinx: pages in Markdown (MyST), the API from docstrings, the gallery from examples/, and docs/tutorials/."""

from importlib.metadata import version as installed_version

project = "jkosampler"
author = "The jkosampler developers"
copyright = "2026, The jkosampler developers"
version = release = installed_version("jkosampler")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = [
    "_build",
    "benchmarks/*",
    "tutorials",  # the sources; the pages made of them are in generated/tutorials
    "**/*.ipynb",
    "gallery/*.py",
    "generated/tutorials/*.py",
]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
default_role = "code"  # single backticks in docstrings are code, as in Markdown

html_theme = "furo"
html_title = f"jkosampler {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types with their shapes stand in the docstrings
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False

sphinx_gallery_conf = {
    "examples_dirs": ["tutorials", "../examples"],
    "gallery_dirs": ["generated/tutorials", "gallery"],
    "filename_pattern": r"(tutorial|example)_.*\.py",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "capture_repr": (),  # what is to be seen is printed or drawn
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 10,
    "write_computation_times": False,
}
