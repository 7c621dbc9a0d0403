"""Mixup: images and labels of a batch are blended with those of the same batch, whatever part of it is made."""

import numpy as np
import pytest
import torch

from alexnet.loader.augmentation import draw_mixup
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


@pytest.mark.parametrize("mixup_prob", [0.0, 1.0])
@pytest.mark.parametrize("processes", [2, 3])
def test_shards_are_the_rows_of_the_whole_batch(digits, mixup_prob, processes):
    recipe = MIXED.replace(mixup_prob=mixup_prob)
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
