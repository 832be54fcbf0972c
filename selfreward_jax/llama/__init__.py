"""The Llama family as pure functions over a pytree of weights, and the files that its weights lie in."""
