"""Ranks that should hold the same parameters."""

import pytest
import torch

from latentpt.run import checkpoints
from latentpt.training.agreement import checksums, disagreement
from tests.training.small import start_ranks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_flipped_bit_changes_a_checksum(dtype):
    tensor = torch.randn(5, 7, dtype=dtype)
    other = tensor.clone()
    assert torch.equal(checksums({"a": tensor}), checksums({"a": other}))
    other.view(-1).view(torch.int16)[3] ^= 1
    assert not torch.equal(checksums({"a": tensor}), checksums({"a": other}))


def test_who_differs_from_most_is_named_with_the_first_parameter():
    same = [[1, 2], [1, 2], [1, 2]]
    assert disagreement(["a", "b"], same) == ""
    assert disagreement(["a", "b"], [[1, 2], [1, 3], [1, 2]]) == "rank 1 holds another b than the others"
    assert disagreement(["a", "b"], [[1, 2], [4, 3], [1, 2], [5, 2], [1, 2]]) == (
        "ranks 1, 3 hold another a than the others"
    )
    assert disagreement(["a"], [[1], [2]]) == "ranks disagree about a, and no value of it is that of most"


# One of three ranks; a bit of the second one's parameters flips after step 3.
FLIPPED = """
import os, sys
from pathlib import Path
import torch
from latentpt.run.exits import exit_code
from latentpt.training import trainer
from tests.training.small import tiny_run
advance = trainer.Trainer.advance
def flip(self):
    advance(self)
    if os.environ["RANK"] == "1" and self.progress.step == 3:
        self.engine.names["decoder.head.weight"].data.view(-1).view(torch.int32)[5] ^= 1 << 20
trainer.Trainer.advance = flip
config = tiny_run(Path(sys.argv[2]), Path(sys.argv[1]), zero={"stage": 0}, checkpoint={"every": 2},
                  training={"batch_samples": 6}, monitor={"compare_ranks_every": 1, "every": 100})
sys.exit(exit_code(lambda: trainer.train(config)))
"""


@pytest.mark.slow
def test_a_flipped_bit_of_one_rank_ends_the_training_before_it_is_saved(text, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(FLIPPED)
    ranks = start_ranks(3, script, text, tmp_path / "run")
    first = ranks[0].communicate(timeout=240)[0]
    assert [rank.wait(60) for rank in ranks] == [1, 1, 1], first
    assert "after step 4 rank 1 holds another decoder.head.weight than the others" in first
    assert [path.name for path in checkpoints.committed(tmp_path / "run" / "checkpoints")] == [
        "step-00000002"
    ]
