"""One of two processes with one device each; prints what its engine makes of the requests of `test_hosts`."""

import json
import sys

from selfreward_jax.core import hosts

hosts.join()

from selfreward_jax.engine.generate import Engine, EngineSettings  # noqa: E402
from selfreward_jax.engine.sampling import SamplingSettings  # noqa: E402
from selfreward_jax.engine.schedule import Request  # noqa: E402
from tests.engine.small_llama import small_model  # noqa: E402


def main(given: dict) -> None:
    requests = [Request(id, tuple(ids)) for id, ids in given["requests"]]
    engine = Engine(small_model(**given["mesh"]), EngineSettings(slots=4, length_bucket=16))
    made = engine.run(requests, given["samples"], SamplingSettings(**given["settings"]), seed=0)
    found = [[c.request.id, c.index, c.token_ids, c.logp] for c in made]
    read = [[r.id, logps] for r, logps in engine.read(requests, (3, 20))]
    print(json.dumps({"made": found, "read": read}))


if __name__ == "__main__":
    main(json.load(sys.stdin))
