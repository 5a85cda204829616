"""Rules that carry a rate or an average to another batch size: their limits, and that they compose."""

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from batchnorm_jax.batch_size import half_life, scale_decay, scale_learning_rate

SIZES = st.floats(1, 1e6)
RULES = st.sampled_from(["linear", "sqrt"])


@given(SIZES, SIZES, SIZES, RULES, st.one_of(st.just(math.inf), st.floats(0, 1e9)))
def test_a_rate_that_is_scaled_twice_is_scaled_once(first, second, third, rule, critical):
    options = {"rule": rule, "critical_batch_size": critical}
    twice = scale_learning_rate(scale_learning_rate(0.1, first, second, **options), second, third, **options)
    assert twice == pytest.approx(scale_learning_rate(0.1, first, third, **options), rel=1e-9)


@given(SIZES, SIZES, RULES)
def test_the_rules_far_from_the_critical_batch_size(size, other, rule):
    power = 1.0 if rule == "linear" else 0.5
    small = scale_learning_rate(0.1, size, other, rule=rule, critical_batch_size=1e15)
    assert small == pytest.approx(0.1 * (other / size) ** power, rel=1e-6)
    assert scale_learning_rate(0.1, size, other, rule=rule) == pytest.approx(small, rel=1e-6)
    assert scale_learning_rate(0.1, size, other, rule=rule, critical_batch_size=1e-6) == pytest.approx(0.1, rel=1e-5)


def test_a_rate_at_the_critical_batch_size_is_half_of_the_most():
    most = scale_learning_rate(0.1, 100, 1e12, critical_batch_size=400)
    assert scale_learning_rate(0.1, 100, 400, critical_batch_size=400) == pytest.approx(most / 2)


@given(st.floats(0.01, 0.9999), SIZES, st.floats(0.1, 10))
def test_a_decay_keeps_its_half_life_in_examples(decay, size, factor):
    scaled = scale_decay(decay, size, factor * size)
    if 0 < scaled < 1 - 1e-9:
        assert half_life(scaled, factor * size) == pytest.approx(half_life(decay, size), rel=1e-5)
    # As many updates as it takes for one of the other size: the same share is left.
    assert scale_decay(decay, size, 4 * size) == pytest.approx(decay**4)


def test_the_limits_of_a_decay():
    assert scale_decay(0.0, 64, 128) == 0.0 and half_life(0.0, 64) == 0.0
    assert scale_decay(0.999, 64, 1e9) == pytest.approx(0.0, abs=1e-12)
    assert scale_decay(0.999, 64, 1e9, floor=0.9) == 0.9
    assert half_life(0.5, 64) == 64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scale_learning_rate(0.1, 64, 128, rule="cubic"), "rule must be 'linear' or 'sqrt', not 'cubic'"),
        (lambda: scale_learning_rate(-0.1, 64, 128), "learning_rate must be at least 0 and finite, not -0.1"),
        (lambda: scale_learning_rate(math.nan, 64, 128), "learning_rate must be .* not nan"),
        (lambda: scale_learning_rate(0.1, 0, 128), "a batch size must be positive and finite, not 0"),
        (lambda: scale_learning_rate(0.1, 64, math.inf), "a batch size must be .* not inf"),
        (lambda: scale_learning_rate(0.1, 64, 128, critical_batch_size=-1), "critical_batch_size must be .* not -1"),
        (lambda: scale_decay(1.0, 64, 128), "decay must be at least 0 and below 1, not 1.0"),
        (lambda: scale_decay(0.9, 64, 128, floor=1.0), "floor must be .* not 1.0"),
        (lambda: scale_decay(0.9, -64, 128), "a batch size must be .* not -64"),
        (lambda: half_life(1.0, 64), "half_life: decay must be .* not 1.0"),
        (lambda: half_life(0.9, 0), "half_life: a batch size must be .* not 0"),
    ],
)
def test_what_cannot_be_scaled_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
