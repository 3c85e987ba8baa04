"""RepNeXt for timm: ``import repnext_mm.timm_models``, then ``timm.create_model('repnext_m1')``.

The modules, and the keys of the weights, are those of the backbone; this file speaks timm's interface only.
"""

# without deferred annotations: torch.fx and TorchScript read them

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from timm.models._features import feature_take_indices  # what every model of timm uses; it is not exported
from torch import Tensor, nn

from repnext_mm.checkpoints import PUBLISHED, read_checkpoint, state_dict_of
from repnext_mm.checkpoints.published import Published
from repnext_mm.models import ARCHITECTURES, RepNeXt
from repnext_mm.models.heads import TwoHeadLinear

_TAGS = {  # of timm, the default first, and the end of a published name
    'dist_300e_in1k': 'distill_300e',
    'starnet_dist_in1k': 'sz224_4xbs256_ep300_distill',
    'starnet_in1k': 'sz224_4xbs512_ep300',
}


class TimmRepNeXt(nn.Module):
    """RepNeXt and its two-headed classifier behind timm's interface.

    ``timm.models.reparameterize_model`` returns the deploy form: no norm, one linear layer.

    Args:
        arch: a name of ``repnext_mm.models.ARCHITECTURES``.
        num_classes: 0 for pooled features.
        in_chans: channels of the image.
        global_pool: timm's name of a pooling, or ``''`` for none.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth rate of the last block.
        device: where the weights are made, ``'meta'`` included.
        dtype: of the weights.
    """

    def __init__(
        self,
        arch: str,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        with nullcontext() if device is None else torch.device(device):
            backbone = RepNeXt(arch, in_channels=in_chans, drop_path_rate=drop_path_rate).to(dtype=dtype)
        self.in_chans = in_chans
        self.stem, self.stages = backbone.stem, nn.Sequential(*backbone.stages)
        self.num_features = backbone.arch.embed_dims[-1]
        self.feature_info = [
            {'num_chs': channels, 'reduction': 4 * 2**index, 'module': f'stages.{index}'}
            for index, channels in enumerate(backbone.arch.embed_dims)
        ]
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_chans, H, W) -> (N, num_classes)``."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's features, ``(N, C, H / 32, W / 32)``."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooled features or, by default, class scores."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of the chosen stages; arguments are timm's (there is no final norm)."""
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt {output_fmt!r}: RepNeXt's features are 'NCHW'")
        taken, last = feature_take_indices(len(self.stages), indices)
        found = []
        x = self.stem(x)
        for index, stage in enumerate(list(self.stages)[: last + 1 if stop_early else None]):
            x = stage(x)
            if index in taken:
                found.append(x)
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last of ``indices``, and the head."""
        taken, last = feature_take_indices(len(self.stages), indices)
        pruned = last + 1 < len(self.stages)
        self.stages = nn.Sequential(*list(self.stages)[: last + 1])
        self.num_features = self.feature_info[last]['num_chs']
        if prune_head or pruned:
            self.reset_classifier(0, '')
        return taken

    def get_classifier(self) -> nn.Module:
        """The head: two norm+linear layers, or the identity without classes."""
        return self.head

    def reset_classifier(
        self,
        num_classes: int,
        global_pool: str | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """A new head, with another pooling where one is given; device and dtype are by default the stem's."""
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.num_classes = num_classes
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        like = next(self.stem.parameters())
        with torch.device(like.device if device is None else device):
            head = TwoHeadLinear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        self.head = head.to(dtype=like.dtype if dtype is None else dtype).train(self.training)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass to save memory."""
        for stage in self.stages:
            setattr(stage, 'with_cp', enable)  # noqa: B010 - typed as a module

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of timm's layer groups."""
        blocks = (
            r'^stages\.(\d+)'
            if coarse
            else [(r'^stages\.(\d+)\.downsample', (0,)), (r'^stages\.(\d+)\.blocks\.(\d+)', None)]
        )
        return {'stem': r'^stem', 'blocks': blocks}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Nothing but what timm leaves out anyway: norms and biases."""
        return set()


def _settings(entry: Published | None) -> dict[str, Any]:
    return {
        'url': entry.address if entry else '',
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (7, 7),
        'crop_pct': entry.crop_pct if entry else 0.875,
        'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'stem.stem.0.conv',
        'classifier': ('head.head.linear', 'head.head_dist.linear'),
        'license': 'apache-2.0',
        'origin_url': 'https://github.com/suous/RepNeXt',
        'paper_ids': 'arXiv:2406.16004',
    }


def _weights(content: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    return state_dict_of(content)


def _read_weights(name: str, options: dict[str, Any]) -> None:
    """Have our reader find and read the file that timm would: by name where it is published, safely, the raw weights.

    What comes from the hub, a folder or as tensors is left to timm, which reads no pickle there.
    """
    config = resolve_pretrained_cfg(name, options.get('pretrained_cfg'), options.get('pretrained_cfg_overlay'))
    if config.source in ('hf-hub', 'local-dir') or config.state_dict or config.hf_hub_id:
        return
    if source := config.file or config.url:
        state = state_dict_of(read_checkpoint(source))
        options['pretrained_cfg_overlay'] = {**(options.get('pretrained_cfg_overlay') or {}), 'state_dict': state}


def _entry(arch: str) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            _read_weights(build.__name__, options)
        model = build_model_with_cfg(
            TimmRepNeXt,
            build.__name__,
            pretrained,
            arch=arch,
            pretrained_filter_fn=_weights,
            feature_cfg={'flatten_sequential': True, 'out_indices': (0, 1, 2, 3)},
            **options,
        )
        model.pretrained_cfg.pop('state_dict', None)  # they are in the model now
        channels = options.get('in_chans', 3)
        if channels != 3:  # timm's scripts take the number of channels from here
            size = (channels, *model.pretrained_cfg['input_size'][1:])
            model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, 'input_size': size}
        return model

    build.__name__ = f'repnext_{arch}'
    return register_model(build)


default_cfgs = generate_default_cfgs(
    {
        f'repnext_{arch}.untrained': _settings(None)
        for arch in ARCHITECTURES
        if f'repnext_{arch}_distill_300e' not in PUBLISHED
    }
    | {
        f'repnext_{arch}.{tag}': _settings(PUBLISHED[name])
        for arch in ARCHITECTURES
        for tag, end in _TAGS.items()
        if (name := f'repnext_{arch}_{end}') in PUBLISHED
    }
)
for _arch in ARCHITECTURES:
    _entry(_arch)
