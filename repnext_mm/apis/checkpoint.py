"""Inspecting, converting, fusing and comparing weight files: the library calls behind tools/checkpoint.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from repnext_mm.apis.classes import classes_in_checkpoint
from repnext_mm.apis.config import building, load_config, without_teacher
from repnext_mm.apis.evaluate import drop_initial_weights
from repnext_mm.apis.weights import reading_safely
from repnext_mm.benchmark.branchwise import branch_by_branch
from repnext_mm.checkpoints import (
    Recognised,
    check_fits,
    is_torchscript,
    model_state,
    one_sentence,
    plain_metadata,
    read_checkpoint,
    recognise,
    shown_entries,
    state_dict_of,
    unsafe_globals,
    write_checkpoint,
    writer_of,
)  # fmt: skip
from repnext_mm.models import ARCHITECTURES, type_name
from repnext_mm.reparam import FusionReport, fuse, relative_error, within

_TOLERANCE = 1e-6  # of a fused file, in float64: far above rounding, far below what a wrong fusing gives


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What ``inspect_file`` found."""

    kind: str  # 'torch.save', 'TorchScript' or 'safetensors'
    unsafe: list[str]  # globals that only unpickling could build; when there are any, the rest is not known
    writer: str = 'unknown'
    weights: Recognised | None = None
    tensors: int = 0
    parameters: int = 0  # numbers in floating-point tensors, norm statistics included
    dtypes: Mapping[str, int] | None = None
    averaged: bool = False  # holds averaged (EMA) weights too
    entries: tuple[str, ...] = ()


def inspect_file(path: str | Path, *, trust_pickle: bool = False) -> Inspection:
    """Say what a weight file is, without executing anything in it.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no weight file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no weight file at {path}: give the path of a file')
    kind = 'safetensors' if Path(path).suffix == '.safetensors' else 'torch.save'
    unsafe: list[str] = []
    with one_sentence(path):
        if is_torchscript(path):
            kind = 'TorchScript'
        else:
            unsafe = unsafe_globals(path)
    if unsafe and not trust_pickle:
        return Inspection(kind=kind, unsafe=unsafe)
    content = read_checkpoint(path, trust_pickle=trust_pickle)
    state = state_dict_of(content)
    return Inspection(
        kind=kind,
        unsafe=unsafe,
        writer=writer_of(content),
        weights=recognise(state, ARCHITECTURES),
        tensors=len(state),
        parameters=sum(value.numel() for value in state.values() if value.is_floating_point()),
        dtypes=dict(Counter(str(value.dtype).removeprefix('torch.') for value in state.values())),
        averaged=bool({'ema_state_dict', 'state_dict_ema', 'model_ema'} & content.keys()),
        entries=tuple(shown_entries(content)),
    )


def convert_file(path: str | Path, out: str | Path, *, trust_pickle: bool = False) -> Path:
    """Write the weights of any readable file as plain tensors; ``out`` may end in ``.safetensors``.

    Raises:
        FileNotFoundError, ValueError: see ``read_checkpoint``.
    """
    content = read_checkpoint(path, trust_pickle=trust_pickle)
    return write_checkpoint(out, state_dict_of(content), meta=_kept_metadata(content))


@dataclass(frozen=True, kw_only=True)
class FusedFile:
    """What ``fuse_file`` wrote and measured."""

    weights: Path
    config: Path
    report: FusionReport
    errors: tuple[float, ...]  # relative, per level of the backbone or of a classifier's scores, in float64


def fuse_file(path: str | Path, config_path: str | Path, out: str | Path, *, trust_pickle: bool = False) -> FusedFile:
    """Fuse a model's backbone, and write the fused weights and the config that loads them.

    Args:
        path: weights of the whole model that the config describes.
        config_path: the config of a detector, segmentor or classifier, or one whose ``model`` is a bare backbone.
        out: the fused file; the config is written beside it, with the suffix ``.py``.
        trust_pickle: see ``read_checkpoint``.

    Raises:
        FileNotFoundError, ValueError: the file cannot be read, or does not fit the config.
    """
    config = load_config(config_path)
    model = load_model(config, path, trust_pickle=trust_pickle).eval()
    exact = _double(_compared(model))
    probe = torch.randn(1, _input_channels(exact), 65, 97).double()
    # against every branch apart: the train form merges by the functions that fuse
    errors = relative_error(fuse(exact, foreign=False)[0], branch_by_branch(exact), probe)
    fused, report = fuse(model, foreign=False)  # what deploy=True builds, and no more
    if not report:
        raise ValueError(f'{path} with {config_path} has nothing to fuse: it is fused already, or not RepNeXt')
    if not within(errors, _TOLERANCE):
        listed = ', '.join(f'{error:.1e}' for error in errors)
        raise ValueError(
            f'{path} was not fused: outputs would differ by {listed} (relative, per level), more than '
            f'{_TOLERANCE:.0e}; look for NaN, infinite values or extreme norm statistics in the weights'
        )
    meta = _kept_metadata(read_checkpoint(path, trust_pickle=trust_pickle))
    written = write_checkpoint(out, fused.state_dict(), meta=meta)
    deploy = Path(out).with_suffix('.py')
    _deploy_config(config).dump(str(deploy))
    return FusedFile(weights=written, config=deploy, report=report, errors=errors)


def load_model(config: Config, path: str | Path, *, trust_pickle: bool = False) -> nn.Module:
    """Build a config's model and load a file of the whole model into it, strictly.

    Raises:
        FileNotFoundError, ValueError: the file cannot be read, or does not fit.
    """
    init_default_scope(config.get('default_scope', 'mmengine'))
    settings = without_teacher(config.model).copy()
    drop_initial_weights(settings)
    settings.pop('init_cfg', None)
    with building(config), reading_safely(trust_pickle=trust_pickle):  # some read weights while they are built
        model: nn.Module = MODELS.build(settings)
    state = model_state(read_checkpoint(path, trust_pickle=trust_pickle))
    kept, _ = check_fits(state, model.state_dict(), name=type(model).__name__, source=str(path))
    model.load_state_dict(kept, strict=True)
    return model


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Differences of two files, tensor by tensor."""

    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    other_shape: tuple[str, ...]
    differences: Mapping[str, float]  # largest absolute difference of the tensors that both have, if it is not 0
    equal: int  # tensors without any difference


def compare_files(first: str | Path, second: str | Path, *, trust_pickle: bool = False) -> Comparison:
    """Compare the weights of two files.

    Raises:
        FileNotFoundError, ValueError: see ``read_checkpoint``.
    """
    a, b = (state_dict_of(read_checkpoint(path, trust_pickle=trust_pickle)) for path in (first, second))
    both = [key for key in a if key in b]
    shapes = tuple(key for key in both if a[key].shape != b[key].shape)
    distances = {key: _distance(a[key], b[key]) for key in both if key not in shapes}
    return Comparison(
        only_first=tuple(key for key in a if key not in b),
        only_second=tuple(key for key in b if key not in a),
        other_shape=shapes,
        differences={key: value for key, value in distances.items() if value != 0},
        equal=sum(value == 0 for value in distances.values()),
    )


def compare_outputs(
    first: str | Path, first_config: str | Path, second: str | Path, second_config: str | Path
) -> tuple[float, ...]:
    """Relative error of the second model's outputs against the first's, per level, in float64.

    Outputs are those of the backbone, or a classifier's scores.

    Raises:
        FileNotFoundError, ValueError: a file cannot be read or does not fit its config, or the outputs differ in shape.
    """
    pairs = ((first, first_config), (second, second_config))
    models = [load_model(load_config(config), path).eval() for path, config in pairs]
    reference, other = (_double(_compared(model)) for model in models)
    return relative_error(other, reference, torch.randn(1, _input_channels(reference), 65, 97).double())


def _deploy_config(config: Config) -> Config:
    """The same config for the fused weights: a deploy backbone, and nothing that fuses again."""
    deploy = config.copy()
    deploy.model = without_teacher(deploy.model)
    model = deploy.model
    drop_initial_weights(model)
    (model.backbone if 'backbone' in model else model)['deploy'] = True
    if type_name((model.get('head') or {}).get('type')) == 'RepNeXtClsHead':
        model.head['deploy'] = True
    hooks = deploy.get('custom_hooks') or []
    deploy.custom_hooks = [hook for hook in hooks if type_name(hook['type']) != 'FuseBackboneHook']
    return deploy


def _kept_metadata(content: Mapping[str, Any]) -> dict[str, Any]:
    """Classes and their colours, all that is kept of what a checkpoint holds beside its weights."""
    classes = classes_in_checkpoint(content)
    return plain_metadata({'dataset_meta': classes} if classes else {})


def _compared(model: nn.Module) -> nn.Module:
    """What two models are compared by: a classifier as a whole, otherwise the backbone, since boxes vary in number."""
    classifier = isinstance(getattr(model, 'head', None), nn.Module) and hasattr(model.head, 'pre_logits')
    return model if classifier else getattr(model, 'backbone', model)


def _double(module: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(module).cpu().double()


def _input_channels(backbone: nn.Module) -> int:
    return next(parameter.shape[1] for parameter in backbone.parameters() if parameter.dim() == 4)


def _distance(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
