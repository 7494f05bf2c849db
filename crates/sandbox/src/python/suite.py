"""Turns a problem's tests into code whose parts pass or fail one by one. Runs nothing of a response."""

import ast
import builtins
import sys

GROUP, BLOCK, SCRIPT = "__sluice_group__", "__sluice_block__", "__sluice_script__"
IDENTICAL = "__sluice_identical__"
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


class Identities(ast.NodeTransformer):
    """`a is b` as a call that knows what became of identity on the way here. Constants are the same ones everywhere."""

    def visit_Compare(self, node):
        self.generic_visit(node)
        (first, *others) = node.ops
        if others or not isinstance(first, (ast.Is, ast.IsNot)):
            return node
        sides = [node.left, *node.comparators]
        if any(isinstance(side, ast.Constant) for side in sides):
            return node
        call = ast.Call(ast.Name(IDENTICAL, ast.Load()), sides, [])
        answer = call if isinstance(first, ast.Is) else ast.UnaryOp(ast.Not(), call)
        return ast.fix_missing_locations(ast.copy_location(answer, node))


def compiled(tree, source):
    """Code of tests."""
    return compile(Identities().visit(tree) if " is " in source else tree, "<tests>", "exec")


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


def bound_names(tree):
    """Names that code binds anywhere."""
    bound = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return bound


def free_names(tree):
    """Names that code reads and does not bind."""
    bound = bound_names(tree)
    read = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    return [name for name in dict.fromkeys(read) if name not in bound]


def classes_used(trees):
    """Names of the response's classes, as far as the tests show that they are classes: they use attributes of what they
    make of one, or ask whether something is of it. Functions may have upper-case names too."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    made = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            made.setdefault(node.targets[0].id, set()).add(called_name(node.value))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Attribute):
            operation = isinstance(node.value, ast.BinOp)
            for owner in (node.value.left, node.value.right) if operation else (node.value,):
                found |= made.get(owner.id, set()) if isinstance(owner, ast.Name) else {called_name(owner)}
        elif called_name(node) in ("isinstance", "issubclass") and isinstance((node.args or [None])[-1], ast.Name):
            found.add(node.args[-1].id)
    return [name for name in found if name and name[0].isupper()]


def called_name(node):
    """The name that a node calls."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None


# What drives an iterator by hand: its items must not be fetched in advance.
DRIVERS = (".send(", ".throw(", ".close(")


def is_driven(source):
    return any(word in source for word in DRIVERS)


# Words without which no test does what `refusal` looks for.
SUSPECTS = ("redirect_std", "std", "builtins", "patch", "warnings", "inspect", "environ", "context", "async")
CAPTURES = {"redirect_stdout": "capture what the response prints", "redirect_stderr": "capture what the response prints"}
READS = {"signature", "getsource", "getsourcelines", "getfullargspec", "getdoc", "getmodule"}


def is_changed(environment, tree):
    """Whether code sets or removes a variable of `os.environ`, by an item or by a method."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and node.value is environment:
            return not isinstance(node.ctx, ast.Load)
        if isinstance(node, ast.Attribute) and node.value is environment:
            return node.attr in ("update", "pop", "setdefault", "clear", "popitem")
    return False


def refusal(tree, source):
    """What tests do that reaches into the response's process and so cannot be served; `None` where nothing does."""
    if not any(word in source for word in SUSPECTS):
        return None
    for node in ast.walk(tree):
        name = getattr(node, "attr", getattr(node, "id", None))
        if name in CAPTURES:
            return CAPTURES[name]
        if isinstance(node, ast.AsyncFor) or getattr(node, "is_async", 0):
            return "iterate over the response's objects in an event loop of their own"
        if isinstance(node, ast.AsyncWith) or name in ("wait_for", "timeout", "timeout_at") and "asyncio" in source:
            return "interleave the response's coroutines with their own event loop"
        if name == "environ" and is_changed(node, tree):
            return "change os.environ of the response's process"
        if name in ("getcontext", "setcontext", "localcontext"):
            return "change the decimal context of the response's process"
        if name in ("simplefilter", "filterwarnings") and '"error"' in source.replace("'", '"'):
            return "make errors of the response's warnings"
        if name == "patch" and "mock" in source:
            return "replace names of the response's process"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = node.value.id
            if isinstance(node.ctx, ast.Store) and owner in ("sys", "builtins"):
                return "replace %s.%s of the response's process" % (owner, node.attr)
            if owner == "inspect" and node.attr in READS:
                return "read the response's source by inspect." + node.attr
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", None)) == "catch_warnings":
            if any(keyword.arg == "record" for keyword in node.keywords):
                return "record warnings of the response"
    return None


def prepare(job):
    """What `tester` runs, of types that `marshal` knows; `None` where there is nothing to compile."""
    if job["kind"] == "check":
        return prepare_check(job["prompt"], job["test"])
    if job["kind"] == "asserts":
        return prepare_asserts([job["prelude"], job["setup"]], job["asserts"], job["entry_point"])
    return None


def prepare_check(prompt, test):
    """Code of the prompt, code of the test, number of assertions that count (0: the check as a whole), names that only
    the response can have, which of them are classes, whether iterators are driven, why the tests cannot be served."""
    try:
        prompt = compile(prompt, "<prompt>", "exec")
    except SyntaxError:
        # A signature without a docstring needs a body to be a program.
        prompt = compile(prompt + "\n    pass\n", "<prompt>", "exec")
    tree = ast.parse(test)
    needs, why = free_names(tree), refusal(tree, test)
    checks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    total = 0
    if len(checks) == 1 and len(checks[0].args.args) == 1:
        total = split(checks[0], test)
    return prompt, compiled(tree, test), total, needs, classes_used([tree]), is_driven(test), why


def prepare_asserts(codes, tests, entry_point):
    """Code that runs before the tests, modules to import, the entry point and whatever else is needed of the response,
    code of the tests, number of assertions where the only test is a script of several, classes of the response, whether
    iterators are driven, why the tests cannot be served."""
    source = "\n".join(codes)
    setup, names = ast.parse(source), {}
    try:
        exec(compile(setup, "<setup>", "exec"), names)
    except NameError:
        # It uses what the response defines.
        names = dict.fromkeys(bound_names(setup))
    trees = [ast.parse(test) for test in tests]
    modules = modules_used(tests, names)
    names.update((name, None) for name in modules)
    points = [entry_point] if entry_point else []
    points += [name for name in entry_points(tests, names) if name not in points]
    everything = [name for tree in [setup, *trees] for name in free_names(tree)]
    bound = set().union(*map(bound_names, trees))
    points += [
        name
        for name in dict.fromkeys(everything)
        if not (name in points or name in names or name in bound or hasattr(builtins, name))
    ]
    reasons = [refusal(tree, test) for tree, test in zip([setup, *trees], [source, *tests])]
    classes = [name for name in classes_used([setup, *trees]) if name in points]
    assertions = script(trees[0], tests[0]) if len(trees) == 1 else 0
    return (
        [compile(code, "<setup>", "exec") for code in codes],
        modules,
        points,
        [compiled(tree, test) for tree, test in zip(trees, tests)],
        assertions,
        classes,
        any(map(is_driven, [source, *tests])),
        next(filter(None, reasons), None),
    )


def script(tree, source):
    """Makes a function of a script of several assertions, each of which then counts by itself; returns how many there
    are, 0 where it stays as it is."""
    if sum(isinstance(statement, ast.Assert) for statement in tree.body) < 2 or "*" in source and "import" in source:
        return 0
    check = template("def %s(): pass" % SCRIPT)
    check.body = tree.body
    total = split(check, source)
    tree.body = [check]
    return total
