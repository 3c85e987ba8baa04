"""What a backbone of four stages owes to OpenMMLab: checked input, chosen outputs, frozen parts, strict loading."""

# without deferred annotations: TorchScript reads them

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint as recompute

from repnext_mm.checkpoints import LoadReport, StateDict, local_file, read_checkpoint, recognize, state_dict_of
from repnext_mm.checkpoints.load import fit
from repnext_mm.errors import UserError
from repnext_mm.models.layers import called_one_by_one
from repnext_mm.models.registry import BaseModule, log, type_name
from repnext_mm.reparam import fuse

if TYPE_CHECKING:
    Levels = tuple[Tensor, ...]
else:
    Levels = list[Tensor]  # what a script returns: TorchScript knows no tuple of any length

MIN_SIZE = 32  # pixels: the stride of the last stage

ArchT = TypeVar('ArchT')


class StagedBackbone(BaseModule):
    """A stem and four stages. A subclass hands on its options, sets ``arch``, and calls ``_assemble``.

    Args:
        in_channels: channels of the image.
        out_indices: the stages to return, in ascending order.
        frozen_stages: ``-1`` freezes nothing, ``0`` the stem, ``k`` the stem and the first ``k`` stages.
        drop_path_rate: stochastic depth rate of the last block.
        norm_eval: keep batch norms (SyncBN included) in eval mode while training.
        switches: further options that are True or False.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE, prefix=None, ema=False, trust_pickle=False)`` loads a file
            strictly; other entries are mmengine's.
        pretrained: not supported.

    Raises:
        ValueError: an option is out of range.
    """

    __jit_unused_properties__ = ('is_init', 'out_channels')

    if TYPE_CHECKING:  # TorchScript reads annotations
        init_cfg: dict | list[dict] | None
        arch: Any  # a dataclass with ``widths`` and ``depths``

    def __init__(
        self,
        *,
        in_channels: int,
        out_indices: Sequence[int],
        frozen_stages: int,
        drop_path_rate: float,
        norm_eval: bool,
        switches: Mapping[str, bool],
        init_cfg: dict | list[dict] | None,
        pretrained: None,
    ) -> None:
        super().__init__(init_cfg)
        if pretrained is not None:
            raise UserError(
                f'{type(self).__name__} takes no pretrained={pretrained!r}: set pretrained=None in the model and '
                "init_cfg=dict(type='Pretrained', checkpoint=...) in the backbone"
            )
        if type(in_channels) is not int or in_channels < 1:
            raise UserError(f'in_channels {in_channels!r} must be the number of channels of the image, at least 1')
        if frozen_stages not in range(-1, 5):
            raise UserError(f'frozen_stages {frozen_stages} must be -1 (none), 0 (stem) or 1 to 4 (stem and stages)')
        if type(drop_path_rate) not in (int, float) or not 0 <= drop_path_rate < 1:
            raise UserError(f'drop_path_rate {drop_path_rate!r} must be in [0, 1)')
        for name, value in {'norm_eval': norm_eval, **switches}.items():
            if not isinstance(value, bool):
                raise UserError(f'{name} {value!r} must be True or False')
        self.in_channels = in_channels
        self.out_indices = _checked_out_indices(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.deploy = False

    @abstractmethod
    def parts(self) -> list[list[nn.Module]]:
        """The stem, then each stage, as the modules that run one after the other."""

    @abstractmethod
    def levels(self, x: Tensor) -> list[Tensor]:
        """The outputs of the four stages."""

    @abstractmethod
    def place_of(self, name: str) -> tuple[int, int]:
        """The stage of a parameter, -1 for the stem, and its block, 0 for what stands before the blocks."""

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the returned levels: what a neck's ``in_channels`` must be."""
        return tuple(self.arch.widths[i] for i in self.out_indices)

    def forward(self, x: Tensor) -> Levels:
        """Features of the chosen stages, strides 4, 8, 16 and 32.

        Args:
            x: ``(N, in_channels, H, W)``, H and W at least 32, of any parity.

        Returns:
            ``(N, channels of the stage, H / stride, W / stride)`` for each of ``out_indices``; a script by
            ``torch.jit.script`` returns a list.

        Raises:
            ValueError: the input has another number of dimensions or channels, or is too small.
        """
        if not torch.jit.is_scripting():
            self._check_input(x)
        every, chosen = self.levels(x), []
        for index in self.out_indices:
            chosen.append(every[index])
        if not torch.jit.is_scripting():
            return tuple(chosen)
        return chosen  # type: ignore[return-value]

    def train(self, mode: bool = True) -> 'StagedBackbone':
        """Set the mode; frozen stages, and all batch norms with ``norm_eval``, stay in eval mode."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def switch_to_deploy(self) -> 'StagedBackbone':
        """Fuse in place, with the running statistics whatever the mode; returns ``self``.

        This is the name that mmdeploy, MMPretrain's converter and timm call. ``reparam.fuse`` keeps the train form.
        """
        training = self.training
        fused, report = fuse(self.eval(), form=self.deploy_form())
        for name, part in fused.named_children():
            setattr(self, name, part)
        self.deploy = True
        if report.refused:
            named = '; '.join(report.refused[:3])
            log(
                f'{type(self).__name__}: {len(report.refused)} parts stay as they are: {named}',
                level=logging.WARNING,
            )
        self.train(training)
        return self

    def deploy_form(self) -> str:
        """The form of fusing that ``switch_to_deploy`` gives."""
        return 'default'

    def init_weights(self) -> None:
        """Initialize as ``init_cfg`` says; pre-trained files load strictly and safely, unlike mmengine's default."""
        entries = [self.init_cfg] if isinstance(self.init_cfg, dict) else list(self.init_cfg or [])
        pretrained = [cfg for cfg in entries if type_name(cfg.get('type')) == 'Pretrained']
        declared, self.init_cfg = self.init_cfg, [cfg for cfg in entries if cfg not in pretrained] or None
        try:
            super().init_weights()
        finally:
            self.init_cfg = declared
        for cfg in pretrained:
            options = {key: value for key, value in cfg.items() if key != 'type'}
            options['checkpoint'] = str(local_file(options['checkpoint']))
            report = self.load_pretrained(**options)
            log(f'{type(self).__name__}: {report} from {options["checkpoint"]}')

    def load_pretrained(
        self,
        checkpoint: str,
        *,
        prefix: str | None = None,
        ema: bool = False,
        map_location: str = 'cpu',
        trust_pickle: bool = False,
    ) -> LoadReport:
        """Load the backbone's part of a file strictly.

        Args:
            checkpoint: a file, a published name, an address: see ``repnext_mm.checkpoints.local_file``.
            prefix: the entry (``'model_ema.'``) or the start of the keys to take; by itself, what fits is found.
            ema: take the averaged weights of the file.
            map_location: part of mmengine's entry; weights are copied, so where they are read does not matter.
            trust_pickle: see ``read_checkpoint``.

        Raises:
            FileNotFoundError, ValueError: the file cannot be read or does not fit; the backbone is then unchanged.
        """
        content = read_checkpoint(checkpoint, trust_pickle=trust_pickle)
        state, report = self.fitted(content, source=checkpoint, prefix=prefix, ema=ema)
        self.load_state_dict(state, strict=True)
        return report

    def form_of(self, state: StateDict) -> str:
        """The form of this network that a state dict holds, as ``recognize`` calls it; ``'unknown'`` when in doubt."""
        return 'unknown'

    def fitted(
        self, content: Mapping[str, Any], *, source: str, prefix: str | None, ema: bool
    ) -> tuple[StateDict, LoadReport]:
        """The backbone's weights in a checkpoint; see ``fit_to_model``."""
        return fit_to_model(self, content, source=source, prefix=prefix, ema=ema, part=True)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay, after ConvNeXt's grouping.

        The stem is layer 0, the first two stages are a layer each, the third stage is a layer per three blocks, the
        fourth one more. What does not start with ``prefix`` (a neck, a head) comes last.

        Returns:
            The layer and the number of layers.
        """
        groups = -(-self.arch.depths[2] // 3)
        last = groups + 3
        if not param_name.startswith(prefix):
            return last + 1, last + 2
        stage, block = self.place_of(param_name.removeprefix(prefix))
        return (3 + block // 3 if stage == 2 else last if stage == 3 else stage + 1), last + 2

    def _assemble(self, build: Callable[[], None], *, deploy: bool) -> None:
        """Build the modules in train form, or in deploy form with weights of their own, and freeze what is to be."""
        if deploy:
            with torch.device('meta'):  # the deploy form is what fusing makes of the train form: build it that way
                build()
            self.switch_to_deploy()
            self.to_empty(device=torch.empty(0).device)
            for module in self.modules():
                if hasattr(module, 'reset_parameters'):
                    module.reset_parameters()
        else:
            build()
        self._freeze()

    def _freeze(self) -> None:
        for modules in self.parts()[: self.frozen_stages + 1]:
            for module in modules:
                module.eval().requires_grad_(False)

    def _check_input(self, x: Tensor) -> None:
        if called_one_by_one(x):  # sizes are not numbers while a graph is recorded
            return
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise UserError(
                f'input of shape {tuple(x.shape)}: {type(self).__name__} takes (N, {self.in_channels}, H, W), '
                'set in_channels for images with other channels'
            )
        if min(x.shape[2:]) < MIN_SIZE:
            raise UserError(
                f'input of {x.shape[2]}x{x.shape[3]} pixels: {type(self).__name__} needs at least '
                f'{MIN_SIZE}x{MIN_SIZE}, resize or pad the image'
            )


# torch.fx writes annotations into its graphs, which return a tuple
del StagedBackbone.forward.__annotations__['return']


def resolve(arch: str | Mapping[str, Any] | ArchT, table: Mapping[str, ArchT]) -> ArchT:
    """The architecture of a published name, or of a dict with the fields of the table's dataclass.

    Raises:
        ValueError: an unknown name or field, or values that do not make a network.
    """
    kind = type(next(iter(table.values())))
    if isinstance(arch, kind):
        return arch
    if isinstance(arch, str):
        if arch not in table:
            raise UserError(f'unknown arch {arch!r}: choose one of {", ".join(table)}, or give a dict')
        return table[arch]
    if not isinstance(arch, Mapping):
        raise UserError(f'arch must be a name or a dict, not {type(arch).__name__}')
    every = fields(kind)  # type: ignore[arg-type]
    needed = [field.name for field in every if field.default is MISSING]
    optional = [field.name for field in every if field.default is not MISSING]
    if set(arch) - {*needed, *optional} or set(needed) - set(arch):
        extra = f'{" and ".join(optional)} are optional, ' if optional else ''
        raise UserError(
            f'arch dict with fields {sorted(arch)}: {" and ".join(needed)} are needed, {extra}and nothing else is known'
        )
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in arch.items()})


class FrozenStatistics:
    """Let training-mode norms normalize by the batch without updating their running statistics; enter it repeatedly.

    Recomputing a block for gradient checkpointing would otherwise update them twice per step, and once more with every
    further backward pass.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before: list[tuple[_BatchNorm, float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        norms = [m for m in self._module.modules() if isinstance(m, _BatchNorm)]
        self._before = [
            (norm, norm.momentum, None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone())
            for norm in norms
            if norm.training and norm.track_running_stats
        ]
        for norm, *_ in self._before:
            # changes no value and, unlike leaving the statistics out, no tensor that backward expects
            norm.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for norm, momentum, count in self._before:
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)


def recomputed(module: nn.Module, x: Tensor) -> Tensor:
    """A module's output, whose activations the backward pass computes again; norms count the batch once."""
    return recompute(module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), FrozenStatistics(module)))


def fit_to_model(
    model: nn.Module,
    content: Mapping[str, Any],
    *,
    source: str,
    reset: Sequence[str] = (),
    prefix: str | None = None,
    ema: bool = False,
    part: bool = False,
) -> tuple[StateDict, LoadReport]:
    """The weights of a checkpoint for a model, see ``repnext_mm.checkpoints.fit``; norms of fused files are folded.

    The authors' fused files keep a norm per block and downsampling, which a deploy backbone does not have.
    """
    options: dict[str, Any] = {'source': source, 'reset': reset, 'prefix': prefix, 'ema': ema, 'part': part}
    target, name = model.state_dict(), type(model).__name__
    where, backbone = _backbone_of(model)
    found = _likeliest(content, prefix=prefix, ema=ema)
    if backbone is None or not backbone.deploy or backbone.form_of(found) != 'keep_norms':
        return fit(content, target, name=name, **options)
    train_form = type(backbone)(backbone.arch, in_channels=backbone.in_channels).eval()  # type: ignore[call-arg, misc]
    with_norms, _ = fuse(train_form, form='keep_norms', copy=True)
    theirs = {key: value for key, value in target.items() if not key.startswith(where)}
    theirs |= {where + key: value for key, value in with_norms.state_dict().items()}
    state, report = fit(content, theirs, name=name, **options)
    with_norms.load_state_dict(_below(state, where))
    folded = {where + key: value for key, value in fuse(with_norms)[0].state_dict().items()}
    kept = {key: value for key, value in state.items() if not key.startswith(where)} | folded
    notes = (*report.notes, 'the norms that the fused file kept are folded')
    return kept, replace(report, loaded=len(kept), expected=len(target), notes=notes)


def deployed_like(
    model: nn.Module, content: Mapping[str, Any], *, prefix: str | None = None, ema: bool = False
) -> bool:
    """Make a model in train form the deploy form, in place, where a checkpoint holds fused weights of its task.

    For testing only: what is fused cannot be trained. The two heads of a classifier become one layer.

    Returns:
        Whether it did.
    """
    _, backbone = _backbone_of(model)
    found = _likeliest(content, prefix=prefix, ema=ema)
    if backbone is None or backbone.deploy or backbone.form_of(found) not in ('default', 'keep_norms'):
        return False
    if backbone is not model and recognize(found, {}).task != recognize(model.state_dict(), {}).task:
        return False
    backbone.switch_to_deploy()
    head = getattr(model, 'head', None)
    if isinstance(head, nn.Module) and hasattr(head, 'merged'):
        flags = head.training
        model.head = fuse(head.eval())[0].train(flags)
    return True


def _backbone_of(model: nn.Module) -> tuple[str, StagedBackbone | None]:
    """The start of its keys, and the backbone; None where there is none."""
    where, backbone = (
        ('', model) if isinstance(model, StagedBackbone) else ('backbone.', getattr(model, 'backbone', None))
    )
    return where, backbone if isinstance(backbone, StagedBackbone) else None


def _likeliest(content: Mapping[str, Any], *, prefix: str | None, ema: bool) -> StateDict:
    try:
        return state_dict_of(content, prefix=prefix, ema=ema)
    except ValueError:  # several networks, or none: what fits is told elsewhere
        return {}


def _below(state: Mapping[str, Tensor], where: str) -> StateDict:
    return {key.removeprefix(where): value for key, value in state.items() if key.startswith(where)}


def _checked_out_indices(indices: Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(indices) if isinstance(indices, Sequence) else (indices,)
    if not chosen or any(i not in range(4) for i in chosen) or list(chosen) != sorted(set(chosen)):
        raise UserError(f'out_indices {indices} must be ascending, different stages from 0 to 3')
    return chosen
