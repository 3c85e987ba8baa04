"""Variants are the train form in other clothes, and proved to be; peers are fused as far as they go."""

import copy

import pytest
import torch

from repnext_mm.lab.bench.networks import (
    AUTO,
    PEER_FORM,
    PEERS,
    TRAIN_FORM,
    Variant,
    build_peer,
    build_train_form,
    in_form,
    resolved,
    tolerance,
    variants,
)
from repnext_mm.lab.bench.published import REPORTED, SOURCES
from repnext_mm.models import ARCHITECTURES, FORMS
from repnext_mm.reparam.fuse import count_norms
from repnext_mm.reparam.verify import distances, worst

ONLY_REPORTED = ('mobilevig_', 'swiftformer_', 'efficientformer')  # timed by their authors' code, not here
IMAGE = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope='module')
def train_form():
    return build_train_form('m0')


@pytest.mark.parametrize('form', [TRAIN_FORM, *FORMS])
def test_every_form_is_the_train_form(train_form, form):
    before = copy.deepcopy(train_form.state_dict())
    with torch.no_grad():
        references = train_form(IMAGE)
        network = in_form(train_form, form, image=IMAGE)
        assert worst(distances(network(IMAGE), references)) <= 1e-5
        half = IMAGE.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        outputs = in_form(train_form, form, image=half)(half)
    assert outputs[0].dtype == torch.bfloat16
    assert 0 < worst(distances(outputs, train_form(half.float()))) <= tolerance(torch.bfloat16)
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in train_form.state_dict().items())


def test_a_broken_variant_is_seen_in_float32_and_half_precision(train_form):
    network = in_form(train_form, 'default', image=IMAGE)
    with torch.no_grad():
        next(p for name, p in network.stages[3].named_parameters() if name.endswith('bias')).add_(1)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            outputs = [level.to(dtype) for level in network(IMAGE)]
            assert worst(distances(outputs, train_form(IMAGE))) > tolerance(dtype)


def test_weights_are_reproducible_and_not_trivial():
    first, second = build_train_form('m0'), build_train_form('m0')
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    norms = [module for module in first.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(norm.running_mean.std() > 0 and norm.weight.std() > 0 for norm in norms)
    biases = [value for name, value in first.named_parameters() if name.endswith('bias') and value.numel() > 1]
    assert all(bias.abs().max() > 0 for bias in biases)


def test_auto_resolves_to_exact_forms(train_form):
    form = resolved(train_form, AUTO, image=IMAGE)
    assert set(form.values()) <= set(FORMS) - {'keep_norms'}
    assert worst(distances(in_form(train_form, form, image=IMAGE)(IMAGE), train_form(IMAGE))) <= 1e-5
    assert resolved(train_form, 'half', image=IMAGE) == 'half'


def test_tf32_rounds_like_float16():
    assert tolerance(torch.float32) == 1e-4
    assert tolerance(torch.float32, tf32=True) == tolerance(torch.float16)


def test_variants_are_arch_by_form_then_peers():
    assert variants(['m1', 'm4'], ['train', 'half'], ['resnet50']) == (
        Variant('m1', 'train'),
        Variant('m1', 'half'),
        Variant('m4', 'train'),
        Variant('m4', 'half'),
        Variant('resnet50', PEER_FORM),
    )


@pytest.mark.parametrize('form', ['default', 'keep_norms', {'stages.2': 'dense'}], ids=str)
def test_a_whole_classifier_by_name(form):
    name = variants(['m0'], ['train'], ['resnet50'], part='classifier')
    assert name == (Variant('m0-classifier', 'train'), Variant('resnet50-classifier', PEER_FORM))
    classifier = build_train_form('m0-classifier')
    with torch.no_grad():
        (scores,) = references = classifier(IMAGE)
        assert scores.shape == (1, 1000)
        assert worst(distances(in_form(classifier, form, image=IMAGE)(IMAGE), references)) <= 1e-5
    with pytest.raises(ValueError, match="unknown part 'head': choose from backbone, classifier"):
        variants(['m0'], ['train'], part='head')


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        ((['m9'], ['train']), "unknown arch 'm9': choose from m0"),
        ((['m0'], ['folded']), "unknown form 'folded': choose from train, default"),
        ((['m0'], ['train'], ['vgg']), "unknown peer 'vgg': choose from repvit_m0_9"),
        ((['m0', 'm0'], ['train']), 'arch given twice in m0, m0'),
        (([], [], []), 'nothing to time'),
    ],
    ids=['arch', 'form', 'peer', 'twice', 'nothing'],
)
def test_unknown_names_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        variants(*names)


@pytest.mark.parametrize('name', ['repvit_m0_9', 'mobileone_s1', 'fastvit_sa12', 'starnet_s1', 'resnet50'])
def test_the_fused_peer_is_the_peer(name):
    pytest.importorskip('timm')
    image = torch.randn(1, 3, 64, 64)
    train_form = build_train_form(name)
    norms = count_norms(train_form)
    fused = in_form(train_form, PEER_FORM, image=image)
    with torch.no_grad():
        (output,), (reference,) = fused(image), train_form(image)
    assert output.shape[2:] == (2, 2)  # the last feature map, not pooled
    assert reference.abs().max() < 1e4  # in the range of float16
    assert worst(distances([output], [reference])) <= 1e-5
    assert count_norms(fused) <= 2 < norms == count_norms(train_form)


def test_timm_has_all_peers():
    timm = pytest.importorskip('timm')
    assert set(PEERS) <= set(timm.list_models())


def test_an_unknown_peer_is_refused():
    with pytest.raises(ValueError, match="unknown peer 'vgg'"):
        build_peer('vgg')


def test_everything_that_can_be_timed_has_an_entry():
    assert set(REPORTED) == {*ARCHITECTURES, *PEERS, *(name for name in REPORTED if name.startswith(ONLY_REPORTED))}
    for reported in REPORTED.values():
        assert (reported.top1 is None) == (reported.source is None) == (reported.recipe is None)
        assert reported.source is None or reported.source in SOURCES


@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [('m1', 'repvit_m0_9'), ('m2', 'repvit_m1_0'), ('m3', 'repvit_m1_1'), ('m4', 'repvit_m1_5'), ('m5', 'repvit_m2_3')],
)
def test_repvit_stands_beside_repnext_of_equal_accuracy(ours, theirs):
    assert REPORTED[ours].top1 == pytest.approx(REPORTED[theirs].top1, abs=0.1)
