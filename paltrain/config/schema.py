"""What can be configured, what each key means, and its default.

Only builders read these objects (`ARCHITECTURE.md` names them); everything else takes plain
arguments. `omegaconf.MISSING` marks what a user must say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class Route(Enum):
    """How audio enters the LLM: as input tokens (`plits`), as keys and values of its own attention
    (`lal`), or by new layers of gated cross-attention (`xattn`, Flamingo's)."""

    plits = "plits"
    lal = "lal"
    xattn = "xattn"


class Dtype(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class ConnectorType(Enum):
    """`mlp`: stacked frames through two linear layers; `resampler`: latents by cross-attention;
    `summary`: a few tokens that sum the clip up."""

    mlp = "mlp"
    resampler = "resampler"
    summary = "summary"


class SummaryBy(Enum):
    """Summary tokens: learned queries that look at the frames, or means over equal windows."""

    queries = "queries"
    windows = "windows"


class LayerProjection(Enum):
    """P_l of LAL: one connector for all layers; a linear map or an MLP (SAISA) per layer on top."""

    shared = "shared"
    linear = "linear"
    mlp = "mlp"


class Schedule(Enum):
    constant = "constant"
    cosine = "cosine"
    linear = "linear"


@dataclass
class RunIdentity:
    """`name` fixes the folder `root/name`; the same command again resumes there."""

    name: str = MISSING
    root: str = "runs"
    seed: int = 0
    fresh: bool = False  # start anew: the old folder is moved aside, not deleted


@dataclass
class ConnectorConfig:
    """From an encoder's frames to audio tokens. Each type has its own fields."""

    type: ConnectorType = ConnectorType.mlp
    frame_stack: int = 1  # mlp: neighbouring frames joined into one audio token
    hidden_width: int | None = None  # mlp, and summary by windows; default: the LLM's width
    n_latents: int = 64  # resampler: audio tokens a clip
    n_summary: int = 16  # summary: audio tokens a clip
    summary_by: SummaryBy = SummaryBy.queries
    n_heads: int = 8  # resampler, and summary by queries
    n_layers: int = 2  # likewise


@dataclass
class StreamConfig:
    """One encoder's way into the LLM. Two streams may read one store: they are two ways of the
    same features."""

    features: str = MISSING  # folder of the feature store
    route: Route = Route.lal
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    # lal, xattn: "all", {start: k} (layer k and later), {every: n} (layers 0, n, 2n, ...; with
    # start: k, k + n, ...), or a list of layer numbers.
    layers: Any = "all"
    layer_projection: LayerProjection = LayerProjection.shared  # lal


@dataclass
class LoraSettings:
    """Low-rank adapters (LoRA, arXiv 2106.09685) of the LLM's products, by peft."""

    rank: int = 0  # 0: none
    alpha: float = 16.0  # what an adapter adds is scaled by alpha / rank
    target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"]
    )


@dataclass
class ModelConfig:
    """The LLM and its audio streams. Without streams a run trains the LLM on text alone."""

    # The LLM is one of: a folder or hub name; a fresh one by the keys of its transformers config,
    # e.g. {model_type: llama, ...}; a trained one, named by stage.init_from.
    llm: str | None = None
    architecture: dict[str, Any] | None = None
    # The tokenizer is the LLM's, or a folder or hub name, or (with `architecture`) a byte-level BPE
    # of this size trained on the manifests' text.
    tokenizer: str | None = None
    tokenizer_vocab_size: int | None = None
    dtype: Dtype = Dtype.float32
    gradient_checkpointing: bool = False
    attention_backend: str = "auto"  # auto, flash_attn, torch, sdpa
    streams: dict[str, StreamConfig] = field(default_factory=dict)  # order = order within a clip
    plits_sees_lal: bool = True  # whether PLITS audio tokens look at LAL keys before them
    lora: LoraSettings = field(default_factory=LoraSettings)


@dataclass
class TemplateConfig:
    """How a question becomes text. The audio placeholder is split out before tokenisation."""

    system: str | None = None
    chat_template: str | None = None  # a jinja file; default: the tokenizer's
    date_string: str = "26 Jul 2024"  # for templates that would insert today's date
    loss_on_prompt: bool = False


@dataclass
class QuestionFilter:
    """Which questions: those that pass all of these; null lets every question pass."""

    tasks: list[str] | None = None
    datasets: list[str] | None = None  # of their clips
    min_duration_s: float | None = None  # of every recording that a question hears
    max_duration_s: float | None = None


@dataclass
class MixtureConfig(QuestionFilter):
    """A part of an epoch: some of the questions that `data`'s own filters leave."""

    manifest: str | None = None  # only this one of data.manifests
    max_questions: int | None = None  # at most so many of them, always the same
    # How often each is asked in an epoch: 2.5 asks all twice and half of them a third time, 0.3
    # asks 30 %; which ones depends on the part's name alone.
    weight: float = 1.0


@dataclass
class DataConfig(QuestionFilter):
    manifests: list[str] = MISSING
    split: str = "train"
    # Parts by name. A question is asked as often as all parts together say, and one of no part not
    # at all. Empty: every question once.
    mixture: dict[str, MixtureConfig] = field(default_factory=dict)
    questions_per_visit: int = 1  # questions about one clip that ride together and share its audio
    batch_questions: int = 256  # questions in an optimizer step
    text_token_budget: int = 4096  # a micro-batch holds at most so many text tokens ...
    audio_token_budget: int = 32768  # ... and so many audio tokens
    max_text_tokens: int | None = None  # a question's prompt and answer together
    truncate_text: bool = False  # cut the answer's end instead of setting the question aside
    max_audio_tokens: int | None = None  # a clip's tokens of one stream
    truncate_audio: bool = False  # cut the clip's end instead of setting it aside
    window_shards: int = 16  # shards shuffled together, for locality
    prefetch_steps: int = 4
    max_bad_samples: int = 100  # of each process
    verify_checksums: bool = True
    # Shards are copied there while they are read, onto a fast disk of the node's own; variables
    # are those of the node: $TMPDIR/shards. When it pays: paltrain/data/shard_cache.py.
    cache_dir: str | None = None
    cache_gb: float = 100.0  # the copies of all processes together
    reader_threads: int = 4  # that share the reading where it waits for the disk


@dataclass
class StageConfig:
    """What trains and from what it starts."""

    init_from: str | None = None  # name of a finished run (its exported model) or a folder
    # all, connectors, attention, ffn, norms, embeddings, head, lora, or a pattern:
    # "llm.*.q_proj.*". With adapters `all` trains what they stand beside, too.
    trainable: list[str] = field(default_factory=lambda: ["all"])
    steps: int | None = None  # exactly one of steps and epochs
    epochs: float | None = None


@dataclass
class OptimizerConfig:
    lr: float = 1e-4
    lr_by_pattern: dict[str, float] = field(default_factory=dict)  # group or pattern -> lr
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    max_grad_norm: float = 1.0  # 0: off
    schedule: Schedule = Schedule.cosine
    warmup_steps: int = 0
    min_lr_ratio: float = 0.0  # of the peak, at the end of the schedule


@dataclass
class EngineConfig:
    name: str = "deepspeed"
    zero_stage: int = 3
    param_persistence_threshold: int = 100_000  # ZeRO-3 leaves smaller parameters whole (elements)
    deterministic: bool = False
    timeout_s: float = 1800.0  # a collective that waits longer means that a rank is lost
    max_nonfinite_steps: int = 10  # skipped and counted; beyond that the run stops


@dataclass
class CheckpointConfig:
    every_steps: int = 500
    keep: int = 2


@dataclass
class LoggingConfig:
    every_steps: int = 10  # console lines; metrics.jsonl has every step
    wandb: bool = False
    wandb_project: str = "paltrain"
    wandb_mode: str = "offline"
    peak_tflops: float | None = None  # of one device, for MFU; default: the device's known peak


@dataclass
class Placement:
    """Where on a cluster a job goes, where that differs from the cluster's profile."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    time_min: int | None = None


@dataclass
class LaunchConfig(Placement):
    """A training run's share of a cluster."""

    nodes: int = 1
    gpus_per_node: int | None = None  # default: all that a node has
    processes_per_node: int | None = None  # default: one for each GPU, or 1
    threads_per_process: int | None = None  # default: cores / processes


@dataclass
class ArrayConfig(Placement):
    """How a tool with slices runs on a cluster: a job array whose tasks share the work."""

    name: str | None = None  # of the job and its folder under `root`; default: the config file's
    root: str = "runs"
    array_tasks: int = 1  # slices, each a task of its own; 1: no array
    array_parallelism: int | None = None  # at most so many at once; default: no limit
    gpus_per_task: int | None = None  # default: 1 where the nodes have any


@dataclass
class TrainConfig:
    """One training run (one stage): `tools/launch.py CONFIG`."""

    extends: Any = None  # a path or a list of them, relative to the file, merged in order before it
    run: RunIdentity = field(default_factory=RunIdentity)
    model: ModelConfig = field(default_factory=ModelConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    data: DataConfig = field(default_factory=DataConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)


class FeatureDtype(Enum):
    """How a store keeps frames: `int8` has one scale a frame, half the bytes and a small error."""

    float16 = "float16"
    int8 = "int8"


@dataclass
class EncoderConfig:
    """An audio encoder: its type (`paltrain.encoders.ENCODERS`, or MODULE:CLASS), weights and
    options."""

    type: str = "logmel"
    path: str | None = None  # folder or hub name of the weights, where it has any
    revision: str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # keywords of the encoder's class
    pool: int = 1  # so many neighbouring frames are averaged into one
    dtype: FeatureDtype = FeatureDtype.float16  # of the stored features

    def arguments(self) -> dict[str, Any]:
        """What `paltrain.encoders.build_encoder` takes."""
        return {
            "type": self.type,
            "path": self.path,
            "revision": self.revision,
            "options": self.options,
            "pool": self.pool,
        }


@dataclass
class FeaturesConfig:
    """Features of some manifests' clips by one or more encoders: `precompute_features.py CONFIG`.

    Every recording is decoded once for all encoders.
    """

    extends: Any = None
    manifests: list[str] = MISSING
    folder: str = MISSING  # of the stores: one for each encoder, FOLDER/NAME
    encoders: dict[str, EncoderConfig] = field(default_factory=dict)  # by the name of their store
    only: list[str] | None = None  # of the encoders' names; default: all
    clips_per_shard: int = 512  # fewer where recordings are long: 4 hours make a shard
    batch_clips: int = 16  # a batch of the encoder has at most so many windows ...
    batch_audio_s: float = 960.0  # ... and so many seconds, each as long as the longest
    workers: int = 2  # processes that decode
    devices: list[str] | None = None  # "cuda:0", "cpu", ...; default: every GPU, else the CPU
    slice: str | None = None  # "3/64": the shards of slice 3 of 64 (0-based)
    launch: ArrayConfig = field(default_factory=ArrayConfig)

    def stores(self) -> dict[str, str]:
        """By encoder name, the folder of its store."""
        return {name: f"{self.folder}/{name}" for name in self.chosen()}

    def chosen(self) -> dict[str, EncoderConfig]:
        """The encoders that this command is for."""
        wanted = self.encoders if self.only is None else self.only
        return {name: self.encoders[name] for name in wanted}


@dataclass
class EvalConfig:
    """Questions to answer and how: `tools/evaluate.py CONFIG`."""

    extends: Any = None
    runs: list[str] = MISSING  # run folders or exported models
    manifests: list[str] = MISSING
    split: str = "test"
    tasks: list[str] | None = None
    features: dict[str, str] = field(default_factory=dict)  # stream -> store, if not training's
    max_questions: int | None = None
    batch_questions: int = 64
    max_new_tokens: int = 32
    among_options: bool = True  # a question with options is answered by one of them
    shuffle_audio: bool = False  # also the deaf control: the same about other clips' recordings
    seed: int = 0
    out: str | None = None  # default: RUN/eval
    slice: str | None = None  # "3/64": the questions of slice 3 of 64 (0-based)
    launch: ArrayConfig = field(default_factory=ArrayConfig)


@dataclass
class ArmConfig:
    """One form of an ablation: its training runs, in order, and what they have in common."""

    stages: list[str] = MISSING  # configuration files; the last one is evaluated
    set: list[str] = field(default_factory=list)  # key=value, for each stage that knows the key
    note: str | None = None  # a sentence for the table: what this arm is
    reason: str | None = None  # a sentence: why it may stay under what `expect` expects


@dataclass
class AblationConfig:
    """Arms trained and evaluated alike, and one table of them: `tools/ablate.py CONFIG`.

    A trial is an arm, a value of each axis and a seed; it has a folder of its own under
    `launch.root`.
    """

    extends: Any = None
    prepare: list[str] = field(default_factory=list)  # features and runs that all trials start from
    arms: dict[str, ArmConfig] = MISSING
    # key=value for every stage of every arm that knows the key; an arm's own `set` comes after it.
    set: list[str] = field(default_factory=list)
    # Further axes: {key: [value, ...]}. Every combination of their values is tried of every arm.
    axes: dict[str, list[Any]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    evaluate: str = MISSING  # an evaluation's configuration; its `runs` are each trial's last stage
    with_control: bool = True  # also deaf: with the recordings shuffled
    baseline_arm: str | None = None  # beside which the table says who loses where
    # Shares of right answers by task, e.g. {which_sound: 0.85}: who stays under one is named.
    expect: dict[str, float] = field(default_factory=dict)
    report: str | None = None  # a path without suffix, for .md and .json; default: in the root
    title: str = "Ablation"
    caption: str = ""  # what the table compares, for its readers
    parallel: int = 1  # trials at once in one process's share (threads and GPUs are shared out)
    slice: str | None = None  # "3/64": the trials of slice 3 of 64 (0-based)
    launch: ArrayConfig = field(default_factory=lambda: ArrayConfig(root="runs/ablations"))
