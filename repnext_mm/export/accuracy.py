"""The metric of a config's test set, of an exported file in its own runtime and of the model that it came from."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch import nn

from repnext_mm.apis.config import building, load_config
from repnext_mm.errors import UserError
from repnext_mm.export.predict import Exported, Prediction, check_size, finished, network_input, open_file

HEADLINES = ('coco/bbox_mAP', 'coco/segm_mAP', 'mIoU', 'accuracy/top1')
"""What is compared, where a metric gives one of them; all that it gives where it gives none."""
Predict = Callable[[dict[str, Any]], Any]  # from an item of a data set to its data sample, with predictions


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Metrics of one model twice, on the same images; on a scale from 0 to 1."""

    model: dict[str, float]  # as it was trained
    exported: dict[str, float]  # the file, in its runtime
    images: int

    @property
    def drop(self) -> float:
        """The largest loss of a metric; NaN counts as all of it."""
        losses = [self.model[name] - self.exported[name] for name in self.model]
        return max((1.0 if np.isnan(loss) else loss for loss in losses), default=0.0)


def evaluate_file(
    path: str | Path,
    config: str | Path,
    *,
    images: int | None = None,
    threads: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """The metrics of an exported file on the test set of a config.

    Args:
        path: an ``.onnx`` or ``.xml`` of a whole detector, segmentor or classifier.
        config: its ``test_dataloader`` and ``test_evaluator`` are used.
        images: how many, spread evenly over the test set; None takes all.
        threads: of one run.
        options: overrides of the config, as in ``--cfg-options``.

    Raises:
        UserError: the file does not say what its outputs mean, or the config has no test set.
    """
    exported = open_file(path, threads=threads)
    if not exported.about.get('task'):
        raise UserError(f"'{path}' does not say what its outputs mean: export a whole model by its config")
    return evaluate(_exported(exported), load_config(config, options=options), images=images)


def compare(path: str | Path, network: nn.Module, config: Config, *, images: int | None = None) -> Accuracy:
    """Both metrics of a file and of the network that it came from, in eval mode."""
    count = len(_chosen(_dataset(config), images))
    return Accuracy(
        model=evaluate(_trained(network), config, images=images),
        exported=evaluate(_exported(open_file(path)), config, images=images),
        images=count,
    )


def evaluate(predict: Predict, config: Config, *, images: int | None = None) -> dict[str, float]:
    """The metrics of a config's evaluators over its test set, from 0 to 1.

    Raises:
        UserError: the config has no test set, or an image does not come as pixels.
    """
    dataset = _dataset(config)
    chosen = _chosen(dataset, images)
    with _of_images(config, dataset, chosen) as settings:
        evaluator = Evaluator(settings)
        evaluator.dataset_meta = dataset.metainfo
        for at in chosen:
            item = dataset[at]
            evaluator.process(data_samples=[predict(item)], data_batch={'inputs': [item['inputs']]})
        found = evaluator.evaluate(len(chosen))
    named = {name: value for name, value in found.items() if name in HEADLINES} or found
    return {name: float(value) / (1 if name.startswith('coco/') else 100) for name, value in named.items()}


def calibration_images(
    data: str | Path, about: Mapping[str, Any], *, count: int, options: Mapping[str, Any] | None = None
) -> Iterator[np.ndarray]:
    """Inputs of a network, ``(1, 3, H, W)``: of the images of a folder, or of a config's training set.

    Images of the training set go through the test pipeline, so that a test set is not seen before it is tested on.
    """
    from repnext_mm.export.predict import images_in, prepared, read_image

    if Path(data).is_dir():
        files = images_in(data)
        for at in _spread(len(files), count):
            pixels, _ = prepared(read_image(files[at]), about['steps'])
            yield network_input(pixels, dict(about))
        return
    config = load_config(data, options=options)
    dataset = _dataset(config, loader='train_dataloader')
    for at in _spread(len(dataset), count):
        yield network_input(_pixels(dataset[at]), dict(about))


def _trained(network: nn.Module) -> Predict:
    @torch.no_grad()
    def predict(item: dict[str, Any]) -> Any:
        batch = {'inputs': [item['inputs']], 'data_samples': [item['data_samples']]}
        (sample,) = network.test_step(batch)  # type: ignore[operator]
        return sample

    return predict


def _exported(exported: Exported) -> Predict:
    about = exported.about

    def predict(item: dict[str, Any]) -> Any:
        sample = item['data_samples']
        pixels = _pixels(item)
        check_size(pixels, about)
        outputs = exported.run(network_input(pixels, about))
        size, scale = tuple(sample.ori_shape[:2]), tuple(sample.get('scale_factor', (1.0, 1.0)))[:2]
        return _sample(sample, finished(about, outputs, size=size, scale=scale))

    return predict


def _sample(sample: Any, found: Prediction) -> Any:
    """Predictions as the metrics of mmdet, mmseg and mmpretrain take them."""
    if found.classes is not None:
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(found.classes)[None])
    elif found.boxes is not None:
        assert found.scores is not None
        instances = InstanceData(bboxes=torch.from_numpy(found.boxes), scores=torch.from_numpy(found.scores))
        instances.labels = torch.from_numpy(found.labels)
        if found.masks is not None:
            instances.masks = torch.from_numpy(found.masks)
        sample.pred_instances = instances
    else:
        scores = torch.from_numpy(found.scores).float()
        sample.set_pred_score(scores).set_pred_label(scores.argmax(0, keepdim=True))
    return sample


def _pixels(item: dict[str, Any]) -> np.ndarray:
    """``(H, W, 3)``, RGB, uint8, of what a test pipeline packed: BGR, as files are read."""
    inputs = item['inputs']
    if not isinstance(inputs, torch.Tensor) or inputs.dtype != torch.uint8 or inputs.shape[0] != 3:
        raise UserError(
            'the test pipeline does not give images as pixels (uint8, 3 channels): an exported file is tested on those'
        )
    return inputs.flip(0).permute(1, 2, 0).numpy()


def _dataset(config: Config, *, loader: str = 'test_dataloader') -> Any:
    """The data set of a loader, with the pipeline of the test."""
    for key in ('test_dataloader', 'test_evaluator', loader):
        if not config.get(key):
            raise UserError(f"config '{config.filename}' has no {key}: accuracy on data needs it")
    init_default_scope(config.default_scope)
    settings = dict(config[loader]['dataset'])
    if loader != 'test_dataloader':
        settings['pipeline'] = config.test_dataloader['dataset']['pipeline']
    with building(config):
        return DATASETS.build(settings)


def _chosen(dataset: Any, images: int | None) -> list[int]:
    if images is not None and images < 1:
        raise UserError(f'{images} images tell nothing: give at least 1, or omit it to take all')
    return _spread(len(dataset), images)


def _spread(length: int, count: int | None) -> list[int]:
    """``count`` places spread evenly over ``length``; all where there are fewer."""
    return list(range(length)) if count is None or count >= length else [at * length // count for at in range(count)]


@contextmanager
def _of_images(config: Config, dataset: Any, chosen: list[int]) -> Iterator[Any]:
    """The evaluators; COCO's with a file of the chosen images only, since it counts what is not found in others."""
    settings = config.test_evaluator
    settings = [dict(each) for each in (settings if isinstance(settings, list | tuple) else [settings])]
    with tempfile.TemporaryDirectory() as folder:
        for number, each in enumerate(settings):
            file = each.get('ann_file')
            if file and len(chosen) < len(dataset) and str(file).endswith('.json'):
                content = json.loads(Path(file).read_text())
                wanted = {dataset.get_data_info(at)['img_id'] for at in chosen}
                content['images'] = [image for image in content['images'] if image['id'] in wanted]
                content['annotations'] = [item for item in content['annotations'] if item['image_id'] in wanted]
                each['ann_file'] = str(Path(folder) / f'{number}.json')
                Path(each['ann_file']).write_text(json.dumps(content))
        yield settings
