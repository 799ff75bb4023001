import json
import random
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch

from paltrain.errors import CheckpointError
from paltrain.train.checkpoint import Checkpoints, frozen_hash
from tests.train.plain import PlainEngine
from tests.train.test_loop import START


def saved_at(comm, folder, *steps, keep=2) -> Checkpoints:
    checkpoints = Checkpoints(folder, comm, keep=keep)
    checkpoints.clean()
    for step in steps:
        checkpoints.save(PlainEngine(), replace(START, step=step))
    return checkpoints


def test_a_run_without_checkpoints_has_no_latest(comm, tmp_path):
    assert saved_at(comm, tmp_path / "none").latest() is None


def test_only_the_newest_are_kept(comm, tmp_path):
    checkpoints = saved_at(comm, tmp_path, 1, 2, 3, 4, keep=2)
    assert checkpoints.latest() == tmp_path / "step-00000004"
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000003", "step-00000004"]


def test_half_written_ones_are_removed_at_start_and_never_latest(comm, tmp_path):
    saved_at(comm, tmp_path, 1)
    half = tmp_path / "step-00000002.partial"
    half.mkdir()
    (half / "state-00000.safetensors").write_bytes(b"half")
    checkpoints = saved_at(comm, tmp_path)
    assert not half.exists()
    assert checkpoints.latest() == tmp_path / "step-00000001"


def test_random_states_and_buffers_come_back(comm, tmp_path):
    engine = PlainEngine()
    engine.model.seen += 7
    checkpoints = Checkpoints(tmp_path, comm, keep=1)
    folder = checkpoints.save(engine, replace(START, step=1))
    drawn = (torch.rand(1).item(), random.random(), np.random.rand())
    again = PlainEngine()
    checkpoints.load(folder, again, frozen_hash="-")
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == drawn
    assert again.buffers()["seen"] == 7


def test_a_torn_file_is_named_with_the_way_back(comm, tmp_path):
    checkpoints = saved_at(comm, tmp_path, 1, 2)
    torn = tmp_path / "step-00000002" / "state-00000.safetensors"
    torn.write_bytes(torn.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="state-00000.safetensors must have") as caught:
        checkpoints.latest()
    assert "write 'step-00000001' into" in str(caught.value)
    torn.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        checkpoints.latest()


def test_a_torn_record_is_refused(comm, tmp_path):
    checkpoints = saved_at(comm, tmp_path, 1)
    (tmp_path / "step-00000001" / "checkpoint.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"checkpoint\.json cannot be read"):
        checkpoints.latest()


def test_another_format_is_refused(comm, tmp_path):
    checkpoints = saved_at(comm, tmp_path, 1)
    record = tmp_path / "step-00000001" / "checkpoint.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoints.latest()


def test_other_frozen_weights_are_refused(comm, tmp_path):
    checkpoints = saved_at(comm, tmp_path, 1)
    with pytest.raises(CheckpointError, match="other frozen weights"):
        checkpoints.load(checkpoints.latest(), PlainEngine(), frozen_hash="another")


def test_other_trainable_parameters_are_refused_by_name(comm, tmp_path):
    checkpoints = saved_at(comm, tmp_path, 1)
    engine = PlainEngine()
    engine.model.added = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(CheckpointError, match="lacks added"):
        checkpoints.load(checkpoints.latest(), engine, frozen_hash="-")


def test_a_full_disk_names_path_and_bytes_and_the_last_good_one_stays(comm, tmp_path):
    checkpoints = saved_at(comm, tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # a write beyond it fails
    try:
        with pytest.raises(CheckpointError, match=r"state-00000.safetensors of \d+ bytes"):
            checkpoints.save(PlainEngine(), replace(START, step=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.latest() == tmp_path / "step-00000001"
    assert not list(tmp_path.glob("*.partial"))
    checkpoints.save(PlainEngine(), replace(START, step=2))
    assert checkpoints.latest() == tmp_path / "step-00000002"


def test_the_frozen_hash_sees_frozen_weights_and_nothing_else():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).to(torch.bfloat16))
    model[1].requires_grad_(False)
    before = frozen_hash(model)
    model[0].weight.data += 1
    assert frozen_hash(model) == before
    model[1].weight.data[0, 0] += 1
    assert frozen_hash(model) != before
