"""The authors' classifier, two linear heads behind a norm each whose mean counts: alone, and in MMPretrain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from repnext_mm.checkpoints import LoadReport, load_strictly, read_checkpoint, state_dict_of
from repnext_mm.errors import MissingPackageError, UserError
from repnext_mm.models.registry import register
from repnext_mm.models.repnext import RepNeXt
from repnext_mm.reparam import Fusible, Kernel, affine_of, as_float64, kernel_of, norm_before
from repnext_mm.reparam.kernel import is_affine, to_linear
from repnext_mm.reparam.laws import average
from repnext_mm.reparam.plain_layers import is_intercepted, is_plain, why_called, why_not_as_written


class NormLinear(Fusible):
    """Batch norm, then a linear layer (law ``norm_before``)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(in_channels)
        self.linear = nn.Linear(in_channels, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def kernel(self) -> Kernel:
        """The equivalent linear layer; see ``mergeable`` for when there is one."""
        return norm_before(affine_of(self.norm), kernel_of(self.linear))

    def mergeable(self) -> bool:
        """Whether calling both layers is the linear layer of ``kernel()``."""
        plain = is_plain(self.norm) and is_plain(self.linear) and not why_not_as_written(self)
        return is_affine(self.norm) and plain

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C) -> (N, classes)``."""
        if isinstance(self.norm, nn.BatchNorm2d):  # timm's convert_splitbn_model makes such ones of all batch norms
            return self.linear(self.norm(x[:, :, None, None]).flatten(1))
        return self.linear(self.norm(x))

    def fused(self, form: str) -> nn.Module:
        return to_linear(as_float64(self).kernel(), like=self.linear) if self.mergeable() else self

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        if is_affine(self.norm):
            yield self.norm, why_called(self.norm)
            yield self.linear, why_called(self.linear)


class TwoHeads(Fusible):
    """What holds two linear heads, ``head`` and ``head_dist``, under the authors' names.

    Both exist, and are trained, without distillation too: the loss is then that of their mean. With distillation the
    first head is trained on the labels, the second on the teacher.
    """

    if TYPE_CHECKING:  # TorchScript reads annotations
        head: NormLinear
        head_dist: NormLinear

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, C) ->`` two times ``(N, classes)``: for the labels, and for a teacher."""
        return self.head(x), self.head_dist(x)

    def mean(self, x: Tensor) -> Tensor:
        """``(N, C) -> (N, classes)``: what the network answers."""
        first, second = self.both(x)
        return (first + second) / 2

    def kernel(self) -> Kernel:
        """The linear layer that equals the mean (law ``average``); both heads must be mergeable."""
        return average(self.head.kernel(), self.head_dist.kernel())

    def merged(self) -> nn.Linear | None:
        """Both heads and their norms as one new linear layer; None while a norm uses batch statistics or is called."""
        heads = (self.head, self.head_dist)
        if any(type(head) is not NormLinear or is_intercepted(head) or not head.mergeable() for head in heads):
            return None
        return to_linear(average(*(as_float64(head).kernel() for head in heads)), like=self.head.linear)

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        for head in (self.head, self.head_dist):
            yield head, '' if isinstance(head, NormLinear) else why_called(head)


class TwoHeadLinear(TwoHeads):
    """The two heads as a module; a single linear layer once fused."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.head = NormLinear(in_channels, num_classes)
        self.head_dist = NormLinear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C) -> (N, classes)``."""
        return self.mean(x)

    def fused(self, form: str) -> nn.Module:
        return self.merged() or self


class Classifier(nn.Module):
    """A backbone, the mean over the image, and two heads, under the authors' keys.

    Args:
        arch: a name of ``ARCHITECTURES``, or a dict, see ``RepNeXt``.
        num_classes: outputs.
        in_channels: channels of the image.
    """

    def __init__(self, arch: str | Mapping[str, Any], *, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        backbone = RepNeXt(arch, in_channels=in_channels, out_indices=(3,))
        self.stem, self.stages = backbone.stem, nn.Sequential(*backbone.stages)
        self.head = TwoHeadLinear(backbone.out_channels[0], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, H, W) -> (N, classes)``: scores before the softmax."""
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def load_classifier(
    arch: str | Mapping[str, Any], checkpoint: str, *, trust_pickle: bool = False
) -> tuple[Classifier, LoadReport]:
    """A classifier with the weights of a file: the authors', timm's, or that of MMPretrain's ``ImageClassifier``.

    Raises:
        FileNotFoundError, WeightsError: the file cannot be read, or is not a classifier in train form of this arch.
    """
    state = state_dict_of(read_checkpoint(checkpoint, trust_pickle=trust_pickle))
    state = {key.removeprefix('backbone.'): value for key, value in state.items()}
    head = state.get('head.head.linear.weight')
    model = Classifier(arch, num_classes=1000 if head is None else len(head))
    return model, load_strictly(model, state, source=checkpoint)


@register('RepNeXtClsHead')
def build_cls_head(
    *,
    num_classes: int,
    in_channels: int,
    loss: dict[str, Any] | None = None,
    topk: int | Sequence[int] = (1,),
    cal_acc: bool = False,
    deploy: bool = False,
    init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
) -> nn.Module:
    """Two norm+linear heads under the authors' keys, of which the mean counts; a function, to import MMPretrain late.

    Its deploy form is MMPretrain's ``LinearClsHead``: no norm, one layer.

    Args:
        num_classes: classes of the data set.
        in_channels: channels of the pooled features, ``(N, in_channels)``.
        loss: applied to the mean of both heads; in a ``DistilledClassifier``, to the first head.
        topk: see MMPretrain's ``ClsHead``.
        cal_acc: see MMPretrain's ``ClsHead``.
        deploy: build the deploy form, for inference with a fused checkpoint.
        init_cfg: see mmengine's ``BaseModule``; by default weights start as the authors' do.

    Raises:
        MissingPackageError: MMPretrain is not installed.
        ValueError: ``num_classes`` or ``in_channels`` is not positive.
    """
    if num_classes < 1 or in_channels < 1:
        raise UserError(f'num_classes={num_classes} and in_channels={in_channels} must be positive')
    options = {
        'loss': {'type': 'CrossEntropyLoss'} if loss is None else loss,
        'topk': topk,
        'cal_acc': cal_acc,
        'init_cfg': init_cfg,
    }
    if deploy:
        return _mmpretrain_heads().LinearClsHead(num_classes, in_channels, **options)
    return _head_class()(num_classes, in_channels, **options)


@cache
def _head_class() -> Callable[..., nn.Module]:
    heads = _mmpretrain_heads()
    base: Any = heads.ClsHead

    class RepNeXtClsHead(TwoHeads, base):
        """See ``build_cls_head``."""

        def __init__(self, num_classes: int, in_channels: int, **options: Any) -> None:
            super().__init__(**options)
            self.num_classes = num_classes
            self.in_channels = in_channels
            self.head = NormLinear(in_channels, num_classes)
            self.head_dist = NormLinear(in_channels, num_classes)

        def forward(self, feats: Sequence[Tensor]) -> Tensor:
            """``(..., (N, C)) -> (N, classes)``: scores before the softmax."""
            return self.mean(feats[-1])

        def fused(self, form: str) -> nn.Module:
            linear = self.merged()
            if linear is None:
                return self
            head = heads.LinearClsHead(
                self.num_classes, self.in_channels, loss=self.loss_module, topk=self.topk, cal_acc=self.cal_acc
            )
            head.fc = linear
            return head.train(self.training)

    return RepNeXtClsHead


def _mmpretrain_heads() -> Any:
    try:
        from mmpretrain.models import heads
    except ImportError as error:
        raise MissingPackageError(
            f'RepNeXtClsHead builds on MMPretrain, which cannot be imported ({error}): install onedl-mmpretrain or '
            'mmpretrain'
        ) from error
    return heads
