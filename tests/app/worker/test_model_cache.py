"""Each model is loaded once, when it is needed; memory that runs out and missing files are reported."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from app.worker.model_cache import ModelCache, OutOfMemory, key
from trainer.errors import SourceError
from trainer.recipe.fitting import SourceRecipe


class Loader:
    """Loads nothing, and remembers what it was asked for; `trouble` is raised in turn before anything works."""

    def __init__(self, *trouble: BaseException) -> None:
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        self.revision = "a" * 12
        self._trouble = list(trouble)

    def __call__(self, recipe: SourceRecipe):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(0.01)
        self.at_once -= 1
        self.asked.append(recipe.model)
        if self._trouble:
            raise self._trouble.pop(0)
        return SimpleNamespace(model=recipe.model, revision=self.revision)


def recipe(model: str, **more) -> SourceRecipe:
    """A source of that model."""
    return SourceRecipe.model_validate({"name": "one", "model": model, "layer": 1, **more})


def use(models: ModelCache, wanted: SourceRecipe, revision: str | None = None) -> str:
    """Take a model and put it back."""
    with models.using(wanted, revision) as (source, _):
        assert models.state(wanted, revision).state == "ready"
        return source.model


def test_a_model_is_absent_until_it_is_used_and_then_stays():
    models = ModelCache(load=(loader := Loader()))
    assert models.state(recipe("a")).state == "absent"
    assert use(models, recipe("a")) == use(models, recipe("a")) == "a"
    assert loader.asked == ["a"]


def test_sources_of_one_model_share_it_whatever_their_name_and_layer():
    assert key(recipe("a", name="x", layer=3)) == key(recipe("a", name="y", layer=9, hookpoint="mlp_out"))
    assert key(recipe("a")) != key(recipe("a"), "a" * 12)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float32"},
        {"adapter": "b"},
        {"chat": "plain"},
        {"chat": "template"},
        {"revision": "main"},
        {"device": "cpu"},
        {"quantization": "8bit"},
    ],
)
def test_whatever_decides_what_a_model_computes_or_reads_sets_models_apart(change: dict[str, str]):
    assert key(recipe("a")) != key(recipe("a", **change))
    models = ModelCache(load=(loader := Loader()))
    use(models, recipe("a"))
    use(models, recipe("a", **change))
    assert loader.asked == ["a", "a"]


def test_a_model_that_is_not_the_one_of_the_run_is_refused_until_it_is_again():
    models = ModelCache(load=(loader := Loader()))
    with pytest.raises(
        SourceError, match=r"one: a has changed since the run read it \(it was b{12}, and is a{12} now\)"
    ):
        use(models, recipe("a"), "b" * 12)
    assert models.state(recipe("a"), "b" * 12).state == "failed"
    loader.revision = "b" * 12
    assert use(models, recipe("a"), "b" * 12) == "a"
    loader.revision = "c" * 12
    assert use(models, recipe("a"), "b" * 12) == "a", "what is loaded is still the run's"


def test_models_are_loaded_one_after_another_and_each_once():
    models = ModelCache(load=(loader := Loader()))
    wanted = [recipe(name) for name in "abab" * 5]
    with ThreadPoolExecutor(20) as threads:
        assert list(threads.map(lambda one: use(models, one), wanted)) == [one.model for one in wanted]
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
    assert use(models, recipe("a")) == "a"
    assert models.state(recipe("a")).reason == ""


def test_when_memory_runs_out_unused_models_make_room_first():
    models = ModelCache(load=(loader := Loader()))
    use(models, recipe("a"))
    loader._trouble.append(MemoryError())
    assert use(models, recipe("b")) == "b"
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
        return SimpleNamespace(model="loaded", revision="")

    models = ModelCache(load=slow)
    thread = threading.Thread(target=use, args=(models, recipe("a")))
    thread.start()
    begun.wait(10)
    state = models.state(recipe("a"))
    go_on.set()
    thread.join()
    assert state.state == "loading"
    assert state.seconds is not None
