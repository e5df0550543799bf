"""Model sizes are counted from the files of model folders."""

import json

import torch
from safetensors.torch import save_file

from tests.worlds.tiny_models import tiny_gemma3, tiny_llama
from trainer.models.shapes import shape_of
from trainer.recipe.fitting import SourceRecipe


def test_parameters_are_counted_from_the_weight_files(tmp_path):
    model = tiny_llama(tmp_path / "llama")
    shape = shape_of(SourceRecipe(name="left", model=str(tmp_path / "llama"), layer=1))

    config = model.config
    blocks = model.model.layers
    assert shape is not None
    assert (shape.width, shape.vocabulary) == (config.hidden_size, config.vocab_size)
    assert (shape.layers, shape.all_layers) == (2, len(blocks))
    assert shape.parameters == sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    assert shape.multiplications == sum(p.numel() for block in blocks[:2] for p in block.parameters() if p.dim() > 1)
    outside = model.model.embed_tokens.weight.numel() + model.model.norm.weight.numel()
    assert shape.kept_parameters == outside + sum(p.numel() for block in blocks[:2] for p in block.parameters())
    head = config.vocab_size * config.hidden_size
    assert shape.all_multiplications == head + sum(
        p.numel() for block in blocks for p in block.parameters() if p.dim() > 1
    )


def test_a_later_hookpoint_keeps_more_of_the_model(tmp_path):
    tiny_gemma3(tmp_path / "gemma")
    low, high = (shape_of(SourceRecipe(name="r", model=str(tmp_path / "gemma"), layer=layer)) for layer in (0, 2))

    assert low is not None and high is not None
    assert low.parameters == high.parameters
    assert (
        3 * low.multiplications == high.multiplications
        and low.kept_parameters < high.kept_parameters <= high.parameters
    )


def test_without_weights_sizes_are_estimated_from_the_config(tmp_path):
    config = {"hidden_size": 10, "num_hidden_layers": 4, "intermediate_size": 30, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = shape_of(SourceRecipe(name="left", model=str(tmp_path), layer=1))

    # A block is 10 * (4 * 10 + 3 * 30) = 1,300 weights, the embeddings are 1,000.
    assert shape is not None
    assert (shape.parameters, shape.kept_parameters, shape.multiplications) == (
        1000 + 4 * 1300,
        1000 + 2 * 1300,
        2 * 1300,
    )


def test_a_model_that_is_not_local_has_no_shape(tmp_path):
    assert shape_of(SourceRecipe(name="left", model="pypi:some-package==1.0/model.gguf", layer=1)) is None


def test_an_untied_head_and_later_layers_are_not_kept(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"hidden_size": 4, "num_hidden_layers": 2}}))
    tensors = {f"model.layers.{n}.mlp.weight": torch.zeros(8, 4) for n in range(2)}
    save_file(tensors | {"lm_head.weight": torch.zeros(9, 4)}, tmp_path / "model.safetensors")
    shape = shape_of(SourceRecipe(name="left", model=str(tmp_path), layer=0))

    assert shape is not None
    assert (shape.width, shape.parameters, shape.kept_parameters, shape.multiplications) == (4, 100, 32, 32)
