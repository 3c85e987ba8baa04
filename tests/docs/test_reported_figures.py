"""Figures of the authors that stand in several places are the same in all of them."""

from __future__ import annotations

import re

from repnext_mm.lab.bench.published import COMPACT, REPORTED
from tests.tools.running import ROOT

ZOO = (ROOT / 'docs/model_zoo.md').read_text()
RECORD = (ROOT / 'docs/records/reported_results.md').read_text()


def rows(text, start):
    lines = [line for line in text.splitlines() if line.startswith(start)]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


def test_lengths_of_training():
    for data, models in COMPACT.items():
        for model in models:
            name = f'{model.name.removeprefix("RepNeXt-")}, {data.removesuffix("-1K")}'
            (row,) = rows(RECORD, f'| {name} |')
            figures = [model.parameters_m, model.macs_g, model.phone_ms, *model.top1.values()]
            assert [float(cell) for cell in row[1:8]] == figures


def test_phone_latencies():
    for arch in ('m3', 'm4', 'm5'):
        for kind in ('mask_rcnn_repnext_{}_coco', 'semantic_fpn_repnext_{}_ade20k'):
            (row,) = rows(RECORD, f'| [`{kind.format(arch)}`]')
            assert f'{REPORTED[arch].phone_512_ms:.1f}' in row
            accuracy = REPORTED[arch].box_ap if 'coco' in kind else REPORTED[arch].miou
            assert row[1] == f'{accuracy:.1f}'
    for arch in ('m0', 'm1', 'm2', 'm3', 'm4', 'm5'):
        repvit = rows(RECORD, f'| {arch.upper()} |')[0]
        assert float(repvit[3]) == REPORTED[arch].phone_ms
        assert (float(repvit[4]), float(repvit[7])) == (REPORTED[arch].top1_plain, REPORTED[arch].top1)
    for arch in ('m0e', 'm1e', 'm2e'):
        (starnet,) = rows(RECORD, f'| {arch.upper()} |')
        assert float(starnet[3]) == REPORTED[arch].phone_ms
        plain, distilled = (float(re.match(r'[\d.]+', starnet[index])[0]) for index in (4, 7))
        assert (plain, distilled) == (REPORTED[arch].top1_plain, REPORTED[arch].top1)


def test_the_model_zoo_repeats_the_record():
    """A number that links to a config, and the number in the cell behind a link, stand in the record's row."""
    linked = re.findall(r'\[(?:m\d|([\d.]+))\]\(\.\./(configs/\w+\.py)\)(?: \| ([\d.]+))?', ZOO)
    assert len(linked) > 30
    for number, config, behind in linked:
        (recorded,) = (row for row in rows(RECORD, '| [') if f'(../../{config})' in row[0])
        assert {number, behind} - {''} <= set(recorded), config
