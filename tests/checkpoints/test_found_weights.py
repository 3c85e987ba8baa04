"""Weights under any entry, below any start of their keys, of a whole module: found by what fits, or named."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from repnext_mm import RepNeXt
from repnext_mm.checkpoints import recognize, state_dict_of
from repnext_mm.checkpoints.load import check_fits, fit
from repnext_mm.checkpoints.read import weights_in
from repnext_mm.models import ARCHITECTURES
from repnext_mm.models.repnext_u import RepNeXtU
from tests.conftest import randomize

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}


@pytest.fixture(scope='module')
def source():
    return randomize(RepNeXt(TINY))


@pytest.fixture(scope='module')
def state(source):
    return source.state_dict()


@pytest.fixture
def load(tmp_path, source):
    """Save something, load it into a new backbone, and say whether it holds the source's weights."""

    def run(content, **options):
        torch.save(content, tmp_path / 'file.pth')
        model = RepNeXt(TINY)
        report = model.load_pretrained(str(tmp_path / 'file.pth'), **options)
        own = source.state_dict()
        assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())
        return str(report)

    return run


def below(prefix, state):
    return {prefix + key: value for key, value in state.items()}


WRAPPERS = ('module.', '_orig_mod.', '_fsdp_wrapped_module.', '_forward_module.')


@pytest.mark.parametrize('prefix', [''.join(parts) for n in (1, 2, 3) for parts in itertools.permutations(WRAPPERS, n)])
def test_wrappers_in_any_nesting_are_taken_off(prefix, load, state):
    assert load({'state_dict': below(prefix, state)}) == f'loaded {len(state)}/{len(state)} tensors'
    assert list(state_dict_of(below(prefix, state))) == list(state)


@pytest.mark.parametrize('where', ['stem.', 'stages.2.', 'stages.1.blocks.0.'])
@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_wrappers_of_parts_are_taken_off(wrapper, where, load, state):
    renamed = {key.replace(where, where + wrapper, 1) if key.startswith(where) else key: v for key, v in state.items()}
    assert load({'model': renamed}) == f'loaded {len(state)}/{len(state)} tensors'


@pytest.mark.parametrize(
    'prefix',
    [
        'model.',
        'encoder.',
        'net.',
        'student.',
        'model.backbone.',
        'module.encoder.',
        'model._orig_mod.',
        'a.b.c.d.',
        'backbone.module.',
        'model.module.backbone.',
        'stages.',
        'stem.',
    ],
)
def test_any_common_start_is_found(prefix, load, state):
    report = load({'state_dict': below(prefix, state) | {'criterion.weight': torch.ones(3)}})
    assert 'dropped 1 tensors of criterion' in report
    assert load({'state_dict': below(prefix, state)}, prefix=prefix)


ENTRIES = [
    'model_state_dict',
    'net',
    'ema',
    'state_dict_ema',
    'model_ema',
    'weights',
    'module',
    'params',
    'my own name',
]


@pytest.mark.parametrize('entry', [*ENTRIES, 'state_dict', 'model'])
def test_the_one_entry_that_fits_is_found(entry, load, state):
    rest = {'epoch': 3, 'loss': torch.tensor(0.1), 'optimizer': {'state': {'a': {'exp_avg': torch.ones(2)}}}}
    other = {'teacher': {'weight': torch.ones(2, 2)}}
    assert f'loaded {len(state)}/{len(state)}' in load({**rest, **other, entry: below('module.', state)})
    assert f'loaded {len(state)}/{len(state)}' in load({**rest, 'state': {entry: state}})
    assert list(state_dict_of({**rest, entry: state})) == list(state)


@pytest.mark.parametrize(
    'averaged', ['model_ema', 'state_dict_ema', 'ema', 'ema_state_dict', 'params_ema', 'swa_model']
)
def test_of_raw_and_averaged_weights_the_raw_are_taken_and_the_log_names_both(averaged, load, state):
    shifted = {key: value + 1 for key, value in state.items()}
    report = load({'model': state, averaged: shifted})
    assert f"of 'model' (the file has {averaged}, averaged too)" in report
    report = load({'model': shifted, averaged: state}, ema=True)
    assert f"of '{averaged}' (the file has model too)" in report
    assert f"of '{averaged}'" in load({'model': shifted, averaged: state}, prefix=f'{averaged}.')
    assert load({averaged: below('module.', state) | {'n_averaged': torch.tensor(5)}})
    report = load({'state_dict': below('model.', state) | below(f'{averaged}.', shifted)})
    assert averaged in report
    assert load({'state_dict': below('model.', shifted) | below(f'{averaged}.', state)}, ema=True)


def test_mmengines_averages_stand_under_state_dict(load, state):
    raw = {key: value + 1 for key, value in below('module.', state).items()} | {'steps': torch.tensor(7)}
    content = {'state_dict': state, 'ema_state_dict': raw, 'meta': {'mmengine_version': '0.10.7'}}
    assert "of 'state_dict' (the file has ema_state_dict too)" in load(content)
    assert "of 'state_dict'" in load(content, ema=True)
    shifted = {key: value + 1 for key, value in state.items()}
    content |= {'state_dict': shifted, 'ema_state_dict': below('module.', state)}
    assert load(content, prefix='ema_state_dict')


def test_without_averaged_weights_ema_is_refused(load, state):
    with pytest.raises(ValueError, match=r'no averaged weights among the entries \(model\): omit ema \(--ema\)'):
        load({'model': state}, ema=True)


@pytest.mark.parametrize(
    ('content', 'named'),
    [
        (lambda s: {'student': s, 'teacher': copy.deepcopy(s)}, 'student, teacher'),
        (lambda s: {'state_dict': below('encoder_q.', s) | below('encoder_k.', copy.deepcopy(s))}, 'q, .*encoder_k'),
    ],
)
def test_where_several_fit_the_choice_is_named(content, named, load, state):
    content = content(dict(state))
    with pytest.raises(ValueError, match=f'holds 2 networks that fit, .*{named}: choose one with prefix=') as error:
        load(content)
    prefix = str(error.value).rpartition('prefix=')[2].strip("'")
    assert load(content, prefix=prefix)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda m: m,
        lambda m: {'model': m, 'epoch': 3},
        lambda m: {'ema': m},
        torch.optim.swa_utils.AveragedModel,
        lambda m: nn.DataParallel(m),
        lambda m: nn.Sequential(m),
        lambda m: {'model': nn.DataParallel(m), 'args': [1]},
    ],
    ids=['alone', 'in a dict', 'ema', 'averaged', 'data parallel', 'inside', 'data parallel in a dict'],
)
def test_whole_modules_give_their_state_dict(wrap, load, source):
    content = wrap(copy.deepcopy(source))
    with pytest.raises(ValueError, match='--trust-pickle'):
        load(content)
    assert 'loaded' in load(content, trust_pickle=True)


@pytest.mark.parametrize(
    'change',
    [
        lambda s: {k: v.float() for k, v in s.items()},
        lambda s: {k: v for k, v in s.items() if not k.endswith('num_batches_tracked')},
        lambda s: {
            **s,
            'n_averaged': torch.tensor(3),
            'stem.total_ops': torch.zeros(1),
            'total_params': torch.zeros(1),
        },
        lambda s: {k: v.reshape(1) if k.endswith('num_batches_tracked') else v for k, v in s.items()},
    ],
    ids=['float', 'absent', 'more', 'another shape'],
)
def test_counters_decide_nothing(change, tmp_path, state):
    torch.save({'state_dict': change(dict(state))}, tmp_path / 'file.pth')
    model = RepNeXt(TINY)
    model.load_pretrained(str(tmp_path / 'file.pth'))
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items() if value.is_floating_point())
    assert all(own[key].dtype == value.dtype for key, value in state.items())


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (lambda s: {'resnet.' + k: v for k, v in nn.Conv2d(3, 4, 3).state_dict().items()}, "give prefix='resnet.'"),
        (lambda s: {'conv1.weight': torch.ones(2), 'fc.weight': torch.ones(2)}, 'another network, its keys begin with'),
        (lambda s: RepNeXt({**TINY, 'depths': (1, 1, 2, 1)}).state_dict(), 'set arch'),
        (lambda s: below('model.', RepNeXt({**TINY, 'depths': (1, 1, 2, 1)}).state_dict()), 'set arch'),
        (lambda s: {**s, 'stem.stem.0.conv.weight': torch.ones(4, 1, 3, 3)}, 'the other sizes'),
        (lambda s: {**s, 'stem.stem.0.conv.weight': s['stem.stem.0.conv.weight'].char()}, 'quantized'),
        (lambda s: {**s, 'stem.stem.0.conv.weight': s['stem.stem.0.conv.weight'].to(torch.complex64)}, 'converted'),
        (lambda s: {**s, 'stem.stem.0.conv.weight': s['stem.stem.0.conv.weight'].to(torch.float8_e5m2)}, 'float8_e5m2'),
    ],
    ids=['prefix', 'another network', 'arch', 'arch below', 'channels', 'int8', 'complex', 'float8'],
)
def test_the_way_out_is_the_one_that_helps(content, message, state):
    with pytest.raises(ValueError, match=message) as error:
        fit(content(dict(state)), state, source='file.pth', part=True)
    assert ('set arch' in str(error.value)) == (message == 'set arch')
    assert len(str(error.value)) < 700


def test_another_repnext_below_a_prefix_is_recognized(state):
    for prefix in ('', 'backbone.', 'model.', 'model.backbone.'):
        found = recognize(below(prefix, RepNeXt('m0').state_dict()), ARCHITECTURES)
        assert (found.arch, found.form, found.prefix) == ('m0', 'train', prefix)


def test_units_are_found_too(tmp_path):
    source = RepNeXtU(arch={'dims': (4, 8, 16, 32), 'depths': (1, 1, 1, 1)})
    for content in ({'net': below('module.', source.state_dict())}, below('encoder._orig_mod.', source.state_dict())):
        torch.save(content, tmp_path / 'file.pth')
        model = RepNeXtU(arch={'dims': (4, 8, 16, 32), 'depths': (1, 1, 1, 1)})
        model.load_pretrained(str(tmp_path / 'file.pth'))
        assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_what_holds_itself_is_looked_at_once():
    content = {'a': {'w': torch.ones(2)}}
    content['a']['b'] = content
    assert list(weights_in(content)) == ['a']
    many = {'w': torch.ones(2)}
    assert list(weights_in({str(n): many for n in range(10_000)})) == ['0']


def test_two_of_one_name_stay_apart():
    state = {'module.w': torch.ones(1), 'module._orig_mod.w': torch.zeros(1)}
    assert len(state_dict_of(state)) == 2


def test_a_model_of_any_kind_is_checked():
    target = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict()
    kept, report = check_fits(below('net.', target), target, source='file.pth')
    assert kept.keys() == target.keys()
    assert str(report) == "loaded 7/7 tensors of 'net'"


def test_a_copy_beside_the_weights_is_left_out(load, state):
    assert 'dropped' in load({**state, **below('ema.', state)})


REPLACED = {
    'pruned': (('weight_orig', 'weight_mask'), r'prune\.remove'),
    'parametrized': (('parametrizations.weight.original0',), 'remove_parametrizations'),
    'weight_norm': (('weight_g', 'weight_v'), 'weight_norm or spectral_norm'),
    'adapters': (('base_layer.weight', 'lora_A.weight'), 'merge them'),
}


@pytest.mark.parametrize('kind', REPLACED)
def test_weights_that_are_computed_from_others_are_named_with_the_way_out(kind, load, state):
    names, way_out = REPLACED[kind]
    content = {}
    for key, value in state.items():
        start, _, last = key.rpartition('.')
        content |= {f'{start}.{name}': value for name in names} if last == 'weight' else {key: value}
    with pytest.raises(ValueError, match=way_out):
        load(content)


def test_what_is_too_much_is_not_a_matter_of_sizes(load, state):
    with pytest.raises(ValueError, match=r'0 missing, 2 unexpected \(epoch, mask\); the file holds more than this'):
        load({**state, 'mask': torch.zeros(2), 'epoch': torch.tensor(3)})


def test_a_sentence_about_many_entries_is_short(load, state):
    with pytest.raises(ValueError, match='its weights are arrays, save them as tensors') as caught:
        load({key: value.numpy() for key, value in state.items()})
    assert len(str(caught.value)) < 700
