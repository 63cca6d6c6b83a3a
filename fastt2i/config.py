"""Everything that can be set, as dataclasses that check themselves; `config.yaml` in a run directory is all of them.

Neither torch nor tyro is imported here, so that `--help` is quick and the engine runs from a bare checkout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from fastt2i.errors import UserError
from fastt2i.sections import Section, is_of, read_section

Noise = Literal["concat", "additive", "conditioning_augmentation"]
DataFormat = Literal["auto", "shapes", "folder", "cub", "coco", "flowers", "parquet", "webdataset"]
Activation = Literal["identity", "leaky_relu", "relu", "elu", "silu", "tanh"]

#: Width of the images, in pixels, at which the R1 penalty is the one of its paper.
PENALTY_SIZE = 32


@dataclass(kw_only=True)
class DataConfig(Section):
    PATHS = ("path", "leave_out")

    path: str = "shapes"
    """Captioned images: a folder, shards (.tar or .parquet), or `shapes`: the embedded set of drawn shapes."""
    format: DataFormat = "auto"
    """What `path` holds; `auto` looks."""
    text_column: str = ""
    """Column or field that holds the captions; empty looks for text, caption, captions and prompt."""
    loader: Literal["auto", "dali", "pillow"] = "auto"
    """What decodes the images anew each time; `auto` keeps small sets in memory, and times both for others."""
    workers: int = 2
    """Processes or, with DALI, threads that decode images."""
    memory_mb: int = 1024
    """`auto` keeps decoded images in memory when the whole set fits in this many MiB."""
    flip: bool = False
    """Mirror half of the images. Leave it off where captions say left and right."""
    random_crop: bool = False
    """Decode images 3/16 larger than the model's and take a square of its size at random, as DF-GAN does (64 of 76 px).
    For photographs; what is drawn to its edges loses them."""
    heldout: float = 0.05
    """Share of the samples that are never trained on, in a set without a split of its own; scores and sample grids use
    their captions."""
    leave_out: str = ""
    """A report of `python -m fastt2i.data verify`: the images that it lists are left out."""
    max_bad_fraction: float = 0.05
    """Stop when more than this fraction of the images cannot be decoded, or has no caption."""

    def decoded_size(self, image_size: int) -> int:
        """Width and height in pixels at which images are decoded for a model of `image_size`."""
        return image_size * 19 // 16 if self.random_crop else image_size

    def _check(self) -> None:
        self._require("path", bool(self.path), "a folder, shards or `shapes`")
        self._require("workers", self.workers >= 0, "0 or more")
        self._require("memory_mb", self.memory_mb >= 0, "0 or more")
        self._require("heldout", 0 <= self.heldout < 1, "at least 0 and less than 1")
        self._require("max_bad_fraction", 0 <= self.max_bad_fraction <= 1, "between 0 and 1")


@dataclass(kw_only=True)
class TextConfig(Section):
    PATHS = ("model", "stop_words", "cache_dir")

    model: str = "all-MiniLM-L6-v2"
    """Language model: a local directory, or a name looked up in installed packages, then on the hub or in its cache."""
    max_keywords: int = 16
    """Keywords kept of a caption; the rarest ones where there are more."""
    stop_words: str = "english"
    """`english`, `none`, or a file with one stop word a line."""
    cache_dir: str = ""
    """Where text features are kept; empty for the user's cache directory."""

    def _check(self) -> None:
        self._require("model", bool(self.model), "a directory or a model's name")
        self._require("max_keywords", self.max_keywords >= 1, "1 or more")
        self._require("stop_words", bool(self.stop_words), "`english`, `none` or a file")


@dataclass(kw_only=True)
class ModelConfig(Section):
    WHEN_ABSENT = {"balanced_noise": False}

    image_size: int = 32
    """Width and height of the images in pixels: 32, 64, 128 or 256."""
    noise: Noise = "concat"
    """How noise meets the sentence feature."""
    noise_dim: int = 128
    """Size of the noise vector, and of the sentence feature where they meet."""
    noise_sigma: float = 1.0
    """Strength of the noise beside the sentence for `additive`."""
    balanced_noise: bool = True
    """Noise and sentence feature have one size and one root mean square where they meet. Without, they are joined as
    they come, as in models from before there was this setting; then `noise_dim` is for `concat` alone."""
    activation: Activation = "leaky_relu"
    """Activation of the feature half of the gated convolutions."""
    generator_channels: tuple[int, ...] = (64, 64, 32, 24)
    """Channels of the 4x4 code and then of each resolution from 8x8 up."""
    discriminator_channels: tuple[int, ...] = (16, 32, 64, 128)
    """Channels at full resolution and then after each halving, down to 4x4."""
    region_dim: int = 128
    """Size of a region feature."""
    global_dim: int = 256
    """Size of the global feature."""
    region_grid: int = 8
    """Region features come from the trunk's map with this width and height."""
    grown_from: tuple[int, ...] = ()
    """Smaller sizes that the model was trained at before: what it draws at each is upscaled and added to."""

    def _check(self) -> None:
        self._require("image_size", self.image_size in (32, 64, 128, 256), "32, 64, 128 or 256")
        levels = self.image_size.bit_length() - 2  # 4x4 and every doubling up to the image
        for name in ("generator_channels", "discriminator_channels"):
            widths = getattr(self, name)
            self._require(
                name,
                len(widths) == levels and all(c >= 1 for c in widths),
                f"{levels} positive widths, one for each resolution from 4 to {self.image_size}",
            )
        for name in ("noise_dim", "region_dim", "global_dim"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        self._require("noise_sigma", self.noise_sigma >= 0, "0 or more")
        grids = [4 << k for k in range(levels - 1)]
        self._require("region_grid", self.region_grid in grids, f"one of {grids}")
        before = [size for size in (32, 64, 128) if size < self.image_size and size in self.grown_from]
        self._require("grown_from", list(self.grown_from) == before, "sizes below image_size, ascending")


@dataclass(kw_only=True)
class LossConfig(Section):
    WHEN_ABSENT = {"mode_seeking": 0.0}

    adversarial: Literal["hinge", "nonsaturating"] = "hinge"
    """Adversarial loss of both players."""
    mismatched: float = 0.5
    """Weight of real images under another caption, as fakes to the discriminator; fakes take the rest of 1."""
    penalty: Literal["r1", "ma_gp", "none"] = "r1"
    """Gradient penalty of the discriminator: on real images (`r1`), on real images and sentences (`ma_gp`)."""
    penalty_weight: float = 0.2
    """Weight of the penalty at 32 px, averaged over all steps. The penalty is scaled so that it means the same at every
    resolution."""
    penalty_every: int = 16
    """Steps between two penalties; each counts that many times its weight."""
    region: float = 0.2
    """Weight of the region-keyword loss."""
    region_variant: Literal["xmc", "damsm"] = "xmc"
    """How regions and keywords are compared."""
    gamma_attention: float = 4.0
    """Sharpness of the attention over regions."""
    gamma_pooling: float = 5.0
    """Sharpness of the pooling over keywords."""
    gamma_matching: float = 10.0
    """Sharpness of the matching of images and captions."""
    sentence: float = 0.2
    """Weight of the loss between global feature and sentence."""
    temperature: float = 0.1
    """Temperature of the loss between global feature and sentence."""
    mode_seeking: float = 0.4
    """Weight of the loss that pulls two images of a caption apart until they differ as real ones do. It takes part only
    where the training set shows how much that is, by several images of a caption or of a class."""
    kl: float = 1.0
    """Weight of the KL term of `conditioning_augmentation`."""
    gather: bool = True
    """In a run of several processes, the captions of all are negatives of each image; without, those of its process."""
    augment: tuple[Literal["translation", "cutout", "color"], ...] = ()
    """DiffAugment policies on what the discriminator sees; `color` is at odds with captions that name colours."""

    def _check(self) -> None:
        self._require("mismatched", 0 <= self.mismatched <= 1, "between 0 and 1")
        for name in ("penalty_weight", "region", "sentence", "mode_seeking", "kl"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("gamma_attention", "gamma_pooling", "gamma_matching", "temperature"):
            self._require(name, getattr(self, name) > 0, "more than 0")
        self._require("penalty_every", self.penalty_every >= 1, "1 or more")


@dataclass(kw_only=True)
class OptimConfig(Section):
    name: Literal["adam", "apex"] = "adam"
    """Adam of both players: torch's fused one, or the FusedAdam of NVIDIA Apex."""
    generator_lr: float = 2e-4
    """Learning rate of the generator."""
    discriminator_lr: float = 4e-4
    """Learning rate of the discriminator."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What becomes of both rates after the warm-up: nothing, or half a cosine down to 0 at the last step."""
    warmup: int = 0
    """Steps at the start over which both rates rise from 0."""
    beta1: float = 0.0
    """Adam's decay of the first moment."""
    beta2: float = 0.99
    """Adam's decay of the second moment."""
    ema: float = 0.995
    """Decay of the moving average of the generator's weights, a step."""
    freeze: tuple[str, ...] = ()
    """Parts that are not trained, with all that is in them, as `generator.encoder` or `discriminator.blocks.0`."""

    def _check(self) -> None:
        for name in ("generator_lr", "discriminator_lr"):
            self._require(name, getattr(self, name) > 0, "more than 0")
        for name in ("beta1", "beta2", "ema"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and less than 1")
        self._require("warmup", self.warmup >= 0, "0 or more")


@dataclass(kw_only=True)
class TrainConfig(Section):
    init_from: str = ""
    """Model to start from, a folder or `user/name` on the hub; its settings are taken over. `--init-from` for short."""
    steps: int = 2000
    """Steps in all; a step updates both players once."""
    batch_size: int = 32
    """Images a step, over all devices."""
    accumulate: int = 1
    """Parts that a step's images go through the networks in, for batches that memory does not hold at once. Captions
    of all parts stay negatives of every image; each network runs forward twice."""
    seed: int = 0
    """Seed of the weights, the order of samples, the captions chosen, the flips and the noise."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Arithmetic of the networks; losses are always fp32. `auto` is bf16 where the processor has instructions for it
    (GPUs since A100, CPUs with AVX512-BF16 or AMX), else fp32."""

    def _check(self) -> None:
        self._require("steps", self.steps >= 1, "1 or more")
        self._require("batch_size", self.batch_size >= 2, "2 or more: captions are told apart within a batch")
        fits = self.accumulate >= 1 and self.batch_size % self.accumulate == 0
        self._require("accumulate", fits, f"1 or more, and a divisor of train.batch_size, which is {self.batch_size}")
        self._require("seed", 0 <= self.seed < 2**63, "between 0 and 2^63 - 1")


@dataclass(kw_only=True)
class EngineConfig(Section):
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` takes a GPU if there is one."""
    graphs: Literal["auto", "on", "off"] = "auto"
    """Capture whole steps in CUDA graphs; `auto` does so on a GPU."""
    threads: int = 0
    """Threads of a step on a CPU; 0 for OMP_NUM_THREADS or the cores, and one, if faster, beside other programs."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile networks and losses with torch.compile; `auto` times steps both ways in runs of 20 minutes or more, says
    what it finds and logs it in `metrics.jsonl`."""
    profile: bool = False
    """Look at some steps, once it is settled how they are run: print where their time goes, and write a trace.
    `--profile` for short."""
    tune: Literal["auto", "on", "off"] = "auto"
    """Time the forms of each operator on new shapes and take the fastest, and let cuDNN do so; `auto` does so on a GPU.
    Two machines may then choose differently, and differ in rounding."""

    def _check(self) -> None:
        self._require("threads", self.threads >= 0, "0 or more")


@dataclass(kw_only=True)
class CheckpointConfig(Section):
    every: int = 500
    """Steps between two checkpoints; the last step always makes one."""
    keep: int = 2
    """Checkpoints kept."""

    def _check(self) -> None:
        self._require("every", self.every >= 1, "1 or more")
        self._require("keep", self.keep >= 1, "1 or more")


@dataclass(kw_only=True)
class LogConfig(Section):
    every: int = 20
    """Steps between two lines of `metrics.jsonl`; only then does the host wait for the device."""
    samples_every: int = 250
    """Steps between two sample grids and two evaluations; the last step always makes one."""
    samples: int = 32
    """Images in a sample grid."""
    variations: int = 8
    """Captions of which a picture shows several images, a row each; 0 for none."""
    attention: int = 6
    """Images of the grid for which a picture shows where each keyword of the caption looks; 0 for none."""
    prompts: str = ""
    """A file with a prompt a line, which every sample grid shows first."""
    evaluate_every: int = 0
    """Steps between two evaluations of held-out samples by features of another network (KID, precision, recall) and by
    R-precision and spread; the last step makes one too. `model/` is then the best of these models. 0 for none, and
    `model/` is the last one."""
    evaluate_images: int = 512
    """Images drawn for such an evaluation."""
    best: Literal["kid", "r_precision", "accuracy_all"] = "kid"
    """Score by which the best model is chosen."""
    tensorboard: bool = True
    """Write TensorBoard events."""

    def _check(self) -> None:
        for name in ("every", "samples_every", "samples"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        for name in ("variations", "attention", "evaluate_every"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("evaluate_images", self.evaluate_images >= 8, "8 or more")


@dataclass(kw_only=True)
class Config:
    """What a training run is made of."""

    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def to_yaml(self) -> str:
        """The whole configuration, as `config.yaml` in a run directory holds it."""
        import yaml

        plain = {name: vars(section) for name, section in vars(self).items()}
        return yaml.safe_dump(plain, sort_keys=False, width=120)

    @classmethod
    def from_yaml(cls, text: str, where: str) -> Config:
        """Read what `to_yaml` wrote.

        Raises:
            UserError: it is no YAML, or has a section, field or value that does not exist.
        """
        import yaml

        try:
            sections = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that there is not is a ValueError
            raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(sections, dict) or not all(isinstance(v, dict) for v in sections.values()):
            raise UserError(f"{where} is not a configuration: it must map sections such as `train` to their fields")
        kinds = get_type_hints(cls)
        unknown = sections.keys() - kinds.keys()
        if unknown:
            first = sorted(map(str, unknown))[0]
            raise UserError(f"{where} has an unknown section {first!r}; there are {', '.join(kinds)}")
        sections = _with_scaled_penalty(sections)
        return cls(**{name: read_section(kinds[name], values, f"{where}: {name}") for name, values in sections.items()})


def _with_scaled_penalty(sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sections in which R1's weight is that at 32 px, as it is since the penalty is scaled by the resolution; files
    older than that hold the weight at their own resolution."""
    model, loss = sections.get("model", {}), sections.get("loss", {})
    weight: Any = loss.get("penalty_weight")
    size: Any = model.get("image_size")
    known = is_of(weight, float) and is_of(size, int) and size != 0
    if "balanced_noise" in model or loss.get("penalty") != "r1" or not known:
        return sections
    return sections | {"loss": loss | {"penalty_weight": weight * (PENALTY_SIZE / size) ** 2}}
