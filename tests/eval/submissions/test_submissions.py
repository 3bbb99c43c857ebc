"""Packages hold what each benchmark's own reader looks for; what is wrong with one is said in one line."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch

from eval.predict.scores import SCORES
from eval.predict.strips import PixelPrediction, plain_scores, predict_pixels
from eval.sets.frames import image_size
from eval.submissions.bravo import confidence
from eval.submissions.export import unfinished_folder, write_package, write_predictions
from eval.submissions.package import BENCHMARKS, Description
from eval.submissions.smiyc import LOG_SCORES, spread, to_half
from eval.submissions.verify import PackageFindings, largest_tie, verify_package
from tests.support.refused import refused

STEM = "04_Maurener_Weg_8_000000_000030"
LOST_AND_FOUND = f"LostAndFound/leftImg8bit/test/04_Maurener_Weg_8/{STEM}_leftImg8bit.png"
ZEBRA = "anomaly_p/ours/AnomalyTrack-all/zebra0000.hdf5"
Predict = Callable[[np.ndarray], PixelPrediction]


def write_picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """Lay out one labelled and two hidden frames of SMIYC, Fishyscapes' Lost and Found, two of BRAVO."""
    root = tmp_path / "downloads"
    images = (
        "dataset_AnomalyTrack/images/validation0000.jpg",
        "dataset_AnomalyTrack/images/zebra0000.jpg",
        "dataset_ObstacleTrack/images/curvy-street_1.webp",
        LOST_AND_FOUND,
        "bravo_SMIYC/RoadAnomaly21/images/zebra0000.jpg",
        "bravo_ACDC/fog/test/GOPR0475/GOPR0475_frame_000247_rgb_anon.png",
    )
    for i, name in enumerate(images):
        write_picture(root / name, i)
    mask = np.zeros((6, 8), np.uint8)
    mask[:2] = 1
    for name in (
        "dataset_AnomalyTrack/labels_masks/validation0000_labels_semantic.png",
        f"fishyscapes_lostandfound/0007_{STEM}_labels.png",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(root / name), mask)
    return root


def answer(image: np.ndarray) -> PixelPrediction:
    """Score the upper rows higher, with the image's noise on top; classes are its red channel, mod 19."""
    rows = np.linspace(1, 0, image.shape[0], dtype=np.float32)[:, None]
    red = image[..., 0]
    return PixelPrediction({"RbA": rows + red / np.float32(1000) - 1}, (red % 19).astype(np.uint8))


def write(name: str, root: Path, out: Path, predict: Predict = answer, score: str = "RbA") -> PackageFindings:
    pictures = BENCHMARKS[name].choose_pictures(root)
    frames = {picture.key: image_size(picture.image) for picture in pictures}
    description = Description(
        benchmark=name, method="ours", model="run", fingerprint="1", score=score, frames=frames
    )
    return write_package(out, description, pictures, predict)


def predicted(path: Path) -> PixelPrediction:
    return answer(cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1])


def test_smiyc_is_read_as_its_toolkit_reads(downloads: Path, tmp_path: Path) -> None:
    write("smiyc", downloads, tmp_path / "out")
    # Transcribed: DatasetRA.discover, Evaluation.channels["anomaly_p"], ChannelLoaderHDF5.read_file.
    template = "{root}/anomaly_p/{method_name}/{dset_name}/{fid}.hdf5"
    paths = list(downloads.glob("dataset_*/images/*"))
    assert len(paths) == 3  # hidden frames too
    for path in paths:
        track = path.parts[-3].removeprefix("dataset_") + "-all"
        given = {"root": tmp_path / "out", "method_name": "ours", "dset_name": track, "fid": path.stem}
        with h5py.File(template.format(**given), "r") as file:
            value = file["value"][:]
        assert value.dtype == np.float16
        np.testing.assert_array_equal(value, predicted(path).scores["RbA"].astype(np.float16))


def test_fishyscapes_is_read_as_its_validation_reads(downloads: Path, tmp_path: Path) -> None:
    write("fishyscapes", downloads, tmp_path / "out")
    # Transcribed: list_img_from_dir and main of eval.py.
    found = {}
    for ending in ("_anomaly.npy", "_segmentation.npy"):
        paths = [path for path in (tmp_path / "out").iterdir() if path.name.lower().endswith(ending)]
        found[ending] = sorted(paths, key=lambda path: int(path.name.split("_")[0]))
    scores, classes = (np.load(paths[0]) for paths in found.values())
    expected = predicted(downloads / LOST_AND_FOUND)
    np.testing.assert_array_equal(scores, expected.scores["RbA"])
    np.testing.assert_array_equal(classes, expected.classes)
    assert classes.ndim == 2
    assert np.all(classes < 20)
    assert [path.name for path in found["_anomaly.npy"]] == ["0007_anomaly.npy"]


def test_the_input_folder_of_fishyscapes_container_is_read(tmp_path: Path) -> None:
    write_picture(tmp_path / "input" / f"0003_{STEM}_rgb.png")
    write("fishyscapes", tmp_path / "input", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["0003_anomaly.npy", "0003_segmentation.npy", "submission.json"]
    write_picture(tmp_path / "input/0003_other.png")
    with refused(f"0003_other.png: two images of number 0003; the other is 0003_{STEM}"):
        BENCHMARKS["fishyscapes"].choose_pictures(tmp_path / "input")


def test_bravo_is_read_as_its_encoder_reads(downloads: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write("bravo", downloads, out)
    assert len(list(out.rglob("*_pred.png"))) == 2
    # Transcribed: SPLIT_TO_PRED_SUFFIX, SPLIT_TO_CONF_SUFFIX and process_tar_files.
    for folder, suffix, image in (
        ("bravo_ACDC", "_rgb_anon_", "_rgb_anon.png"),
        ("bravo_SMIYC", "_", ".jpg"),
    ):
        (path,) = (out / folder).rglob(f"*{suffix}pred.png")
        base = path.relative_to(out).as_posix().removesuffix(f"{suffix}pred.png")
        classes = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        sure = cv2.imread(str(out / f"{base}{suffix}conf.png"), cv2.IMREAD_UNCHANGED)
        assert (classes.dtype, sure.dtype, classes.shape) == (np.uint8, np.uint16, sure.shape)
        expected = predicted(downloads / f"{base}{image}")
        np.testing.assert_array_equal(classes, expected.classes)
        exact = 1 / (1 + np.exp(expected.scores["RbA"].astype(np.float64)))
        np.testing.assert_array_equal(sure, np.minimum(np.floor(exact * 65536), 65535))


def test_scores_are_plain() -> None:
    class_scores = torch.rand(6, 70, 9, generator=torch.Generator().manual_seed(0))
    computed = predict_pixels(class_scores, ["MSP"], plain_scores)
    np.testing.assert_allclose(computed.scores["MSP"], 1 - class_scores.softmax(0).amax(0).numpy(), atol=1e-6)
    assert (predict_pixels(class_scores[5:], ["Mine"], plain_scores).classes == 255).all()


def test_a_probability_stays_one_in_16_bits() -> None:
    scores = np.array([[0.0, 0.25, 1.0, 1 - 2**-16]], np.float32)
    np.testing.assert_array_equal(confidence("MSP", scores), [[65535, 49152, 0, 1]])
    assert confidence("RbA", np.array([[-1e4, 0, 1e4]], np.float32)).tolist() == [[65535, 32768, 0]]


@pytest.mark.parametrize("scale", [1.0, 20.0], ids=["evidence of a mask model", "logits"])
@pytest.mark.parametrize("score", LOG_SCORES)
def test_the_logarithm_keeps_the_order_and_more_of_it(score: str, scale: float) -> None:
    class_scores = scale * torch.rand(1, 19, 200, 200, generator=torch.Generator().manual_seed(0))
    values = SCORES[score](class_scores)[0].numpy()
    half = to_half(score, values)
    order = np.argsort(values, axis=None, kind="stable")
    assert np.all(np.diff(half.ravel()[order].astype(np.float32)) >= 0)
    if scale == 1:
        assert len(np.unique(half)) > 3 * len(np.unique(values.astype(np.float16)))
    assert largest_tie(half) <= largest_tie(values.astype(np.float16)) + 1e-4
    assert np.isfinite(spread(score, np.zeros((1, 1), np.float32))).all()


def test_a_score_beyond_half_precision_is_refused() -> None:
    with refused("score Energy: 70000 does not fit into float16"):
        to_half("Energy", np.full((2, 2), 7e4, np.float32))


def test_a_killed_export_goes_on_and_predicts_only_what_is_missing(downloads: Path, tmp_path: Path) -> None:
    out, calls = tmp_path / "out", []

    def dies_at_the_third(image: np.ndarray) -> PixelPrediction:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(image)

    with pytest.raises(KeyboardInterrupt):
        write("smiyc", downloads, out, dies_at_the_third)
    assert not out.exists()
    growing = unfinished_folder(out)
    torn = growing / ZEBRA
    torn.write_bytes(torn.read_bytes()[:300])  # as a full disk may leave it
    with refused(r"\.out\.unfinished: holds an unfinished package that differs in score"):
        write("smiyc", downloads, out, score="MSP")
    findings = write("smiyc", downloads, out, dies_at_the_third)
    assert len(calls) == 5  # two more: the torn one and the third
    assert sum(findings.counts.values()) == 3
    assert not growing.exists()
    write("smiyc", downloads, tmp_path / "at_once")
    for path in (tmp_path / "at_once").rglob("*.hdf5"):
        assert path.read_bytes() == (out / path.relative_to(tmp_path / "at_once")).read_bytes()
    with refused(r"--out .*out: the folder already holds files"):
        write("smiyc", downloads, out)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.nan, r"validation0000.jpg: the model answers NaN as RbA"),
        (np.inf, r"validation0000.jpg: the model answers infinity as RbA"),
        (0.5, r"validation0000.jpg: what the model answers cannot be submitted: .*: the same value 0.5 "),
    ],
)
def test_answers_that_cannot_be_submitted_stop_at_the_first_image(
    downloads: Path, tmp_path: Path, value: float, text: str
) -> None:
    def broken(image: np.ndarray) -> PixelPrediction:
        scores = np.full(image.shape[:2], 0.5, np.float32)
        scores[1, 1] = value
        return PixelPrediction({"RbA": scores}, CLASSES)

    with refused(text):
        write("smiyc", downloads, tmp_path / "out", broken)
    assert not (tmp_path / "out").exists()


RAMP = np.arange(48, dtype=np.float16).reshape(6, 8)
CLASSES = np.zeros((6, 8), np.uint8)
ANOMALY, CLASS_MAP = "0007_anomaly.npy", "0007_segmentation.npy"
BRAVO = "bravo_SMIYC/RoadAnomaly21/images/zebra0000"
FAULTS = [
    ("smiyc", ZEBRA, RAMP.astype(np.float32), "value is float32 of shape (6, 8); expected float16 (H, W)"),
    ("smiyc", ZEBRA, RAMP[None], "value is float16 of shape (1, 6, 8); expected"),
    ("smiyc", ZEBRA, {"score": RAMP}, "holds score; expected the dataset value"),
    ("smiyc", ZEBRA, RAMP[:3], "is 8 x 3, its image 8 x 6"),
    ("smiyc", ZEBRA, RAMP * np.float16("nan"), "holds NaN"),
    ("smiyc", ZEBRA, np.where(RAMP > 3, RAMP, np.float16("inf")), "holds infinity"),
    ("smiyc", ZEBRA, RAMP * 0 + 2, "the same value 2.0 at every pixel"),
    ("smiyc", ZEBRA, b"no", "cannot be read as HDF5"),
    ("smiyc", ZEBRA, None, "1 of 3 images missing, such as AnomalyTrack-all/zebra0000"),
    ("fishyscapes", ANOMALY, RAMP.astype(int), "int64 of shape (6, 8); expected floating"),
    ("fishyscapes", ANOMALY, np.array([{}]), "cannot be read as an array"),
    ("fishyscapes", CLASS_MAP, CLASSES + 19, "classes 19 to 19; allowed are 0 to 18"),
    ("fishyscapes", CLASS_MAP, None, "0007_segmentation.npy: is missing"),
    ("fishyscapes", CLASS_MAP, CLASSES[:2], "0007_segmentation.npy: is 8 x 2, its image 8 x 6"),
    ("bravo", f"{BRAVO}_conf.png", CLASSES, "is grey of 8 bits; grey of 16 bits is needed"),
    ("bravo", f"{BRAVO}_pred.png", CLASSES + 255, "class 255; allowed are 0 to 18"),
    ("bravo", f"{BRAVO}_pred.png", b"no", "is no PNG file (2 bytes)"),
]


def replace_file(path: Path, content: np.ndarray | dict[str, np.ndarray] | bytes | None) -> None:
    """Put other values, datasets or bytes into a file of a package; None: no file."""
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None and path.suffix == ".hdf5":
        with h5py.File(path, "w") as file:
            file.update(content if isinstance(content, dict) else {"value": content})
    elif content is not None:
        cv2.imwrite(str(path), content) if path.suffix == ".png" else np.save(path, content)


@pytest.mark.parametrize(("benchmark", "name", "content", "text"), FAULTS, ids=lambda value: "")
def test_a_fault_in_a_package_is_named(
    downloads: Path, tmp_path: Path, benchmark: str, name: str, content: object, text: str
) -> None:
    write(benchmark, downloads, tmp_path / "out")
    replace_file(tmp_path / "out" / name, content)  # type: ignore[arg-type]
    (problem,) = verify_package(tmp_path / "out").problems
    assert text in problem


def test_files_of_no_image_and_missing_images_are_told_from_the_downloads(
    downloads: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write("smiyc", downloads, out)
    (out / "submission.json").unlink()
    assert not verify_package(out).problems  # nothing to compare with
    folder = out / "anomaly_p/ours/AnomalyTrack-all"
    (folder / "zebra0000.hdf5").rename(folder / "zebra0001.hdf5")
    findings = verify_package(out, lambda benchmark: benchmark.choose_pictures(downloads))
    assert findings.problems == [
        "1 of 3 images missing, such as AnomalyTrack-all/zebra0000",
        "1 of 3 images of no image, such as AnomalyTrack-all/zebra0001",
    ]
    (out / "notes.txt").write_text("x")
    with refused("out: 1 files that smiyc does not expect, such as notes.txt"):
        verify_package(out)


def test_scores_that_are_upside_down_are_told_by_labels_and_without(downloads: Path, tmp_path: Path) -> None:
    def upside_down(image: np.ndarray) -> PixelPrediction:
        right = answer(image)
        return PixelPrediction({"RbA": -((right.scores["RbA"] + 1) ** 3)}, right.classes)

    findings = write("smiyc", downloads, tmp_path / "out", upside_down)
    (warning,) = [line for line in findings.warnings if "upside down" in line]
    assert re.match(r"upside down: over 1 labelled images AUROC is 0\.0", warning)
    (warning,) = [line for line in verify_package(tmp_path / "out").warnings if "upside down" in line]
    assert "no labels to tell" in warning
    assert not any("upside" in line for line in write("smiyc", downloads, tmp_path / "right").warnings)


def test_many_ties_are_told(downloads: Path, tmp_path: Path) -> None:
    rows = np.repeat(np.arange(6, dtype=np.float32)[::-1, None], 8, axis=1)
    findings = write(
        "smiyc", downloads, tmp_path / "out", lambda image: PixelPrediction({"RbA": rows}, CLASSES)
    )
    assert findings.warnings[0].startswith(
        "ties: 16.7 % of an image's pixels have one and the same value on av"
    )


def test_archives_are_read_and_must_begin_where_the_package_does(downloads: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write("bravo", downloads, out)
    with tarfile.open(tmp_path / "good.tar", "w") as archive:
        archive.add(out, arcname=".")
    assert sum(verify_package(tmp_path / "good.tar").counts.values()) == 2
    with zipfile.ZipFile(tmp_path / "deep.zip", "w") as zipped:
        for path in out.rglob("*.png"):
            zipped.write(path, f"mine/{path.relative_to(out)}")
    with tarfile.open(tmp_path / "unsafe.tar", "w") as archive:
        archive.add(out / "submission.json", arcname="../submission.json")
    (tmp_path / "torn.tar").write_bytes(b"no tar")
    for name, text in (
        ("deep.zip", "no file of a package in it; its files lie in mine/, and must lie at the"),
        ("unsafe.tar", "unsafe.tar: holds a member with the unsafe name '../submission.json'"),
        ("torn.tar", "torn.tar: is no complete tar file"),
        ("nowhere", "nowhere: expected the folder of a package, or a .zip, .tar"),
    ):
        with refused(text):
            verify_package(tmp_path / name)


def test_what_is_asked_for_must_be_there(downloads: Path, tmp_path: Path) -> None:
    (found,) = BENCHMARKS["smiyc"].choose_pictures(downloads, ("ObstacleTrack-all",))
    assert found.key == "ObstacleTrack-all/curvy-street_1"
    write_picture(downloads / "0000_x.png")
    for benchmark, root, parts, text in (
        ("bravo", tmp_path, (), r"no image of bravo in it; expected bravo_ACDC, "),
        ("smiyc", downloads, ("X",), "--parts: got 'X'; below .* are AnomalyTrack-all, ObstacleTrack-all"),
        ("smiyc", tmp_path / "nowhere", (), "--datasets .*nowhere: no such folder"),
        ("fishyscapes", downloads, (), "--parts: input, LostAndFound number their images alike; name one of"),
    ):
        with refused(text):
            BENCHMARKS[benchmark].choose_pictures(root, parts)


def test_lost_and_found_is_submitted_where_its_own_labels_lie(downloads: Path) -> None:
    (downloads / "LostAndFound/gtCoarse/test").mkdir(parents=True)
    keys = [picture.key for picture in BENCHMARKS["smiyc"].choose_pictures(downloads)]
    assert keys[-1] == f"LostAndFound-test/{STEM}"


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "a b", "EoMT-B_rba+coco.v2"])
def test_a_method_is_a_name(tmp_path: Path, name: str) -> None:
    given = {"benchmark": "bravo", "datasets": tmp_path / "nowhere", "parts": (), "score": "RbA"}
    text = (
        "nowhere: no such folder"
        if len(name) > 3
        else "--method: got .*; a method's name has letters, digits"
    )
    with refused(text):
        write_predictions(lambda _: None, tmp_path / "out", method=name, **given)  # type: ignore[arg-type]


def test_without_h5py_one_line_says_what_to_install(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with refused(r'need h5py: pip install "eomt-anomaly\[submission\]"'):
        write("smiyc", downloads, tmp_path / "out")
