"""What is run: models by shape, batches of real lengths, and refusals in one line."""

import pytest
import torch
from transformers import RobertaConfig, RobertaModel

from sparsebert.bench.workload import MAX_BATCHES, Workload, read_lengths
from sparsebert.report.format import workload_title


def test_shapes_are_built_with_random_weights_that_repeat():
    first, second = (Workload("bert-tiny", seed=3).load_model() for _ in range(2))
    other = Workload("bert-tiny", seed=4).load_model()
    weight, again, different = (m.encoder.layer[0].output.dense.weight for m in (first, second, other))
    assert torch.equal(weight, again)
    assert not torch.equal(weight, different)
    assert weight.shape == (128, 512)
    assert not first.training


def test_building_a_model_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Workload("bert-tiny").load_model()
    assert torch.equal(torch.rand(3), expected)


def test_batches_pad_to_their_own_longest_sequence():
    workload = Workload("bert-tiny", batch=2, lengths=(3, 5, 4))
    batches = workload.make_batches(vocabulary=30522)
    assert workload.shapes == ((2, 5), (1, 4))
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 5), (1, 4)]
    assert batches[0]["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batches[0]["input_ids"][0, 3:].tolist() == [0, 0]
    assert (workload.real_tokens, workload.padded_tokens) == (12, 14)


def test_the_record_tells_random_weights_from_real_ones_and_no_path(tmp_path):
    assert Workload("bert-base").record()["random_weights"] is True
    folder = tmp_path / "my-bert"
    folder.mkdir()
    record = Workload(str(folder)).record()
    assert record["model"] == "my-bert"
    assert record["random_weights"] is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch must be a positive integer, got 0"),
        ({"threads": 0}, "threads must be a positive integer, got 0"),
        ({"lengths": ()}, "at least one token"),
        ({"lengths": (4, 0)}, "at least one token"),
        ({"dtype": "float23"}, "did you mean 'float32'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"graphs": True}, r"^CUDA graphs \(--graphs\) need --device cuda; the device is cpu$"),
    ],
)
def test_impossible_workloads_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Workload("bert-tiny", **changes)


def test_graphs_are_named_in_records_and_titles_where_there_are_any():
    workload = Workload("bert-tiny")
    assert "graphs" not in workload.record()
    assert "graphs" not in workload_title(workload.record())
    assert workload_title(workload.record() | {"graphs": True}).endswith("1 thread, CUDA graphs")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no CUDA GPU here"):
        Workload("bert-tiny", device="cuda")


@pytest.mark.parametrize("device", ["cuda:2", "cuda:x", "cuda:", "cuda:-1"])
def test_a_gpu_beyond_those_that_are_there_is_refused(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Workload("bert-tiny", device="cuda:1").device == "cuda:1"
    with pytest.raises(ValueError, match=f"^device is '{device}'; the GPUs here are cuda:0, cuda:1$"):
        Workload("bert-tiny", device=device)


def test_a_model_that_cannot_be_found_offers_the_nearest_shape():
    with pytest.raises(ValueError, match="did you mean 'bert-base'") as refused:
        Workload("bert-bas").load_model()
    assert "\n" not in str(refused.value)


def test_sequences_longer_than_the_model_reads_are_refused():
    with pytest.raises(ValueError, match="513 tokens are too long for bert-tiny: its limit is 512"):
        Workload("bert-tiny", lengths=(513,)).load_model()


def test_roberta_reads_fewer_tokens_than_its_table_has_rows(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = RobertaConfig(vocab_size=50, max_position_embeddings=18, pad_token_id=1, **sizes)
    RobertaModel(config).save_pretrained(tmp_path)
    assert Workload(str(tmp_path), lengths=(16,)).load_model()
    with pytest.raises(ValueError, match=r"17 tokens are too long for .*: its limit is 16"):
        Workload(str(tmp_path), lengths=(17,)).load_model()


def test_weights_quantised_by_another_library_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "bert", "quantization_config": {"quant_method": "gptq"}}'
    )
    with pytest.raises(
        ValueError, match=r"quant_method in its config\.json is 'gptq'; expected plain weights"
    ):
        Workload(str(tmp_path)).load_model()


def test_lengths_from_integers(tmp_path):
    file = tmp_path / "lengths.txt"
    file.write_text("7\n\n600\n12\n")
    assert read_lengths(file, "bert-tiny", batch=1, limit=512) == (7, 512, 12)


def test_lengths_from_sentences_of_a_shape_count_words_marks_and_special_tokens(tmp_path):
    file = tmp_path / "sentences.txt"
    file.write_text("Mind the step!\n12\n")
    assert read_lengths(file, "bert-tiny", batch=1, limit=512) == (6, 3)


def test_a_long_file_is_sampled_in_whole_batches_of_neighbours(tmp_path):
    file = tmp_path / "lengths.txt"
    file.write_text("\n".join(str(length) for length in range(1, 100)))
    lengths = read_lengths(file, "bert-tiny", batch=3, limit=512)
    assert len(lengths) == 3 * MAX_BATCHES
    assert all(
        b - a == 1
        for start in range(0, len(lengths), 3)
        for a, b in zip(lengths[start : start + 2], lengths[start + 1 : start + 3], strict=True)
    )
    assert lengths == read_lengths(file, "bert-tiny", batch=3, limit=512)


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty"), ("5\n-3\n", "entry 2 is -3"), ("0", "entry 1 is 0")]
)
def test_files_without_lengths_are_refused(tmp_path, text, message):
    file = tmp_path / "lengths.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_lengths(file, "bert-tiny", batch=1, limit=512)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read lengths from .*missing\.txt"):
        read_lengths(tmp_path / "missing.txt", "bert-tiny", batch=1, limit=512)
