"""The best k of several scans, joined and put in order."""

from typing import Any

from tqindex.kernels.compile import kernel
from tqindex.kernels.scan import NO_ID, is_better, push


@kernel
def join_best(scores: Any, ids: Any) -> None:
    """Join heaps as `push` keeps them into the first one and sort that, best first; empty places get id -1.

    scores, ids : float32 and int64 (workers, nq, k)
    """
    workers, nq, k = scores.shape
    best_scores, best_ids = scores[0], ids[0]
    for q in range(nq):
        for worker in range(1, workers):
            for i in range(k):
                score, row_id = scores[worker, q, i], ids[worker, q, i]
                if is_better(score, row_id, best_scores[q, 0], best_ids[q, 0]):
                    push(best_scores, best_ids, q, score, row_id)
        for last in range(k - 1, 0, -1):
            score, row_id = best_scores[q, last], best_ids[q, last]
            best_scores[q, last], best_ids[q, last] = best_scores[q, 0], best_ids[q, 0]
            push(best_scores[:, :last], best_ids[:, :last], q, score, row_id)
        for i in range(k):
            if best_ids[q, i] == NO_ID:
                best_ids[q, i] = -1
