"""A `gcloud` that makes TPU slices out of folders: workers are homes, ssh is bash, and what is asked is written down.

The folder `FAKE_CLOUD` holds `calls.jsonl`; `account`, if somebody is logged in; `cloud.json`; a home for each worker.
In `cloud.json`: `now`, the states of node and queue; `coming`, those that they will have at the next looks; `after`,
what is coming once a slice has been asked for; `errors`, by the words that they are said to, each said once.
A worker that touches `preempted` has the slice taken away. With `cut`, the next connection that follows breaks.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])


def option(words: list[str], name: str) -> str:
    return next((word.split("=", 1)[1] for word in words if word.startswith(f"--{name}=")), "")


def fail(message: str, status: int = 1):
    print(message, file=sys.stderr)
    sys.exit(status)


def homes() -> list[Path]:
    return sorted(CLOUD.glob("worker-*"))


def tell(words: list[str], cloud: dict) -> None:
    """`describe`, of the node or of the queue."""
    if (CLOUD / "preempted").exists():
        (CLOUD / "preempted").unlink()
        cloud["now"] = ["PREEMPTED", "SUSPENDED"] if cloud["now"][1] else ["PREEMPTED", ""]
    if words[0] == "tpu-vm" and cloud["coming"]:
        cloud["now"] = cloud["coming"].pop(0)
    state = cloud["now"][words[0] == "queued-resources"]
    if not state:
        fail(f"ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource '{words[2]}' was not found")
    print(f"{state}\t{cloud['kind']}\t{cloud['workers']}" if words[0] == "tpu-vm" else state)


def create(words: list[str], cloud: dict) -> None:
    for home in homes():
        shutil.rmtree(home)
    for number in range(cloud["workers"]):
        (CLOUD / f"worker-{number}").mkdir()
    cloud["kind"], cloud["coming"] = option(words, "accelerator-type"), list(cloud["after"])
    cloud["now"] = ["CREATING", ""] if words[0] == "tpu-vm" else ["", "ACCEPTED"]


def ssh(words: list[str]) -> None:
    cut = "follow" in option(words, "command") and (CLOUD / "cut").exists()
    (CLOUD / "cut").unlink(missing_ok=cut or True) if cut else None
    # The real one takes the command apart at blanks, and ssh puts it together again.
    command = " ".join(option(words, "command").split(" "))
    started = []
    for number, home in enumerate(homes()):
        env = {**os.environ, "HOME": str(home), "FAKE_HOST": f"t1v-n-0123-w-{number}"}
        env["PATH"] = f"{CLOUD / 'worker_bin'}:{env['PATH']}"
        started.append(subprocess.Popen(["bash", "-c", command], cwd=home, env=env, stdin=subprocess.DEVNULL))
    if cut:
        time.sleep(0.5)
        for process in started:
            process.kill()
        fail("ERROR: [/usr/bin/ssh] exited with return code [255].", 255)
    sys.exit(next((status for status in [process.wait() for process in started] if status), 0))


def main(words: list[str]) -> None:
    with open(CLOUD / "calls.jsonl", "a") as calls:
        print(json.dumps(words), file=calls)
    if words[:2] == ["auth", "list"]:
        print("me@example.com" if (CLOUD / "account").exists() else "")
        return
    if words[:2] == ["config", "get-value"]:
        print({"compute/zone": "zone-a", "project": "project-1"}[words[2]])
        return
    path = CLOUD / "cloud.json"
    cloud, words = json.loads(path.read_text()), words[2:]
    try:
        for place, message in list(cloud["errors"].items()):
            if place in " ".join(words):
                del cloud["errors"][place]
                fail(message)
        match words[1]:
            case "describe":
                tell(words, cloud)
            case "create":
                create(words, cloud)
            case "delete":
                cloud["now"], cloud["coming"] = ["", ""], []
            case "ssh":
                if cloud["now"][0] != "READY" or (CLOUD / "preempted").exists():
                    fail("ERROR: the TPU is not READY")
                ssh(words)
            case "scp":
                for home in homes():
                    shutil.copyfile(words[2], home / words[3].split(":")[1])
    finally:
        path.write_text(json.dumps(cloud))


main(sys.argv[1:])
