"""Core ML programs: converted here, run on macOS only."""

from __future__ import annotations

import logging

import pytest

from repnext_mm.export import export_model
from repnext_mm.export.graphs import IMAGENET, Normalized
from repnext_mm.reparam import fuse
from tests.export.networks import tiny


@pytest.fixture(scope='module')
def coremltools():
    logging.getLogger('coremltools').setLevel(logging.ERROR)
    return pytest.importorskip('coremltools', exc_type=ImportError)


def described(coremltools, path):
    spec = coremltools.utils.load_spec(str(path))
    operations = [
        operation.type
        for function in spec.mlProgram.functions.values()
        for block in function.block_specializations.values()
        for operation in block.operations
    ]
    return spec.description, operations


@pytest.mark.filterwarnings('ignore')  # of coremltools about itself, at import
def test_image_input_with_normalization(coremltools, tmp_path):
    network = tiny()
    path = tmp_path / 'net.mlpackage'
    for _ in range(2):  # the second replaces the first
        report = export_model(
            Normalized(fuse(network)[0], IMAGENET),
            path,
            format='coreml',
            shape=(1, 3, 64, 96),
            reference=Normalized(network, IMAGENET),
            output_names=['s1', 's2', 's3', 's4'],
        )
    assert [file.name for file in tmp_path.iterdir()] == ['net.mlpackage']
    assert 0 < max(report.errors.values()) < 1e-5
    assert report.checked_in == 'the trace it was converted from'
    description, operations = described(coremltools, path)
    (image,) = description.input
    assert (image.name, image.type.imageType.height, image.type.imageType.width) == ('image', 64, 96)
    assert image.type.imageType.colorSpace == 20  # RGB
    sizes = image.type.imageType.imageSizeRange
    assert (sizes.heightRange.lowerBound, sizes.heightRange.upperBound) == (32, 2048)
    assert [output.name for output in description.output] == ['s1', 's2', 's3', 's4']
    assert 'batch_norm' not in operations
    assert {'sub', 'mul'} & set(operations) or 'real_div' in operations  # mean and std
    with pytest.raises(ValueError, match='Core ML takes one image at a time, not 2'):
        export_model(Normalized(network, IMAGENET), path, format='coreml', shape=(2, 3, 64, 96))


@pytest.mark.filterwarnings('ignore')
def test_tensor_input_of_fixed_size(coremltools, tmp_path):
    path = tmp_path / 'net.mlpackage'
    export_model(fuse(tiny())[0], path, format='coreml', shape=(2, 3, 64, 96), dynamic=False)
    description, _ = described(coremltools, path)
    assert list(description.input[0].type.multiArrayType.shape) == [2, 3, 64, 96]
