"""The repository itself: small files, no machine's paths, configurations that parse."""

import re
import subprocess
from pathlib import Path

import pytest

from cluster.profiles import load_profile
from paltrain.config import EvalConfig, FeaturesConfig, TrainConfig, load_config
from paltrain.config.schema import AblationConfig
from paltrain.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_BYTES = 500_000
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|Users|root|work|mnt)/\w")

# A file's place says which schema it follows; a name that starts with _ is a parent, not a whole.
SCHEMAS = {
    "features": FeaturesConfig,
    "evaluate": EvalConfig,
    "eval": EvalConfig,
    "ablations": AblationConfig,
}
PARTS = ("models", "data", "forms", "curricula")  # fragments of a TrainConfig


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("git, or a git checkout, is needed to know which files are the repository's")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def configs(*, whole: bool) -> list[Path]:
    found = []
    for file in sorted((ROOT / "configs").rglob("*.yaml")):
        folder = file.relative_to(ROOT / "configs").parts[0]
        is_part = folder in PARTS or file.name.startswith("_")
        if folder != "cluster" and is_part != whole:
            found.append(file)
    return found


def schema_of(file: Path) -> type:
    names = [*file.relative_to(ROOT / "configs").parts[:-1], file.stem.split("_")[0]]
    return next((SCHEMAS[name] for name in names if name in SCHEMAS), TrainConfig)


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_no_tracked_file_is_large():
    large = [relative(file) for file in tracked() if file.stat().st_size > MAX_FILE_BYTES]
    assert not large


def test_no_tracked_file_names_a_machines_paths():
    found = []
    for file in tracked():
        if file.suffix in {".py", ".yaml", ".md", ".toml", ".jinja"} or file.name == "Makefile":
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if MACHINE_PATH.search(line) and file != Path(__file__):
                    found.append(f"{relative(file)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("file", configs(whole=True), ids=relative)
def test_a_config_is_whole(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert isinstance(load_config(schema_of(file), [file]), schema_of(file))


@pytest.mark.parametrize("file", configs(whole=False), ids=relative)
def test_a_part_of_a_config_lacks_what_its_children_say_and_has_no_other_fault(file):
    with pytest.raises(ConfigError) as caught:
        load_config(schema_of(file), [file])
    lines = str(caught.value).splitlines()
    allowed = (
        *("must be said", "names no LLM", "exactly one of steps", "faults in"),
        "encoders: must not be empty",
        "cannot train without audio",
    )
    assert not [line for line in lines if not any(words in line for words in allowed)]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs" / "cluster").glob("*.yaml")), ids=relative
)
def test_a_clusters_profile_parses_and_bears_its_files_name(file):
    assert load_profile(str(file)).name == file.stem


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_quickstarts_twins_differ_in_route_and_name_only(stage):
    lal, plits = (
        load_config(TrainConfig, [ROOT / "configs" / "quickstart" / f"{route}_{stage}.yaml"])
        for route in ("lal", "plits")
    )
    for config in (lal, plits):
        config.run.name = config.run.name.replace("plits", "lal")
        config.stage.init_from = (config.stage.init_from or "").replace("plits", "lal")
        (stream,) = config.model.streams.values()
        stream.route = None
    assert lal == plits
