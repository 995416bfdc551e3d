"""A cache as a source: what is held out, what can be turned, and augmentations that it cannot follow."""

from __future__ import annotations

import pytest

from cache_tools.read.reader import CacheReader
from fusion.training.settings import AugmentSettings
from fusion.training.sources.cache import CacheSource, may_turn
from imaging.refusal import Refusal
from tests.training.parts import fusion_settings, make_cache


def test_held_out_images_are_never_trained_on(cache, tmp_path):
    source = CacheSource(fusion_settings(cache, tmp_path, augment={"flip": False, "rotate": False}))
    held = {batch.items[0] for batch in source.held_out()}
    fitted = {batch.items[0] for batch in source.fit_items()}
    batches = source.raw_batches(range(12), 0)
    trained = {item for _ in range(12) for item in next(batches).items}
    assert len(held) == 4 and trained and trained <= fitted and not held & fitted


@pytest.mark.parametrize("name", ["jitter", "blur", "crop_scale", "cutblur", "mixup"])
def test_augmentations_a_cache_cannot_follow_are_refused_with_the_reason(cache, tmp_path, name):
    with pytest.raises(Refusal, match=f"augment.{name} cannot be used with a cache: the"):
        CacheSource(fusion_settings(cache, tmp_path, augment={name: 0.5}))


def test_features_are_turned_only_where_the_cache_holds_every_turn(cache, tmp_path):
    upright, images = CacheReader(cache), CacheReader(cache, features=False)
    every = CacheReader(make_cache(tmp_path, 2, "--dihedral"))
    turned, left = AugmentSettings(flip=True, rotate=True), AugmentSettings(flip=False, rotate=False)
    with pytest.raises(Refusal, match="cannot be flipped.*--dihedral"):
        may_turn(turned, upright)
    with pytest.raises(Refusal, match="together"):
        may_turn(AugmentSettings(flip=True), every)
    assert not may_turn(AugmentSettings(), upright)
    for reader in (every, images):
        assert may_turn(AugmentSettings(), reader) and may_turn(turned, reader) and not may_turn(left, reader)


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("turned"), 6, "--dihedral")


def test_flipped_items_are_trained_on_but_the_base_is_fitted_and_judged_on_upright_ones(turned, tmp_path):
    """Every fit, every score and every image of a cache of all eight turns is of the image as it is, once."""
    data = {"cache": str(turned), "patch": 8, "batch": 8, "hold_out": 2}
    source = CacheSource(fusion_settings(turned, tmp_path, data=data))
    turn_of = {entry.id: entry.dihedral for entry in CacheReader(turned).entries}
    assert len(turn_of) == 6 * 8
    fitted, held = ([batch.items[0] for batch in batches()] for batches in (source.fit_items, source.held_out))
    assert fitted == list(source.training_items) and held == list(source.held_out_items)
    assert fitted == [batch.items[0] for batch in source.feature_items()]
    assert (len(fitted), len(held)) == (4, 2)
    assert not any(turn_of[item] for item in fitted + held)
    batches = source.raw_batches(range(12), 0)
    trained = [item for _ in range(12) for item in next(batches).items]
    assert {turn_of[item] for item in trained} == set(range(8))
    assert not {source.image_of(item) for item in trained} & {source.image_of(item) for item in held}


def test_without_augmentation_no_flipped_item_is_trained_on(turned, tmp_path):
    data = {"cache": str(turned), "patch": 8, "batch": 8, "hold_out": 2}
    settings = fusion_settings(turned, tmp_path, data=data, augment={"flip": False, "rotate": False})
    source = CacheSource(settings)
    batches = source.raw_batches(range(12), 0)
    taken = [next(batches) for _ in range(12)]
    assert {item for batch in taken for item in batch.items} == set(source.training_items)
    assert not any(batch.dihedral_B.any() for batch in taken)
