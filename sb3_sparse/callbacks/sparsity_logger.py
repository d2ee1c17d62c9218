""":class:`SparsityLogger`: the sparsity report, in Stable-Baselines3's log."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse.analysis.report import SparsityReport, sparsity_report
from sb3_sparse.nn.layers import SparseLayer
from sb3_sparse.policies.base import sparse_policy
from sb3_sparse.policies.structure import TARGET_SUFFIX

_PREFIX = "sparsity/"


def _input_bits(layer: SparseLayer) -> int:
    """Bits of a quantized layer's inputs, 0 where they are in float."""
    return 0 if layer.quantizer is None else layer.quantizer.input_bits or 0


class SparsityLogger(BaseCallback):
    """
    Send the sparsity report to SB3's logger (console, CSV, TensorBoard) with every dump of it: per network
    ``sparsity/<network>`` and ``sparsity/<network>_weights``, and for the whole model ``sparsity/inference_flops``,
    ``sparsity/training_flops`` and ``sparsity/bytes`` (with indices, online networks).

    :param verbose: 0 for no output, 1 to print the whole report when training starts.
    """

    #: Layers count their changes anew in every process.
    not_in_checkpoints = ("_moved", "_versions")

    def __init__(self, verbose: int = 0) -> None:
        super().__init__(verbose)
        self._report: SparsityReport | None = None
        #: What the report was made of, and which masks were seen last: see :meth:`_refresh`.
        self._sizes: tuple[tuple[int, ...], ...] = ()
        self._versions: tuple[int, ...] = ()
        #: Whether positions may have moved since the report was made.
        self._moved = True

    def _on_training_start(self) -> None:
        self._report = None  # perhaps another model's
        # Fails here, before training, if the policy is not sparse
        self._refresh()
        # A training that goes on gets the report of a moment before its checkpoint back
        self._moved = True
        if self.verbose > 0:
            print(self._report)

    def _refresh(self) -> SparsityReport:
        """
        The report, made anew if the number of positions or the precision of some layer has changed. Where only positions
        have moved, which changes nothing but the bytes of indices, once for every dump of the logger.
        """
        layers = list(sparse_policy(self.model).sparsifier.layers.values())
        sizes = tuple((layer.n_active, layer.weight_bits, _input_bits(layer)) for layer in layers)
        versions = tuple(layer.mask_version for layer in layers)
        self._moved, self._versions = self._moved or versions != self._versions, versions
        is_due = self._moved and f"{_PREFIX}bytes" not in self.logger.name_to_value
        if self._report is None or sizes != self._sizes or is_due:
            self._report, self._sizes, self._moved = sparsity_report(self.model), sizes, False
        return self._report

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        # Recorded values last until the next dump, and SB3 does not tell callbacks when that is
        report = self._refresh()
        for name, size in report.networks.items():
            if not name.endswith(TARGET_SUFFIX):
                self.logger.record(f"{_PREFIX}{name}", size.sparsity)
                self.logger.record(f"{_PREFIX}{name}_weights", size.n_active)
        self.logger.record(f"{_PREFIX}inference_flops", report.inference.sparse)
        if report.training is not None:
            self.logger.record(f"{_PREFIX}training_flops", report.training.sparse)
        self.logger.record(f"{_PREFIX}bytes", report.online.bytes_with_indices)
