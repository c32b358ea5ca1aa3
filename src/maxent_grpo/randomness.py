"""Randomness as a function of a key, never a state.

Every draw of a run is named by a key such as ``(run seed, "completion", step, epoch, prompt index, sample)``.
Equal keys give equal draws on every machine, rank and restart, so that nothing about randomness has to be
saved in a checkpoint, and a completion does not depend on who shares its batch.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

KeyPart = int | str


def generator(*key: KeyPart) -> np.random.Generator:
    """A generator seeded by ``key`` alone: Philox keyed with the 128-bit BLAKE2b digest of the key's parts."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def integer_seed(*key: KeyPart) -> int:
    """A seed in [0, 2³¹) for a library that wants an integer (``torch.manual_seed``, a vLLM request)."""
    return int(generator(*key).integers(0, 2**31))


def uniforms(keys: Sequence[tuple[KeyPart, ...]], length: int) -> npt.NDArray[np.float64]:
    """Uniform draws in [0, 1), one row of ``length`` per key: ``[len(keys), length]``."""
    return np.stack([generator(*key).random(length) for key in keys])


def permutation(n: int, *key: KeyPart) -> npt.NDArray[np.int64]:
    """A permutation of ``range(n)`` that depends on ``n`` and ``key`` only."""
    return generator(*key).permutation(n)
