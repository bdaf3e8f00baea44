"""IncReg: pruning while training by incremental regularization, as a plug-in of `caffe_compat`.

A solver prototxt that names a `prune_method` prunes: `caffe-compat train` finds `increg.plugin.attach` by itself; in
Python, `caffe_compat.plugins.create_solver(path)` does, or `attach(Solver(path))`. One file each:

    config     the settings, checked               methods/   one file a method: what is pruned, when, what is done before
    prunable   which layers take part              pruner     carries a method out, keeps masks applied
    ratios     how much of each is pruned          overview   says what was understood, before training
    groups     weights as matrices, masks          stages     the schedule, and aims: what a stage aims at
    units      rows, columns, channels, ...        coupling   which rows follow which columns; ties: which go together
    state      snapshots, in the fork's fields     budget     multiply-adds, weights, speedup
    importance how much a filter matters           statistics what that is taken from, gathered over data
    filters    which parameters are a filter's     ranking    filters of all layers compared, in rounds
    hook       connects all this with a solver     table      the groups of all layers at once (Reg)

All methods share one schedule. It, and the methods Reg and RegSpa, are those of the reference implementation,
github.com/MingSun-Tse/Caffe_IncReg (branch MultiStage_RegCol_2), float32 value for float32 value. Where it differs from
the papers (arXiv 1804.09461 and doi 10.1109/jstsp.2019.2961233) we follow it. But it has defects that change results. By
default they are mended; `--as-reference` (`as_reference=True`) brings all of them back, to be compared with its runs:

1. Rows that are pruned do not sink (`methods/reg_row_reference.py`). Reg_Row writes a pruned row's score to a wrong place,
   so that it stays among the others by its last mean rank, may be punished, pruned and counted again, and others go
   unpunished in its stead. Mended: pruned rows come first and are counted once.
2. Layer L - 1 feeds layer L (`coupling.as_reference`). Rows and columns follow each other between layers that were made
   one after the other, whatever the net connects, and never from a convolution to an InnerProduct. Mended: read from
   bottoms and tops. In a chain of convolutions both are the same.
3. No punishment without weight decay (`Reg._goal`). All of it stands inside "if weight_decay * decay_mult is not 0".
   Mended: punished regardless.
4. Data run on while everything else goes back (`PruneHook.restore`). When the schedule restores a snapshot, the data
   layers do not return to where they were. Mended: they do, so that a run can be repeated from any snapshot.
5. Counts are taken from zeros (`PruneHook.load_state`). When the schedule restores a snapshot, what is pruned is guessed
   from the weights, so that rows counted twice (1) are counted once from then on. Mended: restored exactly, as when a
   user resumes from one of our snapshots, in either mode.
6. Left-over punishments of rows are cleared by row 0 alone (`Reg.clear_left_over`): all of a layer's if row 0's lies
   between 0 and the ceiling, none otherwise. Mended: those of each row that is not pruned.
7. A bad stage can end the pruning (`Stages._judge`). If it reached the speedup aimed at, that still counts after going
   back to the last good stage, which is then taken for the end. Mended: the speedup is computed anew.
8. Resuming in a later state starts its countdown anew (`Stages.check_layer`): the iteration in which pruning finished is
   set to the one resumed at. Mended: as the snapshot says. (Ours tell more, and resume exactly in either mode.)
9. RegSpa_Col makes no rectangles (`methods/regspa.py`) in the one configuration in which its punishment works,
   prune_method Reg_Col with regularization_type RegSpa_Col. Mended: kept positions become a rectangle.

Not followed in either mode: the reference's crashes, its exit in the middle of an iteration (we end training, with the
output restored and a last snapshot), and its report of every layer in every iteration.

After pruning, `slim` makes a net smaller (`increg slim`), by the `channels` that go together (`increg coupling`); `budget`
counts what that saves (`increg budget`).
"""

from .config import PruneConfig, read_config
from .hook import PruneHook
from .plugin import attach

__all__ = ["PruneConfig", "PruneHook", "attach", "read_config"]
