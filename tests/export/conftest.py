"""What several tests export."""

import pytest
import torch

from repnext_mm.export import load_part
from tests.conftest import randomize
from tests.export.networks import DIGITS, TINY


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """A tiny classifier with random weights, and the digits it is tested on."""
    folder = tmp_path_factory.mktemp('classifier')
    options = {
        'data_root': str(folder / 'digits'),
        'model.backbone': {'_delete_': True, 'type': 'RepNeXt', 'arch': TINY, 'out_indices': (3,)},
        'model.head.in_channels': 64,
    }
    torch.manual_seed(0)
    network = randomize(load_part(DIGITS, options=options).network)
    torch.save({'state_dict': network.state_dict()}, folder / 'net.pth')
    return folder, options, str(folder / 'net.pth')
