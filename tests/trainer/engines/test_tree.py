import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data_pipeline.order import share
from trainer.engines.tree import Node, children, cover, tree_sum


def test_eight_units_are_a_perfect_tree_and_thirteen_one_with_its_powers_of_two_first() -> None:
    assert children((0, 8)) == ((0, 4), (4, 8))
    assert children((0, 13)) == ((0, 8), (8, 13))
    assert children((8, 13)) == ((8, 12), (12, 13))
    assert cover((2, 5), (0, 8)) == [(2, 4), (4, 5)]


@given(st.integers(1, 40), st.data())
def test_any_number_of_workers_adds_up_to_the_same_bits(num_units: int, data: st.DataObject) -> None:
    world_size = data.draw(st.integers(1, num_units))
    root = (0, num_units)
    values = torch.randn(num_units, 5, generator=torch.Generator().manual_seed(num_units)) * 1000

    def unit(node: Node) -> Tensor | None:
        return values[node[0]].clone() if node[1] - node[0] == 1 else None

    sent: dict[Node, Tensor] = {}
    for rank in range(world_size):
        run = share(num_units, rank, world_size)
        nodes = cover(run, root)
        assert [begin for begin, _ in nodes] + [run[1]] == [run[0]] + [end for _, end in nodes]
        sent |= {node: tree_sum(node, unit) for node in nodes}
    assert torch.equal(tree_sum(root, sent.get), tree_sum(root, unit))


def test_the_order_of_a_sum_matters_and_is_that_of_the_tree() -> None:
    one, tiny = torch.tensor([1.0]), torch.tensor([2.0**-24])
    units = [one, tiny, tiny, tiny]
    found = tree_sum((0, 4), lambda node: units[node[0]].clone() if node[1] - node[0] == 1 else None)
    assert found.item() == pytest.approx(1 + 2.0**-23, abs=0)
    assert (((one + tiny) + tiny) + tiny).item() == 1.0
