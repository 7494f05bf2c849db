"""Turns a problem's tests into code whose parts pass or fail one by one. Runs nothing of a response."""

import ast
import builtins
import sys

GROUP, BLOCK = "__sluice_group__", "__sluice_block__"
# What binds a name, or suspends, cannot be moved into a function of its own.
NEVER_SPLIT = (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)


def contains(node, kinds):
    return any(isinstance(child, kinds) for child in ast.walk(node))


def template(source):
    (statement,) = ast.parse(source).body
    return statement


def group_call(names):
    return template("%s([%s])" % (GROUP, ",".join(names)))


def function(name, statement):
    node = template("def %s(): pass" % name)
    node.body = [statement]
    return node


def independent(body):
    """Whether statements can be run in any order: assertions that share no variable, which one of them could change."""
    return all(isinstance(statement, ast.Assert) for statement in body)


def split(check, source):
    """Rewrites the body of `check` so that each of its assertions counts by itself; returns how many there are.

    Assertions that follow each other become functions, which the group runner calls one after the other even where one
    fails. All other statements stay in place, in order; one that contains assertions, such as a loop, counts as one test.
    """
    body, group, total = [], [], 0
    # Looking at the text first saves a walk through the tree of nearly every test there is.
    may_bind = ":=" in source or "yield" in source or "await" in source

    def flush():
        if not group:
            return
        names = []
        for statement in group:
            names.append("__sluice_test_%d__" % len(body))
            body.append(function(names[-1], statement))
        body.append(group_call(names))
        group.clear()

    for statement in check.body:
        if isinstance(statement, ast.Assert) and not (may_bind and contains(statement, NEVER_SPLIT)):
            group.append(statement)
            total += 1
            continue
        flush()
        body.append(statement)
        if contains(statement, ast.Assert) and not isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            total += 1
            body.append(template(BLOCK + "()"))
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


def prepare(job):
    """What `tester` runs, of types that `marshal` knows; `None` where there is nothing to compile."""
    if job["kind"] == "check":
        return prepare_check(job["prompt"], job["test"])
    if job["kind"] == "asserts":
        return prepare_asserts(job["setup"], job["asserts"], job["entry_point"])
    return None


def prepare_check(prompt, test):
    """Code of the prompt, code of the test, number of assertions that count (0: the check as a whole), any order."""
    try:
        prompt = compile(prompt, "<prompt>", "exec")
    except SyntaxError:
        # A signature without a docstring needs a body to be a program.
        prompt = compile(prompt + "\n    pass\n", "<prompt>", "exec")
    tree = ast.parse(test)
    checks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    total, any_order = 0, False
    if len(checks) == 1 and len(checks[0].args.args) == 1:
        any_order = not has_data(tree) and independent(checks[0].body)
        total = split(checks[0], test)
    return prompt, compile(tree, "<tests>", "exec"), total, any_order


def has_data(tree):
    """Whether a file has variables, which one assertion could change and the next one read."""
    assigned = [node for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign))]
    return any(getattr(getattr(node, "targets", [None])[0], "id", "") != "METADATA" for node in assigned)


def prepare_asserts(setup, tests, entry_point):
    """Code of the set-up, modules to import, the entry point and whatever else is needed, code of the tests, any order."""
    setup, names = compile(setup, "<setup>", "exec"), {}
    exec(setup, names)
    modules = modules_used(tests, names)
    names.update((name, None) for name in modules)
    points = [entry_point] if entry_point else []
    points += [name for name in entry_points(tests, names) if name not in points]
    any_order = all(independent(ast.parse(text).body) for text in tests)
    return setup, modules, points, [compile(text, "<tests>", "exec") for text in tests], any_order
