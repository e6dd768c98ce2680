"""Settings: each value that cannot be meant is refused by the field's name."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from learn.networks import settled  # noqa: E402
from tinyq.errors import TinyqError  # noqa: E402
from tinyq.learn import QuantConfig, calibrate, prepare  # noqa: E402
from tinyq.learn.prepare import act_quantizers, input_quantizers, quant_layers  # noqa: E402
from tinyq.learn.quantizers import AffineActQuantizer, TableActQuantizer  # noqa: E402

pytestmark = pytest.mark.torch

REFUSED = [
    ("weight_bits", {"weight_bits": "4"}),
    ("weight_bits", {"weight_bits": 4.0}),
    ("weight_bits", {"weight_bits": True}),
    ("weight_bits", {"weight_bits": 0}),
    ("weight_bits", {"weight_bits": 1, "weight_quantizer": "lcq"}),
    ("weight_bits", {"weight_bits": 1, "weight_quantizer": "pot"}),
    ("weight_bits", {"weight_bits": 1, "weight_quantizer": "apot"}),
    ("weight_bits", {"weight_bits": 2, "weight_quantizer": "inq"}),
    ("weight_bits", {"weight_bits": 8, "weight_quantizer": "pot"}),
    ("weight_bits", {"weight_bits": 4, "weight_quantizer": "ternary"}),
    ("act_bits", {"act_bits": 8.0}),
    ("act_bits", {"act_quantizer": "apot"}),
    ("act_bits", {"act_quantizer": "pot", "act_bits": 5}),
    ("first_last_bits", {"first_last_bits": "8"}),
    ("percentile", {"percentile": 20.0}),
    ("percentile", {"percentile": "99"}),
    ("ema", {"ema": 5.0}),
    ("ema", {"ema": 0.0}),
    ("ema", {"ema": float("nan")}),
    ("act_clip", {"act_clip": -1.0}),
    ("act_clip", {"act_clip": float("inf")}),
    ("freeze_step", {"freeze_step": -1}),
    ("freeze_step", {"freeze_step": 2.5}),
    ("ewgs_lambda", {"ewgs_lambda": -5.0}),
]


@pytest.mark.parametrize(("field", "fields"), REFUSED)
def test_values_that_cannot_be_meant_are_refused(field: str, fields: dict[str, object]) -> None:
    with pytest.raises(TinyqError, match=rf"TQ652 {field} is .*must be") as caught:
        QuantConfig(**fields)  # type: ignore[arg-type]
    assert repr(fields.get(field, 8)) in str(caught.value)


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    assert QuantConfig(weight_bits=np.int64(4)) == QuantConfig(weight_bits=4)


PLAIN_ENDS = {
    "binary": {"weight_quantizer": "binary"},
    "ternary": {"weight_quantizer": "ternary"},
    "codebook": {"weight_quantizer": "codebook", "codebook": (-100, -10, 0, 1, 10, 100)},
    "kmeans": {"weight_quantizer": "kmeans"},
    "same width": {"weight_quantizer": "pot", "weight_bits": 4, "first_last_bits": 4},
    "apot": {"weight_quantizer": "apot", "weight_bits": 4, "per_channel": False},
}


@pytest.mark.parametrize("name", PLAIN_ENDS)
def test_first_and_last_layers_are_uniform(name: str) -> None:
    model, x = settled("resnet")
    config = QuantConfig(**PLAIN_ENDS[name])  # type: ignore[arg-type]
    layers = quant_layers(prepare(model, config, x[:2]))
    for end in ("conv1", "fc"):
        made = layers[end].weight_quantizer
        assert made.level_set.name == "uniform"
        assert made.largest == 2 ** (config.first_last_bits - 1) - 1
        assert len(made.step) == len(layers[end].weight)
    assert layers["a"].weight_quantizer.level_set.name == config.weight_quantizer


def test_binary_and_ternary_have_one_width() -> None:
    for name, bits, levels in (("binary", 1, (-1, 1)), ("ternary", 2, (-1, 0, 1))):
        config = QuantConfig(weight_quantizer=name)
        assert config == QuantConfig(weight_quantizer=name, weight_bits=bits)
        model, x = settled("resnet")
        layer = quant_layers(prepare(model, config, x[:2]))["b"]
        assert layer.weight_quantizer.level_set.integers == levels


def test_a_codebook_of_eight_bits_is_at_inner_layers_only() -> None:
    """Values that are added or pooled, and those of the first and last layer, keep their grid."""
    model, x = settled("resnet")
    config = QuantConfig(act_quantizer="codebook", act_codebook=(0, 1, 2, 5, 11, 20, 200))
    prepared = prepare(model, config, x[:2])
    calibrate(prepared, [x])
    inputs = input_quantizers(prepared)
    assert all(isinstance(inputs[n], TableActQuantizer) for n in ("a", "b", "down.0"))
    tables = [q for q in act_quantizers(prepared).values() if isinstance(q, TableActQuantizer)]
    assert len(tables) == 3
    assert all(isinstance(inputs[n], AffineActQuantizer) for n in ("conv1", "fc"))


def test_a_fixed_start_applies_to_uniform_activations() -> None:
    model, x = settled("resnet")
    config = QuantConfig(act_bits=4, act_range="learned", act_clip=3.0)
    inputs = input_quantizers(prepare(model, config, x[:2]))
    assert float(inputs["b"].step.detach()) * 15 == pytest.approx(3.0)


def test_widths_that_depend_on_the_sign_name_their_field() -> None:
    model, x = settled("resnet")
    config = QuantConfig(act_bits=4, act_quantizer="pot")
    with pytest.raises(TinyqError, match=r"TQ652 act_bits is 4.*2 to 3.*never negative"):
        prepare(model, config, x[:2])


def test_levels_that_weights_cannot_use_are_refused() -> None:
    model, x = settled("resnet")
    for levels in ((0, 1, 2, 4), lambda code: 2.0 * code):
        config = QuantConfig(weight_bits=2, weight_quantizer="codebook", codebook=levels)
        with pytest.raises(TinyqError, match=r"TQ652.*no negative level.*codes 0 to 3") as caught:
            prepare(model, config, x[:2])
        assert caught.value.diagnostics[0].node == "a"


@pytest.mark.parametrize("quantizer", ["kmeans", "quantile"])
def test_weights_without_levels_name_their_layer(quantizer: str) -> None:
    model, x = settled("resnet")
    nn.init.zeros_(model.b.weight)
    config = QuantConfig(weight_bits=3, weight_quantizer=quantizer)
    with pytest.raises(TinyqError, match=r"TQ652 .*'b': all 2304 weights are 0"):
        prepare(model, config, x[:2])
