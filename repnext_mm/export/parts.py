"""What can be exported: a backbone, a segmentor's logits, a classifier's scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from repnext_mm.apis.build import build_model
from repnext_mm.apis.checks import check_checkpoint, check_model
from repnext_mm.apis.config import load_config, unwrapped, without_teacher
from repnext_mm.export.graphs import IMAGENET, Normalisation, Normalised, SegmentorLogits, without_frozen_sizes
from repnext_mm.models import ARCHITECTURES, Classifier, RepNeXt, load_classifier, type_name
from repnext_mm.models.heads import TwoHeads
from repnext_mm.reparam import FusionReport, fuse, fuse_checked
from repnext_mm.reparam.fusible import Form
from repnext_mm.reparam.surgery import replaced

PARTS = ('backbone', 'classifier', 'model')


@dataclass(frozen=True)
class Part:
    """A network in train form and what goes around it in the exported graph."""

    network: nn.Module  # in eval mode
    output_names: tuple[str, ...]
    normalisation: Normalisation | None  # inside the graph

    @property
    def reference(self) -> nn.Module:
        """The graph with the network as it was trained: what an exported file must agree with."""
        return self._graph(self.network)

    def fused(self, form: Form) -> tuple[nn.Module, FusionReport]:
        """The graph with its backbone, and a classifier's head, fused.

        ``form`` is as in ``repnext_mm.reparam.fuse``, names from the backbone on.
        """
        if isinstance(self.network, RepNeXt | Classifier):
            network, report = fuse(self.network, form=form)
        else:
            network, report = fuse_checked(self.network, form=form)
            network = replaced(network, lambda _, part: part.fused('default') if isinstance(part, TwoHeads) else None)
            if hasattr(network, 'decode_head'):
                network = without_frozen_sizes(network)
        return self._graph(network).eval(), report

    def _graph(self, network: nn.Module) -> nn.Module:
        graph = SegmentorLogits(network) if hasattr(network, 'decode_head') else network
        return graph if self.normalisation is None else Normalised(graph, self.normalisation)


def load_part(
    source: str | Path,
    *,
    checkpoint: str | None = None,
    part: str | None = None,
    normalize: bool = False,
    trust_pickle: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Part:
    """The network to export, from an arch or a config.

    Args:
        source: an arch such as ``'m1'``, or a config file of any OpenMMLab project with a RepNeXt backbone.
        checkpoint: weights of the whole model, or, for a backbone, of anything that holds one; random without.
        part: ``'backbone'`` (the feature maps), ``'classifier'`` (scores before the softmax; of an arch, the authors'
            for ImageNet) or ``'model'`` (mmseg: logits; mmpretrain: the classifier). By default the backbone of an
            arch, and the model of a config.
        normalize: put the config's mean and standard deviation (ImageNet's for an arch) into the graph, which then
            takes RGB pixels from 0 to 255.
        trust_pickle: see ``read_checkpoint``.
        options: overrides of the config, as in ``--cfg-options``.

    Raises:
        FileNotFoundError, ValueError: a file cannot be read or does not fit, or the part cannot be exported.
    """
    if part is not None and part not in PARTS:
        raise ValueError(f'unknown part {part!r}: choose one of {", ".join(PARTS)}')
    if checkpoint is not None:
        check_checkpoint(checkpoint, given_as='checkpoint')
    if str(source) in ARCHITECTURES:
        if part == 'model':
            raise ValueError(f"arch '{source}' names no model: take part 'backbone' or 'classifier', or give a config")
        if part == 'classifier':
            return _classifier(str(source), checkpoint, IMAGENET if normalize else None, trust_pickle)
        return _backbone(
            {'type': 'RepNeXt', 'arch': str(source)}, checkpoint, IMAGENET if normalize else None, trust_pickle
        )
    if not Path(source).is_file() and not Path(source).suffix:
        raise ValueError(f"'{source}' is neither an arch ({', '.join(ARCHITECTURES)}) nor a config file")
    config = load_config(source, options=options)
    config.model = without_teacher(config.model)
    check_model(config.model)
    normalisation = _normalisation(config) if normalize else None
    settings = unwrapped(config.model)
    if part == 'backbone' or 'backbone' not in settings:
        return _backbone(settings.get('backbone', settings), checkpoint, normalisation, trust_pickle)
    network = _model(config, checkpoint, trust_pickle)
    if part == 'classifier' and _output_name(network) != 'scores':
        raise ValueError(f"a '{type(network).__name__}' is not a classifier: take part 'model' or 'backbone'")
    return Part(network, (_output_name(network),), normalisation)


def _backbone(
    settings: Mapping[str, Any], checkpoint: str | None, normalisation: Normalisation | None, trust_pickle: bool
) -> Part:
    settings = {key: value for key, value in settings.items() if key != 'init_cfg'}
    if type_name(settings.get('type')) != 'RepNeXt':
        raise ValueError(f'backbone {type_name(settings.get("type"))} is not exported here: this tool is for RepNeXt')
    backbone: RepNeXt = MODELS.build(settings)
    if checkpoint is not None:
        backbone.load_pretrained(checkpoint, trust_pickle=trust_pickle)
    return Part(backbone.eval(), tuple(f'stage_{index + 1}' for index in backbone.out_indices), normalisation)


def _classifier(arch: str, checkpoint: str | None, normalisation: Normalisation | None, trust_pickle: bool) -> Part:
    if checkpoint is None:
        return Part(Classifier(arch).eval(), ('scores',), normalisation)
    classifier, _ = load_classifier(arch, checkpoint, trust_pickle=trust_pickle)
    return Part(classifier.eval(), ('scores',), normalisation)


def _model(config: Config, checkpoint: str | None, trust_pickle: bool) -> nn.Module:
    if config.get('default_scope') == 'mmdet' or 'bbox_head' in config.model or 'roi_head' in config.model:
        raise ValueError(
            f"a whole '{type_name(config.model.get('type'))}' is not exported here, since its boxes need operators "
            'of their own: use mmdeploy, which calls switch_to_deploy() itself, or export its backbone (part=backbone)'
        )
    return build_model(config, checkpoint, trust_pickle=trust_pickle).eval()


def _output_name(network: nn.Module) -> str:
    head = getattr(network, 'decode_head', None)
    if isinstance(head, nn.Module) and not isinstance(head, nn.ModuleList):
        return 'logits'
    if head is None and isinstance(getattr(network, 'head', None), nn.Module):
        return 'scores'
    raise ValueError(
        f"a whole '{type(network).__name__}' is not exported here: mmseg's EncoderDecoder and mmpretrain's "
        'ImageClassifier are, and the backbone of anything (part=backbone)'
    )


def _normalisation(config: Config) -> Normalisation:
    """What the data preprocessor of a model does to pixels; mmpretrain's stands beside the model."""
    settings = unwrapped(config.model).get('data_preprocessor') or config.get('data_preprocessor') or {}
    mean, std = settings.get('mean'), settings.get('std')
    if not isinstance(mean, Sequence) or not isinstance(std, Sequence) or {len(mean), len(std)} != {3}:
        raise ValueError(
            f"config '{config.filename}' has data_preprocessor mean={mean} and std={std}: normalisation in the graph "
            'needs three numbers each, export without it'
        )
    return Normalisation(tuple(mean), tuple(std), rgb=bool(settings.get('bgr_to_rgb') or settings.get('to_rgb')))
