"""Noise and sampling: the right distribution, out of reach of seeds, forks and rounding.

Thresholds are fixed so that a right implementation fails less than once in 1e9 runs.
"""

from __future__ import annotations

import math
import os
import select
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from discreet.common.errors import InputError
from discreet.privacy import randomness as module
from discreet.privacy.randomness import InsecureRandomness, Randomness, SecureRandomness

NUM = 1_000_000
# 6.5 standard deviations of a normal: passed once in 1.2e10.
SIGMAS = 6.5
# Kolmogorov: P(D > x) <= 2 exp(-2 n x^2), which is 1e-10 here.
KOLMOGOROV = math.sqrt(math.log(2e10) / 2 / NUM)


@pytest.fixture(params=["secure", "insecure"])
def randomness(request: pytest.FixtureRequest) -> Randomness:
    return SecureRandomness() if request.param == "secure" else InsecureRandomness(7)


def test_normal_draws_follow_the_standard_normal(randomness: Randomness) -> None:
    drawn = randomness.normal(NUM)

    assert drawn.dtype == torch.float32
    assert kstest(drawn.double().numpy(), "norm").statistic < KOLMOGOROV


def test_normal_draws_have_the_moments_of_the_standard_normal(randomness: Randomness) -> None:
    drawn = randomness.normal(NUM).double()

    # The variances of x, x^2, x^3 and x^4 under the standard normal are 1, 2, 15 and 96.
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        tolerance = SIGMAS * math.sqrt(variance / NUM)
        assert float((drawn**power).mean()) == pytest.approx(mean, abs=tolerance)


@pytest.mark.parametrize("lag", [1, 2, 2**14, 2**15])
def test_draws_do_not_depend_on_each_other(lag: int) -> None:
    drawn = SecureRandomness().normal(NUM).double()

    for values in (drawn, drawn.square() - 1):
        product = values[lag:] * values[:-lag]
        assert abs(float(product.mean())) < SIGMAS * float(values.var()) / math.sqrt(NUM - lag)


def test_added_noise_has_the_stated_standard_deviation(randomness: Randomness) -> None:
    target = torch.full((1000, NUM // 1000), 5.0, dtype=torch.float64)

    randomness.add_normal(target, 0.3)

    noise = ((target - 5.0) / 0.3).view(-1)
    assert kstest(noise.numpy(), "norm").statistic < KOLMOGOROV
    assert float(noise.square().mean()) == pytest.approx(1, abs=SIGMAS * math.sqrt(2 / NUM))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (5, 7, 11)])
def test_noise_is_added_to_any_shape_and_type(
    randomness: Randomness, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    target = torch.zeros(shape, dtype=dtype)

    randomness.add_normal(target, 2.0)

    assert target.shape == shape
    assert target.dtype == dtype
    assert bool((target != 0).all())


@pytest.mark.parametrize("stddev", [0.0, -1.0, float("nan"), float("inf"), 1e100])
def test_noise_of_no_sensible_size_is_refused(randomness: Randomness, stddev: float) -> None:
    with pytest.raises(InputError, match="stddev of noise must be a number > 0"):
        randomness.add_normal(torch.zeros(3), stddev)


def test_a_target_that_is_not_contiguous_is_refused() -> None:
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        SecureRandomness().add_normal(torch.zeros(4, 5).t(), 1.0)


@pytest.mark.parametrize("num", [0, 1, 2, 3, 2**15 - 1, 2**15, 2**15 + 1, 100_001])
def test_any_number_of_draws_comes_without_repeats(num: int) -> None:
    target = torch.zeros(num, dtype=torch.float64)

    SecureRandomness().add_normal(target, 1.0)

    assert len(SecureRandomness().normal(num)) == num
    # On a grid of 2^-24, 1e5 draws meet by chance about 100 times: pairs stay far below 1 %.
    assert len(target.unique()) >= 0.99 * num


@given(
    # In standard deviations of the noise: a sum of clipped gradients is far smaller than 1e7.
    data=st.lists(st.floats(-1e7, 1e7), min_size=1, max_size=20),
    stddev=st.floats(1e-6, 1e6),
)
@settings(max_examples=200)
def test_a_noisy_sum_lies_on_one_grid_whatever_the_data(data: list[float], stddev: float) -> None:
    target = torch.tensor(data, dtype=torch.float64).mul_(stddev)

    SecureRandomness().add_normal(target, stddev)

    # Mironov (2012): the low bits of data + noise betray the data. Here there are none.
    grid = 2.0 ** (math.frexp(stddev)[1] - 24)
    assert stddev * 2**-24 < grid <= stddev * 2**-23
    assert bool((torch.remainder(target, grid) == 0).all())


def test_draws_are_box_muller_of_the_bits() -> None:
    bits = np.random.default_rng(3).integers(-(2**63), 2**63, (2, 10_000), dtype=np.int64)

    drawn = module._box_muller(bits[0], bits[1])

    # The textbook form, in numpy's own log, cosine and sine. The angle is all 64 bits as a part
    # of the turn: the lowest 13 weigh most, then the next 13, then the rest with its sign.
    radius = np.sqrt(-2 * np.log(np.abs(bits[0] / 2.0**63)))
    coarse, fine, rest = bits[1] % 2**13, (bits[1] >> 13) % 2**13, bits[1] >> 26
    angle = 2 * np.pi * (coarse / 2.0**13 + fine / 2.0**26 + rest / 2.0**64)
    exact = radius * (np.cos(angle) + 1j * np.sin(angle))
    assert np.abs(drawn - exact).max() < 2e-14


@pytest.mark.parametrize("bits", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_no_bits_make_a_draw_that_is_not_finite(bits: int) -> None:
    row = np.array([bits], dtype=np.int64)

    drawn = module._box_muller(row, row)

    assert np.isfinite(drawn).all()
    assert abs(drawn[0]) < 9.5


def test_the_keystream_is_aes_256_in_counter_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    # NIST SP 800-38A (2001), F.5.5: key, first counter, and the first two output blocks.
    answers = {
        32: "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
        16: "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
    }
    monkeypatch.setattr(module.os, "urandom", lambda num: bytes.fromhex(answers[num]))

    keystream = module._Keystream()

    assert keystream.bits(2).tobytes().hex() == "0bdf7df1591716335e9a8b15c860c502"
    assert keystream.bits(2).tobytes().hex() == "5a6e699d536119065433863c8f657b94"


def test_a_torch_seed_does_not_move_the_noise() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append(SecureRandomness().normal(1000))

    assert not bool((drawn[0] == drawn[1]).any())


def test_drawing_does_not_move_the_generator_of_torch() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)

    SecureRandomness().normal(1000)

    assert torch.equal(torch.rand(3), expected)


def test_two_processes_with_one_seed_draw_different_noise_and_samples() -> None:
    program = (
        "import torch; torch.manual_seed(0); "
        "from discreet.privacy.randomness import SecureRandomness as S; r = S(); "
        "print(r.normal(8).tolist(), r.bernoulli(200, 0.5).tolist())"
    )

    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, check=True, text=True
        ).stdout.split("] ")
        for _ in range(2)
    ]

    assert outputs[0][0] != outputs[1][0]
    assert outputs[0][1] != outputs[1][1]


def _draw_in_child(randomness: SecureRandomness) -> bytes:
    """What a forked child draws; empty if it does not answer within 20 seconds."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, randomness.normal(16).numpy().tobytes())
        os._exit(0)
    os.close(writer)
    is_there, _, _ = select.select([reader], [], [], 20)
    drawn = os.read(reader, 64) if is_there else b""
    os.close(reader)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return drawn


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_children_draw_other_noise_than_their_parent_and_each_other() -> None:
    randomness = SecureRandomness()
    randomness.normal(1)

    drawn = [_draw_in_child(randomness), _draw_in_child(randomness)]
    drawn.append(randomness.normal(16).numpy().tobytes())

    assert all(len(row) == 64 for row in drawn)
    assert len(set(drawn)) == 3


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_forked_while_another_thread_draws_does_not_hang() -> None:
    randomness = SecureRandomness()

    with randomness._keystream._lock:
        drawn = _draw_in_child(randomness)

    assert len(drawn) == 64


def test_a_fork_that_python_was_not_told_of_gets_a_fresh_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keystream = module._Keystream()
    before = keystream._encryptor

    monkeypatch.setattr(module.os, "getpid", lambda: -1)
    keystream.bits(1)

    assert keystream._encryptor is not before


def test_a_grandchild_with_a_reused_process_id_gets_a_fresh_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keystream = module._Keystream()
    before = keystream._encryptor

    monkeypatch.setattr(module, "_num_forks", module._num_forks)
    module._count_fork()
    keystream.bits(1)

    assert keystream._encryptor is not before


def test_threads_that_share_an_object_never_draw_the_same() -> None:
    randomness = SecureRandomness()
    rows: list[bytes] = []

    def draw() -> None:
        rows.extend(randomness.normal(64).numpy().tobytes() for _ in range(200))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(rows)) == 800


@given(num=st.integers(0, 500), rate=st.floats(0, 1, exclude_min=True))
def test_chosen_examples_are_ascending_indices(num: int, rate: float) -> None:
    for randomness in (SecureRandomness(), InsecureRandomness(num)):
        chosen = randomness.bernoulli(num, rate)

        assert chosen.dtype == torch.int64
        assert bool((chosen[1:] > chosen[:-1]).all())
        assert all(0 <= index < num for index in chosen.tolist())


def test_a_rate_of_1_chooses_everyone(randomness: Randomness) -> None:
    assert randomness.bernoulli(70_000, 1.0).tolist() == list(range(70_000))


@pytest.mark.parametrize("rate", [1e-4, 0.064, 0.5, 0.999])
def test_as_many_are_chosen_as_the_rate_says(randomness: Randomness, rate: float) -> None:
    chosen = randomness.bernoulli(NUM, rate)

    # Binomial; at 100 expected and 6.5 sigmas its skew is covered by 2 more sigmas.
    tolerance = (SIGMAS + 2) * math.sqrt(NUM * rate * (1 - rate))
    assert len(chosen) == pytest.approx(NUM * rate, abs=tolerance)


def test_every_place_is_as_likely_as_any_other() -> None:
    chosen = SecureRandomness().bernoulli(NUM, 0.3)

    counts = torch.bincount(chosen // 10_000, minlength=100).double()

    # Chi-square with 100 degrees of freedom: above 220 less than once in 1e10.
    assert float(((counts - 3000) ** 2 / (10_000 * 0.3 * 0.7)).sum()) < 220


def test_a_choice_is_an_exact_comparison_of_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    randomness = SecureRandomness()
    # As unsigned numbers: just below and just at 0.25 * 2^64.
    row = np.array([2**62 - 1 - 2**63, 2**62 - 2**63], dtype=np.int64)
    monkeypatch.setattr(randomness._keystream, "bits", lambda num: row[:num])

    assert randomness.bernoulli(2, 0.25).tolist() == [0]
    assert randomness.bernoulli(2, math.nextafter(0.25, 0)).tolist() == []
    assert randomness.bernoulli(2, math.nextafter(0.25, 1)).tolist() == [0, 1]


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.1, float("nan"), float("inf")])
def test_a_rate_outside_of_0_to_1_is_refused(randomness: Randomness, rate: float) -> None:
    with pytest.raises(InputError, match="rate of sampling must be > 0 and <= 1"):
        randomness.bernoulli(10, rate)


def test_insecure_randomness_repeats_under_its_seed() -> None:
    first, second, other = (InsecureRandomness(seed) for seed in (1, 1, 2))

    drawn = first.normal(100)

    assert torch.equal(drawn, second.normal(100))
    assert torch.equal(first.bernoulli(1000, 0.3), second.bernoulli(1000, 0.3))
    assert not torch.equal(drawn, other.normal(100))


def test_only_the_insecure_kind_takes_a_seed() -> None:
    with pytest.raises(TypeError):
        SecureRandomness(1)  # type: ignore[call-arg]
