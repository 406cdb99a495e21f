"""Weight files of any origin, read without a model: tensors by name, and the encoder that the names hold.

| module | job |
|---|---|
| ``safe_pickle`` | files of ``torch.save``, without running code |
| ``plain_tensors`` | tensors that hold the values that they claim |
| ``weight_files`` | the tensors of a model's folder, by name |
| ``tensor_names`` | names of wrappers and training code -> names of the model |
| ``pruned_pairs`` | ``weight_orig`` and ``weight_mask`` of ``torch.nn.utils.prune`` |
| ``pruned_heads`` | matrices without the heads that a config.json calls pruned |
"""
