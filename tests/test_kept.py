import torch
from lightning.pytorch.utilities import CombinedLoader

from lit_tr.kept import KeptLoader
from tests.test_loading import sized


def test_kept_batches_come_again_with_log_probs_within_the_limits():
    loader = KeptLoader([sized(6), sized(4)])
    loader.limits = [2, 1]
    assert len(loader) == 3
    assert all(batch.reference_log_probs is None for batch, *_ in loader)  # drawn, and not kept
    drawn = [batch.rows for batch in loader.batches]
    loader.log_probs = [torch.tensor([i]) for i in range(3)]
    for _ in range(2):
        coming = [(batch.rows, batch.reference_log_probs.item(), *where) for batch, *where in loader]
        assert coming == [(drawn[0], 0, 0, 0), (drawn[1], 1, 1, 0), (drawn[2], 2, 0, 1)]
    loader.limits = [1, 1]
    assert [batch.rows for batch, *_ in loader] == [drawn[0], drawn[2]]
    assert isinstance(loader, CombinedLoader)
