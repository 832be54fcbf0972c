"""One of two processes, of `test_watchdog`, that ends without a word: with an error, if it is the one named.

It speaks all the time, so its end most likely meets it speaking.
"""

import os
import sys

from selfreward_jax.core import hosts, watchdog

watchdog.SECONDS_BETWEEN_BEATS, watchdog.PATIENCE, watchdog.GRACE = 0.0005, 10**9, 400
hosts.join()
hosts.wait("both are here")
if sys.argv[1] == os.environ["JAX_PROCESS_ID"]:
    raise RuntimeError("on purpose")
