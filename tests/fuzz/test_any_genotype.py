"""Whatever stands in a genotype.json, it is an architecture that can be written and read again."""

import json

from hypothesis import given

from auto_deeplab.space import genotype as genotypes
from tests.fuzz.promise import answer
from tests.fuzz.values import JSON, damaged, mutated

GOOD = json.loads(genotypes.load("published").to_json())


def read(folder, content):
    path = folder / "genotype.json"
    path.write_bytes(content)
    genotype, message = answer(genotypes.load, str(path), errors=ValueError)
    if genotype is None:
        assert "genotype.json" in message
        return
    genotype.save(path)
    assert genotypes.load(path) == genotype


@given(content=JSON | mutated(GOOD))
def test_json_of_any_form(folder, content):
    read(folder, json.dumps(content).encode())


@given(content=damaged(json.dumps(GOOD).encode()))
def test_damaged_bytes(folder, content):
    read(folder, content)
