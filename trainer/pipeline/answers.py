"""Has the questions of a recipe's corpus answered before it is harvested."""

from collections.abc import Callable

from trainer.corpus.mix import part_names
from trainer.models.source import Source
from trainer.reading.answers import answers_file, write_answers
from trainer.reading.inputs import inputs_of
from trainer.recipe.fitting import CorpusPart, SourceRecipe
from trainer.recipe.recipe import Recipe
from trainer.run.progress import Progress


def with_answers(recipe: Recipe, load: Callable[[SourceRecipe], Source], progress: Progress) -> Recipe:
    """The recipe with files of answers in the place of questions; those that are not there yet are written.

    Raises CorpusError and SourceError.
    """
    if recipe.corpus is None or not any(part.answers for part in recipe.corpus.mix):
        return recipe
    questions = inputs_of(recipe)["corpus"]
    parts: list[CorpusPart] = []
    for name, part in zip(part_names(recipe.corpus), recipe.corpus.mix, strict=True):
        if part.answers is None:
            parts.append(part.model_copy(update={"name": name}))
            continue
        source = load(next(one for one in recipe.sources if one.name == part.answers.source))
        path = answers_file(part, recipe.corpus, source.revision, questions[name])
        if not path.is_file():
            write_answers(part, recipe.corpus, source, path, progress)
        parts.append(CorpusPart(name=name, path=str(path), format="chat", column="messages", share=part.share))
    return recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update={"mix": tuple(parts)})})
