"""Everything that the stock packages can call is served, and docs/records/operators.md says what is, truly."""

from __future__ import annotations

import inspect
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from repnext_mm.mmcv_ops import operators, status
from .cases import HALF, TOLERANCES
from .reached import PACKAGES, all_functions, reached

DOCUMENT = (Path(__file__).parents[2] / 'docs' / 'records' / 'operators.md').read_text()


class Row(NamedTuple):
    """A row of the table of what is served."""

    functions: list[str]
    means: str
    users: str
    compared: str
    tolerance: str


def table(heading: str) -> list[list[str]]:
    section = DOCUMENT.split(f'\n## {heading}\n')[1].split('\n## ')[0]
    rows = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in section.splitlines() if line[:1] == '|']
    return rows[2:]


@cache
def served() -> list[Row]:
    return [Row(re.findall(r'`(\w+)`', cells[0]), *cells[1:]) for cells in table('What is served')]


def test_what_stock_code_and_configs_call_is_served():
    for package in PACKAGES:
        pytest.importorskip(package)
    found = reached()
    assert {'nms', 'softnms', 'deform_roi_pool_forward', 'sync_bn_forward_mean', 'psamask_forward'} <= found.keys()
    assert found.keys() <= operators.SERVED.keys()
    users = {function: row.users for row in served() for function in row.functions}
    for function in operators.SERVED:
        if function in all_functions():  # line_nms came with OneDL's mmcv
            assert users[function] == (', '.join(sorted(found.get(function, ()))) or 'none')


def test_the_document_lists_what_is_served_and_what_is_not():
    pytest.importorskip('mmcv')
    assert {function for row in served() for function in row.functions} == operators.SERVED.keys()
    others = {function for cells in table('What is not served') for function in re.findall(r'`(\w+)`', cells[1])}
    assert not others & operators.SERVED.keys()
    assert all_functions() <= others | operators.SERVED.keys()


def test_the_document_states_the_tolerances_of_the_tests():
    stated = {row.functions[0]: row.tolerance for row in served() if row.compared == 'compiled'}
    assert stated == {
        **{
            name: f'{TOLERANCES[name]:g}'
            for name in ('nms', 'nms_match', 'bbox_overlaps', 'box_iou_rotated', 'nms_rotated')
        },
        'softnms': f'{TOLERANCES["softnms"]:g}; gaussian {_short(TOLERANCES["softnms gaussian"])}',
        'roi_align_forward': f'{TOLERANCES["roi_align"]:g}; gradient of maxima '
        f'{_short(TOLERANCES["roi_align max backward"])}',
        'psamask_forward': f'{TOLERANCES["psamask"]:g}',
        'box_iou_rotated': _short(TOLERANCES['box_iou_rotated']),
        **{f'{name}_forward': _short(TOLERANCES[name]) for name in ('deform_conv', 'modulated_deform_conv')},
    }
    assert TOLERANCES['roi_align max'] == 0
    assert f'up to {_short(HALF)}.' in DOCUMENT


def _short(number: float) -> str:
    return f'{number:.0e}'.replace('e-0', 'e-')


@pytest.mark.skipif(status().kind != 'compiled', reason='mmcv has no compiled operators here')
@pytest.mark.parametrize('name', operators.SERVED)
def test_arguments_have_the_names_and_the_order_of_the_compiled_operator(name):
    import mmcv._ext as compiled

    if not hasattr(compiled, name):
        pytest.skip('this mmcv has no such operator')
    signature = re.match(r'\w+\((.*)\) ->', getattr(compiled, name).__doc__)[1]
    assert [*inspect.signature(operators.SERVED[name]).parameters] == re.findall(r'(\w+): ', signature)
