"""The documentation as a site: every page has its place; `make docs` fails for a link that leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from runpy import run_path

import repnext_mm

ROOT = Path(__file__).resolve().parents[2]
CONF = run_path(str(ROOT / 'docs/site/conf.py'))


def test_every_page_stands_in_the_contents_once():
    pages = [page for pages in CONF['CONTENTS'].values() for page in pages.split()]
    files = {path.stem for path in (ROOT / 'docs').iterdir() if path.suffix in ('.md', '.ipynb')}
    assert sorted(pages) == sorted(files | {'records/README', 'site/api'})


def test_the_reference_has_the_names_that_stay():
    (promised,) = re.findall(r'Names that stay, in `repnext_mm`: (.*?);', (ROOT / 'README.md').read_text(), re.DOTALL)
    named = set(re.findall(r'`(\w+)`', promised))
    shown = set(re.findall(r'auto(?:class|function):: (\w+)', (ROOT / 'docs/site/api.rst').read_text()))
    assert named == shown
    assert all(hasattr(repnext_mm, name) for name in shown)


def test_the_first_page_gets_its_contents():
    source = ['# repnext_mm']
    CONF['add_contents'](None, 'README', source)
    assert source[0].count('{toctree}') == len(CONF['CONTENTS']) + 1
    assert 'docs/getting_started' in source[0]
