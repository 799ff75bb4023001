"""Every form's configurations, dry run and checked where nothing has been downloaded or made."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from cluster.chain import kind_of
from cluster.dry_run import dry_run
from cluster.preflight.check import findings_of
from paltrain.config import EvalConfig, FeaturesConfig, load_config
from paltrain.config.schema import AblationConfig
from tests.cluster.test_check import _own_cache, cache, jobs  # noqa: F401 (fixtures)

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
FEATURES = CONFIGS / "features/pal.yaml"
CHAINS = {
    **{
        first.name.removesuffix("_stage1.yaml"): sorted(
            CONFIGS.glob(first.name.replace("_stage1", "_stage[12]"))
        )
        for first in sorted(CONFIGS.glob("*_stage1.yaml"))
    },
    **{
        "v1/" + first.name.removesuffix("_stage1.yaml"): sorted(
            first.parent.glob(first.name.replace("_stage1", "_stage*"))
        )
        for first in sorted((CONFIGS / "v1").glob("*_stage1.yaml"))
    },
}
STREAMS = {  # of each form, what the dry run says where Whisper and CLAP are not downloaded
    "flamingo": ["sslam              xattn, layers {every: 4}: 50 audio tokens per second"],
    "lal": ["sslam              lal, layers all: 50 audio tokens per second"],
    "lal_ensemble": ["clap               lal, layers all: unknown: encoder 'clap': laion/clap"],
    "pal": ["whisper            plits: unknown: encoder 'whisper': openai/whisper"],
    "pal_unified": [
        "sslam              lal, layers all: 50 audio tokens per second",
        "sslam_summary      plits: 16 audio tokens a clip",
    ],
    "plits": ["sslam              plits: 50 audio tokens per second"],
    "qformer_plits": ["sslam              plits: 64 audio tokens a clip"],
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_dry_run_of_every_form_says_what_is_unknown(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    chain = CHAINS[name]
    said = dry_run(jobs(FEATURES, *chain, cluster="leonardo"))
    assert len(chain) >= 2
    for before in chain[:-1]:
        assert f"starts from          the run {before.stem} of this chain" in said
    assert "\ntrains               connectors; " in said
    assert said.count("step plan            unknown: no manifest") == len(chain)
    for line in STREAMS.get(name, []):
        assert said.count("\n  " + line) == len(chain), line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", CHAINS)
def test_a_check_of_every_form_names_what_is_missing_and_nothing_else(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("PALTRAIN_ACCOUNT", "mine")
    monkeypatch.setattr("cluster.preflight.check.look_at_slurm", lambda jobs, findings: None)
    found = findings_of(jobs(FEATURES, *CHAINS[name], cluster="leonardo"))
    absent = (
        "no manifest data/",
        "manifest data/openaqa",
        "is neither a folder nor in the local hub cache",
    )
    problems = [problem for job in found for problem in job.problems]
    assert problems
    assert [p for p in problems if not any(part in p for part in absent)] == []
    assert not any(job.warnings for job in found)


def test_dry_runs_of_all_forms_load_no_torch(tmp_path):
    chains = [[str(FEATURES), *map(str, chain)] for chain in CHAINS.values()]
    program = (
        "import sys; from tools.launch import main\n"
        f"for chain in {chains!r}: main(['--dry-run', '--cluster', 'leonardo', *chain])\n"
        "print('loaded', [n for n in ('torch', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "HF_HUB_CACHE": str(tmp_path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "loaded []", done.stderr


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "ablations").glob("*.yaml")), ids=lambda p: p.stem
)
def test_what_an_ablation_tests_on_has_features_and_a_split_of_that_name(path):
    ablation = load_config(AblationConfig, [path])
    evaluation = load_config(EvalConfig, [ablation.evaluate])
    prepared = [
        load_config(FeaturesConfig, [config]).manifests
        for config in ablation.prepare
        if kind_of(Path(config)) is FeaturesConfig
    ]
    assert set(evaluation.manifests) <= {name for manifests in prepared for name in manifests}
    for manifest in evaluation.manifests:
        importer = Path(manifest).parent.name
        if importer != "soundscapes":
            assert evaluation.split in import_module(f"paltrain.data.importers.{importer}").SPLITS
