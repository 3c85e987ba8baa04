"""The documentation as a site, from the same Markdown that the repository shows: `make docs`.

The source folder is the repository's root, so that every relative link of every page stays as it is. What a site needs
and a repository does not, the table of contents, is added to the first page here.
"""

import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from repnext_mm.version import __version__  # noqa: E402

project = 'repnext_mm'
author = 'the repnext_mm authors'
release = version = __version__
copyright = author

extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode', 'sphinx_copybutton']
root_doc = 'README'
include_patterns = ['README.md', 'CHANGELOG.md', 'docs/*.md', 'docs/*.ipynb', 'docs/*/*.md', 'docs/site/*.rst']
nb_execution_mode = 'off'  # the notebook carries the outputs of its last run
myst_enable_extensions = ['dollarmath', 'amsmath']
myst_heading_anchors = 4  # as GitHub makes them
myst_dmath_double_inline = True

html_theme = 'furo'
html_title = f'repnext_mm {release}'
html_copy_source = False

autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'

CONTENTS = {
    'Use it': 'getting_started own_dataset own_maps migration classification training_speed model_zoo faq installing',
    'Deploy it': 'fusing export benchmarks operators',
    'Trust it': 'reliability checkpoints distributed',
    'Understand it': 'reparameterization design visualize demo_app tutorial',
    'Change it': 'contributing site/api records/README',
}


def add_contents(app, docname, source) -> None:
    """Give the first page, and the pages of records, the table of contents that Sphinx asks for; tables get a title."""
    if docname.startswith('docs/benchmarks/') and not source[0].startswith('# '):
        source[0] = f'# {Path(docname).name}\n\n{source[0]}'
    if docname == 'README':
        for caption, pages in CONTENTS.items():
            source[0] += toctree(caption, [f'docs/{page}' for page in pages.split()])
        source[0] += toctree('Changes', ['CHANGELOG'])
    elif docname == 'docs/records/README':
        source[0] += toctree('Records', [*beside(docname), '../benchmarks/README', '../reported/README'])
    elif docname == 'docs/benchmarks/README':
        source[0] += toctree('Measurements', beside(docname))


def beside(docname: str) -> list[str]:
    """Return the other pages of a page's folder."""
    return sorted(page.stem for page in (ROOT / docname).parent.glob('*.md') if page.stem != 'README')


def toctree(caption: str, pages: list[str]) -> str:
    """Return the table in MyST's Markdown; it shows in the side bar only."""
    return '\n'.join(['', '```{toctree}', ':hidden:', f':caption: {caption}', '', *pages, '```', ''])


def setup(app) -> dict:
    """What Sphinx calls when it has read this file."""
    app.connect('source-read', add_contents)
    return {'version': metadata.version('sphinx'), 'parallel_read_safe': True}
