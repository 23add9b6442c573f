"""Attacks on data."""

from __future__ import annotations

import pytest
import torch

from fedsim.attacks import Backdoor, LabelFlip
from fedsim.check import Invalid
from fedsim.types import Batch, View


def test_label_flip_mirrors_labels_and_leaves_the_rest() -> None:
    x, weight = torch.rand(2, 5, 3), torch.rand(2, 5)
    y = torch.tensor([[0, 1, 2, 3, 4], [9, 8, 7, 6, 5]])
    flipped = LabelFlip().poison(Batch(x, y, weight), 10)
    assert torch.equal(flipped.y, 9 - y)
    assert flipped.x is x
    assert flipped.weight is weight
    assert torch.equal(LabelFlip().poison(flipped, 10).y, y)


def test_a_data_attack_sends_what_its_clients_computed() -> None:
    own = torch.rand(2, 3)
    assert LabelFlip().forge(View(5, 2, 0, torch.zeros(3), torch.Generator(), own=own)) is own


def test_the_backdoor_marks_its_share_and_nothing_else() -> None:
    attack = Backdoor(target=7, size=2, value=0.5, share=0.3)
    x, y, weight = torch.rand(2, 5, 1, 4, 4), torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5)
    before = x.clone()
    done = attack.poison(Batch(x, y, weight), 10)
    assert torch.equal(x, before)
    assert done.y.tolist() == [[7, 7, 0, 0, 0]] * 2  # ceil(0.3 * 5)
    assert torch.equal(done.x[:, 2:], before[:, 2:])
    want = before[:, :2].clone()
    want[..., 2:, 2:] = 0.5
    assert torch.equal(done.x[:, :2], want)
    one = attack.poison(Batch(x[0], y[0], weight[0]), 10)  # a single client's batch is treated alike
    assert torch.equal(one.x, done.x[0])
    assert torch.equal(one.y, done.y[0])


def test_padding_is_not_an_example() -> None:
    """A client poisons as much alone as beside one with a longer batch, and in each of its local steps."""
    attack, weight = Backdoor(target=7, share=0.5), torch.zeros(2, 3, 8)
    for i, steps in enumerate(((8, 1, 3), (0, 4, 5))):
        for j, b in enumerate(steps):
            weight[i, j, :b] = 0.1
    y = attack.poison(Batch(torch.zeros(2, 3, 8, 6), torch.zeros(2, 3, 8, dtype=torch.int64), weight), 10).y
    assert (y == 7).sum(-1).tolist() == [[4, 1, 2], [0, 2, 3]]  # ceil(b / 2)


def test_the_trigger_on_test_inputs_and_on_plain_features() -> None:
    attack = Backdoor(size=1, value=9.0)
    assert (attack.trigger(torch.zeros(3, 2, 4, 4)) == 9).nonzero().tolist() == [
        [k, c, 3, 3] for k in range(3) for c in range(2)
    ]
    assert attack.trigger(torch.zeros(2, 3)).tolist() == [[0, 0, 9]] * 2
    batch = Batch(torch.zeros(2, 2, 3), torch.ones(2, 2, dtype=torch.int64), torch.ones(2, 2))
    assert attack.poison(batch, 3).x.tolist() == [[[0, 0, 9]] * 2] * 2


def test_the_backdoor_boosts_its_message_and_refuses_a_class_that_is_not_there() -> None:
    own = torch.rand(2, 3)
    view = View(5, 2, 0, torch.zeros(3), torch.Generator(), own=own)
    torch.testing.assert_close(Backdoor(boost=5.0).forge(view), 5 * own)
    with pytest.raises(Invalid, match="0 to 9"):
        Backdoor(target=10).poison(
            Batch(torch.rand(1, 3), torch.zeros(1, dtype=torch.int64), torch.ones(1)), 10
        )
