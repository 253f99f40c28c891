"""One arithmetic code for a whole file: bytes and symbols go in one after another.

`Encoder` and `Decoder` have the same methods and are called in the same order: both return the
values, those that they were given or those that they read.
"""

import functools

import numpy as np

from tfcompress.errors import InputError

ALL_SYMBOL_CONTEXTS, ALL_BYTE_CONTEXTS = 7, 8
FEW_SYMBOL_CONTEXTS, FEW_BYTE_CONTEXTS = 1, 2
_MOST_SLOTS = 1 << 22
_BYTE_SHIFT = 14
# A decision of the highest probability, 65520 / 65536, takes 1 / 22,713 of a byte.
_MOST_DECISIONS = 1 << 15  # that a byte of code can hold


@functools.cache
def _machine():
    from tfcompress.packing import machine

    return machine


class _Coder:
    decoding = False

    def __init__(self, buffer: np.ndarray):
        self._buffer = buffer
        self._state = np.array([0, 0xFFFFFFFF, 0, 0], np.int64)

    @property
    def position(self) -> int:
        """Bytes written or read so far."""
        return int(self._state[_machine().PLACE])

    def symbols(
        self, symbols: np.ndarray, columns: int, bits: int, contexts: int, shift: int
    ) -> np.ndarray:
        """Codes uint8 symbols (n,), in rows of `columns`, each at most 2 ** bits.

        contexts: how many take part, 1 to 7. shift: their weights move by 2 ** -shift of an error.
        """
        self._make_room(symbols.size, symbols.size)
        symbols = np.array(symbols, np.uint8)
        _machine().code_symbols(
            self._state, self._buffer, symbols, columns, bits, contexts, shift, self.decoding,
            *_fresh(32 * symbols.size, 14, contexts),
        )  # fmt: skip
        self._check()
        return symbols

    def bytes(
        self,
        data: np.ndarray,
        stride: int = 1,
        flat: int = 0,
        contexts: int = ALL_BYTE_CONTEXTS,
        prior: bytes = b"",
    ) -> np.ndarray:
        """Codes uint8 data (n,), elements of `stride` bytes, which may resemble `prior`.

        flat: mask of places within an element where bytes look random: these are stored.
        """
        self._make_room(data.size, 8 * data.size)
        whole = np.concatenate([np.frombuffer(prior, np.uint8), np.asarray(data, np.uint8)])
        if prior:
            table, weights = (array.copy() for array in _primed(prior, stride, contexts))
        else:
            table, weights = _fresh(64 * data.size, stride, contexts)
        _machine().code_bytes(
            self._state, self._buffer, whole, len(prior), stride, flat, contexts, self.decoding,
            table, weights,
        )  # fmt: skip
        self._check()
        return whole[len(prior) :]

    def _make_room(self, size: int, decisions: int) -> None:
        """Called before so many values are coded, in so many decisions at least."""

    def _check(self) -> None:
        """Called behind them."""


class Encoder(_Coder):
    """Writes."""

    def __init__(self):
        super().__init__(np.zeros(1 << 12, np.uint8))

    def content(self) -> bytes:
        """Returns what was written, without some zeros at its end, which a decoder adds.

        Raises:
            OverflowError: the values took more than 10 bits for a byte.
        """
        low, place = int(self._state[_machine().LOW]), self.position
        if place > self._buffer.size:
            raise OverflowError
        last = (low >> 24) + (low & 0xFFFFFF > 0)  # with zeros behind it within [low, high]
        code = self._buffer[:place].tobytes() + bytes([last])
        # No more zeros than a decoder puts up with.
        return code.rstrip(b"\0").ljust(len(code) - _machine().BEYOND // 2, b"\0")

    def _make_room(self, size: int, decisions: int) -> None:
        lacking = self.position + size + size // 4 + 4096 - self._buffer.size
        if lacking > 0:
            self._buffer = np.concatenate([self._buffer, np.zeros(lacking, np.uint8)])


class Decoder(_Coder):
    """Reads what an `Encoder` wrote."""

    decoding = True

    def __init__(self, content: bytes):
        super().__init__(np.frombuffer(content, np.uint8).copy())
        machine = _machine()
        self._state[machine.WINDOW] = int.from_bytes(content[:4].ljust(4, b"\0"), "big")
        self._state[machine.PLACE] = 4

    def expect(self, decisions: int) -> None:
        """Refuses more decisions than are in the code, before memory is taken for them."""
        left = self._buffer.size + _machine().BEYOND - self.position
        if decisions > _MOST_DECISIONS * left:
            raise InputError("Packed content is truncated or corrupt: it ends too early.")

    def _make_room(self, size: int, decisions: int) -> None:
        self.expect(decisions)

    def _check(self) -> None:
        if self.position > self._buffer.size + _machine().BEYOND:
            raise InputError("Packed content is truncated or corrupt: it ends too early.")


def _fresh(size: int, rows: int, contexts: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a table of at least `size` contexts, up to a limit, and the mixers' weights."""
    slots = 1 << max(12, min(size, _MOST_SLOTS).bit_length())
    weights = np.full((rows, contexts), 65536 * 15 // 100, np.int64)
    weights[:, 0] = 65536 * 35 // 100 if contexts > 2 else 65536 * (2 - contexts + 1) // 2
    return np.full(slots, _machine().FRESH, np.uint32), weights


@functools.cache
def _primed(prior: bytes, stride: int, contexts: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns what is left in table and weights by coding `prior`."""
    table, weights = _fresh(_MOST_SLOTS, stride, contexts)
    encoder, data = Encoder(), np.frombuffer(prior, np.uint8).copy()
    _machine().code_bytes(
        encoder._state, encoder._buffer, data, 0, stride, 0, contexts, False, table, weights
    )
    return table, weights
