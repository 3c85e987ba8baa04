"""A folder that can be uploaded to a model hub as it is: weights as safetensors, a card, and what builds the model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from mmengine.config import Config
from torch import nn

from repnext_mm._files import drafted
from repnext_mm.apis.build import build_model
from repnext_mm.apis.config import (
    classes_in_checkpoint,
    drop_initial_weights,
    innermost_datasets,
    load_config,
    without_teacher,
)
from repnext_mm.apis.weight_files import recognized_metadata
from repnext_mm.checkpoints import StateDict, local_file, read_checkpoint, recognize, state_dict_of, write_checkpoint
from repnext_mm.checkpoints.load import check_fits
from repnext_mm.checkpoints.published import Published, published
from repnext_mm.checkpoints.read import Recognized
from repnext_mm.checkpoints.write import plain_metadata
from repnext_mm.errors import FileInTheWayError, UserError
from repnext_mm.models import ARCHITECTURES, RepNeXt, type_name
from repnext_mm.models.heads import Classifier
from repnext_mm.reparam import fuse
from repnext_mm.version import __version__

WEIGHTS = 'model.safetensors'
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB
_PIPELINES = {  # what the hub calls a task
    'classifier': 'image-classification',
    'detector': 'object-detection',
    'segmentor': 'image-segmentation',
    'backbone': 'image-feature-extraction',
}


@dataclass(frozen=True)
class _Model:
    """What is published."""

    state: StateDict
    weights: Recognized
    classes: Mapping[str, Any]  # `classes`, and perhaps `palette`
    release: Published | None  # the entry of the authors' file that it is
    config: Config | None


def publish(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    config: str | Path | None = None,
    license: str | None = None,
    ema: bool = False,
    trust_pickle: bool = False,
) -> list[Path]:
    """Write what a hub needs to a new folder; nothing is uploaded.

    The folder gets ``model.safetensors``; ``README.md``, a card that states nothing that was not given or counted; the
    config, when there is one; and, for a classifier in train form, timm's ``config.json``.

    Args:
        checkpoint: any weight file, or a published name.
        folder: where to; absent or empty.
        config: of the whole model, which the weights have to fit; a bare RepNeXt and its classifier need none.
        license: for the card, as the hub writes it (``'mit'``); of the authors' files it is known.
        ema: take the averaged weights.
        trust_pickle: see ``read_checkpoint``.

    Returns:
        The files.

    Raises:
        FileInTheWayError: the folder holds something.
        UserError: the weights cannot be read or do not fit, or a config is needed.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise FileInTheWayError(f'{folder} is there already: name a new folder, or remove it')
    model = _model(checkpoint, None if config is None else load_config(config), ema=ema, trust_pickle=trust_pickle)
    timm = _timm_config(model)
    with drafted(folder) as draft:
        draft.mkdir(parents=True)
        _write_weights(draft / WEIGHTS, model)
        if timm is not None:
            (draft / 'config.json').write_text(json.dumps(timm, indent=2) + '\n', encoding='utf-8')
        name = None if config is None else Path(config).with_suffix('.py').name
        if name is not None and model.config is not None:
            (draft / name).write_text(_text_of(model.config), encoding='utf-8')
        digest = hashlib.sha256((draft / WEIGHTS).read_bytes()).hexdigest()
        card = _card(model, folder.name, source=Path(str(checkpoint)).name, config=name, timm=timm, digest=digest)
        front = _front(model, license=license, timm=timm is not None)
        (draft / 'README.md').write_text(f'---\n{front}---\n\n{card}', encoding='utf-8')
    return sorted(folder.iterdir())


def _model(checkpoint: str | Path, config: Config | None, *, ema: bool, trust_pickle: bool) -> _Model:
    source = local_file(checkpoint)
    content = read_checkpoint(source, trust_pickle=trust_pickle)
    classes = plain_metadata(classes_in_checkpoint(content))
    if config is not None:
        built = build_model(config, source, ema=ema, testing=True, trust_pickle=trust_pickle)
        state = dict(built.state_dict())
    else:
        state = state_dict_of(content, ema=ema)
    bare = _bare(state, recognize(state, ARCHITECTURES), source=source)
    if bare is None and config is None:
        found = recognize(state, ARCHITECTURES)
        raise UserError(
            f'{checkpoint} is not a RepNeXt or its classifier by itself (task {found.task}, arch {found.arch}, form '
            f'{found.form}): name the config of its model with --config'
        )
    state = state if bare is None else bare
    release = None if Path(checkpoint).is_file() else published(str(checkpoint))  # a path may be anybody's file
    return _Model(state, recognize(state, ARCHITECTURES), classes, release, config)


def _bare(state: StateDict, weights: Recognized, *, source: Path) -> StateDict | None:
    """Weights of a backbone, or of it and the two heads, under the authors' names, every one in its place.

    None of other models: another head, a detector, other dimensions.
    """
    if weights.arch not in ARCHITECTURES or weights.task not in ('backbone', 'classifier'):
        return None
    outside = weights.prefix.removesuffix('backbone.')
    below = {key.removeprefix(outside).removeprefix('backbone.'): value for key, value in state.items()}
    named = {re.sub(r'^head\.fc\.', 'head.', key): value for key, value in below.items()}
    fused = {'train': None, 'default': 'default', 'keep_norms': 'keep_norms'}.get(weights.form, '')
    head = named.get('head.head.linear.weight' if fused is None else 'head.weight')
    if fused == '' or (weights.task == 'classifier' and head is None):
        return None
    stem = named['stem.stem.0.conv.weight' if fused is None else 'stem.stem.0.weight']
    network: nn.Module = (
        RepNeXt(weights.arch, in_channels=stem.shape[1])
        if head is None
        else Classifier(weights.arch, num_classes=len(head), in_channels=stem.shape[1])
    )
    if fused is not None:
        network, _ = fuse(network.eval(), form=fused)
    kept, _ = check_fits(named, network.state_dict(), name=f'RepNeXt {weights.arch}', source=str(source))
    return kept


def _write_weights(path: Path, model: _Model) -> None:
    classes = {'dataset_meta': model.classes} if model.classes else {}
    write_checkpoint(path, model.state, meta={**classes, **recognized_metadata(model.state)})


def _timm_config(model: _Model) -> dict[str, Any] | None:
    """What timm builds a model of the hub from; None where it could not: it knows classifiers in train form."""
    weights, head = model.weights, model.state.get('head.head.linear.weight')
    evaluation = _evaluation(model)
    if weights.arch not in ARCHITECTURES or weights.form != 'train' or head is None or evaluation is None:
        return None
    first = model.state['stem.stem.0.conv.weight']
    channels = first.shape[1]
    size, crop_pct, mean, std = evaluation
    found: dict[str, Any] = {
        'architecture': f'repnext_{weights.arch}',
        'num_classes': head.shape[0],
        'num_features': head.shape[1],
        'pretrained_cfg': {
            'custom_load': False,
            'input_size': [channels, size, size],
            'fixed_input_size': False,
            'interpolation': 'bicubic',
            'crop_pct': crop_pct,
            'mean': list(mean),
            'std': list(std),
            'num_classes': head.shape[0],
            'pool_size': [-(-size // 32)] * 2,
            'first_conv': 'stem.stem.0.conv',
            'classifier': ['head.head.linear', 'head.head_dist.linear'],
        },
    }
    if channels != 3:
        found['model_args'] = {'in_chans': channels}
    if model.classes:
        found['label_names'] = list(model.classes['classes'])
    return found


def _evaluation(model: _Model) -> tuple[int, float, Sequence[float], Sequence[float]] | None:
    """Width of the crop in pixels, its share of the resized image, mean and standard deviation of RGB from 0 to 1.

    None where the config's model takes BGR, which timm does not give.
    """
    if model.config is None:
        return 224, (model.release and model.release.crop_pct) or 0.875, _MEAN, _STD
    config = model.config
    pixels = config.model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    if not (pixels.get('to_rgb') or pixels.get('bgr_to_rgb')):
        return None
    loader = config.get('test_dataloader') or {}
    steps = next(innermost_datasets(loader['dataset'])).get('pipeline') or () if loader else ()
    edges = {type_name(step.get('type')): step.get('crop_size', step.get('scale')) for step in steps}
    resized = edges.get('ResizeEdge', edges.get('Resize'))
    crop = edges.get('CenterCrop', resized)
    sides = [side[0] if isinstance(side, list | tuple) else side for side in (crop, resized)]
    size = int(sides[0] or 224)
    mean, std = ([value / 255 for value in pixels.get(name) or ()] for name in ('mean', 'std'))
    return size, round(size / int(sides[1] or size), 4), mean or [0.0] * 3, std or [1 / 255] * 3


def _text_of(config: Config) -> str:
    """The config as the folder's, without the files that its training started from."""
    shown = config.copy()
    shown.model = without_teacher(shown.model)
    drop_initial_weights(shown.model)
    for key in ('load_from', 'resume', 'work_dir'):
        shown.pop(key, None)
    return str(shown.pretty_text)


def _front(model: _Model, *, license: str | None, timm: bool) -> str:
    task = model.weights.task
    known = {
        'license': license or ('apache-2.0' if model.release else None),
        'library_name': 'timm' if timm else 'repnext_mm',
        'pipeline_tag': _PIPELINES.get(task),
        'tags': ['repnext', 'repnext_mm', *(['timm'] if timm else [])],
    }
    return str(yaml.safe_dump({key: value for key, value in known.items() if value}, sort_keys=False))


def _card(
    model: _Model, name: str, *, source: str, config: str | None, timm: dict[str, Any] | None, digest: str
) -> str:
    weights = model.weights
    form = {'train': 'train form', 'default': 'fused, no norm left', 'keep_norms': 'fused, norms kept'}
    numbers = sum(value.numel() for value in model.state.values() if value.is_floating_point())
    lines = [
        f'# {name}',
        '',
        f'RepNeXt{f"-{weights.arch.upper()}" if weights.arch in ARCHITECTURES else ""} '
        f'([arXiv 2406.16004](https://arxiv.org/abs/2406.16004)), {weights.task}, '
        f'{form.get(weights.form, weights.form)}: {len(model.state)} tensors, {numbers / 1e6:.2f} M numbers.',
        '',
    ]
    if model.release:
        figures = ', '.join(f'{metric} {value}' for metric, value in model.release.reported.items())
        lines += [
            f"Weights: [the authors'](https://github.com/suous/RepNeXt), {model.release.holds}; reported by them: "
            f'{figures}.',
            '',
        ]
    if model.classes:
        lines += [f'Classes: {len(model.classes["classes"])}.', '']
    lines += ['## Use', '', 'Put this repository in the place of `OWNER/NAME`.', '', '```python']
    if timm is not None:
        lines += [
            'import timm',
            'import repnext_mm.timm_models',
            '',
            "model = timm.create_model('hf-hub:OWNER/NAME', pretrained=True).eval()",
            '```',
            '',
            '```python',
        ]
    if weights.arch in ARCHITECTURES:
        deploy = '' if weights.form == 'train' else ', deploy=True'
        lines += [
            'from repnext_mm import RepNeXt',
            '',
            f"backbone = RepNeXt('{weights.arch}', weights='hf-hub:OWNER/NAME'{deploy}).eval()",
        ]
    else:
        lines += ['from repnext_mm import read_checkpoint', '', "weights = read_checkpoint('hf-hub:OWNER/NAME')"]
    lines += ['```', '']
    if config is not None:
        lines += ['```bash', f'repnext test {config} hf-hub:OWNER/NAME', '```', '']
    lines += [
        '## Files',
        '',
        f'`{WEIGHTS}` (SHA-256 `{digest}`), made from `{source}` by repnext_mm {__version__}'
        + (f'; `{config}`, its config' if config else '')
        + ('; `config.json`, for timm' if timm is not None else '')
        + '.',
        '',
    ]
    return '\n'.join(lines)
