"""TorchScript, torch.fx, traces and both ONNX exporters take both forms of the backbones, exactly."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings

import pytest
import torch
from torch import nn

from repnext_mm import RepNeXt
from repnext_mm.models import FORMS, RepNeXtU
from repnext_mm.reparam import fuse
from tests.conftest import randomize, worst_error

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 2, 1)}
UNITS = {'dims': (6, 12, 18, 24), 'depths': (1, 1, 2, 1)}
NETWORKS = {
    'multi': lambda: RepNeXt(TINY, drop_path_rate=0.1),
    'two levels': lambda: RepNeXt(TINY, out_indices=(1, 3)),
    'single': lambda: RepNeXt({**TINY, 'token_mixer': 'single'}),
    'u1': lambda: RepNeXtU(UNITS, 'u1'),
    'u2': lambda: RepNeXtU(UNITS, 'u2'),
    'u3': lambda: RepNeXtU(UNITS, 'u3'),
}
MORE_FORMS = {'multi': FORMS, 'u1': ('default', 'no_shortcut')}
QUICK = {('multi', 'train'), ('multi', 'eval'), ('multi', 'default'), ('multi', 'dense'), ('u1', 'eval')}
CASES = [
    pytest.param(kind, form, marks=() if (kind, form) in QUICK else pytest.mark.slow)
    for kind in NETWORKS
    for form in ('train', 'eval', *MORE_FORMS.get(kind, ('default',)))
]


def network(kind: str, form: str) -> nn.Module:
    torch.manual_seed(0)
    model = randomize(NETWORKS[kind]()).double().eval()
    if form in ('train', 'eval'):
        return model.train(form == 'train')
    return fuse(model, form=form)[0].requires_grad_(False)


@pytest.fixture(autouse=True)
def _deprecated():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of TorchScript, and what PyTorch's own norms do while they are traced
        yield


CAPTURES = {
    'script': lambda model, x: torch.jit.script(model),
    'fx': lambda model, x: torch.fx.symbolic_trace(model),
    'fx, scripted': lambda model, x: torch.jit.script(torch.fx.symbolic_trace(model)),
    'trace': lambda model, x: torch.jit.trace(model, x, check_trace=False),
}


@pytest.mark.parametrize('form', ['train', 'default'])
@pytest.mark.parametrize('kind', NETWORKS)
def test_no_class_has_annotations_in_words(kind, form):
    """Scripting with PyTorch 2.1 fails on them."""
    for module in network(kind, form).modules():
        for parent in type(module).__mro__:
            if parent.__module__.startswith('repnext_mm'):
                assert not [value for value in inspect.get_annotations(parent).values() if isinstance(value, str)]


@pytest.mark.parametrize('capture', CAPTURES.values(), ids=CAPTURES)
@pytest.mark.parametrize(('kind', 'form'), CASES)
def test_a_captured_graph_is_the_network(kind, form, capture):
    x, other = torch.randn(2, 3, 64, 64).double(), torch.randn(2, 3, 96, 64).double()
    graph, model = capture(network(kind, form), x), network(kind, form)
    for image in (x, other):
        torch.manual_seed(0)  # drop path
        levels = graph(image)
        torch.manual_seed(0)
        expected = model(image)
        assert len(levels) == len(expected)
        assert all(worst_error(a, b) < 1e-12 for a, b in zip(levels, expected, strict=True))
    assert graph.state_dict().keys() == model.state_dict().keys()
    buffers = dict(graph.named_buffers())
    for name, buffer in model.named_buffers() if capture is not CAPTURES['trace'] else ():  # tracing runs it once more
        torch.testing.assert_close(buffers[name], buffer, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('form', ['train', 'eval'])
def test_a_recorded_graph_trains_as_the_branches(form):
    model, x = network('multi', form), torch.randn(2, 3, 64, 64).double()
    for module in model.modules():
        if hasattr(module, 'p'):
            module.p = 0.0
    graph = torch.fx.symbolic_trace(copy.deepcopy(model))
    for each in (model, graph):
        sum(level.square().mean() for level in each(x)).backward()
    grads = dict(graph.named_parameters())
    scale = max(p.grad.abs().max() for p in model.parameters())
    for name, parameter in model.named_parameters():
        assert (grads[name].grad - parameter.grad).abs().max() < 1e-13 * scale, name


def test_recomputing_is_left_out_of_graphs():
    model, x = RepNeXt(TINY, with_cp=True).double().train(), torch.randn(2, 3, 64, 64).double()
    plain = copy.deepcopy(model)
    graph = torch.fx.symbolic_trace(copy.deepcopy(model))
    traced = torch.jit.trace(copy.deepcopy(model), x, check_trace=False)
    expected = plain(x)
    for captured in (graph, traced):
        assert all(worst_error(a, b) < 1e-12 for a, b in zip(captured(x), expected, strict=True))


@pytest.mark.parametrize('form', ['eval', *FORMS])
def test_features_are_found_by_torchvision(form):
    extraction = pytest.importorskip('torchvision.models.feature_extraction')
    model, x = network('multi', form), torch.randn(1, 3, 64, 64).double()
    extractor = extraction.create_feature_extractor(model, {'stages.1': 'second', 'stages.2.blocks.0': 'block'})
    found = extractor(x)
    assert worst_error(found['second'], model(x)[1]) < 1e-12
    assert found['block'].shape == (1, 32, 4, 4)


@pytest.mark.parametrize('form', ['eval', 'train', 'default'])
def test_counting_what_runs(form):
    """mmengine's analysis, which get_flops.py of the mm packages call, counts every convolution that it calls."""
    analysis = pytest.importorskip('mmengine.analysis')
    logging.getLogger('mmengine').setLevel(logging.ERROR)
    model, counted = network('multi', form), []
    found = analysis.get_model_complexity_info(model, inputs=(torch.randn(2, 3, 64, 64).double(),), show_table=False)
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        conv.register_forward_hook(lambda conv, args, output: counted.append(output.numel() * conv.weight[0].numel()))
    model(torch.randn(2, 3, 64, 64).double())
    assert sum(counted) == pytest.approx(found['flops'], rel=0.15)  # which counts norms and sums too
    assert sum(counted) < found['flops'] * (1 + 1e-9)


@pytest.mark.parametrize('dynamo', [False, pytest.param(True, marks=pytest.mark.slow)], ids=['traced', 'exported'])
@pytest.mark.parametrize('form', ['eval', 'default'])
@pytest.mark.parametrize('kind', ['multi', 'u3'])
def test_both_onnx_exporters(kind, form, dynamo, tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    if dynamo:
        pytest.importorskip('onnxscript')
    model, x = network(kind, form).float(), torch.randn(1, 3, 64, 64)
    file = str(tmp_path / 'model.onnx')
    options = {'dynamo': dynamo} if 'dynamo' in (torch.onnx.export.__kwdefaults__ or ()) else {}
    if dynamo and not options:
        pytest.skip('torch before 2.5')
    torch.onnx.export(model, (x,), file, **options)
    session = runtime.InferenceSession(file, providers=['CPUExecutionProvider'])
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for found, expected in zip(outputs, model(x), strict=True):
        assert worst_error(torch.from_numpy(found), expected.detach()) < 1e-5
