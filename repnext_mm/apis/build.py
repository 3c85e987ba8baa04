"""Building a model or a Runner from a config, and checks of what was built that its text does not tell."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

from repnext_mm.apis.config import NotBuiltError, building, drop_initial_weights, innermost_datasets, without_teacher
from repnext_mm.apis.safe_loading import reading_safely
from repnext_mm.checkpoints import read_checkpoint
from repnext_mm.errors import UserError
from repnext_mm.models.base import deployed_like, fit_to_model

# heads of other classes than the data's: objects against background, stuff, borders of regions
_OTHER_CLASSES = ('rpn_head', 'semantic_head', 'teacher', 'FusedSemanticHead', 'STDCHead')
_SIZES = ('crop_size', 'scale', 'size', 'img_scale', 'input_size')  # as transforms name them


def build_model(
    config: Config,
    checkpoint: str | Path | None = None,
    *,
    ema: bool = False,
    testing: bool = False,
    trust_pickle: bool = False,
) -> nn.Module:
    """Build a config's model, of a distilled one the student, and load a file of the whole model into it, strictly.

    The model is in eval mode.

    Args:
        config: of the model; it is not changed.
        checkpoint: the weights; None leaves random ones. Those that the config starts training from are not read.
        ema: take the averaged weights.
        testing: the model is not to be trained: fused weights make it the deploy form.
        trust_pickle: see ``read_checkpoint``.

    Raises:
        UserError: the model cannot be built, or the file cannot be read or does not fit.
    """
    init_default_scope(config.get('default_scope') or 'mmengine')
    settings = copy.deepcopy(without_teacher(config.model))
    drop_initial_weights(settings)
    settings.pop('init_cfg', None)
    with building(config), reading_safely(trust_pickle=trust_pickle):  # some read weights while they are built
        model: nn.Module = MODELS.build(settings)
    model.eval()  # a statement: detectors with a teacher inside (LAD, LD) return nothing
    if checkpoint is None:
        return model
    content = read_checkpoint(checkpoint, trust_pickle=trust_pickle)
    if testing:
        deployed_like(model, content, ema=ema)
    kept, _ = fit_to_model(model, content, source=str(checkpoint), ema=ema)
    model.load_state_dict(kept, strict=True)
    return model


def build_runner(config: Config) -> Runner:
    """Build the Runner that the config names (``runner_type``), or the usual one.

    A default hook that is None is none, under any name; mmengine stops at one that it has no hook of its own for.

    Raises:
        NotBuiltError: a library refuses a part of the config.
    """
    hooks = config.get('default_hooks') or {}
    own = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')  # mmengine adds these
    config.default_hooks = {name: hook for name, hook in hooks.items() if hook is not None or name in own}
    with building(config):
        return RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)


def check_built(runner: Runner, config: Config, *, stages: Sequence[str]) -> None:
    """The data sets of ``stages`` ('train', 'val', 'test'), the model and the evaluators agree; no batch is too small.

    Builds the data sets, which the run would do next.

    Raises:
        NotBuiltError: what disagrees, the rule and the way out; or a data set cannot be built.
    """
    with building(config):
        loops = {stage: getattr(runner, f'{stage}_loop') for stage in stages}
        model = _bare(runner.model, config)
    loaders = {stage: loop.dataloader for stage, loop in loops.items() if getattr(loop, 'dataloader', None) is not None}
    try:
        known = check_same_classes({stage: loader.dataset for stage, loader in loaders.items()}, model)
        if known is not None:
            check_heads(model, known)
            for stage, loop in loops.items():
                check_metrics(getattr(getattr(loop, 'evaluator', None), 'metrics', ()), known, stage=stage)
        if 'train' in loaders:
            check_batches(model, loaders['train'], config)
    except UserError as error:
        raise NotBuiltError(str(error)) from error


def check_same_classes(datasets: Mapping[str, Any], model: nn.Module) -> Sequence[str] | None:
    """The classes that all data sets (by stage) name, in one order; None where none names any.

    Raises:
        UserError: a data set names them otherwise, by a bare string, or has fewer colors than classes.
    """
    first: tuple[str, Sequence[str]] | None = None
    for stage, dataset in datasets.items():
        for part in innermost(dataset):
            known = getattr(part, 'metainfo', None) or {}
            classes, palette = known.get('classes'), known.get('palette')
            if classes is None:
                continue
            where = f'{stage}_dataloader: metainfo of its {type(part).__name__}'
            if isinstance(classes, str):
                raise UserError(
                    f'{where} has classes={classes!r}, one string: give a tuple of names, ({classes!r},) for one class'
                )
            if isinstance(palette, list | tuple) and len(palette) < len(classes):
                raise UserError(
                    f'{where} has {len(classes)} classes, and {len(palette)} colors in its palette: give metainfo one '
                    'color per class'
                )
            if first is None:
                first = stage, classes
            elif list(classes) != list(first[1]) and not _reads_names(model):
                raise UserError(
                    f'{where} has {_listed(classes)}, and that of {first[0]}_dataloader {_listed(first[1])}: give all '
                    'data sets the same metainfo.classes in the same order'
                )
    return None if first is None else first[1]


def check_heads(model: nn.Module, classes: Sequence[str]) -> None:
    """Every head that tells the data's classes apart has one output for each, as mmdet's ``NumClassCheckHook`` asks.

    Raises:
        UserError: it has another number.
    """
    if _reads_names(model) or hasattr(model, 'panoptic_fusion_head'):  # things and stuff count apart
        return
    for name, head in model.named_modules():
        kind, count = type(head).__name__, getattr(head, 'num_classes', None)
        if not kind.endswith('Head') or not isinstance(count, int) or count == len(classes):
            continue
        if kind in _OTHER_CLASSES or getattr(head, 'class_agnostic', False):
            continue
        if not any(word in name for word in _OTHER_CLASSES):
            raise UserError(
                f'num_classes={count} of {name or kind} does not agree with the {_listed(classes)} in metainfo of the '
                f'data sets: set num_classes={len(classes)} in every head, or metainfo.classes in every data set'
            )


def check_metrics(metrics: Sequence[Any], classes: Sequence[str], *, stage: str) -> None:
    """Metrics that count classes count those of the data.

    Raises:
        UserError: one counts another number.
    """
    for metric in metrics:
        count = getattr(metric, 'num_classes', None)
        if isinstance(count, int) and count != len(classes):
            raise UserError(
                f'num_classes={count} of {type(metric).__name__} in {stage}_evaluator does not agree with the '
                f'{_listed(classes)} in metainfo of the data sets: set num_classes={len(classes)}'
            )


def check_batches(model: nn.Module, loader: Any, config: Config) -> None:
    """No training batch of one image, where a norm would see a single value per channel.

    Raises:
        UserError: there is one: the last, or each.
    """
    size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None)
    if size is None:
        return
    images = _per_process(loader)
    if size == 1:
        batches, way_out = 'train_dataloader.batch_size=1 makes batches of one image', 'set it to 2 or more'
    elif images is not None and images % size == 1 and not _drops_last(loader):
        batches = f'{images} images per process in batches of {size} leave a last batch of one image'
        way_out = 'set train_dataloader.drop_last=True, or another batch_size'
    else:
        return
    norm = norm_of_one_value(model, size=training_image_size(config))
    if norm is not None:
        raise UserError(
            f'{batches}, and the batch norm {norm} sees one value per channel then, of which there is no variance: '
            f'{way_out}'
        )


@torch.no_grad()
def norm_of_one_value(model: nn.Module, *, size: tuple[int, int]) -> str | None:
    """The batch norm, by name, that one image of ``(H, W)`` leaves with one value per channel in training, if any.

    Runs shapes only, on torch's meta device. What cannot run so (a detector's regions) is not looked into.
    """
    model = getattr(model, 'student', model)
    memo = {id(tensor): _shape_only(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    try:
        dry = copy.deepcopy(model, memo)
        dry.train()  # a statement, as in `build_model`
    except Exception:  # of parts that nobody can copy
        return None
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            image = inputs[0]
            if norm.training and image.numel() == image.shape[1]:
                found.append(name)

        return hook

    for name, module in dry.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            module.register_forward_pre_hook(look(name))
    image = torch.empty(1, _channels(dry), *size, device='meta')
    for forward in _forwards(dry):
        try:
            forward(image)
        except Exception:  # whatever a model does with an image that is not one, or torch with such a norm
            continue
    return found[0] if found else None


def innermost(dataset: Any) -> Iterator[Any]:
    """The built data sets inside wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    parts = getattr(dataset, 'datasets', None) or ([dataset.dataset] if hasattr(dataset, 'dataset') else [])
    if not parts:
        yield dataset
    for part in parts:
        yield from innermost(part)


def _bare(model: Any, config: Config) -> nn.Module:
    """The model without what a runner wraps around it; a FlexibleRunner builds its own later."""
    if not isinstance(model, nn.Module):
        init_default_scope(config.get('default_scope') or 'mmengine')
        with torch.random.fork_rng(devices=[]):
            model = MODELS.build(config.model)
    return model.module if is_model_wrapper(model) else model


def _reads_names(model: nn.Module) -> bool:
    """Whether a detector takes the names of its classes as text, so that their number is free."""
    return any('language_model' in name for name, _ in model.named_children())


def _listed(classes: Sequence[str]) -> str:
    names = ', '.join(map(str, classes[:3])) + (', ...' if len(classes) > 3 else '')
    return f'{len(classes)} {"class" if len(classes) == 1 else "classes"} ({names})'


def _per_process(loader: Any) -> int | None:
    """Images per epoch; None of a sampler that never ends."""
    sampler = loader.sampler
    while inner := getattr(sampler, 'sampler', None):  # of SeededSampler
        sampler = inner
    if 'Infinite' in type(sampler).__name__ or 'Infinite' in type(loader.batch_sampler).__name__:
        return None
    try:
        return len(sampler)
    except TypeError:
        return None


def _drops_last(loader: Any) -> bool:
    return bool(loader.drop_last or getattr(loader.batch_sampler, 'drop_last', False))


def training_image_size(config: Config) -> tuple[int, int]:
    """(H, W) of training images, as far as the config tells: what a small one leaves of itself is one pixel."""
    model = config.model
    steps = next(innermost_datasets(config.train_dataloader['dataset'])).get('pipeline') or ()
    parts = [model.get('data_preprocessor') or {}, *(step for step in reversed(steps) if isinstance(step, Mapping))]
    for part in parts:
        for key in _SIZES:
            value = part.get(key)
            pair = [value, value] if isinstance(value, int) else value
            if isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(side, int) for side in pair):
                return max(32, pair[0]), max(32, pair[1])
    return 224, 224


def _channels(model: nn.Module) -> int:
    return next((weight.shape[1] for weight in model.parameters() if weight.dim() == 4), 3)


def _shape_only(tensor: Tensor) -> Tensor:
    bare = torch.empty_like(tensor, device='meta')
    return nn.Parameter(bare, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare


def _forwards(model: Any) -> Iterator[Any]:
    """What a model does with images alone; parts where the whole asks for more."""
    yield model  # mode='tensor' is the default
    heads = getattr(model, 'auxiliary_head', None)
    for head in heads if isinstance(heads, nn.ModuleList) else [heads] if heads is not None else []:
        yield lambda image, head=head: head(model.extract_feat(image))
    yield lambda image: model.extract_feat(image)
