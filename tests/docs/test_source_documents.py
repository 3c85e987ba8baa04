"""The audit of the source documents: 62 rows, whose commands, places and cheap numbers are tried."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from typing import NamedTuple

import pytest

from repnext_mm.lab.bench.complexity import repnext_complexity
from repnext_mm.lab.draw.cam_sheet import PAPER
from tests.docs.test_commands import ROOT, behind

RECORD = ROOT / 'docs/records/source_documents.md'
SEEDS = {'suous', 'paper', 'other RepNeXt', 'RepNets'}
REASONS = {'macOS', 'macOS and the phone', 'the weights and the data sets'}
COMMAND = re.compile(r'`((?:python|bash|make) [^`]+)`')


class Row(NamedTuple):
    """One line of the table."""

    number: str
    seed: str
    feature: str
    place: str
    printed: str
    status: str


ROWS = [
    Row(*(cell.strip() for cell in line.strip('|').split('|')))
    for line in RECORD.read_text().partition('\n## ')[0].splitlines()
    if re.match(r'\| \d+ \|', line)
]
STARTED = [(row.number, command) for row in ROWS for command in COMMAND.findall(row.place + row.printed)]


def test_sixty_two_rows_each_met_or_with_one_reason():
    assert [row.number for row in ROWS] == [str(number) for number in range(1, 63)]
    assert len({(row.seed, row.feature) for row in ROWS}) == 62
    for row in ROWS:
        assert set(row.seed.split(', ')) <= SEEDS, row
        assert all(row), row
        assert row.status == 'met' or row.status.removeprefix('not here: ') in REASONS, row
    assert {seed for row in ROWS for seed in row.seed.split(', ')} == SEEDS


def test_the_summary_counts_the_rows():
    met = sum(row.status == 'met' for row in ROWS)
    assert f'{met} of 62 are met' in RECORD.read_text()


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.number)
def test_every_row_says_how_to_see_it(row: Row):
    """A command, or a link to where it stands; that links lead somewhere is tried with those of all documents."""
    assert COMMAND.search(row.place) or re.search(r'\]\([^)]+\)', row.place)


@pytest.mark.parametrize(('number', 'command'), STARTED, ids=lambda value: value[:50])
def test_every_command_is_run_by_a_test_or_says_what_it_needs(number: str, command: str):
    assert behind(command), f'row {number}: list `{command}` in tests/docs/commands.yml'


@pytest.mark.parametrize('row', [row for row in ROWS if 'repnext_mm.' in row.printed], ids=lambda row: row.number)
def test_named_objects_exist(row: Row):
    for name in re.findall(r'`(repnext_mm[\w.]+)`', row.printed):
        module, _, attribute = name.rpartition('.')
        assert hasattr(importlib.import_module(module), attribute), name


@cache
def counts(arch: str) -> str:
    """As `tools/complexity.py` prints them of the whole classifier: train form, deploy form, MACs."""
    forms = repnext_complexity(arch, shape=(224, 224), num_classes=1000, forms=['default'])
    train, deploy = (list(forms[form].values())[-1] for form in ('train', 'default'))
    return f'{arch.upper()} {train.parameters:,} to {deploy.parameters:,}, {deploy.macs / 1e9:.2f} G'


@pytest.mark.parametrize('archs', [['m0', 'm1'], ['m0e', 'm1e']], ids=['multi', 'single'])
def test_counts_are_those_of_the_row(archs: list[str]):
    (row,) = (row for row in ROWS if row.place.startswith(f'`python tools/complexity.py --arch {archs[0]} '))
    assert all(counts(arch) in row.printed for arch in archs)


@pytest.mark.parametrize('data', ['cifar100', 'imagenet'])
def test_best_accuracies_are_those_of_the_logs(data: str):
    (row,) = (
        row
        for row in ROWS
        if row.feature.startswith('Compact models: table of') and data[:5] in row.feature.lower().replace('-', '')
    )
    for network in ('repvit_m0_6', 'repnext_m0e', 'repnext_m0'):
        lines = (ROOT / f'docs/reported/{data}_{network}.csv').read_text().split()[1:]
        assert f'{max(float(line.split(",")[2]) for line in lines):.2f}' in row.printed


def test_networks_of_the_figure_are_named():
    (row,) = (row for row in ROWS if 'Grad-CAM' in row.feature)
    assert all(name.split('_')[0] in row.feature.lower() for name in PAPER)


def test_every_correction_is_held_by_a_test():
    found = re.findall(r'^\| (\d+) \| .* \| (`tests/.*`) \|$', RECORD.read_text(), re.MULTILINE)
    assert [number for number, _ in found] == [str(number) for number in range(1, 11)]
    for path, function in re.findall(r'`(tests/[\w/]+\.py)::(\w+)`', ' '.join(tests for _, tests in found)):
        names = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(node, 'name')}
        assert function in names, f'{path}::{function}'
