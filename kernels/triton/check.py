"""Whether Triton takes a rule, told without a GPU and without a step."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.errors import CompilationError

from ..errors import RuleError
from ..lang import INTERPRETED
from ..rules import Rule
from .compile import twin
from .numbers import load_row

# What is compiled for: what a rule may say is the same for all.
TARGET = GPUTarget("cuda", 90, 32)
BLOCK = 128


@triton.jit
def rule_kernel(
    streams_ptr,  # [1 + STATES, BLOCK] in/out
    numbers_ptr,  # [COLUMNS]: the step, then what the rule reads
    RULE: tl.constexpr,
    NUMBERS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.arange(0, BLOCK)
    stored = ()
    for i in tl.static_range(STATES):
        stored = stored + (tl.load(streams_ptr + (i + 1) * BLOCK + lane),)
    p = tl.load(streams_ptr + lane)
    p, states = RULE(p, p, stored, NUMBERS(*load_row(numbers_ptr, 0, COLUMNS)), tl.load(numbers_ptr))
    tl.store(streams_ptr + lane, p)
    for i in tl.static_range(STATES):
        tl.store(streams_ptr + (i + 1) * BLOCK + lane, states[i])


def check(rule: Rule) -> None:
    """Compiles a rule for both of its precisions; where Triton's interpreter is on, and nothing compiles, runs it.

    Raises:
        RuleError: with the line, and what the compiler says.
    """
    constants = {
        "RULE": twin(rule.function),
        "NUMBERS": rule.given.type,
        "COLUMNS": 1 + len(rule.given.picks),
        "STATES": len(rule.states),
        "BLOCK": BLOCK,
    }
    for dtype, name in ((torch.float32, "*fp32"), (torch.float64, "*fp64")):
        try:
            if INTERPRETED:
                streams = torch.ones((1 + len(rule.states)) * BLOCK, dtype=dtype)
                rule_kernel[(1,)](streams, torch.ones(constants["COLUMNS"], dtype=dtype), **constants)
            else:
                signature = {"streams_ptr": name, "numbers_ptr": name, **dict.fromkeys(constants, "constexpr")}
                triton.compile(ASTSource(rule_kernel, signature, constants), target=TARGET)
        except CompilationError as error:
            raise _refusal(rule, error) from error
        except triton.runtime.errors.InterpreterError as error:
            raise RuleError(rule.function, None, f"Triton does not run it: {error}", "see `rule` for words") from error


def _refusal(rule: Rule, error: CompilationError) -> RuleError:
    inner: BaseException = error
    while isinstance(inner.__cause__, CompilationError):
        inner = inner.__cause__
    lines = (getattr(inner, "src", None) or "").split("\n")
    place = getattr(getattr(inner, "node", None), "lineno", 0) - 1
    text = lines[place].strip() if 0 <= place < len(lines) else ""
    said = str(getattr(inner, "error_message", None) or inner.__cause__ or inner)
    return RuleError(rule.function, None, f"Triton does not compile `{text}`: {said}", "see `rule` for words")
