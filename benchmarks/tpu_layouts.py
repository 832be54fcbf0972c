"""Every layout of configs/layouts.py, compiled whole by the TPU compiler, as the table of docs/tpu.md. Needs no TPU.

    python benchmarks/tpu_layouts.py [--output runs/layouts] [--jobs 2] [--only v5p-128]

Each is a `selfreward plan` in a process of its own, 3 to 10 minutes on one core. Plans that lie in the folder are not
made again, so that a table that was stopped goes on; delete the folder after a change of the programs.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CONFIGS = {
    "Llama-2-7B": "llama2_7b",
    "Llama-2-13B": "llama2_13b",
    "Llama-2-70B": "llama2_70b",
    "Llama-3.1-8B": "llama3_8b",
    "Llama-3.1-70B": "llama3_70b",
}
SLICES = ("v5e-256", "v5p-128", "v6e-256")
TRAINING = ("sft", "dpo", "reference")
COLUMNS = (
    "model", "slice", "training mesh", "sampling", "training, GiB", "sampling, GiB",
    "DPO step, ms: products / memory / interconnect", "MFU", "an iteration, hours", "chip-hours",
)  # fmt: skip


def plan(config: str, where: str, output: Path) -> str:
    """Makes a plan unless it is there; what went wrong, or ""."""
    if output.exists():
        return ""
    words = ["plan", f"--config=configs/{config}.py:{where}", f"--topology={where}", f"--output={output}"]
    environment = os.environ | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    log = output.with_suffix(".log")
    with log.open("w") as file:
        code = subprocess.run(
            [sys.executable, "-m", "selfreward_jax", *words], stdout=file, stderr=file, env=environment
        ).returncode
    print(f"{config}:{where}: {'planned' if code == 0 else f'failed, see {log}'}", file=sys.stderr, flush=True)
    return "" if code == 0 else f"{config}:{where} failed, see {log}"


def line(model: str, where: str, facts: dict) -> tuple[str, ...]:
    """A row of the table."""
    mesh, config, total = facts["mesh"], facts["config"], facts["total"]
    step = next(p for p in facts["programs"] if p["program"] == "dpo gradients")

    def most(training: bool) -> str:
        of = [p for p in facts["programs"] if (p["program"].startswith(TRAINING)) == training]
        largest = max(of, key=lambda p: p["total"])
        if wrong := [p for p in of if not p["fits"]]:
            return f"**{wrong[0]['program']} does not fit**"
        return f"{largest['total'] / 2**30:.1f} ({largest['total'] / 2**30 / facts['hbm_gib']:.0%})"

    times = " / ".join(f"{1000 * step['seconds'][kind]:,.0f}" for kind in ("matrix", "hbm", "ici") if step["fits"])
    hours, spent = (f"{x:.3g}" if (x := total[name]) is not None else "" for name in ("hours", "chip_hours"))
    return (
        model, where, f"{mesh['data']} x {mesh['fsdp']} x {mesh['tensor']}",
        f"{config['generation']['tensor']} a replica, {config['generation']['slots']:,} rows", most(True), most(False),
        times, f"{step['mfu']:.0%}" if step["mfu"] else "", hours, spent,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/layouts")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="a part of MODEL:SLICE")
    flags = parser.parse_args()
    folder = Path(flags.output)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(model, where) for model in CONFIGS for where in SLICES if flags.only in f"{model}:{where}"]
    files = {key: folder / f"{CONFIGS[key[0]]}-{key[1]}.json" for key in wanted}
    with ThreadPoolExecutor(flags.jobs) as pool:
        wrong = list(pool.map(lambda key: plan(CONFIGS[key[0]], key[1], files[key]), wanted))
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for key in wanted:
        if files[key].exists():
            print(f"| {' | '.join(line(*key, json.loads(files[key].read_text())))} |")
    if any(wrong):
        sys.exit("\n".join(filter(None, wrong)))


if __name__ == "__main__":
    main()
