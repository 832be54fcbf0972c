"""What prompts are about: clusters by their words, and a map on which prompts with like words lie together.

Words are weighted by TF-IDF and reduced by a truncated SVD (Deerwester et al. 1990); t-SNE (van der Maaten and Hinton
2008) makes the map, as in the paper's appendix, which embeds its prompts with a model instead; k-means on the map makes
the clusters.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from sklearn.manifold import TSNE
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

LEAST, MOST_OF_ONE_ORIGIN = 8, 300
SEEDS = ("IFT seeds", "EFT seeds")  # origins that are no model
STOP_WORDS = [
    *ENGLISH_STOP_WORDS,
    "ve",
    "ll",
    "don",
    "didn",
    "doesn",
    "isn",
    "wasn",
    "won",
    "aren",
]  # as split by words
DIMENSIONS, MOST_CLUSTERS, WORDS_OF_A_CLUSTER = 50, 8, 5


@dataclasses.dataclass(frozen=True)
class PromptMap:
    """Prompts on a plane.

    Attributes:
      origins: where each prompt came from, [N].
      texts: [N].
      places: [N, 2]; only which ones are near each other has a meaning.
      clusters: number of each prompt's cluster, [N]; the largest is 0.
      words: of each cluster, the most telling first.
      left_out: prompts that were not drawn.
    """

    origins: tuple[str, ...]
    texts: tuple[str, ...]
    places: np.ndarray
    clusters: np.ndarray
    words: tuple[tuple[str, ...], ...]
    left_out: int

    def members(self, cluster: int) -> list[int]:
        return [n for n, found in enumerate(self.clusters) if found == cluster]


def map_prompts(prompts: Mapping[str, Sequence[str]], seed: int = 0) -> PromptMap | None:
    """A map of prompts by origin, of at most 300 of each, drawn by the seed; None where they are too few
    or have no telling words.

    The same prompts give the same map: one thread computes it.
    """
    rng = random.Random(seed)
    drawn = {
        origin: [texts[i] for i in sorted(rng.sample(range(len(texts)), min(MOST_OF_ONE_ORIGIN, len(texts))))]
        for origin, texts in prompts.items()
    }
    origins = tuple(origin for origin, texts in drawn.items() for _ in texts)
    texts = tuple(text for own in drawn.values() for text in own)
    if len(set(texts)) < LEAST:
        return None
    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words=STOP_WORDS)
    try:
        weights = vectorizer.fit_transform(texts)
    except ValueError:  # no telling word in any of them
        return None
    names = vectorizer.get_feature_names_out()
    width = min(DIMENSIONS, len(texts) - 1, len(names) - 1)
    if width < 2:
        return None
    with threadpool_limits(1):
        near = np.asarray(normalize(TruncatedSVD(width, random_state=seed).fit_transform(weights)))
        # Each vector once: t-SNE's tree crashes where all points are one.
        distinct, which = np.unique(near.round(6), axis=0, return_inverse=True)
        if len(distinct) < LEAST:
            return None
        perplexity = min(30.0, (len(distinct) - 1) / 4)
        places = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(distinct)[which]
        count = min(MOST_CLUSTERS, max(2, round((len(texts) / 8) ** 0.5)), len(distinct))
        found = KMeans(count, random_state=seed).fit_predict(places)
    order = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    clusters = np.argsort(order)[found]
    words = tuple(_words(weights, clusters == c, names) for c in range(count))
    return PromptMap(origins, texts, places, clusters, words, sum(map(len, prompts.values())) - len(texts))


def _words(weights, inside: np.ndarray, names: np.ndarray) -> tuple[str, ...]:
    """Words that a cluster uses more than all prompts do."""
    more = np.asarray(weights[inside].mean(0) - weights.mean(0)).ravel()
    telling = (str(names[i]) for i in np.argsort(-more, kind="stable") if more[i] > 0)
    return tuple(w for w in telling if not w.isdigit())[:WORDS_OF_A_CLUSTER]
