"""Peers: fused as far as they go, equal to what they were, with the accuracies that are reported."""

import pytest
import torch

from repnext_mm.lab.bench.networks import PEER_FORM, build_train_form, error, in_form
from repnext_mm.lab.bench.peers import PEERS, build_peer
from repnext_mm.lab.bench.published import PHONE_MS, REPORTED, SOURCES
from repnext_mm.models.repnext import ARCHITECTURES
from repnext_mm.reparam import count_norms

timm = pytest.importorskip('timm')
ONLY_REPORTED = ('mobilevig_', 'swiftformer_', 'efficientformer')  # timed by their authors' code, not here


@pytest.mark.parametrize('name', ['repvit_m0_9', 'mobileone_s1', 'fastvit_sa12', 'starnet_s1', 'resnet50'])
def test_the_fused_peer_is_the_peer(name):
    image = torch.randn(1, 3, 64, 64)
    train_form = build_train_form(name)
    norms = count_norms(train_form)
    fused = in_form(train_form, PEER_FORM, image=image)
    with torch.no_grad():
        (output,), (reference,) = fused(image), train_form(image)
    assert output.shape[2:] == (2, 2)  # the last feature map, not pooled
    assert reference.abs().max() < 1e4  # in the range of float16
    assert error([output], [reference]) <= 1e-5
    assert count_norms(fused) <= 2 < norms == count_norms(train_form)


def test_timm_has_all_peers():
    assert set(PEERS) <= set(timm.list_models())


def test_an_unknown_peer_is_refused():
    with pytest.raises(ValueError, match="unknown peer 'vgg'"):
        build_peer('vgg')


def test_everything_that_can_be_timed_has_an_entry():
    assert set(REPORTED) == {*ARCHITECTURES, *PEERS, *(name for name in PHONE_MS if name.startswith(ONLY_REPORTED))}
    for reported in REPORTED.values():
        assert (reported.top1 is None) == (reported.source is None) == (reported.recipe is None)
        assert reported.source is None or reported.source in SOURCES


@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [('m1', 'repvit_m0_9'), ('m2', 'repvit_m1_0'), ('m3', 'repvit_m1_1'), ('m4', 'repvit_m1_5'), ('m5', 'repvit_m2_3')],
)
def test_repvit_stands_beside_repnext_of_equal_accuracy(ours, theirs):
    assert REPORTED[ours].top1 == pytest.approx(REPORTED[theirs].top1, abs=0.1)
