"""RepNeXtClsHead in MMPretrain's ImageClassifier: the reference implementation's keys, counts and scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from repnext_mm.checkpoints.load import check_fits
from repnext_mm.models import resolve_arch
from repnext_mm.reparam import fuse
from repnext_mm.reparam.fuse import count_norms, count_parameters
from tests.conftest import fast, randomize, worst_error
from tests.models.test_repnext import PUBLISHED

pytest.importorskip('mmpretrain')
# Facts B1: 100 classes, (train form, fused with the norms of the blocks kept).
COMPACT = {'m0': (2_138_680, 2_044_300), 'm1': (4_630_316, 4_483_060), 'm4': (13_157_080, 12_880_420)}


def classifier(arch='m0', classes=1000, *, deploy=False):
    init_default_scope('mmpretrain')
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='RepNeXt', arch=arch, out_indices=(3,), deploy=deploy),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='RepNeXtClsHead', num_classes=classes, in_channels=resolve_arch(arch).embed_dims[3], deploy=deploy
            ),
        )
    )


@pytest.fixture(scope='module')
def reference(golden_state):
    model = classifier().double()
    kept, report = check_fits(golden_state, model.state_dict(), source='reference')
    assert report.loaded == report.expected == 671
    model.load_state_dict(kept)
    return model.eval()


@pytest.mark.parametrize('form', ['train', 'default', 'keep_norms', 'dense'])
def test_scores_of_the_reference(reference, golden, form):
    model = reference if form == 'train' else fuse(reference, form=form)[0]
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.standard_normal(tuple(golden['input_shape'])))
    scores = model(image, mode='tensor')
    assert scores.shape == (1, 1000)
    assert worst_error(scores, torch.from_numpy(golden['logits'])) < 1e-12


def test_a_whole_classifier_fuses_without_a_norm_left(reference):
    fused, report = fuse(reference)
    assert 'head' in report.modules
    assert count_norms(fused) == 0
    assert type(fused.head).__name__ == 'LinearClsHead'
    assert set(fused.state_dict()) == set(classifier(deploy=True).state_dict())
    assert count_norms(reference) == 55  # and the source keeps its own


@pytest.mark.parametrize('arch', fast(PUBLISHED, 'm1', 'm0e'))
def test_published_counts(arch):
    model = classifier(arch).eval()
    train, kept, folded = PUBLISHED[arch]
    assert count_parameters(model) == train
    assert count_parameters(fuse(model, form='keep_norms')[0]) == kept
    assert folded is None or count_parameters(fuse(model)[0]) == folded


@pytest.mark.parametrize('arch', COMPACT)
def test_published_counts_of_100_classes(arch):
    model = classifier(arch, 100).eval()
    assert (count_parameters(model), count_parameters(fuse(model, form='keep_norms')[0])) == COMPACT[arch]


def test_deploy_round_trip():
    model = randomize(classifier()).double().eval()
    fused, _ = fuse(model)
    deployed = classifier(deploy=True).double().eval()
    deployed.load_state_dict(fused.state_dict())
    image = torch.randn(2, 3, 64, 64).double()
    assert worst_error(deployed(image, mode='tensor'), model(image, mode='tensor')) < 1e-12


def test_predicts_and_learns_from_the_mean():
    from mmpretrain.structures import DataSample

    model = classifier(classes=5)
    samples = [DataSample().set_gt_label(label) for label in (1, 3)]
    images = torch.randn(2, 3, 32, 32)
    loss = model(images, samples, mode='loss')['loss']
    loss.backward()
    for head in (model.head.head, model.head.head_dist):
        assert head.linear.weight.grad.abs().max() > 0
    answers = model.eval()(images, samples, mode='predict')
    assert all(abs(answer.pred_score.sum() - 1) < 1e-5 for answer in answers)


@pytest.mark.parametrize('arguments', [dict(num_classes=0, in_channels=8), dict(num_classes=2, in_channels=-1)])
def test_refuses_what_cannot_be(arguments):
    with pytest.raises(ValueError, match='must be positive'):
        MODELS.build(dict(type='RepNeXtClsHead', **arguments))
