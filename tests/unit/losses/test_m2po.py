"""M2PO's loss: selected tokens are left out, others have the plain policy gradient."""

from __future__ import annotations

import pytest
import torch

from megacov.losses import get_loss

# Of the layout suite's tokens that move away from the server, some are left out.
LAYOUT_SELECTION = {"threshold": 4.0}


@pytest.mark.parametrize(("advantage", "ratio"), [(2.0, 9.0), (-2.0, 0.1), (-1.0, 3.0)])
def test_hand_computed(advantage, ratio, one_token):
    for selected in (False, True):
        batch = one_token(advantage, ratio, selected=selected)
        output = get_loss("m2po")(batch)
        output.loss.backward()
        expected = 0.0 if selected else -advantage * ratio
        assert output.loss.item() == pytest.approx(expected, abs=1e-12)
        assert batch.log_probs.grad.item() == pytest.approx(expected, abs=1e-12)
        assert output.metrics["m2po_left_out_fraction"] == selected


def test_without_selected_tokens_it_is_ppo_without_a_clip(make_batch):
    batch = make_batch(60, selected=torch.zeros(60, dtype=torch.bool))
    expected = get_loss("ppo_clip")(batch, clip_low=1.0, clip_high=1e9).loss
    torch.testing.assert_close(get_loss("m2po")(batch).loss, expected, rtol=1e-12, atol=1e-14)
