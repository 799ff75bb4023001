import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paltrain.cli import (
    add_slice_options,
    check_merge,
    config_parser,
    load_each,
    load_merged,
    main_guard,
    parse_config_arguments,
    progress_in,
    slice_command,
)
from paltrain.config import TrainConfig
from paltrain.errors import ConfigError, StoreError

LEAST = """
run: {name: x}
model: {llm: some/llm}
data: {manifests: [m.jsonl]}
stage: {steps: 10}
"""


@pytest.fixture
def config_file(tmp_path):
    file = tmp_path / "least.yaml"
    file.write_text(LEAST)
    return file


def test_options_configs_and_settings_come_in_any_order(config_file):
    parser = config_parser("a tool")
    parser.add_argument("--nodes", type=int)
    words = ["run.seed=3", str(config_file), "--nodes", "2", "stage.steps=4", str(config_file)]
    arguments = parse_config_arguments(parser, words)
    assert arguments.nodes == 2
    assert arguments.configs == [config_file, config_file]
    assert arguments.overrides == ["run.seed=3", "stage.steps=4"]
    assert [config.stage.steps for config in load_each(TrainConfig, arguments)] == [4, 4]


def test_a_file_with_an_equals_sign_in_its_name_is_a_config(tmp_path):
    file = tmp_path / "lr=1.yaml"
    file.write_text(LEAST)
    arguments = parse_config_arguments(config_parser("a tool"), [str(file)])
    assert arguments.configs == [file]


def test_default_configs_serve_when_none_is_named():
    parser = config_parser("a tool", default_configs=["configs/x.yaml"])
    assert parse_config_arguments(parser, ["a=1"]).configs == [Path("configs/x.yaml")]


def test_no_config_at_all_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_config_arguments(config_parser("a tool"), [])
    assert caught.value.code == 2
    assert "name at least one CONFIG" in capsys.readouterr().err


@pytest.mark.parametrize("load", [load_each, load_merged])
def test_show_config_prints_yaml_that_loads_back_and_stops(config_file, tmp_path, capsys, load):
    words = [str(config_file), "--show-config", "run.seed=3"]
    with pytest.raises(SystemExit) as caught:
        load(TrainConfig, parse_config_arguments(config_parser("a tool"), words))
    assert caught.value.code == 0
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(capsys.readouterr().out)
    again = parse_config_arguments(config_parser("a tool"), [str(resolved)])
    assert load_merged(TrainConfig, again).run.seed == 3


def test_what_a_user_can_cause_ends_in_one_line_and_code_2(capsys):
    def main(argv):
        raise StoreError("there is no store at x: run tools/precompute_features.py")

    assert main_guard(main, []) == 2
    expected = "error: there is no store at x: run tools/precompute_features.py\n"
    assert capsys.readouterr().err == expected


def test_an_interrupt_ends_with_code_130():
    def main(argv):
        raise KeyboardInterrupt

    assert main_guard(main, []) == 130


def test_a_bug_keeps_its_traceback():
    def main(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main_guard(main, [])


def test_a_closed_pipe_ends_quietly():
    program = (
        "import sys; from paltrain.cli import main_guard\n"
        "sys.exit(main_guard(lambda argv: [print('x' * 100) for _ in range(100000)] and 0))"
    )
    command = f'"{sys.executable}" -c "$0" | head -n 1'
    done = subprocess.run(
        ["bash", "-c", command, program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "x" * 100
    assert done.stderr == ""


def test_a_full_disk_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/index.npy")

    assert main_guard(main) == 2
    expected = (
        "error: the disk cannot take more (/data/index.npy): No space left on device; make room"
    )
    assert capsys.readouterr().err.startswith(expected)
    with pytest.raises(PermissionError):
        main_guard(denied)


def denied(argv: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def slice_arguments(*words: str) -> argparse.Namespace:
    parser = config_parser(None, default_configs=["a.yaml"])
    add_slice_options(parser)
    return parse_config_arguments(parser, words)


def test_a_merge_of_no_slices_or_of_one_slice_is_refused():
    check_merge(slice_arguments("--merge", "64"), None)
    check_merge(slice_arguments(), "3/64")
    with pytest.raises(ConfigError, match="at least 1, but is 0: say the n of slice=i/n"):
        check_merge(slice_arguments("--merge", "0"), None)
    with pytest.raises(ConfigError, match="slice=3/64 asks for one of them: leave one"):
        check_merge(slice_arguments("--merge", "64"), "3/64")


def test_the_command_of_a_slice_can_be_pasted():
    arguments = slice_arguments("my config.yaml", "a=1", "slice=2/8", "--merge", "4")
    made = slice_command("tools/t.py", arguments, "--with-control")
    assert made == "python tools/t.py 'my config.yaml' a=1 --with-control --slice I/4"


def test_a_status_file_follows_the_work_to_its_end(tmp_path):
    file = tmp_path / "deep" / "status.json"

    def told():
        return {k: v for k, v in json.loads(file.read_text()).items() if k != "time"}

    with progress_in(str(file)) as progress:
        assert told() == {"state": "running"}
        progress(1, 3)
        assert told() == {"state": "running", "done": 1, "total": 3}
        progress(3, 3)
    assert told() == {"state": "finished", "done": 3, "total": 3}

    def fail():
        with progress_in(str(file)) as progress:
            progress(2, 3)
            raise ConfigError("broken")

    with pytest.raises(ConfigError, match="broken"):
        fail()
    assert told() == {"state": "failed", "done": 2, "total": 3, "error": "broken"}
    with pytest.raises(KeyboardInterrupt), progress_in(str(file)):
        raise KeyboardInterrupt
    assert told() == {"state": "stopped"}
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match="--heartbeat .* cannot be written"),
        progress_in(str(tmp_path / "file" / "status.json")),
    ):
        pass


def test_sigterm_stops_the_work_and_is_put_back_afterwards(tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)

    def work():
        with progress_in(str(tmp_path / "status.json")):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(SystemExit) as ended:
        work()
    assert ended.value.code == 143
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "stopped"
    assert signal.getsignal(signal.SIGTERM) is before
