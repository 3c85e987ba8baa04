"""Where a whole training step of a config goes, stage by stage, for several backbones, layouts and precisions."""

from __future__ import annotations

import copy
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor

from repnext_mm.apis.build import build_model
from repnext_mm.apis.config import without_teacher
from repnext_mm.apis.launch import fit_to_machine
from repnext_mm.apis.train import prepare_training
from repnext_mm.errors import UserError
from repnext_mm.hooks.compile_backbone import check_compiler
from repnext_mm.hooks.memory_format import MEMORY_FORMATS, convert
from repnext_mm.lab.bench.training import DTYPES, MEMORY_KINDS, storages_saved
from repnext_mm.lab.bench.whole_model import Stopwatch
from repnext_mm.models.branchwise import branch_by_branch
from repnext_mm.timing import Latency, quantiles, warm_up

STAGES = ('preprocessing', 'backbone', 'neck and heads', 'backward, heads', 'backward, backbone', 'optimizer')
"""``preprocessing`` moves, normalizes and pads a batch; ``neck and heads`` is the rest of the forward pass, losses
included; ``backward, backbone`` begins where the first gradient reaches the backbone's features; ``optimizer`` clips,
steps and clears gradients."""
MERGED, BRANCHES = 'merged', 'branches'
TOLERANCE = 1e-3
"""Losses in float32 may differ by this share between merged and apart: a proposal at a threshold goes either way."""
PEER_BACKBONES: Mapping[str, Mapping[str, Any]] = {
    'repvit': dict(type='mmpretrain.TIMMBackbone', model_name='repvit_m0_9', features_only=True, pretrained=False),
    'resnet50': dict(type='mmpretrain.ResNet', depth=50, out_indices=(0, 1, 2, 3)),
}
"""RepViT-M0.9, the smallest of its family, and what most pipelines have."""
BACKBONES = (BRANCHES, MERGED, *PEER_BACKBONES)
"""The config's own, a convolution per branch or merged on the fly, and others in its place."""
RUNTIMES = ('eager', 'compile')
"""``compile`` is ``--compile``: forward and backward pass of the backbone alone."""


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """The training steps of one way."""

    backbone: str  # of BACKBONES
    runtime: str
    memory_format: str
    dtype: str
    parameters: int  # of the backbone
    first_step_s: float  # what is compiled or tried out once is in it
    memory_mib: float  # of ``memory_kind``; parameters are not in it
    loss: float  # of the first batch
    stages: Mapping[str, Latency]  # STAGES and 'total'


@dataclass(frozen=True, kw_only=True)
class WholeStep:
    """Training steps of one config, all ways in turn on the same batches."""

    config: str
    trained: bool  # whether the weights are a checkpoint's
    batch_shape: tuple[int, ...]  # (N, C, H, W) of the first batch, as the network sees it
    device: str
    threads: int
    clock: str
    memory_kind: str
    data: Latency  # one batch, made by one process
    workers: int  # processes that make batches in this config's training
    ways: Sequence[StepTimes]


class Way(NamedTuple):
    """A model and its optimizer."""

    backbone: str
    runtime: str
    memory_format: str
    dtype: str
    model: Any
    optim_wrapper: Any


def measure_whole_step(
    config_path: str | Path,
    checkpoint: str | Path | None = None,
    *,
    backbones: Sequence[str] | None = None,
    runtimes: Sequence[str] = ('eager',),
    memory_formats: Sequence[str] = ('contiguous',),
    dtypes: Sequence[str] = ('float32',),
    device: torch.device | str = 'cpu',
    rounds: int = 20,
    warmup_rounds: int = 2,
    warmup_s: float = 1.0,
    batches: int = 8,
    cpu_time: bool = False,
    options: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
    progress: Callable[[], object] | None = None,
) -> WholeStep:
    """Time the model's own ``train_step`` on batches of the config's own loader, all ways in turn.

    The learning rate is 0 and each step starts from the same seed: the same arithmetic on the same weights in every
    round. What hooks do between steps is not in it.

    Args:
        config_path: of a detector, a segmentor or a classifier.
        checkpoint: its weights; by default the initial ones, with which a detector has few positives and does less.
        backbones: of ``BACKBONES``, by default all, with a checkpoint the config's own; neck and heads get the channels
            of each.
        runtimes: of ``RUNTIMES``.
        memory_formats: of weights and features, see ``MemoryFormatHook``.
        dtypes: 'float32', or 'bfloat16' by ``Bfloat16OptimWrapper``.
        device: where to train.
        rounds: timed steps of each way.
        warmup_rounds: and ``warmup_s`` seconds: the least warm-up.
        batches: how many to load; rounds take them in turn.
        cpu_time: count the process's CPU time instead of the wall's, for a busy machine and one thread.
        options: overrides of the config.
        trust_pickle: of the checkpoint, see ``repnext_mm.checkpoints.read_checkpoint``.
        progress: called after each round.

    Raises:
        UserError: an option is not known, the config cannot be trained or has no backbone, the checkpoint does not fit,
            or nothing can be compiled here.
        RuntimeError: merged and apart do not have the same loss.
    """
    if rounds < 1 or batches < 1:
        raise UserError(f'rounds={rounds}, batches={batches}: measure at least one of each')
    own = (BRANCHES, MERGED)
    if backbones is None:
        backbones = BACKBONES if checkpoint is None else own
    for kind, values, known in (
        ('backbone', backbones, BACKBONES),
        ('runtime', runtimes, RUNTIMES),
        ('memory_format', memory_formats, MEMORY_FORMATS),
        ('dtype', dtypes, DTYPES),
    ):
        for value in values:
            if value not in known:
                raise UserError(f'{kind}={value!r} is unknown: choose from {", ".join(known)}')
    if checkpoint is not None and (others := [name for name in backbones if name not in own]):
        raise UserError(
            f"backbone='{others[0]}': the weights of '{checkpoint}' are of the config's own, choose from "
            f'{", ".join(own)}'
        )
    device = torch.device(device)
    if 'compile' in runtimes:
        check_compiler(device.type)
    clock = time.process_time if cpu_time else time.perf_counter
    config = prepare_training(config_path, options=options)
    fit_to_machine(config)
    config.model = without_teacher(config.model)
    if 'backbone' not in config.model:
        raise UserError(f"config '{config_path}' has no model.backbone: give a detector, a segmentor or a classifier")
    init_default_scope(config.default_scope)
    made, data_ms = _load(config, batches, clock)

    def model_of(backbone: str) -> Any:
        return _model(config, backbone, checkpoint, trust_pickle=trust_pickle).to(device)

    settings = product(dtypes, memory_formats, runtimes, backbones)
    ways = [_way(model_of(backbone), config, backbone, *how) for *how, backbone in settings]
    looks = [_looked_at(way, made[0]) for way in ways]
    _check_losses(ways, [look.loss for look in looks])
    stages_ms: list[dict[str, list[float]]] = [defaultdict(list) for _ in ways]

    def round_of(number: int) -> None:
        for way, recorded in zip(ways, stages_ms, strict=True):
            watch = Stopwatch(device, clock=clock)
            _step(way, made[number % len(made)], watch)
            found = {stage: watch.ms[stage] for stage in STAGES}
            for stage, value in {**found, 'total': sum(found.values())}.items():
                recorded[stage].append(value)

    warm_up({'all': lambda: round_of(0)}, rounds=warmup_rounds, seconds=warmup_s, device=device)
    for recorded in stages_ms:
        recorded.clear()
    for number in range(rounds):
        round_of(number)
        if progress is not None:
            progress()
    return WholeStep(
        config=Path(config_path).stem,
        trained=checkpoint is not None,
        batch_shape=looks[0].shape,
        device=str(device),
        threads=torch.get_num_threads(),
        clock='CPU time' if cpu_time else 'wall clock',
        memory_kind=MEMORY_KINDS.get(device.type, MEMORY_KINDS['cpu']),
        data=quantiles(data_ms),
        workers=config.train_dataloader.get('num_workers', 0),
        ways=[
            StepTimes(
                backbone=way.backbone,
                runtime=way.runtime,
                memory_format=way.memory_format,
                dtype=way.dtype,
                parameters=sum(parameter.numel() for parameter in way.model.backbone.parameters()),
                first_step_s=look.seconds,
                memory_mib=look.memory_mib,
                loss=look.loss,
                stages={stage: quantiles(values) for stage, values in recorded.items()},
            )
            for way, look, recorded in zip(ways, looks, stages_ms, strict=True)
        ],
    )


def _load(config: Config, count: int, clock: Callable[[], float]) -> tuple[list[Any], list[float]]:
    """Batches of the training loader, and the milliseconds that this process took for each."""
    settings = copy.deepcopy(config.train_dataloader)
    settings.update(num_workers=0, persistent_workers=False)
    settings.pop('prefetch_factor', None)
    source = iter(Runner.build_dataloader(settings, seed=0))
    made: list[Any] = []
    times_ms: list[float] = []
    for _ in range(count + 1):  # the first one opens files and fills caches
        start = clock()
        batch = next(source, None)
        if batch is None:
            break
        times_ms.append((clock() - start) * 1e3)
        made.append(batch)
    return made[-count:], times_ms[1:] or times_ms


def _way(model: Any, config: Config, backbone: str, dtype: str, memory_format: str, runtime: str) -> Way:
    wrapper = copy.deepcopy(config.optim_wrapper)
    if dtype == 'bfloat16':
        kind = wrapper.get('type', 'OptimWrapper')
        if 'Bfloat16' not in kind:
            wrapper.type = f'{kind.removesuffix("OptimWrapper")}Bfloat16OptimWrapper'
    model.train()  # a statement, as in `build_model`
    convert(model, memory_format)
    if runtime == 'compile':
        model.backbone.compile()
    optim_wrapper = build_optim_wrapper(model, wrapper)
    for group in optim_wrapper.param_groups:
        group['lr'] = 0.0
    return Way(backbone, runtime, memory_format, dtype, model, optim_wrapper)


def _model(config: Config, backbone: str, checkpoint: str | Path | None, *, trust_pickle: bool) -> Any:
    """The config's model with a backbone of this name; a checkpoint's weights, or those a training begins with."""
    torch.manual_seed(0)
    if backbone in PEER_BACKBONES:
        config = copy.deepcopy(config)
        settings = dict(PEER_BACKBONES[backbone])
        wanted = config.model.backbone.get('out_indices', (0, 1, 2, 3))
        settings['out_indices'] = tuple(wanted)
        ours, theirs = _channels(config.model.backbone), _channels(settings)
        _rename_channels({key: part for key, part in config.model.items() if key != 'backbone'}, ours, theirs)
        config.model.backbone = settings
    model: Any = build_model(config, checkpoint, trust_pickle=trust_pickle)
    if checkpoint is None:
        logging.disable(logging.INFO)  # mmengine writes a paragraph for every parameter
        try:
            model.init_weights()
        finally:
            logging.disable(logging.NOTSET)
    if backbone == BRANCHES:
        model.backbone = branch_by_branch(model.backbone)
    return model


def _channels(settings: Mapping[str, Any]) -> list[int]:
    built = MODELS.build(dict(settings))
    built.eval()  # ResNet's returns nothing
    with torch.no_grad():
        return [level.shape[1] for level in built(torch.zeros(1, 3, 64, 64))]


def _rename_channels(part: Any, ours: Sequence[int], theirs: Sequence[int]) -> None:
    """Give the ``in_channels`` of neck and heads that are those of one backbone those of another, in place."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            if key == 'in_channels' and isinstance(value, list | tuple) and list(value) == list(ours):
                part[key] = list(theirs)  # type: ignore[index]
            elif key == 'in_channels' and value == ours[-1]:
                part[key] = theirs[-1]  # type: ignore[index]
            else:
                _rename_channels(value, ours, theirs)
    elif isinstance(part, list | tuple):
        for value in part:
            _rename_channels(value, ours, theirs)


def _step(way: Way, batch: Any, watch: Stopwatch) -> tuple[Mapping[str, Any], tuple[int, ...]]:
    """One training step, its time taken by stage: the losses, and the shape of the batch as the network sees it."""
    model, optim_wrapper = way.model, way.optim_wrapper
    batch = copy.deepcopy(batch)  # preprocessing writes into it
    shape: tuple[int, ...] = ()
    # a backbone that was compiled is called past its `forward`
    called = '_compiled_call_impl' if way.runtime == 'compile' else 'forward'
    torch.manual_seed(0)

    def timed(stage: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def run(*args: Any, **kwargs: Any) -> Any:
            with watch.part(stage):
                return original(*args, **kwargs)

        return run

    def features(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal shape
            shape = tuple(args[0].shape)
            with watch.part('backbone'):
                levels = original(*args, **kwargs)
            for level in levels if isinstance(levels, list | tuple) else [levels]:
                if isinstance(level, Tensor) and level.requires_grad:
                    # what heads made is newer, and autograd goes from the newest node to the oldest
                    level.register_hook(lambda _: watch.go_on_as('backward, backbone'))
            return levels

        return run

    with ExitStack() as patches:
        for owner, method, patched in (
            (model.data_preprocessor, 'forward', timed('preprocessing', model.data_preprocessor.forward)),
            (model.backbone, called, features(getattr(model.backbone, called))),
            (optim_wrapper, 'backward', timed('backward, heads', optim_wrapper.backward)),
            (optim_wrapper, 'step', timed('optimizer', optim_wrapper.step)),
            (optim_wrapper, 'zero_grad', timed('optimizer', optim_wrapper.zero_grad)),
        ):
            patches.enter_context(mock.patch.object(owner, method, patched))
        with watch.part('neck and heads'):
            losses: Mapping[str, Any] = model.train_step(batch, optim_wrapper)
    return losses, shape


class _Look(NamedTuple):
    shape: tuple[int, ...]  # of the batch as the network sees it
    loss: float
    memory_mib: float
    seconds: float  # that the first step took


def _looked_at(way: Way, batch: Any) -> _Look:
    """What is known of a way's step before it is timed; makes the state of the optimizer."""
    parameters = list(way.model.parameters())
    device = parameters[0].device
    kept = {tensor.untyped_storage().data_ptr() for tensor in [*parameters, *way.model.buffers()]}
    start = time.perf_counter()
    losses, shape = _step(way, batch, Stopwatch(device))
    seconds = time.perf_counter() - start
    with storages_saved(except_for=kept) as saved:
        _step(way, batch, Stopwatch(device))
    memory = sum(saved.values())
    if device.type == 'cuda':
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _step(way, batch, Stopwatch(device))
        memory = torch.cuda.max_memory_allocated(device) - before
    return _Look(shape, losses['loss'].detach().item(), memory / 2**20, seconds)


def _check_losses(ways: Sequence[Way], losses: Sequence[float]) -> None:
    """Refuse to time what does not compute the same."""
    own = [
        (way, loss)
        for way, loss in zip(ways, losses, strict=True)
        if way.backbone in (BRANCHES, MERGED) and way.dtype == 'float32'
    ]
    for way, loss in own[1:]:
        first, expected = own[0]
        if not abs(loss - expected) <= TOLERANCE * abs(expected):  # NaN too
            raise RuntimeError(
                f'the loss of {" ".join(way[:3])} is {loss:.6f}, that of {" ".join(first[:3])} {expected:.6f}: they '
                f'may differ by {TOLERANCE:.0e} of it, nothing was timed'
            )
