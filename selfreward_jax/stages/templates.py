"""Templates that come with the package."""

from importlib import resources


def packaged(name: str) -> str:
    return (resources.files("selfreward_jax") / "templates" / name).read_text()
