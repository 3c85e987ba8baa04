"""The index that MIM reads: what it names exists, and its numbers are those of the configs' headers and of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from mmengine.config import Config

from repnext_mm.lab.bench.complexity import model_complexity, repnext_complexity

ROOT = Path(__file__).parents[1]
INDEX = ROOT / 'model-index.yml'
METAFILES = [ROOT / name for name in yaml.safe_load(INDEX.read_text())['Import']]
COLLECTIONS = [entry for path in METAFILES for entry in yaml.safe_load(path.read_text())['Collections']]
MODELS = [entry for path in METAFILES for entry in yaml.safe_load(path.read_text())['Models']]
by_name = pytest.mark.parametrize('model', MODELS, ids=lambda model: model['Name'])


def header(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or '').replace('\n', ' ')


def expected(path: Path) -> str:
    """What a config's header promises, up to its next heading."""
    return re.split(r' (?:Differences|Other lengths|Teacher|Cost): ', header(path).partition('Expected: ')[2])[0]


def test_every_metafile_is_imported():
    assert sorted(METAFILES) == sorted((ROOT / 'configs').glob('*metafile*.yml'))


def test_every_published_result_is_there():
    published = {path.stem for path in (ROOT / 'configs').glob('*.py') if 'as reported by' in expected(path)}
    assert [model['Name'] for model in MODELS if MODELS.count(model) > 1] == []
    assert {model['Name'] for model in MODELS} == published


@by_name
def test_names_and_files(model: dict[str, Any]):
    assert (ROOT / model['Config']).stem == model['Name']
    assert (ROOT / model['Config']).is_file()
    assert model['In Collection'] in [collection['Name'] for collection in COLLECTIONS]
    if 'Weights' in model:  # in this very arch, of this very task
        arch = model['Metadata']['Architecture'].lower().replace('-', '_')
        if arch.startswith('convnext'):  # named after the top-1
            kind = 'replaced' if 'modified' in arch else 'baseline'
            digits = round(100 * model['Results'][0]['Metrics']['Top 1 Accuracy'])
            assert model['Weights'].endswith(f'/v1.0/convnext_femto_120e_{kind}_{digits}.pth')
            return
        assert re.search(rf'/v1\.0/{arch}_(distill_300e\.pth|sz224\S+|coco\.pth|ade20k\.pth)$', model['Weights'])


@by_name
def test_results_are_those_of_the_header(model: dict[str, Any]):
    """Top-5, and AP at one overlap, are in no header."""
    said = expected(ROOT / model['Config'])
    found = [float(number) for number in re.findall(r'\d+\.\d+', said)]
    metrics = {name: value for result in model['Results'] for name, value in result['Metrics'].items()}
    for name, value in metrics.items():
        if name != 'Top 5 Accuracy' and not name.endswith(('AP50', 'AP75')):
            assert value in found, (name, value, said)
    for metric in {'Top 1 Accuracy', 'box AP', 'mask AP', 'mIoU'} & set(metrics):
        written = 'top-1' if metric == 'Top 1 Accuracy' else metric
        assert float(re.search(rf'{written} ([\d.]+)', said)[1]) == metrics[metric]
    which, epoch = re.fullmatch(r'(best|last)(?: \((\w+).*\))?', model['Metadata']['Reported Epoch']).groups()
    assert f'the {which} ' in said
    assert epoch is None or f'({epoch})' in said or epoch == '80000'


@by_name
def test_batch_and_length_are_those_of_the_config(model: dict[str, Any]):
    config, metadata = Config.fromfile(ROOT / model['Config']), model['Metadata']
    assert metadata['Batch Size'] == config.auto_scale_lr.base_batch_size
    if 'Iterations' in metadata:
        assert metadata['Iterations'] == config.train_cfg.max_iters
    else:
        assert metadata['Epochs'] == config.train_cfg.max_epochs


@pytest.mark.parametrize('name', ['repnext_m0_imagenet', 'repnext_m0e_cifar100'])
def test_size_of_classifiers(name: str):
    model = next(entry for entry in MODELS if entry['Name'] == name)
    arch, classes = name.split('_')[1], 100 if 'cifar' in name else 1000
    found = repnext_complexity(arch, num_classes=classes, forms=['default'])
    check_size(model, {form: parts['classifier'] for form, parts in found.items()})


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        ('mask_rcnn_repnext_m3_coco', (800, 1344)),
        ('semantic_fpn_repnext_m3_ade20k', (512, 512)),
    ],
)
def test_size_of_whole_models(name: str, shape: tuple[int, int]):
    model = next(entry for entry in MODELS if entry['Name'] == name)
    found = model_complexity(Config.fromfile(ROOT / model['Config']), shape=shape, forms=['default'])
    check_size(model, {form: parts['total'] for form, parts in found.items()})


def check_size(model: dict[str, Any], found: dict[str, Any]) -> None:
    assert model['Metadata']['Parameters'] == found['train'].parameters
    assert model['Metadata']['Parameters (fused)'] == found['default'].parameters
    assert model['Metadata']['FLOPs'] == found['default'].macs


def test_the_same_network_has_the_same_size_everywhere():
    sizes: dict[tuple[str, str], tuple[int, int]] = {}
    for model in MODELS:
        metadata = model['Metadata']
        network = (model['Results'][0]['Dataset'], metadata['Architecture'])
        size = (metadata['Parameters'], metadata['FLOPs'])
        assert sizes.setdefault(network, size) == size, model['Name']


def test_loader_of_mim():
    load = pytest.importorskip('modelindex.load_model_index', reason='installed with MIM or MMPretrain').load
    index = load(str(INDEX))
    index.check()
    assert not index.check_errors
    assert len(index.models) == len(MODELS)
    for model in index.models:
        assert model.full_model.metadata.data['Training Data'] in ('ImageNet-1k', 'CIFAR-100', 'COCO', 'ADE20K')


@by_name
def test_the_model_zoo_shows_the_same(model: dict[str, Any]):
    lines = (ROOT / 'docs/records/reported_results.md').read_text().splitlines()
    (row,) = [line for line in lines if line.startswith('|') and f'(../../{model["Config"]})' in line]
    cells = [cell.strip() for cell in row.split('|')]
    for result in model['Results']:
        for metric, value in result['Metrics'].items():
            assert any(cell == str(value) or cell == f'{value:.2f}' or cell == f'{value:.3f}' for cell in cells), metric
    which = model['Metadata']['Reported Epoch']
    assert which in cells


@by_name
def test_the_model_zoo_links_what_the_authors_publish(model: dict[str, Any]):
    """A log for each result, the metafile's weights, and the fused and Core ML files of the distilled RepViT recipe."""
    lines = (ROOT / 'docs/records/reported_results.md').read_text().splitlines()
    (row,) = [line for line in lines if line.startswith('|') and f'(../../{model["Config"]})' in line]
    files = re.findall(r'\(https://github\.com/suous/RepNeXt/(\S+)\)', row)
    assert len(set(files)) == len(files)
    assert sum('/logs/' in file and not file.endswith('_args.yaml') for file in files) == 1
    if 'Weights' in model:
        assert model['Weights'].removeprefix('https://github.com/suous/RepNeXt/') in files
    stem = f'releases/download/v1.0/{model["Metadata"]["Architecture"].lower().replace("-", "_")}_distill_300e'
    published = {f'{stem}_fused.pt', f'{stem}_224.mlmodel'}
    assert published & set(files) == (published if f'{stem}.pth' in files else set())
    assert ('_args.yaml' in row) == ('starnet' in model['Name'])
