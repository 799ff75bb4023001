"""Filters and mixtures: which questions are asked, how often, and what a run says about it."""

import logging
import os
from collections import Counter
from dataclasses import replace

import pytest

from paltrain.config.schema import DataConfig, MixtureConfig
from paltrain.data.build import build_plan
from paltrain.data.index import Corpus
from paltrain.data.lengths import build_length_table
from paltrain.data.loader import build_loader
from paltrain.data.manifest import Clip, write_manifest
from paltrain.data.mixture import PartShare
from paltrain.data.summary import plan_summary
from paltrain.errors import ManifestError, TrainingError
from tests.data.conftest import half_as_many, tiny_clips, tiny_features, write_store


def clips_of_two_datasets() -> list[Clip]:
    """Clips 0 to 7 are speech, the others sounds; number n lasts 1 + n seconds, 3 is text."""
    return [
        replace(clip, dataset="speech" if number < 8 else "sounds")
        for number, clip in enumerate(tiny_clips())
    ]


@pytest.fixture
def manifests(tmp_path) -> list[str]:
    """Clips 0 to 11 in one manifest, the others in another."""
    clips = clips_of_two_datasets()
    paths = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    for path, part in zip(paths, (clips[:12], clips[12:]), strict=True):
        write_manifest(path, part)
    return [str(path) for path in paths]


@pytest.fixture
def plan_of(manifests, tmp_path, render):
    corpus = Corpus.open(manifests)
    store = write_store(tmp_path / "features", tiny_features(clips_of_two_datasets()))
    table = build_length_table(corpus, render, tokenizer_hash="t", template_hash="r")

    def build(*, seed=3, mixture=None, **changes):
        config = DataConfig(
            manifests=manifests,
            mixture={name: MixtureConfig(**part) for name, part in (mixture or {}).items()},
            **{"questions_per_visit": 2, "batch_questions": 8, **changes},
        )
        return build_plan(
            config,
            corpus=corpus,
            stores={"mel": store},
            lengths=table,
            audio_tokens={"mel": half_as_many},
            seed=seed,
        )

    return build


def asked_by(plan) -> Counter:
    """By question id, how often the first epoch asks it."""
    epoch = plan.planner.order.epoch(0)
    numbers, _ = epoch.between(0, epoch.n_visits)
    ids = [q.id for n in range(plan.corpus.n_clips) for q in plan.corpus.clip(n).questions]
    return Counter(ids[number] for number in numbers.tolist())


def questions_where(wanted) -> Counter:
    clips = clips_of_two_datasets()
    return Counter(q.id for n, clip in enumerate(clips) for q in clip.questions if wanted(n, q))


@pytest.mark.parametrize(
    ("filters", "wanted", "reason"),
    [
        ({"datasets": ["speech"]}, lambda n, q: n < 8, "not of data.datasets"),
        ({"tasks": ["which"]}, lambda n, q: q.task == "which", "not of data.tasks"),
        (
            {"min_duration_s": 5},  # clip 3 is text, and has no recording that were too short
            lambda n, q: n >= 4 or n == 3,
            "shorter than data.min_duration_s",
        ),
        (
            {"max_duration_s": 6.0},  # a question of clip 5 hears clip 6, of 7 seconds, as well
            lambda n, q: n <= 5 and q.id != "q5.0",
            "longer than data.max_duration_s",
        ),
    ],
)
def test_a_filter_leaves_out_what_is_not_asked_for_and_says_why(plan_of, filters, wanted, reason):
    plan = plan_of(**filters)
    assert asked_by(plan) == questions_where(wanted)
    n_left_out = len(questions_where(lambda n, q: True)) - len(questions_where(wanted))
    assert plan.left_out == {reason: n_left_out}


def test_parts_select_by_manifest_and_filters_and_add_up(plan_of, manifests):
    mixture = {
        "speech": {"datasets": ["speech"], "weight": 2.0},
        "second": {"manifest": manifests[1]},
        "counting": {"tasks": ["count"], "max_duration_s": 10.0},
    }
    plan = plan_of(mixture=mixture, max_duration_s=23.0)
    expected = questions_where(lambda n, q: n < 8) + questions_where(lambda n, q: n < 8)
    expected += questions_where(lambda n, q: 12 <= n < 23)
    expected += questions_where(lambda n, q: q.task == "count" and n <= 9)
    assert asked_by(plan) == expected
    assert plan.n_clips == 8 + 2 + 11
    # clip 23 has four questions; 10 has three, 11 four, and one of clip 9's two is no counting
    assert plan.left_out == {
        "longer than data.max_duration_s": 4,
        "in no part of data.mixture": 3 + 4 + 1,
    }


def test_a_part_may_name_its_manifest_by_another_spelling(plan_of, manifests):
    folder, name = os.path.split(manifests[1])
    for spelling in (f"{folder}/./{name}", f"{folder}/../{os.path.basename(folder)}/{name}"):
        plan = plan_of(mixture={"second": {"manifest": spelling}})
        assert asked_by(plan) == questions_where(lambda n, q: n >= 12)


def test_a_fixed_share_of_a_part_is_asked_once_more(plan_of):
    n = len(questions_where(lambda n, q: n < 8))
    asked = asked_by(plan_of(mixture={"speech": {"datasets": ["speech"], "weight": 2.3}}))
    assert sorted(asked.values()) == [2] * (n - round(0.3 * n)) + [3] * round(0.3 * n)
    again = asked_by(plan_of(mixture={"speech": {"datasets": ["speech"], "weight": 2.3}}, seed=4))
    renamed = asked_by(plan_of(mixture={"voices": {"datasets": ["speech"], "weight": 2.3}}))
    assert asked == again
    assert asked != renamed


def test_what_a_part_leaves_out_is_counted(plan_of):
    mixture = {"all": {"max_questions": 20, "weight": 0.5}}
    plan = plan_of(mixture=mixture)
    assert sorted(asked_by(plan).values()) == [1] * 10
    assert plan.left_out == {"beyond weight or max_questions of their part of data.mixture": 50}
    less = asked_by(plan_of(mixture={"all": {"max_questions": 20, "weight": 0.2}}))
    assert less.keys() < asked_by(plan).keys()


def test_a_run_says_what_each_part_is_of_an_epoch(plan_of, caplog):
    n_speech, n_sounds = (len(questions_where(lambda n, q, s=s: (n < 8) == s)) for s in (1, 0))
    with caplog.at_level(logging.INFO, logger="paltrain"):
        plan = plan_of(
            mixture={
                "speech": {"datasets": ["speech"], "weight": 4},
                "sounds": {"datasets": ["sounds"]},
            }
        )
    total = 4 * n_speech + n_sounds
    summary = plan_summary(plan, world_size=2)
    assert summary.mixture == {
        "speech": PartShare(n_speech, 8, 4 * n_speech, 4 * n_speech / total),
        "sounds": PartShare(n_sounds, 16, n_sounds, n_sounds / total),
    }
    assert summary.n_questions == total
    assert summary.steps_per_epoch == plan.planner.steps_per_epoch == -(-total // 8)
    assert f"speech asks {n_speech} questions about 8 clips, {4 * n_speech} times" in caplog.text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"datasets": ["speach"]}, "unknown dataset in data.datasets 'speach' .did you mean"),
        ({"mixture": {"a": {"tasks": ["whihc"]}}}, "unknown task in data.mixture.a.tasks 'whihc'"),
        (
            {"mixture": {"a": {"manifest": "third"}}},
            "unknown manifest in data.mixture.a.manifest 'third'",
        ),
        (
            {"mixture": {"a": {}, "b": {"datasets": ["sounds"], "max_duration_s": 1}}},
            "data.mixture.b selects no question",
        ),
        ({"mixture": {"few": {"weight": 0.001}}}, "data.mixture.few.weight=0.001 of 60 questions"),
        (
            {"mixture": {"a": {"weight": 1e9}, "b": {"weight": 2e9, "max_questions": 1}}},
            r"asks 62000000000 questions an epoch, over 2147483647: .* of a \(it asks 60000000000",
        ),
        ({"datasets": ["sounds"], "max_duration_s": 1}, "no question is left"),
    ],
)
def test_a_filter_that_cannot_be_is_named(plan_of, changes, says):
    with pytest.raises(ManifestError, match=says):
        plan_of(**changes)


@pytest.mark.parametrize(
    "part", [{"weight": 2.0}, {"weight": 0.9}, {"max_questions": 7}, {"datasets": ["speech"]}]
)
def test_a_checkpoint_of_another_mixture_is_refused(plan_of, render, part):
    state = plan_of(mixture={"all": {}}).planner.start()
    assert state == plan_of().planner.start()  # everything once, by whatever name
    changed = plan_of(mixture={"all": part})
    with pytest.raises(TrainingError, match="differs in questions"):
        build_loader(changed, DataConfig(), render=render, rank=0, world_size=1, state=state)
