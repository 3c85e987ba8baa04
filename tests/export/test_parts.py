"""What a config's parts export: the same numbers as the ecosystem's own inference."""

from __future__ import annotations

import pytest
import torch
from mmengine.model import ImgDataPreprocessor

from repnext_mm.export import NotExportedError, choose_form, export_part, load_part, open_exported
from repnext_mm.export.formats import PACKAGES, format_of
from repnext_mm.export.graphs import IMAGENET, Normalization, Normalized
from repnext_mm.export.predict import network_input, open_file
from repnext_mm.models import FORMS
from repnext_mm.timing import NOT_FOR_SPEED
from tests.conftest import fast, randomize, worst_error
from tests.export.networks import TINY, tiny
from tests.tools.running import ROOT

CONFIGS = ROOT / 'configs'
CLASSIFIER = f"""
default_scope = 'mmpretrain'
data_preprocessor = dict(num_classes=5, mean=[123.0, 117.0, 104.0], std=[58.0, 57.0, 56.0], to_rgb=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='RepNeXt', arch=dict({', '.join(f'{k}={v}' for k, v in TINY.items())}), out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=5, in_channels=64, loss=dict(type='CrossEntropyLoss')))
"""
BACKBONE = {'_delete_': True, 'type': 'RepNeXt', 'arch': TINY}
SMALL_SEGMENTOR = {
    'model.backbone': BACKBONE,
    'model.neck.in_channels': [8, 16, 32, 64],
    'model.neck.out_channels': 16,
    'model.decode_head.in_channels': [16] * 4,
    'model.decode_head.channels': 16,
    'model.auxiliary_head': None,
}


@pytest.mark.parametrize('rgb', [True, False])
def test_normalized_takes_rgb_pixels(rgb):
    mean, std = (10.0, 20.0, 30.0), (2.0, 3.0, 4.0)
    graph = Normalized(torch.nn.Identity(), Normalization(mean, std, rgb=rgb))
    bgr = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)  # as files are read
    expected = ImgDataPreprocessor(mean, std, bgr_to_rgb=rgb)({'inputs': [bgr]})['inputs']
    torch.testing.assert_close(graph(bgr.flip(0)[None].float()), expected, rtol=0, atol=0)


@pytest.mark.parametrize('name', fast(['seg.onnx', 'seg.pt'], 'seg.pt'))
@torch.no_grad()
def test_segmentor_logits_are_those_of_whole_inference(name, tmp_path):
    config = CONFIGS / 'semantic_fpn_repnext_m0_digits.py'
    segmentor = randomize(load_part(config, options=SMALL_SEGMENTOR).network)
    torch.save({'state_dict': segmentor.state_dict()}, tmp_path / 'seg.pth')
    done = export_part(
        config, tmp_path / name, checkpoint=str(tmp_path / 'seg.pth'), options=SMALL_SEGMENTOR, shape=(1, 3, 64, 96)
    )
    assert done.fusion.norms_after < done.fusion.norms_before
    assert list(done.export.errors) == ['logits']
    image = torch.randn(2, 3, 71, 45)
    (logits,) = open_exported(tmp_path / name, format=done.export.format)(image)
    expected = segmentor.encode_decode(image, [{'img_shape': (71, 45), 'pad_shape': (71, 45)}] * 2)
    assert worst_error(logits, expected) < 1e-5


@torch.no_grad()
def test_classifier_scores_with_normalization(tmp_path):
    (tmp_path / 'cls.py').write_text(CLASSIFIER)
    classifier = randomize(load_part(tmp_path / 'cls.py').network)
    torch.save({'state_dict': classifier.state_dict()}, tmp_path / 'cls.pth')
    done = export_part(
        tmp_path / 'cls.py',
        tmp_path / 'cls.onnx',
        checkpoint=str(tmp_path / 'cls.pth'),
        normalize=True,
        shape=(1, 3, 64, 64),
    )
    assert list(done.export.errors) == ['scores']
    pixels = torch.randint(0, 256, (3, 3, 65, 47)).float()
    (scores,) = open_exported(tmp_path / 'cls.onnx', format='onnx')(pixels)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ([123.0, 117.0, 104.0], [58.0, 57.0, 56.0]))
    assert scores.shape == (3, 5)
    assert worst_error(scores, classifier((pixels - mean) / std)) < 1e-5


@pytest.mark.parametrize('name', fast(['cls.onnx', 'cls.xml', 'cls.pt'], 'cls.onnx', 'cls.pt'))
@torch.no_grad()
def test_pixels_in_uint8(name, tmp_path):
    config = tmp_path / 'cls.py'
    config.write_text(CLASSIFIER)
    format = format_of(name)
    for package in PACKAGES[format]:
        pytest.importorskip(package)
    classifier = randomize(load_part(config).network)
    torch.save({'state_dict': classifier.state_dict()}, tmp_path / 'cls.pth')
    given = dict(checkpoint=str(tmp_path / 'cls.pth'), shape=(1, 3, 64, 64))
    done = export_part(config, tmp_path / name, uint8=True, **given)
    assert max(done.export.errors.values()) < 1e-5
    pixels = torch.randint(0, 256, (3, 3, 65, 47), dtype=torch.uint8)
    (scores,) = open_exported(tmp_path / name, format=format)(pixels)
    reference = load_part(config, checkpoint=given['checkpoint'], normalize=True).reference
    assert worst_error(scores, reference(pixels.float())) < 1e-5
    if format == 'torchscript':
        return  # takes either
    exported = open_file(tmp_path / name)
    assert exported.about['dtype'] == 'uint8'
    image = pixels[:1].permute(0, 2, 3, 1)[0].numpy()
    assert network_input(image, exported.about).dtype == 'uint8'
    (again,) = exported.run(network_input(image, exported.about))
    assert worst_error(torch.from_numpy(again), scores[:1]) < 1e-6


@torch.no_grad()
def test_the_authors_classifier_by_arch(tmp_path, golden_state):
    golden_state = {key: value.float() if value.is_floating_point() else value for key, value in golden_state.items()}
    torch.save({'model': golden_state}, tmp_path / 'm0.pth')
    part = load_part('m0', part='classifier', checkpoint=str(tmp_path / 'm0.pth'))
    done = export_part(
        'm0', tmp_path / 'm0.pt', part='classifier', checkpoint=str(tmp_path / 'm0.pth'), shape=(1, 3, 64, 64)
    )
    assert (list(done.export.errors), done.fusion.norms_after) == (['scores'], 0)
    image = torch.randn(2, 3, 65, 47)
    (scores,) = open_exported(tmp_path / 'm0.pt', format='torchscript')(image)
    assert scores.shape == (2, 1000)
    assert worst_error(scores, part.network(image)) < 1e-5
    assert load_part('m0', part='classifier').network.head.head.linear.out_features == 1000
    mmpretrain = {
        f'backbone.{key}' if not key.startswith('head.') else key: value[:7] if 'linear' in key else value
        for key, value in golden_state.items()
    }
    torch.save({'state_dict': mmpretrain}, tmp_path / 'seven.pth')
    seven = load_part('m0', part='classifier', checkpoint=str(tmp_path / 'seven.pth')).network
    assert seven(image).shape == (2, 7)
    with pytest.raises(ValueError, match='does not fit this Classifier'):
        load_part('m1', part='classifier', checkpoint=str(tmp_path / 'm0.pth'))


def test_part_classifier_of_a_config(tmp_path):
    (tmp_path / 'cls.py').write_text(CLASSIFIER)
    assert load_part(tmp_path / 'cls.py', part='classifier').output_names == ('scores',)
    with pytest.raises(ValueError, match="a 'EncoderDecoder' is not a classifier: take part 'model' or 'backbone'"):
        load_part(CONFIGS / 'semantic_fpn_repnext_m0_digits.py', part='classifier', options=SMALL_SEGMENTOR)


@torch.no_grad()
def test_backbone_of_a_detector_from_a_checkpoint(tmp_path):
    detector = {'model.backbone': BACKBONE | {'out_indices': [1, 3]}, 'model.neck.in_channels': [16, 64]}
    network = tiny()
    state = {f'backbone.{key}': value for key, value in network.state_dict().items()}
    torch.save({'state_dict': {**state, 'neck.conv.weight': torch.ones(1)}}, tmp_path / 'det.pth')
    config = CONFIGS / 'mask_rcnn_repnext_m0_coco.py'
    done = export_part(
        config, tmp_path / 'det.pt', part='backbone', checkpoint=str(tmp_path / 'det.pth'), options=detector
    )
    assert list(done.export.errors) == ['stage_2', 'stage_4']
    image = torch.randn(1, 3, 64, 64)
    outputs = open_exported(tmp_path / 'det.pt', format='torchscript')(image)
    expected = network(image)
    assert max(worst_error(outputs[0], expected[1]), worst_error(outputs[1], expected[3])) < 1e-5
    part = load_part(config, part='backbone', normalize=True, options=detector)
    assert part.normalization == IMAGENET


@pytest.mark.parametrize(
    'arguments, said',
    [
        (dict(source='m9'), "'m9' is neither an arch"),
        (dict(source='m0', part='model'), "arch 'm0' names no model: take part 'backbone' or 'classifier'"),
        (dict(source='m0', part='neck'), "unknown part 'neck': choose one of backbone, classifier, model"),
        (dict(source='m0', checkpoint='none.pth'), "checkpoint 'none.pth' does not exist"),
        (dict(source='none.py'), "config 'none.py' does not exist"),
    ],
)
def test_wrong_sources_are_one_sentence(arguments, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        load_part(**arguments)


def test_normalization_that_is_not_there(tmp_path):
    (tmp_path / 'net.py').write_text("model = dict(type='RepNeXt', arch='m0')\n")
    with pytest.raises(ValueError, match='has data_preprocessor mean=None and std=None'):
        load_part(tmp_path / 'net.py', normalize=True)
    (tmp_path / 'net.py').write_text("model = dict(type='Linear', in_features=1, out_features=1)\n")
    with pytest.raises(ValueError, match='backbone Linear is not exported here'):
        load_part(tmp_path / 'net.py')


def test_a_form_per_stage(tmp_path):
    (tmp_path / 'net.py').write_text(f"model = dict(type='RepNeXt', arch={TINY})\n")
    form = {'stages.0': 'half', 'stages.2': 'dense'}
    done = export_part(tmp_path / 'net.py', tmp_path / 'net.pt', form=form, shape=(1, 3, 64, 64))
    assert done.form == form
    assert max(done.export.errors.values()) < 1e-5
    with pytest.raises(ValueError, match="unknown form 'flat'"):
        export_part(tmp_path / 'net.py', tmp_path / 'net.pt', form='flat')


def test_auto_keeps_the_fastest_and_skips_what_cannot_be_exported(tmp_path, monkeypatch):
    (tmp_path / 'net.py').write_text(f"model = dict(type='RepNeXt', arch={TINY})\n")
    part = load_part(tmp_path / 'net.py')
    choice = choose_form(part, format='torchscript', shape=(1, 3, 32, 32), rounds=3)
    assert set(choice.latencies) == set(FORMS) - {*NOT_FOR_SPEED}
    assert choice.form == min(choice.latencies, key=lambda form: choice.latencies[form].median_ms)
    assert not choice.refused

    def refuse(*_, **__):
        raise NotExportedError('net.pt was not written')

    monkeypatch.setattr('repnext_mm.export.export.export_model', refuse)
    with pytest.raises(NotExportedError, match=r'net\.pt was not written'):
        choose_form(part, format='torchscript', shape=(1, 3, 32, 32))
    with pytest.raises(ValueError, match="form 'auto' measures in the export's own runtime, and 'coreml' has none"):
        choose_form(part, format='coreml', shape=(1, 3, 32, 32))
