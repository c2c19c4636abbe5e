"""The replaced forward: what it returns, how long it stays, and that it is undone."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from cache_store import FeatureStore, InexactFeature, RecipeMismatch, VideoKey, int8, recipe_fingerprint
from consumers.evaluation import (
    CacheBypassed,
    CachedVisionTower,
    CacheStatistics,
    EvaluationError,
    FeatureUnfit,
    NoVisionTower,
)
from consumers.evaluation.small_longva import SmallVisionTower
from tests.adapters import SWITCHES, AdaptedLinear
from tests.consumers.evaluation.conftest import pictures

SIDE = 84


class Model(torch.nn.Module):
    """Anything with a vision tower."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower
        self.config = None

    def get_vision_tower(self):
        return self.tower


@pytest.fixture
def model():
    torch.manual_seed(3)
    return Model(SmallVisionTower().eval().requires_grad_(False))


@pytest.fixture
def cache(model, tmp_path):
    return make_cache(model, tmp_path / "store", on_miss="keep")


def make_cache(model, root, **options):
    return CachedVisionTower(model, root, dataset="set", nframe=4, model_signature="0123abcd", **options)


def a_linear(model):
    return next(module for module in model.tower.modules() if isinstance(module, torch.nn.Linear))


def adapted(model):
    """Put adapters onto a layer of the tower, and return it."""
    linear = a_linear(model)
    owner, name = next((o, n) for o in model.tower.modules() for n, child in o.named_children() if child is linear)
    setattr(owner, name, AdaptedLinear(linear))
    return getattr(owner, name)


def fill(cache, model, video_id, images):
    with cache.request(video_id), torch.inference_mode():
        return model.tower(images)


@pytest.mark.parametrize("strides_are_told", [True, False])
def test_a_hit_has_the_bits_the_strides_and_the_dtype_of_the_live_features(cache, model, strides_are_told):
    images = pictures(4, side=SIDE)
    live = fill(cache, model, "a", images)
    if not strides_are_told:
        # As a build makes it.
        store, key = cache.stored.store, cache.stored.key("a")
        value = {name: field for name, field in store.get(key).items() if name != "strides"}
        store.put(key, value, recipe=cache.stored.identity.recipe(4))
    for given in (images, torch.zeros(()).expand(4, 3, SIDE, SIDE)):
        with cache.request("a"):
            found = model.tower(given)
        assert torch.equal(found, live)
        assert (found.stride(), found.dtype, found.shape) == (live.stride(), live.dtype, live.shape)
        assert found.dim() == 3
    with cache.request("a"):
        assert model.tower(images.double()).dtype == torch.float64
    assert torch.equal(model.tower(images), live)


def test_stand_in_pixels_take_no_memory(cache, model):
    fill(cache, model, "a", pictures(4, side=SIDE))
    with cache.request("a") as request:
        pixels = request.pixels(lambda: pytest.fail("decoded"))
        model.tower(pixels)
    assert pixels.shape == (4, 3, SIDE, SIDE)
    assert pixels.untyped_storage().nbytes() == pixels.element_size()


def test_a_list_of_images_gives_a_list_as_the_live_tower_does(cache, model):
    images = pictures(3, side=SIDE)
    fill(cache, model, "a", images)
    live = model.tower(list(images))
    with cache.request("a"):
        found = model.tower(list(images))
    assert [one.shape for one in found] == [one.shape for one in live]
    torch.testing.assert_close(torch.cat(found), torch.cat(live))


def test_several_videos_of_a_batch_come_one_after_another(cache, model):
    first = fill(cache, model, "a", pictures(4, side=SIDE))
    second = fill(cache, model, "b", pictures(2, side=SIDE, seed=1))
    with cache.request("a", "b") as request:
        found = model.tower(request.pixels(lambda: pytest.fail("decoded")))
    assert torch.equal(found, torch.cat([first, second]))


class PermutedTower(torch.nn.Module):
    """Computes with the tokens before the images, as OpenCLIP does, so that the strides depend on their number."""

    def __init__(self):
        super().__init__()
        self.linear, self.select_layer = torch.nn.Linear(12, 8), -2

    def forward(self, images):
        tokens = images.reshape(len(images), 3, 2, 2, 2, 2).permute(2, 4, 0, 1, 3, 5).reshape(4, len(images), 12)
        return self.linear(tokens).permute(1, 0, 2)


@pytest.mark.parametrize("counts", [(2, 3), (3, 2), (1, 3), (1, 1)])
def test_a_batch_of_videos_has_the_strides_of_its_own_length(tmp_path, counts):
    model = Model(PermutedTower().eval().requires_grad_(False))
    cache = make_cache(model, tmp_path / "store", on_miss="keep")
    videos = [pictures(count, side=4, seed=count) for count in counts]
    for name, images in zip("ab", videos, strict=True):
        fill(cache, model, name, images)
    live = model.tower(torch.cat(videos))
    with cache.request("a", "b") as request:
        found = model.tower(request.pixels(lambda: pytest.fail("decoded")))
    assert torch.equal(found, live)
    if counts != (1, 1):  # of one row nobody can tell
        assert found.stride() == live.stride()


@pytest.mark.parametrize("on_miss", ["live", "keep", "raise"])
def test_other_images_in_one_request_are_refused(cache, model, tmp_path, on_miss):
    video, image = pictures(4, side=SIDE), pictures(4, side=SIDE, seed=1)
    if on_miss == "raise":
        fill(cache, model, "a", video)
    with make_cache(model, tmp_path / "store", on_miss=on_miss).request("a") as request:
        pixels = request.pixels(lambda: video)
        model.tower(pixels)
        model.tower(pixels.clone())
        with pytest.raises(EvaluationError, match="a: the vision tower is called on other images"):
            model.tower(image)


def test_a_buffer_that_is_filled_anew_holds_other_images(cache, model):
    buffer = pictures(4, side=SIDE)
    with cache.request("a"):
        model.tower(buffer)
        buffer.copy_(pictures(4, side=SIDE, seed=1))
        with pytest.raises(EvaluationError, match="other images"):
            model.tower(buffer)


@pytest.mark.parametrize("is_there", [True, False])
def test_autocast_computes_in_no_dtype_that_a_recipe_knows(cache, model, is_there):
    images = pictures(4, side=SIDE)
    if is_there:
        fill(cache, model, "a", images)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        cache.request("a"),
        pytest.raises(EvaluationError, match="autocast"),
    ):
        model.tower(images)
    assert bool(list(cache.stored.store.keys())) == is_there


def test_a_request_names_a_video(cache):
    with pytest.raises(EvaluationError, match="at least one video"), cache.request():
        pass


def test_another_number_of_rows_is_refused(cache, model):
    fill(cache, model, "a", pictures(4, side=SIDE))
    with pytest.raises(FeatureUnfit, match=r"5 images.* 4 rows"), cache.request("a"):
        model.tower(pictures(5, side=SIDE))


@pytest.mark.parametrize("shape", [(1, 4, 36, 64), (4, 35, 64), (4, 36, 32)])
def test_stored_features_of_another_shape_are_refused(cache, shape):
    key = VideoKey("set", "a", 4, "0123abcd")
    cache.stored.store.put(key, {"vision_features": torch.zeros(shape)})
    with pytest.raises(FeatureUnfit, match="shape"), cache.request("a"):
        pass


class TestTheForwardComesBack:
    def test_after_a_request_and_after_an_error(self, cache, model):
        images = pictures(4, side=SIDE)
        fill(cache, model, "a", images)
        assert "forward" not in vars(model.tower)
        with pytest.raises(KeyError), cache.request("a"):
            raise KeyError
        assert "forward" not in vars(model.tower)
        with pytest.raises(ValueError, match="unpack"), cache.request("new"):
            model.tower(torch.zeros(1, 2, 3))
        assert "forward" not in vars(model.tower)

    def test_the_one_that_somebody_else_had_put_there(self, cache, model):
        def hooked(images):
            return SmallVisionTower.forward(model.tower, images)

        model.tower.forward = hooked
        images = pictures(4, side=SIDE)
        live = fill(cache, model, "a", images)
        with cache.request("a"):
            assert torch.equal(model.tower(images), live)
        assert vars(model.tower)["forward"] is hooked

    def test_of_nested_requests_the_innermost_answers(self, cache, model):
        first = fill(cache, model, "a", pictures(4, side=SIDE))
        second = fill(cache, model, "b", pictures(4, side=SIDE, seed=1))
        with cache.request("a") as outer:
            pixels = outer.pixels(lambda: pytest.fail("decoded"))
            with cache.request("b"):
                assert torch.equal(model.tower(pixels), second)
            assert torch.equal(model.tower(pixels), first)
        assert "forward" not in vars(model.tower)

    def test_of_two_caches_over_one_tower_in_any_order(self, cache, model, tmp_path):
        other = make_cache(model, tmp_path / "other", on_miss="keep")
        images = pictures(4, side=SIDE)
        live = fill(cache, model, "a", images)
        fill(other, model, "a", images)
        one, two = cache.request("a"), other.request("a")
        one.__enter__()
        two.__enter__()
        model.tower(images)
        done = threading.Event()
        # Requests of other threads may end before this one's.
        thread = threading.Thread(target=lambda: (fill(other, model, "c", images), done.set()))
        thread.start()
        thread.join()
        two.__exit__(None, None, None)
        assert "forward" in vars(model.tower)
        one.__exit__(None, None, None)
        assert done.is_set()
        assert "forward" not in vars(model.tower)
        assert torch.equal(model.tower(images), live)

    def test_of_two_requests_in_one_thread_in_any_order(self, cache, model):
        images = pictures(4, side=SIDE)
        fill(cache, model, "a", images)
        second = fill(cache, model, "b", pictures(4, side=SIDE, seed=1))
        one, two = cache.request("a"), cache.request("b")
        one.__enter__()
        two.__enter__()
        model.tower(images)
        one.__exit__(None, None, None)
        assert torch.equal(model.tower(images), second)
        two.__exit__(None, None, None)
        assert "forward" not in vars(model.tower)


def test_each_asyncio_task_gets_the_answers_of_its_own_request(cache, model):
    live = {name: fill(cache, model, name, pictures(4, side=SIDE, seed=seed)) for seed, name in enumerate("abc")}

    async def chat(name):
        with cache.request(name) as request:
            pixels = request.pixels(lambda: pytest.fail("decoded"))
            for _ in range(3):
                assert torch.equal(model.tower(pixels), live[name])
                await asyncio.sleep(0)

    async def all_of_them():
        with cache.request("a") as outer:
            model.tower(outer.pixels(lambda: pytest.fail("decoded")))
            chats = [asyncio.ensure_future(chat(name)) for name in "abc"]
        await asyncio.gather(*chats)

    asyncio.run(all_of_them())
    assert "forward" not in vars(model.tower)


def test_a_request_that_ended_does_not_answer_the_tasks_that_it_started(cache, model):
    fill(cache, model, "a", pictures(4, side=SIDE))
    other = pictures(2, side=SIDE, seed=5)

    async def ask():
        return model.tower(other)

    async def all_of_them():
        with cache.request("a") as outer:
            model.tower(outer.pixels(lambda: pytest.fail("decoded")))
            asked = asyncio.ensure_future(ask())
        with cache.request("a"):  # so that the tower's own forward is not back yet
            return await asked

    assert torch.equal(asyncio.run(all_of_them()), model.tower(other))


def test_a_thread_without_a_request_gets_the_live_tower(cache, model):
    images = pictures(4, side=SIDE)
    fill(cache, model, "a", images)
    other, found = pictures(2, side=SIDE, seed=5), []
    with cache.request("a"):
        thread = threading.Thread(target=lambda: found.append(model.tower(other)))
        thread.start()
        thread.join()
        model.tower(images)
    assert torch.equal(found[0], model.tower(other))


def test_a_model_that_runs_in_another_thread_is_no_silent_answer_about_zeros(cache, model):
    fill(cache, model, "a", pictures(4, side=SIDE))

    def ask_elsewhere():
        with cache.request("a") as request:
            pixels = request.pixels(lambda: pytest.fail("decoded"))
            thread = threading.Thread(target=lambda: model.tower(pixels))
            thread.start()
            thread.join()

    with pytest.raises(CacheBypassed, match="a: stand-in"):
        ask_elsewhere()


class TestKeeping:
    def test_a_miss_is_kept_with_a_recipe_that_names_the_tower(self, cache, model):
        fill(cache, model, "a", pictures(4, side=SIDE))
        record = next(cache.stored.store.records_of(cache.stored.key("a")))
        assert record.recipe["encoder"]["layer"] == -2
        assert len(record.recipe["encoder"]["weights_sha256"]) == 64
        value = cache.stored.store.get(cache.stored.key("a"))
        assert (value["shape"], value["nframe"], value["model_signature"]) == ([4, 36, 64], 4, "0123abcd")

    def test_another_tower_is_refused_it_and_gets_a_folder_of_its_own(self, cache, model, tmp_path):
        images = pictures(4, side=SIDE)
        fill(cache, model, "a", images)
        with torch.no_grad():
            next(model.tower.parameters()).add_(1)
        with pytest.raises(RecipeMismatch, match="weights_sha256"), make_cache(model, tmp_path / "store").request("a"):
            pass
        second = make_cache(model, tmp_path / "store", on_miss="keep", on_stale="miss")
        live = fill(second, model, "a", images)
        fingerprint = recipe_fingerprint(second.stored.identity.recipe(4))
        assert (tmp_path / "store" / f"set@{fingerprint[:8]}").is_dir()
        # Found there from now on, without being told.
        third = make_cache(model, tmp_path / "store", on_miss="raise")
        with third.request("a"):
            assert torch.equal(model.tower(images), live)
        assert third.statistics.hits == 1

    def test_weights_that_change_later_are_another_tower(self, cache, model):
        images, before = pictures(4, side=SIDE), {k: v.clone() for k, v in model.tower.state_dict().items()}
        live = fill(cache, model, "a", images)
        model.tower.load_state_dict({name: value + 1 for name, value in before.items()})
        with pytest.raises(RecipeMismatch, match="weights_sha256"), cache.request("a"):
            pass
        fill(cache, model, "b", images)
        model.tower.load_state_dict(before)
        with cache.request("a"):
            assert torch.equal(model.tower(images), live)
        with pytest.raises(RecipeMismatch, match="weights_sha256"), cache.request("b"):
            pass

    @torch.inference_mode()
    def test_weights_that_count_no_writes_are_looked_at_each_time(self, tmp_path):
        model = Model(SmallVisionTower().eval().requires_grad_(False))
        cache = make_cache(model, tmp_path / "store", on_miss="keep")
        live = fill(cache, model, "a", pictures(4, side=SIDE))
        with cache.request("a"):
            assert torch.equal(model.tower(pictures(4, side=SIDE)), live)
        model.tower.load_state_dict({name: value + 1 for name, value in model.tower.state_dict().items()})
        with pytest.raises(RecipeMismatch, match="weights_sha256"), cache.request("a"):
            pass

    @pytest.mark.parametrize("switch", SWITCHES)
    def test_an_adapter_that_is_switched_is_another_tower(self, model, tmp_path, switch):
        images, layer = pictures(4, side=SIDE), adapted(model)
        cache = make_cache(model, tmp_path / "store", on_miss="keep")
        live = fill(cache, model, "a", images)
        with make_cache(model, tmp_path / "store").request("a"):
            assert torch.equal(model.tower(images), live)
        SWITCHES[switch](layer)
        for one in (cache, make_cache(model, tmp_path / "store")):
            with pytest.raises(RecipeMismatch, match="weights_sha256"), one.request("a"):
                pass

    def test_another_layer_or_choice_of_tokens_later_is_another_tower(self, cache, model):
        fill(cache, model, "a", pictures(4, side=SIDE))
        model.tower.select_layer = -1
        with pytest.raises(RecipeMismatch, match="layer"), cache.request("a"):
            pass
        model.tower.select_layer, model.tower.select_feature = -2, "cls_patch"
        with pytest.raises(RecipeMismatch, match="feature"), cache.request("a"):
            pass

    def test_weights_that_are_elsewhere_cannot_be_compared(self, cache, model):
        fill(cache, model, "a", pictures(4, side=SIDE))
        model.to("meta")
        with pytest.raises(EvaluationError, match="offloaded"), cache.request("a"):
            pass

    def test_what_is_published_while_it_is_looked_for_is_not_served_uncompared(self, cache, model, monkeypatch):
        store = cache.stored.store

        def publish_then(key):
            store.put(key, {"vision_features": torch.ones(4, 36, 64)}, recipe={"made": "elsewhere"})
            return iter(())

        monkeypatch.setattr(store, "records_of", publish_then)
        with cache.request("a") as request:
            assert not request.is_hit
            model.tower(pictures(4, side=SIDE))

    def test_another_dtype_later_is_another_tower(self, cache, model):
        fill(cache, model, "a", pictures(4, side=SIDE))
        model.to(torch.bfloat16)
        with pytest.raises(RecipeMismatch, match="dtype"), cache.request("a"):
            pass

    def test_what_is_kept_beside_a_recipe_of_ones_own_is_found_again(self, model, tmp_path):
        images, options = pictures(4, side=SIDE), {"recipe": {"made": "elsewhere"}, "on_miss": "keep"}
        live = fill(make_cache(model, tmp_path / "store", **options), model, "a", images)
        again = make_cache(model, tmp_path / "store", **options)
        with again.request("a"):
            assert torch.equal(model.tower(images), live)
        assert again.statistics.hits == 1
        stored = again.stored.store
        stored.put(again.stored.key("a"), stored.get(again.stored.key("a")) | {"extra": 1}, recipe=options["recipe"])
        assert again.stored.read(again.stored.key("a"))["extra"] == 1

    def test_an_alias_keeps_under_the_canonical_name(self, cache, model):
        with cache.request("a", dataset="videomme"):
            model.tower(pictures(4, side=SIDE))
        assert [key.dataset for key in cache.stored.store.keys()] == ["Video-MME"]

    def test_other_preprocessing_is_another_recipe(self, model, tmp_path):
        fill(
            make_cache(model, tmp_path / "s", on_miss="keep", preprocess={"crop": 84}),
            model,
            "a",
            pictures(4, side=SIDE),
        )
        with (
            pytest.raises(RecipeMismatch, match="crop"),
            make_cache(model, tmp_path / "s", preprocess={"crop": 80}).request("a"),
        ):
            pass

    def test_features_in_another_dtype_than_the_towers_are_not_kept(self, cache, model):
        with pytest.raises(EvaluationError, match="as they were computed"):
            fill(cache, model, "a", pictures(4, side=SIDE).half())
        assert list(cache.stored.store.keys()) == []


def test_int8_is_a_cast_that_has_to_be_named(cache, model, tmp_path):
    images = pictures(4, side=SIDE)
    fill(cache, model, "a", images)
    value = cache.stored.store.get(cache.stored.key("a"))
    recipe = next(cache.stored.store.records_of(cache.stored.key("a"))).recipe
    with FeatureStore(tmp_path / "int8") as store:
        store.put(cache.stored.key("a"), value, recipe={**recipe, int8.RECIPE_FIELD: dict(int8.STORAGE)})
    with pytest.raises(Exception, match="int8"), make_cache(model, tmp_path / "int8").request("a"):
        pass
    with make_cache(model, tmp_path / "int8", cast=True).request("a"):
        found = model.tower(images)
    torch.testing.assert_close(found, model.tower(images), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("by_recipe", [False, True])
@pytest.mark.parametrize("has_lost_its_recipe", [False, True])
class TestInt8IsNeverASilentMiss:
    @pytest.fixture
    def opened(self, cache, model, tmp_path, has_lost_its_recipe, by_recipe):
        fill(cache, model, "a", pictures(4, side=SIDE))
        put_int8(cache, tmp_path / "int8", has_lost_its_recipe=has_lost_its_recipe)
        options = {"recipe": cache.stored.identity.recipe(4)} if by_recipe else {}
        return lambda **more: make_cache(model, tmp_path / "int8", **options, **more)

    @pytest.mark.parametrize("on_stale", ["error", "use"])
    def test_it_is_refused_by_name(self, opened, on_stale):
        refused = pytest.raises((InexactFeature, RecipeMismatch), match="int8")
        with refused as told, opened(on_stale=on_stale).request("a"):
            pass
        assert isinstance(told.value, RecipeMismatch) or "cast=True" in str(told.value)

    def test_it_is_a_miss_where_that_is_asked_for(self, opened):
        with opened(on_stale="miss").request("a") as request:
            assert not request.is_hit

    def test_it_is_given_where_the_cast_is_allowed(self, cache, opened):
        live = cache.stored.read(cache.stored.key("a"))["vision_features"]
        with opened(cast=True).request("a") as request:
            torch.testing.assert_close(request.features, live, rtol=0.1, atol=0.1)

    def test_it_hides_no_exact_feature(self, cache, opened):
        value = cache.stored.read(cache.stored.key("a"))
        opened().stored.store.put(cache.stored.key("a"), value, recipe=cache.stored.identity.recipe(4), is_second=True)
        with opened().request("a") as request:
            assert torch.equal(request.features, value["vision_features"])


def put_int8(cache, root, *, has_lost_its_recipe):
    """Put what `cache` keeps of "a" as int8, with the recipe that says so or without any."""
    key = cache.stored.key("a")
    recipe = {**cache.stored.identity.recipe(4), int8.RECIPE_FIELD: dict(int8.STORAGE)}
    with FeatureStore(root) as store:
        path = store.put(key, cache.stored.store.get(key), recipe=recipe)
        if has_lost_its_recipe:
            store.put(key, torch.load(path, weights_only=True))


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("is_int8_first", [False, True])
def test_int8_is_not_taken_where_the_exact_feature_is_there(cache, model, tmp_path, cast, is_int8_first):
    images = pictures(4, side=SIDE)
    fill(cache, model, "a", images)
    key = cache.stored.key("a")
    value, exact = cache.stored.store.get(key), next(cache.stored.store.records_of(key)).recipe
    recipes = [exact, {**exact, int8.RECIPE_FIELD: dict(int8.STORAGE)}]
    with FeatureStore(tmp_path / "both") as store:
        for recipe in reversed(recipes) if is_int8_first else recipes:
            store.put(key, value, recipe=recipe)
    with make_cache(model, tmp_path / "both", cast=cast).request("a"):
        assert torch.equal(model.tower(images), value["vision_features"])


def put_again(cache, root, features, *recipes):
    """Put features under recipes of their own; where there is a number in place of them, all are that number."""
    key = cache.stored.key("a")
    with FeatureStore(root) as store:
        for number, recipe in enumerate(recipes):
            value = cache.stored.store.get(key)
            given = features if number == len(recipes) - 1 else torch.full_like(features, number)
            store.put(key, {**value, "vision_features": given}, recipe=recipe)


@pytest.mark.parametrize("more", [{"frames_per_forward": 1}, {"compile": "inductor"}, {"dtype": "float16"}, None])
def test_of_several_recipes_that_fit_the_exact_one_is_taken(cache, model, tmp_path, caplog, more):
    live = fill(cache, model, "a", pictures(4, side=SIDE))
    exact = cache.stored.identity.recipe(4)
    first = {"made_by": "another tower"} if more is None else {**exact, "encoder": {**exact["encoder"], **more}}
    put_again(cache, tmp_path / "both", live, first, exact)
    with make_cache(model, tmp_path / "both", cast=True).request("a") as request:
        assert torch.equal(request.features, live)
    assert not caplog.records


def test_features_of_a_compiled_tower_are_told_of(cache, model, tmp_path, caplog):
    live = fill(cache, model, "a", pictures(4, side=SIDE))
    exact = cache.stored.identity.recipe(4)
    put_again(cache, tmp_path / "one", live, {**exact, "encoder": {**exact["encoder"], "compile": "inductor"}})
    with make_cache(model, tmp_path / "one").request("a") as request:
        assert request.is_hit
    assert "last bits: they were computed by a tower that inductor compiled" in caplog.text


def test_a_part_of_a_video_is_not_taken_for_the_whole(cache, model, tmp_path):
    live = fill(cache, model, "a", pictures(4, side=SIDE))
    whole = cache.stored.identity.recipe(4)
    part = {**whole, "frames": {**whole["frames"], "partial_frames": "allow"}}
    put_again(cache, tmp_path / "part", live, part)
    refused = make_cache(model, tmp_path / "part")
    with pytest.raises(RecipeMismatch, match=r'frames\.partial_frames: found "allow"'), refused.request("a"):
        pass
    put_again(cache, tmp_path / "both", live, part, whole)
    with make_cache(model, tmp_path / "both").request("a") as request:
        assert torch.equal(request.features, live)


def test_a_sampling_rule_is_known_by_any_spelling(model, tmp_path):
    fill(make_cache(model, tmp_path, on_miss="keep", sampling="fps:1"), model, "a", pictures(4, side=SIDE))
    with make_cache(model, tmp_path, sampling="fps:1.0").request("a") as request:
        assert request.is_hit
    with pytest.raises(RecipeMismatch, match="fps:2"), make_cache(model, tmp_path, sampling="fps:2").request("a"):
        pass


@pytest.mark.parametrize("dataset", ["Video-MME", "Video-MME_128frame"])
def test_a_second_recipe_is_found_and_named_where_it_lies(model, tmp_path, dataset):
    images, root = pictures(4, side=SIDE), tmp_path / "store"
    cache = make_cache(model, tmp_path / "kept", on_miss="keep")
    live = fill(cache, model, "a", images)
    recipe, key = cache.stored.identity.recipe(4), VideoKey(dataset, "a", 4, "0123abcd")
    with FeatureStore(root) as store:
        for one in ({"made_by": "another tower"}, recipe):
            store.put(key, {"vision_features": live}, recipe=one)
        path = store.path_of(key, recipe=recipe)
        store.path_of(key).unlink()
    assert path.parent.name == f"{dataset}@{recipe_fingerprint(recipe)[:8]}"
    with make_cache(model, root).request("a", dataset="Video-MME") as request:
        assert torch.equal(request.features, live)
    model.tower.select_layer = -1
    with pytest.raises(RecipeMismatch) as caught, make_cache(model, root).request("a", dataset="Video-MME"):
        pass
    assert caught.value.path == str(path)


def test_the_weights_of_the_checkpoint_count_where_the_model_runs_in_another_dtype(model, tmp_path):
    from safetensors.torch import save_file

    images = pictures(4, side=SIDE)
    fill(make_cache(model, tmp_path / "store", on_miss="keep"), model, "a", images)
    (tmp_path / "checkpoint").mkdir()
    prefix = "model.vision_tower."
    tensors = {prefix + name: value.contiguous() for name, value in model.tower.state_dict().items()}
    save_file({**tensors, "lm_head.weight": torch.zeros(2)}, tmp_path / "checkpoint" / "model.safetensors")
    model.half()
    with pytest.raises(RecipeMismatch, match="weights"), make_cache(model, tmp_path / "store", cast=True).request("a"):
        pass
    named = make_cache(model, tmp_path / "store", cast=True, checkpoint=tmp_path / "checkpoint")
    with named.request("a"):
        model.tower(images.half())
    model.tower.load_state_dict({name: value.clone() for name, value in model.tower.state_dict().items()})
    with named.request("a"):
        model.tower(images.half())
    assert named.statistics.hits == 2
    unasked = make_cache(model, tmp_path / "store", cast=True, checkpoint=tmp_path / "checkpoint")
    with torch.no_grad():
        next(model.tower.parameters()).add_(1)
    for one in (named, unasked):
        with pytest.raises(RecipeMismatch, match="weights"), one.request("a"):
            pass


def test_the_weights_of_the_checkpoint_do_not_count_where_the_model_has_adapters(model, tmp_path):
    from safetensors.torch import save_file

    images = pictures(4, side=SIDE)
    fill(make_cache(model, tmp_path / "store", on_miss="keep"), model, "a", images)
    (tmp_path / "checkpoint").mkdir()
    tensors = {f"vision_tower.{name}": value.clone() for name, value in model.tower.state_dict().items()}
    save_file(tensors, tmp_path / "checkpoint" / "model.safetensors")
    cache = make_cache(model, tmp_path / "store", checkpoint=tmp_path / "checkpoint")
    with cache.request("a"):
        model.tower(images)
    adapted(model)
    with pytest.raises(RecipeMismatch, match="weights"), cache.request("a"):
        pass


def test_a_model_without_a_tower_is_refused(tmp_path):
    with pytest.raises(NoVisionTower, match="Linear has no"):
        CachedVisionTower(torch.nn.Linear(1, 1), tmp_path, dataset="set", model_signature="0123abcd")


@pytest.mark.parametrize(("option", "meant"), [("on_miss", "raise"), ("on_stale", "error"), ("on_difference", "raise")])
def test_a_mistyped_word_is_not_taken_for_another(model, tmp_path, option, meant):
    with pytest.raises(ValueError, match=f"^{option} is 'rasie'; give .*'{meant}'"):
        make_cache(model, tmp_path, **{option: "rasie"})


@pytest.mark.parametrize("share", [10, -0.1, float("nan")])
def test_a_share_of_echoes_that_is_none_is_refused(model, tmp_path, share):
    with pytest.raises(ValueError, match=f"^echo is {share}; give a share"):
        make_cache(model, tmp_path, echo=share)


def test_a_checkpoint_that_is_no_folder_is_refused(model, tmp_path):
    with pytest.raises(EvaluationError, match="checkpoint=lmms-lab/LongVA-7B is no folder"):
        make_cache(model, tmp_path, checkpoint="lmms-lab/LongVA-7B")


def test_a_model_without_a_name_needs_a_signature(model, tmp_path):
    with pytest.raises(EvaluationError, match="model_signature="):
        CachedVisionTower(model, tmp_path, dataset="set")


def test_a_hit_rate_of_100_means_that_nothing_missed():
    block = CacheStatistics(hits=2999, misses=1).block()
    assert "Hit rate: 99.9%" in block
