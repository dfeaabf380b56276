"""numconv's time over that of other libraries: below 1, numconv is faster. Each runs in a process of its own, in turns.

Peers are sought in this interpreter, or in that of the environment variable NUMCONV_PEER_PYTHON.
"""

import os
import sys

from . import CONTESTED, PASSES, ROWS

PEERS = ["torch", "onnxruntime", "jax", "scipy", "opencv"]


class Peers:
    """The median over the rounds of the ratio of two times that were taken within seconds."""

    params = (CONTESTED, PASSES, PEERS)
    param_names = ("problem", "direction", "peer")
    timeout = 60

    def setup_cache(self):
        """Ratios, and reasons where there is none, by row, pass and peer."""
        try:
            from numconv.benchmarking import measuring, results, rows
        except ImportError as error:
            return dict.fromkeys(_keys(), f"this numconv cannot measure peers: {error}")
        python = os.environ.get("NUMCONV_PEER_PYTHON", sys.executable)
        contenders = [measuring.Contender(results.OURS, "numconv"), *measuring.peers(PEERS, python)]
        versions, reasons = measuring.installed(contenders)
        found = results.measure(
            [each for each in contenders if each.name in versions],
            versions,
            rows.select([name for name, text in ROWS.items() if text in CONTESTED]),
            PASSES,
            rounds=2,
            seconds=0.05,
            progress=lambda _: None,
        )
        answers = dict.fromkeys(_keys(), "not measured") | {key: reasons[key[2]] for key in _keys() if key[2] in reasons}
        for row in found.measurements:
            for peer in versions:
                answers[row.problem, row.direction, peer] = row.reasons.get(peer, 1 / row.ratio(peer))
        return answers

    setup_cache.timeout = 900

    def setup(self, answers, *key):
        if isinstance(answers[key], str):
            raise NotImplementedError(answers[key])

    def track_time_ratio(self, answers, *key):
        return answers[key]

    track_time_ratio.unit = "ratio"


def _keys():
    return [(text, direction, peer) for text in CONTESTED for direction in PASSES for peer in PEERS]
