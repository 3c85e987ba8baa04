"""What is timed: RepNeXt in its forms and its peers of timm, proved equal to their float32 train form first."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.fx.experimental import optimization

from repnext_mm.errors import MissingPackageError, UserError
from repnext_mm.lab.bench.exactness import with_random_statistics
from repnext_mm.models import ARCHITECTURES, FORMS, Classifier, RepNeXt
from repnext_mm.reparam import fuse
from repnext_mm.reparam.fusible import Form
from repnext_mm.timing import fastest_form

TRAIN_FORM = 'train'  # the train form in eval mode: branches merged on the fly, norms folded on the fly
AUTO = 'auto'  # per stage, what is fastest in eager PyTorch here
PEER_FORM = 'fused'
PARTS = ('backbone', 'classifier')
CLASSIFIER = '-classifier'  # the end of a classifier's name, whose arch or timm name stands before it
REFERENCE_FORM = 'keep_norms'  # what the authors call fused: ratios are against it

PEERS = (
    'repvit_m0_9',
    'repvit_m1_0',
    'repvit_m1_1',
    'repvit_m1_5',
    'repvit_m2_3',
    'mobileone_s1',
    'mobileone_s2',
    'mobileone_s3',
    'mobileone_s4',
    'fastvit_t8',
    'fastvit_t12',
    'fastvit_sa12',
    'fastvit_sa24',
    'starnet_s1',
    'starnet_s2',
    'starnet_s3',
    'starnet_s4',
    'mobilenetv4_conv_medium',
    'resnet50',
)
"""Names in timm. By reported top-1, RepViT M0.9, M1.0, M1.1, M1.5, M2.3 stand beside RepNeXt M1, M2, M3, M4, M5."""

TOLERANCE_FLOAT32 = 1e-4
HALF_PRECISION_ROUNDINGS = 16
"""A whole half-precision network may be off by this many roundings (``eps / 2``) of its largest value.

Weights and every activation are rounded, and the errors of tens of layers add up at random: up to 7 roundings are
seen (M5, FastViT). So half precision shows coarse mistakes only; time float32 as well, which is held to ``1e-4``.
"""


class Variant(NamedTuple):
    """A network, by its RepNeXt arch or timm name, and the form that it runs in."""

    model: str
    form: str

    @property
    def name(self) -> str:
        """For people and as a key."""
        return f'{self.model}/{self.form}'


def variants(
    archs: Sequence[str], forms: Sequence[str], peers: Sequence[str] = (), *, part: str = 'backbone'
) -> tuple[Variant, ...]:
    """Every arch in every form, then the peers; as backbones, or as whole classifiers of 1000 classes.

    Raises:
        UserError: an unknown or repeated name, or nothing at all.
    """
    all_forms = (TRAIN_FORM, *FORMS, AUTO)
    for kind, names, known in (('arch', archs, ARCHITECTURES), ('form', forms, all_forms), ('peer', peers, PEERS)):
        for name in names:
            if name not in known:
                raise UserError(f'unknown {kind} {name!r}: choose from {", ".join(known)}')
        if len(set(names)) < len(names):
            raise UserError(f'{kind} given twice in {", ".join(names)}: name each once')
    if part not in PARTS:
        raise UserError(f'unknown part {part!r}: choose from {", ".join(PARTS)}')
    end = CLASSIFIER if part == 'classifier' else ''
    found = [Variant(arch + end, form) for arch in archs for form in forms]
    found += [Variant(peer + end, PEER_FORM) for peer in peers]
    if not found:
        raise UserError('nothing to time: name at least one arch with one form, or one peer')
    return tuple(found)


def build_train_form(model: str, *, seed: int = 0) -> nn.Module:
    """A network in float32, in train form and eval mode, on the CPU, with random weights and norm statistics."""
    torch.manual_seed(seed)
    name, whole = model.removesuffix(CLASSIFIER), model.endswith(CLASSIFIER)
    if name in PEERS:
        network: nn.Module = build_peer(name, whole=whole)
    else:
        network = Scores(name) if whole else RepNeXt(name)
    return with_random_statistics(network.eval(), shape=(2, 3, 64, 64), seed=seed)


class Scores(Classifier):
    """A classifier whose scores are a tuple of one level, like a backbone's."""

    def forward(self, x: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        """``(N, 3, H, W)`` to ``((N, classes),)``."""
        return (super().forward(x),)


class Trunk(nn.Module):
    """A classifier up to its last feature map: what a RepNeXt backbone computes, without pooling and head.

    This is timm's ``forward_features``; FastViT's includes a last convolution that its classifier alone needs.
    ``whole`` goes on to the scores.
    """

    def __init__(self, classifier: nn.Module, *, whole: bool = False) -> None:
        super().__init__()
        self.classifier = classifier
        self.whole = whole

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """``(N, 3, H, W)`` to the last feature map, or the scores, as a tuple of one level."""
        return (self.classifier(x) if self.whole else self.classifier.forward_features(x),)  # type: ignore[operator]


def build_peer(name: str, *, whole: bool = False) -> Trunk:
    """A peer's trunk, or the whole classifier of 1000 classes, in train form and eval mode, with random weights.

    Raises:
        UserError: an unknown name, or timm is not installed.
    """
    if name not in PEERS:
        raise UserError(f'unknown peer {name!r}: choose from {", ".join(PEERS)}')
    if not has_timm():
        raise MissingPackageError('timm is not installed, and builds the peers: pip install timm')
    import timm

    return Trunk(timm.create_model(name, pretrained=False, num_classes=1000 if whole else 0), whole=whole).eval()


def fuse_peer(trunk: Trunk) -> nn.Module:
    """Merge a peer's branches as timm does, then fold every norm that directly follows a convolution.

    timm has no fusing for some peers (ResNet, StarNet); folding their norms all the same is only fair.
    """
    from timm.utils.model import reparameterize_model

    merged = copy.deepcopy(trunk)
    merged.classifier = reparameterize_model(merged.classifier, inplace=True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch.fx deprecates parts that it uses itself
        return optimization.fuse(merged)


def has_timm() -> bool:
    """Whether timm can be imported."""
    return importlib.util.find_spec('timm') is not None


def resolved(train_form: nn.Module, form: str, *, image: Tensor) -> Form:
    """The form itself, or what ``'auto'`` finds to be fastest here, stage by stage."""
    if form != AUTO:
        return form
    return fastest_form(like(copy.deepcopy(train_form), image), image)


def in_form(train_form: nn.Module, form: Form, *, image: Tensor) -> nn.Module:
    """The network in a form, as a copy with the dtype, device and memory format of ``image``."""
    if form == TRAIN_FORM:
        network = copy.deepcopy(train_form)
    elif form == PEER_FORM:
        network = fuse_peer(cast(Trunk, train_form))
    else:
        network, _ = fuse(train_form, form=form, copy=True)
    return like(network, image)


def like(network: nn.Module, image: Tensor) -> nn.Module:
    """Convert a network, in place, to the dtype, device and memory format of its input; eval mode, no gradients."""
    network = network.to(image.device, image.dtype).eval().requires_grad_(False)
    return network.to(memory_format=memory_format_of(image))  # type: ignore[call-overload]


def memory_format_of(image: Tensor) -> torch.memory_format:
    """channels_last where the tensor is laid out so, and contiguous does not describe it as well."""
    last = image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def tolerance(dtype: torch.dtype, *, tf32: bool = False) -> float:
    """The largest error that counts as rounding; TF32 rounds like float16."""
    if tf32 and dtype == torch.float32:
        dtype = torch.float16
    if dtype == torch.float32:
        return TOLERANCE_FLOAT32
    return HALF_PRECISION_ROUNDINGS * torch.finfo(dtype).eps / 2
