from __future__ import annotations

import numpy as np
import pytest

from jobs.world.anomaly_layout import ANOMALY_SETS, AnomalyFrame, anomaly_labels, scaled_size
from jobs.world.labels import OBJECT_ID, LabelId

SIZES = {
    "road_anomaly_21": (720, 1280),
    "road_obstacle_21": (1080, 1920),
    "lost_and_found": (1024, 2048),
    "static": (1024, 2048),
    "road_anomaly": (720, 1280),
}


@pytest.mark.parametrize("kind", ANOMALY_SETS)
def test_sizes_are_the_originals_at_full_scale_and_even_below(kind: str) -> None:
    assert scaled_size(ANOMALY_SETS[kind], 1024) == SIZES[kind]
    assert all(side % 2 == 0 for side in scaled_size(ANOMALY_SETS[kind], 154))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("road_anomaly_21", [0, 0, 0, 255, 1]),
        ("road_obstacle_21", [0, 255, 255, 255, 1]),
        ("road_anomaly", [0, 0, 0, 0, 2]),
    ],
)
def test_each_set_says_in_its_own_way_what_is_normal(kind: str, expected: list[int]) -> None:
    things = [LabelId.ROAD, LabelId.SIDEWALK, 26003, LabelId.EGO_VEHICLE, OBJECT_ID]
    identities = np.array([things], dtype=np.uint16)
    np.testing.assert_array_equal(anomaly_labels(identities, ANOMALY_SETS[kind]), [expected])


@pytest.mark.parametrize("kind", ANOMALY_SETS)
def test_the_share_of_anomalous_pixels_is_about_that_of_the_original(kind: str) -> None:
    entry = ANOMALY_SETS[kind]
    frames = [AnomalyFrame(0, 128, kind, index).draw()[1] for index in range(6)]
    share = np.mean([(labels == entry.anomaly_value).mean() for labels in frames])
    assert entry.anomaly_share / 2.5 < share < entry.anomaly_share * 2.5
