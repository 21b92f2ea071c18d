"""Recurrent layers of other widths than the model's, as AWD-LSTM has them."""

import pytest
import torch

from seqlab.errors import UserError
from seqlab.models import SequenceModel, state_bytes
from support import built_model

UNEVEN = ["model=lstm", "size.n_layers=2", "size.d_model=8", "size.d_ff=12", "model.norm=null", "model.residual=false"]
ENDS = {
    "first": "{_target_: seqlab.models.mixers.LSTM, _partial_: true, d_out: 12}",
    "last": "{_target_: seqlab.models.mixers.LSTM, _partial_: true, d_in: 12}",
}


def uneven(pattern: str, *overrides: str) -> SequenceModel:
    ends = [f"+model.mixers.{name}={mixer}" for name, mixer in ENDS.items()]
    return built_model(*UNEVEN, f"model.pattern={pattern}", *ends, *overrides)


def test_layers_of_several_widths_are_torchs_one_after_the_other():
    model, tokens = uneven("[first,last]"), torch.arange(6)[None]
    x = model.embed(tokens)
    for layer in model.layers:
        x, _ = layer.mixer.inner.lstm(x)
    torch.testing.assert_close(model(tokens), model.head(x))
    assert state_bytes(model, 6) == 4 * 2 * (12 + 8)


@pytest.mark.parametrize(
    ("pattern", "overrides", "message"),
    [
        ("[last,first]", [], r"mixers=LSTM of 12 to 8: layer 0 takes 12 channels, and 8 come to it\.\nSet its d_in=8"),
        ("[first,lstm]", [], r"layer 1 takes 8 channels, and 12 come to it\.\nSet its d_in=12"),
        ("[lstm,first]", [], r"the last layer gives 12 channels, and the head takes d_model=8\.\nSet its d_out=8"),
        (
            "[first,last]",
            ["model.residual=true"],
            r"need a model whose layers are a mixer alone\.\nSet model.residual=false",
        ),
    ],
)
def test_widths_that_do_not_fit_are_refused(pattern, overrides, message):
    with pytest.raises(UserError, match=message):
        uneven(pattern, *overrides)


def test_the_published_lstm_has_its_parameters():
    """24.2 M: 4 (I + D + 2) D for each of three LSTMs, and the embedding, which the head shares."""
    widths = [(400, 1150), (1150, 1150), (1150, 400)]
    expected = 10_000 * 400 + sum(4 * d * (i + d + 2) for i, d in widths)
    model = built_model("experiment=records_ptb", d_input=10_000)
    assert sum(p.numel() for p in model.parameters()) == expected == 24_211_600
