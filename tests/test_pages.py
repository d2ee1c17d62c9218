"""Every block of code on every page is run: python at each test run, what takes minutes when asked for."""

import pytest

from tests.documentation import ROOT, blocks_of, run_page

#: Run by tests/test_documentation.py, with what they need besides Python.
ELSEWHERE = {"docs/guide/export.md", "docs/guide/microcontrollers.md"}
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("docs/*/*.md")]
BLOCKS = {str(file.relative_to(ROOT)): blocks_of(file.relative_to(ROOT)) for file in sorted(FILES)}
RUN = {page: [block for block in blocks if block.language in ("python", "bash")] for page, blocks in BLOCKS.items()}
RUN = {page: blocks for page, blocks in RUN.items() if page not in ELSEWHERE and not all(block.skipped for block in blocks)}
QUICK = [page for page, blocks in RUN.items() if not all(block.skipped or block.expensive for block in blocks)]
LONG = [page for page, blocks in RUN.items() if any(block.expensive and not block.skipped for block in blocks)]


@pytest.mark.parametrize("page", QUICK)
def test_a_page_does_what_it_says(page, tmp_path, monkeypatch):
    assert run_page(page, tmp_path, monkeypatch)


@pytest.mark.expensive
@pytest.mark.parametrize("page", LONG)
def test_a_page_with_long_blocks_does_what_it_says(page, tmp_path, monkeypatch):
    """With fewer steps, as the marks on the page say."""
    assert run_page(page, tmp_path, monkeypatch, expensive=True)
