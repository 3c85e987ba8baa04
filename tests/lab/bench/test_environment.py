"""What a record says of the machine."""

import json
from pathlib import Path

import torch

from repnext_mm.lab.bench.environment import LIBRARIES, environment


def test_it_is_plain_and_names_what_counts():
    found = environment('cpu')
    assert json.loads(json.dumps(found)) == found
    assert found['torch'] == torch.__version__
    assert found['threads'] == torch.get_num_threads()
    assert found['device'] == found['cpu'] != ''
    assert set(found['libraries']) <= set(LIBRARIES)
    assert found['libraries']['mmengine']  # under either lane's distribution name


def test_it_names_no_folder():
    assert str(Path.home()) not in json.dumps(environment('cpu'))
