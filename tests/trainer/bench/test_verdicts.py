"""Calls by evidence on a crosscoder made from the true concepts, with some shared ones in dedicated groups."""

import pytest
import torch

from trainer.bench.trial_progress import TrialProgress
from trainer.bench.verdicts import supported_calls
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group
from trainer.crosscoder.normalisation import Normaliser
from trainer.recipe.measuring import AnalysisRecipe
from trainer.run.folder import RunFolder
from trainer.store.store import ActivationStore
from trainer.toy.world import World, WorldPlan, random_world

PLAN = WorldPlan(concepts=200, widths=(64, 80), exclusive_share=0.2)
FALSE = 15
"""Shared concepts in each dedicated group."""


@pytest.fixture(scope="module")
def world() -> World:
    return random_world(PLAN, seed=3)


@pytest.fixture(scope="module")
def store(world, tmp_path_factory) -> ActivationStore:
    return world.write(tmp_path_factory.mktemp("rows"), rows=1024, held_out=40_000)[0]


def made_from(world: World) -> tuple[Crosscoder, torch.Tensor]:
    """A feature for every concept, read and written along its own directions; and how many sources hold it [F]."""
    one, two = world.sources
    holds = torch.stack([world.vectors[name].any(dim=1) for name in world.sources], dim=1)
    shared = torch.nonzero(holds.all(dim=1)).squeeze(1)
    dedicated = {
        name: torch.cat([torch.nonzero(holds[:, at] & ~holds[:, 1 - at]).squeeze(1), shared[at * FALSE :][:FALSE]])
        for at, name in enumerate(world.sources)
    }
    rest = shared[2 * FALSE :]
    concepts = {"shared": rest, **dedicated}
    groups, weights, first = [], {}, 0
    for name, mine in concepts.items():
        members = world.sources if name == "shared" else (name,)
        groups.append(Group(name, len(mine), first, members, members))
        first += len(mine)
        weights[f"encoder_bias.{name}"] = torch.zeros(len(mine))
        for source in members:
            direction = torch.nn.functional.normalize(world.vectors[source][mine], dim=1)
            weights[f"encoder.{source}.{name}"] = direction / len(members)
            weights[f"decoder.{source}.{name}"] = direction.clone()
    weights |= {
        f"decoder_bias.{source}": torch.zeros(width) for source, width in zip((one, two), PLAN.widths, strict=True)
    }
    normaliser = {
        source: Normaliser(torch.zeros(width), 1.0) for source, width in zip((one, two), PLAN.widths, strict=True)
    }
    threshold = {group.name: torch.tensor(0.4) for group in groups}
    crosscoder = Crosscoder(
        dict(zip((one, two), PLAN.widths, strict=True)), tuple(groups), weights, normaliser, threshold
    )
    return crosscoder, holds[torch.cat(list(concepts.values()))].sum(dim=1)


def test_true_claims_are_supported_and_false_ones_are_not(world, store, tmp_path):
    crosscoder, holders = made_from(world)
    calls = supported_calls(
        crosscoder, store, AnalysisRecipe(), TrialProgress(RunFolder(tmp_path / "run"), 1), tmp_path
    )
    supported = ~calls.all(dim=1)

    assert int((holders == 1).sum()) == 40
    # Concepts of the toy world occur together: of some exclusive ones the other source tells by what goes with them.
    assert int(supported[holders == 1].sum()) >= 20
    assert not supported[holders == 2].any()
    # The call is the source that holds the concept.
    assert torch.equal(calls[supported].sum(dim=1), torch.ones(int(supported.sum()), dtype=torch.int64))
    assert list(tmp_path.iterdir()) == [], "temporary files are gone"
