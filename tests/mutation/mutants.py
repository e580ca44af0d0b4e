"""Every small mistake that a module could hold: cosmic-ray's operators, of those the ones that mean something here.

Texts are not changed: what messages say is for readers, and tests would only repeat them. Annotations neither, which
are not run. An operator becomes its nearest neighbor, not every other one: most of these would raise at once, and the
share of mutants that are caught would say less. Two kinds are added to cosmic-ray's: other augmented assignments, and
calls left out whose result nobody takes.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.operators.provider import OperatorProvider

BINARY = "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_Mul Pow_Mul BitAnd_BitOr BitOr_BitAnd"
COMPARED = "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is"
NAMES = [
    *(f"ReplaceBinaryOperator_{pair}" for pair in BINARY.split()),
    *(f"ReplaceComparisonOperator_{pair}" for pair in COMPARED.split()),
    *(f"ReplaceUnaryOperator_Delete_{one}" for one in ("Not", "Invert", "USub")),
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ExceptionReplacer", "NumberReplacer"),
    *("RemoveDecorator", "ZeroIterationForLoop"),
]
AUGMENTED = {"+=": "-=", "-=": "+=", "*=": "/=", "/=": "*=", "|=": "&=", "&=": "|="}

OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Eq: ast.NotEq, ast.Lt: ast.GtE, ast.Gt: ast.LtE}
OPPOSITE |= {ast.Is: ast.IsNot, ast.In: ast.NotIn}
OPPOSITE |= {new: old for old, new in OPPOSITE.items()}


@dataclass(frozen=True)
class Mutant:
    """One changed module."""

    function: str  # in which, with its class; "" outside of all
    first_line: int  # of the function, decorators included, as in its code object; 0 outside of all
    was: str  # the lines that were changed
    now: str
    source: str  # the whole module

    @property
    def key(self) -> str:
        """What it is called wherever its line is: reasons outlive changes elsewhere in the module."""
        return f"{self.function}: {self.was} -> {self.now}"


class Augmented:
    """An augmented assignment with another operator."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type == "operator" and node.value in AUGMENTED:
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.value = AUGMENTED[node.value]
        return node


class LeftOut:
    """A statement that is a call alone."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type == "simple_stmt" and node.children[0].type in ("atom_expr", "power"):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        prefix = node.get_first_leaf().prefix
        return get_ast(f"{prefix}pass\n")


def of(source: str) -> dict[str, Mutant]:
    """The mutants of a module, each once, by what they are called; what does not compile or does not differ is none."""
    provider = OperatorProvider()
    operators = [*(provider[name]() for name in NAMES), Augmented(), LeftOut()]
    functions = _functions(source)
    meant = {_meaning(source)}
    found: dict[str, Mutant] = {}
    for operator in operators:
        places = sum(len(list(operator.mutation_positions(node))) for node in ast_nodes(get_ast(source)))
        for place in range(places):
            changed = MutationVisitor.mutate_code(source, operator, place)
            try:
                meaning = _meaning(changed)
            except SyntaxError:
                continue
            if meaning not in meant:
                meant.add(meaning)
                mutant = _mutant(source, changed, functions)
                again = sum(one.key == mutant.key for one in found.values())
                found[f"{mutant.key} ({again + 1})" if again else mutant.key] = mutant
    return found


def _meaning(source: str) -> str:
    tree = _Plain().visit(ast.parse(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


class _Plain(ast.NodeTransformer):
    """`not a == b` is `a != b`."""

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        inside = node.operand
        if isinstance(node.op, ast.Not) and isinstance(inside, ast.Compare) and len(inside.ops) == 1:
            opposite = OPPOSITE[type(inside.ops[0])]()
            return ast.Compare(inside.left, [opposite], inside.comparators)
        return node


def _functions(source: str) -> list[tuple[int, int, str]]:
    """First and last line, and the name, of functions and methods, but not of functions in functions."""
    found = []
    for node in ast.parse(source).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        for one in inside:
            if isinstance(one, ast.FunctionDef):
                first = min([one.lineno, *(decorator.lineno for decorator in one.decorator_list)])
                name = f"{node.name}.{one.name}" if isinstance(node, ast.ClassDef) else one.name
                found.append((first, one.end_lineno or first, name))
    return found


def _mutant(source: str, changed: str, functions: list[tuple[int, int, str]]) -> Mutant:
    before, after = source.splitlines(), changed.splitlines()
    edits = [edit for edit in difflib.SequenceMatcher(None, before, after, False).get_opcodes() if edit[0] != "equal"]
    first, last = edits[0][1], edits[-1][2]
    was = " ".join(" ".join(before[first:last]).split())
    now = " ".join(" ".join(after[edits[0][3] : edits[-1][4]]).split())
    now = re.sub(r"(?<=[\[(])(-?) (?=-?\d)", r"\1", now)  # cosmic-ray writes a space before each number
    where = next(((start, name) for start, end, name in functions if start <= first + 1 <= end), (0, ""))
    return Mutant(where[1], where[0], was, now, changed)
