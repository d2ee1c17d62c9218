"""Callbacks: how the network changes over time, and how one watches it."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse.analysis.report import SparsityReport, sparsity_report
from sb3_sparse.policies.base import sparse_policy
from sb3_sparse.policies.structure import TARGET_SUFFIX


class SparsityLogger(BaseCallback):
    """
    Send the sparsity report to SB3's logger (console, CSV, TensorBoard) with every dump of it: per network
    ``sparsity/<network>`` and ``sparsity/<network>_weights``, and for the whole model ``sparsity/inference_flops``,
    ``sparsity/training_flops`` and ``sparsity/bytes`` (with indices, online networks).

    :param verbose: 0 for no output, 1 to print the whole report when training starts.
    """

    def __init__(self, verbose: int = 0) -> None:
        super().__init__(verbose)
        self._counts: tuple[int, ...] = ()
        self._report: SparsityReport | None = None

    def _on_training_start(self) -> None:
        # Fails here, before training, if the policy is not sparse
        self._refresh()
        if self.verbose > 0:
            print(self._report)

    def _refresh(self) -> SparsityReport:
        """The report, made anew only if the number of positions of some layer has changed."""
        counts = tuple(layer.n_active for layer in sparse_policy(self.model).sparsifier.layers.values())
        if self._report is None or counts != self._counts:
            self._report, self._counts = sparsity_report(self.model), counts
        return self._report

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        # Recorded values last until the next dump, and SB3 does not tell callbacks when that is
        report = self._refresh()
        for name, size in report.networks.items():
            if not name.endswith(TARGET_SUFFIX):
                self.logger.record(f"sparsity/{name}", size.sparsity)
                self.logger.record(f"sparsity/{name}_weights", size.n_active)
        self.logger.record("sparsity/inference_flops", report.inference.sparse)
        if report.training is not None:
            self.logger.record("sparsity/training_flops", report.training.sparse)
        self.logger.record("sparsity/bytes", report.online.bytes_with_indices)
