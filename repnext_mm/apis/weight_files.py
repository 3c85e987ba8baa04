"""Inspecting, converting, fusing and comparing weight files: the library calls behind tools/checkpoint.py."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from repnext_mm._files import drafted
from repnext_mm.apis.build import build_model
from repnext_mm.apis.config import classes_in_checkpoint, drop_initial_weights, load_config, without_teacher
from repnext_mm.checkpoints import (
    Recognized,
    WeightsError,
    is_torchscript,
    local_file,
    read_checkpoint,
    recognize,
    state_dict_of,
    unsafe_globals,
    write_checkpoint,
)
from repnext_mm.checkpoints.read import is_averaged, one_sentence, shown_entries, weights_in, writer_of
from repnext_mm.checkpoints.write import plain_metadata
from repnext_mm.errors import UserError
from repnext_mm.models import ARCHITECTURES, type_name
from repnext_mm.models.branchwise import branch_by_branch
from repnext_mm.reparam import FusionReport, fuse, relative_error
from repnext_mm.reparam.verify import all_within

load_model = build_model  # its former name, kept for one release

_TOLERANCE = 1e-6  # of a fused file, in float64: far above rounding, far below what a wrong fusing gives


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What ``inspect_file`` found."""

    kind: str  # 'torch.save', 'TorchScript' or 'safetensors'
    unsafe: list[str]  # globals that only unpickling could build; when there are any, the rest is not known
    writer: str = 'unknown'
    weights: Recognized | None = None
    tensors: int = 0
    parameters: int = 0  # numbers in floating-point tensors, norm statistics included
    dtypes: Mapping[str, int] | None = None
    averaged: bool = False  # holds averaged (EMA) weights
    entries: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()  # the entries that hold weights, ''  being the content itself


def inspect_file(path: str | Path, *, trust_pickle: bool = False) -> Inspection:
    """Say what a weight file is, without executing anything in it.

    Raises:
        UserError: there is no such file, or it is not a weight file.
    """
    path = local_file(path)
    kind = 'safetensors' if path.suffix == '.safetensors' else 'torch.save'
    unsafe: list[str] = []
    with one_sentence(path):
        if is_torchscript(path):
            kind = 'TorchScript'
        else:
            unsafe = unsafe_globals(path)
    if unsafe and not trust_pickle:
        return Inspection(kind=kind, unsafe=unsafe)
    content = read_checkpoint(path, trust_pickle=trust_pickle)
    networks = weights_in(content)
    state = _likeliest(content, networks)
    return Inspection(
        kind=kind,
        unsafe=unsafe,
        writer=writer_of(content),
        weights=recognize(state, ARCHITECTURES),
        tensors=len(state),
        parameters=sum(value.numel() for value in state.values() if value.is_floating_point()),
        dtypes=dict(Counter(str(value.dtype).removeprefix('torch.') for value in state.values())),
        averaged=any(is_averaged(name, content) for name in networks),
        entries=tuple(shown_entries(content)),
        networks=tuple(networks),
    )


def convert_file(
    path: str | Path, out: str | Path, *, prefix: str | None = None, ema: bool = False, trust_pickle: bool = False
) -> Path:
    """Write the weights of any readable file as plain tensors; ``out`` may end in ``.safetensors``.

    Args:
        path: see ``read_checkpoint``; with ``trust_pickle``, also a file of a whole module.
        out: where to.
        prefix: the entry (``'model_ema.'``) or the start of the keys to take; by itself, the likeliest entry.
        ema: take the averaged weights.
        trust_pickle: see ``read_checkpoint``.

    Raises:
        UserError: see ``read_checkpoint``.
    """
    content = read_checkpoint(path, trust_pickle=trust_pickle)
    state = state_dict_of(content, prefix=prefix, ema=ema)
    return write_checkpoint(out, state, meta={**_kept_metadata(content), **recognized_metadata(state)})


@dataclass(frozen=True, kw_only=True)
class FusedFile:
    """What ``fuse_file`` wrote and measured."""

    weights: Path
    config: Path
    report: FusionReport
    errors: tuple[float, ...]  # relative, per level of the backbone or of a classifier's scores, in float64


def fuse_file(
    path: str | Path, config_path: str | Path, out: str | Path, *, ema: bool = False, trust_pickle: bool = False
) -> FusedFile:
    """Fuse a model's backbone, and write the fused weights and the config that loads them.

    Args:
        path: weights of the whole model that the config describes.
        config_path: the config of a detector, segmentor or classifier, or one whose ``model`` is a bare backbone.
        out: the fused file; the config is written beside it, with the suffix ``.py``.
        ema: take the averaged weights.
        trust_pickle: see ``read_checkpoint``.

    Raises:
        UserError: the file cannot be read, or does not fit the config.
    """
    config = load_config(config_path)
    model = build_model(config, path, ema=ema, trust_pickle=trust_pickle)
    model.eval()  # of some backbones, it returns None
    exact = _double(_compared(model))
    probe = torch.randn(1, _input_channels(exact), 65, 97).double()
    # against every branch apart: the train form merges by the functions that fuse
    errors = relative_error(fuse(exact, foreign=False)[0], branch_by_branch(exact), probe)
    fused, report = fuse(model, foreign=False)  # what deploy=True builds, and no more
    if not report:
        raise UserError(f'{path} with {config_path} has nothing to fuse: it is fused already, or not RepNeXt')
    if not all_within(errors, _TOLERANCE):
        listed = ', '.join(f'{error:.1e}' for error in errors)
        raise UserError(
            f'{path} was not fused: outputs would differ by {listed} (relative, per level), more than '
            f'{_TOLERANCE:.0e}; look for NaN, infinite values or extreme norm statistics in the weights'
        )
    meta = _kept_metadata(read_checkpoint(path, trust_pickle=trust_pickle))
    state = fused.state_dict()
    written = write_checkpoint(out, state, meta={**meta, **recognized_metadata(state)})
    deploy = Path(out).with_suffix('.py')
    with drafted(deploy) as draft:
        draft.write_text(deploy_config(config).pretty_text, encoding='utf-8')
    return FusedFile(weights=written, config=deploy, report=report, errors=errors)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Differences of two files, tensor by tensor."""

    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    other_shape: tuple[str, ...]
    other_dtype: tuple[str, ...]  # compared all the same, by their values
    differences: Mapping[str, float]  # largest absolute difference of the tensors that both have, if it is not 0
    equal: int  # tensors without any difference
    tensors: tuple[int, int]  # of the first and of the second


def compare_files(first: str | Path, second: str | Path, *, trust_pickle: bool = False) -> Comparison:
    """Compare the weights of two files.

    Raises:
        UserError: see ``read_checkpoint``.
    """
    a, b = (state_dict_of(read_checkpoint(path, trust_pickle=trust_pickle)) for path in (first, second))
    both = [key for key in a if key in b]
    shapes = tuple(key for key in both if a[key].shape != b[key].shape)
    distances = {key: _distance(a[key], b[key]) for key in both if key not in shapes}
    return Comparison(
        only_first=tuple(key for key in a if key not in b),
        only_second=tuple(key for key in b if key not in a),
        other_shape=shapes,
        other_dtype=tuple(key for key in both if a[key].dtype != b[key].dtype),
        differences={key: value for key, value in distances.items() if value != 0},
        equal=sum(value == 0 for value in distances.values()),
        tensors=(len(a), len(b)),
    )


def compare_outputs(
    first: str | Path, first_config: str | Path, second: str | Path, second_config: str | Path
) -> tuple[float, ...]:
    """Relative error of the second model's outputs against the first's, per level, in float64.

    Outputs are those of the backbone, or a classifier's scores.

    Raises:
        UserError: a file cannot be read or does not fit its config, or the outputs differ in shape.
    """
    pairs = ((first, first_config), (second, second_config))
    models = [build_model(load_config(config), path) for path, config in pairs]
    for model in models:
        model.eval()
    reference, other = (_double(_compared(model)) for model in models)
    try:
        return relative_error(other, reference, torch.randn(1, _input_channels(reference), 65, 97).double())
    except ValueError as error:  # levels of another number or shape
        raise UserError(f'{first} and {second} cannot be compared: {error}') from error


def deploy_config(config: Config) -> Config:
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


def recognized_metadata(state: Mapping[str, Tensor]) -> dict[str, str]:
    """What a file of these weights says of itself: task, arch and form, where the weights are those of a RepNeXt."""
    found = recognize(state, ARCHITECTURES)
    known = {'task': found.task, 'arch': found.arch, 'form': found.form}
    return {key: value for key, value in known.items() if value} if found.arch in ARCHITECTURES else {}


def _kept_metadata(content: Mapping[str, Any]) -> dict[str, Any]:
    """Classes and their colors, all that is kept of what a checkpoint holds beside its weights."""
    classes = classes_in_checkpoint(content)
    return plain_metadata({'dataset_meta': classes} if classes else {})


def _compared(model: nn.Module) -> nn.Module:
    """What two models are compared by: a classifier as a whole, otherwise the backbone, since boxes vary in number."""
    classifier = isinstance(getattr(model, 'head', None), nn.Module) and hasattr(model.head, 'pre_logits')
    return model if classifier else getattr(model, 'backbone', model)


def _double(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).cpu().double()


def _input_channels(backbone: nn.Module) -> int:
    return next(parameter.shape[1] for parameter in backbone.parameters() if parameter.dim() == 4)


def _likeliest(content: Mapping[str, Any], networks: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """The weights that a file is described by: where nothing tells which are meant, the first of the most tensors."""
    try:
        return state_dict_of(content)
    except WeightsError:
        if len(networks) < 2:
            raise
        return state_dict_of({'': max(networks.values(), key=len)})


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference, infinite where one is NaN or its type has no arithmetic and its bytes differ."""
    if not a.numel():
        return 0.0
    try:
        a, b = _comparable(a), _comparable(b)
    except (NotImplementedError, RuntimeError, TypeError):  # a type that torch stores, and does not compute with
        same = a.dtype == b.dtype and torch.equal(_bytes(a), _bytes(b))
        return 0.0 if same else math.inf
    if not (a.is_floating_point() or a.is_complex() or b.is_floating_point() or b.is_complex()):
        first, second = a.numpy().astype(object), b.numpy().astype(object)  # Python's integers are exact
        return float(abs(first - second).max()) if not np.array_equal(first, second) else 0.0
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    a, b = a.to(wide), b.to(wide)
    differing = (a != b) & ~(a.isnan() & b.isnan())
    if not differing.any():
        return 0.0
    largest = (a[differing] - b[differing]).abs().max().item()
    return math.inf if math.isnan(largest) else largest


def _comparable(value: Tensor) -> Tensor:
    """The numbers of a tensor in a type that NumPy knows."""
    value = value.detach().cpu()
    value = value.dequantize() if value.is_quantized else value
    value = value.resolve_conj().resolve_neg() if value.is_complex() else value.resolve_neg()
    if value.is_complex():
        return value.to(torch.complex128)
    if value.is_floating_point():
        return value.to(torch.float64)
    value.numpy()
    return value


def _bytes(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().view(torch.uint8)
