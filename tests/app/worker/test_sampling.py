"""Steered generation is exact: off is plain generation to the bit, and on adds the formula and nothing else."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.worker.direction import read_direction
from app.worker.growing_text import GrowingText, carries_cache
from app.worker.sampling import (
    Sampling,
    Steering,
    Transcript,
    _steered,
    choose,
    end_tokens,
    generate,
    prompt_tokens,
    steering_of,
)
from tests.worlds.steerable import (
    ONLY_GEMMA3,
    ONLY_SMOLLM2,
    SCALES,
    SHARED,
    random_crosscoder,
    steerable_recipe,
    write_steerable_run,
)
from trainer.errors import CrosscoderError, SourceError
from trainer.models.hookpoint import Hookpoint, editing, locate
from trainer.models.source import Source, load_source
from trainer.run.folder import RunFolder

PROMPT = "The capital of France"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a steerable run."""
    home = tmp_path_factory.mktemp("home")
    write_steerable_run(home)
    return home


@pytest.fixture(scope="module")
def folder(home: Path) -> RunFolder:
    """The run's folder."""
    (path,) = (home / "runs").iterdir()
    return RunFolder(path)


@pytest.fixture(scope="module")
def sources(home: Path) -> dict[str, Source]:
    """Both sources, in fp32 and in bf16."""
    recipes = {(one.name, dtype): one for dtype in DTYPES for one in steerable_recipe(home, dtype).sources}
    return {f"{name} {dtype}": load_source(recipe) for (name, dtype), recipe in recipes.items()}


DTYPES = ("float32", "bfloat16")
BOTH = pytest.mark.parametrize("name", ["smollm2 float32", "gemma3 float32"])
ALL = pytest.mark.parametrize("name", [f"{name} {dtype}" for name in ("smollm2", "gemma3") for dtype in DTYPES])


def hook_of(source: Source) -> Hookpoint:
    """Where its recipe steers it."""
    return locate(source, source.recipe.hookpoint, source.recipe.layer)


def logits_while(
    source: Source, prompt: list[int], steering: Steering | None, tokens: int
) -> tuple[list[int], list[Tensor]]:
    """Generated tokens, and the last logits of every forward pass."""
    carries_cache(source)  # found out by passes of its own
    seen: list[Tensor] = []
    handle = source.model.register_forward_hook(
        lambda _module, _args, output: seen.append(output.logits[0, -1].clone())
    )
    try:
        return list(generate(source, hook_of(source), prompt, Sampling(tokens), steering)), seen
    finally:
        handle.remove()


@ALL
def test_without_a_change_it_is_plain_greedy_generation_to_the_bit(sources: dict[str, Source], name: str):
    source = sources[name]
    prompt = prompt_tokens(source, PROMPT, chat=False)
    mine, logits = logits_while(source, prompt, None, 40)
    plain = source.model.generate(
        torch.tensor([prompt]),
        max_new_tokens=40,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        eos_token_id=list(end_tokens(source)),
    )
    assert plain.sequences[0, len(prompt) :].tolist() == mine
    assert all(torch.equal(a[0], b.float()) for a, b in zip(plain.logits, logits, strict=True))
    assert len(mine) > 5, "long enough to mean something"


@ALL
@pytest.mark.parametrize("strength", [0.0, -0.0])
def test_strength_zero_is_off_to_the_bit(sources: dict[str, Source], folder: RunFolder, name: str, strength: float):
    source = sources[name]
    prompt = prompt_tokens(source, PROMPT, chat=True)
    direction = read_direction(folder, SHARED, source.name)
    steering = steering_of(direction.vector, strength=strength, max_activation=5.0, positions="all")
    assert steering is None, "no hook at all"
    assert logits_while(source, prompt, steering, 10)[0] == logits_while(source, prompt, None, 10)[0]


@pytest.mark.parametrize(
    ("feature", "name", "writes"),
    [
        (SHARED, "smollm2", True),
        (SHARED, "gemma3", True),
        (ONLY_SMOLLM2, "smollm2", True),
        (ONLY_SMOLLM2, "gemma3", False),
        (ONLY_GEMMA3, "smollm2", False),
        (ONLY_GEMMA3, "gemma3", True),
    ],
)
def test_a_direction_is_the_decoders_row_taken_out_of_normalised_space(
    folder: RunFolder, feature: int, name: str, writes: bool
):
    direction = read_direction(folder, feature, name)
    expected = random_crosscoder().decoder(name)[feature] / SCALES[name]
    assert direction.writes is writes
    assert torch.equal(direction.vector, expected)
    assert bool(expected.any()) is writes


@BOTH
def test_a_feature_that_does_not_write_changes_nothing_to_the_bit(
    sources: dict[str, Source], folder: RunFolder, name: str
):
    source = sources[name]
    feature = ONLY_GEMMA3 if source.name == "smollm2" else ONLY_SMOLLM2
    direction = read_direction(folder, feature, source.name)
    assert steering_of(direction.vector, strength=8.0, max_activation=40.0, positions="all") is None


@BOTH
@pytest.mark.parametrize(("positions", "factors"), [("all", (1, 1)), ("prompt", (1, 0)), ("generated", (0, 1))])
def test_what_is_added_is_the_formula_at_exactly_the_positions_asked_for(
    sources: dict[str, Source], folder: RunFolder, name: str, positions, factors: tuple[int, int]
):
    source = sources[name]
    hook = hook_of(source)
    prompt = prompt_tokens(source, PROMPT, chat=False)
    direction = read_direction(folder, SHARED, source.name).vector
    strength, unit = 2.5, 3.0
    steering = steering_of(direction, strength=strength, max_activation=unit, positions=positions)
    before: list[Tensor] = []
    after: list[Tensor] = []
    # A hook set first sees what the model computed; one set last sees what the model goes on with.
    with editing(source, hook, lambda x: before.append(x.clone()) or x):
        steps = generate(source, hook, prompt, Sampling(6), steering)
        for _ in range(6):
            with Later(source, hook, after):
                if next(steps, None) is None:
                    break
    expected = strength * unit * random_crosscoder().decoder(source.name)[SHARED] / SCALES[source.name]
    assert [len(x[0]) for x in before] == [len(prompt), *[1] * (len(before) - 1)]
    assert len(before) > 2
    for step, (was, became) in enumerate(zip(before, after, strict=True)):
        factor = factors[min(step, 1)]
        torch.testing.assert_close(became - was, (factor * expected).expand_as(was), rtol=0, atol=1e-5)
        assert factor or torch.equal(became, was)


class Later:
    """Sees the input of the next block, which is what the model goes on with."""

    def __init__(self, source: Source, hook: Hookpoint, seen: list[Tensor]) -> None:
        self._block = source.blocks[hook.layer + 1]
        self._seen = seen

    def __enter__(self) -> None:
        def keep(_module, args, kwargs):
            self._seen.append((args[0] if args else kwargs["hidden_states"]).clone())

        self._handle = self._block.register_forward_pre_hook(keep, with_kwargs=True)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


@BOTH
def test_with_a_cache_steering_gives_what_one_pass_over_all_tokens_gives(
    sources: dict[str, Source], folder: RunFolder, name: str
):
    source = sources[name]
    prompt = prompt_tokens(source, PROMPT, chat=False)
    direction = read_direction(folder, SHARED, source.name).vector
    steering = steering_of(direction, strength=1.0, max_activation=10.0, positions="all")
    assert steering is not None
    tokens, logits = logits_while(source, prompt, steering, 8)
    with torch.inference_mode(), editing(source, hook_of(source), lambda x: x + steering.delta):
        whole = source.model(torch.tensor([prompt + tokens])).logits[0]
    for step, last in enumerate(logits):
        torch.testing.assert_close(whole[len(prompt) - 1 + step], last, rtol=1e-3, atol=1e-3)
    plain = logits_while(source, prompt, None, 8)[1]
    assert not torch.allclose(plain[0], logits[0], atol=0.1), "steering does something"


def test_everything_follows_the_models_device(sources: dict[str, Source], monkeypatch: pytest.MonkeyPatch):
    """torch's `meta` device stands for a GPU: mixing it with the CPU raises."""
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda _: None)
    source = copy.deepcopy(sources["gemma3 float32"])
    source.model.to("meta")
    source = replace(source, device=source.model.device)
    steering = Steering(torch.ones(source.width), "generated")
    seen: list[torch.device] = []
    with editing(source, hook_of(source), lambda x: seen.append(x.device) or x):
        text = GrowingText(source, [2, 3, 4])
        for _ in range(3):
            logits = text.next_logits(lambda first: _steered(source, hook_of(source), steering, first, 3))
            text.add(5)
    assert logits.device.type == "meta"
    assert {device.type for device in seen} == {"meta"}


def test_nothing_stays_hooked_between_two_tokens(sources: dict[str, Source], folder: RunFolder):
    source = sources["smollm2 float32"]
    prompt = prompt_tokens(source, PROMPT, chat=False)
    direction = read_direction(folder, SHARED, "smollm2").vector
    steering = steering_of(direction, strength=4.0, max_activation=9.0, positions="all")
    steered = generate(source, hook_of(source), prompt, Sampling(20), steering)
    plain = generate(source, hook_of(source), prompt, Sampling(20), None)
    alternating = [(next(steered), next(plain)) for _ in range(5)]
    steered.close()
    assert [off for _, off in alternating] == logits_while(source, prompt, None, 5)[0]
    assert [on for on, _ in alternating] == logits_while(source, prompt, steering, 5)[0]


def test_sampling_repeats_with_its_seed_and_differs_with_another(sources: dict[str, Source]):
    source = sources["gemma3 float32"]
    prompt = prompt_tokens(source, PROMPT, chat=False)

    def text(seed: int) -> list[int]:
        return list(generate(source, hook_of(source), prompt, Sampling(15, 1.0, 0.95, seed), None))

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_top_p_keeps_the_likeliest_until_they_reach_it():
    # Probabilities 0.5, 0.3, 0.15, 0.05: with top_p 0.6 only the first two may come.
    logits = torch.log(torch.tensor([0.05, 0.5, 0.15, 0.3]))
    generator = torch.Generator().manual_seed(0)
    drawn = [choose(logits, Sampling(1, 1.0, 0.6), generator) for _ in range(300)]
    assert set(drawn) == {1, 3}
    assert 0.5 < drawn.count(1) / 300 < 0.75, "5 in 8"
    assert {choose(logits, Sampling(1, 1.0, 0.01), generator) for _ in range(20)} == {1}


@pytest.mark.parametrize("temperature", [1e-3, 1e-38, 1e-40, 1e-46, 1e-300, 5e-324])
def test_the_colder_it_is_the_nearer_it_comes_to_the_likeliest_token(temperature: float):
    generator = torch.Generator().manual_seed(0)
    for logits in (torch.tensor([-3.0, 5.0, 4.0]), torch.tensor([-9.0, -1.0, -2.0]), torch.tensor([0.0, 0.0, -1e30])):
        drawn = {choose(logits, Sampling(1, temperature, 1.0), generator) for _ in range(40)}
        assert drawn == set((logits == logits.max()).nonzero().flatten().tolist()), "equals stay equally likely"


@pytest.mark.parametrize("top_p", [1e-30, 1e-46, 1e-300, 5e-324])
def test_a_top_p_near_zero_keeps_the_likeliest_alone(top_p: float):
    generator = torch.Generator().manual_seed(0)
    assert {choose(torch.tensor([1.0, 3.0, 2.0]), Sampling(1, 2.0, top_p), generator) for _ in range(20)} == {1}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1.0])
def test_logits_that_are_no_numbers_are_never_chosen_from(number: float, temperature: float):
    with pytest.raises(SourceError, match="nearer to zero"):
        choose(torch.tensor([1.0, number, 2.0]), Sampling(1, temperature), torch.Generator())


def test_tokens_that_a_model_rules_out_are_never_drawn():
    logits = torch.tensor([float("-inf"), 1.0, 1.5])
    generator = torch.Generator().manual_seed(0)
    assert {choose(logits, Sampling(1, 1.0), generator) for _ in range(60)} == {1, 2}
    assert {choose(logits, Sampling(1, 1e-40), generator) for _ in range(20)} == {2}


def test_numbers_that_overflow_are_said_to(sources: dict[str, Source], folder: RunFolder):
    source = sources["smollm2 float32"]
    prompt = prompt_tokens(source, PROMPT, chat=False)
    steering = Steering(torch.full((16,), float("inf")), "all")
    with pytest.raises(SourceError, match="nearer to zero"):
        list(generate(source, hook_of(source), prompt, Sampling(3), steering))


def test_a_prompt_without_room_for_an_answer_is_refused(sources: dict[str, Source]):
    source = sources["smollm2 float32"]
    prompt = prompt_tokens(source, PROMPT * 100, chat=False)
    with pytest.raises(SourceError, match="reads 512 at most"):
        list(generate(source, hook_of(source), prompt, Sampling(400), None))


@pytest.mark.parametrize(
    ("name", "chat", "text"),
    [
        ("smollm2 float32", False, "<|im_start|>the dog"),
        ("smollm2 float32", True, "<|im_start|>user\nthe dog<|im_end|>\n<|im_start|>assistant\n"),
        ("gemma3 float32", False, "<bos>the dog"),
        ("gemma3 float32", True, "<bos>the dog"),
    ],
)
def test_bos_stands_first_exactly_once_and_chats_use_the_template(sources: dict[str, Source], name, chat, text):
    source = sources[name]
    ids = prompt_tokens(source, "the dog", chat=chat)
    assert source.tokenizer.decode(ids) == text
    assert (ids[0], ids[1:].count(source.bos_id)) == (source.bos_id, 1 if "<|im_start|>assistant" in text else 0)


@BOTH
def test_text_grows_without_broken_characters_and_ends_as_the_whole(sources: dict[str, Source], name: str):
    source = sources[name]
    said = " the fox 🦊 läuft über\n 語 x"
    prompt = prompt_tokens(source, "so", chat=False)
    transcript = Transcript(source, prompt)
    grown = [transcript.add(token) for token in source.tokenizer.encode(said, add_special_tokens=False)]
    assert grown[-1] == said
    assert len(set(grown)) < len(grown), "some characters took several tokens"
    assert all(said.startswith(text) for text in grown)


def test_the_token_that_ends_a_text_is_not_shown(sources: dict[str, Source]):
    source = sources["gemma3 float32"]
    transcript = Transcript(source, prompt_tokens(source, "so", chat=False))
    (end,) = end_tokens(source)
    assert transcript.add(source.tokenizer.encode("fox", add_special_tokens=False)[0]) == transcript.add(end)


def test_a_run_without_a_crosscoder_says_so(tmp_path: Path):
    with pytest.raises(CrosscoderError, match="has no trained crosscoder yet"):
        read_direction(RunFolder(tmp_path), 0, "smollm2")


@pytest.mark.parametrize(
    ("feature", "source", "fact"), [(24, "smollm2", "no feature 24"), (0, "qwen", "no source 'qwen'")]
)
def test_a_direction_that_is_not_there_is_refused(folder: RunFolder, feature: int, source: str, fact: str):
    with pytest.raises(CrosscoderError, match=fact):
        read_direction(folder, feature, source)


def described(width: int, scale: float) -> bytes:
    """A description of a crosscoder with one source."""
    source = {"name": "smollm2", "width": width, "scale": scale}
    group = {"name": "shared", "first": 0, "features": 17, "writes": ["smollm2"]}
    return json.dumps({"sources": [source], "groups": [group]}).encode()


@pytest.mark.parametrize(
    "description",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"\xff\xfe{",
        b"[" * 5000,
        b'{"sources": [], "groups": 3}',
        b'{"sources": [{"name": "smollm2"}], "groups": [{"first": 0, "features": 99, "writes": []}]}',
        described(16, 0),
        described(16, float("nan")),
        described(17, 1),
    ],
)
def test_a_damaged_description_says_so(tmp_path: Path, folder: RunFolder, description: bytes):
    damaged = RunFolder(tmp_path)
    damaged.crosscoder.write_bytes(description)
    damaged.weights.write_bytes(folder.weights.read_bytes())
    with pytest.raises(CrosscoderError, match=r"crosscoder\.json of .* is damaged \(.*\)\. Train it again"):
        read_direction(damaged, SHARED, "smollm2")


def test_a_direction_that_is_no_number_is_refused(tmp_path: Path):
    crosscoder = random_crosscoder()
    crosscoder.weights["decoder.smollm2.shared"][SHARED, 2] = float("nan")
    crosscoder.save(tmp_path)
    with pytest.raises(CrosscoderError, match="feature 3 is no direction of 16 numbers"):
        read_direction(RunFolder(tmp_path), SHARED, "smollm2")


def test_a_damaged_crosscoder_says_so(home: Path, tmp_path: Path, folder: RunFolder):
    damaged = RunFolder(tmp_path)
    damaged.crosscoder.write_bytes(folder.crosscoder.read_bytes())
    damaged.weights.write_bytes(folder.weights.read_bytes()[:100])
    with pytest.raises(CrosscoderError, match=r"crosscoder\.safetensors is missing or damaged"):
        read_direction(damaged, SHARED, "smollm2")
