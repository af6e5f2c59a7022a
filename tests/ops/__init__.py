"""The ops of tvkernels, a folder each, with the same files:

    common.py           inputs of the op, and a naive float64 form to compare with
    test_contract.py    kernel and reference at every option, dtype and layout, against float64
    test_gradients.py   more of the backward, and finite differences
    test_laws.py        equations that hold for any input, driven by hypothesis
    test_errors.py      the sentence for each wrong argument
    test_kernel.py      what only the kernel has: tiles, launches, operators, offsets past 2^31

and some have more: attention_topk/test_goldens.py, causal_conv1d/test_update.py and
test_varlen_states.py; ssd/test_layouts.py (strides, chunk lengths, memory, compilation),
test_handover.py (a prompt in chunks, then steps), test_large_heads.py (shared memory).

What holds for all ops alike lies beside the folders:

    common.py                   dtypes, recorded tensors, settings of laws, random inputs
    formulas.py                 every op in float64, written apart from the references
    test_every_configuration.py every configuration is forced, on poisoned results
    test_every_op.py            autocast, empty batches, results that are modified in place
    test_wrong_arguments.py     each argument replaced by None and by values of a wrong kind
    test_not_finite.py          NaN and infinity, as the formulas have them
    test_compile.py             torch.compile at several lengths
    test_lengths.py             launches at the 9B model's sizes: no recompile by length
    test_selection_memory.py    memory of a compression stage at an hour of video
    test_split_conv1d_scan.py   the fused inside of a Mamba-2 mixer
    test_without_float64.py     a device without float64
"""
