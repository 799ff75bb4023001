import pytest

from paltrain.train.schedule import lr_factor


def factors(schedule: str, *, total: int = 10, warmup: int = 4, floor: float = 0.1) -> list[float]:
    return [
        lr_factor(s, schedule=schedule, total_steps=total, warmup_steps=warmup, min_lr_ratio=floor)
        for s in range(total + 3)
    ]


def test_warm_up_rises_to_the_peak_in_equal_steps():
    assert factors("constant")[:4] == [0.25, 0.5, 0.75, 1.0]


def test_constant_stays_at_the_peak():
    assert set(factors("constant")[4:]) == {1.0}


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_decay_falls_from_the_peak_and_no_step_is_wasted_at_the_floor(schedule):
    decay = factors(schedule)[4:]
    assert decay[0] == 1.0
    assert decay == sorted(decay, reverse=True)
    assert decay[5] > 0.1  # the last step still learns
    assert decay[6:] == pytest.approx([0.1] * 3)


def test_cosine_and_linear_meet_half_way():
    assert factors("cosine")[7] == pytest.approx(0.55)
    assert factors("linear")[7] == pytest.approx(0.55)


def test_all_warm_up_and_no_decay():
    assert factors("cosine", total=4, warmup=4)[3] == 1.0
