import pytest
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from paltrain.errors import ConfigError
from paltrain.train.stages import parameter_groups, set_trainable


def model(*, tied: bool = False, streams: bool = True) -> nn.Module:
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            attention_bias=True,
            tie_word_embeddings=tied,
        )
    )
    whole = nn.Module()
    whole.llm = llama
    whole.streams = nn.ModuleDict({"mel": nn.Linear(4, 8)} if streams else {})
    return whole


def trained(patterns: list[str], **options: bool) -> set[str]:
    whole = model(**options)
    names = set_trainable(whole, patterns)
    assert set(names) == {n for n, p in whole.named_parameters() if p.requires_grad}
    return set(names)


@pytest.mark.parametrize(
    ("group", "inside", "outside"),
    [
        ("connectors", "streams.mel.weight", "llm.lm_head.weight"),
        ("attention", "llm.model.layers.1.self_attn.k_proj.bias", "llm.model.norm.weight"),
        (
            "ffn",
            "llm.model.layers.0.mlp.up_proj.weight",
            "llm.model.layers.0.self_attn.q_proj.weight",
        ),
        ("norms", "llm.model.layers.0.input_layernorm.weight", "llm.model.embed_tokens.weight"),
        ("norms", "llm.model.norm.weight", "streams.mel.bias"),
        ("embeddings", "llm.model.embed_tokens.weight", "llm.lm_head.weight"),
        ("head", "llm.lm_head.weight", "llm.model.embed_tokens.weight"),
    ],
)
def test_a_group_trains_its_parameters_and_no_others(group, inside, outside):
    names = trained([group])
    assert inside in names
    assert outside not in names


def test_groups_and_patterns_add_up():
    names = trained(["connectors", "llm.*.q_proj.*"])
    assert names == {
        "streams.mel.weight",
        "streams.mel.bias",
        *(f"llm.model.layers.{i}.self_attn.q_proj.{k}" for i in (0, 1) for k in ("weight", "bias")),
    }


def test_all_is_everything():
    assert trained(["all"]) == {name for name, _ in model().named_parameters()}


@pytest.mark.parametrize(
    ("pattern", "options", "says"),
    [
        ("atention", {}, "near names: attention"),
        ("llm.model.layers.0.mlp.up_proj", {}, "llm.model.layers.0.mlp.up_proj.weight"),
        ("encoder", {}, "precomputed"),
        ("head", {"tied": True}, "name 'embeddings'"),
        ("connectors", {"streams": False}, "no audio streams"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_the_reason(pattern, options, says):
    with pytest.raises(ConfigError, match="stage.trainable") as caught:
        set_trainable(model(**options), ["norms", pattern])
    assert says in str(caught.value)


def test_every_fault_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        set_trainable(model(), ["encoder", "nonsense"])
    assert "'encoder'" in str(caught.value)
    assert "'nonsense'" in str(caught.value)


def test_vectors_have_no_weight_decay_and_the_first_pattern_sets_the_rate():
    whole = model()
    set_trainable(whole, ["connectors", "attention"])
    groups = parameter_groups(
        whole,
        lr=1.0,
        weight_decay=0.1,
        lr_by_pattern={"llm.*.q_proj.*": 3.0, "attention": 2.0},
    )
    by_name = {name: group for group in groups for name in group.names}
    assert by_name["streams.mel.weight"].lr == 1.0
    assert by_name["llm.model.layers.0.self_attn.q_proj.weight"].lr == 3.0
    assert by_name["llm.model.layers.0.self_attn.k_proj.weight"].lr == 2.0
    for name, parameter in whole.named_parameters():
        if parameter.requires_grad:
            assert by_name[name].weight_decay == (0.1 if parameter.dim() > 1 else 0.0)
    assert len(by_name) == sum(p.requires_grad for p in whole.parameters())


def test_a_rate_for_what_does_not_train_is_refused():
    whole = model()
    set_trainable(whole, ["connectors"])
    with pytest.raises(ConfigError, match="lr_by_pattern"):
        parameter_groups(whole, lr=1.0, weight_decay=0.0, lr_by_pattern={"ffn": 1.0})
