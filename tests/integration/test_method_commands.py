"""The method's two commands as its authors type them, and the defects of an earlier attempt that cannot come back.

Where each of the known defects is guarded:

1.  teacher not loaded, in silence: test_sbi_weights.py (every tensor or a refusal), the gate below
2.  student not pretrained, in silence: test_networks.py (foreign files are recognised, unfitting ones refused)
3.  stage 2 without stage 1, alpha's end not read: below; test_config.py (both ends are honoured)
4.  weights left perturbed after a bad second pass: test_sam.py (a bad second pass leaves weights where they were)
5.  the NaN guard crashes the loss scaler: test_sam.py (same test, with a scaler)
6.  clipping before SAM's ascent: test_sam.py (rule 6)
7.  BatchNorm moved by both passes and by recomputation: test_sam.py (rule 2)
8.  resume without the base optimizer's momentum: test_resume.py, test_sam.py (resume from plain state dicts)
9.  the network cannot load its own distilled checkpoints: below
10. data, size and padding other than the teacher's: test_sbi_weights.py (same logits at 380 px), test_stages.py
    (another size is refused)
11. weights quantised without a look at the AUC: nothing here quantises yet
12. a scaled first gradient, no decay of the rate: test_sam.py (a loss scale changes nothing), test_loop.py (schedules)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.checkpoint import load_detector, ranked_weights

Script = Callable[..., tuple[int, str, str]]
Written = Callable[..., Path]


def newest(folder: Path, name: str) -> Path:
    return sorted((folder / "output").glob(f"{name}_*"))[-1]


@pytest.mark.slow
def test_the_two_commands_of_the_method(run_script: Script, written: Written, tmp_path: Path) -> None:
    config = written(
        teacher_weights="output/teacher_*/weights/BEST.pth",
        pretrained_student_weights="output/pretrain_mobilevit_*/weights/BEST.pth",
        epochs=2,
    )
    for script, *arguments in (
        ("stillface.py", "train", "teacher", config, "-n", "teacher"),
        ("train_student_only.py", config, "-n", "pretrain_mobilevit"),
        ("main_distillation.py", config, "-n", "distill_mobilevit"),
    ):
        code, out, err = run_script(script, *arguments)
        assert code == 0, out + err
    stage1 = ranked_weights(newest(tmp_path, "pretrain_mobilevit") / "weights")[0]
    run = newest(tmp_path, "distill_mobilevit")
    names = {path.name for path in run.iterdir()}
    assert {
        "config.json",
        "run.json",
        "metrics.jsonl",
        "tensorboard",
        "curves.png",
        "done.json",
        "weights",
    } <= names
    facts = json.loads((run / "run.json").read_text())
    assert facts["weights"]["source"] == f"file:{stage1.relative_to(tmp_path)}"
    assert facts["weights"]["matched"] == facts["weights"]["total"] > 0
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert "main_distillation.py" in facts["command"]
    assert len(facts["data_hash"]) == 64


def test_defect_03_stage_2_does_not_start_without_stage_1_unasked(
    run_script: Script, written: Written, tmp_path: Path
) -> None:
    code, _, err = run_script(
        "main_distillation.py", written(pretrained_student_weights=None, loss="none"), "-n", "x"
    )
    assert code == 2
    assert "pretrained_student_weights" in err
    assert not (tmp_path / "output").exists()
    code, _, err = run_script("main_distillation.py", written(loss="none", epochs=1), "-n", "x")
    assert code == 0, err


def test_defect_01_a_teacher_that_knows_nothing_does_not_teach(
    run_script: Script, written: Written, tmp_path: Path
) -> None:
    code, _, err = run_script("stillface.py", "train", "teacher", written(epochs=1, lr=1e-9), "-n", "teacher")
    assert code == 0, err
    config = written(teacher_weights="output/teacher_*/weights/BEST.pth", min_teacher_auc=1.0)
    code, _, err = run_script("main_distillation.py", config, "-n", "x")
    assert code == 2
    assert "min_teacher_auc" in err
    assert not list((tmp_path / "output").glob("x_*/weights/*"))


def test_defect_09_a_checkpoint_loads_strictly_into_the_network_it_describes(
    run_script: Script, written: Written, prepared: Path, tmp_path: Path
) -> None:
    code, _, err = run_script("train_student_only.py", written(epochs=1, dropout=0.3), "-n", "x")
    assert code == 0, err
    best = ranked_weights(newest(tmp_path, "x") / "weights")[0]
    detector, info = load_detector(best)
    stored = torch.load(best, weights_only=True)["model"]
    assert detector.state_dict().keys() == stored.keys()
    assert info.network.dropout == pytest.approx(0.3)
    code, out, err = run_script(
        "stillface.py", "evaluate", best, prepared, "--split", "val", "--self-blended", "--out", "report"
    )
    assert code == 0, err
    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert report["checkpoint"]["sha256"] == info.sha256
    assert "not accuracy on deepfakes" in out
