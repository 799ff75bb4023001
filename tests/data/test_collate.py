"""Packing: what questions share, whose features go where, what a bad clip leaves behind."""

import math
import threading
import time
from itertools import count

import numpy as np
import pytest
import torch

from paltrain.batch import RenderedQuestion
from paltrain.data import readers
from paltrain.data.collate import Asked, BufferPool, Collator, pack
from paltrain.data.lengths import build_length_table
from paltrain.data.plan import Visit
from paltrain.data.readers import Readers
from paltrain.data.selection import StreamFeatures, join_store
from paltrain.errors import ManifestError, StoreError, TrainingError
from tests.data.conftest import WIDTH, tiny_clips, tiny_features, write_store


@pytest.fixture
def stream(store, corpus) -> StreamFeatures:
    return join_store("mel", store, corpus)[0]


def ask(*texts: str, clips=(), targets="", name="q") -> Asked:
    """Texts of one-letter tokens; those in `targets` are to be predicted."""
    ids = tuple(np.array([ord(c) for c in text], np.int64) for text in texts)
    masks = tuple(np.array([c in targets for c in text], bool) for text in texts)
    return Asked(name, RenderedQuestion(ids, masks), tuple(clips))


def drawn(batch) -> list[str]:
    """Each piece as `parent:text`, a clip as `parent:*`."""
    rows = np.cumsum(batch.n_tokens)
    ids = "".join(map(chr, batch.token_ids.tolist()))
    return [
        f"{parent}:" + ("*" if clip else ids[end - n : end])
        for parent, clip, n, end in zip(
            batch.parent, batch.is_clip, batch.n_tokens, rows, strict=True
        )
    ]


def weights(batch) -> dict[str, float]:
    """Weight of each predicted letter."""
    letters = map(chr, batch.target_ids.tolist())
    return dict(zip(letters, batch.target_weights.tolist(), strict=True))


def test_questions_of_a_visit_share_trunk_and_clip(stream):
    visit = [ask("ab", "cd", clips=[1]), ask("ab", "ef", clips=[1])]
    batch = pack([visit], [stream])
    assert drawn(batch) == ["-1:ab", "0:*", "1:cd", "1:ef"]
    assert batch.features["mel"].n_frames.tolist() == [6]


def test_visits_share_nothing(stream):
    batch = pack([[ask("ab", "cd", clips=[1])], [ask("ab", "ef", clips=[1])]], [stream])
    assert drawn(batch) == ["-1:ab", "0:*", "1:cd", "-1:ab", "3:*", "4:ef"]


def test_another_trunk_or_clip_is_not_shared(stream):
    visit = [
        ask("ab", "cd", clips=[1]),
        ask("xy", "cd", clips=[1]),
        ask("ab", "and", "ef", clips=[1, 6]),
        ask("ab", "and", "gh", clips=[1, 7]),
    ]
    assert drawn(pack([visit], [stream])) == [
        "-1:ab", "0:*", "1:cd",
        "-1:xy", "3:*", "4:cd",
        "-1:ab", "6:*", "7:and", "8:*", "9:ef",
        "-1:ab", "11:*", "12:and", "13:*", "14:gh",
    ]  # fmt: skip


def test_equal_branches_stay_two_conversations(stream):
    batch = pack([[ask("ab", "cd", clips=[1]), ask("ab", "cd", clips=[1])]], [stream])
    assert len(batch.leaves) == 2


def test_targets_on_a_shared_trunk_weigh_as_many_times_as_it_has_questions(stream):
    visit = [
        ask("ab", "cd", clips=[1], targets="bd"),
        ask("ab", "ef", clips=[1], targets="bf"),
        ask("ab", "gh", clips=[1], targets="bh"),
    ]
    assert weights(pack([visit], [stream])) == {"b": 3, "d": 1, "f": 1, "h": 1}


def test_clips_without_text_between_them_follow_each_other(stream):
    batch = pack([[ask("ab", "", "cd", clips=[1, 6])]], [stream])
    assert drawn(batch) == ["-1:ab", "0:*", "1:*", "2:cd"]


def test_text_alone_needs_no_clip(stream):
    batch = pack([[ask("abc", targets="c")]], [stream])
    assert drawn(batch) == ["-1:abc"]
    assert batch.features["mel"].values.shape == (0, WIDTH)


def test_each_clip_gets_its_own_frames_in_the_order_of_pieces(stream):
    batch = pack([[ask("ab", "cd", clips=[7])], [ask("ab", "also", "ef", clips=[2, 6])]], [stream])
    packed = batch.features["mel"]
    assert packed.n_frames.tolist() == [12, 7, 11]
    assert packed.values.dtype == torch.float16
    assert packed.values[:, 0].tolist() == [7.0] * 12 + [2.0] * 7 + [6.0] * 11


def test_streams_of_one_store_share_their_frames_where_they_hear_the_same(store, corpus):
    """Two ways of one encoder's features: read once, moved once."""
    full, summary = (join_store(name, store, corpus)[0] for name in ("full", "summary"))
    cut = join_store("cut", store, corpus, max_frames=5, truncate=True)[0]
    batch = pack([[ask("a", "b", clips=[1])], [ask("a", "c", clips=[6])]], [full, summary, cut])
    values = {name: features.values for name, features in batch.features.items()}
    assert values["summary"].data_ptr() == values["full"].data_ptr() != values["cut"].data_ptr()
    assert [len(values[name]) for name in ("full", "summary", "cut")] == [17, 17, 10]
    moved = batch.to("meta").features
    assert moved["summary"].values is moved["full"].values is not moved["cut"].values


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_truncated_clip_keeps_its_beginning(tmp_path, corpus, dtype):
    store = write_store(tmp_path / dtype, tiny_features(tiny_clips()), dtype=dtype)
    store_frames = store.read("clip7")
    assert store_frames.tolist() == [[7.0] * WIDTH] * 12
    stream, over = join_store("mel", store, corpus, max_frames=8, truncate=True)
    assert not over.any()
    values = pack([[ask("ab", "cd", clips=[7])]], [stream]).features["mel"].values
    assert np.array_equal(values.numpy(), store_frames[:8])


def test_as_many_clips_as_placeholders(stream):
    with pytest.raises(ManifestError, match="1 audio placeholders and 2 clips"):
        pack([[ask("ab", "cd", clips=[1, 2])]], [stream])


class Torn:
    """A stream whose store cannot read one clip."""

    def __init__(self, stream: StreamFeatures, clip: int) -> None:
        self._stream, self._clip = stream, clip
        self.name, self.n_frames, self.width = stream.name, stream.n_frames, stream.width
        self.store = self  # shared with no other

    def read_into(self, clip, out) -> None:
        if clip == self._clip:
            out[:] = np.nan
            raise StoreError(f"clip{clip} is torn")
        self._stream.read_into(clip, out)


def test_a_bad_clip_keeps_its_place_and_weighs_nothing(stream):
    visits = [
        [ask("ab", "cd", clips=[1], targets="bd", name="one")],
        [
            ask("xy", "ef", clips=[2], targets="yf", name="two"),
            ask("xz", "and", "gh", clips=[2, 6], targets="zh", name="three"),
        ],
    ]
    whole, bad = pack(visits, [stream]), []
    batch = pack(visits, [Torn(stream, 6)], on_bad=bad.append)
    assert drawn(batch) == drawn(whole)
    assert batch.features["mel"].n_frames.tolist() == whole.features["mel"].n_frames.tolist()
    heard = batch.features["mel"].values[:, 0].tolist()
    assert heard == [1.0] * 6 + [2.0] * 7 + [2.0] * 7 + [0.0] * 11
    assert weights(batch) == {"b": 1, "d": 1, "y": 1, "f": 1, "z": 0, "h": 0}
    (sample,) = bad
    assert (sample.clip, sample.questions, sample.reason) == (6, ("three",), "clip6 is torn")


def test_a_bad_clip_is_an_error_where_nobody_listens(stream):
    with pytest.raises(StoreError, match="clip6 is torn"):
        pack([[ask("ab", "cd", clips=[6])]], [Torn(stream, 6)])


def collator(corpus, render, table, streams):
    return Collator(
        corpus=corpus, render=render, lengths=table.rows, streams=streams, on_bad=pytest.fail
    )


def test_visits_of_a_corpus_become_a_batch(corpus, render, stream):
    table = build_length_table(corpus, render, tokenizer_hash="t", template_hash="r")
    first = corpus.first_question.tolist()
    visits = [Visit(2, (first[2] + 1, first[2])), Visit(3, (first[3],)), Visit(5, (first[5],))]
    batch = collator(corpus, render, table, [stream])(visits)
    assert batch.ids == ("q2.1", "q2.0", "q3.0", "q5.0")
    assert batch.features["mel"].n_frames.tolist() == [7, 10, 11]  # clip 2, then 5 and further 6
    assert (
        batch.target_weights.sum()
        == table.rows["target"][[q for v in visits for q in v.questions]].sum()
    )
    assert (
        sum(batch.n_tokens)
        == sum(len(render(clip, q).texts[-1]) for clip, q in asked(batch.ids)) + 2 + 2 + 1
    )  # trunks: "listen to", and "listen to", "also"


def asked(ids):
    questions = {q.id: (clip, q) for clip in tiny_clips() for q in clip.questions}
    return [questions[name] for name in ids]


def test_a_stale_length_table_is_noticed(corpus, render, stream):
    table = build_length_table(corpus, render, tokenizer_hash="t", template_hash="r")
    table.rows["branch"][0] += 1
    with pytest.raises(TrainingError, match="question q0.0 of clip clip0 has .* remove the folder"):
        collator(corpus, render, table, [stream])([Visit(0, (0,))])


def test_a_buffer_is_used_again_only_when_nobody_looks_at_it():
    pool = BufferPool()
    first = torch.from_numpy(pool.take(10, 4))
    second = torch.from_numpy(pool.take(10, 4))
    assert first.data_ptr() != second.data_ptr()
    view, address = first[2:3], first.data_ptr()
    del first
    assert pool.take(10, 4).ctypes.data != address  # the view still looks at it
    del view
    assert pool.take(5, 8).ctypes.data == address


@pytest.fixture
def eager(monkeypatch):
    """Helpers join in at once."""
    monkeypatch.setattr(readers, "WAIT_S", -math.inf)


@pytest.mark.parametrize("n_threads", [2, 4, 30])
@pytest.mark.usefixtures("eager")
def test_threads_read_the_same_and_name_bad_clips_in_the_same_order(store, corpus, n_threads):
    streams = [join_store(name, store, corpus)[0] for name in ("a", "b")]
    torn = [Torn(stream, clip) for stream, clip in zip(streams, (7, 2), strict=True)]
    clips = [1, 2, 4, 6, 7, 8, 9, 10, 11, 2, 7]
    visits = [[ask("ab", "cd", clips=[clip], targets="d", name=f"q{clip}")] for clip in clips]
    slow = [Slow(stream, delay_s) for stream, delay_s in zip(torn, (0.003, 0.0), strict=True)]
    alone, told = [], []
    expected = pack(visits, torn, on_bad=alone.append)
    pool = Readers(n_threads)
    batch = pack(visits, slow, readers=pool, on_bad=told.append)
    pool.close()
    assert told == alone
    assert [(sample.stream, sample.clip) for sample in told] == [("a", 7)] * 2 + [("b", 2)] * 2
    for name, features in expected.features.items():
        assert torch.equal(batch.features[name].values, features.values)
    assert torch.equal(batch.target_weights, expected.target_weights)
    with pytest.raises(StoreError, match="clip7 is torn"):
        pack(visits, slow, readers=Readers(n_threads))


class Slow:
    """A stream whose reads take their time, the first the longest."""

    def __init__(self, stream, delay_s: float) -> None:
        self._stream, self._delay_s, self._calls = stream, delay_s, count(1)
        self.name, self.n_frames, self.width = stream.name, stream.n_frames, stream.width
        self.store = self  # shared with no other

    def read_into(self, clip, out) -> None:
        time.sleep(self._delay_s / next(self._calls))
        self._stream.read_into(clip, out)


@pytest.mark.usefixtures("eager")
def test_buffers_are_used_again_after_threads_have_read_into_them(stream):
    pool, buffers = Readers(3), BufferPool()
    visits = [[ask("ab", "cd", clips=[clip])] for clip in (1, 2, 6, 7, 8)]
    for _ in range(20):
        batch = pack(visits, [stream], pool=buffers, readers=pool)
        del batch
    pool.close()
    assert len(buffers._buffers) == 1


def reader_names(pool, *, wait_s):
    """Who reads 12 pieces that take so long each."""

    def act(place):
        time.sleep(wait_s)
        return threading.current_thread().name

    names = pool.map(act, 12)
    pool.close()
    return set(names)


def test_what_waits_for_a_disk_is_read_by_several_threads_and_what_does_not_by_one(monkeypatch):
    assert 1 < len(reader_names(Readers(4), wait_s=0.02)) <= 4
    assert reader_names(Readers(1), wait_s=0.02) == {"MainThread"}
    monkeypatch.setattr(readers, "WAIT_S", 5.0)  # on a busy machine every thread waits a little
    assert reader_names(Readers(4), wait_s=0.0) == {"MainThread"}
    assert Readers(4).map(lambda place: place, 0) == []


@pytest.mark.usefixtures("eager")
def test_what_goes_wrong_in_a_thread_is_raised_when_all_are_done():
    done = []

    def act(place):
        if place == 1:
            raise ZeroDivisionError
        time.sleep(0.01)
        done.append(place)

    pool = Readers(3)
    with pytest.raises(ZeroDivisionError):
        pool.map(act, 9)
    n_done = len(done)
    pool.close()
    assert len(done) == n_done > 0
