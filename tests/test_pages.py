"""Every block of code on every page is run: python at each test run, what takes minutes when asked for."""

import shutil

import pytest

from sb3_sparse.export.cortex_m import missing_tools
from tests.documentation import ROOT, blocks_of, run_page

_MISSING = [name for name in ("gcc", "cmake") if shutil.which(name) is None] or missing_tools()
needs_all_tools = pytest.mark.skipif(bool(_MISSING), reason=f"{_MISSING} not found")
#: Pages that compile and emulate.
DEPLOYED = ("docs/guide/export.md", "docs/guide/microcontrollers.md")
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("docs/*/*.md")]
BLOCKS = {str(file.relative_to(ROOT)): blocks_of(file.relative_to(ROOT)) for file in sorted(FILES)}
RUN = {
    page: [block for block in blocks if block.language in ("python", "bash") and block.skipped is None]
    for page, blocks in BLOCKS.items()
}


def pages(condition):
    """Pages with a block for which that holds."""
    chosen = [page for page, blocks in RUN.items() if any(map(condition, blocks))]
    return [pytest.param(page, marks=[needs_all_tools] if page in DEPLOYED else []) for page in chosen]


@pytest.mark.parametrize("page", pages(lambda block: not block.expensive))
def test_a_page_does_what_it_says(page, tmp_path, monkeypatch):
    assert run_page(page, tmp_path, monkeypatch)


@pytest.mark.expensive
@pytest.mark.parametrize("page", pages(lambda block: block.expensive))
def test_a_page_with_long_blocks_does_what_it_says(page, tmp_path, monkeypatch):
    """With fewer steps, as the marks on the page say."""
    assert run_page(page, tmp_path, monkeypatch, expensive=True)


@pytest.mark.expensive
@needs_all_tools
@pytest.mark.parametrize("page", DEPLOYED)
def test_a_page_as_it_is_written(page, tmp_path, monkeypatch):
    assert run_page(page, tmp_path, monkeypatch, full=True)
