"""Each model is loaded once, when it is needed; memory that runs out and missing files are reported."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.worker.model_cache import ModelCache, OutOfMemory, key
from trainer.errors import SourceError
from trainer.recipe.fitting import SourceRecipe


class Loader:
    """Loads nothing, and remembers what it was asked for; `trouble` is raised in turn before anything works."""

    def __init__(self, *trouble: BaseException) -> None:
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        self._trouble = list(trouble)

    def __call__(self, recipe: SourceRecipe):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(0.01)
        self.at_once -= 1
        self.asked.append(recipe.model)
        if self._trouble:
            raise self._trouble.pop(0)
        return f"the model {recipe.model}"


def recipe(model: str, **more) -> SourceRecipe:
    """A source of that model."""
    return SourceRecipe.model_validate({"name": "one", "model": model, "layer": 1, **more})


def use(models: ModelCache, wanted: SourceRecipe) -> object:
    """Take a model and put it back."""
    with models.using(wanted) as (source, _):
        assert models.state(wanted).state == "ready"
        return source


def test_a_model_is_absent_until_it_is_used_and_then_stays():
    models = ModelCache(load=(loader := Loader()))
    assert models.state(recipe("a")).state == "absent"
    assert use(models, recipe("a")) == use(models, recipe("a")) == "the model a"
    assert loader.asked == ["a"]


def test_sources_of_one_model_share_it_whatever_their_name_and_layer():
    assert key(recipe("a", name="x", layer=3)) == key(recipe("a", name="y", layer=9, hookpoint="mlp_out"))
    assert key(recipe("a")) != key(recipe("a", dtype="float32"))
    assert key(recipe("a")) != key(recipe("a", adapter="b"))


def test_models_are_loaded_one_after_another_and_each_once():
    models = ModelCache(load=(loader := Loader()))
    wanted = [recipe(name) for name in "abab" * 5]
    with ThreadPoolExecutor(20) as threads:
        assert list(threads.map(lambda one: use(models, one), wanted)) == [f"the model {one.model}" for one in wanted]
    assert sorted(loader.asked) == ["a", "b"]
    assert loader.most_at_once == 1


def test_beyond_its_limit_the_model_unused_for_longest_goes():
    models = ModelCache(held=2, load=Loader())
    for model in ("a", "b", "a", "c"):
        use(models, recipe(model))
    assert [models.state(recipe(model)).state for model in "abc"] == ["ready", "absent", "ready"]


def test_a_model_in_use_never_goes():
    models = ModelCache(held=1, load=Loader())
    with models.using(recipe("a")):
        use(models, recipe("b"))
        assert models.state(recipe("a")).state == "ready"
    assert models.state(recipe("b")).state == "absent"


def test_a_model_that_failed_says_why_and_is_tried_again():
    models = ModelCache(load=Loader(SourceError("one: no such folder. Give another.")))
    with pytest.raises(SourceError, match="no such folder"):
        use(models, recipe("a"))
    assert (models.state(recipe("a")).state, models.state(recipe("a")).reason) == (
        "failed",
        "one: no such folder. Give another.",
    )
    assert use(models, recipe("a")) == "the model a"
    assert models.state(recipe("a")).reason == ""


def test_when_memory_runs_out_unused_models_make_room_first():
    models = ModelCache(load=(loader := Loader()))
    use(models, recipe("a"))
    loader._trouble.append(MemoryError())
    assert use(models, recipe("b")) == "the model b"
    assert models.state(recipe("a")).state == "absent"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_is_short_whatever_goes_is_told(error: BaseException):
    models = ModelCache(load=Loader(error, error))
    with pytest.raises(OutOfMemory, match="not enough memory for one"):
        use(models, recipe("a"))
    assert models.state(recipe("a")).state == "out_of_memory"


def test_while_it_loads_the_state_says_since_when():
    begun, go_on = threading.Event(), threading.Event()

    def slow(wanted: SourceRecipe):
        begun.set()
        go_on.wait(10)
        return "loaded"

    models = ModelCache(load=slow)
    thread = threading.Thread(target=use, args=(models, recipe("a")))
    thread.start()
    begun.wait(10)
    state = models.state(recipe("a"))
    go_on.set()
    thread.join()
    assert state.state == "loading"
    assert state.seconds is not None
