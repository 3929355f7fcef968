"""Config files that are broken or made to exhaust memory: one line each that names the file, within seconds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from conftest import LAB

from experiments.planning.pipeline import build
from maskgit_core.errors import MaskgitError

HEAD = "# @package _global_\nplugins: [toylab]\n"
STEPS = "pipeline: {steps: {numbers: {stage: numbers}}}\n"
ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
INTERPOLATIONS = "".join(f"v{i}: '{f'${{v{i - 1}}}' * 10}'\n" for i in range(1, 15)) + "v0: '0123456789'\n"

FILES = {
    "a_number": "5\n",
    "a_list": "- 1\n- 2\n",
    "text": "just words\n",
    "not_yaml": "a: [1, 2\nb: {",
    "nul": "a: \x00\n",
    "self_alias": f"{HEAD}{STEPS}numbers: &n {{count: *n}}\n",
    "alias_bomb": f"{HEAD}{STEPS}{ALIASES}",
    "deep": f"{HEAD}{STEPS}numbers: {'{a: ' * 500}1{'}' * 500}\n",
    "interpolation_bomb": f"{HEAD}{STEPS}{INTERPOLATIONS}description: '${{v14}}'\n",
    "interpolation_circle": f"{HEAD}{STEPS}description: '${{numbers.count}}'\nnumbers: {{count: '${{description}}'}}\n",
    "interpolation_nowhere": f"{HEAD}{STEPS}numbers: {{count: '${{nowhere.at.all}}'}}\n",
    "long_number": f"{HEAD}{STEPS}numbers: {{count: {'1' * 5000}}}\n",
    "scalar_pipeline": f"{HEAD}pipeline: 5\n",
    "scalar_steps": f"{HEAD}pipeline: {{steps: 5}}\n",
    "scalar_step": f"{HEAD}pipeline: {{steps: {{numbers: 5}}}}\n",
    "scalar_needs": f"{HEAD}pipeline: {{steps: {{numbers: {{stage: numbers, needs: 5}}}}}}\n",
    "scalar_block": f"{HEAD}{STEPS}numbers: 5\n",
    "scalar_resources": f"{HEAD}{STEPS}resources: 5\n",
    "scalar_resource": f"{HEAD}{STEPS}resources: {{numbers: 5}}\n",
    "nan_resource": f"{HEAD}{STEPS}resources: {{numbers: {{mem_gb: .nan}}}}\n",
    "scalar_tracking": f"{HEAD}{STEPS}tracking: 5\n",
    "scalar_launcher": f"{HEAD}{STEPS}launcher: 5\n",
    "scalar_plugins": "# @package _global_\nplugins: 5\npipeline: {steps: {numbers: {stage: numbers}}}\n",
    "scalar_sweep": f"{HEAD}{STEPS}sweep: 5\n",
    "scalar_grid": f"{HEAD}{STEPS}sweep: {{grid: 5}}\n",
    "scalar_list": f"{HEAD}{STEPS}sweep: {{list: 5}}\n",
    "scalar_exclude": f"{HEAD}{STEPS}sweep: {{exclude: 5}}\n",
    "scalar_defaults": f"{HEAD}defaults: 5\n{STEPS}",
    "absent_default": f"{HEAD}defaults: [nowhere]\n{STEPS}",
    "infinite": f"{HEAD}{STEPS}numbers: {{scale: .inf}}\n",
    "huge_sweep": f"{HEAD}{STEPS}sweep: {{grid: {{numbers.count: {list(range(1, 400))}, "
    f"numbers.offset: {list(range(400))}}}}}\n",
    "list_keys": f"{HEAD}{STEPS}? [1, 2]\n: 3\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_gets_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "hostile.yaml").write_text(FILES[name])
    began = time.process_time()
    with pytest.raises(MaskgitError) as caught:
        build(["experiment=hostile", "paths.store=/nonexistent/store"], [tmp_path, LAB])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert time.process_time() - began < 5


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "hostile.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(MaskgitError, match=r"hostile\.yaml: is not YAML"):
        build(["experiment=hostile", "paths.store=/nonexistent/store"], [tmp_path])
