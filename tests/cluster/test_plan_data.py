"""tools/plan_data.py: the dry run's figures without a launch, and a picture of the lengths."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from paltrain.cli import main_guard
from paltrain.model.tokenization import train_tokenizer
from paltrain.report.plan_picture import N_BINS, Panel, Shares, _edges, draw, panels_of
from tests.cluster.material import SOUNDS, empty_store, write_config, write_sounds, write_texts
from tests.cluster.test_launch import ROOT, launch, said
from tools import plan_data


def plan(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, what is printed, and what is said of errors."""
    code = main_guard(plan_data.main, [str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def heard(tmp_path: Path) -> Path:
    """A run on 24 recordings with features and a ready tokenizer; no length table yet."""
    store = write_sounds(tmp_path)
    train_tokenizer(SOUNDS, vocab_size=320).save_pretrained(tmp_path / "tokenizer")
    stream = {"features": str(store), "route": "lal", "connector": {"frame_stack": 2}}
    return write_config(
        tmp_path,
        model={
            "tokenizer": str(tmp_path / "tokenizer"),
            "tokenizer_vocab_size": None,
            "streams": {"mel": stream},
        },
        launch={"processes_per_node": None},
    )


def figures(out: str) -> list[str]:
    """The lines of the streams, the step plan and the audit."""
    lines = out.splitlines()
    end = max(n for n, line in enumerate(lines) if line.startswith("  mel"))
    return lines[lines.index("streams") : end + 1]


def is_picture(path: Path) -> bool:
    pixels = matplotlib.image.imread(path)
    return pixels.shape[0] > 400 and pixels.shape[1] > 1000 and float(pixels.std()) > 0.05


def test_it_says_what_the_dry_run_says_and_draws_the_lengths(
    heard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "made" / "plan.png"
    code, out, err = plan(capsys, heard, "--lengths", "--out", picture)
    assert (code, err) == (0, "")
    for part in (
        "mel                lal, layers all: 12.5 audio tokens per second (25 frames, 2 in a",
        "questions          24 asked an epoch, 24 different, about 24 clips in 24 visits",
        "target tokens",
        " a step and rank",
        "of the ranks' time in a step",
        "kB of features a step, by all nodes",
        "of 24 'train' clips with audio 0 lack features",
        f"picture              {picture}",
    ):
        assert part in out, part
    assert "unknown" not in out
    assert is_picture(picture)
    code, dry = said(launch("--dry-run", heard))
    assert code == 0, dry
    assert len(figures(out)) > 10
    assert figures(dry) == figures(out)
    assert not (tmp_path / "runs").exists()


def test_nodes_and_processes_are_those_asked_for(
    heard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (heard, "--lengths", "--out", tmp_path / "plan.png")
    _, alone, _ = plan(capsys, *words)
    _, many, _ = plan(capsys, *words, "--nodes", 2, "--gpus-per-node", 2)
    assert "world size           1 (1 node x 1 process)" in alone
    assert "world size           4 (2 nodes x 2 processes)" in many

    def said_of(out: str, label: str) -> str:
        return next(line for line in out.splitlines() if line.startswith(f"  {label}"))

    for label in ("read per step", "text tokens"):
        assert said_of(alone, label) == said_of(many, label)
    for label in ("read per node", "imbalance"):
        assert said_of(alone, label) != said_of(many, label)


def test_what_is_missing_is_named_and_the_rest_is_said_and_drawn(
    heard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = plan(capsys, heard, "--out", tmp_path / "plan.png")
    assert code == 0
    assert "text tokens, target tokens, audio tokens, micro-batches" in out
    assert "unknown: no length table for this tokenizer and template; a launch makes it, or" in out
    assert "questions          24 asked an epoch, 24 different, about 24 clips in 24 visits" in out
    assert is_picture(tmp_path / "plan.png")
    gone = ["model.streams.mel.features=nowhere", "--lengths", "--out", tmp_path / "other.svg"]
    code, out, _ = plan(capsys, heard, *gone)
    assert code == 0
    assert "  mel                unknown: no feature store nowhere; make it with" in out
    assert "text tokens        " in out
    assert "tools/precompute_features.py CONFIG" in (tmp_path / "other.svg").read_text()


def test_the_picture_lies_in_the_current_folder_unless_said(
    heard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    _, out, _ = plan(capsys, heard)
    assert out.splitlines()[-1].split() == ["picture", "plan_base.png"]
    assert is_picture(tmp_path / "here" / "plan_base.png")


def test_without_a_manifest_there_is_no_picture(
    heard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (heard, "data.manifests=[nowhere.jsonl]", "--out", tmp_path / "plan.png")
    code, out, _ = plan(capsys, *words)
    assert code == 0
    assert "step plan            unknown: no manifest nowhere.jsonl; make it with" in out
    assert "picture              none: there is no step plan" in out
    assert not (tmp_path / "plan.png").exists()


def test_a_store_without_a_clip_is_told(
    heard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = empty_store(tmp_path / "store", tmp_path / "none")
    words = (heard, f"model.streams.mel.features={none}", "--out", tmp_path / "plan.png")
    code, out, err = plan(capsys, *words)
    assert (code, err) == (0, "")
    assert "no question is left to train on: 24 no features of stream 'mel'" in out
    assert "0 clips in 0 shard(s); of 24 'train' clips with audio 24 lack features" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--nodes", 0], "--nodes must be at least 1, is 0"),
        (["--gpus-per-node", -1], "--gpus-per-node must be at least 1, is -1"),
        (["--out", "plan.txt"], "--out plan.txt must end in one of .png, .svg, .pdf"),
        (["--out", "/dev/null/plan.png"], "--out /dev/null/plan.png cannot be written: File exist"),
        (["other.yaml"], "one CONFIG at a time, not 2"),
        (["data.manifests=[no]", "--lengths"], "--lengths cannot make the length table: no manif"),
        (["data.batch=3"], "data.batch: unknown key"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    heard: Path, capsys: pytest.CaptureFixture[str], words: list[Any], says: str
) -> None:
    code, _, err = plan(capsys, heard, *words)
    assert code == 2
    assert says in err
    assert err.startswith("error: ")


def test_a_tokenizer_that_the_run_trains_itself_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_texts(tmp_path)
    words = (write_config(tmp_path), "--out", tmp_path / "plan.pdf")
    code, out, _ = plan(capsys, *words)
    assert code == 0
    assert "unknown: the tokenizer is trained by the run itself, when it is launched" in out
    assert "no streams: text only" in out
    assert "read per step" not in out
    code, _, err = plan(capsys, *words, "--lengths")
    assert code == 2
    assert "--lengths cannot make the length table: the tokenizer is trained by the run" in err


def test_it_loads_no_torch(heard: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from tools.plan_data import main\n"
        f"main([{str(heard)!r}, '--out', {str(tmp_path / 'plan.png')!r}])\n"
        "print('loaded', [n for n in ('torch', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "loaded []", done.stderr
    assert (tmp_path / "plan.png").exists()


def test_a_picture_of_one_length_and_of_none(tmp_path: Path) -> None:
    panels = [
        Panel("one", "clips", "#123456", np.full(9, 40)),
        Panel("far apart", "clips", "#123456", np.array([1, 30_000])),
        Panel("none", "clips", "#123456", np.zeros(0, np.int64)),
        Panel("unknown", "clips", "#123456", "nobody knows " * 30),
    ]
    draw(panels, tmp_path / "plan.svg", title="a run", subtitle="of little " * 30)
    drawn = (tmp_path / "plan.svg").read_text()
    assert "at most 30,000" in drawn
    assert "unknown: no clips" in drawn
    assert drawn.count("unknown: nobody knows") == 1
    assert N_BINS < 100


def test_a_long_clip_does_not_squeeze_the_others(tmp_path: Path) -> None:
    tokens = np.append(np.arange(10, 50).repeat(3), [1125])
    edges, last = _edges(tokens)
    counts, _ = np.histogram(np.minimum(tokens, last + 1), edges)
    assert (counts.tolist(), last) == ([3] * 40 + [1], 49)
    edges, last = _edges(tokens[:-1])
    assert (edges[0], edges[-1], last) == (9.5, 49.5, 49)
    panels = [
        Panel("audio", "clips", "#123456", tokens),
        Shares("parts", {"mine": 0.75, "others": 0.25}),
    ]
    draw(panels, tmp_path / "plan.svg", title="a run", subtitle="")
    drawn = (tmp_path / "plan.svg").read_text()
    for part in ("tokens; last bar: 1 of 121 above 49", "clips (each once)", "75.0 %", "others"):
        assert part in drawn, part


def test_panels_count_what_an_epoch_asks(heard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.run_data import RunData, look_at
    from paltrain.config.load import load_config
    from paltrain.config.schema import TrainConfig

    plan(capsys, heard, "--lengths", "--out", heard.with_name("plan.png"))
    data = look_at(load_config(TrainConfig, [heard], []), world_size=1)
    assert isinstance(data, RunData)
    assert data.plan is not None
    assert data.summary is not None
    panels = panels_of(
        data.plan,
        routes={"mel": "lal", "clap": "plits"},
        audio_tokens={"mel": lambda frames: -(-frames // 2)},
        no_text="",
        no_stores={"clap": "no store"},
    )
    text, target, mel, clap = (panel.tokens for panel in panels)
    assert text.sum() == data.summary.n_text_tokens
    assert target.sum() == data.summary.n_target_tokens
    assert mel.sum() == data.summary.n_audio_tokens
    assert clap == "no store"
    assert panels[2].title == "Audio tokens per clip: mel, by lal"
