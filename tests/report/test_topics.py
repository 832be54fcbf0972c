"""The map of prompts: like prompts are near each other, and the same prompts give the same map."""

import numpy as np

from selfreward_jax.report.topics import map_prompts

COOKING = [
    f"Give me a recipe for {x} with rice and sauce in the oven." for x in ("beans", "fish", "eggs", "squash")
] * 5
PLANETS = [
    f"Explain how gravity moves the planet {x} around its star." for x in ("Mars", "Venus", "Earth", "Ceres")
] * 5


def test_prompts_of_one_topic_are_one_cluster_with_its_words():
    topics = map_prompts({"IFT seeds": COOKING[:10], "M2": COOKING[10:] + PLANETS})
    assert topics
    cooking = [text in COOKING for text in topics.texts]
    for cluster in range(len(topics.words)):
        assert len({cooking[n] for n in topics.members(cluster)}) == 1
    words = {w for own in topics.words for w in own}
    assert {"recipe", "planet"} <= words
    assert not {"for", "the", "with"} & words


def test_prompts_of_one_topic_lie_near_each_other():
    topics = map_prompts({"M2": COOKING + PLANETS})
    assert topics
    near = np.linalg.norm(topics.places[:20] - topics.places[:20].mean(0), axis=1).max()
    assert near < np.linalg.norm(topics.places[:20].mean(0) - topics.places[20:].mean(0))


def test_the_same_prompts_give_the_same_map():
    one, other = (map_prompts({"IFT seeds": COOKING, "M2": PLANETS}) for _ in range(2))
    assert one and other
    np.testing.assert_array_equal(one.places, other.places)
    np.testing.assert_array_equal(one.clusters, other.clusters)


def test_of_many_prompts_some_are_drawn():
    topics = map_prompts({"IFT seeds": COOKING, "M2": [f"{x} number{n}" for n in range(25) for x in COOKING]})
    assert topics
    assert topics.origins.count("M2") == 300
    assert topics.left_out == 200


def test_there_is_no_map_of_too_few_prompts_or_of_prompts_without_words():
    assert map_prompts({"IFT seeds": COOKING[:3], "M2": []}) is None
    assert map_prompts({"IFT seeds": ["?!", "What is it?"] * 10}) is None


def test_prompts_that_are_all_alike_have_no_map():
    assert map_prompts({"IFT seeds": ["Bake a cake today"] * 20}) is None


def test_prompts_that_repeat_lie_at_one_place():
    topics = map_prompts(
        {"IFT seeds": [*COOKING[:4], *PLANETS[:4], "Bake a cake today"], "M2": ["Bake a cake today"] * 20}
    )
    assert topics
    assert len(np.unique(topics.places[8:], axis=0)) == 1
    assert np.isfinite(topics.places).all()
