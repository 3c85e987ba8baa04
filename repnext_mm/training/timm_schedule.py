"""timm's cosine schedule with warm-up, one step per epoch, as the classification recipes ran it."""

from __future__ import annotations

from typing import Any

from mmengine.optim import OptimWrapper, _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS

from repnext_mm.errors import MissingPackageError, UserError


@PARAM_SCHEDULERS.register_module()
class TimmCosineLR(_ParamScheduler):  # else the runner takes it for no scheduler when it resumes
    """timm's ``CosineLRScheduler`` as a parameter scheduler of mmengine.

    Warm-up and cosine count from the first epoch both, the lowest rates are absolute, and what follows the cosine (the
    cool-down) stays at ``lr_min``: mmengine's own schedulers, chained, give other rates.

    Args:
        optimizer: given by the runner.
        cooldown_epochs: epochs at the end that run at ``lr_min``; the cosine takes the others.
        lr_min: rate at the cosine's end and after it; not scaled with the batch.
        warmup_epochs: the rate grows linearly during these.
        warmup_lr: rate of the first epoch; not scaled with the batch.
        lag: the first epoch counts ``1 + lag`` times, which shifts all others. The authors' ``main.py`` steps one
            epoch late: 1.
        end: epochs of the whole training; given by the runner.
        epoch_length: given by the runner; not used.

    Raises:
        MissingPackageError: timm is not installed.
        UserError: a count is negative, or nothing is left for the cosine.
    """

    by_epoch = True

    def __init__(
        self,
        optimizer: OptimWrapper,
        *,
        end: int,
        cooldown_epochs: int = 0,
        lr_min: float = 0.0,
        warmup_epochs: int = 0,
        warmup_lr: float = 0.0,
        lag: int = 0,
        epoch_length: int | None = None,
    ) -> None:
        try:
            from timm.scheduler import CosineLRScheduler
        except ImportError as error:
            raise MissingPackageError("TimmCosineLR is timm's schedule: pip install timm") from error
        epochs = end - cooldown_epochs
        if min(cooldown_epochs, warmup_epochs, lag) < 0 or epochs < 1:
            raise UserError(
                f'cooldown_epochs={cooldown_epochs}, warmup_epochs={warmup_epochs}, lag={lag} in a training of {end} '
                'epochs: none may be negative, and the cosine needs an epoch'
            )
        self._lag = lag
        self._groups = optimizer
        self._schedule = CosineLRScheduler(
            optimizer, t_initial=epochs, lr_min=lr_min, warmup_t=warmup_epochs, warmup_lr_init=warmup_lr
        )
        self.last_step = 0
        self._apply()

    def step(self) -> None:
        """Set the rates of the next epoch."""
        self.last_step += 1
        self._apply()

    def get_last_value(self) -> list[float]:
        """The rate of each parameter group."""
        return [group['lr'] for group in self._groups.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """How far the schedule is; all else follows from the config."""
        return {'last_step': self.last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.last_step = state_dict['last_step']
        self._apply()

    def _apply(self) -> None:
        self._schedule.step(max(self.last_step - self._lag, 0))
