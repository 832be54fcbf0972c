"""One of two processes, of `test_watchdog`, that ends without a word: with an error, if it is the one named.

Where none fails, they speak all the time, so that their end most likely meets them speaking.
"""

import os
import sys

from selfreward_jax.core import hosts, watchdog

fails = sys.argv[1]
watchdog.SECONDS_BETWEEN_BEATS, watchdog.PATIENCE = (0.0005, 10**9) if fails == "None" else (0.2, 300)
hosts.join()
hosts.wait("both are here")
if fails == os.environ["JAX_PROCESS_ID"]:
    raise RuntimeError("on purpose")
