"""Accuracies and phone latencies that the authors report, to plot beside what is measured; unknown ones are absent."""

from __future__ import annotations

from dataclasses import dataclass

SOURCES = {
    'RepNeXt': 'README of the authors (suous/RepNeXt), with the accuracies of their logs',
    'latency table': "the comparison table in the RepNeXt authors' tools/latency.py",
    'RepViT downstream': 'tables of RepViT (THU-MIG/RepViT): Mask R-CNN 1x, Semantic FPN',
}


@dataclass(frozen=True)
class Reported:
    """One network's reported accuracies, in percent.

    ``top1`` is on ImageNet-1K with the recipe that ``recipe`` names, ``top1_plain`` without distillation where that is
    another figure of the same network; ``box_ap`` is of Mask R-CNN 1x on COCO, ``miou``
    of Semantic FPN on ADE20K.
    """

    family: str
    label: str
    top1: float | None = None
    recipe: str | None = None
    box_ap: float | None = None
    miou: float | None = None
    source: str | None = None  # a key of SOURCES, of top1
    top1_plain: float | None = None


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


def _repnext(
    label: str, top1: float, plain: float, *, box_ap: float | None = None, miou: float | None = None
) -> Reported:
    recipe = _STARNET_RECIPE if label.endswith('E') else _DISTILLED
    return Reported('RepNeXt', label, top1, recipe, box_ap, miou, 'RepNeXt', plain)


def _peer(family: str, label: str, top1: float | None, recipe: str | None = 'distilled') -> Reported:
    return Reported(family, f'{family} {label}', top1, recipe, source='latency table')


REPORTED: dict[str, Reported] = {
    'm0': _repnext('M0', 74.2, 72.6),
    'm1': _repnext('M1', 78.8, 77.5),
    'm2': _repnext('M2', 80.1, 78.9),
    'm3': _repnext('M3', 80.7, 79.4, box_ap=40.8, miou=40.6),
    'm4': _repnext('M4', 82.3, 81.2, box_ap=42.9, miou=43.3),
    'm5': _repnext('M5', 83.3, 82.4, box_ap=44.7, miou=45.0),
    'm0e': _repnext('M0E', 75.6, 73.9),
    'm1e': _repnext('M1E', 79.5, 77.7),
    'm2e': _repnext('M2E', 80.6, 78.8),
    'repvit_m0_9': _peer('RepViT', 'M0.9', 78.7),
    'repvit_m1_0': _peer('RepViT', 'M1.0', 80.0),
    'repvit_m1_1': Reported('RepViT', 'RepViT M1.1', 80.7, 'distilled', 39.8, 40.6, 'latency table'),
    'repvit_m1_5': Reported('RepViT', 'RepViT M1.5', 82.3, 'distilled', 41.6, 43.6, 'latency table'),
    'repvit_m2_3': Reported('RepViT', 'RepViT M2.3', 83.3, 'distilled', 44.6, 46.1, 'latency table'),
    'mobileone_s1': _peer('MobileOne', 'S1', 75.9, _PLAIN),
    'mobileone_s2': _peer('MobileOne', 'S2', 77.4, _PLAIN),
    'mobileone_s3': _peer('MobileOne', 'S3', 78.1, _PLAIN),
    'mobileone_s4': _peer('MobileOne', 'S4', 79.4, _PLAIN),
    'fastvit_t8': _peer('FastViT', 'T8', 76.7),
    'fastvit_t12': _peer('FastViT', 'T12', 80.3),
    'fastvit_sa12': _peer('FastViT', 'SA12', 81.9),
    'fastvit_sa24': _peer('FastViT', 'SA24', 83.4),
    'mobilevig_ti': _peer('MobileViG', 'Ti', 75.7),
    'mobilevig_s': _peer('MobileViG', 'S', 78.2),
    'mobilevig_m': _peer('MobileViG', 'M', 80.6),
    'mobilevig_b': _peer('MobileViG', 'B', 82.6),
    'swiftformer_xs': _peer('SwiftFormer', 'XS', 75.7),
    'swiftformer_s': _peer('SwiftFormer', 'S', 78.5),
    'swiftformer_l1': _peer('SwiftFormer', 'L1', 80.9),
    'swiftformer_l3': _peer('SwiftFormer', 'L3', 83.0),
    'efficientformer_l1': _peer('EfficientFormer', 'L1', 79.2),
    'efficientformer_l3': _peer('EfficientFormer', 'L3', 82.4),
    'efficientformerv2_s0': _peer('EfficientFormerV2', 'S0', 75.7),
    'efficientformerv2_s1': _peer('EfficientFormerV2', 'S1', 79.0),
    'efficientformerv2_s2': _peer('EfficientFormerV2', 'S2', 81.6),
    'efficientformerv2_l': _peer('EfficientFormerV2', 'L', 83.3),
    'starnet_s1': Reported('StarNet', 'StarNet S1'),
    'starnet_s2': Reported('StarNet', 'StarNet S2'),
    'starnet_s3': _peer('StarNet', 'S3', 77.4, _PLAIN),
    'starnet_s4': _peer('StarNet', 'S4', 78.4, _PLAIN),
    'resnet50': Reported('ResNet', 'ResNet-50'),
}

# Core ML on an iPhone 12, one image; RepNeXt from its authors' README, peers from their tools/latency.py.
PHONE_MS: dict[str, float] = {
    'm0': 0.59,
    'm1': 0.86,
    'm2': 1.00,
    'm3': 1.11,
    'm4': 1.48,
    'm5': 2.20,
    'm0e': 0.62,
    'm1e': 0.89,
    'm2e': 1.04,
    'repvit_m0_9': 0.89,
    'repvit_m1_0': 1.02,
    'repvit_m1_1': 1.13,
    'repvit_m1_5': 1.51,
    'repvit_m2_3': 2.24,
    'fastvit_t8': 0.89,
    'fastvit_t12': 1.33,
    'fastvit_sa12': 1.67,
    'fastvit_sa24': 2.78,
    'mobileone_s1': 0.89,
    'mobileone_s2': 1.14,
    'mobileone_s3': 1.31,
    'mobileone_s4': 1.73,
    'starnet_s3': 0.98,
    'starnet_s4': 1.11,
    'mobilevig_ti': 1.27,
    'mobilevig_s': 1.50,
    'mobilevig_m': 1.86,
    'mobilevig_b': 2.87,
    'swiftformer_xs': 1.00,
    'swiftformer_s': 1.16,
    'swiftformer_l1': 1.62,
    'swiftformer_l3': 2.99,
    'efficientformer_l1': 1.42,
    'efficientformer_l3': 2.80,
    'efficientformerv2_s0': 0.91,
    'efficientformerv2_s1': 1.06,
    'efficientformerv2_s2': 1.63,
    'efficientformerv2_l': 2.75,
}
# The same networks trained without distillation, by the table in tools/latency.py; M0 by the README.
PHONE_PLAIN_MS: dict[str, float] = {
    'm0': 0.59,
    'm1': 0.87,
    'm2': 1.01,
    'm3': 1.12,
    'm4': 1.48,
    'm5': 2.20,
}
# The backbone alone on 512x512, which the tables of detection and segmentation give.
PHONE_512_MS: dict[str, float] = {
    'm3': 5.1,
    'm4': 6.6,
    'm5': 10.4,
    'repvit_m1_1': 4.9,
    'repvit_m1_5': 6.4,
    'repvit_m2_3': 9.9,
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
