"""A ready config for a user's own data, after its annotations are checked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from repnext_mm._files import drafted
from repnext_mm.checkpoints import read_checkpoint, recognize, state_dict_of
from repnext_mm.checkpoints.find import HUB
from repnext_mm.checkpoints.published import published, similar
from repnext_mm.data.own import (
    Findings,
    check_class_folders,
    check_coco,
    check_label_maps,
    find_boxes,
    find_class_folders,
    find_label_maps,
)
from repnext_mm.data.own.config_text import (
    DEFAULTS,
    RECIPES,
    Model,
    Plan,
    Recipe,
    Task,
    classification_text,
    detection_text,
    segmentation_text,
)
from repnext_mm.data.own.converted import converted_files, write_converted
from repnext_mm.data.own.findings import shortened
from repnext_mm.data.own.layout import CocoSplit
from repnext_mm.data.sources import Split
from repnext_mm.errors import FileInTheWayError, MissingFileError, UserError
from repnext_mm.models import ARCHITECTURES

PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class NewConfig:
    """The written file (None: errors in the data stopped it), and what the check found."""

    path: Path | None
    findings: Findings
    annotations: tuple[Path, ...] = ()  # written, too: COCO-style JSON of what was in another format


def new_config(
    *,
    task: Task,
    data: str | Path,
    model: Model | None = None,
    classes: Sequence[str] | None = None,
    arch: str = 'm1',
    out: str | Path | None = None,
    batch: int | None = None,
    gpus: int = 1,
    checkpoint: str | None = None,
    size: int | None = None,
    epochs: int | None = None,
    reduce_zero_label: bool = False,
    map_suffix: str | None = None,
    boxes_only: bool = False,
) -> NewConfig:
    """Check the data below a folder, and write a config that trains on them.

    Annotations in other formats are written as COCO-style JSON to ``NAME_annotations`` beside the config ``NAME.py``.

    Args:
        task: 'det' (COCO-style JSON, YOLO, Pascal VOC, labelme, VIA or Label Studio), 'seg' (images and label maps) or
            'cls' (a folder per class).
        data: the folder with everything below it, training and validation data told apart by names.
        model: of the task; by default Mask R-CNN (Faster R-CNN where there are no masks), Semantic FPN or RepNeXt's own
            classifier.
        classes: their names; may be omitted for 'det' and 'cls', whose data name them.
        arch: a published architecture.
        out: the file; by default in the current folder, named after task, arch and data.
        batch: images on one GPU.
        gpus: how many; the learning rate is linear in ``batch * gpus``.
        checkpoint: weights that the backbone starts from, a file, a published name or an address; None trains from
            scratch.
        size: pixels of the images' shorter side (det), of both sides (RTMDet), of the crop (seg, cls).
        epochs: times through the training data; for 'seg' turned into iterations.
        reduce_zero_label: in label maps 0 is ignored and 1 is the first class.
        map_suffix: what names of label maps end in, where several would fit.
        boxes_only: masks and polygons are not looked at.

    Raises:
        UserError: one sentence with the value, the rule and the way out.
    """
    if task not in get_args(Task):
        raise UserError(f"task '{task}' is unknown: choose one of {', '.join(get_args(Task))}")
    if arch not in ARCHITECTURES:
        raise UserError(f"unknown arch '{arch}': choose one of {', '.join(ARCHITECTURES)}")
    _check_classes(task, classes)
    if task != 'seg' and (reduce_zero_label or map_suffix is not None):
        option = '--reduce-zero-label' if reduce_zero_label else '--map-suffix'
        raise UserError(f'{option} is about label maps: omit it for {task}')
    if task != 'det' and boxes_only:
        raise UserError(f'--boxes-only is about annotations with masks: omit it for {task}')
    chosen = model or DEFAULTS[task]
    recipe, root = _recipe(chosen, task, boxes_only=boxes_only, given=model is not None), Path(data).resolve()
    path = Path(f'{recipe.name}_{arch}_{root.name}.py' if out is None else out)
    if not re.fullmatch(r'[\w.+ -]+', path.name):  # it stands in the config, which is a program
        raise UserError(f'the config would be called {path.name!r}: name a plain file with --out')
    if path.suffix != '.py':
        raise UserError(f"--out '{path}' is not a config file: let its name end in .py")
    if path.exists():
        raise FileInTheWayError(f"'{path}' is there already: remove it, or name another file with --out")
    annotations = path.resolve().with_name(f'{path.stem}_annotations')
    plan = Plan(
        model=chosen,
        out=path,
        bases=_bases(path, recipe.bases),
        data_root=root.as_posix(),
        classes=(),
        arch=arch,
        checkpoint=_usable_checkpoint(checkpoint, arch),
        images=0,
        batch=_at_least(2 if task == 'cls' else 1, batch=recipe.batch if batch is None else batch),
        gpus=_at_least(1, gpus=gpus),
        size=_at_least(32, size=recipe.size if size is None else size),
        epochs=_at_least(1, epochs=recipe.epochs if epochs is None else epochs),
    )
    findings = Findings()
    converted: dict[Split, CocoSplit] = {}
    if checkpoint is None:
        findings.warn('without --checkpoint the backbone starts from random weights', f'arch {arch}')
    if task == 'det':
        text, converted = _detection(
            plan, root, annotations, classes, findings, boxes_only=boxes_only, given=model is not None
        )
    elif task == 'seg':
        text = _segmentation(
            plan, root, classes or (), findings, reduce_zero_label=reduce_zero_label, map_suffix=map_suffix
        )
    else:
        text = _classification(plan, root, classes, findings)
    if '{{' in text:
        raise UserError("a class, a file or a folder has '{{' in its name, which configs replace: rename it")
    if findings.errors:
        return NewConfig(path=None, findings=findings)
    with drafted(path) as draft:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding='utf-8')
        files = write_converted(converted, annotations) if converted else {}
    return NewConfig(path=path, findings=findings, annotations=tuple(files.values()))


def configs_folder() -> Path:
    """Where our configs lie: in an installed package below ``.mim``, else beside the package in its clone.

    Raises:
        MissingFileError: in neither place.
    """
    package = PACKAGE
    for folder in (package / '.mim' / 'configs', package.parent / 'configs'):
        if (folder / '_base_').is_dir():
            return folder
    raise MissingFileError(f"no configs beside or in '{package}': install repnext_mm again, or run in its clone")


def _detection(
    plan: Plan,
    root: Path,
    folder: Path,
    classes: Sequence[str] | None,
    findings: Findings,
    *,
    boxes_only: bool,
    given: bool,
) -> tuple[str, dict[Split, CocoSplit]]:
    """The text, and the annotations that it expects to be written to ``folder``."""
    splits = find_boxes(root, classes, findings)
    converted = {split: part for split, part in splits.items() if part.places is not None}
    if converted and folder.is_relative_to(root):  # another run would take them for the user's own
        raise UserError(
            f"converted annotations would be written to '{folder}', among the data: name a file elsewhere with --out"
        )
    if converted and folder.exists():
        raise FileInTheWayError(
            f"'{folder}', where converted annotations would be written, is there already: remove it, or name another "
            'file with --out'
        )
    facts = check_coco(splits, classes, findings, boxes_only=boxes_only)
    files = converted_files(converted, folder) or {split: part.annotations for split, part in splits.items()}
    if plan.recipe.masks and not facts.masks and not findings.errors:
        if given:
            raise UserError(
                f'--model {plan.model} learns masks, and the annotations have boxes only: choose faster-rcnn, '
                'retinanet or rtmdet'
            )
        plan = replace(plan, model='faster-rcnn', bases=_bases(plan.out, RECIPES['faster-rcnn'].bases))
    boxes = splits['train'].content['annotations']
    text = detection_text(
        replace(plan, classes=facts.classes, images=facts.images),
        polygons=not any(isinstance(box.get('segmentation'), dict) for box in boxes),
        annotations=_below(root, files),
        images=_below(root, {split: part.images for split, part in splits.items()}),
    )
    return text, converted


def _segmentation(
    plan: Plan,
    root: Path,
    classes: Sequence[str],
    findings: Findings,
    *,
    reduce_zero_label: bool,
    map_suffix: str | None,
) -> str:
    splits = find_label_maps(root)
    facts = check_label_maps(splits, classes, findings, reduce_zero_label=reduce_zero_label, map_suffix=map_suffix)
    return segmentation_text(
        replace(plan, classes=classes, images=facts.images),
        maps=_below(root, {split: part.maps for split, part in splits.items()}),
        images=_below(root, {split: part.images for split, part in splits.items()}),
        suffixes={str(split): suffixes for split, suffixes in facts.suffixes.items()},
        reduce_zero_label=reduce_zero_label,
    )


def _classification(plan: Plan, root: Path, classes: Sequence[str] | None, findings: Findings) -> str:
    splits = find_class_folders(root)
    facts = check_class_folders(splits, classes, findings)
    if facts.images < plan.batch * plan.gpus:
        findings.error(
            'one batch over all GPUs must not exceed the training images: lower --batch',
            f'{plan.batch} x {plan.gpus} for {facts.images}',
        )
    return classification_text(
        replace(plan, classes=facts.classes, images=facts.images), folders=_below(root, splits), suffixes=facts.suffixes
    )


def _below(root: Path, paths: Mapping[Any, Path]) -> dict[str, str]:
    """Paths relative to the root, '' for the root itself; absolute ones for what is not below it."""
    return {
        split: '' if path == root else (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
        for split, path in paths.items()
    }


def _bases(out: Path, names: Sequence[str]) -> list[str]:
    """Paths of what is inherited: relative inside one clone, absolute from anywhere else."""
    folder, start = configs_folder(), out.resolve().parent
    relative = folder.parent.name != '.mim' and start.is_relative_to(folder.parent)
    base = os.path.relpath(folder, start) if relative else str(folder)
    return [(Path(base) / '_base_' / f'{name}.py').as_posix() for name in names]


def _recipe(model: Model, task: Task, *, boxes_only: bool, given: bool) -> Recipe:
    fitting = [name for name, recipe in RECIPES.items() if recipe.task == task]
    if model not in fitting:
        raise UserError(f"--model '{model}' is not a model of --task {task}: choose one of {', '.join(fitting)}")
    if given and boxes_only and RECIPES[model].masks:
        raise UserError(f'--model {model} learns masks, and --boxes-only leaves them out: omit one of the two')
    return RECIPES[model]


def _check_classes(task: Task, classes: Sequence[str] | None) -> None:
    if task == 'seg' and classes is None:
        raise UserError('--classes is needed for seg: maps hold numbers only, name them in order, from value 0 on')
    if classes is None:
        return
    if not classes or any(not name.strip() for name in classes) or len(set(classes)) < len(classes):
        raise UserError(f'--classes {shortened(repr(",".join(classes)))} must be different names, separated by commas')
    if task == 'seg' and len(classes) < 2:
        raise UserError(f"--classes '{classes[0]}' is one class: segmentation needs the background too, name it first")


def _at_least(least: int, **named: int) -> int:
    ((name, value),) = named.items()
    if value < least:
        raise UserError(f'--{name} {value} is too small: give at least {least}')
    return value


def _usable_checkpoint(checkpoint: str | None, arch: str) -> str | None:
    """The file's absolute path, once its backbone is known to be of this arch; addresses are left to the training.

    So are the names of published files, whose arch is known.
    """
    if checkpoint is None or '://' in checkpoint or checkpoint.startswith(HUB):
        return checkpoint
    path, entry = Path(checkpoint), published(checkpoint)
    if path.is_file():
        weights = recognize(state_dict_of(read_checkpoint(path)), ARCHITECTURES)
        found, form, usable = weights.arch, weights.form, path.resolve().as_posix()
    elif entry is not None:
        found, form, usable = entry.arch, entry.form, entry.name
    else:
        raise MissingFileError(
            f"--checkpoint '{checkpoint}' does not exist: give the path of a weight file{similar(checkpoint)}"
        )
    if found != arch:
        raise UserError(f"--checkpoint '{checkpoint}' holds RepNeXt {found or 'nowhere'}, not {arch}: change one")
    if form != 'train':
        raise UserError(
            f"--checkpoint '{checkpoint}' is of form {form}: fused weights cannot be trained on, take the file "
            'from before fusing'
        )
    return usable
