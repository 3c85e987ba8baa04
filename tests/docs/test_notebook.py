"""docs/tutorial.ipynb: its code runs from top to bottom, and what it shows is what is in the repository."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.tools.running import ROOT, run_tool

BOOK = json.loads((ROOT / 'docs/tutorial.ipynb').read_text())
CODE = [''.join(cell['source']) for cell in BOOK['cells'] if cell['cell_type'] == 'code']


def shown(cell: dict[str, Any]) -> str:
    return ''.join(line for output in cell['outputs'] for line in output.get('text', []))


def test_every_cell_has_run_in_order():
    cells = [cell for cell in BOOK['cells'] if cell['cell_type'] == 'code']
    assert [cell['execution_count'] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum('image/png' in output.get('data', {}) for cell in cells for output in cell['outputs']) == 2
    said = ''.join(map(shown, cells))
    assert 'norms 53 -> 0' in said
    train_form, fused = re.findall(r'top-1 ([\d.]+)', said)
    assert train_form == fused
    assert not re.search(r'Warning|Traceback|/home|/tmp|/root', json.dumps([cell['outputs'] for cell in cells]))


def test_links_lead_somewhere():
    text = ''.join(''.join(cell['source']) for cell in BOOK['cells'] if cell['cell_type'] == 'markdown')
    assert all((ROOT / 'docs' / link).is_file() for link in re.findall(r'\]\(([\w.]+)\)', text))


@pytest.mark.slow
def test_the_code_runs(tmp_path):
    (tmp_path / 'tutorial.py').write_text('\n\n'.join(CODE))
    output = run_tool('tutorial.py', cwd=tmp_path, MPLBACKEND='Agg')
    assert 'norms 53 -> 0' in output
    train_form, fused = re.findall(r'top-1 ([\d.]+)', output)
    assert train_form == fused
    assert float(fused) > 50
    assert [path.name for path in tmp_path.iterdir()] == ['tutorial.py']
