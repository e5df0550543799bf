"""Tiny random models in the shapes of real families, and the five kinds of tokenizers that matter.

Tokenizers are trained on a few lines, so that they know common words, spell rarer ones, and fall back to
bytes (or to an unknown token) for everything else: the cases that alignment has to get right.
"""

import json
from functools import cache
from pathlib import Path

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

LINES = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "the quick brown fox jumps over the lazy dog while the other dogs sleep",
    "In 1987 there were 24 towns on the river; in 2024 there are 31.",
    "def add(first, second):\n    return first + second\n",
    "Über die Straße ging das Mädchen; la niña cruzó después la calle.",
    "She said that the world is what the people of the world make of it.",
]
"""Training text of the tokenizers."""

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes for a space."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level_bpe() -> PreTrainedTokenizerFast:
    """As in GPT-2, SmolLM2, Qwen and Llama 3: BPE over bytes written as printable characters; adds no BOS."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_byte_level()),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )


def llama_sentencepiece() -> PreTrainedTokenizerFast:
    """As in Llama 2 and Mistral: BPE, a space put before the text, bytes for unknown characters; adds BOS."""
    backend = _byte_fallback(("<unk>", "<s>", "</s>"), first_space=True)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def gemma_style() -> PreTrainedTokenizerFast:
    """As in Gemma: spaces replaced, none put before the text, bytes for unknown characters; adds BOS."""
    backend = _byte_fallback(("<pad>", "<eos>", "<bos>", "<unk>"), first_space=False, extra=("\n", "\n\n", "<table>"))
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    # Gemma matches these whole wherever they stand, though they are ordinary text.
    backend.add_tokens([AddedToken(text, normalized=False, special=False) for text in ("\n", "\n\n", "<table>")])
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>"
    )


def wordpiece() -> PreTrainedTokenizerFast:
    """As in BERT: lower-cased, accents dropped, unknown words become one unknown token."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    backend.train_from_iterator(LINES, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def unigram() -> PreTrainedTokenizerFast:
    """As in T5 and XLM-R: NFKC, which changes lengths (`ﬁ` becomes `fi`), then the likeliest pieces."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    backend.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def tiny_llama(folder: Path, *, seed: int = 0) -> LlamaForCausalLM:
    """A Llama of width 16 with 3 layers, a byte-level tokenizer and a chat template, saved to a folder."""
    tokenizer = byte_level_bpe()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    _save(model, tokenizer, folder, seed)
    return model


def tiny_gemma3(folder: Path, *, layers: int = 4, seed: int = 1) -> Gemma3ForCausalLM:
    """A Gemma 3 of width 24, its last layer with full attention, no chat template, saved to a folder."""
    tokenizer = gemma_style()
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention"] * (layers - 1) + ["full_attention"],
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Gemma3ForCausalLM(config)
    _save(model, tokenizer, folder, seed)
    return model


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int) -> None:
    """Give a model random weights, norms included, and save it with its tokenizer."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        # Larger than at the start of training, so that every part of the model changes its output.
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    model.eval().requires_grad_(False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@cache
def _byte_level() -> str:
    """A trained byte-level tokenizer as JSON; digits stand alone, as in SmolLM2."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    return backend.to_str()


def _byte_fallback(specials: tuple[str, ...], *, first_space: bool, extra: tuple[str, ...] = ()) -> Tokenizer:
    """BPE over characters, where a character that was never seen is spelt in bytes."""
    vocabulary = {token: index for index, token in enumerate((*specials, *extra, *BYTES))}
    learned, merges = _pieces(first_space)
    for token in learned:
        vocabulary.setdefault(token, len(vocabulary))
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    return Tokenizer(model)


@cache
def _pieces(first_space: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces and merges learned from the lines, over ASCII letters, digits and punctuation only."""
    scheme = "always" if first_space else "never"
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(vocab_size=250, show_progress=False)
    plain = ["".join(letter for letter in line if letter.isascii() and letter != "\n") for line in LINES]
    backend.train_from_iterator(plain, trainer)
    model = json.loads(backend.to_str())["model"]
    return list(model["vocab"]), [(left, right) for left, right in model["merges"]]
