import os
import socket
import subprocess
import sys

import pytest
import torch
from torch import nn

from resnet_ft import ParameterError, configure_engine, describe_device
from resnet_ft.engine import accelerator, device, prepared


def test_there_is_one_accelerator():
    assert accelerator() is accelerator()


def test_the_device_is_described_for_a_person():
    assert describe_device().startswith(device().type)
    if not torch.cuda.is_available():
        assert describe_device().endswith("full precision")


def test_a_prepared_model_is_unwrapped_at_the_end():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    forward = model.forward
    with prepared(model, optimizer) as (net, _):
        assert net(torch.ones(1, 2).to(device())).shape == (1, 2)
    assert model.forward == forward
    assert not accelerator()._models


def of_a_new_process(code, **environment):
    """The output of a process that has not used its device yet."""
    code = f"from resnet_ft import ParameterError, configure_engine, engine\n{code}"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.splitlines()


def test_precision_is_chosen_by_name():
    code = """
configure_engine(mixed_precision="bf16", gradient_accumulation_steps=4)
print(engine.accelerator().mixed_precision, engine.accelerator().gradient_accumulation_steps)
import subprocess, sys
print(subprocess.run([sys.executable, "-c", '''
from resnet_ft import configure_engine, engine
configure_engine()
print(engine.accelerator().mixed_precision, engine.accelerator().gradient_accumulation_steps)
'''], capture_output=True, text=True, check=True).stdout)
"""
    assert of_a_new_process(code)[:2] == ["bf16 4", "bf16 4"]


def test_auto_is_the_choice_of_accelerate_launch():
    code = """
configure_engine()
print(engine.accelerator().mixed_precision, engine.accelerator().gradient_accumulation_steps)
"""
    launched = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}
    assert of_a_new_process(code, **launched) == ["bf16 2"]


def test_precision_cannot_change_while_a_process_lives():
    configure_engine()
    other = "no" if accelerator().mixed_precision == "bf16" else "bf16"
    with pytest.raises(ParameterError, match=f"Restart it .* to choose '{other}'"):
        configure_engine(mixed_precision=other)


@pytest.mark.parametrize("parts", [0, -1])
def test_wrong_choices_are_refused(parts):
    with pytest.raises(ParameterError, match="gradient_accumulation_steps"):
        configure_engine(gradient_accumulation_steps=parts)
    with pytest.raises(ParameterError, match='\'half\' should be "auto", "no", "fp16" or "bf16"'):
        configure_engine(mixed_precision="half")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in fp16")
def test_fp16_without_a_gpu_is_refused():
    with pytest.raises(ParameterError, match="needs a GPU"):
        configure_engine(mixed_precision="fp16")


REFUSAL = """
for use in (engine.accelerator, configure_engine):
    try:
        use()
    except ParameterError as error:
        print(error)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in fp16")
def test_a_precision_from_the_environment_is_refused_with_where_it_comes_from():
    expected = "The environment variable ACCELERATE_MIXED_PRECISION=fp16 needs a GPU. Remove it"
    refusals = of_a_new_process(REFUSAL, ACCELERATE_MIXED_PRECISION="fp16")
    assert [line[: len(expected)] for line in refusals] == [expected] * 2
    assert not any('"auto"' in line for line in refusals)  # which was chosen


def test_numbers_of_parts_from_the_environment_are_checked():
    refusals = of_a_new_process(REFUSAL, ACCELERATE_GRADIENT_ACCUMULATION_STEPS="0")
    expected = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=0 in the environment should be 1 or more."
    assert refusals == [expected] * 2


def test_a_process_that_cannot_be_connected_to_others_says_what_to_remove():
    once = REFUSAL.replace(", configure_engine", ",")
    (line,) = of_a_new_process(once, WORLD_SIZE="2", RANK="1")
    assert "connected to" in line and "remove WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR" in line


def test_who_waits_for_other_processes_says_so():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    left = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    code = "from resnet_ft import engine; engine._PATIENCE_S = 0.5; engine.accelerator()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, env=os.environ | left, stderr=subprocess.PIPE, text=True
    ) as process:
        waits = next(line for line in process.stderr or () if "waits" in line)
        process.kill()
    assert "Process 0 of 2, by RANK and WORLD_SIZE in the environment, has waited" in waits
    assert f"at 127.0.0.1:{port}" in waits and "remove WORLD_SIZE" in waits


def test_a_runtime_with_a_tpu_is_named_as_unsupported():
    code = "from resnet_ft import describe_device; print(describe_device())"
    (line,) = of_a_new_process(code, TPU_NAME="local")
    assert line == (
        "cpu (the TPU of this runtime is not supported: choose one with a GPU), full precision"
    )
