"""docs/FIDELITY.md names places and tests that exist."""

import re

import pytest

from common.code import ROOT

TABLE_ROWS = [line for line in (ROOT / "docs/FIDELITY.md").read_text().splitlines() if line.startswith("| ")]
REFERENCES = sorted({found for row in TABLE_ROWS for found in re.findall(r"`([\w/]+\.py::\w+)`", row)})


@pytest.mark.parametrize("reference", REFERENCES)
def test_every_place_named_exists(reference):
    path, name = reference.split("::")
    assert re.search(rf"^\s*(def|class) {name}\b", (ROOT / path).read_text(), re.MULTILINE)


def test_every_fact_has_a_place_and_a_test():
    facts = [row for row in TABLE_ROWS if not row.startswith("| Fact")]
    assert len(facts) > 40
    for row in facts:
        cells = re.split(r"(?<!\\)\|", row)[1:-1]
        assert len(cells) == 4, row
        assert not re.search(r"tests/", cells[2]), row
        assert re.search(r"`(models|trainer)/[\w/]+\.py::\w+`", cells[2]), row
        assert re.search(r"`tests/[\w/]+/test_\w+\.py::test_\w+`", cells[3]), row
