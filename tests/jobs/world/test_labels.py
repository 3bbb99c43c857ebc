from __future__ import annotations

import numpy as np

from jobs.world.labels import LabelId, colour_labels, label_ids
from shards.schema import CITYSCAPES_CLASSES


def test_label_ids_bear_the_names_of_the_schema():
    for entry in CITYSCAPES_CLASSES:
        assert LabelId(entry.ids[0]).name.lower().replace("_", " ") == entry.name


def test_label_ids_are_the_thousands_of_instance_ids():
    identities = np.array([[0, 7, 33, 26000, 26012, 33001]], dtype=np.uint16)
    np.testing.assert_array_equal(label_ids(identities), [[0, 7, 33, 26, 26, 33]])


def test_labels_are_painted_in_the_official_palette():
    np.testing.assert_array_equal(
        colour_labels(np.array([[7, 23, 10, 0]], dtype=np.uint8)),
        [[(128, 64, 128), (70, 130, 180), (230, 150, 140), (0, 0, 0)]],
    )
