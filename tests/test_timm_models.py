"""RepNeXt through timm: the same network, behind timm's whole interface."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from repnext_mm.models import ARCHITECTURES
from repnext_mm.reparam.fuse import count_norms, count_parameters
from tests.checkpoints.files import authors_published, timm_saver, typed
from tests.conftest import fast, randomize, worst_error
from tests.models.test_repnext import PUBLISHED

timm = pytest.importorskip('timm')
import repnext_mm.timm_models  # noqa: E402, F401 - registers


def test_all_are_registered():
    assert {f'repnext_{arch}' for arch in ARCHITECTURES} <= set(timm.list_models('repnext*'))
    assert timm.is_model_pretrained('repnext_m1')
    assert not timm.is_model_pretrained('repnext_m1e')


@pytest.mark.parametrize('arch', fast(PUBLISHED, 'm1', 'm0e'))
def test_published_counts(arch):
    model = timm.create_model(f'repnext_{arch}')
    train, _, folded = PUBLISHED[arch]
    assert count_parameters(model) == train
    deploy = timm.models.reparameterize_model(model.eval())
    assert folded is None or count_parameters(deploy) == folded


def test_the_reference_weights_give_the_reference_scores(tmp_path, golden, golden_state):
    """The authors' file, through timm's own options."""
    torch.save({'model': golden_state}, tmp_path / 'repnext_m0_distill_300e.pth')
    overlay = dict(file=str(tmp_path / 'repnext_m0_distill_300e.pth'))
    torch.set_default_dtype(torch.float64)
    try:
        model = timm.create_model('repnext_m0', pretrained=True, pretrained_cfg_overlay=overlay).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    image = torch.from_numpy(np.random.default_rng(0).standard_normal(tuple(golden['input_shape'])))
    for network in (model, timm.models.reparameterize_model(model)):
        assert worst_error(network(image), torch.from_numpy(golden['logits'])) < 1e-12


def test_other_classes_keep_the_body_of_the_weights(tmp_path, golden_state):
    torch.save({'model': golden_state}, tmp_path / 'file.pth')
    overlay = dict(file=str(tmp_path / 'file.pth'))
    model = timm.create_model('repnext_m0', pretrained=True, pretrained_cfg_overlay=overlay, num_classes=10)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    key = 'stages.2.blocks.8.channel_mixer.2.conv.weight'
    torch.testing.assert_close(model.state_dict()[key], golden_state[key].float())


def test_pretrained_cfg():
    cfg = timm.create_model('repnext_m1').pretrained_cfg
    assert cfg['url'].endswith('/v1.0/repnext_m1_distill_300e.pth')
    assert (cfg['input_size'], cfg['crop_pct'], cfg['interpolation']) == ((3, 224, 224), 0.875, 'bicubic')
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=cfg))
    assert transform.transforms[0].size == 256


@pytest.mark.parametrize('tag', ['', '.starnet_in1k'])
def test_pretrained_takes_the_published_file_that_is_here(tag, tmp_path, monkeypatch, golden_state):
    """By our reader: raw weights of a file that timm's own would not read, and no download of its own."""
    monkeypatch.chdir(tmp_path)
    Path('pretrain').mkdir()
    if tag:
        timm_saver(Path('pretrain/repnext_m0_sz224_4xbs512_ep300.pth.tar'), typed(golden_state))
    else:
        authors_published(Path('pretrain/repnext_m0_distill_300e.pth'), typed(golden_state))
    model = timm.create_model(f'repnext_m0{tag}', pretrained=True)
    assert all(torch.equal(value, golden_state[key].to(value.dtype)) for key, value in model.state_dict().items())
    assert 'state_dict' not in model.pretrained_cfg
    assert model.pretrained_cfg['crop_pct'] == (0.9 if tag else 0.875)
    features = timm.create_model(f'repnext_m0{tag}', pretrained=True, features_only=True, in_chans=1)
    assert features(torch.randn(1, 1, 64, 64))[3].shape == (1, 320, 2, 2)
    assert 'state_dict' not in features.pretrained_cfg


def test_pretrained_without_a_file_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r'put the file of https://github\.com/\S+/repnext_m0_distill_300e\.pth in '
    ):
        timm.create_model('repnext_m0', pretrained=True)


def test_pretrained_is_strict(tmp_path, golden_state):
    authors_published(tmp_path / 'm0.pth', {key: value for key, value in golden_state.items() if 'stem' not in key})
    overlay = dict(file=str(tmp_path / 'm0.pth'))
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "stem\.stem\.0\.conv\.weight"'):
        timm.create_model('repnext_m0', pretrained=True, pretrained_cfg_overlay=overlay)


def test_deploy_form_is_complete():
    model = randomize(timm.create_model('repnext_m0')).double().eval()
    image = torch.randn(2, 3, 64, 64).double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    deploy = timm.models.reparameterize_model(model)
    assert count_norms(deploy) == 0
    assert type(deploy.head) is nn.Linear
    assert worst_error(deploy(image), model(image)) < 1e-12
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('options', [{}, dict(out_indices=(1, 3))], ids=['all', 'two'])
def test_features_only(options):
    model = timm.create_model('repnext_m0', features_only=True, **options).eval()
    taken = options.get('out_indices', (0, 1, 2, 3))
    channels = [(40, 80, 160, 320)[i] for i in taken]
    assert model.feature_info.channels() == channels
    assert model.feature_info.reduction() == [4 * 2**i for i in taken]
    shapes = [tuple(level.shape) for level in model(torch.randn(1, 3, 64, 96))]
    assert shapes == [(1, c, 16 >> i, 24 >> i) for c, i in zip(channels, taken, strict=True)]


def test_features_by_getter_are_those_of_the_lists():
    image = torch.randn(1, 3, 64, 64)
    model = timm.create_model('repnext_m0').eval()
    last, levels = model.forward_intermediates(image)
    torch.testing.assert_close(last, model.forward_features(image))
    assert len(levels) == 4
    two = model.forward_intermediates(image, indices=[0, 1], intermediates_only=True, stop_early=True)
    torch.testing.assert_close(two, levels[:2])
    getter = timm.create_model('repnext_m0', features_only=True, feature_cls='getter', out_indices=(0, 2)).eval()
    assert [level.shape[1] for level in getter(image)] == [40, 160]
    with pytest.raises(ValueError, match="'NCHW'"):
        model.forward_intermediates(image, output_fmt='NHWC')


def test_heads():
    model = timm.create_model('repnext_m0', num_classes=0).eval()
    image = torch.randn(2, 3, 64, 64)
    assert model(image).shape == (2, 320)
    model.reset_classifier(7)
    assert model(image).shape == (2, 7)
    assert model.get_classifier() is model.head
    assert not model.head.training
    assert model.forward_head(model.forward_features(image), pre_logits=True).shape == (2, 320)
    model.reset_classifier(5, 'catavgmax')
    assert model(image).shape == (2, 5)
    model.reset_classifier(0, '')
    assert model(image).shape == (2, 320, 2, 2)


def test_options():
    model = timm.create_model('repnext_m0', in_chans=1, drop_rate=0.2, drop_path_rate=0.1)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 1000)
    with pytest.raises(TypeError, match='layer_scale'):
        timm.create_model('repnext_m0', layer_scale=1.0)


def test_gradient_checkpointing_changes_nothing():
    model = timm.create_model('repnext_m0', num_classes=3).double()
    images = torch.randn(2, 3, 32, 32).double()
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().sum().backward()
        grads.append(model.stem.stem[0].conv.weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_parameter_groups():
    from timm.models import group_parameters
    from timm.optim import param_groups_weight_decay

    model = timm.create_model('repnext_m0')
    groups = group_parameters(model, model.group_matcher(coarse=True))
    assert {name for names in groups.values() for name in names} == {name for name, _ in model.named_parameters()}
    free, decayed = param_groups_weight_decay(model, 0.1)
    assert (free['weight_decay'], decayed['weight_decay']) == (0.0, 0.1)


def test_fusing_in_training_mode_takes_the_running_statistics():
    """timm's scripts fuse right after they have built a model, before eval()."""
    model = randomize(timm.create_model('repnext_m0')).double()
    image = torch.randn(1, 3, 64, 64).double()
    deploy = timm.utils.reparameterize_model(model)
    assert count_norms(deploy) == 0
    assert all(module.training for module in (*model.modules(), *deploy.modules()))
    assert worst_error(deploy.eval()(image), model.eval()(image)) < 1e-12


def test_a_part_with_hooks_stays_when_timm_fuses():
    model = randomize(timm.create_model('repnext_m0')).double().eval()
    block = model.stages[2].blocks[1]
    block.register_forward_hook(lambda module, args, output: 1.5 * output)
    block.channel_mixer[2].conv.register_forward_pre_hook(lambda module, args: (args[0] - 1,))
    model.head.head.norm.register_forward_hook(lambda module, args, output: output + 1)
    image = torch.randn(1, 3, 64, 64).double()
    assert worst_error(timm.utils.reparameterize_model(model)(image), model(image)) < 1e-12
