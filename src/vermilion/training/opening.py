"""A recipe's data and device, opened."""

from __future__ import annotations

from dataclasses import replace

import torch

from vermilion.data.corpus import Corpus
from vermilion.data.examples import read_answers
from vermilion.data.packing import MAX_FITTED_LENGTH, Dataset, DataSource, fitting_length
from vermilion.errors import ConfigError
from vermilion.models import catalog
from vermilion.models.catalog import ModelFiles
from vermilion.models.families import ModelSpec
from vermilion.training.recipe import Recipe


def dataset_of(recipe: Recipe, files: ModelFiles, spec: ModelSpec) -> Dataset:
    """Raises ConfigError for data that is missing or does not fit the base."""
    longest = recipe.data.length or MAX_FITTED_LENGTH
    corpora, validation = (
        tuple(_corpus(source, files, spec, longest) for source in sources)
        for sources in (recipe.data.sources, recipe.data.validation)
    )
    # What follows an end is only ever seen by noisy rows.
    num_fill = recipe.longest_block - 1 if recipe.objective.denoise else 0
    length = recipe.data.length or fitting_length((*corpora, *validation), num_fill)
    if recipe.context == "full":
        num_fill = length  # at inference the whole answer is one canvas, however long it was made
    if length > spec.architecture.context_length:
        raise ConfigError(
            f"data.length: {length} is more than the base's context of {spec.architecture.context_length}."
        )
    data = replace(recipe.data, length=length)
    if any(token >= spec.architecture.vocab_size for token in data.fim_token_ids):
        raise ConfigError(f"data.fim_token_ids: {data.fim_token_ids}; the vocabulary ends before.")
    breaks = _line_breaks(files, spec.architecture.vocab_size) if data.fim else frozenset[int]()
    return Dataset(data, corpora, validation, spec.traits.eos_token_ids, num_fill, breaks)


def device_of(recipe: Recipe) -> torch.device:
    """The recipe's device; raises ConfigError for what is none."""
    device = device_named(recipe.device)
    if device.type == "cpu" and recipe.attention == "flex":
        raise ConfigError("attention: 'flex' goes backward on a GPU only; here 'dense' is allowed.")
    return device


def device_named(name: str) -> torch.device:
    """`auto` is the first GPU, where there is one; raises ConfigError for what is no device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is not a device; try auto, cpu, cuda or cuda:0.") from error


def dtype_of(recipe: Recipe) -> torch.dtype:
    """Of what is written."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[recipe.adapter_dtype]


def _line_breaks(files: ModelFiles, vocab_size: int) -> frozenset[int]:
    tokenizer = catalog.tokenizer_of(files)
    texts = (tokenizer.decode([token], skip_special=False) for token in range(vocab_size))
    return frozenset(token for token, text in enumerate(texts) if text.endswith("\n"))


def _corpus(source: DataSource, files: ModelFiles, spec: ModelSpec, row_length: int) -> Corpus:
    if source.path.suffix != ".jsonl":
        corpus = Corpus.open(source.path)
    else:
        tokenizer, template = catalog.tokenizer_of(files), catalog.chat_template_of(files)
        corpus = Corpus.of(read_answers(source.path, tokenizer, template, row_length))
    if corpus.largest_id() >= spec.architecture.vocab_size:
        raise ConfigError(f"{source.path}: holds token ids that the base's vocabulary lacks.")
    return corpus
