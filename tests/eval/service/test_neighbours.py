"""Nearest training images: the right ones, shown and explained."""

import base64

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from eval.cli.commands import main
from eval.service.neighbours import nearest
from tests.support.evaluation import make_run


def test_the_nearest_rows_are_scikit_learns():
    random = np.random.default_rng(0)
    queries, references = random.normal(size=(9, 6)), random.normal(size=(80, 6))
    distances, indices = NearestNeighbors(n_neighbors=5).fit(references).kneighbors(queries)
    found = nearest(queries, references, 5)
    assert np.array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-9)


def test_a_copy_is_its_own_neighbour_at_distance_zero():
    references = np.random.default_rng(0).normal(size=(30, 4))
    found = nearest(references[[7]], references, 3)
    assert found.indices[0, 0] == 7
    assert found.distances[0, 0] == pytest.approx(0, abs=1e-6)


def test_the_command_leaves_a_picture_that_the_report_shows(tmp_path, capsys):
    run = make_run(tmp_path / "runs", steps=(100,))
    protocol = ["--protocol", "fd_efficientnet_lite0_16_ddim2", "--device", "cpu", "--num-threads", "1"]
    assert main(["run", str(run), *protocol, "--num-bootstrap", "0"]) == 0
    assert main(["neighbours", str(run), *protocol]) == 0
    assert "typically" in capsys.readouterr().out
    [picture] = run.glob("evals/*/neighbours/*.png")
    assert Image.open(picture).size[0] >= 256
    assert main(["report", str(run), "--output", str(tmp_path / "report.html")]) == 0
    html = (tmp_path / "report.html").read_text()
    assert "Nearest training images" in html
    assert base64.b64encode(picture.read_bytes()).decode() in html
