from __future__ import annotations

import numpy as np
import pytest

from eval.sets.registry import TEST_SETS
from jobs.world.anomaly_layout import AnomalyFrame, anomaly_labels, scaled_size
from jobs.world.labels import OBJECT_ID, LabelId


@pytest.mark.parametrize("folder", TEST_SETS)
def test_sizes_are_the_originals_at_full_scale_and_even_below(folder):
    known = TEST_SETS[folder].known
    assert known is not None
    assert scaled_size(folder, 1024) == known.size
    assert all(side % 2 == 0 for side in scaled_size(folder, 154))


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("RoadAnomaly21", [0, 0, 0, 255, 1]),
        ("RoadObsticle21", [0, 255, 255, 255, 1]),
        ("RoadAnomaly", [0, 0, 0, 0, 2]),
    ],
)
def test_each_set_says_in_its_own_way_what_is_normal(folder, expected):
    things = [LabelId.ROAD, LabelId.SIDEWALK, 26003, LabelId.EGO_VEHICLE, OBJECT_ID]
    identities = np.array([things], dtype=np.uint16)
    np.testing.assert_array_equal(anomaly_labels(identities, folder), [expected])


@pytest.mark.parametrize("folder", TEST_SETS)
def test_the_share_of_anomalous_pixels_is_about_that_of_the_original(folder):
    known = TEST_SETS[folder].known
    assert known is not None
    assert known.anomalous is not None
    frames = [AnomalyFrame(0, 128, folder, index).draw()[1] for index in range(4)]
    share = np.mean([(labels == (2 if folder == "RoadAnomaly" else 1)).mean() for labels in frames])
    assert known.anomalous / 2.5 < share < known.anomalous * 2.5
