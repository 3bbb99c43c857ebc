from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers.models.mask2former.modeling_mask2former import sample_point

from shards.schema import OUTLIER_ID, VOID_ID
from trainer.losses.targets import (
    count_totals,
    find_segments,
    read_own_maps,
    sample_membership,
)


def random_labels(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0, 3, 18, OUTLIER_ID, VOID_ID], dtype=torch.uint8)
    coarse = values[torch.randint(0, 5, (3, 1, 5, 7), generator=generator)]
    return F.interpolate(coarse, size=(20, 28), mode="nearest")[:, 0]


def test_segments_are_the_classes_of_each_image() -> None:
    label = torch.full((3, 4, 4), VOID_ID, dtype=torch.uint8)
    label[0, 0], label[0, 1], label[2, 0] = 7, OUTLIER_ID, 7
    label[2, 1] = 0
    segments = find_segments(label)
    assert segments.image_index.tolist() == [0, 2, 2]
    assert segments.class_id.tolist() == [7, 0, 7]
    assert segments.per_image == (1, 0, 2)


def test_totals_count_images_masks_and_pixels_over_micro_batches() -> None:
    label = torch.full((2, 2, 2), VOID_ID, dtype=torch.uint8)
    label[0, 0] = torch.tensor([4, OUTLIER_ID])
    label[1, 0] = torch.tensor([4, 5])
    totals = count_totals([label, label[:1]])
    assert totals.tolist() == [3, 1 + 2 + 1, 1 + 2 + 1, 1 + 0 + 1, 1 + 0 + 1]


def test_membership_equals_bilinear_sampling_of_the_boolean_mask() -> None:
    label = random_labels()
    segments = find_segments(label)
    which = torch.arange(len(segments.class_id))
    points = torch.rand(len(which), 200, 2, generator=torch.Generator().manual_seed(1))
    points[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5]])  # outside counts as zero
    masks = (label[segments.image_index] == segments.class_id[:, None, None]).float()
    expected = sample_point(masks[:, None], points, align_corners=False)[:, 0]
    torch.testing.assert_close(sample_membership(segments, which, points), expected, atol=1e-5, rtol=0)


def test_own_maps_are_those_of_a_gather_from_all_maps_resized() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in ((10, 8), (3, 20), (2, 3)):  # larger, mixed, smaller
        maps = torch.randn(2, 4, 5, 4, generator=generator).requires_grad_()
        index = torch.randint(0, 4, (2, *size), generator=generator)
        resized = F.interpolate(maps, size=size, mode="bilinear").gather(1, index[:, None])[:, 0]
        own = read_own_maps(maps, index)
        torch.testing.assert_close(own, resized)
        gradients = [torch.autograd.grad(values.square().sum(), maps)[0] for values in (own, resized)]
        torch.testing.assert_close(*gradients)
