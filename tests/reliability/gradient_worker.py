"""One of several processes that train the same small RepNeXt: it writes the gradients and weights it ends with."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from repnext_mm import RepNeXt
from tests.conftest import randomize

ROOT = Path(__file__).parents[2]
ARCH = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}
BATCH = 8  # over all processes
UPDATES, LEARNING_RATE = 3, 1e-4
CASES: dict[str, dict[str, Any]] = {
    'eval': {'norm_eval': True},
    'train': {},
    'recomputed': {'norm_eval': True, 'with_cp': True},
    'frozen': {'norm_eval': True, 'frozen_stages': 2},
    'single branch': {'norm_eval': True, 'arch': {**ARCH, 'token_mixer': 'single'}},
}
SYNC = {'norm_cfg': {'type': 'SyncBN'}}


class Regressor(BaseModel):
    """A backbone with a loss, as mmengine trains it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs: Tensor, mode: str) -> dict[str, Tensor]:
        assert mode == 'loss'
        return {'loss': loss_of(self.backbone(inputs))}


def build(options: Mapping[str, Any], device: str = 'cpu') -> RepNeXt:
    """The same float64 weights and statistics in every process."""
    torch.manual_seed(0)
    backbone = RepNeXt(**{'arch': ARCH, **options}).double()
    return randomize(backbone).to(device).train()


def images(device: str = 'cpu') -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, 3, 64, 49, generator=generator, dtype=torch.float64).to(device)


def loss_of(levels: tuple[Tensor, ...]) -> Tensor:
    """A mean over the batch: the loss of a batch is the mean of the losses of its equal parts."""
    return sum(level.square().mean() for level in levels)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.cpu() for name, buffer in model.named_buffers()}


def trained(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """Weights after some updates of SGD with momentum, each of which goes over all batches."""
    wrapper = OptimWrapper(
        torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9), accumulative_counts=len(batches)
    )
    wrapper.initialize_count_status(model, 0, UPDATES * len(batches))
    for _ in range(UPDATES):
        for batch in batches:
            model.train_step({'inputs': batch}, wrapper)
    return {name: p.detach().cpu() for name, p in getattr(model, 'module', model).named_parameters()}


def results(rank: int, world: int, device: str) -> Iterator[tuple[str, Any]]:
    shard = images(device).chunk(world)[rank]
    if device != 'cpu':
        model = build(SYNC, device)
        parallel = DistributedDataParallel(model, broadcast_buffers=False)
        loss_of(parallel(shard)).backward()
        yield 'synchronized', (gradients(model), buffers(model))
        return
    for name, options in CASES.items():
        model = build(options)
        parallel = DistributedDataParallel(model, broadcast_buffers=False)  # averages in backward: it must live
        loss_of(parallel(shard)).backward()
        yield name, (gradients(model), buffers(model))
    for name, batches in (('updated', [shard]), ('accumulated', list(shard.split(1)))):
        regressor = Regressor(build(CASES['eval']))
        yield name, trained(MMDistributedDataParallel(regressor, broadcast_buffers=False), batches)


def run(world: int, folder: Path, *, device: str = 'cpu') -> list[dict[str, Any]]:
    """Start ``world`` processes that meet in ``folder``; returns what each of them found."""
    command = [sys.executable, '-m', 'tests.reliability.gradient_worker', f'--folder={folder}', f'--device={device}']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    workers = [
        subprocess.Popen(
            [*command, f'--world={world}', f'--rank={rank}'],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert [worker.returncode for worker in workers] == [0] * world, '\n'.join(outputs)[-6000:]
    return [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(world)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--folder', type=Path, required=True)
    parser.add_argument('--rank', type=int, required=True)
    parser.add_argument('--world', type=int, required=True)
    parser.add_argument('--device', required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    # gloo, because NCCL refuses two processes on one GPU
    dist.init_process_group(
        'gloo',
        init_method=(args.folder / 'meeting').as_uri(),
        rank=args.rank,
        world_size=args.world,
        timeout=timedelta(seconds=120),
    )
    torch.save(dict(results(args.rank, args.world, args.device)), args.folder / f'{args.rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


if __name__ == '__main__':
    main()
