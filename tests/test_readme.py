"""What the README tells people to type and to paste works as it stands there."""

import json
import re
import subprocess
import threading
from pathlib import Path

import pytest
from support.consul import find_consul, why_no_consul
from support.lab import NODE, REFLECTOR, Lab
from support.programs import ROOT

README = (ROOT / "README.md").read_text()
RECIPE = re.search(r"```json\n(.*?)```", README, re.DOTALL)
EXAMPLE = re.search(r"```python\n(.*?)```", README, re.DOTALL)


def recipe() -> str:
    assert RECIPE is not None
    return RECIPE[1]


@pytest.mark.skipif(bool(why_no_consul()), reason=why_no_consul() or "none")
def test_consul_accepts_the_recipe(tmp_path: Path) -> None:
    consul = find_consul()
    assert consul is not None
    file = tmp_path / "checks.json"
    settings = {**json.loads(recipe()), "data_dir": str(tmp_path), "bind_addr": "127.0.0.1"}
    file.write_text(json.dumps(settings))
    done = subprocess.run([consul, "validate", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_recipes_script_tells_the_truth(lab: Lab) -> None:
    service = lab.serve("127.0.0.1")
    running = lab.reflector(f"{REFLECTOR}:0:{service.port}")
    arguments = json.loads(recipe())["services"][1]["check"]["args"]
    script = arguments[-1].replace("reflector.example/10022", f"{REFLECTOR}/{running.port}")
    assert script != arguments[-1]

    def run() -> "subprocess.CompletedProcess[str]":
        command = [*arguments[:-1], script]
        return subprocess.run(command, capture_output=True, text=True, timeout=30)

    def greet(banner: bytes) -> None:
        peer = service.accept()
        peer.send(banner)
        peer.expect_fin()
        peer.close()

    for banner, code in ((b"SSH-2.0-test\r\n", 0), (b"220 another service\r\n", 2)):
        greeter = threading.Thread(target=greet, args=(banner,))
        greeter.start()
        done = run()
        greeter.join()
        assert (done.returncode, code == 0) == (code, done.stdout.startswith("SSH-2.0-test"))
    service.close()
    assert run().returncode == 2


def test_the_python_example_runs() -> None:
    assert EXAMPLE is not None
    names: dict[str, object] = {}
    exec(EXAMPLE[1].replace("10022:22", f"{NODE}:0:22"), names)


def test_the_figures_name_the_command_that_makes_them() -> None:
    if not (ROOT / "dev").exists():
        pytest.skip("this tree has no ./dev")
    for command in re.findall(r"`\./dev (\w+)", README):
        listed = subprocess.run([str(ROOT / "dev"), "help"], capture_output=True, text=True).stdout
        assert re.search(rf"^  {command}\b", listed, re.MULTILINE), command
