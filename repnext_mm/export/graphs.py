"""What is exported: the parts of a config or an arch, as networks from an image to tensors, no size frozen."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from repnext_mm.apis.build import build_model
from repnext_mm.apis.checks import check_checkpoint, check_model
from repnext_mm.apis.config import (
    classes_in_checkpoint,
    classes_of_config,
    innermost_datasets,
    load_config,
    unwrapped,
    without_teacher,
)
from repnext_mm.checkpoints import read_checkpoint, state_dict_of
from repnext_mm.errors import MissingPackageError, UserError
from repnext_mm.export.detectors import OwnPrediction, detection_errors, detector_graph
from repnext_mm.models import ARCHITECTURES, Classifier, RepNeXt, load_classifier, type_name
from repnext_mm.models.heads import TwoHeads
from repnext_mm.reparam import FusionReport, fuse, fuse_checked
from repnext_mm.reparam.fusible import Form
from repnext_mm.reparam.surgery import replaced


class Normalization(NamedTuple):
    """How the pixels 0 to 255 of an image become a network's input."""

    mean: Sequence[float]
    std: Sequence[float]
    rgb: bool  # the network takes RGB; else BGR


IMAGENET = Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), rgb=True)
IMAGENET_STEPS = [{'short_edge': 256}, {'crop': [224, 224]}]


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Inputs and outputs of a network, as the writer of a format needs them."""

    example: Tensor  # (N, C, H, W)
    output_names: Sequence[str]
    dynamic: bool  # batch, height and width may be others later
    batched: bool = True  # False: one image at a time, and as many rows of each output as there are objects
    about: Mapping[str, Any] = field(default_factory=dict)  # written into the file, see ``Part.about``


class Normalized(nn.Module):
    """A network behind its normalization: takes RGB pixels from 0 to 255, of any type."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.network = network
        self.bgr = not normalization.rgb
        self.register_buffer('mean', torch.tensor(normalization.mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(normalization.std).reshape(1, -1, 1, 1), persistent=False)
        self.train(network.training)

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, ...]:
        """``(N, 3, H, W)`` to whatever the network returns."""
        image = pixels.to(self.mean.dtype)
        image = image.flip(1) if self.bgr else image
        return self.network((image - self.mean) / self.std)


class SegmentorLogits(nn.Module):
    """An mmseg ``EncoderDecoder`` up to its logits, at the size of the image, as its ``whole`` mode computes them."""

    def __init__(self, segmentor: nn.Module) -> None:
        super().__init__()
        self.segmentor: Any = segmentor
        self.train(segmentor.training)

    def forward(self, image: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, classes, H, W)``."""
        # heads read the first image's size only, and a list as long as the batch would freeze it in the graph
        return self.segmentor.encode_decode(image, [{'img_shape': image.shape[2:]}])


class AdaptiveAverage(nn.Module):
    """Adaptive average pooling as a product with two matrices made from the size, which exporters freeze otherwise."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return self._shares(x, 0) @ x @ self._shares(x, 1).t()

    def _shares(self, x: Tensor, axis: int) -> Tensor:
        """``(bins, length)``: each pixel's share of each bin."""
        length, bins = x.shape[2 + axis], self.size[axis]
        at = torch.arange(length, device=x.device)
        edges = torch.arange(bins + 1, device=x.device)[:, None] * length
        start = torch.div(edges[:-1], bins, rounding_mode='floor')
        end = torch.div(edges[1:] + bins - 1, bins, rounding_mode='floor')
        inside = ((at >= start) & (at < end)).to(x.dtype)
        return inside / inside.sum(1, keepdim=True)


def without_frozen_sizes(segmentor: nn.Module) -> nn.Module:
    """The same segmentor with layers whose sizes are computed in the graph.

    mmseg's upsampling computes its size in Python integers, and exporters replace adaptive pooling (PSPNet, UPerNet) by
    pooling of constant size: a tracer would write the size of its example into the graph. Both agree with what they
    replace bit by bit for whole factors.
    """
    from mmseg.models.utils import Upsample

    def sized(_: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, Upsample) and not module.size:
            return nn.Upsample(scale_factor=module.scale_factor, mode=module.mode, align_corners=module.align_corners)
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
            size = module.output_size
            return AdaptiveAverage(size if isinstance(size, tuple) else (size, size))  # type: ignore[arg-type]
        return None

    return replaced(segmentor, sized)


Distance = Callable[[Sequence[Tensor], Sequence[Tensor], tuple[int, int]], tuple[float, ...]]
PARTS = ('backbone', 'classifier', 'model')


@dataclass(frozen=True)
class Part:
    """A network in train form and what goes around it in the exported graph."""

    network: nn.Module  # in eval mode
    output_names: tuple[str, ...]
    normalization: Normalization | None  # inside the graph
    about: Mapping[str, Any] = field(default_factory=dict)
    """What ``repnext_mm.export.predict`` needs to know, as JSON has it.

    ``task`` ('detection', 'segmentation', 'classification'); ``classes`` and ``palette``; ``steps`` that size an image
    as the config's test pipeline does; ``pixels``: whether the graph normalizes, else ``mean``, ``std`` and ``rgb`` say
    how; ``dtype`` of the input; of masks: ``masks`` ('crops' of boxes or 'maps' of the image, one value in
    ``mask_stride`` pixels), ``mask_threshold``; of logits ``align_corners``.
    """

    @property
    def detects(self) -> bool:
        """Whether it is a whole detector: one image at a time, and as many outputs as there are objects."""
        return _is_detector(self.network)

    @property
    def reference(self) -> nn.Module:
        """The graph with the network as it was trained: what an exported file must agree with."""
        graph = OwnPrediction(self.network) if self.detects else self.network
        return self._around(SegmentorLogits(graph) if hasattr(graph, 'decode_head') else graph)

    def fused(self, form: Form) -> tuple[nn.Module, FusionReport]:
        """The graph with its backbone, and a classifier's head, fused.

        ``form`` is as in ``repnext_mm.reparam.fuse``, names from the backbone on.
        """
        if isinstance(self.network, RepNeXt | Classifier) or not hasattr(self.network, 'backbone'):
            network, report = fuse(self.network, form=form)
        else:
            network, report = fuse_checked(self.network, form=form)
            network = replaced(network, lambda _, part: part.fused('default') if isinstance(part, TwoHeads) else None)
        if hasattr(network, 'decode_head'):
            network = SegmentorLogits(without_frozen_sizes(network))
        elif self.detects:
            network = detector_graph(network)
        return self._around(network).eval(), report

    @property
    def distance(self) -> Distance | None:
        """How far outputs are from those of the reference, where that is not the relative error of each."""
        if not self.detects:
            return None
        return partial(
            detection_errors,
            crops=self.about.get('masks') == 'crops',
            mask_threshold=self.about.get('mask_threshold', 0.5),
        )

    def _around(self, graph: nn.Module) -> nn.Module:
        return graph if self.normalization is None else Normalized(graph, self.normalization)


def load_part(
    source: str | Path,
    *,
    checkpoint: str | None = None,
    part: str | None = None,
    normalize: bool | None = False,
    trust_pickle: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Part:
    """The network to export, from an arch or a config.

    Args:
        source: an arch such as ``'m1'``, ``'timm:NAME'`` for a classifier of timm, or a config
            file of any OpenMMLab project with a RepNeXt backbone.
        checkpoint: weights of the whole model, or, for a backbone, of anything that holds one; random without.
        part: ``'backbone'`` (the feature maps), ``'classifier'`` (scores before the softmax; of an arch, the authors'
            for ImageNet) or ``'model'`` (mmdet: boxes, scores, labels, masks; mmseg: logits; mmpretrain: the
            classifier). By default the backbone of an arch, and the model of a config.
        normalize: put the config's mean and standard deviation (ImageNet's for an arch) into the graph, which then
            takes RGB pixels from 0 to 255; None does it for whole detectors.
        trust_pickle: see ``read_checkpoint``.
        options: overrides of the config, as in ``--cfg-options``.

    Raises:
        UserError, FileNotFoundError, ValueError: a file cannot be read or does not fit, or the part cannot be exported.
    """
    if part is not None and part not in PARTS:
        raise UserError(f'unknown part {part!r}: choose one of {", ".join(PARTS)}')
    if checkpoint is not None:
        check_checkpoint(checkpoint, given_as='checkpoint')
    if str(source) in ARCHITECTURES:
        if part == 'model':
            raise UserError(f"arch '{source}' names no model: take part 'backbone' or 'classifier', or give a config")
        if part == 'classifier':
            return _classifier(str(source), checkpoint, IMAGENET if normalize else None, trust_pickle)
        about = _described('backbone', IMAGENET, inside=bool(normalize), steps=IMAGENET_STEPS)
        settings = {'type': 'RepNeXt', 'arch': str(source)}
        return _backbone(settings, checkpoint, IMAGENET if normalize else None, about, trust_pickle)
    if str(source).startswith('timm:'):
        return _timm(str(source)[5:], checkpoint, bool(normalize), trust_pickle)
    if not Path(source).is_file() and not Path(source).suffix:
        raise UserError(f"'{source}' is neither an arch ({', '.join(ARCHITECTURES)}) nor a config file")
    config = load_config(source, options=options)
    config.model = without_teacher(config.model)
    check_model(config.model)
    settings = unwrapped(config.model)
    if normalize is None:
        normalize = part != 'backbone' and ('roi_head' in settings or 'bbox_head' in settings)
    normalization = _normalization(config) if normalize else None
    if part == 'backbone' or 'backbone' not in settings:
        about = _about(None, config, normalization, None, trust_pickle)
        return _backbone(settings.get('backbone', settings), checkpoint, normalization, about, trust_pickle)
    network = build_model(config, checkpoint, trust_pickle=trust_pickle)
    names = _output_names(network)
    if part == 'classifier' and names != ('scores',):
        raise UserError(f"a '{type(network).__name__}' is not a classifier: take part 'model' or 'backbone'")
    about = _about(network, config, normalization, checkpoint, trust_pickle)
    return Part(network, names, normalization, about)


def _backbone(
    settings: Mapping[str, Any],
    checkpoint: str | None,
    normalization: Normalization | None,
    about: Mapping[str, Any],
    trust_pickle: bool,
) -> Part:
    settings = {key: value for key, value in settings.items() if key != 'init_cfg'}
    if type_name(settings.get('type')) != 'RepNeXt':
        raise UserError(f'backbone {type_name(settings.get("type"))} is not exported here: this tool is for RepNeXt')
    backbone: RepNeXt = MODELS.build(settings)
    if checkpoint is not None:
        backbone.load_pretrained(checkpoint, trust_pickle=trust_pickle)
    names = tuple(f'stage_{index + 1}' for index in backbone.out_indices)
    return Part(backbone.eval(), names, normalization, about)


def _classifier(arch: str, checkpoint: str | None, normalization: Normalization | None, trust_pickle: bool) -> Part:
    about = _described('classification', IMAGENET, inside=normalization is not None, steps=IMAGENET_STEPS)
    if checkpoint is None:
        return Part(Classifier(arch).eval(), ('scores',), normalization, about)
    classifier, _ = load_classifier(arch, checkpoint, trust_pickle=trust_pickle)
    return Part(classifier.eval(), ('scores',), normalization, about)


def _is_detector(network: nn.Module) -> bool:
    return hasattr(network, 'roi_head') or hasattr(network, 'bbox_head')


def _output_names(network: nn.Module) -> tuple[str, ...]:
    if _is_detector(network):
        names = ('boxes', 'scores', 'labels', 'masks')
        return names if detector_graph(network).with_masks else names[:3]
    if hasattr(network, 'encode_decode'):
        return ('logits',)
    if isinstance(getattr(network, 'head', None), nn.Module):
        return ('scores',)
    raise UserError(
        f"a whole '{type(network).__name__}' is not exported here: detectors of mmdet, mmseg's EncoderDecoder and "
        "mmpretrain's ImageClassifier are, and the backbone of anything (part=backbone)"
    )


def _timm(name: str, checkpoint: str | None, normalize: bool, trust_pickle: bool) -> Part:
    """A classifier of timm, or of ours under its name there."""
    if importlib.util.find_spec('timm') is None:
        raise MissingPackageError(f"'timm:{name}' needs timm, which is not installed: pip install timm")
    import timm

    importlib.import_module('repnext_mm.timm_models')
    if not timm.is_model(name):
        raise UserError(f"timm has no model '{name}': timm.list_models() lists them")
    network = timm.create_model(name).eval()
    if checkpoint is not None:
        content = state_dict_of(read_checkpoint(checkpoint, trust_pickle=trust_pickle))
        try:
            network.load_state_dict(content)
        except RuntimeError as error:
            raise UserError(
                f"'{checkpoint}' does not fit timm's {name} ({' '.join(str(error).split())[:300]})"
            ) from error
    config = network.pretrained_cfg
    scaled = Normalization(tuple(255 * v for v in config['mean']), tuple(255 * v for v in config['std']), rgb=True)
    height = config['input_size'][1]
    steps = [{'short_edge': round(height / config.get('crop_pct', 1))}, {'crop': [height, config['input_size'][2]]}]
    about = _described('classification', scaled, inside=normalize, steps=steps)
    return Part(network, ('scores',), scaled if normalize else None, about)


def _about(
    network: Any, config: Config, inside: Normalization | None, checkpoint: str | None, trust_pickle: bool
) -> dict[str, Any]:
    """What ``predict`` needs to know of a config's model; nothing where its pipeline does what ``predict`` does not."""
    steps = sizing_steps(config)
    try:
        normalization = inside or _normalization(config)
    except UserError:
        return {}
    if steps is None:
        return {}
    if network is None:
        return _described('backbone', normalization, inside=inside is not None, steps=steps)
    known: Mapping[str, Any] = {}
    if checkpoint is not None:
        known = classes_in_checkpoint(read_checkpoint(checkpoint, trust_pickle=trust_pickle))
        if not known and config.get('test_dataloader'):
            known = classes_of_config(config)
    names = {key: _plain(known[key]) for key in ('classes', 'palette') if isinstance(known.get(key), list | tuple)}
    if _is_detector(network):
        head = getattr(network, 'roi_head', None) or network.bbox_head
        names['masks'] = 'crops' if hasattr(network, 'roi_head') else 'maps'
        names['mask_threshold'] = head.test_cfg.get('mask_thr_binary', 0.5)
        if names['masks'] == 'maps':
            names['mask_stride'] = head.prior_generator.strides[0][0]
        return _described('detection', normalization, inside=inside is not None, steps=steps, **names)
    if hasattr(network, 'encode_decode'):
        last = _last(network.decode_head)
        names |= {'align_corners': bool(last.align_corners), 'mask_threshold': getattr(last, 'threshold', None) or 0.5}
        return _described('segmentation', normalization, inside=inside is not None, steps=steps, **names)
    return _described('classification', normalization, inside=inside is not None, steps=steps, **names)


def _described(task: str, normalization: Normalization, *, inside: bool, steps: Any, **more: Any) -> dict[str, Any]:
    values = {'mean': list(normalization.mean), 'std': list(normalization.std), 'rgb': normalization.rgb}
    return {'task': task, 'pixels': inside, 'dtype': 'float32', 'steps': steps, **values, **more}


def sizing_steps(config: Config) -> list[dict[str, Any]] | None:
    """The steps of the test pipeline that change an image's size, as ``predict`` reads them; None if one is unknown."""
    if not config.get('test_dataloader'):
        return []
    steps: list[dict[str, Any]] = []
    for step in next(innermost_datasets(config.test_dataloader['dataset'])).get('pipeline') or ():
        kind = (type_name(step.get('type')) or '').rpartition('.')[2]
        if kind == 'Resize' and step.get('scale') is not None:
            scale = step['scale'] if isinstance(step['scale'], list | tuple) else [step['scale']] * 2
            steps.append({'resize': [int(side) for side in scale], 'keep_ratio': bool(step.get('keep_ratio', False))})
        elif kind == 'ResizeEdge' and step.get('edge', 'short') == 'short':
            steps.append({'short_edge': int(step['scale'])})
        elif kind == 'CenterCrop' and not step.get('auto_pad'):
            size = step['crop_size']
            steps.append({'crop': list(size)[::-1] if isinstance(size, list | tuple) else [int(size)] * 2})
        elif kind == 'Pad' and step.get('size') is not None:
            value = step.get('pad_val', 0)
            value = value.get('img', 0) if isinstance(value, Mapping) else value
            value = list(value)[::-1] if isinstance(value, list | tuple) else [value] * 3  # pipelines work on BGR
            steps.append({'pad': [int(side) for side in step['size']], 'value': value})
        elif not kind.startswith(('Load', 'Pack')):
            return None
    return steps


def _last(heads: Any) -> Any:
    return heads[-1] if isinstance(heads, nn.ModuleList) else heads


def _plain(values: Any) -> Any:
    """Tuples and arrays as lists: what JSON holds."""
    return (
        [_plain(value) for value in values]
        if isinstance(values, list | tuple)
        else getattr(values, 'item', lambda: values)()
    )


def _normalization(config: Config) -> Normalization:
    """What the data preprocessor of a model does to pixels; mmpretrain's stands beside the model."""
    settings = unwrapped(config.model).get('data_preprocessor') or config.get('data_preprocessor') or {}
    mean, std = settings.get('mean'), settings.get('std')
    if not isinstance(mean, Sequence) or not isinstance(std, Sequence) or {len(mean), len(std)} != {3}:
        raise UserError(
            f"config '{config.filename}' has data_preprocessor mean={mean} and std={std}: normalization in the graph "
            'needs three numbers each, export without it'
        )
    return Normalization(tuple(mean), tuple(std), rgb=bool(settings.get('bgr_to_rgb') or settings.get('to_rgb')))


def traced(model: nn.Module, example: Tensor) -> Any:
    """The TorchScript trace of a model; ``parity`` judges it, not torch's own check."""
    with quiet(), torch.no_grad():
        return torch.jit.trace(model, example, check_trace=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Converters warn of their own insides and of their successors; the comparison afterwards is what counts."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
