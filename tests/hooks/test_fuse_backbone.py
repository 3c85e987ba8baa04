"""FuseBackboneHook on a real Runner: what is tested is fused and equal, and what was trained comes back."""

from __future__ import annotations

import itertools
import logging
import socket
from typing import ClassVar

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, BaseTTAModel, MMDistributedDataParallel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from repnext_mm import FuseBackboneHook, RepNeXt
from repnext_mm.apis.safe_loading import reading_safely
from repnext_mm.hooks import StrictLoadHook
from repnext_mm.reparam import relative_error
from repnext_mm.reparam.fuse import count_norms
from tests.conftest import randomize

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}


class Images(Dataset):
    metainfo: ClassVar[dict] = {}

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        return {'inputs': torch.randn(3, 32, 48, generator=generator)}


class Regressor(BaseModel):
    """A backbone, a head, and a record of the backbones that it was tested with."""

    def __init__(self, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone or randomize(RepNeXt(TINY))
        self.head = nn.Linear(64, 1)
        self.tested: list[tuple[int, bool]] = []

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = inputs if isinstance(inputs, torch.Tensor) else torch.stack(tuple(inputs))
        y = self.head(self.backbone(x)[-1].mean((2, 3)))
        if mode == 'loss':
            return {'loss': y.pow(2).mean()}
        self.tested.append((count_norms(self.backbone), self.training))
        return [{'y': value} for value in y]


class Outputs(BaseMetric):
    """Reports every output, and fails on demand."""

    fail = False

    def process(self, data_batch, data_samples):
        if self.fail:
            raise ArithmeticError('a metric failed')
        self.results += [sample['y'].item() for sample in data_samples]

    def compute_metrics(self, results):
        return {'outputs': list(results)}


class FlipTTA(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return [{'y': torch.stack([sample['y'] for sample in samples]).mean(0)} for samples in data_samples_list]


def loader(dataset: Dataset | None = None) -> dict:
    sampler = {'type': 'DefaultSampler', 'shuffle': False}
    return {'dataset': dataset or Images(), 'batch_size': 2, 'num_workers': 0, 'sampler': sampler}


@pytest.fixture
def make_runner(tmp_path, request):
    names = (f'{request.node.name}-{index}' for index in itertools.count())

    def make(model: nn.Module, hooks: list, **options) -> Runner:
        defaults = {
            'work_dir': str(tmp_path),
            'train_dataloader': loader(),
            'test_dataloader': loader(),
            'train_cfg': {'by_epoch': True, 'max_epochs': 1},
            'test_cfg': {},
            'test_evaluator': [Outputs()],
            'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.05}},
            'default_hooks': {'checkpoint': None},
            'experiment_name': next(names),
        }
        return Runner(model, custom_hooks=hooks, **defaults | options)

    return make


def state(model: nn.Module) -> dict:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def outputs_of(model: nn.Module) -> list[float]:
    """Train-form outputs, without any runner."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        result = [model(Images()[i]['inputs'][None], mode='predict')[0]['y'].item() for i in range(4)]
    for module, training in flags:
        module.training = training
    model.tested.clear()
    return result


def test_alone(make_runner):
    model = Regressor().train()
    model.head.eval()
    expected, before, flags = outputs_of(model), state(model), [m.training for m in model.modules()]
    runner = make_runner(model, [FuseBackboneHook()])
    assert runner.test()['outputs'] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert model.tested == [(0, False)] * 2
    assert runner.model is model
    assert isinstance(model.backbone, RepNeXt)
    assert count_norms(model.backbone) > 0
    assert same(before, state(model))
    assert flags == [m.training for m in model.modules()]
    assert all(p.requires_grad for p in model.parameters())


def test_without_the_hook_nothing_is_fused(make_runner):
    model = Regressor()
    make_runner(model, []).test()
    assert [norms for norms, _ in model.tested] == [count_norms(model.backbone)] * 2


def test_called_twice(make_runner):
    model = Regressor()
    runner = make_runner(model, [FuseBackboneHook()])
    assert runner.test() == runner.test()
    assert model.tested == [(0, False)] * 4
    assert runner.model is model


def test_train_test_train_is_as_training_without_the_test(make_runner):
    torch.manual_seed(1)
    plain = Regressor()
    tested = Regressor()
    tested.load_state_dict(plain.state_dict())
    results = []
    for model, with_test in ((plain, False), (tested, True)):
        runner = make_runner(model, [FuseBackboneHook()], randomness={'seed': 3})
        runner.train()
        if with_test:
            runner.test_loop.run()
            assert model.tested == [(0, False)] * 2
        runner.train_loop._max_epochs, runner.train_loop._max_iters = 2, 4
        runner.train_loop.run()
        results.append(state(model))
    assert same(*results)


class TestWithEMA:
    """The fused backbone is that of the EMA weights, and both sets of weights survive."""

    HOOK: ClassVar[dict] = {'type': 'EMAHook', 'momentum': 0.5}

    def trained(self, make_runner) -> tuple[Runner, Hook, Regressor]:
        model = Regressor()
        runner = make_runner(model, [self.HOOK, FuseBackboneHook()])
        runner.train()
        ema = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
        raw, averaged = state(model), state(ema.ema_model.module)
        assert not same(raw, averaged)
        return runner, ema, model

    def expected(self, ema: Hook, model: Regressor) -> list[float]:
        """EMA averages parameters; norm statistics are the model's own."""
        reference = Regressor()
        reference.load_state_dict(model.state_dict())
        for parameter, value in zip(reference.parameters(), ema.ema_model.module.parameters(), strict=True):
            parameter.data.copy_(value)
        return outputs_of(reference)

    def test_after_training(self, make_runner):
        runner, ema, model = self.trained(make_runner)
        raw, averaged, expected = state(model), state(ema.ema_model.module), self.expected(ema, model)
        for _ in range(2):
            model.tested.clear()
            assert runner.test_loop.run()['outputs'] == pytest.approx(expected, rel=1e-4, abs=1e-5)
            assert model.tested == [(0, False)] * 2
            assert same(raw, state(model))
            assert same(averaged, state(ema.ema_model.module))
            assert runner.model is model

    def test_through_a_resumed_checkpoint(self, make_runner, tmp_path):
        runner, ema, model = self.trained(make_runner)
        expected = self.expected(ema, model)
        runner.save_checkpoint(str(tmp_path), 'ema.pth', save_param_scheduler=False)
        again = Regressor()
        hooks = [self.HOOK, FuseBackboneHook(), StrictLoadHook()]
        resumed = make_runner(again, hooks, load_from=str(tmp_path / 'ema.pth'), resume=True)
        with reading_safely():
            assert resumed.test()['outputs'] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert [norms for norms, _ in again.tested] == [0, 0]
        assert same(state(again), state(model))

    def test_when_the_test_raises(self, make_runner):
        runner, _, model = self.trained(make_runner)
        runner.test_evaluator.metrics[0].fail = True
        structure = repr(model)
        with pytest.raises(ArithmeticError):
            runner.test_loop.run()
        assert runner.model is model
        assert repr(model) == structure
        assert model.training


@pytest.mark.parametrize('entry', ['runner.test', 'test_loop.run'])
def test_a_test_that_raises_puts_the_model_back(make_runner, entry):
    model = Regressor().train()
    before = state(model)
    runner = make_runner(model, [FuseBackboneHook()])
    runner.test_evaluator.metrics[0].fail = True
    if entry == 'test_loop.run':
        runner.call_hook('before_run')
    with pytest.raises(ArithmeticError):
        runner.test() if entry == 'runner.test' else runner.test_loop.run()
    assert runner.model is model
    assert model.training
    assert same(before, state(model))
    runner.test_evaluator.metrics[0].fail = False
    runner.test()
    assert runner.model is model


class Augmented(Images):
    """Each image and its mirror, as a test-time-augmentation pipeline gives them."""

    def __getitem__(self, index: int) -> dict:
        image = super().__getitem__(index)['inputs']
        return {'inputs': [image, image.flip(-1)]}


def test_inside_test_time_augmentation(make_runner):
    model = Regressor()
    tta = FlipTTA(module=model)
    plain = make_runner(tta, [], test_dataloader=loader(dataset=Augmented())).test()['outputs']
    model.tested.clear()
    runner = make_runner(tta, [FuseBackboneHook()], test_dataloader=loader(dataset=Augmented()))
    assert runner.test()['outputs'] == pytest.approx(plain, rel=1e-4, abs=1e-5)
    assert model.tested == [(0, False)] * 4  # two batches, two views each
    assert runner.model is tta
    assert tta.module is model
    assert count_norms(model.backbone) > 0


def test_inside_distributed_data_parallel(make_runner, monkeypatch):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    for key, value in {
        'RANK': '0',
        'WORLD_SIZE': '1',
        'LOCAL_RANK': '0',
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': port,
        'OMP_NUM_THREADS': '1',
        'MKL_NUM_THREADS': '1',
    }.items():
        monkeypatch.setenv(key, value)
    model = Regressor()
    expected, before = outputs_of(model), state(model)
    torch.distributed.init_process_group('gloo')
    wrapper_cfg = {'type': 'MMDistributedDataParallel', 'device_ids': None, 'broadcast_buffers': False}
    try:
        runner = make_runner(model, [FuseBackboneHook()], launcher='pytorch', cfg={'model_wrapper_cfg': wrapper_cfg})
        wrapper = runner.model
        assert isinstance(wrapper, MMDistributedDataParallel)
        assert runner.test()['outputs'] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert model.tested == [(0, False)] * 2
        assert runner.model is wrapper
        assert wrapper.module is model
        assert same(before, state(model))
        runner.train()
        runner.test_loop.run()
        assert runner.model is wrapper
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture
def log(caplog):
    logger = MMLogger.get_instance('hook-test')
    logger.addHandler(caplog.handler)
    yield caplog
    MMLogger._instance_dict.clear()


class TestWithoutRunner:
    def test_fuse_backbone(self, log):
        log.set_level(logging.INFO)
        model = Regressor().train()
        fused, report = FuseBackboneHook().fuse_backbone(model)
        assert fused is not model
        assert fused.head is model.head
        assert model.training
        assert model.backbone.training
        assert not fused.backbone.training
        assert report.norms_after == 0
        errors = relative_error(fused.backbone, model.backbone.eval(), torch.randn(1, 3, 64, 64))
        assert max(errors) < 1e-5
        (line,) = [r.message for r in log.records if r.name == 'mmengine' and 'fused' in r.message]
        assert line.startswith(f'RepNeXt: fused {len(report.modules)} modules: parameters ')
        assert 'norms 23 -> 0' in line

    @pytest.mark.parametrize('backbone', [nn.Conv2d(3, 8, 3), RepNeXt(TINY, deploy=True)], ids=['plain', 'deploy'])
    def test_nothing_to_fuse(self, log, backbone):
        model = Regressor(backbone)
        fused, report = FuseBackboneHook().fuse_backbone(model)
        assert fused is model
        assert not report
        assert 'nothing to fuse' in log.text

    def test_no_backbone(self, log):
        model = nn.Linear(1, 1)
        fused, report = FuseBackboneHook().fuse_backbone(model)
        assert fused is model
        assert not report
        assert 'Linear has no backbone' in log.text

    def test_nan_never_passes(self):
        model = Regressor()
        model.backbone.stages[2].blocks[0].norm.running_mean[0] = float('nan')
        with pytest.raises(RuntimeError, match=r'nan.*remove FuseBackboneHook'):
            FuseBackboneHook(tolerance=1e30).fuse_backbone(model.train())
        assert model.backbone.training

    def test_a_wrong_fusing_is_caught(self, monkeypatch):
        from repnext_mm.models import RepDWConvS

        original = RepDWConvS.fused

        def wrong(self, form):
            conv = original(self, form)
            conv.weight.data[..., 0, 0] += 0.1
            return conv

        monkeypatch.setattr(RepDWConvS, 'fused', wrong)
        with pytest.raises(RuntimeError, match='differs from the trained one'):
            FuseBackboneHook().fuse_backbone(Regressor())

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64], ids=str)
    def test_other_precisions(self, dtype):
        fused, report = FuseBackboneHook().fuse_backbone(Regressor().to(dtype))
        assert report
        assert {p.dtype for p in fused.parameters()} == {dtype}

    def test_keep_norms(self):
        fused, _ = FuseBackboneHook(form='keep_norms').fuse_backbone(Regressor())
        assert count_norms(fused.backbone) == 7

    def test_forms_of_stages(self):
        fused, _ = FuseBackboneHook(form={'stages.0': 'dense', 'stages.3': 'half'}).fuse_backbone(Regressor())
        stages = [stage.blocks.modules() for stage in fused.backbone.stages]
        convolutions = [sum(isinstance(module, nn.Conv2d) for module in modules) for modules in stages]
        assert convolutions == [4, 6, 6, 5]  # the two of the channel mixer, and the token mixer's; dense holds a border

    def test_auto_takes_what_is_fastest_at_the_given_size(self, monkeypatch):
        from repnext_mm import timing

        seen = []
        monkeypatch.setattr(
            timing, 'fastest_form', lambda backbone, image: seen.append(image.shape) or {'stages.1': 'dense'}
        )
        model = Regressor()
        fused, report = FuseBackboneHook(form='auto', auto_size=(64, 96)).fuse_backbone(model)
        assert seen == [(1, 3, 64, 96)]
        assert report.form == {'stages.1': 'dense'}
        assert max(relative_error(fused.backbone, model.backbone.eval(), torch.randn(1, 3, 65, 97))) < 1e-4

    def test_auto_for_real(self):
        _, report = FuseBackboneHook(form='auto', auto_size=(32, 32)).fuse_backbone(Regressor())
        assert report.norms_after == 0

    def test_compile_wraps_the_fused_backbone(self):
        fused, _ = FuseBackboneHook(compile=True).fuse_backbone(Regressor())
        assert hasattr(fused.backbone, '_orig_mod')
        assert count_norms(fused.backbone) == 0


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'form': 'fast'}, 'unknown form'),
        ({'tolerance': 0}, 'positive'),
        ({'tolerance': float('nan')}, 'positive'),
        ({'auto_size': (16, 64)}, 'at least 32'),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        FuseBackboneHook(**options)


class Pair(BaseModel):
    """A student and a teacher, as semi-supervised detectors have them."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = Regressor(), Regressor(randomize(RepNeXt(TINY), seed=1))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return (self.student if mode == 'loss' else self.teacher)(inputs, data_samples, mode)


class TestSeveralBackbones:
    def test_a_run(self, make_runner):
        model = Pair()
        expected, before = outputs_of(model.teacher), state(model)
        runner = make_runner(model, [FuseBackboneHook()])
        assert runner.test()['outputs'] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert model.teacher.tested == [(0, False)] * 2
        assert runner.model is model
        assert same(before, state(model))
        assert count_norms(model.student.backbone) > 0

    def test_the_report_is_of_all(self, log):
        log.set_level(logging.INFO)
        fused, report = FuseBackboneHook().fuse_backbone(Pair().train())
        assert count_norms(fused.student.backbone) == count_norms(fused.teacher.backbone) == 0
        assert (report.norms_before, report.norms_after) == (46, 0)
        assert {name.partition('.')[0] for name in report.modules} == {'student', 'teacher'}
        assert sum(r.name == 'mmengine' and 'RepNeXt: fused' in r.message for r in log.records) == 2

    def test_one_of_them_has_nothing_to_fuse(self, log):
        model = Pair()
        model.teacher.backbone = RepNeXt(TINY, deploy=True)
        fused, report = FuseBackboneHook().fuse_backbone(model)
        assert fused.teacher is model.teacher
        assert count_norms(fused.student.backbone) == 0
        assert report
        assert 'nothing to fuse' in log.text

    def test_a_backbone_inside_a_backbone_is_part_of_it(self):
        model = Regressor()
        model.img_backbone = nn.Sequential()
        model.img_backbone.add_module('backbone', model.backbone)
        del model.backbone
        fused, report = FuseBackboneHook().fuse_backbone(model)
        assert isinstance(fused.img_backbone, nn.Sequential)
        assert all(name.startswith('backbone.') for name in report.modules)


class TestWhatIsLeft:
    def test_modules_with_hooks_are_logged(self, log):
        log.set_level(logging.INFO)
        model = Regressor()
        model.backbone.stages[0].blocks[0].register_forward_hook(lambda module, args, output: 1.5 * output)
        _, report = FuseBackboneHook().fuse_backbone(model)
        assert 'leaves 1 modules as they are: stages.0.blocks.0: it has hooks' in log.text
        assert 'refused 1; relative error' in log.text
        assert report.norms_after > 0

    def test_weights_in_pieces(self, log):
        model = Regressor()
        model.backbone = type('FullyShardedDataParallel', (nn.Sequential,), {})(model.backbone)
        fused, report = FuseBackboneHook().fuse_backbone(model)
        assert fused is model
        assert not report
        assert 'is sharded (FSDP): its weights are in pieces, nothing is fused' in log.text

    def test_a_model_that_a_copy_could_not_replace(self, log):
        model = Regressor()
        model.forward = model.forward  # bound to the model
        fused, report = FuseBackboneHook().fuse_backbone(model)
        assert fused is model
        assert not report
        assert 'a copy of Regressor would not take its place: forward refers to it' in log.text
