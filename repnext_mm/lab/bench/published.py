"""Accuracies and phone latencies that the authors report, to plot beside what is measured; unknown ones are absent."""

from __future__ import annotations

from dataclasses import dataclass

from repnext_mm.checkpoints import PUBLISHED

SOURCES = {
    'RepNeXt': 'README of the authors (suous/RepNeXt), with the accuracies of their logs',
    'latency table': "the comparison table in the RepNeXt authors' tools/latency.py",
    'RepViT downstream': 'tables of RepViT (THU-MIG/RepViT): Mask R-CNN 1x, Semantic FPN',
}


@dataclass(frozen=True)
class Reported:
    """One network's reported accuracies, in percent.

    ``top1`` is on ImageNet-1K with the recipe that ``recipe`` names, ``top1_plain`` without distillation where that is
    another figure of the same network; ``box_ap`` is of Mask R-CNN 1x on COCO, ``miou`` of Semantic FPN on ADE20K.
    Phone latencies of RepNeXt are from its authors' README, those of peers from their tools/latency.py.
    """

    family: str
    label: str
    top1: float | None = None
    recipe: str | None = None
    box_ap: float | None = None
    miou: float | None = None
    source: str | None = None  # a key of SOURCES, of top1
    top1_plain: float | None = None
    phone_ms: float | None = None  # Core ML on an iPhone 12, one image of 224x224
    phone_plain_ms: float | None = None  # the same network trained without distillation
    phone_512_ms: float | None = None  # the backbone alone on 512x512


@dataclass(frozen=True)
class Compact:
    """A small network trained for several lengths without distillation: the best top-1, in percent, by epochs."""

    name: str
    phone_ms: float
    parameters_m: float
    macs_g: float
    top1: dict[int, float]


_DISTILLED = '300 epochs, distilled'
_STARNET_RECIPE = "300 epochs, distilled, StarNet's recipe"
_PLAIN = 'without distillation'


def _repnext(label: str, plain: float, phone_ms: float, *, top1: float | None = None, **more: float) -> Reported:
    """What is reported for a file of the release stands in the table of those; the E variants have none."""
    arch = label.lower()
    if top1 is None:
        top1 = PUBLISHED[f'repnext_{arch}_distill_300e'].reported['top-1']
    for name, metric, key in (('coco', 'box AP', 'box_ap'), ('ade20k', 'mIoU', 'miou')):
        if entry := PUBLISHED.get(f'repnext_{arch}_{name}'):
            more[key] = entry.reported[metric]
    recipe = _STARNET_RECIPE if label.endswith('E') else _DISTILLED
    return Reported('RepNeXt', label, top1, recipe, source='RepNeXt', top1_plain=plain, phone_ms=phone_ms, **more)


def _peer(
    family: str, label: str, top1: float, phone_ms: float, *, recipe: str = 'distilled', **more: float
) -> Reported:
    return Reported(family, f'{family} {label}', top1, recipe, source='latency table', phone_ms=phone_ms, **more)


REPORTED: dict[str, Reported] = {
    'm0': _repnext('M0', 72.6, 0.59, phone_plain_ms=0.59),
    'm1': _repnext('M1', 77.5, 0.86, phone_plain_ms=0.87),
    'm2': _repnext('M2', 78.9, 1.0, phone_plain_ms=1.01),
    'm3': _repnext('M3', 79.4, 1.11, phone_plain_ms=1.12, phone_512_ms=5.1),
    'm4': _repnext('M4', 81.2, 1.48, phone_plain_ms=1.48, phone_512_ms=6.6),
    'm5': _repnext('M5', 82.4, 2.2, phone_plain_ms=2.2, phone_512_ms=10.4),
    'm0e': _repnext('M0E', 73.9, 0.62, top1=75.6),
    'm1e': _repnext('M1E', 77.7, 0.89, top1=79.5),
    'm2e': _repnext('M2E', 78.8, 1.04, top1=80.6),
    'repvit_m0_9': _peer('RepViT', 'M0.9', 78.7, 0.89),
    'repvit_m1_0': _peer('RepViT', 'M1.0', 80.0, 1.02),
    'repvit_m1_1': _peer('RepViT', 'M1.1', 80.7, 1.13, box_ap=39.8, miou=40.6, phone_512_ms=4.9),
    'repvit_m1_5': _peer('RepViT', 'M1.5', 82.3, 1.51, box_ap=41.6, miou=43.6, phone_512_ms=6.4),
    'repvit_m2_3': _peer('RepViT', 'M2.3', 83.3, 2.24, box_ap=44.6, miou=46.1, phone_512_ms=9.9),
    'mobileone_s1': _peer('MobileOne', 'S1', 75.9, 0.89, recipe=_PLAIN),
    'mobileone_s2': _peer('MobileOne', 'S2', 77.4, 1.14, recipe=_PLAIN),
    'mobileone_s3': _peer('MobileOne', 'S3', 78.1, 1.31, recipe=_PLAIN),
    'mobileone_s4': _peer('MobileOne', 'S4', 79.4, 1.73, recipe=_PLAIN),
    'fastvit_t8': _peer('FastViT', 'T8', 76.7, 0.89),
    'fastvit_t12': _peer('FastViT', 'T12', 80.3, 1.33),
    'fastvit_sa12': _peer('FastViT', 'SA12', 81.9, 1.67),
    'fastvit_sa24': _peer('FastViT', 'SA24', 83.4, 2.78),
    'mobilevig_ti': _peer('MobileViG', 'Ti', 75.7, 1.27),
    'mobilevig_s': _peer('MobileViG', 'S', 78.2, 1.5),
    'mobilevig_m': _peer('MobileViG', 'M', 80.6, 1.86),
    'mobilevig_b': _peer('MobileViG', 'B', 82.6, 2.87),
    'swiftformer_xs': _peer('SwiftFormer', 'XS', 75.7, 1.0),
    'swiftformer_s': _peer('SwiftFormer', 'S', 78.5, 1.16),
    'swiftformer_l1': _peer('SwiftFormer', 'L1', 80.9, 1.62),
    'swiftformer_l3': _peer('SwiftFormer', 'L3', 83.0, 2.99),
    'efficientformer_l1': _peer('EfficientFormer', 'L1', 79.2, 1.42),
    'efficientformer_l3': _peer('EfficientFormer', 'L3', 82.4, 2.8),
    'efficientformerv2_s0': _peer('EfficientFormerV2', 'S0', 75.7, 0.91),
    'efficientformerv2_s1': _peer('EfficientFormerV2', 'S1', 79.0, 1.06),
    'efficientformerv2_s2': _peer('EfficientFormerV2', 'S2', 81.6, 1.63),
    'efficientformerv2_l': _peer('EfficientFormerV2', 'L', 83.3, 2.75),
    'starnet_s1': Reported('StarNet', 'StarNet S1'),
    'starnet_s2': Reported('StarNet', 'StarNet S2'),
    'starnet_s3': _peer('StarNet', 'S3', 77.4, 0.98, recipe=_PLAIN),
    'starnet_s4': _peer('StarNet', 'S4', 78.4, 1.11, recipe=_PLAIN),
    'mobilenetv4_conv_medium': Reported('MobileNetV4', 'MobileNetV4 Conv-M'),
    'resnet50': Reported('ResNet', 'ResNet-50'),
}
# 224x224, by the README; the sizes are of the fused networks.
COMPACT: dict[str, tuple[Compact, ...]] = {
    'CIFAR-100': (
        Compact('RepViT-M0.6', 0.6, 2.2, 0.39, {100: 71.73, 200: 78.45, 300: 80.16, 400: 80.60}),
        Compact('RepNeXt-M0E', 0.7, 2.3, 0.46, {100: 73.56, 200: 79.79, 300: 81.89, 400: 82.07}),
        Compact('RepNeXt-M0', 0.6, 2.0, 0.39, {100: 74.53, 200: 80.14, 300: 81.73, 400: 81.97}),
    ),
    'ImageNet-1K': (
        Compact('RepViT-M0.6', 0.6, 2.5, 0.39, {100: 69.29, 200: 71.63, 300: 72.34, 400: 72.87}),
        Compact('RepNeXt-M0E', 0.7, 2.5, 0.46, {100: 69.69, 200: 71.57, 300: 72.18, 400: 72.53}),
        Compact('RepNeXt-M0', 0.6, 2.3, 0.39, {100: 70.14, 200: 71.93, 300: 72.56, 400: 72.78}),
    ),
}
