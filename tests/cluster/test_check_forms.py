"""The preflight of every form: agrees with the start of training on what may follow what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.preflight.check import findings_of
from cluster.preflight.training import mixed_cells
from paltrain.config.load import load_config
from paltrain.config.schema import TrainConfig
from paltrain.errors import ModelError
from paltrain.model.build import build_model
from paltrain.model.tokenization import train_tokenizer
from tests.cluster.material import write_sounds
from tests.cluster.test_check import (  # noqa: F401 (fixtures)
    _own_cache,
    cache,
    hearing,
    jobs,
    only_problem,
    write_evaluation,
    write_features,
)

STAMP = {"width": 8, "frame_rate_hz": 25.0, "encoder": {"type": "made up", "options": {}}}
LORA = {"rank": 2, "target_modules": ["q_proj"]}
ARCHITECTURE = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
}  # fmt: skip


def stream(store: Path, **fields: Any) -> dict[str, Any]:
    return {"features": str(store), **fields}


def pal(store: Path, **model: Any) -> dict[str, Any]:
    """A model with streams of both routes, of one store."""
    summary = {"type": "summary", "n_summary": 2, "n_heads": 4}
    mel, few = stream(store), stream(store, route="plits", connector=summary)
    return {"streams": {"mel": mel, "few": few}, **model}


FOLLOWERS: dict[str, tuple[dict[str, Any], dict[str, Any], str | None]] = {
    "the same": ({}, {}, None),
    "adapters are new": ({}, {"lora": LORA}, None),
    "adapters stay": ({"lora": LORA}, {"lora": LORA}, None),
    "adapters are gone": ({"lora": LORA}, {}, "lora: {"),
    "adapters of another rank": ({"lora": LORA}, {"lora": {**LORA, "rank": 3}}, "lora: "),
    "blinded": ({}, {"plits_sees_lal": False}, "plits_sees_lal: True there, False here"),
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a bell"], vocab_size=320)


def test_what_may_follow_what_is_what_training_takes(tmp_path, tokenizer):
    """Behind a run of the chain, and from a model's folder, as `build_model` decides it."""
    store, chain, refused = write_sounds(tmp_path), [], {}
    for number, (first, then, _) in enumerate(FOLLOWERS.values()):
        folder = str(tmp_path / f"model{number}")
        one, two, three = (
            hearing(tmp_path, store, f"{name}{number}", start, model=pal(store, **model))
            for name, start, model in (
                ("one", None, first),
                ("two", f"one{number}", then),
                ("three", folder, then),
            )
        )
        refused[number] = _refused_by_training(one, three, tokenizer, folder)
        chain += [one, two, three]
    found = {f.name: f.problems for f in findings_of(jobs(*chain))}
    for number, (case, (_, _, fault)) in enumerate(FOLLOWERS.items()):
        for said in (found[f"two{number}"], found[f"three{number}"]):
            forms = [problem for problem in said if "of another form" in problem]
            assert bool(forms) == bool(refused[number]) == bool(fault), case
            assert not fault or (fault in forms[0] and fault in refused[number]), case


def _refused_by_training(one: Path, then: Path, tokenizer: Any, folder: str) -> str:
    """What `build_model` says of the second run behind the first, whose model it leaves in
    `folder`."""
    before, after = (load_config(TrainConfig, [path]) for path in (one, then))
    before.model.architecture = dict(ARCHITECTURE)
    stamps = dict.fromkeys(before.model.streams, STAMP)
    build_model(before, stamps, tokenizer=tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    try:
        build_model(after, stamps, tokenizer=tokenizer, init_folder=Path(folder))
    except ModelError as error:
        return str(error)
    return ""


def test_parameters_of_every_form_are_found_by_their_patterns(tmp_path):
    """Blocks of cross-attention, summaries, adapters; and what a form has not is named."""
    store = write_sounds(tmp_path)
    deep = {"streams": {"mel": stream(store, route="xattn", layers={"every": 2})}}

    def run(name: str, model: dict[str, Any], *trainable: str) -> Path:
        stage = {"trainable": list(trainable)}
        return hearing(tmp_path, store, name, None, model=model, stage=stage)

    chain = [
        run("blocks", deep, "streams.mel.blocks.*"),
        run("summaries", pal(store), "streams.few.connector.*"),
        run("adapters", pal(store, lora=LORA), "lora", "connectors"),
        run("no-adapters", pal(store), "llm.*.lora_A.*"),
        run("no-blocks", pal(store), "streams.*.blocks.*"),
        run("no-target", pal(store, lora={"rank": 2, "target_modules": ["query"]}), "lora"),
    ]
    found = {f.name: f for f in findings_of(jobs(*chain))}
    trained = [
        next(line for line in found[name].good if "parameters train" in line)
        for name in ("blocks", "summaries", "adapters")
    ]
    assert all(int(line.split()[0].replace(",", "")) > 0 for line in trained)
    assert not any(found[name].problems for name in ("blocks", "summaries", "adapters"))
    for name, fault in (
        ("no-adapters", "'llm.*.lora_A.*' matches no parameter"),
        ("no-blocks", "'streams.*.blocks.*' matches no parameter"),
        ("no-target", "lora.target_modules names query, which the LLM's layers have not"),
    ):
        (problem,) = found[name].problems
        assert fault in problem


@pytest.mark.parametrize(
    ("cells", "stack", "mixes"),
    [(8, 1, False), (8, 2, False), (8, 4, False), (8, 8, False), (8, 16, False), (2, 4, False),
     (8, 3, True), (8, 12, True), (2, 3, True), (None, 3, False)],
)  # fmt: skip
def test_stacks_that_join_frequencies_of_different_steps_are_warned_of(
    tmp_path, cells, stack, mixes
):
    """Stores without the field have a frame a step, or were made before it was said."""
    model = {"streams": {"mel": stream(tmp_path, connector={"frame_stack": stack})}}
    config = load_config(TrainConfig, [hearing(tmp_path, tmp_path, "one", None, model=model)])
    stamp = STAMP if cells is None else {**STAMP, "tokens_per_step": cells}
    said = list(mixed_cells(config, {"mel": stamp}))
    assert bool(said) == mixes
    assert not mixes or f"a step has {cells} frames, low frequencies first; take a div" in said[0]


def test_the_check_says_the_warning_of_a_stack_once(tmp_path):
    """Of a store that the chain makes, too."""
    store = write_sounds(tmp_path)
    encoder = {"type": "sslam", "options": {"random_seed": 0, "width": 8, "n_heads": 2}}
    made = write_features(tmp_path, encoders={"bands": encoder})
    model = {"streams": {"mel": stream(tmp_path / "bands", connector={"frame_stack": 3})}}
    runs = [hearing(tmp_path, store, name, None, model=model) for name in ("one", "two")]
    found = findings_of(jobs(made, *runs))
    (said,) = [warning for job in found for warning in job.warnings]
    assert "frame_stack=3 joins frequencies of different time steps: a step has 8 frames" in said
    assert said.endswith("[two too]")


def test_a_layer_beyond_the_llms_depth(tmp_path, tokenizer):
    store = write_sounds(tmp_path)
    model = {"streams": {"mel": stream(store, layers=[0, 5])}}
    config = hearing(tmp_path, store, "deep", None, model=model)
    fault = "stream 'mel': layers name [5], but the LLM has layers 0 to 1"
    assert fault in only_problem(config)
    loaded = load_config(TrainConfig, [config])
    loaded.model.architecture = dict(ARCHITECTURE)
    with pytest.raises(ModelError, match=r"layers name \[5\], but the LLM has layers 0 to 1"):
        build_model(loaded, {"mel": STAMP}, tokenizer=tokenizer)


def test_recordings_that_outrun_the_llms_positions_are_warned_of(tmp_path):
    """Before training, and before an evaluation of its run; audio beside the sequence has none."""
    store = write_sounds(tmp_path)  # of 3 to 9 frames

    def run(name: str, **fields: Any) -> Path:
        connector = {"connector": {"frame_stack": 1}}
        model = {"streams": {"mel": stream(store, **connector, **fields)}}
        return hearing(tmp_path, store, name, None, model=model)

    evaluation = write_evaluation(tmp_path, [tmp_path / "runs" / "one"])
    chain = [run("one"), run("beside", route="xattn", layers="all"), evaluation]
    word = "model.architecture.max_position_embeddings={}"
    one, beside, evaluated, _ = findings_of(jobs(*chain, word.format(8)))
    (training,), (answers,) = one.warnings, evaluated.warnings
    assert "clips have more audio tokens (the longest 9) than the LLM has positions" in training
    assert "training sets the questions about them aside" in training
    assert "the questions about them that do not fit are not put to the run one of this" in answers
    assert not beside.warnings
    assert not any(f.warnings for f in findings_of(jobs(*chain, word.format(10))))


def test_features_of_another_width_are_refused_before_and_at_the_start(tmp_path, tokenizer):
    store = write_sounds(tmp_path)
    config = hearing(tmp_path, store, "one", None)
    folder = str(tmp_path / "model")
    wide = hearing(tmp_path, store, "wide", folder)
    loaded = [load_config(TrainConfig, [path]) for path in (config, wide)]
    loaded[0].model.architecture = dict(ARCHITECTURE)
    stamps = [{"mel": {**STAMP, "width": width}} for width in (9, 8)]
    build_model(loaded[0], stamps[0], tokenizer=tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"streams\.mel\.width: 9 there, 8 here"):
        build_model(loaded[1], stamps[1], tokenizer=tokenizer, init_folder=Path(folder))
    (said,) = [p for p in findings_of(jobs(wide))[0].problems if "of another form" in p]
    assert "streams.mel.width: 9 there, 8 here" in said
