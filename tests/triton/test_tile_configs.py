"""Configurations: the nearest measured one, else that of the rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsebert_kernels.cuda import tile_configs
from sparsebert_kernels.cuda.tile_configs import configuration, measured, nearest, record
from sparsebert_kernels.cuda.tile_rule import Configuration, Shape, by_rule

SHAPE = Shape("panel forward", 64, 64, 4096, 12, 30, "bfloat16")
CPU = torch.device("cpu")


def config(block_m: int) -> Configuration:
    return Configuration(block_m, 8, 4, 3)


class TestNearest:
    def test_is_the_shape_itself_where_it_was_measured(self) -> None:
        entries = ((replace(SHAPE, tokens=2048), config(64)), (SHAPE, config(128)))
        assert nearest(SHAPE, entries) == config(128)

    def test_tokens_decide_before_the_size_of_the_weight(self) -> None:
        entries = (
            (replace(SHAPE, tokens=512), config(64)),
            (replace(SHAPE, panels=48, tiles=60), config(128)),
        )
        assert nearest(SHAPE, entries) == config(128)

    def test_steps_of_a_panel_decide_before_the_number_of_panels(self) -> None:
        entries = (
            (replace(SHAPE, tiles=60), config(64)),
            (replace(SHAPE, panels=24, tiles=60), config(128)),
        )
        assert nearest(SHAPE, entries) == config(128)

    @pytest.mark.parametrize(
        "other",
        [{"kernel": "panel values gradient"}, {"panel_rows": 32}, {"dtype": "float32"}],
        ids=str,
    )
    def test_never_has_another_kernel_height_or_dtype(self, other: dict[str, object]) -> None:
        assert nearest(SHAPE, ((replace(SHAPE, **other), config(64)),)) is None

    def test_takes_weights_that_keep_nothing(self) -> None:
        assert nearest(replace(SHAPE, tiles=0), ((SHAPE, config(64)),)) == config(64)


class TestFiles:
    def test_are_read_by_the_name_of_the_device(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tile_configs, "FOLDER", tmp_path)
        entries = [(SHAPE, config(128)), (replace(SHAPE, tokens=512), config(64))]
        (tmp_path / "nvidia_h200_141gb.json").write_text(record("NVIDIA H200-141GB", entries))
        assert measured("NVIDIA H200-141GB") == tuple(entries)
        assert measured("NVIDIA A100") == ()

    def test_of_older_versions_have_one_panel_a_program(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tile_configs, "FOLDER", tmp_path)
        text = record("GPU", [(SHAPE, config(128))])
        assert ', "neighbours": 1' in text
        (tmp_path / "gpu.json").write_text(text.replace(', "neighbours": 1', ""))
        assert measured("GPU") == ((SHAPE, config(128)),)

    def test_that_hold_something_else_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tile_configs, "FOLDER", tmp_path)
        (tmp_path / "gpu.json").write_text('{"configurations": [{"kernel": "panel forward"}]}')
        with pytest.raises(ValueError, match=r"gpu\.json does not hold measured configurations"):
            measured("GPU")

    def test_of_the_package_can_be_read(self) -> None:
        for path in tile_configs.FOLDER.glob("*.json"):
            assert measured(path.stem)


def test_lengths_up_to_the_next_power_of_two_select_once(monkeypatch: pytest.MonkeyPatch) -> None:
    selected = []
    monkeypatch.setattr(tile_configs, "by_rule", lambda shape, memory: selected.append(shape) or config(64))
    for tokens in range(2049, 4097, 37):
        configuration(replace(SHAPE, tokens=tokens, tiles=31), CPU)
    assert selected == [replace(SHAPE, tiles=31)]


def test_a_device_without_a_file_gets_the_rules() -> None:
    assert configuration(SHAPE, CPU) == by_rule(SHAPE)
