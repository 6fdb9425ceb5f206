"""Typed schemas for every config group: each key with its type, its range (``config.ranges``) and its meaning.

Units are in the names: ``_epochs``, ``_steps``, ``_min`` (minutes), ``_gb`` (10^9 bytes), ``_mb`` (2^20 bytes),
``_px`` (pixels).
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval, Len
from omegaconf import MISSING

MOST = 2**31 - 1
"""Of what has no limit of its own: counts stay whole numbers for everybody who gets them."""

Count = Annotated[int, Interval(ge=1, le=MOST)]
WholeNumber = Annotated[int, Interval(ge=0, le=MOST)]
Seed = Annotated[int, Interval(ge=0, lt=2**63)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
BelowOne = Annotated[float, Interval(ge=0, lt=1)]
Workers = Annotated[int, Interval(ge=1, le=1024)]
"""Of one node. More is a slip of the finger that would take the machine down."""
Rounds = Annotated[int, Interval(ge=1, le=10_000)]
Images = Annotated[int, Interval(ge=1, le=1_000_000_000)]
Pixels = Annotated[int, Interval(ge=1, le=16_384)]
Megabytes = Annotated[int, Interval(ge=1, le=65_536)]


class Mode(Enum):
    """What ``run.py`` does with the composed configuration."""

    train = "train"
    evaluate = "evaluate"


class Precision(Enum):
    """Arithmetic of the forward and backward pass; parameters and optimizer state are fp32 in all of them."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Accelerator(Enum):
    """``auto``: the GPUs of the machine, or its CPU where it has none."""

    auto = "auto"
    gpu = "gpu"
    cpu = "cpu"


class Compression(Enum):
    """What is done with gradients before they are sent; see ``imgnet.parallel.engines.compression``."""

    none = "none"
    bf16 = "bf16"
    powersgd = "powersgd"


class Engine(Enum):
    """Who averages in a decentralized run: the engine of this package, or ``decent-dp`` as published."""

    imgnet = "imgnet"
    decent_dp = "decent_dp"


class WireDtype(Enum):
    """Numbers in the messages of a decentralized run; parameters are fp32 in memory in both."""

    fp32 = "fp32"
    bf16 = "bf16"


class GroupAlgorithm(Enum):
    """How a group of workers is summed. ``auto``: ring or tree, whichever is faster for a message, as NCCL chooses."""

    auto = "auto"
    ring = "ring"
    tree = "tree"
    two_level = "two_level"


class DataKind(Enum):
    """Where images come from."""

    folder = "folder"
    shards = "shards"
    digits = "digits"
    synthetic = "synthetic"


class DataBackend(Enum):
    """Who decodes. ``auto``: DALI where it is installed, torchvision where not."""

    auto = "auto"
    dali = "dali"
    torchvision = "torchvision"


class Interpolation(Enum):
    """How the pixels of a resized image follow from those around them."""

    bilinear = "bilinear"
    bicubic = "bicubic"


class Decay(Enum):
    """Which parameters weight decay is applied to.

    ``by_shape``: those of two or more dimensions, so neither biases nor normalisation. ``by_name``: all whose names
    hold neither ``bn`` nor ``bias``, as in the paper's code; ResNet's ``downsample.1.weight`` is decayed then.
    """

    by_shape = "by_shape"
    by_name = "by_name"


class OnBadImage(Enum):
    """What an image that cannot be decoded does to a run: it ends it, or it is left out and counted."""

    error = "error"
    skip = "skip"


class WandbMode(Enum):
    """``auto``: online where this user is logged in to Weights & Biases, offline where not."""

    disabled = "disabled"
    auto = "auto"
    online = "online"
    offline = "offline"


@dataclass
class ModelConfig:
    """A classifier by its name in torchvision or timm, or ``small_cnn`` of this package."""

    name: str = MISSING
    pretrained: bool = False
    """Start from the published weights of that name (downloaded by torchvision or timm), or evaluate them. They bring
    their preprocessing (:mod:`imgnet.published`)."""
    weights: str | None = None
    """Start from, or evaluate, this exported model (``.safetensors``), which brings its preprocessing too."""


@dataclass
class DataConfig:
    """Images, how they are cut, and who reads them. Sizes in pixels; ``mean`` and ``std`` for values in [0, 1]."""

    name: str = MISSING
    kind: DataKind = MISSING
    root: str | None = None
    """Folder with ``train/<class>/*`` and ``val/<class>/*``, or with the shards that ``imgnet data shard`` wrote;
    unused by ``synthetic``."""
    backend: DataBackend = DataBackend.auto
    num_classes: Annotated[int, Interval(ge=2, le=10_000_000)] = MISSING
    train_px: Pixels = MISSING
    """Side of the training crop."""
    eval_px: Pixels = MISSING
    """Side of the validation crop."""
    eval_resize_px: Pixels = MISSING
    """Shorter side that an image is resized to before its central ``eval_px`` are cut out."""
    eval_squash: bool = False
    """Both sides are resized to ``eval_resize_px``, whatever the proportions of the image."""
    interpolation: Interpolation = Interpolation.bilinear
    """Of all resizing, in training and in validation."""
    antialias: bool = True
    """Images that shrink are smoothed, as Pillow does; false: pixels between those that are looked at do not count."""
    crop_scale: Annotated[list[Annotated[float, Interval(gt=0, le=1)]], Len(2, 2)] = field(
        default_factory=lambda: [0.08, 1.0]
    )
    """Smallest and largest share of the image's area in a training crop."""
    crop_ratio: Annotated[list[Annotated[float, Interval(ge=0.01, le=100)]], Len(2, 2)] = field(
        default_factory=lambda: [0.75, 4 / 3]
    )
    """Smallest and largest width / height of a training crop, before resizing to a square."""
    crop_attempts: Annotated[int, Interval(ge=1, le=1000)] = 10
    """Draws of a training crop, of which the first that fits into the image is taken; if none does, a central one.
    All of them are made for every image."""
    flip_probability: Share = 0.5
    mean: Annotated[list[Share], Len(3, 3)] = MISSING
    std: Annotated[list[Annotated[float, Interval(ge=0.001, le=1)]], Len(3, 3)] = MISSING
    keep: list[str] = field(default_factory=list)
    """Keys, such as ``mean``, that weights (``model.pretrained``, ``model.weights``) leave as they are here. Those that
    are typed on the command line are added by themselves (:mod:`imgnet.published`)."""
    num_workers: Annotated[int, Interval(ge=0, le=1024)] | None = None
    """Threads of each worker that read and decode; null: its share of the cores, less one. At least one."""
    on_bad_image: OnBadImage = OnBadImage.error
    max_bad_images: WholeNumber = 100
    """``on_bad_image=skip`` only: how many images a worker may skip before the run fails."""
    stage_to: str | None = None
    """``shards`` only: a folder on a disk of each node, such as ``/local/ssd`` or ``$TMPDIR``, that the shards are
    copied to before training; null: they are read where they are."""
    stage_timeout_min: Annotated[int, Interval(ge=1, le=10_080)] = 120
    """How long nodes that are ready wait for one that still copies."""
    num_train: Images | None = None
    """``synthetic`` only: how many training images there are."""
    num_val: Images | None = None
    """``synthetic`` only: how many validation images there are."""


@dataclass
class TopologyConfig:
    """Who averages with whom. ``allreduce`` averages gradients; every other one averages parameters."""

    name: str = MISSING


@dataclass
class AllReduceConfig(TopologyConfig):
    """Gradients averaged over all workers in each step (``DistributedDataParallel``)."""

    bucket_mb: Megabytes = 25
    """Size of a message; torch's own default."""
    compression: Compression = Compression.none
    """``bf16`` halves the messages. ``powersgd`` sends gradients as matrices of a low rank, and what that leaves out
    with the next ones."""
    powersgd_rank: Count = 4
    """Columns of the two matrices that stand for a gradient."""
    powersgd_start_step: Annotated[int, Interval(ge=2, le=MOST)] | None = None
    """Steps before it send gradients as they are; at least 2. null: those of the warm-up, as torch advises."""
    powersgd_min_compression_rate: NotNegative = 2.0
    """A gradient that would not become so many times smaller is sent as it is."""


@dataclass
class SwitchConfig:
    """A change of topology during the run."""

    after_epochs: WholeNumber = MISSING
    """Epochs before the change; 0: from the first step on."""
    topology: str = MISSING
    """A topology by its name, with the options of its family's defaults; the run's own one has the run's options."""


@dataclass
class DecentralizedConfig(TopologyConfig):
    """Parameters averaged with a few workers in each step, behind the next forward and backward pass."""

    engine: Engine = Engine.imgnet
    bucket_mb: Megabytes = 4
    """Size of a message. On slow links small ones leave fewer gaps between a round and the next, which has other peers
    (benchmarks/README.md); what starts them is hidden behind the computation."""
    wire_dtype: WireDtype = WireDtype.fp32
    """``bf16`` halves the messages; docs/topologies.md says what that costs."""
    schedule: list[SwitchConfig] = field(default_factory=list)
    """Other topologies for a part of the run. Averaging over all workers in the first five epochs, then this one:
    ``[{after_epochs: 0, topology: complete}, {after_epochs: 5, topology: ring}]``."""


@dataclass
class WeightedConfig(DecentralizedConfig):
    """A topology that lets a worker keep more, or less, of its own parameters than an even average would."""

    self_weight: Annotated[float, Interval(gt=0, lt=1)] | None = None
    """What each worker keeps of its own, in (0, 1); null: as much as of each neighbour's."""


@dataclass
class StaticRingConfig(WeightedConfig):
    """A ring in which workers average with several neighbours in every step."""

    neighbours: Count = 1
    """On each side."""


@dataclass
class BaseGraphConfig(DecentralizedConfig):
    """Exact consensus in finitely many rounds, whatever the number of workers."""

    max_degree: Count = 1
    """Peers of a worker in a round, at most; more of them need fewer rounds."""


@dataclass
class RandomConfig(WeightedConfig):
    """Pairs drawn anew in each round."""

    seed: Seed = 0
    """Of the pairs; the run's own ``seed`` does not change them."""
    num_rounds: Rounds = 64
    """Rounds that are drawn; then they begin again."""


@dataclass
class EquiStaticConfig(DecentralizedConfig):
    """Fixed neighbours at distances drawn at random."""

    num_shifts: Count | None = None
    """Distances that are drawn, each for one peer, or two in both directions; null: log2 of the workers, rounded up."""
    seed: Seed = 0
    """Of the distances; the run's own ``seed`` does not change them."""


@dataclass
class EquiDynConfig(DecentralizedConfig):
    """One peer at a distance drawn anew in each round."""

    eta: Annotated[float, Interval(gt=0, le=1)] = 0.5
    """A worker takes ``eta (n-1)/n`` of its peer's; in (0, 1]."""
    seed: Seed = 0
    """Of the distances; the run's own ``seed`` does not change them."""
    num_rounds: Rounds = 64
    """Rounds that are drawn; then they begin again."""


@dataclass
class LatticeConfig(DecentralizedConfig):
    """Workers in rows and columns."""

    num_rows: Count | None = None
    """A divisor of the number of workers; null: as near to a square as there is."""


@dataclass
class CustomConfig(DecentralizedConfig):
    """Rounds written by the user."""

    rounds: list[Any] = MISSING
    """Each a list of groups ``{ranks: [0, 1], weight: 0.5}``, of edges ``[0, 1, 0.5]``, or of arrows
    ``{from: 0, to: 1, weight: 0.5}``."""


@dataclass
class AveragingConfig:
    """How and when workers average, and all that ``every_step`` may be told; other ways add to it."""

    name: str = "every_step"


@dataclass
class OptimizerConfig:
    """An update rule and its schedule: linear warm-up to ``lr``, then a cosine down to ``min_lr``."""

    name: str = MISSING
    lr: Positive = MISSING
    weight_decay: NotNegative = MISSING
    decay: Decay = Decay.by_shape
    """What ``weight_decay`` is applied to."""
    warmup_epochs: NotNegative = 5.0
    warmup_factor: Annotated[float, Interval(gt=0, le=1)] = 0.01
    """The warm-up starts at ``warmup_factor * lr``."""
    min_lr: NotNegative = 1e-5


@dataclass
class SgdConfig(OptimizerConfig):
    """Stochastic gradient descent with momentum."""

    momentum: BelowOne = 0.0
    nesterov: bool = False
    quasi_global: bool = False
    """Momentum of how the parameters moved, averaging included (QG-DSGDm, arXiv 2102.04761). Decentralized only."""


@dataclass
class AdamConfig(OptimizerConfig):
    """Adam and AdamW (decoupled decay), by ``name``."""

    betas: Annotated[list[BelowOne], Len(2, 2)] = field(default_factory=lambda: [0.9, 0.999])
    eps: Positive = 1e-8


@dataclass
class AccumAdamConfig(AdamConfig):
    """AccumAdam and AccumAdamW: moments advance once in ``accum_iter`` steps (arXiv 2410.11998)."""

    accum_iter: Count = 4


@dataclass
class NetworkConfig:
    """What the links of a cluster carry. For predictions alone (docs/planning.md); no run depends on it.

    Gbit are 10^9 bits, in each of both directions.
    """

    between_gbit_s: Positive | None = None
    """Of one network interface of a node."""
    between_latency_us: NotNegative = 20.0
    """Of a message from one node to another."""
    nics_per_node: Count = 1
    """Network interfaces of a node. A flow goes through one of them; several flows are spread over all."""
    within_gbit_s: Positive | None = None
    """Of one worker, to another on its node."""
    within_latency_us: NotNegative = 10.0
    """Of a message within a node."""
    all_reduce: GroupAlgorithm = GroupAlgorithm.auto
    relative_speed: Positive = 1.0
    """What a GPU of this cluster computes, relative to the one that was measured. The shipped clusters: to an A40."""


@dataclass
class ClusterConfig:
    """Where the workers run."""

    name: str = MISSING
    network: NetworkConfig = field(default_factory=NetworkConfig)


@dataclass
class LocalConfig(ClusterConfig):
    """This machine: one worker for each GPU, or ``cpu_workers_per_node`` on a CPU."""

    accelerator: Accelerator = Accelerator.auto
    gpus_per_node: Workers | None = None
    """null: all GPUs that this process may use."""
    cpu_workers_per_node: Workers = 4
    simulated_nodes: Count = 1
    """The topology takes the workers for so many nodes, though all run on this one: to try hierarchical ones."""


@dataclass
class SimulatedConfig(ClusterConfig):
    """``num_workers`` workers that take turns in one process, on one device."""

    num_workers: Annotated[int, Interval(ge=1, le=4096)] = 8
    workers_per_node: Count | None = None
    """For topologies that see nodes; null: all are on one."""
    accelerator: Accelerator = Accelerator.auto
    like: str | None = None
    """A cluster of ``conf/cluster`` with so many workers. ``predicted_time_s`` in ``metrics.csv`` is what training
    would take there (docs/planning.md)."""
    images_per_s: Positive | None = None
    """For ``like``: what one GPU of relative speed 1 trains; null: measured by ``imgnet measure``, or published."""


@dataclass
class SlurmConfig(ClusterConfig):
    """A Slurm job: ``nodes`` nodes with ``gpus_per_node`` workers each, one for each GPU.

    What submitit or ``hydra-submitit-launcher`` has a parameter for has its name and its meaning.
    """

    nodes: Annotated[int, Interval(ge=1, le=10_000)] = MISSING
    gpus_per_node: Workers = MISSING
    gpu_type: str | None = None
    """As the cluster's Slurm calls it; null: any."""
    accelerator: Accelerator = Accelerator.gpu
    """``cpu``: the job asks for its GPUs all the same, but its workers compute on the CPU. For trials."""
    tasks_per_node: Workers | None = None
    """A task is a worker; null: one for each GPU, and no other number is right."""
    cpus_per_task: Annotated[int, Interval(ge=1, le=1024)] = 8
    mem_gb: Count | None = None
    """Memory of each node in 2^30 bytes, as Slurm counts; null: Slurm's default."""
    mem_per_gpu: str | None = None
    """Another way to say it, such as ``40G``; of it, ``mem_per_cpu`` and ``mem_gb`` one at most."""
    mem_per_cpu: str | None = None
    timeout_min: Count = MISSING
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    dependency: str | None = None
    comment: str | None = None
    mail_user: str | None = None
    mail_type: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of the workers. No secrets: this is written to the run directory."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the workers start, such as ``module load cuda``. The first that fails ends the job."""
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Further sbatch options, by their long names; one that takes no value is ``true``."""
    srun_args: list[str] = field(default_factory=list)
    """Further srun arguments."""
    max_num_timeout: WholeNumber = 3
    """How often a run that Slurm is about to end, and that has saved itself, is queued again to go on."""
    signal_delay_s: Annotated[int, Interval(ge=1, le=65_535)] = 120
    """Seconds before the time limit in which a run saves itself; Slurm may be a minute early."""
    runs_per_job: Annotated[int, Interval(ge=1, le=64)] = 1
    """So many runs of a sweep share a job, at the same time: its nodes, and each of its GPUs. For small ones."""
    array_parallelism: Count | None = None
    """How many jobs of a sweep may be in progress at once, of those with equal resources; null: no bound of ours."""
    wait: bool = False
    """Show progress until all runs have ended, and exit non-zero if one failed; false: submit and return."""
    dry_run: bool = False
    """Print the batch script and the configuration, and queue nothing."""


@dataclass
class CheckpointConfig:
    """What is kept so that a run can go on exactly: every worker's whole state, at one step."""

    every_epochs: Count | None = 1
    """null: not at the end of epochs."""
    every_min: Positive | None = None
    """Minutes between checkpoints, within epochs too; null: not by the clock."""
    keep_last: Count = 2
    """How many of the newest are kept, beside the best."""
    allow_differences: bool = False
    """Start from a checkpoint of another topology, optimizer or model settings, by its averaged model."""


@dataclass
class TrackingConfig:
    """What is shown and sent while a run goes on. Files in the run directory are always written."""

    wandb: WandbMode = WandbMode.disabled
    project: str = "imgnet"
    entity: str | None = None
    group: str | None = None
    """Of runs that Weights & Biases shows together; null: those of a sweep."""
    tensorboard: bool = False
    """Event files of TensorBoard in the run directory. It and ``wandb`` go together."""
    progress: bool = True
    """A progress bar on rank 0 of a terminal; plain lines elsewhere."""
    system_every_s: Annotated[float, Ge(1)] | None = 30.0
    """Seconds between two rows of a worker's processors, memory, network and GPU; null: none."""


@dataclass
class ProfileConfig:
    """A trace of some steps by torch's profiler, and what they spend their time on (docs/profiles.md)."""

    steps: WholeNumber = 0
    """Steps that every worker records, one after the other; 0: none."""
    start_step: Count = 10
    """Steps of the run before the first that is recorded; the profiler is made ready in the last of them."""


@dataclass
class RunConfig:
    """One run, complete. Composed by Hydra from ``conf/``, and checked by :func:`parse`."""

    name: str = MISSING
    mode: Mode = Mode.train
    resume: str = "auto"
    """``auto``: an unfinished run of the same configuration is continued in its directory, from its newest whole
    checkpoint; ``none``: start anew; a path: start from that checkpoint, or from the newest of that run directory."""
    seed: Seed = 1
    epochs: Count = MISSING
    max_steps: Count | None = None
    """End after so many optimizer steps, wherever the epoch is. For benchmarks and trials."""
    global_batch_size: Count = MISSING
    """Images in one optimizer step, over all workers and accumulation steps."""
    num_accumulation_steps: Count = 1
    """Forward and backward passes of each worker in one optimizer step."""
    precision: Precision = Precision.bf16
    channels_last: bool = True
    compile: bool = False
    label_smoothing: BelowOne = 0.0
    max_grad_norm: Positive | None = None
    """Gradients are scaled down to this Euclidean norm over the whole model of a worker."""
    evaluate_every_epochs: Count = 1
    evaluate_precision: Precision | None = None
    """Arithmetic of the forward pass in evaluation; null: that of training."""
    evaluate_label_smoothing: BelowOne = 0.0
    """In ``val_loss``; ``train_loss`` has ``label_smoothing``."""
    evaluate_recalibrate_bn: WholeNumber = 0
    """So many global batches of training images, an epoch's at most, give the averaged model its batch-norm statistics
    before it is scored and exported; 0: they are the average of the workers'."""
    log_every_steps: Count = 50
    hang_timeout_min: Positive | None = 5.0
    """A run in which no step is made for so long ends, and says which worker does not come; null: that is left to gloo
    and NCCL. Staging, evaluation and checkpoints take what they take, unless a worker gives no sign of life in them."""
    skip_completed: bool | None = None
    """Leave out runs that are already completed with the same configuration; null: on Slurm yes, elsewhere no."""
    fail_fast: bool = False
    """When a run of a sweep fails, the others are ended, or not begun."""
    on_sweep_end: str | None = None
    """A command after the last run of a sweep, however the runs ended; ``{sweep}`` in it is the sweep's folder. It is
    split into words as a shell does it, and started without one."""
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    topology: TopologyConfig = MISSING
    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    optimizer: OptimizerConfig = MISSING
    cluster: ClusterConfig = MISSING
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)


GROUP_SCHEMAS: dict[str, dict[str, type]] = {
    "model": {"any": ModelConfig},
    "data": {"any": DataConfig},
    "topology": {
        "allreduce": AllReduceConfig,
        "decentralized": DecentralizedConfig,
        "weighted": WeightedConfig,
        "static_ring": StaticRingConfig,
        "base_graph": BaseGraphConfig,
        "random": RandomConfig,
        "equi_static": EquiStaticConfig,
        "equi_dyn": EquiDynConfig,
        "lattice": LatticeConfig,
        "custom": CustomConfig,
    },
    "averaging": {},
    "optimizer": {"sgd": SgdConfig, "adam": AdamConfig, "accum_adam": AccumAdamConfig},
    "cluster": {"local": LocalConfig, "simulated": SimulatedConfig, "slurm": SlurmConfig},
}
"""The schemas that the options of each group in ``conf/`` start from; :func:`imgnet.config.groups.group_schemas` adds
those that stand beside the code that they are for."""
HYDRA = "hydra"
"""The key of Hydra's own part, beside those of a run."""
STUDIES = "experiments"
"""The group that sets all of these: ``+experiments=quickstart``."""
