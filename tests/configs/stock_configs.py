"""RepNeXt in the place of the backbone of stock configs: one training step, and predictions fused and branch by branch.

Run as a script, it prints the table of ``docs/records/stock_configs.md``:
``python -m tests.configs.stock_configs [mmdet|mmseg|mmpretrain] [FAMILY ...]``.
"""

from __future__ import annotations

import copy
import importlib
import json
import math
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModule
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from torch import Tensor, nn

import repnext_mm
from repnext_mm import FuseBackboneHook
from repnext_mm.models.branchwise import branch_by_branch
from repnext_mm.reparam.fuse import count_norms
from repnext_mm.reparam.surgery import replaced
from tests.conftest import randomize

PACKAGES = ('mmdet', 'mmseg', 'mmpretrain')
SIZE = 128
LARGEST = 400_000_000  # parameters of the backbone that is replaced: beyond, it takes all memory
EXACT = 1e-9  # relative, in float64: heads take logarithms and quotients of what the backbone returns
ERRORS = {'float64': EXACT, 'float32': 1e-3}
STRIDES = (4, 8, 16, 32)
NEED_MORE = {
    'FastRCNN': 'proposals from a file',
    'TridentFasterRCNN': 'a backbone of several branches of dilation',
}


@dataclass
class Outcome:
    """What became of one config."""

    package: str
    config: str
    levels: str = ''  # strides that the config's neck or head gets
    losses: int = 0
    without_gradient: int = -1
    norms: str = ''
    error: float = math.nan
    precision: str = 'float64'  # of the predictions; features are compared in float64
    failure: str = ''
    own_failure: str = ''  # with the config's own backbone, where RepNeXt fails

    @property
    def passed(self) -> bool:
        return not self.failure and self.without_gradient == 0 and self.error <= ERRORS[self.precision]


class Unsuitable(Exception):
    """A config has no four-level backbone to take the place of, or needs what is not here."""


@MODELS.register_module(force=True)
class RepNeXtInPlace(BaseModule):
    """RepNeXt, and a 1x1 convolution per level that gives the channels which the rest of a stock config expects."""

    def __init__(self, levels: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        self.repnext = MODELS.build({'type': 'RepNeXt', 'arch': 'm0', 'out_indices': sorted(set(levels))})
        self.stages = max(levels) + 1  # the further ones do not run
        self.levels = [sorted(set(levels)).index(level) for level in levels]
        dims = [self.repnext.arch.embed_dims[level] for level in levels]
        self.project = nn.ModuleList(nn.Conv2d(dim, width, 1) for dim, width in zip(dims, channels, strict=True))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = self.repnext(x)
        return tuple(project(outputs[i]) for i, project in zip(self.levels, self.project, strict=True))

    def used_parameters(self) -> Iterator[nn.Parameter]:
        for name, parameter in self.repnext.named_parameters():
            kind, _, rest = name.partition('.')
            if kind != 'stages' or int(rest.partition('.')[0]) < self.stages:
                yield parameter


def families(package: str) -> dict[str, list[Path]]:
    """The configs of a package, by folder; without those that only others inherit from."""
    root = Path(importlib.import_module(package).__file__).parent / '.mim' / 'configs'
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and folder.name != '_base_')
    return {folder.name: sorted(folder.glob('*.py')) for folder in folders}


def try_family(package: str, paths: Sequence[Path], *, tries: int = 6, seconds: int = 240) -> Outcome | None:
    """The outcome of the first config of a family that RepNeXt fits in; None where it fits in none that was tried."""
    for path in _varied(paths, tries):
        outcome = Outcome(package, f'{path.parent.name}/{path.name}')
        try:
            with _limited(seconds), warnings.catch_warnings():
                warnings.simplefilter('ignore')
                _try(package, path, outcome)
        except Unsuitable:
            continue
        except Exception as error:  # whatever a stock model raises
            outcome.failure = _named(error)
            outcome.own_failure = _with_its_own(package, path, seconds)
        return outcome
    return None


def _with_its_own(package: str, path: Path, seconds: int) -> str:
    """How a config fails with its own backbone; empty where it does not."""
    config = _model_of(path)
    for holder in _dicts(config):
        _make_local(holder)
    try:
        with _limited(seconds), warnings.catch_warnings(), _float64_everywhere():
            warnings.simplefilter('ignore')
            model = MODELS.build(config)
            model.init_weights()
            _train(package, model, config, Outcome(package, ''))
            model.eval()
            model.double()
            with torch.no_grad():
                _run(package, model, config, 'predict')
    except Exception as error:  # as above
        return _named(error)
    return ''


def _model_of(path: Path) -> ConfigDict:
    """The config of a model, with the preprocessor that a Runner would give it."""
    whole = Config.fromfile(path)
    if whole.get('data_preprocessor'):
        whole.model.setdefault('data_preprocessor', whole.data_preprocessor)
    teacher = whole.model.get('teacher_config')
    if isinstance(teacher, str):  # from the folder of the configs
        root = next(folder for folder in path.parents if folder.name == 'configs').parent
        whole.model.teacher_config = ConfigDict(model=_model_of(root / teacher))
    return whole.model


def _named(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:110]}'


def _try(package: str, path: Path, outcome: Outcome) -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (stock samplers draw from it)
    init_default_scope(package)
    try:
        config = _model_of(path)
    except Exception as error:  # not every stock file is a config of a model
        raise Unsuitable(str(error)) from error
    if config.type in NEED_MORE:
        raise Unsuitable(NEED_MORE[config.type])
    strides = _plugged(package, config)
    outcome.levels = ', '.join(map(str, strides))
    try:
        model = MODELS.build(config)
    except Exception as error:
        if any(
            word in str(error)
            for word in ('connect', 'huggingface', 'transformers', 'No module', 'resolve', 'not installed', 'urlopen')
        ):
            raise Unsuitable(str(error)) from error
        raise
    model.init_weights()  # some parameters are memory as it was until then
    randomize(model)
    for name in ('iter', 'epoch', 'max_epochs'):  # a run would say
        MessageHub.get_current_instance().update_info(name, 1)
    _train(package, model, config, outcome)
    _predict(package, model, config, outcome)


def _train(package: str, model: nn.Module, config: ConfigDict, outcome: Outcome) -> None:
    model.train()
    total, logs = model.parse_losses(_run(package, model, config, 'loss'))
    if not torch.isfinite(total):
        raise ArithmeticError(f'the loss is {total.item()}')
    total.backward()
    outcome.losses = sum('loss' in name for name in logs) or len(logs)
    backbones = _backbones(model)
    trained = [p for module in backbones for p in module.parameters() if p.requires_grad]
    by_model = [
        sum(p.grad is None or not p.grad.isfinite().all() for p in module.used_parameters()) for module in backbones
    ]
    outcome.without_gradient = min(by_model, default=0) if trained else 0  # a teacher is not trained


@torch.no_grad()
def _predict(package: str, model: nn.Module, config: ConfigDict, outcome: Outcome) -> None:
    model.eval()
    model.double()
    apart = replaced(model, lambda _, module: branch_by_branch(module) if type(module) is repnext_mm.RepNeXt else None)
    fused, report = FuseBackboneHook().fuse_backbone(model)
    outcome.norms = f'{report.norms_before} to {report.norms_after}'
    fused.eval()  # of some models, it returns None
    if any(count_norms(module) for module in _tested(fused)):
        raise AssertionError('norms are left in the fused backbone')
    image = torch.randn(1, 3, SIZE, SIZE - 32).double()
    features = [[level for module in _tested(network) for level in module(image)] for network in (apart, fused)]
    outcome.error = _error(*features)
    if outcome.error > EXACT:
        raise AssertionError(f'features differ by {outcome.error:.0e}')
    try:
        results = [_predictions(package, network, config) for network in (apart, fused)]
    except RuntimeError as error:
        if not any(word in str(error) for word in ('Float', 'Double', 'dtype')):
            raise
        outcome.precision = 'float32'  # the config's head makes numbers of its own
        results = [_predictions(package, network.float(), config) for network in (apart, fused)]
        results = [[x.sort(0).values if x.dim() else x for x in each] for each in results]  # queries of equal rank swap
    outcome.error = _error(*results) if outcome.precision == 'float32' else max(outcome.error, _error(*results))


def _predictions(package: str, network: nn.Module, config: ConfigDict) -> list[Tensor]:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    network.eval()
    with _float64_everywhere():
        return list(_tensors(_run(package, network, config, 'predict')))


@contextmanager
def _float64_everywhere() -> Iterator[None]:
    """Within, what stock code can do in float32 only takes float64: suppression (for indices), sampling of masks."""
    module = importlib.import_module('mmcv.ops.nms').ext_module
    suppress, sample = module.nms, F.grid_sample
    module.nms = lambda boxes, scores, **options: suppress(boxes.float(), scores.float(), **options)
    F.grid_sample = lambda x, grid, *args, **options: sample(x, grid.to(x.dtype), *args, **options)
    try:
        yield
    finally:
        module.nms, F.grid_sample = suppress, sample


def _backbones(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, RepNeXtInPlace)]


def _tested(model: nn.Module) -> list[Any]:
    """Without the momentum encoders of self-supervised models, which no test runs and the hook leaves alone."""
    return [
        module for name, module in model.named_modules() if name.endswith('backbone') and module in _backbones(model)
    ]


def _error(expected: Sequence[Tensor], given: Sequence[Tensor]) -> float:
    if [x.shape for x in expected] != [x.shape for x in given]:
        return math.inf
    worst = 0.0
    for first, second in zip(expected, given, strict=True):
        if first.numel():
            scale = first.abs().max().item() or 1.0
            worst = max(worst, (first - second).abs().max().item() / scale)
    return worst


def _tensors(result: Any) -> Iterator[Tensor]:
    """All numbers in predictions, in float64."""
    if isinstance(result, Tensor):
        yield result.detach().double()
    elif isinstance(result, Mapping):
        for item in result.values():
            yield from _tensors(item)
    elif isinstance(result, list | tuple):
        for item in result:
            yield from _tensors(item)
    elif hasattr(result, 'all_items'):
        for name, item in result.all_items():
            if not name.startswith('gt'):
                yield from _tensors(item)
    elif hasattr(result, 'tensor'):
        yield from _tensors(result.tensor)


def _plugged(package: str, config: ConfigDict) -> tuple[int, ...]:
    """Put RepNeXt in the place of every backbone in the config of a model; the strides of its levels."""
    strides: tuple[int, ...] | None = None
    for holder in _dicts(config):
        _make_local(holder)
        if isinstance(holder.get('backbone'), Mapping) and 'type' in holder['backbone']:
            levels, channels, strides = _levels(package, holder['backbone'])
            holder['backbone'] = ConfigDict(type='RepNeXtInPlace', levels=levels, channels=channels)
    if strides is None:
        raise Unsuitable('no backbone')
    return strides


def _make_local(holder: Any) -> None:
    """Without weights from the net, and with norms that train on a CPU."""
    for name in ('init_cfg', 'pretrained', 'teacher_ckpt'):
        if holder.get(name):
            holder[name] = None
    if holder.get('type') in ('SyncBN', 'MMSyncBN'):
        holder['type'] = 'BN'


def _parameters(config: ConfigDict) -> int:
    """Of a backbone, without its memory; 0 where it cannot be built so."""
    try:
        with torch.device('meta'):
            return sum(parameter.numel() for parameter in MODELS.build(copy.deepcopy(config)).parameters())
    except Exception:  # whatever a stock backbone raises
        return 0


def _levels(package: str, backbone: ConfigDict) -> tuple[list[int], list[int], tuple[int, ...]]:
    config = copy.deepcopy(backbone)
    for holder in _dicts(config):
        _make_local(holder)
    if _parameters(config) > LARGEST:
        raise Unsuitable('too large')
    try:
        original = MODELS.build(config)
        original.eval()  # stock backbones return nothing
        with torch.no_grad():
            outputs = original(torch.zeros(1, 3, SIZE, SIZE))
            original.train()
            trained = original(torch.zeros(2, 3, SIZE, SIZE))
    except Exception as error:
        raise Unsuitable(str(error)) from error
    if isinstance(outputs, Tensor) != isinstance(trained, Tensor) or (
        not isinstance(outputs, Tensor) and len(outputs) != len(trained)
    ):
        raise Unsuitable('while it trains, it returns more than levels')
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    if not isinstance(outputs, tuple | list) or not all(isinstance(x, Tensor) and x.dim() == 4 for x in outputs):
        raise Unsuitable('its levels are not feature maps')
    strides = tuple(SIZE // x.shape[-1] for x in outputs)
    if not 1 <= len(outputs) <= 4 or not set(strides) <= set(STRIDES) or list(strides) != sorted(strides):
        raise Unsuitable(f'strides {strides}')
    stages = getattr(original, 'num_stages', 4)
    levels = [STRIDES.index(stride) for stride in strides]
    if len(set(levels)) == 1 < len(levels):
        raise Unsuitable('one level, several times')
    if len(set(levels)) < len(levels):  # dilated: the last stages keep the size
        levels = list(range(stages - len(levels), stages)) if stages <= 4 else levels
    return levels, [x.shape[1] for x in outputs], strides


def _dicts(config: Any) -> Iterator[Any]:
    if isinstance(config, Mapping):
        yield config
        for value in list(config.values()):
            yield from _dicts(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _dicts(value)


def _run(package: str, model: nn.Module, config: ConfigDict, mode: str) -> Any:
    if package == 'mmpretrain' and _is_self_supervised(model):
        data = _views(config, mode)
        mode = 'loss' if mode == 'loss' else 'tensor'  # such models give features and losses only
    else:
        data = {'mmdet': _detection, 'mmseg': _segmentation, 'mmpretrain': _classification}[package](config, mode)
    data = model.data_preprocessor(data, mode == 'loss')
    dtype = next(model.parameters()).dtype
    return model(**_cast(data, dtype), mode=mode)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _cast(item, dtype) for key, item in value.items()}
    return [_cast(item, dtype) for item in value] if isinstance(value, list) else value


def _numbers(config: Any, name: str) -> list[int]:
    return [holder[name] for holder in _dicts(config) if isinstance(holder.get(name), int)]


def _detection(config: ConfigDict, mode: str) -> dict[str, Any]:
    from mmdet.testing import demo_mm_inputs, demo_track_inputs

    counts = [n for n in _numbers(config, 'num_classes') if n > 0]
    classes = max(2, min([*counts, 255]))  # in maps of bytes
    if (config.get('data_preprocessor') or {}).get('type') == 'TrackDataPreprocessor':
        return demo_track_inputs(
            1, 2, [0], image_shapes=(3, SIZE, SIZE), num_items=[3], num_classes=classes, with_mask=True
        )
    data = demo_mm_inputs(
        2,
        (3, SIZE, SIZE),
        num_items=[3, 2],
        num_classes=classes,
        with_mask=True,
        with_semantic=True,
        use_box_type=True,
    )
    if counts:
        for sample in data['data_samples']:
            sample.gt_instances.labels.clamp_(max=min(counts) - 1)  # some know one class
    semi = config.get('semi_train_cfg') is not None and mode == 'loss'
    if semi:
        branches = ('sup', 'unsup_teacher', 'unsup_student')
        for sample in data['data_samples']:
            sample.set_metainfo({'homography_matrix': np.eye(3, dtype=np.float32)})
        return {key: {branch: copy.deepcopy(value) for branch in branches} for key, value in data.items()}
    return data


def _segmentation(config: ConfigDict, mode: str) -> dict[str, Any]:
    from mmseg.structures import SegDataSample

    classes = max(2, min((n for n in _numbers(config, 'num_classes') if n > 1), default=2))
    generator = torch.Generator().manual_seed(1)
    samples = []
    for _ in range(2):
        sample = SegDataSample(
            metainfo={
                'img_shape': (SIZE, SIZE),
                'ori_shape': (SIZE, SIZE),
                'pad_shape': (SIZE, SIZE),
                'flip': False,
                'flip_direction': 'horizontal',
                'scale_factor': 1.0,
            }
        )
        regions = torch.randint(classes, (1, 4, 4), generator=generator)
        sample.gt_sem_seg = PixelData(data=regions.repeat_interleave(SIZE // 4, 1).repeat_interleave(SIZE // 4, 2))
        edges = torch.zeros(1, SIZE, SIZE, dtype=torch.long)
        edges[:, :: SIZE // 4] = 1
        sample.gt_edge_map = PixelData(data=edges)
        samples.append(sample)
    images = [torch.randint(256, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8) for _ in samples]
    return {'inputs': images, 'data_samples': samples}


def _classification(config: ConfigDict, mode: str) -> dict[str, Any]:
    from mmpretrain.structures import DataSample

    generator = torch.Generator().manual_seed(1)
    samples = [DataSample().set_gt_label(label) for label in (0, 1)]
    images = [torch.randint(256, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8) for _ in samples]
    return {'inputs': images if mode != 'loss' else torch.stack(images), 'data_samples': samples}


def _is_self_supervised(model: nn.Module) -> bool:
    from mmpretrain.models import BaseSelfSupervisor

    return isinstance(model, BaseSelfSupervisor)


def _views(config: ConfigDict, mode: str) -> dict[str, Any]:
    """Views of a batch, as many as the loss wants; one batch for features."""
    from mmpretrain.structures import DataSample

    generator = torch.Generator().manual_seed(1)
    crops = [sum(holder['num_crops']) for holder in _dicts(config) if 'num_crops' in holder]
    views = [
        torch.randint(256, (2, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8) for _ in range(max([2, *crops]))
    ]
    return {'inputs': views if mode == 'loss' else views[0], 'data_samples': [DataSample(), DataSample()]}


def _varied(paths: Sequence[Path], count: int) -> list[Path]:
    """Some of the configs of a family: those with a plain ResNet and a pyramid by name first."""
    rare = ('-c4', '-dc5', 'caffe')
    return sorted(
        paths,
        key=lambda path: ('r50' not in path.name, 'fpn' not in path.name, any(word in path.name for word in rare)),
    )[:count]


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f'more than {seconds} s of a CPU')

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of this process: others may be busy
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes in Markdown."""
    lines = [
        '| package | config | strides | losses | without a gradient | norms | error | |',
        '|---|---|---|---:|---:|---|---:|---|',
    ]
    for one in outcomes:
        missing = one.without_gradient if one.without_gradient >= 0 else ''
        error = '' if math.isnan(one.error) else f'{one.error:.0e}'
        error += ' (float32)' if one.precision == 'float32' else ''
        says = 'yes' if one.passed else one.failure.replace('|', '/') or 'no'
        says += f'; with its own backbone {one.own_failure.replace("|", "/")}' if one.own_failure else ''
        lines.append(
            f'| {one.package} | {one.config} | {one.levels} | {one.losses or ""} | {missing} | {one.norms} | {error} '
            f'| {says} |'
        )
    return '\n'.join(lines)


def main(arguments: Sequence[str]) -> None:
    MMLogger.get_instance('stock', log_level='ERROR')
    packages = [name for name in PACKAGES if name in arguments] or PACKAGES
    wanted = [name for name in arguments if name not in PACKAGES]
    outcomes = []
    for package in packages:
        importlib.import_module(f'{package}.models')
        for family, paths in families(package).items():
            if wanted and family not in wanted:
                continue
            outcome = try_family(package, paths)
            if outcome is not None:
                outcomes.append(outcome)
                sys.stderr.write(f'{json.dumps(asdict(outcome))}\n')
    sys.stdout.write(f'{table(outcomes)}\n')


if __name__ == '__main__':
    main(sys.argv[1:])
