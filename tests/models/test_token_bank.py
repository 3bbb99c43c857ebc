"""The fitted outlier head against scikit-learn, and the program that fits it, killed, shared and refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.covariance import ShrunkCovariance
from sklearn.neighbors import NearestNeighbors

from eval.predict.queries import QueryOutputs, pixel_class_scores
from eval.predict.score_names import HEAD_SCORES
from jobs import evaluate, fit_head
from models import token_bank
from models.config import OutlierHeadConfig
from models.segmenter import make_predictor
from models.token_bank import TokenBank, join_tokens, label_patches, sum_tokens, sum_tops
from models.weights.checkpoint import load_model
from tests.models.tiny import IMAGE, make_model, save
from tests.support.evaluation import write_test_sets
from tests.support.refused import refused

D, C, SHRINKAGE = 6, 4, 0.05


def draw_tokens(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, C - 1, (count,), generator=generator)  # of the last class there is none
    tokens = torch.randn(count, D, generator=generator) * torch.arange(1, D + 1) + classes[:, None]
    return join_tokens([tokens[None]])[0], classes


def draw_queries(seed: int, of_last: float = -9.0) -> QueryOutputs:
    """Ten queries; `of_last` is added to the logits of the last class."""
    generator = torch.Generator().manual_seed(seed)
    masks, classes = (torch.randn(shape, generator=generator) for shape in ((1, 10, 6, 8), (1, 10, C + 1)))
    classes[..., C - 1] += of_last
    return QueryOutputs(3 * masks, 2 * classes, C)


def test_a_fit_is_scikit_learn_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Covariances with shrinkage, Mahalanobis distances, the ratio of densities, and nearest neighbours."""
    monkeypatch.setattr(token_bank, "MOST_AT_ONCE", 100)  # several parts
    tokens, classes = draw_tokens(400, 0)
    tops = torch.zeros(C, 3, dtype=torch.float64)
    halves = [sum_tokens(tokens[part], classes[part], tops) for part in (slice(150), slice(150, None))]
    bank = TokenBank(OutlierHeadConfig(bank=50, blocks=(0,)), D, C)
    bank.fill(halves[0] + halves[1], tokens[:50], SHRINKAGE)
    seen, _ = draw_tokens(12, 1)
    raw = seen[None] * 3 + 5  # is normalised again
    maps = {
        name: value.flatten().double().numpy()
        for name, value in bank([raw], (3, 4), None, draw_queries(0)).items()
    }
    x, known = tokens.double().numpy(), classes.numpy()
    seen64 = seen.double().numpy()
    means = [x[known == c].mean(axis=0) for c in range(C - 1)]
    centred = x - np.array(means)[known]
    within = ShrunkCovariance(shrinkage=SHRINKAGE, assume_centered=True).fit(centred)
    distances = np.array([within.mahalanobis(seen64 - mean) for mean in means])
    np.testing.assert_allclose(maps["Mahalanobis"], distances.min(axis=0), rtol=1e-3)
    everything = ShrunkCovariance(shrinkage=SHRINKAGE).fit(x)
    outlier = multivariate_normal(everything.location_, everything.covariance_).logpdf(seen64)
    inlier = [
        np.log((known == c).mean()) + multivariate_normal(mean, within.covariance_).logpdf(seen64)
        for c, mean in enumerate(means)
    ]
    np.testing.assert_allclose(maps["LikelihoodRatio"], outlier - logsumexp(inlier, axis=0), atol=2e-3)
    neighbours = NearestNeighbors(n_neighbors=1).fit(x[:50])
    np.testing.assert_allclose(maps["NearestNeighbor"], neighbours.kneighbors(seen64)[0][:, 0], atol=1e-3)


def test_standardised_max_logits_are_numpy_s() -> None:
    """A class without pixels has the numbers of all."""
    tokens, classes = draw_tokens(60, 0)
    seen, new = (draw_queries(0), draw_queries(1)), draw_queries(4, of_last=0.0)
    sums = [sum_tokens(tokens, classes, sum_tops(queries)) for queries in seen]
    bank = TokenBank(OutlierHeadConfig(bank=1, blocks=(0,)), D, C)
    bank.fill(sums[0] + sums[1], tokens[:1], SHRINKAGE)
    of_pixel = [pixel_class_scores(*queries[:2])[0].double().flatten(1).numpy() for queries in (*seen, new)]
    fitted, asked = np.concatenate(of_pixel[:2], axis=1), of_pixel[2]
    top, winner = fitted.max(axis=0), fitted.argmax(axis=0)
    assert set(winner) == set(range(C - 1))
    groups = [top[winner == c] for c in range(C - 1)] + [top]
    means, deviations = np.array([(group.mean(), group.std()) for group in groups]).T
    predicted = asked.argmax(axis=0)
    assert set(predicted) == set(range(C))
    expected = (means[predicted] - asked.max(axis=0)) / deviations[predicted]
    found = bank([tokens[None, :12]], (3, 4), None, new)["StandardizedMaxLogit"]
    assert found.shape == (1, 1, 6, 8)
    np.testing.assert_allclose(found.flatten(), expected, rtol=1e-4, atol=1e-4)


def test_a_patch_is_of_the_class_of_more_than_half_of_its_pixels() -> None:
    label = torch.full((1, 4, 6), 255, dtype=torch.uint8)
    label[0, :2, :2] = torch.tensor([[3, 3], [3, 254]])
    label[0, :2, 2:4] = torch.tensor([[3, 3], [1, 1]])
    label[0, 2:, 4:] = 1
    assert label_patches(label, 2, 19).tolist() == [[3, -1, -1, -1, -1, 1]]


def fit(folder: Path, shards: str, *extra: str) -> Path:
    words = ["--checkpoint", str(folder / "base"), "--shards", shards, "--bank", "40", "--device", "cpu"]
    fit_head.main([*words, "--out", str(folder / "fitted"), *extra])
    return folder / "fitted"


def test_a_head_is_fitted_measured_and_refused(
    tmp_path: Path, scene_shards: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three processes, or a fit that was killed, write the bytes of one."""
    monkeypatch.setattr("jobs.work.fit_head.SCENES_PER_PART", 3)
    model = make_model(num_queries=5)
    save(model, tmp_path / "base")
    fitted = fit(tmp_path, scene_shards)
    assert "fitted to" in (told := capsys.readouterr().out)
    head = load_model(fitted)
    assert head.config.outlier_head.blocks == (5,)
    assert f"bank of {head.config.outlier_head.bank} tokens" in told
    assert 0 < head.config.outlier_head.bank <= 60
    assert not list(tmp_path.glob(".*.parts"))
    one = (fitted / "outlier_head.safetensors").read_bytes()
    shutil.rmtree(fitted)
    for task in ("2/3", "0/3"):
        fit(tmp_path, scene_shards, "--task", task)
        assert not fitted.exists()
    (tmp_path / ".fitted.parts" / "0.npz").write_bytes(b"damaged")
    fit(tmp_path, scene_shards)
    assert (fitted / "outlier_head.safetensors").read_bytes() == one

    maps = make_predictor(model, "cpu", scores=("EAM",))(IMAGE)
    names = ("NearestNeighbor", "EAM", *HEAD_SCORES[:2], HEAD_SCORES[-1])
    found = make_predictor(head, "cpu", scores=names)(IMAGE)
    assert torch.equal(found[:, [*range(19), 20]], maps)
    sets = ["--datasets", str(write_test_sets(tmp_path / "sets")), "--device", "cpu", "--pictures", "0"]
    sets += ["--components", "False", "--limit", "1"]
    evaluate.main(["--checkpoint", str(fitted), *sets, "--out", str(tmp_path / "eval")])
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in ("MSP", *HEAD_SCORES))
    assert not any(
        name.startswith(("outlier_head.whiten", "outlier_head.top")) and not value.any()
        for name, value in load_file(fitted / "outlier_head.safetensors").items()
    )
    sets += ["--scores", "Mahalanobis", "--out", str(tmp_path / "no")]
    with refused("base has no fitted outlier head, which Mahalanobis reads"):
        evaluate.main(["--checkpoint", str(tmp_path / "base"), *sets])
    with refused("--out .*fitted: the folder already holds files"):
        fit(tmp_path, scene_shards)
    save(make_model(num_queries=4), tmp_path / "other")
    with refused("the outlier head was trained on other weights than .*other"):
        load_model(fitted, str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--bank", "0"), "--bank: got 0; at least 1"),
        (("--shrinkage", "1.5"), "--shrinkage: got 1.5; 0 to 1 are allowed"),
        (("--blocks", "6"), "model.outlier_head.blocks: got 6, the trunk's are 0 to 5"),
        (("--shards", "/nowhere"), "/nowhere: no shard found"),
        (("--task", "3/3"), "--task: got '3/3'"),
    ],
)
def test_impossible_fits_are_one_line(
    tmp_path: Path, scene_shards: str, words: tuple[str, ...], text: str
) -> None:
    save(make_model(), tmp_path / "base")
    with refused(text):
        fit(tmp_path, scene_shards, *words)
    assert not (tmp_path / "fitted").exists()


def test_scenes_without_a_class_give_no_bank() -> None:
    bank = TokenBank(OutlierHeadConfig(bank=1, blocks=(0,)), D, C)
    tops = sum_tops(draw_queries(0))
    nothing = sum_tokens(torch.zeros(0, D), torch.zeros(0, dtype=torch.long), tops)
    with refused("outlier head: 0 patches show mostly one class; two are needed"):
        bank.fill(nothing, torch.zeros(0, D), 0.1)
    alike = sum_tokens(torch.ones(9, D), torch.zeros(9, dtype=torch.long), tops)
    with refused("outlier head: the tokens are all alike; more scenes or more shrinkage are needed"):
        bank.fill(alike, torch.ones(1, D), 0.1)
