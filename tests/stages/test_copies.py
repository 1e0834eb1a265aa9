"""The comparison of dedup methods counts right."""

from capfilt.models.checkpoints import EMBEDDED_FOLDER as MODELS
from capfilt.simweb.corruption import Noise
from capfilt.simweb.web import web_row
from pipelines.experiments.copies import measure


def test_methods_are_judged_against_the_truth_of_the_web() -> None:
    rows, seed = 240, 900_001
    found = {one.method: one for one in measure(MODELS, rows, seed)}
    shown = [web_row(seed, n, Noise(faults=())).picture.scene_index for n in range(rows)]
    copies = rows - len(set(shown))
    assert copies > 5
    exact = found["sha256"]
    assert exact.precision == 1.0
    assert 0 < exact.dropped < copies
    assert exact.recall == exact.dropped / copies
    # A wider net drops more, and holds what the narrower one held.
    nets = [found[f"embedding, {cosine}"] for cosine in (0.998, 0.99, 0.97)]
    assert [net.dropped for net in nets] == sorted(net.dropped for net in nets)
    assert all(0 < net.precision <= 1 and exact.recall <= net.recall <= 1 for net in nets)
    assert found["phash, 0 bits"].dropped <= found["phash, 6 bits"].dropped
