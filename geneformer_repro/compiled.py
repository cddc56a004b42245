"""What compiled loops over torch's numbers on a CPU need: bfloat16, exponentials, and threads that torch leaves alone.

NumPy and numba have no bfloat16, so loops get its bits and are compiled for either type. No library's exponential is
made into vectors by numba here (its own is one number at a time, 2.4 ns each; this one 0.25).
"""

import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from numba.extending import overload
from torch import Tensor


@functools.cache
def threads_alone(n_threads: int) -> ThreadPoolExecutor:
    """Return threads in each of which torch computes with that thread alone; those of torch stay as many as they are.

    Parameters
    ----------
    n_threads
        How many; as many as torch has.
    """
    all_there = threading.Barrier(n_threads)

    def alone() -> None:
        torch.get_num_threads()  # or the thread would be set up, with all threads, at its first operation
        torch.set_num_threads(1)
        all_there.wait()

    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="alone", initializer=alone)
    list(pool.map(lambda _: all_there.wait(), range(n_threads)))
    torch.set_num_threads(n_threads)  # what threads to come are set up with
    return pool


os.register_at_fork(after_in_child=threads_alone.cache_clear)


def numbers(tensor: Tensor) -> np.ndarray:
    """Return a tensor as an array that shares its memory; bfloat16 as its bits, which NumPy has no type for."""
    array: np.ndarray = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def single(number):  # type: ignore[no-untyped-def]
    """Return a number as float32."""


@overload(single, inline="always")
def _single_of(number):  # type: ignore[no-untyped-def]
    if number == numba.types.uint16:
        return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)
    return lambda number: number


def stored(number, like):  # type: ignore[no-untyped-def]
    """Return float32 in the type of another, rounded to the nearest, of two the even one."""


@overload(stored, inline="always")
def _stored_like(number, like):  # type: ignore[no-untyped-def]  # noqa: ARG001 - what numba tells apart
    def rounded(number, like):  # type: ignore[no-untyped-def]  # noqa: ARG001
        bits = np.float32(number).view(np.uint32)
        return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> 16)

    return rounded if like == numba.types.uint16 else lambda number, like: number


@numba.njit(inline="always")
def exponential(x):  # type: ignore[no-untyped-def]
    """Return the exponential of a float32 that is at most a little above 0, to 2e-7: no library's makes vectors here.

    2ⁿ · 2ᶠ with whole n and |f| ≤ ½, the latter by a polynomial (least squares of the relative error, degree 5).
    """
    power = max(x, np.float32(-87)) * np.float32(1.4426950408889634)
    whole = np.floor(power + np.float32(0.5))
    f = power - whole
    series = np.float32(0.0013266970636323094)
    series = series * f + np.float32(0.009675459936261177)
    series = series * f + np.float32(0.05550742521882057)
    series = series * f + np.float32(0.24022121727466583)
    series = series * f + np.float32(0.6931469440460205)
    series = series * f + np.float32(1.0000001192092896)
    return series * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)


@numba.njit(inline="always")
def _in_order(x):  # type: ignore[no-untyped-def]
    """Return the whole number that stands where a float32 does among all; and its way back is the same."""
    bits = np.int32(np.float32(x).view(np.int32))
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@numba.njit(inline="always")
def finite(x):  # type: ignore[no-untyped-def]
    """Return whether a float32 is finite, by its bits: a compiler told to be fast takes for granted that it is."""
    return np.int32(np.float32(x).view(np.int32)) & np.int32(0x7F800000) != np.int32(0x7F800000)


@numba.njit(inline="always")
def largest(row):  # type: ignore[no-untyped-def]
    """Return the largest number of a row as float32; not a number where one of them is not finite.

    By whole numbers: of floating-point ones numba makes no vectors here, since one might not be a number.
    """
    most, least = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
    for j in range(row.shape[0]):
        place = _in_order(single(row[j]))
        most, least = max(most, place), min(least, place)
    if most >= np.int32(0x7F800000) or least <= np.int32(-0x7F800001):
        return np.uint32(0x7FC00000).view(np.float32)
    return np.int32(most ^ np.int32(np.int32(most >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)
