import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.recipe import Recipe
from alexnet.training.schedule import LRSchedule, with_default_epochs

BASE = Recipe(lr=0.01, warmup_epochs=0, epochs=90)


def rates(schedule: LRSchedule, epochs: int) -> list[float]:
    return [schedule.lr(e, b) for e in range(epochs) for b in range(schedule.steps_per_epoch)]


def test_cosine_is_half_a_wave_to_zero():
    found = rates(LRSchedule(BASE.replace(epochs=10), 4), 10)
    for step, rate in enumerate(found):
        assert rate == pytest.approx(0.01 * (1 + math.cos(math.pi * step / 40)) / 2, abs=1e-15)
    assert found[0] == 0.01
    assert found[20] == pytest.approx(0.005)
    assert LRSchedule(BASE, 4).lr(90, 0) == pytest.approx(0)


def test_poly_is_a_parabola_to_zero():
    found = rates(LRSchedule(BASE.replace(schedule="poly", epochs=10, warmup_epochs=2), 4), 10)
    for step, rate in enumerate(found[8:]):
        assert rate == pytest.approx(0.01 * (1 - step / 32) ** 2, abs=1e-15)
    assert found[8] == 0.01 and LRSchedule(BASE.replace(schedule="poly"), 4).lr(90, 0) == 0


KINDS = ["cosine", "multistep", "plateau", "poly", "constant"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_for_so_many_images_grows_with_the_batch(kind):
    base = BASE.replace(schedule=kind, warmup_epochs=1, epochs=8, lr_milestones=(5,), batch_size=1024)
    scaled = rates(LRSchedule(base.replace(lr_base_size=128), 3), 8)
    assert scaled == pytest.approx([8 * rate for rate in rates(LRSchedule(base, 3), 8)], rel=1e-12)


@given(st.floats(0, 5), st.integers(1, 50), st.sampled_from(KINDS))
def test_warm_up_is_a_straight_line_that_begins_above_zero(warmup, steps, kind):
    schedule = LRSchedule(BASE.replace(warmup_epochs=warmup, schedule=kind, epochs=8, lr_milestones=(6,)), steps)
    found = rates(schedule, 8)
    assert min(found) > 0
    assert max(found) <= 0.01 * (1 + 1e-12)
    rising = math.ceil(warmup * steps - 1e-9)  # steps before the warm-up's end
    for step in range(min(rising, len(found))):
        assert found[step] == pytest.approx(0.01 * (step + 1) / (warmup * steps + 1), rel=1e-9)
    after = found[rising:]
    assert after == pytest.approx(sorted(after, reverse=True), rel=1e-8)  # the warm-up may end 1e-9 steps later
    if kind == "cosine" and warmup == int(warmup):
        left = (8 - warmup) * steps
        for step, rate in enumerate(after):
            assert rate == pytest.approx(0.01 * (1 + math.cos(math.pi * step / left)) / 2, abs=1e-12)


def test_a_warm_up_as_long_as_the_run():
    found = rates(LRSchedule(BASE.replace(warmup_epochs=1, epochs=1), 15), 1)
    assert found == sorted(found)
    assert found[-1] < 0.01


def test_a_constant_rate_is_constant_after_the_warm_up():
    found = rates(LRSchedule(BASE.replace(schedule="constant", warmup_epochs=1, epochs=9), 3), 9)
    assert found[2] < 0.01 and found[3:] == [0.01] * 24


@given(st.sets(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 5))
def test_steps_divide_by_ten_at_each_drop(drops, steps):
    schedule = LRSchedule(BASE.replace(schedule="multistep", lr_milestones=tuple(sorted(drops))), steps)
    rate = 0.01
    for epoch in range(35):
        if epoch in drops:
            rate /= 10
        assert [schedule.lr(epoch, b) for b in range(steps)] == pytest.approx([rate] * steps, rel=1e-9)
    assert not schedule.finished(89)
    assert schedule.finished(90)


def test_net_145_s_drops():
    schedule = LRSchedule(BASE.replace(schedule="multistep", lr_milestones=(25, 51, 79)), 10)
    found = [schedule.lr(epoch, 0) for epoch in (0, 24, 25, 50, 51, 78, 79, 89)]
    assert found == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_what_is_not_lowered_keeps_its_rate_after_the_warm_up():
    for kind in ("cosine", "multistep", "plateau"):
        schedule = LRSchedule(
            BASE.replace(schedule=kind, lr_milestones=(2, 4), warmup_epochs=1, epochs=6), 4, drops=[2, 4]
        )
        for epoch in range(6):
            for batch in range(4):
                rate, kept = schedule.lr(epoch, batch), schedule.lr(epoch, batch, scheduled=False)
                assert kept == (rate if epoch < 1 else 0.01)


def test_epochs_with_more_steps_after_the_validation_images_join():
    recipe = BASE.replace(epochs=6, train_on_val_from_epoch=3, select_weights="last", schedule="cosine")
    schedule = LRSchedule(recipe, 4, steps_joined=5)
    for epoch in range(6):
        steps = 5 if epoch >= 3 else 4
        for batch in range(steps):
            expected = 0.01 * (1 + math.cos(math.pi * (epoch + batch / steps) / 6)) / 2
            assert schedule.lr(epoch, batch) == pytest.approx(expected, abs=1e-15)


# Stalls

STALL = BASE.replace(schedule="plateau", lr_patience=3, max_lr_drops=3)


def run(recipe: Recipe, errors: list[float]) -> tuple[list[float], LRSchedule]:
    """The rates of the epochs that were trained, each followed by its validation error."""
    schedule, found = LRSchedule(recipe, 2), []
    for epoch, error in enumerate(errors):
        if schedule.finished(epoch):
            break
        found.append(schedule.lr(epoch, 1))
        schedule.epoch_done(epoch, error)
    return found, schedule


def test_an_error_that_keeps_falling_keeps_the_rate():
    found, schedule = run(STALL, [1 / (2 + e) for e in range(90)])
    assert found == [0.01] * 90
    assert schedule.drops == []
    assert schedule.finished(90)


def test_an_error_that_never_falls_ends_the_run_after_three_drops():
    found, schedule = run(STALL, [0.5] * 90)
    # One epoch sets the mark; then each three without a lower error end a rate.
    assert found == pytest.approx([0.01] * 4 + [0.001] * 3 + [0.0001] * 3 + [0.00001] * 3)
    assert schedule.drops == [4, 7, 10, 13]
    assert schedule.finished(13)


def test_a_lower_error_begins_the_count_anew():
    found, _ = run(STALL, [0.5, 0.6, 0.6, 0.4, 0.4, 0.4, 0.4, 0.39, 0.5, 0.5, 0.5, 0.5])
    assert found == pytest.approx([0.01] * 7 + [0.001] * 4 + [0.0001])


def test_no_drops_allowed_ends_at_the_first_stall():
    found, _ = run(STALL.replace(max_lr_drops=0), [0.5] * 90)
    assert found == [0.01] * 4


@given(st.lists(st.integers(0, 6), max_size=90), st.integers(1, 5), st.integers(0, 4))
def test_stalls_against_a_plain_count(errors, patience, max_lr_drops):
    recipe = STALL.replace(lr_patience=patience, max_lr_drops=max_lr_drops, epochs=70)
    lowest, waited, dropped, expected = math.inf, 0, 0, []
    for error in errors[:70]:
        if dropped > max_lr_drops:
            break
        expected.append(0.01 * 0.1**dropped)
        if error < lowest:
            lowest, waited = error, 0
        else:
            waited += 1
        if waited == patience:
            dropped, waited = dropped + 1, 0
    found, schedule = run(recipe, [error / 10 for error in errors])
    assert found == pytest.approx(expected)
    assert len(schedule.drops) == dropped <= max_lr_drops + 1


def test_only_stall_listens_to_the_error():
    for kind in ("cosine", "multistep", "constant"):
        schedule = LRSchedule(BASE.replace(schedule=kind, lr_milestones=(30,)), 2)
        before = rates(schedule, 90)
        for epoch in range(60):
            schedule.epoch_done(epoch, 0.5)
        assert rates(schedule, 90) == before
        assert not schedule.finished(60)
    schedule = LRSchedule(STALL, 2)
    for epoch in range(60):
        schedule.epoch_done(epoch, None)
    assert schedule.drops == []


def test_a_schedule_goes_on_from_what_a_checkpoint_holds():
    errors = [0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.3] + [0.3] * 20
    whole, _ = run(STALL, errors)
    for at in range(1, len(whole)):
        begun, schedule = run(STALL, errors[:at])
        again = LRSchedule(STALL, 2, list(schedule.errors), list(schedule.drops))
        for epoch in range(at, len(whole)):
            assert not again.finished(epoch)
            begun.append(again.lr(epoch, 1))
            again.epoch_done(epoch, errors[epoch])
        assert begun == whole


def test_the_number_of_epochs_follows_the_number_of_images():
    auto = Recipe(epochs=0)
    crops = {images: with_default_epochs(auto, images).epochs * images for images in (10, 400, 2700, 100_000)}
    assert crops == {10: 2000, 400: 60_000, 2700: 156_600, 100_000: 900_000}  # never over 200 epochs
    assert with_default_epochs(auto, 1_000_000).epochs == 5  # never under 5
    assert with_default_epochs(auto.replace(warmup_epochs=40), 10_000).epochs == 41  # more than the warm-up
    assert with_default_epochs(auto.replace(epochs=7), 400).epochs == 7
