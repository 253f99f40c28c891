"""The coder as machine code: binary decisions, predicted from contexts, in one arithmetic code.

Every value becomes a few binary decisions. For each of them some contexts look up how such
decisions went before; a mixer weighs their answers (logistic mixing, Mahoney 2005, "Adaptive
weighing of context models for lossless data compression"), learns from the outcome, and an
arithmetic coder spends -log2(p) bits. The decoder does the same in the same order. All arithmetic
is in integers, so that a file packed on one machine unpacks on any other.

This module imports numba; `coder.py` imports it when the first value is coded.
"""

import math

import numba
import numpy as np

LIMIT = 3071  # logits are integers, 256 to a nat, within +-12 nats
# Probabilities of 16 bits by logit, and logits by the upper 12 bits of a probability. No entry lies
# near a rounding boundary: libraries of mathematics that differ in the last bit agree on all.
SQUASH = np.array(
    [round(65536 / (1 + math.exp(-t / 256))) for t in range(-LIMIT, LIMIT + 1)], np.int64
).clip(16, 65520)
STRETCH = np.array([round(256 * math.log((i + 0.5) / (4095.5 - i))) for i in range(4096)], np.int64)
# How far the n-th outcome in a context moves its probability, of 65536.
RATE = np.array([65536 * 2 // (2 * n + 3) for n in range(1024)], np.int64)
FRESH = 1 << 31  # a context that has seen nothing: probability 1/2 in 22 bits, count 0 in 10

BEYOND = 64  # bytes behind the end of the code after which a decoder gives up
LOW, HIGH, PLACE, WINDOW = range(4)  # the coder's state


def _jit(function):
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # "no locator available": nowhere to keep the machine code
        return numba.njit(nogil=True)(function)


@_jit
def _decide(state, buffer, p, bit, decoding):
    """Codes one decision that is 1 with the probability p / 65536; returns it."""
    low, high, place = state[LOW], state[HIGH], state[PLACE]
    middle = low + (((high - low) * p) >> 16)
    if decoding:
        bit = 1 if state[WINDOW] <= middle else 0
    if bit:
        high = middle
    else:
        low = middle + 1
    while (low ^ high) & 0xFF000000 == 0:
        if decoding:
            byte = buffer[place] if place < len(buffer) else 0
            state[WINDOW] = ((state[WINDOW] << 8) & 0xFFFFFFFF) | byte
        elif place < len(buffer):
            buffer[place] = high >> 24
        place += 1
        low = (low << 8) & 0xFFFFFFFF
        high = ((high << 8) & 0xFFFFFFFF) | 0xFF
    state[LOW], state[HIGH], state[PLACE] = low, high, place
    return bit


@_jit
def _mixed(state, buffer, bit, decoding, slots, table, weights, row, shift, most):
    """Codes one decision as the contexts in `slots` predict it, and lets them learn from it."""
    n = len(slots)
    total = 0
    for i in range(n):
        if table[slots[i]] == FRESH and i:  # begins with what the context before it knows
            table[slots[i]] = (table[slots[i - 1]] & 0xFFFFFC00) | 1
        total += STRETCH[table[slots[i]] >> 20] * weights[row, i]
    p = SQUASH[min(max(total >> 16, -LIMIT), LIMIT) + LIMIT]
    bit = _decide(state, buffer, p, bit, decoding)
    error = (bit << 16) - p
    for i in range(n):
        value = np.int64(table[slots[i]])
        weights[row, i] += (STRETCH[value >> 20] * error) >> shift
        chance, count = value >> 10, value & 1023
        chance += (((bit << 22) - chance) * RATE[count]) >> 16
        table[slots[i]] = (min(max(chance, 1), (1 << 22) - 1) << 10) | min(count + 1, most)
    return bit


@_jit
def _hash(a, b):
    return ((a * 0x2C1B3C6D + b + 1) * 0x297A2D39) & 0x7FFFFFFFFFFF


@_jit
def code_bytes(state, buffer, data, begin, stride, flat, contexts, decoding, table, weights):
    """Codes data[begin:], elements of `stride` bytes; data[:begin] is what came before.

    `flat` is a mask of places within an element whose bytes look random: stored as they are.
    """
    mask = len(table) - 1
    hashes = np.zeros(8, np.int64)
    slots = np.zeros(contexts, np.int64)
    for i in range(begin, len(data)):
        if decoding and state[PLACE] > len(buffer) + BEYOND:
            return
        place = (i - begin) % stride
        value = np.int64(0) if decoding else np.int64(data[i])
        node = 1
        if (flat >> place) & 1:
            for k in range(7, -1, -1):
                node = node * 2 + _decide(state, buffer, 32768, (value >> k) & 1, decoding)
            data[i] = node & 0xFF
            continue
        history = np.int64(0)
        for k in range(1, 7):
            if i >= k:
                history |= np.int64(data[i - k]) << (8 * (k - 1))
        above = np.int64(data[i - stride]) if i >= stride else 0
        hashes[1] = _hash(1, place)
        hashes[2] = _hash(2, history & 0xFF)
        hashes[3] = _hash(3 + (place << 8), above)
        hashes[4] = _hash(4, history & 0xFFFF)
        hashes[5] = _hash(5 + (place << 8), (above << 8) | (history & 0xFF))
        hashes[6] = _hash(6, history & 0xFFFFFF)
        hashes[7] = _hash(7, history & 0xFFFFFFFF)
        for k in range(7, -1, -1):
            for j in range(contexts):
                slots[j] = _hash(hashes[j], node) >> 9 & mask
            bit = (value >> k) & 1
            bit = _mixed(state, buffer, bit, decoding, slots, table, weights, place, 15, 1023)
            node = node * 2 + bit
        data[i] = node & 0xFF


@_jit
def code_symbols(state, buffer, symbols, columns, bits, contexts, shift, decoding, table, weights):
    """Codes symbols of rows of `columns`: whether each is 0, and the `bits` bits of it less 1.

    Contexts are the row (an output channel), the column (an input), and what was near.
    """
    mask = len(table) - 1
    every = np.zeros(7, np.int64)
    slots = every[:contexts]
    last_in_column = np.zeros(columns, np.int64)
    hits_in_column = np.zeros(columns, np.int64)
    last_in_row, hits_in_row, recent, row = 0, 0, 0, -1
    for i in range(len(symbols)):
        if decoding and state[PLACE] > len(buffer) + BEYOND:
            return
        column = i % columns
        if column == 0:
            row += 1
            hits_in_row = 0
        value = np.int64(0) if decoding else np.int64(symbols[i])
        dense = min(16 * hits_in_column[column] // (row + 1) * 8, 1000)
        near = 0 if i < columns else np.int64(symbols[i - columns] != 0)
        filled = min(64 * hits_in_row // (column + 1), 63)
        every[0] = 1
        every[1] = _hash(1, recent & 7) & mask
        every[2] = _hash(2, row) & mask
        every[3] = _hash(3, column) & mask
        every[4] = _hash(4, (recent & 63) * 2 + near) & mask
        every[5] = _hash(5, filled) & mask
        every[6] = _hash(6, dense * 64 + filled) & mask
        which = 1 + min(row, 3)
        bit = np.int64(value != 0)
        bit = _mixed(state, buffer, bit, decoding, slots, table, weights, which, shift, 1023)
        recent = (recent << 1 | bit) & 0xFFFF
        if bit == 0:
            symbols[i] = 0
            continue
        node = 1
        for k in range(bits - 1, -1, -1):
            every[0] = _hash(7, node) & mask
            every[1] = _hash(8 + (node << 8), recent >> 1 & 3) & mask
            every[2] = _hash(9 + (node << 8), row) & mask
            every[3] = _hash(10 + (node << 8), last_in_row) & mask
            every[4] = _hash(11 + (node << 8), last_in_column[column]) & mask
            every[5] = _hash(12 + (node << 8), last_in_row * 256 + last_in_column[column]) & mask
            every[6] = _hash(13 + (node << 8), column) & mask
            bit = (value - 1) >> k & 1
            bit = _mixed(
                state, buffer, bit, decoding, slots, table, weights, 5 + min(k, 8), shift, 1023
            )
            node = node * 2 + bit
        value = (node & ((1 << bits) - 1)) + 1
        symbols[i] = value
        last_in_row, last_in_column[column] = value, value
        hits_in_row += 1
        hits_in_column[column] += 1
