"""Randomness that privacy rests on: noise and the choice of examples.

`SecureRandomness` is a keystream of AES-256 in counter mode under a key from the operating
system, turned into normals by Box-Muller. The key never leaves the process, is never stored,
and no seed reaches it: neither `torch.manual_seed` nor a setting moves it.
`InsecureRandomness` is for `privacy: none` and for tests alone.

The guard against floating-point attacks (Mironov 2012; Holohan & Braghin 2021). The attack
asks which noise values the sampler can reach: the values that floating point skips betray
the number the noise was added to. Summing four draws makes the search for a pre-image dear,
2^72 trials where a uniform has 24 bits. Here there is nothing to search for:

- Two draws take 128 fresh bits and are computed in float64, which tells apart more than 2^50
  values in every unit interval.
- `add_normal` scales the noise and adds it in float64, then rounds the noisy sum, once, to a
  grid of 2^-24 to 2^-23 noise standard deviations, then to the type of the target. Every grid
  point is the rounding of more than 2^25 angles for each of 2^53 radii, whatever the data, so
  no point that other data could have reached is skipped and the low bits carry nothing.
- `normal` rounds the draw itself to float32. What the caller then does in float32 is outside
  of this guard, so noise that protects a gradient is added with `add_normal`.

Draws end at 9.4 standard deviations: what lies beyond has a chance below 2^-64. Constant-time
execution is not claimed.

Source:
    Box & Muller (1958). Mironov (2012), https://doi.org/10.1145/2382196.2382264.
    Holohan & Braghin (2021), https://arxiv.org/abs/2107.10138.
"""

from __future__ import annotations

import math
import os
import threading
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from discreet.common.errors import InputError

_Bits = npt.NDArray[np.int64]

# Draws made at once: rows of float64 that stay in a core's second-level cache, and that torch
# does not split over threads. For the same reason the functions below are numpy's: torch
# gives log and cos of even 1,000 numbers to all cores, and where other sites train on these,
# waking and joining threads was measured to cost 100 times what the functions do.
_CHUNK = 2**15
_ZEROS = bytes(8 * _CHUNK)
_SMALLEST_SQUARE = 2.0**-128
_GRID_BITS = 24
_TURN_BITS = 13
_TURN_MASK = 2**_TURN_BITS - 1
# Points of the unit circle: 2^13 around it, and 2^13 within the first 2^13th of it.
_COARSE_TURN, _FINE_TURN = (
    np.exp(2j * np.pi / 2.0**bits * np.arange(2**_TURN_BITS))
    for bits in (_TURN_BITS, 2 * _TURN_BITS)
)


class Randomness(Protocol):
    """Where noise and the choice of examples come from."""

    def normal(self, num: int) -> torch.Tensor:
        """Draw from the standard normal distribution: float32 `[num]`, independent."""
        ...

    def add_normal(self, target: torch.Tensor, stddev: float) -> None:
        """Add independent normal noise of standard deviation `stddev` to `target`, in place."""
        ...

    def bernoulli(self, num: int, rate: float) -> torch.Tensor:
        """Choose each of `num` examples with chance `rate`: sorted indices, int64 `[chosen]`."""
        ...


class SecureRandomness:
    """Cryptographic randomness: a fresh key for each object and after each fork.

    Safe to use from several threads, which then share one keystream.
    """

    def __init__(self) -> None:
        self._keystream = _Keystream()

    def normal(self, num: int) -> torch.Tensor:
        """Draw from the standard normal distribution.

        Args:
            num: Number of draws, >= 0.

        Returns:
            Independent draws, float32 `[num]`, on the CPU.
        """
        drawn = torch.empty(num, dtype=torch.float32)
        for part in drawn.split(_CHUNK):
            part.copy_(self._doubles(len(part)))
        return drawn

    def add_normal(self, target: torch.Tensor, stddev: float) -> None:
        """Add independent normal noise to `target` in place; see the module for the guard.

        Args:
            target: Any shape, contiguous, a floating type, on any device, without a gradient
                graph. The noise is made on the CPU.
            stddev: Standard deviation of the noise, > 0, in the target's units.

        Raises:
            InputError: If `stddev` is not a number > 0 and < 1e100.
        """
        _check_stddev(stddev)
        # Adding and taking away this number rounds a float64 to a multiple of its last place:
        # a power of two within a factor of two below stddev * 2^-23. It does so up to 1e8
        # standard deviations, far beyond any sum of clipped gradients.
        anchor = 1.5 * 2.0 ** (52 + math.frexp(stddev)[1] - _GRID_BITS)
        for part in target.view(-1).split(_CHUNK):
            noisy = self._doubles(len(part)).mul_(stddev).add_(part.to("cpu"))
            part.copy_(noisy.add_(anchor).sub_(anchor))

    def bernoulli(self, num: int, rate: float) -> torch.Tensor:
        """Choose each of `num` examples with chance `rate`, independently (Poisson sampling).

        A 64-bit whole number is compared with `rate * 2^64` rounded down: the chance is exact
        to 2^-64 and never above `rate`.

        Args:
            num: Number of examples, >= 0.
            rate: Chance of each, > 0 and <= 1. 1 chooses all.

        Returns:
            Indices of the chosen examples, ascending, int64 `[chosen]`. May be empty.

        Raises:
            InputError: If `rate` is out of range or NaN.
        """
        _check_rate(rate)
        if rate == 1:
            return torch.arange(num)
        # Shifted by 2^63 on both sides of the comparison, because torch compares signed numbers.
        threshold = int(rate * 2.0**64) - 2**63
        chosen = [np.empty(0, dtype=np.int64)]
        for start in range(0, num, _CHUNK):
            bits = self._keystream.bits(min(_CHUNK, num - start))
            chosen.append(np.flatnonzero(bits < threshold) + start)
        return torch.from_numpy(np.concatenate(chosen))

    def _doubles(self, num: int) -> torch.Tensor:
        """Standard normal draws, float64 `[num]`; `num` <= `_CHUNK`."""
        half = (num + 1) // 2
        bits = self._keystream.bits(2 * half)
        return torch.from_numpy(_box_muller(bits[:half], bits[half:]).view(np.float64)[:num])


def _box_muller(radius_bits: _Bits, angle_bits: _Bits) -> npt.NDArray[np.complex128]:
    """Two standard normal draws, as one complex number, from each 128 bits."""
    # x is uniform in [-1, 1], so -log(x^2) is the square of a radius. A float keeps the leading
    # bits of a small x: the tail is as fine as the middle.
    radius = radius_bits * 2.0**-63
    radius *= radius
    radius += _SMALLEST_SQUARE
    np.log(radius, out=radius)
    np.negative(radius, out=radius)
    np.sqrt(radius, out=radius)
    # The angle is a sum of three: two looked up, and a rest of at most pi / 2^26 whose sine is
    # itself and whose cosine is 1, up to 1e-15. Five times as fast as sine and cosine.
    drawn: npt.NDArray[np.complex128] = _COARSE_TURN[angle_bits & _TURN_MASK]
    drawn *= _FINE_TURN[(angle_bits >> _TURN_BITS) & _TURN_MASK]
    rest = np.empty_like(drawn)
    rest.real = radius
    np.multiply(angle_bits >> 2 * _TURN_BITS, 2 * np.pi * 2.0**-64, out=rest.imag)
    rest.imag *= radius
    drawn *= rest
    return drawn


class InsecureRandomness:
    """Repeatable randomness for `privacy: none` and for tests. It protects nobody.

    Who knows the seed can take the noise away again.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, num: int) -> torch.Tensor:
        """Draw from the standard normal distribution: float32 `[num]`."""
        return torch.randn(num, generator=self._generator)

    def add_normal(self, target: torch.Tensor, stddev: float) -> None:
        """Add normal noise to `target` in place.

        Raises:
            InputError: If `stddev` is not a number > 0 and < 1e100.
        """
        _check_stddev(stddev)
        noise = self.normal(target.numel()).mul_(stddev).view(target.shape)
        target.add_(noise.to(target))

    def bernoulli(self, num: int, rate: float) -> torch.Tensor:
        """Choose each of `num` examples with chance `rate`: sorted indices, int64 `[chosen]`.

        Raises:
            InputError: If `rate` is out of range or NaN.
        """
        _check_rate(rate)
        uniform = torch.rand(num, generator=self._generator, dtype=torch.float64)
        return (uniform < rate).nonzero().view(-1)


class _Keystream:
    """An endless row of random bits, another one in each process."""

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._owner = _process()
        # A lock that was held in the parent while it forked would stay held here for ever.
        self._lock = threading.Lock()
        self._encryptor: CipherContext = Cipher(
            algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))
        ).encryptor()

    def bits(self, num: int) -> _Bits:
        """Fresh random int64 `[num]`, all 64 bits of each; `num` <= `_CHUNK`."""
        if self._owner != _process():
            self._renew()
        row = bytearray(8 * num)
        with self._lock:
            self._encryptor.update_into(memoryview(_ZEROS)[: len(row)], row)
        return np.frombuffer(row, dtype=np.int64)


_num_forks = 0


def _count_fork() -> None:
    global _num_forks  # noqa: PLW0603 - a process has one ancestry
    _num_forks += 1


def _process() -> tuple[int, int]:
    """Differs between a process and each of its forks.

    The id alone would not do: after two forks a process can get the id of its grandparent.
    The count alone would not do: foreign code may fork without telling Python.
    """
    return os.getpid(), _num_forks


os.register_at_fork(after_in_child=_count_fork)


def _check_stddev(stddev: float) -> None:
    if not 0 < stddev < 1e100:
        raise InputError(f"stddev of noise must be a number > 0 and < 1e100, got {stddev}")


def _check_rate(rate: float) -> None:
    if not 0 < rate <= 1:
        raise InputError(f"rate of sampling must be > 0 and <= 1, got {rate}")
