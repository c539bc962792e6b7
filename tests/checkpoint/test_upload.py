"""Uploads to a Hub on this machine: what goes, what stays, and failures."""

import pytest

from kakao_models.checkpoint.upload import check_name, check_token, upload

OLD = {".gitattributes": b"", "model.safetensors": b"0", "tf_model.h5": b"0", "config.json": b"{}"}


@pytest.fixture
def folder(tmp_path):
    for name in ("model-00001-of-00001.safetensors", "config.json"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text(name)
    return tmp_path / "out"


def test_an_upload_is_one_commit_that_keeps_what_is_not_older_weights(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.tokens.add("hf_mine")
    hub.commit("me/old", OLD)
    done = upload(folder, "me/old")
    repository = hub.repositories["me/old"]
    files = repository.commits[repository.branches["main"]]
    assert sorted(files) == [".gitattributes", "config.json", "model-00001-of-00001.safetensors", "tf_model.h5"]
    assert files["config.json"] == b"config.json" and len(repository.messages) == 1
    assert done.kept == ["tf_model.h5"] and done.changed and repository.branches["main"] in done.url
    assert upload(folder, "me/new", private=True).kept == []


def test_of_two_uploads_at_once_the_second_fails_as_a_whole(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.tokens.add("hf_mine")
    hub.commit("me/old", OLD)
    failure = hub.failure

    def meanwhile(request):  # after this upload has looked at the repository
        if "/commit/" in request and len(hub.repositories["me/old"].commits) == 1:
            hub.commit("me/old", OLD | {"model-00001-of-00002.safetensors": b"1"})
        return failure(request)

    monkeypatch.setattr(hub, "failure", meanwhile)
    with pytest.raises(
        OSError, match="me/old: the Hub refused the upload: the repository changed during the upload.*again"
    ):
        upload(folder, "me/old")
    repository = hub.repositories["me/old"]
    assert "model.safetensors" in repository.commits[repository.branches["main"]] and not repository.messages


def test_a_wrong_token_and_a_wrong_name_are_known_before_an_upload(hub, folder, monkeypatch):
    with pytest.raises(OSError, match="needs a token. Run `hf auth login`"):
        check_token()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(OSError, match="refuses the token.*401.*HF_TOKEN"):
        check_token()
    for wrong in ("a/b/c", "-x"):
        for use in (check_name, lambda name: upload(folder, name)):
            with pytest.raises(ValueError, match="can't be the name of a repository, expected owner/name"):
                use(wrong)
    hub.fail("POST /api/repos/create", status=403)
    with pytest.raises(
        OSError, match=r"403\). Use a token with write access to this repository, or upload a pull request"
    ):
        upload(folder, "me/new")
    hub.tokens.add("hf_wrong")
    check_token()
