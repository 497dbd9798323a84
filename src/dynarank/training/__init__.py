"""What happens in a training step.

One optimizer step of a run, from the batches to the budget, in the order of the calls. A step takes
`trainer.accumulate` batches, its accumulation window.

1.  `LengthGroupedSampler` (data.py) has put rows of like length into the batch. The order is a
    function of the seed and the epoch alone.
2.  `FineTuning.training_step` (module.py) runs the model on the task's inputs.
    The loss is the task's, plus a method's penalty that has no gradient in closed form.
    Under several processes `weighted_mean` makes it the mean over all rows of the global batch.
    Lightning then differentiates it. Steps 1 and 2 are repeated for each batch of the window;
    `window_scale` (library_internals.py) makes the sum of their gradients that of their losses'
    mean.
3.  `FineTuning.configure_gradient_clipping` adds the penalty's gradient until the freeze (for DoRA
    that of eta R, Eq. 10), once a step, and clips the gradient's norm at `trainer.clip`.
    `FiniteCheck.check` (nonfinite.py) stops the run here, before the update, where a loss or the
    norm is not finite.
4.  AdamW takes its step, unless a loss scaler skips it because a gradient overflowed.
    `OptimizerSteps` (optimizer_steps.py) knows whether it did. What follows asks it, and does
    nothing for a step that was not taken.
5.  `FineTuning.lr_scheduler_step` moves the learning rate on.
6.  `RankAllocation.on_train_batch_end` (rank_allocation.py) calls the allocator's `step`: it scores
    the components, smooths the scores, and where the schedule says so prunes to the budget.
    At the freeze it makes the kept set final, and `cut_run` (cut.py) takes the rest away.
7.  `WeightAverage.on_train_batch_end` (averaging.py) takes the pruned weights into the average.
8.  `FineTuning.on_train_batch_end` logs, every `trainer.log_every` steps.

Then, if they are due, come the validation, which sees the pruned (and averaged) model, and the
checkpoint. tests/training/test_steps.py writes these steps as a plain loop, checks that a run
ends with the same weights, and checks that a run makes these calls in this order.
"""
