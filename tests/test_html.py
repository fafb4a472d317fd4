"""What all pages share: the template engine, pictures inside the page, loss curves."""

from __future__ import annotations

import base64

import pytest
from jinja2 import UndefinedError

from mmdora.errors import MmdoraError
from mmdora.html import EVAL_LOSS, curve, data_uri, draw_curves, environment


def test_the_environment_escapes_and_refuses_unknown_names(tmp_path):
    (tmp_path / "a.j2").write_text("<p>{{ text }}</p>")
    template = environment(tmp_path).get_template("a.j2")
    assert template.render(text="<b>") == "<p>&lt;b&gt;</p>"
    with pytest.raises(UndefinedError, match="'text' is undefined"):
        template.render()


def test_a_data_uri_holds_the_bytes_and_their_type():
    kind, _, data = data_uri(b"\xff\0", "image/jpeg").partition(",")
    assert kind == "data:image/jpeg;base64" and base64.b64decode(data) == b"\xff\0"
    assert data_uri(b"").startswith("data:image/png;")


def test_a_curve_has_every_logged_loss_a_loss_of_zero_too(tmp_path):
    lines = ['{"step": 1, "loss": 2.5}', '{"step": 1, "eval_loss": 2}', '{"step": 2, "loss": 0.0}']
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    assert curve(tmp_path) == [(1, 2.5), (2, 0.0)]
    assert curve(tmp_path, EVAL_LOSS) == [(1, 2.0)]


def test_held_out_losses_are_dashed_and_ticks_are_plain_numbers():
    curves = {"run": [(1, 2.0), (2, 0.3), (3, 0.02)]}
    alone, both = draw_curves(curves), draw_curves(curves, {"run": [(1, 2.1), (3, 0.4)]}, width=11)
    assert both.count("stroke-dasharray") > alone.count("stroke-dasharray")
    assert ">0.05<" in alone and ">2<" in alone and "mathdefault" not in alone


def test_a_log_that_is_being_written_and_one_that_is_none(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    assert curve(tmp_path) == [(1, 2.5)]
    for text in ("no JSON\n", "[1]\n", '{"loss": 1}\n'):
        log.write_text(text)
        with pytest.raises(MmdoraError, match=r"log\.jsonl: not the log of a run"):
            curve(tmp_path)
    log.unlink()
    with pytest.raises(MmdoraError, match=r"log\.jsonl: no such log"):
        curve(tmp_path)


@pytest.mark.parametrize("points", [[(1, 2.0), (2, 0.0), (3, 1.0)], [(1, 0.0), (2, 0.0)], [(1, float("nan"))]])
def test_losses_of_zero_and_nan_are_drawn_without_a_warning(points):
    assert draw_curves({"run": points}).startswith("<svg")
