import sys

from selfreward_jax.cli import main

sys.exit(main())
