"""tools/validate_reparam.py as a user runs it, and what it is made of."""

from __future__ import annotations

import json
import math
import re
import runpy

import pytest
import torch
from torch import nn

from repnext_mm import RepNeXt
from repnext_mm.lab.bench.exactness import check_consistency, with_random_statistics
from repnext_mm.lab.bench.law_cases import LAWS, Definition
from repnext_mm.lab.bench.law_table import (
    BRANCHES,
    FAMILIES,
    FUSED,
    LIBRARY,
    TRAIN,
    contestants,
    law_table,
    measure_rows,
    measure_speed,
    names,
)
from repnext_mm.lab.bench.named_models import build_named
from repnext_mm.models.branchwise import branch_by_branch
from repnext_mm.reparam import Fusible, add
from tests.tools.running import ROOT, run_tool

TOOL = ROOT / 'tools/validate_reparam.py'
SMALL = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}
SHAPE = (1, 3, 65, 97)


def small() -> nn.Module:
    return with_random_statistics(RepNeXt(SMALL).eval(), shape=SHAPE)


@pytest.mark.parametrize('form', ['default', 'keep_norms', 'dense'])
def test_every_level_is_exact(form):
    model = small()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = check_consistency(model, form=form, shape=SHAPE)
    assert found.failures == ()
    assert [level.shape for level in found.levels['float64']] == [
        (1, 8, 17, 25),
        (1, 16, 9, 13),
        (1, 32, 5, 7),
        (1, 64, 3, 4),
    ]
    assert all(level.relative <= 1e-12 and level.absolute <= 1e-10 for level in found.levels['float64'])
    assert all(1e-12 < level.relative <= 1e-5 for level in found.levels['float32'])
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_the_reference_is_not_merged_by_the_law_under_test(monkeypatch):
    """A wrong kernel() changes train form and deploy form alike: only branches can show it."""
    monkeypatch.setattr('repnext_mm.models.token_mixers.add', lambda *kernels: add(*kernels)._replace(bias=None))
    found = check_consistency(small(), shape=SHAPE)
    assert len(found.failures) == 2
    assert 'float64: relative error' in found.failures[0]


@pytest.mark.parametrize('unit', ['u1', 'u2', 'u3'])
def test_repnext_u_against_its_branches(unit):
    model = build_named('RepNeXtU', options={'arch': {'dims': (6, 6, 12, 12), 'depths': (1, 1, 1, 1)}, 'unit': unit})
    with_random_statistics(model, shape=(1, 3, 64, 96))
    assert branch_by_branch(model) is not model
    for form in ('default', 'no_shortcut'):
        assert check_consistency(model, form=form, shape=(1, 3, 64, 96)).failures == ()


class Halves(Fusible):
    """Fuses to something wrong, or to NaN."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.factor = factor

    def forward(self, x):
        return self.conv(x)

    def fused(self, form):
        conv = nn.Conv2d(3, 4, 3).to(self.conv.weight)
        conv.weight = nn.Parameter(self.conv.weight * self.factor)
        return conv


@pytest.mark.parametrize('factor', [0.5, math.nan])
def test_what_is_wrong_or_nan_fails(factor):
    found = check_consistency(Halves(factor).eval(), shape=SHAPE)
    assert [failure.split(':')[0] for failure in found.failures] == ['float64', 'float32']


def test_nothing_to_fuse_is_a_failure():
    assert 'nothing was fused' in check_consistency(nn.ReLU(), shape=SHAPE).failures[0]
    with pytest.raises(ValueError, match='ReLU has nothing to fuse'):
        contestants(nn.ReLU(), shape=SHAPE)


@pytest.mark.parametrize(
    ('name', 'options', 'kind'),
    [
        ('m0', {}, 'RepNeXt'),
        ('RepNeXt', {'arch': SMALL}, 'RepNeXt'),
        ('mmpretrain.RepVGG', {'arch': 'A0'}, 'RepVGG'),
        ('RepVGG', {'arch': 'A0'}, 'RepVGG'),
        ('timm/repvit_m0_9', {'num_classes': 7}, 'RepVit'),
        ('repvit_m0_9', {}, 'RepVit'),
        (str(ROOT / 'configs/repnext_m0_digits_cls.py'), {'model.head.num_classes': 3}, 'ImageClassifier'),
        (str(ROOT / 'configs/semantic_fpn_repnext_m0_digits.py'), None, 'RepNeXt'),
    ],
    ids=lambda value: value.split('/')[-1] if isinstance(value, str) else None,
)
def test_models_by_name(name, options, kind):
    model = build_named(name, options=options)
    assert type(model).__name__ == kind
    assert not model.training


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('m9', {}, "model 'm9' is unknown: name a RepNeXt arch"),
        ('timm/nothing', {}, "model 'timm/nothing' is unknown"),
        ('mmpretrain.Nothing', {}, "model 'mmpretrain.Nothing' is unknown"),
        ('json.Nothing', {}, "model 'json.Nothing' is unknown"),
        ('ResNet', {}, "model 'ResNet' is in several libraries: say mmdet.ResNet or mmseg.ResNet or mmpretrain.ResNet"),
        ('mmpretrain.RepVGG', {}, "model 'mmpretrain.RepVGG' cannot be built with its defaults .*: give its arguments"),
        ('m0', {'width': 3}, 'cannot be built with arch=m0 width=3'),
    ],
    ids=['arch', 'timm', 'class', 'scope', 'several', 'options', 'unknown option'],
)
def test_names_that_cannot_be_built(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_named(name, options=options)


def test_contestants_are_the_model_in_other_forms():
    model = small()
    forms = contestants(model, shape=SHAPE)
    assert list(forms) == [BRANCHES, TRAIN, LIBRARY, FUSED]
    own = {parameter.data_ptr() for parameter in model.parameters()}
    image = torch.randn(SHAPE)
    with torch.no_grad():
        for network in forms.values():
            assert own.isdisjoint(parameter.data_ptr() for parameter in network.parameters())
            for level, reference in zip(network(image), model(image), strict=True):
                torch.testing.assert_close(level, reference, atol=1e-4, rtol=1e-4)
    times = measure_speed(forms, shape=SHAPE, rounds=2, warmup_s=0)
    assert list(times) == list(forms)
    assert all(time.n == 2 and time.median_ms > 0 for time in times.values())


@pytest.mark.parametrize(
    ('name', 'options'), [('mmpretrain.RepVGG', {'arch': 'A0'}), ('timm/repvit_m0_9', {})], ids=['RepVGG', 'RepViT']
)
def test_the_librarys_own_converter_runs_on_a_copy(name, options):
    model = with_random_statistics(build_named(name, options=options), shape=SHAPE)
    before = repr(model)
    forms = contestants(model, shape=SHAPE)
    assert list(forms) == [TRAIN, LIBRARY, FUSED]
    assert repr(model) == before


def test_a_converter_that_changes_the_model_is_not_timed_and_not_trusted():
    """MMPretrain's RepVGG forgets its squeeze-and-excitation when it switches to deploy."""
    arch = {
        'num_blocks': [1, 1, 1, 1],
        'width_factor': [1, 1, 1, 1],
        'group_layer_map': None,
        'se_cfg': {'ratio': 4, 'divisor': 1},
    }
    model = build_named('mmpretrain.RepVGG', options={'arch': arch, 'base_channels': 8})
    with_random_statistics(model, shape=SHAPE)
    found = check_consistency(model, shape=SHAPE)
    assert found.failures == ()
    assert 'it changes the output' in found.report.refused[0]
    assert LIBRARY not in contestants(model, shape=SHAPE)


@pytest.mark.parametrize('name', LAWS)
def test_every_law_of_the_table_is_exact(name):
    torch.manual_seed(0)
    case = LAWS[name]
    model = with_random_statistics(Definition(case).eval(), shape=case.shape)
    found = check_consistency(model, shape=case.shape, tolerance_float64=1e-12)
    assert found.failures == ()


def test_table_rows():
    assert len(names()) == len(LAWS) + len(FAMILIES)
    chosen = names(['`embed`', 'heads'])
    rows = list(measure_rows(chosen, rounds=2, warmup_s=0))
    assert [row.name for row in rows] == chosen
    assert all(row.exact for row in rows)
    head, rule, *lines = law_table(rows).splitlines()
    assert head.startswith('| law or family ')
    assert len(lines) == len(rows)
    assert {line.count(' | ') for line in (head, *lines)} == {head.count(' | ')}
    assert rule.count('|') == head.count('|')
    with pytest.raises(ValueError, match="no row of the table is named like 'nothing'"):
        names(['nothing'])


def test_tool_proves_and_times(tmp_path):
    shown = run_tool(
        TOOL,
        'm0',
        '--shape',
        '1x3x64x96',
        '--rounds',
        '2',
        '--warmup-s',
        '0',
        '--device',
        'cpu',
        '--threads',
        '1',
        '--json',
        'out/m0.json',
        cwd=tmp_path,
    )
    assert 'parameters 2,073,200 -> 2,007,080, norms 53 -> 0' in shown
    assert re.search(r'[|] 3 +[|] 1x320x2x3 +[|]', shown)
    assert re.search(r'[|] branches +[|] +2,073,200 [|] +53 [|]', shown)
    record = json.loads((tmp_path / 'out/m0.json').read_text())
    assert record['fused']['norms_after'] == 0
    assert len(record['consistency']['float64']) == 4
    assert max(level['relative'] for level in record['consistency']['float64']) <= 1e-12
    assert record['failures'] == []
    assert record['speed']['fused']['n'] == 2
    assert record['environment']['threads'] == 1


def run_here(monkeypatch, capsys, *words: str) -> tuple[object, str]:
    """The tool in this process, which has imported everything: its exit code or message, and what it prints."""
    monkeypatch.setattr('sys.argv', [str(TOOL), *words])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TOOL), run_name='__main__')
    return stopped.value.code, capsys.readouterr().out


def test_tool_fails_by_exit_code(monkeypatch, capsys):
    command = ('m0', '--operation', 'consistency', '--device', 'cpu', '--shape', '1x3x64x64')
    code, shown = run_here(monkeypatch, capsys, *command, '--tolerance-float64', '1e-30')
    assert code == 1
    assert 'failed: float64: relative error' in shown
    code, shown = run_here(monkeypatch, capsys, *command, '--options', 'deploy=True')
    assert code == 1
    assert 'failed: nothing was fused' in shown


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (('m9',), "error: model 'm9' is unknown"),
        ((), 'error: give a model, or --table, one of them'),
        (('m0', '--shape', '3x20x20'), 'error: cannot time images of shape'),
        (('m0', '--form', 'folded', '--shape', '1x3x64x64'), "error: unknown form 'folded'"),
        (('m0', '--device', 'warp'), "error: --device 'warp' cannot be used here"),
        (('m0', '--threads', '0'), 'error: --threads 0 must be at least 1'),
        (('nowhere.py',), "error: config 'nowhere.py' does not exist"),
        (('--table', '--shape', '1x3x64x96'), 'error: --shape 1x3x64x96 with --table: give one square image'),
    ],
    ids=['model', 'nothing', 'shape', 'form', 'device', 'threads', 'config', 'table'],
)
def test_tool_errors_are_one_sentence(monkeypatch, capsys, words, message):
    code, _ = run_here(monkeypatch, capsys, *words)
    assert str(code).startswith(message)
    assert '\n' not in str(code)
