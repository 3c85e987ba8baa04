"""What timm's own suite and scripts ask of a model, asked of ours, train form and fused."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from repnext_mm.models import ARCHITECTURES
from repnext_mm.reparam.fuse import count_norms
from tests.conftest import randomize, worst_error

timm = pytest.importorskip('timm')
import repnext_mm.timm_models  # noqa: E402, F401 - registers

QUICK = ('repnext_m0', 'repnext_m0e')
MODELS = [
    pytest.param(f'repnext_{arch}', marks=() if f'repnext_{arch}' in QUICK else pytest.mark.slow)
    for arch in ARCHITECTURES
]
FORMS = ('train form', 'fused')


@pytest.fixture(autouse=True)
def _deprecated():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of TorchScript
        yield


def network(name: str, form: str = 'train form', **options) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, **options).double()
    if 'device' not in options:  # the meta device holds no numbers
        randomize(model)
    return timm.utils.reparameterize_model(model) if form == 'fused' else model


def image(size: int = 64, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', MODELS)
def test_forward_with_and_without_checkpointing(name, form):
    model = network(name, form).eval()
    expected = model(image())
    assert expected.shape == (2, 1000)
    assert expected.isfinite().all()
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(image()), expected)


@pytest.mark.parametrize('name', MODELS)
def test_backward_reaches_every_parameter(name):
    model = network(name, num_classes=42).train()
    model(image()).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize('name', MODELS)
def test_default_cfg(name):
    """Pooling, classifier and first convolution are where the configuration says; on the meta device."""
    model = network(name, device='meta', dtype=torch.float32).eval()
    cfg, state = model.default_cfg, model.state_dict()
    assert cfg['license'] == 'apache-2.0'
    for key in ('url', 'num_classes', 'input_size', 'pool_size', 'crop_pct', 'interpolation', 'mean', 'std'):
        assert key in cfg
    assert all(f'{key}.weight' in state for key in (*cfg['classifier'], cfg['first_conv']))
    batch = torch.randn(1, 3, 224, 224, device='meta').double()
    assert model.forward_features(batch).shape[-2:] == cfg['pool_size']
    assert model(batch).shape == (1, 1000)
    model.reset_classifier(0)
    assert model(batch).shape == (1, model.num_features)
    assert {parameter.device.type for parameter in model.parameters()} == {'meta'}
    pooled = network(name, num_classes=0, device='meta')
    assert pooled(batch).shape == (1, model.num_features)
    unpooled = network(name, num_classes=0, global_pool='', device='meta').eval()
    assert unpooled(batch).shape[1:] == (model.num_features, *cfg['pool_size'])
    assert not any(f'{key}.weight' in pooled.state_dict() for key in cfg['classifier'])


def extracted(model: nn.Module) -> nn.Module:
    """As timm's suite has torch.fx trace a model: through torchvision, from the image to the head."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    names = get_graph_node_names(model)
    last = list(dict.fromkeys(name for node in names for name in node[-1:]))
    return create_feature_extractor(model, eval_return_nodes=last[-1:], train_return_nodes=last[:1])


@pytest.mark.parametrize('capture', ['torchscript', 'fx', 'fx and torchscript'])
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', MODELS)
def test_graphs(name, form, capture):
    model = network(name, form, scriptable=True).eval()
    with torch.inference_mode():
        expected = model(image())
        graph = copy.deepcopy(model) if capture == 'torchscript' else extracted(copy.deepcopy(model))
        graph = graph if capture == 'fx' else torch.jit.script(graph)
        found = graph(image())
    assert worst_error(found if capture == 'torchscript' else next(iter(found.values())), expected) < 1e-12


@pytest.mark.parametrize('name', MODELS)
def test_a_recorded_graph_trains(name):
    model = network(name, num_classes=42).train()
    graph = extracted(copy.deepcopy(model)).train()
    model(image()).mean().backward()
    next(iter(graph(image()).values())).mean().backward()
    grads, scale = dict(graph.named_parameters()), max(p.grad.abs().max() for p in model.parameters())
    for key, parameter in model.named_parameters():
        assert (grads[key].grad - parameter.grad).abs().max() < 1e-11 * scale, key


@pytest.mark.parametrize('way', ['list', 'dict', 'hook', 'getter', 'fx'])
@pytest.mark.parametrize('name', MODELS)
def test_features(name, way):
    options = {'features_only': True, 'feature_cls': way}
    model, whole = network(name, **options).eval(), network(name).eval()
    found = model(image())
    levels = list(found.values()) if isinstance(found, dict) else found
    expected = whole.forward_intermediates(image(), intermediates_only=True)
    assert [level.shape[1] for level in levels] == model.feature_info.channels()
    assert [64 // level.shape[-1] for level in levels] == model.feature_info.reduction()
    assert all(worst_error(a, b) < 1e-12 for a, b in zip(levels, expected, strict=True))
    if way in ('list', 'fx'):
        assert all(worst_error(a, b) < 1e-12 for a, b in zip(torch.jit.script(model)(image()), levels, strict=True))


@pytest.mark.parametrize('way', ['list', 'dict', 'hook'])
def test_features_with_checkpointing_train_alike(way):
    grads = []
    for checkpointing in (False, True):
        model = network('repnext_m0', features_only=True, feature_cls=way).train()
        model.set_grad_checkpointing(checkpointing)
        found = model(image())
        sum(level.pow(2).mean() for level in (found.values() if way == 'dict' else found)).backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_pruned_models_run():
    model = network('repnext_m0').eval()
    expected = model.forward_intermediates(image(), indices=[1], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([1]) == [1]
    assert worst_error(model(image()), expected) < 1e-12
    assert worst_error(torch.jit.script(model)(image()), expected) < 1e-12


def test_freezing_and_unfreezing():
    from torchvision.ops import FrozenBatchNorm2d

    model = network('repnext_m0', features_only=True).eval()
    expected = model(image())
    timm.utils.freeze(model)
    assert sum(isinstance(module, FrozenBatchNorm2d) for module in model.modules()) == 53
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for mode in (False, True):  # frozen norms have none
        assert all(worst_error(a, b) < 1e-12 for a, b in zip(model.train(mode)(image()), expected, strict=True))
    fused = timm.utils.reparameterize_model(model)
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in fused.modules())
    assert all(worst_error(a, b) < 1e-12 for a, b in zip(fused(image()), expected, strict=True))
    timm.utils.unfreeze(model)
    assert count_norms(model) == 53
    assert all(worst_error(a, b) < 1e-12 for a, b in zip(model.eval()(image()), expected, strict=True))
    first = next(name for name, _ in model.named_children())
    timm.utils.freeze(model, [first])
    trained = {name.partition('.')[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert first not in trained


def test_split_batch_norm_counts_each_part_of_a_batch():
    from timm.layers import convert_splitbn_model

    plain = network('repnext_m0')
    split = convert_splitbn_model(copy.deepcopy(plain), 2)
    images = image(count=4)
    found = split.train()(images)
    apart = torch.cat([copy.deepcopy(plain).train()(part) for part in images.chunk(2)])
    assert worst_error(found, apart) < 1e-11
    assert worst_error(timm.utils.reparameterize_model(split).eval()(images), split.eval()(images)) < 1e-12


def test_synchronized_norms_fuse():
    from timm.layers import convert_sync_batchnorm

    model = network('repnext_m0').eval()
    expected = model(image())
    synchronized = convert_sync_batchnorm(model).eval()
    assert worst_error(synchronized(image()), expected) < 1e-12
    fused = timm.utils.reparameterize_model(synchronized)
    assert count_norms(fused) == 0
    assert worst_error(fused(image()), expected) < 1e-12


@pytest.mark.parametrize('channels', [1, 4])
def test_channels_of_the_image_reach_the_data_config(channels):
    model = network('repnext_m0', in_chans=channels)
    assert model.in_chans == channels
    assert timm.data.resolve_model_data_config(model)['input_size'] == (channels, 224, 224)


@pytest.mark.parametrize('device', ['cpu', 'meta'])
@pytest.mark.parametrize('dtype', [None, torch.bfloat16], ids=str)
def test_device_and_dtype(device, dtype):
    model = timm.create_model('repnext_m0', device=device, dtype=dtype)
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    assert {(tensor.device.type, tensor.dtype) for tensor in tensors} == {(device, dtype or torch.float32)}
    model.reset_classifier(5)
    assert {(p.device.type, p.dtype) for p in model.head.parameters()} == {(device, dtype or torch.float32)}
    model.reset_classifier(5, dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in model.head.parameters()} == {(device, torch.float64)}


@pytest.mark.parametrize('kind', ['LogitDistillationTask', 'FeatureDistillationTask'])
def test_distillation_tasks(kind):
    task = getattr(pytest.importorskip('timm.task'), kind)
    student, teacher = (timm.create_model(name, num_classes=5) for name in ('repnext_m0', 'resnet18'))
    trained = task(student, teacher, criterion=nn.CrossEntropyLoss(), verbose=False)
    found = trained(torch.randn(2, 3, 64, 64), torch.tensor([1, 3]))
    found['loss'].backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


class TestScripts:
    """What validate.py, benchmark.py, onnx_export.py and train.py do with a model, in their order."""

    @pytest.mark.parametrize('script', [False, True], ids=['eager', 'torchscript'])
    @pytest.mark.parametrize('averaged', [False, True], ids=['weights', 'EMA'])
    def test_validate(self, averaged, script, tmp_path):
        trained = network('repnext_m0', num_classes=7).float().train()
        average = timm.utils.ModelEmaV3(trained, decay=0.5)
        optimizer = torch.optim.SGD(trained.parameters(), 0.01)
        for _ in range(2):
            trained(image().float()).square().mean().backward()
            optimizer.step()
            average.update(trained)
        file = tmp_path / 'last.pth.tar'
        state = {'state_dict': trained.state_dict(), 'state_dict_ema': average.module.state_dict()}
        torch.save(state, file)
        model = timm.create_model('repnext_m0', num_classes=7, scriptable=script)
        timm.models.load_checkpoint(model, str(file), use_ema=averaged)
        model = timm.utils.reparameterize_model(model)
        assert count_norms(model) == 0
        assert 1e6 < sum(parameter.numel() for parameter in model.parameters()) < 3e6
        model = torch.jit.script(model) if script else model
        with torch.inference_mode():
            found = model.eval()(image().float())
        expected = (average.module if averaged else trained).eval()(image().float())
        assert worst_error(found, expected) < 1e-4

    @pytest.mark.parametrize('compiled', [False, True], ids=['eager', 'compiled'])
    def test_benchmark(self, compiled):
        model = timm.utils.reparameterize_model(timm.create_model('repnext_m0'))
        model = model.to(memory_format=torch.channels_last).eval()
        torch.compiler.reset()
        run = torch.compile(model, backend='eager', fullgraph=True) if compiled else model
        batch = torch.randn(2, *timm.data.resolve_data_config({}, model=model)['input_size'][:1], 64, 64)
        with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
            assert run(batch.contiguous(memory_format=torch.channels_last)).shape == (2, 1000)

    def test_onnx_export(self, tmp_path):
        pytest.importorskip('onnxruntime')
        pytest.importorskip('onnx')
        from timm.utils.onnx import onnx_export

        model = timm.create_model('repnext_m0', exportable=True, num_classes=3)
        model = timm.utils.reparameterize_model(model)
        options = {'input_size': (3, 64, 64), 'check': True, 'check_forward': True, 'batch_size': 2}
        onnx_export(model, str(tmp_path / 'model.onnx'), **options)
        assert (tmp_path / 'model.onnx').stat().st_size > 1e6
