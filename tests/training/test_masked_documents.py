"""Training with documents kept apart."""

import pytest
import torch
from small import END, losses, tiny_run

from latentpt.data.batches import TokenDataset
from latentpt.run import load_model
from latentpt.thoughts.measure import validation_loss
from latentpt.training.trainer import train
from tests.conftest import tiny_model


@pytest.mark.parametrize("visibility", ["causal", "stage_causal"])
def test_masked_loss_is_that_of_the_documents_alone_in_both_forwards(visibility):
    model = tiny_model(method="latent", num_thoughts=1, visibility=visibility, refinements=9)
    tokens = torch.tensor([[3, 1, 4, 36, 5, 9, 2, 6]])
    parts = [tokens[:, :4], tokens[:, 3:]]  # inputs 3 1 4 and 36 5 9 2, each with its targets
    alone = sum(validation_loss(model, [part]) * (part.shape[1] - 1) for part in parts) / 7
    for exact in (False, True):
        assert validation_loss(model, [tokens], exact, end_token=36) == pytest.approx(alone, abs=1e-9)


def test_a_training_with_masked_documents_resumes_bit_by_bit_and_differs_from_one_without(
    text, tmp_path, monkeypatch
):
    opened = TokenDataset.__init__

    def with_end(self, *arguments, **options):
        opened(self, *arguments, **options)
        self.eod_id = END  # these shards have no manifest to say so

    monkeypatch.setattr(TokenDataset, "__init__", with_end)

    def run(name, mask=True, **training):
        data = {"train": str(text / "train"), "validation": str(text / "validation"), "sequence_length": 12}
        return tiny_run(tmp_path / name, text, data=data | {"mask_documents": mask}, training=training)

    whole = run("whole")
    train(whole)
    train(run("parts", stop_at=3))
    train(run("parts"))
    assert losses(run("parts")) == losses(whole)
    assert losses(run("parts"), "validation") == losses(whole, "validation")
    plain = run("plain", mask=False)
    train(plain)
    assert losses(plain) != losses(whole)
    assert load_model(whole.output)[1].data.mask_documents
