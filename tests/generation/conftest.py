"""Every thought method in every family, for the tests that claim something of all of them."""

import functools

import pytest

from latentpt.thoughts.registry import METHODS
from tests.conftest import thinking, tiny_model, visibilities

OPTIONS = {
    "latent_mixture": [{}, {"top_k": 5}],
    "alcot": [{}, {"threshold": 0.8}],
    "ponder3": [{}, {"threshold": 0.4}],
    "latent": [{}, {"span": "middle"}],
    "dual_slot": [{}, {"injection": "norm"}],
    "smear": [{}, {"span": "all"}],
    "ponder": [{}, {"top_k": 5}, {"cumulative": True}],
    "lrt": [{}, {"shared_projections": True}],
    "fbt": [{}, {"fusion": "concat"}, {"fusion": "add"}],
    "t2mlr": [{}, {"span": "all"}],
}


def _kinds():
    for name in METHODS:
        for options in OPTIONS.get(name, [{}]):
            for visibility in visibilities(name):
                for thoughts in (1, 2) if name in ("latent", "pause") else (2,):
                    yield {**thinking(name, thoughts), "visibility": visibility, **options}


KINDS = list(_kinds())


@functools.cache
def model_of(family, number):
    """The model of a family and a kind, made once."""
    return tiny_model(family, size={"num_layers": 3}, weights=1.5, **KINDS[number])


@pytest.fixture(params=range(len(KINDS)), ids=lambda number: "-".join(map(str, KINDS[number].values())))
def model(request, family):
    """Each kind in each family."""
    return model_of(family, request.param)
