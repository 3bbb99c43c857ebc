"""What TensorBoard shows of a run, read back with TensorBoard's own readers."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from sklearn.metrics import precision_score, recall_score
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from tensorboard.util.tensor_util import make_ndarray

from eval.metrics.binned import count_images
from eval.metrics.curve import ImageScores
from models.adapt import adapter_norms
from shards.errors import InputError
from tests.trainer.small_run import forget_after, make_model, read_events, read_scalars, train
from tests.trainer.test_validation import write_pasted
from trainer.optim import build_optimizer
from trainer.sections import OptimConfig
from trainer.tracking import describe_groups, thin_curve


def test_a_thin_curve_lies_on_that_of_sklearn() -> None:
    rng = np.random.default_rng(0)
    positives, negatives = (np.sort(rng.normal(m, 1, n).astype(np.float32)) for m, n in ((1, 300), (0, 2000)))
    tp, fp, tn, fn, precision, recall = thin_curve(count_images([ImageScores(positives, negatives)], [0]))
    assert tp.size <= 127
    assert (np.diff(recall) < 0).all()
    assert recall[0] == 1
    assert (tp + fn == 300).all()
    assert (fp + tn == 2000).all()
    truth, scores = np.repeat([1, 0], [300, 2000]), np.concatenate([positives, negatives])
    for i in range(0, tp.size, 10):
        called = scores >= np.sort(scores)[::-1][int(tp[i] + fp[i]) - 1]
        assert precision[i] == pytest.approx(precision_score(truth, called))
        assert recall[i] == pytest.approx(recall_score(truth, called))


def test_norms_of_groups_are_those_before_clipping_and_add_up_to_the_whole() -> None:
    model = make_model("last-2")
    optimizer = build_optimizer(model, OptimConfig(lr=1.0, layer_decay=0.5))
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.randn_like(parameter)
    groups = {g["name"]: g["params"] for g in optimizer.param_groups}
    expected = {name: torch.cat([p.grad.flatten() for p in group]).norm() for name, group in groups.items()}
    whole = float(torch.nn.utils.clip_grad_norm_(trained, 0.01))
    found = describe_groups(optimizer, model, 0.01, whole)
    for name, norm in expected.items():
        assert found[f"grad_norm/{name}"] == pytest.approx(float(norm), rel=1e-4)
    squares = sum(value**2 for tag, value in found.items() if tag.startswith("grad"))
    assert squares**0.5 == pytest.approx(whole, rel=1e-4)
    assert found["lr/backbone.blocks.04"] == 0.5
    assert not any(tag.startswith("lora") for tag in found)


def test_norms_of_adapters_are_those_of_their_products() -> None:
    model = make_model("lora")
    assert set(adapter_norms(model).values()) == {0.0}  # before the first step
    layer = model.backbone.blocks[3].attn.qkv
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    up, down = (half["default"].weight.detach() for half in (layer.lora_B, layer.lora_A))
    product = 2 * up @ down  # alpha 16, rank 8
    assert adapter_norms(model)["blocks.3.attn.qkv"] == pytest.approx(float(product.norm()), rel=1e-5)


@pytest.fixture(scope="module", name="runs")
def _runs(tmp_path_factory: pytest.TempPathFactory, scene_shards: str) -> Path:
    """Two short runs, of different rates, with everything on."""
    out = tmp_path_factory.mktemp("runs")
    pasted = write_pasted(out / "pasted")
    shown = ("--validation.shards", scene_shards, "--validation.limit", "3")
    shown += ("--validation.pasted", str(pasted), "--validation.scores", "RbA")
    shown += ("--validation.select", "ap/RbA", "--loop.eval_every", "2", "--adapt.mode", "lora")
    for name, rate in (("slow", "1e-4"), ("fast", "1e-2")):
        train(out, scene_shards, *shown, "--name", name, "--optim.lr", rate)
    return out


def test_probes_are_shown_at_every_validation(runs: Path) -> None:
    events = read_events(runs / "slow")
    for tag in ("probes/scenes", "probes/pasted"):
        shown = events.Images(tag)
        assert [image.step for image in shown] == [2, 4]
        picture = cv2.imdecode(np.frombuffer(shown[0].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape[1] == 4 * 400 + 3 * 6
        assert picture.shape[0] > 3 * 400


def test_curves_and_histograms_say_what_was_measured(runs: Path) -> None:
    events = read_events(runs / "slow")
    curves = [make_ndarray(event.tensor_proto) for event in events.Tensors("precision_recall/RbA")]
    assert len(curves) == 2
    tp, fp, tn, fn, precision, recall = curves[-1]
    steps = recall - np.append(recall[1:], 0)
    ap = dict(read_scalars(runs / "slow")["Validation/ap/RbA"])[4]
    assert float((precision * steps).sum()) == pytest.approx(ap, abs=0.02)  # 127 points of it
    assert (tp + fp + tn + fn).max() == (tp + fp + tn + fn).min()
    for name, total in (("normal", tn[0] + fp[0]), ("anomalous", tp[0] + fn[0])):
        histogram = events.Histograms(f"scores/RbA/{name}")[-1].histogram_value
        assert histogram.num == sum(histogram.bucket) == total
    assert "Validation/gap/RbA" in events.Tags()["scalars"]


def test_the_card_says_how_the_run_is_set_and_where_it_comes_from(runs: Path) -> None:
    (card,) = read_events(runs / "slow").Tensors("run/text_summary")
    text = make_ndarray(card.tensor_proto)[0].decode()
    wanted = ("| commit |", "| torch |", "    optim:", "      lr: 0.0001", "parameters train", "peak learni")
    assert [part for part in wanted if part not in text] == []


def test_runs_are_compared_by_their_settings_and_latest_values(runs: Path) -> None:
    """Through the code that answers TensorBoard's tab HPARAMS."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(runs))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(runs))
    context, request = backend_context.Context(TBContext(data_provider=provider)), RequestContext()
    ask = api_pb2.ListSessionGroupsRequest(slice_size=9, allowed_statuses=[1, 2, 3, 0])
    answer = list_session_groups.Handler(request, context, "", ask).run()
    rates = sorted(group.hparams["optim.lr"].number_value for group in answer.session_groups)
    assert rates == [1e-4, 1e-2]
    given = {*answer.session_groups[0].hparams}
    assert given >= {"optim.lr", "adapt.mode", "data.shards", "validation.select"}
    assert not given & {"name", "out", "optim.weight_decay", "data.augment.flip", "loss.weights.dice"}
    for group in answer.session_groups:
        name = "slow" if group.hparams["optim.lr"].number_value == 1e-4 else "fast"
        tags = {metric.name.tag for metric in group.metric_values}
        measured = {f"Validation/{metric}" for metric in ("miou", "ap/RbA", "fpr95/RbA")}
        assert tags == measured | {"Validation/best/ap/RbA", "Loss/total"}
        (best,) = [m.value for m in group.metric_values if m.name.tag == "Validation/best/ap/RbA"]
        assert best == read_scalars(runs / name)["Validation/best/ap/RbA"][-1][1]


def test_runs_bear_their_names_and_loss_and_validation_come_first(runs: Path) -> None:
    assert sorted(EventMultiplexer().AddRunsFromDirectory(str(runs)).Reload().Runs()) == ["fast", "slow"]
    tags = read_events(runs / "slow").Tags()
    groups = {tag.partition("/")[0] for kind in ("scalars", "images", "tensors") for tag in tags[kind]}
    assert sorted(groups)[:2] == ["Loss", "Validation"]


def test_every_card_has_a_description(runs: Path) -> None:
    events = read_events(runs / "slow")
    tags = [tag for kind in ("scalars", "images", "tensors", "histograms") for tag in events.Tags()[kind]]
    shown = {tag: events.SummaryMetadata(tag).summary_description for tag in tags if "_hparams" not in tag}
    assert [tag for tag, text in shown.items() if not text] == []
    assert shown["Loss/total"].startswith("Sum of all loss terms with their weights")
    assert shown["probes/pasted"] == shown["probes/scenes"]


def test_each_step_appears_once_after_a_kill_and_a_resume(tmp_path: Path, scene_shards: str) -> None:
    more = ("--validation.shards", scene_shards, "--validation.limit", "2", "--loop.eval_every", "1")
    train(tmp_path, scene_shards, *more)
    for step in (2, 2, 0):  # twice from one checkpoint, then from the beginning
        forget_after(step, tmp_path / "run")
        train(tmp_path, scene_shards, *more, resume=True)
        events = read_events(tmp_path / "run")
        for tag in ("Loss/total", "Validation/miou", "lr/heads", "speed/images_per_s"):
            assert [point.step for point in events.Scalars(tag)] == [1, 2, 3, 4], tag
        assert [image.step for image in events.Images("probes/scenes")] == [1, 2, 3, 4]
        runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
        cards = runs.Tensors("run", "run/text_summary")
        assert [card.step for card in cards] == ([1, 3] if step else [1])


class Stub(GeneralTracker):
    """A tracker that keeps what it is told; without pictures unless it is wandb."""

    requires_logging_directory = False
    name = "mlflow"

    def __init__(self, project: str, **named: str) -> None:
        self.project, self.named, self.told = project, named, list[tuple]()
        STUBS[self.name] = self

    tracker = None

    def store_init_configuration(self, values: dict) -> None:
        self.told.append(("settings", values))

    def log(self, values: dict, step: int | None = None, **_: object) -> None:
        self.told += [(tag, step, value) for tag, value in values.items()]

    def finish(self) -> None:
        self.told.append(("end",))


class PicturedStub(Stub):
    name = "wandb"

    def log_images(self, values: dict, step: int | None = None, **_: object) -> None:
        self.told += [(tag, step, picture.shape) for tag, (picture,) in values.items()]


class BrokenStub(Stub):
    name = "trackio"

    def log(self, values: dict, step: int | None = None, **_: object) -> None:
        raise ConnectionError("no answer\nfrom the server")


STUBS: dict[str, Stub] = {}


@pytest.fixture(name="stubs")
def _stubs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Stub]:
    STUBS.clear()
    for stub in (Stub, PicturedStub, BrokenStub):
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, stub.name, stub)
    monkeypatch.setattr(tracking, "_available_trackers", ["tensorboard", "mlflow", "wandb", "trackio"])
    return STUBS


def test_all_trackers_get_the_scalars_and_some_the_pictures(
    tmp_path: Path, scene_shards: str, stubs: dict[str, Stub], caplog: pytest.LogCaptureFixture
) -> None:
    shown = ("--validation.shards", scene_shards, "--loop.eval_every", "2", "--loop.steps", "4")
    train(tmp_path, scene_shards, *shown, "--tracking.log_with", "mlflow", "wandb", "trackio", "tensorboard")
    found = read_scalars(tmp_path / "run")
    scalars = sorted((tag, *point) for tag, points in found.items() for point in points)
    for name, stub in stubs.items():
        (kind, settings), *told = stub.told
        assert (stub.project, *stub.named.values(), kind) == ("eomt-anomaly", "run", "settings")
        assert (settings["run"], settings["loop.steps"]) == ("run", 4)
        assert told.pop() == ("end",) if name != "trackio" else told == []
        found = sorted((tag, step, float(np.float32(value))) for tag, step, *rest in told for value in rest
                       if isinstance(value, int | float))  # fmt: skip
        assert found == ([] if name == "trackio" else scalars)
    tags = {tag for tag, *_ in scalars}
    assert not [tag for tag in tags for other in tags if other.startswith(f"{tag}/")]  # mlflow's are folders
    pictures = [told for told in stubs["wandb"].told if told[0].startswith("probes/")]
    assert [(tag, step) for tag, step, _ in pictures] == [("probes/scenes", 2), ("probes/scenes", 4)]
    assert "trackio: the run goes on without it: no answer from the server" in caplog.text


def test_a_tracker_that_is_missing_or_does_not_start_is_one_line(
    tmp_path: Path, scene_shards: str, stubs: dict[str, Stub], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="comet_ml is not installed; pip install comet-ml"):
        train(tmp_path, scene_shards, "--tracking.log_with", "comet_ml")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(Stub, "start", lambda _: 1 / 0, raising=False)
    with pytest.raises(InputError, match="tracking.log_with: mlflow does not start: division by zero"):
        train(tmp_path, scene_shards, "--tracking.log_with", "mlflow")


def test_what_is_switched_off_is_not_written(tmp_path: Path, scene_shards: str) -> None:
    off = ("--tracking.groups", "False", "--tracking.probes", "0", "--tracking.curves", "False")
    pasted = ("--validation.pasted", str(write_pasted(tmp_path / "pasted")), "--loop.eval_every", "2")
    train(tmp_path, scene_shards, *pasted, *off, "--loop.steps", "2")
    tags = read_events(tmp_path / "run").Tags()
    assert tags["images"] == tags["histograms"] == []
    assert [tag for tag in tags["scalars"] if tag.startswith("grad_norm")] == ["grad_norm/all"]
    assert not any(tag.startswith("precision_recall") for tag in tags["tensors"])
    assert "Validation/ap/RbA" in tags["scalars"]
    shutil.rmtree(tmp_path / "run")
    train(tmp_path, scene_shards, *pasted, "--loop.steps", "2", "--tracking.tensorboard", "False")
    assert not list((tmp_path / "run").glob("events.*"))
