"""The report from what runs leave behind: one page without outside requests, one small JSON."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import soundfile

from paltrain.report.build import build_report
from paltrain.report.collect import BENCH_FILE, find_runs
from paltrain.report.phases import PHASES_FILE
from tests.report.runs import write_quickstart

VOID = {"meta", "link", "img", "br", "hr", "input", "use", "path", "rect", "circle"}


class Page(HTMLParser):
    """Collects ids, references and sources; checks that elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields = dict(attrs)
        self.ids += [fields["id"]] if fields.get("id") else []
        self.sources += [
            value for key, value in attrs if key in ("src", "href", "xlink:href") and value
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def report(runs: Path, out: Path) -> tuple[str, dict[str, object]]:
    written = build_report(
        find_runs(runs),
        out=out,
        bench=runs / BENCH_FILE,
        phases=runs / PHASES_FILE,
        split="test",
        title="a <title>",
        n_clips=3,
    )
    return (
        written.page.read_text(encoding="utf-8"),
        json.loads(written.summary.read_text(encoding="utf-8")),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quickstart(tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="module")
def written(runs: Path) -> tuple[str, dict[str, object]]:
    return report(runs, runs)


def test_the_summary_has_the_figures_by_model_and_task(written: tuple[str, dict]) -> None:
    _, summary = written
    for key in ("accuracy", "chance", "control_shuffled"):
        assert set(summary[key]) == {"lal_stage2", "plits_stage2"}
        assert set(summary[key]["lal_stage2"]) == {"which_sound", "which_first", "describe"}
    assert summary["chance"]["lal_stage2"]["which_first"] == 0.5
    assert summary["accuracy"]["lal_stage2"]["which_sound"] > 0.8
    assert summary["control_shuffled"]["lal_stage2"]["which_sound"] < 0.6
    assert summary["step_time_ratio_plits_over_lal"] == 3.4
    assert summary["peak_memory_ratio_lal_over_plits"] == 0.31
    assert summary["seconds"] == {"recordings": 31.5, "LAL": 146.0, "PLITS": 260.0}
    assert summary["missing"] == {}


def test_the_page_nests_and_asks_nothing_of_the_network(written: tuple[str, dict]) -> None:
    text, _ = written
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    for source in page.sources:
        assert source.startswith(("data:", "#")), source
        if source.startswith("#"):
            assert source[1:] in page.ids
    for reference in re.findall(r"url\(#([^)]+)\)", text):
        assert reference in page.ids
    assert "<script" not in text
    assert "@import" not in text
    assert "a &lt;title&gt;" in text


def test_charts_take_their_colours_from_the_page(written: tuple[str, dict]) -> None:
    text, _ = written
    assert text.count("<svg") == 5
    assert "var(--lal)" in text
    assert not re.search(r"#0[1-8]0[1-8]0[1-8]", text)


def test_clips_play_and_show_every_models_answer(written: tuple[str, dict]) -> None:
    text, _ = written
    clips = re.findall(r"data:audio/flac;base64,([^\"]+)", text)
    assert len(clips) == 3
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(clips[0])))
    assert (rate, len(samples)) == (16000, 16000)
    assert abs(samples).max() > 0.2
    assert text.count("<dt>lal_stage2</dt>") == 9


def test_what_is_not_there_is_named_with_its_remedy(runs: Path, tmp_path: Path) -> None:
    bare = tmp_path / "runs"
    shutil.copytree(runs / "base", bare / "base")
    text, summary = report(bare, bare)
    assert summary["accuracy"] == {}
    assert summary["step_time_ratio_plits_over_lal"] is None
    assert set(summary["missing"]) == {"accuracy", "control", "baseline", "bench", "phases"}
    assert text.count("How to make it") == 4
    assert "tools/bench.py step" in text
    assert "0.0 %" not in text


def test_a_recording_that_is_gone_leaves_a_sentence(runs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    for scores in copy.glob("*/eval/*/scores.json"):
        scores.write_text(scores.read_text().replace("manifest.jsonl", "gone.jsonl"))
    text, _ = report(copy, copy)
    assert "cannot be played: the manifest names no recording" in text
