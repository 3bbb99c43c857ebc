"""Configuration of a fine-tuning run, without what takes seconds to load."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from eval.predict.score_names import require_scores
from models.adaptation import AdaptConfig
from models.config import InitConfig, ModelConfig
from outlier_paste.config import PasteConfig
from shards.config import StreamConfig
from shards.errors import InputError
from shards.files import Location, require_name
from shards.schema import DEFAULT_SIZE
from trainer.losses.options import CLASS_HEADS, OUTLIER_CLASS_TERM, LossConfig
from trainer.sections import EmaConfig, LoopConfig, OptimConfig, ScheduleConfig

STOPPED = 75
"""Exit code of a run that was asked to stop and has saved (EX_TEMPFAIL: try again)."""
MAY_CHANGE = (
    *("out", "name", "data.workers", "data.batch_size", "data.cache", "loop.grad_accum"),
    *("loop.activation_checkpointing", "loop.fit_memory", "loop.profile"),
    *("loop.log_every", "loop.eval_every", "loop.save_every", "loop.keep_checkpoints"),
    *("loop.time_limit", "loop.hang_s", "loop.skip_bad_steps", "loop.sharding"),
    *("validation.shards", "validation.split", "validation.limit"),
    *("validation.pasted", "validation.scores", "validation.patience"),
    *("tracking.tensorboard", "tracking.log_with", "tracking.pasted_scenes", "tracking.groups"),
    *("tracking.probes", "tracking.curves", "paste.cache_mb"),
)
"""Settings that a resumed run may change: they alter no weight, as long as the global batch stays."""
MEASURED_ON = ("validation.shards", "validation.split", "validation.limit", "validation.pasted")
"""Those of `MAY_CHANGE` that are fixed where the best of several validations is chosen."""


Tracker = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What of a run can be watched while it trains; log.txt is always written."""

    tensorboard: bool = True
    """Write TensorBoard's files into the run's folder; what they show, and what that costs:
    docs/monitoring.md."""
    log_with: tuple[Tracker, ...] = ()
    """Trackers besides, by the names that Accelerate gives them, each with its own package and log-in: they
    get settings and the same scalars, and pictures where they take them."""
    pasted_scenes: int = 4
    """Number of scenes of the run, all with objects, shown there when it starts; 0: none."""
    groups: bool = True
    """Log learning rate and gradient norm of every parameter group, and norms of adapters, beside each log
    line."""
    probes: int = 3
    """Number of frames of each validation set, always the same, shown at every validation: ground truth,
    prediction and a map for each of validation.scores; 0: none."""
    curves: bool = True
    """Show precision over recall and the scores of normal and anomalous pixels of validation.pasted."""

    def __post_init__(self) -> None:
        for name in ("pasted_scenes", "probes"):
            if getattr(self, name) < 0:
                raise InputError(f"tracking.{name}: got {getattr(self, name)}; 0 or more are needed")

    @property
    def trackers(self) -> list[str]:
        """All trackers, each once."""
        own = ["tensorboard"] if self.tensorboard else []
        return list(dict.fromkeys([*own, *self.log_with]))


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Validation while training, on Cityscapes val and on objects pasted onto it; never on a benchmark."""

    shards: tuple[Location, ...] = ()
    """Prepared Cityscapes whose `split` is measured by mIoU; empty: no mIoU."""
    split: str = "val"
    """Split of the shards."""
    pasted: Location = ""
    """Folder that `jobs.paste_validation` wrote, measured by AP and FPR95 of `scores`; empty: none. Score
    maps lie in the run's folder meanwhile, 4 bytes per pixel and score."""
    scores: tuple[str, ...] = ("MSP", "RbA")
    """Anomaly scores that `pasted` is measured by; names as in `jobs.evaluate --scores`."""
    limit: int = 0
    """Most frames of each; 0: all."""
    select: str = ""
    """The one metric by which `best/` is chosen and a run ends early: miou, or ap/SCORE or fpr95/SCORE of
    `scores`, such as ap/RbA; judged from the step on at which no query is masked any more. Empty: the newest
    checkpoints alone are kept."""
    patience: int = 0
    """Validations in a row without a better `select` that end the run; 0: never. A run that ended
    so ends again on --resume, which may raise the patience."""

    def __post_init__(self) -> None:
        require_scores(self.scores, "validation.scores")
        if self.limit < 0:
            raise InputError(f"validation.limit must be 0 (all) or more, got {self.limit}")
        if self.patience < 0:
            raise InputError(f"validation.patience must be 0 (never) or more, got {self.patience}")
        metrics = self.metrics()
        if self.select and self.select not in metrics:
            known = ", ".join(metrics) or "nothing, as validation.shards and validation.pasted are empty"
            raise InputError(f"validation.select: {self.select!r} is not measured; measured: {known}")
        if self.patience and not self.select:
            raise InputError("validation.patience: needs validation.select, the metric it waits for")

    def metrics(self) -> list[str]:
        """Name what is measured."""
        scores = self.scores if self.pasted else ()
        return [
            *(["miou"] if self.shards else []),
            *(f"{metric}/{score}" for score in scores for metric in ("ap", "fpr95")),
        ]

    def tags(self) -> list[str]:
        """Name the scalars by which TensorBoard compares runs."""
        best = [f"Validation/best/{self.select}"] if self.select else []
        return [*best, *(f"Validation/{metric}" for metric in self.metrics())]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tune EoMT on shards of scenes: `python -m jobs.finetune [CONFIG.yaml] [--section.setting value]`.

    Everything goes to OUT/NAME/: config.yaml, provenance.json, log.txt, checkpoints/, TensorBoard's files.
    With --resume a run that is there continues from its newest checkpoint (or starts, if there is none).

    Exit codes: 0 done; 2 a wrong setting or file, or another run writes there; 70 the loss, a gradient or
    a weight is no number; 74 the folder cannot be written; 75 asked to stop or out of time, and saved:
    --resume goes on; 143 or 138 ended by a second SIGTERM or SIGUSR1; 1 a fault of this program. More in
    docs/training.md.
    """

    name: str = "eomt"
    """Name of the run and of its folder."""
    out: Location = "runs"
    """Folder that holds runs."""
    seed: int = 0
    """Initial weights, order of the data, augmentation, paste and sampled points all follow from it."""
    data: StreamConfig = field(default_factory=StreamConfig)
    paste: PasteConfig = field(default_factory=PasteConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        require_name(self.name, "name")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be in 0..{2**32 - 1}, got {self.seed}")
        if self.validation.select and not self.loop.eval_every:
            raise InputError("validation.select: loop.eval_every is 0, so that nothing is ever measured")
        self._check_model_of_loss()
        self._check_outlier_head()
        self._agree_on_size()

    def _agree_on_size(self) -> None:
        """Let crop and image size follow each other; where both are left out the weights will tell."""
        crop, size = self.data.crop, self.model.image_size
        if not any(crop) and not any(size) and not self.model.weights:
            crop = DEFAULT_SIZE
        if any(crop) and any(size) and crop != size:
            sizes = f"data.crop {list(crop)} and model.image_size {list(size)}"
            remedy = "the model takes crops of its own size; leave one of them out, and it follows the other"
            raise InputError(f"{sizes} differ; {remedy}")
        object.__setattr__(self, "data", replace(self.data, crop=crop if any(crop) else size))
        object.__setattr__(self, "model", replace(self.model, image_size=size if any(size) else crop))

    @property
    def parts(self) -> set[str]:
        """What anomaly scores can read of the network that trains, as `models.config.ModelConfig.parts`."""
        return self.model.parts | ({"an outlier head"} if self.adapt.mode == "outlier_head" else set())

    def inputs(self) -> dict[str, str]:
        """Return the setting that names each file, folder or pattern that a run reads."""
        places = {
            **dict.fromkeys(self.data.shards, "data.shards"),
            **dict.fromkeys(self.validation.shards, "validation.shards"),
            self.paste.bank: "paste.bank",
            self.validation.pasted: "validation.pasted",
            self.model.weights: "model.weights",
        }
        return {place: setting for place, setting in places.items() if place}

    def _check_outlier_head(self) -> None:
        """Check that the mode, the loss and the model's settings speak of an outlier head, or none does."""
        reads = self.adapt.mode == "outlier_head"
        if reads != self.loss.trains_head:
            given = f"got adapt.mode {self.adapt.mode}, loss.name {self.loss.name}"
            needed = "outlier_head goes with loss.name likelihood_ratio, and only with it"
            raise InputError(f"adapt.mode: {needed}; {given}")
        if reads and self.schedule.masked_attention != "never":
            needed = "schedule.masked_attention never is needed"
            raise InputError(f"adapt.mode: outlier_head reads a network as it is evaluated; {needed}")
        if self.model.outlier_head.exists and not reads:
            raise InputError(f"model.outlier_head: is for adapt.mode outlier_head, not {self.adapt.mode}")
        if self.model.outlier_head.bank:
            raise InputError("model.outlier_head.bank: jobs.fit_head fits such a head; give width here")

    def _check_model_of_loss(self) -> None:
        """Check that the model has the class head and the outlier class that the loss speaks of.

        What the settings leave out, weights will tell.
        """
        loss, model = self.loss, self.model
        needed = CLASS_HEADS[loss.classification]
        head = model.class_head or ("" if model.weights else "linear")
        if head not in ("", needed):
            fitting = "isomax_plus" if head == "isomax" else "cross_entropy or logit_norm"
            wrong = f"{loss.classification} needs model.class_head {needed}, not {head}"
            raise InputError(f"loss.classification: {wrong}; with {head} take {fitting}")
        outlier_class = model.outlier_class or ("" if model.weights else "none")
        if OUTLIER_CLASS_TERM in loss.outlier and outlier_class == "none":
            wanted = "model.outlier_class trained, not none"
            raise InputError(f"loss.outlier: {OUTLIER_CLASS_TERM} needs {wanted}")
