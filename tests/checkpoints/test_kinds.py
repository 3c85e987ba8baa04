"""Every kind of file, into a backbone and into whole models."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from torch import nn

from repnext_mm import RepNeXt
from repnext_mm.apis.build import build_model
from repnext_mm.checkpoints import load_strictly, read_checkpoint, recognize, state_dict_of
from repnext_mm.checkpoints.load import check_fits
from repnext_mm.checkpoints.read import writer_of
from repnext_mm.models import ARCHITECTURES, FORMS
from repnext_mm.reparam import fuse
from tests.checkpoints import files
from tests.configs import CONFIGS
from tests.conftest import fast, worst_error

M0 = [40, 80, 160, 320]
KINDS = ['authors_published', 'authors_training', 'timm_saver', 'old_detector', 'old_segmentor']


@pytest.fixture(scope='module')
def weights(golden_state):
    return files.typed(golden_state)


@pytest.fixture
def file_of(tmp_path, weights):
    def make(kind: str):
        path = tmp_path / f'{kind}.pth'
        others = {'neck.lateral_convs.0.conv.weight': torch.randn(256, 40, 1, 1)}
        if kind == 'old_detector':
            others |= {'roi_head.bbox_head.fc_cls.bias': torch.randn(81)}
        if kind == 'old_segmentor':
            others |= {'decode_head.conv_seg.bias': torch.randn(150)}
        builder = getattr(files, kind)
        return builder(path, weights, others) if kind.startswith('old') else builder(path, weights)

    return make


def pretrained(path, **options) -> RepNeXt:
    entry = {'type': 'Pretrained', 'checkpoint': str(path)} | options.pop('entry', {})
    model = RepNeXt('m0', init_cfg=entry, **options)
    model.init_weights()
    return model


@pytest.mark.parametrize('kind', KINDS)
def test_a_backbone_takes_it_completely(kind, file_of, weights):
    state = pretrained(file_of(kind)).state_dict()
    assert state.keys() == files.backbone_only(weights).keys()
    for key, value in state.items():
        assert torch.equal(value, weights[key]), key
        assert value.dtype == weights[key].dtype


@pytest.mark.parametrize(
    ('kind', 'task', 'writer', 'prefix'),
    [
        ('authors_published', 'classifier', "the authors' classification training", ''),
        ('authors_training', 'classifier', "the authors' classification training", ''),
        ('timm_saver', 'classifier', "timm's saver", ''),
        ('old_detector', 'detector', 'mmdet 2.28.2', 'backbone.'),
        ('old_segmentor', 'segmentor', 'mmseg 0.30.0+', 'backbone.'),
    ],
)
def test_it_is_recognized(kind, task, writer, prefix, file_of):
    content = read_checkpoint(file_of(kind))
    found = recognize(state_dict_of(content), ARCHITECTURES)
    assert (found.task, found.form, found.arch, found.prefix) == (task, 'train', 'm0', prefix)
    assert writer_of(content) == writer


@pytest.mark.parametrize('arch', fast(ARCHITECTURES, 'm0', 'm1', 'm0e'))
def test_every_arch_is_recognized_in_every_form(arch):
    model = RepNeXt(arch).eval()
    forms = {'train': model} | {form: fuse(model, form=form)[0] for form in FORMS}
    for form, network in forms.items():
        found = recognize(network.state_dict(), ARCHITECTURES)
        name = form
        if form not in ('train', 'default', 'keep_norms'):
            # 'balanced' has the keys of the default form; the E variants have one scale: nothing to merge
            name = 'default' if form == 'balanced' or arch.endswith('e') else 'merged'
        assert (found.task, found.form, found.arch) == ('backbone', name, arch)


def test_forms_for_speed_are_no_checkpoints():
    model = RepNeXt('m0', deploy=True).eval()
    with pytest.raises(ValueError, match="made for speed: save form='default'"):
        load_strictly(model, fuse(model, form='dense')[0].state_dict(), source='dense.pth')


class TestAuthorsFusedFile:
    @pytest.fixture
    def path(self, tmp_path, weights):
        backbone = RepNeXt('m0')
        backbone.load_state_dict(files.backbone_only(weights))
        kept, _ = fuse(backbone.eval(), form='keep_norms')
        network = files.FusedClassifier(kept, nn.Linear(320, 1000)).eval()
        assert set(network.state_dict()) == files.fused_names(weights)
        assert len(network.state_dict()) == 283
        with torch.no_grad():
            torch.jit.trace(network, torch.randn(1, 3, 64, 64)).save(str(tmp_path / 'm0_fused.pt'))
        return tmp_path / 'm0_fused.pt'

    def test_recognized(self, path):
        found = recognize(state_dict_of(read_checkpoint(path)), ARCHITECTURES)
        assert (found.task, found.form, found.arch) == ('classifier', 'keep_norms', 'm0')

    def test_the_deploy_form_takes_it_without_norms(self, path, weights):
        train_form = RepNeXt('m0').eval()
        train_form.load_state_dict(files.backbone_only(weights))
        deploy = pretrained(path, deploy=True).eval()
        x = torch.randn(1, 3, 65, 97)
        assert max(worst_error(a, b) for a, b in zip(deploy(x), train_form(x), strict=True)) < 1e-5

    def test_the_train_form_refuses_it(self, path):
        with pytest.raises(ValueError, match=r'branches are gone: build the backbone with deploy=True'):
            pretrained(path)

    def test_whole_models_refuse_it(self, path):
        for config in ('mask_rcnn_repnext_m0_coco.py', 'semantic_fpn_repnext_m0_ade20k.py'):
            with pytest.raises(ValueError, match='does not fit this .*holds a fused network'):
                build_model(Config.fromfile(CONFIGS / config), path)


def test_a_deploy_backbone_refuses_the_train_form(file_of):
    with pytest.raises(ValueError, match='deploy=False'):
        pretrained(file_of('authors_published'), deploy=True)


def test_another_arch_is_named(file_of):
    model = RepNeXt('m1', init_cfg={'type': 'Pretrained', 'checkpoint': str(file_of('authors_published'))})
    with pytest.raises(ValueError, match=r'the file is a RepNeXt of embed_dims=\(40, 80, 160, 320\).*set arch'):
        model.init_weights()


WHOLE = [
    ('old_detector', 'mmdet', 'mask-rcnn_r50_fpn.py', 'mask_rcnn_repnext_m0_coco.py'),
    ('old_segmentor', 'mmseg', 'fpn_r50.py', 'semantic_fpn_repnext_m0_ade20k.py'),
]


@pytest.mark.parametrize(('kind', 'package', 'base', 'config'), WHOLE, ids=['mmdet 2.28', 'mmseg 0.30'])
class TestWholeModels:
    @pytest.fixture
    def path(self, tmp_path, weights, kind, package, base):
        others = files.stock_parts(package, base, M0)
        return getattr(files, kind)(tmp_path / f'{kind}.pth', weights, others)

    def test_it_fits_our_config_strictly(self, path, kind, package, base, config):
        """The contract that no key was renamed since those versions."""
        model = build_model(Config.fromfile(CONFIGS / config), path)
        state = read_checkpoint(path)['state_dict']
        ours = model.state_dict()
        assert ours.keys() == state.keys()
        assert all(torch.equal(ours[key], value) for key, value in state.items())

    def test_other_classes_are_refused_with_the_tensor_that_differs(self, path, kind, package, base, config):
        settings = Config.fromfile(CONFIGS / config)
        head = settings.model.roi_head.bbox_head if package == 'mmdet' else settings.model.decode_head
        head.num_classes = 7
        with pytest.raises(ValueError, match=r'has shape .*num_classes'):
            build_model(settings, path)

    def test_the_backbone_alone_is_refused(self, path, kind, package, base, config, tmp_path, weights):
        alone = files.authors_published(tmp_path / 'alone.pth', weights)
        with pytest.raises(ValueError, match='the file is a classifier, the model a'):
            build_model(Config.fromfile(CONFIGS / config), alone)


def test_reset_lets_a_head_start_anew():
    model = nn.ModuleDict({'backbone': nn.Linear(2, 2), 'head': nn.Linear(2, 3)})
    state = nn.ModuleDict({'backbone': nn.Linear(2, 2), 'head': nn.Linear(2, 5)}).state_dict()
    kept, report = check_fits(state, model.state_dict(), source='file', reset=['head'])
    assert set(kept) == {'backbone.weight', 'backbone.bias'}
    assert str(report) == 'loaded 2/4 tensors, dropped 2 tensors of head'
    with pytest.raises(ValueError, match=r'head.weight has shape \(5, 2\), the model \(3, 2\)'):
        check_fits(state, model.state_dict(), source='file')
    del state['backbone.bias']
    with pytest.raises(ValueError, match='1 missing'):
        check_fits(state, model.state_dict(), source='file', reset=['head'])


def test_quantized_weights_are_refused():
    target = {'weight': torch.ones(2)}
    with pytest.raises(ValueError, match=r'weight is torch.int8, the model torch.float32'):
        check_fits({'weight': torch.ones(2, dtype=torch.int8)}, target, source='file')


def test_data_parallel_prefix(tmp_path, weights):
    torch.save({'state_dict': {f'module.{k}': v for k, v in weights.items()}}, tmp_path / 'ddp.pth')
    assert state_dict_of(read_checkpoint(tmp_path / 'ddp.pth')).keys() == weights.keys()
