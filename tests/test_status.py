import json
import time

from paltrain import status
from paltrain.status import RUNNING, StatusFile


def test_what_was_written_last_is_read_with_its_time(tmp_path):
    file = StatusFile(tmp_path / "status.json")
    assert file.read() == {}
    file.write("stopped", step=3)
    assert file.read() | {"time": 0} == {"state": "stopped", "step": 3, "time": 0}
    assert abs(file.read()["time"] - time.time()) < 60
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_heartbeat_is_written_now_and_then_only(tmp_path, monkeypatch):
    file, clock = StatusFile(tmp_path / "status.json"), [100.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: clock[0])
    file.beat(step=1)
    file.beat(step=2)
    assert file.read()["step"] == 1
    clock[0] += status.HEARTBEAT_S
    file.beat(step=3)
    assert file.read() | {"time": 0} == {"state": RUNNING, "step": 3, "time": 0}


def test_a_heartbeat_that_cannot_be_written_stops_nothing(tmp_path):
    file = StatusFile(tmp_path / "gone" / "status.json")
    file.beat(step=1)
    assert json.dumps(file.read()) == "{}"
