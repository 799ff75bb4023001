import logging

import pytest

from paltrain.log import get_logger, setup_logging


@pytest.fixture(autouse=True)
def loggers_as_they_were():
    root, ours = (
        logging.getLogger(),
        [logging.getLogger(n) for n in ("paltrain", "cluster", "tools")],
    )
    handlers, level, levels = root.handlers[:], root.level, [each.level for each in ours]
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    for each, its_level in zip(ours, levels, strict=True):
        each.setLevel(its_level)


def test_rank_0_speaks_on_the_console_and_the_others_only_in_the_file(tmp_path, capfd):
    for rank in (0, 1):
        setup_logging(rank=rank, file=tmp_path / "log.txt")
        get_logger("paltrain.test").info("here is %d", rank)
    assert "rank 0 paltrain.test: here is 0" in capfd.readouterr().err
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert ["rank 0" in lines[0], "rank 1" in lines[1], len(lines)] == [True, True, 2]


def test_the_rank_comes_from_the_environment(monkeypatch, capfd):
    monkeypatch.setenv("RANK", "3")
    setup_logging()
    get_logger("paltrain.test").warning("nobody reads this on the console")
    assert capfd.readouterr().err == ""


def test_other_packages_speak_only_from_warnings_on(capfd):
    setup_logging(rank=0)
    logging.getLogger("elsewhere").info("chatter")
    logging.getLogger("elsewhere").warning("trouble")
    err = capfd.readouterr().err
    assert "chatter" not in err
    assert "trouble" in err
