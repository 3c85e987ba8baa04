"""Distilling any classifier from any other (Hinton et al. 2015; hard labels: Touvron et al. 2021, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from repnext_mm.checkpoints import read_checkpoint, state_dict_of
from repnext_mm.checkpoints.load import check_fits
from repnext_mm.errors import UserError
from repnext_mm.models.heads import TwoHeads

KINDS = ('hard', 'soft')


@MODELS.register_module()
class DistilledClassifier(BaseModel):
    """A classifier that learns from labels and from a frozen teacher: ``(1 - alpha) * base + alpha * distillation``.

    It trains and saves the student, under the student's own keys: the teacher is in no checkpoint, and testing needs
    the student's config only. Both see the same augmented batch. A student with two heads (``RepNeXtClsHead``)
    trains the first on the labels and the second on the teacher; any other trains its scores on both.

    Args:
        student: config of a classifier of MMPretrain (``ImageClassifier``, ``TimmClassifier``, ...).
        teacher: the same; ``dict(type='TimmClassifier', model_name=NAME)`` for timm's models.
        teacher_checkpoint: its weights, a file or an http(s) address; loaded strictly. None where the teacher's config
            brings its weights (``pretrained=True`` of timm).
        kind: ``'hard'``: cross-entropy with the class that the teacher finds; ``'soft'``: divergence from its scores.
        alpha: weight of the teacher, in [0, 1].
        tau: temperature of ``'soft'``, positive.
        trust_pickle: let the teacher's file build any object, which can run any code in it.

    Raises:
        UserError: an argument is out of its range, or the teacher's weights cannot be loaded.
        UserError: the student or the teacher is not a classifier.
    """

    def __init__(
        self,
        student: Mapping[str, Any],
        teacher: Mapping[str, Any],
        teacher_checkpoint: str | None = None,
        *,
        kind: str = 'hard',
        alpha: float = 0.5,
        tau: float = 1.0,
        trust_pickle: bool = False,
    ) -> None:
        if kind not in KINDS or not 0 <= alpha <= 1 or not tau > 0:
            raise UserError(
                f'kind={kind!r}, alpha={alpha}, tau={tau}: kind is one of {", ".join(KINDS)}, alpha lies in [0, 1], '
                'tau is positive'
            )
        built: Any = MODELS.build(dict(student))
        if not hasattr(_scorer(built), '_get_loss'):
            raise UserError(f"{type(built).__name__} has no classifier's loss: distill a classifier of MMPretrain")
        super().__init__(data_preprocessor=built.data_preprocessor)
        self.student = built
        self.kind, self.alpha, self.tau = kind, alpha, tau
        self.teacher = Teacher(teacher, teacher_checkpoint, trust_pickle=trust_pickle)
        self._register_state_dict_hook(_to_students_keys)
        self._register_load_state_dict_pre_hook(_from_students_keys)

    @property
    def backbone(self) -> nn.Module:
        """The student's, for hooks that look for one."""
        return self.student.backbone

    def forward(self, inputs: Tensor, data_samples: list[Any] | None = None, mode: str = 'tensor') -> Any:
        """The student's answer; with ``mode='loss'``, both losses under names of their own, whose sum is logged.

        Args:
            inputs: ``(N, 3, H, W)``.
            data_samples: MMPretrain's, with labels for a loss.
            mode: ``'tensor'``, ``'predict'`` or ``'loss'``.
        """
        if mode != 'loss':
            return self.student(inputs, data_samples, mode=mode)
        scores, answers = self._scores(inputs)
        base = _scorer(self.student)._get_loss(scores, data_samples)
        # not 'loss', the name of the total in mmengine's log, which a part of that name would replace
        base = {'loss_base' if name == 'loss' else name: value for name, value in base.items()}
        losses = {name: value * (1 - self.alpha) if 'loss' in name else value for name, value in base.items()}
        taught = distillation_loss(answers, self.teacher(inputs), kind=self.kind, tau=self.tau)
        return {**losses, 'loss_distillation': self.alpha * taught}

    def _scores(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        head = _scorer(self.student)
        if isinstance(head, TwoHeads):
            return head.both(head.pre_logits(self.student.extract_feat(inputs)))  # type: ignore[operator]
        scores = self.student(inputs, mode='tensor')
        return scores, scores


def distillation_loss(scores: Tensor, teacher_scores: Tensor, *, kind: str, tau: float = 1.0) -> Tensor:
    """How far a student is from its teacher.

    Args:
        scores: the student's, before the softmax, ``(N, classes)``.
        teacher_scores: the teacher's, of that shape.
        kind: ``'hard'``: mean cross-entropy with the teacher's class; ``'soft'``: the divergence of the distributions
            at temperature ``tau``, times its square, as a mean over all scores (DeiT's scaling, not ``batchmean``).
        tau: temperature of ``'soft'``.

    Raises:
        UserError: the shapes differ.
    """
    if scores.shape != teacher_scores.shape:
        raise UserError(
            f'the student has scores of shape {tuple(scores.shape)}, the teacher {tuple(teacher_scores.shape)}: both '
            'need the same classes'
        )
    if kind == 'hard':
        return F.cross_entropy(scores, teacher_scores.argmax(1))
    logs = F.log_softmax(scores / tau, 1), F.log_softmax(teacher_scores / tau, 1)
    return F.kl_div(*logs, reduction='sum', log_target=True) * tau**2 / scores.numel()


class Teacher:
    """A frozen classifier outside of the module tree: neither trained, saved, averaged nor synchronized."""

    def __init__(self, config: Mapping[str, Any], checkpoint: str | None, *, trust_pickle: bool) -> None:
        self.model: nn.Module = MODELS.build(dict(config))
        self.model.eval()  # some return nothing
        self.model.requires_grad_(False)
        if checkpoint is not None:
            name = f'teacher {type(self.model).__name__}'
            try:
                state = state_dict_of(read_checkpoint(checkpoint, trust_pickle=trust_pickle))
            except OSError as error:
                raise UserError(
                    f"teacher_checkpoint '{checkpoint}' cannot be read ({error}): give the path of its file"
                ) from error
            kept, report = check_fits(state, self.model.state_dict(), name=name, source=checkpoint)
            self.model.load_state_dict(kept)
            print_log(f'{name}: {report} from {checkpoint}', logger='current')

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self  # an averaged copy of the student needs no teacher of its own

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Scores ``(N, classes)``, before the softmax."""
        scores = self.model.to(images.device)(images, mode='tensor')
        if not isinstance(scores, Tensor) or scores.dim() != 2:
            name = type(self.model).__name__
            raise UserError(f'{name} gives no scores (N, classes): the teacher must be a classifier')
        return scores


def _scorer(student: Any) -> Any:
    """What turns scores into a loss: the head, or a classifier without one (timm's)."""
    head = getattr(student, 'head', None)
    return head if isinstance(head, nn.Module) else student


def _to_students_keys(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    _rename(state, f'{prefix}student.', prefix)


def _from_students_keys(state: dict[str, Any], prefix: str, *rest: Any) -> None:
    _rename(state, prefix, f'{prefix}student.')


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    """In place, in order: mmengine ignores what a hook of a part returns."""
    items = list(state.items())
    state.clear()
    state.update((new + key.removeprefix(old) if key.startswith(old) else key, value) for key, value in items)
