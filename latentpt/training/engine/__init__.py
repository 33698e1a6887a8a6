"""Everything DeepSpeed: processes, the configuration generated from ours, the step, the training state as whole tensors.

    processes.py    joining the process group
    settings.py     the dictionary for DeepSpeed
    optimizers.py   which parameters are updated how; Muon over partitions
    layout.py       where the fp32 masters of every parameter lie, at every ZeRO stage
    birth.py        parameters of stage 3 that are made where they live
    traces.py       ZeRO-3's order of fetching, one for every order of passes
    engine.py       the engine: forward and backward, the step, state in and out

This is the only room that imports deepspeed, and the home of the workarounds for it:

* a process without a launcher makes a group of its own (DeepSpeed would look for MPI);
* on a CPU, the shared-memory extension that takes minutes to compile is not built;
* precision: bf16 with ZeRO 1 to 3 keeps bf16 parameters beside fp32 master weights and accumulates gradients in fp32.
  Stage 0 can only accumulate bf16 gradients in bf16, so there the parameters stay fp32 and the forward runs under
  autocast;
* stage 0 in fp32 would apply a non-finite gradient, which the other stages skip: we clip and skip ourselves there;
* parameters that a step does not use (a fusion of states in a step of one pass) have a gradient of zero, in every stage;
* DeepSpeed's Muon orthogonalises before it clips, in half precision alone, and compiles when it is imported: ours
  works on the partitions that ZeRO makes of any optimizer's state;
* the training state is read and written as whole tensors, parameter by parameter (`Engine.gather`,
  `Engine.scatter`), because DeepSpeed's own checkpoints are bound to the number of ranks, and its universal ones
  resume ZeRO-3 wrongly when there are several parameter groups.
"""

from latentpt.training.engine.engine import Engine
from latentpt.training.engine.processes import start_processes

__all__ = ["Engine", "start_processes"]
