"""The reader of the `gguf` package, held to what a file holds."""

import sys

import numpy as np
from gguf import GGUFReader, GGUFValueType


class BoundedReader(GGUFReader):
    """A `GGUFReader` that believes no length which a file says, and raises `ValueError`.

    An array of 2^60 numbers, so many entries or tensors would go on behind the file's end until the memory is full.
    Arrays are read as one piece, too, in the place of an object for each of their numbers.
    """

    MOST_FIELDS = 100_000  # and tensors; the largest models have some thousand
    MOST_STRINGS = 4_000_000  # in all arrays together, which take 200 bytes each; vocabularies have up to 0.3 million

    strings = 0

    def _get(self, offset, dtype, count=1, override_order=None):
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, and says that it goes on to {end}")
        return super()._get(int(offset), dtype, int(count), override_order)

    def _build_fields(self, offs, count):
        return super()._build_fields(offs, self._few(count, "fields"))

    def _build_tensor_info(self, offs, count):
        return super()._build_tensor_info(offs, self._few(count, "tensors"))

    def _few(self, count, name: str) -> int:
        if count > self.MOST_FIELDS:
            raise ValueError(f"it says that it has {count} {name}")
        return int(count)

    def _get_field_parts(self, orig_offs, raw_type):
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, length = GGUFValueType(self._get(orig_offs, np.uint32)[0]), int(self._get(orig_offs + 4, np.uint64)[0])
        start = orig_offs + 12
        types = [GGUFValueType.ARRAY, kind] if length else [GGUFValueType.ARRAY]
        if kind in self.gguf_scalar_to_np:
            values = self._get(start, self.gguf_scalar_to_np[kind], length)
            return 12 + int(values.nbytes), [values], [0] if length else [], types
        self.strings += length
        if kind != GGUFValueType.STRING or self.strings > self.MOST_STRINGS:
            raise ValueError(f"an array of {length} of type {kind.name}")
        swapped = "big" if sys.byteorder == "little" else "little"
        order = swapped if self.byte_order == "S" else sys.byteorder
        data, texts, place = self.data.data, [], start
        for _ in range(length):
            size = int.from_bytes(data[place : place + 8], order)
            place += 8 + size
            if place > len(data):
                raise ValueError(f"it ends at byte {len(data)}, and says that it goes on to {place}")
            texts.append(data[place - size : place])
        return place - orig_offs, texts, list(range(length)), types
