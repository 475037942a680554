"""Sums along one fixed binary tree over the units of a global batch, whoever computes which part of it.

Floating-point addition is not associative, so a sum has the same bits only if it is made in the same order. The tree
over units [begin, end) has the largest power of two below their number on its left side. A worker has a run of
neighbouring units: it can add up the largest nodes that lie within the run, and what is above them is added by all.
"""

from collections.abc import Callable

from torch import Tensor

Node = tuple[int, int]
"""Units [begin, end)."""


def children(node: Node) -> tuple[Node, Node]:
    """The two halves of a node of at least two units."""
    begin, end = node
    middle = begin + (1 << (end - begin - 1).bit_length() - 1)
    return (begin, middle), (middle, end)


def cover(run: Node, root: Node) -> list[Node]:
    """The largest nodes of the tree under `root` that make up a run of units, in order. Empty if they do not meet."""
    if run[0] <= root[0] and root[1] <= run[1]:
        return [root]
    if run[1] <= root[0] or root[1] <= run[0]:
        return []
    return [node for child in children(root) for node in cover(run, child)]


def tree_sum(node: Node, known: Callable[[Node], Tensor | None]) -> Tensor:
    """The sum of a node's units in the tree's order.

    known: the value of a node if there is one, asked from above and from left to right; single units must have one.
    It is added to in place. No more values are held at a time than the tree has levels.
    """
    value = known(node)
    if value is None:
        left, right = children(node)
        value = tree_sum(left, known)
        value += tree_sum(right, known)
    return value
