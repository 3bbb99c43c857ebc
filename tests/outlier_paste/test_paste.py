from __future__ import annotations

import itertools
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation

from outlier_paste.appearance import APPEARANCES
from outlier_paste.bank import resize_cutout
from outlier_paste.blend import BLENDS
from outlier_paste.config import CHOICES, PasteConfig
from outlier_paste.paste import OutlierPaste, build_paste, drop_remnants
from outlier_paste.placement import PLACEMENTS, SIZINGS
from shards.cutout import Cutout
from shards.schema import OUTLIER_ID, VOID_ID, Sample
from tests.support.refused import refused
from tests.support.tars import write_cutouts


def make_cutout(number: int) -> Cutout:
    """A disc of 60 pixels, in a colour that no scene below has."""
    rows, columns = np.mgrid[:60, :60]
    mask = ((rows - 29.5) ** 2 + (columns - 29.5) ** 2 < 900).astype(np.uint8) * np.uint8(255)
    image = np.full((60, 60, 3), (255, 0, 150 + 20 * number), np.uint8)
    return Cutout(key=f"{number}", image=image, mask=mask, category="disc", source_size=(480, 640))


@pytest.fixture
def bank(tmp_path: Path) -> str:
    return write_cutouts(tmp_path / "b.tar", [make_cutout(number) for number in range(5)])


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


@pytest.mark.parametrize("settings", [{"placement": "road"}, {"min_pixels": 120 * 160 + 1}], ids=str)
def test_a_scene_without_road_or_for_objects_hardly_seen_stays(bank: str, settings: dict[str, Any]) -> None:
    image, label = make_scene().image, np.full((120, 160), 10, np.uint8)
    scene = Sample(key="k", image=image.copy(), label=label)
    result = build(bank, **settings)(scene, np.random.default_rng(0))
    np.testing.assert_array_equal(result.image, image)
    assert (result.label == 10).all()


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


def test_objects_do_not_meet_where_no_overlap_is_allowed(bank: str) -> None:
    counts = {"none": 0, "ordered": 0}
    for overlap in counts:
        paste = build(bank, max_objects=6, min_size=0.3, max_size=0.3, overlap=overlap)
        for seed in range(40):
            places = [place for *_, place in paste._plan(make_scene(), np.random.default_rng(seed), 0)]
            counts[overlap] += sum(a.meets(b) for a, b in itertools.combinations(places, 2))
    assert counts["none"] == 0
    assert counts["ordered"] > 20


def test_nearer_objects_cover_farther_ones(bank: str) -> None:
    """Of two discs that overlap, the one that reaches lower down is whole."""
    paste = build(bank, max_objects=2, min_size=0.4, max_size=0.4, blend="hard")
    whole = int((resize_cutout(make_cutout(0), 48, 48, mirrored=False).mask >= 128).sum())
    overlapping = 0
    for seed in range(300):
        result = paste(make_scene(), np.random.default_rng(seed))
        tint = np.where(result.label == OUTLIER_ID, result.image[..., 2], 0).astype(int)
        discs = [np.nonzero(abs(tint - 150 - 20 * number) < 8) for number in range(5)]
        discs = sorted((disc for disc in discs if len(disc[0])), key=lambda disc: disc[0].max())
        if len(discs) == 2 and not _is_cut(result) and discs[0][0].max() < discs[1][0].max():
            assert len(discs[1][0]) == whole
            overlapping += len(discs[0][0]) < whole
    assert overlapping > 3


def _is_cut(scene: Sample) -> bool:
    border = np.ones(scene.label.shape, bool)
    border[1:-1, 1:-1] = False
    return bool((scene.label[border] == OUTLIER_ID).any())


@pytest.mark.parametrize("limit", [0.0, 0.02, 0.1, 1.0])
def test_never_more_than_the_stated_share_is_hidden(bank: str, limit: float) -> None:
    paste = build(bank, max_objects=6, max_hidden=limit, max_size=0.9)
    shares = [(paste(make_scene(), np.random.default_rng(s)).label == OUTLIER_ID).mean() for s in range(40)]
    assert max(shares) <= limit
    assert max(shares) >= 0.5 * limit


def test_a_mode_of_the_literature_is_its_law_transcribed(tmp_path: Path, bank: str) -> None:
    """`rba`: the object at its own size, unblended, inside of the frame, each place equally likely."""
    paste = build(bank, mode="rba", probability=0.5)
    pasted = 0
    for seed in range(60):
        result = paste(make_scene(seed), np.random.default_rng(seed))
        rng, image, label = np.random.default_rng(seed), make_scene(seed).image, make_scene(seed).label
        if rng.random() < 0.5:
            rng.integers(1, 2)  # the number of objects: one
            cutout = paste.bank.get(int(rng.integers(5)))
            top, left = int(rng.integers(120 - 60 + 1)), int(rng.integers(160 - 60 + 1))
            inside = cutout.mask > 127
            image[top : top + 60, left : left + 60][inside] = cutout.image[inside]
            label[top : top + 60, left : left + 60][inside] = OUTLIER_ID
            pasted += 1
        np.testing.assert_array_equal(result.image, image)
        np.testing.assert_array_equal(result.label, label)
    assert 15 < pasted < 45


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    scene=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    settings=st.fixed_dictionaries(
        {
            "placement": st.sampled_from(sorted(PLACEMENTS)),
            "sizing": st.sampled_from(sorted(SIZINGS)),
            "blend": st.sampled_from(sorted(BLENDS)),
            "overlap": st.sampled_from(sorted(CHOICES["overlap"])),
            "match": st.lists(st.sampled_from(sorted(APPEARANCES)), max_size=2).map(tuple),
            "min_pixels": st.integers(0, 20),
            "max_size": st.floats(0.05, 1.0),
        }
    ),
    seed=st.integers(0, 2**32),
)
@tries(max_examples=150, deadline=None)
def test_any_object_on_any_scene_leaves_a_valid_scene(
    shape: tuple[int, int], scene: tuple[int, int], settings: dict[str, Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.choice(np.array([0, 255], np.uint8), shape)
    mask[0, 0] = 255
    cutout = Cutout("k-1", rng.integers(0, 256, (*shape, 3), dtype=np.uint8), mask, "c", shape)
    label = rng.choice(np.array([0, 10, 13, VOID_ID], np.uint8), scene)
    image = rng.integers(0, 256, (*scene, 3), dtype=np.uint8)
    before_image, before = image.copy(), label.copy()
    with tempfile.TemporaryDirectory() as folder:
        paste = build(write_cutouts(Path(folder) / "b.tar", [cutout]), **settings)
        result = paste(Sample(key="s", image=image, label=label), rng)
    changed = result.label != before
    assert np.isin(result.label[changed], (OUTLIER_ID, VOID_ID)).all()
    assert (result.label == OUTLIER_ID).sum() <= 0.5 * label.size
    if not changed.any():
        np.testing.assert_array_equal(result.image, before_image)


def test_nothing_to_paste_builds_nothing() -> None:
    assert build_paste(PasteConfig()) is None
    assert build_paste(PasteConfig(bank="missing", probability=0.0)) is None


def test_a_missing_bank_is_found_when_building(tmp_path: Path) -> None:
    with refused("nowhere: no shard found"):
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
