"""Machines that can be planned for: how much their devices hold, compute and move, and how they are described.

Numbers of a device are the makers' for one chip; where a chip is two devices for JAX (TPU7x), half of them. TPUs: the
"System architecture" pages of Google Cloud's documentation; the speed of one link of the torus in one direction as
well from "How to Scale Your Model" (Austin et al. 2025), whose way of counting is followed here. GPUs: data sheets.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

from selfreward_jax.core.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      title: for people.
      tflops: bfloat16 TFLOP/s, dense.
      hbm_gib: memory that a program may use.
      hbm_gbps: GB/s to and from it.
      link_gbps: GB/s of one link to a neighbour, in one direction.
      dimensions: of the torus.
      closed_from: devices along a dimension from which its ends are joined.
      devices: for JAX in one chip as it is sold; they share its links.
      cores_in_name: by how many the number in the name of a slice counts a chip.
      accelerator: how a slice is called.
      described_as: what the TPU compiler calls the chip's form, "" for its only one.
      network_gbps: GB/s between one device of a GPU's node and those of others.
    """

    title: str
    tflops: float
    hbm_gib: float
    hbm_gbps: float
    link_gbps: float
    dimensions: int = 0
    closed_from: int = 0
    devices: int = 1
    cores_in_name: int = 1
    accelerator: str = ""
    described_as: str = ""
    network_gbps: float = 0.0


TPUS = {
    "v4": Chip("TPU v4", 275.0, 30.75, 1228.0, 45.0, 3, 4, 1, 2, "v4", "megacore"),
    "v5e": Chip("TPU v5e", 197.0, 15.75, 819.0, 45.0, 2, 16, 1, 1, "v5litepod"),
    "v5p": Chip("TPU v5p", 459.0, 95.74, 2765.0, 90.0, 3, 4, 1, 2, "v5p"),
    "v6e": Chip("TPU v6e", 918.0, 31.25, 1640.0, 90.0, 2, 16, 1, 1, "v6e"),
    "tpu7x": Chip("TPU7x", 1153.5, 94.74, 3690.0, 90.0, 3, 4, 2, 2, "tpu7x"),
}
# Links of a GPU are its NVLink, to all others of its node at once; nodes are joined by InfiniBand, HDR or NDR.
GPU_NODE = 8  # devices
GPU_SHARE = 0.75  # of its memory, which JAX takes in advance and a program may use
GPUS = {
    "a100": Chip("A100 80GB", 312.0, GPU_SHARE * 79, 2039.0, 300.0, network_gbps=25.0),
    "h100": Chip("H100 SXM", 989.0, GPU_SHARE * 79, 3350.0, 450.0, network_gbps=50.0),
    "h200": Chip("H200", 989.0, GPU_SHARE * 140, 4800.0, 450.0, network_gbps=50.0),
}
CPU = Chip("CPU", 0.1, math.inf, 20.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What is planned for.

    Attributes:
      kind: `tpu`, `gpu` or `cpu`.
      generation: of the chip, a key of the tables above.
      shape: chips along each dimension of a TPU's torus, or the number of devices.
    """

    name: str
    kind: str
    generation: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices

    def bandwidth(self, places: Sequence[tuple[int, ...]]) -> float:
        """Bytes/s at which each of a group's devices sends around rings, both ways and in all dimensions it fills.

        Args:
          places: coordinates of the group's devices in the torus; their numbers on machines that have none.
        """
        chip, link = self.chip, self.chip.link_gbps * 1e9
        if not chip.dimensions:
            nodes = {number // GPU_NODE for (number,) in places}
            return chip.network_gbps * 1e9 if self.kind == "gpu" and len(nodes) > 1 else link
        # Ends are joined by the switches between cubes, which a slice that is no whole number of cubes doesn't have.
        joined = chip.dimensions == 2 or all(size % chip.closed_from == 0 for size in self.shape)
        ways = 0.0
        for along, whole in zip(zip(*places, strict=True), self.shape, strict=False):
            if (extent := len(set(along))) > 1:
                apart = (max(along) - min(along)) / (extent - 1)  # so many such groups share the links between
                closed = joined and extent * apart == whole >= chip.closed_from
                # An open chain is as slow as its ends, which have one link in each direction's ring.
                ways += (2.0 if closed else 1.0) / apart
        together = len(places) / max(len(set(places)), 1)  # of a chip's devices
        return link * (ways or 1.0) * together / chip.devices


def _shapes(generation: str) -> tuple[str, ...]:
    if TPUS[generation].dimensions == 2:
        return ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
    return ("2x2x1", "2x2x2", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")


def known() -> str:
    """Topologies to show someone who named another."""
    tpus = ", ".join(f"{g}:{_shapes(g)[0]} to {g}:{_shapes(g)[-1]}" for g in TPUS)
    return f"{tpus}, or by the slice's name (v5litepod-256, v5p-128, v6e-256); gpu:8xh100 ({', '.join(GPUS)}); cpu:8"


def parse(text: str) -> Machine:
    """A machine from its description.

    Raises:
      UserError: there is none such, with those that there are.
    """
    name = text.strip().lower()
    if found := re.fullmatch(r"cpu:(\d+)", name):
        return Machine(name, "cpu", "cpu", CPU, (_count(text, found[1]),))
    if found := re.fullmatch(r"gpu:(\d+)x(\w+)", name):
        if found[2] not in GPUS:
            raise UserError(f"--topology={text}: no GPU {found[2]}; there are {', '.join(GPUS)}.")
        return Machine(name, "gpu", found[2], GPUS[found[2]], (_count(text, found[1]),))
    if found := re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name):
        generation = found[1]
        if generation in TPUS:
            shape = tuple(_count(text, n) for n in found[2].split("x"))
            return _tpu(text, generation, shape)
    if found := re.fullmatch(r"([a-z0-9]+)-(\d+)", name):
        generation = next((g for g, chip in TPUS.items() if found[1] in (g, chip.accelerator)), "")
        if generation:
            return _tpu(text, generation, _slice(text, generation, _count(text, found[2])))
    hint = did_you_mean(name, [f"{g}:{s}" for g in TPUS for s in _shapes(g)])
    raise UserError(f"--topology={text}: unknown; known are {known()}.{hint}")


def _count(text: str, digits: str) -> int:
    if not int(digits):
        raise UserError(f"--topology={text}: nothing of it is there; give numbers from 1 on.")
    return int(digits)


def _tpu(text: str, generation: str, shape: tuple[int, ...]) -> Machine:
    chip = TPUS[generation]
    if len(shape) != chip.dimensions:
        raise UserError(f"--topology={text}: a {chip.title} slice has {chip.dimensions} dimensions, not {len(shape)}.")
    name = f"{generation}:{'x'.join(map(str, shape))}"
    return Machine(name, "tpu", generation, chip, shape)


def _slice(text: str, generation: str, number: int) -> tuple[int, ...]:
    """The shape of a slice that is called by its number of chips or cores: as near to a square or a cube as it gets."""
    chip = TPUS[generation]
    chips = number // chip.cores_in_name
    if chips < 1 or number % chip.cores_in_name or chips & (chips - 1):
        example = _shapes(generation)[-2]
        raise UserError(f"--topology={text}: its number doesn't tell its shape; give that, as {generation}:{example}.")
    sizes, power = [1] * chip.dimensions, chips.bit_length() - 1
    for n in range(power):
        sizes[n % chip.dimensions] *= 2
    sizes = sorted(sizes)
    return (*sizes[1:], 1) if chip.dimensions == 3 and sizes[0] == 1 else tuple(sizes)
