"""Python values as JSON and back, exactly."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flatvars as fv
from flatvars.checkpoint.plain import decode, encode

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
keys = st.text(max_size=3) | st.sampled_from(["$tuple", "$", "$dict"]) | st.integers() | st.tuples(st.integers())
data = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


@given(data)
def test_values_come_back_equal_and_of_their_types(value: object) -> None:
    text = json.dumps(encode(value, "test"), allow_nan=False)
    assert repr(decode(json.loads(text))) == repr(value)


def test_what_repr_does_not_show() -> None:
    assert decode(encode(Counter([5, 5, 2]), "test")) == Counter([5, 5, 2])
    assert type(decode(encode(Counter([5]), "test"))) is Counter
    assert math.isnan(decode(encode(float("nan"), "test")))
    assert decode(encode(np.float64(0.1), "test")) == 0.1
    tensor = torch.tensor([[0.1, float("inf")]], dtype=torch.float64)
    assert torch.equal(decode(encode(tensor, "test")), tensor)
    assert decode(encode(torch.tensor(3), "test")).dtype == torch.int64


@pytest.mark.parametrize("value", [{"$float": "x"}, {"$tensor": [1]}, {"$os": []}, {"$tuple": 1}, {"$dict": [[[], 1]]}])
def test_tags_that_nobody_wrote_are_damage(value: object) -> None:
    with pytest.raises(fv.DamagedFileError, match="tagged"):
        decode(value)


def test_code_is_no_data() -> None:
    with pytest.raises(fv.CheckpointError, match=r"state\['f'\] holds a function"):
        encode({"f": lambda: 0}, "state")
