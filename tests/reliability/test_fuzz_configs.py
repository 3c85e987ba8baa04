"""Configs with unknown and wrongly typed fields: one sentence before any work, never a traceback from deep inside."""

from __future__ import annotations

import copy
import random

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, init_default_scope

from repnext_mm.apis import prepare_test, prepare_training
from repnext_mm.apis.config import building, load_config
from repnext_mm.errors import UserError
from repnext_mm.hooks import FuseBackboneHook, StrictLoadHook
from repnext_mm.reparam import fuse
from tests.configs import CONFIGS

BASES = ('mask_rcnn_repnext_m0_digits.py', 'semantic_fpn_repnext_m0_digits.py', 'repnext_m0_digits_cls.py')
VALUES = (None, 0, -1, 3.5, True, False, '', 'x', [], [1], ['x'], {}, {'a': 1}, {'type': 'Nope'}, [{}], [[]], (1, 2, 3))


@pytest.fixture(scope='module')
def bases():
    """Plain dicts of the configs, with a network that is built at once."""
    found = []
    for name in BASES:
        content = Config.fromfile(CONFIGS / name)._cfg_dict.to_dict()
        model = content['model']
        model['backbone']['arch'] = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}
        if 'in_channels' in model['neck']:
            model['neck']['in_channels'] = [8, 16, 32, 64]
        else:
            model['head']['in_channels'] = 64
        found.append({key: value for key, value in content.items() if not callable(value)})
    return found


def places(node, path=()):
    """Every (container, key, path) of a nested config."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield node, key, (*path, key)
        yield from places(value, (*path, key))


def changed(content, rng):
    """A config with one field replaced, removed or added, and what was done."""
    content = copy.deepcopy(content)
    container, key, path = rng.choice(list(places(content)))
    action = rng.choice(('replace', 'replace', 'replace', 'remove', 'add'))
    value = rng.choice(VALUES)
    if action == 'replace':
        container[key] = value
    elif action == 'remove':
        del container[key]
    elif isinstance(container, dict):
        container['unknown_field'] = value
    else:
        container.append(value)
    return content, f'{action} {".".join(map(str, path))} {value!r}'


def used(content, folder, *, test):
    """Read a config as the tools do, up to the model."""
    path = folder / 'config.py'
    path.write_text('\n'.join(f'{key} = {value!r}' for key, value in content.items()))
    weights = folder / 'weights.pth'
    weights.touch()
    if test:
        config = prepare_test(
            path, str(weights), work_dir=str(folder), out=str(folder / 'out.pkl'), show_dir=str(folder)
        )
    else:
        config = prepare_training(path, work_dir=str(folder))
    init_default_scope(config.get('default_scope', 'mmengine'))
    with building(config):
        return MODELS.build(config.model)


@pytest.mark.parametrize('count', [30, pytest.param(600, marks=pytest.mark.slow)])
def test_one_wrong_field(count, bases, tmp_path):
    refused = []
    for index in range(count):
        rng = random.Random(f'{count}-{index}')
        content, done = changed(rng.choice(bases), rng)
        try:
            used(content, tmp_path, test=rng.random() < 0.5)
        except UserError as error:
            refused.append(str(error))
        except Exception as error:
            raise AssertionError(f'{index}: {done}') from error
    assert count / 10 < len(refused) < count
    assert min(map(len, refused)) > 20


WRONG_SHAPES = [
    ({'model': 'RepNeXt'}, r"model='RepNeXt', which must be a dict with a `type`"),
    ({'model': {'backbone': {}}}, r'model=.*, which must be a dict with a `type`'),
    ({'model': {'type': 'A', 'backbone': 'RepNeXt'}}, r"model\.backbone='RepNeXt', which must be a dict"),
    ({'train_dataloader': 5}, r'train_dataloader=5, which must be a dict with a `dataset`'),
    ({'val_dataloader': {}}, None),
    (
        {'test_dataloader': {'batch_size': 1}},
        r'test_dataloader\.dataset=None, which must be a dict that names a data set',
    ),
    ({'test_dataloader': {'dataset': {'dataset': 3}}}, r'test_dataloader\.dataset\.dataset=3'),
    (
        {'test_dataloader': {'dataset': {'datasets': [{'type': 'A'}, 'b']}}},
        r"test_dataloader\.dataset\.datasets\[1\]='b'",
    ),
    ({'test_dataloader': {'dataset': {'datasets': 'b'}}}, r"test_dataloader\.dataset\.datasets='b'"),
    (
        {'train_dataloader': {'dataset': {'type': 'A'}, 'num_workers': -1}},
        r'train_dataloader\.num_workers=-1, which must be a number',
    ),
    ({'custom_hooks': {'type': 'EMAHook'}}, r'custom_hooks=.*, which must be a list of dicts with a `type` each'),
    ({'custom_hooks': ['EMAHook']}, r"custom_hooks\[0\]='EMAHook', which must be a dict with a `type`"),
    ({'default_hooks': {'logger': 'LoggerHook'}}, r"default_hooks\.logger='LoggerHook', which must be a dict, or None"),
    ({'test_evaluator': 'CocoMetric'}, r"test_evaluator='CocoMetric', which must be a dict, or a list of them"),
    ({'resume': 'yes'}, r"resume='yes', which must be True or False"),
    ({'load_from': 3}, r'load_from=3, which must be a string'),
]


@pytest.mark.parametrize(
    ('content', 'words'), WRONG_SHAPES, ids=lambda value: ', '.join(value) if isinstance(value, dict) else ''
)
def test_shapes(content, words, tmp_path):
    (tmp_path / 'config.py').write_text('\n'.join(f'{key} = {value!r}' for key, value in content.items()))
    if words is None:
        load_config(tmp_path / 'config.py')
        return
    with pytest.raises(ValueError, match=rf"config '.*config\.py' has {words}.*fix it there"):
        load_config(tmp_path / 'config.py')


@pytest.mark.parametrize(
    ('hook', 'option', 'value'),
    [
        *((FuseBackboneHook, 'form', value) for value in (5, 'fast', ['dense'], {'stages': 1})),
        *((FuseBackboneHook, 'tolerance', value) for value in ('x', None, True, float('inf'))),
        *((FuseBackboneHook, 'auto_size', value) for value in (512, ('512', '512'), None)),
        (FuseBackboneHook, 'compile', 'yes'),
        *((StrictLoadHook, 'reset', value) for value in ('backbone', 5, [5])),
    ],
)
def test_options_of_our_hooks(hook, option, value):
    """The option, its value and the rule; `reset='backbone'` once reset all that starts with b, a, c, k ..."""
    for build in (lambda: hook(**{option: value}), lambda: HOOKS.build({'type': hook.__name__, option: value})):
        with pytest.raises(ValueError, match=option) as caught:
            build()
        assert str(value) in str(caught.value) or repr(value) in str(caught.value) or isinstance(value, dict)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'norm_cfg': 'BN'}, r"norm_cfg='BN' must be a dict with a type"),
        ({'norm_cfg': {}}, r'norm_cfg=\{\} must be a dict'),
        ({'norm_cfg': {'type': 3}}, r"norm_cfg=\{'type': 3\} must be"),
        ({'norm_cfg': {'type': 'Nope'}}, "norm_cfg type 'Nope' is unknown: take one of BN, SyncBN, or one of mmcv"),
        ({'act_cfg': 'GELU'}, r"act_cfg='GELU' must be a dict"),
        ({'act_cfg': {'type': 'Nope'}}, "act_cfg type 'Nope' is unknown: take one of GELU, ReLU, or one of mmcv"),
    ],
)
def test_layers_of_the_backbone(options, words):
    init_default_scope('mmengine')
    with pytest.raises(ValueError, match=words):
        MODELS.build({'type': 'RepNeXt', 'arch': 'm0', **options})


def test_fuse_names_what_is_no_form():
    from repnext_mm import RepNeXt

    with pytest.raises(ValueError, match='form 5 must be one of default, .*, or a dict'):
        fuse(RepNeXt('m0').eval(), form=5)


def test_libraries_fail_in_one_sentence(tmp_path):
    (tmp_path / 'config.py').write_text("default_scope = 'mmdet'\nmodel = dict(type='Nope')\n")
    config = load_config(tmp_path / 'config.py')
    init_default_scope('mmdet')
    words = r"config '.*' cannot be built \(KeyError: .*Nope is not in .*fix that part of it"
    with pytest.raises(ValueError, match=words) as caught, building(config):
        MODELS.build(config.model)
    assert '\n' not in str(caught.value)


def test_a_library_that_cannot_be_imported_is_not_the_config_s_fault(tmp_path):
    """mmpretrain 1.2 with transformers 5, say: registries import a library's models when one is first asked for."""
    (tmp_path / 'config.py').write_text("default_scope = 'mmdet'\nmodel = dict(type='Net')\n")
    config = load_config(tmp_path / 'config.py')
    words = r'mmdet cannot be imported here \(TypeError: NoneType takes no arguments\): repnext check env says how'
    module = compile('class Bert(None): pass', 'bert.py', 'exec')
    with pytest.raises(ValueError, match=words), building(config):
        exec(module, {'__name__': 'mmdet.models.bert'})
