"""Mixup and CutMix: a batch is mixed with images and labels of the same batch, whatever part of it is made."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from alexnet.loader.augmentation import Mixup, draw_cutmix, draw_mixup, mix
from alexnet.loader.loader import Loader, Shard

from .test_loader import CPU, RECIPE, loader, statistics_of

MIXED = RECIPE.replace(mixup_prob=1.0, crop="random")


def sharded(digits, shard, recipe=MIXED):
    normalization = statistics_of(digits)
    return Loader(
        digits.split("train"), recipe, normalization, image_size=28, channels=3, device=CPU, num_workers=2, shard=shard
    )


def test_a_mixed_batch_is_the_batch_blended_with_its_permutation(digits):
    plain = list(loader(digits, recipe=MIXED.replace(mixup_prob=0.0)).epoch(2))
    mixed = list(loader(digits, recipe=MIXED).epoch(2))
    weights = set()
    for number, (before, after) in enumerate(zip(plain, mixed, strict=True)):
        mixup = draw_mixup(MIXED, 2 * 5 + number, before.batch_size)  # 5 steps an epoch
        weight, order = mixup.weight, torch.from_numpy(mixup.permutation)
        expected = weight * before.images + (1 - weight) * before.images[order]
        assert torch.allclose(after.images, expected, atol=1e-4)
        assert torch.equal(after.labels, before.labels) and torch.equal(after.mixup_labels, before.labels[order])
        assert after.mixup_weight == weight and np.array_equal(after.indices, before.indices)
        weights.add(weight)
    assert len(weights) == 5 and min(weights) >= 0.5


def test_a_cut_batch_shows_a_box_of_its_permutation(digits):
    recipe = MIXED.replace(mixup_prob=0.0, cutmix_prob=1.0)
    plain = list(loader(digits, recipe=recipe.replace(cutmix_prob=0.0)).epoch(2))
    cut = list(loader(digits, recipe=recipe).epoch(2))
    weights = set()
    for number, (before, after) in enumerate(zip(plain, cut, strict=True)):
        cutmix = draw_cutmix(recipe, 2 * 5 + number, before.batch_size, 28)
        top, left, height, width = cutmix.box
        expected = before.images.clone()
        for i, other in enumerate(cutmix.permutation):
            for y in range(top, top + height):
                for x in range(left, left + width):
                    expected[i, :, y, x] = before.images[other, :, y, x]
        assert torch.equal(after.images, expected)
        assert torch.equal(after.mixup_labels, before.labels[torch.from_numpy(cutmix.permutation)])
        assert after.mixup_weight == cutmix.weight == 1 - height * width / 28**2
        weights.add(cutmix.weight)
    assert len(weights) > 2 and min(weights) >= 0.5


def test_a_cut_is_torchvision_s():
    torch.manual_seed(0)
    reference, images = v2.CutMix(num_classes=3), torch.rand(4, 3, 40, 40)
    for _ in range(20):
        params = reference.make_params([images])
        x1, y1, x2, y2 = params["box"]
        box = (y1, x1, y2 - y1, x2 - x1)
        cut = mix(images, images.roll(1, 0), Mixup(0.5, np.array([3, 0, 1, 2]), box))
        assert torch.equal(cut, reference.transform(images, params | {"batch_size": 4, "labels": None}))
        assert params["lam_adjusted"] == pytest.approx(1 - box[2] * box[3] / 40**2)


def test_boxes_have_the_sizes_of_the_paper():
    """Without clipping, a box has min(λ, 1 − λ) of the area, with λ uniform: 1/4 on average. Clipping takes some."""
    recipe = MIXED.replace(cutmix_prob=1.0)
    drawn = [draw_cutmix(recipe, step, 2, 100) for step in range(2000)]
    inside = [
        cut for cut in drawn if min(cut.box[:2]) > 0 and max(cut.box[0] + cut.box[2], cut.box[1] + cut.box[3]) < 100
    ]
    assert all(cut.box[2] == cut.box[3] for cut in inside) and len(inside) > 300
    assert all(0 <= cut.box[0] <= cut.box[0] + cut.box[2] <= 100 and cut.weight >= 0.5 for cut in drawn)
    assert 0.75 < np.mean([cut.weight for cut in drawn]) < 0.85
    few = [draw_cutmix(recipe.replace(cutmix_alpha=0.1), step, 2, 100).weight for step in range(500)]
    assert np.mean(few) > 0.9  # a small alpha: small boxes
    rare = [draw_cutmix(recipe.replace(cutmix_prob=0.3), step, 2, 100) is not None for step in range(2000)]
    assert np.mean(rare) == pytest.approx(0.3, abs=0.04) and draw_cutmix(MIXED, 0, 2, 100) is None


@pytest.mark.parametrize("mixing", [{}, {"mixup_prob": 1.0}, {"cutmix_prob": 1.0}])
@pytest.mark.parametrize("processes", [2, 3])
def test_shards_are_the_rows_of_the_whole_batch(digits, mixing, processes):
    recipe, mixup_prob = MIXED.replace(**{"mixup_prob": 0.0} | mixing), sum(mixing.values())
    whole = list(loader(digits, recipe=recipe).epoch(1))

    def rows(total, process):
        return range(total * process // processes, total * (process + 1) // processes)

    for process in range(processes):
        shards = sharded(digits, lambda total, p=process: Shard(images=rows(total, p), labels=range(total)), recipe)
        for batch, shard in zip(whole, shards.epoch(1), strict=True):
            own = rows(batch.batch_size, process)
            assert torch.allclose(shard.images, batch.images[own.start : own.stop], atol=1e-4)
            assert torch.equal(shard.labels, batch.labels) and np.array_equal(shard.indices, batch.indices)
            assert (shard.mixup_labels is None) == (mixup_prob == 0)
            if mixup_prob:
                assert torch.equal(shard.mixup_labels, batch.mixup_labels)
                assert shard.mixup_weight == batch.mixup_weight
        if process:
            part = sharded(digits, lambda total, p=process: Shard(rows(total, p), rows(total, p)), recipe)
            batch, shard = whole[0], next(part.epoch(1))
            own = rows(batch.batch_size, process)
            assert torch.equal(shard.labels, batch.labels[own.start : own.stop])
            if mixup_prob:
                assert torch.equal(shard.mixup_labels, batch.mixup_labels[own.start : own.stop])


def test_a_fraction_of_the_batches_is_mixed():
    recipe = MIXED.replace(mixup_prob=0.3)
    drawn = [draw_mixup(recipe, step, 8) for step in range(2000)]
    assert np.mean([mixup is not None for mixup in drawn]) == pytest.approx(0.3, abs=0.04)
    permutations = [mixup.permutation for mixup in drawn if mixup]
    assert all(sorted(permutation) == list(range(8)) for permutation in permutations)
    assert draw_mixup(recipe.replace(mixup_prob=0.0), 0, 8) is None
