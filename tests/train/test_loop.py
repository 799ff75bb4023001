import os
import signal
from dataclasses import replace

import pytest
import torch

from paltrain.errors import TrainingError
from paltrain.train.checkpoint import Checkpoints, Progress
from paltrain.train.console import TrainingConsole
from paltrain.train.loop import Loop, LoopSettings, TokenFlops
from paltrain.train.signals import INTERRUPT, NOTHING, REQUEUE
from tests.train.plain import PlainEngine, Point, point_steps


class Records(list):
    def write(self, record):
        self.append(record)

    def close(self):
        return


START = Progress(
    step=0,
    data={},
    n_applied_steps=0,
    n_nonfinite=0,
    frozen_hash="-",
    world_size=1,
    config={},
    code_version="test",
)


def loop_of(comm, folder, *, total_steps=8, progress=START, engine=None, max_nonfinite=2) -> Loop:
    settings = LoopSettings(
        total_steps=total_steps,
        steps_per_epoch=4,
        save_every_steps=3,
        max_nonfinite_steps=max_nonfinite,
        lr_factor=lambda step: 1.0 / (1 + step),
        peak_lr=0.1,
        flops=TokenFlops(1.0, 1.0, None),
    )
    return Loop(
        engine or PlainEngine(),
        comm,
        Checkpoints(folder, comm, keep=2),
        settings,
        progress,
        lambda: Point(0.0, 0.0, ()),
        [Records()],
        TrainingConsole(name="t", total_steps=total_steps, every_steps=1, quiet=True),
    )


def test_it_records_every_step_and_saves_on_time_and_at_the_end(comm, tmp_path):
    loop = loop_of(comm, tmp_path)
    assert loop.run(point_steps()) == NOTHING
    (records,) = loop.sinks
    assert [r["step"] for r in records] == list(range(1, 9))
    assert records[1]["lr"] == pytest.approx(0.05)
    assert records[3]["epoch"] == 1.0
    saved = sorted(path.name for path in tmp_path.iterdir())
    assert saved == ["latest", "step-00000006", "step-00000008"]


def test_a_resumed_run_is_bitwise_the_unbroken_one(comm, tmp_path):
    unbroken = loop_of(comm, tmp_path / "a")
    unbroken.run(point_steps())
    first = loop_of(comm, tmp_path / "b", total_steps=6)
    first.run(point_steps())
    checkpoints = Checkpoints(tmp_path / "b", comm, keep=2)
    engine = PlainEngine()
    progress = checkpoints.load(checkpoints.latest(), engine, frozen_hash="-")
    assert progress.data == {"taken": 6}
    second = loop_of(comm, tmp_path / "b", progress=progress, engine=engine)
    second.run(point_steps(first=progress.data["taken"]))
    curve = [[r["loss"] for r in loop.sinks[0]] for loop in (unbroken, first, second)]
    assert curve[1] + curve[2] == curve[0]
    weights = [loop.engine.full_weights() for loop in (unbroken, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_steps_that_are_not_finite_are_skipped_and_counted(comm, tmp_path, caplog):
    loop = loop_of(comm, tmp_path)
    loop.run(point_steps(bad=frozenset({2, 5})))
    assert loop.progress.n_nonfinite == 2
    assert loop.engine.n_applied_steps == 6
    assert loop.progress.step == 8
    assert "its samples: q-2" in caplog.text
    assert all(torch.isfinite(w).all() for w in loop.engine.full_weights().values())


def test_too_many_of_them_end_the_run_naming_the_samples(comm, tmp_path):
    loop = loop_of(comm, tmp_path, max_nonfinite=1)
    with pytest.raises(TrainingError, match="q-5") as caught:
        loop.run(point_steps(bad=frozenset({2, 5})))
    assert "max_nonfinite_steps=1" in str(caught.value)
    assert "good-5" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "wanted"),
    [(signal.SIGTERM, REQUEUE), (signal.SIGUSR2, REQUEUE), (signal.SIGINT, INTERRUPT)],
)
def test_a_signal_saves_at_the_step_boundary_and_stops(comm, tmp_path, number, wanted):
    def steps():
        for step in point_steps():
            if step.state_after.taken == 5:
                os.kill(os.getpid(), number)
            yield step

    loop = loop_of(comm, tmp_path)
    before = signal.getsignal(number)
    assert loop.run(steps()) == wanted
    assert signal.getsignal(number) == before
    assert (tmp_path / "latest").read_text().strip() == "step-00000005"


def test_a_rank_without_a_visit_runs_a_dummy(comm, tmp_path):
    def steps():
        for step in point_steps():
            yield replace(step, batches=[None])

    loop = loop_of(comm, tmp_path, total_steps=1)
    loop.run(steps())
    assert loop.engine.buffers()["seen"] == 1
