from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from outlier_paste.bank import resize_cutout
from outlier_paste.config import PasteConfig
from outlier_paste.paste import OutlierPaste, build_paste, drop_remnants
from shards.cutout import Cutout, encode_cutout
from shards.errors import InputError
from shards.schema import OUTLIER_ID, VOID_ID, Sample


def make_cutout(number: int) -> Cutout:
    """A disc of 60 pixels, in a colour that no scene below has."""
    rows, columns = np.mgrid[:60, :60]
    mask = ((rows - 29.5) ** 2 + (columns - 29.5) ** 2 < 900).astype(np.uint8) * np.uint8(255)
    image = np.full((60, 60, 3), (255, 0, 200 + number), np.uint8)
    return Cutout(key=f"{number}", image=image, mask=mask, category="disc", source_size=(480, 640))


@pytest.fixture
def bank(tmp_path: Path) -> str:
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for number in range(5):
            for suffix, content in encode_cutout(make_cutout(number)).items():
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(tmp_path / "b.tar")


def make_scene(seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    label = np.full((120, 160), 10, np.uint8)
    label[60:] = 0
    return Sample(key=f"s{seed}", image=rng.integers(0, 99, (120, 160, 3), dtype=np.uint8), label=label)


def build(bank: str, **settings: object) -> OutlierPaste:
    paste = build_paste(PasteConfig(bank=bank, **{"probability": 1.0, **settings}))  # type: ignore[arg-type]
    assert paste is not None
    return paste


@pytest.mark.parametrize("placement", ["anywhere", "road"])
@pytest.mark.parametrize("blend", ["hard", "feather"])
def test_outliers_are_labelled_and_everything_else_stays(bank: str, placement: str, blend: str) -> None:
    paste, scene = build(bank, placement=placement, blend=blend), make_scene()
    image, label = scene.image.copy(), scene.label.copy()
    result = paste(scene, np.random.default_rng(0))
    outlier = result.label == OUTLIER_ID
    assert outlier.sum() >= 16
    assert (result.image[outlier][:, 0] > 120).all()
    near = binary_dilation(outlier, np.ones((3, 3)), iterations=2)  # a soft edge of an enlarged mask
    np.testing.assert_array_equal(result.image[~near], image[~near])
    np.testing.assert_array_equal(result.label[~outlier], label[~outlier])
    assert result is scene  # pasted in place


def test_the_generator_decides_everything(bank: str) -> None:
    paste, again = build(bank), build(bank, cache_mb=0)
    results = [paste(make_scene(), np.random.default_rng(seed)) for seed in range(20)]
    for seed, result in reversed(list(enumerate(results))):
        repeated = pickle.loads(pickle.dumps(again))(make_scene(), np.random.default_rng(seed))
        np.testing.assert_array_equal(result.image, repeated.image)
        np.testing.assert_array_equal(result.label, repeated.label)
    assert len({result.image.tobytes() for result in results}) == 20


def test_probability_is_the_share_of_scenes_with_outliers(bank: str) -> None:
    paste, scene, rng = build(bank, probability=0.3, min_size=0.3), make_scene(), np.random.default_rng(0)
    changed = 0
    for _ in range(1000):
        blank = Sample(key="k", image=scene.image.copy(), label=scene.label.copy())
        changed += bool((paste(blank, rng).label == OUTLIER_ID).any())
    assert changed == pytest.approx(300, abs=45)  # three standard deviations of 14.5


def test_a_scene_without_road_is_returned_untouched(bank: str) -> None:
    scene = make_scene()
    scene = Sample(key="k", image=scene.image, label=np.full_like(scene.label, 10))
    result = build(bank, placement="road")(scene, np.random.default_rng(0))
    np.testing.assert_array_equal(result.image, make_scene().image)
    assert (result.label == 10).all()


def test_an_object_that_would_hardly_be_seen_is_not_pasted(bank: str) -> None:
    scene = make_scene()
    result = build(bank, min_pixels=120 * 160 + 1)(scene, np.random.default_rng(0))
    np.testing.assert_array_equal(result.image, make_scene().image)
    np.testing.assert_array_equal(result.label, make_scene().label)


def test_scenes_get_one_to_max_objects(bank: str) -> None:
    """Large scenes and small objects, so that the separate objects can be counted."""
    from scipy.ndimage import label as connected

    paste = build(bank, max_objects=3, min_size=0.02, max_size=0.02, blend="hard")
    counts = []
    for seed in range(60):
        image, label = np.zeros((800, 800, 3), np.uint8), np.zeros((800, 800), np.uint8)
        result = paste(Sample(key="k", image=image, label=label), np.random.default_rng(seed))
        counts.append(connected(result.label == OUTLIER_ID)[1])
    assert set(counts) == {1, 2, 3}


def test_nothing_to_paste_builds_nothing() -> None:
    assert build_paste(PasteConfig()) is None
    assert build_paste(PasteConfig(bank="missing", probability=0.0)) is None


def test_a_missing_bank_is_found_when_building(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no shard found"):
        build_paste(PasteConfig(bank=str(tmp_path / "nowhere"), probability=0.5))


@pytest.mark.parametrize("size", [(1, 1), (7, 90), (200, 10)])
def test_a_cutout_is_resized_and_mirrored_with_its_mask(size: tuple[int, int]) -> None:
    cutout = make_cutout(0)
    cutout.image[:, :30] = 5  # the left half is dark
    plain = resize_cutout(cutout, *size, mirrored=False)
    assert plain.image.shape == (*size, 3)
    assert plain.mask.shape == size
    mirrored = resize_cutout(cutout, *size, mirrored=True)
    np.testing.assert_array_equal(mirrored.image, plain.image[:, ::-1])
    np.testing.assert_array_equal(mirrored.mask, plain.mask[:, ::-1])


def test_the_rest_of_a_covered_class_becomes_void() -> None:
    label = np.array([[254, 1, 254, 2, 2, 3, 255]], np.uint8)
    drop_remnants(label, {1, 2, VOID_ID}, min_pixels=2)
    assert label.tolist() == [[254, VOID_ID, 254, 2, 2, 3, 255]]  # 3 was as small before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probability": 1.5}, r"paste\.probability: got 1\.5; a number in 0\.\.1"),
        ({"probability": 0.5}, r"paste\.bank: is empty while paste\.probability is 0\.5"),
        ({"max_objects": 0}, r"paste\.max_objects: got 0; at least 1"),
        ({"placement": "sky"}, r"paste\.placement: unknown placement 'sky'; known: anywhere, inside, road"),
        ({"blend": "poisson"}, r"paste\.blend: unknown blend 'poisson'; known: hard, feather"),
        ({"min_size": 0.5, "max_size": 0.2}, r"paste\.min_size, paste\.max_size: got 0\.5 and 0\.2"),
        ({"min_size": 0.0}, r"got 0\.0 and 0\.4; needed is 0 < min_size <= max_size <= 1"),
        ({"min_pixels": -1}, r"paste\.min_pixels: got -1; 0 or more"),
        ({"cache_mb": -1}, r"paste\.cache_mb: got -1; 0 or more"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PasteConfig(**settings)  # type: ignore[arg-type]
