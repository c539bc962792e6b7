"""Where checkpoints are found."""

from kakao_models.checkpoint import hub


def test_a_bundled_checkpoint_goes_by_its_name(tmp_path, monkeypatch):
    assert "align-tiny" in hub.bundled_checkpoints()
    assert hub.resolve("align-tiny") == str(hub.BUNDLED / "align-tiny")
    assert hub.resolve("kakaobrain/align-base") == "kakaobrain/align-base"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "align-tiny").mkdir()
    assert hub.resolve("align-tiny") == "align-tiny"  # a folder of that name wins
    assert hub.resolve(tmp_path) == str(tmp_path)
