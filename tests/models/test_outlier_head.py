"""An outlier head reads an EoMT and changes nothing of it, trains alone, and travels without it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from transformers import EomtForUniversalSegmentation

from eval.predict.queries import QueryOutputs
from eval.predict.score_names import NEEDS
from eval.predict.scores import QUERY_SCORES, SCORES
from jobs import doctor, evaluate, export, finetune
from models.adapt import apply_adaptation, count_parameters
from models.adaptation import AdaptConfig
from models.config import ModelConfig, OutlierHeadConfig
from models.eomt import EoMT
from models.heads import read_claims
from models.segmenter import make_predictor
from models.trunk import SIZES
from models.weights.adapter import fingerprint
from models.weights.checkpoint import initialise_model, load_model, open_checkpoint
from models.weights.files import read_metadata, write_weight_file
from tests.models.tiny import IMAGE, make_model, save
from tests.support.evaluation import write_set
from tests.support.refused import refused
from tests.trainer.small_run import HEAD_OPTIONS, _fresh_accelerator, make_arguments, weights  # noqa: F401

HEAD = AdaptConfig(mode="outlier_head")


def with_head(model: EoMT) -> EoMT:
    apply_adaptation(model, HEAD)
    return model


@torch.inference_mode()
def ratio(model: EoMT) -> torch.Tensor:
    return model(IMAGE).outlier_maps["LikelihoodRatio"]


def save_with_head(folder: Path, base: EoMT, **changes: object) -> Path:
    """Write `base` into folder/base, and a run over it whose head is new into folder/run."""
    place = save(base, folder / "base")
    settings = ModelConfig(weights=str(place), **changes)  # type: ignore[arg-type]
    return save(with_head(initialise_model(settings)), folder / "run")


def write_export(checkpoint: Path, kind: str, out: Path, *options: str) -> Path:
    export.main(["--checkpoint", str(checkpoint), "--to", kind, "--out", str(out), *options])
    return out


@pytest.mark.parametrize("changes", [{}, {"class_head": "isomax"}, {"size": "dinov3-tiny"}], ids=str)
def test_no_other_score_and_no_class_moves_by_a_bit(changes: dict[str, str]) -> None:
    names = [name for name in (*SCORES, *QUERY_SCORES) if NEEDS[name] in ("", "queries")]
    model = make_model(**changes)
    maps = make_predictor(model, "cpu", scores=names)(IMAGE)
    model.set_outlier_head(OutlierHeadConfig(width=16))
    assert torch.equal(make_predictor(model, "cpu", scores=names)(IMAGE), maps)
    more = make_predictor(model, "cpu", scores=("EAM", "LikelihoodRatio", "RbA", "SoleClaim"))(IMAGE)
    queries = [name for name in names if name in QUERY_SCORES]
    kept = [*range(19), *(19 + queries.index(name) for name in ("EAM", "SoleClaim"))]
    assert torch.equal(more[:, [*range(20), 21]], maps[:, kept])
    ratio = torch.nn.functional.interpolate(
        model(IMAGE).outlier_maps["LikelihoodRatio"], (32, 32), mode="bilinear"
    )
    torch.testing.assert_close(more[:, 20], ratio[:, 0])


def test_the_head_alone_trains_and_nothing_is_kept_of_what_it_reads() -> None:
    model = with_head(make_model())
    whole, head = (count_parameters(part.parameters()) for part in (model, model.outlier_head))
    assert whole.trainable == head.total
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.grad_fn) or t, lambda t: t):
        prediction = model(IMAGE)
    assert not prediction.mask_logits[-1].requires_grad
    prediction.outlier_maps["LikelihoodRatio"].square().mean().backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2).step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) is not name.startswith("outlier_head."), name
    heads = make_model()
    apply_adaptation(heads, AdaptConfig(mode="heads"))
    assert heads(IMAGE).mask_logits[-1].requires_grad


def test_claims_are_numbers_of_a_few_units_even_for_extreme_logits() -> None:
    masks = torch.tensor([1e4, 0.0, -1e4]).reshape(1, 1, 1, 3)
    sure, torn, free = read_claims(QueryOutputs(masks, torch.tensor([[[50.0, 0, 0]]]), 2))[0, :, 0].T
    torch.testing.assert_close(sure, torch.zeros(3), atol=1e-3, rtol=0)
    assert (sure[1:] < torn[1:]).all()
    assert (torn[1:] < free[1:]).all()
    assert torch.stack((sure, torn, free)).isfinite().all()
    assert torch.stack((sure, torn, free)).max() < 12


@pytest.mark.parametrize(
    ("depth", "blocks"), [(6, (0, 2, 3, 5)), (12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (2, (0, 1))]
)
def test_four_blocks_are_read_unless_others_are_named(depth: int, blocks: tuple[int, ...]) -> None:
    assert OutlierHeadConfig(width=8).completed(depth).blocks == blocks
    assert OutlierHeadConfig(width=8, blocks=(1,)).completed(depth).blocks == (1,)
    assert OutlierHeadConfig().completed(depth) == OutlierHeadConfig()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"width": -1}, "model.outlier_head.width must be 1 to 10000, or 0 to follow the weights, got -1"),
        ({"width": 8, "blocks": (2, 1)}, "blocks: got 2, 1; numbers from 0, ascending, each once"),
        ({"width": 8, "blocks": (-1,)}, "blocks: got -1; numbers from 0, ascending, each once"),
        ({"blocks": (1,)}, "model.outlier_head: with blocks or claims, width is needed"),
        ({"width": 8, "blocks": (0, 6)}, "model.outlier_head.blocks: got 6, the trunk's are 0 to 5"),
    ],
)
def test_impossible_heads_are_refused(changes: dict[str, object], text: str) -> None:
    with refused(text):
        make_model(outlier_head=OutlierHeadConfig(**changes))  # type: ignore[arg-type]


def test_a_head_goes_on_as_it_is_or_is_taken_off_by_other_modes(tmp_path: Path) -> None:
    run = save_with_head(tmp_path, make_model(), outlier_head=OutlierHeadConfig(width=16, blocks=(1, 4)))
    model = with_head(initialise_model(ModelConfig(weights=str(run))))
    assert model.config.outlier_head == OutlierHeadConfig(width=16, blocks=(1, 4))
    torch.testing.assert_close(ratio(model), ratio(load_model(run)))  # frozen, kernels round otherwise
    apply_adaptation(model, AdaptConfig(mode="heads"))
    assert model.outlier_head is None
    assert not any(name.startswith("outlier_head") for name in model.state_dict())
    assert model.config.outlier_head == OutlierHeadConfig()
    wider = ModelConfig(weights=str(run), outlier_head=OutlierHeadConfig(width=32))
    text = r"model.outlier_head of width 32, .* \(checkpoint: of width 16, which reads blocks 1, 4 and claims"
    with refused(text):
        initialise_model(wider)


def test_the_trained_head_is_measured_exported_and_read_back(
    tmp_path: Path,
    scene_shards: str,
    cutout_shard: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a base to a run, to a small file, onto the base in other formats, through evaluation and ONNX."""
    monkeypatch.setitem(SIZES, "tiny", dataclasses.replace(SIZES["tiny"], depth=2))
    base = make_model(num_queries=5, patch_size=8)
    run = tmp_path / "runs" / "run"
    arguments = make_arguments(run.parent, scene_shards, *HEAD_OPTIONS, "--paste.bank", cutout_shard)
    finetune.main([*arguments, "--model.weights", str(save(base, tmp_path / "base"))])
    trained, early = weights(run.parent), weights(run.parent, 2)
    assert all(torch.equal(trained[name], value) for name, value in base.state_dict().items())
    own = trained.keys() - base.state_dict().keys()
    assert not [name for name in own if torch.equal(trained[name], early[name])]

    head = write_export(run, "outlier_head", tmp_path / "head") / "outlier_head.safetensors"
    assert load_file(head).keys() == own
    logits = ratio(load_model(run))
    assert torch.equal(ratio(load_model(head)), logits)
    theirs = write_export(tmp_path / "base", "huggingface", tmp_path / "hf")
    whole = write_export(tmp_path / "head", "safetensors", tmp_path / "whole", "--base", str(theirs))
    assert torch.equal(ratio(load_model(whole / "model.safetensors")), logits)
    assert load_model(whole / "model.safetensors").config.image_size == (32, 32)
    off = write_export(run, "safetensors", tmp_path / "off", "--outlier_head", "False")
    assert load_file(off / "model.safetensors").keys() == base.state_dict().keys()
    of_run = write_export(run, "huggingface", tmp_path / "hf-of-run")
    assert EomtForUniversalSegmentation.from_pretrained(of_run).config.num_queries == 5
    doctor.main(["checkpoint", str(head)])
    assert "of width 128, which reads blocks 0, 1 and claims" in capsys.readouterr().out

    anomaly = np.eye(32, dtype=np.uint8)
    write_set(tmp_path / "sets/RoadAnomaly21", [(np.stack([anomaly] * 3, axis=2), anomaly)])
    sets = ["--datasets", str(tmp_path / "sets"), "--device", "cpu", "--pictures", "0"]
    sets += ["--components", "False"]
    for place in (run, head, whole):
        evaluate.main(["--checkpoint", str(place), *sets, "--out", str(tmp_path / f"eval-{place.name}")])
        assert "| LikelihoodRatio |" in capsys.readouterr().out
    sets += ["--scores", "LikelihoodRatio", "--out", str(tmp_path / "no")]
    with refused(f"--scores: {tmp_path / 'base'} has no outlier head, which LikelihoodRatio reads"):
        evaluate.main(["--checkpoint", str(tmp_path / "base"), *sets])

    graph = write_export(run, "onnx", tmp_path / "onnx", "--score", "LikelihoodRatio") / "model.onnx"
    classes, score = onnxruntime.InferenceSession(str(graph)).run(None, {"image": IMAGE.numpy()})
    maps = make_predictor(load_model(run), "cpu", scores=("LikelihoodRatio",))(IMAGE)
    np.testing.assert_allclose(np.concatenate((classes, score[:, None]), axis=1), maps, atol=1e-4)


def test_a_head_fits_its_base_at_any_image_size_and_no_other_base(tmp_path: Path) -> None:
    run = save_with_head(tmp_path, make_model(), image_size=(64, 32))
    head = write_export(run, "outlier_head", tmp_path / "head") / "outlier_head.safetensors"
    found, whole = open_checkpoint(head), load_model(run).state_dict()
    assert found.config.image_size == (64, 32)
    assert all(torch.equal(value, whole[name]) for name, value in found.weights.items())
    torch.manual_seed(1)
    others = {
        "other": (EoMT(dataclasses.replace(make_model().config)), "was trained on other weights than"),
        "wide": (make_model(size="small"), r"reads a trunk tiny .*wide.* has small \(width 384"),
    }
    for name, (model, text) in others.items():
        with refused(rf"outlier_head.safetensors: the outlier head {text}"):
            load_model(head, str(save(model, tmp_path / name)))
    (tmp_path / "base").rename(tmp_path / "moved")
    with refused(r"an outlier head without its base; its header names '.*base', which is not there; jobs"):
        load_model(head)
    assert load_model(head, str(tmp_path / "moved")).outlier_head is not None


def test_a_head_of_other_blocks_or_damaged_is_one_line(tmp_path: Path) -> None:
    run = save_with_head(tmp_path, make_model())
    head = write_export(run, "outlier_head", tmp_path / "head") / "outlier_head.safetensors"
    lacking = {name: value for name, value in load_file(head).items() if ".tokens.3." not in name}
    write_weight_file(lacking, head, read_metadata(head))
    with refused(r"do not fit the model: 4 missing \[outlier_head.tokens.3"):
        load_model(head)
    head.write_bytes(head.read_bytes()[:100])
    with refused("outlier_head.safetensors: truncated, or no safetensors file"):
        load_model(head)
    with refused("--to outlier_head: .*base has none; adapt.mode outlier_head trains one"):
        write_export(tmp_path / "base", "outlier_head", tmp_path / "x")


def test_a_fingerprint_is_of_the_numbers_alone() -> None:
    model = make_model()
    state = model.state_dict()
    other_order = dict(reversed(state.items()))
    assert fingerprint(other_order) == fingerprint(with_head(model).state_dict()) == fingerprint(state)
    assert fingerprint({**state, "queries.weight": state["queries.weight"] + 1e-6}) != fingerprint(state)
