"""The pages of the documents' site, as scripts/write_site.py lays them out. `make docs`, which .ci/run calls, builds it."""

import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import write_science  # noqa: E402
import write_site  # noqa: E402


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "pages"
    write_site.main(folder)
    return folder


def names_of(nav):
    """The files of a navigation, groups within groups."""
    for entry in nav:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from [value] if isinstance(value, str) else names_of(value)


def test_every_page_of_the_documents_is_in_the_navigation(pages):
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = set(names_of(yaml.safe_load(text[text.index("\nnav:") :])["nav"]))
    written = {path.relative_to(pages).as_posix() for path in [*pages.glob("*.md"), *pages.glob("examples/*.md")]}
    assert nav == written | {"gallery/index.md", "api/index.md"}


def test_links_of_the_pages_lead_to_files_of_the_site(pages):
    links = 0
    for page in pages.rglob("*.md"):
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            links += 1
            assert "://" in link or link.startswith("mailto:") or (page.parent / link).exists(), f"{page.name}: {link}"
    assert links > 200


def test_the_gallery_has_every_published_folder_with_its_figures(pages):
    listed = (pages / "gallery" / "index.md").read_text(encoding="utf-8")
    for readme in (ROOT / "results" / "published").glob("*/README.md"):
        page = (pages / "gallery" / f"{readme.parent.name}.md").read_text(encoding="utf-8")
        assert f"({readme.parent.name}.md)" in listed
        assert all(f"/{path.name})" in page for path in readme.parent.glob("figures/*.png"))


def test_the_reference_has_each_public_name_and_the_modules_that_architecture_names(pages):
    names = (pages / "api" / "index.md").read_text(encoding="utf-8")
    assert "::: qexp.reporting.notebook.load\n" in names and "::: qexp.quant.schemes.quantize_\n" in names
    assert "::: qexp.stats.paired\n" in (pages / "api" / "stats.md").read_text(encoding="utf-8")


def test_a_link_that_the_site_cannot_follow_is_named():
    with pytest.raises(ValueError, match=r"docs/sweep.md: the site has no qexp/train.py"):
        write_site.with_site_links("[the code](../qexp/train.py)", "docs/sweep.md")
    assert write_site.with_site_links("[a](../README.md#commands)", "docs/sweep.md") == "[a](index.md#commands)"


def test_the_science_is_that_of_the_docstrings():
    page = (ROOT / "docs" / "science.md").read_text(encoding="utf-8")
    assert page == write_science.page(), "python scripts/write_science.py writes it anew"


def test_a_source_without_a_section_is_refused():
    assert write_science.section_of("qexp.quant.gradients.initial_scale") == "Training with quantization"
    with pytest.raises(ValueError, match="belongs to no section"):
        write_science.section_of("qexp.policy.plan.make_plan")
