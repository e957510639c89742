"""Small mechanical mistakes, made by the syntax tree: what a rewrite gets wrong without meaning to.

    mutations(text)   -> [(line, description, text with the mistake)], in the order of the text

A comparison's boundary or direction, a sign, an operator, a number, a bool, two neighbouring
arguments, a statement, `and` for `or`, min for max, a condition, a default. Left alone is what only
people look at: strings, f-strings, annotations, what print, warn and raise say, and PICTURES.
"""

import ast

COMPARISONS = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}
NAMES = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum",
    "amin": "amax", "amax": "amin", "argmin": "argmax", "argmax": "argmin",
    "floor": "ceil", "ceil": "floor", "any": "all", "all": "any",
}
SAYING = {"print", "warn", "format", "fail", "show_line", "error"}
FLAGS = {"add", "add_argument"}  # of which a default counts, and no help
PICTURES = {"draw_curves", "draw_classes", "_panel", "CURVES", "preview", "figure",
            "background", "put", "Canvas", "SIZE", "HUMAN", "BEAST", "BIRD", "INK", "WOOD", "FUR",
            "DRAWN", "BONES", "TRIM", "CUES", "SCENES"}  # fmt: skip
HARMLESS = {"strict", "encoding", "non_blocking", "stacklevel"}  # keywords, where all goes well


def replaced(node, **fields):
    """The node as text, in parentheses, with other fields."""
    old = {name: getattr(node, name) for name in fields}
    for name, value in fields.items():
        setattr(node, name, value)
    text = ast.unparse(node)
    for name, value in old.items():
        setattr(node, name, value)
    return f"({text})"


def expressions(node):
    """[(description, text in the node's place)] of an expression."""
    if isinstance(node, ast.Compare):
        first = type(node.ops[0])
        return [
            (f"{first.__name__} -> {other.__name__}",
             replaced(node, ops=[other(), *node.ops[1:]]))
            for other in COMPARISONS[first]
        ]  # fmt: skip
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        other = OPERATORS[type(node.op)]
        return [(f"{type(node.op).__name__} -> {other.__name__}", replaced(node, op=other()))]
    if isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        return [(f"{type(node.op).__name__} -> {other.__name__}", replaced(node, op=other()))]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
        return [(f"{type(node.op).__name__} left out", f"({ast.unparse(node.operand)})")]
    if isinstance(node, ast.IfExp):
        return [("condition negated", replaced(node, body=node.orelse, orelse=node.body))]
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return [(f"{node.value} -> {not node.value}", str(not node.value))]
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        n = node.value
        others = [n + 1, 0 if n == 1 else 1] if isinstance(n, int) else [2 * n, n / 2]
        return [(f"{n!r} -> {other!r}", repr(other)) for other in dict.fromkeys(others)
                if other != n]  # fmt: skip
    if isinstance(node, ast.Call):
        return calls(node)
    return []


def calls(node):
    """Neighbouring positional arguments swapped, the function's counterpart called."""
    found = []
    plain = (ast.Name, ast.Attribute, ast.Constant, ast.Subscript)
    for i in range(len(node.args) - 1):
        pair = node.args[i : i + 2]
        if all(isinstance(a, plain) for a in pair) and ast.dump(pair[0]) != ast.dump(pair[1]):
            swapped = [*node.args[:i], pair[1], pair[0], *node.args[i + 2 :]]
            found.append((f"arguments {i + 1} and {i + 2} swapped", replaced(node, args=swapped)))
    if isinstance(node.func, ast.Name) and node.func.id in NAMES:
        other = NAMES[node.func.id]
        found.append((f"{node.func.id} -> {other}", replaced(node, func=ast.Name(other))))
    if isinstance(node.func, ast.Attribute) and node.func.attr in NAMES:
        other = NAMES[node.func.attr]
        function = ast.Attribute(node.func.value, other)
        found.append((f"{node.func.attr} -> {other}", replaced(node, func=function)))
    for i, keyword in enumerate(node.keywords):
        if keyword.arg and keyword.arg not in HARMLESS:
            rest = [*node.keywords[:i], *node.keywords[i + 1 :]]
            found.append((f"{keyword.arg}= left out", replaced(node, keywords=rest)))
    return found


def statements(node):
    """[(description, text in the node's place)] of a statement that can be dropped."""
    droppable = isinstance(node, (ast.Expr, ast.AugAssign, ast.Break, ast.Continue, ast.Delete))
    if isinstance(node, ast.Assign):
        droppable = isinstance(node.targets[0], (ast.Attribute, ast.Subscript))
    if not droppable:
        return []
    return [("statement dropped: " + ast.unparse(node)[:50], "pass")]


def names(node):
    """What a definition, or an assignment, gives a meaning to."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {part.id for target in node.targets for part in ast.walk(target)
                if isinstance(part, ast.Name)}  # fmt: skip
    return set()


def is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def called(node):
    """The name of what an expression calls, "" if it does not."""
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def visit(node):
    """Yields (node, description, new text) of all that can be changed below a node."""
    if isinstance(node, (ast.JoinedStr, ast.Raise, ast.Assert)) or called(node) in SAYING:
        return
    if names(node) & PICTURES:
        return
    if called(node) in FLAGS:
        for keyword in node.keywords:
            if keyword.arg in ("default", "const"):
                yield from visit(keyword.value)
        return
    if isinstance(node, ast.Expr) and (is_docstring(node) or called(node.value) in SAYING | FLAGS):
        if called(node.value) in FLAGS:
            yield from visit(node.value)
        return
    if isinstance(node, (ast.If, ast.While)):
        yield node.test, "condition negated", f"(not ({ast.unparse(node.test)}))"
    if isinstance(node, ast.stmt):
        made = statements(node)
    else:
        made = expressions(node)
    for description, text in made:
        yield node, description, text

    skipped = {"annotation", "returns", "decorator_list", "bases"}
    for name, value in ast.iter_fields(node):
        if name in skipped:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from visit(child)


def mutations(text):
    lines = text.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    whole = text.encode()
    found = []
    for node, description, new in visit(ast.parse(text)):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        changed = whole[:begin] + new.encode() + whole[end:]
        found.append((node.lineno, description, changed.decode()))
    return sorted(found, key=lambda item: item[0])
