"""Counter-based random numbers: each is a hash of what it is for, so that none depends on what was drawn before.

A generator with a state would tie a sample's crop to the samples that its worker read earlier. Here the number of a
sample is the same in any batch, on any worker, after any restart, and with any version of NumPy.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Uints: TypeAlias = npt.NDArray[np.uint64]
Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

# Who uses which draw of a sample. A number is never given to a second purpose.
ORDER_DRAW = 0
FLIP_DRAW = 1
FIRST_CROP_DRAW = 2

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def hashes(seed: int, epoch: int, indices: npt.ArrayLike, draws: npt.ArrayLike) -> Uints:
    """Random bits of each sample and draw: uint64 ``[num_indices, num_draws]``, uniform over all 64-bit values.

    For one seed, epoch and draw, two different indices never have the same hash, because every round is a bijection.
    """
    key = _mix(_words(seed))
    key = _mix(key + _words(epoch))
    samples = _mix(key + np.asarray(indices, dtype=np.int64).reshape(-1).astype(np.uint64))
    return _mix(samples[:, None] + np.asarray(draws, dtype=np.uint64).reshape(-1))


def uniforms(seed: int, epoch: int, indices: npt.ArrayLike, draws: npt.ArrayLike) -> Floats:
    """Random numbers of each sample and draw: float64 ``[num_indices, num_draws]``, uniform in [0, 1)."""
    return np.multiply(hashes(seed, epoch, indices, draws) >> np.uint64(11), 2.0**-53, dtype=np.float64)


def _words(number: int) -> Uints:
    # An array of one, because NumPy warns when a scalar wraps around and an array does so silently.
    return np.array([number & _MASK], dtype=np.uint64)


def _mix(words: Uints) -> Uints:
    """One output of SplitMix64 for the state ``words``.

    Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """
    mixed = words + _GAMMA
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST_FACTOR
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND_FACTOR
    return mixed ^ (mixed >> np.uint64(31))
