"""Turns a problem's tests into a list of things that can pass or fail, in an order drawn from a seed."""

import ast
import builtins
import sys

GROUP, BLOCK = "__sluice_group__", "__sluice_block__"
NEVER_SPLIT = (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)


def contains(node, kinds):
    return any(isinstance(child, kinds) for child in ast.walk(node))


def expression(name, arguments):
    call = ast.Call(ast.Name(name, ast.Load()), arguments, [])
    return ast.Expr(call)


def function(name, body):
    nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    node = ast.FunctionDef(name=name, args=nothing, body=body, decorator_list=[])
    if "type_params" in ast.FunctionDef._fields:
        node.type_params = []
    return node


def split(check):
    """Rewrites the body of `check` so that each of its assertions counts by itself; returns how many there are.

    Assertions that follow each other become functions, which the group runner may call in any order and one after the
    other even where one fails. All other statements stay in place, in order; one that contains assertions, such as a
    loop, counts as one test.
    """
    body, group, total = [], [], 0

    def flush():
        if not group:
            return
        names = []
        for statement in group:
            names.append("__sluice_test_%d__" % len(body))
            body.append(function(names[-1], [statement]))
        body.append(expression(GROUP, [ast.List([ast.Name(name, ast.Load()) for name in names], ast.Load())]))
        group.clear()

    for statement in check.body:
        if isinstance(statement, ast.Assert) and not contains(statement, NEVER_SPLIT):
            group.append(statement)
            total += 1
            continue
        flush()
        body.append(statement)
        if contains(statement, ast.Assert) and not isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            total += 1
            body.append(expression(BLOCK, []))
    flush()
    check.body = body
    return total


def called_names(test, excluded):
    """Names that `test` calls and does not bind itself, outermost first."""
    tree = ast.parse(test)
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {argument.arg for argument in ast.walk(tree) if isinstance(argument, ast.arg)}
    # `ast.walk` goes breadth first: an outer call comes before the calls in its arguments.
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [name.id for name in calls if isinstance(name, ast.Name)]
    return [name for name in dict.fromkeys(names) if name not in bound and name not in excluded]


def entry_points(tests, defined):
    """Names that the tests call and nothing but the response can define: the entry point first, then the others.

    The entry point is the outermost such call that all tests share. A response may define a name that is a builtin
    one's too, so where the tests call nothing else, that is it.
    """
    everything, shared = [], []
    for excluded in (defined.keys() | set(dir(builtins)), defined.keys()):
        called = [called_names(test, excluded) for test in tests]
        everything = list(dict.fromkeys(name for names in called for name in names))
        shared = [name for name in everything if all(name in names for names in called)]
        if shared:
            break
    if not shared:
        return everything
    if not set(everything) - set(dir(builtins)):
        everything = shared[:1]
    return [shared[0]] + [name for name in everything if name != shared[0]]


def modules_used(tests, defined):
    """Modules of the standard library that the tests use as if they were imported, because the response's author was
    expected to."""
    known = getattr(sys, "stdlib_module_names", ("math", "cmath", "collections", "itertools", "re", "string"))
    used = [
        node.value.id
        for test in tests
        for node in ast.walk(ast.parse(test))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]
    return [name for name in dict.fromkeys(used) if name in known and name not in defined]
