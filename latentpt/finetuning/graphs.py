"""ProsQA: questions about reachability in a random graph (Coconut, arXiv 2412.06769, appendix), written with and without
its depth shortcut, in sentences or in symbols.

    "Every lempus is a yumpus. Bob is a lempus. .. Is Bob a yumpus or hilpus?"      "2 4 | 0 2 | .. ? 4 7 @ 0"

Nodes join one after another and choose parents among those that descend from the first root, from the second, or from
anywhere; deeper nodes are likelier. The answer is a leaf that only the asked root reaches, the other option one that
only the other root reaches. In the released rows the answer is a deepest such leaf of the root that has the deeper ones,
so "the option farther from its nearest entity" is right in 91.6 % of them without a look at the root. `matched` rows have
both options equally far from their own roots and from their nearest entities, and ask either root alike.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from latentpt.config import ConfigError
from latentpt.finetuning.examples import Example

NAMES = ("Alex", "Bob", "Carol", "Davis", "Eva", "Fae", "Gabriel", "Jack", "Max", "Oliver", "Polly", "Rex", "Sally", "Sam", "Stella", "Tom", "Wren")  # fmt: skip
CONCEPTS = tuple(f"{stem}pus" for stem in (
    "bom", "boom", "brim", "chor", "dum", "fel", "fom", "ger", "gor", "grim", "gwom", "hil", "im", "jel", "jom", "ker", "lem",
    "lor", "num", "quim", "rem", "rom", "ror", "scrom", "shum", "ster", "stor", "ter", "tim", "tum", "vum", "wor",
    "wum", "yer", "yim", "yum", "zhor", "zum",
))  # fmt: skip
NODES = 28
"""Nodes that a graph begins with; isolated ones are dropped, which leaves about 23 as in the released rows."""

DRAWS = 20_000
"""Graphs that are drawn for one question at most."""


class Graph(NamedTuple):
    """A question about a graph."""

    edges: list[tuple[int, int]]
    """(parent, child)."""
    root: int
    """The entity asked about."""
    path: list[int]
    """From the root to the answer, both included."""
    other: int
    """The wrong option."""

    @property
    def target(self) -> int:
        """The right option."""
        return self.path[-1]

    @property
    def nodes(self) -> list[int]:
        """Everything that has an edge."""
        return sorted({node for edge in self.edges for node in edge})

    @property
    def entities(self) -> list[int]:
        """Nodes without a parent: they have names."""
        children = {child for _, child in self.edges}
        return [node for node in self.nodes if node not in children]


def draw_graph(
    rng: random.Random, nodes: int = NODES, matched: bool = False, hops: tuple[int, int] = (3, 6)
) -> Graph:
    """A graph whose answer is `hops` (least, most) edges away from the asked root; drawn again until there is one.

    Raises ConfigError when DRAWS graphs had none.
    """
    for _ in range(DRAWS):
        edges, labels = _grow(rng, nodes)
        found = _ask(rng, edges, labels, matched, hops)
        if found is not None:
            return found
    raise ConfigError(
        f"none of {DRAWS:,} graphs of {nodes} nodes has an answer {hops[0]} to {hops[1]} hops away; more nodes or fewer hops "
        "make one likelier"
    )


def _grow(rng: random.Random, nodes: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Edges and labels of a graph: 1 and 2 are reached by the first or second root alone, 3 by both, 0 by neither."""
    labels, depth, edges = [1, 2], [0, 0], []
    for node in range(2, nodes):
        draw = rng.random()
        wanted = 1 if draw <= 0.35 else 2 if draw <= 0.8 else None
        candidates = [other for other in range(node) if wanted is None or labels[other] == wanted]
        parents = _choose(
            rng, candidates, [1 + 1.5 * depth[other] for other in candidates], _poisson(rng, 1.5)
        )
        edges += [(parent, node) for parent in parents]
        label = 0
        for parent in parents:
            label |= labels[parent]
        labels.append(label)
        depth.append(1 + min((depth[parent] for parent in parents), default=-1))
    return edges, labels


def _ask(
    rng: random.Random, edges: list[tuple[int, int]], labels: list[int], matched: bool, hops: tuple[int, int]
) -> Graph | None:
    """A question about a grown graph, None if it has no fitting pair of leaves."""
    inner = {parent for parent, _ in edges}
    leaves = [
        [node for node, label in enumerate(labels) if label == root + 1 and node not in inner and node > 1]
        for root in (0, 1)
    ]
    distance = [distances(edges, [root]) for root in (0, 1)]
    if not leaves[0] or not leaves[1]:
        return None
    if matched:
        children = {child for _, child in edges}
        near = distances(edges, [node for node in inner if node not in children])
        pairs = [
            (a, b) for a in leaves[0] for b in leaves[1]
            if distance[0][a] == distance[1][b] and near[a] == near[b] and hops[0] <= distance[0][a] <= hops[1]
        ]  # fmt: skip
        if not pairs:
            return None
        pair, root = rng.choice(pairs), rng.randrange(2)
        target, other = pair[root], pair[1 - root]
    else:
        deepest = [max(distance[root][leaf] for leaf in leaves[root]) for root in (0, 1)]
        root = rng.randrange(2) if deepest[0] == deepest[1] else int(deepest[1] > deepest[0])
        if not hops[0] <= deepest[root] <= hops[1]:
            return None
        target = rng.choice([leaf for leaf in leaves[root] if distance[root][leaf] == deepest[root]])
        other = rng.choice(leaves[1 - root])
    return Graph(edges, root, _path(rng, edges, distance[root], target), other)


def distances(edges: Sequence[tuple[int, int]], starts: Sequence[int]) -> dict[int, int]:
    """Edges from the nearest start to every node that is reached."""
    children: dict[int, list[int]] = {}
    for parent, child in edges:
        children.setdefault(parent, []).append(child)
    found, waiting = dict.fromkeys(starts, 0), deque(starts)
    while waiting:
        node = waiting.popleft()
        for child in children.get(node, []):
            if child not in found:
                found[child] = found[node] + 1
                waiting.append(child)
    return found


def farther_is_right(graph: Graph) -> float:
    """What "the option farther from its nearest entity", which never looks at the root asked about, scores: 0, 0.5 or 1."""
    near = distances(graph.edges, graph.entities)
    right, wrong = near[graph.target], near[graph.other]
    return 0.5 if right == wrong else float(right > wrong)


def _path(
    rng: random.Random, edges: Sequence[tuple[int, int]], distance: Mapping[int, int], target: int
) -> list[int]:
    """One of the shortest paths to the target."""
    path = [target]
    while distance[path[0]]:
        before = [p for p, c in edges if c == path[0] and distance.get(p) == distance[c] - 1]
        path.insert(0, rng.choice(before))
    return path


def _choose(rng: random.Random, items: list[int], weights: list[float], count: int) -> list[int]:
    """`count` different items, or as many as there are, likelier by their weights."""
    keyed = sorted(
        zip(items, weights, strict=True), key=lambda pair: rng.random() ** (1 / pair[1]), reverse=True
    )
    return [item for item, _ in keyed[:count]]


def _poisson(rng: random.Random, mean: float) -> int:
    """A number of the Poisson distribution (Knuth)."""
    count, product = 0, rng.random()
    while product > math.exp(-mean):
        count += 1
        product *= rng.random()
    return count


# ------------------------------------------------------------------------------------------------------ writing


def in_sentences(rng: random.Random, graph: Graph) -> Example:
    """The question in the words of ProsQA."""
    entities = graph.entities
    concepts = [node for node in graph.nodes if node not in entities]
    word = dict(zip(entities, rng.sample(NAMES, len(entities)), strict=True))
    word |= dict(zip(concepts, rng.sample(CONCEPTS, len(concepts)), strict=True))

    def sentence(parent: int, child: int) -> str:
        return f"{'' if parent in entities else 'Every '}{word[parent]} is a {word[child]}."

    facts = [sentence(*edge) for edge in graph.edges]
    rng.shuffle(facts)
    options = [word[graph.target], word[graph.other]]
    rng.shuffle(options)
    question = f"{' '.join(facts)} Is {word[graph.root]} a {options[0]} or {options[1]}?"
    steps = [sentence(*edge) for edge in zip(graph.path, graph.path[1:], strict=False)]
    return Example(question, steps, f"{word[graph.root]} is a {word[graph.target]}.")


def in_symbols(rng: random.Random, graph: Graph, symbols: int) -> Example:
    """The question in numbers below `symbols`: edges, the two options, the root."""
    word = dict(zip(graph.nodes, map(str, rng.sample(range(symbols), len(graph.nodes))), strict=True))
    facts = [f"{word[parent]} {word[child]}" for parent, child in graph.edges]
    rng.shuffle(facts)
    options = [word[graph.target], word[graph.other]]
    rng.shuffle(options)
    question = f"{' | '.join(facts)} ? {options[0]} {options[1]} @ {word[graph.root]}"
    steps = [
        f"{word[parent]} {word[child]}" for parent, child in zip(graph.path, graph.path[1:], strict=False)
    ]
    return Example(question, steps, word[graph.target])
