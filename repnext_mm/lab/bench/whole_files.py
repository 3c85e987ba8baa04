"""A whole model in exported files against PyTorch: from an image's pixels to what is on it, in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine import Config

from repnext_mm.apis.config import load_config, without_teacher
from repnext_mm.errors import UserError
from repnext_mm.export.formats import SUFFIXES
from repnext_mm.export.graphs import sizing_steps
from repnext_mm.export.predict import Exported, Prediction, open_file, predict
from repnext_mm.lab.bench.whole_model import fused_model, image_and_name, loaded_model, pipeline_of
from repnext_mm.timing import Latency, quantiles, wall_times, warm_up

SURE, UNSURE = 0.3, 0.15  # an object of the first score has to be found by the other side with at least the second
OVERLAP = 0.5  # of two boxes that are of one object
AGREEMENT = 0.8  # a file that finds less of the same is not timed
EAGER = 'PyTorch, fused'


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run the model."""

    name: str  # ``EAGER`` or the file
    size_bytes: int | None  # of a file, with its weights
    found: int | None  # objects of at least ``SURE``; None where the task is another
    agreement: float  # with the first way: share of the objects, of the pixels, or 1.0 for the same class
    time: Latency


@dataclass(frozen=True, kw_only=True)
class WholeFiles:
    """One image through one model, in all ways."""

    config: str
    trained: bool
    image: str
    image_shape: tuple[int, int]  # (H, W)
    threads: int
    ways: tuple[Way, ...]


def measure_whole_files(
    files: Sequence[str | Path],
    config_path: str | Path,
    checkpoint: str | Path | None = None,
    *,
    image: str | Path | None = None,
    device: torch.device | str = 'cpu',
    rounds: int = 20,
    warmup_rounds: int = 2,
    warmup_s: float = 1.0,
    options: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
    progress: Callable[[], object] | None = None,
) -> WholeFiles:
    """Time a config's model in PyTorch, its backbone fused, and exported files of it, on one image.

    A call goes from the decoded image to boxes and masks, classes of pixels, or scores of the image: resizing,
    normalization, the network and what follows it. All ways use the number of threads that PyTorch has.

    Args:
        files: ``.onnx`` or ``.xml`` that ``repnext export`` wrote of this model.
        config_path, checkpoint, image, options, trust_pickle, progress: as in ``measure_whole_model``.
        device: the CPU; files run on it.
        rounds, warmup_rounds, warmup_s: see ``repnext_mm.timing``.

    Raises:
        UserError: a file cannot be used, sizes images in another way, or finds something else than the model.
    """
    if torch.device(device).type != 'cpu':
        raise UserError(f'exported files run on the CPU here, not on {device}: add --device cpu')
    if rounds < 1:
        raise UserError(f'rounds={rounds}: measure at least one round')
    config = load_config(config_path, options=options)
    config.model = without_teacher(config.model)
    pixels, described = image_and_name(image)
    model = loaded_model(config, checkpoint, trust_pickle=trust_pickle)
    pipeline = pipeline_of(config)
    height, width = pixels.shape[:2]
    shapes = {'img_path': None, 'img_id': 0, 'img_shape': (height, width), 'ori_shape': (height, width)}
    rgb = np.ascontiguousarray(pixels[..., ::-1])
    with torch.no_grad():
        fused, _ = fused_model(config, model)

        def eager() -> Prediction:
            data = pipeline({'img': pixels, **shapes})
            (sample,) = fused.test_step({'inputs': [data['inputs']], 'data_samples': [data['data_samples']]})
            return _prediction(sample)

        calls: dict[str, Callable[[], Prediction]] = {EAGER: eager}
        for file in files:
            opened = open_file(file, threads=torch.get_num_threads())
            _check_sizes(file, opened, config)
            calls[str(file)] = partial(predict, opened, rgb)
        found = {name: call() for name, call in calls.items()}
        agreements = {name: agreement(each, found[EAGER]) for name, each in found.items()}
        for name, share in agreements.items():
            if not share >= AGREEMENT:
                raise UserError(
                    f"'{name}' agrees with the model on {share:.2f} of what is on this image, less than {AGREEMENT}: "
                    'give the config and the checkpoint that it was exported from'
                )
        warm_up(calls, rounds=warmup_rounds, seconds=warmup_s)
        times = wall_times(calls, rounds=rounds, after_round=progress)
    return WholeFiles(
        config=Path(config_path).stem,
        trained=checkpoint is not None,
        image=described,
        image_shape=(height, width),
        threads=torch.get_num_threads(),
        ways=tuple(
            Way(
                name=name if name == EAGER else Path(name).name,
                size_bytes=None if name == EAGER else _size(Path(name)),
                found=None if found[name].boxes is None else int((_scores(found[name]) >= SURE).sum()),
                agreement=agreements[name],
                time=quantiles(values),
            )
            for name, values in times.items()
        ),
    )


def _check_sizes(file: str | Path, opened: Exported, config: Config) -> None:
    theirs, ours = opened.about.get('steps'), sizing_steps(config)
    if ours is not None and theirs != ours:
        raise UserError(
            f"'{file}' sizes images by {theirs}, and this config by {ours}: export it with the same --cfg-options"
        )


def agreement(found: Prediction, expected: Prediction) -> float:
    """The share of a side's sure objects that the other found, the lesser; of equal pixels; 1.0 for the same class."""
    if expected.classes is not None:
        same = found.classes is not None and found.classes.shape == expected.classes.shape
        return float(np.mean(found.classes == expected.classes)) if same else 0.0
    if expected.boxes is None:
        return float(found.boxes is None and _scores(found).argmax() == _scores(expected).argmax())
    if found.boxes is None or found.labels is None or expected.labels is None:
        return 0.0
    from torchvision.ops import box_iou

    same = box_iou(torch.from_numpy(found.boxes), torch.from_numpy(expected.boxes)).numpy() > OVERLAP
    same &= found.labels[:, None] == expected.labels
    shares = []
    for sure, other, matches in (
        (_scores(found) >= SURE, _scores(expected) >= UNSURE, same),
        (_scores(expected) >= SURE, _scores(found) >= UNSURE, same.T),
    ):
        shares.append(float(np.mean(matches[sure][:, other].any(1))) if sure.any() else 1.0)
    return min(shares)


def _scores(prediction: Prediction) -> np.ndarray:
    assert prediction.scores is not None
    return prediction.scores


def _prediction(sample: Any) -> Prediction:
    """A data sample of mmdet, mmseg or mmpretrain as what ``predict`` gives."""
    if 'pred_instances' in sample:
        found = sample.pred_instances
        masks = found.masks if 'masks' in found else None
        return Prediction(
            boxes=found.bboxes.numpy(),
            scores=found.scores.numpy(),
            labels=found.labels.numpy(),
            masks=masks.numpy() if isinstance(masks, torch.Tensor) else masks,
        )
    if 'pred_sem_seg' in sample:
        return Prediction(classes=sample.pred_sem_seg.data[0].numpy())
    return Prediction(scores=sample.pred_score.numpy())


def _size(path: Path) -> int:
    weights = path.with_suffix('.bin')
    has_weights = path.suffix in SUFFIXES['openvino'] and weights.is_file()
    return path.stat().st_size + (weights.stat().st_size if has_weights else 0)
