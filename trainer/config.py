"""Configuration of a fine-tuning run; each section lives beside its owner."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from models.adapt import AdaptConfig
from models.config import ModelConfig
from models.weights.checkpoint import InitConfig
from outlier_paste.config import PasteConfig
from shards.errors import InputError
from shards.files import Location, require_name
from shards.schema import DEFAULT_SIZE, NUM_CLASSES
from shards.stream import StreamConfig
from trainer.ema import EmaConfig
from trainer.loop import LoopConfig
from trainer.losses import OUTLIER_CLASS_TERM, LossConfig
from trainer.losses.classification import CLASS_TERMS
from trainer.optim import OptimConfig
from trainer.schedule import ScheduleConfig
from trainer.tracking import TrackingConfig
from trainer.validation import ValidationConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tune EoMT on Cityscapes shards: `python -m jobs.finetune [CONFIG.yaml] [--section.setting value]`.

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
        if self.model.num_classes not in (0, NUM_CLASSES):
            given = f"{NUM_CLASSES}, as many as the shards have, got {self.model.num_classes}"
            remedy = f"--model.num_classes {NUM_CLASSES} --init.skip class_head"
            start = f"weights of another label set can start with {remedy}"
            raise InputError(f"model.num_classes must be {given}; {start}")
        if self.validation.select and not self.loop.eval_every:
            raise InputError("validation.select: loop.eval_every is 0, so that nothing is ever measured")
        self._check_model_of_loss()
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

    def _check_model_of_loss(self) -> None:
        """Check that the model has the class head and the outlier class that the loss speaks of.

        What the settings leave out, weights will tell.
        """
        loss, model = self.loss, self.model
        needed = CLASS_TERMS[loss.classification].head
        head = model.class_head or ("" if model.weights else "linear")
        if head not in ("", needed):
            fitting = "isomax_plus" if head == "isomax" else "cross_entropy or logit_norm"
            wrong = f"{loss.classification} needs model.class_head {needed}, not {head}"
            raise InputError(f"loss.classification: {wrong}; with {head} take {fitting}")
        outlier_class = model.outlier_class or ("" if model.weights else "none")
        if OUTLIER_CLASS_TERM in loss.outlier and outlier_class == "none":
            wanted = "model.outlier_class trained, not none"
            raise InputError(f"loss.outlier: {OUTLIER_CLASS_TERM} needs {wanted}")
