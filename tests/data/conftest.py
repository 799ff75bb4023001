"""A tiny real corpus: manifest on disk, features in real shards, a tokenizer that hashes words."""

from collections.abc import Callable, Mapping
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from paltrain.batch import RenderedQuestion
from paltrain.data.assignment import assign_shards
from paltrain.data.index import Corpus
from paltrain.data.manifest import Clip, Question, write_manifest
from paltrain.data.shard_writer import claim_store, write_shard
from paltrain.data.shards import FeatureStore

WIDTH = 4
N_CLIPS = 24


def words(text: str) -> list[int]:
    return [crc32(word.encode()) % 1000 for word in text.split()]


def render_words(clip: Clip, question: Question) -> RenderedQuestion:
    """`listen <clip> also <further clip> instruction answer end`; answer and end are targets."""
    n_clips = (clip.audio is not None) + len(question.clips or ())
    trunk = [np.array(words("listen to" if i == 0 else "also"), np.int64) for i in range(n_clips)]
    prompt, answer = words(question.instruction), words(f"{question.answer} end")
    texts = (*trunk, np.array(prompt + answer, np.int64))
    masks = [np.zeros(len(text), bool) for text in texts]
    masks[-1][len(prompt) :] = True
    return RenderedQuestion(texts, tuple(masks))


def tiny_clips(n: int = N_CLIPS) -> list[Clip]:
    """`n` clips of 1 to 4 questions; number 3 is text only, a question of 5 hears 6 as well."""
    clips = []
    for number in range(n):
        questions = [
            Question(
                id=f"q{number}.{k}",
                task="which" if k % 2 else "count",
                instruction="what is it" + " then" * k,
                answer=f"answer {number}",
                clips=("clip6",) if (number, k) == (5, 0) else None,
            )
            for k in range(1 + number % 4)
        ]
        audio = None if number == 3 else f"audio/clip{number}.flac"
        clips.append(
            Clip(
                id=f"clip{number}",
                audio=audio,
                duration_s=0.0 if audio is None else 1.0 + number,
                dataset="tiny",
                split="train",
                questions=tuple(questions),
            )
        )
    return clips


def tiny_features(clips: list[Clip], *, width: int = WIDTH) -> dict[str, np.ndarray]:
    """Frames of every clip with audio: number n has 5 + n of them, all of value n."""
    return {
        clip.id: np.full((5 + number, width), number, np.float16)
        for number, clip in enumerate(clips)
        if clip.audio is not None
    }


def half_as_many(n_frames):
    """Audio tokens of clips: two frames make one."""
    return -(-np.asarray(n_frames) // 2)


@pytest.fixture
def render() -> Callable[[Clip, Question], RenderedQuestion]:
    return render_words


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, tiny_clips())
    return Corpus.open([path])


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return write_store(tmp_path / "features", tiny_features(tiny_clips()))


def write_store(
    folder: Path,
    features: Mapping[str, np.ndarray],
    *,
    per_shard: int = 5,
    dtype: str = "float16",
) -> FeatureStore:
    """A real store, `per_shard` clips in a shard."""
    width = next(iter(features.values())).shape[1]
    encoder = {"type": "logmel", "path": None, "revision": None, "options": {"n_mels": width}}
    stamp = {
        "encoder": encoder,
        "weight_hash": "0",
        "sample_rate_hz": 16_000,
        "frame_rate_hz": 50.0,
        "width": width,
        "dtype": dtype,
    }
    claim_store(folder, stamp)
    for number, clips in enumerate(
        assign_shards(folder, list(features), clips_per_shard=per_shard)
    ):
        write_shard(folder, number, ((clip, features[clip]) for clip in clips), dtype=dtype)
    return FeatureStore.open(folder)
