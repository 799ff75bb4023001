"""The loader: each rank's share of the same steps, read ahead, resumable, patient."""

import json
import math
import re
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from paltrain.config.schema import DataConfig
from paltrain.data import readers
from paltrain.data.build import build_plan
from paltrain.data.lengths import build_length_table
from paltrain.data.loader import build_loader
from paltrain.data.plan import DataState
from paltrain.data.shards import shard_path
from paltrain.data.summary import plan_summary
from paltrain.errors import ConfigError, ManifestError, TrainingError
from tests.data.conftest import half_as_many, tiny_clips, tiny_features, write_store

CONFIG = DataConfig(
    manifests=["manifest.jsonl"],
    questions_per_visit=2,
    batch_questions=8,
    text_token_budget=60,
    audio_token_budget=40,
    window_shards=2,
)


@pytest.fixture
def table(corpus, render):
    return build_length_table(corpus, render, tokenizer_hash="t", template_hash="r")


@pytest.fixture
def plan_of(corpus, store, table):
    """Plans the tiny corpus under changed settings."""

    def build(stores=None, lengths=table, seed=3, **changes):
        return build_plan(
            replace(CONFIG, **changes),
            corpus=corpus,
            stores={"mel": store} if stores is None else stores,
            lengths=lengths,
            audio_tokens={"mel": half_as_many},
            seed=seed,
        )

    return build


@pytest.fixture
def open_loader(plan_of, render):
    def build(plan=None, *, config=CONFIG, rank=0, world_size=1, **options):
        return build_loader(
            plan or plan_of(), config, render=render, rank=rank, world_size=world_size, **options
        )

    return build


def steps_of(loader):
    with loader:
        return list(loader)


def ids_of(step) -> list[str]:
    return [name for batch in step.batches if batch is not None for name in batch.ids]


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_together_see_what_one_rank_sees(open_loader, world_size):
    alone = steps_of(open_loader(n_steps=12))
    ranks = [
        steps_of(open_loader(rank=rank, world_size=world_size, n_steps=12))
        for rank in range(world_size)
    ]
    for number, one in enumerate(alone):
        together = [rank[number] for rank in ranks]
        assert len({len(step.batches) for step in together}) == 1
        assert {step.n_target_tokens for step in together} == {one.n_target_tokens}
        assert {step.state_after for step in together} == {one.state_after}
        assert sorted(n for step in together for n in ids_of(step)) == sorted(ids_of(one))


def test_an_epoch_asks_every_question_once(open_loader, plan_of):
    plan = plan_of()
    with open_loader(plan) as loader:
        seen = []
        for step in loader:
            seen += ids_of(step)
            if step.state_after.epoch == 1:
                break
    assert sorted(seen) == sorted(q.id for clip in tiny_clips() for q in clip.questions)
    assert loader.state.epoch == 1


def test_weights_of_a_step_add_up_to_its_denominator_and_batches_keep_their_budgets(open_loader):
    for step in steps_of(open_loader(n_steps=10)):
        batches = [batch for batch in step.batches if batch is not None]
        assert sum(float(b.target_weights.sum()) for b in batches) == step.n_target_tokens
        assert sum(len(b.token_ids) for b in batches) == step.stats["text_tokens"]
        audio = [int(half_as_many(b.features["mel"].n_frames).sum()) for b in batches]
        assert sum(audio) == step.stats["audio_tokens"]
        assert max(audio) <= 40
        assert max(len(b.token_ids) for b in batches) <= 60
        assert step.n_questions == len(ids_of(step))
        assert step.data_wait_s >= 0


def test_going_on_from_a_state_continues_the_same_steps_at_any_world_size(open_loader):
    whole = steps_of(open_loader(n_steps=14))
    state = DataState.from_dict(json.loads(json.dumps(whole[4].state_after.to_dict())))
    rest = steps_of(open_loader(state=state, n_steps=9))
    assert [ids_of(s) for s in rest] == [ids_of(s) for s in whole[5:]]
    for a, b in zip(rest, whole[5:], strict=True):
        assert torch.equal(
            torch.cat([x.features["mel"].values for x in a.batches]),
            torch.cat([x.features["mel"].values for x in b.batches]),
        )
    halves = [steps_of(open_loader(state=state, n_steps=9, rank=r, world_size=2)) for r in (0, 1)]
    for one, left, right in zip(rest, *halves, strict=True):
        assert sorted(ids_of(left) + ids_of(right)) == sorted(ids_of(one))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"questions_per_visit": 1}, "plan"),
        ({"batch_questions": 9}, "plan"),
        ({"text_token_budget": 61}, "plan"),
        ({"tasks": ["count"]}, "questions"),
        ({"max_audio_tokens": 9, "truncate_audio": True}, "audio_tokens"),
    ],
)
def test_a_checkpoint_of_another_order_is_refused_by_name(open_loader, plan_of, changes, part):
    state = plan_of().planner.start()
    with pytest.raises(TrainingError, match=f"differs in .*{part}"):
        open_loader(plan_of(**changes), state=state)


def test_a_store_may_grow_while_a_run_trains_but_not_change_what_it_reads(plan_of, store, tmp_path):
    before = plan_of().planner.fingerprint
    features = tiny_features(tiny_clips())
    later = {f"later{n}": np.ones((3, store.width), np.float16) for n in range(7)}
    grown = write_store(tmp_path / "features", {**features, **later})
    assert len(grown) == len(store) + 7
    assert plan_of({"mel": grown}).planner.fingerprint == before
    for clip in ("clip1", "clip6"):  # one that is asked about, one that a question hears besides
        other = {**features, clip: features[clip] + 1}
        changed = write_store(tmp_path / f"other {clip}", other)
        assert plan_of({"mel": changed}, tasks=["which"]).planner.fingerprint != (
            plan_of({"mel": store}, tasks=["which"]).planner.fingerprint
        )


def test_settings_that_do_not_touch_the_order_do_not_change_its_name(plan_of):
    changed = plan_of(prefetch_steps=1, max_bad_samples=0)
    assert changed.planner.fingerprint == plan_of().planner.fingerprint


def test_reading_ahead_stops_at_the_queue_and_ends_with_the_loader(
    open_loader, plan_of, render, monkeypatch
):
    monkeypatch.setattr(readers, "WAIT_S", -math.inf)  # threads help at once
    rendered = []

    def counting(clip, question):
        rendered.append(question.id)
        return render(clip, question)

    loader = build_loader(
        plan_of(), replace(CONFIG, prefetch_steps=2), render=counting, rank=0, world_size=1
    )
    with loader:
        next(loader)
        threading.Event().wait(0.5)
        assert {t.name for t in threading.enumerate() if t.name.startswith("reader")}
        assert (
            len(rendered) < 6 * 9
        )  # one taken, two in the queue, one in hand: of about 8 questions
    assert not [t for t in threading.enumerate() if t.name.startswith(("loader", "reader"))]
    with pytest.raises(StopIteration):
        next(loader)


def test_an_error_in_the_thread_reaches_the_loop(plan_of):
    def failing(clip, question):
        raise ManifestError("no such tokenizer")

    loader = build_loader(plan_of(), CONFIG, render=failing, rank=0, world_size=1)
    with pytest.raises(ManifestError, match="no such tokenizer"):
        next(loader)
    assert not [t for t in threading.enumerate() if t.name == "loader"]


def test_steps_kept_by_the_consumer_are_not_overwritten(open_loader):
    steps = steps_of(open_loader(n_steps=10))
    number_of = {q.id: n for n, clip in enumerate(tiny_clips()) for q in clip.questions}
    for batch in (b for step in steps for b in step.batches):
        features = batch.features["mel"]
        clips = np.repeat(np.arange(len(features.n_frames)), features.n_frames)
        heard = {int(features.values[clips == c, 0].unique()) for c in range(batch.n_clips)}
        assert heard - {6} == {number_of[name] for name in batch.ids} - {3, 6}


def damage(folder, clip_features) -> None:
    """Overwrite a clip's frames in its shard."""
    needle = np.ascontiguousarray(clip_features).tobytes()
    for shard in folder.glob("*.tar"):
        data = shard.read_bytes()
        if needle in data:
            shard.write_bytes(data.replace(needle, b"\x77" * len(needle)))
            return
    pytest.fail("the clip is in no shard")


def test_a_bad_clip_keeps_the_run_going_and_is_written_down(open_loader, plan_of, tmp_path, corpus):
    features = tiny_features(tiny_clips())
    store = write_store(tmp_path / "torn", features)
    whole = steps_of(open_loader(plan_of({"mel": store}), n_steps=9))
    damage(tmp_path / "torn", features["clip10"])
    bad = tmp_path / "bad_samples.jsonl"
    torn = steps_of(open_loader(plan_of({"mel": store}), n_steps=9, bad_samples=bad))
    assert [ids_of(s) for s in torn] == [ids_of(s) for s in whole]
    assert [s.n_target_tokens for s in torn] == [s.n_target_tokens for s in whole]
    entries = [json.loads(line) for line in bad.read_text().splitlines()]
    lost = {name for entry in entries for name in entry["questions"]}
    assert lost <= {"q10.0", "q10.1", "q10.2"}
    assert lost
    assert {(entry["clip"], entry["stream"]) for entry in entries} == {("clip10", "mel")}
    assert all("clip10" in entry["reason"] for entry in entries)
    assert torn[-1].stats["bad_samples"] == len(entries)


def cut(tar):
    tar.write_bytes(tar.read_bytes()[:2000])


HARMS = {
    "torn": (cut, "is torn"),
    "gone": (lambda tar: tar.unlink(), "cannot be opened: No such file"),
    "noise": (lambda tar: tar.write_bytes(b"x" * tar.stat().st_size), r"not those .*\(checksum\)"),
    "another": (lambda tar: tar.write_bytes(shard_path(tar.parent, 3).read_bytes()), "clip 'clip"),
    "half-written": (lambda tar: tar.rename(tar.with_name(f".{tar.name}.0a")), "cannot be opened"),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("reader_threads", [1, 4])
def test_a_shard_damaged_while_training_costs_its_own_clips_alone(
    open_loader, plan_of, tmp_path, monkeypatch, harm, reader_threads
):
    """Shard 2 of five: clips 11 to 15, since clip 3 is text."""
    monkeypatch.setattr(readers, "WAIT_S", -math.inf)
    store = write_store(tmp_path / "store", tiny_features(tiny_clips()))
    plan, whole = plan_of({"mel": store}), steps_of(open_loader(plan_of({"mel": store}), n_steps=8))
    act, says = HARMS[harm]
    act(shard_path(tmp_path / "store", 2))
    bad = tmp_path / "bad_samples.jsonl"
    config = replace(CONFIG, reader_threads=reader_threads)
    rest = steps_of(open_loader(plan, config=config, n_steps=8, bad_samples=bad))
    assert [ids_of(step) for step in rest] == [ids_of(step) for step in whole]
    entries = [json.loads(line) for line in bad.read_text().splitlines()]
    assert entries
    assert {entry["clip"] for entry in entries} <= {f"clip{n}" for n in range(11, 16)}
    assert all(re.search(says, entry["reason"]) for entry in entries), entries[0]
    lost = {question for entry in entries for question in entry["questions"]}
    for before, after in zip(whole, rest, strict=True):
        n_lost = sum(name in lost for name in ids_of(after))
        weights = [
            sum(float(b.target_weights.sum()) for b in step.batches if b is not None)
            for step in (before, after)
        ]
        assert (weights[1] < weights[0]) == bool(n_lost)


def test_too_many_bad_clips_end_the_run(open_loader, plan_of, tmp_path):
    features = tiny_features(tiny_clips())
    store = write_store(tmp_path / "torn", features)
    for name in ("clip10", "clip11", "clip12"):
        damage(tmp_path / "torn", features[name])
    config = replace(CONFIG, max_bad_samples=1)
    with pytest.raises(TrainingError, match=r"2 clips could not be read, over data.max_bad_sam"):
        steps_of(open_loader(plan_of({"mel": store}), config=config, n_steps=9))


def test_clips_without_features_are_left_out_and_counted(plan_of, tmp_path):
    features = tiny_features(tiny_clips())
    del features["clip1"], features["clip6"]
    plan = plan_of({"mel": write_store(tmp_path / "fewer", features)})
    # clip 1 has two questions, clip 6 three, and the first of clip 5 hears clip 6 as well
    (reason,) = plan.left_out
    assert reason.startswith("no features of stream 'mel'")
    assert plan.left_out[reason] == 6
    assert plan.n_clips == 22


def test_clips_over_max_audio_tokens_are_left_out_or_cut(plan_of):
    over = plan_of(max_audio_tokens=10)  # clip n has 5 + n frames: more than 20 from clip 16 on
    (reason,) = over.left_out
    assert reason.startswith("over data.max_audio_tokens by stream 'mel'")
    cut = plan_of(max_audio_tokens=10, truncate_audio=True)
    assert cut.left_out == {}
    assert cut.streams["mel"].n_frames.max() == 20


def test_a_run_without_streams_trains_on_text_alone(corpus, plan_of):
    def as_text(clip, question):
        from tests.data.conftest import render_words

        return render_words(replace(clip, audio=None), replace(question, clips=None))

    table = build_length_table(corpus, as_text, tokenizer_hash="t", template_hash="r-text")
    loader = build_loader(
        plan_of(stores={}, lengths=table), CONFIG, render=as_text, rank=0, world_size=1, n_steps=2
    )
    for step in steps_of(loader):
        assert all(batch.n_clips == 0 and not batch.features for batch in step.batches)
        assert step.stats["audio_tokens"] == 0


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"split": "trian"}, ManifestError, "did you mean 'train'"),
        ({"tasks": ["whihc"]}, ManifestError, "did you mean 'which'"),
        ({"window_shards": 0}, ConfigError, "data.window_shards is 0: it must be at least 1"),
        ({"questions_per_visit": 9}, ConfigError, "over data.batch_questions=8"),
        ({"audio_token_budget": 10}, ManifestError, "over data.audio_token_budget=10"),
        ({"text_token_budget": 6}, ManifestError, "question .* over data.text_token_budget=6"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_training(plan_of, changes, error, says):
    with pytest.raises(error, match=says):
        plan_of(**changes)


def test_a_loader_needs_a_length_table(plan_of, open_loader):
    with pytest.raises(ManifestError, match="plan_data.py CONFIG --lengths"):
        open_loader(plan_of(lengths=None))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_summary_counts_the_bytes_that_the_nodes_read(open_loader, plan_of, tmp_path, dtype):
    """As many as the ranks' loaders put into their batches, in the first steps."""
    store = write_store(tmp_path / dtype, tiny_features(tiny_clips()), dtype=dtype)
    plan = plan_of({"mel": store}, questions_per_visit=3)
    summary = plan_summary(plan, world_size=4, n_nodes=2, n_steps=5)
    read = np.zeros((2, 5))
    for rank in range(4):
        for number, step in enumerate(
            steps_of(open_loader(plan, rank=rank, world_size=4, n_steps=5))
        ):
            frames = sum(int(b.features["mel"].n_frames.sum()) for b in step.batches if b)
            read[rank // 2, number] += frames * {"float16": 2 * 4, "int8": 4 + 4}[dtype]
    assert summary.bytes_per_step == pytest.approx(read.sum(axis=0).mean())
    assert summary.bytes_per_step_and_node == pytest.approx(read.max(axis=0).mean())
    assert summary.bytes_per_step / 2 <= summary.bytes_per_step_and_node < summary.bytes_per_step


def test_a_summary_tells_what_is_known(plan_of, table):
    n_questions = sum(len(clip.questions) for clip in tiny_clips())
    full = plan_summary(plan_of(), world_size=4)
    assert full.n_questions == n_questions
    assert full.steps_per_epoch == -(-n_questions // 8)
    assert full.n_target_tokens == table.rows["target"].sum()
    assert full.n_audio_tokens > 0
    assert full.imbalance >= 1
    blind = plan_summary(plan_of(stores={}), world_size=4, audio_known=False)
    assert blind.n_text_tokens == full.n_text_tokens
    assert blind.n_audio_tokens is None
    assert blind.imbalance is None
    assert blind.bytes_per_step is None
    bare = plan_summary(plan_of(lengths=None), world_size=4)
    assert (bare.n_visits, bare.steps_per_epoch) == (full.n_visits, full.steps_per_epoch)
    assert bare.n_text_tokens is None
